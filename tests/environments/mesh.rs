//! The mesh of one test: an install and its agent in each place, a coordinator that looks, and what it must find.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tropa_tests::{harness::results, ollama_double::Witness};

use super::place::{Place, Program};
use crate::jobs::said;

/// Prompts of the job: enough that two installs that may overlap do.
const PROMPTS: usize = 6;

/// How long a coordinator waits for agents that were named: one in an emulated machine takes seconds.
const WAIT: &str = "60";

/// What the places of a test share: a directory with the programs, under one path in every place.
#[derive(Debug)]
pub(crate) struct Ground {
    dir: TempDir,
}

/// The mesh of a test.
#[derive(Debug)]
pub(crate) struct Mesh<'a> {
    ground: &'a Ground,
    coordinator: Place,
    peers: Vec<String>,
    programs: Vec<Program>,
}

/// What an install and its agent have that others have not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Special<'a> {
    /// The port of the install; none: any.
    pub(crate) port: u16,
    /// Where the agent's state is; none: in its home.
    pub(crate) state: Option<&'a Path>,
    /// More arguments for the agent.
    pub(crate) agent: &'a [&'a str],
}

/// What `tropa machines --json` said.
#[derive(Debug)]
pub(crate) struct Found {
    /// Installs that answered.
    pub(crate) installs: usize,
    /// Machines.
    pub(crate) machines: usize,
    /// Kernels of all machines.
    pub(crate) kernels: usize,
    /// Installs that may work at the same time.
    pub(crate) at_once: usize,
    /// Codes of the warnings.
    pub(crate) warnings: BTreeSet<String>,
    /// The whole answer.
    pub(crate) report: Value,
    /// What was said on the way.
    story: String,
}

impl Ground {
    /// Makes the directory.
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("tropa-env").tempdir().unwrap();
        let ground = Self { dir };
        open_to(ground.path(), 0o755);
        for (name, mode) in [("bin", 0o755), ("devices", 0o777), ("logs", 0o755)] {
            fs::create_dir(ground.join(name)).unwrap();
            open_to(&ground.join(name), mode);
        }
        // Whoever begins writes it, and everybody must be able to.
        fs::write(ground.join("devices/timeline.jsonl"), "").unwrap();
        open_to(&ground.join("devices/timeline.jsonl"), 0o666);
        for (name, built) in [
            ("tropa", env!("CARGO_BIN_EXE_tropa-under-test")),
            ("tropa-agent", env!("CARGO_BIN_EXE_tropa-agent-under-test")),
            ("ollama-double", env!("CARGO_BIN_EXE_ollama-double")),
        ] {
            let program = ground.join("bin").join(name);
            // Costs nothing where the directories lie on one file system.
            if fs::hard_link(built, &program).is_err() {
                fs::copy(built, &program).unwrap();
            }
        }
        let secret = ground
            .program("tropa", &Place::here("setup"), "setup")
            .args(["mesh", "new"])
            .arg(ground.secret())
            .output();
        let secret = secret.unwrap();
        assert!(secret.status.success(), "{}", said(&secret));
        ground
    }

    /// The directory: one path, inside and outside of every place.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path below it.
    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// The mesh secret, as root reads it.
    pub(crate) fn secret(&self) -> PathBuf {
        self.join("mesh.secret")
    }

    /// A program in a place; `home` names the directory that it has to itself.
    pub(crate) fn program(&self, program: &str, place: &Place, home: &str) -> Command {
        place.command(&self.join("bin").join(program), &self.home(home, place))
    }

    /// The agent's evidence as it shows it in a place, raw values included.
    pub(crate) fn evidence(&self, place: &Place) -> Value {
        let home = self.home(&format!("evidence-{}", place.label), place);
        let output = place
            .agent_command(&self.join("bin/tropa-agent"), &home)
            .args(["evidence", "--json", "--show-raw"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn home(&self, name: &str, place: &Place) -> PathBuf {
        let home = self.join(format!("home-{name}"));
        if !home.exists() {
            fs::create_dir(&home).unwrap();
            open_to(&home, 0o700);
            give(&home, place);
        }
        home
    }
}

impl<'a> Mesh<'a> {
    /// A mesh whose coordinator sits in this place.
    pub(crate) fn new(ground: &'a Ground, coordinator: Place) -> Self {
        Self { ground, coordinator, peers: Vec::new(), programs: Vec::new() }
    }

    /// Starts an install and its agent in a place. All installs work on one device.
    pub(crate) fn install(&mut self, place: &Place) {
        self.special(place, Special::default());
    }

    /// The same, with something special.
    pub(crate) fn special(&mut self, place: &Place, special: Special<'_>) {
        let ground = self.ground;
        let label = &place.label;
        let mut double = ground.program("ollama-double", place, &format!("double-{label}"));
        double.args(["--device", "cpu", "--device-dir"]).arg(ground.join("devices"));
        double.args(["--version", "0.24.0", "--model", "tiny:latest", "--name", label]);
        double.arg("--listen").arg(format!("127.0.0.1:{}", special.port));
        let ollama = self.start(double, &format!("double-{label}"));

        let home = ground.home(label, place);
        // A secret belongs to who reads it.
        let secret = home.join("mesh.secret");
        fs::copy(ground.secret(), &secret).unwrap();
        give(&secret, place);
        let mut agent = place.agent_command(&ground.join("bin/tropa-agent"), &home);
        agent.arg("--ollama").arg(format!("http://{ollama}"));
        agent.arg("--listen").arg(format!("{}:0", place.address));
        agent.arg("--mesh-secret-file").arg(secret);
        agent.args(["--no-mdns", "--label", label, "--state-dir"]);
        agent.arg(special.state.map_or_else(|| home.join("state"), Path::to_owned));
        // Each has locks of its own, so nothing but the coordinator keeps two installs apart.
        agent.arg("--lane-lock-dir").arg(home.join("lanes"));
        agent.args(special.agent);
        let address = self.start(agent, &format!("agent-{label}"));
        self.peers.push(address);
    }

    /// Names an agent that was started otherwise.
    pub(crate) fn peer(&mut self, address: String) {
        self.peers.push(address);
    }

    /// Lets the coordinator look.
    pub(crate) fn look(&self, more: &[&str]) -> Found {
        let output = self.tropa(&["machines", "--json", "--why"], more);
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", self.story(&output)));
        let machines = report["machines"].as_array().unwrap();
        let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
        let warnings = report["warnings"].as_array().unwrap();
        Found {
            installs: number(&report["installs"]),
            machines: machines.len(),
            kernels: machines.iter().map(|machine| number(&machine["kernels"])).sum(),
            at_once: number(&report["at_once"]),
            warnings: warnings.iter().map(|warning| warning["code"].as_str().unwrap().to_owned()).collect(),
            story: self.story(&output),
            report,
        }
    }

    /// Runs a job: every prompt must get its answer, and no two installs may work on the device at one time.
    pub(crate) fn work(&self, more: &[&str]) {
        let prompts: String = (0..PROMPTS).map(|n| format!("prompt {n} about a llama\n")).collect();
        let input = self.ground.join("prompts.txt");
        fs::write(&input, prompts).unwrap();
        let output = self.tropa(&["run", input.to_str().unwrap()], more);
        assert_eq!(output.status.code(), Some(0), "{}", self.story(&output));
        let rows = results(&String::from_utf8_lossy(&output.stdout)).unwrap();
        let good = rows
            .iter()
            .filter(|row| row["error"].is_null() && !row["text"].as_str().unwrap_or("").is_empty());
        assert_eq!(good.count(), PROMPTS, "{}", self.story(&output));
        let witness = Witness::read(&self.ground.join("devices")).unwrap();
        assert_eq!(witness.overlap("cpu"), Duration::ZERO, "two installs worked on one device at once");
    }

    fn tropa(&self, arguments: &[&str], more: &[&str]) -> Output {
        let mut command = self.ground.program("tropa", &self.coordinator, "coordinator");
        command
            .args(arguments)
            .args(["--no-mdns", "--wait", WAIT, "--mesh-secret-file"])
            .arg(self.ground.secret());
        for peer in &self.peers {
            command.args(["--peer", peer]);
        }
        command.args(more).output().unwrap()
    }

    fn start(&mut self, command: Command, name: &str) -> String {
        let log = self.ground.join("logs").join(name);
        let program = Program::start(command, name, &log);
        let address = program.says("listening ", &log);
        self.programs.push(program);
        address
    }

    /// What a command printed and what all programs said, for a message.
    fn story(&self, output: &Output) -> String {
        let mut story = said(output);
        for log in fs::read_dir(self.ground.join("logs")).unwrap().flatten() {
            let text = fs::read_to_string(log.path()).unwrap_or_default();
            let last: Vec<&str> = text.lines().rev().take(20).collect();
            story += &format!("\n--- {}\n", log.file_name().display());
            last.iter().rev().for_each(|line| story += &format!("{line}\n"));
        }
        story
    }
}

impl Found {
    /// Asserts the numbers that identity is about, and prints them.
    #[expect(clippy::print_stdout, reason = "the output of a test")]
    pub(crate) fn expect(
        &self,
        environment: &str,
        installs: usize,
        machines: usize,
        at_once: usize,
        warnings: &[&str],
    ) {
        println!(
            "{environment}: {} installs, machines expected {machines} found {}, {} kernels, {} at a time, warnings {:?}",
            self.installs, self.machines, self.kernels, self.at_once, self.warnings
        );
        let expected: BTreeSet<String> = warnings.iter().map(|&code| code.to_owned()).collect();
        let found = (self.installs, self.machines, self.at_once, &self.warnings);
        assert_eq!(found, (installs, machines, at_once, &expected), "{environment}: {}", self.story);
    }
}

/// Sets the mode whatever the umask is.
fn open_to(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Gives a file to who runs in a place.
fn give(path: &Path, place: &Place) {
    if let Some(user) = place.user {
        chown(path, Some(user), Some(user)).unwrap();
    }
}
