//! What goes wrong, and when: planned from the seed before the run begins, so that single faults can be left out.

use std::{fmt, time::Duration};

use tropa_proto::failure::Reason;

use super::{Scenario, random::Random};

/// Which kinds of faults are planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds {
    /// Agents are killed, stopped and cut off.
    pub agents: bool,
    /// Coordinators are killed and stopped.
    pub coordinators: bool,
    /// Disks of coordinators are full.
    pub disks: bool,
    /// Models vanish and come back.
    pub models: bool,
}

impl Kinds {
    /// Nothing.
    pub const NONE: Self = Self { agents: false, coordinators: false, disks: false, models: false };
    /// Only what happens to agents.
    pub const AGENTS: Self = Self { agents: true, ..Self::NONE };
    /// Only kills and stops of coordinators.
    pub const COORDINATORS: Self = Self { coordinators: true, ..Self::NONE };
    /// Everything.
    pub const ALL: Self = Self { agents: true, coordinators: true, disks: true, models: true };
}

/// What the network does to single messages, in percent of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// They arrive twice, the second time up to a minute later.
    pub doubles: u32,
    /// They and all after them on their stream are late, by up to a minute.
    pub delays: u32,
    /// They never arrive, and their stream breaks within 25 s.
    pub loses: u32,
}

impl Network {
    /// Every message arrives once, in milliseconds.
    pub const GOOD: Self = Self { doubles: 0, delays: 0, loses: 0 };
    /// As in F18.
    pub const BAD: Self = Self { doubles: 20, delays: 2, loses: 2 };
}

/// What goes wrong in a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// No fault begins after this.
    pub until: Duration,
    /// The planned faults.
    pub kinds: Kinds,
    /// The network.
    pub network: Network,
    /// Engines fail in every way.
    pub engines: bool,
    /// Clocks disagree.
    pub clocks: bool,
    /// Every chunk whose index is a multiple of this fails at each engine; 0: none.
    pub poison: u32,
    /// How those fail.
    pub poison_by: Reason,
    /// Each coordinator asks for runner options of its own, so that a change of turns loads the model anew.
    pub other_options: bool,
}

impl Profile {
    /// Nothing goes wrong.
    #[must_use]
    pub fn none() -> Self {
        Self {
            until: Duration::ZERO,
            kinds: Kinds::NONE,
            network: Network::GOOD,
            engines: false,
            clocks: false,
            poison: 0,
            poison_by: Reason::RunnerCrash,
            other_options: false,
        }
    }

    /// Everything goes wrong until then, on a network that only breaks.
    #[must_use]
    pub fn all(until: Duration) -> Self {
        Self { until, kinds: Kinds::ALL, engines: true, clocks: true, ..Self::none() }
    }
}

/// One thing that goes wrong, for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL; it is started again at the end.
    KillAgent(usize),
    /// SIGSTOP, and SIGCONT at the end.
    StopAgent(usize),
    /// SIGTERM: it finishes what runs and takes nothing new; a new one is started at the end.
    Leave(usize),
    /// No byte passes between this coordinator and this agent.
    Cut(usize, usize),
    /// Nothing that the agent says reaches the coordinator.
    Mute(usize, usize),
    /// SIGKILL of a coordinator, which is started again at the end.
    KillSide(usize),
    /// SIGSTOP of a coordinator, and SIGCONT at the end.
    StopSide(usize),
    /// There is no room for the journal.
    DiskFull(usize),
    /// The install does not have the model.
    ModelGone(usize),
    /// Whatever starts at the install fails like this.
    Ill(usize, Reason),
}

/// A fault with its time.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    /// What.
    pub fault: Fault,
    /// From when on.
    pub from: Duration,
    /// When it is over.
    pub until: Duration,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, until) = (self.from.as_secs_f64(), self.until.as_secs_f64());
        write!(f, "{:?} from {from:.3} s to {until:.3} s", self.fault)
    }
}

/// Plans the faults of a seed.
pub(super) fn plan(seed: u64, scenario: &Scenario) -> Vec<Planned> {
    let mut random = Random(seed ^ 0x5eed_fa17);
    let Profile { until, kinds, .. } = scenario.profile;
    let (installs, sides) = (scenario.places.len(), scenario.jobs.len());
    let mut plan = Vec::new();
    let mut at = Duration::from_millis(200);
    while kinds.agents && at < until {
        let install = random.index(installs);
        let lasts = lasts(&mut random);
        let mut add = |fault, from: Duration| plan.push(Planned { fault, from, until: from + lasts });
        match random.below(7) {
            0 | 1 => add(Fault::KillAgent(install), at),
            2 | 3 => add(Fault::StopAgent(install), at),
            // A swizzle: links are clogged one after the other and freed in another order.
            4 => {
                for install in 0..installs {
                    let (from, lasts) = (at + random.ms(0, 3_000), random.ms(100, 20_000));
                    let side = random.index(sides);
                    plan.push(Planned { fault: Fault::Cut(side, install), from, until: from + lasts });
                }
            }
            _ => add(Fault::Cut(random.index(sides), install), at),
        }
        at += random.ms(100, 6_000);
    }
    let mut at = random.ms(100, 3_000);
    while kinds.coordinators && at < until {
        let side = random.index(sides);
        let (fault, lasts) = if random.one_in(3) {
            (Fault::StopSide(side), lasts(&mut random))
        } else {
            (Fault::KillSide(side), random.ms(50, 5_000))
        };
        plan.push(Planned { fault, from: at, until: at + lasts });
        at = at + lasts + random.ms(20, 8_000);
    }
    let mut at = random.ms(1_000, 20_000);
    while kinds.disks && at < until {
        let lasts = random.ms(10, 12_000);
        plan.push(Planned { fault: Fault::DiskFull(random.index(sides)), from: at, until: at + lasts });
        at = at + lasts + random.ms(3_000, 30_000);
    }
    let mut at = random.ms(1_000, 20_000);
    while kinds.models && at < until {
        let (install, lasts) = (random.index(installs), random.ms(10, 15_000));
        plan.push(Planned { fault: Fault::ModelGone(install), from: at, until: at + lasts });
        at = at + lasts + random.ms(3_000, 30_000);
    }
    plan
}

fn lasts(random: &mut Random) -> Duration {
    if random.one_in(4) { random.ms(10_000, 60_000) } else { random.ms(10, 5_000) }
}
