//! A second opinion: the rules of identity read once more, naively and independently, and both compared on random
//! worlds and on the truth tables. Where the two differ, one of them has misread the text.
//!
//! `TROPA_WORLDS=N` sets how many worlds of each kind, `TROPA_SEED=N` the first; every world has its own seed,
//! which a failure prints.

mod agent;
mod fusion;
mod judge;
mod small;
mod worlds;

use std::collections::{BTreeMap, BTreeSet};

use tropa_proto::fuse::fuse;

use self::{fusion::Verdict, worlds::Chance};
use crate::identity::{ContinuityRow, FusionRow, LanesRow, agent_id, kind_text, rows};

/// Worlds without the environment variable: some seconds in a debug build.
const WORLDS: u64 = 10_000;

/// What the worlds must lead to, else they would compare little.
const REACHABLE: [&str; 21] = [
    "BOOT_ID_VIRTUALISED",
    "CLONED_AGENT_KEY",
    "CLONED_IMAGE",
    "DISTINCT",
    "DUPLICATE_SMBIOS_UUID",
    "DUPLICATE_VM_UUID",
    "GPU_UUID_CONFLICT",
    "KERNEL_CONFLICT",
    "MEASURED_SHARING",
    "MERGE_REFUSED_CONFLICT",
    "OVERRIDE_CONTRADICTS_PROOF",
    "RULES_CONTRADICT",
    "SAME_KERNEL",
    "SAME_MACHINE",
    "SNAPSHOT_CLONE_OR_SPOOF",
    "UNKNOWN_EXCLUDE",
    "VGPU_UUID_DUPLICATE",
    "low",
    "medium",
    "operator",
    "proof",
];

#[test]
fn the_oracle_brings_the_shown_tables_out_right() {
    let mut wrong = Vec::new();
    for table in ["fusion.json", "further_fusion.json"] {
        for row in rows::<FusionRow>(table) {
            let found = fusion::fuse(&row);
            wrong.extend(
                row.differs(&found).map(|text| format!("{table} row {} ({}): {text}", row.id, row.situation)),
            );
        }
    }
    for row in rows::<LanesRow>("lanes.json") {
        if small::parallel(&row.a, &row.b) != row.expect.parallel {
            wrong.push(format!("lanes row {} ({})", row.id, row.situation));
        }
    }
    for row in rows::<ContinuityRow>("continuity.json") {
        let found = small::continuity(&row);
        if (found.0, found.1) != (row.expect.outcome.as_str(), row.expect.warning.as_deref()) {
            wrong.push(format!("continuity row {} ({}): {found:?}", row.id, row.situation));
        }
    }
    assert!(wrong.is_empty(), "the oracle is wrong\n{}", wrong.join("\n"));
}

#[test]
fn fusion_and_its_oracle_say_the_same_of_random_worlds() {
    let mut reached = BTreeSet::new();
    let agreed = differential("fusion", |chance| {
        let row = chance.fusion();
        let (expected, found) = (fusion::fuse(&row), found(&row));
        reached.extend(&expected.warnings);
        reached.extend(expected.relations.values().flat_map(|(kind, confidence)| [*kind, *confidence]));
        let lines = difference(&expected, &found);
        (!lines.is_empty()).then(|| format!("{}\n{row:#?}", lines.join("\n")))
    });
    println!("{agreed}");
    let missed: Vec<&str> = REACHABLE.into_iter().filter(|word| !reached.contains(word)).collect();
    assert!(missed.is_empty(), "no random world led to {missed:?}");
}

#[test]
fn lanes_and_their_oracle_say_the_same_of_random_chunks() {
    let agreed = differential("lanes", |chance| {
        let mut row = chance.lanes();
        row.expect.parallel = small::parallel(&row.a, &row.b);
        row.wrong().map(|wrong| format!("{wrong}\n{row:#?}"))
    });
    println!("{agreed}");
}

#[test]
fn continuity_and_its_oracle_say_the_same_of_random_records() {
    let agreed = differential("continuity", |chance| {
        let mut row = chance.continuity();
        let (outcome, warning) = small::continuity(&row);
        row.expect.outcome = outcome.to_owned();
        row.expect.warning = warning.map(str::to_owned);
        row.wrong().map(|wrong| format!("{wrong}, the oracle {outcome} {warning:?}\n{row:#?}"))
    });
    println!("{agreed}");
}

/// Runs many worlds and says how many; fails with the kinds of difference, their counts and a small world of each.
fn differential(what: &str, mut differs: impl FnMut(&mut Chance) -> Option<String>) -> String {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let (first, worlds) = (number("TROPA_SEED").unwrap_or(1), number("TROPA_WORLDS").unwrap_or(WORLDS));
    let mut kinds: BTreeMap<String, (u64, String)> = BTreeMap::new();
    for seed in first..first + worlds {
        let Some(text) = differs(&mut Chance(seed)) else { continue };
        let kind = text.lines().next().unwrap_or_default().to_owned();
        let entry = kinds.entry(kind).or_default();
        entry.0 += 1;
        if entry.1.is_empty() || text.len() < entry.1.len() {
            entry.1 = format!("seed {seed}: {text}");
        }
    }
    let report: Vec<String> =
        kinds.values().map(|(count, text)| format!("{count} worlds like {text}")).collect();
    assert!(kinds.is_empty(), "{what}: seeds {first}.. of {worlds} worlds\n{}", report.join("\n\n"));
    format!("{what}: {worlds} worlds from seed {first} agree")
}

/// What the real code says of a row.
fn found(row: &FusionRow) -> Verdict {
    let fusion = fuse(&row.input());
    let name = |id| row.agents.keys().find(|name| agent_id(name) == id).unwrap().clone();
    let mut clusters: Vec<Vec<String>> = fusion
        .machines()
        .iter()
        .map(|machine| machine.agents.iter().map(|agent| name(*agent)).collect())
        .collect();
    clusters.iter_mut().for_each(|cluster| cluster.sort());
    clusters.sort();
    let mut relations = BTreeMap::new();
    for a in row.agents.keys() {
        for b in row.agents.keys().filter(|b| a < *b) {
            let relation = fusion.relation(agent_id(a), agent_id(b)).unwrap();
            let confidence = ["proof", "operator", "high", "medium", "low"]
                .into_iter()
                .find(|word| relation.confidence.to_string() == *word)
                .unwrap();
            relations.insert((a.clone(), b.clone()), (kind_text(relation.kind), confidence));
        }
    }
    Verdict {
        clusters,
        excluded: fusion.excluded_pairs().into_iter().map(|(a, b)| (name(a), name(b))).collect(),
        warnings: fusion.warnings().iter().map(|warning| warning.code.text()).collect(),
        relations,
    }
}

/// The first line is the kind of difference, the others tell it.
fn difference(oracle: &Verdict, real: &Verdict) -> Vec<String> {
    let mut kind = Vec::new();
    let mut told = Vec::new();
    if oracle.clusters != real.clusters {
        kind.push("clusters".to_owned());
        told.push(format!("clusters: oracle {:?}, real {:?}", oracle.clusters, real.clusters));
    }
    if oracle.excluded != real.excluded {
        kind.push("excluded".to_owned());
        told.push(format!("excluded: oracle {:?}, real {:?}", oracle.excluded, real.excluded));
    }
    for (sign, one, other) in [("oracle", oracle, real), ("real", real, oracle)] {
        kind.extend(one.warnings.difference(&other.warnings).map(|code| format!("only {sign} warns {code}")));
    }
    for (pair, oracle) in &oracle.relations {
        let real = real.relations[pair];
        if *oracle != real {
            kind.push(format!("{} {} for {} {}", oracle.0, oracle.1, real.0, real.1));
            told.push(format!("{pair:?}: oracle {oracle:?}, real {real:?}"));
        }
    }
    kind.dedup();
    if !kind.is_empty() {
        told.insert(0, kind.join("; "));
    }
    told
}

impl FusionRow {
    fn differs(&self, found: &Verdict) -> Option<String> {
        let expect = &self.expect;
        let excluded = expect.excluded_pairs.iter().cloned().collect();
        let missing = expect.warnings_include.iter().any(|code| !found.warnings.contains(code.as_str()));
        let silent = expect.warnings_include.is_empty() && !found.warnings.is_empty();
        let first = found.relations.values().next();
        let names: Vec<&String> = self.agents.keys().collect();
        let first = names.get(1).map_or(first, |b| found.relations.get(&(names[0].clone(), (*b).clone())));
        let wrong_first = expect.first_pair.as_ref().is_some_and(|expected| {
            first.is_none_or(|first| *first != (expected.relation.as_str(), expected.confidence.as_str()))
        });
        let wrong = found.clusters != expect.clusters
            || found.excluded != excluded
            || missing
            || silent
            || wrong_first;
        wrong.then(|| format!("{found:?}"))
    }
}
