//! The lasting name of a machine over a mesh of real programs: restarts, lost state, copied state, damaged state
//! (`identity.md` §11).

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tropa_tests::harness::{Hardware, Running, World, copy_of_live, declare, results, wait_until};

use crate::jobs::{said, world};

/// What `tropa machines` says of machines, their uids and what is to be warned of.
#[derive(Debug)]
struct Shown {
    uids: Vec<String>,
    aliases: BTreeSet<String>,
    agents: usize,
    warnings: BTreeSet<String>,
    raw: Value,
}

fn shown(world: &World) -> Shown {
    let arguments = ["machines", "--json", "--allow-declared", "--wait", "10"];
    let output = world.run(&arguments).unwrap();
    let raw: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let machines = list(&raw["machines"]);
    Shown {
        uids: machines.iter().map(|machine| text(&machine["uid"])).collect(),
        aliases: machines
            .iter()
            .flat_map(|machine| list(&machine["aliases"]))
            .map(|alias| text(&alias))
            .collect(),
        agents: machines.iter().map(|machine| list(&machine["agents"]).len()).sum(),
        warnings: list(&raw["warnings"]).iter().map(|warning| text(&warning["code"])).collect(),
        raw,
    }
}

/// The record of the agent with this label: there is one install in its state directory.
fn record(world: &World, label: &str) -> PathBuf {
    let agents = world.path(&format!("state-{label}/agents"));
    fs::read_dir(agents).unwrap().next().unwrap().unwrap().path().join("machine")
}

/// The uid in a record.
fn remembered(world: &World, label: &str) -> String {
    let text = fs::read_to_string(record(world, label)).unwrap();
    let record: Value = serde_json::from_str(&text).unwrap();
    record["uid"].as_str().unwrap().to_owned()
}

/// Copies the state of one agent for another beside the install at this port.
fn copy_state(world: &World, from: &str, to: &str, ollama: &Running) {
    let [from, to] = [from, to].map(|label| world.path(&format!("state-{label}")));
    copy_of_live(&from, &to).unwrap();
    let agents = to.join("agents");
    let only = fs::read_dir(&agents).unwrap().next().unwrap().unwrap().path();
    fs::rename(only, agents.join(ollama.address.port().to_string())).unwrap();
}

/// Declared hardware whose machine-id is that of another number: a copied disk.
fn with_the_disk_of(root: &Path, number: u8, other: u8) {
    declare(root, number).unwrap();
    fs::write(root.join("etc/machine-id"), format!("{other:02x}").repeat(16)).unwrap();
}

#[test]
fn a_restart_keeps_the_uid_and_a_second_agent_on_the_kernel_shares_it() {
    let world = world();
    let doubles = [world.double("cpu", &[]).unwrap(), world.double("cpu", &[]).unwrap()];
    let mut first = world.agent("first", doubles[0].address, Hardware::This, &[]).unwrap();
    let uid = shown(&world).uids;
    assert_eq!(uid, [remembered(&world, "first")]);
    assert_eq!(first.terminate().unwrap(), Some(0));
    let _first = world.agent("first", doubles[0].address, Hardware::This, &[]).unwrap();
    assert_eq!(shown(&world).uids, uid);

    let _second = world.agent("second", doubles[1].address, Hardware::This, &[]).unwrap();
    let own = remembered(&world, "second");
    let both = shown(&world);
    assert_eq!((&both.uids, both.agents), (&uid, 2), "{}", both.raw);
    // A command introduces the two to each other; then both remember the older name.
    wait_until("the second agent remembers the older name", || {
        shown(&world);
        remembered(&world, "second") == uid[0]
    })
    .unwrap();
    assert!(own == uid[0] || shown(&world).aliases.contains(&own), "{own} forwards");
}

#[test]
fn an_agent_that_lost_its_state_gets_the_name_back_from_its_neighbour() {
    let world = world();
    let doubles = [world.double("cpu", &[]).unwrap(), world.double("cpu", &[]).unwrap()];
    let mut first = world.agent("first", doubles[0].address, Hardware::Declared(1), &[]).unwrap();
    let _second = world.agent("second", doubles[1].address, Hardware::Declared(1), &[]).unwrap();
    let mut uid = String::new();
    wait_until("both agents remember one name", || {
        shown(&world);
        uid = remembered(&world, "first");
        uid == remembered(&world, "second")
    })
    .unwrap();
    first.kill();
    fs::remove_dir_all(world.path("state-first")).unwrap();
    let _first = world.agent("first", doubles[0].address, Hardware::Declared(1), &[]).unwrap();
    assert_ne!(remembered(&world, "first"), uid, "made anew at first");
    wait_until("the agent has its name back", || {
        let now = shown(&world);
        assert!(now.agents < 2 || now.uids == [uid.clone()], "{}", now.raw);
        remembered(&world, "first") == uid
    })
    .unwrap();
}

#[test]
fn state_copied_to_other_hardware_gets_a_fresh_uid_with_a_warning() {
    let world = world();
    let doubles = [world.double("cpu-1", &[]).unwrap(), world.double("cpu-2", &[]).unwrap()];
    let mut original = world.agent("original", doubles[0].address, Hardware::Declared(1), &[]).unwrap();
    let uid = remembered(&world, "original");
    copy_state(&world, "original", "copy", &doubles[1]);
    assert_eq!(original.terminate().unwrap(), Some(0));

    let root = world.path("other-hardware");
    with_the_disk_of(&root, 2, 1);
    let more = ["--evidence-root", root.to_str().unwrap()];
    let locks = world.path("other-lanes");
    let more = [&more[..], &["--lane-lock-dir", locks.to_str().unwrap()]].concat();
    let copy = world.agent_on("copy", doubles[1].address, &more).unwrap();
    let alone = shown(&world);
    assert_eq!(alone.uids, [remembered(&world, "copy")], "{}", copy.log());
    assert_ne!(alone.uids[0], uid);
    assert!(alone.warnings.contains("OS_MOVED_TO_OTHER_HARDWARE"), "{}", alone.raw);

    // The disk was copied, not moved: its original comes back.
    let _original = world.agent("original", doubles[0].address, Hardware::Declared(1), &[]).unwrap();
    let mut last = None;
    wait_until("the copy is known as one", || {
        let now = shown(&world);
        let done = now.agents == 2
            && now.warnings.contains("CLONED_IMAGE")
            && !now.warnings.contains("OS_MOVED_TO_OTHER_HARDWARE");
        last = Some(now);
        done
    })
    .map_err(|error| format!("{error}: {last:?}"))
    .unwrap();
    let both = shown(&world);
    assert!(both.uids.contains(&uid) && both.uids.contains(&alone.uids[0]), "{}", both.raw);
}

#[test]
fn new_parts_in_a_known_machine_keep_its_uid_and_are_told() {
    let world = world();
    let double = world.double("cpu", &[]).unwrap();
    let root = world.path("host");
    declare(&root, 1).unwrap();
    let card = |mac: &str| {
        let card = root.join("sys/class/net/eth0");
        fs::create_dir_all(card.join("device")).unwrap();
        for (file, text) in
            [("address", mac), ("addr_assign_type", "0"), ("device/uevent", "DRIVER=e1000e\n")]
        {
            fs::write(card.join(file), text).unwrap();
        }
        for (link, to) in [("device/driver", "e1000e"), ("device/subsystem", "pci")] {
            let _ = std::os::unix::fs::symlink(format!("/sys/bus/pci/{to}"), card.join(link));
        }
    };
    card("3c:ec:ef:00:00:01");
    let more = ["--evidence-root", root.to_str().unwrap()];
    let mut agent = world.agent_on("host", double.address, &more).unwrap();
    let before = shown(&world);
    assert!(before.warnings.is_empty(), "{}", before.raw);
    agent.terminate().unwrap();
    card("3c:ec:ef:00:00:02");
    let _agent = world.agent_on("host", double.address, &more).unwrap();
    let after = shown(&world);
    assert_eq!(after.uids, before.uids);
    assert!(after.warnings.contains("HARDWARE_CHANGED"), "{}", after.raw);
}

#[test]
fn a_damaged_record_is_set_aside_with_a_message() {
    let world = world();
    let double = world.double("cpu", &[]).unwrap();
    let mut agent = world.agent("den", double.address, Hardware::Declared(1), &[]).unwrap();
    let uid = remembered(&world, "den");
    agent.kill();
    let file = record(&world, "den");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, &text[..text.len() / 2]).unwrap();
    let agent = world.agent("den", double.address, Hardware::Declared(1), &[]).unwrap();
    assert!(agent.log().contains("was set aside"), "{}", agent.log());
    assert_eq!(fs::read_to_string(file.with_file_name("machine.damaged")).unwrap(), text[..text.len() / 2]);
    assert_ne!(remembered(&world, "den"), uid);
    assert_eq!(shown(&world).uids, [remembered(&world, "den")]);
}

#[test]
fn a_name_in_memory_only_is_warned_of_unless_the_operator_has_named_the_machine() {
    // The only place of a Linux system that is sure to be memory.
    let Ok(memory) = tempfile::Builder::new().prefix("tropa").tempdir_in("/dev/shm") else { return };
    let world = world();
    let double = world.double("cpu", &[]).unwrap();
    for (machine, warned) in [("", true), ("den", false)] {
        let state = memory.path().join(format!("state-{machine}"));
        let mut more = vec!["--state-dir", state.to_str().unwrap()];
        if !machine.is_empty() {
            more.extend(["--machine", machine]);
        }
        let _agent = world.agent_on("den", double.address, &more).unwrap();
        let now = shown(&world);
        assert_eq!(now.warnings.contains("NO_DURABLE_ANCHOR"), warned, "{}", now.raw);
    }
}

/// What a command prints as one object.
fn object(world: &World, arguments: &[&str]) -> Value {
    let output = world.run(arguments).unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&output)))
}

fn text_of<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// The machine and the agent that rows name, by their ids.
fn named(rows: &[Value]) -> BTreeSet<(&str, &str)> {
    rows.iter().map(|row| (text_of(row, "machine"), text_of(row, "agent"))).collect()
}

/// A machine of the roster with each of its agents, as rows name them.
fn members(machine: &Value) -> impl Iterator<Item = (&str, &str)> {
    let agents = machine["agents"].as_array().unwrap().iter();
    agents.map(|agent| (text_of(machine, "id"), text_of(agent, "id")))
}

#[test]
fn plans_results_and_reports_name_a_machine_as_the_roster_does() {
    let world = world();
    let doubles = ["cpu1", "cpu1", "cpu2"].map(|device| world.double(device, &[]).unwrap());
    let agents = [("den", 1), ("den-docker", 1), ("attic", 2)];
    let agents = agents.iter().zip(&doubles).map(|((label, number), double)| {
        world.agent(label, double.address, Hardware::Declared(*number), &[]).unwrap()
    });
    let _agents: Vec<Running> = agents.collect();
    let machines = shown(&world).raw;
    let rows = machines["machines"].as_array().unwrap();
    let found: BTreeSet<(&str, &str)> = rows.iter().flat_map(members).collect();
    assert_eq!((rows.len(), found.len()), (2, 3), "{machines}");

    let input = world.file("prompts.txt", &"a llama\n".repeat(12)).unwrap();
    let input = input.to_str().unwrap();
    let plan = object(&world, &["plan", input, "--allow-declared", "--json"]);
    assert_eq!(named(plan["rows"].as_array().unwrap()), found);

    let out = world.path("out.jsonl");
    let run = ["run", input, "--allow-declared", "--json", "-o", out.to_str().unwrap()];
    let summary = object(&world, &run);
    let lines = results(&fs::read_to_string(&out).unwrap()).unwrap();
    let lines: Vec<Value> = lines.into_iter().map(|mut line| line["tropa"].take()).collect();
    let worked = named(&lines);
    assert!(worked.is_subset(&found), "{worked:?} {machines}");
    let worked: BTreeSet<&str> = worked.into_iter().map(|(machine, _)| machine).collect();
    assert_eq!(worked.len(), 2, "both machines worked");

    let job = text_of(&summary, "job");
    let ids_and_names = |told: &Value, id| -> BTreeSet<(String, String)> {
        let rows = told["machines"].as_array().unwrap().iter();
        rows.map(|row| (text_of(row, id).to_owned(), text_of(row, "name").to_owned())).collect()
    };
    let show = object(&world, &["jobs", "show", job, "--json"]);
    let report = object(&world, &["report", job, "--json"]);
    for (told, id) in [(&summary, "machine"), (&show, "machine"), (&report, "id")] {
        assert_eq!(ids_and_names(told, id), ids_and_names(&machines, "id"));
    }
}

#[test]
fn what_was_done_under_a_younger_name_is_told_under_the_older_one_when_the_job_goes_on() {
    let world = world();
    let doubles = [world.double("cpu", &[]).unwrap(), world.double("cpu", &[]).unwrap()];
    let hardware = Hardware::Declared(1);
    let mut older = world.agent("older", doubles[0].address, hardware, &[]).unwrap();
    assert_eq!(older.terminate().unwrap(), Some(0));
    let _younger = world.agent("younger", doubles[1].address, hardware, &[]).unwrap();
    let alone = shown(&world).raw;
    let young = text_of(&alone["machines"][0], "id");

    let (input, out) = (world.file("prompts.txt", "a llama\n").unwrap(), world.path("out.jsonl"));
    let out = out.to_str().unwrap();
    let run = ["run", input.to_str().unwrap(), "--allow-declared", "--json", "-o", out];
    let summary = object(&world, &run);
    let who =
        || text_of(&results(&fs::read_to_string(out).unwrap()).unwrap()[0]["tropa"], "machine").to_owned();
    assert_eq!((who().as_str(), text_of(&summary["machines"][0], "name")), (young, "younger"));

    let _older = world.agent("older", doubles[0].address, hardware, &[]).unwrap();
    let both = shown(&world);
    let [machine] = both.raw["machines"].as_array().unwrap().as_slice() else { panic!("{}", both.raw) };
    let old = text_of(machine, "id");
    assert_eq!((both.agents, &machine["former_ids"][0], old != young), (2, &young.into(), true), "{machine}");
    // There is nothing left to do; the results are written anew.
    let summary =
        object(&world, &["resume", text_of(&summary, "job"), "--allow-declared", "--json", "-o", out]);
    assert_eq!((who().as_str(), text_of(&summary["machines"][0], "machine")), (old, old), "{summary}");
}
