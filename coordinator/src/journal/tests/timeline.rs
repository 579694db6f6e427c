//! What is for show rides along, and marks and deletions are whole.

use std::fs;

use super::*;

fn started(n: u32, no: u32, now_ms: u64) -> Step {
    Step::Started { chunk: ChunkIndex(n), no, now_ms }
}

#[test]
fn times_and_names_ride_with_the_next_step_and_the_first_start_stays() {
    let (_temp, journal) = journal(1);
    let name = |name: &str| Step::Named { agent: AgentId([9; 32]), name: name.to_owned() };
    let (writer, mut reports) = journal.writer().unwrap();
    writer.submit(Token(0), attempt(0, 1)).unwrap();
    assert!(matches!(next(&mut reports), Some(Committed::Steps(steps)) if steps.len() == 1));
    let more = [name("den"), started(0, 1, 120), started(0, 1, 130), name("attic"), result(0, 1, b"x")];
    for (token, step) in (1..).zip(more) {
        writer.submit(Token(token), step).unwrap();
    }
    let Some(Committed::Steps(steps)) = next(&mut reports) else { panic!("nothing was committed") };
    let effects: Vec<Effect> = steps.iter().map(|(_, effect)| *effect).collect();
    let expected = [Effect::First, Effect::First, Effect::Late, Effect::First, Effect::First];
    assert_eq!(effects, expected, "one transaction for all of them");
    writer.finish();
    let mut rows = Vec::new();
    journal.each_attempt(None, |row| rows.push(row)).unwrap();
    let [row] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((row.recorded_ms, row.started_ms, row.ended_ms), (100, Some(120), Some(150)));
    assert_eq!(row.won.as_ref().map(|won| (won.prompt_tokens, won.output_tokens)), Some((5, 6)));
    assert_eq!(journal.names().unwrap().agent(row.agent), "attic");
    assert_eq!(journal.handed_out().unwrap(), 0);
}

#[test]
fn what_only_waits_is_written_when_the_writer_ends() {
    let (_temp, journal) = journal(1);
    write(&journal, vec![attempt(0, 1)]);
    let (writer, reports) = journal.writer().unwrap();
    drop(reports);
    writer.submit(Token(0), started(0, 1, 140)).unwrap();
    writer.finish();
    let mut times = Vec::new();
    journal.each_attempt(Some(ChunkIndex(0)), |row| times.push(row.started_ms)).unwrap();
    assert_eq!(times, [Some(140)]);
    assert_eq!(journal.handed_out().unwrap(), 1);
}

#[test]
fn the_stronger_mark_stays_and_one_that_is_not_ours_is_the_weaker() {
    let (_temp, journal) = journal(1);
    assert_eq!(journal.cancel_asked(), None);
    ask_to_cancel(journal.dir(), Cancel::Gently).unwrap();
    assert_eq!(journal.cancel_asked(), Some(Cancel::Gently));
    ask_to_cancel(journal.dir(), Cancel::AtOnce).unwrap();
    ask_to_cancel(journal.dir(), Cancel::Gently).unwrap();
    assert_eq!(journal.cancel_asked(), Some(Cancel::AtOnce));
    journal.clear_cancel().unwrap();
    journal.clear_cancel().unwrap();
    assert_eq!(journal.cancel_asked(), None);
    fs::write(journal.dir().join("cancel"), "x".repeat(1 << 20)).unwrap();
    assert_eq!(journal.cancel_asked(), Some(Cancel::Gently));
}

#[test]
fn a_job_is_purged_as_a_whole_and_never_while_it_is_held() {
    let (temp, journal) = journal(1);
    let (jobs, dir) = (temp.path().join("jobs"), journal.dir().to_owned());
    assert!(matches!(purge(&dir), Err(Error::Locked { .. })));
    assert!(dir.join("journal.db").exists());
    drop(journal);
    // What an earlier purge left when it was killed.
    let left = jobs.join(format!("{JOB}.purged"));
    fs::create_dir(&left).unwrap();
    fs::write(left.join("journal.db"), "prompts").unwrap();
    assert_eq!(list(&jobs).unwrap().len(), 1, "it is no job");
    assert!(purge(&dir).unwrap() > 4096);
    assert_eq!(fs::read_dir(&jobs).unwrap().count(), 0);
    fs::create_dir(&left).unwrap();
    sweep(&jobs);
    assert_eq!(fs::read_dir(&jobs).unwrap().count(), 0);
}
