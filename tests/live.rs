//! Live tests over a mesh of real programs: what two agents can prove about their kernel (`identity.md` §9).

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::geteuid;
use serde_json::Value;
use tokio::time::timeout;
use tropa_coordinator::{
    args::Global, clock::Clock, live::ask_neighbours, members::Members, settings::Settings,
};
use tropa_proto::{evidence::Hypervisor, fuse::Confidence, secret::MeshSecret};
use tropa_tests::{
    harness::{Hardware, Programs, Running, World},
    namespace::{Namespace, ran},
    skipped,
};

use crate::jobs::{said, world};

/// The only relation of a report of two agents.
fn relation(report: &Value) -> &Value {
    assert_eq!(report["relations"].as_array().map(Vec::len), Some(1), "{report}");
    &report["relations"][0]
}

/// The outcome of one test in the report of a pair.
fn outcome<'a>(report: &'a Value, test: &str) -> &'a str {
    let tests = report["tests"].as_array().unwrap();
    tests.iter().find(|row| row["test"] == test).unwrap()["outcome"].as_str().unwrap()
}

#[test]
fn two_agents_of_one_kernel_prove_it_by_themselves_and_on_demand() {
    let world = world();
    let doubles = [world.double("cpu", &[]).unwrap(), world.double("cpu", &[]).unwrap()];
    let _one = world.agent("one", doubles[0].address, Hardware::This, &[]).unwrap();
    let _two = world.agent("two", doubles[1].address, Hardware::This, &[]).unwrap();

    let output = world.run(&["machines", "--json", "--wait", "20"]).unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = relation(&report);
    assert_eq!(found["relation"], "same kernel", "{}", said(&output));
    assert_eq!(found["confidence"], "proof", "{}", said(&output));
    assert!(report["machines"][0]["why"].as_str().unwrap().contains("boot id"), "{report}");
    assert!(found["live_tests"][0].as_str().unwrap().starts_with("rendezvous passed"), "{report}");

    let output = world.run(&["machines", "--test", "one", "two", "--json"]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(outcome(&report, "rendezvous"), "passed", "{report}");
    assert_eq!(outcome(&report, "clock offset"), "undecided", "equal clocks prove nothing: {report}");
    assert_ne!(outcome(&report, "counter sandwich"), "failed", "{report}");
    assert_eq!(report["confidence"], "proof");

    let output = world.run(&["machines", "--test", "one", "three"]).unwrap();
    assert_eq!(output.status.code(), Some(64), "{}", said(&output));
    assert!(said(&output).contains("no agent is called three; there are"), "{}", said(&output));
}

#[test]
fn an_agent_with_declared_hardware_is_not_tested_as_this_machine() {
    let world = world();
    let doubles = [world.double("cpu1", &[]).unwrap(), world.double("cpu2", &[]).unwrap()];
    let _here = world.agent("here", doubles[0].address, Hardware::This, &[]).unwrap();
    let _far = world.agent("far", doubles[1].address, Hardware::Declared(1), &[]).unwrap();
    let output = world.run(&["machines", "--json", "--allow-declared", "--wait", "20"]).unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = relation(&report);
    assert_ne!(found["relation"], "same kernel", "{}", said(&output));
    let note = found["live_tests"][0].as_str().unwrap();
    assert_eq!(note, "not tested live: the hardware of far is declared");
    let output = world.run(&["machines", "--test", "here", "far", "--allow-declared"]).unwrap();
    assert_eq!(output.status.code(), Some(64), "{}", said(&output));
}

#[test]
fn agents_in_two_network_namespaces_prove_one_kernel_by_its_counters() {
    if !geteuid().is_root() {
        return skipped("network namespaces need root");
    }
    let net = match Wired::make() {
        Ok(net) => net,
        Err(why) => return skipped(&format!("no network namespaces: {why}")),
    };
    let outer = world();
    let secret = outer.path("mesh.secret");
    MeshSecret::generate().unwrap().write_new(&secret).unwrap();
    let secret = secret.to_str().unwrap();
    let worlds = [0, 1].map(|at| World::new(net.programs(at, &outer.path(&format!("in-{at}")))).unwrap());
    let run = |at: usize, label: &str| -> (Running, Running) {
        let double = worlds[at].double("cpu", &[]).unwrap();
        // A port of its own namespace, where nobody else is.
        let listen = format!("{}:11634", ADDRESSES[at]);
        let more = ["--listen", &listen, "--mesh-secret-file", secret, "--no-mdns"];
        let agent = worlds[at].agent(label, double.address, Hardware::This, &more).unwrap();
        (agent, double)
    };
    let _one = run(0, "one");
    let _two = run(1, "two");
    // The agent of its own namespace is found by its file.
    let peer = format!("{}:11634", ADDRESSES[1]);
    let mesh = ["--mesh-secret-file", secret, "--no-mdns", "--peer", &peer, "--wait", "20", "--json"];

    let output = worlds[0].run(&[&["machines", "--test", "one", "two"][..], &mesh].concat()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(outcome(&report, "rendezvous"), "undecided", "abstract names end at the namespace: {report}");
    let counted = outcome(&report, "counter sandwich");
    if counted == "undecided" {
        // Nothing decided is no success, and on a kernel that has just booted nothing can be.
        return skipped(&format!("the counters of this kernel decide nothing: {report}"));
    }
    assert_eq!(counted, "passed", "{report}");
    assert_eq!((&report["relation"], &report["confidence"]), (&"same kernel".into(), &"proof".into()));

    let output = worlds[0].run(&[&["machines"][..], &mesh].concat()).unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(relation(&report)["confidence"], "proof", "by themselves: {}", said(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_names_the_agents_beside_it_and_never_their_addresses() {
    let world = world();
    let doubles = [world.double("cpu", &[]).unwrap(), world.double("cpu", &[]).unwrap()];
    let one = world.agent("one", doubles[0].address, Hardware::This, &[]).unwrap();
    let peer = one.address.to_string();
    let _two = world.agent("two", doubles[1].address, Hardware::This, &["--peer", &peer]).unwrap();
    let mut members = coordinator(&world).await;
    members.gather(Duration::from_secs(60)).await;
    let [one, two] = members.view().installs.clone().try_into().expect("two installs");
    let named = async {
        // It names whom it has heard of, which takes a moment after its start.
        loop {
            let named = ask_neighbours(members.mesh(), two.agent, two.incarnation).await.expect("an answer");
            if named.contains(&one.agent) {
                break named;
            }
        }
    };
    let named = timeout(Duration::from_secs(60), named).await.expect("the other is beside it");
    assert_eq!(named, [one.agent], "the coordinator is beside it too, and nobody's business");
    assert_eq!(ask_neighbours(members.mesh(), two.agent, one.incarnation).await, None, "another run");
    let is_bare = |hypervisor| matches!(hypervisor, Hypervisor::None | Hypervisor::Root);
    if is_bare(one.evidence.hypervisor) {
        return skipped("on bare metal nobody is asked by himself");
    }
    let pair = (one.agent.min(two.agent), one.agent.max(two.agent));
    while !members.view_and_tests().1.facts().get(&pair).is_some_and(|facts| facts.local_peer) {
        timeout(Duration::from_secs(60), members.next()).await.expect("it is asked by itself");
    }
    members.leave().await;
}

/// A coordinator that has joined the mesh of this world.
async fn coordinator(world: &World) -> Members {
    let global = Global { runtime_dir: Some(world.path("run")), quiet: true, ..Global::default() };
    let mut settings = Settings::resolve(&global).map_err(|failed| failed.error).unwrap();
    // Nothing of the user's own mesh is read.
    (settings.secret, settings.mdns, settings.peers) = (None, false, Vec::new());
    Members::join(&settings, [7; 32], Clock::start()).await.map_err(|failed| failed.error).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_joins_is_in_the_roster_and_proven_before_anybody_asks() {
    let world = world();
    let doubles = [world.double("cpu", &[]).unwrap(), world.double("cpu", &[]).unwrap()];
    let one = world.agent("one", doubles[0].address, Hardware::This, &[]).unwrap();
    let mut members = coordinator(&world).await;
    members.gather(Duration::from_secs(60)).await;

    let start = now();
    let peer = one.address.to_string();
    let starting = std::thread::spawn(move || {
        let agent = world.agent("two", doubles[1].address, Hardware::This, &["--peer", &peer]);
        // Both must outlive the coordinator.
        (agent.unwrap(), world, doubles)
    });
    let (mut listed, mut described, mut proven) = (None, None, None);
    while described.is_none() || proven.is_none() {
        timeout(Duration::from_secs(60), members.next()).await.expect("the new agent is seen and proven");
        let view = members.view();
        let [one, two] = view.installs.as_slice() else { continue };
        listed.get_or_insert_with(|| start.elapsed());
        if one.out.is_none() && two.out.is_none() {
            described.get_or_insert_with(|| start.elapsed());
        }
        let relation = view.fusion.as_ref().and_then(|fusion| fusion.relation(one.agent, two.agent));
        if relation.is_some_and(|relation| relation.confidence == Confidence::Proof) {
            proven.get_or_insert_with(|| start.elapsed());
        }
    }
    let [listed, described, proven] =
        [listed, described, proven].map(|time: Option<Duration>| time.unwrap().as_millis());
    show(&format!(
        "from the start of an agent's process: {listed} ms to its place in the roster, {described} ms to work, \
         {proven} ms to the end of its live tests"
    ));
    members.leave().await;
    drop(starting.join().unwrap());
}

#[expect(clippy::disallowed_methods, reason = "a measurement")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::print_stdout, reason = "the output of a test")]
fn show(text: &str) {
    println!("{text}");
}

/// Where the two agents listen, in namespaces that know nothing but each other.
const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

/// Two network namespaces with a wire between them.
struct Wired([Namespace; 2]);

impl Wired {
    fn make() -> Result<Self, String> {
        let wired = Self([Namespace::new()?, Namespace::new()?]);
        let [a, b] = wired.0.each_ref().map(Namespace::name);
        ran(&["ip", "link", "add", "wire", "netns", a, "type", "veth", "peer", "name", "wire", "netns", b])?;
        for (name, address) in [a, b].into_iter().zip(ADDRESSES) {
            ran(&["ip", "-n", name, "address", "add", &format!("{address}/24"), "dev", "wire"])?;
            ran(&["ip", "-n", name, "link", "set", "wire", "up"])?;
        }
        Ok(wired)
    }

    /// The programs, started inside one of the namespaces.
    fn programs(&self, at: usize, dir: &Path) -> Programs {
        fs::create_dir(dir).unwrap();
        let inside = |name: &str, program: &str| -> PathBuf {
            let path = dir.join(name);
            let text = format!("#!/bin/sh\nexec ip netns exec {} '{program}' \"$@\"\n", self.0[at].name());
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
            path
        };
        Programs {
            tropa: inside("tropa", env!("CARGO_BIN_EXE_tropa-under-test")),
            agent: inside("agent", env!("CARGO_BIN_EXE_tropa-agent-under-test")),
            double: inside("double", env!("CARGO_BIN_EXE_ollama-double")),
        }
    }
}
