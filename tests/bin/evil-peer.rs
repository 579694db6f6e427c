//! Speaks the wire and breaks one rule, for a while: `evil-peer --target ADDRESS --mode MODE [--secret-file FILE]`.
//!
//! Modes of who is outside: `garbage` (bytes that are no handshake), `drip` (a handshake of one byte a second),
//! `connects` (100 connections a second), `stranger` (another secret, or none). Modes of who is inside: `flood` (1,000
//! valid announcements a second, until it is shut out), `identities` (many keys that claim to be agents), `silent`
//! (streams without a hello), `thief` (asks for, cancels and acknowledges what others sent), `orders` (proper orders,
//! whoever denies them), `replay` (one announcement under lower numbers), `oversize` (frames above their cap, lengths
//! of 2⁴⁰, bytes after the message), `malformed` (gossip that is nothing, and what the target says itself, touched and
//! under another name).
//!
//! Prints one line of JSON: what it tried, what was taken, how long a refusal took, whether it is shut out, and how
//! often a flooder was asked what it has.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use tokio::{sync::mpsc, time::timeout};
use tropa_proto::{
    bounded::{Blob, List, Text},
    chunk_stream::greet_agent,
    codec::{self, Message as _},
    evidence::{Core, Hypervisor, Os, Reading, SaltName},
    id::{AgentId, AttemptId, ChunkIndex, EngineRun, Incarnation, JobId},
    known::Known,
    mesh::{Mesh, MeshConfig, MeshEvent, start},
    message::{
        AgentState, Announcement, Answer, Endpoint, FromAgent, Hello, Question, Refusal, Role, Run, ToAgent,
    },
    secret::MeshSecret,
    uid::{MachineClaim, MachineUid},
};

#[derive(Debug, Parser)]
struct Args {
    /// The agent to trouble.
    #[arg(long)]
    target: SocketAddr,
    /// The rule to break.
    #[arg(long)]
    mode: Mode,
    /// The secret of its mesh; without one the public prologue is used.
    #[arg(long)]
    secret_file: Option<PathBuf>,
    /// For how long.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// The job whose attempts the thief asks for.
    #[arg(long, default_value = "00000000000000000000000000000000")]
    job: JobId,
}

/// Messages in 20 ms: 1,000 a second.
const AT_ONCE: u32 = 20;

/// Keys: an unoptimised program takes its time for each connection, so that there more would only measure the compiler.
const IDENTITIES: usize = if cfg!(debug_assertions) { 20 } else { 200 };

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Garbage,
    Drip,
    Connects,
    Stranger,
    Flood,
    Identities,
    Silent,
    Thief,
    Orders,
    Replay,
    Oversize,
    Malformed,
}

/// Times that a stranger knocks: enough for a median.
const KNOCKS: usize = 15;

/// What was tried, and how often it worked.
#[derive(Debug, Default)]
struct Count {
    tried: u64,
    taken: u64,
    /// From the dial until the target closed the door, where it did, in microseconds: the median.
    refused_us: Option<u128>,
    /// In the end the target takes no connection any more.
    shut_out: bool,
    /// Questions of others about itself.
    asked: u64,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "what the program is for")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let until = now() + Duration::from_secs(args.seconds);
    let count = match args.mode {
        Mode::Garbage | Mode::Drip | Mode::Connects => {
            let (target, mode) = (args.target, args.mode);
            tokio::task::spawn_blocking(move || raw(target, mode, until)).await??
        }
        Mode::Stranger => stranger(&args).await?,
        Mode::Flood | Mode::Replay => talk(&args, until).await?,
        Mode::Identities => identities(&args, until).await?,
        Mode::Silent | Mode::Thief | Mode::Orders => streams(&args, until).await?,
        Mode::Oversize => oversize(&args, until).await?,
        Mode::Malformed => malformed(&args, until).await?,
    };
    let refused = count.refused_us.map_or("null".to_owned(), |us| us.to_string());
    let Count { tried, taken, shut_out, asked, .. } = count;
    println!(
        r#"{{"tried":{tried},"taken":{taken},"refused_us":{refused},"shut_out":{shut_out},"asked":{asked}}}"#
    );
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a driver owns its clock")]
fn now() -> Instant {
    Instant::now()
}

/// Bytes that are no handshake. Taken is a connection that was answered with more than the first line of libp2p.
fn raw(target: SocketAddr, mode: Mode, until: Instant) -> Result<Count> {
    let mut count = Count::default();
    let mut held = Vec::new();
    let mut random = 1_u64;
    while now() < until {
        count.tried += 1;
        let Ok(mut stream) = TcpStream::connect_timeout(&target, Duration::from_secs(1)) else { continue };
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        match mode {
            Mode::Garbage => {
                let noise: Vec<u8> = (0..4_096)
                    .map(|_| {
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        random.to_be_bytes()[0]
                    })
                    .collect();
                let _ = stream.write_all(&noise);
                let mut answer = [0; 4_096];
                let read = stream.read(&mut answer).unwrap_or(0);
                count.taken += u64::from(read > 64);
            }
            Mode::Drip => {
                let _ = stream.write_all(&[0x13]);
                held.push(stream);
                std::thread::park_timeout(Duration::from_millis(20));
            }
            Mode::Connects
            | Mode::Stranger
            | Mode::Flood
            | Mode::Identities
            | Mode::Silent
            | Mode::Thief
            | Mode::Orders
            | Mode::Replay
            | Mode::Oversize
            | Mode::Malformed => {
                held.push(stream);
                std::thread::park_timeout(Duration::from_millis(10));
            }
        }
        if held.len() > 400 {
            held.drain(..200);
        }
    }
    Ok(count)
}

fn config(args: &Args, key: u8) -> Result<MeshConfig> {
    let mut seed = [key; 32];
    seed[..4].copy_from_slice(&std::process::id().to_be_bytes());
    let secret =
        args.secret_file.as_deref().map(MeshSecret::read).transpose().context("reading the secret")?;
    Ok(MeshConfig { secret, peers: vec![args.target], ..MeshConfig::loopback(seed, Role::Agent) })
}

/// Waits until the target is connected; `None` when it is not within 10 s.
async fn join(config: MeshConfig) -> Result<Option<(Mesh, mpsc::Receiver<MeshEvent>, AgentId)>> {
    let (mesh, mut events) = start(config).await?;
    let connected = timeout(Duration::from_secs(10), async {
        while let Some(event) = events.recv().await {
            if let MeshEvent::Connected(agent) = event {
                return Some(agent);
            }
        }
        None
    });
    Ok(connected.await.ok().flatten().map(|agent| (mesh, events, agent)))
}

/// Knocks with another secret, one time after the other. The own start is no part of the time, the dial is.
async fn stranger(args: &Args) -> Result<Count> {
    let config = MeshConfig { secret: Some(MeshSecret::generate()?), peers: Vec::new(), ..config(args, 1)? };
    let (mesh, mut events) = start(config).await?;
    let (mut count, mut took) = (Count::default(), Vec::new());
    for _ in 0..KNOCKS {
        let begin = now();
        count.tried += 1;
        mesh.dial(args.target).await;
        match timeout(Duration::from_secs(10), answered(&mut events)).await {
            Ok(true) => count.taken += 1,
            Ok(false) => took.push(begin.elapsed().as_micros()),
            Err(_) => {}
        }
    }
    took.sort_unstable();
    count.refused_us = took.get(took.len() / 2).copied();
    Ok(count)
}

/// Waits until a dial is decided; says whether it was taken.
async fn answered(events: &mut mpsc::Receiver<MeshEvent>) -> bool {
    while let Some(event) = events.recv().await {
        match event {
            MeshEvent::Connected(_) => return true,
            MeshEvent::DialFailed { .. } => return false,
            MeshEvent::Announced { .. }
            | MeshEvent::Disconnected(_)
            | MeshEvent::Incoming(..)
            | MeshEvent::Asked { .. }
            | MeshEvent::Listening(_) => {}
        }
    }
    false
}

/// Frames that break the rules of `security.md` §5.1, until nothing is taken any more. Taken is one after which the
/// stream goes on.
async fn oversize(args: &Args, until: Instant) -> Result<Count> {
    let mut count = Count::default();
    let config = MeshConfig { role: Role::Coordinator, ..config(args, 4)? };
    let Some((mesh, _events, agent)) = join(config).await? else { return Ok(count) };
    let frame = |length: usize, body: &[u8]| {
        [u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes().as_slice(), body].concat()
    };
    // A `Run` whose model's name is 2⁴⁰ bytes long, and a `Cancel` with one byte more.
    let long = [[1, 1].as_slice(), &[0; 16], &[0, 1, 1, 0, 0xfd, 0, 0, 0, 0, 0, 1, 0, 0]].concat();
    let mut more = codec::encode(&ToAgent::Renew(args.job))?;
    more.push(0);
    let frames = [
        frame(ToAgent::CAP + 1, &[1]),
        frame(usize::MAX, &[]),
        frame(long.len(), &long),
        frame(more.len(), &more),
    ];
    while now() < until && !count.shut_out {
        for bytes in &frames {
            let opened = timeout(Duration::from_secs(2), mesh.open(agent)).await;
            let Ok(Ok(mut stream)) = opened else { continue };
            let hello = Hello { incarnation: Incarnation(1), role: Role::Coordinator };
            if greet_agent(&mut stream, hello).await.is_err() {
                continue;
            }
            count.tried += 1;
            let (mut reader, mut writer) = stream.split();
            let _ = writer.send_raw(bytes).await;
            let after = timeout(Duration::from_secs(2), reader.recv::<FromAgent>()).await;
            count.taken += u64::from(matches!(after, Err(_) | Ok(Ok(Some(_)))));
        }
        // Whoever is let in is answered.
        let asked = timeout(
            Duration::from_secs(2),
            mesh.ask(agent, Question::Roster { from: 0, known: Known::nothing() }),
        )
        .await;
        count.shut_out = !matches!(asked, Ok(Ok(_)));
    }
    Ok(count)
}

/// Says what an agent says, far too often, or with numbers that fall.
async fn talk(args: &Args, until: Instant) -> Result<Count> {
    let mut count = Count::default();
    let Some((mesh, mut events, agent)) = join(config(args, 2)?).await? else { return Ok(count) };
    let mut seq = 1_000_000;
    while now() < until && !count.shut_out {
        for _ in 0..AT_ONCE {
            let falls = matches!(args.mode, Mode::Replay) && count.tried > 0;
            seq = if falls { seq - 1 } else { seq + 1 };
            count.tried += 1;
            count.taken += u64::from(mesh.publish(announcement(seq, &mesh)).await.is_ok());
        }
        let mut closed = false;
        while let Ok(event) = events.try_recv() {
            count.asked += u64::from(matches!(event, MeshEvent::Asked { .. }));
            closed |= matches!(event, MeshEvent::Disconnected(of) if of == agent);
        }
        if closed {
            // Whoever is let in again is answered.
            count.shut_out =
                mesh.ask(agent, Question::Roster { from: 0, known: Known::nothing() }).await.is_err();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(count)
}

/// Many keys, each an agent that says it is there.
async fn identities(args: &Args, until: Instant) -> Result<Count> {
    let mut count = Count::default();
    let mut held = Vec::new();
    while now() < until && held.len() < IDENTITIES {
        count.tried += 1;
        let key = u8::try_from(count.tried % 251).unwrap_or(0);
        let mut config = config(args, key)?;
        config.key[4..8].copy_from_slice(&u32::try_from(count.tried).unwrap_or(0).to_be_bytes());
        let (mesh, events) = start(config).await?;
        mesh.publish(announcement(1, &mesh)).await?;
        held.push((mesh, events));
    }
    tokio::time::sleep(until.saturating_duration_since(now())).await;
    for (_, events) in &mut held {
        while let Ok(event) = events.try_recv() {
            count.taken += u64::from(matches!(event, MeshEvent::Connected(_)));
        }
    }
    Ok(count)
}

/// Streams on which nothing is said, or which ask for what others sent.
async fn streams(args: &Args, until: Instant) -> Result<Count> {
    let mut count = Count::default();
    let mut config = config(args, 3)?;
    config.role = Role::Coordinator;
    let Some((mesh, _events, agent)) = join(config).await? else { return Ok(count) };
    let mut held = Vec::new();
    while now() < until {
        count.tried += 1;
        let opened = timeout(Duration::from_secs(2), mesh.open(agent)).await;
        let Ok(Ok(mut stream)) = opened else { continue };
        if matches!(args.mode, Mode::Silent) {
            held.push(stream);
            continue;
        }
        let hello = Hello { incarnation: Incarnation(1), role: Role::Coordinator };
        let Ok(theirs) = greet_agent(&mut stream, hello).await else { continue };
        let chunk = ChunkIndex(u32::try_from(count.tried % 16).unwrap_or(0));
        let attempt = AttemptId { job: args.job, chunk, no: 1 };
        let (mut reader, mut writer) = stream.split();
        if matches!(args.mode, Mode::Orders) {
            let attempt = AttemptId { no: u32::try_from(count.tried).unwrap_or(u32::MAX), ..attempt };
            let _ = writer.send(&ToAgent::Run(Box::new(order(attempt, theirs.incarnation)))).await;
            let answer = timeout(Duration::from_secs(1), reader.recv()).await;
            let denied = matches!(answer, Ok(Ok(Some(FromAgent::Refused(_, Refusal::Denied(_))))));
            count.taken += u64::from(!denied);
            continue;
        }
        for order in [ToAgent::Cancel(attempt), ToAgent::TakeBack(attempt), ToAgent::Ack(attempt)] {
            let _ = writer.send(&order).await;
        }
        // A stranger's attempt is unknown: the answer is that it was cancelled, never a result.
        let answer = timeout(Duration::from_secs(1), reader.recv()).await;
        count.taken += u64::from(matches!(answer, Ok(Ok(Some(FromAgent::Done(..))))));
    }
    Ok(count)
}

/// An attempt with which nothing is wrong.
fn order(attempt: AttemptId, incarnation: Incarnation) -> Run {
    let body = r#"{"model":"tiny:latest","messages":[{"role":"user","content":"a llama"}],"stream":true,"truncate":false,
        "shift":false,"keep_alive":"60s","think":false,"options":{"num_ctx":1024,"num_predict":10}}"#;
    Run {
        attempt,
        incarnation,
        endpoint: Endpoint::Chat,
        model: Text::cut("tiny:latest"),
        fingerprint: [0; 32],
        deadline_ms: 20_000,
        first_token_ms: 10_000,
        idle_ms: 10_000,
        show_text: false,
        at_once: 1,
        body: Blob::new(body.into()).unwrap_or_else(|_| unreachable!("a few bytes fit")),
    }
}

/// Gossip that nobody honest sends. Taken is what then stands in the target's roster beside what it says itself.
async fn malformed(args: &Args, until: Instant) -> Result<Count> {
    let mut count = Count::default();
    let Some((mesh, mut events, agent)) = join(config(args, 5)?).await? else { return Ok(count) };
    let roster = async || match mesh.ask(agent, Question::Roster { from: 0, known: Known::nothing() }).await {
        Ok(Answer::Roster { signed, .. }) => signed.into_vec(),
        Ok(Answer::Description(_) | Answer::Nothing | Answer::LiveTest { .. }) | Err(_) => Vec::new(),
    };
    let own = roster().await.first().map(|envelope| envelope.to_vec()).unwrap_or_default();
    let mut random = 1_u64;
    while now() < until {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let place = usize::try_from(random >> 33).unwrap_or(0);
        let bytes = match count.tried % 4 {
            0 => random.to_be_bytes().repeat(1 + place % 512),
            // Another's words as one's own, as they are and with one bit turned.
            1 => own.clone(),
            2 => {
                let mut touched = own.clone();
                let length = touched.len().max(1);
                if let Some(byte) = touched.get_mut(place % length) {
                    *byte ^= 1 << (random % 8);
                }
                touched
            }
            _ => own[..place % own.len().max(1)].to_vec(),
        };
        count.tried += 1;
        mesh.publish_raw(bytes).await?;
        while events.try_recv().is_ok() {}
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    count.taken = roster().await.len().saturating_sub(1) as u64;
    Ok(count)
}

/// Each number has another inventory, so that every announcement is a change to ask about.
fn announcement(seq: u64, mesh: &Mesh) -> Announcement {
    let mut inventory = [2; 32];
    inventory[..8].copy_from_slice(&seq.to_be_bytes());
    Announcement {
        incarnation: Incarnation(1),
        seq,
        period_ms: 10_000,
        state: AgentState::Ready,
        label: Text::cut("evil"),
        core: Core {
            os: Os::Linux,
            hypervisor: Hypervisor::None,
            declared: false,
            time_namespace: false,
            boot_id: Reading::Absent,
            epoch_ns: Reading::Absent,
            machine_id: Reading::Absent,
            product_uuid: Reading::Absent,
            host_cpus: 64,
            memory: 1 << 40,
            gpus: List::default(),
            salt: SaltName::default(),
        },
        sampled_ms_ago: 0,
        machine: MachineClaim::new(MachineUid {
            created_ms: 1,
            random: mesh.me().0[..16].try_into().unwrap_or_default(),
        }),
        locks: List::default(),
        width: 64,
        engine: EngineRun(1),
        bundle: [1; 32],
        inventory,
        addresses: List::new(mesh.listening().into_iter().take(6).collect()).unwrap_or_default(),
    }
}
