//! What the sender of an attempt hears while it runs, and the result in frames when it has ended.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::mpsc, time::Instant};
use tropa_proto::{
    bounded::{Blob, Content},
    id::AttemptId,
    message::{FromAgent, MAX_RESULT_FRAME},
};

use crate::{clock::now, ollama::Progress};

/// Between two reports of progress of one attempt (`reliability.md` §3: at most four a second).
const PROGRESS: Duration = Duration::from_millis(250);

/// Bytes of text of one attempt that wait for the next report of progress; what does not fit is not shown, and the
/// count of tokens goes on. With as many attempts as an install may run at once (64) that is a mebibyte, the cap of
/// display text that is queued (`security.md` §6); a coordinator queues none.
const MAX_SHOWN: usize = 16_384;

/// Places in the channel of reports that progress leaves free, for the frames that matter.
const RESERVED: usize = 4;

/// Where the reports of one attempt go; replaced when the same `Run` comes again.
pub(super) type Reports = Arc<Mutex<mpsc::Sender<FromAgent>>>;

/// Tells of progress, at most four times a second, where the channel has room to spare.
pub(super) struct Ticker {
    pub(super) attempt: AttemptId,
    pub(super) reports: Reports,
    pub(super) show_text: bool,
    pub(super) pending: String,
    pub(super) last: Instant,
    /// Tokens so far, for the beats.
    pub(super) tokens: Arc<AtomicU32>,
}

impl Ticker {
    pub(super) fn line(&mut self, progress: Progress<'_>) {
        self.tokens.store(progress.count, Ordering::Relaxed);
        if self.show_text {
            let room = MAX_SHOWN - self.pending.len();
            self.pending.push_str(&progress.text[..progress.text.floor_char_boundary(room)]);
        }
        let at = now();
        if at < self.last + PROGRESS {
            return;
        }
        self.last = at;
        let text = Content::cut(&self.pending);
        let frame = FromAgent::Tokens { attempt: self.attempt, count: progress.count, text };
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        if reports.capacity() > RESERVED && reports.try_send(frame).is_ok() {
            self.pending.clear();
        }
    }
}

/// Cuts a result into frames.
pub(super) fn frames(mut result: Bytes) -> impl Iterator<Item = FromAgent> + Send + 'static {
    std::iter::from_fn(move || {
        let piece = result.split_to(result.len().min(MAX_RESULT_FRAME));
        if piece.is_empty() { None } else { Blob::new(piece.to_vec()).ok().map(FromAgent::Body) }
    })
}

#[cfg(test)]
mod tests {
    use tropa_proto::id::{ChunkIndex, JobId};

    use super::*;

    #[test]
    fn progress_is_told_four_times_a_second_and_loses_no_text_in_between() {
        let (sender, mut receiver) = mpsc::channel(16);
        let attempt = AttemptId { job: JobId([1; 16]), chunk: ChunkIndex(0), no: 1 };
        let reports = Arc::new(Mutex::new(sender));
        let last = now() - PROGRESS;
        let mut ticker = Ticker {
            attempt,
            reports,
            show_text: true,
            pending: String::new(),
            last,
            tokens: Arc::default(),
        };
        for (count, text) in [(1, "a"), (2, "b"), (3, "c")] {
            ticker.line(Progress { count, text });
        }
        ticker.last = now() - PROGRESS;
        ticker.line(Progress { count: 4, text: "d" });
        let told = |count, text: &str| FromAgent::Tokens { attempt, count, text: Content::cut(text) };
        assert_eq!(receiver.try_recv(), Ok(told(1, "a")));
        assert_eq!(receiver.try_recv(), Ok(told(4, "bcd")));
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn text_that_finds_no_room_is_not_shown_and_its_tokens_are_counted() {
        let (sender, mut receiver) = mpsc::channel(16);
        let attempt = AttemptId { job: JobId([1; 16]), chunk: ChunkIndex(0), no: 1 };
        let mut ticker = Ticker {
            attempt,
            reports: Arc::new(Mutex::new(sender)),
            show_text: true,
            pending: String::new(),
            last: now(),
            tokens: Arc::default(),
        };
        // One byte less, exactly as much, and one more; an answer may come as one line of megabytes.
        for (already, line, kept) in [
            (MAX_SHOWN - 2, "a".to_owned(), MAX_SHOWN - 1),
            (MAX_SHOWN - 1, "a".to_owned(), MAX_SHOWN),
            (MAX_SHOWN, "a".to_owned(), MAX_SHOWN),
            (0, "a".repeat(8 << 20), MAX_SHOWN),
            (MAX_SHOWN - 1, "é".to_owned(), MAX_SHOWN - 1),
        ] {
            ticker.pending = "x".repeat(already);
            ticker.line(Progress { count: 7, text: &line });
            assert_eq!(ticker.pending.len(), kept, "{already} and {}", line.len());
        }
        ticker.last = now() - PROGRESS;
        ticker.line(Progress { count: 8, text: "" });
        let Ok(FromAgent::Tokens { count: 8, text, .. }) = receiver.try_recv() else { panic!("no report") };
        assert_eq!(text.len(), MAX_SHOWN - 1);
    }

    #[test]
    fn progress_leaves_room_for_the_frames_that_matter() {
        let (sender, receiver) = mpsc::channel(RESERVED);
        let attempt = AttemptId { job: JobId([1; 16]), chunk: ChunkIndex(0), no: 1 };
        let (reports, last) = (Arc::new(Mutex::new(sender)), now() - PROGRESS);
        let mut ticker = Ticker {
            attempt,
            reports,
            show_text: false,
            pending: String::new(),
            last,
            tokens: Arc::default(),
        };
        ticker.line(Progress { count: 1, text: "a" });
        assert!(receiver.is_empty());
    }
}
