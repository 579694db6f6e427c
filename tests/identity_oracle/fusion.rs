//! Fusion, read out of the rules once more: strings, plain loops over all pairs, nothing cached, nothing shared
//! with the real code but the raw rows. Slow and easy to compare with the text; each step names its section.

use std::collections::{BTreeMap, BTreeSet};

use super::{agent::Agent, judge::Judge};
use crate::identity::{FusionRow, RawPairFacts};

/// What fusion has to say about one row.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) clusters: Vec<Vec<String>>,
    pub(super) excluded: BTreeSet<(String, String)>,
    pub(super) warnings: BTreeSet<&'static str>,
    /// Relation and confidence of every two agents, the smaller name first.
    pub(super) relations: BTreeMap<(String, String), (&'static str, &'static str)>,
}

/// Two agents, two kernels or two machines: their places in the list, the smaller first.
pub(super) type Two = (usize, usize);

/// The relation of two agents to one kernel (section 5, rules 1-12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernels {
    /// Rules 1 and 5.
    Proof,
    /// Rules 7, 10 and 11.
    High,
    /// Rules 2 and 4: a live test separated the two.
    Live,
    /// Rules 8-10.
    Different,
    /// Rules 3 and 6.
    Conflict,
    /// Rule 12.
    Unknown,
}

/// Everything found about a row up to the kernels.
#[derive(Debug)]
pub(super) struct Kernelled {
    pub(super) agents: Vec<Agent>,
    pub(super) facts: BTreeMap<Two, Vec<RawPairFacts>>,
    pub(super) pairs: BTreeMap<Two, Kernels>,
    /// The kernels, each its agents; in the order of their smallest agents.
    pub(super) kernels: Vec<Vec<usize>>,
    /// Agents joined by proofs have one number.
    pub(super) proofs: Vec<usize>,
    /// Pairs that section 5 refused and excluded.
    pub(super) refused: BTreeSet<Two>,
    pub(super) warnings: BTreeSet<&'static str>,
}

/// Sections 5 to 7 for one row.
pub(super) fn fuse(row: &FusionRow) -> Verdict {
    Judge::new(Kernelled::new(row)).verdict()
}

impl Kernelled {
    fn new(row: &FusionRow) -> Self {
        let agents: Vec<Agent> = row.agents.iter().map(|(name, facts)| Agent::read(name, facts)).collect();
        let mut facts: BTreeMap<Two, Vec<RawPairFacts>> = BTreeMap::new();
        for pair in &row.pairs {
            let place = |name: &String| agents.iter().position(|agent| agent.name == *name).unwrap();
            facts.entry(two(place(&pair.a), place(&pair.b))).or_default().push(pair.facts.clone());
        }
        let mut made = Self {
            pairs: BTreeMap::new(),
            kernels: Vec::new(),
            proofs: (0..agents.len()).collect(),
            refused: BTreeSet::new(),
            warnings: BTreeSet::new(),
            agents,
            facts,
        };
        for a in 0..made.agents.len() {
            for b in a + 1..made.agents.len() {
                let relation = made.relate(a, b);
                made.pairs.insert((a, b), relation);
            }
        }
        made.form();
        made
    }

    /// Section 5, "kernel relation of two agents, first match wins".
    fn relate(&mut self, a: usize, b: usize) -> Kernels {
        let (x, y) = (self.agents[a].clone(), self.agents[b].clone());
        let facts = self.facts.get(&(a, b)).cloned().unwrap_or_default();
        let any = |test: &dyn Fn(&RawPairFacts) -> bool| facts.iter().any(test);
        // "genuine": the reading is a `Value`.
        let boots = x.boot_id.as_ref().zip(y.boot_id.as_ref()).map(|(x, y)| x == y);
        // "comparable": both are `Value`, neither side has a time namespace; equal within 2 µs.
        let epochs = x.epoch.zip(y.epoch).map(|(x, y)| (x - y).abs() <= 2_000);
        let seem_equal = boots == Some(true) || epochs == Some(true);
        let disproved = any(&|facts| {
            let clock = facts.clock_offset_ms.zip(facts.rtt_ms);
            clock.is_some_and(|(offset, rtt)| offset.abs() > rtt / 2.0 + 1.0)
        });
        let sandwich = |word: &str| any(&|facts| facts.sandwich.as_deref() == Some(word));
        let beacon = |word: &str| any(&|facts| facts.beacon.as_deref() == Some(word));
        // 1
        if any(&|facts| facts.rendezvous) || beacon("pass") {
            return Kernels::Proof;
        }
        // 2, and 4 unless 3 comes before it
        let live = beacon("fail") || (!sandwich("pass") && (sandwich("fail") || disproved));
        if live {
            if seem_equal {
                self.warnings.insert("SNAPSHOT_CLONE_OR_SPOOF");
            }
            return Kernels::Live;
        }
        if sandwich("pass") {
            // 3
            if disproved {
                self.warnings.insert("KERNEL_CONFLICT");
                return Kernels::Conflict;
            }
            // 5
            return Kernels::Proof;
        }
        // 6
        if boots.zip(epochs).is_some_and(|(boots, epochs)| boots != epochs) {
            self.warnings.insert("KERNEL_CONFLICT");
            return Kernels::Conflict;
        }
        // 7
        if seem_equal {
            return Kernels::High;
        }
        // 8
        if boots == Some(false) || epochs == Some(false) {
            return Kernels::Different;
        }
        // 9
        if x.os != y.os {
            return Kernels::Different;
        }
        // 10
        let both_bare = x.says_bare() && y.says_bare();
        if let (Some(x), Some(y)) = (&x.platform_uuid, &y.platform_uuid) {
            if x != y {
                return Kernels::Different;
            }
            if both_bare {
                return Kernels::High;
            }
        }
        // 11
        let equal = |x: &Option<String>, y: &Option<String>| x.is_some() && x == y;
        if x.os == "windows"
            && both_bare
            && equal(&x.machine_guid, &y.machine_guid)
            && equal(&x.product_uuid, &y.product_uuid)
        {
            return Kernels::High;
        }
        // 12
        Kernels::Unknown
    }

    /// Section 5, "Forming kernels".
    fn form(&mut self) {
        let mut group: Vec<usize> = (0..self.agents.len()).collect();
        // (a)
        for (pair, relation) in self.pairs.clone() {
            if relation == Kernels::Proof {
                self.join(&mut group, pair);
            }
        }
        self.proofs.clone_from(&group);
        // (b) the map's order is (smaller agent id, larger agent id)
        for (pair, relation) in self.pairs.clone() {
            if relation == Kernels::High {
                self.join(&mut group, pair);
            }
        }
        for agent in 0..self.agents.len() {
            if group[agent] == agent {
                self.kernels.push((0..group.len()).filter(|other| group[*other] == agent).collect());
            }
        }
    }

    fn join(&mut self, group: &mut [usize], pair: Two) {
        let (a, b) = pair;
        if group[a] == group[b] {
            return;
        }
        let between = |of: &[usize]| -> Vec<Two> {
            let all = self.pairs.keys().copied();
            all.filter(|(x, y)| two(of[*x], of[*y]) == two(of[a], of[b])).collect()
        };
        let current = between(group);
        // (c)
        if current.iter().any(|pair| self.rules(*pair).contains("distinct")) {
            if !self.rules(pair).contains("distinct") {
                self.refused.insert(pair);
                self.warnings.insert("MERGE_REFUSED_CONFLICT");
            }
            return;
        }
        let different = |pair: &Two| matches!(self.pairs[pair], Kernels::Different | Kernels::Live);
        if self.pairs[&pair] == Kernels::High && current.iter().any(different) {
            if between(&self.proofs).iter().any(|pair| self.pairs[pair] == Kernels::Live) {
                return;
            }
            self.refused.insert(pair);
            self.warnings.insert("KERNEL_CONFLICT");
            return;
        }
        let (from, to) = (group[a].max(group[b]), group[a].min(group[b]));
        group.iter_mut().filter(|group| **group == from).for_each(|group| *group = to);
    }

    /// The operator's rules for two agents.
    pub(super) fn rules(&self, pair: Two) -> BTreeSet<&str> {
        let facts = self.facts.get(&pair).into_iter().flatten();
        facts.filter_map(|facts| facts.rule.as_deref()).collect()
    }
}

/// Two places, the smaller first.
pub(super) fn two(a: usize, b: usize) -> Two {
    (a.min(b), a.max(b))
}
