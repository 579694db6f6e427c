//! What two kernels are to each other (`identity.md` §6): rules, hard negatives, then log odds, one contribution
//! per line, in tenths. Every number is judgement (§18) and stands in [`Line::tenths`] or beside it.

use std::collections::BTreeMap;

use super::{
    Code, Confidence, Interference, Kind, Relation,
    kernels::{Kernels, Verdict, relate},
    warnings::Warnings,
    world::{World, positive_wins},
};
use crate::{
    bounded::Text,
    evidence::{Evidence, Gpu, GpuKind, Hypervisor, HypervisorClass, Os, Reading, Tag},
};

/// From here on two kernels are one machine.
const SAME_FROM: i32 = 20;

/// From here on that is high.
const SAME_HIGH_FROM: i32 = 30;

/// Above this, P(same machine) is more than 0.25, and a wrong split costs three times a wrong merge:
/// log10(0.25 / 0.75).
const UNKNOWN_ABOVE: i32 = -5;

/// From here down two kernels are two machines with high confidence.
const DISTINCT_HIGH_FROM: i32 = -30;

/// A line that is worth this much may be contradicted, never overruled.
const STRONG: i32 = 40;

/// One line of evidence that counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Line {
    /// Two bare kernels are rarely one machine.
    PriorBare,
    /// Two cloud VMs are rarely on one host.
    PriorCloud,
    /// Two others, as homes and offices go.
    Prior,
    /// Both have a retail processor name and none in common.
    CpuModelsDiffer,
    /// A physical GPU in common.
    Gpu,
    /// A processor serial in common.
    Ppin,
    /// An SMBIOS UUID in common, both bare.
    Firmware,
    /// One lists the other as its guest.
    GuestClaim,
    /// The same, but more than one lists it or has it.
    GuestClaimDoubtful,
    /// The one is WSL in the other's Windows.
    WslClaim,
    /// The same, but more than one kernel has that GUID.
    WslClaimDoubtful,
    /// Two WSL kernels name one Windows.
    WslSameWindows,
    /// WSL names another Windows.
    WslOtherWindows,
    /// An NVMe serial in common.
    Storage,
    /// A permanent MAC address in common.
    Network,
    /// Traffic arrives through a local interface.
    LocalPeer,
    /// A machine-id or MachineGuid in common, kernels not known to differ.
    Software,
    /// The same on two kernels.
    SoftwareApart,
    /// The active probe shows sharing.
    ProbePositive,
    /// The active probe shows none.
    ProbeNegative,
    /// Production shows sharing.
    PassivePositive,
    /// Production shows none.
    PassiveNegative,
}

/// The evidence of all agents of one kernel: unions of sets.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool {
    pub(super) bare: bool,
    known: bool,
    cloud: bool,
    windows: bool,
    smbios: Vec<Tag>,
    hosts_vms: Vec<Tag>,
    ppin: Vec<Tag>,
    macs: Vec<Tag>,
    nvme: Vec<Tag>,
    machine_ids: Vec<Tag>,
    guids: Vec<Tag>,
    wsl: Vec<Tag>,
    pub(super) gpus: Vec<Tag>,
    vgpus: Vec<Tag>,
    cpu_models: Vec<Text<64>>,
    pub(super) rules: Vec<Tag>,
    pub(super) flapping: bool,
}

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
pub(super) struct Scores {
    pub(super) pools: Vec<Pool>,
    links: BTreeMap<(usize, usize), Link>,
    listed_by: BTreeMap<Tag, Vec<usize>>,
    smbios_of: BTreeMap<Tag, Vec<usize>>,
    guid_of: BTreeMap<Tag, Vec<usize>>,
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

impl Line {
    /// What the line is worth, in tenths of log10 odds.
    #[must_use]
    pub fn tenths(self) -> i32 {
        match self {
            Self::PriorBare => -15,
            Self::PriorCloud => -20,
            Self::Prior => -3,
            Self::CpuModelsDiffer | Self::WslOtherWindows | Self::ProbeNegative | Self::PassiveNegative => {
                -30
            }
            Self::Gpu | Self::Firmware | Self::GuestClaim | Self::WslClaim => 40,
            Self::Ppin => 50,
            Self::GuestClaimDoubtful | Self::WslClaimDoubtful | Self::SoftwareApart => 5,
            Self::WslSameWindows | Self::Software => 15,
            Self::Storage | Self::Network | Self::LocalPeer => 20,
            Self::ProbePositive | Self::PassivePositive => 30,
        }
    }

    /// The line in words.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::PriorBare => "prior, both bare metal",
            Self::PriorCloud => "prior, a cloud VM",
            Self::Prior => "prior",
            Self::CpuModelsDiffer => "different CPU models",
            Self::Gpu => "same GPU",
            Self::Ppin => "same processor serial",
            Self::Firmware => "same SMBIOS UUID",
            Self::GuestClaim => "one lists the other as its guest",
            Self::GuestClaimDoubtful => "one lists the other as its guest, but the UUID is not unique",
            Self::WslClaim => "WSL of this Windows",
            Self::WslClaimDoubtful => "WSL of this Windows, but its MachineGuid is not unique",
            Self::WslSameWindows => "WSL of one Windows",
            Self::WslOtherWindows => "WSL of another Windows",
            Self::Storage => "same NVMe serial",
            Self::Network => "same permanent MAC address",
            Self::LocalPeer => "traffic through a local interface",
            Self::Software => "same machine-id",
            Self::SoftwareApart => "same machine-id on two kernels",
            Self::ProbePositive => "the interference probe shows sharing",
            Self::ProbeNegative => "the interference probe shows none",
            Self::PassivePositive => "one slows the other in production",
            Self::PassiveNegative => "neither slows the other in production",
        }
    }

    fn is_prior(self) -> bool {
        matches!(self, Self::PriorBare | Self::PriorCloud | Self::Prior)
    }

    fn is_doubtful(self) -> bool {
        matches!(self, Self::GuestClaimDoubtful | Self::WslClaimDoubtful | Self::WslSameWindows)
    }
}

impl Scores {
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
        let mut pairs: std::collections::BTreeSet<(usize, usize)> = self.links.keys().copied().collect();
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
    fn sharing(&self, values: fn(&Pool) -> &[Tag]) -> Vec<(usize, usize)> {
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
    fn buckets(&self, values: fn(&Pool) -> &[Tag]) -> BTreeMap<Tag, Vec<usize>> {
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
    fn hard_negative(&self, k: usize, l: usize, apart: Apart) -> Option<&'static str> {
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

    /// The warnings that pools give on the way.
    pub(super) fn warn(&self, world: &World, kernels: &Kernels, warnings: &mut Warnings) {
        let separate = |k: usize, l: usize| {
            let apart = self.apart(world, kernels, k, l);
            apart == Apart::Yes || self.hard_negative(k, l, apart).is_some()
        };
        let copied: [fn(&Pool) -> &[Tag]; 2] = [|pool| &pool.machine_ids, |pool| &pool.guids];
        for values in copied {
            for (value, sharers) in self.buckets(values) {
                let copies = sharers.iter().filter(|k| sharers.iter().any(|l| *k != l && separate(**k, *l)));
                warn_all(world, kernels, warnings, Code::ClonedImage, &value, copies);
            }
        }
        for (value, sharers) in self.buckets(|pool| &pool.smbios) {
            let bare = |k: usize| self.pools[k].bare;
            let copies = |both_bare: bool| {
                let copy =
                    move |k: usize, l: usize| k != l && (bare(k) && bare(l)) == both_bare && separate(k, l);
                sharers.iter().filter(move |k| self.any_of(&value, |l| copy(**k, l)))
            };
            warn_all(world, kernels, warnings, Code::DuplicateSmbiosUuid, &value, copies(true));
            warn_all(world, kernels, warnings, Code::DuplicateVmUuid, &value, copies(false));
        }
        for (value, sharers) in self.buckets(|pool| &pool.vgpus) {
            warn_all(world, kernels, warnings, Code::VgpuUuidDuplicate, &value, &sharers);
        }
        self.warn_of_doubtful_claims(world, kernels, warnings);
    }

    fn any_of(&self, smbios: &Tag, wanted: impl Fn(usize) -> bool) -> bool {
        self.smbios_of.get(smbios).is_some_and(|all| all.iter().any(|k| wanted(*k)))
    }

    fn warn_of_doubtful_claims(&self, world: &World, kernels: &Kernels, warnings: &mut Warnings) {
        for (uuid, listers) in &self.listed_by {
            let shown = self.smbios_of.get(uuid).map_or(&[][..], Vec::as_slice);
            let pair = listers.iter().any(|k| shown.iter().any(|l| k != l));
            if pair && (listers.len() > 1 || shown.len() > 1) {
                let concerned = listers.iter().chain(shown);
                warn_all(world, kernels, warnings, Code::DuplicateVmUuid, uuid, concerned);
            }
        }
        for (guid, owners) in self.guid_of.iter().filter(|(_, owners)| owners.len() > 1) {
            let claims = |pool: &Pool| pool.wsl.binary_search(guid).is_ok();
            if self.pools.iter().any(claims) {
                warn_all(world, kernels, warnings, Code::ClonedImage, guid, owners);
            }
        }
    }
}

impl Pool {
    fn of(world: &World, agents: &[usize]) -> Self {
        let mut pool = Self::default();
        let (mut says_bare, mut says_vm) = (false, false);
        for agent in agents.iter().map(|&at| &world.agents[at]) {
            let evidence: &Evidence = &agent.evidence;
            says_bare |= agent.bare;
            says_vm |= evidence.hypervisor == Hypervisor::Vm;
            pool.cloud |= evidence.hypervisor_class == HypervisorClass::Cloud;
            pool.windows |= evidence.os == Os::Windows;
            pool.flapping |= agent.flapping;
            pool.smbios.extend(evidence.product_uuid.value());
            pool.machine_ids.extend(evidence.machine_id.value());
            pool.guids.extend(evidence.machine_guid.value());
            pool.wsl.extend(evidence.wsl_host_guid.value());
            extend(&mut pool.hosts_vms, &evidence.hosts_vms);
            extend(&mut pool.ppin, &evidence.ppin);
            extend(&mut pool.macs, &evidence.macs);
            extend(&mut pool.nvme, &evidence.nvme);
            pool.cpu_models.extend(evidence.cpu_model.value().cloned());
            pool.gpus.extend(evidence.gpus.iter().filter_map(Gpu::physical));
            let virtual_gpus = evidence.gpus.iter().filter(|gpu| gpu.kind == GpuKind::Vgpu);
            pool.vgpus.extend(virtual_gpus.filter_map(|gpu| gpu.uuid));
            pool.rules.extend(agent.rule);
        }
        for set in [
            &mut pool.smbios,
            &mut pool.hosts_vms,
            &mut pool.ppin,
            &mut pool.macs,
            &mut pool.nvme,
            &mut pool.machine_ids,
            &mut pool.guids,
            &mut pool.wsl,
            &mut pool.gpus,
            &mut pool.vgpus,
            &mut pool.rules,
        ] {
            set.sort_unstable();
            set.dedup();
        }
        pool.cpu_models.sort_unstable();
        pool.cpu_models.dedup();
        pool.bare = says_bare && !says_vm;
        pool.known = says_vm;
        pool
    }
}

/// The verdict of the odds.
fn verdict(sum: i32, lines: &[Line], apart: Apart) -> Relation {
    let contradicted = lines.iter().any(|line| line.tenths() >= STRONG);
    let doubtful = apart != Apart::Yes || lines.iter().any(|line| line.is_doubtful());
    let against = lines.iter().any(|line| !line.is_prior() && line.tenths() < 0);
    let unknown = sum > UNKNOWN_ABOVE || apart == Apart::Conflict || contradicted || (doubtful && !against);
    let (kind, confidence) = if sum >= SAME_HIGH_FROM {
        (Kind::SameMachine, Confidence::High)
    } else if sum >= SAME_FROM {
        (Kind::SameMachine, Confidence::Medium)
    } else if unknown {
        (Kind::UnknownExclude, Confidence::Low)
    } else if sum <= DISTINCT_HIGH_FROM {
        (Kind::Distinct, Confidence::High)
    } else {
        (Kind::Distinct, Confidence::Medium)
    };
    Relation { kind, confidence }
}

/// WSL names another Windows than the other WSL kernel does, or than the other, bare, Windows kernel is.
fn names_another_windows(one: &Pool, other: &Pool) -> bool {
    let differ =
        |guids: &[Tag], others: &[Tag]| !guids.is_empty() && !others.is_empty() && !meet(guids, others);
    let not_its_windows =
        |wsl: &Pool, windows: &Pool| windows.windows && windows.bare && differ(&wsl.wsl, &windows.guids);
    differ(&one.wsl, &other.wsl) || not_its_windows(one, other) || not_its_windows(other, one)
}

fn warn_all<'a>(
    world: &World,
    kernels: &Kernels,
    warnings: &mut Warnings,
    code: Code,
    cause: &Tag,
    concerned: impl IntoIterator<Item = &'a usize>,
) {
    let agents: Vec<_> = concerned.into_iter().map(|k| kernels.id(world, *k)).collect();
    if !agents.is_empty() {
        warnings.add(code, &cause.0, agents);
    }
}

fn extend<const MAX: usize>(set: &mut Vec<Tag>, more: &Reading<crate::bounded::List<Tag, MAX>>) {
    set.extend(more.value().into_iter().flat_map(|list| list.iter()));
}

/// The kernels of two agents, smaller first; `None` where they are one.
fn ordered(kernels: &Kernels, i: usize, j: usize) -> Option<(usize, usize)> {
    let (k, l) = (kernels.of(i), kernels.of(j));
    (k != l).then_some((k.min(l), k.max(l)))
}

/// Two sorted sets have a value in common.
fn meet<T: Ord>(one: &[T], other: &[T]) -> bool {
    let (few, many) = if one.len() <= other.len() { (one, other) } else { (other, one) };
    few.iter().any(|value| many.binary_search(value).is_ok())
}

/// The values that two sorted sets have in common.
fn common<'a>(one: &'a [Tag], other: &'a [Tag]) -> impl Iterator<Item = Tag> + 'a {
    one.iter().filter(|value| other.binary_search(value).is_ok()).copied()
}
