//! Bare metal or not, and under which hypervisor (`identity.md` §3.2).
//!
//! One sign makes a guest. Bare metal needs more than the absence of signs, because people hide them for GPU
//! passthrough: something must name a physical vendor or a board. Neither: unknown, which counts as a guest.

use std::cell::Cell;

use tropa_proto::evidence::{Hypervisor, HypervisorClass, Reading};

use super::files::{MAX_CPUINFO, MAX_FILE, Root};

/// What is known about the ground that this kernel stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Guest, privileged partition, bare metal, or unknown.
    pub hypervisor: Hypervisor,
    /// The kind of hypervisor.
    pub class: HypervisorClass,
    /// gVisor: it answers for the kernel with texts of its own.
    pub gvisor: bool,
    /// WSL2: a Windows is around this kernel.
    pub wsl: bool,
}

/// DMI vendors and products of hypervisors, in lower case, as parts of the text.
const HYPERVISORS: [&str; 13] = [
    "qemu",
    "kvm",
    "vmware",
    "virtualbox",
    "innotek",
    "xen",
    "bochs",
    "parallels",
    "apple virtualization",
    "openstack",
    "bhyve",
    "ovirt",
    "nutanix",
];

/// Public clouds by their own name in DMI, each with the field and the text. In doubt a name is not here: taking
/// a hypervisor at home for a cloud splits wrongly. Version 1; the list is not checked against every cloud.
const CLOUDS: [(&str, &str); 11] = [
    ("sys_vendor", "amazon ec2"),
    ("product_name", "google compute engine"),
    // The asset tag that Microsoft documents for virtual machines in Azure.
    ("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77"),
    ("sys_vendor", "hetzner"),
    ("sys_vendor", "digitalocean"),
    ("sys_vendor", "vultr"),
    ("sys_vendor", "linode"),
    ("sys_vendor", "scaleway"),
    ("chassis_asset_tag", "oraclecloud.com"),
    ("sys_vendor", "alibaba cloud"),
    ("sys_vendor", "tencent cloud"),
];

/// What firmware says where nobody filled in a name, in lower case.
const PLACEHOLDERS: [&str; 11] = [
    "to be filled by o.e.m.",
    "system manufacturer",
    "default string",
    "not specified",
    "none",
    "n/a",
    "o.e.m.",
    "oem",
    "unknown",
    "undefined",
    "not applicable",
];

/// Reads where this kernel runs.
#[must_use]
pub fn read(root: &Root) -> Platform {
    let signs = Signs { root, unclear: Cell::new(false) };
    let cpuinfo = signs.text("proc/cpuinfo", MAX_CPUINFO);
    let dmi = |field: &str| signs.line(&format!("sys/class/dmi/id/{field}")).map(|text| text.to_lowercase());
    let names: Vec<String> =
        ["sys_vendor", "board_vendor", "product_name", "bios_vendor"].into_iter().filter_map(dmi).collect();
    let version = signs.line("proc/version").unwrap_or_default();
    let release = signs.line("proc/sys/kernel/osrelease").unwrap_or_default().to_lowercase();

    let gvisor = is_gvisor(&version);
    let wsl = release.contains("microsoft");
    let named = names.iter().any(|name| names_hypervisor(name))
        || (dmi("sys_vendor").is_some_and(|vendor| vendor == "microsoft corporation")
            && dmi("product_name").is_some_and(|product| product.starts_with("virtual machine")));
    let cloud = CLOUDS.iter().any(|(field, text)| dmi(field).is_some_and(|found| found.starts_with(text)));
    let compatible = signs.strings("sys/firmware/devicetree/base/compatible");
    let dummy = compatible.iter().any(|text| text == "linux,dummy-virt");

    let hypervisor = if signs.line("proc/xen/capabilities").is_some_and(|text| text.contains("control_d")) {
        Hypervisor::Root
    } else if gvisor
        || wsl
        || named
        || dummy
        || cpuinfo.as_deref().is_some_and(has_hypervisor_flag)
        || has_virtio_pci(root)
    {
        Hypervisor::Vm
    } else if cpuinfo.as_deref().is_some_and(lists_processors)
        && !cloud
        && (names_vendor(dmi) || names_board(&signs))
        && !signs.unclear.get()
    {
        // A cloud's name is not a hardware vendor's: its guests on Arm show no flag.
        Hypervisor::None
    } else {
        Hypervisor::Unknown
    };
    let class = if hypervisor != Hypervisor::Vm {
        HypervisorClass::Unknown
    } else if cloud {
        HypervisorClass::Cloud
    } else if wsl || release.contains("linuxkit") || version.contains("linuxkit") {
        HypervisorClass::Desktop
    } else if named {
        HypervisorClass::Homelab
    } else {
        HypervisorClass::Unknown
    };
    Platform { hypervisor, class, gvisor, wsl }
}

/// gVisor's `/proc/version` is one fixed text: `Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016`.
fn is_gvisor(version: &str) -> bool {
    version.starts_with("Linux version 4.4.0 ") && version.ends_with("PST 2016")
}

fn has_hypervisor_flag(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == "flags")
        .is_some_and(|(_, flags)| flags.split_whitespace().any(|flag| flag == "hypervisor"))
}

/// A text without processors is not what the kernel writes, so a flag that is missing in it says nothing.
fn lists_processors(cpuinfo: &str) -> bool {
    cpuinfo.lines().any(|line| line.starts_with("processor"))
}

/// Says whether firmware names a hypervisor where the maker or the product belongs; lower case.
pub(super) fn names_hypervisor(text: &str) -> bool {
    HYPERVISORS.iter().any(|known| text.contains(known))
}

/// Says whether firmware names a public cloud where the maker or the product belongs; lower case.
pub(super) fn names_cloud(text: &str) -> bool {
    CLOUDS.iter().any(|(_, cloud)| text.starts_with(cloud))
}

/// Says whether firmware names anybody as the maker; lower case.
pub(super) fn names_maker(text: &str) -> bool {
    !text.is_empty() && !PLACEHOLDERS.contains(&text)
}

fn has_virtio_pci(root: &Root) -> bool {
    let devices = "sys/bus/pci/devices";
    root.names(devices)
        .iter()
        .any(|device| root.line(&format!("{devices}/{device}/vendor")).as_deref() == Some("0x1af4"))
}

fn names_vendor(dmi: impl Fn(&str) -> Option<String>) -> bool {
    ["sys_vendor", "board_vendor"].into_iter().filter_map(dmi).any(|name| names_maker(&name))
}

fn names_board(signs: &Signs<'_>) -> bool {
    signs.strings("sys/firmware/devicetree/base/model").iter().any(|model| !model.trim().is_empty())
}

/// Reads the signs, and remembers whether one was there that could not be read: it might have been a hypervisor's.
struct Signs<'a> {
    root: &'a Root,
    unclear: Cell<bool>,
}

impl Signs<'_> {
    fn text(&self, path: &str, max: usize) -> Option<String> {
        self.clear(self.root.text_up_to(path, max))
    }

    fn line(&self, path: &str) -> Option<String> {
        self.text(path, MAX_FILE).map(|text| text.trim().to_owned())
    }

    fn strings(&self, path: &str) -> Vec<String> {
        self.clear(self.root.strings(path)).unwrap_or_default()
    }

    fn clear<T>(&self, found: Reading<T>) -> Option<T> {
        match found {
            Reading::Value(value) | Reading::Virtual(value) => Some(value),
            Reading::Absent => None,
            Reading::Denied | Reading::Rejected(_) => {
                self.unclear.set(true);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::files::tests::tree, *};

    const BARE: (&str, &str) = ("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu vme svm\n");
    const GUEST: (&str, &str) = ("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu hypervisor\n");

    fn of(files: &[(&str, &str)]) -> (Hypervisor, HypervisorClass) {
        let (_directory, root) = tree(files);
        let platform = read(&root);
        (platform.hypervisor, platform.class)
    }

    fn dmi(vendor: &'static str, product: &'static str) -> [(&'static str, &'static str); 2] {
        [("sys/class/dmi/id/sys_vendor", vendor), ("sys/class/dmi/id/product_name", product)]
    }

    #[test]
    fn bare_metal_is_believed_only_where_something_names_the_hardware() {
        let [vendor, product] = dmi("Dell Inc.\n", "PowerEdge R740\n");
        assert_eq!(of(&[BARE, vendor, product]).0, Hypervisor::None);
        let board = ("sys/firmware/devicetree/base/model", "Raspberry Pi 5 Model B Rev 1.0\0");
        assert_eq!(of(&[BARE, board]).0, Hypervisor::None);
        assert_eq!(of(&[BARE]).0, Hypervisor::Unknown, "a hidden flag and no DMI");
        assert_eq!(of(&[vendor, product]).0, Hypervisor::Unknown, "no cpuinfo to look for the flag in");
        assert_eq!(of(&[("proc/cpuinfo", ""), vendor, product]).0, Hypervisor::Unknown, "an empty one");
        for place in ["proc/version", "proc/sys/kernel/osrelease", "sys/class/dmi/id/board_vendor"] {
            let found = of(&[BARE, vendor, product, (place, "a\0b")]).0;
            assert_eq!(found, Hypervisor::Unknown, "{place} may name a hypervisor");
        }
        for nobody in ["To Be Filled By O.E.M.\n", "Unknown\n", "Not Applicable\n", "\n"] {
            let [vendor, product] = dmi(nobody, "Default string\n");
            assert_eq!(of(&[BARE, vendor, product]).0, Hypervisor::Unknown, "{nobody}");
        }
    }

    #[test]
    fn one_sign_makes_a_guest() {
        let [vendor, product] = dmi("Dell Inc.", "PowerEdge R740");
        assert_eq!(of(&[GUEST, vendor, product]).0, Hypervisor::Vm, "the flag");
        let pci = ("sys/bus/pci/devices/0000:00:03.0/vendor", "0x1af4\n");
        assert_eq!(of(&[BARE, vendor, product, pci]).0, Hypervisor::Vm, "virtio behind a hidden flag");
        let dummy = ("sys/firmware/devicetree/base/compatible", "linux,dummy-virt\0");
        let model = ("sys/firmware/devicetree/base/model", "linux,dummy-virt\0");
        assert_eq!(of(&[BARE, dummy, model]).0, Hypervisor::Vm);
        for (vendor, product) in [
            ("QEMU", "Standard PC (Q35 + ICH9, 2009)"),
            ("VMware, Inc.", "VMware7,1"),
            ("innotek GmbH", "VirtualBox"),
            ("Microsoft Corporation", "Virtual Machine"),
            ("Apple Inc.", "Apple Virtualization Generic Platform"),
        ] {
            let [vendor, product] = dmi(vendor, product);
            assert_eq!(
                of(&[BARE, vendor, product]),
                (Hypervisor::Vm, HypervisorClass::Homelab),
                "{vendor:?}"
            );
        }
        let [vendor, product] = dmi("Microsoft Corporation", "Surface Laptop");
        assert_eq!(of(&[BARE, vendor, product]).0, Hypervisor::None, "their hardware is hardware");
    }

    #[test]
    fn a_docker_file_in_a_vm_image_changes_nothing() {
        assert_eq!(of(&[GUEST, ("/.dockerenv".trim_start_matches('/'), "")]).0, Hypervisor::Vm);
        let [vendor, product] = dmi("Dell Inc.", "PowerEdge R740");
        assert_eq!(of(&[BARE, vendor, product, (".dockerenv", "")]).0, Hypervisor::None);
    }

    #[test]
    fn only_a_clouds_own_name_makes_a_cloud() {
        let [vendor, product] = dmi("Amazon EC2", "c6g.large");
        assert_eq!(of(&[GUEST, vendor, product]), (Hypervisor::Vm, HypervisorClass::Cloud));
        assert_eq!(
            of(&[BARE, vendor, product]).0,
            Hypervisor::Unknown,
            "no flag on Arm, yet no hardware vendor"
        );
        let [vendor, product] = dmi("Microsoft Corporation", "Virtual Machine");
        let tag = ("sys/class/dmi/id/chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77\n");
        assert_eq!(of(&[GUEST, vendor, product, tag]).1, HypervisorClass::Cloud);
        assert_eq!(of(&[GUEST, vendor, product]).1, HypervisorClass::Homelab);
        assert_eq!(of(&[GUEST]).1, HypervisorClass::Unknown);
        let [vendor, product] = dmi("Google", "Pixelbook");
        assert_eq!(of(&[BARE, vendor, product]).0, Hypervisor::None, "a laptop of theirs");
    }

    #[test]
    fn wsl_docker_desktop_gvisor_and_xen_are_told_apart() {
        let wsl = ("proc/sys/kernel/osrelease", "6.6.87.2-microsoft-standard-WSL2\n");
        assert_eq!(of(&[GUEST, wsl]), (Hypervisor::Vm, HypervisorClass::Desktop));
        let desktop = ("proc/sys/kernel/osrelease", "6.10.14-linuxkit\n");
        assert_eq!(of(&[GUEST, desktop]), (Hypervisor::Vm, HypervisorClass::Desktop));
        let gvisor = ("proc/version", "Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016\n");
        assert_eq!(of(&[BARE, gvisor]).0, Hypervisor::Vm);
        let old = ("proc/version", "Linux version 4.4.0 (gcc) #1 SMP Tue Mar 1 10:00:00 UTC 2016\n");
        let [vendor, product] = dmi("Dell Inc.", "PowerEdge R740");
        assert_eq!(of(&[BARE, old, vendor, product]).0, Hypervisor::None, "a real kernel of that age");
        assert_eq!(of(&[GUEST, ("proc/xen/capabilities", "control_d\n")]).0, Hypervisor::Root);
    }
}
