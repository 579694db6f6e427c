//! Generated values of every wire type: anything that the types allow and `check` accepts.

use std::net::SocketAddr;

use proptest::{
    collection::{btree_set, vec},
    option,
    prelude::any,
    prop_compose, prop_oneof,
    sample::select,
    strategy::{Just, Strategy},
};
use tropa_proto::{
    bounded::{Blob, List, Text},
    evidence::{
        Attribution, Bundle, Core, Cpus, Evidence, Gpu, GpuKind, Hypervisor, HypervisorClass, LaneClaim, Os,
        Reading, SaltName, Tag,
    },
    failure::Reason,
    id::{AgentId, AttemptId, ChunkIndex, EngineRun, Incarnation, JobId},
    known::Known,
    message::{
        AgentState, Announcement, Answer, Beat, Counters, Description, Endpoint, EngineState, Failure,
        FromAgent, Held, Hello, Inventory, LiveFinding, LiveStep, Loaded, MAX_RESULT, Model, Open, Outcome,
        Place, Question, Refusal, Role, Run, ToAgent,
    },
    permit::{Permit, Shut},
    uid::{Before, Change, MachineClaim, MachineUid},
};

/// Longest generated list or text, so that a case stays quick; bounds have tests of their own.
const LONGEST: usize = 40;

fn text<const MAX: usize>() -> impl Strategy<Value = Text<MAX>> + Clone {
    vec(any::<char>(), 0..LONGEST).prop_map(|characters| Text::cut(&String::from_iter(characters)))
}

fn blob<const MAX: usize>() -> impl Strategy<Value = Blob<MAX>> {
    vec(any::<u8>(), 0..200).prop_map(|bytes| Blob::new(bytes).unwrap())
}

fn list<T: std::fmt::Debug, const MAX: usize>(
    element: impl Strategy<Value = T>,
) -> impl Strategy<Value = List<T, MAX>> {
    vec(element, 0..=MAX.min(LONGEST)).prop_map(|values| List::new(values).unwrap())
}

fn reading<T: Clone + std::fmt::Debug>(
    value: impl Strategy<Value = T> + Clone,
) -> impl Strategy<Value = Reading<T>> {
    prop_oneof![
        value.clone().prop_map(Reading::Value),
        value.prop_map(Reading::Virtual),
        Just(Reading::Absent),
        Just(Reading::Denied),
        text().prop_map(Reading::Rejected),
    ]
}

fn tag() -> impl Strategy<Value = Tag> + Clone {
    any::<[u8; 16]>().prop_map(Tag)
}

fn tags<const MAX: usize>() -> impl Strategy<Value = Reading<List<Tag, MAX>>> {
    reading(vec(tag(), 0..=8).prop_map(|tags| List::new(tags).unwrap()))
}

fn os() -> impl Strategy<Value = Os> {
    select(&[Os::Linux, Os::Macos, Os::Windows][..])
}

fn hypervisor() -> impl Strategy<Value = Hypervisor> {
    select(&[Hypervisor::None, Hypervisor::Root, Hypervisor::Vm, Hypervisor::Unknown][..])
}

fn salt() -> impl Strategy<Value = SaltName> {
    any::<[u8; 4]>().prop_map(SaltName)
}

prop_compose! {
    fn core()(
        os in os(),
        hypervisor in hypervisor(),
        (declared, time_namespace) in any::<(bool, bool)>(),
        boot_id in reading(tag()),
        epoch_ns in reading(any::<i64>()),
        machine_id in reading(tag()),
        product_uuid in reading(tag()),
        (host_cpus, memory) in any::<(u16, u64)>(),
        gpus in list(tag()),
        salt in salt(),
    ) -> Core {
        Core {
            os, hypervisor, declared, time_namespace, boot_id, epoch_ns, machine_id, product_uuid, host_cpus,
            memory, gpus, salt,
        }
    }
}

prop_compose! {
    pub(crate) fn announcement()(
        (incarnation, seq) in any::<(u64, u64)>(),
        period_ms in 1_000..=660_000_u32,
        state in select(&[AgentState::Ready, AgentState::Draining, AgentState::Leaving, AgentState::Ill][..]),
        label in text(),
        core in core(),
        sampled_ms_ago in any::<u32>(),
        machine in machine(),
        locks in list(any::<[u8; 8]>()),
        width in 0..=64_u16,
        engine in any::<u32>().prop_map(EngineRun),
        (bundle, inventory) in any::<([u8; 32], [u8; 32])>(),
        addresses in list(any::<SocketAddr>().prop_map(plain)),
    ) -> Announcement {
        Announcement {
            incarnation: Incarnation(incarnation), seq, period_ms, state, label, core, sampled_ms_ago, machine,
            locks, width, engine, bundle, inventory, addresses,
        }
    }
}

fn uid() -> impl Strategy<Value = MachineUid> {
    (0..1_u64 << 48, any::<[u8; 16]>()).prop_map(|(created_ms, random)| MachineUid { created_ms, random })
}

prop_compose! {
    fn machine()(
        (uid, other) in (uid(), uid()),
        kind in 0..3_u8,
        hardware in any::<u8>(),
        (same_boot, durable) in any::<(bool, bool)>(),
        change in select(&[Change::None, Change::HardwareChanged, Change::Moved][..]),
    ) -> MachineClaim {
        let before = match kind {
            1 if other != uid => Before::Alias(other),
            2 if other != uid => Before::CopyOf(other),
            _ => Before::Nothing,
        };
        MachineClaim { uid, before, hardware, same_boot, change, durable }
    }
}

/// An IPv6 address has a flow and a scope that mean nothing elsewhere, and that do not travel.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

fn known() -> impl Strategy<Value = Known> {
    (any::<u64>(), blob()).prop_map(|(salt, bits)| Known { salt, bits })
}

pub(crate) fn question() -> impl Strategy<Value = Question> {
    prop_oneof![
        (any::<u32>(), known()).prop_map(|(from, known)| Question::Roster { from, known }),
        Just(Question::Describe),
        (any::<u64>(), live_step()).prop_map(|(id, step)| Question::LiveTest { id, step }),
    ]
}

fn live_step() -> impl Strategy<Value = LiveStep> {
    prop_oneof![
        any::<([u8; 16], [u8; 32])>().prop_map(|(place, nonce)| LiveStep::Offer { place, nonce }),
        any::<[u8; 16]>().prop_map(|place| LiveStep::Meet { place }),
        Just(LiveStep::Clock),
        Just(LiveStep::Counters),
        Just(LiveStep::Neighbours),
    ]
}

fn live_finding() -> impl Strategy<Value = LiveFinding> {
    let counter = || reading(any::<u64>());
    prop_oneof![
        Just(LiveFinding::Offered),
        any::<[u8; 32]>().prop_map(LiveFinding::Met),
        (0..=i64::MAX / 2, 0..=i64::MAX / 2)
            .prop_map(|(received_ns, took)| LiveFinding::Clock { received_ns, sent_ns: received_ns + took }),
        (counter(), counter(), counter(), counter()).prop_map(|(ctxt, processes, pgfault, pgfree)| {
            LiveFinding::Counters(Counters { ctxt, processes, pgfault, pgfree })
        }),
        text().prop_map(LiveFinding::Cannot),
        btree_set(any::<[u8; 32]>().prop_map(AgentId), 0..=64)
            .prop_map(|agents| LiveFinding::Neighbours(List::cut(agents.into_iter().collect()).0)),
    ]
}

pub(crate) fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        (list(blob()), any::<bool>()).prop_map(|(signed, more)| Answer::Roster { signed, more }),
        description().boxed().prop_map(|description| Answer::Description(Box::new(description))),
        Just(Answer::Nothing),
        (any::<(u64, u64)>(), live_finding()).prop_map(|((id, incarnation), finding)| Answer::LiveTest {
            id,
            incarnation: Incarnation(incarnation),
            finding
        }),
    ]
}

prop_compose! {
    fn gpu()(
        (vendor, name) in (text(), text()),
        uuid in option::of(tag()),
        kind in prop_oneof![
            Just(GpuKind::Full),
            tag().prop_map(|parent| GpuKind::Mig { parent }),
            Just(GpuKind::Vgpu),
        ],
        pci in option::of(text()),
        (memory, uma) in any::<(u64, bool)>(),
    ) -> Gpu<Tag> {
        Gpu { vendor, name, uuid, kind, pci, memory, uma }
    }
}

prop_compose! {
    fn lane()(
        (gpus, numa_nodes) in (list(any::<u16>()), list(any::<u16>())),
        dram in any::<bool>(),
        method in select(&[
            Attribution::Operator, Attribution::Process, Attribution::DrmFd, Attribution::ServerLog,
            Attribution::Environment, Attribution::VramStep, Attribution::Everything,
        ][..]),
    ) -> LaneClaim {
        LaneClaim { gpus, dram, numa_nodes, method }
    }
}

prop_compose! {
    fn cpus()(
        (host, physical, numa_nodes) in any::<(u16, u16, u16)>(),
        (allowed, memory_nodes) in (text(), text()),
        quota_milli in any::<Option<u32>>(),
    ) -> Cpus {
        Cpus { host, physical, allowed, quota_milli, memory_nodes, numa_nodes }
    }
}

prop_compose! {
    fn evidence()(
        (os, hypervisor) in (os(), hypervisor()),
        hypervisor_class in select(&[
            HypervisorClass::Homelab, HypervisorClass::Desktop, HypervisorClass::Cloud, HypervisorClass::Unknown,
        ][..]),
        (declared, time_namespace, memory) in any::<(bool, bool, u64)>(),
        (boot_id, machine_id, product_uuid) in (reading(tag()), reading(tag()), reading(tag())),
        (platform_uuid, machine_guid, wsl_host_guid) in (reading(tag()), reading(tag()), reading(tag())),
        (ppin, macs, nvme, hosts_vms) in (tags(), tags(), tags(), tags()),
        gpus in list(gpu()),
        cpu_model in reading(text()),
        cpus in cpus(),
        machine_rule in option::of(tag()),
        (lane, anywhere) in (lane(), lane()),
        salt in salt(),
    ) -> Evidence {
        Bundle {
            os, hypervisor, hypervisor_class, declared, time_namespace, boot_id, machine_id, product_uuid,
            platform_uuid, machine_guid, wsl_host_guid, ppin, macs, nvme, hosts_vms, gpus, cpu_model, cpus,
            memory, machine_rule, lane, anywhere, salt,
        }
    }
}

prop_compose! {
    fn model()(
        name in text(),
        (digest, fingerprint) in any::<([u8; 32], [u8; 32])>(),
        (size, context) in any::<(u64, u32)>(),
        (completion, embedding, thinking, tools, remote) in any::<(bool, bool, bool, bool, bool)>(),
        loaded in option::of(any::<(u64, u64, u32)>()),
    ) -> Model {
        let loaded = loaded.map(|(size, size_vram, context)| Loaded { size, size_vram, context });
        Model { name, digest, fingerprint, size, context, completion, embedding, thinking, tools, remote, loaded }
    }
}

prop_compose! {
    pub(crate) fn description()(
        // Generators are larger than what they generate: on the heap they leave the stack to the code under test.
        (evidence, former) in (evidence().boxed(), option::of(evidence().boxed())),
        engine in prop_oneof![
            Just(EngineState::Up),
            text().prop_map(EngineState::Down),
            Just(EngineState::TooOld),
            text().prop_map(EngineState::NotOllama),
        ],
        version in text(),
        models in list(model()),
        (cut, port) in any::<(bool, u16)>(),
        permitted in list(text()),
        (num_ctx, num_predict, images, rate) in any::<(u32, u32, bool, u32)>(),
        hours in text(),
        shut in option::of(prop_oneof![text().prop_map(Shut::Hours), text().prop_map(Shut::Rate)]),
        denied in text(),
    ) -> Description {
        let permit = Permit { models: permitted, num_ctx, num_predict, images, hours, rate, shut };
        let inventory = Inventory { engine, version, models, cut, port, permit };
        Description { evidence, former: former.map(Box::new), inventory, denied }
    }
}

fn hello() -> impl Strategy<Value = Hello> {
    (any::<u64>(), select(&[Role::Agent, Role::Coordinator][..]))
        .prop_map(|(incarnation, role)| Hello { incarnation: Incarnation(incarnation), role })
}

fn attempt() -> impl Strategy<Value = AttemptId> {
    any::<([u8; 16], u32, u32)>().prop_map(|(job, chunk, no)| AttemptId {
        job: JobId(job),
        chunk: ChunkIndex(chunk),
        no,
    })
}

prop_compose! {
    fn run()(
        attempt in attempt(),
        incarnation in any::<u64>(),
        endpoint in select(&[Endpoint::Chat, Endpoint::Generate, Endpoint::Embed][..]),
        model in text(),
        fingerprint in any::<[u8; 32]>(),
        (deadline_ms, first_token_ms, idle_ms) in any::<(u64, u64, u64)>(),
        (show_text, at_once) in any::<(bool, u16)>(),
        body in blob(),
    ) -> Run {
        Run {
            attempt, incarnation: Incarnation(incarnation), endpoint, model, fingerprint, deadline_ms,
            first_token_ms, idle_ms, show_text, at_once, body,
        }
    }
}

pub(crate) fn to_agent() -> impl Strategy<Value = ToAgent> {
    prop_oneof![
        hello().prop_map(ToAgent::Hello),
        run().prop_map(|run| ToAgent::Run(Box::new(run))),
        attempt().prop_map(ToAgent::Cancel),
        attempt().prop_map(ToAgent::Ack),
        (attempt(), any::<u32>()).prop_map(|(attempt, offset)| ToAgent::Fetch { attempt, offset }),
        any::<[u8; 16]>().prop_map(|job| ToAgent::Renew(JobId(job))),
        any::<[u8; 16]>().prop_map(|job| ToAgent::Reattach(JobId(job))),
        attempt().prop_map(ToAgent::TakeBack),
    ]
}

prop_compose! {
    fn outcome()(
        bytes in 0..=MAX_RESULT as u32,
        (prompt_tokens, output_tokens, wait_ms) in any::<(u32, u32, u32)>(),
        (sha256, digest) in any::<([u8; 32], [u8; 32])>(),
        done_reason in text(),
        reasoning_only in any::<bool>(),
        (wall_us, first_us, load_us) in any::<(u64, u64, u64)>(),
        (prompt_us, decode_us, total_us) in any::<(u64, u64, u64)>(),
    ) -> Outcome {
        Outcome {
            bytes, sha256, digest, done_reason, prompt_tokens, output_tokens, reasoning_only, wait_ms, wall_us,
            first_us, load_us, prompt_us, decode_us, total_us,
        }
    }
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        Just(Place::Running),
        Just(Place::Next),
        text().prop_map(Place::Waiting),
        Just(Place::Settling),
    ]
}

fn refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![
        any::<u32>().prop_map(|retry_ms| Refusal::Busy { retry_ms }),
        Just(Refusal::NoModel),
        text().prop_map(Refusal::Draining),
        text().prop_map(Refusal::Denied),
        any::<u64>().prop_map(|incarnation| Refusal::Stale(Incarnation(incarnation))),
        Just(Refusal::Unknown),
    ]
}

prop_compose! {
    fn held()(
        job in any::<[u8; 16]>(),
        open in list(any::<(u32, u32, bool, u32)>().prop_map(|(chunk, no, running, tokens)| Open {
            chunk: ChunkIndex(chunk), no, running, tokens,
        })),
        ended in list(any::<(u32, u32)>().prop_map(|(chunk, no)| (ChunkIndex(chunk), no))),
        whole in any::<bool>(),
    ) -> Held {
        Held { job: JobId(job), open, ended, whole }
    }
}

pub(crate) fn from_agent() -> impl Strategy<Value = FromAgent> {
    prop_oneof![
        hello().prop_map(FromAgent::Hello),
        (attempt(), place()).prop_map(|(attempt, place)| FromAgent::Accepted(attempt, place)),
        (attempt(), refusal()).prop_map(|(attempt, refusal)| FromAgent::Refused(attempt, refusal)),
        (attempt(), any::<u32>(), text()).prop_map(|(attempt, count, text)| FromAgent::Tokens {
            attempt,
            count,
            text: text.into()
        }),
        (attempt(), outcome()).prop_map(|(attempt, outcome)| FromAgent::Done(attempt, Box::new(outcome))),
        blob().prop_map(FromAgent::Body),
        (attempt(), select(&Reason::ALL[..]), text(), any::<u32>()).prop_map(
            |(attempt, reason, detail, ms)| FromAgent::Failed(
                attempt,
                Failure { reason, detail: detail.into(), ms }
            )
        ),
        (any::<u64>(), held()).prop_map(|(seq, held)| FromAgent::Beat(Box::new(Beat { seq, held }))),
        held().prop_map(|held| FromAgent::Attached(Box::new(held))),
    ]
}
