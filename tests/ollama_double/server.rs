//! The sockets of a double: it accepts, watches whether clients hang up, restarts on the same port, and ends.
//!
//! A second socket is bound to the same port and never listens: while the listener is closed, connections are
//! refused, yet nobody else can get the port.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Settings;
use super::clock::Calendar;
use super::engine::Engine;
use super::faults::Rules;
use super::http::Out;
use super::model::Version;
use super::record::{Outcome, Record};
use super::routes;

/// Connections that wait to be accepted: more than any burst of a test.
const BACKLOG: u32 = 4096;

/// What all parts of one double share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) addr: SocketAddr,
    pub(crate) engine: Arc<Engine>,
    pub(crate) record: Arc<Record>,
    pub(crate) version: Version,
    pub(crate) calendar: Calendar,
    pub(crate) started: Instant,
    pub(crate) tasks: TaskTracker,
    /// No new connections; requests that run may end.
    pub(crate) stopping: CancellationToken,
    /// All connections end now.
    pub(crate) killed: CancellationToken,
    rules: Mutex<Rules>,
    work: AtomicU64,
    restarts: mpsc::Sender<Duration>,
    restarting: AtomicBool,
    silent: Mutex<Option<SocketAddr>>,
}

impl Inner {
    /// Binds and begins to accept.
    pub(crate) fn start(listen: SocketAddr, mut settings: Settings, rules: Rules) -> io::Result<Arc<Self>> {
        let keeper = bound(listen)?;
        let addr = keeper.local_addr()?;
        let listener = listening(addr)?;
        if settings.name.is_empty() {
            settings.name = addr.to_string();
        }
        let engine = Engine::new(settings);
        let (restarts, orders) = mpsc::channel(1);
        let version = Version::new(&engine.settings.version);
        let calendar = Calendar::new();
        let inner = Arc::new(Self {
            addr,
            engine,
            record: Arc::default(),
            version,
            calendar,
            started: super::clock::now(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            killed: CancellationToken::new(),
            rules: Mutex::new(rules),
            work: AtomicU64::new(0),
            restarts,
            restarting: AtomicBool::new(false),
            silent: Mutex::new(None),
        });
        inner.tasks.spawn(Arc::clone(&inner).accept(keeper, listener, orders));
        Ok(inner)
    }

    pub(crate) fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a work request; returns how many came before it.
    pub(crate) fn count_work(&self) -> u64 {
        self.work.fetch_add(1, Ordering::SeqCst)
    }

    pub(crate) fn work_so_far(&self) -> u64 {
        self.work.load(Ordering::SeqCst)
    }

    /// Closes everything, refuses connections for this long, and comes back with nothing loaded.
    pub(crate) fn restart(&self, pause: Duration) {
        if !self.restarting.swap(true, Ordering::SeqCst) {
            // The only receiver is our own loop, and one order is all that there can be.
            let _ = self.restarts.try_send(pause);
        }
    }

    /// A port on which nobody may call: what a redirect points to.
    pub(crate) fn silent_port(self: &Arc<Self>) -> io::Result<SocketAddr> {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(addr) = *silent {
            return Ok(addr);
        }
        let listener = listening(SocketAddr::new(self.addr.ip(), 0))?;
        let addr = listener.local_addr()?;
        *silent = Some(addr);
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            let (stopping, killed) = (inner.stopping.clone(), inner.killed.clone());
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        inner.record.forbid(format!("followed a redirect: {:?}", accepted.map(|(_, from)| from)));
                    }
                    () = stopping.cancelled() => return,
                    () = killed.cancelled() => return,
                }
            }
        });
        Ok(addr)
    }

    async fn accept(
        self: Arc<Self>,
        keeper: TcpSocket,
        mut listener: TcpListener,
        mut orders: mpsc::Receiver<Duration>,
    ) {
        let mut epoch = self.killed.child_token();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    self.record.connections.fetch_add(1, Ordering::Relaxed);
                    self.tasks.spawn(Arc::clone(&self).connection(stream, epoch.clone()));
                }
                Some(pause) = orders.recv() => {
                    drop(listener);
                    epoch.cancel();
                    epoch = self.killed.child_token();
                    self.engine.forget();
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.stopping.cancelled() => return,
                        () = self.killed.cancelled() => return,
                    }
                    // The keeper holds the port, so it is ours to take.
                    let Ok(again) = listening(self.addr) else { return };
                    listener = again;
                    self.restarting.store(false, Ordering::SeqCst);
                }
                () = self.stopping.cancelled() => break,
                () = self.killed.cancelled() => break,
            }
        }
        drop((listener, keeper));
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, epoch: CancellationToken) {
        let _ = stream.set_nodelay(true);
        let (mut reader, mut out) = Out::split(stream, self.calendar);
        loop {
            let request = tokio::select! {
                biased;
                () = epoch.cancelled() => return,
                next = reader.next(&mut out) => match next {
                    Ok(Some(request)) => request,
                    Ok(None) => return,
                    Err(error) => {
                        out.close = true;
                        let _ = out.whole(400, Some("text/plain"), "", error.to_string().as_bytes()).await;
                        return;
                    }
                },
                () = self.stopping.cancelled() => return,
            };
            let mut entry = self.record.begin(&request, routes::is_work(&request.path));
            out.drip = None;
            let outcome = tokio::select! {
                // What was answered to its end was answered, even when the client left at once.
                biased;
                outcome = routes::answer(&self, &request, &mut out, &entry) => outcome.unwrap_or(Outcome::HungUp),
                () = reader.gone() => Outcome::HungUp,
                () = epoch.cancelled() => {
                    if self.killed.is_cancelled() {
                        out.reset();
                    }
                    out.close = true;
                    Outcome::Broken
                }
            };
            out.close |= outcome == Outcome::HungUp;
            entry.finish(outcome);
            drop(entry);
            if out.close {
                return;
            }
        }
    }
}

/// A socket on this address that does not listen, and does not keep others of ours from it.
fn bound(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(addr)?;
    Ok(socket)
}

pub(crate) fn listening(addr: SocketAddr) -> io::Result<TcpListener> {
    bound(addr)?.listen(BACKLOG)
}
