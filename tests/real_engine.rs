//! One real Ollama, reached as the agent will reach it.

use serde_json::{Value, json};
use tropa_agent::evidence::{Options, Root, read_server_log};
use tropa_tests::{harness::wait_until, real_ollama::RealOllama, skipped};

#[test]
fn a_real_ollama_answers_one_chat_with_done_and_an_exact_token_count() {
    if let Err(reason) = RealOllama::find() {
        return skipped(&reason);
    }
    let models = tempfile::tempdir().unwrap();
    let ollama = RealOllama::start(models.path(), &[]).unwrap();
    ollama.create("tiny").unwrap();

    let chat = json!({
        "model": "tiny:latest", "messages": [{"role": "user", "content": "one load per llama"}],
        "stream": true, "truncate": false, "shift": false, "think": false, "keep_alive": "600s",
        "options": {"num_ctx": 256, "num_predict": 6, "seed": 1, "temperature": 0},
    });
    let (status, body) = ollama.request("/api/chat", Some(&chat.to_string())).unwrap();
    assert_eq!(status, 200, "{body}");
    let lines: Vec<Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = lines.last().unwrap();
    assert_eq!(last["done"], true, "{body}");
    assert_eq!(last["done_reason"], "length");
    assert_eq!(last["eval_count"], 6);
    assert_eq!(last["prompt_eval_count"], "one load per llama".len() + 2);
    let text: String = lines.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
    assert!(!text.trim().is_empty(), "{body}");
}

#[test]
fn the_log_of_a_real_ollama_is_found_by_its_process_and_names_its_devices() {
    if let Err(reason) = RealOllama::find() {
        return skipped(&reason);
    }
    if !cfg!(target_os = "linux") {
        return skipped("the log of a process is found on Linux only");
    }
    let models = tempfile::tempdir().unwrap();
    let ollama = RealOllama::start(models.path(), &[]).unwrap();
    let options = Options { port: Some(ollama.addr().port()), ..Options::default() };
    let read = || read_server_log(&Root::live(), &options);
    // The kernel takes connections before the server has named its devices.
    let named = wait_until("the log to name the devices", || read().is_genuine());
    assert!(named.is_ok(), "{:?}\n{}", read(), ollama.log());
    let (log, read) = (ollama.log(), read());
    let logged = read.value().unwrap();
    assert_eq!(logged.addresses.is_empty(), log.contains("library=cpu"), "{logged:?}\n{log}");
    assert!(
        logged.addresses.iter().all(|address| log.to_lowercase().contains(&**address)),
        "{logged:?}\n{log}"
    );
}

#[test]
fn a_real_ollama_embeds_with_unit_vectors_in_input_order() {
    if let Err(reason) = RealOllama::find() {
        return skipped(&reason);
    }
    let models = tempfile::tempdir().unwrap();
    let ollama = RealOllama::start(models.path(), &[]).unwrap();
    ollama.create("tiny").unwrap();

    let embed = |input: Value| {
        let body = json!({"model": "tiny:latest", "input": input, "truncate": false}).to_string();
        let (status, answer) = ollama.request("/api/embed", Some(&body)).unwrap();
        assert_eq!(status, 200, "{answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        serde_json::from_value::<Vec<Vec<f64>>>(answer["embeddings"].clone()).unwrap()
    };
    let both = embed(json!(["alpaca", "llama"]));
    assert_eq!(both.len(), 2);
    assert_ne!(both[0], both[1]);
    for vector in &both {
        let norm: f64 = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        assert!((norm - 1.0).abs() < 1e-3, "norm {norm}");
    }
    let cosine: f64 = embed(json!("llama"))[0].iter().zip(&both[1]).map(|(a, b)| a * b).sum();
    assert!(cosine > 0.999, "cosine {cosine}");
}

#[test]
fn dropping_a_real_ollama_ends_its_runners_too() {
    if let Err(reason) = RealOllama::find() {
        return skipped(&reason);
    }
    let models = tempfile::tempdir().unwrap();
    let ollama = RealOllama::start_on(&[0], models.path(), &[]).unwrap();
    ollama.create("tiny").unwrap();
    let load = json!({"model": "tiny:latest", "prompt": "", "options": {"num_ctx": 256}}).to_string();
    let (status, body) = ollama.request("/api/generate", Some(&load)).unwrap();
    assert_eq!(status, 200, "{body}");

    let group = ollama.pid();
    let members = alive_in_group(group);
    assert!(members.len() >= 2, "a server and a runner, found {members:?}");
    for pid in &members {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("Cpus_allowed_list:\t0\n"), "not kept to cpu 0: {status}");
    }
    drop(ollama);
    assert_eq!(alive_in_group(group), Vec::<u32>::new());
}

/// Processes of the group that are not zombies, from `/proc/*/stat`.
fn alive_in_group(group: u32) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        // After the name in brackets: state, parent, group.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let (state, of) = (fields.next(), fields.nth(1));
        state != Some("Z") && of == Some(&group.to_string())
    })
    .collect()
}
