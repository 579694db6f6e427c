//! How fast installs have turned out to be, kept from job to job.
//!
//! One entry for each agent, its devices and each model that ran there: another GPU or another model is another
//! speed. The file may be lost at no cost but that the next job learns again; one that cannot be read is set aside.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tropa_proto::{
    id::{AgentId, EngineRun, hex, unhex},
    message::{Fingerprint, MAX_MEASURED_WIDTH},
    system,
};

use crate::schedule::{Pace, Width};

/// The version of the file.
const SCHEMA: &str = "tropa.speeds/1";

/// Entries that are kept: a thousand installs with four models each. Beyond it the oldest go.
const MAX_ENTRIES: usize = 4096;

/// A larger file is not ours: that many entries take less than half of it.
const MAX_FILE: u64 = 4 << 20;

/// What is known from earlier jobs.
#[derive(Debug, Default)]
pub struct Speeds {
    path: PathBuf,
    entries: BTreeMap<Key, Speed>,
}

/// An agent, its lane as text, and a model.
type Key = (AgentId, String, Fingerprint);

/// One speed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// The speed.
    pub pace: Pace,
    /// How many chunks at once are worth it, and the process of Ollama for which that holds.
    width: Option<(Width, EngineRun)>,
    /// When it was last measured, in milliseconds of the wall clock: only to forget the oldest.
    pub at_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct File {
    schema: String,
    speeds: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    agent: String,
    lane: String,
    model: String,
    prompt_s: f64,
    decode_s: f64,
    overhead_s: f64,
    chunk_s: f64,
    load_s: f64,
    samples: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    width: Option<RowWidth>,
    at_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct RowWidth {
    at_once: u16,
    serialises: bool,
    /// 0, as where it is missing: it holds for no process.
    #[serde(default)]
    engine: u32,
}

impl Speed {
    /// A speed that was measured now, and the width that was found for this process of Ollama.
    #[must_use]
    pub fn new(pace: Pace, width: Option<Width>, engine: EngineRun, at_ms: u64) -> Self {
        Self { pace, width: width.map(|width| (width, engine)), at_ms }
    }

    /// The width that was found, if it holds for this process of Ollama.
    #[must_use]
    pub fn width_at(&self, engine: EngineRun) -> Option<Width> {
        self.width.filter(|(_, of)| of.is_same(engine)).map(|(width, _)| width)
    }
}

impl Speeds {
    /// Reads the file `speeds` of the state directory, or starts with nothing. Where the file cannot be read it is
    /// renamed to `speeds.damaged`, and the text says so.
    #[must_use]
    pub fn open(state: &Path) -> (Self, Option<String>) {
        let path = state.join("speeds");
        let empty = |path| Self { path, entries: BTreeMap::new() };
        match read(&path) {
            Ok(entries) => (Self { path, entries }, None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (empty(path), None),
            Err(error) => {
                let aside = path.with_extension("damaged");
                // Where it cannot be moved either, the next save replaces it.
                let _ = fs::rename(&path, &aside);
                let text = format!(
                    "what earlier jobs learned of speeds cannot be read ({error}); it is set aside as {} and learned \
                     again",
                    aside.display()
                );
                (empty(path), Some(text))
            }
        }
    }

    /// What is known of an install with a model.
    #[must_use]
    pub fn get(&self, agent: AgentId, lane: &str, model: Fingerprint) -> Option<&Speed> {
        self.entries.get(&(agent, lane.to_owned(), model))
    }

    /// Keeps what a job has learned, in memory.
    pub fn learn(&mut self, agent: AgentId, lane: &str, model: Fingerprint, speed: Speed) {
        self.entries.insert((agent, lane.to_owned(), model), speed);
    }

    /// Writes the file, for this user only: what another job has written meanwhile stays where it is newer.
    ///
    /// # Errors
    /// When it cannot be written; the old one is then as it was.
    pub fn save(&mut self) -> io::Result<()> {
        for (key, theirs) in read(&self.path).unwrap_or_default() {
            let ours = self.entries.entry(key).or_insert(theirs);
            if theirs.at_ms > ours.at_ms {
                *ours = theirs;
            }
        }
        while self.entries.len() > MAX_ENTRIES {
            let oldest = self.entries.iter().min_by_key(|(_, speed)| speed.at_ms).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.entries.remove(&oldest);
            }
        }
        let speeds = self.entries.iter().map(|(key, speed)| Row::of(key, speed)).collect();
        let text = serde_json::to_vec(&File { schema: SCHEMA.to_owned(), speeds })?;
        let temporary = self.path.with_extension(format!("new.{}", std::process::id()));
        let mut file = system::files(0o600).write(true).create(true).truncate(true).open(&temporary)?;
        file.write_all(&text)?;
        fs::rename(&temporary, &self.path)
    }
}

fn read(path: &Path) -> io::Result<BTreeMap<Key, Speed>> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if fs::metadata(path)?.len() > MAX_FILE {
        return Err(wrong("it is too large"));
    }
    let file: File = serde_json::from_slice(&fs::read(path)?)?;
    if file.schema != SCHEMA {
        return Err(wrong("it is of another version"));
    }
    let rows = file.speeds.into_iter().take(MAX_ENTRIES);
    rows.map(|row| row.entry().ok_or_else(|| wrong("an entry makes no sense"))).collect()
}

impl Row {
    fn of((agent, lane, model): &Key, speed: &Speed) -> Self {
        let Pace { prompt_s, decode_s, overhead_s, chunk_s, load_s, samples } = speed.pace;
        let (agent, lane, model) = (agent.to_string(), lane.clone(), hex(model));
        let width = speed.width.map(|(width, EngineRun(engine))| RowWidth {
            at_once: width.at_once,
            serialises: width.serialises,
            engine,
        });
        Self {
            agent,
            lane,
            model,
            prompt_s,
            decode_s,
            overhead_s,
            chunk_s,
            load_s,
            samples,
            width,
            at_ms: speed.at_ms,
        }
    }

    /// `None` where an id is none or a number is not a time.
    fn entry(self) -> Option<(Key, Speed)> {
        let times = [self.prompt_s, self.decode_s, self.overhead_s, self.chunk_s, self.load_s];
        // A day for a token or a chunk is no speed.
        let sound = times.iter().all(|time| (0.0..86_400.0).contains(time)) && self.samples > 0;
        let width = self.width.map(|RowWidth { at_once, serialises, engine }| {
            (Width { at_once: at_once.clamp(1, MAX_MEASURED_WIDTH), serialises }, EngineRun(engine))
        });
        let [prompt_s, decode_s, overhead_s, chunk_s, load_s] = times;
        let pace = Pace { prompt_s, decode_s, overhead_s, chunk_s, load_s, samples: self.samples };
        let key = (AgentId(unhex(&self.agent)?), self.lane, unhex(&self.model)?);
        sound.then_some((key, Speed { pace, width, at_ms: self.at_ms }))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn speed(decode_s: f64, at_ms: u64) -> Speed {
        let width = Some(Width { at_once: 4, serialises: false });
        Speed::new(Pace { decode_s, samples: 1, ..Pace::default() }, width, EngineRun(7), at_ms)
    }

    #[test]
    fn a_width_holds_for_the_process_that_it_was_found_for_and_for_no_other() {
        let width = Some(Width { at_once: 1, serialises: true });
        let at = |engine| Speed::new(Pace::default(), width, EngineRun(engine), 1);
        assert_eq!(at(7).width_at(EngineRun(7)), width);
        assert_eq!(at(7).width_at(EngineRun(8)), None);
        assert_eq!(at(0).width_at(EngineRun::UNKNOWN), None, "two that nobody knows are not one");
    }

    #[test]
    fn what_two_jobs_learned_is_there_for_the_third_and_the_newer_wins() {
        let dir = tempfile::tempdir().unwrap();
        let (mut first, none) = Speeds::open(dir.path());
        assert_eq!(none, None);
        let (mut second, _) = Speeds::open(dir.path());
        first.learn(AgentId([1; 32]), "gpu:1", [7; 32], speed(0.5, 10));
        first.learn(AgentId([2; 32]), "dram", [7; 32], speed(0.1, 30));
        first.save().unwrap();
        second.learn(AgentId([1; 32]), "gpu:1", [7; 32], speed(0.25, 20));
        second.learn(AgentId([2; 32]), "dram", [7; 32], speed(9.0, 20));
        second.save().unwrap();
        let (third, _) = Speeds::open(dir.path());
        assert_eq!(third.get(AgentId([1; 32]), "gpu:1", [7; 32]), Some(&speed(0.25, 20)));
        assert_eq!(third.get(AgentId([2; 32]), "dram", [7; 32]), Some(&speed(0.1, 30)));
        assert_eq!(third.get(AgentId([1; 32]), "dram", [7; 32]), None, "another device, another speed");
        let mode = fs::metadata(dir.path().join("speeds")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_makes_no_sense_is_set_aside_and_costs_nothing() {
        let row = |decode: &str| {
            format!(
                r#"{{"schema":"{SCHEMA}","speeds":[{{"agent":"{0}","lane":"dram","model":"{0}","prompt_s":0,
                "decode_s":{decode},"overhead_s":0,"chunk_s":0,"load_s":0,"samples":1,"at_ms":1}}]}}"#,
                "01".repeat(32)
            )
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("speeds");
        fs::write(&path, row("0.5")).unwrap();
        assert!(Speeds::open(dir.path()).1.is_none());
        for bad in [
            row("-1"),
            row("1e300"),
            "{".to_owned(),
            "\u{0}".repeat(100),
            r#"{"schema":"x","speeds":[]}"#.into(),
        ] {
            fs::write(&path, &bad).unwrap();
            let (speeds, said) = Speeds::open(dir.path());
            assert!(said.is_some_and(|said| said.contains("set aside")), "{bad}");
            assert!(speeds.entries.is_empty());
            assert_eq!(fs::read_to_string(dir.path().join("speeds.damaged")).unwrap(), bad);
            assert!(!path.exists());
        }
    }
}
