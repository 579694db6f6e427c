//! The signals of Linux, each read from the files that `identity.md` §3.1 names.

use tropa_proto::{
    bounded::{List, Text},
    canonical,
    evidence::{Facts, Hypervisor, Os, Reading},
};

use super::{
    clock, cpus,
    files::{MAX_CPUINFO, Root, rejected},
    platform::{self, Platform},
    windows,
};

/// Drivers of network cards that a hypervisor makes up; their addresses are as unique as the hypervisor is careful.
const VIRTUAL_DRIVERS: [&str; 4] = ["virtio_net", "hv_netvsc", "vmxnet3", "xen-netfront"];

/// Reads everything but GPUs and lane.
#[must_use]
pub fn read(root: &Root) -> Facts {
    let platform = platform::read(root);
    Facts {
        hypervisor: platform.hypervisor,
        hypervisor_class: platform.class,
        time_namespace: clock::time_namespace(root),
        boot_id: boot_id(root, &platform),
        machine_id: machine_id(root),
        product_uuid: product_uuid(root),
        wsl_host_guid: if platform.wsl { windows::host_guid(root) } else { Reading::Absent },
        ppin: ppin(root),
        macs: macs(root, &platform),
        nvme: nvme(root, &platform),
        hosts_vms: hosts_vms(root),
        cpu_model: cpu_model(root),
        cpus: cpus::read(root),
        memory: cpus::memory(root),
        ..Facts::empty(Os::Linux)
    }
}

/// The kernel's boot id. A container that puts its own file there (LXC, nspawn) cannot put it on procfs, so the
/// device of the file tells; what cannot be compared counts as the container's own.
fn boot_id(root: &Root, platform: &Platform) -> Reading<String> {
    const PATH: &str = "proc/sys/kernel/random/boot_id";
    let foreign = if root.is_declared() {
        root.line("tropa/boot_id_virtual").is_some_and(|text| text == "1" || text == "true")
    } else {
        let device = root.device(PATH);
        device.is_none() || device != root.device("proc/version")
    };
    let read = root.text(PATH).and_then(|text| canonical::uuid(&text));
    if foreign || platform.gvisor { read.into_virtual() } else { read }
}

/// The systemd machine-id. The D-Bus copy is read only where there is no other file: it resurrects ids that were
/// reset (lueschem/edi-cl#20).
fn machine_id(root: &Root) -> Reading<String> {
    let copy = || root.text("var/lib/dbus/machine-id");
    unless_absent(root.text("etc/machine-id"), copy).and_then(|text| canonical::machine_id(&text))
}

/// SMBIOS UUID; where the platform has no DMI, the serial number of the board.
fn product_uuid(root: &Root) -> Reading<String> {
    if root.exists("sys/class/dmi/id") {
        return root.text("sys/class/dmi/id/product_uuid").and_then(|text| canonical::product_uuid(&text));
    }
    let in_cpuinfo = || {
        cpuinfo(root).and_then(|text| match cpus::field(&text, "Serial") {
            Some(serial) => Reading::Value(serial.to_owned()),
            None => Reading::Absent,
        })
    };
    let serial = unless_absent(root.text("sys/firmware/devicetree/base/serial-number"), in_cpuinfo);
    serial.and_then(|text| canonical::board_serial(&text))
}

fn ppin(root: &Root) -> Reading<List<String, 16>> {
    const CPU: &str = "sys/devices/system/cpu";
    let processors = root
        .names(CPU)
        .into_iter()
        .filter(|name| name.strip_prefix("cpu").is_some_and(|number| number.parse::<u16>().is_ok()));
    canonical::set(processors.map(|processor| {
        root.text(&format!("{CPU}/{processor}/topology/ppin")).and_then(|text| canonical::ppin(&text))
    }))
}

/// Addresses that were burnt into hardware. Each condition alone lets a made-up one through.
fn macs(root: &Root, platform: &Platform) -> Reading<List<String, 16>> {
    const NET: &str = "sys/class/net";
    if platform.hypervisor == Hypervisor::Vm {
        return Reading::Absent;
    }
    let permanent = |card: &String| {
        let at = |what: &str| format!("{NET}/{card}/{what}");
        let bus = root.link(&at("device/subsystem")).and_then(last_part);
        let driver = root.link(&at("device/driver")).and_then(last_part);
        root.line(&at("addr_assign_type")).as_deref() == Some("0")
            && matches!(bus.as_deref(), Some("pci" | "usb"))
            && driver.is_some_and(|driver| !VIRTUAL_DRIVERS.contains(&driver.as_str()))
    };
    let addresses = root.names(NET).into_iter().filter(permanent).map(|card| {
        root.text(&format!("{NET}/{card}/address")).and_then(|text| {
            let local = rejected("locally administered");
            canonical::mac(&text).and_then(|mac| if is_local(&mac) { local } else { Reading::Value(mac) })
        })
    });
    canonical::set(addresses)
}

/// The second-lowest bit of the first octet says that no vendor assigned the address.
fn is_local(address: &str) -> bool {
    address.get(..2).and_then(|octet| u8::from_str_radix(octet, 16).ok()).is_none_or(|octet| octet & 2 != 0)
}

/// Serial numbers of NVMe devices on PCIe; a virtual disk's belongs to the hypervisor.
fn nvme(root: &Root, platform: &Platform) -> Reading<List<String, 32>> {
    const NVME: &str = "sys/class/nvme";
    let disks = root.names(NVME);
    if platform.hypervisor == Hypervisor::Vm && !disks.is_empty() {
        return rejected("in a virtual machine");
    }
    let local = |disk: &String| root.line(&format!("{NVME}/{disk}/transport")).as_deref() == Some("pcie");
    canonical::set(disks.into_iter().filter(local).map(|disk| {
        root.text(&format!("{NVME}/{disk}/serial")).and_then(|text| canonical::nvme_serial(&text))
    }))
}

/// SMBIOS UUIDs of the QEMU guests that run here, from their command lines.
fn hosts_vms(root: &Root) -> Reading<List<String, 256>> {
    let processes =
        root.names("proc").into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let uuids = processes.filter_map(|process| {
        let arguments = root.strings(&format!("proc/{process}/cmdline"));
        guest_uuid(arguments.value()?)
    });
    canonical::set(uuids.map(|uuid| canonical::product_uuid(&uuid)))
}

/// Finds the UUID that a QEMU command line gives its guest: the last one wins, as in QEMU.
fn guest_uuid(arguments: &[String]) -> Option<String> {
    let program = arguments.first()?.rsplit('/').next()?;
    if !program.starts_with("qemu") && program != "kvm" {
        return None;
    }
    let pairs = arguments.iter().zip(arguments.iter().skip(1));
    pairs
        .filter_map(|(option, value)| match option.trim_start_matches('-') {
            "uuid" => Some(value.as_str()),
            "smbios" if value.split(',').any(|part| part == "type=1") => {
                value.split(',').find_map(|part| part.strip_prefix("uuid="))
            }
            _ => None,
        })
        .next_back()
        .map(str::to_owned)
}

fn cpu_model(root: &Root) -> Reading<Text<64>> {
    cpuinfo(root).and_then(|text| match cpus::field(&text, "model name") {
        Some(name) => canonical::cpu_model(name),
        None => Reading::Absent,
    })
}

fn cpuinfo(root: &Root) -> Reading<String> {
    root.text_up_to("proc/cpuinfo", MAX_CPUINFO)
}

/// Reads elsewhere where there is nothing at all; what is denied or rejected stays so.
fn unless_absent(found: Reading<String>, elsewhere: impl FnOnce() -> Reading<String>) -> Reading<String> {
    if found == Reading::Absent { elsewhere() } else { found }
}

fn last_part(path: String) -> Option<String> {
    path.rsplit('/').next().map(str::to_owned)
}
