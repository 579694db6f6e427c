//! How long fusion takes for 10, 100 and 1,000 agents, and how it grows.
//!
//! *Mixed* repeats what homes, offices and racks look like: bare machines with containers, a hypervisor with the
//! guests that it lists, copies of one VM image, cloud VMs, WSL beside its Windows, a container that can read
//! nothing. The others are the extremes: all agents on one kernel, every agent a bare machine of its own, agents that
//! can read nothing. Prints the best of several runs in milliseconds, and what asking for the exclusion of every pair
//! would cost. `cargo bench -p tropa-tests --bench fusion`.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use tropa_proto::{
    bounded::{List, Text},
    epoch::EpochTrack,
    evidence::{Evidence, Gpu, GpuKind, Hypervisor, HypervisorClass, Os, Reading, Tag},
    fuse::{Fusion, Input, Member, fuse},
    id::AgentId,
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
        "{:<11} {:>7} {:>9} {:>12} {:>7} {:>15}",
        "world", "agents", "machines", "fusion (ms)", "growth", "all pairs (ms)"
    );
    for (name, member) in worlds {
        let mut before: Option<Duration> = None;
        for agents in [10, 100, 1000] {
            let input = Input { members: (0..agents).map(member).collect(), ..Input::default() };
            let (best, fusion) = best(&input);
            let growth = before
                .map_or(String::new(), |last| format!("{:.1}", best.as_secs_f64() / last.as_secs_f64()));
            println!(
                "{name:<11} {agents:>7} {:>9} {:>12.3} {growth:>7} {:>15.3}",
                fusion.machines().len(),
                best.as_secs_f64() * 1e3,
                pairs(&fusion).as_secs_f64() * 1e3,
            );
            before = Some(best);
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
