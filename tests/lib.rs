//! The mesh as a whole, under test: what several test files need, and nothing that ships.

pub mod demo;
pub mod harness;
pub mod history;
pub mod makespan;
pub mod namespace;
pub mod ollama_double;
pub mod real_ollama;
pub mod simulation;
pub mod spread;
pub mod wire;

use std::fs::OpenOptions;
use std::io::Write;

/// Names a file that gets one line for every test that could not run.
pub const SKIPPED: &str = "TROPA_SKIPPED";

/// Says that this test could not run here, and why; the caller returns.
///
/// A test that returns early looks passed to the test runner. So the reason is printed as
/// `skipped: <reason>`, and is appended to the file that [`SKIPPED`] names, where there is one: CI counts
/// its lines.
///
/// # Panics
/// When that file cannot be written: a skip that nobody counts would be a false success.
#[expect(clippy::print_stdout, reason = "the output of a test")]
pub fn skipped(reason: &str) {
    let line = format!("skipped: {}\n", reason.replace('\n', " "));
    print!("{line}");
    if let Some(path) = std::env::var_os(SKIPPED).filter(|path| !path.is_empty()) {
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        assert!(written.is_ok(), "appending to {} failed: {written:?}", path.display());
    }
}
