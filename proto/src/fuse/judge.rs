//! What two kernels are to each other, by themselves (`identity.md` §6): the operator's rules, then hard negatives,
//! then the odds. Pairs that share nothing are judged when somebody asks.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Confidence, Interference, Kind, Relation,
    kernels::Kernels,
    pool::{Pool, common, meet, names_another_windows},
    relate::{Verdict, relate},
    score::{Line, verdict},
    world::{World, positive_wins},
};
use crate::evidence::Tag;

/// What is known about two kernels by their agents' pairs.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    live: bool,
    conflict: bool,
    same: bool,
    distinct: bool,
    local_peer: bool,
    probe: Option<Interference>,
    passive: Option<Interference>,
}

/// The kernel relation of two kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Apart {
    Yes,
    Conflict,
    Unknown,
}

/// Pools, what is known between them, and how often each claimed id occurs.
#[derive(Clone, Debug)]
pub(super) struct Judge {
    pub(super) pools: Vec<Pool>,
    links: BTreeMap<(usize, usize), Link>,
    pub(super) listed_by: BTreeMap<Tag, Vec<usize>>,
    pub(super) smbios_of: BTreeMap<Tag, Vec<usize>>,
    pub(super) guid_of: BTreeMap<Tag, Vec<usize>>,
}

/// The relation of two kernels by themselves.
#[derive(Clone, Debug)]
pub(super) struct Judged {
    pub(super) relation: Relation,
    /// Sum in tenths; rules and hard negatives have none.
    pub(super) score: Option<i32>,
    pub(super) lines: Vec<Line>,
    /// Two machines by evidence that slow each other: never joined but by a rule.
    pub(super) measured: bool,
    pub(super) hard_negative: Option<&'static str>,
    pub(super) rules_contradict: bool,
    pub(super) apart: Apart,
}

impl Judge {
    pub(super) fn new(world: &World, kernels: &Kernels) -> Self {
        let mut pools: Vec<Pool> = kernels.all.iter().map(|agents| Pool::of(world, agents)).collect();
        let index = |values: fn(&Pool) -> &[Tag]| {
            let mut index: BTreeMap<Tag, Vec<usize>> = BTreeMap::new();
            for (kernel, pool) in pools.iter().enumerate() {
                for value in values(pool) {
                    index.entry(*value).or_default().push(kernel);
                }
            }
            index
        };
        let listed_by = index(|pool| &pool.hosts_vms);
        let smbios_of = index(|pool| &pool.smbios);
        let guid_of = index(|pool| &pool.guids);
        for (kernel, pool) in pools.iter_mut().enumerate() {
            let by_another = |uuid: &Tag| {
                listed_by.get(uuid).is_some_and(|listers| listers.iter().any(|lister| *lister != kernel))
            };
            let listed = pool.smbios.iter().any(by_another);
            pool.bare &= !listed;
            pool.known |= pool.bare || listed;
        }
        let mut links: BTreeMap<(usize, usize), Link> = BTreeMap::new();
        for (i, j, between) in world.pairs() {
            if let Some(pair) = ordered(kernels, i, j) {
                let link = links.entry(pair).or_default();
                link.live |= relate(world, i, j).verdict == Verdict::Different { live: true };
                link.same |= between.same;
                link.distinct |= between.distinct;
                link.local_peer |= between.facts.local_peer;
                link.probe = positive_wins(link.probe, between.facts.probe);
                link.passive = positive_wins(link.passive, between.facts.passive);
            }
        }
        for &(i, j) in &kernels.conflicts {
            if let Some(pair) = ordered(kernels, i, j) {
                links.entry(pair).or_default().conflict = true;
            }
        }
        Self { pools, links, listed_by, smbios_of, guid_of }
    }

    /// Pairs of kernels that share anything which can join them, or about which something is known. What is not
    /// among them is never one machine by itself.
    pub(super) fn candidates(&self) -> Vec<(usize, usize)> {
        let mut pairs: BTreeSet<(usize, usize)> = self.links.keys().copied().collect();
        let shared: [fn(&Pool) -> &[Tag]; 7] = [
            |pool| &pool.gpus,
            |pool| &pool.ppin,
            |pool| &pool.macs,
            |pool| &pool.nvme,
            |pool| &pool.smbios,
            |pool| &pool.wsl,
            |pool| &pool.rules,
        ];
        for values in shared {
            pairs.extend(self.sharing(values));
        }
        for (index, claims) in [
            (&self.smbios_of, (|pool| &pool.hosts_vms) as fn(&Pool) -> &[Tag]),
            (&self.guid_of, |pool| &pool.wsl),
        ] {
            for (kernel, pool) in self.pools.iter().enumerate() {
                let others = claims(pool).iter().filter_map(|claim| index.get(claim)).flatten();
                pairs.extend(
                    others
                        .filter(|other| **other != kernel)
                        .map(|&other| (kernel.min(other), kernel.max(other))),
                );
            }
        }
        pairs.into_iter().collect()
    }

    /// All pairs of kernels that share a value of one kind.
    pub(super) fn sharing(&self, values: fn(&Pool) -> &[Tag]) -> Vec<(usize, usize)> {
        let buckets = self.buckets(values);
        let pairs = |kernels: &Vec<usize>| {
            let mut pairs = Vec::new();
            for (at, one) in kernels.iter().enumerate() {
                pairs.extend(kernels[at + 1..].iter().map(|other| (*one, *other)));
            }
            pairs
        };
        buckets.values().flat_map(pairs).collect()
    }

    /// The kernels that have each value of one kind, for values that more than one has.
    pub(super) fn buckets(&self, values: fn(&Pool) -> &[Tag]) -> BTreeMap<Tag, Vec<usize>> {
        let mut buckets: BTreeMap<Tag, Vec<usize>> = BTreeMap::new();
        for (kernel, pool) in self.pools.iter().enumerate() {
            for value in values(pool) {
                buckets.entry(*value).or_default().push(kernel);
            }
        }
        buckets.retain(|_, kernels| kernels.len() > 1);
        buckets
    }

    /// A rule of the operator speaks for the pair: `Some(true)` says same. With both, same.
    pub(super) fn rule(&self, k: usize, l: usize) -> Option<bool> {
        let (same, distinct) = self.rules(k, l);
        if same { Some(true) } else { distinct.then_some(false) }
    }

    fn rules(&self, k: usize, l: usize) -> (bool, bool) {
        let link = self.link(k, l);
        let (one, other) = (&self.pools[k].rules, &self.pools[l].rules);
        let differ = one.iter().any(|mine| other.iter().any(|theirs| mine != theirs));
        (link.same || meet(one, other), link.distinct || differ)
    }

    fn link(&self, k: usize, l: usize) -> Link {
        self.links.get(&(k.min(l), k.max(l))).copied().unwrap_or_default()
    }

    /// The kernel relation: a live test separates; a contradiction is unknown; any difference separates.
    pub(super) fn apart(&self, world: &World, kernels: &Kernels, k: usize, l: usize) -> Apart {
        let link = self.link(k, l);
        let differs = |&i: &usize| {
            let different = |&j: &usize| matches!(relate(world, i, j).verdict, Verdict::Different { .. });
            kernels.all[l].iter().any(different)
        };
        if link.live {
            Apart::Yes
        } else if link.conflict {
            Apart::Conflict
        } else if kernels.all[k].iter().any(differs) {
            Apart::Yes
        } else {
            Apart::Unknown
        }
    }

    /// Why two kernels cannot be one machine, whatever else speaks for it.
    pub(super) fn hard_negative(&self, k: usize, l: usize, apart: Apart) -> Option<&'static str> {
        let (one, other) = (&self.pools[k], &self.pools[l]);
        let bare = one.bare && other.bare;
        let one_uuid_each = one.smbios.len() == 1 && other.smbios.len() == 1;
        if apart == Apart::Yes && bare {
            Some("two kernels, both bare metal")
        } else if bare && one_uuid_each && one.smbios != other.smbios {
            Some("two SMBIOS UUIDs, both bare metal")
        } else if !one.ppin.is_empty() && !other.ppin.is_empty() && !meet(&one.ppin, &other.ppin) {
            Some("no processor serial in common")
        } else {
            None
        }
    }

    /// Judges two kernels by themselves.
    pub(super) fn judge(&self, world: &World, kernels: &Kernels, k: usize, l: usize) -> Judged {
        let (k, l) = (k.min(l), k.max(l));
        let apart = self.apart(world, kernels, k, l);
        let hard_negative = self.hard_negative(k, l, apart);
        let link = self.link(k, l);
        let (same, distinct) = self.rules(k, l);
        let mut judged = Judged {
            relation: Relation { kind: Kind::UnknownExclude, confidence: Confidence::Low },
            score: None,
            lines: Vec::new(),
            measured: false,
            hard_negative,
            rules_contradict: same && distinct,
            apart,
        };
        if self.pools[k].flapping || self.pools[l].flapping {
            return judged;
        }
        if same || distinct {
            let kind = if same { Kind::SameMachine } else { Kind::Distinct };
            judged.relation = Relation { kind, confidence: Confidence::Operator };
        } else if hard_negative.is_some() {
            let positive = Some(Interference::Positive);
            judged.measured = link.probe == positive || link.passive == positive;
            if !judged.measured {
                judged.relation = Relation { kind: Kind::Distinct, confidence: Confidence::High };
            }
        } else {
            judged.lines = self.lines(k, l, apart, link);
            let sum = judged.lines.iter().map(|line| line.tenths()).sum();
            judged.score = Some(sum);
            judged.relation = verdict(sum, &judged.lines, apart);
        }
        judged
    }

    /// Every line that counts.
    fn lines(&self, k: usize, l: usize, apart: Apart, link: Link) -> Vec<Line> {
        let (one, other) = (&self.pools[k], &self.pools[l]);
        let mut lines = Vec::with_capacity(4);
        let cloud = (one.cloud && !one.bare) || (other.cloud && !other.bare);
        lines.push(if one.bare && other.bare {
            Line::PriorBare
        } else if cloud && one.known && other.known {
            Line::PriorCloud
        } else {
            Line::Prior
        });
        let mut count = |counts: bool, line: Line| {
            if counts {
                lines.push(line);
            }
        };
        let models = !one.cpu_models.is_empty() && !other.cpu_models.is_empty();
        let (gpu, ppin) = (meet(&one.gpus, &other.gpus), meet(&one.ppin, &other.ppin));
        let (guest, wsl) = (self.guest_claim(k, l), self.wsl_claim(k, l));
        count(models && !meet(&one.cpu_models, &other.cpu_models), Line::CpuModelsDiffer);
        count(gpu, Line::Gpu);
        count(ppin, Line::Ppin);
        count(one.bare && other.bare && meet(&one.smbios, &other.smbios), Line::Firmware);
        count(guest == Some(true), Line::GuestClaim);
        count(guest == Some(false), Line::GuestClaimDoubtful);
        count(wsl == Some(true), Line::WslClaim);
        count(wsl == Some(false), Line::WslClaimDoubtful);
        count(meet(&one.wsl, &other.wsl), Line::WslSameWindows);
        count(!gpu && !ppin && names_another_windows(one, other), Line::WslOtherWindows);
        count(apart != Apart::Yes && meet(&one.nvme, &other.nvme), Line::Storage);
        count(meet(&one.macs, &other.macs), Line::Network);
        count(link.local_peer, Line::LocalPeer);
        let software = meet(&one.machine_ids, &other.machine_ids) || meet(&one.guids, &other.guids);
        count(software && apart != Apart::Yes, Line::Software);
        count(software && apart == Apart::Yes, Line::SoftwareApart);
        count(link.probe == Some(Interference::Positive), Line::ProbePositive);
        count(link.probe == Some(Interference::Negative), Line::ProbeNegative);
        count(link.passive == Some(Interference::Positive), Line::PassivePositive);
        count(link.passive == Some(Interference::Negative), Line::PassiveNegative);
        lines
    }

    /// One lists the other as its guest: `Some(true)` if exactly one lists that UUID and exactly one has it.
    fn guest_claim(&self, k: usize, l: usize) -> Option<bool> {
        let claims = self.claimed(&self.pools[k].hosts_vms, &self.pools[l].smbios);
        let other = self.claimed(&self.pools[l].hosts_vms, &self.pools[k].smbios);
        claims.max(other)
    }

    fn claimed(&self, listed: &[Tag], shown: &[Tag]) -> Option<bool> {
        let unique = |uuid: &Tag| {
            let once = |index: &BTreeMap<Tag, Vec<usize>>| index.get(uuid).is_some_and(|all| all.len() == 1);
            once(&self.listed_by) && once(&self.smbios_of)
        };
        common(listed, shown).map(|uuid| unique(&uuid)).max()
    }

    /// One is WSL in the other's Windows: `Some(true)` if exactly one kernel has that GUID.
    fn wsl_claim(&self, k: usize, l: usize) -> Option<bool> {
        let unique = |guid: Tag| self.guid_of.get(&guid).is_some_and(|all| all.len() == 1);
        let (one, other) = (&self.pools[k], &self.pools[l]);
        common(&one.wsl, &other.guids).chain(common(&other.wsl, &one.guids)).map(unique).max()
    }
}

/// The kernels of two agents, smaller first; `None` where they are one.
fn ordered(kernels: &Kernels, i: usize, j: usize) -> Option<(usize, usize)> {
    let (k, l) = (kernels.of(i), kernels.of(j));
    (k != l).then_some((k.min(l), k.max(l)))
}
