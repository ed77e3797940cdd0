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
    print_to_reader(text).map(|_| ())
}

/// The same, for what is printed as it comes: whether there still is a reader.
pub(crate) fn print_to_reader(text: &str) -> Result<bool> {
    match writeln!(io::stdout().lock(), "{text}") {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(CliError::file(Path::new("stdout"), e)),
    }
}

/// Says on stderr what stands beside the result. Without a reader there is nobody to tell.
pub(crate) fn note(text: &str) {
    io::stderr().write_all(text.as_bytes()).ok();
}

/// Writes a file whole or not at all.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    Ok(write_whole(path, bytes)?)
}
