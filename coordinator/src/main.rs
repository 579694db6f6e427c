//! `tropa`: parse, resolve, run, report, exit.

use std::process::ExitCode;

fn main() -> ExitCode {
    tropa_coordinator::main()
}
