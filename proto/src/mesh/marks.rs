//! How far the numbers of every agent have gone, on disk: what was said once is not news again after a restart.
//!
//! The ledger holds the highest number of each agent that it has heard; this file outlives it. It is replaced whole,
//! at most once a minute and at the end, never for one message: a crash costs the marks of its last minute, so what
//! can then be said again is at most that old. A file that cannot be read costs the marks and nothing else. Whoever is
//! its own messenger is heard under any number (`gossip.rs`), so an agent that was set back to an older disk is not
//! silenced by what others remember.
//!
//! Several commands of one user may share the file: each adds to what it finds there. Two that write in the same moment
//! may lose marks of the other's.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::task::{JoinHandle, spawn_blocking};

use super::gossip::MEMBERS;
use crate::{id::AgentId, system};

/// Between two replacements of the file: a sync a minute is nothing to a disk, and a minute of old announcements
/// nothing to a mesh.
const EVERY: Duration = Duration::from_secs(60);

/// What the file begins with: another version is not read.
const HEADER: &str = "tropa-marks 1";

/// Bytes of the file: 64 digits and a number of at most 20 for each member.
const MAX_FILE: u64 = 128 << 10;

/// How far one agent's numbers have gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) seq: u64,
    /// The agent was heard in this life, so this is the latest and not only the highest.
    pub(super) heard: bool,
}

/// The file of marks, or none.
#[derive(Debug)]
pub(super) struct Marks {
    path: Option<PathBuf>,
    due: Instant,
    writing: Option<JoinHandle<()>>,
}

impl Marks {
    /// Takes the place of the file, and gives what is in it.
    pub(super) fn open(path: Option<PathBuf>, now: Instant) -> (Self, BTreeMap<AgentId, u64>) {
        let found = path.as_deref().map_or_else(BTreeMap::new, |path| {
            read(path).unwrap_or_else(|error| {
                tracing::warn!(%error, path = %path.display(), "what was said before this start is not known");
                BTreeMap::new()
            })
        });
        (Self { path, due: now + EVERY, writing: None }, found)
    }

    pub(super) fn are_due(&self, now: Instant) -> bool {
        self.path.is_some() && now >= self.due && self.writing.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Replaces the file, beside the loop.
    pub(super) fn save(&mut self, marks: BTreeMap<AgentId, Mark>, now: Instant) {
        self.due = now + EVERY;
        if let Some(path) = self.path.clone() {
            self.writing = Some(spawn_blocking(move || save(&path, marks)));
        }
    }

    /// Waits until the last write has ended.
    pub(super) async fn finish(&mut self) {
        if let Some(writing) = self.writing.take() {
            // It does not panic, and where the runtime ends it has said all it could.
            let _ = writing.await;
        }
    }
}

fn save(path: &Path, marks: BTreeMap<AgentId, Mark>) {
    let known = read(path).unwrap_or_default();
    if let Err(error) = replace(path, &text(&merged(marks, known))) {
        tracing::warn!(%error, path = %path.display(), "what was said until now may be said again after a restart");
    }
}

/// Puts the marks of this life beside those of the file; where there are too many, those of the file give way.
fn merged(marks: BTreeMap<AgentId, Mark>, known: BTreeMap<AgentId, u64>) -> BTreeMap<AgentId, u64> {
    let mut all: BTreeMap<AgentId, u64> = marks
        .iter()
        .map(|(agent, mark)| {
            let before = known.get(agent).copied().unwrap_or(0);
            (*agent, if mark.heard { mark.seq } else { mark.seq.max(before) })
        })
        .collect();
    for (agent, seq) in known {
        if all.len() >= MEMBERS {
            break;
        }
        all.entry(agent).or_insert(seq);
    }
    all
}

fn text(marks: &BTreeMap<AgentId, u64>) -> String {
    let lines = marks.iter().map(|(agent, seq)| format!("{agent} {seq}\n"));
    std::iter::once(format!("{HEADER}\n")).chain(lines).collect()
}

/// Reads the file; no file is no marks.
fn read(path: &Path) -> io::Result<BTreeMap<AgentId, u64>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let damaged = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(damaged("not a small regular file"));
    }
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text)?;
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        return Err(damaged("not a file of marks of this version"));
    }
    let mark = |line: &str| {
        let (agent, seq) = line.split_once(' ')?;
        Some((agent.parse().ok()?, seq.parse().ok()?))
    };
    let marks: Option<BTreeMap<_, _>> = lines.map(mark).collect();
    let marks = marks.ok_or_else(|| damaged("a line is no mark"))?;
    if marks.len() > MEMBERS { Err(damaged("more marks than a mesh has members")) } else { Ok(marks) }
}

/// Puts the file in place whole: written beside under a name of this process, synced, and renamed.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        system::directories(0o700).recursive(true).create(directory)?;
    }
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    // What a process of the same number left half-way.
    let _ = fs::remove_file(&beside);
    let created = system::files(0o600).write(true).create_new(true).open(&beside);
    let written = created.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(number: u16) -> AgentId {
        let mut id = [7; 32];
        id[..2].copy_from_slice(&number.to_be_bytes());
        AgentId(id)
    }

    fn heard(seq: u64) -> Mark {
        Mark { seq, heard: true }
    }

    #[test]
    fn what_was_saved_is_there_after_a_restart_and_for_nobody_else_to_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/marks");
        assert_eq!(read(&path).unwrap(), BTreeMap::new());
        save(&path, [(agent(1), heard(5)), (agent(2), heard(u64::MAX))].into());
        assert_eq!(read(&path).unwrap(), [(agent(1), 5), (agent(2), u64::MAX)].into());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        }
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn another_life_adds_to_the_file_and_the_latest_number_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("marks");
        save(&path, [(agent(1), heard(50)), (agent(2), heard(9)), (agent(3), heard(1))].into());
        // The first was set back and heard again, of the second this life knows only an older mark.
        save(&path, [(agent(1), heard(5)), (agent(2), Mark { seq: 4, heard: false })].into());
        assert_eq!(read(&path).unwrap(), [(agent(1), 5), (agent(2), 9), (agent(3), 1)].into());
    }

    #[test]
    fn a_mark_for_every_member_fits_and_those_of_the_file_give_way() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("marks");
        let members = u16::try_from(MEMBERS).unwrap();
        save(&path, (0..members).map(|number| (agent(number), heard(u64::MAX))).collect());
        assert!(fs::metadata(&path).unwrap().len() <= MAX_FILE);
        assert_eq!(read(&path).unwrap().len(), MEMBERS);
        save(&path, (0..2).map(|number| (agent(members + number), heard(1))).collect());
        let all = read(&path).unwrap();
        assert_eq!((all.len(), all.get(&agent(members))), (MEMBERS, Some(&1)));
    }

    #[test]
    fn a_file_that_is_none_of_ours_is_refused_by_name_and_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("marks");
        let line = format!("{} 1\n", agent(1));
        for text in [
            String::new(),
            "tropa-marks 2\n".to_owned(),
            format!("{HEADER}\n{line}x\n"),
            format!("{HEADER}\n{line}{} -1\n", agent(2)),
            line.repeat(3000),
        ] {
            fs::write(&path, &text).unwrap();
            assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::InvalidData, "{text}");
            save(&path, [(agent(3), heard(1))].into());
            assert_eq!(read(&path).unwrap(), [(agent(3), 1)].into());
        }
    }
}
