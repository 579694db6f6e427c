//! A peer that breaks the rules, beside an honest job (`reliability.md` F21 to F28): nothing of it is taken, the agent
//! stays small, and the honest job ends as it would without.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;
use tropa_tests::harness::{Hardware, Running, World, results, wait_until};

use crate::jobs::{said, world};

/// Of an agent under attack (S3), in KiB.
const RSS: u64 = 128 << 10;

/// Starts a peer that troubles an agent in one way, within its mesh where it has the secret.
pub(crate) fn evil(target: SocketAddr, mode: &str, secret: Option<&PathBuf>, more: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evil-peer"));
    command.args(["--target", &target.to_string(), "--mode", mode]).args(more);
    if let Some(secret) = secret {
        command.arg("--secret-file").arg(secret);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

struct Scene {
    world: World,
    double: Running,
    agent: Running,
}

impl Scene {
    /// One agent of a mesh with a secret.
    fn start() -> Self {
        Self::with(&[])
    }

    fn with(more: &[&str]) -> Self {
        Self::of(world(), more)
    }

    fn of(world: World, more: &[&str]) -> Self {
        let made = world.run(&["mesh", "new"]).unwrap();
        assert_eq!(made.status.code(), Some(0), "{}", said(&made));
        let double = world.double("cpu", &["--decode-us", "2000", "--tokens", "10"]).unwrap();
        let agent = world.agent("den", double.address, Hardware::This, more).unwrap();
        Self { world, double, agent }
    }

    fn evil(&self, mode: &str, inside: bool, more: &[&str]) -> Child {
        let secret = self.world.path("home/.config/tropa/mesh.secret");
        evil(self.agent.address, mode, inside.then_some(&secret), more)
    }

    /// An honest job, to its end.
    fn job(&self, prompts: usize) -> Output {
        let text: String = (0..prompts).map(|n| format!("prompt {n} about a llama\n")).collect();
        let input = self.world.file("prompts.txt", &text).unwrap();
        // The honest agent, on the same loaded machine as the evil one, is to have its turn within that time.
        let output = self.world.run(&["run", input.to_str().unwrap(), "--wait", "15"]).unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let rows = results(&String::from_utf8_lossy(&output.stdout)).unwrap();
        assert_eq!(rows.len(), prompts);
        assert!(rows.iter().all(|row| row["tropa"]["attempt"] == 1), "{}", said(&output));
        output
    }

    /// What the evil peer says of itself, and the agent's most memory in KiB.
    fn after(&self, evil: Child) -> (Value, u64) {
        let output = evil.wait_with_output().unwrap();
        let said: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
        let status = fs::read_to_string(format!("/proc/{}/status", self.agent.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let most = line.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(most <= RSS, "the agent took {most} KiB: {said}");
        (said, most)
    }
}

#[expect(clippy::print_stdout, reason = "the counts of the tests")]
fn say(row: &str, mode: &str, (said, most): &(Value, u64)) {
    println!("{row} {mode}: {said}, agent at most {} MiB", most >> 10);
}

/// What the agent says of those whom it did not take: from the accept to the close.
#[expect(clippy::print_stdout, reason = "the figure of S1")]
fn say_door(log: &str) {
    let took = |line: &str| {
        let number: String =
            line.split("took_us=").nth(1)?.chars().take_while(char::is_ascii_digit).collect();
        number.parse::<u64>().ok()
    };
    let mut all: Vec<u64> = log.lines().filter_map(took).collect();
    all.sort_unstable();
    let last = all.len().checked_sub(1).expect("refusals in the log of the agent");
    println!("F21 at the agent, of {}: median {} us, most {} us", all.len(), all[all.len() / 2], all[last]);
}

#[test]
fn fault_f21_a_stranger_is_refused_and_the_mesh_goes_on() {
    let scene = Scene::with(&["-vv"]);
    for inside in [false, true] {
        // With a secret of its own, whatever file it was given.
        let evil = scene.evil("stranger", inside, &[]);
        let found = scene.after(evil);
        assert_eq!((&found.0["tried"], &found.0["taken"]), (&15.into(), &0.into()), "{found:?}");
        assert!(found.0["refused_us"].as_u64().is_some(), "{found:?}");
        say("F21", "stranger", &found);
    }
    say_door(&scene.agent.log());
    let outside = scene.evil("flood", false, &["--seconds", "3"]);
    let found = scene.after(outside);
    assert_eq!(found.0["tried"], 0, "it never got in: {found:?}");
    scene.job(4);
    assert_eq!(scene.machines(), (1, 1));
}

#[test]
fn fault_f22_bytes_that_are_no_handshake_are_dropped() {
    let scene = Scene::start();
    let evil = scene.evil("garbage", false, &["--seconds", "5"]);
    scene.job(10);
    let found = scene.after(evil);
    assert_eq!(found.0["taken"], 0);
    assert!(found.0["tried"].as_u64().unwrap() > 5);
    say("F22", "garbage", &found);
}

#[test]
fn fault_f22_malformed_gossip_reaches_no_roster() {
    let scene = Scene::start();
    let evil = scene.evil("malformed", true, &["--seconds", "5"]);
    scene.job(10);
    let found = scene.after(evil);
    assert!(found.0["tried"].as_u64().unwrap() > 100, "{found:?}");
    assert_eq!(found.0["taken"], 0, "{found:?}");
    assert_eq!(scene.machines(), (1, 1));
    say("F22", "malformed", &found);
    let outside = scene.after(scene.evil("malformed", false, &["--seconds", "1"]));
    assert_eq!(outside.0["tried"], 0, "{outside:?}");
}

#[test]
fn fault_f23_slow_handshakes_and_silent_streams_hold_no_place() {
    let scene = Scene::start();
    let dripping = scene.evil("drip", false, &["--seconds", "6"]);
    let silent = scene.evil("silent", true, &["--seconds", "6"]);
    scene.job(10);
    say("F23", "drip", &scene.after(dripping));
    say("F23", "silent", &scene.after(silent));
    scene.job(4);
}

#[test]
fn fault_f23_frames_that_break_the_rules_shut_their_sender_out_and_nobody_else() {
    let scene = Scene::start();
    let evil = scene.evil("oversize", true, &["--seconds", "30"]);
    scene.job(10);
    let found = scene.after(evil);
    assert!(found.0["tried"].as_u64().unwrap() >= 3, "{found:?}");
    assert_eq!((&found.0["taken"], &found.0["shut_out"]), (&0.into(), &true.into()), "{found:?}");
    say("F23", "oversize", &found);
    // Without the secret it says nothing at all.
    let outside = scene.after(scene.evil("oversize", false, &["--seconds", "1"]));
    assert_eq!(outside.0["tried"], 0, "{outside:?}");
    scene.job(4);
}

#[test]
fn fault_f26_old_numbers_and_the_attempts_of_others_change_nothing() {
    let scene = Scene::start();
    let text: String = (0..30).map(|n| format!("prompt {n} about a llama\n")).collect();
    let input = scene.world.file("prompts.txt", &text).unwrap();
    let mut run = scene.world.tropa(&["run", input.to_str().unwrap()]);
    let job = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut id = String::new();
    // At work, and so no longer waiting for agents that say nothing of themselves.
    wait_until("it works", || scene.world.witness().is_ok_and(|seen| !seen.timeline().is_empty())).unwrap();
    wait_until("the job is there", || {
        let listed = scene.world.run(&["jobs", "--json"]).unwrap();
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
        id = listed["jobs"][0]["id"].as_str().unwrap_or_default().to_owned();
        !id.is_empty()
    })
    .unwrap();
    let thief = scene.evil("thief", true, &["--seconds", "2", "--job", &id]);
    let replay = scene.evil("replay", true, &["--seconds", "2"]);
    let found = scene.after(thief);
    assert!(found.0["tried"].as_u64().unwrap() > 0, "{found:?}");
    assert_eq!(found.0["taken"], 0, "{found:?}");
    say("F26", "thief", &found);
    say("F26", "replay", &scene.after(replay));
    let output = job.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let rows = results(&String::from_utf8_lossy(&output.stdout)).unwrap();
    assert_eq!(rows.len(), 30);
    assert!(rows.iter().all(|row| row["tropa"]["attempt"] == 1), "nothing was cancelled by the thief");
}

#[test]
fn fault_f26_the_highest_number_outlives_the_agent() {
    let mut scene = Scene::start();
    // The first number that is heard is the highest: what follows falls.
    let found = scene.after(scene.evil("replay", true, &["--seconds", "3"]));
    assert!(found.0["tried"].as_u64().unwrap() > 2, "{found:?}");
    scene.agent.terminate().unwrap();
    let agents = scene.world.path("state-den/agents");
    let marks = || {
        let files = fs::read_dir(&agents).unwrap().map(|entry| entry.unwrap().path().join("marks"));
        files.filter_map(|path| fs::read_to_string(path).ok()).collect::<String>()
    };
    let line = marks().lines().nth(1).unwrap_or_else(|| panic!("{}", marks())).to_owned();
    // Another life hears another agent, and keeps what it knows of the first.
    scene.agent = scene.world.agent("den", scene.double.address, Hardware::This, &[]).unwrap();
    scene.after(scene.evil("replay", true, &["--seconds", "2"]));
    scene.agent.terminate().unwrap();
    assert!(marks().contains(&line), "{}", marks());
    assert_eq!(marks().lines().count(), 3, "{}", marks());
}

#[test]
fn an_agent_without_memory_to_spare_takes_nobody_and_says_so() {
    let mut scene = Scene::start();
    assert_eq!(scene.machines(), (1, 1));
    scene.agent.terminate().unwrap();
    scene.world.set_env("TROPA_TEST_MEMORY", "1");
    scene.agent = scene.world.agent("den", scene.double.address, Hardware::This, &[]).unwrap();
    let output = scene.world.run(&["machines", "--json", "--wait", "2"]).unwrap();
    assert!(!String::from_utf8_lossy(&output.stdout).contains("\"den\""), "{}", said(&output));
    assert!(scene.agent.log().contains("mesh.refused"), "{}", scene.agent.log());
    assert!(scene.agent.is_alive());
}

#[test]
fn fault_f27_many_connections_and_identities_are_no_lanes() {
    let scene = Scene::start();
    let connects = scene.evil("connects", false, &["--seconds", "5"]);
    scene.job(10);
    say("F27", "connects", &scene.after(connects));
    let identities = scene.evil("identities", true, &["--seconds", "40"]);
    scene.job(10);
    let lanes = scene.at_once();
    say("F27", "identities", &scene.after(identities));
    assert_eq!(lanes, 1, "no lane is theirs");
}

#[test]
fn fault_f28_a_member_that_floods_disturbs_no_job_at_work() {
    let scene = Scene::start();
    let text: String = (0..100).map(|n| format!("prompt {n} about a llama\n")).collect();
    let input = scene.world.file("prompts.txt", &text).unwrap();
    let mut run = scene.world.tropa(&["run", input.to_str().unwrap()]);
    let job = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("it works", || scene.world.witness().is_ok_and(|seen| !seen.timeline().is_empty())).unwrap();
    let evil = scene.evil("flood", true, &["--seconds", "6"]);
    let output = job.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let rows = results(&String::from_utf8_lossy(&output.stdout)).unwrap();
    assert_eq!(rows.len(), 100);
    assert!(rows.iter().all(|row| row["error"].is_null()));
    let found = scene.after(evil);
    assert!(found.0["tried"].as_u64().unwrap() > 40, "{found:?}");
    say("F28", "flood", &found);
}

#[test]
fn fault_f28_a_member_that_floods_sets_no_pace_of_questions() {
    let scene = Scene::start();
    let evil = scene.evil("flood", true, &["--seconds", "20"]);
    let mut commands = 1;
    wait_until("the flooder is there", || {
        commands += 1;
        scene.outs("1").contains_key("evil")
    })
    .unwrap();
    let outs = scene.outs("6");
    assert!(outs["evil"].contains("not yet said what it has"), "{outs:?}");
    assert_eq!(outs["den"], "", "an honest agent says what it has during the flood: {outs:?}");
    let found = scene.after(evil);
    // A question without an answer is open for 10 s, so a command has no time for a third one.
    assert!((1..=2 * commands).contains(&found.0["asked"].as_u64().unwrap()), "{commands}: {found:?}");
    say("F28", "questions", &found);
}

#[test]
fn fault_f28_a_member_that_floods_is_shut_out_and_nobody_else_is() {
    let mut world = world();
    world.set_env("TROPA_TEST_FLOOD_MS", "3000");
    let scene = Scene::of(world, &[]);
    let evil = scene.evil("flood", true, &["--seconds", "60"]);
    // It starts in the flood.
    scene.job(10);
    let found = scene.after(evil);
    assert_eq!(found.0["shut_out"], true, "{found:?}");
    let log = scene.agent.log();
    assert_eq!(log.matches("mesh.banned").count(), 1, "{log}");
    say("F28", "ban", &found);
    scene.job(4);
    assert_eq!(scene.at_once(), 1);
}

impl Scene {
    /// Why each agent has no work, by label; empty: it has.
    fn outs(&self, wait: &str) -> BTreeMap<String, String> {
        let output = self.world.run(&["machines", "--json", "--wait", wait]).unwrap();
        let report: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
        let machines = report["machines"].as_array().into_iter().flatten();
        let agents = machines.flat_map(|machine| machine["agents"].as_array().into_iter().flatten());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        agents.map(|agent| (text(&agent["label"]), text(&agent["out"]))).collect()
    }

    fn report(&self) -> Value {
        let output = self.world.run(&["machines", "--json", "--wait", "15"]).unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)))
    }

    /// Installs and machines.
    fn machines(&self) -> (u64, usize) {
        let report = self.report();
        (report["installs"].as_u64().unwrap_or(0), report["machines"].as_array().map_or(0, Vec::len))
    }

    fn at_once(&self) -> u64 {
        self.report()["at_once"].as_u64().unwrap_or(0)
    }
}
