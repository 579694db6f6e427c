//! What the report looks like with one agent, with five and with three hundred: whole texts, so that a change of
//! wording is seen as a change. `TROPA_BLESS=1` writes them anew.

use std::{path::Path, time::Duration};

use tropa_proto::{
    bounded::{List, Text},
    evidence::{
        Attribution, Core, Cpus, Evidence, Gpu, GpuKind, Hypervisor, HypervisorClass, LaneClaim, Os, Reading,
        Tag,
    },
    id::{AgentId, EngineRun, Incarnation},
    message::{AgentState, Announcement, Description, EngineState, Inventory, Model},
    permit::Permit,
    roster::{Roster, Rules},
    uid::{Before, Change, MachineClaim, MachineUid},
};

use super::*;
use crate::{
    plan,
    rules::{RuleRow, Standing},
};

/// One agent of a synthetic mesh: a label, the number of its kernel, and what else is special about it.
pub(crate) struct Made {
    pub(crate) label: String,
    pub(crate) kernel: u32,
    pub(crate) gpu: bool,
    pub(crate) declared: bool,
    pub(crate) kind: Hypervisor,
    pub(crate) engine: EngineState,
    pub(crate) claim: Option<MachineClaim>,
    pub(crate) version: &'static str,
    pub(crate) models: Vec<Model>,
    pub(crate) state: AgentState,
}

pub(crate) fn made(label: &str, kernel: u32) -> Made {
    let (kind, engine) = (Hypervisor::None, EngineState::Up);
    Made {
        label: label.to_owned(),
        kernel,
        gpu: false,
        declared: false,
        kind,
        engine,
        claim: None,
        version: "0.24.0",
        models: Vec::new(),
        state: AgentState::Ready,
    }
}

/// What the agents of a kernel say of their machine.
fn claim(kernel: u32) -> MachineClaim {
    MachineClaim::new(MachineUid { created_ms: u64::from(kernel), random: tag(5, kernel << 16).0 })
}

fn tag(kind: u8, number: u32) -> Tag {
    let mut tag = [kind; 16];
    tag[..4].copy_from_slice(&number.to_be_bytes());
    Tag(tag)
}

pub(crate) fn agent(n: usize) -> AgentId {
    let mut id = [7; 32];
    id[..2].copy_from_slice(&u16::try_from(n).unwrap().to_be_bytes());
    AgentId(id)
}

fn evidence(of: &Made) -> Evidence {
    let mut evidence = Evidence::empty(Os::Linux);
    evidence.hypervisor = of.kind;
    evidence.declared = of.declared;
    evidence.cpus = Cpus { host: 16, physical: 8, ..Cpus::default() };
    evidence.memory = 32 << 30;
    if of.kind != Hypervisor::Unknown {
        evidence.boot_id = Reading::Value(tag(1, of.kernel));
        evidence.machine_id = Reading::Value(tag(2, of.kernel));
        evidence.cpu_model = Reading::Value(Text::cut("AMD Ryzen 9 7950X"));
    }
    if of.kind == Hypervisor::None {
        evidence.product_uuid = Reading::Value(tag(3, of.kernel));
    }
    if of.kind == Hypervisor::Vm {
        evidence.hypervisor_class = HypervisorClass::Homelab;
    }
    if of.gpu {
        evidence.gpus = List::cut(vec![Gpu {
            vendor: Text::cut("nvidia"),
            name: Text::cut("RTX 4090"),
            uuid: Some(tag(4, of.kernel)),
            kind: GpuKind::Full,
            pci: Some(Text::cut("0000:01:00.0")),
            memory: 24 << 30,
            uma: false,
        }])
        .0;
        evidence.lane = LaneClaim {
            gpus: List::cut(vec![0]).0,
            dram: false,
            numa_nodes: List::default(),
            method: Attribution::Operator,
        };
    }
    evidence
}

pub(crate) fn roster(agents: &[Made]) -> Roster {
    let mut roster = Roster::new(true);
    for (n, of) in agents.iter().enumerate() {
        let id = agent(n + 1);
        let evidence = evidence(of);
        let epoch = 1_790_000_000_000_000_000 + i64::from(of.kernel) * 3_600_000_000_000;
        let epoch = if of.kind == Hypervisor::Unknown { Reading::Absent } else { Reading::Value(epoch) };
        let inventory = Inventory {
            engine: of.engine.clone(),
            version: Text::cut(of.version),
            models: List::cut(of.models.clone()).0,
            cut: false,
            port: 11434,
            permit: Permit::default(),
        };
        let core = Core::new(&evidence, epoch);
        let description = Description { evidence, former: None, inventory, denied: Text::default() };
        let (bundle, inventory) = description.hashes();
        roster.connected(id, true);
        roster.announced(
            id,
            Announcement {
                incarnation: Incarnation(1),
                seq: 1,
                period_ms: 10_000,
                state: of.state,
                label: Text::cut(&of.label),
                core,
                sampled_ms_ago: 0,
                machine: of.claim.unwrap_or_else(|| claim(of.kernel)),
                locks: List::new(vec![of.kernel.to_be_bytes().repeat(2).try_into().unwrap()]).unwrap(),
                width: 1,
                engine: EngineRun(1),
                bundle,
                inventory,
                addresses: List::default(),
            },
            Duration::ZERO,
        );
        roster.described(id, (bundle, inventory), description);
    }
    roster
}

fn report(agents: &[Made]) -> Report {
    Report::of(roster(agents).view())
}

/// A home: two installs in containers of one machine, a machine with a GPU, a container that can read nothing, and
/// a machine whose Ollama is down.
fn home() -> Vec<Made> {
    vec![
        made("den", 1),
        made("den-docker", 1),
        Made { gpu: true, ..made("attic", 2) },
        Made { kind: Hypervisor::Unknown, ..made("nas", 3) },
        Made { engine: EngineState::Down(Text::cut("connection refused")), ..made("shed", 4) },
    ]
}

/// A rack: 50 machines with four GPU-less installs each, 92 with one, two VMs of one image, six that can read
/// nothing.
fn rack() -> Vec<Made> {
    let hosts =
        (0..50).flat_map(|host| (0..4).map(move |at| made(&format!("host-{host:02}-{at}"), 100 + host)));
    let singles = (0..92).map(|n| Made { gpu: n % 2 == 0, ..made(&format!("node-{n:02}"), 1_000 + n) });
    let guests = (0..2).map(|n| Made { kind: Hypervisor::Vm, ..made(&format!("vm-{n}"), 3_000 + n) });
    let unreadable = (0..6).map(|n| Made { kind: Hypervisor::Unknown, ..made("sandbox", 2_000 + n) });
    hosts.chain(singles).chain(guests).chain(unreadable).collect()
}

#[expect(clippy::panic, reason = "a golden text that differs is shown side by side")]
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/machines").join(name);
    if std::env::var_os("TROPA_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    if wanted != text {
        panic!("{name} differs; TROPA_BLESS=1 takes it.\nwanted:\n{wanted}\nfound:\n{text}");
    }
}

#[test]
fn one_agent_reads_well() {
    let report = report(&[made("den", 1)]);
    golden("one.txt", &report.text(false));
    golden("one-why.txt", &report.text(true));
}

#[test]
fn a_home_of_five_reads_well() {
    let report = report(&home());
    golden("five.txt", &report.text(false));
    golden("five-why.txt", &report.text(true));
}

#[test]
fn three_hundred_agents_are_counted_and_not_listed() {
    let report = report(&rack());
    assert_eq!(report.installs, 300);
    let (short, long) = (report.text(false), report.text(true));
    assert!(short.lines().count() < 80, "{}", short.lines().count());
    assert!(long.lines().count() < 400, "{}", long.lines().count());
    golden("three-hundred.txt", &short);
    golden("three-hundred-why.txt", &long);
}

#[test]
fn two_installs_on_one_machine_say_what_would_help() {
    let report = report(&[made("den", 1), made("den-2", 1), made("attic", 2)]);
    assert_eq!(
        report.summary,
        "3 installs, 2 machines: 2 chunks at a time. The second install on den adds nothing; an agent on another \
         machine would."
    );
}

#[test]
fn what_is_declared_is_shown_as_declared_also_without_why() {
    let declared = |label, kernel| Made { declared: true, ..made(label, kernel) };
    let some = report(&[made("den", 1), declared("attic", 2), declared("attic-2", 2)]);
    let head = "3 installs, 2 machines (1 as declared): 2 chunks at a time.";
    assert!(some.summary.starts_with(head), "{}", some.summary);
    let all = report(&[declared("den", 1), declared("attic", 2)]);
    assert_eq!(all.summary, "2 installs, 2 machines as declared: 2 chunks at a time.");
    let rows = |report: &Report| report.text(false).matches("declared, not read; ").count();
    assert_eq!((rows(&some), rows(&all)), (1, 2));
}

#[test]
fn a_rule_names_a_machine_and_rules_are_listed_with_their_age() {
    let mut roster = roster(&[made("den", 1), made("attic", 2)]);
    let names = std::collections::BTreeMap::from([(agent(1), "under the desk".to_owned())]);
    roster.set_rules(Rules { names, ..Rules::default() });
    let row = |line, rule: &str, standing| RuleRow { line, rule: rule.to_owned(), standing };
    let rules = RulesReport {
        file: "config.toml".into(),
        version: "0123456789abcdef".to_owned(),
        age_s: Some(3 * 86_400),
        rules: vec![
            row(1, "name den \"under the desk\"", Standing::Followed),
            row(5, "same den gone", Standing::Waits("nobody here is called gone".to_owned())),
            row(
                7,
                "same den x",
                Standing::NotFollowed("x may be a-01 or a-02; name it by its id".to_owned()),
            ),
        ],
    };
    golden("rules.txt", &Report::with(roster.view(), &LiveTests::default(), Some(rules)).text(false));
}

#[test]
fn the_table_of_scores_comes_with_its_version_and_every_score_can_be_checked_by_it() {
    let guest = |made: Made| Made { kind: Hypervisor::Vm, ..made };
    let mut report = report(&[guest(made("den", 1)), guest(made("attic", 2)), made("shed", 3)]);
    assert!(report.scores.is_none(), "without --why");
    report.add_scores();
    let scores = report.scores.clone().unwrap();
    assert_eq!(scores.version, report.rules_version);
    let mut checked = 0;
    for relation in report.relations.iter().filter(|relation| relation.score.is_some()) {
        let worth = |reason: &String| {
            let line = reason.rsplit_once(' ').map_or("", |(line, _)| line);
            let row = scores.lines.iter().find(|row| row.line == line);
            row.map_or(0.0, |row| row.score)
        };
        let sum: f64 = relation.reasons.iter().map(worth).sum();
        assert_eq!(relation.score, Some(sum), "{:?}", relation.reasons);
        checked += 1;
    }
    assert!(checked > 0);
    golden("scores.json", &format!("{}\n", serde_json::to_string_pretty(&scores).unwrap()));
}

#[test]
fn what_agents_remember_of_their_machines_is_said_with_what_to_do() {
    let copy = Some(claim(1));
    let claim = |kernel, change, durable| {
        Some(MachineClaim { change, durable, hardware: u8::from(durable), ..claim(kernel) })
    };
    let younger = MachineUid { created_ms: 9, random: [0xbe; 16] };
    let den = claim(1, Change::HardwareChanged, true)
        .map(|claim| MachineClaim { before: Before::Alias(younger), ..claim });
    let report = report(&[
        Made { claim: den, ..made("den", 1) },
        Made { claim: claim(2, Change::Moved, true), ..made("attic", 2) },
        Made { claim: claim(3, Change::None, false), ..made("box", 3) },
        Made { claim: copy, ..made("copy", 4) },
    ]);
    let codes: Vec<&str> = report.warnings.iter().map(|warning| warning.code).collect();
    assert_eq!(
        codes,
        ["CLONED_IMAGE", "HARDWARE_CHANGED", "OS_MOVED_TO_OTHER_HARDWARE", "NO_DURABLE_ANCHOR"]
    );
    let uids = report.machines.iter().map(|machine| machine.uid.is_some());
    assert_eq!(uids.collect::<Vec<_>>(), [true, true, true, false], "the copy has no name of its own");
    assert_eq!((&*report.machines[0].id, &*report.machines[3].id), ("m-0001", "m-0004"));
    assert_eq!(report.machines[0].former_ids, ["m-bebe"]);
    golden("remembered.txt", &report.text(true));
}

#[test]
fn holes_of_an_old_engine_and_models_in_a_cloud_are_said_with_what_to_do() {
    let cloud = Model {
        name: Text::cut("giant:cloud"),
        digest: [0; 32],
        fingerprint: [0; 32],
        size: 0,
        context: 0,
        completion: true,
        embedding: false,
        thinking: false,
        tools: false,
        remote: true,
        loaded: None,
    };
    let down = EngineState::Down(Text::cut("connection refused"));
    let agents = |old: &'static str| {
        vec![
            Made { version: old, ..made("den", 1) },
            Made { version: "0.20.3", ..made("attic", 2) },
            Made { version: old, engine: down.clone(), ..made("shed", 3) },
            Made { models: vec![cloud.clone()], ..made("nas", 4) },
            Made { state: AgentState::Ill, ..made("hut", 5) },
        ]
    };
    let found = report(&agents("0.20.2"));
    let found = found.warnings.iter().map(|row| (row.code, row.agents.join(" "), row.information));
    let all = [
        ("lane.unhealthy", "hut".to_owned(), false),
        ("ollama.vulnerable", "den".to_owned(), false),
        ("ollama.cloud_model", "nas".to_owned(), true),
    ];
    assert_eq!(found.collect::<Vec<_>>(), all);
    let mut roster = roster(&agents("0.20.2"));
    let plan = plan::plan(roster.view(), 1, &[], &[]);
    let planned = plan.warnings.iter().map(|row| (row.code, row.agents.join(" "), row.information));
    assert_eq!(planned.collect::<Vec<_>>(), all, "a plan says the same of those that take part");
    assert!(plan.text(false).contains("ollama.vulnerable") && !plan.text(false).contains("cloud_model"));
    assert!(plan.text(true).contains("note    ollama.cloud_model"), "{}", plan.text(true));
    assert!(report(&agents("0.20.2")).text(false).contains("OLLAMA_HOST=127.0.0.1"));
    let fine = report(&agents("0.20.3"));
    assert!(fine.warnings.iter().all(|row| row.code != "ollama.vulnerable"), "{:?}", fine.warnings);
}

#[test]
fn a_plan_names_the_install_that_adds_nothing_and_counts_several() {
    let summary = |agents: &[Made]| plan::plan(roster(agents).view(), 1, &[], &[]).summary;
    let [den, docker] = [made("den", 1), made("den-docker", 1)];
    assert_eq!(
        summary(&[den, docker, made("attic", 2)]),
        "3 installs, 2 machines: 2 chunks at a time. den-docker (a-0002) adds nothing beside den (a-0001): boot id and \
         boot epoch equal; an agent on another machine would."
    );
    assert_eq!(
        summary(&[made("den", 1), made("den-2", 1), made("den-3", 1)]),
        "3 installs, 1 machine: 1 chunk at a time. 2 installs add nothing (boot id and boot epoch equal); an agent on \
         another machine would."
    );
}

#[test]
fn two_installs_of_one_name_are_told_apart_in_a_pair() {
    let text = report(&[made("nas", 1), made("nas", 1), made("den", 2)]).text(true);
    let names: Vec<String> = (1..=2).map(|n| format!("nas ({})", agent(n).short())).collect();
    assert!(text.contains(&format!("{} and {}: same kernel", names[0], names[1])), "{text}");
    assert!(
        text.contains(&format!("{} and den: distinct", names[0])),
        "in a pair with somebody else too: {text}"
    );
}

#[test]
fn no_kind_of_pairs_hides_the_others() {
    let list = || [[1; 50], [2; 50]].concat().into_iter().chain([3]).collect::<Vec<u8>>();
    assert_eq!(spread(list(), 200, |kind| *kind), list());
    let kept = spread(list(), 40, |kind| *kind);
    let count = |kind| kept.iter().filter(|kept| **kept == kind).count();
    assert_eq!([count(1), count(2), count(3)], [29, 10, 1]);
    assert!(kept.is_sorted());
}
