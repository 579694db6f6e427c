//! The independent check: proves from the list of attempts alone that the schedule has kept its rule.
//!
//! It shares no bookkeeping with the decisions: it recounts everything after every event in debug builds, and in
//! every test (`style.md`, rule 9).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use tropa_proto::{
    id::{AgentId, AttemptId, ChunkIndex, MachineId},
    message::MAX_MEASURED_WIDTH,
};

use super::{Schedule, Status, spare::may_coexist};

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Two installs that share a device both hold attempts.
    Overlap(AgentId, AgentId),
    /// More GPU lanes of a machine hold attempts than its processors serve.
    Crowded(MachineId, usize),
    /// An install holds more than its width and one ahead.
    TooMany(AgentId, usize),
    /// A chunk is with more than one install and its backup.
    Twice(ChunkIndex, AttemptId),
    /// A chunk is with an install although one that it needs is not done on disk.
    Early(ChunkIndex, ChunkIndex),
    /// The count of unfinished chunks is wrong.
    Count(usize, usize),
    /// An attempt is not where its install's are.
    Astray(AttemptId),
    /// Nothing is kept of an install.
    Unknown(AgentId),
}

impl Schedule {
    /// Checks every rule from scratch.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub fn check(&self) -> Result<(), Violation> {
        let mut sent: BTreeMap<AgentId, usize> = BTreeMap::new();
        // Who works on something that may be on any of its devices.
        let mut loading: BTreeSet<AgentId> = BTreeSet::new();
        let mut chunks: BTreeMap<ChunkIndex, Vec<(AttemptId, AgentId)>> = BTreeMap::new();
        for (attempt, active) in self.holdings.iter() {
            if active.occupies() {
                // A predecessor's attempts are taken over as they are.
                *sent.entry(active.agent).or_default() += usize::from(!active.adopted);
                let kind = self.work(attempt.chunk).kind();
                if self.installs.get(&active.agent).is_none_or(|install| install.unplaced.counts(kind)) {
                    loading.insert(active.agent);
                }
            }
            let together = chunks.entry(attempt.chunk).or_default();
            together.push((*attempt, active.agent));
            if !may_coexist(together) {
                return Err(Violation::Twice(attempt.chunk, *attempt));
            }
            let done = |need: &ChunkIndex| {
                self.status(*need) == Some(Status::Closed) && !self.needs.has_failed(*need)
            };
            if let Some(need) = self.needs.of(attempt.chunk).find(|need| !done(need)) {
                return Err(Violation::Early(attempt.chunk, need));
            }
        }
        let mut lanes: BTreeMap<MachineId, usize> = BTreeMap::new();
        for (agent, count) in &sent {
            let Some(install) = self.installs.get(agent).filter(|_| *count > 0) else { continue };
            if let Some(most) = install.gpu_lanes {
                let busy = lanes.entry(install.machine).or_default();
                *busy += 1;
                // What a roster finds at work is let finish.
                if *busy > most.max(self.holdings.crews().allowed(&install.machine)) {
                    return Err(Violation::Crowded(install.machine, *busy));
                }
            }
        }
        for (agent, count) in &sent {
            let Some(install) = self.installs.get(agent) else { continue };
            // A measured width may have become less while they were on their way.
            let most = if install.width == 0 { usize::from(MAX_MEASURED_WIDTH) } else { install.width };
            if *count > most + 1 {
                return Err(Violation::TooMany(*agent, *count));
            }
            let at_work = |other: &&AgentId| **other > *agent && sent.contains_key(other);
            let met = install.unplaced.both.iter().filter(|other| {
                match (loading.contains(agent), loading.contains(*other)) {
                    (true, true) => true,
                    (true, false) => install.unplaced.here.contains(other),
                    (false, true) => install.unplaced.there.contains(other),
                    (false, false) => false,
                }
            });
            for rival in install.rivals.iter().chain(met).filter(at_work) {
                // What the roster found out only while both were at work is let finish.
                if !self.surprises.contains(&(*agent, *rival)) {
                    return Err(Violation::Overlap(*agent, *rival));
                }
            }
        }
        let count = |wanted| self.status.iter().filter(|status| **status == wanted).count();
        let (open, finishing) = (count(Status::Open), count(Status::Finished));
        if (open + finishing, finishing) != (self.unfinished, self.finishing) {
            return Err(Violation::Count(self.unfinished, open + finishing));
        }
        if let Some(attempt) = self.holdings.astray() {
            return Err(Violation::Astray(attempt));
        }
        // Who is left out here would get no work, and nobody would count with it.
        let seen: BTreeSet<AgentId> = self.all_seen().map(|seen| *seen.agent()).collect();
        match self.installs.keys().find(|agent| !seen.contains(agent)) {
            Some(agent) => Err(Violation::Unknown(*agent)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap(a, b) => {
                write!(f, "{} and {} share a device and both hold work", a.short(), b.short())
            }
            Self::Crowded(machine, count) => {
                write!(f, "{count} GPU lanes of machine {} hold work", machine.short())
            }
            Self::TooMany(agent, count) => write!(f, "{} holds {count} attempts", agent.short()),
            Self::Twice(chunk, attempt) => write!(f, "chunk {} runs twice: {attempt:?}", chunk.0),
            Self::Early(chunk, need) => write!(f, "chunk {} runs before chunk {} is done", chunk.0, need.0),
            Self::Astray(attempt) => write!(f, "{attempt:?} is not where its install's are"),
            Self::Unknown(agent) => write!(f, "nothing is kept of {}", agent.short()),
            Self::Count(kept, counted) => write!(f, "{kept} unfinished chunks kept, {counted} counted"),
        }
    }
}
