//! Boot epochs over time: when two agents' epochs are equal, and when a difference counts.
//!
//! The boot epoch (realtime − boottime) is equal to the nanosecond in all containers of a kernel, and changes for
//! all of them at a clock step. Two samples around a step differ although the kernel is one; so equality counts at
//! once, and a difference only when it was seen twice, some time apart (`identity.md` §5).

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{evidence::Reading, id::AgentId};

/// Epochs this close are equal: bracketing costs up to 5 ns inside an emulated VM, and two boots of two machines
/// differ by far more. Judgement (`identity.md` §18).
pub const EQUAL_WITHIN_NS: u64 = 2_000;

/// Samples further apart than this are not compared: the clock may have been stepped in between.
pub const COMPARABLE_WITHIN: Duration = Duration::from_secs(30);

/// A difference counts when seen in two comparisons this far apart, so that one clock step never splits a machine.
pub const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// Samples kept per agent: enough to look 10 s back when an agent announces once a second.
const MAX_SAMPLES: usize = 16;

/// Samples closer than this replace each other, so that a chatty agent cannot push its own past out.
const MIN_SPACING: Duration = Duration::from_secs(1);

/// What is known of two epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EpochComparison {
    /// Equal in the latest comparison.
    Equal,
    /// Different in two comparisons at least ten seconds apart, with no equal one in between.
    Different,
    /// Not to be compared: not readable, too far apart in time, or a difference that has not settled.
    NotComparable,
}

/// When it was sampled, and the epoch in nanoseconds.
type Sample = (Duration, i64);

/// The epochs that one agent has shown lately.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochTrack {
    /// Oldest first.
    samples: VecDeque<Sample>,
    /// A difference counts at once.
    settled: bool,
}

/// The tracks of all agents. Times are by the coordinator's clock, from any fixed origin.
#[derive(Clone, Debug, Default)]
pub struct EpochWatch {
    tracks: BTreeMap<AgentId, EpochTrack>,
}

impl EpochTrack {
    /// An agent without a usable epoch.
    #[must_use]
    pub fn unknown() -> Self {
        Self { samples: VecDeque::new(), settled: false }
    }

    /// One epoch that is taken as settled, for tables and tests: differences count at once.
    #[must_use]
    pub fn settled(epoch_ns: &Reading<i64>) -> Self {
        let samples = epoch_ns.value().map(|ns| (Duration::ZERO, *ns)).into_iter().collect();
        Self { samples, settled: true }
    }

    /// Takes a sample. What is not a genuine value forgets the past: the agent has no epoch now. Samples from before
    /// the latest are ignored.
    pub fn observe(&mut self, epoch_ns: &Reading<i64>, sampled_at: Duration) {
        let Some(&ns) = epoch_ns.value() else {
            self.samples.clear();
            return;
        };
        match self.samples.back_mut() {
            Some((at, _)) if sampled_at < *at => {}
            // The time stays, so that a stream of samples closer than the spacing still moves on.
            Some(latest) if sampled_at.saturating_sub(latest.0) < MIN_SPACING => latest.1 = ns,
            Some(_) | None => {
                self.samples.push_back((sampled_at, ns));
                if self.samples.len() > MAX_SAMPLES {
                    self.samples.pop_front();
                }
            }
        }
    }

    /// The epochs that [`compare`](Self::compare) may look at, oldest first.
    pub fn epochs(&self) -> impl Iterator<Item = i64> + '_ {
        self.samples.iter().map(|(_, ns)| *ns)
    }

    /// Says what comparing any two of many agents comes to, in time that grows with the agents and not with their
    /// pairs: `Equal`, every pair is; `NotComparable`, no pair is different; `None` where pairs must be looked at.
    #[must_use]
    pub fn agreement<'a>(tracks: impl Iterator<Item = &'a Self>) -> Option<EpochComparison> {
        let (mut every_has_one, mut epochs, mut latest) = (true, None, None);
        let wider = |range: Option<(i64, i64)>, low: i64, high: i64| {
            range.map_or((low, high), |(lowest, highest)| (lowest.min(low), highest.max(high)))
        };
        for track in tracks {
            every_has_one &= !track.samples.is_empty();
            for &(_, ns) in &track.samples {
                epochs = Some(wider(epochs, ns, ns));
            }
            let at = track.samples.back().and_then(|(at, _)| i64::try_from(at.as_nanos()).ok());
            every_has_one &= at.is_some();
            latest = at.map(|at| wider(latest, at, at)).or(latest);
        }
        let within = |range: Option<(i64, i64)>, limit: u128| {
            range.is_none_or(|(low, high)| u128::from(low.abs_diff(high)) <= limit)
        };
        if !within(epochs, u128::from(EQUAL_WITHIN_NS)) {
            None
        } else if every_has_one && within(latest, COMPARABLE_WITHIN.as_nanos()) {
            Some(EpochComparison::Equal)
        } else {
            Some(EpochComparison::NotComparable)
        }
    }

    /// Compares two agents. Symmetric.
    #[must_use]
    pub fn compare(&self, other: &Self) -> EpochComparison {
        // The latest comparison decides equality, and it is between the latest samples.
        if let (Some(ours), Some(theirs)) = (self.samples.back(), other.samples.back())
            && ours.0.abs_diff(theirs.0) <= COMPARABLE_WITHIN
            && ours.1.abs_diff(theirs.1) <= EQUAL_WITHIN_NS
        {
            return EpochComparison::Equal;
        }
        let mut verdict = EpochComparison::NotComparable;
        let mut differs_since = None;
        for (at, ours, theirs) in comparisons(&self.samples, &other.samples) {
            if ours.abs_diff(theirs) <= EQUAL_WITHIN_NS {
                verdict = EpochComparison::Equal;
                differs_since = None;
                continue;
            }
            let since = *differs_since.get_or_insert(at);
            let settled = (self.settled && other.settled) || at.saturating_sub(since) >= SETTLED_AFTER;
            verdict = if settled { EpochComparison::Different } else { EpochComparison::NotComparable };
        }
        verdict
    }
}

impl EpochWatch {
    /// Takes a sample of an agent; see [`EpochTrack::observe`].
    pub fn observe(&mut self, agent: AgentId, epoch_ns: &Reading<i64>, sampled_at: Duration) {
        self.tracks.entry(agent).or_insert_with(EpochTrack::unknown).observe(epoch_ns, sampled_at);
    }

    /// Forgets an agent: it left, or it is another incarnation now.
    pub fn forget(&mut self, agent: AgentId) {
        self.tracks.remove(&agent);
    }

    /// What the agent has shown lately.
    #[must_use]
    pub fn track(&self, agent: AgentId) -> EpochTrack {
        self.tracks.get(&agent).cloned().unwrap_or_else(EpochTrack::unknown)
    }

    /// Compares two agents.
    #[must_use]
    pub fn compare(&self, a: AgentId, b: AgentId) -> EpochComparison {
        match (self.tracks.get(&a), self.tracks.get(&b)) {
            (Some(a), Some(b)) => a.compare(b),
            (None, _) | (_, None) => EpochComparison::NotComparable,
        }
    }
}

/// Every comparison that two series allow, in time order: each sample against the other side's latest one before
/// it, if that is recent enough. Gives the time of the later sample.
fn comparisons<'a>(
    ours: &'a VecDeque<Sample>,
    theirs: &'a VecDeque<Sample>,
) -> impl Iterator<Item = (Duration, i64, i64)> + 'a {
    let (mut next_ours, mut next_theirs) = (0, 0);
    let (mut last_ours, mut last_theirs) = (None::<Sample>, None::<Sample>);
    std::iter::from_fn(move || {
        loop {
            let at = match (ours.get(next_ours), theirs.get(next_theirs)) {
                (Some(a), Some(b)) => a.0.min(b.0),
                (Some(one), None) | (None, Some(one)) => one.0,
                (None, None) => return None,
            };
            // Samples of one moment are taken together, so that the order of the two sides changes nothing.
            while let Some(sample) = ours.get(next_ours).filter(|sample| sample.0 == at) {
                last_ours = Some(*sample);
                next_ours += 1;
            }
            while let Some(sample) = theirs.get(next_theirs).filter(|sample| sample.0 == at) {
                last_theirs = Some(*sample);
                next_theirs += 1;
            }
            if let (Some(a), Some(b)) = (last_ours, last_theirs)
                && a.0.abs_diff(b.0) <= COMPARABLE_WITHIN
            {
                return Some((at, a.1, b.1));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: AgentId = AgentId([1; 32]);
    const B: AgentId = AgentId([2; 32]);
    const EPOCH: i64 = 1_790_001_000_000_000_000;

    /// Samples are (agent, seconds, offset from the epoch in ns).
    fn watch(samples: &[(AgentId, u64, i64)]) -> EpochWatch {
        let mut watch = EpochWatch::default();
        for &(agent, seconds, offset) in samples {
            watch.observe(agent, &Reading::Value(EPOCH + offset), Duration::from_secs(seconds));
        }
        watch
    }

    fn both_ways(samples: &[(AgentId, u64, i64)]) -> EpochComparison {
        let watch = watch(samples);
        assert_eq!(watch.compare(A, B), watch.compare(B, A));
        watch.compare(A, B)
    }

    #[test]
    fn equality_counts_at_once_and_within_two_microseconds() {
        assert_eq!(both_ways(&[(A, 0, 0), (B, 1, 2_000)]), EpochComparison::Equal);
        assert_eq!(both_ways(&[(A, 0, 0), (B, 1, 2_001)]), EpochComparison::NotComparable);
    }

    #[test]
    fn a_difference_counts_only_when_seen_again_ten_seconds_later() {
        assert_eq!(both_ways(&[(A, 0, 0), (B, 1, 9_999), (A, 10, 0)]), EpochComparison::NotComparable);
        assert_eq!(both_ways(&[(A, 0, 0), (B, 1, 9_999), (A, 11, 0)]), EpochComparison::Different);
    }

    #[test]
    fn a_clock_step_between_two_samples_does_not_split_a_kernel() {
        let step = 1_000_000;
        let stepped = [(A, 0, 0), (B, 1, 0), (B, 6, step), (A, 10, step), (B, 20, step)];
        assert_eq!(both_ways(&stepped[..3]), EpochComparison::NotComparable);
        assert_eq!(both_ways(&stepped), EpochComparison::Equal);
    }

    #[test]
    fn samples_more_than_thirty_seconds_apart_are_not_compared() {
        assert_eq!(both_ways(&[(A, 0, 0), (B, 31, 0)]), EpochComparison::NotComparable);
    }

    #[test]
    fn an_agent_that_loses_its_epoch_is_not_compared() {
        let mut watch = watch(&[(A, 0, 0), (B, 0, 0)]);
        watch.observe(A, &Reading::Absent, Duration::from_secs(1));
        assert_eq!(watch.compare(A, B), EpochComparison::NotComparable);
    }

    #[test]
    fn a_chatty_agent_cannot_push_its_past_out() {
        let mut watch = watch(&[(A, 0, 0), (B, 0, 9_999)]);
        for tenth in 1..200 {
            watch.observe(A, &Reading::Value(EPOCH), Duration::from_millis(tenth * 100));
        }
        assert_eq!(watch.compare(A, B), EpochComparison::Different);
        assert!(watch.tracks[&A].samples.len() <= MAX_SAMPLES);
    }
}
