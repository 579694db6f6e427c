//! `tropa-agent`: parse, resolve, run, exit.

use std::process::ExitCode;

fn main() -> ExitCode {
    tropa_agent::main()
}
