//! Data on stdout. A reader that went away is an error of this command and not a panic.

use std::io::Write as _;

use anyhow::Context as _;

use crate::exit::{Exit, Failed, OrExit as _};

/// Prints data, with a line end if it has none.
///
/// # Errors
/// With [`Exit::Io`] when nobody takes it: a closed pipe, a full disk.
pub fn print(text: &str) -> Result<(), Failed> {
    let mut stdout = std::io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    let written = write!(stdout, "{text}{end}").and_then(|()| stdout.flush());
    written.context("writing to stdout").or_exit(Exit::Io)
}

/// Prints data as it is.
///
/// # Errors
/// As [`print()`].
pub fn print_bytes(data: &[u8]) -> Result<(), Failed> {
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(data).and_then(|()| stdout.flush());
    written.context("writing to stdout").or_exit(Exit::Io)
}

/// Prints one JSON object.
///
/// # Errors
/// As [`print()`].
pub fn print_json(value: &impl serde::Serialize) -> Result<(), Failed> {
    let text = serde_json::to_string_pretty(value).context("writing JSON").or_exit(Exit::Io)?;
    print(&text)
}
