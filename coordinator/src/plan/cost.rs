//! How long a job will take at most, and what has to be loaded first: from what earlier jobs have measured, or not at
//! all.

use std::time::Duration;

use serde::Serialize;
use tropa_proto::roster::{Install, View};

use super::{Pinned, Plan, find, installs};
use crate::{report::duration, schedule::Pace, speeds::Speeds, terminal::escaped, words::count};

/// What a job asks in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its chunks.
    pub chunks: u64,
    /// How many of them must run one after the other at least.
    pub depth: u64,
    /// Estimated tokens of all prompts together.
    pub prompt_tokens: u64,
    /// Tokens of all answers together, at most.
    pub output_tokens: u64,
}

/// What a plan says of loads and time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// The installs at work that must load a model before they begin, by their agents' names for people.
    pub cold: Vec<String>,
    /// Seconds that the job takes at most, every answer as long as it may be; absent where no speed is known.
    pub seconds_at_most: Option<f64>,
    /// How many of the installs at work have a speed that is known; the others are left out of the time.
    pub speeds_known: usize,
}

/// One install at work, as earlier jobs saw it.
struct Known {
    /// Seconds for a chunk of the mean size.
    chunk_s: f64,
    width: f64,
    load_s: f64,
}

impl Plan {
    /// Adds what the job costs on the installs at work, by the speeds of earlier jobs.
    pub fn estimate(&mut self, view: &View, models: &[Pinned], speeds: &Speeds, asked: Asked) {
        let usable = installs(view, models);
        let at_work = super::at_work(&usable);
        let mut cost = Cost::default();
        let mut known = Vec::new();
        for install in usable.iter().filter(|i| at_work.contains(&i.agent) && !i.models.is_empty()) {
            let Some(seen) = view.installs.iter().find(|seen| seen.agent == install.agent) else { continue };
            let cold = install.warm.len() < install.models.len();
            if cold {
                cost.cold.push(seen.label.clone());
            }
            known.extend(Known::of(seen, models, speeds, asked, cold));
        }
        cost.speeds_known = known.len();
        cost.seconds_at_most = seconds(&known, asked);
        self.cost = cost;
    }

    /// Says what it costs, in one line for loads and one for the time.
    pub(super) fn cost_text(&self) -> String {
        let Cost { cold, seconds_at_most, speeds_known: known } = &self.cost;
        let cold: Vec<String> = cold.iter().map(|label| escaped(label).to_string()).collect();
        let loads = match cold.as_slice() {
            [] => String::new(),
            cold => format!("loads a model first: {}\n", cold.join(", ")),
        };
        let time = match seconds_at_most {
            Some(seconds) => format!(
                "at most about {} if every answer is as long as it may be, by the speeds that earlier jobs measured on \
                 {}\n",
                duration(Duration::try_from_secs_f64(*seconds).unwrap_or(Duration::MAX)),
                count(*known, "install")
            ),
            None if self.at_once == 0 => String::new(),
            None => "time: not known, since no job has run here with this model\n".to_owned(),
        };
        format!("{loads}{time}")
    }
}

impl Known {
    /// The mean over the job's models of which the install's speed is known; `None` where it is of none.
    fn of(install: &Install, models: &[Pinned], speeds: &Speeds, asked: Asked, cold: bool) -> Option<Self> {
        let lane = install.lane.to_string();
        let having = models.iter().filter(|pinned| find(install, pinned).is_some());
        let known: Vec<_> =
            having.filter_map(|pinned| speeds.get(install.agent, &lane, pinned.fingerprint)).collect();
        let mean = |of: fn(&Pace) -> f64| {
            known.iter().map(|speed| of(&speed.pace)).sum::<f64>() / known.len().max(1) as f64
        };
        let found = known.iter().filter_map(|speed| speed.width_at(install.engine));
        let found = found.map(|width| width.at_once).min();
        let width = if install.width > 0 { install.width } else { found.unwrap_or(1) };
        let chunks = asked.chunks.max(1) as f64;
        let (prompt, output) = (asked.prompt_tokens as f64 / chunks, asked.output_tokens as f64 / chunks);
        let seconds = known.iter().map(|speed| speed.pace.seconds((prompt, output)));
        let chunk_s = seconds.sum::<f64>() / known.len().max(1) as f64;
        let load_s = if cold { mean(|pace| pace.load_s) } else { 0.0 };
        (!known.is_empty()).then_some(Self { chunk_s, width: f64::from(width), load_s })
    }
}

/// All chunks by all speeds, no less than the longest chain of them on the fastest, behind the longest load.
fn seconds(known: &[Known], asked: Asked) -> Option<f64> {
    let rate: f64 = known.iter().map(|one| one.width / one.chunk_s.max(1e-6)).sum();
    let fastest = known.iter().map(|one| one.chunk_s).reduce(f64::min)?;
    let load = known.iter().map(|one| one.load_s).fold(0.0, f64::max);
    Some(load + (asked.chunks as f64 / rate).max(asked.depth as f64 * fastest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(chunks: u64, depth: u64) -> Asked {
        Asked { chunks, depth, prompt_tokens: 0, output_tokens: 0 }
    }

    #[test]
    fn the_time_is_that_of_all_together_and_never_less_than_the_longest_chain() {
        let one = |chunk_s, width| Known { chunk_s, width, load_s: 0.0 };
        assert_eq!(seconds(&[], asked(10, 1)), None);
        assert_eq!(seconds(&[one(2.0, 1.0)], asked(10, 1)), Some(20.0));
        assert_eq!(seconds(&[one(2.0, 1.0), one(4.0, 2.0)], asked(10, 1)), Some(10.0));
        assert_eq!(seconds(&[one(2.0, 1.0), one(4.0, 2.0)], asked(10, 8)), Some(16.0));
        let cold = Known { load_s: 5.0, ..one(2.0, 1.0) };
        assert_eq!(seconds(&[cold], asked(10, 1)), Some(25.0));
    }
}
