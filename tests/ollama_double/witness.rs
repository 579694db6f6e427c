//! The witness between processes. Every double that was given a device directory appends one line to
//! `timeline.jsonl` there when work begins on a device and when it ends, with the time on `CLOCK_MONOTONIC`, which
//! all processes of one kernel share. A test of real binaries reads it from outside and asserts that no two
//! installs worked on one device at one time.
//!
//! A killed double leaves work without an end. Such work counts up to the last line about it (a beat every 50 ms):
//! a lower bound, never more than what happened. [`Witness::unfinished`] says how many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::clock;

/// The file inside the device directory.
const FILE: &str = "timeline.jsonl";

/// How often running work says that it still runs: the error of a killed double's last span. Shorter than any
/// overlap that matters, long enough that the file grows by 20 lines a second.
const BEAT_NS: u64 = 50_000_000;

/// What a line of the time line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Event {
    Start,
    Beat,
    End,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Line {
    at: u64,
    event: Event,
    device: String,
    install: String,
    work: String,
}

/// One piece of work on one device, seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// The device.
    pub device: String,
    /// The install.
    pub install: String,
    /// Nanoseconds on `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// Nanoseconds on `CLOCK_MONOTONIC`: the end, or the last sign of life where there is none.
    pub end_ns: u64,
    /// Whether its end was written.
    pub ended: bool,
}

/// The time line of a device directory as it was when it was read.
#[derive(Debug, Clone, Default)]
pub struct Witness {
    work: Vec<Work>,
}

impl Witness {
    /// Reads `dir`; a directory in which nothing worked yet is an empty time line.
    ///
    /// # Errors
    ///
    /// Says when the file cannot be read or has a line that no double wrote; a last line without its end is one
    /// that is just being written and is left out.
    pub fn read(dir: &Path) -> io::Result<Self> {
        let text = match std::fs::read_to_string(dir.join(FILE)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut work: BTreeMap<String, Work> = BTreeMap::new();
        for line in whole.lines() {
            let line: Line = serde_json::from_str(line)?;
            let entry = work.entry(line.work).or_insert_with(|| Work {
                device: line.device,
                install: line.install,
                start_ns: line.at,
                end_ns: line.at,
                ended: false,
            });
            entry.end_ns = entry.end_ns.max(line.at);
            entry.ended |= line.event == Event::End;
        }
        let mut work: Vec<Work> = work.into_values().collect();
        work.sort_by(|a, b| (a.start_ns, &a.install).cmp(&(b.start_ns, &b.install)));
        Ok(Self { work })
    }

    /// All work, by start.
    pub fn timeline(&self) -> &[Work] {
        &self.work
    }

    /// The installs that worked on `device`.
    pub fn installs(&self, device: &str) -> BTreeSet<String> {
        self.on(device).map(|work| work.install.clone()).collect()
    }

    /// Pieces of work without an end: still running, or their double was killed.
    pub fn unfinished(&self) -> usize {
        self.work.iter().filter(|work| !work.ended).count()
    }

    /// How long at least two different installs worked on `device` at the same time.
    pub fn overlap(&self, device: &str) -> Duration {
        Duration::from_nanos(together(self.on(device), |work| work.install.as_str()))
    }

    /// How long at least two different devices were at work at the same time: what running in parallel gained.
    pub fn parallel(&self) -> Duration {
        Duration::from_nanos(together(self.work.iter(), |work| work.device.as_str()))
    }

    /// The most different installs that were ever at work at the same time, on whatever devices.
    pub fn at_once(&self) -> usize {
        let mut most = 0;
        sweep(self.work.iter(), |work| work.install.as_str(), |names, _| most = most.max(names));
        most
    }

    /// Writes work into the time line of `dir` for an install that writes none; it ends when this is dropped. `work`
    /// is its name, once in this time line for one device.
    ///
    /// # Errors
    /// When the line cannot be written.
    pub fn begin(dir: &Path, device: &str, install: &str, work: &str) -> io::Result<Noted> {
        std::fs::create_dir_all(dir)?;
        Ok(Noted(Journal::begin(dir, device, install, work)?))
    }

    fn on<'a>(&'a self, device: &'a str) -> impl Iterator<Item = &'a Work> {
        self.work.iter().filter(move |work| work.device == device)
    }
}

/// Work that was noted by somebody else than a double; dropping it is its end.
#[derive(Debug)]
pub struct Noted(Journal);

impl Drop for Noted {
    fn drop(&mut self) {
        self.0.write(Event::End);
    }
}

/// Nanoseconds during which work of at least two different names went on.
fn together<'a>(work: impl Iterator<Item = &'a Work>, name: impl Fn(&'a Work) -> &'a str) -> u64 {
    let mut sum = 0;
    sweep(work, name, |names, time| sum += if names > 1 { time } else { 0 });
    sum
}

/// Goes through the time line and tells, between any two edges, how many different names were at work for how many
/// nanoseconds.
fn sweep<'a>(
    work: impl Iterator<Item = &'a Work>,
    name: impl Fn(&'a Work) -> &'a str,
    mut between: impl FnMut(usize, u64),
) {
    let mut edges: Vec<(u64, bool, &str)> = Vec::new();
    for piece in work {
        edges.push((piece.start_ns, true, name(piece)));
        edges.push((piece.end_ns, false, name(piece)));
    }
    edges.sort_unstable();
    let mut running: BTreeMap<&str, i64> = BTreeMap::new();
    let mut before = 0;
    for (at, start, name) in edges {
        // Two edges at one time have nothing between them.
        if at > before {
            between(running.values().filter(|count| **count > 0).count(), at - before);
        }
        before = at;
        *running.entry(name).or_default() += if start { 1 } else { -1 };
    }
}

/// The writing side: one piece of work on one device.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    device: String,
    install: String,
    work: String,
    last: u64,
}

impl Journal {
    pub(crate) fn begin(dir: &Path, device: &str, install: &str, work: &str) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(dir.join(FILE))?;
        let last = clock::monotonic_ns();
        let work = format!("{device}/{work}");
        let journal = Self { file, device: device.to_owned(), install: install.to_owned(), work, last };
        journal.write(Event::Start);
        Ok(journal)
    }

    pub(crate) fn beat(&mut self) {
        let now = clock::monotonic_ns();
        if now - self.last >= BEAT_NS {
            self.last = now;
            self.write(Event::Beat);
        }
    }

    /// One `write` per line: with `O_APPEND` lines of several processes do not mix.
    pub(crate) fn write(&self, event: Event) {
        let line = Line {
            at: clock::monotonic_ns(),
            event,
            device: self.device.clone(),
            install: self.install.clone(),
            work: self.work.clone(),
        };
        if let Ok(mut bytes) = serde_json::to_vec(&line) {
            bytes.push(b'\n');
            // A full disk loses the line; the work then counts as unfinished, which tests can see.
            let _ = (&self.file).write_all(&bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(install: &str, start_ns: u64, end_ns: u64) -> Work {
        let (device, install) = ("gpu0".to_owned(), install.to_owned());
        Work { device, install, start_ns, end_ns, ended: true }
    }

    #[test]
    fn only_different_installs_overlap_and_touching_is_none() {
        let witness = Witness { work: vec![work("a", 0, 10), work("a", 5, 20), work("b", 20, 30)] };
        assert_eq!(witness.overlap("gpu0"), Duration::ZERO);
        let witness = Witness { work: vec![work("a", 0, 10), work("b", 7, 20), work("c", 8, 12)] };
        assert_eq!(witness.overlap("gpu0"), Duration::from_nanos(5));
        assert_eq!(witness.overlap("gpu1"), Duration::ZERO);
        assert_eq!(witness.at_once(), 3);
        assert_eq!(Witness { work: vec![work("a", 0, 10), work("b", 10, 20)] }.at_once(), 1);
    }
}
