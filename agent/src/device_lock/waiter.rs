//! The one thread in which an agent waits for its devices.

use std::{
    collections::VecDeque,
    fmt,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc as thread_channel},
};

use tokio::sync::mpsc;

use super::{
    Held, HeldState, LeftBehind, LockError, MAX_REQUESTS,
    lock_file::{LockFile, Plan},
};

/// Attempts to lock files whose directory is being wiped at the same time, before giving up: one is the rule.
const MAX_RESTARTS: usize = 16;

/// A file on which a waiting agent holds a shared lock, so that the holder can see that somebody waits.
pub(super) type Mark = Arc<Mutex<Option<File>>>;

/// Takes the mark away when the wait ends, whatever ends it.
pub(super) struct Unmark(pub(super) Mark);

impl Drop for Unmark {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// What the thread says to whoever waits.
pub(super) enum Event {
    /// Somebody else holds a device; names it.
    Blocked(String),
    /// The end of the wait.
    Answer(Result<Held, LockError>),
}

/// One wish for devices; not wanted any more as soon as nobody listens for its answer.
pub(super) struct Request {
    pub(super) plan: Plan,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) mark: Mark,
}

impl Request {
    fn is_wanted(&self) -> bool {
        !self.events.is_closed()
    }

    fn blocked_by(&self, holder: String, mark: File) {
        let mut place = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the mutex, so that a wait which ends just now cannot leave its mark behind.
        if self.is_wanted() {
            *place = Some(mark);
            // Names are for display: one that finds no room is not missed.
            let _ = self.events.try_send(Event::Blocked(holder));
        }
    }
}

/// The queue between the agent and its waiting thread.
#[derive(Default)]
pub(super) struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Request>,
    closed: bool,
}

/// Starts the thread; it ends when the queue is closed, or, if it waits in the kernel, when that wait ends.
pub(super) fn start(directory: &Path, label: String) -> Result<Arc<Shared>, LockError> {
    let shared = Arc::new(Shared::default());
    let waiter = Waiter { directory: directory.to_owned(), label, shared: Arc::clone(&shared) };
    std::thread::Builder::new().name("device-locks".to_owned()).spawn(move || waiter.run()).map_err(
        |source| LockError::Io { what: "start the waiting thread for", path: directory.into(), source },
    )?;
    Ok(shared)
}

impl Shared {
    pub(super) fn push(&self, request: Request) -> Result<(), LockError> {
        let mut queue = self.queue();
        queue.requests.retain(Request::is_wanted);
        if queue.requests.len() >= MAX_REQUESTS {
            return Err(LockError::TooManyWait);
        }
        queue.requests.push_back(request);
        self.wake.notify_one();
        Ok(())
    }

    pub(super) fn close(&self) {
        self.queue().closed = true;
        self.wake.notify_all();
    }

    /// Takes the next request that is still wanted; `None` when no more will come.
    fn next(&self) -> Option<Request> {
        let mut queue = self.queue();
        loop {
            queue.requests.retain(Request::is_wanted);
            if let Some(request) = queue.requests.pop_front() {
                return Some(request);
            }
            if queue.closed {
                return None;
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes the next request if it wants the very same devices.
    fn next_alike(&self, plan: &Plan) -> Option<Request> {
        let mut queue = self.queue();
        queue.requests.retain(Request::is_wanted);
        if queue.requests.front()?.plan == *plan { queue.requests.pop_front() } else { None }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("waiting", &self.queue().requests.len()).finish()
    }
}

struct Waiter {
    directory: PathBuf,
    label: String,
    shared: Arc<Shared>,
}

impl Waiter {
    fn run(self) {
        while let Some(mut request) = self.shared.next() {
            let (done, released) = thread_channel::sync_channel(1);
            let answer = match self.lock_all(&mut request) {
                Ok(Some(files)) => self.hold(files, done),
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            // An answer that nobody takes is dropped here or in the channel, and dropping it releases.
            let _ = request.events.blocking_send(Event::Answer(answer));
            let _ = released.recv();
        }
    }

    /// Locks all files of a request, in order; `None` when nobody wants them any more.
    ///
    /// Whoever gave up while we waited may have been followed by a request for the same devices: that one takes
    /// its place, and with it the place in the kernel's queue.
    fn lock_all(&self, request: &mut Request) -> Result<Option<Vec<LockFile>>, LockError> {
        for _ in 0..MAX_RESTARTS {
            let mut files: Vec<LockFile> = Vec::new();
            for (device, mode) in request.plan.clone().values() {
                let file = LockFile::open(&self.directory, device, *mode)?;
                if !file.try_lock()? {
                    request.blocked_by(file.holder(), file.mark_waiting()?);
                    file.lock()?;
                    drop(Unmark(Arc::clone(&request.mark)));
                }
                while !request.is_wanted() {
                    match self.shared.next_alike(&request.plan) {
                        Some(alike) => *request = alike,
                        None => return Ok(None),
                    }
                }
                files.push(file);
            }
            // Only now: the directory may have been wiped while we waited for the last one.
            if files.iter().all(LockFile::is_in_place) {
                return Ok(Some(files));
            }
        }
        Err(LockError::Unstable(self.directory.clone()))
    }

    fn hold(
        &self,
        mut files: Vec<LockFile>,
        done: thread_channel::SyncSender<()>,
    ) -> Result<Held, LockError> {
        files.extend(LockFile::parts(&self.directory, &files)?);
        let mut left = LeftBehind::default();
        for file in &files {
            file.left_behind(&mut left)?;
        }
        left.records.sort_by(|a, b| (&a.attempt, &a.endpoint).cmp(&(&b.attempt, &b.endpoint)));
        left.records.dedup();
        let state = HeldState { left, ..HeldState::default() };
        let held = Held {
            files,
            state: Mutex::new(state),
            directory: self.directory.clone(),
            label: self.label.clone(),
            _done: done,
        };
        held.write(&held.state())?;
        Ok(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_beyond_the_bound_are_refused_and_those_given_up_make_room() {
        let shared = Shared::default();
        let mut answers = Vec::new();
        let mut push = || {
            let (events, answer) = mpsc::channel(4);
            answers.push(answer);
            shared.push(Request { plan: Plan::new(), events, mark: Mark::default() })
        };
        for _ in 0..MAX_REQUESTS {
            push().unwrap();
        }
        assert!(matches!(push(), Err(LockError::TooManyWait)));
        answers.truncate(1);
        let (events, _answer) = mpsc::channel(4);
        shared.push(Request { plan: Plan::new(), events, mark: Mark::default() }).unwrap();
        assert_eq!(shared.queue().requests.len(), 2);
    }
}
