use std::io::Write as _;

use proptest::prelude::*;
use serde_json::json;
use tropa_proto::{id::JobId, message::Endpoint};

use super::*;
use crate::journal::{Draft, Kind, NewChunk};

fn prepared(text: impl AsRef<[u8]>, options: JobOptions) -> Result<(tempfile::TempDir, Prepared), Error> {
    let dir = tempfile::tempdir().unwrap();
    let mut text = text.as_ref();
    let prepared = prepare(Input::Stream(&mut text), &dir.path().join("copy"), options)?;
    Ok((dir, prepared))
}

fn chunks(text: &str, options: JobOptions) -> Vec<NewChunk> {
    let (_dir, job) = prepared(text, options).unwrap();
    let chunks: Vec<_> = job.chunks("m").unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(chunks.len(), job.items() as usize);
    chunks
}

fn body(chunk: &NewChunk) -> Value {
    serde_json::from_slice(&chunk.body).unwrap()
}

fn origin(chunk: &NewChunk) -> Origin {
    serde_json::from_str(&chunk.origin).unwrap()
}

fn refusal(text: impl AsRef<[u8]>, options: JobOptions) -> InputError {
    match prepared(text, options) {
        Err(error @ Error::Input(_)) => {
            assert_eq!(error.exit_code(), 65);
            let Error::Input(error) = error else { unreachable!() };
            assert!(!error.what.is_empty() && !error.remedy.is_empty());
            error
        }
        other => panic!("{:?}", other.map(|(_, job)| job)),
    }
}

fn with(format: Format) -> JobOptions {
    JobOptions { format, ..JobOptions::default() }
}

#[test]
fn a_line_of_text_becomes_a_chat_with_every_field_that_a_request_must_carry() {
    let chunks = chunks("\u{feff}Hello\r\n\n  \nWorld", JobOptions::default());
    assert_eq!(chunks.len(), 2);
    let expected = json!({
        "model": "m:latest", "stream": true, "messages": [{"role": "user", "content": "Hello"}], "think": false,
        "options": {"num_predict": 512, "num_ctx": 1024}, "truncate": false, "shift": false, "keep_alive": "600s",
    });
    assert_eq!(String::from_utf8(chunks[0].body.clone()).unwrap(), expected.to_string());
    assert_eq!(chunks[0].model, "m:latest");
    assert_eq!((origin(&chunks[1]).id, origin(&chunks[1]).line), ("4".to_owned(), 4));
}

#[test]
fn what_an_item_leaves_out_comes_from_the_flags_and_what_it_says_wins() {
    let options = JobOptions {
        max_tokens: Some(9),
        seed: Some(7),
        temperature: Some(0.5),
        system: Some("Be brief".to_owned()),
        think: Some(Think::On),
        ..JobOptions::default()
    };
    let text = concat!(
        r#"{"prompt":"a","id":5}"#,
        "\n",
        r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"b"}],"options":{"seed":1,"num_predict":3},"think":"low","model":"x/y","format":{"z":1,"a":2},"tools":[{"n":1}],"extra":{"k":[1]}}"#
    );
    let chunks = chunks(text, options);
    let first = body(&chunks[0]);
    assert_eq!(first["messages"][0], json!({"role": "system", "content": "Be brief"}));
    assert_eq!(first["options"], json!({"seed": 7, "temperature": 0.5, "num_predict": 9, "num_ctx": 1024}));
    assert_eq!(first["think"], true);
    let second = body(&chunks[1]);
    assert_eq!(second["messages"].as_array().unwrap().len(), 2);
    assert_eq!((&second["options"]["seed"], &second["options"]["num_predict"]), (&json!(1), &json!(3)));
    assert_eq!((&second["think"], &second["model"]), (&json!("low"), &json!("x/y:latest")));
    assert_eq!(
        second["format"].to_string(),
        r#"{"z":1,"a":2}"#,
        "the order of a schema is the order of the answer"
    );
    assert_eq!(origin(&chunks[0]).id, "5");
    assert_eq!(Value::from(origin(&chunks[1]).metadata), json!({"extra": {"k": [1]}}));
    assert_eq!(origin(&chunks[1]).seed, Some(1));
}

#[test]
fn an_embedding_carries_what_embed_has_and_no_more() {
    let chunks =
        chunks(r#"{"input":["a","b"],"model":"e:1"}"#, JobOptions { seed: Some(1), ..JobOptions::default() });
    let expected = json!({"model": "e:1", "input": ["a", "b"], "options": {"num_ctx": 1024}, "truncate": false, "keep_alive": "600s"});
    assert_eq!(body(&chunks[0]), expected);
    assert_eq!((chunks[0].endpoint, origin(&chunks[0]).shape), (Endpoint::Embed, Shape::Vectors));
}

#[test]
fn a_context_fits_the_longest_item_and_short_items_do_not_pay_for_a_long_one() {
    let long = "x".repeat(30_000);
    let text = format!("short\n{long}\nshort");
    let chunks = chunks(&text, JobOptions { max_tokens: Some(100), ..JobOptions::default() });
    // (30,000 / 3 + two messages' worth of template) × 1.15 + 100 + 64, rounded up.
    let need: u64 = (10_020_u64 * 115).div_ceil(100) + 164;
    for (chunk, context) in chunks.iter().zip([1024, need.next_multiple_of(1024), 1024]) {
        assert_eq!(body(chunk)["options"]["num_ctx"], context);
        assert_eq!(u64::from(origin(chunk).num_ctx), context);
    }
    let options = JobOptions { num_ctx: Some(4096), ..JobOptions::default() };
    assert_eq!(prepared("a", options).unwrap().1.num_ctx(), 4096);
    let (_dir, own) =
        prepared(r#"{"prompt":"a","options":{"num_ctx":2000}}"#, JobOptions::default()).unwrap();
    assert_eq!(own.num_ctx(), 2000);
}

#[test]
fn what_cannot_be_read_is_refused_with_its_line_and_a_remedy() {
    let big = format!(r#"{{"prompt":"{}"}}"#, "x".repeat(tropa_proto::message::MAX_BODY));
    let huge = "x".repeat(8 << 20);
    let twice = concat!(
        r#"{"custom_id":"a","url":"/api/chat","body":{"messages":[{"role":"user","content":"x"}]}}"#,
        "\n\n",
        r#"{"custom_id":"a","url":"/api/chat","body":{"messages":[{"role":"user","content":"x"}]}}"#
    );
    let jsonl: Vec<(&str, u64, &str)> = vec![
        ("", 0, "no item"),
        ("\n \n\r\n", 0, "no item"),
        ("{\"prompt\":\"a\"}\n{\"prompt\":", 2, "not JSON"),
        ("{\"prompt\":\"a\"}\n\n[1]", 3, "not a JSON object"),
        (r#"{"id":"x"}"#, 1, "none of `prompt`"),
        (r#"{"prompt":"a","input":"b"}"#, 1, "`prompt` and `input` at once"),
        (r#"{"prompt":""}"#, 1, "empty"),
        (r#"{"prompt":7}"#, 1, "no text"),
        (r#"{"messages":[]}"#, 1, "`messages`"),
        (r#"{"messages":[{"role":"user"}]}"#, 1, "message 0 has no `content`"),
        (r#"{"messages":[{"content":"x"}]}"#, 1, "message 0 has no `role`"),
        (r#"{"messages":[{"role":"system","content":"x"}]}"#, 1, "empty"),
        (r#"{"input":[]}"#, 1, "`input`"),
        (r#"{"input":["a",""]}"#, 1, "`input`"),
        (r#"{"input":"a","tools":[]}"#, 1, "`tools` means nothing"),
        (r#"{"prompt":"a","think":"hard"}"#, 1, "`think`"),
        (r#"{"prompt":"a","options":[]}"#, 1, "`options`"),
        (r#"{"prompt":"a","options":{"num_predict":-1}}"#, 1, "limit of tokens"),
        (r#"{"prompt":"a","options":{"num_predict":0}}"#, 1, "limit of tokens"),
        (r#"{"prompt":"a","options":{"seed":1.5}}"#, 1, "`seed`"),
        (r#"{"prompt":"a","format":"xml"}"#, 1, "`format`"),
        (r#"{"prompt":"a","tools":{}}"#, 1, "`tools`"),
        (r#"{"prompt":"a","model":"gpt-oss:120b-Cloud"}"#, 1, "cloud"),
        (r#"{"prompt":"a","model":"a b"}"#, 1, "`model`"),
        (r#"{"prompt":"a","id":{}}"#, 1, "`id`"),
        (
            "{\"prompt\":\"a\"}\n{\"prompt\":\"b\",\"options\":{\"num_gpu\":1}}",
            2,
            "differ from those of the first",
        ),
        (&big, 1, "at most 1048576 fit"),
        (&huge, 1, "longer than"),
    ];
    for (text, line, what) in jsonl {
        let error = refusal(text, with(Format::Jsonl));
        assert!(error.line == line && error.what.contains(what), "{}: {error}", &text[..text.len().min(80)]);
    }
    assert!(
        refusal(twice, JobOptions::default()).to_string().starts_with("line 3: the `custom_id` of line 1")
    );
    let error = refusal(b"fine\nb\xffd\n", with(Format::Lines));
    assert!(error.line == 2 && error.what.contains("byte 2"), "{error}");
    assert!(!error.to_string().contains("fine"));
}

#[test]
fn the_kind_of_an_input_goes_by_suffix_and_then_by_its_first_item() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("a.txt", "{\"prompt\":\"x\"}", Some(Format::Lines)),
        ("a.jsonl", "\n{\"prompt\":\"x\"}", Some(Format::Jsonl)),
        ("a.jsonl", "not an object", None),
        ("a", "{\"input\":\"x\"}", Some(Format::Jsonl)),
        ("a.md", "# title", Some(Format::Lines)),
        ("a", "{\"custom_id\":\"1\",\"url\":\"/api/embed\",\"body\":{\"input\":\"x\"}}", Some(Format::Batch)),
        ("a", "{broken", Some(Format::Lines)),
    ];
    for (name, text, format) in cases {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let prepared = prepare(Input::File(&path), &dir.path().join("copy"), JobOptions::default());
        assert_eq!(prepared.ok().map(|job| job.format()), format, "{name}: {text}");
        assert!(!dir.path().join("copy").exists(), "a file is not copied");
    }
}

#[test]
fn a_template_is_filled_once_and_only_with_what_is_there() {
    let options = |template: &str, format| JobOptions { template: Some(template.to_owned()), ..with(format) };
    let lines = chunks("a {{line}} b", options("Say: {{ line }}!", Format::Lines));
    assert_eq!(body(&lines[0])["messages"][0]["content"], "Say: a {{line}} b!");

    let table = "name,\"text, long\",n\nx,\"he said \"\"hi\"\"\nand left\",1\n\n\"y\",b,2";
    let csv = JobOptions { id_column: Some("name".to_owned()), ..options("{{text, long}}", Format::Csv) };
    let rows = chunks(table, csv);
    assert_eq!(body(&rows[0])["messages"][0]["content"], "he said \"hi\"\nand left");
    assert_eq!((origin(&rows[0]).id, origin(&rows[0]).line), ("x".to_owned(), 2));
    assert_eq!(Value::from(origin(&rows[1]).metadata), json!({"n": "2"}));
    assert_eq!(origin(&rows[1]).line, 5);

    for (text, template, line, what) in [
        ("a,b\n1,2", "{{c}}", 1, "no column `c`"),
        ("a,a\n1,2", "{{a}}", 1, "twice"),
        ("a,b\n1,2\n3", "{{a}}", 3, "1 fields"),
        ("a,b\n\"1,2", "{{a}}", 2, "never closed"),
        ("a,b\n\"1\"x,2", "{{a}}", 2, "after a closing quote"),
        ("a,b", "{{a}}", 0, "no item"),
    ] {
        let error = refusal(text, options(template, Format::Csv));
        assert!(error.line == line && error.what.contains(what), "{text:?}: {error}");
    }
    for options in [
        options("{{column}}", Format::Lines),
        options("no hole", Format::Lines),
        options("{{open", Format::Lines),
        options("{{line}}", Format::Jsonl),
        with(Format::Csv),
        JobOptions { id_column: Some("a".to_owned()), ..with(Format::Lines) },
    ] {
        let error = prepared("a", options).unwrap_err();
        assert_eq!(error.exit_code(), 64, "{error}");
    }
}

fn batch(url: &str, body: Value) -> String {
    json!({"custom_id": "r", "method": "POST", "url": url, "body": body}).to_string()
}

#[test]
fn openai_lines_run_on_the_native_endpoints() {
    let text = batch(
        "/v1/chat/completions",
        json!({
            "model": "m:1b", "max_tokens": 5, "max_completion_tokens": 6, "stop": "END", "seed": 3, "user": "u",
            "reasoning_effort": "minimal", "stream": true, "n": 1, "tools": [{"type": "function"}], "tool_choice": "none",
            "response_format": {"type": "json_schema", "json_schema": {"schema": {"z": 1, "a": 2}}},
            "messages": [
                {"role": "developer", "content": "d"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
                {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{\"x\":1}"}}]},
                {"role": "tool", "tool_call_id": "1", "content": "r"},
            ],
        }),
    );
    let chunks = chunks(&text, JobOptions::default());
    let (body, origin) = (body(&chunks[0]), origin(&chunks[0]));
    assert_eq!(
        body["options"],
        json!({"stop": ["END"], "seed": 3, "num_predict": 6, "temperature": 1.0, "top_p": 1.0, "num_ctx": 3072})
    );
    assert_eq!(body["messages"][0]["role"], "system");
    assert_eq!(body["messages"][1], json!({"role": "user", "content": "a\nb", "images": ["AAAA"]}));
    assert_eq!(body["messages"][2]["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
    assert_eq!((&body["think"], body["format"].to_string()), (&json!("low"), r#"{"z":1,"a":2}"#.to_owned()));
    assert!(body.get("tools").is_none());
    assert_eq!((origin.id.as_str(), origin.shape), ("r", Shape::ChatCompletion));
    assert_eq!(Value::from(origin.metadata), json!({"user": "u", "stream": true}));
}

#[test]
fn openai_lines_that_ask_for_what_is_not_there_are_refused_and_never_ignored() {
    let chat = |extra: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        batch("/v1/chat/completions", body)
    };
    let cases = [
        (chat(json!({"n": 2})), "`n`"),
        (chat(json!({"logit_bias": {"1": 5}})), "`logit_bias`"),
        (chat(json!({"tool_choice": "required"})), "`tool_choice`"),
        (chat(json!({"max_tokens": 0})), "limit of tokens"),
        (chat(json!({"reasoning_effort": "huge"})), "`reasoning_effort`"),
        (chat(json!({"who_knows": 1})), "`who_knows`"),
        (
            chat(
                json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]}),
            ),
            "image by address",
        ),
        (batch("/v1/completions", json!({"prompt": ["a", "b"]})), "`prompt`"),
        (batch("/v1/embeddings", json!({"input": [1, 2]})), "`input`"),
        (batch("/v1/embeddings", json!({"input": "a", "encoding_format": "base64"})), "`encoding_format`"),
        (batch("/v1/images", json!({})), "unknown `url`"),
        (batch("/api/chat", json!({"messages": [{"role": "user", "content": "x"}], "raw": true})), "`raw`"),
        (json!({"url": "/api/chat", "body": {}}).to_string(), "`custom_id`"),
        (json!({"custom_id": "a", "body": {}}).to_string(), "no `url`"),
        (json!({"custom_id": "a", "method": "GET", "url": "/api/chat", "body": {}}).to_string(), "`method`"),
    ];
    for (text, what) in cases {
        let error = refusal(&text, with(Format::Batch));
        assert!(error.line == 1 && error.what.contains(what), "{text}: {error}");
    }
}

#[test]
fn a_stream_is_copied_for_the_user_alone_and_the_copy_goes_with_the_job() {
    use std::os::unix::fs::PermissionsExt as _;
    let (dir, job) = prepared("a\nb", JobOptions::default()).unwrap();
    let copy = dir.path().join("copy");
    assert_eq!(copy.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(file_sha256(&copy).unwrap(), job.sha256());
    drop(job);
    assert!(!copy.exists());
}

#[test]
fn an_input_that_changes_between_the_passes_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("in.txt");
    for changed in ["a\nb\nc", "a", "a\nx"] {
        std::fs::write(&path, "a\nb").unwrap();
        let job = prepare(Input::File(&path), &dir.path().join("copy"), JobOptions::default()).unwrap();
        std::fs::write(&path, changed).unwrap();
        let made: Vec<_> = job.chunks("m").unwrap().collect();
        assert!(made.last().unwrap().is_err(), "{changed}");
    }
}

/// Set for the copy of this test program that takes in a large input; names the directory to do it in.
const CHILD: &str = "TROPA_TEST_LARGE_INPUT";

#[test]
fn child_that_takes_in_a_large_input() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let dir = Path::new(&dir);
    let job = prepare(Input::File(&dir.join("in.jsonl")), &dir.join("copy"), JobOptions::default()).unwrap();
    let mut draft = Draft::create(&dir.join("job"), JobId([1; 16])).unwrap();
    draft.insert(job.chunks("m").unwrap()).unwrap();
    let journal = draft.finish(Kind::Run, job.spec("m"), 0).unwrap();
    assert_eq!(journal.job().chunks, 100_000);
    let last = journal.chunk(tropa_proto::id::ChunkIndex(99_999)).unwrap();
    assert!(String::from_utf8(last.body).unwrap().contains("question 99999 "));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    println!("peak {}", peak.trim().trim_end_matches(" kB"));
}

#[test]
fn a_hundred_thousand_lines_go_into_a_journal_in_flat_memory() {
    if !cfg!(target_os = "linux") {
        println!("skipped: no /proc");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut file = io::BufWriter::new(std::fs::File::create(dir.path().join("in.jsonl")).unwrap());
    let padding = "x".repeat(600);
    for n in 0..100_000 {
        writeln!(file, "{{\"prompt\":\"question {n} {padding}\"}}").unwrap();
    }
    let input = file.into_inner().unwrap().metadata().unwrap().len();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "job::tests::child_that_takes_in_a_large_input", "--nocapture", "--test-threads=1"])
        .env(CHILD, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let peak =
        text.lines().find_map(|line| line.split_once("peak ")).unwrap().1.parse::<u64>().unwrap() * 1024;
    assert!(peak < input / 2, "{peak} bytes at the peak for an input of {input}");
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        prop_oneof![Just("json"), Just("low"), Just("user"), Just("system")].prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let key = prop_oneof![
            Just("role".to_owned()),
            Just("content".to_owned()),
            Just("num_predict".to_owned()),
            Just("num_ctx".to_owned()),
            ".{0,4}"
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn line_of_jsonl() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        Just("prompt"),
        Just("messages"),
        Just("input"),
        Just("id"),
        Just("model"),
        Just("system"),
        Just("options"),
        Just("format"),
        Just("think"),
        Just("tools"),
        Just("other"),
    ];
    let object = prop::collection::vec((key, json_value()), 0..4).prop_map(|pairs| {
        Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()).to_string()
    });
    let good =
        (".{1,40}", json_value()).prop_map(|(text, other)| json!({"prompt": text, "x": other}).to_string());
    prop_oneof![4 => object, 2 => good, 1 => "[^\n]{0,60}"]
}

proptest! {
    #[test]
    fn any_line_of_jsonl_is_refused_with_its_number_or_has_every_field_that_it_must_carry(line in line_of_jsonl()) {
        let text = format!("{{\"prompt\":\"first\"}}\n{line}\n");
        match prepared(&text, with(Format::Jsonl)) {
            Err(Error::Input(error)) => prop_assert_eq!(error.line, 2),
            Err(other) => prop_assert!(false, "{}", other),
            Ok((_dir, job)) => for chunk in job.chunks("m:1").unwrap() {
                let chunk = chunk.unwrap();
                let body: Value = serde_json::from_slice(&chunk.body).unwrap();
                prop_assert!(body["model"].as_str().unwrap().contains(':'));
                prop_assert_eq!(&body["truncate"], false);
                prop_assert_eq!(&body["keep_alive"], "600s");
                prop_assert!(body["options"]["num_ctx"].as_u64().unwrap() > 0);
                if chunk.endpoint == Endpoint::Embed {
                    prop_assert!(body["input"].is_string() || !body["input"].as_array().unwrap().is_empty());
                } else {
                    prop_assert_eq!(&body["stream"], true);
                    prop_assert_eq!(&body["shift"], false);
                    prop_assert!(body["think"].is_boolean() || body["think"].is_string());
                    prop_assert!(body["options"]["num_predict"].as_u64().unwrap() > 0);
                    prop_assert!(!body["messages"].as_array().unwrap().is_empty());
                }
            },
        }
    }
}
