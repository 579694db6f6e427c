//! The binary: how it starts and ends, and what several of them tell about each other through a directory.

use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::*;

/// A double in a process of its own.
struct Process {
    child: Child,
    addr: std::net::SocketAddr,
    control: Option<std::net::SocketAddr>,
    _output: Lines<BufReader<ChildStdout>>,
}

async fn process(args: &[&str]) -> Process {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ollama-double"))
        .args(["--model", "m,ctx=4096"])
        .args(args)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("start the double");
    let mut output = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut control = None;
    loop {
        let line = tokio::time::timeout(PATIENCE, output.next_line()).await.expect("a line in time");
        let line = line.expect("its output").expect("it ended before it listened");
        match line.split_once(' ') {
            Some(("control", addr)) => control = addr.parse().ok(),
            Some(("listening", addr)) => {
                let addr = addr.parse().expect("an address");
                return Process { child, addr, control, _output: output };
            }
            other => panic!("an unexpected line: {other:?}"),
        }
    }
}

fn terminate(process: &Process) {
    let id = process.child.id().and_then(|id| i32::try_from(id).ok()).expect("a running process");
    let id = rustix::process::Pid::from_raw(id).expect("a process id");
    rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("signal it");
}

fn long_chat() -> Vec<u8> {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": true,
        "truncate": false, "shift": false, "options": {"num_ctx": 4096, "num_predict": 4000}});
    post_bytes("/api/chat", &body)
}

#[tokio::test]
async fn the_binary_says_where_it_listens_and_ends_cleanly_on_sigterm() {
    let mut double =
        process(&["--version", "0.24.0", "--control", "127.0.0.1:0", "--fault", "queue_full*1"]).await;
    let get = b"GET /api/version HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    assert_eq!(exchange(double.addr, get).await.json(), json!({"version": "0.24.0"}));
    assert_eq!(exchange(double.addr, &long_chat()).await.status, 503);
    let counts = b"GET /counts HTTP/1.1\r\nHost: c\r\nConnection: close\r\n\r\n";
    let counts = exchange(double.control.expect("a control listener"), counts).await.json();
    assert_eq!((&counts["requests"], &counts["unused_faults"]), (&json!(2), &json!([])));
    terminate(&double);
    let status =
        tokio::time::timeout(PATIENCE, double.child.wait()).await.expect("it ends").expect("a status");
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_wrong_fault_keeps_the_binary_from_starting_and_is_named() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_ollama-double")).args(["--fault", "no_dome"]).output().await;
    let output = output.expect("run the double");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("unknown mode `no_dome`"), "{text}");
}

/// Waits until the time line in `dir` shows what is wanted.
async fn until_seen(dir: &Path, what: &str, seen: impl Fn(&Witness) -> bool) -> Witness {
    let wait = async {
        loop {
            let witness = Witness::read(dir).expect("a time line");
            if seen(&witness) {
                return witness;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

#[tokio::test]
async fn a_killed_process_frees_its_place_and_what_it_did_stays_in_the_time_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("a plain path");
    let shared = ["--device", "cpu0", "--device-dir", path, "--decode-us", "5000", "--profile", "fair"];
    let mut one = process(&[&shared[..], &["--tokens", "4000", "--name", "one"]].concat()).await;
    let two = process(&[&shared[..], &["--tokens", "100", "--name", "two"]].concat()).await;
    let mut endless = TcpStream::connect(one.addr).await.expect("connect");
    endless.write_all(&long_chat()).await.expect("send");
    until_seen(dir.path(), "one works", |witness| witness.timeline().len() == 1).await;
    let other = tokio::spawn({
        let addr = two.addr;
        async move { exchange(addr, &long_chat()).await }
    });
    let enough = Duration::from_millis(60);
    until_seen(dir.path(), "both work", |witness| witness.overlap("cpu0") >= enough).await;
    one.child.kill().await.expect("kill it");
    let killed = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let killed = u64::try_from(killed.tv_sec * 1_000_000_000 + killed.tv_nsec).expect("a time");
    assert_eq!(other.await.expect("the other exchange").last()["done"], true);
    let witness = Witness::read(dir.path()).expect("a time line");
    assert_eq!((witness.timeline().len(), witness.unfinished()), (2, 1));
    assert_eq!(witness.installs("cpu0"), BTreeSet::from(["one".to_owned(), "two".to_owned()]));
    let end =
        |name: &str| witness.timeline().iter().find(|work| work.install == name).map(|work| work.end_ns);
    assert!(end("one") <= Some(killed) && end("two") > Some(killed), "{killed}: {witness:?}");
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .expect("the directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with("active"))
        .collect();
    assert!(left.is_empty(), "places of the dead: {left:?}");
}

#[tokio::test]
async fn processes_that_take_turns_never_overlap() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("a plain path");
    let shared = ["--device", "cpu0", "--device-dir", path, "--tokens", "5"];
    let (one, two) = (process(&shared).await, process(&shared).await);
    for _ in 0..5 {
        for addr in [one.addr, two.addr] {
            assert_eq!(exchange(addr, &long_chat()).await.last()["done"], true);
        }
    }
    let witness = Witness::read(dir.path()).expect("a time line");
    assert_eq!((witness.timeline().len(), witness.installs("cpu0").len(), witness.unfinished()), (10, 2, 0));
    assert_eq!(witness.overlap("cpu0"), Duration::ZERO);
}
