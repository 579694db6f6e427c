//! The table by which relations are scored, so that a verdict can be checked by hand and a later one compared.

use serde::Serialize;
use tropa_proto::fuse::{BOUNDS, Line, RULES_VERSION};

use super::odds;

/// The table of scores; every number is in log10 odds (`identity.md` §6).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScoreTable {
    /// The version of these numbers and of the rules around them; the `rules_version` of the report.
    pub version: u16,
    /// A sum from here on is one machine.
    pub same_from: f64,
    /// A sum from here on is one machine with high confidence.
    pub same_high_from: f64,
    /// A sum above this and below `same_from` is unknown: counted as one machine.
    pub unknown_above: f64,
    /// A sum from here down is two machines with high confidence.
    pub distinct_high_from: f64,
    /// A line that is worth this much makes at least unknown, whatever stands against it.
    pub strong_from: f64,
    /// The lines, in the order of the rules.
    pub lines: Vec<ScoreRow>,
}

/// One line of evidence.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScoreRow {
    /// The words that stand for it in the `reasons` of a relation.
    pub line: &'static str,
    /// What it adds to the sum.
    pub score: f64,
}

impl ScoreTable {
    /// The table of this program.
    pub(super) fn now() -> Self {
        let row = |line: &Line| ScoreRow { line: line.text(), score: odds(line.tenths()) };
        Self {
            version: RULES_VERSION,
            same_from: odds(BOUNDS.same),
            same_high_from: odds(BOUNDS.same_high),
            unknown_above: odds(BOUNDS.unknown_above),
            distinct_high_from: odds(BOUNDS.distinct_high),
            strong_from: odds(BOUNDS.strong),
            lines: Line::ALL.iter().map(row).collect(),
        }
    }
}
