//! Attempts at this install: the driver of `admission.rs`, with the locks, the engine and the outbox in its hands.
//!
//! One task owns everything. Each turn it waits for one order, one end of something that it started, or one
//! deadline; makes an event of it; and performs the actions. The exchange with the engine, the check of its
//! digest, the wait for the locks, settling and the delivery of results run beside it, so that the end of one
//! stream starts the next attempt within the same turn.
//!
//! A caller that goes away does not stop an attempt: its reports fall on the floor, its result waits in the
//! outbox, and the same `Run` sent again subscribes anew. Only a `Cancel` cancels.

mod beats;
mod delivery;
mod devices;
mod orders;
mod probe;
mod progress;
mod records;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tropa_proto::{
    id::{AgentId, AttemptId, JobId},
    message::{Failure, FromAgent, Held as HeldOfJob},
    proof::{self},
    system,
};

pub use self::orders::{Ended, Guests, Load, Orders, Settings};
use self::{
    beats::{Beats, held},
    orders::{MAX_ORDERS, Order, RunOrder},
    progress::{Reports, Ticker},
    records::warn_record,
};
use crate::{
    admission::{Action, Admission, Event, Key, TURN},
    clock::now,
    device_lock::{Held, LockError, SettleRecord},
    ollama::{Completed, Ollama, Progress, Request, Unfinished},
    outbox::{Finished, Outbox},
};

/// The attempts at one install.
#[derive(Debug)]
pub struct Executor {
    admission: Admission,
    ollama: Arc<Ollama>,
    settings: Settings,
    outbox: Outbox,
    /// What has not ended.
    attempts: BTreeMap<Key, Attempt>,
    /// Who hears of what has not ended.
    reports: BTreeMap<Key, Reports>,
    /// Who hears of whole jobs.
    beats: Beats,
    /// How much of a result its reader has already: from a `Fetch`, while it is being answered.
    skip: u32,
    held: Option<Held>,
    /// What was hung up on since the last settling, and how long it may still run.
    hung_up: Vec<(SettleRecord, Duration)>,
    last_unsettled: bool,
    /// How many attempts began whose models had to be loaded somewhere.
    loads: u64,
    /// What the engine failed with last.
    failed: Option<(Arc<Request>, AttemptId)>,
    /// Bytes of results whose digest is being checked.
    checking_bytes: usize,
    netns: u64,
    /// The wait for the locks, and its number: an answer to an earlier wait is dropped.
    acquiring: Option<AbortHandle>,
    acquired: u64,
    blocked: (mpsc::Sender<String>, mpsc::Receiver<String>),
    tasks: JoinSet<End>,
    deliveries: JoinSet<()>,
    orders: mpsc::Receiver<Order>,
    load: watch::Sender<Load>,
    guests: watch::Sender<Guests>,
}

/// One attempt from its arrival to its end.
#[derive(Debug)]
struct Attempt {
    request: Arc<Request>,
    show_text: bool,
    cancel: CancellationToken,
    started: Option<Instant>,
    wait_ms: u32,
    tokens: Arc<AtomicU32>,
}

/// The end of something that runs beside the loop.
enum End {
    Stream(Key, Result<Completed, Unfinished>),
    Checked(Key, usize, Result<Completed, Failure>),
    Lane(u64, Result<Held, LockError>),
    Settled { attempts: Vec<String>, proved: bool },
    Probed(Box<Request>, Result<Completed, Unfinished>),
}

impl Executor {
    /// Makes an executor for an install, and the way in. Nothing happens before [`Executor::run`].
    #[must_use]
    pub fn new(settings: Settings, ollama: Arc<Ollama>) -> (Self, Orders) {
        let (order_sender, orders) = mpsc::channel(MAX_ORDERS);
        let (load, load_receiver) = watch::channel(Load::default());
        let (guests, guests_receiver) = watch::channel(Guests::default());
        let policy = Arc::new(ollama.policy().clone());
        let turns = proof::number("TROPA_TEST_TURN_MS").map_or(TURN, Duration::from_millis);
        let executor = Self {
            admission: Admission::new(settings.incarnation, settings.admits())
                .with_turns_of(turns)
                .with_rate(policy.permit.rate),
            ollama,
            settings,
            outbox: Outbox::default(),
            attempts: BTreeMap::new(),
            reports: BTreeMap::new(),
            beats: Beats::default(),
            skip: 0,
            held: None,
            hung_up: Vec::new(),
            last_unsettled: false,
            loads: 0,
            failed: None,
            checking_bytes: 0,
            netns: system::network_namespace(),
            acquiring: None,
            acquired: 0,
            blocked: mpsc::channel(4),
            tasks: JoinSet::new(),
            deliveries: JoinSet::new(),
            orders,
            load,
            guests,
        };
        (executor, Orders::new(order_sender, load_receiver, guests_receiver, policy))
    }

    /// Works until `stop`, or until every [`Orders`] is gone. What then still runs is hung up on; its settle
    /// records stay in the lock files for the next holder. For a graceful end, drain first and watch the load.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let deadlines =
                [self.admission.next_deadline(), self.outbox.next_deadline(), self.beats.next_deadline()];
            let deadline = deadlines.into_iter().flatten().min();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(end) = self.tasks.join_next() => match end {
                    Ok(end) => self.ended(end),
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    // A wait for the locks that was given up.
                    Err(_) => {}
                },
                Some(holder) = self.blocked.1.recv() => self.handle([Event::LaneBlocked(holder)]),
                order = self.orders.recv() => match order {
                    Some(order) => self.ordered(order),
                    None => break,
                },
                () = until(deadline) => self.tick(),
                Some(_) = self.deliveries.join_next() => {}
            }
        }
    }

    fn handle(&mut self, events: impl IntoIterator<Item = Event>) {
        let mut events: VecDeque<Event> = events.into_iter().collect();
        while let Some(event) = events.pop_front() {
            self.admission.place(self.unplaced());
            for action in self.admission.handle(event, now()) {
                events.extend(self.perform(action));
            }
        }
        let load = Load {
            running: self.admission.running(),
            queued: self.admission.queued(),
            checking: self.admission.checking(),
            waiting_results: self.outbox.len(),
            settling: self.admission.is_settling(),
            unsettled: self.last_unsettled,
            ill: self.admission.is_ill(),
            used_up_until: self.admission.used_up_until(now()),
            loads: self.loads,
            loading: self.is_loading(),
        };
        self.load.send_if_modified(|before| std::mem::replace(before, load) != load);
        // In whole mebibytes, so that it is not news with every result.
        let bytes = u64::try_from(self.outbox.bytes() >> 20 << 20).unwrap_or(u64::MAX);
        let peers = self.attempts.keys().map(|(peer, _)| *peer).chain(self.outbox.peers()).collect();
        let guests = Guests { peers, bytes };
        self.guests.send_if_modified(|before| {
            let changed = *before != guests;
            *before = guests;
            changed
        });
    }

    /// Has an attempt end, wherever it is, as the event says.
    fn stop(&mut self, event: Event, key: Key, reports: mpsc::Sender<FromAgent>) {
        // The stream that brought the attempt may be dead without anybody knowing.
        self.subscribe(key, reports);
        self.handle([event]);
        if !self.attempts.contains_key(&key) {
            self.reports.remove(&key);
        }
    }

    fn ordered(&mut self, order: Order) {
        match order {
            Order::Run(order) => {
                let RunOrder { key, incarnation, request, show_text, at_once, reports } = *order;
                proof::passes("agent.run");
                self.subscribe(key, reports);
                let runner = request.map(|request| {
                    let runner = request.runner.clone();
                    if !self.admission.knows(&key) {
                        let (request, cancel) = (Arc::new(request), CancellationToken::new());
                        let tokens = Arc::default();
                        let attempt =
                            Attempt { request, show_text, cancel, started: None, wait_ms: 0, tokens };
                        self.attempts.insert(key, attempt);
                    }
                    runner
                });
                let coming = self.admission.running() + self.admission.queued() + 1;
                let room = self.outbox.has_room_for(coming, self.checking_bytes);
                self.handle([Event::Run { key, incarnation, runner, at_once, room }]);
            }
            Order::Cancel(key, reports) => self.stop(Event::Cancel(key), key, reports),
            Order::TakeBack(key, reports) => self.stop(Event::TakeBack(key), key, reports),
            Order::Ack(key) => {
                proof::passes("agent.ack");
                self.handle([Event::Ack(key)]);
                proof::event("forget", &key.1, "");
            }
            Order::Fetch(key, offset, reports) => {
                self.subscribe(key, reports);
                self.skip = offset;
                self.handle([Event::Fetch(key)]);
                self.skip = 0;
            }
            Order::Renew(peer, job) => self.handle([Event::Renew(peer, job)]),
            Order::Reattach(peer, job, reports) => {
                self.handle([Event::Renew(peer, job)]);
                let attached = FromAgent::Attached(Box::new(self.held(peer, job)));
                self.deliver_frames(&reports, vec![attached]);
                self.beats.attach(peer, job, reports, now());
            }
            Order::Drain(why) => self.handle([Event::Drain(why)]),
            Order::Shut(rule) => self.handle([Event::Shut(rule)]),
            Order::Occupy(devices) => {
                self.settings.devices = *devices;
                if self.settings.devices.as_of < self.loads {
                    // It was looked at before the last load began.
                    self.settings.devices.unsettle();
                }
                let someone_waits = self.held.as_ref().is_some_and(Held::someone_waits);
                self.handle([Event::Placed { someone_waits }]);
            }
        }
    }

    /// Lets the channel hear of the attempt from now on.
    fn subscribe(&mut self, key: Key, reports: mpsc::Sender<FromAgent>) {
        // An order that was read late, from a stream that is dead: who asked anew stays subscribed.
        if reports.is_closed() && self.reports.contains_key(&key) {
            return;
        }
        match self.reports.get(&key) {
            Some(known) => *known.lock().unwrap_or_else(PoisonError::into_inner) = reports,
            None => {
                self.reports.insert(key, Arc::new(Mutex::new(reports)));
            }
        }
    }

    fn ended(&mut self, end: End) {
        if let End::Stream(key, _) = &end {
            proof::event("exec_end", &key.1, "");
        }
        match end {
            End::Stream(key, Ok(completed)) => {
                self.clear(&key);
                let bytes = completed.result.len();
                self.checking_bytes += bytes;
                if let Some(attempt) = self.attempts.get(&key) {
                    let (ollama, request) = (Arc::clone(&self.ollama), Arc::clone(&attempt.request));
                    self.tasks.spawn(async move {
                        End::Checked(key, bytes, ollama.verify(&request, completed).await)
                    });
                }
                self.handle([Event::Ended { key, may_run: false }]);
            }
            End::Stream(key, Err(Unfinished { failure, may_run })) => {
                self.failed_with(&key);
                if may_run {
                    self.hung_up.extend(self.record(&key).map(|record| (record, self.remaining(&key))));
                } else {
                    self.clear(&key);
                }
                self.handle([Event::Broke { key, may_run, failure }]);
            }
            End::Checked(key, bytes, outcome) => {
                self.checking_bytes -= bytes;
                let failure = match outcome {
                    Ok(Completed { mut outcome, result, .. }) => {
                        outcome.wait_ms = self.attempts.get(&key).map_or(0, |attempt| attempt.wait_ms);
                        self.outbox.insert(key, Finished { outcome, result }, now());
                        proof::passes("agent.outbox");
                        None
                    }
                    Err(failure) => Some(failure),
                };
                self.handle([Event::Finished(key, failure)]);
            }
            End::Lane(number, _) if number != self.acquired => {}
            End::Lane(_, Ok(held)) => {
                let left = held.foreign_records();
                self.held = Some(held);
                self.handle([Event::LaneHeld { dirty: left.unreadable || !left.records.is_empty() }]);
            }
            End::Lane(_, Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "locking the devices failed");
                self.handle([Event::LaneFailed(format!("locking the devices failed: {error}"))]);
            }
            End::Probed(probe, ended) => self.probed(&probe, ended),
            End::Settled { attempts, proved } => {
                self.last_unsettled = !proved;
                if let Some(held) = &self.held {
                    let cleared = attempts.iter().try_for_each(|attempt| held.clear(attempt));
                    if let Err(error) = cleared.and_then(|()| held.settled()) {
                        warn_record(&error);
                    }
                }
                self.handle([Event::Settled]);
            }
        }
    }

    fn tick(&mut self) {
        let expired = self.outbox.expire(now());
        for (_, attempt) in &expired {
            tracing::warn!(?attempt, "a result was not fetched for a day and is given up");
        }
        let (someone_waits, displaced) = match &self.held {
            Some(held) => (held.someone_waits(), !held.is_in_place()),
            None => (false, false),
        };
        let tick = Event::Tick { someone_waits, displaced };
        self.handle(expired.into_iter().map(Event::Expired).chain([tick]));
        for (peer, job) in self.beats.due(now()) {
            let held = self.held(peer, job);
            self.beats.beat(peer, job, held);
        }
    }

    fn held(&self, peer: AgentId, job: JobId) -> HeldOfJob {
        let tokens = |attempt: AttemptId| {
            self.attempts.get(&(peer, attempt)).map_or(0, |held| held.tokens.load(Ordering::Relaxed))
        };
        held(job, self.admission.held(peer, job), tokens)
    }

    /// Performs one action; gives the event that it causes at once, if any.
    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Accept(key, place) => self.report(&key, FromAgent::Accepted(key.1, place)),
            Action::Refuse(key, refusal) => {
                self.report(&key, FromAgent::Refused(key.1, refusal));
                self.close(&key);
            }
            Action::Fail(key, failure) => {
                self.report(&key, FromAgent::Failed(key.1, failure));
                self.close(&key);
            }
            Action::Deliver(key) => {
                self.deliver(&key);
                self.close(&key);
            }
            Action::Discard(key) => self.outbox.remove(&key),
            Action::Start { key, waited } => return self.start(key, waited),
            Action::HangUp(key) => {
                if let Some(attempt) = self.attempts.get(&key) {
                    attempt.cancel.cancel();
                }
            }
            Action::Acquire => return self.acquire(),
            Action::Release => {
                self.acquired += 1;
                if let Some(acquiring) = self.acquiring.take() {
                    acquiring.abort();
                }
                self.held = None;
            }
            Action::Settle => self.settle(),
            Action::Probe => return self.probe(),
        }
        None
    }

    /// Forgets what only an attempt that has not ended needs.
    fn close(&mut self, key: &Key) {
        if !self.admission.is_open(key) {
            self.attempts.remove(key);
            self.reports.remove(key);
        }
    }

    fn start(&mut self, key: Key, waited: Duration) -> Option<Event> {
        let record = self.record(&key);
        if let (Some(held), Some(record)) = (&self.held, record) {
            if !held.is_in_place() {
                return Some(Event::NotStarted(key, "the lock files were replaced".to_owned()));
            }
            if let Err(error) = proof::step("agent.settle_record") {
                return Some(Event::NotStarted(key, format!("the settle record was not written: {error}")));
            }
            if let Err(error) = held.record(record) {
                warn_record(&error);
                return Some(Event::NotStarted(key, format!("the settle record was not written: {error}")));
            }
        }
        proof::passes("agent.start");
        proof::event("exec_start", &key.1, proof::peer(&key.0));
        let attempt = self.attempts.get_mut(&key)?;
        if !self.settings.devices.is_placed(&attempt.request) {
            self.loads += 1;
            self.settings.devices.unsettle();
        }
        attempt.started = Some(now());
        attempt.wait_ms = u32::try_from(waited.as_millis()).unwrap_or(u32::MAX);
        let (ollama, request) = (Arc::clone(&self.ollama), Arc::clone(&attempt.request));
        let cancel = attempt.cancel.clone();
        let mut ticker = Ticker {
            attempt: key.1,
            reports: Arc::clone(self.reports.get(&key)?),
            show_text: attempt.show_text,
            pending: String::new(),
            last: now(),
            tokens: Arc::clone(&attempt.tokens),
        };
        self.tasks.spawn(async move {
            let mut on_progress = |progress: Progress<'_>| ticker.line(progress);
            End::Stream(key, ollama.run(&request, &mut on_progress, &cancel).await)
        });
        None
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
