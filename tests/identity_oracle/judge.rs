//! Sections 6 and 7: kernels pooled, every two of them related, joined and compared between machines.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    agent::Agent,
    fusion::{Kernelled, Kernels, Two, Verdict, two},
};

/// A kernel with the evidence of all its agents (section 6, "pool first").
#[derive(Clone, Debug, Default)]
struct Pool {
    windows: bool,
    says_bare: bool,
    says_vm: bool,
    cloud: bool,
    bare: bool,
    known: bool,
    keys: BTreeSet<String>,
    machine_ids: BTreeSet<String>,
    product_uuids: BTreeSet<String>,
    guids: BTreeSet<String>,
    wsl: BTreeSet<String>,
    hosts_vms: BTreeSet<String>,
    ppin: BTreeSet<String>,
    macs: BTreeSet<String>,
    nvme: BTreeSet<String>,
    models: BTreeSet<String>,
    gpus: BTreeSet<String>,
    vgpus: BTreeSet<String>,
}

/// The relation of two kernels before machines are formed.
#[derive(Clone, Copy, Debug)]
struct Relation {
    kind: &'static str,
    confidence: &'static str,
    score: i32,
    measured_sharing: bool,
}

#[derive(Debug)]
pub(super) struct Judge {
    world: Kernelled,
    pools: Vec<Pool>,
}

impl Judge {
    pub(super) fn new(world: Kernelled) -> Self {
        let mut pools: Vec<Pool> = world
            .kernels
            .iter()
            .map(|members| {
                let mut pool = Pool::default();
                members.iter().for_each(|agent| pool.add(&world.agents[*agent]));
                pool
            })
            .collect();
        for place in 0..pools.len() {
            let mut others = pools.iter().enumerate().filter(|(other, _)| *other != place);
            let listed = others.any(|(_, other)| share(&other.hosts_vms, &pools[place].product_uuids));
            let pool = &mut pools[place];
            pool.bare = pool.says_bare && !pool.says_vm && !listed;
            pool.known = pool.bare || listed || pool.says_vm;
        }
        Self { world, pools }
    }

    pub(super) fn verdict(mut self) -> Verdict {
        let count = self.pools.len();
        let mut relations = BTreeMap::new();
        for a in 0..count {
            for b in a + 1..count {
                let relation = self.relate(a, b);
                relations.insert((a, b), relation);
            }
        }
        self.warn_of_agents();
        let (machine, joins, refused) = self.join(&relations);
        let fin = self.between(&relations, &machine, &joins, &refused);
        self.tell(&machine, &fin, &relations, &refused)
    }

    /// The agent pairs of two kernels.
    fn agent_pairs(&self, a: usize, b: usize) -> Vec<Two> {
        let (a, b) = (&self.world.kernels[a], &self.world.kernels[b]);
        a.iter().flat_map(|x| b.iter().map(|y| two(*x, *y))).collect()
    }

    fn warn(&mut self, code: &'static str) {
        self.world.warnings.insert(code);
    }

    /// Section 6, "relation of two kernels, first match wins", and the warnings on the way.
    fn relate(&mut self, a: usize, b: usize) -> Relation {
        let (x, y) = (self.pools[a].clone(), self.pools[b].clone());
        let pairs = self.agent_pairs(a, b);
        let any = |wanted: &[Kernels]| pairs.iter().any(|pair| wanted.contains(&self.world.pairs[pair]));
        // "apart if a live test separated any members; else they conflict …; else apart if any pair is DIFFERENT"
        let live = any(&[Kernels::Live]);
        let refused = pairs.iter().any(|pair| self.world.refused.contains(pair));
        let conflict = !live && (any(&[Kernels::Conflict]) || refused);
        let apart = live || (!conflict && any(&[Kernels::Different]));
        let same_kernel = any(&[Kernels::Proof, Kernels::High]);
        // "positive wins"
        let facts: Vec<_> =
            pairs.iter().flat_map(|pair| self.world.facts.get(pair)).flatten().cloned().collect();
        let has = |word: &str, active: bool| {
            facts
                .iter()
                .any(|facts| if active { &facts.probe } else { &facts.passive }.as_deref() == Some(word))
        };
        let measured = |active: bool| match (has("positive", active), has("negative", active)) {
            (true, _) => 30,
            (false, true) => -30,
            (false, false) => 0,
        };
        let (probe, production) = (measured(true), measured(false));
        let local_peer = facts.iter().any(|facts| facts.local_peer);
        let both_bare = x.bare && y.bare;
        // 2. Hard negatives
        let one = |pool: &Pool| pool.product_uuids.len() == 1;
        let boards = both_bare && one(&x) && one(&y) && x.product_uuids != y.product_uuids;
        let processors = !x.ppin.is_empty() && !y.ppin.is_empty() && !share(&x.ppin, &y.ppin);
        let hard = (apart && both_bare) || boards || processors;
        // "Warnings given on the way"
        let software = share(&x.machine_ids, &y.machine_ids) || share(&x.guids, &y.guids);
        let smbios = share(&x.product_uuids, &y.product_uuids);
        if (apart || hard) && software {
            self.warn("CLONED_IMAGE");
        }
        if (apart || hard) && smbios {
            self.warn(if both_bare { "DUPLICATE_SMBIOS_UUID" } else { "DUPLICATE_VM_UUID" });
        }
        if share(&x.vgpus, &y.vgpus) {
            self.warn("VGPU_UUID_DUPLICATE");
        }
        if share(&x.keys, &y.keys) {
            self.warn("CLONED_AGENT_KEY");
        }
        // 1. Operator rule
        let rules: BTreeSet<String> =
            pairs.iter().flat_map(|pair| self.world.rules(*pair)).map(str::to_owned).collect();
        let operator = |kind| Relation { kind, confidence: "operator", score: 1000, measured_sharing: false };
        if rules.contains("same") {
            if rules.contains("distinct") {
                self.warn("RULES_CONTRADICT");
            }
            if hard {
                self.warn("OVERRIDE_CONTRADICTS_PROOF");
            }
            return operator("SAME_MACHINE");
        }
        if rules.contains("distinct") {
            if same_kernel {
                self.warn("OVERRIDE_CONTRADICTS_PROOF");
            }
            return operator("DISTINCT");
        }
        if hard {
            if probe > 0 || production > 0 {
                self.warn("MEASURED_SHARING");
                let kind = "UNKNOWN_EXCLUDE";
                return Relation { kind, confidence: "low", score: 0, measured_sharing: true };
            }
            return Relation { kind: "DISTINCT", confidence: "high", score: 0, measured_sharing: false };
        }
        // 3. Score
        let mut lines = Vec::new();
        let prior = if both_bare {
            -15
        } else if (x.cloud || y.cloud) && x.known && y.known {
            -20
        } else {
            -3
        };
        let gpu = share(&x.gpus, &y.gpus);
        let ppin = share(&x.ppin, &y.ppin);
        let mut doubtful = false;
        if !x.models.is_empty() && !y.models.is_empty() && !share(&x.models, &y.models) {
            lines.push(-30);
        }
        lines.push(if gpu { 40 } else { 0 });
        lines.push(if ppin { 50 } else { 0 });
        lines.push(if smbios && both_bare { 40 } else { 0 });
        // guest claim
        let mut guest = 0;
        let claimed: BTreeSet<String> = x
            .hosts_vms
            .intersection(&y.product_uuids)
            .chain(y.hosts_vms.intersection(&x.product_uuids))
            .cloned()
            .collect();
        for uuid in claimed {
            let lists = self.pools.iter().filter(|pool| pool.hosts_vms.contains(&uuid)).count();
            let have = self.pools.iter().filter(|pool| pool.product_uuids.contains(&uuid)).count();
            if lists == 1 && have == 1 {
                guest = 40;
            } else {
                guest = guest.max(5);
                doubtful = true;
                self.warn("DUPLICATE_VM_UUID");
            }
        }
        lines.push(guest);
        // WSL claim
        let mut windows = 0;
        let claimed: BTreeSet<String> =
            x.wsl.intersection(&y.guids).chain(y.wsl.intersection(&x.guids)).cloned().collect();
        for guid in claimed {
            if self.pools.iter().filter(|pool| pool.guids.contains(&guid)).count() == 1 {
                windows = 40;
            } else {
                windows = windows.max(5);
                doubtful = true;
                self.warn("CLONED_IMAGE");
            }
        }
        lines.push(windows);
        if share(&x.wsl, &y.wsl) {
            lines.push(15);
            doubtful = true;
        }
        let other_wsl = !x.wsl.is_empty() && !y.wsl.is_empty() && !share(&x.wsl, &y.wsl);
        let other_windows = |wsl: &Pool, windows: &Pool| {
            let named = !wsl.wsl.is_empty() && !windows.guids.is_empty();
            named && windows.bare && windows.windows && !share(&wsl.wsl, &windows.guids)
        };
        if (other_wsl || other_windows(&x, &y) || other_windows(&y, &x)) && !gpu && !ppin {
            lines.push(-30);
        }
        lines.push(if share(&x.nvme, &y.nvme) && !apart { 20 } else { 0 });
        lines.push(if share(&x.macs, &y.macs) { 20 } else { 0 });
        lines.push(if local_peer { 20 } else { 0 });
        lines.push(match (software, apart) {
            (true, false) => 15,
            (true, true) => 5,
            (false, _) => 0,
        });
        lines.extend([probe, production]);
        let score = prior + lines.iter().sum::<i32>();
        let strong = lines.iter().any(|line| *line >= 40);
        let negative = lines.iter().any(|line| *line < 0);
        // Verdict
        let (kind, confidence) = if score >= 20 {
            ("SAME_MACHINE", if score >= 30 { "high" } else { "medium" })
        } else if score > -5 || conflict || strong || ((!apart || doubtful) && !negative) {
            ("UNKNOWN_EXCLUDE", "low")
        } else {
            ("DISTINCT", if score <= -30 { "high" } else { "medium" })
        };
        Relation { kind, confidence, score, measured_sharing: false }
    }

    fn warn_of_agents(&mut self) {
        // "any virtual boot_id; information"
        if self.world.agents.iter().any(|agent| agent.boot_id_virtual) {
            self.warn("BOOT_ID_VIRTUALISED");
        }
    }

    /// Section 6, "joining with cannot-link": the machine of each kernel, the joins, the refused pairs.
    fn join(&mut self, relations: &BTreeMap<Two, Relation>) -> (Vec<usize>, Vec<Two>, BTreeSet<Two>) {
        let mut machine: Vec<usize> = (0..self.pools.len()).collect();
        let (mut joins, mut refused) = (Vec::new(), BTreeSet::new());
        let mut wanted: Vec<(&Two, &Relation)> =
            relations.iter().filter(|(_, relation)| relation.kind == "SAME_MACHINE").collect();
        wanted.sort_by_key(|(pair, relation)| (-relation.score, **pair));
        for (pair, relation) in wanted {
            let (a, b) = (machine[pair.0], machine[pair.1]);
            if a == b {
                continue;
            }
            let across = relations.iter().filter(|((x, y), _)| two(machine[*x], machine[*y]) == two(a, b));
            let blocked = across.into_iter().any(|(_, other)| {
                let distinct = other.kind == "DISTINCT";
                match relation.confidence {
                    "operator" => distinct && other.confidence == "operator",
                    _ => (distinct && other.confidence != "medium") || other.measured_sharing,
                }
            });
            if blocked {
                refused.insert(*pair);
                self.warn("MERGE_REFUSED_CONFLICT");
                continue;
            }
            joins.push(*pair);
            machine
                .iter_mut()
                .filter(|machine| **machine == a.max(b))
                .for_each(|machine| *machine = a.min(b));
        }
        (machine, joins, refused)
    }

    /// Section 7: the final relation of every two kernels.
    fn between(
        &mut self,
        relations: &BTreeMap<Two, Relation>,
        machine: &[usize],
        joins: &[Two],
        refused: &BTreeSet<Two>,
    ) -> BTreeMap<Two, (&'static str, &'static str)> {
        let mut fin = BTreeMap::new();
        for (pair, relation) in relations {
            let (x, y) = (machine[pair.0], machine[pair.1]);
            let own = (relation.kind, relation.confidence);
            if x == y {
                let found = if own.0 == "SAME_MACHINE" {
                    own
                } else {
                    ("SAME_MACHINE", weakest(*pair, joins, relations))
                };
                fin.insert(*pair, found);
                continue;
            }
            let across: Vec<_> =
                relations.iter().filter(|((a, b), _)| two(machine[*a], machine[*b]) == two(x, y)).collect();
            let carriers: Vec<&str> = across
                .iter()
                .filter(|(_, other)| other.kind == "DISTINCT" && other.confidence != "medium")
                .map(|(_, other)| other.confidence)
                .collect();
            let unknown =
                across.iter().any(|(pair, other)| other.kind == "UNKNOWN_EXCLUDE" || refused.contains(*pair));
            let found = if refused.contains(pair) || relation.measured_sharing {
                // 1
                ("UNKNOWN_EXCLUDE", "low")
            } else if !carriers.is_empty() {
                // 2
                let surest = if carriers.contains(&"operator") { "operator" } else { "high" };
                if own.0 == "UNKNOWN_EXCLUDE" { ("DISTINCT", surest) } else { own }
            } else if unknown {
                // 3
                ("UNKNOWN_EXCLUDE", "low")
            } else {
                own
            };
            // 4
            if share(&self.pools[pair.0].gpus, &self.pools[pair.1].gpus) {
                self.warn("GPU_UUID_CONFLICT");
            }
            fin.insert(*pair, found);
        }
        fin
    }

    fn tell(
        self,
        machine: &[usize],
        fin: &BTreeMap<Two, (&'static str, &'static str)>,
        relations: &BTreeMap<Two, Relation>,
        refused: &BTreeSet<Two>,
    ) -> Verdict {
        let world = &self.world;
        let kernel_of =
            |agent: usize| world.kernels.iter().position(|kernel| kernel.contains(&agent)).unwrap();
        let mut clusters: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        let (mut excluded, mut told) = (BTreeSet::new(), BTreeMap::new());
        for (a, agent) in world.agents.iter().enumerate() {
            clusters.entry(machine[kernel_of(a)]).or_default().push(agent.name.clone());
            for (b, other) in world.agents.iter().enumerate().skip(a + 1) {
                let names = (agent.name.clone(), other.name.clone());
                let (k, l) = (kernel_of(a), kernel_of(b));
                if k == l {
                    let proof = world.proofs[a] == world.proofs[b];
                    told.insert(names, ("SAME_KERNEL", if proof { "proof" } else { "high" }));
                    continue;
                }
                let pair = two(k, l);
                let apart = machine[k] != machine[l];
                // A pair that section 5 excluded is unknown, like one that section 6 refused.
                let refused_agents = apart && world.refused.contains(&(a, b));
                told.insert(
                    names.clone(),
                    if refused_agents { ("UNKNOWN_EXCLUDE", "low") } else { fin[&pair] },
                );
                let contradictory = refused.contains(&pair)
                    || relations[&pair].measured_sharing
                    || refused_agents
                    || agent.gpus_conflict(other);
                if apart && (fin[&pair].0 == "UNKNOWN_EXCLUDE" || contradictory) {
                    excluded.insert(names);
                }
            }
        }
        let mut clusters: Vec<Vec<String>> = clusters.into_values().collect();
        clusters.iter_mut().for_each(|cluster| cluster.sort());
        clusters.sort();
        Verdict { clusters, excluded, warnings: self.world.warnings, relations: told }
    }
}

impl Pool {
    fn add(&mut self, agent: &Agent) {
        self.windows |= agent.os == "windows";
        self.says_bare |= agent.says_bare();
        self.says_vm |= agent.hv == "vm";
        self.cloud |= agent.hv_class == "cloud";
        self.keys.extend(agent.key.clone());
        self.machine_ids.extend(agent.machine_id.clone());
        self.product_uuids.extend(agent.product_uuid.clone());
        self.guids.extend(agent.machine_guid.clone());
        self.wsl.extend(agent.wsl_host_guid.clone());
        self.hosts_vms.extend(agent.hosts_vms.iter().cloned());
        self.ppin.extend(agent.ppin.iter().cloned());
        self.macs.extend(agent.macs.iter().cloned());
        self.nvme.extend(agent.nvme.iter().cloned());
        self.models.extend(agent.cpu_model.clone());
        self.gpus.extend(agent.physical_gpus());
        self.vgpus.extend(agent.vgpus.iter().cloned());
    }
}

/// Section 7: the weakest join on the only way of joins between two kernels.
fn weakest(pair: Two, joins: &[Two], relations: &BTreeMap<Two, Relation>) -> &'static str {
    // Leave out the joins of a confidence and all weaker ones: the first that breaks the way is the weakest on it.
    let order = ["low", "medium", "high", "operator"];
    for (rank, confidence) in order.iter().enumerate() {
        let mut reached = BTreeSet::from([pair.0]);
        for _ in joins {
            for (a, b) in joins {
                if order.iter().position(|name| *name == relations[&(*a, *b)].confidence) > Some(rank)
                    && (reached.contains(a) || reached.contains(b))
                {
                    reached.extend([*a, *b]);
                }
            }
        }
        if !reached.contains(&pair.1) {
            return confidence;
        }
    }
    "operator"
}

fn share(a: &BTreeSet<String>, b: &BTreeSet<String>) -> bool {
    a.iter().any(|value| b.contains(value))
}
