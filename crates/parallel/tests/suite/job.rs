//! Starts a test again as several processes.
#![allow(dead_code, reason = "a module of several tests")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use moekit_parallel::TcpGroup;

/// Far beyond what any job needs, even on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a process prints to be killed.
const KILL: &str = "[kill me]";

/// A job that has ended.
pub(crate) struct Ended {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs this program as `size` processes of an MPI job with `rank` and `what` as arguments; a hang is
/// a failure.
pub(crate) fn mpirun(size: usize, what: &[&str]) -> Ended {
    let child = this(&mut Command::new("mpirun"))
        // As root and with more processes than cores, if need be: Open MPI asks before.
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .args(["-n", &size.to_string()])
        .arg(std::env::current_exe().unwrap())
        .arg("rank")
        .args(what)
        .spawn();
    let child = child.unwrap_or_else(|error| panic!("mpirun cannot be started: {error}"));
    let mut ended = wait(vec![child], &format!("{size} processes, {what:?}"));
    ended.remove(0)
}

/// The same over TCP; how each process ended, by rank.
pub(crate) fn tcp(size: usize, what: &[&str]) -> Vec<Ended> {
    let children = TcpGroup::spawn(size, |_| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        this(&mut command).arg("rank").args(what);
        command
    });
    wait(
        children.unwrap(),
        &format!("{size} processes over TCP, {what:?}"),
    )
}

fn this(command: &mut Command) -> &mut Command {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
}

/// Asks to be killed, by SIGKILL, and goes on until that happens.
pub(crate) fn be_killed_soon() {
    println!("{KILL}");
}

/// Is killed here.
pub(crate) fn be_killed() -> ! {
    be_killed_soon();
    loop {
        thread::park();
    }
}

fn wait(children: Vec<Child>, job: &str) -> Vec<Ended> {
    let start = Instant::now();
    let children: Vec<_> = children
        .into_iter()
        .map(|mut child| {
            let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
            let child = Arc::new(Mutex::new(child));
            let killed = child.clone();
            let stdout = thread::spawn(move || lines(stdout, &killed));
            let stderr = thread::spawn(move || all(stderr));
            (child, stdout, stderr)
        })
        .collect();
    let mut statuses = vec![None; children.len()];
    while statuses.contains(&None) {
        for ((child, ..), status) in children.iter().zip(&mut statuses) {
            if status.is_none() {
                *status = child.lock().unwrap().try_wait().unwrap();
            }
        }
        if start.elapsed() > PATIENCE {
            for (child, ..) in &children {
                child.lock().unwrap().kill().unwrap();
            }
            for (rank, (_, stdout, stderr)) in children.into_iter().enumerate() {
                let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
                eprintln!("rank {rank}: {:?}\n{stdout}{stderr}", statuses[rank]);
            }
            panic!("the job hangs: {job}");
        }
        thread::sleep(Duration::from_millis(2));
    }
    let ended = children
        .into_iter()
        .zip(statuses)
        .map(|((_, stdout, stderr), status)| Ended {
            success: status.is_some_and(|status| status.success()),
            stdout: stdout.join().unwrap(),
            stderr: stderr.join().unwrap(),
        });
    ended.collect()
}

/// What a process prints, which is killed when it asks for that.
fn lines(pipe: impl Read, child: &Mutex<Child>) -> String {
    let mut text = String::new();
    for line in BufReader::new(pipe).lines() {
        let line = line.unwrap();
        if line == KILL {
            child.lock().unwrap().kill().unwrap();
        }
        text += &line;
        text.push('\n');
    }
    text
}

fn all(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    pipe.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}
