//! Each fault mode shows on the wire what the table of the specification says. The match below has no default
//! arm: a mode without a check does not compile.

use super::*;

#[tokio::test]
async fn every_mode_shows_on_the_wire() {
    for mode in Mode::all() {
        shows(mode).await;
    }
}

/// The text of the answer without a fault.
async fn plain_text() -> String {
    chat(&quick().start().await, "x").await.content()
}

async fn with(rule: &str) -> Double {
    quick().fault(rule).start().await
}

/// One chat on a double with this fault.
async fn chat_with(rule: &str) -> Reply {
    chat(&with(rule).await, "x").await
}

async fn embed_with(rule: &str) -> Reply {
    let body = json!({"model": "m:latest", "input": ["one", "two"], "truncate": false, "keep_alive": "600s",
        "options": {"num_ctx": 256}});
    post(&with(rule).await, "/api/embed", &body).await
}

/// A reply that is an error with this status and a text that contains `part`.
fn refused(reply: &Reply, status: u16, part: &str) {
    assert_eq!(reply.status, status, "{}", reply.text());
    assert!(reply.error().contains(part), "{}", reply.error());
}

/// Some lines, then one that is an error, then a clean end.
fn breaks_off(reply: &Reply, lines: usize, part: &str) {
    let all = reply.lines();
    assert_eq!((reply.status, reply.cut, all.len()), (200, false, lines + 1), "{}", reply.text());
    assert!(all[lines]["error"].as_str().is_some_and(|text| text.contains(part)), "{}", all[lines]);
}

/// No line says `done`, and the end is clean.
fn never_done(reply: &Reply, lines: usize) {
    assert_eq!((reply.status, reply.cut, reply.lines().len()), (200, false, lines), "{}", reply.text());
    assert!(reply.lines().iter().all(|line| line["done"] == false));
}

/// Reads until `lines` lines have come, then asserts that nothing more comes for 100 ms.
async fn falls_silent(double: &Double, lines: usize) {
    let mut stream = begin(double).await;
    let mut text = Vec::new();
    read_lines(&mut stream, &mut text, lines).await;
    let more = tokio::time::timeout(Duration::from_millis(100), stream.read_buf(&mut text)).await;
    assert!(more.is_err(), "{more:?}: {}", String::from_utf8_lossy(&text));
}

async fn begin(double: &Double) -> TcpStream {
    let mut stream = TcpStream::connect(double.addr()).await.expect("connect");
    stream.write_all(&post_bytes("/api/chat", &chat_body("x"))).await.expect("send");
    stream
}

/// Reads until so many lines have come; returns how many reads that took.
async fn read_lines(stream: &mut TcpStream, text: &mut Vec<u8>, lines: usize) -> usize {
    let mut reads = 0;
    let read = async {
        while text.windows(8).filter(|part| part == b"\"done\":f").count() < lines {
            assert!(stream.read_buf(text).await.expect("read") > 0, "{}", String::from_utf8_lossy(text));
            reads += 1;
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the lines in time");
    reads
}

#[expect(clippy::too_many_lines, reason = "one arm per mode")]
async fn shows(mode: Mode) {
    match mode {
        Mode::QueueFull => refused(&chat_with("queue_full").await, 503, "maximum pending requests exceeded"),
        Mode::Missing => {
            refused(&chat_with("missing").await, 404, "model 'm:latest' not found");
            refused(&embed_with("missing").await, 404, "try pulling it first");
        }
        Mode::Vanish => {
            let double = with("vanish:after=1").await;
            assert_eq!(chat(&double, "x").await.last()["done"], true);
            refused(&chat(&double, "x").await, 404, "not found");
            assert_eq!(get(&double, "/api/tags").await.json(), json!({"models": []}));
        }
        Mode::DigestChanges | Mode::DigestOnlyChanges => {
            let double = with(&format!("{}:after=1", mode.name())).await;
            let digest = async |path| get(&double, path).await.json()["models"][0]["digest"].clone();
            let show =
                async || post(&double, "/api/show", &json!({"model": "m"})).await.json()["template"].clone();
            let (before, shown) = (digest("/api/tags").await, show().await);
            chat(&double, "x").await;
            assert_ne!(before, digest("/api/tags").await);
            assert_eq!(digest("/api/ps").await, digest("/api/tags").await);
            assert_eq!(shown != show().await, mode == Mode::DigestChanges);
        }
        Mode::CloudTag => {
            let tags = get(&with("cloud_tag").await, "/api/tags").await.json();
            assert!(
                tags["models"][0]["remote_host"].is_string() && tags["models"][0]["remote_model"].is_string()
            );
        }
        Mode::RemoteLine => assert!(chat_with("remote_line").await.lines()[0]["remote_host"].is_string()),
        Mode::LoadStall => {
            refused(&chat_with("load_stall:1").await, 500, "timed out waiting for llama-server")
        }
        Mode::LoadOom => refused(&chat_with("load_oom").await, 500, "out of memory"),
        Mode::Oom => breaks_off(&chat_with("oom:after=2").await, 2, "out of memory"),
        Mode::Crash => {
            let double = with("crash*1").await;
            refused(&chat(&double, "x").await, 500, "model runner has unexpectedly stopped");
            assert_eq!(get(&double, "/api/ps").await.json()["models"][0]["name"], "m:latest");
            assert_eq!(chat(&double, "x").await.last()["done"], true);
            assert_eq!((double.loads(), double.reloads()), (2, 0), "a dead runner is loaded again");
        }
        Mode::ErrorLine => breaks_off(&chat_with("error_line:after=3").await, 3, "unexpected EOF"),
        Mode::EmbedCrash => refused(&embed_with("embed_400_crash").await, 400, "do embedding request"),
        Mode::Poison => {
            let double = quick().marks().start().await;
            for _ in 0..2 {
                refused(&chat(&double, "a [[poison]] chunk").await, 500, "unexpectedly stopped");
            }
            assert_eq!(chat(&double, "a good one").await.last()["done"], true);
        }
        Mode::EmptyError => {
            let reply = chat_with("empty_500").await;
            assert_eq!((reply.status, reply.body.len()), (500, 0));
        }
        Mode::ErrorFirstLine => {
            let reply = chat_with("error_first_line:text=something else").await;
            breaks_off(&reply, 0, "something else");
            assert_eq!(reply.content_type().as_deref(), Some("application/x-ndjson"));
        }
        Mode::OptionError => refused(&chat_with("option_500").await, 500, "must be of type float32"),
        Mode::NoThinking => refused(&chat_with("no_thinking").await, 400, "does not support thinking"),
        Mode::NestedError => {
            let text = chat_with("nested_400").await.error();
            let inner: Value = serde_json::from_str(&text).expect("JSON inside the text");
            let inner = inner["error"]["message"].as_str().unwrap_or_default();
            assert!(inner.contains("request (302 tokens) exceeds the available context size (256 tokens)"));
        }
        Mode::CutsPrompt => {
            let reply = chat(&with("cuts_prompt").await, &"x".repeat(4000)).await;
            assert_eq!(reply.last()["prompt_eval_count"], 256 - 126, "{}", reply.text());
        }
        Mode::NoDone => {
            never_done(&chat_with("no_done:after=5").await, 5);
            let mut whole = chat_body("x");
            whole["stream"] = false.into();
            let reply = post(&with("no_done:after=5").await, "/api/chat", &whole).await;
            assert_eq!((reply.status, &reply.json()["done"]), (200, &Value::Bool(false)));
        }
        Mode::EmptyOk => {
            let reply = chat_with("empty_200").await;
            assert_eq!((reply.status, reply.body.len(), reply.cut), (200, 0, false));
        }
        Mode::Repeats => {
            let mut body = chat_body("x");
            body["options"]["num_predict"] = 100.into();
            let reply = post(&with("repeats").await, "/api/chat", &body).await;
            never_done(&reply, 31);
        }
        Mode::Stall => falls_silent(&with("stall:after=2").await, 2).await,
        Mode::StallFirst => falls_silent(&with("stall_first").await, 0).await,
        Mode::Drip => {
            let double = with("drip:1").await;
            let mut text = Vec::new();
            let reads = read_lines(&mut begin(&double).await, &mut text, 1).await;
            assert!(reads > 20 && reads > text.len() / 4, "{reads} reads for {} bytes", text.len());
        }
        Mode::Endless => {
            let double = with("endless").await;
            read_lines(&mut begin(&double).await, &mut Vec::new(), 50).await;
        }
        Mode::Reset => {
            let reply = chat_with("reset:after=2").await;
            assert!(reply.reset, "{reply:?}");
            assert!(chat_with("reset").await.raw.is_empty());
            assert!(embed_with("reset").await.reset);
        }
        Mode::CutChunk => {
            let double = with("cut_chunk:after=2*1").await;
            let reply = chat(&double, "x").await;
            assert!(reply.cut && !reply.reset && reply.chunks.len() == 2, "{reply:?}");
            assert_eq!(chat(&double, "x").await.last()["done"], true, "the server lives");
        }
        Mode::Restart => {
            let double = with("restart:200@nth=2").await;
            chat(&double, "x").await;
            let reply = chat(&double, "x").await;
            assert!(reply.raw.is_empty(), "{reply:?}");
            assert!(TcpStream::connect(double.addr()).await.is_err(), "the port refuses");
            let back = async {
                while TcpStream::connect(double.addr()).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(PATIENCE, back).await.expect("it comes back");
            assert_eq!(get(&double, "/api/ps").await.json(), json!({"models": []}));
        }
        Mode::BadJson => {
            let text = chat_with("bad_json").await.text();
            assert!(
                serde_json::from_str::<Value>(text.lines().nth(1).unwrap_or_default()).is_err(),
                "{text}"
            );
        }
        Mode::BadUtf8 => assert!(std::str::from_utf8(&chat_with("bad_utf8").await.body).is_err()),
        Mode::HugeLine => {
            let reply = chat_with("huge_line:9000000").await;
            assert!(reply.text().lines().nth(1).is_some_and(|line| line.len() > 9_000_000));
        }
        Mode::LoadReason => assert_eq!(chat_with("load_reason").await.last()["done_reason"], "load"),
        Mode::BadTool => breaks_off(&chat_with("bad_tool").await, 12, "invalid tool call arguments"),
        Mode::EmbedNan => refused(&embed_with("embed_nan").await, 500, "NaN or Inf"),
        Mode::EmbedShort => {
            assert_eq!(
                embed_with("embed_short").await.json()["embeddings"].as_array().map(Vec::len),
                Some(1)
            );
        }
        Mode::EmbedDim => {
            let vectors = embed_with("embed_dim").await.json()["embeddings"].clone();
            assert_ne!(vectors[0].as_array().map(Vec::len), vectors[1].as_array().map(Vec::len));
        }
        Mode::Html => {
            let reply = get(&with("html").await, "/api/version").await;
            assert_eq!((reply.status, reply.content_type().as_deref()), (200, Some("text/html")));
        }
        Mode::Redirect => {
            let double = quick().fault("redirect").lenient().start().await;
            let reply = chat(&double, "x").await;
            assert_eq!(reply.status, 307);
            let place =
                reply.head.lines().find_map(|line| line.strip_prefix("Location: http://")).expect("a place");
            let place = place.split('/').next().and_then(|addr| addr.parse().ok()).expect("an address");
            let place: std::net::SocketAddr = place;
            assert!(double.forbidden().is_empty());
            drop(TcpStream::connect(place).await.expect("connect"));
            until("the recording port saw us", || double.forbidden().len() == 1).await;
        }
        Mode::PlainMissing => {
            let reply = chat_with("plain_404").await;
            assert_eq!((reply.status, reply.content_type().as_deref()), (404, Some("text/plain")));
        }
        Mode::Unauthorized => {
            let reply = chat_with("status_401").await;
            refused(&reply, 401, "unauthorized");
            assert!(reply.json()["signin_url"].is_string());
        }
        Mode::Forbidden => {
            let reply = chat_with("status_403").await;
            assert_eq!((reply.status, reply.body.len()), (403, 0));
        }
        Mode::Split => {
            let reply = chat_with("split:bytes=3").await;
            assert_eq!(reply.content(), plain_text().await);
            assert!(reply.chunks.iter().all(|size| *size <= 3) && reply.reads > 3, "{:?}", reply.chunks);
        }
        Mode::SplitUtf8 => {
            let reply = chat_with("split_utf8").await;
            assert_eq!(reply.content(), plain_text().await);
            let ends = reply.chunks.iter().scan(0, |sum, size| {
                *sum += size;
                Some(*sum)
            });
            let text = reply.text();
            assert!(ends.into_iter().any(|end| !text.is_char_boundary(end)), "no character was cut");
        }
        Mode::OnePacket => {
            let reply = chat_with("one_packet").await;
            assert_eq!(reply.content(), plain_text().await);
            assert_eq!((reply.chunks.len(), reply.reads), (2, 1));
        }
        Mode::NoLastNewline => {
            let reply = chat_with("no_last_newline").await;
            assert_eq!(reply.content(), plain_text().await);
            assert_eq!(reply.body.last(), Some(&b'}'));
        }
        Mode::Crlf | Mode::BlankLines => {
            let reply = chat_with(mode.name()).await;
            assert_eq!(reply.content(), plain_text().await);
            let part: &[u8] = if mode == Mode::Crlf { b"}\r\n" } else { b"\n\r\n\n" };
            assert!(reply.body.windows(part.len()).any(|window| window == part));
        }
        Mode::FinalText => {
            let reply = chat_with("final_text").await;
            assert_eq!(reply.content(), plain_text().await);
            assert!(reply.last()["message"]["content"].as_str().is_some_and(|text| !text.is_empty()));
        }
        Mode::NoReason => {
            let reply = chat_with("no_reason").await;
            assert_eq!(reply.content(), plain_text().await);
            assert_eq!((&reply.last()["done"], reply.last().get("done_reason")), (&Value::Bool(true), None));
        }
        Mode::AfterDone => {
            let reply = chat_with("after_done").await;
            assert_eq!(reply.content(), plain_text().await);
            assert!(reply.text().ends_with("noise\n"));
        }
        Mode::LoadSlow => {
            let reply = chat_with("load_slow:50").await;
            assert!(reply.last()["load_duration"].as_u64().is_some_and(|time| time >= 50_000_000));
        }
        Mode::OnlyThinking => {
            let reply = chat_with("only_thinking").await;
            assert_eq!((reply.content().as_str(), &reply.last()["done_reason"]), ("", &json!("length")));
            assert!(reply.lines()[0]["message"]["thinking"].is_string());
        }
        Mode::Slow => {
            let double = quick().decode_us(1000).vram(1 << 40).fault("slow:factor=5").start().await;
            let last = chat(&double, "x").await.last();
            let (time, count) = (last["eval_duration"].as_u64(), last["eval_count"].as_u64());
            assert!(time >= count.map(|count| count * 5_000_000), "{last}");
            assert_eq!(get(&double, "/api/ps").await.json()["models"][0]["size_vram"], 0);
        }
        Mode::Zombie => {
            let cpu = Device::new("cpu0", Profile::Fair);
            let double = quick().decode_us(600_000_000).device(&cpu).fault("zombie:100").start().await;
            let stream = begin(&double).await;
            until("it works", || cpu.timeline().len() == 1).await;
            drop(stream);
            until("it has hung up", || double.in_flight() == 0).await;
            assert!(cpu.timeline()[0].end.is_none(), "the device is still busy");
            until("the zombie ends", || cpu.timeline()[0].end.is_some()).await;
        }
        Mode::Foreign => {
            let cpu = Device::new("cpu0", Profile::Fair);
            let double = quick().device(&cpu).fault("foreign:50,num_ctx=512").start().await;
            let last = chat(&double, "x").await.last();
            assert!(last["total_duration"].as_u64().is_some_and(|time| time >= 50_000_000), "{last}");
            assert_eq!((double.reloads(), cpu.timeline().len()), (1, 1), "theirs is not our work");
        }
        Mode::PsWaits | Mode::TagsSlow => {
            let double = with(&format!("{}:80", mode.name())).await;
            let path = if mode == Mode::PsWaits { "/api/ps" } else { "/api/tags" };
            assert!(tokio::time::timeout(Duration::from_millis(40), get(&double, path)).await.is_err());
            assert_eq!(get(&double, path).await.status, 200);
        }
        Mode::Skew => {
            let past = chat_with("skew:-1700000000").await.last();
            let future = chat_with("skew:9000000000").await.last();
            assert!(past["created_at"].as_str().is_some_and(|date| date.starts_with("197")), "{past}");
            assert!(future["created_at"].as_str().is_some_and(|date| date.starts_with("23")), "{future}");
        }
        Mode::Version => {
            let double = with("version:0.12.5").await;
            assert_eq!(get(&double, "/api/version").await.json()["version"], "0.12.5");
            assert_eq!(get(&double, "/api/status").await.status, 404);
            let cut = chat(&double, &"x".repeat(4000)).await;
            assert_eq!(
                (cut.status, &cut.last()["prompt_eval_count"]),
                (200, &json!(256)),
                "truncate is not known"
            );
            let new = with("version:0.33.0-rc2").await;
            assert!(get(&new, "/api/tags").await.json()["models"][0]["capabilities"].is_array());
        }
    }
}

#[tokio::test]
async fn faults_come_and_go_while_it_runs() {
    let double = quick().control("127.0.0.1:0".parse().expect("an address")).start().await;
    double.inject("queue_full*1");
    assert_eq!(chat(&double, "x").await.status, 503);
    assert_eq!(chat(&double, "x").await.status, 200);
    let control = double.control_addr().expect("a control listener");
    let order =
        "POST /faults HTTP/1.1\r\nHost: c\r\nConnection: close\r\nContent-Length: 13\r\n\r\nqueue_full\n\n\n";
    assert_eq!(exchange(control, order.as_bytes()).await.json(), json!({"added": 1}));
    assert_eq!(chat(&double, "x").await.status, 503);
    let wrong = "POST /faults HTTP/1.1\r\nHost: c\r\nConnection: close\r\nContent-Length: 4\r\n\r\nnope";
    assert!(exchange(control, wrong.as_bytes()).await.error().contains("unknown mode `nope`"));
    double.clear();
    assert_eq!(chat(&double, "x").await.status, 200);
    let counts =
        exchange(control, b"GET /counts HTTP/1.1\r\nHost: c\r\nConnection: close\r\n\r\n").await.json();
    assert_eq!((&counts["requests"], &counts["loads"]), (&json!(4), &json!(1)), "{counts}");
}

#[test]
fn a_wrong_rule_is_named() {
    let error = "no_dome:after=5".parse::<Rule>().expect_err("a mode that is none");
    assert!(error.contains("unknown mode `no_dome`"), "{error}");
}
