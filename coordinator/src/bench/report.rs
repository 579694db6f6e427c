//! What was measured, and what it comes to: medians, spreads, ratios of the same round, and the aims (pure).
//!
//! A ratio compares two set-ups within one round, so that what changes slowly on the machines falls out; the figure
//! is the median of the rounds, with the interval in which the median lies (`spread.rs`). A set-up in which a prompt
//! was not answered has no figure to compare: it is named with what it took, as *more than* that where it ran into the
//! limit.

use std::fmt::Write as _;

use serde::Serialize;

use crate::{table::Table, terminal::escaped, words::count};

pub use super::spread::Spread;

/// tropa may take so much of the best single use of one install, on one machine.
const AIM_ONE: f64 = 1.02;

/// tropa must reach so much of what independent clients get together, on several machines.
const AIM_MANY: f64 = 0.97;

/// What is measured, in the order in which it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One request after the other on the best install.
    OneAtATime,
    /// So many requests at once on the best install.
    Fixed,
    /// A client for every install, whatever hardware it shares.
    ByAddress,
    /// A client for every install that is distinct hardware.
    Clients,
    /// A job through the mesh.
    Tropa,
}

/// How requests reach an install.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Past the agents.
    Direct,
    /// As a job of which one agent gets all.
    Agent,
    /// As a job.
    Mesh,
}

/// One set-up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SetUp {
    /// What it is called.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// How requests get there.
    pub way: Way,
    /// The installs that may get some, by their place in the report.
    pub installs: Vec<usize>,
    /// Requests that are under way at once, as planned.
    pub at_once: usize,
}

/// One measurement of one set-up.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// The set-up, by its place in the report.
    pub set_up: usize,
    /// The round, from 1.
    pub round: u32,
    /// Wall time of all prompts.
    pub seconds: f64,
    /// Prompts that were answered.
    pub answered: usize,
    /// Tokens of all answers.
    pub output_tokens: u64,
    /// Time that requests were at an install, added up over all, divided by the wall time.
    pub at_once: f64,
    /// Processes that wanted a core here over the last minute, when it began.
    pub load_average: Option<f64>,
    /// The part of the processors' time here, from 0 to 1, that a hypervisor gave to others meanwhile.
    pub stolen: Option<f64>,
    /// Every attempt.
    pub attempts: Vec<Attempt>,
}

/// One attempt. Times count from the beginning of its run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Attempt {
    /// The prompt, from 0.
    pub chunk: usize,
    /// The install, by its place in the report; absent where it came later.
    pub install: Option<usize>,
    /// When it was sent; through the mesh, when the agent said that it began.
    pub start_ms: f64,
    /// When its end was known.
    pub end_ms: f64,
    /// Time at the engine.
    pub busy_ms: f64,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// `done`, or the reason or class of its failure.
    pub outcome: String,
}

/// One install.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Its agent, in its short form.
    pub agent: String,
    /// The agent's name for people.
    pub label: String,
    /// The id of its machine, as `tropa machines` shows it.
    pub machine: String,
    /// The name of its machine for people.
    pub machine_name: String,
    /// The devices that it occupies.
    pub lane: String,
    /// Its Ollama.
    pub version: String,
    /// Chunks that its agent takes at once.
    pub width: usize,
    /// It was reached past its agent.
    pub direct: bool,
}

/// Where it was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Environment {
    /// Of this program.
    pub tropa: &'static str,
    /// With the checks of a debug build, which cost time.
    pub debug_build: bool,
    /// Operating system and architecture of the machine that this command ran on.
    pub system: String,
    /// Its kernel.
    pub kernel: Option<String>,
    /// Its processor.
    pub processor: Option<String>,
    /// Cores that this command may use.
    pub cores: usize,
}

/// Everything that was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The version of this object.
    pub schema: &'static str,
    /// When it began, in milliseconds since 1970.
    pub started_ms: u64,
    /// Where.
    pub environment: Environment,
    /// The models, with their fingerprints.
    pub models: std::collections::BTreeMap<String, String>,
    /// Prompts of every run.
    pub prompts: usize,
    /// Tokens of an answer, at most.
    pub max_tokens: u32,
    /// Context that every request asks for.
    pub num_ctx: u32,
    /// Rounds.
    pub rounds: u32,
    /// The installs that have the models.
    pub installs: Vec<Place>,
    /// Machines among them.
    pub machines: usize,
    /// Installs among them that are distinct hardware, so that many may work at once.
    pub distinct: usize,
    /// What was measured.
    pub set_ups: Vec<SetUp>,
    /// What could not be measured, and why.
    pub not_measured: Vec<String>,
    /// What it comes to, one line a set-up.
    pub figures: Vec<Figure>,
    /// How tropa does against its aims.
    pub aims: Vec<Aim>,
    /// Every measurement, in the order in which it was made.
    pub runs: Vec<Run>,
}

/// What one set-up comes to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// The set-up, by its place in the report.
    pub set_up: usize,
    /// Wall time.
    pub seconds: Spread,
    /// Wall time over that of the best single use of one install, of the same round; absent where either is not
    /// whole.
    pub ratio: Option<Spread>,
    /// Tokens of answers per second.
    pub tokens_per_s: Spread,
    /// Requests at an install at once, on average.
    pub at_once: f64,
    /// Every prompt was answered in every round.
    pub whole: bool,
    /// The baseline of the ratios.
    pub baseline: bool,
}

/// An aim and what was reached.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Aim {
    /// In words.
    pub what: String,
    /// The aim.
    pub aim: f64,
    /// What was reached, round by round.
    pub reached: Spread,
    /// The median keeps to it.
    pub met: bool,
    /// All of the median's interval lies on the same side of the aim.
    pub certain: bool,
}

impl Report {
    /// Works out figures and aims from the runs.
    pub fn conclude(&mut self) {
        let whole = |at: usize| {
            let mut runs = self.runs.iter().filter(|run| run.set_up == at).peekable();
            runs.peek().is_some() && runs.all(|run| run.answered == self.prompts)
        };
        let median = |at| Some(Spread::of(self.of(at).map(|run| run.seconds))?.median);
        let single = |kind| matches!(kind, Kind::OneAtATime | Kind::Fixed);
        let baseline = (0..self.set_ups.len())
            .filter(|at| single(self.set_ups[*at].kind) && whole(*at))
            .filter_map(|at| Some((median(at)?, at)))
            .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
            .map(|(_, at)| at);
        let over = |at: usize, base: usize| {
            let pairs = self.of(at).filter_map(|run| {
                let other = self.of(base).find(|other| other.round == run.round)?;
                Some(run.seconds / other.seconds)
            });
            if whole(at) && whole(base) { Spread::of(pairs) } else { None }
        };
        let figure = |at: usize| {
            Some(Figure {
                set_up: at,
                seconds: Spread::of(self.of(at).map(|run| run.seconds))?,
                ratio: baseline.and_then(|base| over(at, base)),
                tokens_per_s: Spread::of(self.of(at).map(|run| run.output_tokens as f64 / run.seconds))?,
                at_once: Spread::of(self.of(at).map(|run| run.at_once))?.median,
                whole: whole(at),
                baseline: baseline == Some(at),
            })
        };
        let figures = (0..self.set_ups.len()).filter_map(figure).collect();
        let find = |kind| self.set_ups.iter().position(|set_up| set_up.kind == kind);
        let mut aims = Vec::new();
        if let (Some(tropa), Some(base), 1) = (find(Kind::Tropa), baseline, self.distinct)
            && let Some(reached) = over(tropa, base)
        {
            aims.push(Aim {
                what: format!(
                    "time of tropa over the best single use of one install ({})",
                    self.set_ups[base].name
                ),
                aim: AIM_ONE,
                reached,
                met: reached.median <= AIM_ONE,
                certain: reached.high <= AIM_ONE || reached.low > AIM_ONE,
            });
        }
        if let (Some(tropa), Some(clients)) = (find(Kind::Tropa), find(Kind::Clients))
            && let Some(reached) = over(clients, tropa)
        {
            aims.push(Aim {
                what: format!("speed of tropa over {}", self.set_ups[clients].name),
                aim: AIM_MANY,
                reached,
                met: reached.median >= AIM_MANY,
                certain: reached.low >= AIM_MANY || reached.high < AIM_MANY,
            });
        }
        (self.figures, self.aims) = (figures, aims);
    }

    /// Every prompt of tropa and of the baseline was answered: the figures say something.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let tropa = self.figures.iter().find(|figure| self.set_ups[figure.set_up].kind == Kind::Tropa);
        tropa.is_some_and(|figure| figure.whole) && self.figures.iter().any(|figure| figure.baseline)
    }

    fn of(&self, set_up: usize) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.set_up == set_up)
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let models: Vec<&str> = self.models.keys().map(String::as_str).collect();
        let mut text = format!(
            "{}, {} of at most {} tokens, {} in turns, warm; {} on {}, {} at a time\n\n",
            escaped(&models.join(", ")),
            count(self.prompts, "prompt"),
            self.max_tokens,
            count(self.rounds, "round"),
            count(self.installs.len(), "install"),
            count(self.machines, "machine"),
            self.distinct,
        );
        let mut table = Table::new(["SET-UP", "SECONDS", "SPREAD", "RATIO", "TOKENS/S", "AT ONCE"]);
        for figure in &self.figures {
            let more = if figure.whole { "" } else { ">" };
            table.row([
                &self.set_ups[figure.set_up].name,
                &format!("{more}{:.2}", figure.seconds.median),
                &format!("{:.2} to {:.2}", figure.seconds.min, figure.seconds.max),
                &match figure.ratio {
                    _ if figure.baseline => "1".to_owned(),
                    Some(ratio) => ranged(&ratio),
                    None => "-".to_owned(),
                },
                &format!("{:.0}", figure.tokens_per_s.median),
                &format!("{:.2}", figure.at_once),
            ]);
        }
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{table}\n");
        if let Some(base) = self.figures.iter().find(|figure| figure.baseline) {
            let name = escaped(&self.set_ups[base.set_up].name);
            let _ = writeln!(
                text,
                "RATIO: seconds over those of \"{name}\" of the same round, their median and where it lies{}; below 1 is \
                 faster.",
                if self.rounds < 6 { " (fewer than 6 rounds: least and greatest)" } else { ", 95 % certain" }
            );
        }
        if self.set_ups.iter().any(|set_up| set_up.kind == Kind::ByAddress)
            && self.distinct < self.installs.len()
        {
            text.push_str(
                "\"By address\" lets installs that share hardware work at the same time, past their agents and the locks. \
                 tropa never does that.\n",
            );
        }
        for aim in &self.aims {
            let _ = writeln!(
                text,
                "{}: {}; aim {} {}: {}{}",
                escaped(&aim.what),
                ranged(&aim.reached),
                if aim.aim > 1.0 { "at most" } else { "at least" },
                aim.aim,
                if aim.met { "met" } else { "missed" },
                if aim.certain { "" } else { ", not for certain: more rounds tell" },
            );
        }
        for line in &self.not_measured {
            let _ = writeln!(text, "Not measured: {}", escaped(line));
        }
        if self.environment.debug_build {
            text.push_str("This is a debug build, which checks every decision of the scheduler: no figures for others.\n");
        }
        text
    }
}

/// A median and where it lies.
fn ranged(spread: &Spread) -> String {
    format!("{:.3} ({:.3} to {:.3})", spread.median, spread.low, spread.high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_up(name: &str, kind: Kind) -> SetUp {
        SetUp { name: name.into(), kind, way: Way::Direct, installs: vec![0], at_once: 1 }
    }

    fn report(distinct: usize, set_ups: Vec<SetUp>, runs: &[(usize, u32, f64, usize)]) -> Report {
        let run = |(set_up, round, seconds, answered): &(usize, u32, f64, usize)| Run {
            set_up: *set_up,
            round: *round,
            seconds: *seconds,
            answered: *answered,
            output_tokens: 100,
            at_once: 1.0,
            load_average: None,
            stolen: None,
            attempts: Vec::new(),
        };
        let mut report = Report {
            schema: "tropa.bench/1",
            started_ms: 0,
            environment: Environment::default(),
            models: std::collections::BTreeMap::from([("tiny:latest".into(), "00".into())]),
            prompts: 4,
            max_tokens: 16,
            num_ctx: 1024,
            rounds: 2,
            installs: Vec::new(),
            machines: distinct,
            distinct,
            set_ups,
            not_measured: Vec::new(),
            figures: Vec::new(),
            aims: Vec::new(),
            runs: runs.iter().map(run).collect(),
        };
        report.conclude();
        report
    }

    #[test]
    fn the_baseline_is_the_better_of_one_at_a_time_and_of_a_fixed_width() {
        let set_ups =
            vec![set_up("one", Kind::OneAtATime), set_up("two", Kind::Fixed), set_up("tropa", Kind::Tropa)];
        // Round 2 was slow for everybody: the ratios of the rounds are the same.
        let runs = [
            (0, 1, 2.0, 4),
            (1, 1, 1.0, 4),
            (2, 1, 1.03, 4),
            (0, 2, 4.0, 4),
            (1, 2, 2.0, 4),
            (2, 2, 2.06, 4),
        ];
        let report = report(1, set_ups, &runs);
        assert!(report.figures[1].baseline && !report.figures[0].baseline);
        let ratio = report.figures[2].ratio.unwrap();
        assert!((ratio.median - 1.03).abs() < 1e-9 && (ratio.max - ratio.min).abs() < 1e-9);
        assert!(!report.aims[0].met, "1.03 is above the aim");
        assert!(report.text().contains("(two): 1.030 (1.030 to 1.030); aim at most 1.02: missed"));
    }

    #[test]
    fn a_set_up_that_did_not_answer_everything_is_no_baseline_and_has_no_ratio() {
        let set_ups = vec![
            set_up("one", Kind::OneAtATime),
            set_up("two", Kind::Fixed),
            set_up("by address", Kind::ByAddress),
            set_up("tropa", Kind::Tropa),
        ];
        let runs = [(0, 1, 2.0, 4), (1, 1, 0.1, 3), (2, 1, 30.0, 2), (3, 1, 2.0, 4)];
        let report = report(1, set_ups, &runs);
        assert!(report.figures[0].baseline);
        assert_eq!(report.figures[2].ratio, None);
        assert!(report.text().contains(">30.00"), "{}", report.text());
        assert!(report.is_sound() && report.aims[0].met);
    }

    #[test]
    fn several_machines_are_compared_with_independent_clients_and_not_with_one_install() {
        let set_ups = vec![
            set_up("one", Kind::OneAtATime),
            set_up("2 independent clients", Kind::Clients),
            set_up("tropa", Kind::Tropa),
        ];
        let report = report(2, set_ups, &[(0, 1, 2.0, 4), (1, 1, 1.0, 4), (2, 1, 1.25, 4)]);
        assert_eq!(report.aims.len(), 1);
        assert!((report.aims[0].reached.median - 0.8).abs() < 1e-9 && !report.aims[0].met);
    }

    #[test]
    fn nothing_is_claimed_without_a_baseline() {
        let set_ups = vec![set_up("one", Kind::OneAtATime), set_up("tropa", Kind::Tropa)];
        let report = report(1, set_ups, &[(0, 1, 2.0, 3), (1, 1, 1.0, 4)]);
        assert!(report.aims.is_empty() && !report.is_sound());
        assert!(report.figures.iter().all(|figure| figure.ratio.is_none()));
    }
}
