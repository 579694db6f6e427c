//! Of whom each agent sees that his traffic arrives through the machine itself (`local_peer`, `identity.md` §3): a
//! virtual machine or a container of its host's, or who lies behind a VPN, which looks the same and makes it weak.
//!
//! Only agents see it, each of those it is connected with, and only who it was true of is told. It counts where nothing
//! stronger decides, so nobody is asked in a mesh in which every machine is known to be bare metal.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tropa_proto::{
    evidence::Hypervisor,
    fuse::PairFacts,
    id::{AgentId, Incarnation},
    roster::View,
};

use super::untestable;

/// Agents that are asked at once: an answer takes milliseconds, and all of a large mesh need not answer in one.
const AT_ONCE: usize = 16;

/// So long after somebody came everybody is asked once more, since links to him form in that time: one period of
/// announcements (`reliability.md` §4).
const LINKS_FORM: Duration = Duration::from_secs(10);

/// Who has been asked, and what was said.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    asked: BTreeMap<AgentId, Asked>,
    /// When the last of them came.
    newest: Duration,
}

#[derive(Debug)]
struct Asked {
    incarnation: Incarnation,
    last: Option<Duration>,
    is_open: bool,
    has_answered: bool,
    /// Who was named, in which run.
    near: BTreeMap<AgentId, Incarnation>,
}

impl Neighbours {
    /// Gives whom to ask now, and notes that they are asked; [`Neighbours::answered`] must follow for each.
    pub(super) fn due(&mut self, view: &View, now: Duration) -> Vec<(AgentId, Incarnation)> {
        self.meet(view, now);
        if !matters(view) {
            return Vec::new();
        }
        let open = self.asked.values().filter(|asked| asked.is_open).count();
        let newest = self.newest;
        let due = self.asked.iter_mut().filter(|(_, asked)| asked.is_due(newest, now));
        let ask = |(agent, asked): (&AgentId, &mut Asked)| {
            (asked.last, asked.is_open) = (Some(now), true);
            (*agent, asked.incarnation)
        };
        due.take(AT_ONCE.saturating_sub(open)).map(ask).collect()
    }

    /// Takes what an agent has said, nothing where it did not answer; says whether anything has changed. Who is named
    /// and is not there counts nothing: he may be anybody by the time that he comes.
    pub(super) fn answered(
        &mut self,
        agent: AgentId,
        incarnation: Incarnation,
        named: Option<&[AgentId]>,
    ) -> bool {
        let run = |of: &AgentId| self.asked.get(of).map(|known| known.incarnation);
        let near = named.map(|named| {
            named.iter().filter(|of| **of != agent).filter_map(|of| Some((*of, run(of)?))).collect()
        });
        let Some(asked) = self.asked.get_mut(&agent).filter(|asked| asked.incarnation == incarnation) else {
            return false;
        };
        (asked.is_open, asked.has_answered) = (false, near.is_some());
        near.is_some_and(|near| std::mem::replace(&mut asked.near, near) != asked.near)
    }

    /// Nobody is being asked, and nobody is left who was never asked.
    pub(super) fn is_idle(&self, view: &View) -> bool {
        let was_asked = |(agent, run): (AgentId, Incarnation)| {
            self.asked
                .get(&agent)
                .is_some_and(|asked| asked.incarnation == run && asked.last.is_some() && !asked.is_open)
        };
        !matters(view) || may_be_asked(view).all(was_asked)
    }

    /// Drops what does not hold for this run of an agent, or for any where it is gone; says whether there was anything.
    pub(super) fn drop_but(&mut self, agent: AgentId, run: Option<Incarnation>) -> bool {
        let mut dropped = false;
        if self.asked.get(&agent).is_some_and(|asked| Some(asked.incarnation) != run) {
            dropped = self.asked.remove(&agent).is_some_and(|asked| !asked.near.is_empty());
        }
        for asked in self.asked.values_mut() {
            if asked.near.get(&agent).is_some_and(|seen| Some(*seen) != run) {
                asked.near.remove(&agent);
                dropped = true;
            }
        }
        dropped
    }

    /// Adds what was seen to what is known of pairs, smaller id first.
    pub(super) fn add_to(&self, facts: &mut BTreeMap<(AgentId, AgentId), PairFacts>) {
        for (agent, asked) in &self.asked {
            for other in asked.near.keys() {
                facts.entry((*agent.min(other), *agent.max(other))).or_default().local_peer = true;
            }
        }
    }

    /// Takes in who has come and who has gone.
    fn meet(&mut self, view: &View, now: Duration) {
        let here: BTreeMap<AgentId, Incarnation> = may_be_asked(view).collect();
        let gone: BTreeSet<AgentId> =
            self.asked.keys().filter(|agent| !here.contains_key(agent)).copied().collect();
        for agent in gone {
            self.drop_but(agent, None);
        }
        for (agent, incarnation) in here {
            if self.asked.get(&agent).is_none_or(|asked| asked.incarnation != incarnation) {
                self.drop_but(agent, Some(incarnation));
                let near = BTreeMap::new();
                let new = Asked { incarnation, last: None, is_open: false, has_answered: false, near };
                self.asked.insert(agent, new);
                self.newest = now;
            }
        }
    }
}

impl Asked {
    fn is_due(&self, newest: Duration, now: Duration) -> bool {
        let Some(last) = self.last else { return !self.is_open };
        let looks_again = last < newest + LINKS_FORM && now >= newest.max(last) + LINKS_FORM;
        let tries_again = !self.has_answered && now >= last + LINKS_FORM;
        !self.is_open && (looks_again || tries_again)
    }
}

/// Whether it can decide anything: of two machines that are positively bare metal all is known.
fn matters(view: &View) -> bool {
    let is_bare = |hypervisor| matches!(hypervisor, Hypervisor::None | Hypervisor::Root);
    view.installs.len() > 1 && view.installs.iter().any(|install| !is_bare(install.evidence.hypervisor))
}

fn may_be_asked(view: &View) -> impl Iterator<Item = (AgentId, Incarnation)> + '_ {
    let testable = view.installs.iter().filter(|install| untestable(install).is_none());
    testable.map(|install| (install.agent, install.incarnation))
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{agent, announcement, roster},
        *,
    };

    const RUN: Incarnation = Incarnation(1);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn facts(neighbours: &Neighbours) -> Vec<(AgentId, AgentId)> {
        let mut facts = BTreeMap::new();
        neighbours.add_to(&mut facts);
        assert!(facts.values().all(|facts: &PairFacts| facts.local_peer));
        facts.into_keys().collect()
    }

    #[test]
    fn everybody_is_asked_once_and_again_when_links_to_a_newcomer_have_formed() {
        let mut roster = roster([1, 2]);
        let mut neighbours = Neighbours::default();
        assert!(!neighbours.is_idle(roster.view()));
        assert_eq!(neighbours.due(roster.view(), at(0)), [(agent(1), RUN), (agent(2), RUN)]);
        assert_eq!(neighbours.due(roster.view(), at(60)), [], "one question at a time");
        assert!(!neighbours.is_idle(roster.view()));
        assert!(neighbours.answered(agent(1), RUN, Some(&[agent(2), agent(9)])));
        assert!(!neighbours.answered(agent(2), RUN, Some(&[])));
        assert!(neighbours.is_idle(roster.view()));
        assert_eq!(facts(&neighbours), [(agent(1), agent(2))], "nobody knows agent 9");

        assert_eq!(neighbours.due(roster.view(), at(61)).len(), 2, "links between them may have formed");
        neighbours.answered(agent(1), RUN, Some(&[agent(2)]));
        neighbours.answered(agent(2), RUN, Some(&[]));
        assert_eq!(neighbours.due(roster.view(), at(69)), []);
        roster.connected(agent(3), true);
        roster.announced(agent(3), announcement(1, |_| {}), at(70));
        assert_eq!(neighbours.due(roster.view(), at(70)), [(agent(3), RUN)]);
        neighbours.answered(agent(3), RUN, Some(&[]));
        assert_eq!(neighbours.due(roster.view(), at(79)), []);
        assert_eq!(neighbours.due(roster.view(), at(80)).len(), 3, "links to him may have formed");
        for n in 1..=3 {
            neighbours.answered(agent(n), RUN, Some(&[]));
        }
        assert_eq!(neighbours.due(roster.view(), at(500)), []);
        assert!(facts(&neighbours).is_empty(), "what is seen now counts");
    }

    #[test]
    fn who_does_not_answer_is_asked_again_after_a_while() {
        let mut roster = roster([1, 2]);
        let mut neighbours = Neighbours::default();
        neighbours.due(roster.view(), at(0));
        neighbours.answered(agent(1), RUN, Some(&[agent(2)]));
        assert!(!neighbours.answered(agent(2), RUN, None));
        assert_eq!(neighbours.due(roster.view(), at(9)), []);
        assert!(neighbours.due(roster.view(), at(10)).contains(&(agent(2), RUN)));
        assert_eq!(facts(&neighbours), [(agent(1), agent(2))]);
    }

    #[test]
    fn a_restart_of_either_ends_what_was_seen() {
        let mut roster = roster([1, 2]);
        let mut neighbours = Neighbours::default();
        neighbours.due(roster.view(), at(0));
        neighbours.answered(agent(1), RUN, Some(&[agent(2)]));
        assert!(!neighbours.drop_but(agent(2), Some(RUN)));
        assert!(neighbours.drop_but(agent(2), Some(Incarnation(7))));
        assert!(facts(&neighbours).is_empty());
        roster.announced(agent(2), announcement(7, |_| {}), at(1));
        assert!(!neighbours.answered(agent(2), RUN, Some(&[agent(1)])), "an answer of the last run");
        assert!(neighbours.due(roster.view(), at(1)).contains(&(agent(2), Incarnation(7))));
    }

    #[test]
    fn nobody_is_asked_where_all_is_bare_metal_or_declared() {
        let mut bare = roster([]);
        for n in [1, 2] {
            bare.connected(agent(n), true);
            bare.announced(agent(n), announcement(1, |e| e.hypervisor = Hypervisor::None), at(0));
        }
        let mut neighbours = Neighbours::default();
        assert!(neighbours.is_idle(bare.view()) && neighbours.due(bare.view(), at(0)).is_empty());
        let mut declared = roster([1, 2]);
        declared.announced(agent(2), announcement(1, |e| e.declared = true), at(0));
        assert_eq!(Neighbours::default().due(declared.view(), at(0)), [(agent(1), RUN)]);
    }

    #[test]
    fn a_crowd_is_asked_a_few_at_a_time() {
        let mut roster = roster(1..=40);
        let mut neighbours = Neighbours::default();
        let mut asked = 0;
        loop {
            let due = neighbours.due(roster.view(), at(0));
            assert!(due.len() <= AT_ONCE);
            if due.is_empty() {
                break;
            }
            asked += due.len();
            for (agent, run) in due {
                neighbours.answered(agent, run, None);
            }
        }
        assert_eq!(asked, 40);
    }
}
