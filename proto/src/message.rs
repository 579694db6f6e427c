//! Every message on the wire. The order of fields and variants is frozen by golden bytes in `tests/`.
//!
//! Announcements travel by gossip; questions and answers by request and response; work on one substream per
//! attempt, where prompts and results travel and nowhere else. All durations are relative. Every message may be
//! lost, repeated, delayed or reordered; its doc says why that is harmless (`reliability.md` §3).

mod live;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{
    bounded::{Blob, Content, List, Text},
    evidence::{Core, Evidence},
    failure::Reason,
    id::{AttemptId, ChunkIndex, EngineRun, Incarnation, JobId},
    known::Known,
    permit::Permit,
    uid::MachineClaim,
};

pub use live::{Counters, LiveFinding, LiveStep};

/// The version byte in front of every frame; another version is refused before the body is decoded.
pub const VERSION: u8 = 1;

/// Bytes of a request body for Ollama. Larger prompts do not fit the wire (`security.md` §6).
pub const MAX_BODY: usize = 1 << 20;

/// Bytes of one frame of a result.
pub const MAX_RESULT_FRAME: usize = 64 << 10;

/// Bytes of a whole result: where Ollama's own client stops reading one line (`ollama-api.md` §3).
pub const MAX_RESULT: usize = 8 << 20;

/// Attempts that an install may hold at once whose operator declared no width: what coordinators measure ends here.
/// Beyond 8 an engine gains little, and every slot costs it the memory of a whole context.
pub const MAX_MEASURED_WIDTH: u16 = 8;

/// The name of a model with its tag.
pub type ModelName = Text<256>;

/// SHA-256 over what makes a model the same on two installs (`ollama-api.md` §5).
pub type Fingerprint = [u8; 32];

/// An agent says that it is there. Gossiped; older `(incarnation, seq)` of one agent are ignored, so repeats and
/// replays change nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// This run of the agent.
    pub incarnation: Incarnation,
    /// Rises with every announcement, over restarts too.
    pub seq: u64,
    /// When the next one is due, in milliseconds; silent for 3.5 of these means gone.
    pub period_ms: u32,
    /// What the agent takes in.
    pub state: AgentState,
    /// The name that the operator gave, or the host's.
    pub label: Text<64>,
    /// The core of the evidence, which places most agents alone.
    pub core: Core,
    /// How many milliseconds before sending the boot epoch in `core` was sampled.
    pub sampled_ms_ago: u32,
    /// The machine that the agent is on, by its lasting name.
    pub machine: MachineClaim,
    /// Who shares a lock directory: the ids of the lock files of the agent's devices; empty: there is none.
    pub locks: List<[u8; 8], 16>,
    /// How many attempts the install may hold at once, as its operator declared; 0: nothing was declared, so it admits
    /// up to [`MAX_MEASURED_WIDTH`] and coordinators measure what is worth it.
    pub width: u16,
    /// The process that the install's Ollama is at present: what was measured of another does not hold for it.
    pub engine: EngineRun,
    /// SHA-256 of the encoded evidence bundle; who does not have it asks with `Describe`.
    pub bundle: [u8; 32],
    /// SHA-256 of the encoded inventory; likewise.
    pub inventory: [u8; 32],
    /// Where the agent listens.
    pub addresses: List<SocketAddr, 6>,
}

/// What an agent takes in at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AgentState {
    /// Work is welcome.
    Ready,
    /// What runs goes on, nothing new starts.
    Draining,
    /// The last announcement: the agent is leaving.
    Leaving,
    /// Work is welcome, and waits: the engine has failed with two chunks one after the other, and nothing starts
    /// before it has written one token.
    Ill,
}

/// A question to an agent. All are reads, and an offer ends by itself: asking twice is asking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Who is there that the asker does not know? Answered with signed announcements, from the given place in the order
    /// of agent ids.
    Roster {
        /// How many entries to skip.
        from: u32,
        /// Which to leave out.
        known: Known,
    },
    /// What is behind the hashes of your announcement?
    Describe,
    /// A step of a live test.
    LiveTest {
        /// Names the question; the answer carries it.
        id: u64,
        /// What to do.
        step: LiveStep,
    },
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Signed announcements as they were gossiped; the reader checks each signature.
    Roster {
        /// At most one page of them.
        signed: List<Blob<4096>, 512>,
        /// There are more.
        more: bool,
    },
    /// The evidence bundle and the inventory.
    Description(Box<Description>),
    /// The question is not for this node: a coordinator has nothing to describe.
    Nothing,
    /// A step of a live test.
    LiveTest {
        /// The question's.
        id: u64,
        /// The run of the agent: what a test proves holds for it alone.
        incarnation: Incarnation,
        /// What came of it.
        finding: LiveFinding,
    },
}

/// What stands behind the hashes of an announcement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// All evidence.
    pub evidence: Evidence,
    /// The same under the mesh's former salt, while that is being replaced: so agents that have only one of the two can
    /// be compared with this one.
    pub former: Option<Box<Evidence>>,
    /// What the install has.
    pub inventory: Inventory,
    /// The rule by which whoever asked may submit nothing here; empty: none. Behind no hash: others are told otherwise.
    pub denied: Text<128>,
}

/// What one install has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Does it answer?
    pub engine: EngineState,
    /// Ollama's version; empty where it does not answer.
    pub version: Text<64>,
    /// The models, by name.
    pub models: List<Model, 1024>,
    /// There were more models than fit.
    pub cut: bool,
    /// The port of the install on the agent's own host, for people who know it by its address; 0 where it is on
    /// another host. Decides nothing.
    pub port: u16,
    /// What of it may be used.
    pub permit: Permit,
}

/// Whether an install can be worked with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EngineState {
    /// It answers as Ollama does.
    Up,
    /// It does not; says why.
    Down(Text<256>),
    /// It is older than 0.12.6, which cannot be kept from cutting prompts.
    TooOld,
    /// Something answers that is not Ollama; says what.
    NotOllama(Text<256>),
}

/// One model of an install.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// Its full name with tag.
    pub name: ModelName,
    /// The digest of its manifest.
    pub digest: [u8; 32],
    /// What makes it the same model elsewhere; all zero for one that runs in the cloud.
    pub fingerprint: Fingerprint,
    /// Bytes on disk.
    pub size: u64,
    /// Trained context in tokens; 0 where it is not known.
    pub context: u32,
    /// It can chat and complete.
    pub completion: bool,
    /// It can embed.
    pub embedding: bool,
    /// It can think.
    pub thinking: bool,
    /// It can call tools.
    pub tools: bool,
    /// It runs in Ollama's cloud, so no lane here may run it.
    pub remote: bool,
    /// Where it is loaded, if it is.
    pub loaded: Option<Loaded>,
}

/// How a loaded model sits in memory, from `/api/ps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// Bytes in all.
    pub size: u64,
    /// Bytes on the GPU: equal to `size`: all; 0: none.
    pub size_vram: u64,
    /// Allocated context in tokens; 0 where the version does not say.
    pub context: u32,
}

/// The first frame of both sides on every work stream: state is replaced, not added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The run of the sender.
    pub incarnation: Incarnation,
    /// What the sender is.
    pub role: Role,
}

/// What a node is on a work stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// Executes.
    Agent,
    /// Schedules.
    Coordinator,
}

/// A frame from the coordinator to the agent on a work stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// First on every stream.
    Hello(Hello),
    /// Execute this attempt, once. The agent keeps the set of attempts of its incarnation; a known one is answered
    /// with its present state, so a coordinator that comes back adopts what runs by sending it again.
    Run(Box<Run>),
    /// Stop, or do not start. The only thing that stops what has started.
    Cancel(AttemptId),
    /// The result is committed: forget it. Deleting twice is deleting.
    Ack(AttemptId),
    /// Say what has become of this attempt, here and from now on: its place, its failure, or its result from this
    /// byte on. A read; it carries no body, so asking for what was never sent starts nothing.
    Fetch {
        /// Which attempt.
        attempt: AttemptId,
        /// How much of the result has arrived already, in bytes.
        offset: u32,
    },
    /// The coordinator of this job is alive: its lease is prolonged, from the arrival of this on.
    Renew(JobId),
    /// Say what is held of this job, at once with `Attached` and then with `Beat`s on this stream. A read; a later
    /// stream of the same job takes the beats over.
    Reattach(JobId),
    /// Give this attempt back if it has not started: it ends as if it were cancelled. One that has started goes on, and
    /// its present state is the answer. So an idle install may take what waits at a busy one, and nothing that runs is
    /// lost to a message that came a moment late.
    TakeBack(AttemptId),
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Which one.
    pub attempt: AttemptId,
    /// The run of the agent that this is meant for; any other answers `Stale`.
    pub incarnation: Incarnation,
    /// Which endpoint of Ollama.
    pub endpoint: Endpoint,
    /// The model's name at this install.
    pub model: ModelName,
    /// The pinned model.
    pub fingerprint: Fingerprint,
    /// The limit of the whole attempt from the start of execution, in milliseconds.
    pub deadline_ms: u64,
    /// The limit until the first line, in milliseconds.
    pub first_token_ms: u64,
    /// The limit between two lines, in milliseconds.
    pub idle_ms: u64,
    /// Send the text with the token counts, for display.
    pub show_text: bool,
    /// Start it only while fewer attempts than this are at the engine; 0 counts as 1.
    pub at_once: u16,
    /// The JSON body for Ollama, byte for byte.
    pub body: Blob<MAX_BODY>,
}

/// The endpoints of Ollama that do work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Endpoint {
    /// `/api/chat`.
    Chat,
    /// `/api/generate`.
    Generate,
    /// `/api/embed`.
    Embed,
}

/// A frame from the agent to the coordinator on a work stream. Each names its attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromAgent {
    /// First on every stream.
    Hello(Hello),
    /// The attempt is taken in; sent again when its place changes.
    Accepted(AttemptId, Place),
    /// Nothing was started.
    Refused(AttemptId, Refusal),
    /// Progress, at most four times a second; may be dropped, never committed.
    Tokens {
        /// The attempt.
        attempt: AttemptId,
        /// Tokens (lines with text) so far.
        count: u32,
        /// Text since the last such frame, where `show_text` asked for it.
        text: Content<16384>,
    },
    /// The attempt succeeded; its body follows in `Body` frames. Committed by primary key.
    Done(AttemptId, Box<Outcome>),
    /// A piece of the result.
    Body(Blob<MAX_RESULT_FRAME>),
    /// The attempt failed. Closes it once.
    Failed(AttemptId, Failure),
    /// The agent lives: sent every second while it holds anything of the job. A higher `seq` replaces a lower one.
    Beat(Box<Beat>),
    /// The answer to `Reattach`: what is held of the job now.
    Attached(Box<Held>),
}

/// A sign of life, with what the agent works on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Rises with every beat on one stream.
    pub seq: u64,
    /// What is held.
    pub held: Held,
}

/// What an agent holds of one job of one sender; the attempts of others are never named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The job.
    pub job: JobId,
    /// Attempts that wait, run or are being checked.
    pub open: List<Open, 128>,
    /// Attempts that have ended, with a result or a failure, and wait for their `Ack`.
    pub ended: List<(ChunkIndex, u32), 512>,
    /// Nothing is left out. Otherwise an attempt that is not named may be held all the same.
    pub whole: bool,
}

/// An attempt that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Its chunk.
    pub chunk: ChunkIndex,
    /// Its number.
    pub no: u32,
    /// It is at the engine.
    pub running: bool,
    /// Tokens (lines with text) so far.
    pub tokens: u32,
}

/// Where an accepted attempt is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// At the engine.
    Running,
    /// Next at this install; it starts without another message.
    Next,
    /// Waiting for a device that somebody else holds; says who.
    Waiting(Text<128>),
    /// Waiting until an earlier request of this install has proved to be over.
    Settling,
    /// The engine has ended it and its place is free; which model ran is still being read.
    Checking,
}

/// Why an agent does not take an attempt. None of these started anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// All places are taken; ask again after so many milliseconds.
    Busy {
        /// When to ask again.
        retry_ms: u32,
    },
    /// The install does not have the model.
    NoModel,
    /// The agent is leaving, or cannot take more; says why.
    Draining(Text<128>),
    /// The agent's policy forbids it; names the rule.
    Denied(Text<128>),
    /// The attempt is meant for another incarnation; this is the present one.
    Stale(Incarnation),
    /// The answer to `Fetch`: this incarnation has never seen the attempt, has given it back, or has forgotten it
    /// after its `Ack`.
    Unknown,
}

/// What a finished attempt brought. The result itself is `bytes` long and follows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Length of the result in bytes, at most [`MAX_RESULT`].
    pub bytes: u32,
    /// SHA-256 of the result.
    pub sha256: [u8; 32],
    /// The digest that ran, read after the end.
    pub digest: [u8; 32],
    /// `stop`, `length`, or what else the engine says; `stop` where it says nothing.
    pub done_reason: Text<32>,
    /// Tokens of the prompt, cached ones included.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// The text is empty and thinking spent the limit.
    pub reasoning_only: bool,
    /// Time spent waiting for the device and for settling, in milliseconds.
    pub wait_ms: u32,
    /// Time from sending the request to its last line, by the agent's clock, in microseconds.
    pub wall_us: u64,
    /// Time to the first line with text or thinking, in microseconds; 0 for embeddings.
    pub first_us: u64,
    /// Ollama's own figures in microseconds: loading, reading the prompt, writing the answer, and all of it.
    pub load_us: u64,
    /// Reading the prompt.
    pub prompt_us: u64,
    /// Writing the answer.
    pub decode_us: u64,
    /// All of it.
    pub total_us: u64,
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What happened at the install.
    pub reason: Reason,
    /// Words for the journal and the result file only: they may quote a prompt.
    pub detail: Content<2048>,
    /// Time from the start of execution, in milliseconds.
    pub ms: u32,
}
