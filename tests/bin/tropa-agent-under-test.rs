//! `tropa-agent`, for the tests of the mesh as a whole.

use std::process::ExitCode;

fn main() -> ExitCode {
    tropa_agent::main()
}
