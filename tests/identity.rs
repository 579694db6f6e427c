//! The truth tables: raw facts as a reader would find them, through the readers' parsers and the keyed hash, into
//! the real fusion, lanes and continuity.
//!
//! `TROPA_CASES=DIR` loads the tables from another folder. Every row is run; one that comes out wrong fails the
//! test with its id and situation.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, de::DeserializeOwned};
use tropa_proto::{
    bounded::{List, Text},
    canonical,
    continuity::{Anchor, Anchors, Outcome},
    device::{Lane, Place, conflict},
    epoch::EpochTrack,
    evidence::{Facts, Gpu, GpuKind, Hypervisor, HypervisorClass, Key, Os, Reading, Salt},
    fuse::{ClockOffset, Input, Interference, Kind, Member, PairFacts, Rule, Test, fuse},
    id::{AgentId, MachineId},
};

#[test]
fn truth_tables_of_fusion_come_out_right() {
    let rows = check("fusion.json", |row: &FusionRow| (row.id, &row.situation, row.wrong()));
    println!("fusion.json: {rows} rows come out right");
}

/// Rows of our own in the form of the truth tables: one for each rule that the given ones do not need.
#[test]
fn further_truth_tables_of_fusion_come_out_right() {
    check_in(own_cases(), "further_fusion.json", |row: &FusionRow| (row.id, &row.situation, row.wrong()));
}

#[test]
fn further_truth_tables_of_lanes_come_out_right() {
    check_in(own_cases(), "further_lanes.json", |row: &LanesRow| (row.id, &row.situation, row.wrong()));
}

#[test]
fn further_truth_tables_of_continuity_come_out_right() {
    let table = "further_continuity.json";
    check_in(own_cases(), table, |row: &ContinuityRow| (row.id, &row.situation, row.wrong()));
}

#[test]
fn truth_tables_of_lanes_come_out_right() {
    let rows = check("lanes.json", |row: &LanesRow| (row.id, &row.situation, row.wrong()));
    println!("lanes.json: {rows} rows come out right");
}

#[test]
fn truth_tables_of_continuity_come_out_right() {
    let rows = check("continuity.json", |row: &ContinuityRow| (row.id, &row.situation, row.wrong()));
    println!("continuity.json: {rows} rows come out right");
}

fn own_cases() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("cases")
}

/// Checks a table of the folder that `TROPA_CASES` names, else of our own.
fn check<R: DeserializeOwned>(table: &str, run: impl Fn(&R) -> (u32, &String, Option<String>)) -> usize {
    check_in(std::env::var_os("TROPA_CASES").map_or_else(own_cases, PathBuf::from), table, run)
}

/// Runs all rows of a table and fails with those that come out wrong; says how many there were.
fn check_in<R: DeserializeOwned>(
    folder: PathBuf,
    table: &str,
    run: impl Fn(&R) -> (u32, &String, Option<String>),
) -> usize {
    let rows: Vec<R> = load(folder, table);
    let wrong: Vec<String> = rows
        .iter()
        .filter_map(|row| {
            let (id, situation, wrong) = run(row);
            wrong.map(|wrong| format!("row {id} ({situation}): {wrong}"))
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "{table}: {} of {} rows are wrong\n{}",
        wrong.len(),
        rows.len(),
        wrong.join("\n")
    );
    rows.len()
}

/// The rows of one of our own tables.
pub(super) fn rows<R: DeserializeOwned>(table: &str) -> Vec<R> {
    load(own_cases(), table)
}

fn load<R: DeserializeOwned>(folder: PathBuf, table: &str) -> Vec<R> {
    let text =
        fs::read_to_string(folder.join(table)).unwrap_or_else(|error| panic!("reading {table}: {error}"));
    let rows: Vec<R> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("parsing {table}: {error}"));
    assert!(!rows.is_empty(), "{table} has no rows");
    rows
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FusionRow {
    pub(super) id: u32,
    pub(super) situation: String,
    pub(super) agents: BTreeMap<String, AgentFacts>,
    #[serde(default)]
    pub(super) pairs: Vec<Pair>,
    pub(super) expect: FusionExpect,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FusionExpect {
    pub(super) clusters: Vec<Vec<String>>,
    pub(super) excluded_pairs: Vec<(String, String)>,
    pub(super) warnings_include: Vec<String>,
    #[serde(default)]
    pub(super) first_pair: Option<FirstPair>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FirstPair {
    pub(super) relation: String,
    pub(super) confidence: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pair {
    pub(super) a: String,
    pub(super) b: String,
    pub(super) facts: RawPairFacts,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPairFacts {
    pub(super) clock_offset_ms: Option<f64>,
    pub(super) rtt_ms: Option<f64>,
    pub(super) rendezvous: bool,
    pub(super) sandwich: Option<String>,
    pub(super) beacon: Option<String>,
    pub(super) local_peer: bool,
    pub(super) probe: Option<String>,
    pub(super) passive: Option<String>,
    pub(super) rule: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AgentFacts {
    pub(super) os: String,
    pub(super) hv: Option<String>,
    pub(super) hv_class: Option<String>,
    pub(super) agent_key: Option<String>,
    pub(super) boot_id: Option<String>,
    pub(super) boot_id_virtual: bool,
    pub(super) epoch_ns: Option<i64>,
    pub(super) time_namespace: bool,
    pub(super) machine_id: Option<String>,
    pub(super) product_uuid: Option<String>,
    pub(super) platform_uuid: Option<String>,
    pub(super) machine_guid: Option<String>,
    pub(super) wsl_host_guid: Option<String>,
    pub(super) hosts_vms: Vec<String>,
    pub(super) ppin: Vec<String>,
    pub(super) macs: Vec<String>,
    pub(super) nvme: Vec<String>,
    pub(super) cpu_model: Option<String>,
    pub(super) allowed_cpus: Option<String>,
    pub(super) gpus: Vec<RawGpu>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawGpu {
    pub(super) uuid: Option<String>,
    pub(super) kind: String,
    pub(super) parent: Option<String>,
    pub(super) uma: bool,
}

impl FusionRow {
    /// What is wrong, if anything is.
    pub(super) fn wrong(&self) -> Option<String> {
        let fusion = fuse(&self.input());
        let name =
            |id: &AgentId| self.agents.keys().find(|name| agent_id(name) == *id).cloned().unwrap_or_default();
        let clusters: Vec<Vec<String>> =
            fusion.machines().iter().map(|machine| machine.agents.iter().map(name).collect()).collect();
        let mut excluded: Vec<(String, String)> =
            fusion.excluded_pairs().iter().map(|(a, b)| (name(a), name(b))).collect();
        excluded.sort();
        let warnings: BTreeSet<&str> = fusion.warnings().iter().map(|warning| warning.code.text()).collect();
        let mut wrong = Vec::new();
        if clusters != self.expect.clusters {
            wrong.push(format!("clusters {clusters:?}, expected {:?}", self.expect.clusters));
        }
        if excluded != self.expect.excluded_pairs {
            wrong.push(format!("excluded {excluded:?}, expected {:?}", self.expect.excluded_pairs));
        }
        let expected: BTreeSet<&str> = self.expect.warnings_include.iter().map(String::as_str).collect();
        if !expected.is_subset(&warnings) || (expected.is_empty() && !warnings.is_empty()) {
            wrong.push(format!("warnings {warnings:?}, expected {expected:?}"));
        }
        let mut names = self.agents.keys().map(|name| agent_id(name));
        if let (Some(expected), Some(a), Some(b)) = (&self.expect.first_pair, names.next(), names.next()) {
            let relation = fusion.relation(a, b).unwrap();
            let found = (kind_text(relation.kind), relation.confidence.to_string());
            if found != (expected.relation.as_str(), expected.confidence.clone()) {
                let why = fusion.why(a, b).unwrap();
                wrong.push(format!(
                    "first pair {found:?}, expected {} {}; {why}",
                    expected.relation, expected.confidence
                ));
            }
        }
        (!wrong.is_empty()).then(|| wrong.join("; "))
    }

    pub(super) fn input(&self) -> Input {
        let key = Key::new(&Salt::LOOPBACK);
        let members = self.agents.iter().map(|(name, facts)| facts.member(name, &key)).collect();
        let mut input = Input { members, ..Input::default() };
        for pair in &self.pairs {
            let ids = (agent_id(&pair.a), agent_id(&pair.b));
            input.facts.insert(ids, pair.facts.facts());
            let rule = pair
                .facts
                .rule
                .as_deref()
                .map(|rule| one_of(rule, [("same", Rule::Same), ("distinct", Rule::Distinct)]));
            input.rules.extend(rule.map(|rule| (ids.0, ids.1, rule)));
        }
        input
    }
}

impl RawPairFacts {
    fn facts(&self) -> PairFacts {
        let test = |text: &Option<String>| {
            text.as_deref().map(|text| one_of(text, [("pass", Test::Pass), ("fail", Test::Fail)]))
        };
        let interference = |text: &Option<String>| {
            let known = [("positive", Interference::Positive), ("negative", Interference::Negative)];
            text.as_deref().map(|text| one_of(text, known))
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "milliseconds of a table"
        )]
        let clock = self.clock_offset_ms.zip(self.rtt_ms).map(|(offset, rtt)| ClockOffset {
            offset_ns: (offset * 1e6).round() as i64,
            rtt_ns: (rtt * 1e6).round() as u64,
        });
        PairFacts {
            clock,
            rendezvous: self.rendezvous,
            sandwich: test(&self.sandwich),
            beacon: test(&self.beacon),
            local_peer: self.local_peer,
            probe: interference(&self.probe),
            passive: interference(&self.passive),
        }
    }
}

impl AgentFacts {
    fn member(&self, name: &str, key: &Key) -> Member {
        let id = agent_id(name);
        let epoch = self.epoch_ns.map_or(Reading::Absent, canonical::epoch);
        Member {
            id,
            key: self.agent_key.as_deref().map_or(id, |text| agent_id(&format!("key {text}"))),
            evidence: Arc::new(self.canonical().keyed(key)),
            epoch: EpochTrack::settled(&epoch),
            first_heard: Duration::ZERO,
            last_heard: Duration::from_secs(1),
            flapping: false,
        }
    }

    /// The facts by the parsers that the readers use.
    fn canonical(&self) -> Facts {
        let os = one_of(&self.os, [("linux", Os::Linux), ("macos", Os::Macos), ("windows", Os::Windows)]);
        let hypervisors = [
            ("none", Hypervisor::None),
            ("root", Hypervisor::Root),
            ("vm", Hypervisor::Vm),
            ("unknown", Hypervisor::Unknown),
        ];
        let classes = [
            ("homelab", HypervisorClass::Homelab),
            ("desktop", HypervisorClass::Desktop),
            ("cloud", HypervisorClass::Cloud),
            ("unknown", HypervisorClass::Unknown),
        ];
        let one = |text: &Option<String>, parse: fn(&str) -> Reading<String>| {
            text.as_deref().map_or(Reading::Absent, parse)
        };
        let boot_id = one(&self.boot_id, canonical::uuid);
        let empty = Facts::empty(os);
        Facts {
            hypervisor: one_of(self.hv.as_deref().unwrap_or("unknown"), hypervisors),
            hypervisor_class: one_of(self.hv_class.as_deref().unwrap_or("unknown"), classes),
            time_namespace: self.time_namespace,
            boot_id: if self.boot_id_virtual { boot_id.into_virtual() } else { boot_id },
            machine_id: one(&self.machine_id, canonical::machine_id),
            product_uuid: one(&self.product_uuid, canonical::product_uuid),
            platform_uuid: one(&self.platform_uuid, canonical::uuid),
            machine_guid: one(&self.machine_guid, canonical::uuid),
            wsl_host_guid: one(&self.wsl_host_guid, canonical::uuid),
            hosts_vms: canonical::set(self.hosts_vms.iter().map(|text| canonical::product_uuid(text))),
            ppin: canonical::set(self.ppin.iter().map(|text| canonical::ppin(text))),
            macs: canonical::set(self.macs.iter().map(|text| canonical::mac(text))),
            nvme: canonical::set(self.nvme.iter().map(|text| canonical::nvme_serial(text))),
            cpu_model: self.cpu_model.as_deref().map_or(Reading::Absent, canonical::cpu_model),
            cpus: tropa_proto::evidence::Cpus {
                allowed: Text::cut(self.allowed_cpus.as_deref().unwrap_or_default()),
                ..empty.cpus
            },
            gpus: List::new(self.gpus.iter().map(RawGpu::canonical).collect()).unwrap(),
            ..empty
        }
    }
}

impl RawGpu {
    /// The GPU; a slice without a parent is known by its own id only.
    fn canonical(&self) -> Gpu<String> {
        let id =
            |text: &Option<String>| text.as_deref().and_then(|text| canonical::gpu_id(text).value().cloned());
        let kind = match self.kind.as_str() {
            "full" | "" => GpuKind::Full,
            "mig" => id(&self.parent).map_or(GpuKind::Full, |parent| GpuKind::Mig { parent }),
            "vgpu" => GpuKind::Vgpu,
            other => panic!("no kind of GPU: {other}"),
        };
        Gpu {
            vendor: Text::default(),
            name: Text::default(),
            uuid: id(&self.uuid),
            kind,
            pci: None,
            memory: 0,
            uma: self.uma,
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LanesRow {
    pub(super) id: u32,
    pub(super) situation: String,
    pub(super) a: RawChunk,
    pub(super) b: RawChunk,
    pub(super) expect: LanesExpect,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LanesExpect {
    pub(super) parallel: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawChunk {
    pub(super) machine: String,
    pub(super) gpus: Vec<RawGpu>,
    pub(super) cpu: bool,
    pub(super) numa_nodes: Vec<u16>,
}

impl LanesRow {
    pub(super) fn wrong(&self) -> Option<String> {
        let together = self.a.machine == self.b.machine;
        let (a, b) = (self.a.lane(), self.b.lane());
        let parallel = !conflict(&a, &b, together);
        if conflict(&b, &a, together) == parallel {
            return Some(format!("{a} against {b} depends on the order"));
        }
        (parallel != self.expect.parallel).then(|| format!("{a} against {b}: parallel {parallel}"))
    }
}

impl RawChunk {
    fn lane(&self) -> Lane {
        let key = Key::new(&Salt::LOOPBACK);
        let mut facts = Facts::empty(Os::Linux);
        facts.gpus = List::new(self.gpus.iter().map(RawGpu::canonical).collect()).unwrap();
        let machine = agent_id(&self.machine);
        let place = Place { machine: MachineId(machine), kernel: machine };
        Lane::of(place, facts.keyed(&key).gpus.iter(), self.cpu, &self.numa_nodes)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ContinuityRow {
    pub(super) id: u32,
    pub(super) situation: String,
    pub(super) record: RawAnchors,
    pub(super) seen: RawAnchors,
    pub(super) record_alive: bool,
    pub(super) expect: ContinuityExpect,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ContinuityExpect {
    pub(super) outcome: String,
    pub(super) warning: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAnchors {
    pub(super) ppin: Vec<String>,
    pub(super) product_uuid: Vec<String>,
    pub(super) platform_uuid: Vec<String>,
    pub(super) gpus: Vec<String>,
    pub(super) macs: Vec<String>,
    pub(super) nvme: Vec<String>,
    pub(super) machine_id: Vec<String>,
    pub(super) machine_guid: Vec<String>,
    pub(super) agent_key: Vec<String>,
    pub(super) boot: Option<String>,
}

impl ContinuityRow {
    pub(super) fn wrong(&self) -> Option<String> {
        let found = self.seen.anchors().matches(&self.record.anchors(), self.record_alive);
        let outcomes = [("REBIND", Outcome::Rebind), ("NEW", Outcome::New), ("CLONE", Outcome::Clone)];
        let warning = found.warning.map(|code| code.text().to_owned());
        let right = found.outcome == one_of(&self.expect.outcome, outcomes) && warning == self.expect.warning;
        (!right).then(|| format!("{found:?}"))
    }
}

impl RawAnchors {
    fn anchors(&self) -> Anchors<String> {
        let values = [
            (Anchor::Ppin, &self.ppin),
            (Anchor::ProductUuid, &self.product_uuid),
            (Anchor::PlatformUuid, &self.platform_uuid),
            (Anchor::Gpu, &self.gpus),
            (Anchor::Mac, &self.macs),
            (Anchor::Nvme, &self.nvme),
            (Anchor::MachineId, &self.machine_id),
            (Anchor::MachineGuid, &self.machine_guid),
            (Anchor::AgentKey, &self.agent_key),
        ];
        let values = values.map(|(anchor, values)| (anchor, values.iter().cloned().collect()));
        Anchors { values: values.into_iter().collect(), boots: self.boot.iter().cloned().collect() }
    }
}

/// The id that a name stands for: its bytes, so that names and ids have one order.
pub(super) fn agent_id(name: &str) -> AgentId {
    let mut id = [0; 32];
    id[..name.len()].copy_from_slice(name.as_bytes());
    AgentId(id)
}

fn one_of<T: Copy, const N: usize>(text: &str, known: [(&str, T); N]) -> T {
    let found = known.iter().find(|(name, _)| *name == text);
    found.unwrap_or_else(|| panic!("{text:?} is not a word of the tables")).1
}

pub(super) fn kind_text(kind: Kind) -> &'static str {
    match kind {
        Kind::SameKernel => "SAME_KERNEL",
        Kind::SameMachine => "SAME_MACHINE",
        Kind::UnknownExclude => "UNKNOWN_EXCLUDE",
        Kind::Distinct => "DISTINCT",
    }
}

#[test]
fn a_misspelt_field_is_an_error_and_not_missing_evidence() {
    assert!(serde_json::from_str::<AgentFacts>(r#"{"os": "linux", "boot-id": "x"}"#).is_err());
    assert!(serde_json::from_str::<RawPairFacts>(r#"{"sandwhich": "pass"}"#).is_err());
}
