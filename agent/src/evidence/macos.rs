//! The signals of macOS, from what `sysctl` and `ioreg` print.
//!
//! `gethostuuid(3)` would need a system call without a safe wrapper; `ioreg` prints the same IOPlatformUUID. Only
//! the parsers are tested, on captured texts: no Mac has run them.

use std::collections::BTreeSet;

use tropa_proto::{
    bounded::{List, Text},
    canonical,
    evidence::{Cpus, Facts, Gpu, GpuKind, Hypervisor, HypervisorClass, Os, Reading},
};

use super::{command, cpus::field, files::Root};

const SYSCTLS: [&str; 6] = [
    "kern.bootsessionuuid",
    "kern.hv_vmm_present",
    "machdep.cpu.brand_string",
    "hw.memsize",
    "hw.logicalcpu",
    "hw.physicalcpu",
];

/// Reads everything but the lane; a Mac has one GPU, which shares its memory.
#[must_use]
pub fn read(root: &Root) -> Facts {
    let sysctl = if root.is_declared() {
        root.text("tropa/macos/sysctl")
    } else {
        command::output("/usr/sbin/sysctl", &SYSCTLS)
    };
    let ioreg = if root.is_declared() {
        root.text("tropa/macos/ioreg")
    } else {
        command::output("/usr/sbin/ioreg", &["-rd1", "-c", "IOPlatformExpertDevice"])
    };
    parse(&sysctl, &ioreg)
}

fn parse(sysctl: &Reading<String>, ioreg: &Reading<String>) -> Facts {
    let text = sysctl.value().map_or("", String::as_str);
    let number = |key| field(text, key).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
    let (hypervisor, class) = match field(text, "kern.hv_vmm_present") {
        Some("0") => (Hypervisor::None, HypervisorClass::Unknown),
        Some("1") => (Hypervisor::Vm, HypervisorClass::Homelab),
        Some(_) | None => (Hypervisor::Unknown, HypervisorClass::Unknown),
    };
    let platform_uuid = ioreg.clone().and_then(|text| match platform_uuid(&text) {
        Some(uuid) => canonical::uuid(&uuid),
        None => Reading::Absent,
    });
    let boot_id = sysctl.clone().and_then(|text| match field(&text, "kern.bootsessionuuid") {
        Some(uuid) => canonical::uuid(uuid),
        None => Reading::Absent,
    });
    let brand = field(text, "machdep.cpu.brand_string").unwrap_or_default();
    let memory = number("hw.memsize");
    let processors = u16::try_from(number("hw.logicalcpu")).unwrap_or(u16::MAX);
    let numbers: BTreeSet<u16> = (0..processors).collect();
    let gpu = brand.starts_with("Apple ").then(|| Gpu {
        vendor: Text::cut("apple"),
        name: Text::cut(brand),
        // Only on bare metal is the platform's id the hardware's; a guest's GPU is a part of the Mac's.
        uuid: platform_uuid
            .value()
            .filter(|_| hypervisor == Hypervisor::None)
            .map(|uuid| format!("{uuid}-gpu0")),
        kind: if hypervisor == Hypervisor::Vm { GpuKind::Vgpu } else { GpuKind::Full },
        pci: None,
        memory,
        uma: true,
    });
    Facts {
        hypervisor,
        hypervisor_class: class,
        boot_id,
        platform_uuid,
        gpus: List::new(gpu.into_iter().collect()).unwrap_or_default(),
        cpu_model: canonical::cpu_model(brand),
        cpus: Cpus {
            host: processors,
            physical: u16::try_from(number("hw.physicalcpu")).unwrap_or(u16::MAX),
            allowed: Text::cut(&canonical::cpu_list_text(&numbers)),
            numa_nodes: 1,
            ..Cpus::default()
        },
        memory,
        ..Facts::empty(Os::Macos)
    }
}

/// Finds `"IOPlatformUUID" = "…"`.
fn platform_uuid(ioreg: &str) -> Option<String> {
    let line = ioreg.lines().find(|line| line.contains("\"IOPlatformUUID\""))?;
    let (_, value) = line.split_once('=')?;
    Some(value.trim().trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::{super::files::tests::tree, *};

    fn sysctl(guest: &str) -> String {
        format!(
            "kern.bootsessionuuid: 6B29FC40-CA47-4067-B31D-00DD010662DA\nkern.hv_vmm_present: {guest}\n\
             machdep.cpu.brand_string: Apple M2 Pro\nhw.memsize: 34359738368\nhw.logicalcpu: 12\nhw.physicalcpu: 12\n"
        )
    }

    const IOREG: &str = "+-o J414sAP  <class IOPlatformExpertDevice, id 0x10000024a, registered>\n    {\n      \
                         \"IOPlatformSerialNumber\" = \"XXXXXXXXXX\"\n      \"IOPlatformUUID\" = \
                         \"0F1E2D3C-AAAA-4BBB-8CCC-0123456789AB\"\n    }\n";

    fn facts(guest: &str) -> Facts {
        let (_directory, root) =
            tree(&[("tropa/macos/sysctl", &sysctl(guest)), ("tropa/macos/ioreg", IOREG)]);
        read(&root)
    }

    #[test]
    fn a_mac_has_one_gpu_that_shares_its_memory() {
        let facts = facts("0");
        assert_eq!(facts.hypervisor, Hypervisor::None);
        assert_eq!(facts.platform_uuid, Reading::Value("0f1e2d3c-aaaa-4bbb-8ccc-0123456789ab".into()));
        assert_eq!(facts.boot_id, Reading::Value("6b29fc40-ca47-4067-b31d-00dd010662da".into()));
        assert_eq!(facts.gpus[0].uuid.as_deref(), Some("0f1e2d3c-aaaa-4bbb-8ccc-0123456789ab-gpu0"));
        assert!(facts.gpus[0].uma);
        assert_eq!((facts.cpus.host, facts.memory), (12, 32 << 30));
        assert_eq!(facts.cpu_model.value().map(|name| &**name), Some("Apple M2 Pro"));
    }

    #[test]
    fn the_gpu_of_a_guest_on_a_mac_is_a_virtual_one() {
        let facts = facts("1");
        assert_eq!(facts.hypervisor, Hypervisor::Vm);
        assert_eq!((&facts.gpus[0].kind, &facts.gpus[0].uuid), (&GpuKind::Vgpu, &None));
    }

    #[test]
    fn without_answers_nothing_is_known() {
        let facts = parse(&Reading::Absent, &Reading::Denied);
        assert_eq!((facts.platform_uuid, facts.boot_id), (Reading::Denied, Reading::Absent));
        assert_eq!(facts.hypervisor, Hypervisor::Unknown);
    }
}
