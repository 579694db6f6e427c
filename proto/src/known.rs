//! What a node knows of a roster already, small enough to travel in a question (pure).
//!
//! A roster of 300 agents has 100 KiB, and whoever asks for it knows most of it. So the question carries a Bloom filter
//! of the announcements that its asker has, and the answer brings the others. A few that are unknown look known; every
//! question has another salt, so the next one brings them.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{bounded::Blob, id::AgentId};

/// Bits of the filter for each announcement. With [`PROBES`] of them 3 of 1,000 that are unknown look known.
const BITS_EACH: usize = 12;

/// Bits that one announcement sets: as many numbers of four bytes as a SHA-256 has, near the best for [`BITS_EACH`].
const PROBES: usize = 8;

/// Announcements that a node has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Another for each question.
    pub salt: u64,
    /// The filter; empty: nothing is known. 1,024 members take 1,536 bytes.
    pub bits: Blob<2048>,
}

impl Known {
    /// Knows nothing, so that an answer brings everything.
    #[must_use]
    pub fn nothing() -> Self {
        Self { salt: 0, bits: Blob::default() }
    }

    /// Knows these, each by its agent and its number. Those beyond 1,365, more than a mesh has members, make more
    /// that are unknown look known.
    #[must_use]
    pub fn of(salt: u64, announcements: &[(AgentId, u64)]) -> Self {
        let mut bits = vec![0; (announcements.len() * BITS_EACH).div_ceil(8).min(Blob::<2048>::MAX)];
        for (agent, seq) in announcements {
            for place in places(salt, agent, *seq, bits.len()) {
                bits[place / 8] |= 1 << (place % 8);
            }
        }
        Self { salt, bits: Blob::new(bits).unwrap_or_default() }
    }

    /// Is this announcement known, as it looks?
    #[must_use]
    pub fn has(&self, agent: &AgentId, seq: u64) -> bool {
        let is_set = |place: usize| self.bits[place / 8] & (1 << (place % 8)) != 0;
        !self.bits.is_empty() && places(self.salt, agent, seq, self.bits.len()).all(is_set)
    }
}

/// The bits of an announcement in a filter of so many bytes, at least one.
fn places(salt: u64, agent: &AgentId, seq: u64, bytes: usize) -> impl Iterator<Item = usize> {
    let salted = Sha256::new().chain_update(salt.to_be_bytes()).chain_update(agent.0);
    let hash: [u8; 4 * PROBES] = salted.chain_update(seq.to_be_bytes()).finalize().into();
    let number = move |probe: usize| {
        hash[4 * probe..4 * probe + 4].iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    (0..PROBES).map(move |probe| number(probe) % (bytes * 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announcements(from: u32, to: u32) -> Vec<(AgentId, u64)> {
        let id = |number: u32| {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&number.to_be_bytes());
            AgentId(id)
        };
        (from..to).map(|number| (id(number), u64::from(number) * 7)).collect()
    }

    #[test]
    fn whoever_knows_nothing_knows_no_announcement() {
        for (agent, seq) in announcements(0, 100) {
            assert!(!Known::nothing().has(&agent, seq) && !Known::of(3, &[]).has(&agent, seq));
        }
    }

    #[test]
    fn what_is_known_is_always_found_and_what_is_not_in_997_of_1000_is_not() {
        for count in [1, 10, 300, 1_024] {
            let known = Known::of(9, &announcements(0, count));
            assert!(known.bits.len() <= 1_536);
            assert!(announcements(0, count).iter().all(|(agent, seq)| known.has(agent, *seq)));
            let others = announcements(10_000, 20_000);
            let wrong = others.iter().filter(|(agent, seq)| known.has(agent, *seq)).count();
            assert!(wrong < 100, "{wrong} of 10,000 at {count}");
        }
    }

    #[test]
    fn another_number_of_the_same_agent_is_another_announcement() {
        let all = announcements(0, 300);
        let known = Known::of(9, &all);
        let newer = all.iter().filter(|(agent, seq)| known.has(agent, seq + 1)).count();
        assert!(newer < 10, "{newer}");
    }

    #[test]
    fn what_looks_known_under_one_salt_does_not_under_the_next() {
        let (all, others) = (announcements(0, 1_024), announcements(10_000, 20_000));
        let hidden = |salt, others: &[(AgentId, u64)]| -> Vec<(AgentId, u64)> {
            let known = Known::of(salt, &all);
            others.iter().filter(|(agent, seq)| known.has(agent, *seq)).copied().collect()
        };
        let first = hidden(1, &others);
        assert!(!first.is_empty());
        assert!(hidden(3, &hidden(2, &first)).is_empty());
    }

    #[test]
    fn any_bytes_are_a_filter() {
        for bits in [vec![0], vec![0xff], vec![0xff; 2048]] {
            let known = Known { salt: u64::MAX, bits: Blob::new(bits).unwrap() };
            let found = announcements(0, 50).iter().filter(|(agent, seq)| known.has(agent, *seq)).count();
            assert_eq!(found, if known.bits[0] == 0 { 0 } else { 50 });
        }
    }
}
