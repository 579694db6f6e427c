//! Writers that are killed, and one whose disk is full: copies of this test program, with a journal of their own.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use super::*;

/// Set for the copies of this test program that [`copy_of_this_program`] starts; names the directory of their journal.
const CHILD: &str = "TROPA_TEST_JOURNAL";

/// Starts this test program again with one test that does its work only there.
fn copy_of_this_program(wrapper: &[&str], test: &str, dir: &Path) -> Command {
    let exe = std::env::current_exe().unwrap();
    let mut command = match wrapper {
        [] => Command::new(exe),
        [program, args @ ..] => {
            let mut command = Command::new(program);
            command.args(args).arg(exe);
            command
        }
    };
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, dir);
    command
}

#[test]
fn child_that_writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let journal = Journal::open(Path::new(&dir)).unwrap();
    let resume = journal.load().unwrap();
    let (writer, mut reports) = journal.writer().unwrap();
    let mut out = io::stdout();
    writeln!(out, "\nopened").unwrap();
    for n in (0..journal.job().chunks).filter(|n| !resume.finished.contains(ChunkIndex(*n))) {
        let no = resume.attempts.get(&ChunkIndex(n)).map_or(1, |list| list.len() as u32 + 1);
        writer.submit(Token(0), attempt(n, no)).unwrap();
        writer.submit(Token(1 + u64::from(n)), result(n, no, format!("r{n}").as_bytes())).unwrap();
        let mut acknowledged = false;
        while !acknowledged {
            let Some(Committed::Steps(steps)) = next(&mut reports) else { panic!() };
            for (token, _) in steps.iter().filter(|(token, _)| token.0 > 0) {
                writeln!(out, "ack {}", token.0 - 1).unwrap();
                acknowledged = true;
            }
        }
    }
}

#[test]
fn what_a_killed_writer_acknowledged_is_there_once() {
    let (_temp, journal) = journal(2000);
    let dir = journal.dir().to_owned();
    drop(journal);
    let mut acknowledged = BTreeSet::new();
    for round in 0..10_usize {
        let mut child =
            copy_of_this_program(&[], "journal::tests::killed::child_that_writes_until_it_is_killed", &dir)
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.any(|line| line == "opened"), "round {round}");
        let mut acks = lines.filter_map(|line| line.strip_prefix("ack ").map(|n| n.parse::<u32>().unwrap()));
        acknowledged.extend(acks.by_ref().take(1 + round * 3));
        child.kill().unwrap();
        // What was written before the kill and read after it counts as well.
        acknowledged.extend(acks);
        child.wait().unwrap();

        let journal = Journal::open(&dir).unwrap();
        let resume = journal.load().unwrap();
        for n in &acknowledged {
            let item = journal.item(*n).unwrap().unwrap();
            let Decided::Done(done) = item.decided else { panic!("round {round}: {:?}", item.decided) };
            assert_eq!(done.body, format!("r{n}").as_bytes(), "round {round}");
        }
        assert!(resume.finished.done() as usize >= acknowledged.len());
        assert!(resume.finished.done() as usize <= acknowledged.len() + 1 + round, "round {round}");
        let check: String =
            journal.parts.conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok", "round {round}");
    }
    assert!(acknowledged.len() > 100, "{}", acknowledged.len());
}

#[test]
fn child_on_a_small_disk() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let disk = Path::new(&dir);
    let mount = |options: &str| {
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tropa-test"]).arg(disk).status();
        assert!(status.unwrap().success(), "mount {options}");
    };
    mount("size=6m");
    let journal = journal_at(&disk.join("jobs/1"), 40);
    let (writer, mut reports) = Writer::start(
        schema::connect(&directory::database(journal.dir())).unwrap(),
        Duration::from_millis(100),
    )
    .unwrap();
    let body = vec![b'x'; 512 << 10];
    for n in 0..40 {
        writer.submit(Token(2 * u64::from(n)), attempt(n, 1)).unwrap();
        writer.submit(Token(2 * u64::from(n) + 1), result(n, 1, &body)).unwrap();
    }
    let mut seen = Vec::new();
    let mut committed = 0;
    while committed < 80 || seen.len() < 2 {
        match next(&mut reports) {
            Some(Committed::Steps(steps)) => {
                assert!(steps.iter().all(|(_, effect)| *effect == Effect::First));
                committed += steps.len();
            }
            Some(Committed::DiskFull) => {
                seen.push("full");
                assert!((journal.load().unwrap().finished.done() as usize) < 40);
                mount("remount,size=100m");
            }
            Some(Committed::Resumed) => seen.push("resumed"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, ["full", "resumed"]);
    writer.finish();
    let dir = journal.dir().to_owned();
    drop(journal);
    assert_eq!(Journal::open(&dir).unwrap().load().unwrap().finished.done(), 40);
    println!("went on after a full disk");
}

#[test]
fn a_full_disk_is_waited_out_and_loses_nothing() {
    let namespace: &[&str] = &["unshare", "--user", "--map-root-user", "--mount"];
    let able = Command::new(namespace[0]).args(&namespace[1..]).arg("true").stderr(Stdio::null()).status();
    if !able.is_ok_and(|status| status.success()) {
        println!("skipped: no unshare with a mount namespace");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let output =
        copy_of_this_program(namespace, "journal::tests::killed::child_on_a_small_disk", temp.path())
            .output()
            .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("went on after a full disk"), "{text}");
}
