//! Where results go: files whole or not at all, stdout for the one result of a command.

use std::io::{self, Write};
use std::path::Path;

use moekit::eval::write_whole;
use serde::Serialize;

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

/// Writes a file whole or not at all.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    Ok(write_whole(path, bytes)?)
}
