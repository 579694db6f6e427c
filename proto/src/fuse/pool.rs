//! The evidence of a kernel: what all its agents could read, together (`identity.md` §6, "pool first").

use super::world::World;
use crate::{
    bounded::{List, Text},
    evidence::{Evidence, Gpu, GpuKind, Hypervisor, HypervisorClass, Os, Reading, Tag},
};

/// The evidence of all agents of one kernel: unions of sets.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool {
    pub(super) bare: bool,
    pub(super) known: bool,
    pub(super) cloud: bool,
    pub(super) windows: bool,
    pub(super) smbios: Vec<Tag>,
    pub(super) hosts_vms: Vec<Tag>,
    pub(super) ppin: Vec<Tag>,
    pub(super) macs: Vec<Tag>,
    pub(super) nvme: Vec<Tag>,
    pub(super) machine_ids: Vec<Tag>,
    pub(super) guids: Vec<Tag>,
    pub(super) wsl: Vec<Tag>,
    pub(super) gpus: Vec<Tag>,
    pub(super) vgpus: Vec<Tag>,
    pub(super) cpu_models: Vec<Text<64>>,
    pub(super) rules: Vec<Tag>,
    pub(super) flapping: bool,
}

impl Pool {
    pub(super) fn of(world: &World, agents: &[usize]) -> Self {
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

/// WSL names another Windows than the other WSL kernel does, or than the other, bare, Windows kernel is.
pub(super) fn names_another_windows(one: &Pool, other: &Pool) -> bool {
    let differ =
        |guids: &[Tag], others: &[Tag]| !guids.is_empty() && !others.is_empty() && !meet(guids, others);
    let not_its_windows =
        |wsl: &Pool, windows: &Pool| windows.windows && windows.bare && differ(&wsl.wsl, &windows.guids);
    differ(&one.wsl, &other.wsl) || not_its_windows(one, other) || not_its_windows(other, one)
}

fn extend<const MAX: usize>(set: &mut Vec<Tag>, more: &Reading<List<Tag, MAX>>) {
    set.extend(more.value().into_iter().flat_map(|list| list.iter()));
}

/// Two sorted sets have a value in common.
pub(super) fn meet<T: Ord>(one: &[T], other: &[T]) -> bool {
    let (few, many) = if one.len() <= other.len() { (one, other) } else { (other, one) };
    few.iter().any(|value| many.binary_search(value).is_ok())
}

/// The values that two sorted sets have in common.
pub(super) fn common<'a>(one: &'a [Tag], other: &'a [Tag]) -> impl Iterator<Item = Tag> + 'a {
    one.iter().filter(|value| other.binary_search(value).is_ok()).copied()
}
