//! The probe of an engine that has failed with one chunk after the other: one token, by the model and with the options
//! that failed last.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tropa_proto::proof;

use super::{
    End, Executor,
    records::{SETTLE_LEAST, warn_record},
};
use crate::{
    admission::{Event, Key},
    device_lock::SettleRecord,
    ollama::{Completed, Unfinished},
};

/// What names the probe in a lock file, where attempts are named by sender and number.
const NAME: &str = "probe";

impl Executor {
    /// Remembers what the engine failed with.
    pub(super) fn failed_with(&mut self, key: &Key) {
        if let Some(attempt) = self.attempts.get(key) {
            self.failed = Some((Arc::clone(&attempt.request), key.1));
        }
    }

    /// Asks the engine for one token. The lock files name the request, as they do an attempt.
    pub(super) fn probe(&mut self) -> Option<Event> {
        let probe = self.failed.as_ref().and_then(|(request, _)| request.probe());
        let Some(probe) = probe else { return Some(Event::Probed { works: true, may_run: false }) };
        tracing::warn!(
            model = &*probe.model,
            "the engine failed with two chunks one after the other; it gets no work before it has written one token"
        );
        let record = SettleRecord { attempt: NAME.to_owned(), ..self.record_of(&probe) };
        if let Some(held) = &self.held
            && let Err(error) = held.record(record)
        {
            warn_record(&error);
            return Some(Event::Probed { works: false, may_run: false });
        }
        let ollama = Arc::clone(&self.ollama);
        self.tasks.spawn(async move {
            let ended = ollama.run(&probe, &mut |_| {}, &CancellationToken::new()).await;
            End::Probed(Box::new(probe), ended)
        });
        None
    }

    pub(super) fn probed(&mut self, probe: &crate::ollama::Request, ended: Result<Completed, Unfinished>) {
        let may_run = match &ended {
            Ok(_) => false,
            Err(unfinished) => {
                tracing::warn!(reason = %unfinished.failure.reason, "the engine has not written one token");
                unfinished.may_run
            }
        };
        if let Some((_, attempt)) = &self.failed {
            proof::event("probe", attempt, if ended.is_ok() { "works" } else { "fails" });
        }
        if may_run {
            let record = SettleRecord { attempt: NAME.to_owned(), ..self.record_of(probe) };
            self.hung_up.push((record, probe.limits.deadline.max(SETTLE_LEAST)));
        } else if let Some(held) = &self.held
            && let Err(error) = held.clear(NAME)
        {
            warn_record(&error);
        }
        self.handle([Event::Probed { works: ended.is_ok(), may_run }]);
    }
}
