//! The clocks of the agents against this machine's: dates of jobs, hours of policies and later certificates go by them.

use super::{
    Seen,
    finding::{Finding, named},
};
use crate::words::count;

/// A clock may be off by so much before it is worth a look (`conventions.md` §4).
const MAX_SKEW_NS: i128 = 10 * 60 * 1_000_000_000;

/// Who is off by more than ten minutes. Which of two clocks is wrong is not known.
pub(super) fn check(seen: &Seen) -> Vec<Finding> {
    let far: Vec<String> = seen
        .clocks
        .iter()
        .filter(|(_, offset)| offset.unsigned_abs() > MAX_SKEW_NS.unsigned_abs())
        .map(|(agent, offset)| {
            let way = if *offset > 0 { "ahead of" } else { "behind" };
            format!("{} is {} {way} this machine", seen.label(*agent), span(*offset))
        })
        .collect();
    if !far.is_empty() {
        let what = format!("the clocks differ: {}", named(far.iter().map(String::as_str)));
        let why = "hours that an operator permits, and dates of jobs, go by them";
        let fix = "where it is wrong: sudo timedatectl set-ntp true";
        return vec![Finding::warn("clock.skew", what).because(why).fix(fix)];
    }
    let Some(most) = seen.clocks.values().map(|offset| offset.unsigned_abs()).max() else {
        return Vec::new();
    };
    // Rounded up: they are never quite equal.
    let seconds = most.div_ceil(100_000_000).max(1) as f64 / 10.0;
    let what = format!(
        "the clocks of {} are within {seconds:.1} s of this machine's",
        count(seen.clocks.len(), "agent")
    );
    vec![Finding::ok("clock.skew", what)]
}

/// A time in minutes or hours.
fn span(ns: i128) -> String {
    let minutes = ns.unsigned_abs() / 60_000_000_000;
    if minutes < 120 { format!("{minutes} min") } else { format!("{} h", minutes / 60) }
}
