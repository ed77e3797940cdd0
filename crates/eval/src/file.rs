//! Reading and writing whole files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::EvalError;

/// No load or placement file comes near this size; a larger one was meant for something else.
const MAX_BYTES: u64 = 4 << 30;

/// The bytes of a file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, EvalError> {
    let file = File::open(path).map_err(EvalError::io(path))?;
    let mut bytes = Vec::new();
    // Bounded by what is read, not by what the file system claims: a pipe claims nothing.
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(EvalError::io(path))?;
    if bytes.len() as u64 > MAX_BYTES {
        let message = format!("the file is larger than {MAX_BYTES} bytes, which no load file is");
        return Err(EvalError::content(path, message));
    }
    Ok(bytes)
}

/// Writes a file whole or not at all: to a temporary file beside it, which then takes its name. What is
/// no file (a pipe, `/dev/null`) is written to as it is, and a link stays one.
///
/// # Errors
///
/// If the directory does not exist or cannot be written to. What was at `path` before stays.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), EvalError> {
    let target = target(path).map_err(EvalError::io(path))?;
    if fs::metadata(&target).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        let mut device = OpenOptions::new()
            .write(true)
            .open(&target)
            .map_err(EvalError::io(path))?;
        return device.write_all(bytes).map_err(EvalError::io(path));
    }
    replace(&target, bytes)
}

/// Where a link leads, which need not exist yet.
fn target(path: &Path) -> io::Result<PathBuf> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => match fs::canonicalize(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder = path.parent().unwrap_or(Path::new(""));
                Ok(folder.join(fs::read_link(path)?))
            }
            found => found,
        },
        _ => Ok(path.to_owned()),
    }
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), EvalError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    // Readable by whom the umask lets, as any other new file; the default is the owner alone.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    // The kind alone: the whole error names the temporary file.
    let mut file = builder
        .tempfile_in(folder)
        .map_err(|error| EvalError::io(folder)(error.kind().into()))?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .map_err(EvalError::io(path))?;
    file.persist(path)
        .map_err(|error| EvalError::io(path)(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        write_whole(&path, b"old").unwrap();
        write_whole(&path, b"new").unwrap();
        assert_eq!(read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

        let blocked = folder.path().join("folder");
        std::fs::create_dir(&blocked).unwrap();
        std::fs::write(blocked.join("kept"), b"kept").unwrap();
        assert!(write_whole(&blocked, b"new").is_err());
        assert_eq!(read(&blocked.join("kept")).unwrap(), b"kept");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn errors_name_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("no").join("x.json");
        assert!(read(&path).unwrap_err().to_string().contains("x.json"));
        let error = write_whole(&path, b"").unwrap_err().to_string();
        // The folder that is missing, and nothing in it.
        let folder = folder.path().join("no").display().to_string();
        assert_eq!(error.matches(&folder).count(), 1, "{error}");
        assert!(error.starts_with(&format!("{folder}: ")), "{error}");
    }

    #[test]
    fn a_file_in_place_of_the_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        write_whole(&file, b"").unwrap();
        let error = write_whole(&file.join("x.json"), b"").unwrap_err();
        let error = error.to_string();
        let file = file.display().to_string();
        assert!(error.starts_with(&format!("{file}: ")), "{error}");
        assert_eq!(error.matches(&file).count(), 1, "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_links_and_devices_devices() {
        use std::os::unix::fs::{FileTypeExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        symlink("file", &link).unwrap();
        for text in ["new", "newer"] {
            write_whole(&link, text.as_bytes()).unwrap();
            assert_eq!(read(&file).unwrap(), text.as_bytes());
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        }

        let null = folder.path().join("null");
        symlink("/dev/null", &null).unwrap();
        write_whole(&null, b"nothing").unwrap();
        let device = fs::metadata(&null).unwrap().file_type();
        assert!(device.is_char_device());
    }

    #[cfg(unix)]
    #[test]
    fn others_may_read_what_is_written() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
        write_whole(&ours, b"").unwrap();
        std::fs::write(&plain, b"").unwrap();
        let mode = |path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(ours), mode(plain));
    }
}
