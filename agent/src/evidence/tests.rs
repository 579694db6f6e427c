//! The traps of `identity.md` §17, each as a tree of files, and this machine itself.

use std::{os::unix::fs::symlink, path::Path};

use tropa_proto::evidence::{Attribution, Hypervisor, Key, Salt};

use super::{
    files::tests::tree,
    nvidia::{Card, Process, Slice},
    *,
};

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

struct Fake(Vec<Card>);

impl Library for Fake {
    fn cards(&self) -> Result<Vec<Card>, String> {
        Ok(self.0.clone())
    }
}

fn nvidia(number: u8, processes: Vec<Process>) -> Card {
    Card {
        uuid: format!("GPU-4a1c0000-0000-4000-8000-00000000000{number}"),
        name: "NVIDIA RTX 4090".into(),
        pci: format!("00000000:0{number}:00.0"),
        memory: Some(24 << 30),
        processes,
        ..Card::default()
    }
}

/// A server on port 11434 with the process id 50 and a runner 51.
fn served(environment: &str) -> (tempfile::TempDir, Root) {
    let (directory, root) = tree(&[
        (
            "proc/net/tcp",
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
             0: 0100007F:2CAA 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7001 1\n   1: \
             0100007F:2CAA 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 7002 1\n",
        ),
        (
            "proc/50/status",
            "Name:\tollama\nPPid:\t1\nNSpid:\t50\nCpus_allowed_list:\t0-3\nMems_allowed_list:\t0\n",
        ),
        ("proc/50/environ", environment),
        ("proc/51/status", "Name:\trunner\nPPid:\t50\nNSpid:\t51\t7\n"),
        ("proc/60/status", "Name:\tother\nPPid:\t1\nNSpid:\t60\n"),
    ]);
    for process in ["50", "60"] {
        std::fs::create_dir_all(directory.path().join(format!("proc/{process}/fd"))).unwrap();
    }
    symlink("socket:[7001]", directory.path().join("proc/50/fd/3")).unwrap();
    symlink("socket:[7002]", directory.path().join("proc/60/fd/3")).unwrap();
    (directory, root)
}

fn first_namespace(directory: &Path) {
    std::fs::create_dir_all(directory.join("proc/self/ns")).unwrap();
    symlink("pid:[4026531836]", directory.join("proc/self/ns/pid")).unwrap();
}

fn claim(root: &Root, cards: Vec<Card>, loaded: Option<(u64, u64)>) -> (Vec<u16>, bool, Attribution) {
    let loaded = loaded.map(|(size, size_vram)| Loaded { size, size_vram, context: 0 });
    let options = Options { port: Some(11434), loaded, ..Options::default() };
    let lane = read_with(root, &options, &mut VramWatch::default(), &Fake(cards)).lane;
    (lane.gpus.to_vec(), lane.dram, lane.method)
}

const GIB: u64 = 1 << 30;

#[test]
fn the_runner_is_found_on_its_gpu() {
    let (directory, root) = served("");
    first_namespace(directory.path());
    let runner = |pid| vec![Process { pid, memory: Some(5 * GIB) }];
    let cards = || vec![nvidia(1, runner(60)), nvidia(2, runner(51))];
    assert_eq!(claim(&root, cards(), None), (vec![1], true, Attribution::Process));
    let whole = Some((5 * GIB, 5 * GIB));
    assert_eq!(claim(&root, cards(), whole), (vec![1], false, Attribution::Process), "all of it on the GPU");
    assert_eq!(claim(&root, cards(), Some((9 * GIB, 5 * GIB))), (vec![1], true, Attribution::Process));
    let both = vec![nvidia(1, runner(51)), nvidia(2, runner(51))];
    assert_eq!(claim(&root, both, None).0, [0, 1], "one model on two GPUs");
}

#[test]
fn inside_a_container_a_process_id_alone_is_no_proof() {
    let (_directory, root) = served("");
    let on = |number, pid, memory| nvidia(number, vec![Process { pid, memory: Some(memory) }]);
    let loaded = Some((5 * GIB, 5 * GIB));
    let right = vec![on(1, 51, 5 * GIB + (300 << 20)), on(2, 99, GIB)];
    assert_eq!(claim(&root, right, loaded), (vec![0], false, Attribution::Process));
    let accident = vec![on(1, 51, GIB), on(2, 99, 5 * GIB)];
    assert_eq!(
        claim(&root, accident.clone(), loaded).2,
        Attribution::Everything,
        "a host's process of that number"
    );
    assert_eq!(claim(&root, accident, None).2, Attribution::Everything);
    let two = vec![on(1, 51, 5 * GIB), on(2, 7, 5 * GIB)];
    assert_eq!(claim(&root, two, loaded).2, Attribution::Everything, "two candidates");
}

#[test]
fn a_slice_is_found_and_its_parent_named() {
    let (directory, root) = served("");
    first_namespace(directory.path());
    let slice = |uuid: &str, pid| Slice {
        uuid: uuid.into(),
        processes: vec![Process { pid, memory: None }],
        ..Slice::default()
    };
    let cards =
        vec![Card { slices: vec![slice("MIG-aaaa", 60), slice("MIG-bbbb", 51)], ..nvidia(1, vec![]) }];
    let options = Options { port: Some(11434), ..Options::default() };
    let facts = read_with(&root, &options, &mut VramWatch::default(), &Fake(cards));
    let [place] = *facts.lane.gpus.to_vec() else { panic!("{:?}", facts.lane) };
    assert_eq!(facts.gpus[usize::from(place)].uuid.as_deref(), Some("mig-bbbb"));
}

#[test]
fn the_environment_pins_only_where_it_can_mean_one_thing() {
    let cards = || vec![nvidia(1, vec![]), nvidia(2, vec![])];
    let of = |environment: &str, cards| {
        let (_directory, root) = served(environment);
        claim(&root, cards, None)
    };
    let pinned = (vec![1], true, Attribution::Environment);
    assert_eq!(of("CUDA_VISIBLE_DEVICES=GPU-4a1c0000-0000-4000-8000-000000000002\0", cards()), pinned);
    assert_eq!(of("CUDA_DEVICE_ORDER=PCI_BUS_ID\0CUDA_VISIBLE_DEVICES=1\0", cards()), pinned);
    assert_eq!(of("CUDA_VISIBLE_DEVICES=0\0", vec![nvidia(1, vec![])]).2, Attribution::Environment);
    for vague in
        ["CUDA_VISIBLE_DEVICES=1\0", "CUDA_VISIBLE_DEVICES=\0", "NVIDIA_VISIBLE_DEVICES=all\0", "X=1\0", ""]
    {
        assert_eq!(of(vague, cards()), (vec![0, 1], true, Attribution::Everything), "{vague}");
    }
}

#[test]
fn the_servers_log_narrows_the_lane_to_the_devices_that_it_names() {
    let cards = || vec![nvidia(1, vec![]), nvidia(2, vec![])];
    let line = |library: &str, pci: &str| {
        format!("time=x level=INFO msg=\"inference compute\" id=0 library={library} pci_id={pci}\n")
    };
    let of = |devices: &str, environment: &str, cards| {
        let (directory, root) = served(environment);
        let begin = "time=x level=INFO msg=\"Listening on [::]:11434 (version 0.24.0)\"\n";
        std::fs::write(directory.path().join("log"), format!("{begin}{devices}time=x level=INFO msg=x\n"))
            .unwrap();
        symlink("/log", directory.path().join("proc/50/fd/2")).unwrap();
        claim(&root, cards, Some((5, 5)))
    };
    let (one, two) = (line("CUDA", "0000:01:00.0"), line("CUDA", "0000:02:00.0"));
    let pinned = "CUDA_DEVICE_ORDER=PCI_BUS_ID\0CUDA_VISIBLE_DEVICES=0\0";
    assert_eq!(of(&two, "", cards()), (vec![1], false, Attribution::ServerLog));
    assert_eq!(of(&two, pinned, cards()), (vec![1], false, Attribution::ServerLog), "before the environment");
    assert_eq!(of(&format!("{one}{two}"), "", cards()), (vec![0, 1], false, Attribution::ServerLog));
    assert_eq!(of(&line("cpu", "\"\""), "", cards()), (vec![], true, Attribution::ServerLog), "no GPU");
    for nothing in [line("Metal", "\"\""), format!("{two}{}", line("CUDA", "")), line("CUDA", "0000:07:00.0")]
    {
        assert_eq!(of(&nothing, "", cards()).2, Attribution::Everything, "{nothing}");
        assert_eq!(of(&nothing, pinned, cards()).2, Attribution::Environment, "{nothing}");
    }
    let slice = |uuid: &str| Slice { uuid: uuid.into(), ..Slice::default() };
    let sliced = Card { slices: vec![slice("MIG-a"), slice("MIG-b")], ..nvidia(2, vec![]) };
    let found = of(&two, "", vec![nvidia(1, vec![]), sliced]);
    assert_eq!(found.0, [1, 2], "which slice it is, the log does not say");
}

#[test]
fn a_drm_client_that_holds_memory_names_its_gpu() {
    let (directory, root) = served("");
    let put = |path: &str, text: &str| {
        let path = directory.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    for (card, slot) in [("card0", "0000:03:00.0"), ("card1", "0000:04:00.0")] {
        put(&format!("sys/class/drm/{card}/device/vendor"), "0x1002\n");
        put(&format!("sys/class/drm/{card}/device/uevent"), &format!("PCI_SLOT_NAME={slot}\n"));
    }
    put("proc/51/fdinfo/4", "drm-pdev:\t0000:03:00.0\ndrm-client-id:\t1\ndrm-memory-vram:\t2048 KiB\n");
    assert_eq!(claim(&root, vec![], None).2, Attribution::Everything, "opened, not used");
    put("proc/51/fdinfo/5", "drm-pdev:\t0000:04:00.0\ndrm-client-id:\t2\ndrm-memory-vram:\t2048000 KiB\n");
    assert_eq!(claim(&root, vec![], None), (vec![1], true, Attribution::DrmFd));
}

#[test]
fn the_step_in_memory_is_the_last_sign_and_counts_cards_slices_and_amds_alike() {
    let (directory, root) = served("");
    let put = |path: &str, text: &str| {
        let path = directory.path().join("sys/class/drm/card0/device").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    put("vendor", "0x1002\n");
    put("uevent", "PCI_SLOT_NAME=0000:09:00.0\n");
    put("mem_info_vram_used", "0\n");
    let mut watch = VramWatch::default();
    let mut lane = |loaded: u64, card: u64, slice: u64| {
        let loaded = (loaded > 0).then_some(loaded * GIB);
        let options = Options {
            port: Some(11434),
            loaded: loaded.map(|bytes| Loaded { size: bytes, size_vram: bytes, context: 0 }),
            on_gpu: loaded.map(|bytes| ("a".to_owned(), bytes)).into_iter().collect(),
            ..Options::default()
        };
        let sliced = Slice { uuid: "MIG-a".into(), used: Some(slice * GIB), ..Slice::default() };
        let cards = vec![
            Card { used: Some(card * GIB), ..nvidia(1, vec![]) },
            Card { slices: vec![sliced], ..nvidia(2, vec![]) },
        ];
        let lane = read_with(&root, &options, &mut watch, &Fake(cards)).lane;
        (lane.gpus.to_vec(), lane.dram, lane.method)
    };
    assert_eq!(lane(0, 1, 1), (vec![0, 1, 2], true, Attribution::Everything));
    assert_eq!(lane(5, 6, 1), (vec![0], false, Attribution::VramStep));
    assert_eq!(lane(0, 1, 1).2, Attribution::Everything, "where the next one goes is not known");
    assert_eq!(lane(5, 1, 6), (vec![1], false, Attribution::VramStep), "a slice");
    lane(0, 1, 1);
    put("mem_info_vram_used", &format!("{}\n", 5 * GIB));
    assert_eq!(lane(5, 1, 1), (vec![2], false, Attribution::VramStep), "AMD's");
    std::fs::remove_file(directory.path().join("sys/class/drm/card0/device/mem_info_vram_used")).unwrap();
    assert_eq!(lane(5, 1, 1).2, Attribution::Everything, "one that does not tell may be the one");
}

#[test]
fn the_operators_word_comes_first_and_an_unknown_gpu_reserves_everything() {
    let (_directory, root) = served("");
    let lane = |text: &str| {
        let options = Options { lane: Some(text.parse().unwrap()), ..Options::default() };
        read_with(
            &root,
            &options,
            &mut VramWatch::default(),
            &Fake(vec![nvidia(1, vec![]), nvidia(2, vec![])]),
        )
        .lane
    };
    for name in ["gpu:1", "GPU:GPU-4a1c0000-0000-4000-8000-000000000002", "gpu:0000:02:00.0", "gpu:02:00.0"] {
        let lane = lane(name);
        assert_eq!((&*lane.gpus, lane.dram, lane.method), (&[1][..], false, Attribution::Operator), "{name}");
    }
    let node = lane("dram-node1, gpu:0");
    assert_eq!((&*node.gpus, node.dram, &*node.numa_nodes), (&[0][..], true, &[1][..]));
    assert!(lane("dram,dram-node1").numa_nodes.is_empty());
    assert_eq!(lane("gpu:7").method, Attribution::Everything);
    for wrong in ["", "cpu", "gpu:", "gpu", "dram-node", "dram-nodex", "dram,,gpu:0"] {
        assert!(wrong.parse::<LaneSpec>().is_err(), "{wrong}");
    }
    let text = "dram,gpu:0";
    assert_eq!(text.parse::<LaneSpec>().unwrap().to_string(), text);
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
    let shown = Shown { facts: &facts, evidence: &evidence, epoch: &epoch, log: &log };
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
    println!("{}", show(&Shown { facts: &facts, evidence: &evidence, epoch: &epoch, log: &log }, false));
}
