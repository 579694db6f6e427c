//! Devices, lanes, and when two lanes conflict: the whole of "one load per llama".
//!
//! A *device* is what one install at a time may use; a *lane* is the set of devices that an install occupies while
//! it works. Two chunks may run at the same time if and only if their lanes do not conflict. GPUs with an id are
//! compared globally: one UUID on two machines is still one device. Everything else is compared within what may be
//! one machine, which the fusion tells: `together` is true for two agents of one machine and for an excluded pair,
//! which is scheduled exactly as if it were one machine (`identity.md` §7 and §8).

use std::{collections::BTreeSet, fmt};

use crate::{
    bounded::Text,
    evidence::{Attribution, Evidence, Gpu, GpuKind, LaneClaim, Tag},
    id::{AgentId, MachineId, hex},
    message::Loaded,
};

/// What one install at a time may use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Device {
    /// A whole GPU with an id.
    Gpu(Tag),
    /// A MIG slice of a GPU.
    Mig {
        /// The slice's own id; without one it stands for every slice of its GPU.
        slice: Option<Tag>,
        /// The GPU that it is a part of.
        parent: Tag,
    },
    /// A GPU without an id: known only by its place in one kernel.
    GpuAt {
        /// The kernel, by its smallest agent id.
        kernel: AgentId,
        /// The PCI address; without one it stands for any GPU of the kernel.
        pci: Option<Text<16>>,
    },
    /// A virtual GPU, which may be a part of any card of its machine.
    Vgpu {
        /// The machine.
        machine: MachineId,
        /// Tells two virtual GPUs apart for people; it decides nothing.
        id: Option<Tag>,
    },
    /// The memory system: whatever decodes on processors is bound by it.
    Dram {
        /// The machine.
        machine: MachineId,
        /// One NUMA node, for an install that is pinned to it by CPUs and memory; `None`: all of them.
        node: Option<u16>,
    },
}

/// The devices that an install occupies while it works: sorted, never empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lane(BTreeSet<Device>);

/// Where an install is: its machine and its kernel, as the fusion named them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The machine.
    pub machine: MachineId,
    /// The kernel, by its smallest agent id.
    pub kernel: AgentId,
}

/// Says whether two chunks must not run at the same time. Symmetric.
///
/// `together`: the two agents are of one machine, or an excluded pair.
#[must_use]
pub fn conflict(a: &Lane, b: &Lane, together: bool) -> bool {
    a.0.iter().any(|one| b.0.iter().any(|other| one.conflicts(other, together)))
}

/// How many GPU lanes of a machine may be busy at once, at least 1: half of its physical cores, for each needs one that
/// feeds it and one beside (`identity.md` §8, judgement). Where only the logical processors are known, half of them
/// count as cores, as with two threads to a core; where nothing is known (0), one lane.
#[must_use]
pub fn gpu_lanes_at_once(physical_cores: u16, processors: u16) -> usize {
    let cores = if physical_cores == 0 { processors / 2 } else { physical_cores };
    usize::from(cores / 2).max(1)
}

/// Says whether a request for so many tokens of context runs where its model is loaded; otherwise Ollama loads it anew,
/// wherever there is room. `allocated` and `trained` are the model's contexts in tokens, 0 where not known, as is
/// `asked`.
#[must_use]
pub fn runs_as_loaded(allocated: u32, trained: u32, asked: u64) -> bool {
    // Ollama allocates no more than the model was trained for.
    let most = if trained == 0 { u64::MAX } else { u64::from(trained) };
    allocated == 0 || asked == 0 || u64::from(allocated) == asked.min(most)
}

impl Lane {
    /// What work occupies: these GPUs, and the memory system where some of the work runs on processors.
    ///
    /// A GPU that shares its memory with the processors (`uma`) occupies the memory system of the whole machine.
    /// `numa_nodes` is where the install is pinned by CPUs and memory; empty: it is not. Work that names nothing at
    /// all occupies the memory system, for it must run somewhere.
    #[must_use]
    pub fn of<'a>(
        place: Place,
        gpus: impl IntoIterator<Item = &'a Gpu<Tag>>,
        processors: bool,
        numa_nodes: &[u16],
    ) -> Self {
        let mut devices = BTreeSet::new();
        let mut unified = false;
        for gpu in gpus {
            unified |= gpu.uma;
            devices.insert(Device::of(place, gpu));
        }
        let all = Device::Dram { machine: place.machine, node: None };
        if unified || ((processors || devices.is_empty()) && numa_nodes.is_empty()) {
            devices.insert(all);
        } else if processors || devices.is_empty() {
            let node = |node: &u16| Device::Dram { machine: place.machine, node: Some(*node) };
            devices.extend(numa_nodes.iter().map(node));
        }
        Self(devices)
    }

    /// What a chunk occupies at an install, from the install's claim and from how its model is loaded.
    ///
    /// What the operator declared is taken as it is. Otherwise the claim says which GPUs, and `/api/ps` what of the
    /// work is there: all of the model, none or a part. As long as the model is not loaded, both count
    /// (`identity.md` §3.5, rung 7).
    #[must_use]
    pub fn occupied(place: Place, evidence: &Evidence, loaded: Option<&Loaded>) -> Self {
        Self::claimed(place, evidence, &evidence.lane, loaded)
    }

    /// What a chunk may occupy whose model is not loaded as it asks: all that the install may load it on.
    #[must_use]
    pub fn anywhere(place: Place, evidence: &Evidence) -> Self {
        Self::claimed(place, evidence, &evidence.anywhere, None)
    }

    fn claimed(place: Place, evidence: &Evidence, claim: &LaneClaim, loaded: Option<&Loaded>) -> Self {
        let claimed = claim.gpus.iter().filter_map(|at| evidence.gpus.get(usize::from(*at)));
        if claim.method == Attribution::Operator {
            return Self::of(place, claimed, claim.dram, &claim.numa_nodes);
        }
        let (on_gpu, on_processors) = match loaded {
            Some(loaded) => (loaded.size_vram > 0, loaded.size_vram < loaded.size || loaded.size == 0),
            None => (true, true),
        };
        let gpus: Vec<&Gpu<Tag>> = if on_gpu { claimed.collect() } else { Vec::new() };
        let unseen = loaded.is_some() && on_gpu && gpus.is_empty();
        let mut lane = Self::of(place, gpus, on_processors, &claim.numa_nodes);
        if unseen {
            // The engine uses a GPU that the agent cannot see: any GPU of this kernel may be it.
            lane.0.insert(Device::GpuAt { kernel: place.kernel, pci: None });
        }
        lane
    }

    /// Says whether any of the work runs on a GPU, or a part of one.
    #[must_use]
    pub fn uses_gpu(&self) -> bool {
        self.0.iter().any(|device| !matches!(device, Device::Dram { .. }))
    }

    /// What both occupy.
    #[must_use]
    pub fn union(mut self, mut other: Self) -> Self {
        self.0.append(&mut other.0);
        self
    }

    /// The devices, sorted.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.0.iter()
    }
}

impl Device {
    /// The device that a GPU entry of the evidence is.
    #[must_use]
    pub fn of(place: Place, gpu: &Gpu<Tag>) -> Self {
        match (&gpu.kind, gpu.uuid) {
            (GpuKind::Full, Some(id)) => Self::Gpu(id),
            (GpuKind::Full, None) => Self::GpuAt { kernel: place.kernel, pci: gpu.pci.clone() },
            (GpuKind::Mig { parent }, slice) => Self::Mig { slice, parent: *parent },
            (GpuKind::Vgpu, id) => Self::Vgpu { machine: place.machine, id },
        }
    }

    /// Says whether two installs must not use these two at the same time. Symmetric.
    #[must_use]
    pub fn conflicts(&self, other: &Self, together: bool) -> bool {
        use Device::{Dram, Gpu, GpuAt, Mig, Vgpu};
        match (self, other) {
            (Gpu(one), Gpu(other)) => one == other,
            (Gpu(whole), Mig { parent, .. }) | (Mig { parent, .. }, Gpu(whole)) => whole == parent,
            (Mig { slice: one, parent: p }, Mig { slice: other, parent: q }) => match (one, other) {
                (Some(one), Some(other)) => one == other,
                (None, _) | (_, None) => p == q,
            },
            (GpuAt { kernel: k, pci: one }, GpuAt { kernel: l, pci: other }) if k == l => {
                one == other || one.is_none() || other.is_none()
            }
            (GpuAt { .. }, GpuAt { .. }) => together,
            (Vgpu { machine: m, .. }, Vgpu { machine: n, .. }) => together || m == n,
            (Dram { machine: m, node: one }, Dram { machine: n, node: other }) => {
                (together || m == n) && (one == other || one.is_none() || other.is_none())
            }
            (Gpu(_) | Mig { .. } | GpuAt { .. } | Vgpu { .. } | Dram { .. }, _) => false,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |id: &Tag| hex(&id.0[..2]);
        match self {
            Self::Gpu(id) => write!(f, "gpu:{}", short(id)),
            Self::Mig { slice: Some(id), .. } => write!(f, "mig:{}", short(id)),
            Self::Mig { slice: None, parent } => write!(f, "mig:{}/?", short(parent)),
            Self::GpuAt { pci: Some(pci), .. } => write!(f, "gpu:{pci}"),
            Self::GpuAt { pci: None, .. } => f.write_str("gpu:?"),
            Self::Vgpu { id: Some(id), .. } => write!(f, "vgpu:{}", short(id)),
            Self::Vgpu { id: None, .. } => f.write_str("vgpu:?"),
            Self::Dram { node: None, .. } => f.write_str("dram"),
            Self::Dram { node: Some(node), .. } => write!(f, "dram:{node}"),
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, device) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{device}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bounded::List, evidence::Os};

    fn place(machine: u8) -> Place {
        Place { machine: MachineId(AgentId([machine; 32])), kernel: AgentId([machine; 32]) }
    }

    fn gpu(id: Option<u8>, kind: GpuKind<Tag>) -> Gpu<Tag> {
        Gpu {
            vendor: Text::default(),
            name: Text::default(),
            uuid: id.map(|id| Tag([id; 16])),
            kind,
            pci: Some(Text::cut("0000:01:00.0")),
            memory: 0,
            uma: false,
        }
    }

    fn evidence(gpus: Vec<Gpu<Tag>>, method: Attribution) -> Evidence {
        let mut evidence = Evidence::empty(Os::Linux);
        evidence.lane.gpus = List::cut((0..).take(gpus.len()).collect()).0;
        evidence.lane.method = method;
        evidence.gpus = List::cut(gpus).0;
        evidence
    }

    fn both_ways(a: &Lane, b: &Lane, together: bool) -> bool {
        assert_eq!(conflict(a, b, together), conflict(b, a, together));
        conflict(a, b, together)
    }

    #[test]
    fn one_gpu_on_two_machines_is_one_device() {
        let full = gpu(Some(1), GpuKind::Full);
        let (here, there) =
            (Lane::of(place(1), [&full], false, &[]), Lane::of(place(2), [&full], false, &[]));
        assert!(both_ways(&here, &there, false));
    }

    #[test]
    fn a_slice_conflicts_with_its_whole_gpu_and_not_with_another_slice() {
        let slice = |id| gpu(Some(id), GpuKind::Mig { parent: Tag([9; 16]) });
        let lane = |gpu: &Gpu<Tag>| Lane::of(place(1), [gpu], false, &[]);
        assert!(both_ways(&lane(&slice(1)), &lane(&gpu(Some(9), GpuKind::Full)), false));
        assert!(!both_ways(&lane(&slice(1)), &lane(&slice(2)), true));
        let unnamed = gpu(None, GpuKind::Mig { parent: Tag([9; 16]) });
        assert!(both_ways(&lane(&unnamed), &lane(&slice(2)), true));
    }

    #[test]
    fn a_gpu_without_an_id_conflicts_over_kernels_only_where_they_may_be_one_machine() {
        let lane = |at| Lane::of(place(at), [&gpu(None, GpuKind::Full)], false, &[]);
        assert!(both_ways(&lane(1), &lane(1), true));
        assert!(both_ways(&lane(1), &lane(2), true));
        assert!(!both_ways(&lane(1), &lane(2), false));
    }

    #[test]
    fn two_virtual_gpus_of_one_machine_conflict() {
        let lane = |at, id| Lane::of(place(at), [&gpu(Some(id), GpuKind::Vgpu)], false, &[]);
        assert!(both_ways(&lane(1, 1), &lane(1, 2), true));
        assert!(both_ways(&lane(1, 1), &lane(2, 2), true));
        assert!(!both_ways(&lane(1, 1), &lane(2, 1), false));
    }

    #[test]
    fn an_excluded_pair_shares_its_memory_system_and_not_its_gpus() {
        let lane = |at, id| Lane::of(place(at), [&gpu(Some(id), GpuKind::Full)], true, &[]);
        assert!(both_ways(&lane(1, 1), &lane(2, 2), true));
        assert!(!both_ways(&lane(1, 1), &lane(2, 2), false));
        let on_gpu = |at, id| Lane::of(place(at), [&gpu(Some(id), GpuKind::Full)], false, &[]);
        assert!(!both_ways(&on_gpu(1, 1), &on_gpu(2, 2), true));
    }

    #[test]
    fn a_model_occupies_what_the_engine_says_and_everything_until_it_does() {
        let evidence = evidence(vec![gpu(Some(1), GpuKind::Full)], Attribution::Everything);
        let occupied = |vram| {
            let loaded = Loaded { size: 100, size_vram: vram, context: 0 };
            Lane::occupied(place(1), &evidence, Some(&loaded)).to_string()
        };
        assert_eq!(occupied(100), "gpu:0101");
        assert_eq!(occupied(40), "gpu:0101,dram");
        assert_eq!(occupied(0), "dram");
        assert_eq!(Lane::occupied(place(1), &evidence, None).to_string(), "gpu:0101,dram");
    }

    #[test]
    fn what_the_operator_declares_is_taken_as_it_is() {
        let mut evidence = evidence(vec![gpu(Some(1), GpuKind::Full)], Attribution::Operator);
        evidence.lane.dram = false;
        assert_eq!(Lane::occupied(place(1), &evidence, None).to_string(), "gpu:0101");
    }

    #[test]
    fn a_gpu_that_only_the_engine_sees_may_be_any() {
        let evidence = evidence(Vec::new(), Attribution::Everything);
        let loaded = Loaded { size: 1, size_vram: 1, context: 0 };
        let lane = Lane::occupied(place(1), &evidence, Some(&loaded));
        assert!(both_ways(&lane, &lane.clone(), true));
        assert!(lane.devices().any(|device| matches!(device, Device::GpuAt { pci: None, .. })));
    }

    #[test]
    fn gpu_lanes_share_the_cores_of_their_machine_and_what_is_not_known_counts_less() {
        let lanes = [(16, 32), (9, 18), (2, 4), (1, 2), (0, 16), (0, 1), (0, 0)];
        assert_eq!(lanes.map(|(cores, cpus)| gpu_lanes_at_once(cores, cpus)), [8, 4, 1, 1, 4, 1, 1]);
        let full = gpu(Some(1), GpuKind::Full);
        assert!(Lane::of(place(1), [&full], true, &[]).uses_gpu());
        assert!(!Lane::of(place(1), [], true, &[]).uses_gpu());
    }

    #[test]
    fn work_that_names_no_device_occupies_the_memory_system() {
        assert_eq!(Lane::of(place(1), [], false, &[]).to_string(), "dram");
    }

    #[test]
    fn unified_memory_takes_the_whole_machine_even_when_pinned() {
        let unified = Gpu { uma: true, ..gpu(Some(1), GpuKind::Full) };
        let lane = Lane::of(place(1), [&unified], true, &[0]);
        assert!(both_ways(&lane, &Lane::of(place(1), [], true, &[1]), true));
    }
}
