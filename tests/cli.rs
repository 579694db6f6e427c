//! The command line from the outside: what is typed wrongly, what is not as it should be, and what scripts rely on.

mod bad_input;
mod doctor;
mod jobs;
mod nodes;
mod output;
mod stopping;

use std::{
    fs,
    io::Write as _,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tropa_tests::harness::{Hardware, Running, World, wait_until};

use crate::jobs::world;

/// A command that does not end by itself is killed after so long, and its test fails.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// A command at work, with what it says kept in files, so that no pipe fills.
struct Job {
    child: Child,
    out: std::path::PathBuf,
    err: std::path::PathBuf,
}

/// A world with one install that takes this many milliseconds before each answer.
fn at_work(first_ms: &str) -> (World, [Running; 2]) {
    let world = world();
    let double = world.double("cpu", &["--first-ms", first_ms, "--tokens", "4"]).unwrap();
    let agent = world.agent("den", double.address, Hardware::This, &[]).unwrap();
    (world, [agent, double])
}

/// The files of two secrets, and an install whose agent has the first.
fn two_meshes(world: &World) -> ([String; 2], [Running; 2]) {
    let secrets = ["one.secret", "other.secret"].map(|name| {
        let path = world.path(name).to_str().unwrap().to_owned();
        ends_with(&run(world, &["mesh", "new", &path]), 0, &[]);
        path
    });
    let double = world.double("cpu", &[]).unwrap();
    let secret = ["--mesh-secret-file", &secrets[0], "--no-mdns"];
    let agent = world.agent("den", double.address, Hardware::This, &secret).unwrap();
    (secrets, [agent, double])
}

/// A job of so many items, at work.
fn start(world: &World, items: usize) -> Job {
    let input = world.file("prompts.txt", &"a llama\n".repeat(items)).unwrap();
    Job::start(world, world.tropa(&["run", input.to_str().unwrap()]))
}

impl Job {
    fn start(world: &World, mut command: Command) -> Self {
        let (out, err) = (world.path("job.out"), world.path("job.err"));
        command.stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&err).unwrap());
        Self { child: command.spawn().unwrap(), out, err }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn err(&self) -> String {
        fs::read_to_string(&self.err).unwrap()
    }

    /// Waits for its end.
    fn end(mut self) -> Output {
        let mut ended = None;
        let waited = wait_until("the command ends", || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        if waited.is_err() {
            self.child.kill().unwrap();
        }
        let status = self.child.wait().unwrap();
        let output =
            Output { status, stdout: fs::read(&self.out).unwrap(), stderr: fs::read(&self.err).unwrap() };
        assert!(waited.is_ok(), "it did not end in {ENDS_WITHIN:?}: {}", crate::jobs::said(&output));
        output
    }
}

/// Runs a command to its end; one that hangs fails the test.
fn run(world: &World, arguments: &[&str]) -> Output {
    Job::start(world, world.tropa(arguments)).end()
}

/// Runs a command that reads this.
fn run_with(world: &World, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = world.tropa(arguments);
    command.stdin(Stdio::piped());
    let mut job = Job::start(world, command);
    // A command that does not read to the end is judged by its exit code.
    let _ = job.child.stdin.take().unwrap().write_all(input);
    job.end()
}

/// Asserts the exit code, that nothing panicked, and that stderr names all of this.
#[track_caller]
fn ends_with(output: &Output, code: i32, named: &[&str]) {
    let said = crate::jobs::said(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    let err = String::from_utf8_lossy(&output.stderr);
    for name in named {
        assert!(err.contains(name), "{name} is not named: {said}");
    }
}

/// The first job that `tropa jobs` lists.
fn job(world: &World) -> Value {
    let listed = world.run(&["jobs", "--json"]).unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
    listed["jobs"][0].clone()
}

fn done(world: &World) -> u64 {
    job(world)["done"].as_u64().unwrap_or(0)
}
