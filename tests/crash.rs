//! Crash consistency with the real programs (`reliability.md` §7.6): kills at random moments and at every arrow of
//! §7.4, errors of the disk, a look at the system calls. Each test prints what it counted.
//!
//! What the journal makes of cut logs and turned bits (CC4) and of a small disk (CC5) is tested beside it, in
//! `coordinator/src/journal/tests`. `TROPA_CC_ROUNDS=N` kills N times on each side instead of 60.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tropa_coordinator::journal::Journal;
use tropa_proto::{id::AttemptId, proof};
use tropa_tests::{
    harness::{Hardware, Running, World, results, wait_until},
    history::{self, Event, Expect, What},
    skipped,
};

use crate::jobs::{said, world};

/// Kills on each side where nothing else is asked for.
const ROUNDS: u32 = 60;

/// A journal of a killed coordinator is open again within this time, checks included (CC1).
const REOPENED: Duration = Duration::from_secs(1);

/// A job of so many prompts in a world that writes down what happens.
struct Scene {
    world: World,
    _double: Running,
    agent: Option<Running>,
    chunks: u32,
    job: String,
}

impl Scene {
    fn start(chunks: u32) -> Self {
        let mut world = world();
        world.set_env("TROPA_EVENTS", world.path("events"));
        let double = world.double("cpu", &["--decode-us", "200", "--tokens", "8"]).unwrap();
        let agent = Some(world.agent("den", double.address, Hardware::This, &[]).unwrap());
        let text: String = (0..chunks).map(|n| format!("prompt {n} about a llama\n")).collect();
        world.file("prompts.txt", &text).unwrap();
        Self { world, _double: double, agent, chunks, job: String::new() }
    }

    /// Submits the job, or goes on with it.
    fn command(&self, env: &[(&str, &str)]) -> Child {
        let (input, out) = (self.world.path("prompts.txt"), self.world.path("out.jsonl"));
        let (input, out) = (input.to_str().unwrap(), out.to_str().unwrap());
        let mut command = match self.job.as_str() {
            "" => self.world.tropa(&["run", input, "-o", out]),
            job => self.world.tropa(&["resume", job, "-o", out]),
        };
        command.envs(env.iter().copied()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// Learns the id of the job once it can be worked on.
    fn submitted(&mut self) {
        wait_until("the job is submitted", || {
            let listed = self.world.run(&["jobs", "--json"]).unwrap();
            let listed: Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
            let job = &listed["jobs"][0];
            self.job = job["id"].as_str().unwrap_or_default().to_owned();
            !self.job.is_empty() && job["items"].as_u64() == Some(self.chunks.into())
        })
        .unwrap();
    }

    fn finish(&self) {
        let output = self.command(&[]).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    }

    fn restart_agent(&mut self) {
        self.agent = None;
        let agent = self.world.agent("den", self._double.address, Hardware::This, &[]);
        self.agent = Some(agent.unwrap());
    }

    fn journal_dir(&self) -> PathBuf {
        self.world.path("home/.local/state/tropa/jobs").join(&self.job)
    }

    fn events(&self) -> Vec<Event> {
        history::read(&fs::read_to_string(self.world.path("events")).unwrap_or_default()).unwrap()
    }

    fn count(&self, wanted: impl Fn(&What) -> bool) -> usize {
        self.events().iter().filter(|event| wanted(&event.what)).count()
    }

    /// No process works on the journal: what was acknowledged is in it, it is whole, and it opens at once.
    #[expect(clippy::disallowed_methods, reason = "measures how long opening takes")]
    fn the_journal_is_sound(&self) -> (u32, Duration) {
        let begin = Instant::now();
        let journal = Journal::open(&self.journal_dir()).unwrap();
        let took = begin.elapsed();
        let finished = journal.load().unwrap().finished;
        for attempt in self.acknowledged() {
            assert!(
                finished.contains(attempt.chunk),
                "{attempt:?} was acknowledged and is not in the journal"
            );
        }
        let file = journal.dir().join("journal.db");
        let check: String = rusqlite::Connection::open(file)
            .unwrap()
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!(check, "ok");
        (finished.done(), took)
    }

    /// Attempts whose result was acknowledged. Other ends are acknowledged too, and close no chunk.
    fn acknowledged(&self) -> BTreeSet<AttemptId> {
        let events = self.events();
        let committed: BTreeSet<AttemptId> = events
            .iter()
            .filter_map(|event| if let What::Commit(id, _) = event.what { Some(id) } else { None })
            .collect();
        let acks =
            events.iter().filter_map(|event| if let What::Ack(id) = event.what { Some(id) } else { None });
        acks.filter(|id| committed.contains(id)).collect()
    }

    /// All chunks once and in order in the output, no rule broken in the history.
    fn judge(&self) {
        let text = fs::read_to_string(self.world.path("out.jsonl")).unwrap();
        let rows = results(&text).unwrap();
        let order: Vec<u64> = rows.iter().map(|row| row["tropa"]["index"].as_u64().unwrap()).collect();
        assert_eq!(order, (0..u64::from(self.chunks)).collect::<Vec<_>>());
        assert!(rows.iter().all(|row| row["error"].is_null()), "{text}");
        let mut events = self.events();
        events.extend(history::of_engines(&self.world.witness().unwrap()));
        let judged = history::judge(events, Expect { hellos: true, ..Expect::default() });
        assert_eq!(judged.finish(), []);
    }
}

fn rounds() -> u32 {
    std::env::var("TROPA_CC_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS)
}

fn can_see() -> bool {
    if !proof::COMPILED_IN {
        skipped("a build without event lines");
    }
    proof::COMPILED_IN
}

#[test]
fn cc1_a_coordinator_killed_again_and_again_loses_and_doubles_nothing() {
    if !can_see() {
        return;
    }
    let mut scene = Scene::start(rounds() * 4);
    let (mut worst, mut killed, mut done) = (Duration::ZERO, 0, 0);
    for round in 0..rounds() {
        let acks = scene.count(|what| matches!(what, What::Ack(_)));
        let mut job = scene.command(&[]);
        if round == 0 {
            scene.submitted();
        }
        // From right after its start to some results later.
        let more = acks + (round as usize * 7) % 5;
        wait_until("it gets on", || {
            scene.count(|what| matches!(what, What::Ack(_))) >= more || job.try_wait().unwrap().is_some()
        })
        .unwrap();
        killed += u32::from(job.try_wait().unwrap().is_none());
        job.kill().unwrap();
        job.wait().unwrap();
        let (finished, took) = scene.the_journal_is_sound();
        assert!(finished >= done, "results went away");
        (done, worst) = (finished, worst.max(took));
    }
    scene.finish();
    scene.judge();
    assert!(worst <= REOPENED, "opening took {worst:?}");
    println!(
        "CC1 coordinator: {killed} kills, {} acknowledged, 0 lost, 0 doubled",
        scene.acknowledged().len()
    );
    println!("CC1 coordinator: opened in {worst:?} at most");
}

#[test]
fn cc1_an_agent_killed_again_and_again_loses_and_doubles_nothing() {
    if !can_see() {
        return;
    }
    let mut scene = Scene::start(rounds() * 2);
    let mut job = scene.command(&[]);
    scene.submitted();
    let mut killed = 0;
    let mut over = None;
    for round in 0..rounds() {
        let begun = scene.count(|what| matches!(what, What::ExecStart(..)));
        let more = begun + 1 + (round as usize) % 2;
        wait_until("it works", || {
            scene.count(|what| matches!(what, What::ExecStart(..))) >= more
                || job.try_wait().unwrap().is_some()
        })
        .unwrap();
        match job.try_wait().unwrap().map(|status| status.code()) {
            None => {}
            // Nobody was there for a moment: the job waits in its journal.
            Some(Some(4)) => job = scene.command(&[]),
            Some(code) => {
                over = Some(code);
                break;
            }
        }
        killed += 1;
        scene.agent.as_mut().unwrap().kill();
        scene.restart_agent();
    }
    let code = over.unwrap_or_else(|| job.wait().unwrap().code());
    if code == Some(4) {
        scene.finish();
    } else {
        // A chunk that was lost ten times is given up, as it should be; the rest must be there.
        assert!(matches!(code, Some(0 | 2)), "{code:?}");
    }
    let (done, _) = scene.the_journal_is_sound();
    if code != Some(2) {
        scene.judge();
    }
    println!("CC1 agent: {killed} kills, {done} of {} chunks done, 0 doubled", scene.chunks);
}

/// Every step of `reliability.md` §7.4 at which a program can die, and who dies there.
const ARROWS: [(&str, bool); 11] = [
    ("journal.commit", true),
    ("journal.synced", true),
    ("coordinator.send", true),
    ("coordinator.sent", true),
    ("coordinator.result", true),
    ("coordinator.committed", true),
    ("coordinator.acknowledged", true),
    ("agent.run", false),
    ("agent.start", false),
    ("agent.outbox", false),
    ("agent.ack", false),
];

#[test]
fn cc2_a_kill_at_every_step_leaves_a_history_without_fault() {
    if !can_see() {
        return;
    }
    for (step, coordinator) in ARROWS {
        let mut scene = Scene::start(8);
        let failpoint = format!("{step}:kill:3");
        if coordinator {
            let output = scene.command(&[("TROPA_FAILPOINT", &failpoint)]).wait_with_output().unwrap();
            assert_eq!(output.status.code(), None, "{step}: {}", said(&output));
            scene.submitted();
            scene.the_journal_is_sound();
            scene.finish();
        } else {
            scene.world.set_env("TROPA_FAILPOINT", &failpoint);
            scene.restart_agent();
            scene.world.set_env("TROPA_FAILPOINT", "none:kill");
            let job = scene.command(&[]);
            wait_until("the agent dies there", || !scene.agent.as_mut().unwrap().is_alive()).unwrap();
            scene.restart_agent();
            let output = job.wait_with_output().unwrap();
            // Without any agent the job may have ended before this one was back.
            assert!(matches!(output.status.code(), Some(0 | 4)), "{step}: {}", said(&output));
            if output.status.code() == Some(4) {
                scene.submitted();
                scene.finish();
            }
        }
        scene.judge();
    }
    println!("CC2: {} steps x kill, every history without fault", ARROWS.len());
}

#[test]
fn cc2_an_error_of_the_disk_ends_the_coordinator_and_loses_nothing() {
    if !can_see() {
        return;
    }
    for step in ["journal.commit:eio:3", "journal.synced:eio:3"] {
        let mut scene = Scene::start(8);
        let output = scene.command(&[("TROPA_FAILPOINT", step)]).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(74), "{step}: {}", said(&output));
        scene.submitted();
        scene.the_journal_is_sound();
        scene.finish();
        scene.judge();
    }
    println!("CC2: EIO at 2 steps, exit 74 each, nothing lost");
}

#[test]
fn cc2_cc5_a_full_disk_is_waited_out_on_both_sides() {
    if !can_see() {
        return;
    }
    let scene = Scene::start(8);
    let job = scene.command(&[("TROPA_FAILPOINT", "journal.commit:enospc:3")]);
    let output = job.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("disk.low") && said(&output).contains("going on"), "{}", said(&output));
    scene.judge();
    for step in ["agent.settle_record:enospc:3", "agent.settle_record:eio:3"] {
        let mut scene = Scene::start(8);
        scene.world.set_env("TROPA_FAILPOINT", step);
        scene.restart_agent();
        scene.world.set_env("TROPA_FAILPOINT", "none:kill");
        scene.finish();
        scene.judge();
    }
    println!("CC5: ENOSPC at the coordinator and at the agent, then space: 24 of 24 chunks, 0 lost");
}

#[test]
fn cc3_between_a_result_and_its_acknowledgement_the_journal_is_synced() {
    if !can_see() {
        return;
    }
    let traceable = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    if !traceable.is_ok_and(|output| output.status.success()) {
        return skipped("no strace that may trace");
    }
    let scene = Scene::start(12);
    let trace = scene.world.path("trace");
    let input = scene.world.path("prompts.txt");
    let inner = scene.world.tropa(&["run", input.to_str().unwrap()]);
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-s", "200", "-e", "trace=fsync,fdatasync,write", "-o"]).arg(&trace);
    command.arg(inner.get_program()).args(inner.get_args()).env_clear();
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let (checked, unsynced) = synced_before(&fs::read_to_string(&trace).unwrap());
    assert_eq!(unsynced, BTreeSet::new(), "acknowledged without a sync");
    assert_eq!(checked, 12);
    println!("CC3: {checked} of {checked} acknowledgements after a completed sync of the journal");
}

/// Reads a trace: how many acknowledgements there were of attempts whose result had come, and those before which no
/// sync of the journal was completed after that.
fn synced_before(trace: &str) -> (usize, BTreeSet<String>) {
    let mut waiting: BTreeMap<String, bool> = BTreeMap::new();
    // The calls of other threads may be cut in two.
    let mut syncing: BTreeSet<&str> = BTreeSet::new();
    let (mut checked, mut unsynced) = (0, BTreeSet::new());
    for line in trace.lines() {
        let Some((pid, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        let is_sync = call.starts_with("fsync(") || call.starts_with("fdatasync(");
        let of_journal = is_sync && call.contains("journal.db");
        let resumed = call.contains("sync resumed>") && syncing.remove(pid);
        if of_journal && call.contains("<unfinished") {
            syncing.insert(pid);
        } else if (of_journal || resumed) && call.ends_with("= 0") {
            waiting.values_mut().for_each(|synced| *synced = true);
        }
        if let Some(id) = event_in(call, " result ") {
            waiting.insert(id, false);
        } else if let Some(id) = event_in(call, " ack ")
            && let Some(synced) = waiting.remove(&id)
        {
            checked += 1;
            if !synced {
                unsynced.insert(id);
            }
        }
    }
    (checked, unsynced)
}

fn event_in(call: &str, kind: &str) -> Option<String> {
    let (_, after) = call.starts_with("write(").then(|| call.split_once(kind)).flatten()?;
    let id = after.split(['\\', ' ', '"']).next()?;
    (id.split('/').count() == 3).then(|| id.to_owned())
}

#[test]
fn the_reader_of_traces_tells_a_sync_from_none() {
    let sync = "8 fdatasync(9</j/journal.db-wal>) = 0\n";
    let result = "7 write(5</e>, \"1 7 result aa/0/1 \\n\", 9) = 9\n";
    let ack = "7 write(5</e>, \"2 7 ack aa/0/1 \\n\", 9) = 9\n";
    assert_eq!(synced_before(&[result, sync, ack].concat()), (1, BTreeSet::new()));
    let cut = ["8 fdatasync(9</j/journal.db-wal> <unfinished ...>\n", "8 <... fdatasync resumed>) = 0\n"];
    assert_eq!(synced_before(&[result, cut[0], cut[1], ack].concat()), (1, BTreeSet::new()));
    for trace in [[result, cut[0], ack, cut[1]].concat(), [sync, result, ack].concat()] {
        assert_eq!(synced_before(&trace).1.len(), 1, "{trace}");
    }
}

#[test]
fn cc7_a_coordinator_killed_three_times_while_it_recovers_converges() {
    if !can_see() {
        return;
    }
    let mut scene = Scene::start(12);
    let first = scene.command(&[("TROPA_FAILPOINT", "coordinator.committed:kill:4")]).wait_with_output();
    assert_eq!(first.unwrap().status.code(), None);
    scene.submitted();
    let mut done = 0;
    for step in ["journal.commit:kill:1", "coordinator.send:kill:1", "coordinator.result:kill:1"] {
        let output = scene.command(&[("TROPA_FAILPOINT", step)]).wait_with_output().unwrap();
        assert_eq!(output.status.code(), None, "{step}: {}", said(&output));
        let (finished, _) = scene.the_journal_is_sound();
        assert!(finished >= done);
        done = finished;
    }
    scene.finish();
    scene.judge();
    println!("CC7: 3 kills during recovery, {done} of 12 before the last, 12 of 12 in the end");
}

#[test]
fn cc8_of_several_coordinators_on_one_job_one_works() {
    if !can_see() {
        return;
    }
    let mut scene = Scene::start(60);
    let mut first = scene.command(&[("TROPA_FAILPOINT", "coordinator.committed:kill:2")]);
    first.wait().unwrap();
    scene.submitted();
    let jobs: Vec<Child> = (0..4).map(|_| scene.command(&[])).collect();
    let outputs: Vec<_> = jobs.into_iter().map(|job| job.wait_with_output().unwrap()).collect();
    let codes: Vec<Option<i32>> = outputs.iter().map(|output| output.status.code()).collect();
    assert!(codes.contains(&Some(0)), "{codes:?}");
    assert!(codes.iter().all(|code| matches!(code, Some(0 | 75))), "{codes:?}");
    let busy = codes.iter().filter(|code| **code == Some(75)).count();
    assert!(busy > 0, "{codes:?}: they never met");
    scene.judge();
    println!("CC8: 4 coordinators on one job, {busy} refused with 75");
}
