//! `tropa embed`: texts in, vectors out, in order, in batches, on doubles and on a real install.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tropa_tests::{
    harness::{Hardware, World, results},
    real_ollama::RealOllama,
    skipped,
};

use crate::jobs::{said, world};

/// The numbers of a NumPy file of `float32`, by row.
fn npy(path: &Path) -> Vec<Vec<f32>> {
    let bytes = fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let head = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let text = std::str::from_utf8(&bytes[10..head]).unwrap();
    assert!(text.contains("'descr': '<f4'") && text.contains("'fortran_order': False"), "{text}");
    let shape = text.split(['(', ')']).nth(1).unwrap();
    let [rows, columns] = shape.split(", ").map(|n| n.parse().unwrap()).collect::<Vec<usize>>()[..] else {
        panic!("{shape}")
    };
    let numbers: Vec<f32> =
        bytes[head..].chunks_exact(4).map(|n| f32::from_le_bytes(n.try_into().unwrap())).collect();
    assert_eq!((numbers.len(), bytes.len()), (rows * columns, head + 4 * numbers.len()));
    numbers.chunks_exact(columns).map(<[f32]>::to_vec).collect()
}

fn vector(row: &Value, at: usize) -> Vec<f32> {
    let numbers = row["embeddings"][at].as_array().unwrap();
    numbers.iter().map(|n| n.as_f64().unwrap() as f32).collect()
}

fn texts(world: &World, count: usize) -> String {
    let text: String = (0..count).map(|n| format!("text {n} of llamas\n")).collect();
    world.file("texts.txt", &text).unwrap().to_str().unwrap().to_owned()
}

#[test]
fn texts_of_two_machines_come_back_in_order_and_many_share_a_request() {
    let world = world();
    let doubles = ["one", "two"].map(|device| world.double(device, &[]).unwrap());
    let _one = world.agent("den", doubles[0].address, Hardware::Declared(1), &[]).unwrap();
    let _two = world.agent("attic", doubles[1].address, Hardware::Declared(2), &[]).unwrap();
    let input = texts(&world, 40);
    let base = ["embed", &input, "--allow-declared", "--model", "tiny"];
    let output = world.run(&base).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let rows = results(&String::from_utf8_lossy(&output.stdout)).unwrap();
    assert_eq!(rows.len(), 40);
    for (index, row) in rows.iter().enumerate() {
        assert_eq!((&row["tropa"]["index"], &row["id"]), (&json!(index), &json!((index + 1).to_string())));
        assert!(row["error"].is_null() && row["embeddings"].as_array().unwrap().len() == 1, "{row}");
        assert_eq!(row["tropa"]["request_texts"], 5, "40 texts on two lanes: four requests for each");
    }
    let machines: std::collections::BTreeSet<&str> =
        rows.iter().map(|row| row["tropa"]["machine"].as_str().unwrap()).collect();
    assert_eq!(machines.len(), 2, "both machines worked");
    assert_ne!(vector(&rows[0], 0), vector(&rows[1], 0));
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(err.contains("40 of 40 items done"), "items are texts and not requests: {err}");

    // One text a request gives the same vectors: a batch changes nothing but the number of requests.
    let single = world.run(&[&base[..], &["--batch", "1"]].concat()).unwrap();
    let singles = results(&String::from_utf8_lossy(&single.stdout)).unwrap();
    assert!(singles.iter().all(|row| row["tropa"]["request_texts"] == 1), "{}", said(&single));
    for (one, other) in rows.iter().zip(&singles) {
        assert_eq!(one["embeddings"], other["embeddings"]);
    }

    let array = world.path("vectors.npy");
    let written = world.run(&[&base[..], &["--npy", array.to_str().unwrap()]].concat()).unwrap();
    assert_eq!((written.status.code(), written.stdout.len()), (Some(0), 0), "{}", said(&written));
    let expected: Vec<Vec<f32>> = rows.iter().map(|row| vector(row, 0)).collect();
    assert_eq!(npy(&array), expected);
}

#[test]
fn what_cannot_be_embedded_is_a_failure_in_its_place_and_a_row_of_nan() {
    let world = world();
    let double = world.double("cpu", &["--fault", "embed_nan@prompt~poison"]).unwrap();
    let _agent = world.agent("den", double.address, Hardware::This, &[]).unwrap();
    let lines = "{\"id\":\"a\",\"input\":\"good\"}\n{\"id\":\"b\",\"input\":[\"poison\",\"x\"]}\n\
                 {\"id\":\"c\",\"input\":\"better\",\"town\":\"Puno\"}\n";
    let input = world.file("texts.jsonl", lines).unwrap().to_str().unwrap().to_owned();
    let base = ["embed", &input, "--model", "tiny", "--batch", "1"];
    let output = world.run(&base).unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    let rows = results(&String::from_utf8_lossy(&output.stdout)).unwrap();
    assert_eq!(rows.iter().map(|row| &row["id"]).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(rows[1]["embeddings"].is_null() && rows[1]["error"]["reason"] == "bad_output", "{}", rows[1]);
    assert_eq!((&rows[2]["tropa"]["index"], &rows[2]["metadata"]["town"]), (&json!(2), &json!("Puno")));

    let array = world.path("vectors.npy");
    let written = world.run(&[&base[..], &["--npy", array.to_str().unwrap()]].concat()).unwrap();
    assert_eq!(written.status.code(), Some(2), "{}", said(&written));
    assert!(said(&written).contains("2 rows failed and are NaN, counted from 0: 1, 2"), "{}", said(&written));
    let numbers = npy(&array);
    assert_eq!(numbers.len(), 4, "a row for every text");
    assert!(numbers[1].iter().chain(&numbers[2]).all(|n| n.is_nan()));
    assert_eq!((&numbers[0], &numbers[3]), (&vector(&rows[0], 0), &vector(&rows[2], 0)));
}

#[test]
fn what_is_no_text_is_refused_before_anything_runs() {
    let world = world();
    for (name, text, named) in [
        (
            "chat.jsonl",
            "{\"input\":\"x\"}\n{\"messages\":[{\"role\":\"system\",\"content\":\"x\"}]}\n",
            "line 2: no text to embed",
        ),
        ("batch.jsonl", "{\"custom_id\":\"r\",\"body\":{}}\n", "tropa run"),
        ("empty.jsonl", "{\"input\":\"\"}\n", "line 1"),
    ] {
        let input = world.file(name, text).unwrap();
        let output = world.run(&["embed", input.to_str().unwrap()]).unwrap();
        assert!(matches!(output.status.code(), Some(64 | 65)), "{}", said(&output));
        assert!(said(&output).contains(named), "{named} is not named: {}", said(&output));
    }
}

#[test]
fn a_real_install_embeds_in_batches_and_the_array_is_what_the_lines_say() {
    if let Err(reason) = RealOllama::find() {
        return skipped(&reason);
    }
    let models = tempfile::tempdir().unwrap();
    let install = RealOllama::start(models.path(), &[]).unwrap();
    install.create("tiny").unwrap();
    let (world, url) = (world(), install.url());
    let input = texts(&world, 12);
    let base = ["embed", &input, "--ollama", &url, "--model", "tiny"];
    let output = world.run(&base).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let rows = results(&String::from_utf8_lossy(&output.stdout)).unwrap();
    assert_eq!(rows.len(), 12, "{}", said(&output));
    for (index, row) in rows.iter().enumerate() {
        assert_eq!((&row["tropa"]["index"], &row["tropa"]["request_texts"]), (&json!(index), &json!(3)));
        let length: f32 = vector(row, 0).iter().map(|n| n * n).sum();
        assert!((length - 1.0).abs() < 0.01, "Ollama's vectors have length 1, this has {length}");
    }
    let array = world.path("vectors.npy");
    let written = world.run(&[&base[..], &["--npy", array.to_str().unwrap()]].concat()).unwrap();
    assert_eq!(written.status.code(), Some(0), "{}", said(&written));
    let numbers = npy(&array);
    assert_eq!(numbers.len(), 12);
    for (row, numbers) in rows.iter().zip(&numbers) {
        let same = vector(row, 0).iter().zip(numbers).all(|(a, b)| (a - b).abs() < 1e-3);
        assert!(same, "{row} is not {numbers:?}");
    }
    let unknown = world.run(&["embed", &input, "--ollama", &url, "--model", "nope"]).unwrap();
    assert_eq!(unknown.status.code(), Some(4), "{}", said(&unknown));
}
