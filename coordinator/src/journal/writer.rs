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
    collections::BTreeSet,
    fmt,
    sync::mpsc::{self, RecvTimeoutError, SyncSender, TryRecvError, TrySendError},
    thread::JoinHandle,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, TransactionBehavior, ffi, params};
use tropa_proto::{
    bounded::Text,
    failure::{Class, Reason},
    id::{AgentId, ChunkIndex, Incarnation, MachineId, hex},
    message::{Fingerprint, Outcome},
    proof::{self, Bug, planted},
};

use super::{Error, State, result_hash};

/// Steps that may wait for the writer. A coordinator has a few per lane under way; a thousand lanes fit.
pub const QUEUE: usize = 4096;

/// How long to wait before a full disk is tried again (`reliability.md` §7.5).
pub const RETRY: Duration = Duration::from_secs(5);

/// Bytes of results in one transaction: bounds its time and the write-ahead log.
const BYTES_PER_COMMIT: usize = 32 << 20;

/// Reports that may wait for the loop. The writer rests when they are not taken, and steps queue up behind it.
const REPORTS: usize = 64;

/// Names a step to whoever submitted it; the writer only gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(pub u64);

/// Something that must be durable before anybody is told. Times are the wall clock in milliseconds, for show.
#[derive(Clone, Debug)]
pub enum Step {
    /// An attempt is about to be sent. Its number must be the chunk's last plus 1.
    Attempt {
        /// The chunk.
        chunk: ChunkIndex,
        /// The number of the attempt.
        no: u32,
        /// Who gets it.
        agent: AgentId,
        /// The run of the agent that it is meant for.
        incarnation: Incarnation,
        /// The machine that the agent is counted to.
        machine: MachineId,
        /// The lane, as text: device names with commas.
        lane: String,
        /// When.
        now_ms: u64,
    },
    /// These agents share a device with that one, and no kernel lock keeps them apart; takes the place of what was
    /// said of it before.
    Unguarded {
        /// The agent.
        agent: AgentId,
        /// Its rivals, those that are away too.
        rivals: BTreeSet<AgentId>,
    },
    /// An attempt ended without a result. The first end of an attempt stays.
    Ended {
        /// The chunk.
        chunk: ChunkIndex,
        /// The number of the attempt.
        no: u32,
        /// What follows from it.
        class: Class,
        /// What happened at the install, where an agent said so.
        reason: Option<Reason>,
        /// The words of the error; cut to 2 KiB.
        detail: String,
        /// When.
        now_ms: u64,
    },
    /// An attempt brought a result: commits it if it is the first of its chunk, and ends the attempt.
    Result {
        /// The chunk.
        chunk: ChunkIndex,
        /// The number of the attempt.
        no: u32,
        /// What it brought.
        done: Box<Done>,
        /// When.
        now_ms: u64,
    },
    /// All answers that the chunk builds on are there, and this is its request with them in it.
    Request {
        /// The chunk.
        chunk: ChunkIndex,
        /// The body for Ollama.
        body: Vec<u8>,
    },
    /// The chunk has failed for good: commits that if nothing is committed for it yet.
    Failed {
        /// The chunk.
        chunk: ChunkIndex,
        /// The attempt that decided it, where one did.
        no: Option<u32>,
        /// Why.
        class: Class,
        /// What to tell the user; cut to 2 KiB.
        detail: String,
    },
    /// The job stands elsewhere.
    State(State),
    /// The engine began to work on an attempt. For show: waits for a step that cannot wait.
    Started {
        /// The chunk.
        chunk: ChunkIndex,
        /// The number of the attempt.
        no: u32,
        /// When.
        now_ms: u64,
    },
    /// What an agent or a machine is called; cut to 256 bytes. For show: waits for a step that cannot wait.
    Named {
        /// Which one.
        id: Named,
        /// Its name now.
        name: String,
    },
}

/// What has a name for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Named {
    /// An agent.
    Agent(AgentId),
    /// A machine.
    Machine(MachineId),
}

/// What an attempt brought, checked by the coordinator against length and hash.
#[derive(Clone)]
pub struct Done {
    /// The pinned model.
    pub fingerprint: Fingerprint,
    /// Counts and times.
    pub outcome: Outcome,
    /// What the engine returned, as JSON.
    pub body: Vec<u8>,
}

/// Without the content.
impl fmt::Debug for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Done")
            .field("outcome", &self.outcome)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is durable. Of a result or failure: it is the one of its chunk.
    First,
    /// The chunk had its result or failure already, or the attempt its end. Nothing changed; what it says may be
    /// acknowledged and dropped.
    Late,
    /// It breaks a rule of the journal: a result of an attempt never issued, or an attempt numbered twice. Nothing
    /// changed.
    Refused,
}

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
                Ok(step) => {
                    steps.push(step);
                    bytes += size(&steps[steps.len() - 1..]);
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

impl Step {
    /// Says whether it is worth no sync of its own.
    fn may_wait(&self) -> bool {
        match self {
            Self::Started { .. } | Self::Named { .. } => true,
            Self::Attempt { .. }
            | Self::Ended { .. }
            | Self::Result { .. }
            | Self::Failed { .. }
            | Self::Request { .. }
            | Self::Unguarded { .. }
            | Self::State(_) => false,
        }
    }
}

fn size(steps: &[(Token, Step)]) -> usize {
    steps
        .iter()
        .map(|(_, step)| match step {
            Step::Result { done, .. } => done.body.len(),
            Step::Request { body, .. } => body.len(),
            Step::Attempt { .. }
            | Step::Unguarded { .. }
            | Step::Ended { .. }
            | Step::Failed { .. }
            | Step::State(_)
            | Step::Started { .. }
            | Step::Named { .. } => 0,
        })
        .sum()
}

/// Writes the steps in one transaction and syncs it. On an error nothing of it is left.
fn commit(conn: &mut Connection, steps: &[(Token, Step)]) -> rusqlite::Result<Vec<Effect>> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let effects = steps.iter().map(|(_, step)| apply(&tx, step)).collect::<Result<_, _>>()?;
    broken(proof::step("journal.commit"))?;
    tx.commit()?;
    broken(proof::step("journal.synced"))?;
    Ok(effects)
}

/// What a test breaks, as the store would say it.
fn broken(step: std::io::Result<()>) -> rusqlite::Result<()> {
    step.map_err(|error| {
        let full = error.kind() == std::io::ErrorKind::StorageFull;
        let code = if full { ffi::SQLITE_FULL } else { ffi::SQLITE_IOERR };
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(error.to_string()))
    })
}

fn unguarded(conn: &Connection, agent: AgentId, rivals: &BTreeSet<AgentId>) -> rusqlite::Result<Effect> {
    conn.prepare_cached("DELETE FROM unguarded WHERE agent = ?1")?.execute([agent.0])?;
    let mut row = conn.prepare_cached("INSERT INTO unguarded (agent, rival) VALUES (?1, ?2)")?;
    for rival in rivals {
        row.execute([agent.0, rival.0])?;
    }
    Ok(Effect::First)
}

fn apply(conn: &Connection, step: &Step) -> rusqlite::Result<Effect> {
    let changed = match step {
        Step::Attempt { chunk, no, agent, incarnation, machine, lane, now_ms } => conn
            .prepare_cached(
                "INSERT INTO attempt (idx, no, round, agent, incarnation, machine, lane, sent_ms)
                 VALUES (?1, ?2, (SELECT round FROM chunk WHERE idx = ?1), ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                chunk.0,
                no,
                agent.0,
                incarnation.0.cast_signed(),
                machine.0.0,
                lane,
                ms(*now_ms)
            ]),
        Step::Unguarded { agent, rivals } => return unguarded(conn, *agent, rivals),
        Step::Ended { chunk, no, class, reason, detail, now_ms } => conn
            .prepare_cached(
                "UPDATE attempt SET class = ?3, reason = ?4, detail = ?5, ended_ms = ?6
                 WHERE idx = ?1 AND no = ?2 AND class IS NULL",
            )?
            .execute(params![
                chunk.0,
                no,
                class.name(),
                reason.map(Reason::name),
                &*Text::<2048>::cut(detail),
                ms(*now_ms)
            ]),
        Step::Result { chunk, no, done, now_ms } => return result(conn, *chunk, *no, done, ms(*now_ms)),
        Step::Failed { chunk, no, class, detail } => conn
            .prepare_cached(
                "INSERT INTO result (idx, kind, no, class, detail) VALUES (?1, 'failed', ?2, ?3, ?4)
                 ON CONFLICT (idx) DO NOTHING",
            )?
            .execute(params![chunk.0, no, class.name(), &*Text::<2048>::cut(detail)]),
        Step::Request { chunk, body } => conn
            .prepare_cached("UPDATE chunk SET request = ?2 WHERE idx = ?1 AND request IS NULL")?
            .execute(params![chunk.0, body]),
        Step::State(state) => conn.prepare_cached("UPDATE job SET state = ?1")?.execute([state.name()]),
        Step::Started { chunk, no, now_ms } => conn
            .prepare_cached(
                "UPDATE attempt SET started_ms = ?3 WHERE idx = ?1 AND no = ?2 AND started_ms IS NULL",
            )?
            .execute(params![chunk.0, no, ms(*now_ms)]),
        Step::Named { id, name } => {
            let (kind, id) = match id {
                Named::Agent(agent) => ("agent", agent),
                Named::Machine(machine) => ("machine", &machine.0),
            };
            conn.prepare_cached("INSERT OR REPLACE INTO name (kind, id, name) VALUES (?1, ?2, ?3)")?
                .execute(params![kind, id.0, &*Text::<256>::cut(name)])
        }
    };
    judge(changed)
}

fn result(
    conn: &Connection,
    chunk: ChunkIndex,
    no: u32,
    done: &Done,
    now_ms: i64,
) -> rusqlite::Result<Effect> {
    let outcome = &done.outcome;
    if planted(Bug::NoKeyAtCommit) {
        conn.prepare_cached("DELETE FROM result WHERE idx = ?1")?.execute([chunk.0])?;
    }
    let inserted = conn
        .prepare_cached(
            "INSERT INTO result (idx, kind, no, model_fingerprint, model_digest, done_reason,
                                 prompt_tokens, output_tokens, metrics, sha256, body)
             VALUES (?1, 'done', ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT (idx) DO NOTHING",
        )?
        .execute(params![
            chunk.0,
            no,
            hex(&done.fingerprint),
            hex(&outcome.digest),
            &*outcome.done_reason,
            outcome.prompt_tokens,
            outcome.output_tokens,
            metrics(outcome),
            result_hash(chunk.0, &done.body),
            done.body
        ]);
    let effect = judge(inserted)?;
    let sql = match effect {
        // The attempt may have been given up before its result came and won.
        Effect::First => {
            "UPDATE attempt SET class = 'done', reason = NULL, detail = NULL, ended_ms = ?3 WHERE idx = ?1 AND no = ?2"
        }
        Effect::Late => {
            "UPDATE attempt SET class = 'superseded', ended_ms = ?3 WHERE idx = ?1 AND no = ?2 AND class IS NULL"
        }
        Effect::Refused => return Ok(effect),
    };
    conn.prepare_cached(sql)?.execute(params![chunk.0, no, now_ms])?;
    Ok(effect)
}

/// The times of an outcome as the export reads them: microseconds, but for `wait_ms`.
fn metrics(outcome: &Outcome) -> String {
    let Outcome {
        reasoning_only, wait_ms, wall_us, first_us, load_us, prompt_us, decode_us, total_us, ..
    } = outcome;
    serde_json::json!({
        "reasoning_only": reasoning_only, "wait_ms": wait_ms, "wall_us": wall_us, "first_us": first_us,
        "load_us": load_us, "prompt_us": prompt_us, "decode_us": decode_us, "total_us": total_us,
    })
    .to_string()
}

/// Tells by what a statement changed what became of its step. A broken rule undoes the statement, not the others.
fn judge(changed: rusqlite::Result<usize>) -> rusqlite::Result<Effect> {
    match changed {
        Ok(0) => Ok(Effect::Late),
        Ok(_) => Ok(Effect::First),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
            Ok(Effect::Refused)
        }
        Err(error) => Err(error),
    }
}

/// Tells a full disk from an error that is final.
fn is_full(error: &rusqlite::Error) -> bool {
    // The shared memory of the log is a file too, and grows with a code of its own.
    error
        .sqlite_error()
        .is_some_and(|e| e.code == ErrorCode::DiskFull || e.extended_code == ffi::SQLITE_IOERR_SHMSIZE)
}

fn ms(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}
