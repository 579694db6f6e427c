//! Where a program runs: what stands before its command line, and the address at which its neighbours reach it.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

/// Whatever is not ready by then is broken; an emulated machine beside a busy test run takes the longest.
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(150);

/// A user who is not root; nothing else of hers exists.
pub(crate) const OTHER_USER: u32 = 1000;

/// A place where programs run.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Its name, which its agent shows.
    pub(crate) label: String,
    /// What stands before a command to run it there.
    pub(crate) enter: Vec<OsString>,
    /// What stands before the agent's own command, after `enter`.
    pub(crate) agent_only: Vec<OsString>,
    /// Where the agent listens, and is reached.
    pub(crate) address: IpAddr,
    /// Who runs there; none: root.
    pub(crate) user: Option<u32>,
}

impl Place {
    /// The test's own place, as it is.
    pub(crate) fn here(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            enter: Vec::new(),
            agent_only: Vec::new(),
            address: Ipv4Addr::LOCALHOST.into(),
            user: None,
        }
    }

    /// A place that is entered by a command.
    pub(crate) fn entered(label: &str, address: impl Into<IpAddr>, enter: &[&str]) -> Self {
        Self {
            address: address.into(),
            enter: enter.iter().map(OsString::from).collect(),
            ..Self::here(label)
        }
    }

    /// A program there, with an environment that holds nothing of the test's.
    pub(crate) fn command(&self, program: &Path, home: &Path) -> Command {
        self.command_behind(&[], program, home)
    }

    /// The agent's program there.
    pub(crate) fn agent_command(&self, program: &Path, home: &Path) -> Command {
        self.command_behind(&self.agent_only, program, home)
    }

    fn command_behind(&self, behind: &[OsString], program: &Path, home: &Path) -> Command {
        let mut line: Vec<OsString> = self.enter.clone();
        line.extend(behind.iter().cloned());
        line.extend(["/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"].map(OsString::from));
        for name in ["HOME", "XDG_RUNTIME_DIR", "TROPA_RUNTIME_DIR"] {
            let mut variable = OsString::from(format!("{name}="));
            variable.push(home);
            line.push(variable);
        }
        line.push(program.into());
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).stdin(Stdio::null());
        command
    }
}

/// A program that was started; ended by its id when dropped.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    name: String,
    // Shared by tests of several threads where the program is.
    lines: Mutex<mpsc::Receiver<String>>,
    // Asked to end before it is killed.
    gently: bool,
}

impl Program {
    /// Starts it; its standard error goes into a file.
    pub(crate) fn start(mut command: Command, name: &str, log: &Path) -> Self {
        let stderr = fs::File::create(log).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("starting {name}: {error}"));
        let stdout = child.stdout.take().unwrap();
        let (line, lines) = mpsc::sync_channel(64);
        // Reads on when nobody takes the lines, so that the program never blocks on a full pipe.
        std::thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = line.try_send(text);
            }
        });
        Self { child, name: name.to_owned(), lines: Mutex::new(lines), gently: false }
    }

    /// Lets it clean up when it ends: SIGTERM first.
    pub(crate) fn gently(mut self) -> Self {
        self.gently = true;
        self
    }

    /// Waits for a line that begins so, and gives the rest of it.
    pub(crate) fn says(&self, begin: &str, log: &Path) -> String {
        let lines = self.lines.lock().unwrap();
        loop {
            match lines.recv_timeout(READY_WITHIN) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(begin) {
                        return rest.trim().to_owned();
                    }
                }
                Err(why) => panic!(
                    "{} never said `{begin}` ({why}): {}",
                    self.name,
                    fs::read_to_string(log).unwrap_or_default()
                ),
            }
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|_| self.gently && self.runs()) {
            let _ = kill_process(pid, Signal::TERM);
            let (_never, clock) = mpsc::channel::<()>();
            for _ in 0..1_000 {
                if !self.runs() {
                    break;
                }
                // The pause between two looks: ten seconds in all.
                let _ = clock.recv_timeout(Duration::from_millis(10));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command that must succeed, and gives what it printed.
pub(crate) fn ran(line: &[&str]) -> String {
    let output = run(line);
    assert!(output.status.success(), "{line:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Runs a command whose outcome the caller judges, or ignores because it cleans up.
pub(crate) fn run(line: &[&str]) -> Output {
    Command::new(line[0])
        .args(&line[1..])
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("running {line:?}: {error}"))
}

/// A name that no other test and no other test run has, short enough for a network namespace or a container.
pub(crate) fn unique(kind: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("tropa-{kind}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Finds a program as a shell does, and where only root has it in its path.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|directory| Path::new(directory).join(program).exists())
}
