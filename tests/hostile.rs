//! Text that imitates protocol or drives a terminal, and answers without end (`reliability.md` F24 and F25): what is
//! UTF-8 comes back byte for byte, what is not is refused by its line, what is too large is cut at its cap.

use std::{fs, net::SocketAddr};

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tropa_proto::message::MAX_RESULT;
use tropa_tests::{
    harness::{Hardware, Running, World, results},
    ollama_double::{Builder, Double, Model},
};

use crate::jobs::{said, world};

/// Of an agent that gets more than it can use (S3), in KiB.
const RSS: u64 = 128 << 10;

/// A double in this process, which can say what no double on a command line can.
struct Engine {
    double: Double,
    // The double's tasks run as long as it exists.
    _runtime: Runtime,
}

impl Engine {
    fn start(builder: Builder) -> Self {
        let runtime = Runtime::new().unwrap();
        let double = runtime.block_on(builder.prefill_us(0).decode_us(0).start());
        Self { double, _runtime: runtime }
    }

    fn agent(&self, world: &World, label: &str) -> Running {
        let address: SocketAddr = self.double.url().strip_prefix("http://").unwrap().parse().unwrap();
        world.agent(label, address, Hardware::This, &[]).unwrap()
    }
}

/// Texts that something on the way might take for its own, or might not carry.
fn texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "a NUL \0 in the middle",
        "\u{feff}a mark of byte order in front",
        "right to left \u{202e}txt.exe\u{202c} and isolates \u{2066}x\u{2069}\u{200f}",
        "a family 👩‍👩‍👧‍👦, a flag 🏳️‍🌈, 𝄞 and ñandú",
        "half an answer\n{\"done\":true}\n{\"message\":{\"content\":\"\"},\"done\":true,\"done_reason\":\"stop\"}\n",
        "data: [DONE]\r\n\r\n\u{2028}\u{2029}\u{85}",
        "\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}31m\u{8}\u{7f}",
        "quotes \" \\\" ' ` $(reboot) %s %n {{hole}} </s><|im_end|>",
        "\u{fffd}\u{ffff}\u{10ffff}\u{e0041}",
    ]
    .map(str::to_owned)
    .into();
    // Whole characters of four bytes, so that a cut at any round number is inside one.
    texts.push(format!("x{}", "🦙".repeat((1 << 18) - (1 << 10))));
    texts
}

#[test]
fn fault_f24_hostile_text_comes_back_byte_for_byte_and_drives_no_terminal() {
    let world = world();
    let texts = texts();
    for fault in [None, Some("split_utf8")] {
        // Lines of up to a mebibyte, or of a few characters that are cut between two packets.
        let per_token = if fault.is_none() { 2 << 20 } else { 64 };
        let model = Model::new("tiny:latest").context(1 << 21).tokens(per_token, 1);
        let builder = Double::builder().version("0.24.0").model(model).echo(true);
        let engine = Engine::start(match fault {
            Some(fault) => builder.fault(fault),
            None => builder,
        });
        let mut agent = engine.agent(&world, "\u{1b}[31mden");
        let sent: Vec<&String> = texts.iter().filter(|text| fault.is_none() || text.len() < 4_096).collect();
        let lines: String = sent
            .iter()
            .map(|text| format!("{}\n", json!({ "prompt": text, "id": text.len().to_string() })))
            .collect();
        let input = world.file("prompts.jsonl", &lines).unwrap();
        let output = world.run(&["run", input.to_str().unwrap(), "-v"]).unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let rows = results(&String::from_utf8(output.stdout.clone()).unwrap()).unwrap();
        assert_eq!(rows.len(), sent.len());
        for (row, text) in rows.iter().zip(sent) {
            assert!(
                row["text"].as_str() == Some(text),
                "{} bytes were not the same: {}",
                text.len(),
                row["error"]
            );
        }
        let machines = world.run(&["machines"]).unwrap();
        for shown in [&output.stderr, &machines.stdout, &machines.stderr] {
            let acts = |byte: &u8| *byte != b'\n' && byte.is_ascii_control();
            assert!(!shown.iter().any(acts), "{}", String::from_utf8_lossy(shown));
        }
        assert!(String::from_utf8_lossy(&machines.stdout).contains("\\u{1b}[31mden"), "{}", said(&machines));
        agent.terminate().unwrap();
    }
}

#[test]
fn fault_f24_what_is_no_text_is_refused_by_its_line_before_anything_runs() {
    let world = world();
    for (name, bytes, says) in [
        ("bad.txt", b"one\ntwo \xff\nthree\n".as_slice(), "line 2"),
        ("cut.txt", b"one\n\xe2\x82\n".as_slice(), "line 2"),
        ("surrogate.jsonl", b"{\"prompt\":\"one\"}\n{\"prompt\":\"\\ud83d\"}\n".as_slice(), "line 2"),
        ("encoded.jsonl", b"{\"prompt\":\"\xed\xa0\xbd\"}\n".as_slice(), "line 1"),
    ] {
        let path = world.path(name);
        fs::write(&path, bytes).unwrap();
        let output = world.run(&["run", path.to_str().unwrap()]).unwrap();
        assert_eq!(output.status.code(), Some(65), "{name}: {}", said(&output));
        assert!(String::from_utf8_lossy(&output.stderr).contains(says), "{name}: {}", said(&output));
    }
}

#[test]
fn fault_f25_an_answer_above_its_cap_is_cut_and_the_lane_goes_on() {
    let world = world();
    let model = Model::new("tiny:latest").context(1 << 21).tokens(60 << 10, 1);
    let engine =
        Engine::start(Double::builder().version("0.24.0").model(model).reply("without end", &endless()));
    let agent = engine.agent(&world, "den");
    let input = world.file("prompts.txt", "one\ntalk without end\ntwo\nthree\n").unwrap();
    let output = world.run(&["run", input.to_str().unwrap()]).unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    let rows = results(&String::from_utf8_lossy(&output.stdout)).unwrap();
    let codes: Vec<&Value> = rows.iter().map(|row| &row["error"]["code"]).collect();
    assert_eq!(codes, [&Value::Null, &json!("result_too_large"), &Value::Null, &Value::Null]);
    assert!(rows.iter().all(|row| row["tropa"]["attempt"] == 1), "cut once, and nothing else twice");
    let most = peak_kib(agent.pid());
    assert!(most <= RSS, "the agent took {most} KiB");
}

/// Twice as much as may be in a result, and nowhere the same: what repeats itself is another fault.
fn endless() -> String {
    let mut text = String::new();
    for number in 0.. {
        if text.len() > 2 * MAX_RESULT {
            break;
        }
        text.push_str(&format!("{number} llamas and on "));
    }
    text
}

/// The most that a process had in memory, in KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
