//! The roster as it is planned and scheduled with: machines, installs, and why each is where it is.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    device::{Lane, gpu_lanes_at_once},
    evidence::Evidence,
    fuse::{Fusion, Why},
    id::{AgentId, EngineRun, Incarnation, MachineId},
    message::Inventory,
    uid::{MachineUid, ShownId},
};

/// The roster, grouped.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Machines in the order of their ids.
    pub machines: Vec<Machine>,
    /// Installs in the order of their agents' ids.
    pub installs: Vec<Install>,
    /// What the evidence says: relations with their reasons, excluded pairs, warnings. `None` before the first agent.
    pub fusion: Option<Fusion>,
}

/// One physical box, as far as the evidence tells.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its id within this view: the smallest of its agents.
    pub id: MachineId,
    /// Its lasting name: the oldest among its agents' that no other machine holds better; `None`: there is no such.
    pub uid: Option<MachineUid>,
    /// Other names that it goes by: what was remembered under them is this machine's.
    pub aliases: BTreeSet<MachineUid>,
    /// Its name for people: a rule's, else the label of that agent.
    pub name: String,
    /// Its agents, in order.
    pub agents: Vec<AgentId>,
}

/// One install.
#[derive(Clone, Debug)]
pub struct Install {
    /// Its agent.
    pub agent: AgentId,
    /// The run of its agent.
    pub incarnation: Incarnation,
    /// The process that its Ollama is.
    pub engine: EngineRun,
    /// The agent's name for people, not yet escaped.
    pub label: String,
    /// Its machine.
    pub machine: MachineId,
    /// The devices that it occupies while it works with what it has loaded; while nothing is, all that it may use.
    pub lane: Lane,
    /// The devices that it may load another model on, its lane among them.
    pub anywhere: Lane,
    /// How many chunks it may work on at once, as its operator declared; 0: not declared.
    pub width: u16,
    /// What it has; `None` until its agent has been asked.
    pub inventory: Option<Arc<Inventory>>,
    /// All evidence, or as much as the announcement carries.
    pub evidence: Arc<Evidence>,
    /// Installs that share a device with it.
    pub rivals: BTreeSet<AgentId>,
    /// Installs that are no rivals, and may be where either or both load another model.
    pub loads: LoadRivals,
    /// The lock files of its devices; empty where its agent has no place for locks.
    pub locks: BTreeSet<[u8; 8]>,
    /// Its engine has failed with two chunks one after the other: it is asked for one token before it gets more.
    pub ill: bool,
    /// Why it gets no work, if it gets none.
    pub out: Option<Out>,
}

/// Whom an install meets on a device only where a model is loaded that is not loaded yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadRivals {
    /// Where this one loads and the other has what it needs.
    pub here: BTreeSet<AgentId>,
    /// Where the other loads and this one has what it needs.
    pub there: BTreeSet<AgentId>,
    /// Where both load: all of the others, and more.
    pub both: BTreeSet<AgentId>,
}

/// Why an install gets no work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    /// Its agent has not been asked yet what it has.
    NotDescribed,
    /// There is no direct connection to its agent, or no longer.
    Unreachable,
    /// Its agent is leaving.
    Draining,
    /// Two agents run with its key, and an order might reach either.
    Cloned,
    /// Its machine has as many agents as it may, and this is one of the newest.
    TooMany,
    /// Its evidence was declared by an operator, and this coordinator does not accept that.
    Declared,
    /// Its agent's policy lets this coordinator submit nothing; says which rule.
    Denied(String),
    /// Its agent's policy takes nothing at present, by the hour or because enough has started; says which rule and until
    /// when. It has its place in plans and waits for work.
    Shut(String),
    /// Its engine does not answer; says why.
    Down(String),
    /// Its Ollama is too old; says which version.
    TooOld(String),
    /// Something answers that is not Ollama; says what.
    NotOllama(String),
}

impl Machine {
    /// The id that people see: the same as long as an agent of the machine remembers it.
    #[must_use]
    pub fn shown(&self) -> ShownId {
        self.uid.map_or(ShownId::Roster(self.id), ShownId::Uid)
    }
}

impl View {
    /// The machine of this id.
    #[must_use]
    pub fn machine(&self, id: MachineId) -> Option<&Machine> {
        let at = self.machines.binary_search_by_key(&id, |machine| machine.id).ok()?;
        self.machines.get(at)
    }

    /// The id that people see of the machine of this id.
    #[must_use]
    pub fn shown(&self, id: MachineId) -> ShownId {
        self.machine(id).map_or(ShownId::Roster(id), Machine::shown)
    }

    /// Where an install works on a GPU: how many installs of its machine that do so may be busy at once, at least 1,
    /// since they share its processors (`identity.md` §8). Of the cores of a machine those count that the most is
    /// known of.
    #[must_use]
    pub fn gpu_lanes(&self, install: &Install) -> Option<usize> {
        let found = self.fusion.as_ref().and_then(|fusion| {
            let machines = fusion.machines();
            let at = machines.binary_search_by_key(&install.machine, |machine| machine.id).ok()?;
            machines.get(at)
        });
        let (cores, processors) = found.map_or((0, 0), |machine| (machine.physical_cores, machine.host_cpus));
        install.lane.uses_gpu().then(|| gpu_lanes_at_once(cores, processors))
    }

    /// Says in a few words why work of two agents may not overlap.
    #[must_use]
    pub fn why_together(&self, a: AgentId, b: AgentId) -> String {
        let why = self.fusion.as_ref().and_then(|fusion| fusion.why(a, b));
        let text =
            |why: Why| why.reasons.iter().map(|reason| reason.text.as_str()).collect::<Vec<_>>().join(", ");
        why.map_or_else(|| "they share a device".to_owned(), text)
    }

    /// Whether a kernel lock keeps the work of two installs apart, whatever anybody orders: they have a lock file in
    /// common (`reliability.md` §8.3). One kernel alone is no proof: two containers may not share the directory.
    #[must_use]
    pub fn share_a_lock(&self, a: AgentId, b: AgentId) -> bool {
        match (self.install(a), self.install(b)) {
            (Some(a), Some(b)) => !a.locks.is_disjoint(&b.locks),
            (None, _) | (_, None) => false,
        }
    }

    /// The install of an agent.
    #[must_use]
    pub fn install(&self, agent: AgentId) -> Option<&Install> {
        let at = self.installs.binary_search_by_key(&agent, |install| install.agent).ok()?;
        self.installs.get(at)
    }
}
