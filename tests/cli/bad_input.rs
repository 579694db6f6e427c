//! Bad input: each ends with a message that names the thing and the remedy, and with its exit code.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use tropa_tests::harness::{Hardware, World};

use super::{ends_with, run, run_with, two_meshes};
use crate::jobs::world;

fn prompts(world: &World) -> String {
    world.file("prompts.txt", "one\ntwo\n").unwrap().to_str().unwrap().to_owned()
}

#[test]
fn an_address_that_is_wrong_is_named() {
    let world = world();
    let input = prompts(&world);
    let unknown = run(&world, &["run", &input, "--peer", "nowhere.invalid:1"]);
    ends_with(&unknown, 64, &["--peer nowhere.invalid:1"]);
    ends_with(&run(&world, &["run", &input, "--peer", "127.0.0.1"]), 64, &["127.0.0.1", "HOST:PORT"]);
    let nobody = run(&world, &["run", &input, "--peer", "127.0.0.1:1"]);
    ends_with(&nobody, 4, &["127.0.0.1:1", "connection refused", "is tropa-agent running there"]);
    ends_with(&run(&world, &["run", &input, "--ollama", "ftp://x"]), 64, &["--ollama ftp://x"]);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "measures how long a refusal takes")]
fn a_wrong_secret_is_refused_quickly_with_the_remedy() {
    let world = world();
    let input = prompts(&world);
    let ([one, other], [agent, _double]) = two_meshes(&world);
    let peer = agent.address.to_string();
    let start = Instant::now();
    let wrong = run(&world, &["run", &input, "--mesh-secret-file", &other, "--no-mdns", "--peer", &peer]);
    ends_with(&wrong, 77, &["mesh.secret", "tropa mesh join", &peer]);
    assert!(start.elapsed() < Duration::from_secs(3), "refused after {:?}", start.elapsed());
    ends_with(&run(&world, &["run", &input, "--peer", &peer]), 77, &["mesh.secret", "tropa mesh join"]);
    let right = run(&world, &["run", &input, "--mesh-secret-file", &one, "--no-mdns", "--peer", &peer]);
    ends_with(&right, 0, &[]);
}

#[test]
fn a_secret_that_others_can_read_is_refused() {
    let world = world();
    let input = prompts(&world);
    let path = world.path("open.secret");
    ends_with(&run(&world, &["mesh", "new", path.to_str().unwrap()]), 0, &[]);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = run(&world, &["run", &input, "--mesh-secret-file", path.to_str().unwrap()]);
    ends_with(&refused, 77, &["chmod 600"]);
}

#[test]
fn an_install_that_is_not_ollama_is_no_install() {
    let world = world();
    let input = prompts(&world);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the test binary.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            // Each for itself: on one of them nothing is ever asked.
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                let page = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html>hello</html>";
                let _ = stream.write_all(page.as_bytes());
            });
        }
    });
    let output = run(&world, &["run", &input, "--ollama", &format!("http://{address}")]);
    ends_with(&output, 4, &["not Ollama", "--ollama"]);
    let silent = run(&world, &["run", &input, "--ollama", "http://127.0.0.1:1"]);
    ends_with(&silent, 4, &["ollama serve", "does not answer"]);
}

#[test]
fn a_model_that_no_lane_has_is_named_beside_those_that_are_there() {
    let world = world();
    let input = prompts(&world);
    let double = world.double("cpu", &["--model", "llama3.2:3b", "--model", "other:1b"]).unwrap();
    let _agent = world.agent("den", double.address, Hardware::This, &[]).unwrap();
    let output = run(&world, &["run", &input, "--model", "nope"]);
    ends_with(&output, 4, &["model.missing", "nope", "llama3.2:3b", "other:1b"]);
    let output = run(&world, &["run", &input]);
    ends_with(&output, 4, &["--model", "llama3.2:3b", "other:1b"]);
}

#[test]
fn a_line_that_cannot_be_read_is_named_before_anything_runs() {
    let world = world();
    let bytes = world.path("bytes.txt");
    std::fs::write(&bytes, b"fine\n\xff\xfe\n").unwrap();
    ends_with(&run(&world, &["run", bytes.to_str().unwrap()]), 65, &["bytes.txt", "line 2", "UTF-8"]);
    let half = world.file("half.jsonl", "{\"prompt\":\"a\"}\n\n{\"prompt\":\n").unwrap();
    ends_with(&run(&world, &["run", half.to_str().unwrap()]), 65, &["half.jsonl", "line 3", "JSON"]);
    let twice = "{\"custom_id\":\"a\",\"body\":{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}}\n";
    let twice = world.file("twice.jsonl", &twice.repeat(2)).unwrap();
    let output = run(&world, &["run", twice.to_str().unwrap(), "--endpoint", "/v1/chat/completions"]);
    ends_with(&output, 65, &["line 2", "custom_id"]);
    ends_with(&run_with(&world, &["run", "-"], b"fine\n\xff\n"), 65, &["line 2", "UTF-8"]);
    ends_with(&run_with(&world, &["run", "-"], b""), 65, &["no item"]);
    ends_with(&run(&world, &["run", "nosuchfile"]), 65, &["nosuchfile"]);
    let directory = world.path("home");
    ends_with(&run(&world, &["run", directory.to_str().unwrap()]), 65, &["directory"]);
    let rows = world.file("rows.csv", "name,town\nAna,Cusco\n").unwrap();
    let template = ["run", rows.to_str().unwrap(), "--template", "{{nam}}"];
    ends_with(&run(&world, &template), 65, &["nam", "name"]);
    let column = ["run", rows.to_str().unwrap(), "--template", "{{name}}", "--id-column", "id"];
    ends_with(&run(&world, &column), 65, &["id"]);
    assert!(super::job(&world).is_null(), "nothing was submitted");
}

#[test]
fn what_is_typed_wrongly_gets_a_suggestion() {
    let world = world();
    let input = prompts(&world);
    ends_with(&run(&world, &["run", &input, "--modle", "x"]), 64, &["--modle", "--model"]);
    ends_with(&run(&world, &["runn"]), 64, &["runn", "run"]);
    ends_with(&run(&world, &["run", &input, "--max-tokens", "0"]), 64, &["--max-tokens"]);
    ends_with(&run(&world, &["run", &input, "--wait", "many"]), 64, &["--wait"]);
    ends_with(&run(&world, &["run", &input, "--wait=-1"]), 64, &["--wait"]);
    ends_with(&run(&world, &["resume", "abc"]), 64, &["abc"]);
}

#[test]
fn an_unknown_configuration_key_is_an_error_with_its_line() {
    let world = world();
    let input = prompts(&world);
    let config = world.file("config.toml", "wait = 3\nmodl = \"x\"\n").unwrap();
    let output = run(&world, &["run", &input, "--config", config.to_str().unwrap()]);
    ends_with(&output, 64, &["config.toml", "line 2", "modl"]);
    let output = run(&world, &["run", &input, "--config", "nosuchfile.toml"]);
    ends_with(&output, 64, &["nosuchfile.toml"]);
}

#[test]
fn an_agent_without_a_secret_does_not_listen_to_strangers() {
    let world = world();
    let output = world.agent_command(&["--listen", "0.0.0.0:0"]).output().unwrap();
    ends_with(&output, 64, &["0.0.0.0:0", "tropa mesh new"]);
    let output = world.agent_command(&["--ollama", "http://192.0.2.1:11434"]).output().unwrap();
    ends_with(&output, 64, &["192.0.2.1"]);
    ends_with(&world.agent_command(&["--lisen", "x"]).output().unwrap(), 64, &["--listen"]);
    ends_with(&world.agent_command(&["--version"]).output().unwrap(), 0, &[]);
}

#[test]
fn a_secret_is_made_once_kept_private_and_never_a_passphrase() {
    let world = world();
    let file = world.path("home/.config/tropa/mesh.secret");
    let made = run(&world, &["mesh", "new"]);
    ends_with(&made, 0, &[]);
    let said = String::from_utf8_lossy(&made.stdout);
    assert!(said.contains("tropa mesh join"), "says what to do next: {said}");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.split_whitespace().all(|word| word.len() < 64 || !said.contains(word)), "shown to nobody");
    ends_with(&run(&world, &["mesh", "new"]), 74, &["mesh.secret", "already"]);
    ends_with(&run_with(&world, &["mesh", "join"], text.as_bytes()), 74, &["already"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "it is never overwritten");

    let other = world.path("joined.secret");
    let join = ["mesh", "join", other.to_str().unwrap()];
    ends_with(&run_with(&world, &join, b"correct horse\n"), 65, &["tropa mesh new"]);
    ends_with(&run_with(&world, &join, b""), 65, &["tropa mesh new"]);
    assert!(!other.exists());
    ends_with(&run_with(&world, &join, text.as_bytes()), 0, &[]);
    assert_eq!(std::fs::read_to_string(&other).unwrap(), text);
    assert_eq!(other.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}
