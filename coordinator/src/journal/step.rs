//! What is written during a run, one step each, and what became of it.

use std::{collections::BTreeSet, fmt};

use tropa_proto::{
    failure::{Class, Reason},
    id::{AgentId, ChunkIndex, Incarnation, MachineId},
    message::{Fingerprint, Outcome},
    uid::{MachineUid, ShownId},
};

use super::State;

/// Names a step to whoever submitted it; the writer only gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(pub u64);

/// Something that must be durable before anybody is told. Times are the wall clock in milliseconds, for show.
#[derive(Clone, Debug)]
pub enum Step {
    /// An attempt is about to be sent. Its number must be the chunk's last plus 1.
    Attempt {
        /// The chunk.
        chunk: ChunkIndex,
        /// The number of the attempt.
        no: u32,
        /// Who gets it.
        agent: AgentId,
        /// The run of the agent that it is meant for.
        incarnation: Incarnation,
        /// The machine that the agent is counted to, in the roster of now.
        machine: MachineId,
        /// The lane, as text: device names with commas.
        lane: String,
        /// When.
        now_ms: u64,
    },
    /// These agents share a device with that one, and no kernel lock keeps them apart; takes the place of what was
    /// said of it before.
    Unguarded {
        /// The agent.
        agent: AgentId,
        /// Its rivals, those that are away too.
        rivals: BTreeSet<AgentId>,
    },
    /// An attempt ended without a result. The first end of an attempt stays.
    Ended {
        /// The chunk.
        chunk: ChunkIndex,
        /// The number of the attempt.
        no: u32,
        /// What follows from it.
        class: Class,
        /// What happened at the install, where an agent said so.
        reason: Option<Reason>,
        /// The words of the error; cut to 2 KiB.
        detail: String,
        /// When.
        now_ms: u64,
    },
    /// An attempt brought a result: commits it if it is the first of its chunk, and ends the attempt.
    Result {
        /// The chunk.
        chunk: ChunkIndex,
        /// The number of the attempt.
        no: u32,
        /// What it brought.
        done: Box<Done>,
        /// When.
        now_ms: u64,
    },
    /// All answers that the chunk builds on are there, and this is its request with them in it.
    Request {
        /// The chunk.
        chunk: ChunkIndex,
        /// The body for Ollama.
        body: Vec<u8>,
    },
    /// The chunk has failed for good: commits that if nothing is committed for it yet.
    Failed {
        /// The chunk.
        chunk: ChunkIndex,
        /// The attempt that decided it, where one did.
        no: Option<u32>,
        /// Why.
        class: Class,
        /// What to tell the user; cut to 2 KiB.
        detail: String,
    },
    /// The job stands elsewhere.
    State(State),
    /// The engine began to work on an attempt. For show: waits for a step that cannot wait.
    Started {
        /// The chunk.
        chunk: ChunkIndex,
        /// The number of the attempt.
        no: u32,
        /// When.
        now_ms: u64,
    },
    /// What an agent is called. For show: waits for a step that cannot wait.
    Named {
        /// Which one.
        agent: AgentId,
        /// Its name now; cut to 256 bytes.
        name: String,
    },
    /// What is known of a machine; takes the place of what was said of it, of its agents and of its other names before.
    /// For show: waits for a step that cannot wait.
    Machine {
        /// The id that people see.
        id: ShownId,
        /// Its name now; cut to 256 bytes.
        name: String,
        /// The agents that are counted to it, of those that are here.
        agents: Vec<AgentId>,
        /// Uids that stand for it: what went by one of them goes by its id from now on.
        aliases: BTreeSet<MachineUid>,
    },
}

/// What an attempt brought, checked by the coordinator against length and hash.
#[derive(Clone)]
pub struct Done {
    /// The pinned model.
    pub fingerprint: Fingerprint,
    /// Counts and times.
    pub outcome: Outcome,
    /// What the engine returned, as JSON.
    pub body: Vec<u8>,
}

/// Without the content.
impl fmt::Debug for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Done")
            .field("outcome", &self.outcome)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is durable. Of a result or failure: it is the one of its chunk.
    First,
    /// The chunk had its result or failure already, or the attempt its end. Nothing changed; what it says may be
    /// acknowledged and dropped.
    Late,
    /// It breaks a rule of the journal: a result of an attempt never issued, or an attempt numbered twice. Nothing
    /// changed.
    Refused,
}

impl Step {
    /// Says whether it is worth no sync of its own.
    pub(super) fn may_wait(&self) -> bool {
        match self {
            Self::Started { .. } | Self::Named { .. } | Self::Machine { .. } => true,
            Self::Attempt { .. }
            | Self::Ended { .. }
            | Self::Result { .. }
            | Self::Failed { .. }
            | Self::Request { .. }
            | Self::Unguarded { .. }
            | Self::State(_) => false,
        }
    }

    /// Bytes that it adds to a transaction, of those that can be many.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Result { done, .. } => done.body.len(),
            Self::Request { body, .. } => body.len(),
            Self::Attempt { .. }
            | Self::Unguarded { .. }
            | Self::Ended { .. }
            | Self::Failed { .. }
            | Self::State(_)
            | Self::Started { .. }
            | Self::Named { .. }
            | Self::Machine { .. } => 0,
        }
    }
}
