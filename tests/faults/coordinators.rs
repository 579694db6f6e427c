//! Rows whose fault is at the coordinator.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use tropa_tests::skipped;

use super::*;

/// Longer than an agent waits for its coordinator before it drops what has not started.
const BEYOND_THE_LEASE: Duration = Duration::from_secs(20);

/// Whatever is executed again is a repetition.
const NO_BACKUPS: [&str; 1] = ["--no-backups"];

#[test]
fn fault_f07_a_killed_coordinator_adopts_what_runs_and_fetches_what_ended() {
    for away in [Duration::from_secs(5), BEYOND_THE_LEASE] {
        let Some(rig) = Rig::new(2) else { return };
        let _doubles = [rig.double(1, SECOND), rig.double(2, SECOND)];
        let _agents = [rig.agent(1), rig.agent(2)];
        let mut job = rig.run(&rig.prompts(12), &NO_BACKUPS);
        until(rig::PATIENCE, "some are committed and two run", || {
            let book = rig.book();
            book.commits() >= 2 && book.open_at(now()).len() == 2
        });
        job.kill();
        let killed = now();
        let ran = rig.book().open_at(killed);
        rig::pass(killed + away);
        let before = rig.book();
        let ended = |attempt| before.of("exec_end").any(|line| (line.chunk, line.no) == attempt);
        assert!(ran.iter().all(|(attempt, _)| ended(*attempt)), "what ran has ended, and waits at its agent");
        let at = now();
        let mut job = rig.resume(&NO_BACKUPS);
        let (code, rows) = job.ends();
        assert_eq!((code, rows.len()), (Some(0), 12), "{}", job.log());
        let book = rig.book();
        let mut figures = book.figures(12, &rig.witness(), &DEVICES[..2]);
        figures.recovered = book.after(at, "commit", |_| true);
        figures.judge(&format!("F7 coordinator killed, back after {} s", away.as_secs()));
        within("the first commit after the restart", figures.recovered, Duration::from_secs(3));
        let repeated = figures.again + figures.backups;
        assert_eq!(repeated, 0, "no chunk is executed again while the agents live: {book:#?} {}", job.log());
    }
}

/// The steps of §7.4 that a coordinator passes.
const STEPS: [&str; 7] = [
    "journal.commit",
    "journal.synced",
    "coordinator.send",
    "coordinator.sent",
    "coordinator.result",
    "coordinator.committed",
    "coordinator.acknowledged",
];

#[test]
fn fault_f07_a_coordinator_killed_at_any_step_of_an_attempt_goes_on_and_runs_nothing_again() {
    let Some(rig) = Rig::new(2) else { return };
    let quick = ["--tokens", "20", "--decode-us", "10000"];
    let _doubles = [rig.double(1, &quick), rig.double(2, &quick)];
    let _agents = [rig.agent(1), rig.agent(2)];
    let input = rig.prompts(12);
    let mut known = std::collections::BTreeSet::new();
    for step in STEPS {
        // In the midst of the job, with attempts at both engines.
        let killed_at = format!("{step}:kill:5");
        let mut job = rig.run_to(&input, step, &NO_BACKUPS, &[("TROPA_FAILPOINT", &killed_at)]);
        assert_eq!(job.ends().0, None, "{step}: it was killed: {}", job.log());
        let at = now();
        let id = rig.jobs().into_iter().find(|id| !known.contains(id)).expect("the job is there");
        let mut job = rig.resume_to(&id, step, &NO_BACKUPS);
        let (code, rows) = job.ends();
        assert_eq!((code, rows.len()), (Some(0), 12), "{step}: {}", job.log());
        let book = rig.book().of_job(&id);
        let mut figures = book.figures(12, &rig.witness(), &DEVICES[..2]);
        figures.recovered = book.after(at, "commit", |_| true);
        // A kill between the disk and the line about it leaves no line: the output says what was lost.
        figures.lost = rows.iter().filter(|row| !row["error"].is_null()).count();
        figures.judge(&format!("F7 coordinator killed at {step}"));
        within("the first commit after the restart", figures.recovered, Duration::from_secs(3));
        let repeated = figures.again + figures.backups;
        assert_eq!(repeated, 0, "{step}: no chunk is executed again while the agents live: {book:#?}");
        known.insert(id);
    }
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
    assert_eq!(job.log().matches("disk.low").count(), 1, "it is said once: {}", job.log());
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

/// How long one coordinator's options stay at an install here, instead of a minute.
const TURN: Duration = Duration::from_secs(1);

/// An answer of the doubles of row 19.
const ANSWER: Duration = Duration::from_millis(200);

/// Two coordinators with a hundred chunks each on three machines; gives what they did while both wanted the machines:
/// from the first start of the one that began later to the last of the one that ended first.
fn contested(options: [&[&str]; 2]) -> Option<(Vec<book::Line>, Duration)> {
    let rig = Rig::new(3)?;
    let quick = ["--tokens", "20", "--decode-us", "10000"];
    let _doubles = [1, 2, 3].map(|host| rig.double(host, &quick));
    let turn = TURN.as_millis().to_string();
    let _agents = [1, 2, 3].map(|host| rig.agent_with(host, host, 11_434, &[("TROPA_TEST_TURN_MS", &turn)]));
    let input = rig.prompts(100);
    let mut jobs =
        [("one", options[0]), ("two", options[1])].map(|(name, more)| rig.run_to(&input, name, more, &[]));
    for job in &mut jobs {
        let (code, rows) = job.ends();
        assert_eq!((code, rows.len()), (Some(0), 100), "{}", job.log());
    }
    let book = rig.book();
    let starts: Vec<book::Line> = book.of("exec_start").cloned().collect();
    let names: std::collections::BTreeSet<&str> = starts.iter().map(|line| line.job.as_str()).collect();
    assert_eq!(names.len(), 2);
    let first = |name: &str| starts.iter().position(|line| line.job == name).unwrap();
    let last = |name: &str| starts.iter().rposition(|line| line.job == name).unwrap();
    let begin = names.iter().map(|name| first(name)).max().unwrap();
    let end = names.iter().map(|name| last(name)).min().unwrap();
    let overlap = DEVICES.iter().map(|device| rig.witness().overlap(device)).sum();
    Some((starts[begin..=end].to_vec(), overlap))
}

/// The share of one of the two, and the most that the other waited on any machine: as answers of the other in a row,
/// and as the time from the first of them to the end of the last.
fn fairness(starts: &[book::Line]) -> (f64, usize, Duration) {
    let one = starts.iter().filter(|line| line.job == starts[0].job).count();
    let lanes: std::collections::BTreeSet<u32> = starts.iter().map(|line| line.process).collect();
    let (mut most, mut longest) = (0, Duration::ZERO);
    for lane in lanes {
        let here: Vec<&book::Line> = starts.iter().filter(|line| line.process == lane).collect();
        for row in here.chunk_by(|a, b| a.job == b.job) {
            most = most.max(row.len());
            longest = longest.max(row[row.len() - 1].at - row[0].at + ANSWER);
        }
    }
    (one as f64 / starts.len() as f64, most, longest)
}

#[test]
fn fault_f19_two_coordinators_share_machines_evenly_chunk_by_chunk_and_no_device_has_two_users() {
    let Some((starts, overlap)) = contested([&[], &[]]) else { return };
    let (share, most, longest) = fairness(&starts);
    print_share("same options", &starts, (share, most, longest), overlap);
    assert_eq!(overlap, Duration::ZERO);
    assert!((0.4..=0.6).contains(&share), "one of two got {share:.2}");
    // Whose next order is late on a loaded machine leaves his turn to the other.
    assert!(most <= 2 * SLACK as usize, "one waited for {most} answers of the other");
}

#[test]
fn fault_f19_other_options_take_turns_so_that_the_model_is_not_loaded_for_every_chunk() {
    let Some((starts, overlap)) = contested([&["--num-ctx", "1024"], &["--num-ctx", "2048"]]) else { return };
    let (share, most, longest) = fairness(&starts);
    print_share("other options, turns of 1 s", &starts, (share, most, longest), overlap);
    assert_eq!(overlap, Duration::ZERO);
    assert!((0.35..=0.65).contains(&share), "one of two got {share:.2}");
    assert!(most > 2, "a turn is longer than a chunk");
    within("the longest turn", Some(longest), TURN + ANSWER);
}

#[expect(clippy::print_stdout, reason = "the figures of the catalogue")]
fn print_refused(started: usize) {
    println!("F35 another input: refused, {started} left in the queue went on");
}

#[expect(clippy::print_stdout, reason = "the figures of the catalogue")]
fn print_share(
    what: &str,
    starts: &[book::Line],
    (share, most, longest): (f64, usize, Duration),
    overlap: Duration,
) {
    println!(
        "F19 two coordinators, {what}: share {share:.2} of {}, waits of at most {most} chunks and {:.2} s, O {:.2} s",
        starts.len(),
        longest.as_secs_f64(),
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
