//! The fault catalogue (`reliability.md` §6.2) with the real programs: agents and doubles in network namespaces of
//! their own on a bridge, one test for each row of the first release.
//!
//! Each test prints its row: D from the fault to its notice, R to the work going on, L results lost, U doubled commits,
//! W chunks executed again, O overlap on a device. L, U and O must be zero. Times are held against the row's target
//! with room for a loaded machine of two cores; the figures say how it was.
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
