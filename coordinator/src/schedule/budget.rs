//! How often a chunk may fail, and as what it fails in the end (`reliability.md` §5).
//!
//! The class of a failure decides alone: some cost nothing, some end the chunk at once, the rest have a budget.

use std::collections::BTreeSet;

use tropa_proto::{failure::Class, id::AgentId};

/// Attempts of one chunk in all; more than every budget together, so that no mix of classes goes on for ever.
const MAX_ATTEMPTS: u32 = 12;

/// Losses of an agent and of its engine together.
const MAX_LOST: u32 = 10;

/// Two different lanes, and one confirmation.
const MAX_CRASHES: u32 = 3;

/// Clean ends without success, on different devices.
const MAX_INCOMPLETE: u32 = 2;

/// What has happened to one chunk so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The highest number among its attempts; numbers are never reused.
    pub last_no: u32,
    /// Where it failed.
    pub failed_on: BTreeSet<AgentId>,
    /// The machines on which it crashed, in their short form.
    pub crashed_on: BTreeSet<String>,
    /// The attempt that used the budget up, and what the chunk has failed as.
    over: Option<(u32, Class)>,
    counted: u32,
    lost: u32,
    crashes: u32,
    incomplete: u32,
}

/// What becomes of a chunk whose attempt has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It runs again, on other hardware where there is any.
    Again,
    /// It has failed as this.
    Over(Class),
}

impl History {
    /// The attempt that ended the chunk, and the class that it has failed as; for who finds the attempts on disk and
    /// not the failure, because a predecessor died in between.
    #[must_use]
    pub fn over(&self) -> Option<(u32, Class)> {
        self.over
    }

    /// Counts a failure of attempt `no` on this agent and machine and says what becomes of the chunk.
    pub fn after(&mut self, no: u32, class: Class, agent: AgentId, machine: &str) -> Verdict {
        let verdict = self.count(no, class, agent, machine);
        if let Verdict::Over(class) = verdict {
            self.over.get_or_insert((no, class));
        }
        verdict
    }

    fn count(&mut self, no: u32, class: Class, agent: AgentId, machine: &str) -> Verdict {
        self.last_no = self.last_no.max(no);
        match class {
            Class::Busy | Class::Superseded => return Verdict::Again,
            Class::NoModel | Class::Denied => {}
            Class::Lost | Class::EngineDown => {
                self.lost += 1;
                self.counted += 1;
                self.failed_on.insert(agent);
            }
            Class::LoadFailed
            | Class::RunnerCrash
            | Class::EngineError
            | Class::Stalled
            | Class::Deadline => {
                self.crashes += 1;
                self.counted += 1;
                self.failed_on.insert(agent);
                self.crashed_on.insert(machine.to_owned());
            }
            Class::Incomplete => {
                self.incomplete += 1;
                self.counted += 1;
                self.failed_on.insert(agent);
            }
            Class::TooLong
            | Class::BadRequest
            | Class::ResultTooLarge
            | Class::Cancelled
            | Class::NeedFailed
            | Class::Poison
            | Class::Crashed => return Verdict::Over(class),
        }
        if self.crashes >= MAX_CRASHES {
            let poison = self.crashed_on.len() >= 2;
            return Verdict::Over(if poison { Class::Poison } else { Class::Crashed });
        }
        if self.lost >= MAX_LOST || self.incomplete >= MAX_INCOMPLETE || self.counted >= MAX_ATTEMPTS {
            return Verdict::Over(class);
        }
        Verdict::Again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(n: u8) -> (AgentId, String) {
        (AgentId([n; 32]), format!("m-{n}"))
    }

    #[test]
    fn three_crashes_on_two_machines_are_poison_and_on_one_machine_only_crashed() {
        for (second, expected) in [(2, Class::Poison), (1, Class::Crashed)] {
            let mut history = History::default();
            for (no, who) in [(1, 1), (2, second)] {
                let (agent, machine) = agent(who);
                assert_eq!(history.after(no, Class::RunnerCrash, agent, &machine), Verdict::Again);
            }
            let (agent, machine) = agent(1);
            assert_eq!(history.after(3, Class::Stalled, agent, &machine), Verdict::Over(expected));
        }
    }

    #[test]
    fn busy_costs_nothing_however_often() {
        let mut history = History::default();
        let (agent, machine) = agent(1);
        for no in 1..100 {
            assert_eq!(history.after(no, Class::Busy, agent, &machine), Verdict::Again);
        }
        assert_eq!(history.last_no, 99);
    }

    #[test]
    fn a_mix_of_classes_ends_within_twelve_attempts() {
        let mut history = History::default();
        let mut over = None;
        for no in 1..=MAX_ATTEMPTS {
            let (agent, machine) = agent(u8::try_from(no).unwrap());
            let class =
                [Class::Lost, Class::EngineDown, Class::Incomplete, Class::RunnerCrash][no as usize % 4];
            if let Verdict::Over(_) = history.after(no, class, agent, &machine) {
                over = Some(no);
                break;
            }
        }
        assert!(over.is_some());
    }
}
