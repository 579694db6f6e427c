//! Rows whose fault is at the coordinator.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use tropa_tests::skipped;

use super::*;

#[test]
fn fault_f07_a_killed_coordinator_adopts_what_runs_and_fetches_what_ended() {
    let Some(rig) = Rig::new(2) else { return };
    let _doubles = [rig.double(1, SECOND), rig.double(2, SECOND)];
    let _agents = [rig.agent(1), rig.agent(2)];
    let mut job = rig.run(&rig.prompts(12), &[]);
    until(rig::PATIENCE, "some are committed and two run", || rig.book().commits() >= 2);
    job.kill();
    // What runs ends meanwhile, and waits at its agent.
    let before = rig.book().of("exec_end").count();
    until(rig::PATIENCE, "what ran has ended", || rig.book().of("exec_end").count() >= before + 2);
    let at = now();
    let mut job = rig.resume(&[]);
    let (code, rows) = job.ends();
    assert_eq!((code, rows.len()), (Some(0), 12), "{}", job.log());
    let book = rig.book();
    let mut figures = book.figures(12, &rig.witness(), &DEVICES[..2]);
    figures.recovered = book.after(at, "commit", |_| true);
    figures.judge("F7 coordinator killed");
    within("the first commit after the restart", figures.recovered, Duration::from_secs(3));
    assert_eq!(figures.again, 0, "no chunk is executed again while the agents live");
}

#[test]
fn fault_f14_a_full_disk_pauses_the_job_and_space_lets_it_go_on() {
    let Some(rig) = Rig::new(2) else { return };
    let _doubles = [
        rig.double(1, &["--tokens", "2000", "--decode-us", "100"]),
        rig.double(2, &["--tokens", "2000", "--decode-us", "100"]),
    ];
    let _agents = [rig.agent(1), rig.agent(2)];
    let state = rig.path("state");
    std::fs::create_dir(&state).unwrap();
    // In a mount namespace of its own, which ends with the command.
    let mount = format!("mount -t tmpfs -o size=96m none {} && exec \"$@\"", state.display());
    let input = rig.prompts(80);
    let plain = rig.tropa(&["run", input.to_str().unwrap(), "--max-tokens", "2000"]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &mount, "sh"]);
    command.arg(plain.get_program()).args(plain.get_args()).stdin(Stdio::null());
    command.env_clear().envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("XDG_STATE_HOME", &state);
    let job = rig.begin(command);
    until(rig::PATIENCE, "it works", || rig.book().commits() > 0 || job.log().contains("unshare:"));
    if job.log().contains("unshare:") {
        return skipped(&format!("no mount namespace: {}", job.log()));
    }
    resize(&job, &state, "1m");
    until(rig::PATIENCE, "the journal is full", || job.log().contains("disk.low"));
    let (stopped_at, before) = (now(), rig.book().commits());
    resize(&job, &state, "96m");
    let mut job = job;
    let (code, _) = job.ends();
    assert_eq!(code, Some(0), "{}", job.log());
    let book = rig.book();
    let mut figures = book.figures(80, &rig.witness(), &DEVICES[..2]);
    figures.recovered = book.after(stopped_at, "commit", |_| true);
    figures.judge("F14 disk full");
    assert!(before < 80, "it was full before the end");
    within("the first commit with space again", figures.recovered, Duration::from_secs(10));
    assert!(job.log().contains("there is space again"), "{}", job.log());
}

/// Gives the journal's disk another size, from inside its mount namespace. It begins large enough for the check at
/// the start.
fn resize(job: &rig::Job, state: &Path, size: &str) {
    let pid = job.pid().to_string();
    let grown = Command::new("nsenter")
        .args(["--mount", "--target", &pid, "mount", "-o", &format!("remount,size={size}")])
        .arg(state)
        .output()
        .unwrap();
    assert!(grown.status.success(), "{grown:?}");
}

#[test]
fn fault_f19_two_coordinators_share_a_machine_evenly_and_no_device_has_two_users() {
    let Some(rig) = Rig::new(2) else { return };
    let quick = ["--tokens", "20", "--decode-us", "10000"];
    let _doubles = [rig.double(1, &quick), rig.double(2, &quick)];
    let _agents = [rig.agent(1), rig.agent(2)];
    let input = rig.prompts(40);
    let mut jobs = ["one", "two"].map(|name| rig.run_to(&input, name, &[]));
    for job in &mut jobs {
        let (code, rows) = job.ends();
        assert_eq!((code, rows.len()), (Some(0), 40), "{}", job.log());
    }
    let book = rig.book();
    let starts: Vec<&str> = book.of("exec_start").map(|line| line.job.as_str()).collect();
    let names: std::collections::BTreeSet<&str> = starts.iter().copied().collect();
    assert_eq!(names.len(), 2);
    // While both want the machines: from the first order of the later one to the last of the one that ends first.
    let first = |name: &str| starts.iter().position(|job| *job == name).unwrap();
    let last = |name: &str| starts.iter().rposition(|job| *job == name).unwrap();
    let begin = names.iter().map(|name| first(name)).max().unwrap();
    let end = names.iter().map(|name| last(name)).min().unwrap();
    let both = &starts[begin..=end];
    let one = both.iter().filter(|job| **job == both[0]).count();
    let share = one as f64 / both.len() as f64;
    let mut waits = 0;
    for (name, other) in [(both[0], false), (both[0], true)] {
        let mut run = 0;
        for job in both {
            run = if (*job == name) == other { run + 1 } else { 0 };
            waits = waits.max(run);
        }
    }
    let overlap: Duration = DEVICES.iter().map(|device| rig.witness().overlap(device)).sum();
    print_share(share, both.len(), waits, overlap);
    assert_eq!(overlap, Duration::ZERO);
    assert!((0.4..=0.6).contains(&share), "one of two got {share:.2}");
}

#[expect(clippy::print_stdout, reason = "the figures of the catalogue")]
fn print_refused(started: usize) {
    println!("F35 another input: refused, {started} left in the queue went on");
}

#[expect(clippy::print_stdout, reason = "the figures of the catalogue")]
fn print_share(share: f64, of: usize, waits: usize, overlap: Duration) {
    println!(
        "F19 two coordinators: share {share:.2} of {of}, at most {waits} of one in a row, O {:.2} s",
        overlap.as_secs_f64()
    );
}

#[test]
fn fault_f35_a_job_is_not_resumed_with_another_input() {
    let Some(rig) = Rig::new(1) else { return };
    let _double = rig.double(1, SECOND);
    let _agent = rig.agent(1);
    let mut job = rig.run(&rig.prompts(4), &[]);
    until(rig::PATIENCE, "one is committed", || rig.book().commits() >= 1);
    job.kill();
    let other = rig.file("other.txt", "another prompt\n");
    let before = rig.book().of("exec_start").count();
    let mut job = rig.resume(&["--input", other.to_str().unwrap()]);
    let (code, _) = job.ends();
    assert_eq!(code, Some(65), "{}", job.log());
    assert!(job.log().contains("SHA-256"), "it says which hash differs: {}", job.log());
    let started = rig.book().of("exec_start").count() - before;
    print_refused(started);
    // What the killed coordinator left queued at the agent may start by itself.
    assert!(started <= 1, "nothing new was started");
}
