//! Whether the engine may be trusted with work. Two attempts of different chunks that crash or stall one after the other
//! are the install's fault: nothing starts until it has written one token (`reliability.md` §5).

use std::time::Duration;

use tokio::time::Instant;
use tropa_proto::{
    bounded::Text,
    failure::Class,
    id::{AgentId, ChunkIndex, JobId},
    message::{Failure, Refusal},
};

use super::Key;

/// When a coordinator may ask again whose attempt an ill engine does not get: a token takes about so long.
const RETRY_MS: u32 = 1_000;

/// The rest after a probe that failed: the first, doubled each time, and the longest, which is that of a coordinator
/// that finds an install busy.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Probes in a row that fail before the agent says that it takes nothing, so that a job with no other install ends with
/// the reason and does not wait for ever.
const PATIENCE: u32 = 3;

/// What is known of the engine's health.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// The chunk that failed last, if none has succeeded since.
    failed: Option<(AgentId, JobId, ChunkIndex)>,
    ill: Option<Ill>,
}

/// The engine gets no work.
#[derive(Debug, Default)]
struct Ill {
    /// The probe is at the engine.
    probing: bool,
    /// Somebody wants to know: nobody's engine is kept busy with probes.
    wanted: bool,
    /// No probe before this time.
    rest: Option<Instant>,
    failed_probes: u32,
}

impl Health {
    /// An attempt has ended; says whether the engine has become ill by it.
    pub(super) fn ended(&mut self, (peer, attempt): &Key, failure: Option<&Failure>) -> bool {
        let Some(failure) = failure else {
            self.failed = None;
            return false;
        };
        if !matches!(
            failure.reason.class(),
            Class::RunnerCrash | Class::EngineError | Class::Stalled | Class::Deadline
        ) {
            return false;
        }
        let chunk = (*peer, attempt.job, attempt.chunk);
        let another = self.failed.replace(chunk).is_some_and(|before| before != chunk);
        if another && self.ill.is_none() {
            self.ill = Some(Ill { wanted: true, ..Ill::default() });
            return true;
        }
        false
    }

    pub(super) fn is_well(&self) -> bool {
        self.ill.is_none()
    }

    pub(super) fn is_probing(&self) -> bool {
        self.ill.as_ref().is_some_and(|ill| ill.probing)
    }

    /// Somebody has work: why the engine does not get it, and a probe as soon as one may be.
    pub(super) fn refusal(&mut self) -> Option<Refusal> {
        let ill = self.ill.as_mut()?;
        ill.wanted = true;
        Some(if ill.failed_probes < PATIENCE {
            Refusal::Busy { retry_ms: RETRY_MS }
        } else {
            Refusal::Draining(Text::cut("its engine failed several times and writes not one token"))
        })
    }

    /// Time has passed.
    pub(super) fn rested(&mut self, now: Instant) {
        if let Some(ill) = &mut self.ill {
            ill.rest = ill.rest.filter(|at| *at > now);
        }
    }

    /// When a probe that is wanted may be.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.ill.as_ref().filter(|ill| ill.wanted)?.rest
    }

    /// A probe is due.
    pub(super) fn wants_probe(&self) -> bool {
        self.ill.as_ref().is_some_and(|ill| ill.wanted && !ill.probing && ill.rest.is_none())
    }

    pub(super) fn begin(&mut self) {
        if let Some(ill) = &mut self.ill {
            ill.probing = true;
        }
    }

    /// The devices cannot be had: whoever comes next may try again.
    pub(super) fn put_off(&mut self) {
        if let Some(ill) = &mut self.ill {
            ill.wanted = false;
        }
    }

    /// The engine has written a token, or not.
    pub(super) fn probed(&mut self, works: bool, now: Instant) {
        if works {
            *self = Self::default();
        } else if let Some(ill) = &mut self.ill {
            let rest = REST.0 * 2u32.saturating_pow(ill.failed_probes.min(6));
            ill.failed_probes += 1;
            (ill.probing, ill.wanted, ill.rest) = (false, false, Some(now + rest.min(REST.1)));
        }
    }
}
