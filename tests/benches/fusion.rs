//! How long fusion takes for 10, 100, 300 and 1,000 agents, and the view of a roster, which is what a coordinator
//! waits for; and how both grow.
//!
//! *Mixed* repeats what homes, offices and racks look like: bare machines with containers, a hypervisor with the
//! guests that it lists, copies of one VM image, cloud VMs, WSL beside its Windows, a container that can read
//! nothing. The others are the extremes: all agents on one kernel, every agent a bare machine of its own, agents that
//! can read nothing. Prints the best of several runs in milliseconds, and what asking for the exclusion of every pair
//! would cost. The view is checked against asking for every pair, up to 300 agents. `cargo bench -p tropa-tests
//! --bench fusion`.

use std::{
    collections::BTreeMap,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use tropa_proto::{
    bounded::{List, Text},
    epoch::EpochTrack,
    evidence::{Core, Evidence, Gpu, GpuKind, Hypervisor, HypervisorClass, Os, Reading, Tag},
    fuse::{Fusion, Input, Member, fuse},
    id::{AgentId, EngineRun, Incarnation},
    message::{AgentState, Announcement, Description, EngineState, Inventory},
    permit::Permit,
    roster::{Install, Roster},
    uid::{MachineClaim, MachineUid},
};

/// Runs of each size; the best is printed, since everything else is other work on the machine.
const RUNS: u32 = 5;

/// One way to make the agent with a number.
type Kind = fn(u32) -> Member;

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn main() {
    let worlds: [(&str, Kind); 4] =
        [("mixed", mixed), ("one kernel", one_kernel), ("strangers", stranger), ("unreadable", unreadable)];
    println!(
        "{:<11} {:>7} {:>9} {:>12} {:>7} {:>10} {:>7} {:>10} {:>15}",
        "world",
        "agents",
        "machines",
        "fusion (ms)",
        "growth",
        "view (ms)",
        "growth",
        "rivals",
        "all pairs (ms)"
    );
    for (name, member) in worlds {
        let mut before: Option<(Duration, Duration)> = None;
        for agents in [10, 100, 300, 1000] {
            let input = Input { members: (0..agents).map(member).collect(), ..Input::default() };
            let (best, fusion) = best(&input);
            let (view, rivals) = view(&input.members);
            let growth = |now: Duration, last: Option<Duration>| {
                last.map_or(String::new(), |last| format!("{:.1}", now.as_secs_f64() / last.as_secs_f64()))
            };
            println!(
                "{name:<11} {agents:>7} {:>9} {:>12.3} {:>7} {:>10.3} {:>7} {rivals:>10} {:>15.3}",
                fusion.machines().len(),
                best.as_secs_f64() * 1e3,
                growth(best, before.map(|before| before.0)),
                view.as_secs_f64() * 1e3,
                growth(view, before.map(|before| before.1)),
                pairs(&fusion).as_secs_f64() * 1e3,
            );
            before = Some((best, view));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark is the driver that owns the clock")]
fn best(input: &Input) -> (Duration, Fusion) {
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        let start = Instant::now();
        black_box(fuse(black_box(input)));
        best = best.min(start.elapsed());
    }
    (best, fuse(input))
}

/// A view of a roster with these agents, all of them connected, and how many pairs of rivals there are in it.
#[expect(clippy::disallowed_methods, reason = "a benchmark is the driver that owns the clock")]
fn view(members: &[Member]) -> (Duration, usize) {
    let mut roster = Roster::new(false);
    for (at, member) in (0..).zip(members) {
        let mut announced = announcement(&member.evidence, at);
        let epoch = member.epoch.epochs().next();
        announced.core.epoch_ns = epoch.map_or(Reading::Absent, Reading::Value);
        let hashes = (announced.bundle, announced.inventory);
        roster.connected(member.id, true);
        roster.announced(member.id, announced, Duration::ZERO);
        let evidence = (*member.evidence).clone();
        let inventory = Inventory {
            engine: EngineState::Up,
            version: Text::default(),
            models: List::default(),
            cut: false,
            port: 11434,
            permit: Permit::default(),
        };
        roster.described(
            member.id,
            hashes,
            Description { evidence, former: None, inventory, denied: Text::default() },
        );
    }
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        roster.set_facts(BTreeMap::new());
        let start = Instant::now();
        black_box(roster.view());
        best = best.min(start.elapsed());
    }
    let view = roster.view();
    if members.len() <= 300 {
        let fusion = view.fusion.as_ref();
        let overlap = |one: &Install, other: &Install| {
            fusion.is_none_or(|f| f.may_overlap((one.agent, &one.lane), (other.agent, &other.lane)))
        };
        for one in &view.installs {
            let others =
                view.installs.iter().filter(|other| other.agent != one.agent && !overlap(one, other));
            assert_eq!(
                one.rivals,
                others.map(|other| other.agent).collect(),
                "the rivals of {:?}",
                one.agent
            );
        }
    }
    (best, view.installs.iter().map(|install| install.rivals.len()).sum::<usize>() / 2)
}

fn announcement(evidence: &Evidence, at: u64) -> Announcement {
    Announcement {
        incarnation: Incarnation(1),
        seq: 1,
        period_ms: 10_000,
        state: AgentState::Ready,
        label: Text::cut("den"),
        core: Core::new(evidence, Reading::Absent),
        sampled_ms_ago: 0,
        machine: MachineClaim::new(MachineUid { created_ms: at, random: [1; 16] }),
        locks: List::default(),
        width: 1,
        engine: EngineRun(1),
        bundle: [1; 32],
        inventory: [2; 32],
        addresses: List::default(),
    }
}

/// Asking for the exclusion of every pair, which nobody needs to do at once.
#[expect(clippy::disallowed_methods, reason = "a benchmark is the driver that owns the clock")]
fn pairs(fusion: &Fusion) -> Duration {
    let start = Instant::now();
    black_box(fusion.excluded_pairs());
    start.elapsed()
}

fn one_kernel(at: u32) -> Member {
    let mut evidence = Evidence::empty(Os::Linux);
    evidence.hypervisor = Hypervisor::None;
    evidence.boot_id = Reading::Value(tag(1, 0, 0));
    member(at, evidence, Reading::Value(1_790_000_000_000_000_000 + i64::from(at % 5)))
}

fn stranger(at: u32) -> Member {
    let mut evidence = Evidence::empty(Os::Linux);
    evidence.hypervisor = Hypervisor::None;
    evidence.boot_id = Reading::Value(tag(1, at, 0));
    member(at, evidence, Reading::Value(1_790_000_000_000_000_000 + i64::from(at) * 1_000_000))
}

fn unreadable(at: u32) -> Member {
    member(at, Evidence::empty(Os::Linux), Reading::Absent)
}

/// Ten kinds of agents, again and again; each ten are a site of their own.
fn mixed(at: u32) -> Member {
    let (site, kind) = (at / 10, at % 10);
    let mut evidence = Evidence::empty(Os::Linux);
    // Kernel 0 is a bare machine with containers, 1 its guest, and so on.
    let (kernel, hypervisor) = match kind {
        0..=3 => (0, Hypervisor::None),
        4..=6 => (kind, Hypervisor::Vm),
        7 => (7, Hypervisor::Root),
        8 => (8, Hypervisor::Vm),
        _ => (9, Hypervisor::Unknown),
    };
    evidence.hypervisor = hypervisor;
    if kind != 9 {
        evidence.boot_id = Reading::Value(tag(1, site, kernel));
        evidence.cpu_model = Reading::Value(Text::cut(&format!("Ryzen 9 {}950X", 5 + site % 3)));
    }
    match kind {
        0 => {
            evidence.product_uuid = Reading::Value(tag(2, site, 0));
            evidence.hosts_vms = Reading::Value(List::cut(vec![tag(2, site, 4), tag(2, site, 5)]).0);
            evidence.gpus = List::cut(vec![gpu(site)]).0;
        }
        1 => evidence.gpus = List::cut(vec![gpu(site)]).0,
        4 | 5 => {
            evidence.hypervisor_class = HypervisorClass::Homelab;
            evidence.product_uuid = Reading::Value(tag(2, site, kind));
            evidence.machine_id = Reading::Value(tag(3, site % 7, 0));
        }
        6 => evidence.hypervisor_class = HypervisorClass::Cloud,
        7 => {
            evidence.os = Os::Windows;
            evidence.machine_guid = Reading::Value(tag(4, site, 0));
        }
        8 => {
            evidence.hypervisor_class = HypervisorClass::Desktop;
            evidence.wsl_host_guid = Reading::Value(tag(4, site, 0));
        }
        _ => {}
    }
    let epoch =
        1_790_000_000_000_000_000 + i64::from(site) * 1_000_000_000_000 + i64::from(kernel) * 1_000_000_000;
    let epoch = if matches!(kind, 7 | 9) { Reading::Absent } else { Reading::Value(epoch) };
    member(at, evidence, epoch)
}

fn member(at: u32, evidence: Evidence, epoch: Reading<i64>) -> Member {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&at.to_be_bytes());
    Member {
        id: AgentId(id),
        key: AgentId(id),
        evidence: Arc::new(evidence),
        epoch: EpochTrack::settled(&epoch),
        first_heard: Duration::ZERO,
        last_heard: Duration::from_secs(1),
        flapping: false,
    }
}

fn gpu(site: u32) -> Gpu<Tag> {
    Gpu {
        vendor: Text::cut("nvidia"),
        name: Text::default(),
        uuid: Some(tag(5, site, 0)),
        kind: GpuKind::Full,
        pci: None,
        memory: 0,
        uma: false,
    }
}

fn tag(kind: u32, site: u32, which: u32) -> Tag {
    let mut tag = [0; 16];
    for (part, number) in tag.chunks_exact_mut(4).zip([kind, site, which, 1]) {
        part.copy_from_slice(&number.to_be_bytes());
    }
    Tag(tag)
}
