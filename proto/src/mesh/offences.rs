//! Who broke the rules, how often, and for how long it is shut out.
//!
//! Whatever is larger than its cap or no message ends the stream or the exchange on which it came; the third time
//! within ten minutes the peer is shut out for ten (`security.md` §6), and so is at once who has flooded the mesh
//! (`flood.rs`). Gossip that is nothing is not counted here: its own scores do that. Nor is a message of another
//! version, which proves no ill will.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::id::AgentId;

/// Offences that end in a ban (`security.md` §5.1, §6).
pub const OFFENCES: u32 = 3;

/// How long a ban lasts, and how long an offence is remembered (`security.md` §6).
pub const BAN: Duration = Duration::from_secs(600);

/// Peers that are remembered: as many as a mesh has. Beyond it the one that came first is forgotten.
const REMEMBERED: usize = 1_024;

/// Complaints that wait for the driver; it takes them every second, so more would be of one peer.
const WAITING: usize = 64;

/// Where whoever reads from peers leaves the names of those who break the rules.
#[derive(Clone, Debug, Default)]
pub(crate) struct Complaints(Arc<Mutex<Vec<AgentId>>>);

impl Complaints {
    pub(crate) fn about(&self, agent: AgentId) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < WAITING {
            all.push(agent);
        }
    }

    pub(super) fn take(&self) -> Vec<AgentId> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is remembered of those who broke the rules.
#[derive(Debug, Default)]
pub(super) struct Offences(BTreeMap<AgentId, Record>);

#[derive(Clone, Copy, Debug)]
struct Record {
    count: u32,
    /// When it is forgotten: the ban, where there is one.
    until: Instant,
}

impl Offences {
    /// Notes an offence; says whether it is the one that ends in a ban.
    pub(super) fn note(&mut self, agent: AgentId, now: Instant) -> bool {
        self.count(agent, 1, now)
    }

    /// Shuts out whoever has done what needs no repetition; says whether it was not shut out already.
    pub(super) fn shut_out(&mut self, agent: AgentId, now: Instant) -> bool {
        self.count(agent, OFFENCES, now)
    }

    fn count(&mut self, agent: AgentId, offences: u32, now: Instant) -> bool {
        if self.0.len() >= REMEMBERED && !self.0.contains_key(&agent) {
            let first = self.0.iter().min_by_key(|(_, record)| record.until).map(|(agent, _)| *agent);
            first.and_then(|first| self.0.remove(&first));
        }
        let record = self.0.entry(agent).or_insert(Record { count: 0, until: now });
        if record.count >= OFFENCES {
            return false;
        }
        *record = Record { count: record.count.saturating_add(offences), until: now + BAN };
        record.count >= OFFENCES
    }

    /// Forgets what is over; says whether a ban was among it.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let before = self.banned().count();
        self.0.retain(|_, record| now < record.until);
        self.banned().count() < before
    }

    /// Those who are shut out.
    pub(super) fn all_banned(&self) -> BTreeSet<AgentId> {
        self.banned().collect()
    }

    fn banned(&self) -> impl Iterator<Item = AgentId> {
        self.0.iter().filter(|(_, record)| record.count >= OFFENCES).map(|(agent, _)| *agent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an Instant has no other source; only differences matter")]
    fn now() -> Instant {
        Instant::now()
    }

    const AGENT: AgentId = AgentId([1; 32]);

    #[test]
    fn the_third_offence_within_ten_minutes_shuts_out_for_ten() {
        let (mut offences, start) = (Offences::default(), now());
        let just = Duration::from_millis(1);
        assert!(!offences.note(AGENT, start));
        assert!(!offences.note(AGENT, start));
        assert!(offences.all_banned().is_empty());
        assert!(offences.note(AGENT, start + BAN - just));
        assert_eq!(offences.all_banned(), [AGENT].into());
        assert!(!offences.note(AGENT, start + BAN), "what it does meanwhile prolongs nothing");
        assert!(!offences.expire(start + 2 * (BAN - just)));
        assert!(offences.expire(start + 2 * BAN));
        assert!(offences.all_banned().is_empty());
        assert!(!offences.note(AGENT, start + 2 * BAN), "and it begins anew");
    }

    #[test]
    fn two_offences_are_forgotten_after_ten_minutes() {
        let (mut offences, start) = (Offences::default(), now());
        for _ in 0..2 {
            assert!(!offences.note(AGENT, start));
        }
        assert!(!offences.expire(start + BAN));
        assert!(!offences.note(AGENT, start + BAN));
    }

    #[test]
    fn one_flood_shuts_out_as_three_offences_do() {
        let (mut offences, start) = (Offences::default(), now());
        assert!(!offences.note(AGENT, start));
        assert!(offences.shut_out(AGENT, start));
        assert_eq!(offences.all_banned(), [AGENT].into());
        assert!(!offences.shut_out(AGENT, start), "it is out already");
        assert!(offences.expire(start + BAN));
        assert!(offences.all_banned().is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut offences, start) = (Offences::default(), now());
        for key in 0..=u16::try_from(REMEMBERED).unwrap() {
            let mut id = [0; 32];
            id[..2].copy_from_slice(&key.to_be_bytes());
            offences.note(AgentId(id), start + Duration::from_millis(u64::from(key)));
        }
        assert_eq!(offences.0.len(), REMEMBERED);
        assert!(!offences.0.contains_key(&AgentId([0; 32])));
    }

    #[test]
    fn complaints_are_bounded_and_taken_once() {
        let complaints = Complaints::default();
        for _ in 0..2 * WAITING {
            complaints.clone().about(AGENT);
        }
        assert_eq!((complaints.take().len(), complaints.take().len()), (WAITING, 0));
    }
}
