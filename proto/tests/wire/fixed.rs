//! One fixed value for every variant of every wire type, by name.

use tropa_proto::{
    bounded::{Blob, Content, List, Text},
    evidence::{
        Attribution, Bundle, Core, Cpus, Evidence, Gpu, GpuKind, Hypervisor, HypervisorClass, LaneClaim, Os,
        Reading, SaltName, Tag,
    },
    failure::Reason,
    id::{AgentId, AttemptId, ChunkIndex, EngineRun, Incarnation, JobId},
    known::Known,
    message::{
        AgentState, Announcement, Answer, Beat, Counters, Description, Endpoint, EngineState, Failure,
        FromAgent, Held, Hello, Inventory, LiveFinding, LiveStep, Loaded, Model, Open, Outcome, Place,
        Question, Refusal, Role, Run, ToAgent,
    },
    permit::{Permit, Shut},
    uid::{Before, Change, MachineClaim, MachineUid},
};

/// A value and its name.
pub(crate) type Named<T> = (String, T);

fn named<T>(values: impl IntoIterator<Item = (&'static str, T)>) -> Vec<Named<T>> {
    values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn list<T, const MAX: usize>(values: impl Into<Vec<T>>) -> List<T, MAX> {
    List::new(values.into()).unwrap()
}

fn machine(state: AgentState) -> MachineClaim {
    let uid = |byte: u8| MachineUid { created_ms: 1_790_000_000_000 + u64::from(byte), random: [byte; 16] };
    let (before, change) = match state {
        AgentState::Ready => (Before::Nothing, Change::None),
        AgentState::Draining => (Before::Alias(uid(2)), Change::HardwareChanged),
        AgentState::Leaving => (Before::CopyOf(uid(3)), Change::Moved),
        AgentState::Ill => (Before::Nothing, Change::Moved),
    };
    let same_boot = state == AgentState::Ready;
    MachineClaim { uid: uid(1), before, hardware: 3, same_boot, change, durable: same_boot }
}

/// An announcement in which every field is as long as it may be.
pub(crate) fn largest_announcement() -> Announcement {
    let why = || Text::cut(&"x".repeat(96));
    let uid = |random| MachineUid { created_ms: (1 << 48) - 1, random };
    let machine = MachineClaim { before: Before::CopyOf(uid([1; 16])), ..MachineClaim::new(uid([2; 16])) };
    let address = "[2001:db8::7]:11634".parse().unwrap();
    Announcement {
        incarnation: Incarnation(u64::MAX),
        seq: u64::MAX,
        period_ms: 660_000,
        state: AgentState::Leaving,
        label: Text::cut(&"x".repeat(64)),
        core: Core {
            os: Os::Windows,
            hypervisor: Hypervisor::Unknown,
            declared: true,
            time_namespace: true,
            boot_id: Reading::Rejected(why()),
            epoch_ns: Reading::Rejected(why()),
            machine_id: Reading::Rejected(why()),
            product_uuid: Reading::Rejected(why()),
            host_cpus: u16::MAX,
            memory: u64::MAX,
            gpus: list([Tag([7; 16]); 8]),
            salt: SaltName([0xff; 4]),
        },
        sampled_ms_ago: u32::MAX,
        machine,
        locks: list([[1; 8]; 16]),
        width: 64,
        engine: EngineRun(u32::MAX),
        bundle: [1; 32],
        inventory: [2; 32],
        addresses: list([address; 6]),
    }
}

pub(crate) fn announcements() -> Vec<Named<Announcement>> {
    let of = |state, core| Announcement {
        incarnation: Incarnation(0x0102_0304_0506_0708),
        seq: 300,
        period_ms: 10_000,
        state,
        label: Text::cut("llama-1"),
        core,
        sampled_ms_ago: 12,
        machine: machine(state),
        locks: list([[1; 8], [2; 8]]),
        width: 4,
        engine: EngineRun(0x0102_0304),
        bundle: [0xb0; 32],
        inventory: [0x10; 32],
        addresses: list(["192.0.2.7:11634".parse().unwrap(), "[2001:db8::7]:11634".parse().unwrap()]),
    };
    let core = |os, hypervisor, [boot_id, machine_id, product_uuid]: [Reading<Tag>; 3], epoch_ns| Core {
        os,
        hypervisor,
        declared: false,
        time_namespace: true,
        boot_id,
        epoch_ns,
        machine_id,
        product_uuid,
        host_cpus: 16,
        memory: 64 << 30,
        gpus: list([Tag([7; 16])]),
        salt: SaltName([1, 2, 3, 4]),
    };
    let tag = |byte| Reading::Value(Tag([byte; 16]));
    named([
        (
            "ready",
            of(
                AgentState::Ready,
                core(Os::Linux, Hypervisor::None, [tag(1), tag(2), tag(3)], Reading::Value(-1)),
            ),
        ),
        (
            "draining",
            of(
                AgentState::Draining,
                core(
                    Os::Macos,
                    Hypervisor::Root,
                    [Reading::Virtual(Tag([4; 16])), Reading::Absent, Reading::Denied],
                    Reading::Virtual(1 << 60),
                ),
            ),
        ),
        (
            "leaving",
            of(
                AgentState::Leaving,
                core(
                    Os::Windows,
                    Hypervisor::Vm,
                    [Reading::Rejected(Text::cut("all zero")), Reading::Absent, Reading::Absent],
                    Reading::Denied,
                ),
            ),
        ),
        (
            "ill",
            of(
                AgentState::Ill,
                core(Os::Linux, Hypervisor::None, [tag(1), tag(2), tag(3)], Reading::Value(-1)),
            ),
        ),
    ])
}

pub(crate) fn questions() -> Vec<Named<Question>> {
    let live = |step| Question::LiveTest { id: 0x1122_3344_5566_7788, step };
    named([
        ("roster", Question::Roster { from: 512, known: Known::nothing() }),
        ("rest of a roster", Question::Roster { from: 0, known: Known::of(3, &[(AgentId([7; 32]), 9)]) }),
        ("describe", Question::Describe),
        ("live offer", live(LiveStep::Offer { place: [0xab; 16], nonce: [0xcd; 32] })),
        ("live meet", live(LiveStep::Meet { place: [0xab; 16] })),
        ("live clock", live(LiveStep::Clock)),
        ("live counters", live(LiveStep::Counters)),
        ("live neighbours", live(LiveStep::Neighbours)),
    ])
}

pub(crate) fn answers() -> Vec<Named<Answer>> {
    let (_, description) = descriptions().swap_remove(0);
    let live = |finding| Answer::LiveTest {
        id: 0x1122_3344_5566_7788,
        incarnation: Incarnation(0x0102_0304_0506_0708),
        finding,
    };
    let counters = Counters {
        ctxt: Reading::Value(70_000),
        processes: Reading::Virtual(3),
        pgfault: Reading::Denied,
        pgfree: Reading::Absent,
    };
    named([
        ("roster", Answer::Roster { signed: list([Blob::new(vec![1, 2, 3]).unwrap()]), more: true }),
        ("description", Answer::Description(Box::new(description))),
        ("nothing", Answer::Nothing),
        ("live offered", live(LiveFinding::Offered)),
        ("live met", live(LiveFinding::Met([0xcd; 32]))),
        ("live clock", live(LiveFinding::Clock { received_ns: 1 << 60, sent_ns: (1 << 60) + 9 })),
        ("live counters", live(LiveFinding::Counters(counters))),
        ("live cannot", live(LiveFinding::Cannot(Text::cut("no procfs")))),
        ("live neighbours", live(LiveFinding::Neighbours(list([AgentId([0x11; 32]), AgentId([0x22; 32])])))),
    ])
}

pub(crate) fn descriptions() -> Vec<Named<Description>> {
    let of = |hypervisor, class, method, engine| Description {
        evidence: evidence(hypervisor, class, method),
        former: (method == Attribution::Operator)
            .then(|| Box::new(Evidence { salt: SaltName([9; 4]), ..evidence(hypervisor, class, method) })),
        inventory: Inventory {
            engine,
            version: Text::cut("0.24.0"),
            models: list([model()]),
            cut: true,
            port: 11434,
            permit: Permit {
                models: list([Text::cut("llama3.2:3b"), Text::cut("qwen3:*")]),
                num_ctx: 8192,
                num_predict: 1000,
                images: true,
                hours: Text::cut("22:00-06:00"),
                rate: 40,
                shut: Some(Shut::Hours(Text::cut("2026-11-28T22:00:00+01:00"))),
            },
        },
        denied: Text::cut("coordinator"),
    };
    let down = EngineState::Down(Text::cut("connection refused"));
    let other = EngineState::NotOllama(Text::cut("nginx"));
    use Attribution as A;
    use Hypervisor as H;
    use HypervisorClass as C;
    named([
        ("up, told by the operator", of(H::None, C::Unknown, A::Operator, EngineState::Up)),
        ("down, told by the process", of(H::Root, C::Homelab, A::Process, down)),
        ("too old, told by drm", of(H::Vm, C::Desktop, A::DrmFd, EngineState::TooOld)),
        ("not ollama, told by the log", of(H::Unknown, C::Cloud, A::ServerLog, other)),
        ("up, told by the environment", of(H::None, C::Unknown, A::Environment, EngineState::Up)),
        ("up, told by memory", of(H::None, C::Unknown, A::VramStep, EngineState::Up)),
        ("up, not told", of(H::None, C::Unknown, A::Everything, EngineState::Up)),
    ])
}

fn evidence(hypervisor: Hypervisor, hypervisor_class: HypervisorClass, method: Attribution) -> Evidence {
    let gpu = |kind| Gpu {
        vendor: Text::cut("nvidia"),
        name: Text::cut("A card"),
        uuid: Some(Tag([0x60; 16])),
        kind,
        pci: Some(Text::cut("0000:01:00.0")),
        memory: 24 << 30,
        uma: false,
    };
    Bundle {
        os: Os::Linux,
        hypervisor,
        hypervisor_class,
        declared: true,
        time_namespace: false,
        boot_id: Reading::Value(Tag([1; 16])),
        machine_id: Reading::Virtual(Tag([2; 16])),
        product_uuid: Reading::Denied,
        platform_uuid: Reading::Absent,
        machine_guid: Reading::Absent,
        wsl_host_guid: Reading::Rejected(Text::cut("zeros")),
        ppin: Reading::Value(list([Tag([3; 16])])),
        macs: Reading::Value(list([Tag([4; 16]), Tag([5; 16])])),
        nvme: Reading::Absent,
        hosts_vms: Reading::Value(List::default()),
        gpus: list([
            gpu(GpuKind::Full),
            gpu(GpuKind::Mig { parent: Tag([0x61; 16]) }),
            Gpu { uuid: None, pci: None, ..gpu(GpuKind::Vgpu) },
        ]),
        cpu_model: Reading::Value(Text::cut("A processor")),
        cpus: Cpus {
            host: 16,
            physical: 8,
            allowed: Text::cut("0,2-3"),
            quota_milli: Some(1_500),
            memory_nodes: Text::cut("0"),
            numa_nodes: 1,
        },
        memory: 64 << 30,
        machine_rule: None,
        lane: LaneClaim { gpus: list([0, 2]), dram: true, numa_nodes: list([1]), method },
        anywhere: LaneClaim {
            gpus: list([0, 1, 2]),
            dram: true,
            numa_nodes: List::default(),
            method: Attribution::Everything,
        },
        salt: SaltName([1, 2, 3, 4]),
    }
}

fn model() -> Model {
    Model {
        name: Text::cut("llama3.1:8b"),
        digest: [0xd1; 32],
        fingerprint: [0xf1; 32],
        size: 5 << 30,
        context: 131_072,
        completion: true,
        embedding: false,
        thinking: false,
        tools: true,
        remote: false,
        loaded: Some(Loaded { size: 6 << 30, size_vram: 5 << 30, context: 4_096 }),
    }
}

fn attempt() -> AttemptId {
    AttemptId { job: JobId([0x0a; 16]), chunk: ChunkIndex(251), no: 3 }
}

pub(crate) fn to_agent() -> Vec<Named<ToAgent>> {
    let run = |endpoint, show_text| {
        ToAgent::Run(Box::new(Run {
            attempt: attempt(),
            incarnation: Incarnation(9),
            endpoint,
            model: Text::cut("llama3.1:8b"),
            fingerprint: [0xf1; 32],
            deadline_ms: 900_000,
            first_token_ms: 60_000,
            idle_ms: 60_000,
            show_text,
            at_once: 4,
            body: Blob::new(br#"{"stream":true}"#.to_vec()).unwrap(),
        }))
    };
    named([
        ("hello", ToAgent::Hello(Hello { incarnation: Incarnation(1), role: Role::Coordinator })),
        ("run chat", run(Endpoint::Chat, true)),
        ("run generate", run(Endpoint::Generate, false)),
        ("run embed", run(Endpoint::Embed, false)),
        ("cancel", ToAgent::Cancel(attempt())),
        ("ack", ToAgent::Ack(attempt())),
        ("fetch", ToAgent::Fetch { attempt: attempt(), offset: 65_536 }),
        ("renew", ToAgent::Renew(attempt().job)),
        ("reattach", ToAgent::Reattach(attempt().job)),
        ("take back", ToAgent::TakeBack(attempt())),
    ])
}

pub(crate) fn from_agent() -> Vec<Named<FromAgent>> {
    let outcome = Outcome {
        bytes: 70_000,
        sha256: [0x5a; 32],
        digest: [0xd1; 32],
        done_reason: Text::cut("stop"),
        prompt_tokens: 11,
        output_tokens: 22,
        reasoning_only: false,
        wait_ms: 33,
        wall_us: 44_000,
        first_us: 55,
        load_us: 66,
        prompt_us: 77,
        decode_us: 88,
        total_us: 99,
    };
    let held = Held {
        job: attempt().job,
        open: List::cut(vec![Open { chunk: ChunkIndex(251), no: 3, running: true, tokens: 40 }]).0,
        ended: List::cut(vec![(ChunkIndex(7), 1)]).0,
        whole: true,
    };
    let mut all = named([
        ("hello", FromAgent::Hello(Hello { incarnation: Incarnation(u64::MAX), role: Role::Agent })),
        ("accepted, running", FromAgent::Accepted(attempt(), Place::Running)),
        ("accepted, checking", FromAgent::Accepted(attempt(), Place::Checking)),
        ("accepted, next", FromAgent::Accepted(attempt(), Place::Next)),
        ("accepted, waiting", FromAgent::Accepted(attempt(), Place::Waiting(Text::cut("a-91c2")))),
        ("accepted, settling", FromAgent::Accepted(attempt(), Place::Settling)),
        ("refused, busy", FromAgent::Refused(attempt(), Refusal::Busy { retry_ms: 500 })),
        ("refused, no model", FromAgent::Refused(attempt(), Refusal::NoModel)),
        ("refused, draining", FromAgent::Refused(attempt(), Refusal::Draining(Text::cut("leaving")))),
        ("refused, denied", FromAgent::Refused(attempt(), Refusal::Denied(Text::cut("hours")))),
        ("refused, stale", FromAgent::Refused(attempt(), Refusal::Stale(Incarnation(2)))),
        ("tokens", FromAgent::Tokens { attempt: attempt(), count: 4, text: Content::cut("¡hola!") }),
        ("done", FromAgent::Done(attempt(), Box::new(outcome))),
        ("body", FromAgent::Body(Blob::new(vec![0, 1, 2, 255]).unwrap())),
        ("refused, unknown", FromAgent::Refused(attempt(), Refusal::Unknown)),
        ("beat", FromAgent::Beat(Box::new(Beat { seq: 9, held: held.clone() }))),
        ("attached", FromAgent::Attached(Box::new(held))),
    ]);
    all.extend(Reason::ALL.map(|reason| {
        let failure = Failure { reason, detail: Content::cut("why"), ms: 1_234 };
        (format!("failed, {reason}"), FromAgent::Failed(attempt(), failure))
    }));
    all
}
