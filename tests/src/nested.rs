use std::env::consts::EXE_SUFFIX;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io, process};

use crate::workspace;

/// A Cargo workspace inside of this one, which knows nothing of it.
///
/// All of them build into one directory below the target directory of this workspace, offline and
/// with the versions that this workspace has locked: what they need is there already.
#[derive(Debug)]
pub struct Nested {
    dir: PathBuf,
    target: PathBuf,
}

impl Nested {
    /// The workspace in `dir`, relative to `tests/`.
    ///
    /// # Arguments
    ///
    /// - `tmp` - the caller's `CARGO_TARGET_TMPDIR`.
    ///
    /// # Errors
    ///
    /// If the lock file cannot be copied there.
    pub fn new(dir: &str, tmp: &str) -> io::Result<Self> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
        // Another process may read the lock file just now, so it is replaced as a whole.
        let fresh = dir.join(format!("Cargo.lock.{}", process::id()));
        fs::copy(workspace().join("Cargo.lock"), &fresh)?;
        fs::rename(fresh, dir.join("Cargo.lock"))?;
        let target = Path::new(tmp).join("nested");
        Ok(Self { dir, target })
    }

    /// `cargo <subcommand>` in the workspace.
    pub fn cargo(&self, subcommand: &str) -> Command {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let mut command = Command::new(cargo);
        command
            .current_dir(&self.dir)
            .args([subcommand, "--offline", "--target-dir"])
            .arg(&self.target)
            .env("CARGO_INCREMENTAL", "0")
            .env("CARGO_TERM_COLOR", "never");
        command
    }

    /// The directory of the workspace.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file that a build without options leaves.
    pub fn built(&self, file: &str) -> PathBuf {
        self.target.join("debug").join(file)
    }

    /// A program that a build without options leaves.
    pub fn program(&self, name: &str) -> Command {
        Command::new(self.built(&format!("{name}{EXE_SUFFIX}")))
    }
}
