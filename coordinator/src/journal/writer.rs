//! The one thread that writes during a run, with group commit.
//!
//! The rate of a journal is the sync rate of its disk. While one transaction syncs, further steps queue; the next
//! transaction takes them all. Every step carries a token, which comes back when the step is durable and never
//! before: attempts are sent, and results acknowledged, only then.
//!
//! A full disk is waited out: the transaction is rolled back, its steps stay, and the same ones are tried again
//! until there is room. A failed sync or write is final, since the kernel may drop the pages and let the next
//! sync succeed (`reliability.md` §7.5).

use std::{
    sync::mpsc::{self, RecvTimeoutError, SyncSender, TryRecvError, TrySendError},
    thread::JoinHandle,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, ffi};

use super::{
    Error,
    apply::commit,
    step::{Effect, Step, Token},
};

/// Steps that may wait for the writer. A coordinator has a few per lane under way; a thousand lanes fit.
pub const QUEUE: usize = 4096;

/// How long to wait before a full disk is tried again (`reliability.md` §7.5).
pub const RETRY: Duration = Duration::from_secs(5);

/// Bytes of results in one transaction: bounds its time and the write-ahead log.
const BYTES_PER_COMMIT: usize = 32 << 20;

/// Reports that may wait for the loop. The writer rests when they are not taken, and steps queue up behind it.
const REPORTS: usize = 64;

/// A report of the writer.
#[derive(Debug)]
pub enum Committed {
    /// These steps are durable, in the order in which they were submitted.
    Steps(Vec<(Token, Effect)>),
    /// The disk is full: submit nothing that can wait. Said once until [`Committed::Resumed`].
    DiskFull,
    /// There is room again; the steps that waited are durable and reported before this.
    Resumed,
    /// The journal cannot be trusted any more: exit with 74. The last report; no step after the last
    /// [`Committed::Steps`] may be acknowledged.
    Fatal(Error),
}

/// The writer of one journal. Dropping it lets the thread finish what is queued, without waiting for it.
#[derive(Debug)]
pub struct Writer {
    steps: SyncSender<(Token, Step)>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Starts the thread on a connection that nobody else uses; a full disk is tried again every `retry`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(
        conn: Connection,
        retry: Duration,
    ) -> Result<(Self, tokio::sync::mpsc::Receiver<Committed>), Error> {
        let (steps, queue) = mpsc::sync_channel(QUEUE);
        let (reports, receiver) = tokio::sync::mpsc::channel(REPORTS);
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || Loop { conn, queue, reports, retry }.run())
            .map_err(|e| Error::io("start a thread for", std::path::Path::new("the journal"), e))?;
        Ok((Self { steps, thread }, receiver))
    }

    /// Queues a step without waiting.
    ///
    /// # Errors
    /// Gives the step back when the queue is full or the writer has ended with [`Committed::Fatal`].
    pub fn submit(&self, token: Token, step: Step) -> Result<(), Box<Step>> {
        self.steps.try_send((token, step)).map_err(|error| match error {
            TrySendError::Full((_, step)) | TrySendError::Disconnected((_, step)) => Box::new(step),
        })
    }

    /// Waits until all that is queued is durable and reported. Reports must be taken meanwhile, or dropped.
    pub fn finish(self) {
        let Self { steps, thread } = self;
        drop(steps);
        // A panic of the thread has been printed; there is nothing left to wait for.
        let _ = thread.join();
    }
}

struct Loop {
    conn: Connection,
    queue: mpsc::Receiver<(Token, Step)>,
    reports: tokio::sync::mpsc::Sender<Committed>,
    retry: Duration,
}

/// Says that nobody will submit or listen any more.
struct Over;

impl Loop {
    fn run(mut self) {
        let mut steps = Vec::new();
        let mut full = false;
        loop {
            let over = if full { self.rest(&mut steps) } else { self.take(&mut steps) };
            if steps.is_empty() && over.is_err() {
                return;
            }
            match commit(&mut self.conn, &steps) {
                Ok(effects) => {
                    let tokens = steps.drain(..).map(|(token, _)| token);
                    let done = tokens.zip(effects).collect();
                    self.report(Committed::Steps(done));
                    if full {
                        self.report(Committed::Resumed);
                    }
                    full = false;
                }
                Err(error) if is_full(&error) && over.is_ok() => {
                    if !full {
                        self.report(Committed::DiskFull);
                    }
                    full = true;
                }
                Err(error) => {
                    return self.report(Committed::Fatal(Error::sql("write to the journal", error)));
                }
            }
        }
    }

    /// Waits until the report is taken. Where nobody listens any more, what is queued is still to be written.
    fn report(&self, report: Committed) {
        let _ = self.reports.blocking_send(report);
    }

    /// Waits for a step that cannot wait, and takes with it all that are queued, within the bounds of one transaction.
    fn take(&self, steps: &mut Vec<(Token, Step)>) -> Result<(), Over> {
        while steps.len() < QUEUE && steps.iter().all(|(_, step)| step.may_wait()) {
            steps.push(self.queue.recv().map_err(|_| Over)?);
        }
        let mut bytes = size(steps);
        while steps.len() < QUEUE && bytes < BYTES_PER_COMMIT {
            match self.queue.try_recv() {
                Ok((token, step)) => {
                    bytes += step.size();
                    steps.push((token, step));
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        Ok(())
    }

    /// Waits until it is time to try a full disk again; what comes meanwhile, acknowledged to nobody, is kept.
    fn rest(&self, steps: &mut Vec<(Token, Step)>) -> Result<(), Over> {
        if steps.len() >= QUEUE || size(steps) >= BYTES_PER_COMMIT {
            std::thread::sleep(self.retry);
            return Ok(());
        }
        match self.queue.recv_timeout(self.retry) {
            Ok(step) => steps.push(step),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Over),
        }
        Ok(())
    }
}

fn size(steps: &[(Token, Step)]) -> usize {
    steps.iter().map(|(_, step)| step.size()).sum()
}

/// Tells a full disk from an error that is final.
fn is_full(error: &rusqlite::Error) -> bool {
    // The shared memory of the log is a file too, and grows with a code of its own.
    error
        .sqlite_error()
        .is_some_and(|e| e.code == ErrorCode::DiskFull || e.extended_code == ffi::SQLITE_IOERR_SHMSIZE)
}
