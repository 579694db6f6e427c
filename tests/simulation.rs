//! The decisions of both sides against each other: the coordinators' `Schedule` and every agent's `Admission`, both
//! pure, in a world of virtual time where a seed decides everything else.
//!
//! A [`Scenario`] says who is there and what goes wrong; `faults.rs` plans the faults from the seed. The world owns the
//! network and the time (`world.rs`), the processes of both sides (`world/processes.rs`), the locks and engines
//! (`world/agents.rs`), what a coordinator does (`world/sides.rs`), and clocks that disagree (`clock.rs`). What really
//! happens goes to the history checker (`history.rs`), which alone judges. Faults come until a moment of the seed's
//! choice; from then on everything works, and the jobs must end.
//!
//! A run is named by its seed and the commit. [`shrink`] leaves faults out for as long as the same rule stays broken.

mod clock;
mod coordinator;
mod engine;
mod faults;
mod install;
pub(crate) mod random;
mod world;

use std::{panic, time::Duration};

use crate::history::{Event, Violation};

use self::world::World;
pub use self::{
    faults::{Fault, Kinds, Network, Planned, Profile},
    world::Place,
};

/// Who is there, and what may go wrong.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The installs.
    pub places: Vec<Place>,
    /// Chunks of each coordinator's job.
    pub jobs: Vec<u32>,
    /// What goes wrong.
    pub profile: Profile,
}

/// How a run went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What was wrong; the first is what was broken first.
    pub violations: Vec<Violation>,
    /// SHA-256 over every event of the history, as far as it went.
    pub hash: String,
    /// Events of the world.
    pub events: u64,
    /// Chunks with a result.
    pub done: usize,
    /// Chunks with a failure, and how they failed.
    pub failed: Vec<(u32, tropa_proto::failure::Class)>,
    /// Attempts that reached an engine.
    pub executions: u64,
    /// Acknowledgements that arrived.
    pub forgotten: u64,
    /// Faults that were planned.
    pub faults: usize,
    /// Virtual time.
    pub time: Duration,
}

/// Two installs on one device under one kernel lock, one beside them on its own.
#[must_use]
pub fn one_kernel() -> Vec<Place> {
    vec![Place::new(&[0], 0), Place::new(&[0], 0), Place::new(&[1], 1)]
}

/// Two virtual machines on one device, with no lock between them, and one machine on its own.
#[must_use]
pub fn two_kernels() -> Vec<Place> {
    vec![Place::new(&[0], 0), Place::new(&[0], 1), Place::new(&[1], 2)]
}

/// One machine with two GPUs and the memory system, installs on each and on several, one of them of width 2.
#[must_use]
pub fn one_box() -> Vec<Place> {
    vec![
        Place::new(&[0], 0),
        Place { width: 2, ..Place::new(&[1], 0) },
        Place::new(&[0, 1], 0),
        Place::new(&[2], 0),
        Place::new(&[3], 1),
    ]
}

impl Scenario {
    /// The scenario of a seed: one of each kind in turn, so that any range of seeds sees all of them.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let all = Profile::all(Duration::from_secs(60 + seed % 3 * 30));
        let (places, jobs, profile) = match seed % 8 {
            0 => (two_kernels(), vec![40], all),
            1 => (one_kernel(), vec![25, 25], all),
            2 => (one_box(), vec![40], all),
            3 => (one_kernel(), vec![40], Profile { kinds: Kinds::COORDINATORS, ..all }),
            4 => (two_kernels(), vec![40], Profile { kinds: Kinds::AGENTS, ..all }),
            5 => (one_box(), vec![20, 20], Profile { network: Network::BAD, ..all }),
            6 => (one_kernel(), vec![30], Profile { poison: 7, ..all }),
            _ => (two_kernels(), vec![30], Profile { kinds: Kinds::NONE, network: Network::BAD, ..all }),
        };
        Self { places, jobs, profile }
    }
}

/// Runs a seed to its end, or to the first rule that is broken. Equal arguments give equal runs.
///
/// A panic of the decisions themselves, or of the store's rules, counts as a violation of rule 0.
#[must_use]
pub fn run(seed: u64, scenario: &Scenario) -> Run {
    run_with(seed, scenario, &faults::plan(seed, scenario))
}

/// Runs a seed with these faults and no others of the kinds that are planned, and keeps what happened: coordinator `n`
/// is peer `100 + n`, agents and their installs are peers from 0. A panic is the caller's.
#[must_use]
pub fn staged(seed: u64, scenario: &Scenario, faults: &[Planned]) -> (Run, Vec<Event>) {
    World::new(seed, scenario.clone(), faults.to_vec()).run_and_keep()
}

fn run_with(seed: u64, scenario: &Scenario, plan: &[Planned]) -> Run {
    let ran = panic::catch_unwind(|| World::new(seed, scenario.clone(), plan.to_vec()).run());
    ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Run {
            violations: vec![Violation { rule: 0, at: 0, what: text.unwrap_or_default() }],
            hash: String::new(),
            events: 0,
            done: 0,
            failed: Vec::new(),
            executions: 0,
            forgotten: 0,
            faults: plan.len(),
            time: Duration::ZERO,
        }
    })
}

/// A failing run with as few faults as were found to be enough.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// What is left of the faults, in words.
    pub faults: Vec<String>,
    /// Whether the network had to lose, double or delay anything.
    pub network: bool,
    /// The rule that is still broken.
    pub violation: Violation,
}

/// Leaves out faults of a failing seed, by halves and then one by one, while the same rule stays broken; at most 200
/// runs. `None` when the seed breaks nothing.
#[must_use]
pub fn shrink(seed: u64, scenario: &Scenario) -> Option<Shrunk> {
    let mut plan = faults::plan(seed, scenario);
    let mut scenario = scenario.clone();
    let mut violation = run_with(seed, &scenario, &plan).violations.first().cloned()?;
    let mut tries = 0;
    let mut still = |scenario: &Scenario, plan: &[Planned]| {
        tries += 1;
        let found = run_with(seed, scenario, plan).violations.first().cloned();
        found.filter(|found| tries <= 200 && found.rule == violation.rule)
    };
    let quiet =
        Scenario { profile: Profile { network: Network::GOOD, ..scenario.profile }, ..scenario.clone() };
    let mut last = None;
    if let Some(found) = still(&quiet, &plan) {
        (scenario, last) = (quiet, Some(found));
    }
    let mut piece = plan.len();
    while piece > 0 {
        let mut at = 0;
        while at < plan.len() {
            let end = (at + piece).min(plan.len());
            let without = [&plan[..at], &plan[end..]].concat();
            match still(&scenario, &without) {
                Some(found) => (plan, last) = (without, Some(found)),
                None => at = end,
            }
        }
        piece /= 2;
    }
    if let Some(found) = last {
        violation = found;
    }
    Some(Shrunk {
        faults: plan.iter().map(ToString::to_string).collect(),
        network: scenario.profile.network != Network::GOOD,
        violation,
    })
}
