//! The two small state machines of admission: an attempt's and the lane's.

use tokio::time::Instant;
use tropa_proto::message::{Failure, Refusal};

/// Where a known attempt is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    Queued(Queued),
    Running {
        runner: String,
    },
    Checking,
    Done,
    Failed(Box<Failure>),
    /// It was not taken, or was given back before it started: its coordinator counts it as ended.
    Refused(Box<Refusal>),
    Acknowledged,
}

/// An attempt that has not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Queued {
    pub(super) runner: String,
    /// It starts only while fewer than this are at the engine.
    pub(super) at_once: usize,
    /// Since when it has waited for the devices or for settling.
    pub(super) waits: Option<Instant>,
}

/// Whether the locks of the lane's devices are ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Free,
    Asked {
        holder: Option<String>,
    },
    Held {
        since: Instant,
        idle: Option<Instant>,
        look: Instant,
    },
    Settling {
        since: Instant,
    },
    /// Nothing starts; when the last running one has ended, the locks go back.
    Yielding {
        since: Instant,
    },
}
