//! Where results go: files whole or not at all, stdout for the one result of a command.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use tempfile::NamedTempFile;

use crate::error::{CliError, Result};

/// Prints one JSON document, and nothing else, on stdout.
pub(crate) fn print_json(document: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|e| CliError::usage(format!("the report does not serialize: {e}")))?;
    print_line(&text)
}

/// Prints on stdout. A reader that went away (`moekit ... | head`) is no error.
pub(crate) fn print_line(text: &str) -> Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::file(Path::new("stdout"), e))
        }
        _ => Ok(()),
    }
}

/// Writes a file through a temporary one in the same directory, so that a failure leaves no half
/// of it behind.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = path
        .parent()
        .filter(|d| !d.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(directory).map_err(|e| CliError::file(path, e))?;
    file.write_all(bytes).map_err(|e| CliError::file(path, e))?;
    // A temporary file is private to its owner; a result is not.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let permissions = std::fs::Permissions::from_mode(0o644);
        file.as_file()
            .set_permissions(permissions)
            .map_err(|e| CliError::file(path, e))?;
    }
    file.persist(path)
        .map_err(|e| CliError::file(path, e.error))?;
    Ok(())
}
