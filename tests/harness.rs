//! A mesh of real programs on this machine: doubles, agents and coordinators, each a process with a home of its own.
//!
//! A [`World`] is a directory: every program of a test finds its state, its configuration and its neighbours below
//! it and nowhere else, so tests run side by side. Nothing sleeps: every wait has a condition and a limit.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::ollama_double::Witness;

/// A program that is not ready by then is broken: debug builds on a loaded machine of two cores need a second.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Where the programs of the tests are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `tropa`.
    pub tropa: PathBuf,
    /// `tropa-agent`.
    pub agent: PathBuf,
    /// `ollama-double`.
    pub double: PathBuf,
}

/// One test's world.
#[derive(Debug)]
pub struct World {
    programs: Programs,
    dir: TempDir,
    env: Vec<(String, OsString)>,
}

/// Hardware that an operator declares: what makes agents on one machine show as several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hardware {
    /// The machine's own.
    This,
    /// A machine of this number, different from every other number's.
    Declared(u8),
}

/// A program that runs; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// Where it answers.
    pub address: SocketAddr,
    log: PathBuf,
}

impl World {
    /// Starts with nothing.
    ///
    /// # Errors
    /// When no directory can be made.
    pub fn new(programs: Programs) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("tropa").tempdir().context("making a directory")?;
        for name in ["home", "run", "devices", "lanes"] {
            let path = dir.path().join(name);
            fs::create_dir(&path)?;
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        }
        Ok(Self { programs, dir, env: Vec::new() })
    }

    /// A path below the world's directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Gives a variable to every program that starts from now on, but the doubles.
    pub fn set_env(&mut self, name: &str, value: impl Into<OsString>) {
        self.env.push((name.to_owned(), value.into()));
    }

    /// Writes a file and gives its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// Starts a double that works on a device; doubles that name one device slow each other, and the witness sees
    /// them.
    ///
    /// # Errors
    /// When it does not start.
    pub fn double(&self, device: &str, more: &[&str]) -> Result<Running> {
        let mut command = Command::new(&self.programs.double);
        command.args(["--device", device, "--device-dir"]).arg(self.path("devices"));
        command.args(["--version", "0.24.0"]);
        if !more.contains(&"--model") {
            command.args(["--model", "tiny:latest"]);
        }
        command.args(more);
        self.start(command, &format!("double-{device}"))
    }

    /// Starts an agent beside an install.
    ///
    /// # Errors
    /// When it does not start.
    pub fn agent(
        &self,
        label: &str,
        ollama: SocketAddr,
        hardware: Hardware,
        more: &[&str],
    ) -> Result<Running> {
        let mut place = Vec::new();
        let lanes = if let Hardware::Declared(number) = hardware {
            let root = self.path(&format!("host-{number}"));
            declare(&root, number)?;
            place.extend(["--evidence-root".to_owned(), root.display().to_string()]);
            self.path(&format!("lanes-{number}"))
        } else {
            self.path("lanes")
        };
        place.extend(["--lane-lock-dir".to_owned(), lanes.display().to_string()]);
        place.extend(more.iter().map(|argument| (*argument).to_owned()));
        let place: Vec<&str> = place.iter().map(String::as_str).collect();
        self.agent_on(label, ollama, &place)
    }

    /// Starts an agent beside an install, on hardware and with locks that the arguments name.
    ///
    /// # Errors
    /// When it does not start.
    pub fn agent_on(&self, label: &str, ollama: SocketAddr, more: &[&str]) -> Result<Running> {
        let mut command = Command::new(&self.programs.agent);
        self.at_home(&mut command);
        command.arg("--ollama").arg(format!("http://{ollama}"));
        command.args(["--listen", "127.0.0.1:0", "--label", label]);
        if !more.contains(&"--state-dir") {
            command.arg("--state-dir").arg(self.path(&format!("state-{label}")));
        }
        command.args(more);
        self.start(command, &format!("agent-{label}"))
    }

    /// A `tropa` command of this world, ready to be run.
    #[must_use]
    pub fn tropa(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.tropa);
        self.at_home(&mut command);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// A `tropa-agent` command of this world, ready to be run.
    #[must_use]
    pub fn agent_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.agent);
        self.at_home(&mut command);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a `tropa` command to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        self.tropa(arguments).output().context("running tropa")
    }

    /// What the doubles saw.
    ///
    /// # Errors
    /// When their book cannot be read.
    pub fn witness(&self) -> Result<Witness> {
        Witness::read(&self.path("devices")).context("reading what the doubles saw")
    }

    fn at_home(&self, command: &mut Command) {
        let keep = ["PATH", "RUST_BACKTRACE", "TMPDIR"];
        let kept: Vec<(&str, OsString)> =
            keep.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))).collect();
        command.env_clear().envs(kept);
        command.env("HOME", self.path("home"));
        command.env("XDG_RUNTIME_DIR", self.path("run"));
        command.env("TROPA_RUNTIME_DIR", self.path("run"));
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
    }

    /// Starts a program and waits for its line `listening <address>`.
    fn start(&self, mut command: Command, name: &str) -> Result<Running> {
        let log = self.path(&format!("{name}.log"));
        let stderr = fs::OpenOptions::new().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
        let stdout = child.stdout.take().context("a pipe")?;
        let (found, address) = mpsc::sync_channel(1);
        // Ends with the program: reads on, so that it never blocks on a full pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(address) = line.strip_prefix("listening ").and_then(|text| text.parse().ok()) {
                    let _ = found.try_send(address);
                }
            }
        });
        match address.recv_timeout(READY_WITHIN) {
            Ok(address) => Ok(Running { child, address, log }),
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                bail!("{name} did not start: {}", fs::read_to_string(&log).unwrap_or_default());
            }
        }
    }
}

impl Running {
    /// Ends it at once, as `kill -9` does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end, waits, and gives its exit code.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn terminate(&mut self) -> Result<Option<i32>> {
        self.signal(Signal::TERM)?;
        Ok(self.child.wait()?.code())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(pid, signal).context("sending a signal")
    }

    /// Says whether it runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to stderr.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until something holds, and says what did not.
///
/// # Errors
/// When it does not hold within a minute.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let (_never, clock) = mpsc::channel::<()>();
    for _ in 0..6_000 {
        if holds() {
            return Ok(());
        }
        // A wait on a channel that nobody sends to: the pause between two looks.
        let _ = clock.recv_timeout(Duration::from_millis(10));
    }
    bail!("waited a minute in vain: {what}")
}

/// Copies a directory whose program is alive, as it is: again, where a file was renamed meanwhile.
///
/// # Errors
/// When that does not succeed within a minute.
pub fn copy_of_live(from: &Path, to: &Path) -> Result<()> {
    let copied = || {
        let _ = fs::remove_dir_all(to);
        Command::new("cp").arg("-a").args([from, to]).output().is_ok_and(|cp| cp.status.success())
    };
    wait_until(&format!("{} is copied whole to {}", from.display(), to.display()), copied)
}

/// Reads result lines.
///
/// # Errors
/// When one is no JSON object.
pub fn results(text: &str) -> Result<Vec<Value>> {
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("reading {line}"))).collect()
}

/// Writes the evidence of a declared machine: bare metal, with ids of its own.
///
/// # Errors
/// When it cannot be written.
pub fn declare(root: &Path, number: u8) -> Result<()> {
    let id = format!("{number:02x}").repeat(16);
    let uuid = format!("{}-{}-4{}-8{}-{}", &id[..8], &id[8..12], &id[13..16], &id[17..20], &id[20..32]);
    let files = [
        ("proc/sys/kernel/random/boot_id", format!("{uuid}\n")),
        ("proc/version", "Linux version 6.1.0\n".to_owned()),
        ("proc/cpuinfo", "processor\t: 0\nmodel name\t: AMD Ryzen 9 7950X\nflags\t\t: fpu\n\n".to_owned()),
        ("proc/meminfo", "MemTotal:       33554432 kB\n".to_owned()),
        ("proc/self/status", "Cpus_allowed_list:\t0\nMems_allowed_list:\t0\n".to_owned()),
        ("etc/machine-id", format!("{id}\n")),
        ("sys/class/dmi/id/product_uuid", format!("{uuid}\n")),
        ("sys/class/dmi/id/sys_vendor", "ASUS\n".to_owned()),
        ("sys/class/dmi/id/product_name", "Home Box\n".to_owned()),
        ("sys/class/dmi/id/board_vendor", "ASUS\n".to_owned()),
        ("sys/devices/system/node/node0/cpulist", "0\n".to_owned()),
        (
            "tropa/epoch_ns",
            format!("{}\n", 1_790_000_000_000_000_000_i64 + i64::from(number) * 1_000_000_000),
        ),
    ];
    for (file, content) in files {
        let path = root.join(file);
        fs::create_dir_all(path.parent().context("a directory")?)?;
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
