//! Devices as the double knows them: names that several doubles share and on which they slow each other down.
//!
//! With `n` attempts of `i` installs active on a device, everything takes `n × penalty(i)` times as long as
//! alone. For installs with one attempt each that is the rule of the measured profiles; two attempts of one
//! install share its engine and pay no penalty, so their sum is as fast as one after the other. The factor is
//! read anew at every token.
//!
//! In one process a [`Device`] is a shared object: clone it into each double. Between processes a device has a
//! directory: one small file per active attempt, held under a kernel lock, so that a killed process frees its
//! place; the same directory holds the time line of [`Witness`](super::Witness).

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::time::Instant;

use super::clock;
use super::witness::{Event, Journal};

/// Spans that a device remembers. A test that asks for the time line has hundreds; a benchmark has millions and
/// does not ask.
const MAX_SPANS: usize = 65_536;

/// What the name of an active attempt's file ends in.
const ACTIVE: &str = "active";

/// How much several installs on one device lose; each value is one measured on two cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Two cores, two threads in each install: penalty 2.4.
    Oversubscribed,
    /// One core: penalty 1.07.
    TimeSliced,
    /// Penalty 1: for arithmetic in tests.
    Fair,
}

impl Profile {
    /// How many times longer the same work takes on `installs` installs at once than on one.
    ///
    /// Measured for two; beyond that `1 + (penalty(2) − 1) × (installs − 1)`, an assumption.
    pub fn penalty(self, installs: usize) -> f64 {
        let two = match self {
            Self::Oversubscribed => 2.4,
            Self::TimeSliced => 1.07,
            Self::Fair => 1.0,
        };
        1.0 + (two - 1.0) * installs.saturating_sub(1) as f64
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "oversubscribed" => Ok(Self::Oversubscribed),
            "time_sliced" => Ok(Self::TimeSliced),
            "fair" => Ok(Self::Fair),
            _ => Err(format!("unknown profile `{name}`: oversubscribed, time_sliced or fair")),
        }
    }
}

/// A device that doubles work on. Clones are the same device.
#[derive(Debug, Clone)]
pub struct Device(Arc<Shared>);

/// One stay of an attempt (or a load) on a device, on tokio's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The device.
    pub device: String,
    /// The install that worked.
    pub install: String,
    /// When it began.
    pub start: Instant,
    /// When it ended; absent while it goes on.
    pub end: Option<Instant>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    profile: Profile,
    dir: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Attempts by id; the flag says whether the witness counts them.
    active: BTreeMap<u64, (Span, bool)>,
    past: VecDeque<Span>,
    overlap: Duration,
    overlap_since: Option<Instant>,
    collisions: u64,
}

impl Device {
    /// A device that doubles of this process share by cloning it.
    pub fn new(name: impl Into<String>, profile: Profile) -> Self {
        Self(Arc::new(Shared { name: name.into(), profile, dir: None, state: Mutex::default() }))
    }

    /// A device that all processes share which name the same `dir` and the same name.
    ///
    /// # Errors
    ///
    /// Says when the directory could not be made.
    pub fn between_processes(name: impl Into<String>, profile: Profile, dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let dir = Some(dir.to_owned());
        Ok(Self(Arc::new(Shared { name: name.into(), profile, dir, state: Mutex::default() })))
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How long at least two different installs of this process worked here at the same time.
    pub fn overlap(&self) -> Duration {
        let state = self.state();
        state.overlap + state.overlap_since.map_or(Duration::ZERO, |since| clock::now() - since)
    }

    /// How often work of an install began while another install was at work here, however short it was.
    pub fn collisions(&self) -> u64 {
        self.state().collisions
    }

    /// What worked here, oldest first; the oldest are forgotten beyond 65,536.
    pub fn timeline(&self) -> Vec<Span> {
        let state = self.state();
        let mut spans: Vec<Span> = state.past.iter().cloned().collect();
        spans.extend(state.active.values().filter(|(_, seen)| *seen).map(|(span, _)| span.clone()));
        spans.sort_by_key(|span| span.start);
        spans
    }

    /// Begins work of `install`; it ends when the answer is dropped. Work of `foreign` users slows others down
    /// and is not part of the time line: no scheduler of ours is to blame for it.
    pub(crate) fn begin(&self, install: &str, foreign: bool) -> Activity {
        let start = clock::now();
        let span = Span { device: self.0.name.clone(), install: install.to_owned(), start, end: None };
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        if !foreign && state.installs(Some(install)) > 0 {
            state.collisions += 1;
        }
        state.active.insert(id, (span, !foreign));
        state.follow_overlap(start);
        drop(state);
        let place = self.0.dir.as_deref().and_then(|dir| {
            Place::take(dir, &self.0.name, install, foreign)
                .inspect_err(|error| complain(&self.0.name, error))
                .ok()
        });
        Activity { device: self.clone(), id, place }
    }

    /// How many times longer than alone everything takes here now; at least 1.
    pub(crate) fn factor(&self) -> f64 {
        let (attempts, installs) = match &self.0.dir {
            Some(dir) => active_places(dir, &self.0.name),
            None => {
                let state = self.state();
                (state.active.len(), state.all_installs())
            }
        };
        (attempts as f64 * self.0.profile.penalty(installs)).max(1.0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<&str> for Device {
    /// A device that nobody shares.
    fn from(name: &str) -> Self {
        Self::new(name, Profile::Oversubscribed)
    }
}

impl From<&Self> for Device {
    fn from(device: &Self) -> Self {
        device.clone()
    }
}

impl State {
    /// Different installs that the witness counts, without `except`.
    fn installs(&self, except: Option<&str>) -> usize {
        let names = self.active.values().filter(|(_, seen)| *seen).map(|(span, _)| span.install.as_str());
        names.filter(|name| Some(*name) != except).collect::<std::collections::BTreeSet<_>>().len()
    }

    fn all_installs(&self) -> usize {
        let names = self.active.values().map(|(span, _)| span.install.as_str());
        names.collect::<std::collections::BTreeSet<_>>().len()
    }

    fn follow_overlap(&mut self, now: Instant) {
        match (self.installs(None) > 1, self.overlap_since) {
            (true, None) => self.overlap_since = Some(now),
            (false, Some(since)) => {
                self.overlap += now - since;
                self.overlap_since = None;
            }
            (true, Some(_)) | (false, None) => {}
        }
    }
}

/// Work on a device that goes on until this is dropped.
#[derive(Debug)]
pub(crate) struct Activity {
    device: Device,
    id: u64,
    place: Option<Place>,
}

impl Activity {
    pub(crate) fn factor(&mut self) -> f64 {
        if let Some(place) = &mut self.place {
            place.beat();
        }
        self.device.factor()
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.place = None;
        let now = clock::now();
        let mut state = self.device.state();
        if let Some((mut span, seen)) = state.active.remove(&self.id)
            && seen
        {
            span.end = Some(now);
            if state.past.len() == MAX_SPANS {
                state.past.pop_front();
            }
            state.past.push_back(span);
        }
        state.follow_overlap(now);
    }
}

/// An active attempt as other processes see it: a locked file, and its lines in the time line.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    journal: Option<Journal>,
    /// Held for its lock, which the kernel frees when the process dies.
    _lock: File,
}

impl Place {
    /// The file is locked before it gets the name under which others look, so nobody takes it for a dead one.
    fn take(dir: &Path, device: &str, install: &str, foreign: bool) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let unique = format!(
            "{}-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed),
            clock::monotonic_ns()
        );
        let name = format!("{}~{}~{unique}", plain(device), plain(install));
        let fresh = dir.join(format!(".{name}"));
        let lock = File::create_new(&fresh)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let path = dir.join(format!("{name}.{ACTIVE}"));
        // The line comes before the place, and its end after: the witness sees all of the work.
        let journal = (!foreign).then(|| Journal::begin(dir, device, install, &unique)).transpose()?;
        fs::rename(&fresh, &path)?;
        Ok(Self { path, journal, _lock: lock })
    }

    fn beat(&mut self) {
        if let Some(journal) = &mut self.journal {
            journal.beat();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        if let Some(journal) = &self.journal {
            journal.write(Event::End);
        }
    }
}

/// Attempts and different installs on `device` in `dir`, among living processes; files of dead ones are removed.
fn active_places(dir: &Path, device: &str) -> (usize, usize) {
    let wanted = format!("{}~", plain(device));
    let mut installs = std::collections::BTreeSet::new();
    let mut attempts = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Some(rest) = name.strip_prefix(&wanted).filter(|rest| rest.ends_with(ACTIVE)) else { continue };
        let Ok(file) = File::open(entry.path()) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            let _ = fs::remove_file(entry.path());
            continue;
        }
        attempts += 1;
        installs.insert(rest.split('~').next().unwrap_or_default().to_owned());
    }
    (attempts, installs.len())
}

/// A name as part of a file name.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || ".:#-_".contains(c) { c } else { '_' }).collect()
}

/// A place that could not be taken is said on standard error: the run goes on, but its witness is incomplete.
#[expect(clippy::print_stderr, reason = "a double has no log; a blind witness must not pass unseen")]
fn complain(device: &str, error: &io::Error) {
    eprintln!("ollama-double: mark work on device `{device}`: {error}");
}
