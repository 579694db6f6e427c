//! How reports and results reach whoever listens: at once where there is room, else beside the loop.

use std::sync::PoisonError;

use tokio::sync::mpsc;
use tropa_proto::message::{FromAgent, MAX_RESULT_FRAME};

use super::{Executor, progress::frames};
use crate::admission::Key;

/// Results on their way to slow readers. Beyond it a result waits in the outbox until it is asked for again.
const MAX_DELIVERIES: usize = 1024;

impl Executor {
    /// Sends a report: an end always, beside the loop where its reader is slow; a place only where there is room.
    pub(super) fn report(&mut self, key: &Key, frame: FromAgent) {
        let Some(reports) = self.reports.get(key) else { return };
        let reports = reports.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if matches!(frame, FromAgent::Accepted(..)) {
            // The next place, or the end, says more.
            let _ = reports.try_send(frame);
        } else {
            self.deliver_frames(&reports, vec![frame]);
        }
    }

    pub(super) fn deliver(&mut self, key: &Key) {
        let (Some(finished), Some(reports)) = (self.outbox.get(key), self.reports.get(key)) else { return };
        let reports = reports.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let done = FromAgent::Done(key.1, Box::new(finished.outcome.clone()));
        let from = usize::try_from(self.skip).unwrap_or(usize::MAX).min(finished.result.len());
        let result = finished.result.slice(from..);
        let pieces = result.len().div_ceil(MAX_RESULT_FRAME);
        self.deliver_frames_of(&reports, pieces + 1, [done].into_iter().chain(frames(result)));
    }

    pub(super) fn deliver_frames(&mut self, reports: &mpsc::Sender<FromAgent>, frames: Vec<FromAgent>) {
        self.deliver_frames_of(reports, frames.len(), frames.into_iter());
    }

    /// Hands frames over in order: at once where the channel has room for all, else by a task that waits for it. A
    /// reader that goes away asks again, as does one whose delivery found no place.
    pub(super) fn deliver_frames_of(
        &mut self,
        reports: &mpsc::Sender<FromAgent>,
        count: usize,
        frames: impl Iterator<Item = FromAgent> + Send + 'static,
    ) {
        if reports.capacity() >= count {
            for frame in frames {
                let _ = reports.try_send(frame);
            }
        } else if self.deliveries.len() < MAX_DELIVERIES && !reports.is_closed() {
            let reports = reports.clone();
            self.deliveries.spawn(async move {
                for frame in frames {
                    if reports.send(frame).await.is_err() {
                        return;
                    }
                }
            });
        }
    }
}
