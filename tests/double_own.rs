//! The double's own tests: it keeps the recorded shapes, each fault shows on the wire what its table says, and the
//! witness sees what happened. The client is raw TCP, since half of what is asserted lies below HTTP.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tropa_tests::ollama_double::{Device, Double, Mode, Model, Outcome, Profile, Rule, Witness};

mod contention;
mod faults;
mod fixtures;
mod healthy;
mod processes;
mod versions;

/// How long any one exchange may take; a test that needs more has hung.
const PATIENCE: Duration = Duration::from_secs(20);

/// What came back, byte for byte and read as HTTP.
#[derive(Debug, Default)]
struct Reply {
    raw: Vec<u8>,
    status: u16,
    head: String,
    body: Vec<u8>,
    /// The sizes of the chunks, the last one of 0 included.
    chunks: Vec<usize>,
    /// Ended by a reset.
    reset: bool,
    /// Ended before the reply was whole.
    cut: bool,
    reads: usize,
}

impl Reply {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    fn lines(&self) -> Vec<Value> {
        let text = self.text();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect()
    }

    fn error(&self) -> String {
        self.json()["error"].as_str().unwrap_or_else(|| panic!("no error: {}", self.text())).to_owned()
    }

    fn content_type(&self) -> Option<String> {
        let line = self.head.lines().find(|line| line.to_ascii_lowercase().starts_with("content-type:"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    }

    /// The text that a careful client ends up with: everything up to `done`.
    fn content(&self) -> String {
        let mut text = String::new();
        for line in
            String::from_utf8_lossy(&self.body).split('\n').map(str::trim).filter(|line| !line.is_empty())
        {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            text.push_str(
                line["message"]["content"].as_str().or(line["response"].as_str()).unwrap_or_default(),
            );
            if line["done"] == true {
                return text;
            }
        }
        panic!("no done: {}", self.text())
    }

    fn last(&self) -> Value {
        self.lines().pop().unwrap_or_default()
    }
}

/// Sends these bytes and reads until the server ends.
async fn exchange(addr: std::net::SocketAddr, request: &[u8]) -> Reply {
    let mut reply = Reply::default();
    let mut stream = TcpStream::connect(addr).await.expect("connect");
    stream.write_all(request).await.expect("send");
    let read = async {
        let mut buffer = vec![0; 65_536];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) => return,
                Ok(count) => {
                    reply.reads += 1;
                    reply.raw.extend_from_slice(&buffer[..count]);
                }
                Err(error) => {
                    reply.reset = error.kind() == ErrorKind::ConnectionReset;
                    return;
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the server never ended the connection");
    parse(reply)
}

/// Reads the raw bytes as one HTTP response.
fn parse(mut reply: Reply) -> Reply {
    let Some(end) = reply.raw.windows(4).position(|four| four == b"\r\n\r\n") else {
        reply.cut = true;
        return reply;
    };
    reply.head = String::from_utf8_lossy(&reply.raw[..end]).into_owned();
    reply.status = reply.head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let mut rest = &reply.raw[end + 4..];
    if !reply.head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        reply.body = rest.to_vec();
        return reply;
    }
    while let Some(line) = rest.windows(2).position(|two| two == b"\r\n") {
        let size =
            std::str::from_utf8(&rest[..line]).ok().and_then(|hex| usize::from_str_radix(hex, 16).ok());
        let size = size.expect("a chunk size");
        rest = &rest[line + 2..];
        reply.body.extend_from_slice(&rest[..size.min(rest.len())]);
        if rest.len() < size + 2 {
            break;
        }
        reply.chunks.push(size);
        rest = &rest[size + 2..];
        if size == 0 {
            assert!(rest.is_empty(), "bytes after the last chunk");
            return reply;
        }
    }
    reply.cut = true;
    reply
}

fn post_bytes(path: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        .into_bytes()
}

async fn post(double: &Double, path: &str, body: &Value) -> Reply {
    exchange(double.addr(), &post_bytes(path, body)).await
}

async fn get(double: &Double, path: &str) -> Reply {
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    exchange(double.addr(), request.as_bytes()).await
}

/// A chat as the agent sends it.
fn chat_body(prompt: &str) -> Value {
    json!({"model": "m:latest", "messages": [{"role": "user", "content": prompt}], "stream": true,
        "truncate": false, "shift": false, "think": false, "keep_alive": "600s",
        "options": {"num_ctx": 256, "num_predict": 12, "seed": 1}})
}

async fn chat(double: &Double, prompt: &str) -> Reply {
    post(double, "/api/chat", &chat_body(prompt)).await
}

/// Waits for a condition that another task brings about.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

fn quick() -> tropa_tests::ollama_double::Builder {
    Double::builder().model("m").decode_us(0).prefill_us(0)
}
