//! Identity in live environments: each test builds one, starts an install and an agent in every part of it, and lets
//! a coordinator look and work. What is asked is always the same: how many machines, how many installs at a time,
//! which warnings, and that no two installs of one machine ever worked at once.
//!
//! Everything here needs root, and tools that a machine may lack; a test that cannot run says which. Namespaces and
//! containers have names of their own per run and go when their guards are dropped, also after a failure. Each agent
//! has lock files of its own: what keeps two installs apart here is the coordinator's count and nothing else.

mod containers;
mod docker;
mod guest;
mod mesh;
mod network;
mod place;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tropa_proto::{
    canonical,
    epoch::EpochTrack,
    evidence::{Facts, Key, Os, Reading, Salt},
    fuse::{Confidence, Input, Kind, Member, fuse},
    id::AgentId,
    mesh::agent_id,
};
use tropa_tests::{
    harness::{copy_of_live, declare},
    namespace::Namespace,
    skipped,
};

use self::{
    containers::{Lxc, Nspawn},
    docker::Daemon,
    guest::Guest,
    mesh::{Ground, Mesh, Special},
    network::Bridge,
    place::{OTHER_USER, Place, has},
};

/// The UUID that a guest's firmware shows.
const GUEST_UUID: &str = "7d1e0f6a-52c4-4b1c-9d0e-3a5b7c9e1f20";

/// What installs of one kernel are told whose agents have each a directory of locks of its own, as here.
const NO_COMMON_LOCK: &str = "lane.lock_split";

#[test]
fn two_processes_are_one_machine() {
    let _turn = turn();
    let ground = Ground::new();
    let mut mesh = Mesh::new(&ground, Place::here("coordinator"));
    mesh.install(&Place::here("one"));
    mesh.install(&Place::here("two"));
    mesh.look(&[]).expect("two processes", 2, 1, 1, &[NO_COMMON_LOCK]);
    mesh.work(&[]);
}

#[test]
fn two_network_namespaces_are_one_machine() {
    if cannot(&["ip", "nsenter"]) {
        return;
    }
    let _turn = turn();
    let (ground, bridge) = (Ground::new(), Bridge::new());
    let namespaces = [Namespace::new().unwrap(), Namespace::new().unwrap()];
    let mut mesh = Mesh::new(&ground, bridge.place("coordinator"));
    mesh.install(&bridge.connect(&namespaces[0], "one"));
    mesh.install(&bridge.connect(&namespaces[1], "two"));
    mesh.look(&[]).expect("network namespaces", 2, 1, 1, &[NO_COMMON_LOCK]);
    mesh.work(&[]);
}

#[test]
fn an_agent_with_shifted_clocks_is_on_the_same_machine() {
    if cannot(&["unshare"]) {
        return;
    }
    let shift = ["unshare", "-T", "--boottime", "100000", "--monotonic", "5"];
    let here = fs::read_link("/proc/self/ns/time").ok();
    let there =
        Command::new(shift[0]).args(&shift[1..]).args(["readlink", "/proc/self/ns/time"]).output().unwrap();
    if here.is_none() || !there.status.success() {
        skipped("this kernel has no time namespaces, or forbids them");
        return;
    }
    let _turn = turn();
    let ground = Ground::new();
    let mut mesh = Mesh::new(&ground, Place::here("coordinator"));
    mesh.install(&Place::here("outside"));
    let mut inside = Place::here("inside");
    inside.agent_only = shift.map(Into::into).into();
    let evidence = ground.evidence(&inside);
    assert_eq!(
        evidence["signals"]["time_namespace"]["published"][0], "true",
        "the shift was not seen: {evidence}"
    );
    mesh.install(&inside);
    mesh.look(&[]).expect("time namespace", 2, 1, 1, &[NO_COMMON_LOCK]);
    mesh.work(&[]);
}

#[test]
fn docker_containers_of_any_user_and_their_host_are_one_machine() {
    let Some(daemon) = docker() else { return };
    let _turn = turn();
    let ground = Ground::new();
    let default = daemon.container(&ground, "default", &[]);
    let user = format!("{OTHER_USER}:{OTHER_USER}");
    let mut other = daemon.container(&ground, "other-user", &["--user", &user]);
    other.place.user = Some(OTHER_USER);
    let host = default.host("host");
    let mut mesh = Mesh::new(&ground, default.host("coordinator"));
    for place in [&host, &default.place, &other.place] {
        mesh.install(place);
    }
    mesh.look(&[]).expect("Docker: host, default, other user", 3, 1, 1, &[NO_COMMON_LOCK]);
    mesh.work(&[]);
}

#[test]
fn docker_containers_on_disjoint_cpus_are_one_machine() {
    let Some(daemon) = docker() else { return };
    if std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() < 2) {
        skipped("disjoint sets of processors need two of them");
        return;
    }
    let _turn = turn();
    let ground = Ground::new();
    let containers = [
        daemon.container(&ground, "first", &["--cpuset-cpus", "0"]),
        daemon.container(&ground, "second", &["--cpuset-cpus", "1"]),
    ];
    for (container, cpu) in containers.iter().zip(["0", "1"]) {
        let cpus = ground.evidence(&container.place)["signals"]["cpus"]["published"][0].to_string();
        assert!(cpus.contains(&format!("may use {cpu},")), "the limit was not seen: {cpus}");
    }
    let mut mesh = Mesh::new(&ground, containers[0].host("coordinator"));
    for container in &containers {
        mesh.install(&container.place);
    }
    mesh.look(&[]).expect("Docker: disjoint cpusets", 2, 1, 1, &[NO_COMMON_LOCK]);
    mesh.work(&[]);
}

/// Nothing reaches such a container, so no mesh can hold both: a coordinator inside works with the one, and the
/// evidence of the two is judged by the rules directly.
#[test]
fn a_docker_container_without_a_network_is_on_the_machine_of_its_host() {
    let Some(daemon) = docker() else { return };
    let _turn = turn();
    let ground = Ground::new();
    let lonely = daemon.container(&ground, "lonely", &["--net=none"]);
    let inside = Place::entered(
        "coordinator",
        lonely.place.address,
        &["nsenter", &format!("--net=/proc/{}/ns/net", lonely.init())],
    );
    let mut mesh = Mesh::new(&ground, inside);
    mesh.install(&lonely.place);
    mesh.look(&[]).expect("Docker: --net=none", 1, 1, 1, &[]);
    mesh.work(&[]);

    let members = [(1, ground.evidence(&lonely.place)), (2, ground.evidence(&Place::here("host")))];
    let members: Vec<Member> = members.iter().map(|(number, evidence)| member(*number, evidence)).collect();
    let (a, b) = (members[0].id, members[1].id);
    let fusion = fuse(&Input { members, ..Input::default() });
    assert_eq!(fusion.machines().len(), 1);
    let relation = fusion.relation(a, b).unwrap();
    assert_eq!((relation.kind, relation.confidence), (Kind::SameKernel, Confidence::High));
    assert!(fusion.warnings().is_empty(), "{:?}", fusion.warnings());
}

#[test]
fn nspawn_containers_with_boot_ids_of_their_own_and_their_host_are_one_machine() {
    if cannot(&["systemd-nspawn", "ip", "nsenter"]) {
        return;
    }
    let _turn = turn();
    let (ground, bridge) = (Ground::new(), Bridge::new());
    let containers = ["one", "two"].map(|label| Nspawn::start(&ground, &bridge, label));
    assert_boot_ids_differ(&ground, containers.each_ref().map(|container| &container.place));
    let mut mesh = Mesh::new(&ground, bridge.place("coordinator"));
    mesh.install(&bridge.place("host"));
    for container in &containers {
        mesh.install(&container.place);
    }
    mesh.look(&[]).expect("systemd-nspawn: host and two", 3, 1, 1, &["BOOT_ID_VIRTUALISED", NO_COMMON_LOCK]);
    mesh.work(&[]);
}

#[test]
fn lxc_containers_with_boot_ids_of_their_own_and_their_host_are_one_machine() {
    if cannot(&["lxc-start", "ip", "nsenter"]) {
        return;
    }
    let _turn = turn();
    let (ground, bridge) = (Ground::new(), Bridge::new());
    let containers = ["one", "two"].map(|label| Lxc::start(&ground, &bridge, label));
    assert_boot_ids_differ(&ground, containers.each_ref().map(|container| &container.place));
    let mut mesh = Mesh::new(&ground, bridge.place("coordinator"));
    mesh.install(&bridge.place("host"));
    for container in &containers {
        mesh.install(&container.place);
    }
    mesh.look(&[]).expect("LXC: host and two", 3, 1, 1, &["BOOT_ID_VIRTUALISED", NO_COMMON_LOCK]);
    mesh.work(&[]);
}

/// The host lists the UUID of the guest that it runs, and the guest shows it: +4 against the prior.
#[test]
fn a_guest_whose_uuid_its_host_lists_is_on_the_machine_of_its_host() {
    let Some(kernel) = guest_kernel() else { return };
    let _turn = turn();
    let (ground, bridge) = (Ground::new(), Bridge::new());
    let host = bridge.place("host");
    let guest = Guest::start(&ground, &host, &kernel, Some(GUEST_UUID));
    let mut mesh = Mesh::new(&ground, host.clone());
    // Its evidence is read at its start, so the guest runs before.
    mesh.install(&host);
    mesh.peer(guest.agent.clone());
    let found = mesh.look(&[]);
    // Its file system is memory.
    found.expect("QEMU guest with a UUID, and its host", 2, 1, 1, &["NO_DURABLE_ANCHOR"]);
    assert_eq!(found.kernels, 2);
    assert_eq!(found.report["relations"][0]["relation"], "same machine");
    mesh.work(&[]);
}

/// Two kernels that share no id, one of them virtual: nothing decides, so they are not known to be apart.
#[test]
fn a_guest_that_nothing_links_to_its_host_works_when_its_host_does_not() {
    let Some(kernel) = guest_kernel() else { return };
    let _turn = turn();
    let (ground, bridge) = (Ground::new(), Bridge::new());
    let host = bridge.place("host");
    if in_a_cloud(&ground.evidence(&host)) {
        skipped("a guest without an id beside a cloud's virtual machine counts as another machine, by rule");
        return;
    }
    let guest = Guest::start(&ground, &host, &kernel, None);
    let mut mesh = Mesh::new(&ground, host.clone());
    let beside = ["--peer", &guest.agent];
    mesh.special(&host, Special { agent: &beside, ..Special::default() });
    mesh.peer(guest.agent.clone());
    let found = mesh.look(&[]);
    found.expect("QEMU guest without a UUID, and its host", 2, 2, 1, &["NO_DURABLE_ANCHOR"]);
    let relation = &found.report["relations"][0];
    assert_eq!(relation["relation"], "unknown");
    let reasons = relation["reasons"].to_string();
    assert!(reasons.contains("local interface"), "its host sees that its traffic stays within: {reasons}");
    mesh.work(&[]);
}

/// The copy finds other hardware than that of its birth, so it takes another key before anybody meets it.
#[test]
fn a_state_directory_that_was_copied_to_another_machine_makes_another_agent() {
    if cannot(&["ip", "nsenter", "cp"]) {
        return;
    }
    let _turn = turn();
    let (ground, bridge) = (Ground::new(), Bridge::new());
    // Two loopbacks, so that both installs are on the usual port, by which an agent finds its state.
    let namespaces = [Namespace::new().unwrap(), Namespace::new().unwrap()];
    let mut mesh = Mesh::new(&ground, bridge.place("coordinator"));
    let states = [ground.join("state"), ground.join("copy")];
    for (number, namespace) in (1u8..).zip(&namespaces) {
        let hardware = ground.join(format!("hardware-{number}"));
        declare(&hardware, number).unwrap();
        let state = &states[usize::from(number) - 1];
        if number == 2 {
            copy_of_live(&states[0], state).unwrap();
        }
        let agent = ["--evidence-root", hardware.to_str().unwrap()];
        let place = bridge.connect(namespace, &format!("machine-{number}"));
        mesh.special(&place, Special { port: 11434, state: Some(state), agent: &agent });
    }
    let found = mesh.look(&["--allow-declared"]);
    // A moved disk, until the copy has heard the original for ten seconds, which a slow command gives it.
    let copied = found.warnings.contains("CLONED_IMAGE");
    let told = if copied { "CLONED_IMAGE" } else { "OS_MOVED_TO_OTHER_HARDWARE" };
    found.expect("copied state on another machine", 2, 2, 2, &[told]);
    assert_eq!(parent(&states[1]), Some(key(&states[0])), "the copy names whose key it had");
}

/// One test at a time builds an environment: several at once only make each other late.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says what is missing for an environment; `true` then.
fn cannot(tools: &[&str]) -> bool {
    let missing: Vec<&str> = tools.iter().copied().filter(|tool| !has(tool)).collect();
    if !missing.is_empty() {
        skipped(&format!("not installed: {}", missing.join(", ")));
        return true;
    }
    if !rustix::process::geteuid().is_root() {
        skipped("only root can build this environment");
        return true;
    }
    false
}

fn docker() -> Option<Arc<Daemon>> {
    if cannot(&["docker", "tar", "ip", "nsenter"]) {
        return None;
    }
    Daemon::shared().map_err(|why| skipped(&why)).ok()
}

fn guest_kernel() -> Option<PathBuf> {
    if cannot(&["qemu-system-x86_64", "busybox", "strip", "ldd", "ip", "nsenter"]) {
        return None;
    }
    guest::kernel().map_err(|why| skipped(&why)).ok()
}

/// Without this the test would show nothing that two namespaces do not.
fn assert_boot_ids_differ(ground: &Ground, places: [&Place; 2]) {
    let read = |place: &Place| {
        let boot_id = ground.evidence(place)["signals"]["boot_id"].clone();
        assert_eq!(boot_id["read"], "virtual", "{boot_id}");
        boot_id["raw"][0].as_str().unwrap().to_owned()
    };
    let ids: BTreeSet<String> = places.into_iter().map(read).collect();
    assert_eq!(ids.len(), 2, "the containers show one boot id");
}

/// The id that an agent of the usual port has by its state directory.
fn key(state: &Path) -> String {
    let seed: [u8; 32] = fs::read(state.join("agents/11434/key")).unwrap().try_into().unwrap();
    agent_id(&seed).to_string()
}

/// The id that the state says its key has replaced.
fn parent(state: &Path) -> Option<String> {
    fs::read_to_string(state.join("agents/11434/parent")).ok()
}

fn in_a_cloud(evidence: &Value) -> bool {
    evidence["signals"]["hypervisor"]["published"][0].as_str().is_some_and(|text| text.contains("Cloud"))
}

/// A member with the boot id and the boot epoch of this evidence.
fn member(number: u8, evidence: &Value) -> Member {
    let signal = |name: &str| {
        assert_eq!(evidence["signals"][name]["read"], "ok", "{evidence}");
        &evidence["signals"][name]
    };
    let mut facts = Facts::empty(Os::Linux);
    facts.boot_id = canonical::uuid(signal("boot_id")["raw"][0].as_str().unwrap());
    let epoch: i64 = signal("epoch_ns")["published"][0].as_str().unwrap().parse().unwrap();
    let id = AgentId([number; 32]);
    Member {
        id,
        key: id,
        evidence: Arc::new(facts.keyed(&Key::new(&Salt::LOOPBACK))),
        epoch: EpochTrack::settled(&Reading::Value(epoch)),
        first_heard: Duration::ZERO,
        last_heard: Duration::from_secs(1),
        flapping: false,
    }
}
