//! What each agent has been asked about itself: one question at a time, and a new one only where it may help.

use std::{collections::BTreeMap, time::Duration};

use tropa_proto::{id::AgentId, roster::Hashes};

/// So long after a question that brought nothing an agent is asked again for the same: half a period of its
/// announcements (`reliability.md` §4).
const AGAIN: Duration = Duration::from_secs(5);

/// The questions to the agents whose description is missing.
#[derive(Debug, Default)]
pub(super) struct Inquiries(BTreeMap<AgentId, Inquiry>);

#[derive(Clone, Copy, Debug)]
struct Inquiry {
    /// What was asked for last.
    hashes: Hashes,
    /// When that was.
    asked: Duration,
    /// Since when the agent has been asked and has not said what it has.
    silent_since: Duration,
    /// The last question is not answered yet.
    is_open: bool,
    /// There is another connection than the one that was asked on.
    is_anew: bool,
}

impl Inquiries {
    /// Gives whom to ask now, of those whose description is missing, and notes that they are asked.
    ///
    /// However often an agent announces itself and whatever it says then, it has one question at a time: what it is
    /// asked is not for it to set the pace of.
    pub(super) fn due(
        &mut self,
        undescribed: Vec<(AgentId, Hashes)>,
        now: Duration,
    ) -> Vec<(AgentId, Hashes)> {
        let missing: BTreeMap<AgentId, Hashes> = undescribed.into_iter().collect();
        self.0.retain(|agent, inquiry| inquiry.is_open || missing.contains_key(agent));
        let is_due = |(agent, hashes): &(AgentId, Hashes)| {
            self.0.get(agent).is_none_or(|inquiry| inquiry.is_due(*hashes, now))
        };
        let due: Vec<_> = missing.into_iter().filter(is_due).collect();
        for (agent, hashes) in &due {
            let silent_since = self.0.get(agent).map_or(now, |inquiry| inquiry.silent_since);
            let asked = Inquiry { hashes: *hashes, asked: now, silent_since, is_open: true, is_anew: false };
            self.0.insert(*agent, asked);
        }
        due
    }

    /// The question to this agent has ended, with a description or without.
    pub(super) fn ended(&mut self, agent: AgentId) {
        if let Some(inquiry) = self.0.get_mut(&agent) {
            inquiry.is_open = false;
        }
    }

    /// The agent can be asked where it could not be before.
    pub(super) fn connected(&mut self, agent: AgentId) {
        if let Some(inquiry) = self.0.get_mut(&agent) {
            inquiry.is_anew = true;
        }
    }

    /// Until when the last of those whose description is missing is waited for, with so much patience for each.
    pub(super) fn waits_until(&self, undescribed: &[(AgentId, Hashes)], patience: Duration) -> Duration {
        let until = |(agent, _): &(AgentId, Hashes)| {
            self.0.get(agent).map_or(Duration::MAX, |inquiry| inquiry.silent_since.saturating_add(patience))
        };
        undescribed.iter().map(until).max().unwrap_or(Duration::ZERO)
    }
}

impl Inquiry {
    fn is_due(&self, hashes: Hashes, now: Duration) -> bool {
        let may_help = self.is_anew || self.hashes != hashes || now.saturating_sub(self.asked) >= AGAIN;
        !self.is_open && may_help
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: AgentId = AgentId([1; 32]);
    const OTHER: AgentId = AgentId([2; 32]);
    const FIRST: Hashes = ([1; 32], [1; 32]);
    const SECOND: Hashes = ([1; 32], [2; 32]);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_agent_has_one_question_at_a_time_however_often_it_changes() {
        let mut inquiries = Inquiries::default();
        assert_eq!(inquiries.due(vec![(AGENT, FIRST)], at(0)), [(AGENT, FIRST)]);
        for second in 0..20 {
            let hashes = if second % 2 == 0 { SECOND } else { FIRST };
            assert_eq!(inquiries.due(vec![(AGENT, hashes)], at(second)), [], "{second}");
        }
        assert_eq!(inquiries.due(vec![(AGENT, FIRST), (OTHER, FIRST)], at(20)), [(OTHER, FIRST)]);
        inquiries.ended(AGENT);
        assert_eq!(inquiries.due(vec![(AGENT, SECOND)], at(20)), [(AGENT, SECOND)]);
    }

    #[test]
    fn the_same_is_asked_again_after_a_while_or_on_a_new_connection() {
        let mut inquiries = Inquiries::default();
        inquiries.due(vec![(AGENT, FIRST)], at(0));
        inquiries.ended(AGENT);
        assert_eq!(inquiries.due(vec![(AGENT, FIRST)], at(4)), []);
        assert_eq!(inquiries.due(vec![(AGENT, FIRST)], at(5)), [(AGENT, FIRST)]);
        // The connection comes while the question that it could not carry is still under way.
        inquiries.connected(AGENT);
        assert_eq!(inquiries.due(vec![(AGENT, FIRST)], at(6)), []);
        inquiries.ended(AGENT);
        assert_eq!(inquiries.due(vec![(AGENT, FIRST)], at(6)), [(AGENT, FIRST)]);
    }

    #[test]
    fn patience_counts_from_the_first_question_and_anew_after_a_description() {
        let mut inquiries = Inquiries::default();
        let missing = [(AGENT, FIRST)];
        assert_eq!(inquiries.waits_until(&missing, at(2)), Duration::MAX, "it was not asked yet");
        for second in [0, 5, 10] {
            inquiries.due(missing.to_vec(), at(second));
            inquiries.ended(AGENT);
        }
        assert_eq!(inquiries.waits_until(&missing, at(2)), at(2));
        assert_eq!(inquiries.waits_until(&[], at(2)), Duration::ZERO);
        inquiries.due(Vec::new(), at(11));
        inquiries.due(vec![(AGENT, SECOND)], at(20));
        assert_eq!(inquiries.waits_until(&[(AGENT, SECOND)], at(2)), at(22));
    }
}
