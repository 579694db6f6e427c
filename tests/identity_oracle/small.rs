//! Section 8 for two chunks, section 11 for a record and what is seen.

use crate::identity::{ContinuityRow, RawChunk, RawGpu};

/// Whether two chunks may run at the same time (section 8).
pub(super) fn parallel(a: &RawChunk, b: &RawChunk) -> bool {
    let one_machine = a.machine == b.machine;
    let gpus = a.gpus.iter().any(|x| b.gpus.iter().any(|y| gpus_conflict(x, y, one_machine)));
    let dram =
        one_machine && dram(a).iter().any(|x| dram(b).iter().any(|y| x.is_none() || y.is_none() || x == y));
    !gpus && !dram
}

/// "Same device; a whole GPU against a slice whose parent it is"; ids are compared globally. "Any two vGPUs of one
/// machine conflict: they may be one card."
fn gpus_conflict(a: &RawGpu, b: &RawGpu, one_machine: bool) -> bool {
    match (a.kind.as_str(), b.kind.as_str()) {
        ("vgpu", "vgpu") => one_machine,
        ("vgpu", _) | (_, "vgpu") => false,
        ("mig", "mig") => a.uuid == b.uuid,
        ("mig", _) => a.parent == b.uuid,
        (_, "mig") => b.parent == a.uuid,
        _ => a.uuid == b.uuid,
    }
}

/// The memory that a chunk occupies: `None` all of it, else a node. `uma`: the GPU and all.
fn dram(chunk: &RawChunk) -> Vec<Option<u16>> {
    let mut dram = Vec::new();
    if chunk.gpus.iter().any(|gpu| gpu.uma) {
        dram.push(None);
    }
    // Work that is on no GPU runs on the processor, whatever was said of it.
    let cpu = chunk.cpu || chunk.gpus.is_empty();
    if cpu && chunk.numa_nodes.is_empty() {
        dram.push(None);
    }
    if cpu {
        dram.extend(chunk.numa_nodes.iter().copied().map(Some));
    }
    dram
}

/// Outcome and warning of section 11.
pub(super) fn continuity(row: &ContinuityRow) -> (&'static str, Option<&'static str>) {
    let (record, seen) = (&row.record, &row.seen);
    // any in common, none in common, hardware, matched means a copied disk
    let types = [
        (&record.ppin, &seen.ppin, 5, -4, true, false),
        (&record.product_uuid, &seen.product_uuid, 4, -4, true, false),
        (&record.platform_uuid, &seen.platform_uuid, 4, -4, true, false),
        (&record.gpus, &seen.gpus, 3, 0, true, false),
        (&record.agent_key, &seen.agent_key, 3, 0, false, true),
        (&record.macs, &seen.macs, 2, 0, true, false),
        (&record.nvme, &seen.nvme, 2, 0, false, true),
        (&record.machine_id, &seen.machine_id, 2, 0, false, true),
        (&record.machine_guid, &seen.machine_guid, 2, 0, false, true),
    ];
    let (mut sum, mut matched_hardware, mut mismatch, mut disk) = (0, false, false, false);
    for (a, b, common, none, hardware, software) in types {
        // "over the anchor types that both have"
        if a.is_empty() || b.is_empty() {
            continue;
        }
        let matched = a.iter().any(|value| b.contains(value));
        sum += if matched { common } else { none };
        matched_hardware |= hardware && matched;
        mismatch |= hardware && !matched;
        disk |= software && matched;
    }
    // 1
    if sum >= 3 && row.record_alive && record.boot != seen.boot {
        return ("CLONE", Some("CLONED_IMAGE"));
    }
    // 2
    if sum >= 3 && (matched_hardware || !mismatch) {
        return ("REBIND", mismatch.then_some("HARDWARE_CHANGED"));
    }
    // 3
    let warning = if row.record_alive { "CLONED_IMAGE" } else { "OS_MOVED_TO_OTHER_HARDWARE" };
    ("NEW", disk.then_some(warning))
}
