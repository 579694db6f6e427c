use tempfile::TempDir;
use tropa_proto::{
    bounded::Text,
    failure::{Class, Reason},
    id::{AgentId, ChunkIndex, Incarnation, JobId, MachineId},
    message::{Endpoint, Outcome},
};

use super::*;
use crate::journal::{Done, Draft, Kind, NewChunk, Step, Token};

const HOSTILE: &str = "</title><script>alert('x')</script>\"&\u{1b}[2J\u{202e}";

fn journal(chunks: u32, steps: Vec<Step>) -> (TempDir, Journal) {
    let temp = tempfile::tempdir().unwrap();
    let id = JobId([0xa1; 16]);
    let mut draft = Draft::create(&temp.path().join(id.to_string()), id).unwrap();
    let chunk = |n: u32| {
        let body = format!("{{\"n\":{n},\"prompt\":\"CANARY\"}}").into_bytes();
        let (model, origin) = ("m:1b".to_owned(), "{}".to_owned());
        Ok::<_, Error>(NewChunk {
            endpoint: Endpoint::Chat,
            model,
            body,
            origin,
            needs: BTreeSet::new(),
            shown: true,
        })
    };
    draft.insert((0..chunks).map(chunk)).unwrap();
    let journal = draft.finish(Kind::Run, b"{}".to_vec(), 1_000).unwrap();
    let (writer, reports) = journal.writer().unwrap();
    drop(reports);
    for step in steps {
        let mut step = Box::new(step);
        // The queue is bounded; the writer takes from it all the time.
        while let Err(back) = writer.submit(Token(0), *step) {
            step = back;
            std::thread::yield_now();
        }
    }
    writer.finish();
    (temp, journal)
}

fn attempt(n: u32, no: u32, on: u8, at: u64) -> [Step; 2] {
    let (chunk, agent) = (ChunkIndex(n), AgentId([on; 32]));
    let (machine, lane) = (MachineId(agent), "dram".to_owned());
    [
        Step::Attempt { chunk, no, agent, incarnation: Incarnation(1), machine, lane, now_ms: at },
        Step::Started { chunk, no, now_ms: at + 10 },
    ]
}

fn won(n: u32, no: u32, tokens: u32, at: u64) -> Step {
    let outcome = Outcome {
        bytes: 2,
        sha256: [0; 32],
        digest: [3; 32],
        done_reason: Text::new("stop").unwrap(),
        prompt_tokens: 5,
        output_tokens: tokens,
        reasoning_only: false,
        wait_ms: 7,
        wall_us: 90_000,
        first_us: 3,
        load_us: 20_000,
        prompt_us: 10_000,
        decode_us: 50_000,
        total_us: 90_000,
    };
    let done = Box::new(Done { fingerprint: [2; 32], outcome, body: b"\"CANARY\"".to_vec() });
    Step::Result { chunk: ChunkIndex(n), no, done, now_ms: at }
}

fn crash(n: u32, no: u32, at: u64) -> Step {
    let (class, reason) = (Class::RunnerCrash, Some(Reason::RunnerCrash));
    Step::Ended { chunk: ChunkIndex(n), no, class, reason, detail: "CANARY".to_owned(), now_ms: at }
}

fn name(id: ShownId, name: &str) -> Step {
    Step::Machine { id, name: name.to_owned(), agents: Vec::new(), aliases: BTreeSet::new() }
}

/// Two machines: one takes 0 to 100 and 100 to 200, the other 50 to 150, where chunk 2 crashes once and fails.
fn small() -> (TempDir, Journal) {
    let [one, two] = [1, 2].map(|n| ShownId::Roster(MachineId(AgentId([n; 32]))));
    let mut steps = vec![name(one, HOSTILE), name(two, "attic")];
    steps.extend(attempt(0, 1, 1, 10_000));
    steps.push(won(0, 1, 40, 10_110));
    steps.extend(attempt(1, 1, 1, 10_100));
    steps.push(won(1, 1, 60, 10_210));
    steps.extend(attempt(2, 1, 2, 10_050));
    steps.push(crash(2, 1, 10_160));
    let (class, detail) = (Class::Crashed, "CANARY".to_owned());
    steps.push(Step::Failed { chunk: ChunkIndex(2), no: Some(1), class, detail });
    journal(3, steps)
}

#[test]
fn time_at_work_is_counted_once_and_every_machine_has_its_share() {
    let (_temp, journal) = small();
    let account = Account::of(&journal, "done").unwrap();
    assert_eq!((account.done, account.failed, account.attempts), (2, 1, 3));
    assert_eq!((account.first_ms, account.last_ms, account.at_work_ms), (10_000, 10_210, 200));
    assert_eq!(account.tokens_per_s, Some(500.0), "100 tokens in 200 ms");
    let [den, attic] = account.machines.as_slice() else { panic!("{:?}", account.machines) };
    assert_eq!((den.items, den.engine_ms, den.load_ms, den.wait_ms), (2, 200, 40, 14));
    assert_eq!((attic.items, attic.engine_ms, attic.name.as_str()), (0, 100, "attic"));
    assert_eq!(account.devices.iter().map(|row| row.busy_ms).collect::<Vec<_>>(), [200, 100]);
    assert_eq!(account.attempts_by_class.get("runner_crash"), Some(&1));
    let trouble = &account.troubles[0];
    assert_eq!((trouble.chunk, trouble.class.as_str(), trouble.ran_ms), (2, "runner_crash", Some(100)));
}

#[test]
fn the_page_is_whole_in_itself_and_says_nothing_of_prompts() {
    let (_temp, journal) = small();
    let account = Account::of(&journal, "done").unwrap();
    let page = account.page();
    for forbidden in
        ["CANARY", "<script", "http://", "https://", "url(", "@import", "src=", "\u{1b}", "\u{202e}"]
    {
        assert!(!page.contains(forbidden), "{forbidden:?} is in the page");
    }
    assert!(page.contains("&lt;script&gt;") && page.contains("default-src 'none'"));
    assert_eq!(page.matches("<g><title>").count(), 3, "a bar for every attempt");
    assert!(page.contains("class=\"failed\"") && page.contains("class=\"load\""));
    let text = account.text();
    assert!(!text.contains("CANARY") && !text.contains('\u{1b}'), "{text}");
    assert!(text.contains("2 of 3 items done, 1 failed (1 crashed)"), "{text}");
    let json = serde_json::to_string(&account).unwrap();
    assert!(!json.contains("CANARY"), "{json}");
}

#[test]
fn a_job_with_many_attempts_gets_a_page_of_bounded_size_and_loses_no_time() {
    let count = u32::try_from(MAX_SPANS).unwrap() + 1;
    let steps = (0..count).flat_map(|n| {
        let at = 10_000 + u64::from(n) * 100;
        let [recorded, started] = attempt(n, 1, 1, at);
        [recorded, started, won(n, 1, 1, at + 100)]
    });
    let (_temp, journal) = journal(count, steps.collect());
    let account = Account::of(&journal, "done").unwrap();
    let row = &account.devices[0];
    assert!(row.spans.is_empty());
    assert_eq!(row.pieces.iter().sum::<u64>(), row.busy_ms, "every millisecond is in one piece");
    assert_eq!(row.busy_ms, u64::from(count) * 90);
    let page = account.page();
    assert!(page.len() < 100_000 && page.contains("the darker, the busier"), "{} bytes", page.len());
}

#[test]
fn a_job_without_attempts_and_one_at_work_have_an_account_too() {
    let (_temp, nothing) = journal(2, Vec::new());
    let account = Account::of(&nothing, "open").unwrap();
    assert!(account.text().contains("nothing has run"), "{}", account.text());
    assert!(account.page().contains("0 of 2") && account.tokens_per_s.is_none());
    let mut steps = attempt(0, 1, 1, 10_000).to_vec();
    steps.extend(attempt(1, 1, 2, 10_000));
    steps.push(won(1, 1, 1, 10_500));
    let (_temp, at_work) = journal(2, steps);
    let account = Account::of(&at_work, "running").unwrap();
    let open = account.devices.iter().flat_map(|row| &row.spans).find(|span| span.outcome == How::Open);
    assert_eq!(
        open.map(|span| (span.start, span.end)),
        Some((10, 500)),
        "it is drawn up to the last that is known"
    );
}
