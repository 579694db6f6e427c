//! Jobs on real Ollama, from the command to the engine and back: `tropa`, `tropa-agent` and `ollama serve`, each a
//! process of its own. All installs here are one machine, so they work one at a time; that is seen from outside,
//! by a witness on the wire between each agent and its install.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Instant,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tropa_tests::{
    harness::{Hardware, World, results, wait_until},
    real_ollama::RealOllama,
    skipped, wire,
};

use crate::jobs::{said, world};

/// Tokens that the tiny model makes per answer; it never stops by itself.
const TOKENS: u64 = 12;

/// A pass to an install that notes when chats begin and end.
struct Witness {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<(Instant, Instant)>>>,
}

/// A chat that runs; dropping it writes it down.
struct Chat(Instant, Arc<Mutex<Vec<(Instant, Instant)>>>);

impl Witness {
    fn before(install: SocketAddr) -> Self {
        let spans: Arc<Mutex<Vec<(Instant, Instant)>>> = Arc::default();
        let seen = Arc::clone(&spans);
        let began = Arc::new(move || -> wire::Running { Box::new(Chat(now(), Arc::clone(&seen))) });
        let address =
            wire::forward(SocketAddr::from(([127, 0, 0, 1], 0)), &install.to_string(), began).unwrap();
        Self { address, spans }
    }

    /// Every chat that has ended: when its request was passed on, and when the last byte of its answer came.
    fn spans(&self) -> Vec<(Instant, Instant)> {
        self.spans.lock().unwrap().clone()
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        self.1.lock().unwrap().push((self.0, now()));
    }
}

#[expect(clippy::disallowed_methods, reason = "the witness has a clock of its own")]
fn now() -> Instant {
    Instant::now()
}

/// Installs of one machine, with one store of models.
fn installs(count: usize) -> Result<(TempDir, Vec<RealOllama>), String> {
    RealOllama::find()?;
    let models = tempfile::tempdir().unwrap();
    let installs: Vec<_> = (0..count).map(|_| RealOllama::start(models.path(), &[]).unwrap()).collect();
    installs[0].create("tiny").unwrap();
    Ok((models, installs))
}

fn prompts(world: &World, count: usize) -> String {
    let text: String = (0..count).map(|n| format!("{n}: one load per llama\n")).collect();
    world.file("prompts.txt", &text).unwrap().to_str().unwrap().to_owned()
}

/// Asserts that these are whole answers of the tiny model, in order.
fn whole(rows: &[Value], count: usize) {
    assert_eq!(rows.len(), count);
    for (index, row) in rows.iter().enumerate() {
        let tropa = &row["tropa"];
        assert!(row["error"].is_null() && tropa["index"] == index, "{row}");
        assert_eq!(tropa["output_tokens"], TOKENS, "{row}");
        // A token per character, and two: `TINY_GGUF` has no template.
        let sent = format!("{index}: one load per llama").len() + 2;
        assert_eq!(tropa["prompt_tokens"], sent, "{row}");
        assert_eq!((&tropa["done_reason"], &tropa["truncated"]), (&json!("length"), &json!(true)), "{row}");
        assert!(tropa["prompt_ms"].as_u64() <= tropa["wall_ms"].as_u64(), "{row}");
        assert!(!row["text"].as_str().unwrap().is_empty());
    }
}

#[test]
fn two_real_installs_on_one_machine_work_one_at_a_time() {
    let (_models, installs) = match installs(2) {
        Ok(found) => found,
        Err(reason) => return skipped(&reason),
    };
    let world = world();
    let witnesses = [Witness::before(installs[0].addr()), Witness::before(installs[1].addr())];
    let _one = world.agent("one", witnesses[0].address, Hardware::This, &[]).unwrap();
    let _two = world.agent("two", witnesses[1].address, Hardware::This, &[]).unwrap();
    let input = prompts(&world, 8);
    let plan = world.run(&["plan", &input, "--json"]).unwrap();
    let planned: Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!(planned["at_once"], 1, "{}", said(&plan));

    let output = world.run(&["run", &input, "--max-tokens", &TOKENS.to_string()]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    whole(&results(&String::from_utf8_lossy(&output.stdout)).unwrap(), 8);

    // The witness writes an end down after it has passed on the last byte.
    let chats = || witnesses.iter().map(|witness| witness.spans().len()).sum::<usize>();
    let _ = wait_until("every chat has ended", || chats() >= 8);
    let [one, two] = witnesses.each_ref().map(Witness::spans);
    assert_eq!(one.len() + two.len(), 8, "every prompt was one chat");
    for (start, end) in &one {
        let beside = two.iter().find(|(other_start, other_end)| start < other_end && other_start < end);
        assert!(beside.is_none(), "both installs worked at once: {:?} beside {beside:?}", (start, end));
    }
}

#[test]
fn a_machine_with_one_real_install_needs_one_command() {
    let (_models, installs) = match installs(1) {
        Ok(found) => found,
        Err(reason) => return skipped(&reason),
    };
    let (world, url) = (world(), installs[0].url());
    let max = TOKENS.to_string();
    let output = world.run(&["run", &prompts(&world, 3), "--ollama", &url, "--max-tokens", &max]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    whole(&results(&String::from_utf8_lossy(&output.stdout)).unwrap(), 3);

    let items = "{\"id\":\"a\",\"prompt\":\"hello\",\"options\":{\"seed\":7}}\n\
                 {\"id\":\"b\",\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}],\"town\":\"Puno\"}\n";
    let items = world.file("items.jsonl", items).unwrap();
    let output =
        world.run(&["run", items.to_str().unwrap(), "--ollama", &url, "--max-tokens", &max]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let rows = results(&String::from_utf8_lossy(&output.stdout)).unwrap();
    assert_eq!([&rows[0]["id"], &rows[1]["id"]], ["a", "b"]);
    assert_eq!((&rows[0]["tropa"]["seed"], &rows[1]["metadata"]["town"]), (&json!(7), &json!("Puno")));

    let inputs =
        world.file("inputs.jsonl", "{\"input\":\"alpaca\"}\n{\"input\":[\"llama\",\"llama\"]}\n").unwrap();
    let arguments = ["run", inputs.to_str().unwrap(), "--ollama", &url, "--model", "tiny"];
    let output = world.run(&arguments).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let rows = results(&String::from_utf8_lossy(&output.stdout)).unwrap();
    let vectors = rows[1]["embeddings"].as_array().unwrap();
    assert!(vectors.len() == 2 && vectors[0] == vectors[1], "{}", said(&output));
    assert_ne!(rows[0]["embeddings"][0], vectors[0]);
}

#[test]
fn what_a_real_install_cannot_do_is_refused_before_anything_runs() {
    let (_models, installs) = match installs(1) {
        Ok(found) => found,
        Err(reason) => return skipped(&reason),
    };
    let world = world();
    let witness = Witness::before(installs[0].addr());
    let url = format!("http://{}", witness.address);
    let output = world.run(&["run", &prompts(&world, 2), "--ollama", &url, "--model", "nope"]).unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(said(&output).contains("model.missing") && said(&output).contains("tiny:latest"));

    // The tiny model was trained for 2048 tokens.
    let long = world.file("long.txt", &format!("short\n{}\n", "llama ".repeat(2000))).unwrap();
    let output = world.run(&["run", long.to_str().unwrap(), "--ollama", &url]).unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(said(&output).contains("model.too_small") && said(&output).contains("2048"), "{}", said(&output));
    assert!(witness.spans().is_empty(), "nothing ran");
}

#[test]
fn a_job_on_a_real_install_survives_the_death_of_its_command() {
    let (_models, installs) = match installs(1) {
        Ok(found) => found,
        Err(reason) => return skipped(&reason),
    };
    let world = world();
    let witness = Witness::before(installs[0].addr());
    let _agent = world.agent("den", witness.address, Hardware::This, &[]).unwrap();
    let input = prompts(&world, 24);
    let mut job = world.tropa(&["run", &input, "--max-tokens", &TOKENS.to_string()]);
    let mut job = job.stdout(std::process::Stdio::null()).spawn().unwrap();
    wait_until("the install has answered twice", || witness.spans().len() >= 2).unwrap();
    job.kill().unwrap();
    job.wait().unwrap();
    let listed: Value = serde_json::from_slice(&world.run(&["jobs", "--json"]).unwrap().stdout).unwrap();
    let before = listed["jobs"][0]["done"].as_u64().unwrap();
    assert!(before < 24, "it was over before it was killed");
    let output = world.run(&["resume", listed["jobs"][0]["id"].as_str().unwrap()]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    whole(&results(&String::from_utf8_lossy(&output.stdout)).unwrap(), 24);
    let _ = wait_until("every chat has ended", || witness.spans().len() >= 24);
    let ran = witness.spans().len();
    assert!(ran == 24, "the agent lived on, so each prompt is one chat: {ran}");
}

#[test]
fn a_long_document_is_cut_by_what_a_real_model_counts_and_merged() {
    let (_models, installs) = match installs(1) {
        Ok(found) => found,
        Err(reason) => return skipped(&reason),
    };
    let (world, url) = (world(), installs[0].url());
    // The tiny model makes a token of every character and was trained for 2048: by the usual estimate, three bytes for
    // a token, a third of these parts would do, and each would be too long.
    let text: String =
        (1..=12).map(|n| format!("## Load {n}\n\n{}\n\n", "salt and wool. ".repeat(30))).collect();
    let document = world.file("loads.md", &text).unwrap();
    let arguments = ["map", document.to_str().unwrap(), "--ollama", &url, "--json", "--max-tokens", "12"];
    let output =
        world.run(&[&arguments[..], &["--prompt", "What is it?", "--merge", "In one."]].concat()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let rows = results(&String::from_utf8_lossy(&output.stdout)).unwrap();
    let (tropa, parts) = (&rows[0]["tropa"], rows[0]["metadata"]["parts"].as_array().unwrap());
    assert_eq!((rows.len(), &tropa["num_ctx"], &tropa["output_tokens"]), (1, &json!(2048), &json!(TOKENS)));
    assert!((4..=12).contains(&parts.len()), "{parts:?}");
    assert!(!rows[0]["text"].as_str().unwrap().is_empty());
    // The merge holds the question, and each answer of twelve tokens behind its mark.
    let read = tropa["prompt_tokens"].as_u64().unwrap();
    assert!(read > 20 * parts.len() as u64, "{read} tokens for {} answers", parts.len());
}
