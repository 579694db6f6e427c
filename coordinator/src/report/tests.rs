use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tropa_proto::{
    bounded::Text,
    failure::{Class, Reason},
    id::{AgentId, Incarnation, JobId, MachineId},
    message::Outcome,
    uid::{MachineUid, ShownId},
};

use super::*;
use crate::{
    job::{Input, JobOptions, prepare},
    journal::{Committed, Done, Draft, Kind, Step, Token},
};

const JOB: JobId = JobId([0x7f; 16]);

fn job(input: &str) -> (TempDir, Journal) {
    let dir = tempfile::tempdir().unwrap();
    let mut text = input.as_bytes();
    let job = prepare(Input::Stream(&mut text), &dir.path().join("copy"), JobOptions::default()).unwrap();
    let mut draft = Draft::create(&dir.path().join("job"), JOB).unwrap();
    draft.insert(job.chunks("m:1b").unwrap()).unwrap();
    let journal = draft.finish(Kind::Run, job.spec("m:1b"), 5_000).unwrap();
    (dir, journal)
}

fn write(journal: &Journal, steps: Vec<Step>) {
    let (writer, mut reports) = journal.writer().unwrap();
    let mut left = steps.len();
    for step in steps {
        writer.submit(Token(0), step).unwrap();
    }
    while left > 0 {
        match reports.blocking_recv() {
            Some(Committed::Steps(steps)) => left -= steps.len(),
            other => panic!("{other:?}"),
        }
    }
    writer.finish();
}

fn attempt(n: u32, no: u32, agent: u8) -> Step {
    let agent = AgentId([agent; 32]);
    let (machine, lane) = (MachineId(agent), "gpu:1b2c,dram".to_owned());
    Step::Attempt {
        chunk: ChunkIndex(n),
        no,
        agent,
        incarnation: Incarnation(1),
        machine,
        lane,
        now_ms: 1000,
    }
}

fn result(n: u32, no: u32, reply: &str, done_reason: &str) -> Step {
    let body = reply.as_bytes().to_vec();
    let outcome = Outcome {
        bytes: u32::try_from(body.len()).unwrap(),
        sha256: Sha256::digest(&body).into(),
        digest: [0xd1; 32],
        done_reason: Text::new(done_reason).unwrap(),
        prompt_tokens: 812,
        output_tokens: 143,
        reasoning_only: false,
        wait_ms: 12,
        wall_us: 2_391_000,
        first_us: 150_000,
        load_us: 400,
        prompt_us: 140_000,
        decode_us: 2_210_000,
        total_us: 2_390_000,
    };
    let done = Box::new(Done { fingerprint: [0xf1; 32], outcome, body });
    Step::Result { chunk: ChunkIndex(n), no, done, now_ms: 3500 }
}

fn chat(text: &str) -> String {
    json!({"model": "m:1b", "message": {"role": "assistant", "content": text}, "done": true}).to_string()
}

fn ended(n: u32, no: u32) -> Step {
    Step::Ended {
        chunk: ChunkIndex(n),
        no,
        class: Class::LoadFailed,
        reason: Some(Reason::OutOfMemory),
        detail: "no memory".to_owned(),
        now_ms: 1910,
    }
}

fn lines_of(journal: &Journal) -> Vec<Value> {
    (0..journal.job().chunks)
        .map(|n| serde_json::from_str(&line(journal.job(), &journal.item(n).unwrap().unwrap())).unwrap())
        .collect()
}

/// A stream that can be looked into.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<u8>>>);

impl Write for Seen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seen {
    fn ids(&self) -> Vec<String> {
        let bytes = self.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|line| line["id"].as_str().unwrap().to_owned()).collect()
    }
}

fn stream(journal: &Journal, as_completed: bool) -> (Seen, Output) {
    let seen = Seen::default();
    let output =
        Output::with(journal, Destination::Stdout, Form::Lines, Some(Box::new(seen.clone())), as_completed)
            .unwrap();
    (seen, output)
}

#[test]
fn a_result_tells_how_it_came_about_to_the_last_field() {
    let (_dir, journal) = job(r#"{"prompt":"a","id":17,"options":{"seed":7},"tag":"x"}"#);
    write(
        &journal,
        vec![attempt(0, 1, 0x77), ended(0, 1), attempt(0, 2, 0x91), result(0, 2, &chat("Hi"), "length")],
    );
    let expected = json!({
        "id": "17", "text": "Hi", "error": null, "metadata": {"tag": "x"},
        "tropa": {
            "schema": "tropa.result/1", "job": "7f7f7f", "index": 0, "attempt": 2, "machine": "m-9191", "agent": "a-9191",
            "lane": ["gpu:1b2c", "dram"], "model": "m:1b", "fingerprint": "f1".repeat(32), "digest": "d1".repeat(32),
            "num_ctx": 1024, "seed": 7, "done_reason": "length", "truncated": true, "reasoning_only": false,
            "prompt_tokens": 812, "output_tokens": 143, "wait_ms": 12, "load_ms": 0, "prompt_ms": 140,
            "decode_ms": 2210, "wall_ms": 2391, "tokens_per_s": 64.7,
            "attempts": [{"no": 1, "machine": "m-7777", "class": "load_failed", "reason": "out_of_memory", "ms": 910}],
        },
    });
    let line = line(journal.job(), &journal.item(0).unwrap().unwrap());
    assert_eq!(line, expected.to_string());
}

#[test]
fn a_failure_stands_in_its_place_with_class_and_reason_and_is_never_content() {
    let (_dir, journal) = job("a\nb");
    let failed = |n, no, detail: &str| Step::Failed {
        chunk: ChunkIndex(n),
        no,
        class: Class::Crashed,
        detail: detail.to_owned(),
    };
    write(&journal, vec![attempt(0, 1, 1), ended(0, 1), failed(0, Some(1), ""), failed(1, None, "all gone")]);
    let lines = lines_of(&journal);
    assert_eq!(lines[0]["text"], Value::Null);
    assert_eq!(
        lines[0]["error"],
        json!({"code": "crashed", "reason": "out_of_memory", "message": "no memory"})
    );
    assert_eq!(lines[0]["tropa"]["attempts"].as_array().unwrap().len(), 1);
    assert_eq!(lines[1]["error"], json!({"code": "crashed", "reason": "crashed", "message": "all gone"}));
}

#[test]
fn a_result_that_is_no_answer_of_its_endpoint_is_an_error_and_the_others_are_not() {
    let (_dir, journal) = job("a\nb\nc");
    let hostile = ["not json", r#"{"message":{"content":7}}"#];
    write(
        &journal,
        vec![
            attempt(0, 1, 1),
            result(0, 1, hostile[0], "stop"),
            attempt(1, 1, 1),
            result(1, 1, hostile[1], "stop"),
            attempt(2, 1, 1),
            result(2, 1, &chat("\u{1b}[2J\n{\"done\":true}\u{202e}\0"), "stop"),
        ],
    );
    let lines = lines_of(&journal);
    for line in &lines[..2] {
        assert_eq!((&line["text"], &line["error"]["reason"]), (&Value::Null, &json!("garbled")));
    }
    assert_eq!(lines[2]["text"], "\u{1b}[2J\n{\"done\":true}\u{202e}\0", "data keeps every character");
}

#[test]
fn batch_in_gives_batch_out_in_the_shape_of_the_url() {
    let message = json!([{"role": "user", "content": "x"}]);
    let lines = [
        json!({"custom_id": "r1", "url": "/v1/chat/completions", "body": {"messages": message, "user": "u"}}),
        json!({"custom_id": "r2", "url": "/v1/completions", "body": {"prompt": "x"}}),
        json!({"custom_id": "r3", "url": "/v1/embeddings", "body": {"input": ["x", "y"]}}),
        json!({"custom_id": "r4", "url": "/api/generate", "body": {"prompt": "x"}}),
        json!({"custom_id": "r5", "url": "/api/chat", "body": {"messages": message}}),
    ];
    let (_dir, journal) = job(&lines.map(|line| line.to_string()).join("\n"));
    let call = json!({"message": {"role": "assistant", "content": "", "thinking": "hm",
        "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}});
    let generate = json!({"response": "out", "context": [1, 2], "done": true}).to_string();
    let failed =
        Step::Failed { chunk: ChunkIndex(4), no: None, class: Class::TooLong, detail: "too long".to_owned() };
    write(
        &journal,
        vec![
            attempt(0, 1, 1),
            result(0, 1, &call.to_string(), "stop"),
            attempt(1, 1, 1),
            result(1, 1, &generate, "length"),
            attempt(2, 1, 1),
            result(2, 1, r#"{"embeddings":[[0.5,1],[0.25,0]]}"#, "stop"),
            attempt(3, 1, 1),
            result(3, 1, &generate, "stop"),
            failed,
        ],
    );
    let lines = lines_of(&journal);
    let body = |n: usize| &lines[n]["response"]["body"];
    assert_eq!((&lines[0]["id"], &lines[0]["custom_id"]), (&json!("batch_req_7f7f7f_0"), &json!("r1")));
    assert_eq!(lines[0]["response"]["request_id"], "7f7f7f-0-1");
    assert_eq!(lines[0]["metadata"], json!({"user": "u"}));
    assert_eq!(body(0)["object"], "chat.completion");
    let choice = &body(0)["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["reasoning"]),
        (&json!("tool_calls"), &json!("hm"))
    );
    assert_eq!(
        choice["message"]["tool_calls"][0]["function"],
        json!({"name": "f", "arguments": "{\"x\":1}"})
    );
    assert_eq!(
        body(0)["usage"],
        json!({"prompt_tokens": 812, "completion_tokens": 143, "total_tokens": 955})
    );
    assert_eq!(
        (&body(1)["choices"][0]["text"], &body(1)["choices"][0]["finish_reason"]),
        (&json!("out"), &json!("length"))
    );
    assert_eq!(body(2)["data"][1], json!({"object": "embedding", "index": 1, "embedding": [0.25, 0]}));
    assert_eq!(body(3), &json!({"response": "out", "done": true}));
    assert_eq!(lines[4]["response"], Value::Null);
    assert_eq!(lines[4]["error"]["code"], "too_long");
}

#[test]
fn a_stream_gives_lines_in_input_order_whatever_the_order_of_the_commits() {
    let (_dir, journal) = job("a\nb\nc");
    let (seen, mut output) = stream(&journal, false);
    for (n, expected) in [(2, vec![]), (0, vec!["1"]), (1, vec!["1", "2", "3"])] {
        write(&journal, vec![attempt(n, 1, 1), result(n, 1, &chat("x"), "stop")]);
        output.committed(&journal, ChunkIndex(n)).unwrap();
        output.committed(&journal, ChunkIndex(n)).unwrap();
        assert_eq!(seen.ids(), expected);
    }
    assert_eq!(output.counts(), (3, 0));
    assert!(output.finish(&journal).unwrap());
    assert_eq!(seen.ids(), ["1", "2", "3"]);
}

#[test]
fn as_completed_gives_each_line_at_its_commit_and_after_a_restart_all_of_them() {
    let (_dir, journal) = job("a\nb\nc");
    let (seen, mut output) = stream(&journal, true);
    for n in [2, 0] {
        write(&journal, vec![attempt(n, 1, 1), result(n, 1, &chat("x"), "stop")]);
        output.committed(&journal, ChunkIndex(n)).unwrap();
    }
    assert_eq!(seen.ids(), ["3", "1"]);
    assert!(!output.finish(&journal).unwrap());
    let (seen, output) = stream(&journal, true);
    assert_eq!((seen.ids(), output.counts()), (vec!["1".to_owned(), "3".to_owned()], (2, 0)));
}

#[test]
fn an_item_that_held_back_many_does_not_release_them_in_one_piece() {
    let count = LINES_PER_COMMIT + 50;
    let (_dir, journal) = job(&"x\n".repeat(count as usize));
    let steps = (0..count).flat_map(|n| [attempt(n, 1, 1), result(n, 1, &chat("x"), "stop")]).collect();
    write(&journal, steps);
    let (seen, output) = stream(&journal, false);
    assert_eq!(seen.ids().len(), LINES_PER_COMMIT as usize);
    assert!(output.finish(&journal).unwrap());
    assert_eq!(seen.ids().len(), count as usize);
}

#[test]
fn a_file_is_there_complete_or_not_at_all_and_failures_once_more_beside_it() {
    let (dir, mut journal) = job("a\nb");
    let path = dir.path().join("out.jsonl");
    let open = |journal: &Journal| {
        Output::open(journal, Destination::File(path.clone()), Form::Lines, false).unwrap()
    };
    std::fs::write(&path, "of yesterday").unwrap();
    write(&journal, vec![attempt(1, 1, 1), result(1, 1, &chat("x"), "stop")]);
    assert!(!open(&journal).finish(&journal).unwrap());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "of yesterday");

    let failed = Step::Failed { chunk: ChunkIndex(0), no: None, class: Class::Poison, detail: String::new() };
    write(&journal, vec![failed]);
    let mut output = open(&journal);
    output.committed(&journal, ChunkIndex(0)).unwrap();
    assert_eq!(output.counts(), (1, 1));
    assert!(output.finish(&journal).unwrap());
    let text = std::fs::read_to_string(&path).unwrap();
    let ids: Vec<_> =
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].clone()).collect();
    assert_eq!(ids, ["1", "2"]);
    let errors = std::fs::read_to_string(errors_file(&path)).unwrap();
    assert_eq!(errors.lines().collect::<Vec<_>>(), text.lines().take(1).collect::<Vec<_>>());

    assert_eq!(journal.retry_failed().unwrap(), 1);
    write(&journal, vec![attempt(0, 1, 1), result(0, 1, &chat("y"), "stop")]);
    assert!(open(&journal).finish(&journal).unwrap());
    assert!(!errors_file(&path).exists());
    let mut left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["job", "out.jsonl"]);
}

#[test]
fn an_output_that_cannot_be_written_is_refused_before_any_work_and_a_device_is_not_replaced() {
    let (dir, journal) = job("a");
    let nowhere = Destination::File(dir.path().join("no/such/dir/out"));
    assert!(matches!(
        Output::open(&journal, nowhere, Form::Lines, false),
        Err(Error::Io { doing: "create", .. })
    ));
    write(&journal, vec![attempt(0, 1, 1), result(0, 1, &chat("x"), "stop")]);
    let null = Output::open(&journal, Destination::File("/dev/null".into()), Form::Lines, false).unwrap();
    assert!(null.finish(&journal).unwrap());
    assert!(is_special(Path::new("/dev/null")));
}

#[test]
fn the_summary_counts_items_classes_tokens_repeats_and_shares() {
    let (_dir, journal) = job("a\nb\nc\nd");
    let busy = Step::Ended {
        chunk: ChunkIndex(1),
        no: 1,
        class: Class::Busy,
        reason: None,
        detail: String::new(),
        now_ms: 1,
    };
    let failed =
        Step::Failed { chunk: ChunkIndex(2), no: None, class: Class::TooLong, detail: String::new() };
    let den = Step::Machine {
        id: ShownId::Uid(MachineUid { created_ms: 1, random: [0xde; 16] }),
        name: "den\u{1b}[2J".to_owned(),
        agents: vec![AgentId([2; 32])],
        aliases: BTreeSet::new(),
    };
    write(
        &journal,
        vec![
            den,
            attempt(0, 1, 1),
            ended(0, 1),
            attempt(0, 2, 2),
            result(0, 2, &chat("x"), "length"),
            attempt(1, 1, 1),
            busy,
            attempt(1, 2, 2),
            result(1, 2, &chat("x"), "stop"),
            failed,
        ],
    );
    let summary = Summary::of(&journal, Duration::from_secs(130)).unwrap();
    assert!(summary.has_failed() && !summary.is_complete());
    assert_eq!(
        summary.text(),
        "job 7f7f7f: 2 of 4 items done, 1 failed (1 too_long) in 2m 10s; 1624 prompt and 286 output tokens; \
         1 repeated attempt; 1 cut at --max-tokens\n    den\\u{1b}[2J    2 items (100 %), 286 output tokens\n"
    );
    let json = summary.json();
    assert_eq!((&json["repeated_attempts"], &json["failed_by_class"]), (&json!(1), &json!({"too_long": 1})));
    let den = json!({"machine": "m-dede", "name": "den\u{1b}[2J", "items": 2, "output_tokens": 286});
    assert_eq!(json["machines"], json!([den]));
}
