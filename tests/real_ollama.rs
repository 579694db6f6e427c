//! A real Ollama for tests: a server of its own on a free loopback port, with a tiny model.
//!
//! The double imitates what we believe; this is what is true. Neither the binary nor the model is part of
//! the checkout: `tests/real_ollama/build.sh` finds or builds both and names them in two variables. Where
//! they are absent a test says so by [`skipped`](crate::skipped) and returns.
//!
//! Each server has its own home, its own port and its own process group. Its runners are children in that
//! group, and they survive a server that is killed, so the whole group is killed when the value is dropped.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use rustix::thread::{CpuSet, sched_setaffinity};
use tempfile::TempDir;

/// Names the binary of Ollama; `ollama` on `PATH` is the fallback.
pub const OLLAMA_BIN: &str = "TROPA_OLLAMA_BIN";

/// Names the GGUF file of the tiny model; there is no fallback.
pub const TINY_GGUF: &str = "TROPA_TINY_GGUF";

/// A server listens after 0.1 s on an idle machine; this is for one that compiles at the same time.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Runners of a killed group are gone in milliseconds; a zombie that nobody reaps must not hold a test up.
const KILL_LIMIT: Duration = Duration::from_secs(2);

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(10);

/// Longer than a cold load and a short answer of the tiny model on a busy machine.
const READ_LIMIT: Duration = Duration::from_secs(120);

/// Where the binary and the model are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Found {
    /// The `ollama` binary.
    pub binary: PathBuf,
    /// A llama model of random weights: 2048 tokens of trained context, `characters + 2` tokens for a
    /// prompt of printable ASCII, answers that end only by `num_predict`, by a full context or by `stop`.
    pub model: PathBuf,
}

/// One running `ollama serve`; it and its runners are killed on drop.
#[derive(Debug)]
pub struct RealOllama {
    found: Found,
    server: Child,
    addr: SocketAddr,
    home: TempDir,
}

impl RealOllama {
    /// Finds the binary ([`OLLAMA_BIN`], else `ollama` on `PATH`) and the model ([`TINY_GGUF`]).
    ///
    /// # Errors
    /// The reason why there is none, to be given to [`skipped`](crate::skipped).
    pub fn find() -> Result<Found, String> {
        let named = |variable: &str| std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from);
        let binary = match named(OLLAMA_BIN) {
            Some(path) if path.is_file() => path,
            Some(path) => return Err(format!("no Ollama: {OLLAMA_BIN} names {}", path.display())),
            None => on_path("ollama").ok_or_else(|| format!("no Ollama on PATH and no {OLLAMA_BIN}"))?,
        };
        match named(TINY_GGUF) {
            Some(model) if model.is_file() => Ok(Found { binary, model }),
            Some(model) => Err(format!("no model for Ollama: {TINY_GGUF} names {}", model.display())),
            None => Err(format!("no model for Ollama: {TINY_GGUF} is not set")),
        }
    }

    /// Starts a server on a free loopback port and returns when it answers `/api/version`.
    ///
    /// Two servers with one `models_dir` see the same models under the same digests. `env` is added to the
    /// environment, for example `("OLLAMA_NUM_PARALLEL", "4")`.
    ///
    /// # Errors
    /// When there is no Ollama, or when it does not answer within 30 s; then with the end of its log.
    pub fn start(models_dir: &Path, env: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::start_on(&[], models_dir, env)
    }

    /// Like [`start`](Self::start), with the server and its runners kept to these CPUs; none means all.
    ///
    /// # Errors
    /// Those of [`start`](Self::start), and a CPU that this process may not use.
    pub fn start_on(cpus: &[usize], models_dir: &Path, env: &[(&str, &str)]) -> anyhow::Result<Self> {
        // Port 0: the kernel chooses, and the log says which.
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), cpus, models_dir, env)
    }

    /// Ends this server and starts another on the same port, as a restart with other settings does.
    ///
    /// # Errors
    /// Those of [`start`](Self::start).
    pub fn restarted(self, models_dir: &Path, env: &[(&str, &str)]) -> anyhow::Result<Self> {
        let address = self.addr;
        drop(self);
        Self::start_at(address, &[], models_dir, env)
    }

    fn start_at(
        listen: SocketAddr,
        cpus: &[usize],
        models_dir: &Path,
        env: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let found = Self::find().map_err(anyhow::Error::msg)?;
        let home = TempDir::new().context("making a home for ollama failed")?;
        let log = fs::File::create(home.path().join("log")).context("making the log of ollama failed")?;
        let mut command = Command::new(&found.binary);
        command
            .arg("serve")
            .env("OLLAMA_HOST", listen.to_string())
            .env("OLLAMA_MODELS", models_dir)
            .env("HOME", home.path())
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("sharing the log of ollama failed")?)
            .stderr(log)
            .process_group(0);
        let server = spawn_on(cpus, command).context("starting ollama failed")?;
        let mut ollama = Self { found, server, addr: listen, home };
        ollama.wait_until_it_answers()?;
        Ok(ollama)
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its address as `--ollama` takes it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Process id of the server; also the id of its process group.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.server.id()
    }

    /// Gives the tiny model this name, through `ollama create`.
    ///
    /// # Errors
    /// What `ollama create` prints when it fails.
    pub fn create(&self, name: &str) -> anyhow::Result<()> {
        self.create_from(name, &self.found.model)
    }

    /// Makes a model of this name from another GGUF file.
    ///
    /// # Errors
    /// What `ollama create` prints when it fails.
    pub fn create_from(&self, name: &str, gguf: &Path) -> anyhow::Result<()> {
        self.create_with(name, gguf, "")
    }

    /// The same, with these further lines in its Modelfile.
    ///
    /// # Errors
    /// What `ollama create` prints when it fails.
    pub fn create_with(&self, name: &str, gguf: &Path, more: &str) -> anyhow::Result<()> {
        let modelfile = self.home.path().join("Modelfile");
        let text = format!("FROM {}\n{more}", gguf.display());
        fs::write(&modelfile, text).context("writing a Modelfile failed")?;
        let made = Command::new(&self.found.binary)
            .args(["create", name, "-f"])
            .arg(&modelfile)
            .env("OLLAMA_HOST", self.addr.to_string())
            .env("HOME", self.home.path())
            .stdin(Stdio::null())
            .output()
            .context("starting ollama create failed")?;
        if !made.status.success() {
            bail!("ollama create failed: {}", String::from_utf8_lossy(&made.stderr));
        }
        Ok(())
    }

    /// Sends one request and returns status and body; a `POST` of JSON when there is a body, else a `GET`.
    ///
    /// # Errors
    /// When it does not answer, or not in HTTP.
    pub fn request(&self, path: &str, body: Option<&str>) -> io::Result<(u16, String)> {
        exchange(self.addr, path, body)
    }

    /// What the server has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.home.path().join("log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    #[expect(clippy::disallowed_methods, reason = "this is a driver: it waits for another process")]
    fn wait_until_it_answers(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(addr) = listening_on(&self.log()) {
                self.addr = addr;
                if matches!(self.request("/api/version", None), Ok((200, _))) {
                    return Ok(());
                }
            }
            if let Some(status) = self.server.try_wait().context("waiting for ollama failed")? {
                bail!("ollama ended at once with {status}: {}", tail(&self.log()));
            }
            if Instant::now() > deadline {
                bail!("ollama did not answer in {START_LIMIT:?}: {}", tail(&self.log()));
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for RealOllama {
    #[expect(clippy::disallowed_methods, reason = "this is a driver: it waits for other processes")]
    fn drop(&mut self) {
        let group = Pid::from_child(&self.server);
        // Failing means that the group is gone, which is what is wanted.
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.server.wait();
        let deadline = Instant::now() + KILL_LIMIT;
        while test_kill_process_group(group).is_ok() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
    }
}

/// Starts the command from a thread that may use these CPUs only; the child inherits that from the thread.
fn spawn_on(cpus: &[usize], mut command: Command) -> io::Result<Child> {
    if cpus.is_empty() {
        return command.spawn();
    }
    let mut set = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("there is no cpu {cpu}")));
        }
        set.set(cpu);
    }
    let pinned = std::thread::spawn(move || {
        sched_setaffinity(None, &set)?;
        command.spawn()
    });
    pinned.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts ollama failed")))
}

/// The address in the line `msg="Listening on 127.0.0.1:46521 (version 0.24.0)"`.
fn listening_on(log: &str) -> Option<SocketAddr> {
    let rest = log.split_once("Listening on ")?.1;
    // Until the character after the port is written the port may be cut.
    let (addr, _) = rest.split_once(' ')?;
    addr.parse().ok()
}

/// One exchange over HTTP/1.0: without keep-alive and without chunks the body is what comes until the end.
fn exchange(addr: SocketAddr, path: &str, body: Option<&str>) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(READ_LIMIT))?;
    let head = match body {
        None => format!("GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n"),
        Some(body) => format!(
            "POST {path} HTTP/1.0\r\nHost: {addr}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        ),
    };
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.unwrap_or_default().as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let not_http = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(not_http)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(not_http)?;
    Ok((status, body.to_owned()))
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn tail(log: &str) -> &str {
    let lines: Vec<_> = log.rmatch_indices('\n').map(|(at, _)| at).take(12).collect();
    lines.last().map_or(log, |&at| &log[at..])
}
