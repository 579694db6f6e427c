//! What live tests ask and what comes of them (`identity.md` §9).

use serde::{Deserialize, Serialize};

use crate::{
    bounded::{List, Text},
    evidence::Reading,
    id::AgentId,
};

/// What a live test asks of one agent (`identity.md` §9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LiveStep {
    /// Listen for some seconds under a name that only this kernel has, and give the nonce to whoever comes.
    Offer {
        /// The random part of the name: an agent is never sent to a name of the coordinator's choice.
        place: [u8; 16],
        /// What whoever comes must bring back.
        nonce: [u8; 32],
    },
    /// Go where another agent listens, and bring back what it gives.
    Meet {
        /// The random part of the name.
        place: [u8; 16],
    },
    /// Say when this arrived and when the answer left.
    Clock,
    /// Read the counters of the kernel.
    Counters,
    /// Say of whom you know that their traffic arrives through your machine itself.
    Neighbours,
}

/// What came of a [`LiveStep`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LiveFinding {
    /// The agent listens.
    Offered,
    /// Somebody was met; the nonce that he gave.
    Met([u8; 32]),
    /// The wall clock of the agent, in nanoseconds since 1970.
    Clock {
        /// When the question arrived.
        received_ns: i64,
        /// When the answer left, never earlier.
        sent_ns: i64,
    },
    /// The counters.
    Counters(Counters),
    /// Nothing: says why. Decides nothing.
    Cannot(Text<128>),
    /// The agents that the asked one is connected with through loopback or an interface that leads to no wire, in
    /// order; as many as one machine may have. Their addresses stay where they were seen.
    Neighbours(List<AgentId, 64>),
}

/// Counters of a kernel since its boot, from a genuine procfs; anything else is not a [`Reading::Value`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Context switches: `ctxt` of `/proc/stat`.
    pub ctxt: Reading<u64>,
    /// Processes and threads made: `processes` of `/proc/stat`.
    pub processes: Reading<u64>,
    /// Page faults: `pgfault` of `/proc/vmstat`.
    pub pgfault: Reading<u64>,
    /// Pages freed: `pgfree` of `/proc/vmstat`.
    pub pgfree: Reading<u64>,
}
