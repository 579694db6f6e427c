//! What the programs of a rig did, from their event lines, and the figures of a row.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use tropa_tests::ollama_double::Witness;

/// One event line.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// On the monotonic clock, which all processes share.
    pub(crate) at: Duration,
    /// The program's process: for what agents write, the lane.
    pub(crate) process: u32,
    pub(crate) kind: String,
    pub(crate) job: String,
    pub(crate) chunk: u32,
    pub(crate) no: u32,
    pub(crate) more: String,
}

/// All of them, in order of time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book(pub(crate) Vec<Line>);

/// What a row of the catalogue measures.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    /// From the fault until it was noticed.
    pub(crate) noticed: Option<Duration>,
    /// From the fault until the work went on elsewhere, or normally.
    pub(crate) recovered: Option<Duration>,
    pub(crate) lost: usize,
    pub(crate) doubled: usize,
    pub(crate) again: usize,
    pub(crate) backups: usize,
    pub(crate) overlap: Duration,
}

/// Now, on the clock of the event lines.
pub(crate) fn now() -> Duration {
    let at = clock_gettime(ClockId::Monotonic);
    Duration::new(at.tv_sec.unsigned_abs(), u32::try_from(at.tv_nsec).unwrap_or(0))
}

impl Book {
    pub(crate) fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut lines: Vec<Line> = whole.lines().filter_map(line).collect();
        lines.sort_by_key(|line| line.at);
        Self(lines)
    }

    pub(crate) fn of(&self, kind: &str) -> impl Iterator<Item = &Line> {
        self.0.iter().filter(move |line| line.kind == kind)
    }

    /// The first of a kind after a moment for which something holds, as the time since then.
    pub(crate) fn after(
        &self,
        since: Duration,
        kind: &str,
        holds: impl Fn(&Line) -> bool,
    ) -> Option<Duration> {
        self.of(kind).find(|line| line.at >= since && holds(line)).map(|line| line.at - since)
    }

    /// What was done for one job.
    pub(crate) fn of_job(self, job: &str) -> Self {
        Self(self.0.into_iter().filter(|line| line.job == job).collect())
    }

    /// The attempts that were at an engine at a moment, with the process of their agent.
    pub(crate) fn open_at(&self, moment: Duration) -> Vec<((u32, u32), u32)> {
        let open = self.of("exec_start").filter(|start| {
            let ended = self.of("exec_end").any(|end| end.is_of(start) && end.at <= moment);
            start.at <= moment && !ended
        });
        open.map(|line| ((line.chunk, line.no), line.process)).collect()
    }

    /// How many chunks are committed.
    pub(crate) fn commits(&self) -> usize {
        self.of("commit").count()
    }

    /// The figures of a job of so many chunks, for the devices named.
    pub(crate) fn figures(&self, chunks: u32, witness: &Witness, devices: &[&str]) -> Figures {
        let mut commits: BTreeMap<u32, usize> = BTreeMap::new();
        for line in self.of("commit") {
            *commits.entry(line.chunk).or_default() += 1;
        }
        let starts: BTreeSet<(u32, u32)> = self.of("exec_start").map(|line| (line.chunk, line.no)).collect();
        let twice = self.of("exec_start").count() - starts.len();
        assert_eq!(twice, 0, "no attempt is executed twice");
        // A backup attempt and the one that it overtook are one execution more on purpose, and not a repetition. A job
        // that is over says no more of the overtaken one.
        let said = |kind: &str, more: Option<&str>| -> BTreeSet<(u32, u32)> {
            let lines = self.of(kind).filter(|line| more.is_none_or(|more| line.more == more));
            lines.map(|line| (line.chunk, line.no)).collect()
        };
        let closed = &said("ended", None) | &said("commit", None);
        let silent = starts.iter().filter(|start| !closed.contains(start) && commits.contains_key(&start.0));
        let overtaken = &said("ended", Some("superseded")) | &silent.copied().collect();
        let (backups, starts): (BTreeSet<_>, BTreeSet<_>) =
            starts.into_iter().partition(|attempt| overtaken.contains(attempt));
        let tried: BTreeSet<u32> = starts.iter().map(|(chunk, _)| *chunk).collect();
        Figures {
            noticed: None,
            recovered: None,
            lost: (0..chunks).filter(|chunk| !commits.contains_key(chunk)).count(),
            doubled: commits.values().filter(|count| **count > 1).count(),
            again: starts.len() - tried.len(),
            backups: backups.len(),
            overlap: devices.iter().map(|device| witness.overlap(device)).sum(),
        }
    }
}

impl Line {
    /// Whether both are about one attempt.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        (&self.job, self.chunk, self.no) == (&other.job, other.chunk, other.no)
    }
}

impl Figures {
    /// Prints the row, and holds it against what every row must keep: nothing lost, nothing doubled, no overlap.
    #[expect(clippy::print_stdout, reason = "the figures of the catalogue")]
    pub(crate) fn judge(&self, row: &str) {
        let seconds = |time: Option<Duration>| {
            time.map_or("-".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()))
        };
        println!(
            "{row}: D {}, R {}, L {}, U {}, W {} (and {} backups), O {:.2} s",
            seconds(self.noticed),
            seconds(self.recovered),
            self.lost,
            self.doubled,
            self.again,
            self.backups,
            self.overlap.as_secs_f64(),
        );
        assert_eq!((self.lost, self.doubled), (0, 0), "{row}: lost and doubled");
        assert_eq!(self.overlap, Duration::ZERO, "{row}: two installs worked on one device at once");
    }
}

fn line(text: &str) -> Option<Line> {
    let mut parts = text.splitn(5, ' ');
    let at = Duration::from_micros(parts.next()?.parse().ok()?);
    let process = parts.next()?.parse().ok()?;
    let kind = parts.next()?.to_owned();
    let mut ids = parts.next()?.split('/');
    let job = ids.next()?.to_owned();
    let (chunk, no) = (ids.next()?.parse().ok()?, ids.next()?.parse().ok()?);
    Some(Line { at, process, kind, job, chunk, no, more: parts.next().unwrap_or_default().to_owned() })
}
