//! What the answers of two agents prove: pure, so that every case can be tested.

use tropa_proto::{
    evidence::Reading,
    fuse::{ClockOffset, Test},
    message::Counters,
};

use super::{Outcome, Tested};

/// Genuine counters that a sandwich needs, of four: one alone can agree by accident.
const ENOUGH_COUNTERS: usize = 2;

/// A₁ is at least so many times A₂ − A₁: a wider window would let another kernel pass by accident.
const NARROW: u64 = 100;

/// One round of the counter sandwich: A, then B, then A again, each asked after the answer before.
#[derive(Clone, Debug)]
pub struct Round {
    /// A, first.
    pub before: Counters,
    /// B.
    pub between: Counters,
    /// A, again.
    pub after: Counters,
}

/// Four timestamps in nanoseconds: the coordinator's clock outside, the agent's inside.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// When the question left.
    pub asked_ns: i64,
    /// When it arrived.
    pub received_ns: i64,
    /// When the answer left.
    pub sent_ns: i64,
    /// When it arrived.
    pub answered_ns: i64,
}

/// Judges a counter sandwich.
///
/// Failed as soon as one genuine counter of B lies outside its window. Passed if at least two counters are genuine
/// in all readings, every window is narrow (at most 1 % of A₁), and every value of B lies inside. Else undecided.
#[must_use]
pub fn sandwich(rounds: &[Round]) -> (Tested, Option<Test>) {
    let counters: [(&str, Read); 4] = [
        ("ctxt", |counters| &counters.ctxt),
        ("processes", |counters| &counters.processes),
        ("pgfault", |counters| &counters.pgfault),
        ("pgfree", |counters| &counters.pgfree),
    ];
    let (mut genuine, mut compared, mut in_order, mut widest) = (0, 0, 0, 0.0_f64);
    let (mut outside, mut wide, mut backwards) = (None, None, None);
    for (name, read) in counters {
        let Some(windows) = rounds.iter().map(|round| window(round, read)).collect::<Option<Vec<_>>>() else {
            continue;
        };
        genuine += 1;
        for [before, between, after] in windows {
            compared += 1;
            if after < before {
                backwards = Some(name);
                continue;
            }
            widest = widest.max(100.0 * (after - before) as f64 / before.max(1) as f64);
            if (after - before).saturating_mul(NARROW) > before {
                wide = Some(name);
            }
            if (before..=after).contains(&between) {
                in_order += 1;
            } else {
                outside = Some(format!("{name} of B is {between}, of A {before} before and {after} after"));
            }
        }
    }
    let (outcome, test, why) = match (outside, backwards, wide) {
        _ if genuine < ENOUGH_COUNTERS || rounds.is_empty() => {
            let unread = format!("only {genuine} of 4 counters are the kernel's own on both sides");
            (Outcome::Undecided, None, unread)
        }
        (_, Some(name), _) => (Outcome::Undecided, None, format!("{name} of A runs backwards")),
        (Some(outside), None, _) => (Outcome::Failed, Some(Test::Fail), outside),
        (None, None, Some(name)) => {
            (Outcome::Undecided, None, format!("{name} rises too fast between two readings of A"))
        }
        (None, None, None) => {
            (Outcome::Passed, Some(Test::Pass), "every reading of B between two of A".to_owned())
        }
    };
    let tested = Tested {
        in_order: Some([in_order, compared]),
        widest_percent: Some(widest),
        ..Tested::new(
            "counter sandwich",
            outcome,
            format!("{in_order}/{compared} in order, windows up to {widest:.3} %: {why}"),
        )
    };
    (tested, test)
}

/// Judges two runs of clock exchanges with A and with B. Never passes: equal clocks prove nothing.
///
/// The offset of a run is that of the exchange with the shortest round trip on either side. Both runs must
/// disprove; the one that disproves less is what fusion gets.
#[must_use]
pub fn clocks(runs: &[[Vec<Exchange>; 2]]) -> (Tested, Option<ClockOffset>) {
    let offsets: Option<Vec<ClockOffset>> = runs
        .iter()
        .map(|[a, b]| {
            let ((a, a_rtt), (b, b_rtt)) = (best(a)?, best(b)?);
            let offset_ns = (a - b).clamp(i128::from(i64::MIN), i128::from(i64::MAX));
            Some(ClockOffset {
                offset_ns: i64::try_from(offset_ns).ok()?,
                rtt_ns: a_rtt.saturating_add(b_rtt),
            })
        })
        .collect();
    let least = offsets.as_ref().and_then(|offsets| {
        offsets
            .iter()
            .copied()
            .min_by_key(|clock| i128::from(clock.offset_ns.unsigned_abs()) * 2 - i128::from(clock.rtt_ns))
    });
    let Some(least) = least else {
        return (Tested::new("clock offset", Outcome::Undecided, "an agent did not tell the time"), None);
    };
    let ms = |ns: f64| ns / 1e6;
    let outcome = if least.disproves() { Outcome::Failed } else { Outcome::Undecided };
    let detail = format!(
        "offset {:.3} ms, round trip {:.3} ms: {}",
        ms(least.offset_ns as f64),
        ms(least.rtt_ns as f64),
        if least.disproves() { "the clocks differ" } else { "may be one clock" }
    );
    let tested = Tested {
        offset_ns: Some(least.offset_ns),
        rtt_ns: Some(least.rtt_ns),
        ..Tested::new("clock offset", outcome, detail)
    };
    (tested, Some(least))
}

type Read = fn(&Counters) -> &Reading<u64>;

/// One counter in one round, where it is genuine in all three readings.
fn window(round: &Round, read: Read) -> Option<[u64; 3]> {
    let value = |counters| read(counters).value().copied();
    Some([value(&round.before)?, value(&round.between)?, value(&round.after)?])
}

/// Offset of the agent's clock against the coordinator's, and round trip, of the exchange with the shortest one.
pub(super) fn best(exchanges: &[Exchange]) -> Option<(i128, u64)> {
    let measured = exchanges.iter().filter_map(|exchange| {
        let [asked, received, sent, answered] =
            [exchange.asked_ns, exchange.received_ns, exchange.sent_ns, exchange.answered_ns].map(i128::from);
        // Negative where a clock was stepped meanwhile.
        let rtt = u64::try_from((answered - asked) - (sent - received)).ok()?;
        Some((rtt, ((received - asked) + (sent - answered)) / 2))
    });
    measured.min().map(|(rtt, offset)| (offset, rtt))
}

impl Tested {
    /// A test without numbers.
    pub(super) fn new(test: &'static str, outcome: Outcome, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { test, outcome, detail, offset_ns: None, rtt_ns: None, in_order: None, widest_percent: None }
    }
}
