//! Containers of systemd-nspawn and of LXC: both give each container a boot id of its own.
//!
//! Their root is a handful of directories. The machine's own `/usr` is mounted into it, read-only, so nothing has to be
//! downloaded or built, and what runs there is what cargo made. All roots carry one machine-id, as copies of one
//! image do.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::{
    mesh::Ground,
    network::Bridge,
    place::{Place, Program, ran, run, unique},
};

/// The machine-id of the image that all containers are copies of.
const MACHINE_ID: &str = "5f0c3f1be7c94b8f8f6d0a6f3a2b1c4d\n";

/// What a container runs for as long as it lives.
pub(crate) const IDLE: [&str; 3] = ["/bin/sh", "-c", "echo ready; exec sleep infinity"];

/// A container of systemd-nspawn; gone when dropped.
#[derive(Debug)]
pub(crate) struct Nspawn {
    _process: Program,
    /// How to run something in it.
    pub(crate) place: Place,
}

/// A container of LXC; gone when dropped.
#[derive(Debug)]
pub(crate) struct Lxc {
    name: String,
    containers: PathBuf,
    /// How to run something in it.
    pub(crate) place: Place,
}

/// Makes a root directory without programs; [`mounts`] fills it.
pub(crate) fn root(path: &Path) {
    for directory in ["etc", "proc", "sys", "dev", "tmp", "run", "var", "usr", "root"] {
        fs::create_dir_all(path.join(directory)).unwrap();
    }
    for (file, text) in [
        ("etc/machine-id", MACHINE_ID),
        ("etc/os-release", "ID=tropa-test\n"),
        ("etc/passwd", "root:x:0:0::/root:/bin/sh\n"),
        ("etc/group", "root:x:0:\n"),
    ] {
        fs::write(path.join(file), text).unwrap();
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        let at = path.join(name);
        match fs::read_link(Path::new("/").join(name)) {
            Ok(target) => symlink(target, at).unwrap(),
            Err(_) => fs::create_dir_all(at).unwrap(),
        }
    }
}

/// The directories of the machine that fill a root: `/usr`, and on systems that keep them apart `/bin` and `/lib`.
pub(crate) fn mounts() -> Vec<&'static str> {
    let apart = |path: &&str| fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    ["/usr", "/bin", "/sbin", "/lib", "/lib64"].into_iter().filter(apart).collect()
}

impl Nspawn {
    /// Starts one and connects it.
    pub(crate) fn start(ground: &Ground, bridge: &Bridge, label: &str) -> Self {
        let name = unique("ns");
        let directory = ground.join(&name);
        root(&directory);
        let mut command = std::process::Command::new("systemd-nspawn");
        // `--keep-unit` is needed where systemd is not the init.
        command.args(["-q", "--register=no", "--keep-unit", "--private-network", "-a", "-M", &name, "-D"]);
        command.arg(&directory);
        for mount in mounts() {
            command.arg(format!("--bind-ro={mount}"));
        }
        command.arg(format!("--bind={0}:{0}", ground.path().display())).args(IDLE);
        let log = ground.join("logs").join(&name);
        let process = Program::start(command, &name, &log).gently();
        process.says("ready", &log);
        let init = child_of(process.pid());
        let address = bridge.connect_process(init);
        let target = init.to_string();
        let enter = ["nsenter", "--all", "--root", "--wd", "--target", &target];
        Self { _process: process, place: Place::entered(label, address, &enter) }
    }
}

impl Lxc {
    /// Starts one and connects it.
    pub(crate) fn start(ground: &Ground, bridge: &Bridge, label: &str) -> Self {
        let name = unique("lxc");
        let containers = ground.join("lxc");
        let directory = ground.join(format!("{name}.root"));
        root(&directory);
        fs::create_dir_all(containers.join(&name)).unwrap();
        let mut config = format!(
            "lxc.uts.name = {name}\nlxc.rootfs.path = dir:{}\nlxc.net.0.type = empty\n\
             lxc.apparmor.profile = unconfined\nlxc.mount.auto = proc:mixed sys:ro\n\
             lxc.init.cmd = /usr/bin/sleep infinity\n",
            directory.display()
        );
        let own = ground.path().to_str().unwrap();
        for (mount, options) in mounts().into_iter().map(|mount| (mount, "rbind,ro")).chain([(own, "bind")]) {
            let inside = mount.trim_start_matches('/');
            config += &format!("lxc.mount.entry = {mount} {inside} none {options},create=dir 0 0\n");
        }
        fs::write(containers.join(&name).join("config"), config).unwrap();
        let at = containers.to_str().unwrap().to_owned();
        let log = ground.join("logs").join(&name);
        // From here on something may run, so the guard comes first.
        let mut made = Self { name: name.clone(), containers, place: Place::here(label) };
        ran(&["lxc-start", "-P", &at, "-n", &name, "-d", "-o", log.to_str().unwrap()]);
        ran(&["lxc-wait", "-P", &at, "-n", &name, "-s", "RUNNING", "-t", "60"]);
        let init: u32 = ran(&["lxc-info", "-P", &at, "-n", &name, "-p", "-H"]).parse().unwrap();
        let address = bridge.connect_process(init);
        made.place = Place::entered(label, address, &["lxc-attach", "-P", &at, "-n", &name, "--"]);
        made
    }
}

impl Drop for Lxc {
    fn drop(&mut self) {
        let _ =
            run(&["lxc-stop", "-k", "-P", self.containers.to_str().unwrap_or_default(), "-n", &self.name]);
    }
}

/// The only child of a process: the init of the container that it is the monitor of.
fn child_of(process: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap();
    children.split_whitespace().next().unwrap_or_else(|| panic!("{process} has no child")).parse().unwrap()
}
