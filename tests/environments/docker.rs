//! Docker: the daemon of this machine where one answers, else one of the tests' own, in a network namespace of its own,
//! which leaves no bridge and no rule behind. Tests that run at one time share it; the last one ends it.

use std::{
    fs,
    net::IpAddr,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex, PoisonError, Weak, mpsc},
    time::Duration,
};

use tempfile::TempDir;
use tropa_tests::namespace::Namespace;

use super::{
    containers::{IDLE, mounts, root},
    mesh::Ground,
    place::{Place, Program, unique},
};

/// A daemon that answers, with the image of the tests.
#[derive(Debug)]
pub(crate) struct Daemon {
    image: String,
    own: Option<Own>,
}

/// What goes with a daemon of our own, in this order: the process, its network, its files.
#[derive(Debug)]
struct Own {
    host: String,
    process: Program,
    namespace: Namespace,
    dir: TempDir,
}

/// A container that idles; gone when dropped.
#[derive(Debug)]
pub(crate) struct Container {
    daemon: Arc<Daemon>,
    name: String,
    /// How to run something in it.
    pub(crate) place: Place,
}

impl Daemon {
    /// The daemon that other tests use at this moment, or a new one.
    ///
    /// # Errors
    /// Says why there can be none.
    pub(crate) fn shared() -> Result<Arc<Self>, String> {
        static SHARED: Mutex<Weak<Daemon>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(daemon) = shared.upgrade() {
            return Ok(daemon);
        }
        let daemon = Arc::new(Self::start()?);
        *shared = Arc::downgrade(&daemon);
        Ok(daemon)
    }

    /// Starts a container with these options of `docker run`.
    pub(crate) fn container(self: &Arc<Self>, ground: &Ground, label: &str, options: &[&str]) -> Container {
        let name = unique("dk");
        let mut arguments = vec!["run".to_owned(), "-d".to_owned(), "--name".to_owned(), name.clone()];
        for mount in mounts() {
            arguments.extend(["-v".to_owned(), format!("{mount}:{mount}:ro")]);
        }
        arguments.extend(["-v".to_owned(), format!("{0}:{0}", ground.path().display())]);
        arguments.extend(options.iter().map(|&option| option.to_owned()));
        arguments.push(self.image.clone());
        arguments.extend(IDLE.map(str::to_owned));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        // The guard comes first: a failed start may leave a container.
        let mut made = Container { daemon: Arc::clone(self), name, place: Place::here(label) };
        self.said(&arguments);
        let address = self.said(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", &made.name]);
        let enter = ["exec".to_owned(), made.name.clone()];
        made.place.enter = self.line().into_iter().chain(enter).map(Into::into).collect();
        // A container without a network has none, and only its loopback can be listened on.
        made.place.address = address.parse().unwrap_or(made.place.address);
        made
    }

    fn start() -> Result<Self, String> {
        let mut daemon = Self { image: format!("{}:test", unique("image")), own: None };
        if !daemon.answers() {
            daemon.own = Some(Own::start()?);
            let (_never, clock) = mpsc::channel::<()>();
            let mut looks = 0;
            while !daemon.answers() {
                let own = daemon.own.as_mut().unwrap();
                looks += 1;
                if looks > 600 || !own.process.runs() {
                    let log = fs::read_to_string(own.dir.path().join("log")).unwrap_or_default();
                    let last = log.lines().next_back().unwrap_or_default();
                    return Err(format!("a Docker daemon of our own does not start: {last}"));
                }
                // The pause between two looks: a minute in all.
                let _ = clock.recv_timeout(Duration::from_millis(100));
            }
        }
        let files = tempfile::Builder::new().prefix("tropa-image").tempdir().unwrap();
        root(files.path());
        let mut tar = Command::new("tar")
            .arg("-C")
            .arg(files.path())
            .args(["-c", "."])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let import = daemon
            .command(&["import", "-", &daemon.image])
            .stdin(tar.stdout.take().unwrap())
            .output()
            .unwrap();
        assert!(tar.wait().unwrap().success() && import.status.success(), "{}", text(&import));
        Ok(daemon)
    }

    fn answers(&self) -> bool {
        self.command(&["info"]).output().is_ok_and(|output| output.status.success())
    }

    fn line(&self) -> Vec<String> {
        let mut line = vec!["docker".to_owned()];
        if let Some(own) = &self.own {
            line.extend(["-H".to_owned(), own.host.clone()]);
        }
        line
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let line = self.line();
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).args(arguments).stdin(Stdio::null());
        command
    }

    fn said(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "docker {arguments:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Own {
    fn start() -> Result<Self, String> {
        if !super::place::has("dockerd") {
            return Err(
                "no Docker daemon answers and dockerd is not installed (Debian: docker.io)".to_owned()
            );
        }
        let dir = tempfile::Builder::new().prefix("tropa-docker").tempdir().unwrap();
        let namespace = Namespace::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        let host = format!("unix://{}", at("socket").display());
        let mut command = Command::new("nsenter");
        // `ip netns exec` would mount a /sys without the control groups.
        command.arg(namespace.entrance()).arg("dockerd").args(["-H", &host]);
        for (option, path) in
            [("--data-root", at("data")), ("--exec-root", at("exec")), ("--pidfile", at("pid"))]
        {
            command.arg(option).arg::<PathBuf>(path);
        }
        let process = Program::start(command, "dockerd", &at("log")).gently();
        Ok(Self { host, process, namespace, dir })
    }
}

impl Container {
    /// The host of the containers, at the address that it has for this one.
    pub(crate) fn host(&self, label: &str) -> Place {
        let address = self.daemon.said(&["inspect", "-f", "{{.NetworkSettings.Gateway}}", &self.name]);
        let address: IpAddr = address.parse().unwrap_or_else(|_| panic!("no gateway: {address}"));
        match &self.daemon.own {
            Some(own) => Place::entered(label, address, &["nsenter", &own.namespace.entrance()]),
            None => Place { address, ..Place::here(label) },
        }
    }

    /// The process id of its init, on the host.
    pub(crate) fn init(&self) -> String {
        self.daemon.said(&["inspect", "-f", "{{.State.Pid}}", &self.name])
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.daemon.command(&["rm", "-f", "-v", &self.name]).output();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.command(&["image", "rm", "-f", &self.image]).output();
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
