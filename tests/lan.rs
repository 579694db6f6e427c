//! Two machines on one LAN, from `tropa mesh new` to the results, with nothing named: the agents and the coordinator
//! find each other by multicast. The LAN is two network namespaces on a bridge in a third.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use tropa_tests::{
    harness::{declare, results, wait_until},
    namespace::{Namespace, ran},
    skipped,
};

/// One host: a namespace, a home, and what runs there.
struct Host {
    namespace: String,
    home: PathBuf,
    children: Vec<Child>,
}

/// The namespaces of this test, removed at its end.
struct Lan {
    spaces: Vec<Namespace>,
}

impl Lan {
    /// Makes a bridge and two hosts on it, or says why that cannot be here.
    fn new() -> Result<Self, String> {
        let spaces = (0..3).map(|_| Namespace::new()).collect::<Result<Vec<_>, _>>()?;
        let router = spaces[2].name();
        // Without snooping the bridge passes multicast on to everybody, as a plain switch does.
        ran(&["ip", "-n", router, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0"])?;
        ran(&["ip", "-n", router, "link", "set", "br0", "up"])?;
        for (at, name) in spaces.iter().map(Namespace::name).take(2).enumerate() {
            let port = format!("p{at}");
            ran(&[
                "ip", "link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", &port, "netns",
                router,
            ])?;
            ran(&["ip", "-n", router, "link", "set", &port, "master", "br0", "up"])?;
            ran(&["ip", "-n", name, "link", "set", "eth0", "up"])?;
            ran(&["ip", "-n", name, "addr", "add", &format!("10.97.0.{}/24", 10 + at), "dev", "eth0"])?;
        }
        Ok(Self { spaces })
    }
}

impl Host {
    fn new(lan: &Lan, at: usize, home: PathBuf) -> Self {
        for name in ["home", "run"] {
            fs::create_dir_all(home.join(name)).unwrap();
        }
        Self { namespace: lan.spaces[at].name().to_owned(), home, children: Vec::new() }
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]).args(arguments);
        command.env("HOME", self.home.join("home")).env("XDG_RUNTIME_DIR", self.home.join("run"));
        command.env("TROPA_RUNTIME_DIR", self.home.join("run")).stdin(Stdio::null());
        command
    }

    fn start(&mut self, program: &str, arguments: &[&str]) {
        let log = fs::File::create(self.home.join(format!("{}.log", self.children.len()))).unwrap();
        let child = self.command(program, arguments).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.children.push(child);
    }

    /// Starts an install and the agent beside it, which is told nothing but its evidence.
    fn install(&mut self, number: u8, listens: &str) {
        self.start(
            env!("CARGO_BIN_EXE_ollama-double"),
            &["--model", "tiny:latest", "--listen", &format!("{listens}:11434")],
        );
        let root = self.home.join("host");
        declare(&root, number).unwrap();
        let locks = self.home.join("lanes");
        let (root, locks) = (root.to_str().unwrap().to_owned(), locks.to_str().unwrap().to_owned());
        let agent = env!("CARGO_BIN_EXE_tropa-agent-under-test");
        self.start(
            agent,
            &["--evidence-root", &root, "--lane-lock-dir", &locks, "--label", &format!("host-{number}")],
        );
    }

    /// What its agent has logged.
    fn log(&self) -> String {
        fs::read_to_string(self.home.join("1.log")).unwrap_or_default()
    }

    fn secret(&self) -> PathBuf {
        self.home.join("home/.config/tropa/mesh.secret")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn two_machines_on_a_lan_become_one_mesh_by_a_secret_and_nothing_else() {
    if !rustix::process::geteuid().is_root() {
        return skipped("no network namespaces: not root");
    }
    let lan = match Lan::new() {
        Ok(lan) => lan,
        Err(why) => return skipped(&format!("no network namespaces: {why}")),
    };
    let dir = tempfile::tempdir().unwrap();
    let (mut here, mut there) =
        (Host::new(&lan, 0, dir.path().join("here")), Host::new(&lan, 1, dir.path().join("there")));
    let tropa = env!("CARGO_BIN_EXE_tropa-under-test");

    let made = here.command(tropa, &["mesh", "new"]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let mut join = there.command(tropa, &["mesh", "join"]);
    let mut join = join.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    join.stdin.take().unwrap().write_all(&fs::read(here.secret()).unwrap()).unwrap();
    assert!(join.wait().unwrap().success());

    here.install(1, "127.0.0.1");
    there.install(2, "0.0.0.0");
    let mut seen = String::new();
    wait_until("both agents are in the roster, ready", || {
        let found = here.command(tropa, &["machines", "--allow-declared", "--json"]).output().unwrap();
        seen = String::from_utf8_lossy(&found.stdout).into_owned();
        let report: serde_json::Value = serde_json::from_str(&seen).unwrap_or_default();
        report["at_once"] == 2
    })
    .unwrap_or_else(|error| panic!("{error}\n{seen}"));

    let prompts: String = (0..12).map(|n| format!("prompt {n}\n")).collect();
    let input = dir.path().join("prompts.txt");
    fs::write(&input, prompts).unwrap();
    let output = here.command(tropa, &["run", input.to_str().unwrap(), "--allow-declared"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows = results(&String::from_utf8_lossy(&output.stdout)).unwrap();
    assert_eq!(rows.len(), 12);
    let machines: BTreeSet<&str> = rows.iter().filter_map(|row| row["tropa"]["machine"].as_str()).collect();
    assert_eq!(machines.len(), 2, "both machines worked");

    let exposed = || there.log().lines().find(|line| line.contains("ollama.exposed")).map(str::to_owned);
    wait_until("the agent says that its install is open to others", || exposed().is_some()).unwrap();
    let said = exposed().unwrap_or_default();
    assert!(said.contains("10.97.0.11:11434") && said.contains("OLLAMA_HOST=127.0.0.1"), "{said}");
    assert!(!here.log().contains("ollama.exposed"), "{}", here.log());

    // Each doctor sees the installs of its own machine from outside, and the mesh from within.
    let found = |host: &Host| {
        let output = host.command(tropa, &["doctor", "--allow-declared", "--json"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = report["findings"].as_array().unwrap().clone();
        assert!(findings.iter().any(|finding| finding["code"] == "mesh.agents"), "{report:#}");
        let exposed = findings.into_iter().find(|finding| finding["code"] == "ollama.exposed");
        exposed.map(|finding| finding["level"].clone())
    };
    assert_eq!((found(&here), found(&there)), (Some("ok".into()), Some("warn".into())));
}
