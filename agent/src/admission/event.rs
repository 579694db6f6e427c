//! What admission hears and what it wants done: the whole interface of its core.

use std::time::Duration;

use tropa_proto::{
    id::{AgentId, AttemptId, Incarnation, JobId},
    message::{Failure, Place, Refusal},
    permit::Denial,
};

/// An attempt of one sender.
pub type Key = (AgentId, AttemptId);

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A `Run` arrived.
    Run {
        /// Which attempt.
        key: Key,
        /// The incarnation that it is meant for.
        incarnation: Incarnation,
        /// What tells runners apart, or why it cannot run.
        runner: Result<String, Unfit>,
        /// It starts only while fewer attempts than this are at the engine; at least 1.
        at_once: usize,
        /// The outbox can take another result.
        room: bool,
    },
    /// A `Cancel` arrived.
    Cancel(Key),
    /// A `TakeBack` arrived.
    TakeBack(Key),
    /// An `Ack` arrived.
    Ack(Key),
    /// A `Fetch` arrived.
    Fetch(Key),
    /// A `Renew` or a `Reattach` arrived: the coordinator of this job lives.
    Renew(AgentId, JobId),
    /// Somebody else holds the devices; the name that he gives.
    LaneBlocked(String),
    /// The devices are ours; `dirty` where earlier holders left requests to settle.
    LaneHeld {
        /// There is something to settle.
        dirty: bool,
    },
    /// The devices cannot be locked; says why.
    LaneFailed(String),
    /// Everything that was to be settled is over.
    Settled,
    /// The attempt was not started: the locks are not in their place, or its settle record could not be written.
    NotStarted(Key, String),
    /// The engine's stream ended: its place is free. `may_run` where the request may still run there.
    Ended {
        /// Which attempt.
        key: Key,
        /// Settle before anything else starts.
        may_run: bool,
    },
    /// The engine's stream ended without a result: both of these at once, so that what it says of the engine counts
    /// before anything else starts. `may_run` where the request may still run there.
    Broke {
        /// Which attempt.
        key: Key,
        /// Settle before anything else starts.
        may_run: bool,
        /// Why there is no result.
        failure: Failure,
    },
    /// The attempt is over: its result is in the outbox, or this is why there is none.
    Finished(Key, Option<Failure>),
    /// What `Probe` asked for has ended.
    Probed {
        /// The engine has written a token.
        works: bool,
        /// The request may still run there: settle before anything else starts.
        may_run: bool,
    },
    /// The outbox gave the result up after its time.
    Expired(Key),
    /// Take nothing new; says why.
    Drain(String),
    /// By this rule nothing new is taken and what waits goes back, until it is over (`None`).
    Shut(Option<Denial>),
    /// What is loaded has changed, and with it what attempts need ([`super::Admission::place`]).
    Placed {
        /// Somebody waits for the devices that we hold.
        someone_waits: bool,
    },
    /// Time has passed.
    Tick {
        /// Somebody waits for the devices that we hold.
        someone_waits: bool,
        /// The lock files are no longer where they were locked.
        displaced: bool,
    },
}

/// Why a `Run` that arrived cannot run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Its body is not one that may reach an engine: the attempt has failed.
    Failed(Failure),
    /// The policy denies it: nothing of it is kept.
    Denied(Denial),
}

/// What is held of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// The attempt has not ended.
    Open {
        /// Which.
        attempt: AttemptId,
        /// It is at the engine.
        running: bool,
    },
    /// It has ended and waits for its `Ack`.
    Ended(AttemptId),
}

impl Event {
    /// Who sent it, and of which job it speaks; `None` for what the agent itself has seen.
    pub(super) fn sender(&self) -> Option<(AgentId, JobId)> {
        match self {
            Self::Run { key, .. }
            | Self::Cancel(key)
            | Self::TakeBack(key)
            | Self::Ack(key)
            | Self::Fetch(key) => Some((key.0, key.1.job)),
            Self::Renew(peer, job) => Some((*peer, *job)),
            Self::LaneBlocked(_)
            | Self::LaneHeld { .. }
            | Self::LaneFailed(_)
            | Self::Settled
            | Self::NotStarted(..)
            | Self::Ended { .. }
            | Self::Broke { .. }
            | Self::Finished(..)
            | Self::Probed { .. }
            | Self::Expired(_)
            | Self::Drain(_)
            | Self::Shut(_)
            | Self::Placed { .. }
            | Self::Tick { .. } => None,
        }
    }
}

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Say where the attempt is.
    Accept(Key, Place),
    /// Say that nothing was started, and forget the attempt.
    Refuse(Key, Refusal),
    /// Say why the attempt failed.
    Fail(Key, Failure),
    /// Send the result from the outbox.
    Deliver(Key),
    /// Forget the result.
    Discard(Key),
    /// Send the request to the engine.
    Start {
        /// Which attempt.
        key: Key,
        /// How long it has waited for the devices and for settling.
        waited: Duration,
    },
    /// Hang up on a running request.
    HangUp(Key),
    /// Take the locks of the lane.
    Acquire,
    /// Give them back, or give up waiting for them.
    Release,
    /// Prove that nothing runs any more of what was hung up on or left behind.
    Settle,
    /// Ask the engine for one token, with what failed last.
    Probe,
}
