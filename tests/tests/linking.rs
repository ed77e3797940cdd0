//! Which plugins survive the linker: the programs of `tests/linking`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Command;
use std::sync::OnceLock;

use moekit_tests::Nested;

const LINKED: &str = "\
planned: [0, 2, 4]
typetag: Snake { redundant: Hottest }
";

const NOT_LINKED: &str = "\
error: unknown placement strategy `snake`; linked are: none. \
A plugin of another crate must be linked by the program: `moekit::link_plugins!(the_crate);`
typetag: unknown variant `snake`, there are no variants
";

const TWINS: &str = "\
error: two placement strategy plugins are named `snake`: \
one from strategy-snake 0.1.0, one from twin 0.2.0; rename one of them or link only one
typetag: non-unique tag of dyn PlacementStrategy: \"snake\"
";

fn built() -> &'static Nested {
    static BUILT: OnceLock<Nested> = OnceLock::new();
    BUILT.get_or_init(|| {
        let linking = Nested::new("linking", env!("CARGO_TARGET_TMPDIR")).unwrap();
        succeed(linking.cargo("build").arg("--bins"));
        linking
    })
}

/// What the command prints, standard output first.
fn succeed(command: &mut Command) -> (String, String) {
    let output = command.output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {stdout}{stderr}");
    (stdout, stderr)
}

fn printed_by(program: &str) -> String {
    succeed(&mut built().program(program)).0
}

#[test]
fn link_plugins_links() {
    assert_eq!(printed_by("linked"), LINKED);
}

#[test]
fn a_reference_in_the_program_links() {
    assert_eq!(printed_by("used"), LINKED);
}

#[test]
fn a_line_in_the_manifest_does_not_link_and_the_error_helps() {
    assert_eq!(printed_by("named_only"), NOT_LINKED);
}

#[test]
fn a_facade_that_the_program_refers_to_links() {
    assert_eq!(printed_by("facade_called"), LINKED);
    assert_eq!(printed_by("facade_used"), LINKED);
}

#[test]
fn two_plugins_of_one_name_are_both_named() {
    assert_eq!(printed_by("twins"), TWINS);
}

/// A C linker takes from a static library only what something refers to: `link_plugins!` does, `use`
/// does not.
#[cfg(unix)]
#[test]
fn a_static_library_keeps_what_is_referred_to_at_run_time() {
    assert_eq!(printed_by_c(&[]), LINKED);
    assert_eq!(printed_by_c(&["--no-default-features"]), NOT_LINKED);
}

/// Builds the static library with some features and a C program upon it, and runs that.
#[cfg(unix)]
fn printed_by_c(features: &[&str]) -> String {
    let linking = built();
    let mut library = linking.cargo("rustc");
    library.args(["--package", "embedded"]).args(features);
    let (_, notes) = succeed(library.args(["--", "--print", "native-static-libs"]));
    let libraries = notes
        .lines()
        .find_map(|line| line.split_once("native-static-libs:"))
        .map(|(_, libraries)| libraries.split_whitespace())
        .unwrap();

    let program = linking.built("embedded-in-c");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let mut link = Command::new(compiler);
    link.arg(linking.dir().join("embedded/main.c"))
        .arg(linking.built("libembedded.a"))
        .args(libraries)
        .arg("-o")
        .arg(&program);
    succeed(&mut link);
    succeed(&mut Command::new(program)).0
}
