//! Garbage in every place that the readers touch: whatever lies there, a reading says what was found, and nothing is
//! believed that the host did not say.
//!
//! Which places those are is not written down here: the readers are watched while they read one rich host of each
//! system, and what they touch is where garbage goes, directories included.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::LazyLock,
};

use proptest::{
    prelude::*,
    sample::{Index, select},
};
use tropa_proto::evidence::Hypervisor;

use super::{
    files::tests::{ASKED, tree},
    neighbours::Networks,
    nvidia::NoLibrary,
    *,
};

const BOOT: &str = "6b29fc40-ca47-4067-b31d-00dd010662da";

/// A host on which every reader finds something.
const HOST: &[(&str, &str)] = &[
    ("proc/sys/kernel/random/boot_id", BOOT),
    ("proc/sys/kernel/osrelease", "6.1.0\n"),
    ("proc/version", "Linux version 6.1.0\n"),
    ("proc/cpuinfo", "processor\t: 0\nmodel name\t: AMD Ryzen 9 7950X\nflags\t\t: fpu svm\n"),
    ("proc/meminfo", "MemTotal:       16384 kB\n"),
    ("proc/stat", "ctxt 70000\nprocesses 301\n"),
    ("proc/vmstat", "pgfault 12\npgfree 9\n"),
    ("proc/self/status", "Cpus_allowed_list:\t0\nMems_allowed_list:\t0\n"),
    ("proc/self/cgroup", "4:cpu,cpuacct:/a\n0::/a\n"),
    ("proc/self/timens_offsets", "monotonic 0 0\nboottime 0 0\n"),
    ("proc/net/tcp", "head\n 0: 0100007F:2CAA 00000000:0000 0A 0:0 0:0 0 0 0 7001 1\n"),
    ("proc/net/route", "Iface Destination Gateway Flags RefCnt Use Metric Mask\ne 0 0 1 0 0 0 0\n"),
    ("proc/50/status", "PPid:\t1\nNSpid:\t50\nCpus_allowed_list:\t0\nMems_allowed_list:\t1\n"),
    ("proc/50/environ", "CUDA_VISIBLE_DEVICES=0\0"),
    ("proc/50/cmdline", "/usr/bin/ollama\0serve\0"),
    ("proc/50/fdinfo/4", "drm-pdev:\t0000:03:00.0\ndrm-client-id:\t1\ndrm-memory-vram:\t2048000 KiB\n"),
    ("proc/60/cmdline", "/usr/bin/kvm\0-uuid\0aaaaaaaa-0000-4000-8000-000000000001\0"),
    ("proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: RTX\nGPU UUID: GPU-1\n"),
    ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
    ("var/lib/dbus/machine-id", "fedcba9876543210fedcba9876543210\n"),
    ("sys/class/dmi/id/product_uuid", "11223344-5566-7788-99aa-bbccddeeff00\n"),
    ("sys/class/dmi/id/sys_vendor", "Dell Inc.\n"),
    ("sys/firmware/devicetree/base/serial-number", "10000000ABCDEF01\0"),
    ("sys/firmware/devicetree/base/model", "Board\0"),
    ("sys/bus/pci/devices/0000:00:03.0/vendor", "0x8086\n"),
    ("sys/devices/system/cpu/online", "0\n"),
    ("sys/devices/system/cpu/cpu0/topology/ppin", "0x5a\n"),
    ("sys/devices/system/node/node0/cpulist", "0\n"),
    ("sys/devices/system/node/node1/cpulist", "1\n"),
    ("sys/class/net/e/addr_assign_type", "0\n"),
    ("sys/class/net/e/address", "a0:36:9f:12:34:56\n"),
    ("sys/class/nvme/nvme0/serial", "S4EWNX0N123456\n"),
    ("sys/class/nvme/nvme0/transport", "pcie\n"),
    ("sys/class/drm/card0/device/vendor", "0x1002\n"),
    ("sys/class/drm/card0/device/uevent", "PCI_SLOT_NAME=0000:03:00.0\n"),
    ("sys/class/kfd/kfd/topology/nodes/1/properties", "simd_count 24\nlocation_id 768\ndomain 0\n"),
    ("log", "time=x msg=\"Listening on [::]:11434 (version 0.24.0)\"\n"),
    ("tropa/epoch_ns", "1763000000123456789\n"),
    ("tropa/gpus.json", r#"[{"name":"A","uuid":"GPU-2","pci":"0000:05:00.0"}]"#),
    (
        "tropa/macos/sysctl",
        "kern.bootsessionuuid: 6b29fc40-ca47-4067-b31d-00dd010662da\nkern.hv_vmm_present: 0\n",
    ),
    ("tropa/macos/ioreg", "\"IOPlatformUUID\" = \"0F1E2D3C-AAAA-4BBB-8CCC-0123456789AB\"\n"),
    ("tropa/windows/cryptography", "    MachineGuid    REG_SZ    0f1e2d3c-aaaa-4bbb-8ccc-0123456789ab\r\n"),
    ("tropa/windows/bios", "    SystemManufacturer    REG_SZ    Dell Inc.\r\n"),
    ("Users/a/.ollama/logs/server.log", "time=x msg=\"Listening on [::]:11434 (version 0.24.0)\"\n"),
    ("run/log/journal/m/system.journal", "LPKSHHRH"),
];

const LINKS: &[(&str, &str)] = &[
    ("proc/50/fd/1", "socket:[7002]"),
    ("proc/50/fd/2", "/log"),
    ("proc/50/fd/3", "socket:[7001]"),
    ("proc/self/ns/time", "time:[4026531834]"),
    ("proc/self/ns/pid", "pid:[4026531836]"),
    ("sys/class/net/e/device/subsystem", "../../../../bus/pci"),
    ("sys/class/net/e/device/driver", "../../../../bus/pci/drivers/igb"),
];

/// What may lie where something else belongs.
#[derive(Clone, Copy, Debug)]
enum Garbage {
    Nothing,
    Empty,
    Nuls,
    Binary,
    Nonsense,
    /// More than any reader takes; it takes no room.
    Huge,
    Directory,
    Pipe,
    /// To itself.
    Loop,
    /// To a place out of the tree, which is none within it.
    Out,
    /// The root of the tree, and so of every walk.
    Root,
}

const KINDS: [Garbage; 11] = {
    use Garbage::{Binary, Directory, Empty, Huge, Loop, Nonsense, Nothing, Nuls, Out, Pipe, Root};
    [Empty, Nuls, Binary, Nonsense, Huge, Directory, Pipe, Loop, Out, Root, Nothing]
};

/// The kinds of hosts; in WSL2 the Windows around it is read.
const SYSTEMS: [&str; 4] = ["linux", "wsl", "macos", "windows"];

fn host(system: &str) -> (tempfile::TempDir, Root) {
    let (directory, root) = tree(HOST);
    say(directory.path(), system);
    for (path, target) in LINKS {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }
    (directory, root)
}

/// Says which system it is. That is the operator's word, and not garbage's to give.
fn say(directory: &Path, system: &str) {
    let (os, release) = if system == "wsl" { ("linux", Some("6.6-microsoft\n")) } else { (system, None) };
    let _ = fs::write(directory.join("tropa/os"), os);
    if let Some(release) = release {
        fs::write(directory.join("proc/sys/kernel/osrelease"), release).unwrap();
    }
}

/// Puts garbage where something lies, or beside where it would; where there is no directory for it, nothing happens.
fn put(directory: &Path, path: &str, garbage: Garbage) {
    let at = directory.join(path);
    if !at.starts_with(directory) || at == directory {
        return;
    }
    match fs::symlink_metadata(&at) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(&at).unwrap(),
        Ok(_) => fs::remove_file(&at).unwrap(),
        Err(_) => {}
    }
    // What is put there may not fit: another place above it is garbage already.
    let _ = match garbage {
        Garbage::Nothing => Ok(()),
        Garbage::Empty => fs::write(&at, ""),
        Garbage::Nuls => fs::write(&at, [0; 64]),
        Garbage::Binary => fs::write(&at, [0xff, 0xfe, 0, 1, b'\n', 0x80]),
        Garbage::Nonsense => {
            fs::write(&at, "é:é\n:\n::\n0-65535,9 9999999999999999999999 9\n[{]\u{1b}[2J=\n")
        }
        Garbage::Huge => fs::File::create(&at).and_then(|file| file.set_len(8 << 30)),
        Garbage::Directory => fs::create_dir(&at),
        Garbage::Pipe => {
            rustix::fs::mkfifoat(rustix::fs::CWD, &at, rustix::fs::Mode::RUSR).map_err(Into::into)
        }
        Garbage::Loop => symlink(at.file_name().unwrap_or_default(), &at),
        Garbage::Out => symlink("/../../../../../../../../no/such/place", &at),
        Garbage::Root => symlink("/", &at),
    };
}

/// Asks every reader, as an agent and its commands do.
fn read_all(root: &Root) -> Facts {
    let mut options = Options { port: Some(11434), ..Options::default() };
    let facts = read_with(root, &options, &mut VramWatch::default(), &NoLibrary);
    let log = read_server_log(root, &options);
    options.log = Some("log".to_owned());
    let _ = read_server_log(root, &options);
    let epoch = BootClock::of(root).sample();
    let _ = (read_counters(root), Privileged::read(root), Networks::read(root));
    let evidence = facts.keyed(&tropa_proto::evidence::Key::new(&tropa_proto::evidence::Salt::LOOPBACK));
    let shown = Shown { facts: &facts, evidence: &evidence, epoch: &epoch, log: &log, former: None };
    let shown = show(&shown, true);
    assert!(!shown.contains('\u{1b}'), "{shown}");
    facts
}

/// What tells machines apart, signal by signal.
type Believed = BTreeMap<&'static str, BTreeSet<String>>;

fn believed(facts: &Facts) -> Believed {
    let one = |reading: &Reading<String>| reading.value().filter(|_| reading.is_genuine()).cloned();
    let mut all = BTreeMap::new();
    for (signal, reading) in [
        ("boot_id", &facts.boot_id),
        ("machine_id", &facts.machine_id),
        ("product_uuid", &facts.product_uuid),
        ("platform_uuid", &facts.platform_uuid),
        ("machine_guid", &facts.machine_guid),
        ("wsl_host_guid", &facts.wsl_host_guid),
    ] {
        all.insert(signal, one(reading).into_iter().collect());
    }
    let list = |values: Option<&[String]>| values.unwrap_or_default().iter().cloned().collect();
    all.insert("ppin", list(facts.ppin.value().map(|list| &**list)));
    all.insert("macs", list(facts.macs.value().map(|list| &**list)));
    all.insert("nvme", list(facts.nvme.value().map(|list| &**list)));
    all.insert("hosts_vms", list(facts.hosts_vms.value().map(|list| &**list)));
    all
}

/// All that the readers touch on a host of each kind. Which kind it is, is not garbage's to say.
static TOUCHED: LazyLock<Vec<String>> = LazyLock::new(|| {
    ASKED.with_borrow_mut(BTreeSet::clear);
    for system in SYSTEMS {
        let (_directory, root) = host(system);
        read_all(&root);
    }
    ASKED.with_borrow(|asked| asked.iter().filter(|path| *path != "tropa/os").cloned().collect())
});

/// What is believed of a sound host of each kind.
static SOUND: LazyLock<BTreeMap<&str, Believed>> = LazyLock::new(|| {
    let of = |system| {
        let (_directory, root) = host(system);
        believed(&read_all(&root))
    };
    let mut sound: BTreeMap<_, _> = SYSTEMS.into_iter().map(|system| (system, of(system))).collect();
    // Where nothing says any more that this is a guest, what a guest's are not worth is read.
    let bare = sound["linux"].clone();
    let wsl = sound.entry("wsl").or_default();
    wsl.extend(bare.into_iter().filter(|(signal, _)| ["macs", "nvme"].contains(signal)));
    sound
});

/// Places whose absence makes another place count (`identity.md` §3.1), and what counts then.
const STAND_INS: [(&str, &str); 2] = [("etc/machine-id", "machine_id"), ("sys/class/dmi/id", "product_uuid")];

/// Reads a host of a kind and refuses what a sound one would not have said.
fn check(system: &str, directory: &Path, root: &Root, what: &dyn Debug) {
    for (signal, values) in believed(&read_all(root)) {
        let is_absent = |path| fs::metadata(directory.join(path)).is_err();
        let stands_in = STAND_INS.iter().any(|(path, of)| *of == signal && is_absent(path));
        let made_up = !stands_in && !values.is_subset(&SOUND[system][signal]);
        assert!(!made_up, "{system}, {signal}: {values:?} of {what:?}");
    }
}

#[test]
fn the_readers_are_watched_where_they_read() {
    for place in [
        "etc/machine-id",
        "proc/50/environ",
        "proc/50/fd",
        "proc/net/tcp",
        "sys/class/kfd/kfd/topology/nodes/1/properties",
        "sys/class/net/e/device/driver",
        "run/log/journal/m/system.journal",
        "Users/a/.ollama/logs/server.log",
        "tropa/windows/smbios",
    ] {
        assert!(TOUCHED.iter().any(|path| path == place), "{place} is not read: {:#?}", *TOUCHED);
    }
    assert!(TOUCHED.len() > 60, "{:#?}", *TOUCHED);
}

/// Each place alone, with each kind of garbage.
#[test]
fn garbage_in_one_place_is_a_reading_and_makes_nothing_up() {
    for (number, path) in TOUCHED.iter().enumerate() {
        let system = SYSTEMS[number % SYSTEMS.len()];
        let (directory, root) = host(system);
        for garbage in KINDS {
            put(directory.path(), path, garbage);
            check(system, directory.path(), &root, &(path, garbage));
        }
    }
}

#[test]
fn bare_metal_is_never_believed_from_a_host_with_a_sign_that_cannot_be_read() {
    for path in ["proc/cpuinfo", "proc/version", "proc/sys/kernel/osrelease", "sys/class/dmi/id/sys_vendor"] {
        for garbage in [Garbage::Binary, Garbage::Huge, Garbage::Directory, Garbage::Pipe] {
            let (directory, root) = host("linux");
            assert_eq!(read_all(&root).hypervisor, Hypervisor::None);
            put(directory.path(), path, garbage);
            assert_eq!(read_all(&root).hypervisor, Hypervisor::Unknown, "{path}: {garbage:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn garbage_in_many_places_makes_nothing_up(
        places in prop::collection::vec((any::<Index>(), select(KINDS.to_vec())), 1..24),
        system in select(SYSTEMS.to_vec()),
    ) {
        let (directory, root) = host(system);
        let places: Vec<(&String, Garbage)> =
            places.into_iter().map(|(at, garbage)| (at.get(&TOUCHED), garbage)).collect();
        for (path, garbage) in &places {
            put(directory.path(), path, *garbage);
        }
        check(system, directory.path(), &root, &places);
    }
}
