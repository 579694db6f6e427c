//! Rows that need no peer.

use std::time::{Duration, Instant};

use tropa_agent::{
    admission::{self, Action, Admission, Event},
    outbox::{self, Finished, Outbox},
};
use tropa_coordinator::job::graph::{
    Graph, MAX_NEEDS, Message as Said, Node, NodeIndex, Piece, Role as Speaker,
};
use tropa_proto::{
    bounded::{Blob, Content, List, Text},
    codec::{self, CodecError, Message},
    evidence::{Core, Evidence, Gpu, GpuKind, Hypervisor, Os, Reading, SaltName, Tag},
    hush::{Hush, WARNS_EVERY},
    id::{AgentId, AttemptId, ChunkIndex, EngineRun, Incarnation, JobId},
    message::{
        AgentState, Announcement, Answer, Beat, FromAgent, Held, Inventory, MAX_BODY, MAX_RESULT,
        MAX_RESULT_FRAME, Model, ModelName, Open, Outcome, Question, Refusal, ToAgent,
    },
    roster::{MAX_AGENTS, MAX_ON_ONE_MACHINE, Out, Roster},
    uid::{MachineClaim, MachineUid},
};

use super::{Fate, Row, row, time};

/// Seconds of a time.
fn seconds(time: Duration) -> usize {
    usize::try_from(time.as_secs()).unwrap()
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        row("announcement", Announcement::CAP, Fate::Refused, frame::<Announcement>),
        row("question, and every other control", Question::CAP, Fate::Refused, frame::<Question>),
        row("roster page", Answer::CAP, Fate::Refused, frame::<Answer>),
        row("`Run`", ToAgent::CAP, Fate::Refused, frame::<ToAgent>),
        row("frame of a result", FromAgent::CAP, Fate::Refused, frame::<FromAgent>),
        row("evidence bundle", Evidence::CAP, Fate::Refused, frame::<Evidence>),
        row("inventory", Inventory::CAP, Fate::Refused, frame::<Inventory>),
        row("open attempts in a `Beat`, which stays below 8 KiB", 128, Fate::Cut, |n| beat(n, 512)),
        row("ended attempts in a `Beat`, which stays below 8 KiB", 512, Fate::Cut, |n| beat(128, n)),
        row("body of a `Run`", MAX_BODY, Fate::Refused, |n| {
            fits(Blob::<MAX_BODY>::new(vec![b' '; n]).is_ok())
        }),
        row("result", MAX_RESULT, Fate::Refused, result),
        row("piece of a result", MAX_RESULT_FRAME, Fate::Refused, |n| {
            fits(Blob::<MAX_RESULT_FRAME>::new(vec![0; n]).is_ok())
        }),
        row("error text", 2_048, Fate::Cut, |n| cut(Content::<2048>::cut(&"x".repeat(n)).len(), n)),
        row("model name", 256, Fate::Refused, |n| fits(ModelName::new("x".repeat(n)).is_ok())),
        row("label", 64, Fate::Refused, |n| fits(Text::<64>::new("x".repeat(n)).is_ok())),
        row("models per install", List::<Model, 1024>::MAX, Fate::Cut, models),
        row("GPUs", 64, Fate::Refused, gpus),
        row("members", MAX_AGENTS, Fate::Ignored, member),
        row("agents on one machine", MAX_ON_ONE_MACHINE, Fate::Ignored, neighbour),
        row("attempts waiting on one agent", admission::MAX_WAITING, Fate::Busy, waiting),
        row("open jobs per coordinator on one agent", admission::MAX_JOBS, Fate::Busy, jobs),
        row("outbox, in bytes", outbox::MAX_BYTES, Fate::Draining, outbox_bytes),
        time("outbox, in seconds", seconds(outbox::KEEP), Fate::Refused, outbox_age),
        row("needs per chunk", MAX_NEEDS, Fate::Refused, needs),
        Row {
            object: "seconds between two warnings of one kind about one peer",
            cap: seconds(WARNS_EVERY),
            fates: [Fate::Ignored, Fate::Taken, Fate::Taken],
            input: warning,
        },
    ]
}

fn fits(is_ok: bool) -> Fate {
    if is_ok { Fate::Taken } else { Fate::Refused }
}

fn cut(kept: usize, of: usize) -> Fate {
    if kept == of { Fate::Taken } else { Fate::Cut }
}

/// Frames of this length: refused means by the length alone, whatever is in it.
fn frame<M: Message>(bytes: usize) -> Fate {
    fits(!matches!(codec::decode::<M>(&vec![codec_version(); bytes]), Err(CodecError::TooLarge { .. })))
}

fn codec_version() -> u8 {
    tropa_proto::message::VERSION
}

fn agent(number: usize) -> AgentId {
    let mut id = [7; 32];
    id[..4].copy_from_slice(&u32::try_from(number).unwrap().to_be_bytes());
    AgentId(id)
}

fn attempt(job: usize, no: usize) -> AttemptId {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&u32::try_from(job).unwrap().to_be_bytes());
    AttemptId { job: JobId(id), chunk: ChunkIndex(0), no: u32::try_from(no).unwrap() }
}

fn beat(open: usize, ended: usize) -> Fate {
    let one = Open { chunk: ChunkIndex(u32::MAX), no: u32::MAX, running: true, tokens: u32::MAX };
    let (open, cut) = List::cut(vec![one; open]);
    let (ended, cut_too) = List::cut(vec![(ChunkIndex(u32::MAX), u32::MAX); ended]);
    let held = Held { job: JobId([255; 16]), open, ended, whole: !cut && !cut_too };
    let bytes = codec::encode(&FromAgent::Beat(Box::new(Beat { seq: u64::MAX, held }))).unwrap();
    assert!(bytes.len() <= 8 << 10, "{} bytes", bytes.len());
    if cut || cut_too { Fate::Cut } else { Fate::Taken }
}

fn outcome(bytes: usize) -> Outcome {
    Outcome { bytes: u32::try_from(bytes).unwrap(), ..Outcome::default() }
}

/// A result that is announced with so many bytes: what cannot be read cannot be written either.
fn result(bytes: usize) -> Fate {
    let done = |bytes| FromAgent::Done(attempt(0, 1), Box::new(outcome(bytes)));
    let written = codec::encode(&done(bytes));
    // The same message of a sender without the rule: the length is the first field after the attempt.
    let mut raw = codec::encode(&done(1 << 16)).unwrap();
    let place = raw.windows(5).position(|four| four == [252, 0, 0, 1, 0]).unwrap();
    raw[place + 1..place + 5].copy_from_slice(&u32::try_from(bytes).unwrap().to_le_bytes());
    let read = codec::decode::<FromAgent>(&raw);
    assert_eq!(read.is_ok(), written.is_ok(), "{bytes}");
    fits(read.is_ok())
}

fn models(count: usize) -> Fate {
    let model = Model {
        name: Text::cut("m:latest"),
        digest: [0; 32],
        fingerprint: [0; 32],
        size: 0,
        context: 0,
        completion: true,
        embedding: false,
        thinking: false,
        tools: false,
        remote: false,
        loaded: None,
    };
    let (kept, is_cut) = List::<Model, 1024>::cut(vec![model; count]);
    assert_eq!(is_cut, kept.len() < count, "the flag says it");
    cut(kept.len(), count)
}

fn gpus(count: usize) -> Fate {
    let mut evidence = Evidence::empty(Os::Linux);
    let gpu = Gpu {
        vendor: Text::cut("nvidia"),
        name: Text::default(),
        uuid: None,
        kind: GpuKind::Full,
        pci: None,
        memory: 0,
        uma: false,
    };
    let gpus = vec![gpu; count];
    let Ok(gpus) = List::new(gpus) else { return Fate::Refused };
    evidence.gpus = gpus;
    fits(codec::encode(&evidence).is_ok())
}

fn announcement(machine: usize) -> Announcement {
    let mut boot = [1; 16];
    boot[..4].copy_from_slice(&u32::try_from(machine).unwrap().to_be_bytes());
    Announcement {
        incarnation: Incarnation(1),
        seq: 1,
        period_ms: 10_000,
        state: AgentState::Ready,
        label: Text::cut("den"),
        core: Core {
            os: Os::Linux,
            hypervisor: Hypervisor::None,
            declared: false,
            time_namespace: false,
            boot_id: Reading::Value(Tag(boot)),
            epoch_ns: Reading::Absent,
            machine_id: Reading::Absent,
            product_uuid: Reading::Absent,
            host_cpus: 2,
            memory: 1 << 30,
            gpus: List::default(),
            salt: SaltName::default(),
        },
        sampled_ms_ago: 0,
        machine: MachineClaim::new(MachineUid { created_ms: 1, random: boot }),
        locks: List::default(),
        width: 1,
        engine: EngineRun(1),
        bundle: [0; 32],
        inventory: [0; 32],
        addresses: List::default(),
    }
}

fn member(count: usize) -> Fate {
    let mut roster = Roster::new(false);
    for number in 0..count {
        roster.announced(agent(number), announcement(number), Duration::ZERO);
    }
    assert!(roster.knows(agent(0)));
    if roster.knows(agent(count - 1)) { Fate::Taken } else { Fate::Ignored }
}

fn neighbour(count: usize) -> Fate {
    let mut roster = Roster::new(false);
    for number in 0..count {
        roster.announced(agent(number), announcement(0), Duration::from_secs(number as u64));
    }
    let view = roster.view();
    let out = |number| view.install(agent(number)).is_some_and(|install| install.out == Some(Out::TooMany));
    assert!(!out(0));
    if out(count - 1) { Fate::Ignored } else { Fate::Taken }
}

/// The fate of a `Run`: what is neither refused nor failed is taken.
fn fate(actions: &[Action]) -> Fate {
    for action in actions {
        match action {
            Action::Refuse(_, Refusal::Busy { .. }) => return Fate::Busy,
            Action::Refuse(_, Refusal::Draining(_)) => return Fate::Draining,
            Action::Refuse(..) | Action::Fail(..) => return Fate::Refused,
            Action::Accept(..)
            | Action::Deliver(_)
            | Action::Discard(_)
            | Action::Start { .. }
            | Action::HangUp(_)
            | Action::Acquire
            | Action::Release
            | Action::Settle
            | Action::Probe => {}
        }
    }
    Fate::Taken
}

#[expect(clippy::disallowed_methods, reason = "an Instant has no other source; only differences matter")]
fn now() -> Instant {
    Instant::now()
}

fn run(admission: &mut Admission, key: admission::Key, room: bool) -> Fate {
    let run = Event::Run { key, incarnation: Incarnation(7), runner: Ok("m".to_owned()), at_once: 64, room };
    fate(&admission.handle(run, now().into()))
}

fn waiting(count: usize) -> Fate {
    let mut admission = Admission::new(Incarnation(7), 1);
    let fates = (0..count).map(|number| run(&mut admission, (agent(number), attempt(0, 1)), true));
    fates.last().unwrap()
}

fn jobs(count: usize) -> Fate {
    let mut admission = Admission::new(Incarnation(7), 32);
    let fates = (0..count).map(|number| run(&mut admission, (agent(0), attempt(number, 1)), true));
    fates.last().unwrap()
}

/// A `Run` beside so many bytes of results, its own largest included.
fn outbox_bytes(bytes: usize) -> Fate {
    let own = own_cost();
    let room = Outbox::default().has_room_for(1, bytes - own);
    run(&mut Admission::new(Incarnation(7), 1), (agent(0), attempt(0, 1)), room)
}

/// What one attempt reserves: found as the most that fits beside nothing else.
fn own_cost() -> usize {
    let mut outbox = Outbox::default();
    outbox.insert(
        (agent(0), attempt(0, 1)),
        Finished { outcome: outcome(MAX_RESULT), result: vec![0; MAX_RESULT].into() },
        now().into(),
    );
    outbox.bytes()
}

fn outbox_age(seconds: usize) -> Fate {
    let (mut outbox, start) = (Outbox::default(), now());
    let key = (agent(0), attempt(0, 1));
    outbox.insert(key, Finished { outcome: outcome(1), result: vec![0].into() }, start.into());
    let expired = outbox.expire((start + Duration::from_secs(seconds as u64)).into());
    assert_eq!(expired.is_empty(), outbox.get(&key).is_some(), "what is given up is named");
    fits(expired.is_empty())
}

fn needs(count: usize) -> Fate {
    let ask = |content| vec![Said::new(Speaker::User, content)];
    let mut graph = Graph::default();
    for number in 0..count {
        let node = Node::new(number.to_string(), "part", 1, ask(vec![Piece::Text("x".to_owned())]));
        graph.add(node).unwrap();
    }
    let all = (0..u32::try_from(count).unwrap()).map(|number| Piece::Answer(NodeIndex(number))).collect();
    fits(graph.add(Node::new("all", "synthesis", 1, ask(all)).shown()).is_ok())
}

fn warning(seconds: usize) -> Fate {
    let (mut hush, start) = (Hush::default(), now());
    assert_eq!(hush.warns(&"a peer", start), Some(0));
    match hush.warns(&"a peer", start + Duration::from_secs(seconds as u64)) {
        Some(_) => Fate::Taken,
        None => Fate::Ignored,
    }
}
