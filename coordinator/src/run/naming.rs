//! What agents and machines are called, told to the journal whenever it changes.
//!
//! Reports of a job go by it when everybody has left, and a machine stands in results under the id by which
//! `tropa machines` shows it.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use tropa_proto::{
    id::AgentId,
    roster::{Machine, View},
    uid::{MachineUid, ShownId},
};

use crate::journal::Step;

/// What the journal was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    agents: BTreeMap<AgentId, String>,
    machines: BTreeMap<ShownId, Known>,
}

#[derive(Debug, PartialEq, Eq)]
struct Known {
    name: String,
    agents: Vec<AgentId>,
    aliases: BTreeSet<MachineUid>,
}

impl Told {
    /// Takes the roster of now and gives the steps by which the journal learns what is new in it.
    pub(super) fn take(&mut self, view: &View) -> Vec<Step> {
        let mut steps = Vec::new();
        for install in &view.installs {
            if self.agents.get(&install.agent) != Some(&install.label) {
                self.agents.insert(install.agent, install.label.clone());
                steps.push(Step::Named { agent: install.agent, name: install.label.clone() });
            }
        }
        // A machine that is no longer there is told anew when it comes back: its agents may have been told of another.
        let mut before = mem::take(&mut self.machines);
        for machine in &view.machines {
            let id = machine.shown();
            let known = before.remove(&id).filter(|known| known.is(machine)).unwrap_or_else(|| {
                let known = Known::of(machine);
                let Known { name, agents, aliases } = &known;
                let (name, agents, aliases) = (name.clone(), agents.clone(), aliases.clone());
                steps.push(Step::Machine { id, name, agents, aliases });
                known
            });
            self.machines.insert(id, known);
        }
        steps
    }
}

impl Known {
    fn of(machine: &Machine) -> Self {
        Self { name: machine.name.clone(), agents: machine.agents.clone(), aliases: machine.aliases.clone() }
    }

    fn is(&self, machine: &Machine) -> bool {
        self.name == machine.name && self.agents == machine.agents && self.aliases == machine.aliases
    }
}

#[cfg(test)]
mod tests {
    use tropa_proto::id::MachineId;

    use super::*;

    fn uid(n: u8) -> MachineUid {
        MachineUid { created_ms: u64::from(n), random: [n; 16] }
    }

    /// A machine of these agents; 0: without a uid of its own.
    fn machine(own: u8, aliases: &[u8], agents: &[u8]) -> Machine {
        let agents: Vec<AgentId> = agents.iter().map(|n| AgentId([*n; 32])).collect();
        Machine {
            id: MachineId(agents[0]),
            uid: (own > 0).then(|| uid(own)),
            aliases: aliases.iter().map(|n| uid(*n)).collect(),
            name: "den".to_owned(),
            agents,
        }
    }

    /// The ids of machines that the journal is told of.
    fn told(told: &mut Told, machines: Vec<Machine>) -> Vec<String> {
        let view = View { machines, ..View::default() };
        let steps = told.take(&view).into_iter();
        steps
            .filter_map(|step| if let Step::Machine { id, .. } = step { Some(id.to_string()) } else { None })
            .collect()
    }

    #[test]
    fn the_journal_is_told_what_is_new_and_a_machine_that_came_back_is_new() {
        let mut of = Told::default();
        let two = || vec![machine(1, &[], &[1]), machine(2, &[], &[2])];
        assert_eq!(told(&mut of, two()), ["m-0101", "m-0202"]);
        assert_eq!(told(&mut of, two()), Vec::<String>::new(), "nothing has changed");
        let one = || vec![machine(1, &[2], &[1, 2])];
        assert_eq!(told(&mut of, one()), ["m-0101"], "the two are one machine");
        assert_eq!(told(&mut of, one()), Vec::<String>::new());
        assert_eq!(told(&mut of, two()), ["m-0101", "m-0202"], "and are two again");
        assert_eq!(told(&mut of, vec![machine(0, &[], &[1])]), ["m-0101"], "by its agent, without a uid");
    }
}
