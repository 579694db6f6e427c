//! The pure parts: a roster of made-up agents, and the scheduler with as many installs.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tropa_coordinator::schedule::{Action, Event, Install, Largest, ModelIndex, Schedule};
use tropa_proto::{
    bounded::{List, Text},
    codec::encode,
    evidence::{Core, Evidence, Hypervisor, Os, Reading, Tag},
    id::{AgentId, EngineRun, Incarnation, JobId, MachineId},
    message::{AgentState, Announcement, Description, EngineState, Inventory, Model, Place},
    permit::Permit,
    roster::Roster,
    uid::{MachineClaim, MachineUid},
};

use super::{gossip, kib, number, period};

/// Chunks of the job for each install.
const CHUNKS: u32 = 10;

/// How long one size may take in the scheduler: the time of an event is known long before the end of a large job.
const ENOUGH: Duration = Duration::from_secs(10);

/// Models of each install.
const MODELS: u8 = 8;

pub(crate) const HEAD: &str = "agents  a machine    kept  announcement B  roster KiB/agent  grouping ms  groupings at rest CPU %  events  us/event  roster event ms  copies  hops";

/// One size: `agents` of them, `each` on one machine.
#[expect(clippy::disallowed_methods, reason = "a benchmark is the driver that owns the clock")]
pub(crate) fn measure(agents: u32, each: u32) -> Result<Value> {
    let bytes = encode(&announcement(0, each)).context("encoding an announcement")?.len();
    let before = kib(std::process::id(), "VmRSS:")?;
    let mut roster = Roster::new(false);
    let started = Instant::now();
    for at in 0..agents {
        let announcement = announcement(at, each);
        let hashes = (announcement.bundle, announcement.inventory);
        roster.connected(agent(at), true);
        roster.announced(agent(at), announcement, Duration::from_secs(1));
        roster.described(agent(at), hashes, description(at, each));
    }
    let taking = started.elapsed();
    let started = Instant::now();
    let machines = black_box(roster.view()).machines.len();
    let mut grouping = started.elapsed();
    let memory = kib(std::process::id(), "VmRSS:")?.saturating_sub(before);
    let kept = u32::try_from(roster.len())?;
    ensure!(machines == kept.div_ceil(each) as usize, "{machines} machines of {kept} agents");
    // One announcement makes the view anew.
    for _ in 0..if agents > 300 { 1 } else { 10 } {
        roster.announced(agent(0), announcement(0, each), Duration::from_secs(2));
        let started = Instant::now();
        black_box(roster.view());
        grouping = grouping.min(started.elapsed());
    }
    let spoken = f64::from(kept) / period(kept).as_secs_f64();
    let (events, event, first) = schedule(agents, each);
    let spread = gossip::spread(agents);
    ensure!(spread.reached == agents as usize, "an announcement reached {} only", spread.reached);
    Ok(json!({
        "agents": agents, "a_machine": each, "kept": kept, "machines": machines, "announcement_bytes": bytes,
        "taking_ms": taking.as_secs_f64() * 1e3, "roster_kib": memory, "grouping_ms": grouping.as_secs_f64() * 1e3,
        "groupings_per_s": spoken, "grouping_cpu_percent": grouping.as_secs_f64() * spoken * 100.0,
        "events": events, "event_us": event.as_secs_f64() * 1e6, "roster_event_ms": first.as_secs_f64() * 1e3,
        "announcements_per_s": f64::from(agents) / period(agents).as_secs_f64(), "copies": spread.copies,
        "hops": spread.hops,
    }))
}

pub(crate) fn line(row: &Value) -> String {
    format!(
        "{:>6} {:>10} {:>7} {:>15} {:>17.1} {:>12.2} {:>24.2} {:>7} {:>9.2} {:>16.2} {:>7.2} {:>5}",
        row["agents"],
        row["a_machine"],
        row["kept"],
        row["announcement_bytes"],
        number(row, "roster_kib") / number(row, "kept"),
        number(row, "grouping_ms"),
        number(row, "grouping_cpu_percent"),
        row["events"],
        number(row, "event_us"),
        number(row, "roster_event_ms"),
        number(row, "copies"),
        row["hops"],
    )
}

/// Runs a job in the scheduler, every chunk well, to its end or as long as is enough; gives the number of events, the
/// time of one, and the time of the event that brings the roster.
#[expect(clippy::disallowed_methods, reason = "a benchmark is the driver that owns the clock")]
fn schedule(agents: u32, each: u32) -> (u64, Duration, Duration) {
    let installs: Vec<Install> = (0..agents).map(|at| install(at, each, agents)).collect();
    let mut schedule = Schedule::new(JobId([1; 16]), vec![ModelIndex(0); (agents * CHUNKS) as usize]);
    let mut now = Duration::from_secs(1);
    let started = Instant::now();
    let actions = schedule.handle(Event::Roster(installs), now);
    let first = started.elapsed();
    let mut coming: VecDeque<Event> = follow(actions).collect();
    let mut events = 0;
    let started = Instant::now();
    while started.elapsed() < ENOUGH
        && let Some(event) = coming.pop_front()
    {
        // Far below the time of a sync, above that of any event.
        now += Duration::from_micros(50);
        events += 1;
        coming.extend(follow(schedule.handle(event, now)));
    }
    let all = started.elapsed();
    assert!(schedule.is_done() || !coming.is_empty(), "a job in which nothing fails ends");
    (events, all.div_f64(f64::from(u32::try_from(events).unwrap_or(u32::MAX))), first)
}

/// What a world in which everything goes well makes of actions; those that follow from failures do not occur.
fn follow(actions: Vec<Action>) -> impl Iterator<Item = Event> {
    actions.into_iter().flat_map(|action| {
        if let Action::Record(attempt, ..) = action {
            vec![Event::Recorded(attempt)]
        } else if let Action::Send(attempt, _) = action {
            vec![Event::Accepted(attempt, Place::Running), Event::Finished(attempt)]
        } else if let Action::Commit(attempt) = action {
            vec![Event::Committed(attempt.chunk)]
        } else {
            vec![]
        }
    })
}

fn install(at: u32, each: u32, agents: u32) -> Install {
    let first = at / each * each;
    let rivals: BTreeSet<AgentId> =
        (first..(first + each).min(agents)).filter(|other| *other != at).map(agent).collect();
    Install {
        agent: agent(at),
        incarnation: Incarnation(1),
        engine: EngineRun(1),
        machine: MachineId(agent(first)),
        width: 1,
        models: BTreeSet::from([ModelIndex(0)]),
        largest: Largest::default(),
        shut: false,
        warm: BTreeSet::from([ModelIndex(0)]),
        loads: BTreeMap::new(),
        unguarded: BTreeSet::new(),
        gpu_lanes: None,
        unplaced: Default::default(),
        rivals,
    }
}

/// A bare machine with ids of its own for every `each` agents.
fn evidence(at: u32, each: u32) -> Evidence {
    let mut evidence = Evidence::empty(Os::Linux);
    evidence.hypervisor = Hypervisor::None;
    evidence.boot_id = Reading::Value(tag(1, at / each));
    evidence.machine_id = Reading::Value(tag(2, at / each));
    evidence.product_uuid = Reading::Value(tag(3, at / each));
    evidence.cpu_model = Reading::Value(Text::cut(&format!("Ryzen 9 {}950X", 5 + at / each % 3)));
    evidence
}

fn announcement(at: u32, each: u32) -> Announcement {
    let epoch = 1_790_000_000_000_000_000 + i64::from(at / each) * 1_000_000_000;
    let uid = MachineUid { created_ms: u64::from(at / each), random: tag(4, at / each).0 };
    Announcement {
        incarnation: Incarnation(1),
        seq: 1,
        period_ms: 10_000,
        state: AgentState::Ready,
        label: Text::cut(&format!("machine-{}", at / each)),
        core: Core::new(&evidence(at, each), Reading::Value(epoch)),
        sampled_ms_ago: 0,
        machine: MachineClaim::new(uid),
        locks: List::cut(vec![[1; 8]]).0,
        width: 1,
        engine: EngineRun(1),
        bundle: [1; 32],
        inventory: [2; 32],
        addresses: List::cut(vec![([10, 0, 0, 1], 11_634).into()]).0,
    }
}

fn description(at: u32, each: u32) -> Description {
    let model = |n: u8| Model {
        name: Text::cut(&format!("model-{n}:latest")),
        digest: [n; 32],
        fingerprint: [n; 32],
        size: 4 << 30,
        context: 131_072,
        completion: true,
        embedding: false,
        thinking: false,
        tools: true,
        remote: false,
        loaded: None,
    };
    let inventory = Inventory {
        port: 11_434,
        engine: EngineState::Up,
        version: Text::cut("0.24.0"),
        models: List::cut((0..MODELS).map(model).collect()).0,
        cut: false,
        permit: Permit::default(),
    };
    Description { evidence: evidence(at, each), former: None, inventory, denied: Text::default() }
}

fn agent(at: u32) -> AgentId {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&at.to_be_bytes());
    AgentId(id)
}

fn tag(kind: u32, which: u32) -> Tag {
    let mut tag = [0; 16];
    for (part, number) in tag.chunks_exact_mut(4).zip([kind, which, which, 1]) {
        part.copy_from_slice(&number.to_be_bytes());
    }
    Tag(tag)
}
