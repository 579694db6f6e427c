//! What the scheduler is told and what it wants done: its whole interface, with the installs as it sees them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tropa_proto::{
    device::runs_as_loaded,
    failure::{Class, Reason},
    id::{AgentId, AttemptId, ChunkIndex, EngineRun, Incarnation, MachineId},
    message::{Place, Refusal},
};

use super::{Kind, Pace, Reattached, Sample, Width};

/// A model of the job, by its place in the job's list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelIndex(pub u16);

/// One install as the roster places it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    /// Its agent.
    pub agent: AgentId,
    /// The run of its agent.
    pub incarnation: Incarnation,
    /// The process that its Ollama is.
    pub engine: EngineRun,
    /// Its machine.
    pub machine: MachineId,
    /// How many chunks it may work on at once, as its operator declared; 0: that is measured during the job.
    pub width: usize,
    /// The models of the job that it has, and whose use its agent does not deny.
    pub models: BTreeSet<ModelIndex>,
    /// The largest chunks that its agent permits.
    pub largest: Largest,
    /// Its agent takes nothing at present, and will later by itself.
    pub shut: bool,
    /// The models of the job that are loaded, which saves a load.
    pub warm: BTreeSet<ModelIndex>,
    /// How long loading a model may take, by its size; what was seen of loads counts more.
    pub loads: BTreeMap<ModelIndex, Duration>,
    /// The installs that share a device with it, itself not included. Symmetric over a roster.
    pub rivals: BTreeSet<AgentId>,
    /// Those that no kernel lock keeps from it, because they cannot see one file: of its rivals, and of those that are
    /// while a model is loaded ([`Unplaced::both`]).
    pub unguarded: BTreeSet<AgentId>,
    /// Where it works on a GPU: how many installs of its machine that do so may be busy at once, at least 1, since they
    /// share its processors (`identity.md` §8).
    pub gpu_lanes: Option<usize>,
    /// What is to be known of chunks whose model is not loaded as they ask.
    pub unplaced: Unplaced,
}

/// What is to be known of chunks whose model an install has not loaded as they ask: they may go to any device that it
/// may use. Only installs count here that no kernel lock keeps apart and that are no rivals as they stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unplaced {
    /// How models of the job are loaded: allocated and trained context in tokens, 0 where not known. A chunk of another
    /// model or context is such a chunk.
    pub loaded: BTreeMap<ModelIndex, (u32, u32)>,
    /// Those that work where such a chunk of this install may go.
    pub here: BTreeSet<AgentId>,
    /// Those of which such a chunk may go where this install works.
    pub there: BTreeSet<AgentId>,
    /// Those of which such a chunk may go where one of this install may: all of the others, and more. Symmetric over a
    /// roster.
    pub both: BTreeSet<AgentId>,
}

impl Unplaced {
    /// Says whether chunks of this kind are such chunks.
    #[must_use]
    pub fn counts(&self, kind: Kind) -> bool {
        let as_loaded =
            |(allocated, trained): &(u32, u32)| runs_as_loaded(*allocated, *trained, u64::from(kind.context));
        !self.loaded.get(&kind.model).is_some_and(as_loaded)
    }
}

/// The most that an agent's policy permits a chunk to ask; 0: any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Largest {
    /// The context, in tokens.
    pub context: u32,
    /// The answer, in tokens.
    pub answer: u32,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The roster is now this, complete.
    Roster(Vec<Install>),
    /// The row of this attempt is on disk.
    Recorded(AttemptId),
    /// The agent has taken the attempt, or its place has changed.
    Accepted(AttemptId, Place),
    /// The agent has not taken it.
    Refused(AttemptId, Refusal),
    /// The attempt has written so many tokens so far.
    Tokens(AttemptId, u32),
    /// What an attempt that is about to be `Finished` took.
    Measured(AttemptId, Sample),
    /// How fast this install was with this model in earlier jobs, and the width that was found for this run of it.
    Remembered(AgentId, ModelIndex, Pace, Option<Width>),
    /// The engine has ended the attempt with a result, which is on its way to the disk.
    Finished(AttemptId),
    /// The attempt has ended without one.
    Failed(AttemptId, Reason),
    /// The attempt is lost: its agent is gone, or broke the rules.
    Lost(AttemptId),
    /// The stream of the attempt broke off, which says nothing about the attempt.
    Detached(AttemptId),
    /// Beats of the agent are missing, or its connection is gone: it gets nothing new.
    Suspect(AgentId),
    /// It was suspected wrongly.
    Alive(AgentId),
    /// It has been silent for too long, or has ended: what it held is lost.
    Dead(AgentId),
    /// A stream to the agent is open again, and it has said what it holds of this job.
    Reattached(Reattached),
    /// The chunk's result or failure is on disk.
    Committed(ChunkIndex),
    /// The request that `Fill` asked for is on disk.
    Filled(ChunkIndex),
    /// No request comes of the answers; the chunk's failure is on its way to the disk.
    Unfit(ChunkIndex),
    /// The journal cannot write (true) or can again (false).
    Paused(bool),
    /// Nothing new starts; what runs may end.
    Stop,
    /// Nothing new starts, and what runs is called off.
    CallOff,
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write that these agents share a device with that one and that no kernel lock keeps them apart, in the place of
    /// what was written of it before.
    Unguarded(AgentId, BTreeSet<AgentId>),
    /// Write the row of this attempt, then say `Recorded`.
    Record(AttemptId, AgentId, Incarnation),
    /// Send `Run` to the agent.
    Send(AttemptId, AgentId),
    /// Send `Cancel` for it.
    Cancel(AttemptId, AgentId),
    /// Send `TakeBack` for it: it ends as a cancelled one does, or its agent says that it is at the engine.
    TakeBack(AttemptId, AgentId),
    /// Write that the attempt ended without a result.
    End(AttemptId, Class),
    /// Commit this as the chunk's typed failure.
    Fail(ChunkIndex, AttemptId, Class),
    /// Send `Cancel` for an attempt that was lost, on a new stream, and listen to what becomes of it.
    Recall(AttemptId, AgentId),
    /// Ask the agent what it holds, as soon as a stream to it is open: `Reattached` or `Dead` follows.
    Reattach(AgentId),
    /// Listen, on a new stream, to what becomes of an attempt that the agent has.
    Fetch(AttemptId, AgentId),
    /// Commit the result that `Finished` named.
    Commit(AttemptId),
    /// All that the chunk needs is done: write its request with the answers in it, then say `Filled` or `Unfit`.
    Fill(ChunkIndex),
    /// Commit that the chunk has failed because the second one, which it needs, has.
    FailNeed(ChunkIndex, ChunkIndex),
    /// What came of it came too late: acknowledge it and drop it.
    Drop(AttemptId),
}
