//! Evidence whose identifiers cannot be compared, since they are keyed with another salt than those of the others.

use super::{Evidence, Gpu, GpuKind, Reading, Tag};
use crate::bounded::{List, Text};

impl Evidence {
    /// The same evidence without its identifiers, which then count as not readable: less is known, so less hardware is
    /// counted. A GPU keeps its place and loses its id, and a slice counts as all of its GPU.
    #[must_use]
    pub fn without_ids(&self) -> Self {
        let gpu = |gpu: &Gpu<Tag>| {
            let kind = match &gpu.kind {
                GpuKind::Full | GpuKind::Mig { .. } => GpuKind::Full,
                GpuKind::Vgpu => GpuKind::Vgpu,
            };
            Gpu { uuid: None, kind, ..gpu.clone() }
        };
        Self {
            boot_id: hidden(&self.boot_id),
            machine_id: hidden(&self.machine_id),
            product_uuid: hidden(&self.product_uuid),
            platform_uuid: hidden(&self.platform_uuid),
            machine_guid: hidden(&self.machine_guid),
            wsl_host_guid: hidden(&self.wsl_host_guid),
            ppin: hidden(&self.ppin),
            macs: hidden(&self.macs),
            nvme: hidden(&self.nvme),
            hosts_vms: hidden(&self.hosts_vms),
            gpus: List::cut(self.gpus.iter().map(gpu).collect()).0,
            machine_rule: None,
            ..self.clone()
        }
    }
}

fn hidden<T>(reading: &Reading<T>) -> Reading<T> {
    match reading {
        Reading::Value(_) | Reading::Virtual(_) => Reading::Rejected(Text::cut("keyed with another id-salt")),
        Reading::Absent => Reading::Absent,
        Reading::Denied => Reading::Denied,
        Reading::Rejected(why) => Reading::Rejected(why.clone()),
    }
}
