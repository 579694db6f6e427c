//! The double against recorded exchanges with real installs of three versions: status, content type and the JSON
//! keys of every line are equal; wording and numbers are not compared.

use std::path::PathBuf;

use super::*;

/// What differs on purpose, with its reason. Each entry must be needed, or the test fails.
const EXCEPTIONS: [(&str, &str); 0] = [];

const BOUNDARY: &[u8] = b"\n-----8<----- response\n";

fn folder(version: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/ollama").join(version)
}

/// A recorded request and its response.
fn recorded(version: &str, name: &str) -> (Vec<u8>, Reply) {
    let bytes = std::fs::read(folder(version).join(format!("{name}.http"))).expect(name);
    let at = bytes.windows(BOUNDARY.len()).position(|part| part == BOUNDARY).expect("the boundary");
    let raw = bytes[at + BOUNDARY.len()..].to_vec();
    (bytes[..at].to_vec(), parse(Reply { raw, ..Reply::default() }))
}

/// Every key of a value with the kind of what it holds: `message.content:string`.
fn keys(value: &Value, path: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                keys(value, &format!("{path}.{key}"), into);
            }
        }
        Value::Array(list) => {
            into.insert(format!("{path}:list"));
            list.iter().for_each(|value| keys(value, &format!("{path}[]"), into));
        }
        Value::String(_) => drop(into.insert(format!("{path}:string"))),
        Value::Number(_) => drop(into.insert(format!("{path}:number"))),
        Value::Bool(_) => drop(into.insert(format!("{path}:bool"))),
        Value::Null => drop(into.insert(format!("{path}:null"))),
    }
}

/// The different shapes among the lines, in order of appearance, and the text of a reply that is not JSON.
fn shapes(reply: &Reply) -> Vec<BTreeSet<String>> {
    let mut shapes: Vec<BTreeSet<String>> = Vec::new();
    let text = reply.text();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let mut shape = BTreeSet::new();
        match serde_json::from_str(line) {
            Ok(value) => keys(&value, "", &mut shape),
            Err(_) => drop(shape.insert(line.to_owned())),
        }
        if shapes.last() != Some(&shape) {
            shapes.push(shape);
        }
    }
    shapes
}

#[tokio::test]
async fn recorded_requests_get_replies_of_the_recorded_shape() {
    let mut needed = BTreeSet::new();
    for version in ["0.12.6", "0.17.4", "0.24.0"] {
        // Counted as the recorded model counts: a token per byte, and two for the template.
        let tiny = Model::new("tiny:latest").context(2048).size(3_087_752).tokens(1, 2);
        let double = Double::builder().version(version).model(tiny).prefill_us(0).decode_us(0).start().await;
        for name in names() {
            let (request, expected) = recorded(version, name);
            if name == "runner_killed" {
                double.inject("error_line:after=3*1");
            }
            let reply = exchange(double.addr(), &request).await;
            let mut differences = Vec::new();
            if reply.status != expected.status {
                differences.push(format!("status {} and not {}", reply.status, expected.status));
            }
            if reply.content_type() != expected.content_type() {
                differences.push(format!(
                    "type {:?} and not {:?}",
                    reply.content_type(),
                    expected.content_type()
                ));
            }
            if shapes(&reply) != shapes(&expected) {
                differences.push(format!("shapes {:#?} and not {:#?}", shapes(&reply), shapes(&expected)));
            }
            match EXCEPTIONS.iter().find(|(exception, _)| *exception == name) {
                Some((exception, _)) => drop((!differences.is_empty()).then(|| needed.insert(*exception))),
                None => assert!(differences.is_empty(), "{version} {name}: {}", differences.join("; ")),
            }
        }
    }
    assert_eq!(needed.len(), EXCEPTIONS.len(), "exceptions that nothing needs");
}

/// All recorded exchanges, in the order in which they were made where that matters.
fn names() -> Vec<&'static str> {
    vec![
        "version",
        "tags",
        "ps_empty",
        "status",
        "show",
        "generate_load",
        "ps_loaded",
        "chat_stream",
        "chat_whole",
        "generate_stream",
        "embed",
        "length_limited",
        "too_long_stream",
        "too_long_whole",
        "too_long_embed",
        "too_long_default_cut",
        "model_missing",
        "model_missing_embed",
        "bad_option_type",
        "bad_format_stream",
        "unknown_path",
        "wrong_method",
        "foreign_origin",
        "think_unsupported",
        "repeats_no_done",
        "repeats_no_done_whole",
        "runner_killed",
        "ps_after_runner_killed",
    ]
}

#[test]
fn every_recorded_exchange_is_replayed() {
    for version in ["0.12.6", "0.17.4", "0.24.0"] {
        let files = std::fs::read_dir(folder(version)).expect("the fixtures");
        let files: BTreeSet<String> =
            files.map(|file| file.expect("a file").file_name().to_string_lossy().into_owned()).collect();
        let expected: BTreeSet<String> = names().iter().map(|name| format!("{name}.http")).collect();
        assert_eq!(files, expected, "{version}");
    }
}

#[tokio::test]
async fn counts_and_texts_that_clients_rely_on_are_the_recorded_ones() {
    let tiny = Model::new("tiny:latest").context(2048).tokens(1, 2);
    let double = Double::builder().version("0.24.0").model(tiny).prefill_us(0).decode_us(0).start().await;
    for name in ["too_long_default_cut", "length_limited", "chat_whole", "chat_stream"] {
        let (request, expected) = recorded("0.24.0", name);
        let reply = exchange(double.addr(), &request).await;
        for key in ["prompt_eval_count", "eval_count", "done_reason"] {
            assert_eq!(reply.last()[key], expected.last()[key], "{name} {key}");
        }
    }
    for name in [
        "model_missing",
        "model_missing_embed",
        "bad_option_type",
        "bad_format_stream",
        "too_long_stream",
        "too_long_embed",
        "think_unsupported",
    ] {
        let (request, expected) = recorded("0.24.0", name);
        assert_eq!(exchange(double.addr(), &request).await.error(), expected.error(), "{name}");
    }
    let (request, expected) = recorded("0.24.0", "repeats_no_done");
    let reply = exchange(double.addr(), &request).await;
    assert_eq!(reply.lines().len(), expected.lines().len(), "lines before equal tokens end the stream");
}
