//! The fault catalogue (`reliability.md` §6.2) with the real programs: agents and doubles in network namespaces of
//! their own on a bridge, one test for each row of the first release.
//!
//! Each test prints its row: D from the fault to its notice, R to the work going on, L results lost, U doubled commits,
//! W chunks executed again, O overlap on a device. L, U and O must be zero. Times are held against the row's target
//! with room for a loaded machine of two cores; the figures say how it was.
//!
//! `cargo test -p tropa-tests --test main fault_f04` runs a row here and in virtual time (`simulated/rows.rs`):
//!
//! | row | with real programs | simulated |
//! | --- | --- | --- |
//! | F1, F3 | SIGKILL; every packet dropped | the same with idle machines beside, so that D and R are our timers alone |
//! | F4 | SIGSTOP among four machines; for 30 s beside another agent of its hardware | SIGSTOP for 30 s |
//! | F5 | SIGSTOP of the engine | an engine where everything stalls |
//! | F6 | cut for 60 s, one way for 12 s, 2 s on and 2 s off | each for 60 s |
//! | F7 | away for 5 s and for longer than the lease; killed at each step of §7.4 | away for 5 s, 120 s, an hour |
//! | F9, F10 | restart in mid-stream; eleven ways to end without success | an engine where everything fails, by reason |
//! | F12, F13 | a model that is missing, everywhere or on some; another under its name | an install without the model |
//! | F14 | a small disk, grown later | no room for 20 s |
//! | F19 | a hundred chunks each on three machines; same options, and other ones in turns of a second | the same, in turns of a minute |
//! | F20 | one and two network namespaces, two mount namespaces without a common lock | two agents, one killed, two coordinators |
//! | F29, F30 | a prompt that crashes, one that hangs | chunks that fail everywhere |
//! | F31 | SIGTERM | an agent that drains |
//! | F33 | an engine that computes on for 10 s | with F20: up to 28 s |
//! | F35 | another input | no decision of the simulator's |
//!
//! A row with several shapes of one fault has a test for each. Not here: rows 21 to 28 need a peer that breaks the
//! rules (`evil.rs`). A coordinator that stays away is waited for here as long as its agents' lease lasts and a little
//! more; an hour passes in the simulator.

mod agents;
mod book;
mod coordinators;
mod engines;
mod rig;

use std::time::Duration;

use self::{
    book::{Figures, now},
    rig::{Rig, until},
};

/// How much longer than its target a time may be here: the tests run beside each other, and beside others.
const SLACK: u32 = 3;

/// Answers of a second: fifty tokens of 20 ms.
const SECOND: &[&str] = &["--tokens", "50", "--decode-us", "20000"];

/// Answers of half a second. A chunk that is lost goes to the front, and still waits on any lane for the answer at work
/// and for the one that lies ready there: what a row measures elsewhere includes up to two of these.
const HALF: &[&str] = &["--tokens", "25", "--decode-us", "20000"];

/// The devices of so many hosts.
const DEVICES: [&str; 4] = ["cpu1", "cpu2", "cpu3", "cpu4"];

fn within(what: &str, measured: Option<Duration>, target: Duration) {
    let measured = measured.unwrap_or_else(|| panic!("{what} never happened"));
    assert!(measured <= target * SLACK, "{what} took {measured:?}, the target is {target:?}");
}
