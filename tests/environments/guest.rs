//! A virtual machine: QEMU without hardware help, a kernel from a package, and a root in memory that holds the
//! programs, the libraries that they load, and an init that starts an install and its agent.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use super::{
    mesh::Ground,
    place::{Place, Program, READY_WITHIN, ran, unique},
};

/// Names the folder with the guest's kernel; `tests/environments/guest_kernel.sh` prints it.
pub(crate) const KERNEL: &str = "TROPA_GUEST_KERNEL";

/// The port of the guest's agent, in the guest and where QEMU listens for it.
const PORT: u16 = 11634;

/// The modules of its network interface, each after those that it needs.
const MODULES: [&str; 8] = [
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];

/// Says on the console what happens; the test waits for the two addresses.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root XDG_RUNTIME_DIR=/run TROPA_RUNTIME_DIR=/run
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module; done
until [ -e /sys/class/net/eth0 ]; do sleep 1; done
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
ollama-double --listen 127.0.0.1:11434 --version 0.24.0 --model tiny:latest &
exec tropa-agent --listen 0.0.0.0:11634 --mesh-secret-file /root/mesh.secret --no-mdns --label guest
"#;

/// A guest that runs; gone when dropped.
#[derive(Debug)]
pub(crate) struct Guest {
    _qemu: Program,
    /// Where its agent is reached.
    pub(crate) agent: String,
}

impl Guest {
    /// Starts one in a place of the host, with this SMBIOS UUID, or without a valid one.
    pub(crate) fn start(ground: &Ground, host: &Place, kernel: &Path, uuid: Option<&str>) -> Self {
        let name = unique("vm");
        let image = initrd(ground, kernel, &name);
        let console = ground.join("logs").join(format!("{name}.console"));
        let forward = format!("user,id=n0,restrict=on,hostfwd=tcp:{}:{PORT}-:{PORT}", host.address);
        let mut smbios = "type=1,manufacturer=TestVendor,product=TestBox".to_owned();
        if let Some(uuid) = uuid {
            smbios += &format!(",uuid={uuid}");
        }
        let mut command = Command::new(&host.enter[0]);
        command.args(&host.enter[1..]).arg("qemu-system-x86_64");
        // Said, not left to QEMU: /dev/kvm may open and then hang.
        command.args(["-accel", "tcg", "-cpu", "max", "-m", "768", "-display", "none", "-no-reboot"]);
        command.args([
            "-monitor",
            "none",
            "-netdev",
            &forward,
            "-device",
            "virtio-net-pci,netdev=n0,romfile=",
        ]);
        command.args(["-append", "console=ttyS0 quiet panic=-1", "-smbios", &smbios, "-kernel"]);
        command.arg(vmlinuz(kernel)).arg("-initrd").arg(image);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        let qemu = Program::start(command, &name, &ground.join("logs").join(&name));
        let mut guest = Self { _qemu: qemu, agent: format!("{}:{PORT}", host.address) };
        guest.wait(&console);
        guest
    }

    /// Waits until both programs have said where they listen.
    fn wait(&mut self, console: &Path) {
        let (_never, clock) = mpsc::channel::<()>();
        let step = Duration::from_millis(100);
        let mut waited = Duration::ZERO;
        loop {
            let text = String::from_utf8_lossy(&fs::read(console).unwrap_or_default()).into_owned();
            if text.matches("listening ").count() >= 2 {
                return;
            }
            assert!(waited < READY_WITHIN && self._qemu.runs(), "the guest did not come up: {text}");
            waited += step;
            // The pause between two looks.
            let _ = clock.recv_timeout(step);
        }
    }
}

/// Where the kernel's modules and image lie; the reason where something is missing.
///
/// # Errors
/// Says what is missing and how to get it.
pub(crate) fn kernel() -> Result<PathBuf, String> {
    let folder = std::env::var_os(KERNEL).filter(|folder| !folder.is_empty());
    folder.map(PathBuf::from).ok_or_else(|| {
        format!("no kernel for a guest: {KERNEL} is not set (tests/environments/guest_kernel.sh prints it)")
    })
}

fn vmlinuz(kernel: &Path) -> PathBuf {
    find(&kernel.join("boot"), &|name| name.starts_with("vmlinuz-"))
        .expect("boot/vmlinuz-* in the kernel's folder")
}

/// Makes the root of a guest.
fn initrd(ground: &Ground, kernel: &Path, name: &str) -> PathBuf {
    let tree = ground.join(format!("{name}.root"));
    for directory in ["bin", "modules", "proc", "sys", "dev", "root", "run", "tmp"] {
        fs::create_dir_all(tree.join(directory)).unwrap();
    }
    let busybox = ran(&["sh", "-c", "command -v busybox"]);
    fs::copy(busybox, tree.join("bin/busybox")).unwrap();
    for program in ["tropa-agent", "ollama-double"] {
        let (from, to) = (ground.join("bin").join(program), tree.join("bin").join(program));
        // Without what a debugger needs it is a fifth of the size, and all of it lies in the guest's memory.
        ran(&["strip", "-o", to.to_str().unwrap(), from.to_str().unwrap()]);
        for library in libraries(&from) {
            let to = tree.join(library.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(&library, to).unwrap();
        }
    }
    let mut order = Vec::new();
    for module in MODULES {
        let file = format!("{module}.ko");
        // What is built into this kernel is no file.
        if let Some(path) = find(&kernel.join("lib/modules"), &|name| name == file) {
            fs::copy(path, tree.join("modules").join(&file)).unwrap();
            order.push(file);
        }
    }
    fs::write(tree.join("modules/order"), order.join("\n")).unwrap();
    fs::copy(ground.secret(), tree.join("root/mesh.secret")).unwrap();
    fs::write(tree.join("init"), INIT).unwrap();
    ran(&["chmod", "755", tree.join("init").to_str().unwrap()]);
    let image = ground.join(format!("{name}.cpio"));
    let archive = "find . | busybox cpio -o -H newc";
    let status = Command::new("sh")
        .args(["-c", archive])
        .current_dir(&tree)
        .stdin(Stdio::null())
        .stdout(fs::File::create(&image).unwrap())
        .stderr(Stdio::null())
        .status();
    assert!(status.unwrap().success(), "{archive}");
    image
}

/// What the loader will look for, and the loader itself; nothing for a static program.
fn libraries(program: &Path) -> BTreeSet<String> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect()
}

/// The first file below a folder whose name fits, in the order of names.
fn find(folder: &Path, fits: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries.into_iter().find_map(|path| {
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
            return find(&path, fits);
        }
        path.file_name().and_then(|name| name.to_str()).is_some_and(fits).then_some(path)
    })
}
