//! A mesh on a bridge: every agent with its double in a network namespace of its own, the coordinator in the bridge's.
//!
//! Nothing of it is in the machine's own namespace, and all of it goes with the rig. Programs are entered with
//! `nsenter`, which becomes the program, so signals reach it.

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tropa_tests::{
    harness::{declare, results},
    namespace::{Namespace, ran},
    ollama_double::Witness,
    skipped,
};

use super::book::Book;

/// A program that does not do what it must by then is broken, on a loaded machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(150);

/// The bridge, its hosts, and what runs there.
pub(crate) struct Rig {
    dir: tempfile::TempDir,
    /// The bridge's namespace, then one for each host.
    spaces: Vec<Namespace>,
    /// Where agents listen.
    peers: RefCell<Vec<String>>,
}

/// A program; killed when dropped.
pub(crate) struct Program(Child);

/// A job under way.
pub(crate) struct Job {
    program: Program,
    out: PathBuf,
    log: PathBuf,
}

impl Rig {
    /// Makes a bridge with so many hosts; `None` where that cannot be here, which is said.
    pub(crate) fn new(hosts: usize) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skipped("no network namespaces: not root");
            return None;
        }
        match Self::made(hosts) {
            Ok(rig) => Some(rig),
            Err(why) => {
                skipped(&format!("no network namespaces: {why}"));
                None
            }
        }
    }

    fn made(hosts: usize) -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("tropa-fault").tempdir().map_err(|e| e.to_string())?;
        let spaces = (0..=hosts).map(|_| Namespace::new()).collect::<Result<Vec<_>, _>>()?;
        let bridge = spaces[0].name();
        ran(&["ip", "-n", bridge, "link", "add", "br0", "type", "bridge"])?;
        ran(&["ip", "-n", bridge, "link", "set", "br0", "up"])?;
        ran(&["ip", "-n", bridge, "addr", "add", "10.96.0.1/24", "dev", "br0"])?;
        for (at, space) in spaces.iter().enumerate().skip(1) {
            let (name, port) = (space.name(), format!("p{at}"));
            let made = [
                "ip", "-n", bridge, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns",
                name,
            ];
            ran(&made)?;
            ran(&["ip", "-n", bridge, "link", "set", &port, "master", "br0", "up"])?;
            ran(&["ip", "-n", name, "addr", "add", &format!("{}/24", address(at)), "dev", "eth0"])?;
            ran(&["ip", "-n", name, "link", "set", "eth0", "up"])?;
        }
        let rig = Self { dir, spaces, peers: RefCell::default() };
        for name in ["home", "devices", "run"] {
            fs::create_dir(rig.path(name)).map_err(|error| error.to_string())?;
        }
        let made =
            rig.command(0, Path::new(env!("CARGO_BIN_EXE_tropa-under-test"))).args(["mesh", "new"]).output();
        let made = made.map_err(|error| error.to_string())?;
        assert!(made.status.success(), "{made:?}");
        Ok(rig)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where agents on the hardware of this number have their locks.
    fn lanes(&self, hardware: usize) -> PathBuf {
        self.path(&format!("lanes-{hardware}"))
    }

    /// A program at a host; 0 is the coordinator's.
    fn command(&self, host: usize, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(self.spaces[host].entrance()).arg(program);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", self.path("home")).env("TROPA_EVENTS", self.path("events"));
        let run = self.path(if host == 0 { "run".to_owned() } else { format!("run-{host}") }.as_str());
        command.env("XDG_RUNTIME_DIR", &run).env("TROPA_RUNTIME_DIR", run).stdin(Stdio::null());
        command
    }

    fn start(&self, mut command: Command, log: &str, waits_for: &str) -> Program {
        let (out, log) = (self.path(&format!("{log}.out")), self.path(&format!("{log}.log")));
        let append = |path: &Path| fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        fs::remove_file(&out).ok();
        command.stdout(append(&out)).stderr(append(&log));
        let program = Program(command.spawn().unwrap());
        until(PATIENCE, &format!("{} says {waits_for}", log.display()), || {
            fs::read_to_string(&out).is_ok_and(|text| text.contains(waits_for))
        });
        program
    }

    /// The double of a host, on a device of the host's number.
    pub(crate) fn double(&self, host: usize, more: &[&str]) -> Program {
        self.double_on(host, host, 11_434, more)
    }

    /// A double that works on the device of this number.
    pub(crate) fn double_on(&self, host: usize, device: usize, port: u16, more: &[&str]) -> Program {
        let mut command = self.command(host, Path::new(env!("CARGO_BIN_EXE_ollama-double")));
        command.args(["--listen", &format!("127.0.0.1:{port}"), "--version", "0.24.0"]);
        command.args(["--device", &format!("cpu{device}"), "--device-dir"]).arg(self.path("devices"));
        if !more.contains(&"--model") {
            command.args(["--model", "tiny:latest"]);
        }
        command.args(more);
        self.start(command, &format!("double-{host}-{port}"), "listening")
    }

    /// The agent of a host, on hardware of the host's number.
    pub(crate) fn agent(&self, host: usize) -> Program {
        self.agent_on(host, host, 11_434)
    }

    /// An agent on the hardware of this number, with its locks, beside the double at this port.
    pub(crate) fn agent_on(&self, host: usize, hardware: usize, port: u16) -> Program {
        self.agent_with(host, hardware, port, &[])
    }

    /// The same, with these variables.
    pub(crate) fn agent_with(
        &self,
        host: usize,
        hardware: usize,
        port: u16,
        env: &[(&str, &str)],
    ) -> Program {
        let mut command = self.command(host, Path::new(env!("CARGO_BIN_EXE_tropa-agent-under-test")));
        command.envs(env.iter().copied());
        self.start_agent(command, host, hardware, port)
    }

    /// The same in a mount namespace of its own, where the directory of its locks is another than everybody else's.
    pub(crate) fn agent_apart(&self, host: usize, hardware: usize, port: u16) -> Program {
        let lanes = self.lanes(hardware);
        fs::create_dir_all(&lanes).unwrap();
        let mount = format!("mount -t tmpfs -o mode=700 none {} && exec \"$@\"", lanes.display());
        let mut command = self.command(host, Path::new("unshare"));
        command.args(["--mount", "sh", "-c", &mount, "sh", env!("CARGO_BIN_EXE_tropa-agent-under-test")]);
        self.start_agent(command, host, hardware, port)
    }

    fn start_agent(&self, mut command: Command, host: usize, hardware: usize, port: u16) -> Program {
        let root = self.path(&format!("hardware-{hardware}"));
        declare(&root, u8::try_from(hardware).unwrap()).unwrap();
        fs::create_dir_all(self.path(&format!("run-{host}"))).unwrap();
        command.arg("--evidence-root").arg(root);
        command.arg("--lane-lock-dir").arg(self.lanes(hardware));
        command.arg("--state-dir").arg(self.path(&format!("state-{host}-{port}")));
        let listen = format!("{}:{}", address(host), port + 200);
        command.args(["--ollama", &format!("http://127.0.0.1:{port}"), "--listen", &listen]);
        command.args(["--label", &format!("host-{host}-{port}"), "--no-mdns", "-v"]);
        if !self.peers.borrow().contains(&listen) {
            self.peers.borrow_mut().push(listen);
        }
        self.start(command, &format!("agent-{host}-{port}"), "listening")
    }

    /// A `tropa` command at the coordinator's host, which knows every agent.
    pub(crate) fn tropa(&self, arguments: &[&str]) -> Command {
        let peers = self.peers.borrow().join(",");
        self.tropa_that_knows(&peers, arguments)
    }

    fn tropa_that_knows(&self, peers: &str, arguments: &[&str]) -> Command {
        let mut command = self.command(0, Path::new(env!("CARGO_BIN_EXE_tropa-under-test")));
        command.args(arguments).args(["--allow-declared", "--no-mdns", "--progress", "never", "-v"]);
        // Everybody is here, and on a loaded machine late to say what he has.
        command.args(["--peer", peers, "--wait", "60"]);
        command
    }

    /// A file with so many prompts.
    pub(crate) fn prompts(&self, count: usize) -> PathBuf {
        let text: String = (0..count).map(|n| format!("prompt {n} about a llama\n")).collect();
        self.file("prompts.txt", &text)
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Starts a job.
    pub(crate) fn run(&self, input: &Path, more: &[&str]) -> Job {
        self.run_to(input, "out", more, &[])
    }

    /// Starts a job among others, with an output of its own and these variables.
    pub(crate) fn run_to(&self, input: &Path, name: &str, more: &[&str], env: &[(&str, &str)]) -> Job {
        let mut command = self.tropa(&[&["run", input.to_str().unwrap()], more].concat());
        command.envs(env.iter().copied());
        self.begin_to(command, name)
    }

    /// Starts a job whose coordinator knows one agent only.
    pub(crate) fn run_beside(&self, input: &Path, name: &str, host: usize, port: u16) -> Job {
        let peer = format!("{}:{}", address(host), port + 200);
        self.begin_to(self.tropa_that_knows(&peer, &["run", input.to_str().unwrap()]), name)
    }

    /// Goes on with the only job there is.
    pub(crate) fn resume(&self, more: &[&str]) -> Job {
        self.resume_to(&self.job(), "out", more)
    }

    /// Goes on with a job that has an output of its own.
    pub(crate) fn resume_to(&self, id: &str, name: &str, more: &[&str]) -> Job {
        self.begin_to(self.tropa(&[&["resume", id], more].concat()), name)
    }

    fn begin_to(&self, mut command: Command, name: &str) -> Job {
        let out = self.path(&format!("{name}.jsonl"));
        command.arg("-o").arg(&out);
        Job { out, ..self.begin(command) }
    }

    pub(crate) fn begin(&self, mut command: Command) -> Job {
        let log = self.path("tropa.log");
        let stderr = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        command.stdout(Stdio::null()).stderr(stderr);
        Job { program: Program(command.spawn().unwrap()), out: self.path("out.jsonl"), log }
    }

    /// The id of the only job.
    pub(crate) fn job(&self) -> String {
        self.jobs().remove(0)
    }

    /// The ids of all jobs.
    pub(crate) fn jobs(&self) -> Vec<String> {
        let listed = self.tropa(&["jobs", "--json"]).output().unwrap();
        let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
        let jobs = listed["jobs"].as_array().unwrap();
        jobs.iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
    }

    /// What the programs did so far.
    pub(crate) fn book(&self) -> Book {
        Book::read(&self.path("events"))
    }

    /// What the doubles saw.
    pub(crate) fn witness(&self) -> Witness {
        Witness::read(&self.path("devices")).unwrap()
    }

    /// Runs `iptables` at a host, or says that it cannot.
    pub(crate) fn iptables(&self, host: usize, arguments: &[&str]) -> Result<(), String> {
        let enter = self.spaces[host].entrance();
        ran(&[&["nsenter", &enter, "iptables", "-w"], arguments].concat()).map(drop)
    }

    /// Nothing passes between a host and the coordinator any more: neither way, or not towards the coordinator.
    pub(crate) fn cut(&self, host: usize, both: bool) -> Result<(), String> {
        if both {
            self.iptables(host, &["-A", "INPUT", "-s", "10.96.0.1", "-j", "DROP"])?;
        }
        self.iptables(host, &["-A", "OUTPUT", "-d", "10.96.0.1", "-j", "DROP"])
    }

    pub(crate) fn heal(&self, host: usize) {
        self.iptables(host, &["-F"]).unwrap();
    }
}

impl Program {
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Its exit code, at the end that must come.
    pub(crate) fn ends(&mut self) -> Option<i32> {
        let mut code = None;
        until(PATIENCE, "a program ends", || {
            self.0.try_wait().unwrap().is_some_and(|status| {
                code = status.code();
                true
            })
        });
        code
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Job {
    pub(crate) fn kill(&mut self) {
        self.program.kill();
    }

    /// Waits for the end, and gives the exit code and the result lines.
    pub(crate) fn ends(&mut self) -> (Option<i32>, Vec<serde_json::Value>) {
        let code = self.program.ends();
        (code, results(&fs::read_to_string(&self.out).unwrap_or_default()).unwrap())
    }

    pub(crate) fn is_over(&mut self) -> bool {
        self.program.0.try_wait().unwrap().is_some()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.program.0.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn address(host: usize) -> String {
    format!("10.96.0.{}", 10 + host)
}

/// Lets time pass until a moment of the clock of the event lines: what a fault of a given length is.
pub(crate) fn pass(moment: Duration) {
    until(PATIENCE, "time passes", || super::now() >= moment);
}

/// Waits until something holds.
pub(crate) fn until(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let (_never, clock) = mpsc::channel::<()>();
    for _ in 0..limit.as_millis() / 10 {
        if holds() {
            return;
        }
        // A wait on a channel that nobody sends to: the pause between two looks.
        let _ = clock.recv_timeout(Duration::from_millis(10));
    }
    panic!("waited {limit:?} in vain: {what}");
}
