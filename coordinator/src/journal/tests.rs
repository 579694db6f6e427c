// One test per promise of the journal.
use std::{collections::BTreeSet, os::unix::fs::PermissionsExt as _, time::Duration};

use tempfile::TempDir;
use tropa_proto::{
    bounded::Text,
    failure::{Class, Reason},
    id::{AgentId, ChunkIndex, Incarnation, MachineId},
    message::{MAX_BODY, Outcome},
};

use super::*;

mod damage;
mod graph;
mod killed;
mod machine;
mod timeline;

const JOB: JobId = JobId([0xa1; 16]);

fn chunk(n: u32) -> Result<NewChunk, Error> {
    Ok(NewChunk {
        endpoint: Endpoint::Chat,
        model: "m:1b".to_owned(),
        body: format!(r#"{{"model":"m:1b","n":{n}}}"#).into_bytes(),
        needs: BTreeSet::new(),
        shown: true,
        origin: format!(r#"{{"id":"{n}"}}"#),
    })
}

fn journal_at(dir: &Path, chunks: u32) -> Journal {
    let mut draft = Draft::create(dir, JOB).unwrap();
    draft.insert((0..chunks).map(chunk)).unwrap();
    draft.finish(Kind::Run, b"{}".to_vec(), 7).unwrap()
}

fn journal(chunks: u32) -> (TempDir, Journal) {
    let temp = tempfile::tempdir().unwrap();
    let journal = journal_at(&temp.path().join("jobs").join(JOB.to_string()), chunks);
    (temp, journal)
}

fn attempt(n: u32, no: u32) -> Step {
    Step::Attempt {
        chunk: ChunkIndex(n),
        no,
        agent: AgentId([9; 32]),
        incarnation: Incarnation(u64::MAX),
        machine: MachineId(AgentId([9; 32])),
        lane: "dram".to_owned(),
        now_ms: 100,
    }
}

fn result(n: u32, no: u32, body: &[u8]) -> Step {
    let outcome = Outcome {
        bytes: u32::try_from(body.len()).unwrap(),
        sha256: sha256(body),
        digest: [3; 32],
        done_reason: Text::new("stop").unwrap(),
        prompt_tokens: 5,
        output_tokens: 6,
        reasoning_only: false,
        wait_ms: 1,
        wall_us: 2,
        first_us: 3,
        load_us: 4,
        prompt_us: 5,
        decode_us: 6,
        total_us: 7,
    };
    let done = Box::new(Done { fingerprint: [2; 32], outcome, body: body.to_vec() });
    Step::Result { chunk: ChunkIndex(n), no, done, now_ms: 150 }
}

type Reports = tokio::sync::mpsc::Receiver<Committed>;

fn next(reports: &mut Reports) -> Option<Committed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), reports.recv()).await }).unwrap()
}

/// Submits the steps, waits for all of them, and gives their effects in order.
fn write(journal: &Journal, steps: Vec<Step>) -> Vec<Effect> {
    let (writer, mut reports) = journal.writer().unwrap();
    let count = steps.len();
    for (token, step) in steps.into_iter().enumerate() {
        writer.submit(Token(token as u64), step).unwrap();
    }
    let mut effects = Vec::new();
    while effects.len() < count {
        match next(&mut reports) {
            Some(Committed::Steps(steps)) => {
                for (token, effect) in steps {
                    assert_eq!(token.0, effects.len() as u64);
                    effects.push(effect);
                }
            }
            other => panic!("{other:?}"),
        }
    }
    writer.finish();
    effects
}

#[test]
fn the_first_result_of_a_chunk_stays_and_the_second_is_late() {
    let (_temp, journal) = journal(2);
    let effects =
        write(&journal, vec![attempt(0, 1), attempt(0, 2), result(0, 2, b"two"), result(0, 1, b"one")]);
    assert_eq!(effects, [Effect::First, Effect::First, Effect::First, Effect::Late]);
    let item = journal.item(0).unwrap().unwrap();
    let Decided::Done(done) = item.decided else { panic!("{:?}", item.decided) };
    assert_eq!((done.no, done.body.as_slice()), (2, b"two".as_slice()));
    let ends: Vec<_> = item.attempts.iter().map(|a| (a.no, a.class.as_deref(), a.ms)).collect();
    assert_eq!(ends, [(1, Some("superseded"), 50), (2, Some("done"), 50)]);
    assert!(journal.item(1).unwrap().is_none());
}

#[test]
fn a_failure_and_a_result_of_one_chunk_exclude_each_other() {
    let (_temp, journal) = journal(2);
    let failed = |n| Step::Failed {
        chunk: ChunkIndex(n),
        no: Some(1),
        class: Class::Crashed,
        detail: "why".to_owned(),
    };
    let effects = write(
        &journal,
        vec![attempt(0, 1), failed(0), result(0, 1, b"x"), attempt(1, 1), result(1, 1, b"x"), failed(1)],
    );
    assert_eq!(
        effects,
        [Effect::First, Effect::First, Effect::Late, Effect::First, Effect::First, Effect::Late]
    );
    let finished = journal.load().unwrap().finished;
    assert_eq!((finished.done(), finished.failed()), (1, 1));
    assert!(finished.is_failed(ChunkIndex(0)) && finished.contains(ChunkIndex(1)));
}

#[test]
fn a_result_of_an_attempt_never_issued_is_refused_and_its_neighbours_are_not() {
    let (_temp, journal) = journal(2);
    let steps = vec![
        attempt(0, 1),
        result(0, 2, b"x"),
        attempt(7, 1),
        attempt(0, 1),
        attempt(0, 0),
        result(0, 1, b"y"),
    ];
    use Effect::{First, Refused};
    assert_eq!(write(&journal, steps), [First, Refused, Refused, Refused, Refused, First]);
}

#[test]
fn a_result_that_comes_after_its_attempt_was_given_up_is_taken_if_it_is_first() {
    let (_temp, journal) = journal(1);
    let lost = Step::Ended {
        chunk: ChunkIndex(0),
        no: 1,
        class: Class::Lost,
        reason: None,
        detail: String::new(),
        now_ms: 120,
    };
    let again = lost.clone();
    assert_eq!(
        write(&journal, vec![attempt(0, 1), lost, again, result(0, 1, b"x")]),
        [Effect::First, Effect::First, Effect::Late, Effect::First]
    );
    assert_eq!(journal.item(0).unwrap().unwrap().attempts[0].class.as_deref(), Some("done"));
}

#[test]
fn a_coordinator_that_comes_back_knows_what_is_finished_open_and_spent() {
    let (_temp, journal) = journal(4);
    let crash = Step::Ended {
        chunk: ChunkIndex(2),
        no: 1,
        class: Class::LoadFailed,
        reason: Some(Reason::OutOfMemory),
        detail: "é".repeat(3000),
        now_ms: 130,
    };
    write(
        &journal,
        vec![attempt(0, 1), result(0, 1, b"x"), attempt(1, 1), attempt(2, 1), crash, attempt(2, 2)],
    );
    let dir = journal.dir().to_owned();
    drop(journal);
    let journal = Journal::open(&dir).unwrap();
    let resume = journal.load().unwrap();
    assert_eq!(resume.finished.done(), 1);
    let open: Vec<_> = resume.open.iter().map(|a| (a.chunk.0, a.no, a.agent, a.incarnation)).collect();
    assert_eq!(
        open,
        [(1, 1, AgentId([9; 32]), Incarnation(u64::MAX)), (2, 2, AgentId([9; 32]), Incarnation(u64::MAX))]
    );
    let past: Vec<_> =
        resume.attempts.iter().flat_map(|(c, list)| list.iter().map(|a| (c.0, a.no, a.class))).collect();
    assert_eq!(past, [(1, 1, None), (2, 1, Some(Class::LoadFailed)), (2, 2, None)]);
    assert_eq!((journal.job().id, journal.job().chunks, journal.job().created_ms), (JOB, 4, 7));
    assert_eq!(journal.chunk(ChunkIndex(3)).unwrap().body, chunk(3).unwrap().body);
    assert!(journal.chunk(ChunkIndex(4)).is_err());
    assert_eq!(journal.models().unwrap(), (vec!["m:1b".to_owned()], vec![0; 4]));
}

#[test]
fn retrying_failed_chunks_forgets_their_failures_and_gives_a_new_budget() {
    let (_temp, mut journal) = journal(2);
    let failed =
        Step::Failed { chunk: ChunkIndex(0), no: Some(1), class: Class::Poison, detail: String::new() };
    let ended = Step::Ended {
        chunk: ChunkIndex(0),
        no: 1,
        class: Class::RunnerCrash,
        reason: None,
        detail: String::new(),
        now_ms: 1,
    };
    write(
        &journal,
        vec![attempt(0, 1), ended, failed, attempt(1, 1), result(1, 1, b"x"), Step::State(State::Done)],
    );
    assert_eq!(journal.retry_failed().unwrap(), 1);
    let resume = journal.load().unwrap();
    assert_eq!((resume.finished.done(), resume.finished.failed()), (1, 0));
    let past = &resume.attempts[&ChunkIndex(0)][0];
    assert_eq!((past.no, past.this_round), (1, false));
    assert_eq!(journal.job().state, State::Open);
    assert_eq!(write(&journal, vec![attempt(0, 2), result(0, 2, b"y")]), [Effect::First, Effect::First]);
}

#[test]
fn what_is_queued_is_written_even_where_nobody_listens() {
    let (_temp, journal) = journal(500);
    let (writer, reports) = journal.writer().unwrap();
    drop(reports);
    for n in 0..500 {
        writer.submit(Token(0), attempt(n, 1)).unwrap();
        writer.submit(Token(0), result(n, 1, b"x")).unwrap();
    }
    writer.finish();
    assert_eq!(journal.load().unwrap().finished.done(), 500);
}

#[test]
fn an_error_that_is_no_full_disk_is_the_last_report_and_nothing_of_its_steps_stays() {
    let (_temp, journal) = journal(1);
    let (writer, mut reports) = journal.writer().unwrap();
    // Stands for a write that fails: the second statement of a transaction finds its table gone.
    journal.parts.conn.execute_batch("PRAGMA foreign_keys = OFF; DROP TABLE result;").unwrap();
    writer.submit(Token(1), attempt(0, 1)).unwrap();
    writer.submit(Token(2), result(0, 1, b"x")).unwrap();
    let mut acknowledged = Vec::new();
    loop {
        match next(&mut reports) {
            Some(Committed::Steps(steps)) => acknowledged.extend(steps.iter().map(|(token, _)| token.0)),
            Some(Committed::Fatal(error)) => break assert_eq!(error.exit_code(), 74),
            other => panic!("{other:?}"),
        }
    }
    assert!(next(&mut reports).is_none());
    let attempts: u32 =
        journal.parts.conn.query_row("SELECT count(*) FROM attempt", [], |row| row.get(0)).unwrap();
    assert_eq!(attempts as usize, acknowledged.len());
    assert!(!acknowledged.contains(&2));
}

#[test]
fn the_directory_and_its_files_belong_to_the_user_alone_and_the_key_stays() {
    let (_temp, journal) = journal(1);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(journal.dir()), 0o700);
    assert_eq!(mode(journal.dir().parent().unwrap()), 0o700);
    for entry in std::fs::read_dir(journal.dir()).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    let (key, dir) = (journal.key().unwrap(), journal.dir().to_owned());
    assert_ne!(key, [0; 32]);
    drop(journal);
    assert_eq!(Journal::open(&dir).unwrap().key().unwrap(), key);
}

#[test]
fn a_second_coordinator_is_refused_with_75_and_a_reader_is_not() {
    let (_temp, journal) = journal(1);
    let error = Journal::open(journal.dir()).unwrap_err();
    assert!(
        matches!(&error, Error::Locked { holder } if holder.contains(&std::process::id().to_string())),
        "{error}"
    );
    assert_eq!(error.exit_code(), 75);
    let reader = Journal::open_read_only(journal.dir()).unwrap();
    assert_eq!(reader.job().id, JOB);
    assert!(reader.writer().is_err());
    let dir = journal.dir().to_owned();
    drop(journal);
    assert!(Journal::open(&dir).is_ok());
}

#[test]
fn an_abandoned_input_leaves_nothing_and_a_killed_one_says_incomplete() {
    let temp = tempfile::tempdir().unwrap();
    let jobs = temp.path().join("jobs");
    let dir = jobs.join(JOB.to_string());
    let mut draft = Draft::create(&dir, JOB).unwrap();
    draft.insert((0..10).map(chunk)).unwrap();
    // What a kill at this moment would leave behind.
    let copy = jobs.join(JobId([0xb2; 16]).to_string());
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    drop(draft);
    assert!(!dir.exists());
    let error = Journal::open(&copy).unwrap_err();
    assert!(matches!(error, Error::Incomplete), "{error}");
    assert_eq!(error.exit_code(), 65);
    assert_eq!(list(&jobs).unwrap()[0].state, JobState::Incomplete);
}

#[test]
fn an_error_of_the_input_reaches_the_caller_and_stops_it() {
    let temp = tempfile::tempdir().unwrap();
    let mut draft = Draft::create(&temp.path().join("j"), JOB).unwrap();
    let mut asked = 0;
    let chunks = (0..5).map(|n| {
        asked += 1;
        if n == 2 { Err(Error::TooMany) } else { chunk(n) }
    });
    assert!(matches!(draft.insert(chunks), Err(Error::TooMany)));
    assert_eq!(asked, 3);
    let large = NewChunk { body: vec![b' '; MAX_BODY + 1], ..chunk(0).unwrap() };
    assert!(matches!(draft.insert([Ok(large)]), Err(Error::TooLarge { .. })));
}

#[test]
fn a_damaged_or_foreign_file_is_refused_and_says_why() {
    let (_temp, journal) = journal(2000);
    let (dir, file) = (journal.dir().to_owned(), journal.dir().join("journal.db"));
    drop(journal);
    let whole = std::fs::read(&file).unwrap();

    let mut bytes = whole.clone();
    bytes[4096 * 3..4096 * 3 + 2000].fill(0xff);
    std::fs::write(&file, &bytes).unwrap();
    let error = Journal::open(&dir).unwrap_err();
    assert!(matches!(error, Error::Damaged(_)), "{error:?}");

    std::fs::write(&file, b"this is a text and no database, however long it may be").unwrap();
    let error = Journal::open(&dir).unwrap_err();
    assert!(matches!(error, Error::Damaged(_)), "{error:?}");

    std::fs::remove_file(&file).unwrap();
    Connection::open(&file).unwrap().execute_batch("CREATE TABLE other (x)").unwrap();
    let error = Journal::open(&dir).unwrap_err();
    assert!(matches!(error, Error::NotAJournal { name: "application_id", found: 0, .. }), "{error:?}");
}

#[test]
fn a_request_or_result_that_is_not_what_was_committed_is_not_used() {
    let (_temp, journal) = journal(2);
    write(&journal, vec![attempt(0, 1), result(0, 1, b"text")]);
    journal
        .parts
        .conn
        .execute_batch("UPDATE chunk SET request = x'00'; UPDATE result SET body = x'00';")
        .unwrap();
    assert!(journal.chunk(ChunkIndex(1)).is_err());
    assert!(matches!(journal.item(0), Err(Error::Damaged(_))));
}

#[test]
fn every_pragma_of_a_connection_reads_back_as_promised() {
    let (_temp, journal) = journal(1);
    let conn = &journal.parts.conn;
    let number = |name: &str| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!((number("synchronous"), number("foreign_keys"), number("trusted_schema")), (2, 1, 0));
    assert_eq!(conn.pragma_query_value(None, "journal_mode", |row| row.get::<_, String>(0)).unwrap(), "wal");
}

#[test]
fn a_job_is_found_by_any_prefix_that_only_it_has() {
    let temp = tempfile::tempdir().unwrap();
    let jobs = temp.path().join("jobs");
    assert!(list(&jobs).unwrap().is_empty());
    for (byte, created) in [(0x11, 30), (0x12, 20), (0x20, 10)] {
        let id = JobId([byte; 16]);
        let draft = Draft::create(&jobs.join(id.to_string()), id).unwrap();
        draft.finish(Kind::Run, Vec::new(), created).unwrap();
    }
    std::fs::create_dir(jobs.join("not a job")).unwrap();
    assert_eq!(find(&jobs, "2").unwrap(), JobId([0x20; 16]));
    assert_eq!(find(&jobs, "12").unwrap(), JobId([0x12; 16]));
    assert!(matches!(find(&jobs, "1"), Err(FindError::Ambiguous { jobs, .. }) if jobs.len() == 2));
    for prefix in ["", "3", "zz", "../"] {
        assert!(matches!(find(&jobs, prefix), Err(FindError::None { .. })), "{prefix}");
    }
    let listed: Vec<_> = list(&jobs).unwrap().iter().map(|job| (job.id.0[0], job.running)).collect();
    assert_eq!(listed, [(0x20, false), (0x12, false), (0x11, false)]);
}

#[test]
fn ten_thousand_chunks_are_in_with_a_handful_of_syncs() {
    let (_temp, journal) = journal(10_000);
    assert_eq!(journal.job().chunks, 10_000);
    assert_eq!(10_000_u32.div_ceil(draft::ROWS_PER_COMMIT), 3);
    assert!(journal.load().unwrap().attempts.is_empty());
}

#[test]
fn too_little_space_is_refused_with_both_figures() {
    let temp = tempfile::tempdir().unwrap();
    require_space(&temp.path().join("not/yet/there"), 0).unwrap();
    let error = require_space(temp.path(), u64::MAX).unwrap_err();
    assert!(matches!(error, Error::NoSpace { need: u64::MAX, .. }), "{error}");
}

#[test]
fn who_is_kept_from_a_device_by_no_lock_is_still_known_after_a_restart() {
    let (_temp, journal) = journal(2);
    let holder = AgentId([9; 32]);
    let unguarded = |rivals: &[u8]| Step::Unguarded {
        agent: holder,
        rivals: rivals.iter().map(|rival| AgentId([*rival; 32])).collect(),
    };
    let lost = Step::Ended {
        chunk: ChunkIndex(0),
        no: 1,
        class: Class::Superseded,
        reason: Some(Reason::Cancelled),
        detail: String::new(),
        now_ms: 1,
    };
    write(&journal, vec![unguarded(&[3]), attempt(0, 1), unguarded(&[3, 4]), lost, attempt(1, 1)]);
    let resume = journal.load().unwrap();
    assert_eq!(resume.unguarded[&holder], BTreeSet::from([AgentId([3; 32]), AgentId([4; 32])]));
    assert_eq!(resume.open.iter().map(|open| open.chunk.0).collect::<Vec<_>>(), [1]);
    let ended = resume.ended.iter().map(|(ended, class, reason)| (ended.chunk.0, *class, *reason));
    assert_eq!(ended.collect::<Vec<_>>(), [(0, Class::Superseded, Some(Reason::Cancelled))]);
    write(&journal, vec![unguarded(&[])]);
    let resume = journal.load().unwrap();
    assert!(resume.unguarded.is_empty() && resume.ended.is_empty(), "a lock keeps them apart now");
}
