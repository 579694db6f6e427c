//! The traps of `identity.md` §17, each as a tree of files, and this machine itself.

use std::{os::unix::fs::symlink, path::Path};

use tropa_proto::evidence::{Hypervisor, Key, Salt};

use super::{files::tests::tree, *};

const BOOT: &str = "6b29fc40-ca47-4067-b31d-00dd010662da";
const ID: &str = "0123456789abcdef0123456789abcdef";
const BARE: [(&str, &str); 2] = [
    ("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu svm\n"),
    ("sys/class/dmi/id/sys_vendor", "Dell Inc.\n"),
];

fn read_once(root: &Root, options: &Options) -> Facts {
    read(root, options, &mut VramWatch::default())
}

fn facts(files: &[(&str, &str)]) -> Facts {
    let (_directory, root) = tree(files);
    read_once(&root, &Options::default())
}

/// Adds a network card: its assign type, address, and where its device and driver links point.
fn card(root: &Path, name: &str, assigned: &str, address: &str, device: Option<(&str, &str)>) {
    let directory = root.join("sys/class/net").join(name);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("addr_assign_type"), assigned).unwrap();
    std::fs::write(directory.join("address"), address).unwrap();
    if let Some((bus, driver)) = device {
        std::fs::create_dir(directory.join("device")).unwrap();
        symlink(format!("../../../../bus/{bus}"), directory.join("device/subsystem")).unwrap();
        symlink(format!("../../../../bus/{bus}/drivers/{driver}"), directory.join("device/driver")).unwrap();
    }
}

fn is_rejected<T>(reading: &Reading<T>) -> bool {
    matches!(reading, Reading::Rejected(_))
}

#[test]
fn an_empty_tree_says_nothing_and_claims_the_memory() {
    let facts = facts(&[]);
    assert!(facts.declared);
    assert_eq!(facts.hypervisor, Hypervisor::Unknown);
    for reading in [&facts.boot_id, &facts.machine_id, &facts.product_uuid, &facts.platform_uuid] {
        assert_eq!(*reading, Reading::Absent);
    }
    assert!(facts.lane.dram && facts.lane.gpus.is_empty());
}

#[test]
fn the_systemd_file_comes_before_its_dbus_copy() {
    let dbus = |text: &'static str| ("var/lib/dbus/machine-id", text);
    let other = "fedcba9876543210fedcba9876543210\n";
    let value = Reading::Value(ID.to_owned());
    let newline = format!("{ID}\n");
    assert_eq!(facts(&[("etc/machine-id", &newline), dbus("")]).machine_id, value, "an empty copy");
    assert_eq!(facts(&[("etc/machine-id", &newline), dbus(other)]).machine_id, value, "the two differ");
    assert_eq!(facts(&[dbus(other)]).machine_id, Reading::Value(other.trim().to_owned()), "only the copy");
    for text in
        ["uninitialized\n", "", "00000000000000000000000000000000", "b08dfa6083e7567a1921a715000001fb"]
    {
        let machine_id = facts(&[("etc/machine-id", text), dbus(other)]).machine_id;
        assert!(is_rejected(&machine_id), "{text:?} must not bring back the old id of the copy");
    }
}

#[test]
fn a_boot_id_of_a_containers_own_is_virtual() {
    let boot = ("proc/sys/kernel/random/boot_id", BOOT);
    assert_eq!(facts(&[boot]).boot_id, Reading::Value(BOOT.to_owned()));
    assert!(facts(&[boot, ("tropa/boot_id_virtual", "1\n")]).boot_id.is_virtual());
    let gvisor = ("proc/version", "Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016\n");
    assert!(facts(&[boot, gvisor]).boot_id.is_virtual());
    assert!(is_rejected(&facts(&[("proc/sys/kernel/random/boot_id", "ab\0cd")]).boot_id));
}

#[test]
fn one_board_is_one_id_in_either_byte_order_and_a_default_is_none() {
    let uuid = |text: &str| facts(&[("sys/class/dmi/id/product_uuid", text)]).product_uuid;
    let plain = uuid("11223344-5566-7788-99aa-bbccddeeff00\n");
    assert!(plain.is_genuine());
    assert_eq!(uuid("44332211-6655-8877-99AA-BBCCDDEEFF00\n"), plain, "swapped, upper case");
    for text in
        ["03000200-0400-0500-0006-000700080009", "Not Present", "00000000-0000-0000-0000-000000000000", ""]
    {
        assert!(is_rejected(&uuid(text)), "{text}");
    }
    assert_eq!(facts(&[("sys/class/dmi/id/sys_vendor", "x")]).product_uuid, Reading::Absent);
}

#[test]
fn a_serial_number_of_a_board_counts_only_without_dmi() {
    let serial = ("sys/firmware/devicetree/base/serial-number", "10000000ABCDEF01\0");
    let board = facts(&[serial]).product_uuid;
    assert_eq!(board, canonical::board_serial("10000000abcdef01"));
    assert_eq!(facts(&[("proc/cpuinfo", "Serial\t\t: 10000000abcdef01\n")]).product_uuid, board);
    assert_eq!(facts(&[serial, ("sys/class/dmi/id/sys_vendor", "x")]).product_uuid, Reading::Absent);
    assert!(is_rejected(&facts(&[("proc/cpuinfo", "Serial\t: 0000000000000000\n")]).product_uuid));
}

#[test]
fn each_condition_on_a_network_card_alone_lets_a_made_up_one_through() {
    let (directory, root) = tree(&BARE);
    let real = Some(("pci", "igb"));
    card(directory.path(), "veth0", "3", "7a:00:00:00:00:01", None);
    card(directory.path(), "ifb0", "1", "7a:00:00:00:00:02", None);
    card(directory.path(), "docker0", "0", "02:42:00:00:00:03", None);
    card(directory.path(), "lo", "0", "00:00:00:00:00:00", None);
    card(directory.path(), "random", "1", "a0:36:9f:00:00:04", real);
    card(directory.path(), "local", "0", "02:36:9f:00:00:05", real);
    card(directory.path(), "virtio", "0", "a0:36:9f:00:00:06", Some(("pci", "virtio_net")));
    card(directory.path(), "vmbus", "0", "a0:36:9f:00:00:07", Some(("vmbus", "hv_netvsc")));
    card(directory.path(), "vmxnet", "0", "a0:36:9f:00:00:08", Some(("pci", "vmxnet3")));
    assert!(!read_once(&root, &Options::default()).macs.is_genuine());
    card(directory.path(), "eth0", "0", "A0:36:9F:12:34:56", real);
    card(directory.path(), "dongle", "0", "00:e0:4c:12:34:56", Some(("usb", "r8152")));
    let macs = read_once(&root, &Options::default()).macs;
    assert_eq!(&**macs.value().unwrap(), ["00:e0:4c:12:34:56", "a0:36:9f:12:34:56"]);
    std::fs::write(directory.path().join("proc/cpuinfo"), "flags : hypervisor\n").unwrap();
    assert_eq!(read_once(&root, &Options::default()).macs, Reading::Absent, "in a guest none is hardware");
}

#[test]
fn disks_and_processors_are_read_on_bare_metal_only() {
    let disk = [
        ("sys/class/nvme/nvme0/serial", "S4EWNX0N123456      \n"),
        ("sys/class/nvme/nvme0/transport", "pcie\n"),
        ("sys/class/nvme/nvme1/serial", "REMOTE\n"),
        ("sys/class/nvme/nvme1/transport", "tcp\n"),
        ("sys/class/nvme/nvme2/serial", "                    \n"),
        ("sys/class/nvme/nvme2/transport", "pcie\n"),
        ("sys/devices/system/cpu/cpu0/topology/ppin", "0x5A3f\n"),
        ("sys/devices/system/cpu/cpu1/topology/ppin", "0x5A3f\n"),
        ("sys/devices/system/cpu/cpufreq/topology/ppin", "0x1\n"),
    ];
    let bare = facts(&[&BARE[..], &disk[..]].concat());
    assert_eq!(&**bare.nvme.value().unwrap(), ["S4EWNX0N123456"]);
    assert_eq!(&**bare.ppin.value().unwrap(), ["5a3f"]);
    let guest = facts(&[&[("proc/cpuinfo", "flags : hypervisor\n")], &disk[..]].concat());
    assert!(is_rejected(&guest.nvme));
}

#[test]
fn running_guests_of_qemu_are_listed_by_their_uuid() {
    let one = "/usr/bin/kvm\0-id\0vm-100\0-smbios\0type=1,uuid=11223344-5566-7788-99aa-bbccddeeff00\0";
    let two = "/usr/bin/qemu-system-x86_64\0-uuid\0AAAAAAAA-0000-4000-8000-000000000001\0-name\0-uuid\0";
    let none = "vim\0-uuid\0bbbbbbbb-0000-4000-8000-000000000001\0";
    let facts = facts(&[
        ("proc/10/cmdline", one),
        ("proc/11/cmdline", two),
        ("proc/12/cmdline", none),
        ("proc/13/cmdline", ""),
        ("proc/14/cmdline", "qemu-system-arm\0-uuid"),
        ("proc/self/cmdline", one),
    ]);
    assert_eq!(facts.hosts_vms.value().map(|guests| guests.len()), Some(2), "{:?}", facts.hosts_vms);
}

#[test]
fn an_epoch_in_1970_is_not_believed() {
    let (_directory, root) = tree(&[("tropa/epoch_ns", "86400000000000\n")]);
    assert!(is_rejected(&BootClock::of(&root).sample()));
}

#[test]
fn the_windows_around_wsl_is_read_and_only_there() {
    let guid = (
        "tropa/windows/cryptography",
        "HKEY_LOCAL_MACHINE\\x\r\n    MachineGuid    REG_SZ    0f1e2d3c-aaaa-4bbb-8ccc-0123456789ab\r\n",
    );
    let wsl = ("proc/sys/kernel/osrelease", "6.6.87.2-microsoft-standard-WSL2\n");
    assert!(facts(&[guid, wsl]).wsl_host_guid.is_genuine());
    assert_eq!(facts(&[guid]).wsl_host_guid, Reading::Absent);
    assert!(facts(&[guid, ("tropa/os", "windows\n")]).machine_guid.is_genuine());
}

#[test]
fn hostile_files_in_every_place_are_readings_and_never_a_panic() {
    let places = [
        "proc/sys/kernel/random/boot_id",
        "etc/machine-id",
        "sys/class/dmi/id/product_uuid",
        "sys/class/dmi/id/sys_vendor",
        "proc/cpuinfo",
        "proc/meminfo",
        "proc/self/status",
        "proc/self/cgroup",
        "proc/self/timens_offsets",
        "proc/net/tcp",
        "proc/7/cmdline",
        "proc/7/status",
        "sys/devices/system/cpu/online",
        "sys/devices/system/node/node0/cpulist",
        "sys/class/net/e/address",
        "sys/class/nvme/n/serial",
        "sys/class/drm/card0/device/vendor",
        "proc/driver/nvidia/gpus/x/information",
        "tropa/gpus.json",
        "tropa/epoch_ns",
        "tropa/windows/bios",
        "tropa/macos/sysctl",
    ];
    let long = "9".repeat(70_000);
    for content in [
        "\0\0\0",
        "-",
        "é:é\n:\n::",
        "[{]",
        "0-65535,99999999999",
        "MemTotal: 99999999999999999999 kB",
        &long,
    ] {
        for os in ["linux", "macos", "windows"] {
            let mut files: Vec<(&str, &str)> = places.iter().map(|place| (*place, content)).collect();
            files.push(("tropa/os", os));
            let (_directory, root) = tree(&files);
            let facts = read_once(&root, &Options { port: Some(1), ..Options::default() });
            assert!(!facts.boot_id.is_genuine() && !facts.machine_id.is_genuine());
            assert!(!BootClock::of(&root).sample().is_genuine());
        }
    }
    let (directory, root) = tree(&[]);
    for place in places {
        std::fs::create_dir_all(directory.path().join(place)).unwrap();
    }
    assert!(is_rejected(&read_once(&root, &Options::default()).boot_id), "a directory");
}

#[test]
fn a_declared_host_may_have_any_gpu() {
    let facts = facts(&[(
        "tropa/gpus.json",
        r#"[{"name":"B","uuid":"MIG-1","kind":"mig","parent":"GPU-2","pci":"0000:02:00.0"},
            {"name":"A","uuid":"GPU-1","pci":"0000:01:00.0","memory":5,"uma":true}]"#,
    )]);
    assert_eq!(
        facts.gpus.iter().map(|gpu| &*gpu.name).collect::<Vec<_>>(),
        ["A", "B"],
        "in the order of addresses"
    );
    assert_eq!(facts.gpus[1].kind, GpuKind::Mig { parent: "gpu-2".into() });
    assert_eq!(&*facts.lane.gpus, [0, 1]);
}

#[test]
fn raw_values_are_shown_only_when_asked_for() {
    let facts = facts(&[("etc/machine-id", ID), ("proc/sys/kernel/random/boot_id", BOOT)]);
    let evidence = facts.keyed(&Key::new(&Salt::LOOPBACK));
    let epoch = Reading::Denied;
    let log = Reading::Absent;
    let shown = Shown { facts: &facts, evidence: &evidence, epoch: &epoch, log: &log, former: None };
    let (text, raw) = (show(&shown, false), show(&shown, true));
    assert!(!text.contains(ID) && !text.contains(BOOT), "{text}");
    assert!(raw.contains(ID) && raw.contains(BOOT), "{raw}");
    assert!(text.contains("may not read it"), "{text}");
    let json = show_json(&shown, false).to_string();
    assert!(!json.contains(ID) && json.contains("tropa.evidence/1"), "{json}");
    assert!(show_json(&shown, true).to_string().contains(ID));
}

#[test]
#[cfg(target_os = "linux")]
fn this_machine_is_read_without_a_panic_and_twice_the_same() {
    let root = Root::live();
    let facts = read_once(&root, &Options::default());
    assert!(!facts.declared && facts.cpus.host > 0 && facts.memory > 0);
    assert_eq!(facts, read_once(&root, &Options::default()));
    let (evidence, epoch) = (facts.keyed(&Key::new(&Salt::LOOPBACK)), BootClock::of(&root).sample());
    let log = read_server_log(&root, &Options::default());
    let shown = Shown { facts: &facts, evidence: &evidence, epoch: &epoch, log: &log, former: None };
    println!("{}", show(&shown, false));
}
