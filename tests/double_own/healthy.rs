//! The double without faults: waits, loads, texts, traps.

use super::*;

#[tokio::test]
async fn equal_digests_give_equal_texts_and_a_salt_does_not() {
    let (one, two, salted) = (quick().start().await, quick().start().await, quick().salt("x").start().await);
    let text = chat(&one, "the llama").await.content();
    assert_eq!(text, chat(&two, "the llama").await.content());
    assert_ne!(text, chat(&salted, "the llama").await.content());
    assert_ne!(text, chat(&one, "the alpaca").await.content());
    let mut other_seed = chat_body("the llama");
    other_seed["options"]["seed"] = 2.into();
    assert_ne!(text, post(&one, "/api/chat", &other_seed).await.content());
    let mut whole = chat_body("the llama");
    whole["stream"] = false.into();
    assert_eq!(text, post(&two, "/api/chat", &whole).await.json()["message"]["content"]);
}

#[tokio::test]
async fn a_prompt_that_fills_the_context_fits_and_one_token_more_does_not() {
    let double = quick().start().await;
    // 8 tokens for the message and 248 for its text.
    let exact = chat(&double, &"x".repeat(248 * 4)).await;
    assert_eq!(
        (exact.last()["prompt_eval_count"].as_u64(), exact.last()["eval_count"].as_u64()),
        (Some(256), Some(1))
    );
    assert_eq!(exact.last()["done_reason"], "length");
    let more = chat(&double, &"x".repeat(248 * 4 + 1)).await;
    assert_eq!(more.status, 400);
    assert!(more.error().contains("prompt is longer than the context length"), "{}", more.error());
    let mut lenient = chat_body(&"x".repeat(2000));
    lenient["truncate"] = true.into();
    assert_eq!(post(&double, "/api/chat", &lenient).await.last()["prompt_eval_count"], 256 - 126);
}

#[tokio::test]
async fn other_load_options_reload_and_equal_ones_do_not() {
    let double = quick().start().await;
    chat(&double, "a").await;
    chat(&double, "b").await;
    assert_eq!((double.loads(), double.reloads()), (1, 0));
    let mut other = chat_body("c");
    other["options"]["num_ctx"] = 512.into();
    post(&double, "/api/chat", &other).await;
    assert_eq!((double.loads(), double.reloads()), (2, 1));
    assert_eq!(get(&double, "/api/ps").await.json()["models"][0]["context_length"], 512);
    let unload = json!({"model": "m", "prompt": "", "keep_alive": 0});
    assert_eq!(post(&double, "/api/generate", &unload).await.json()["done_reason"], "unload");
    assert_eq!(get(&double, "/api/ps").await.json(), json!({"models": []}));
}

#[tokio::test]
async fn slots_bound_what_runs_and_nothing_bounds_what_waits() {
    let cpu = Device::new("cpu0", Profile::Fair);
    let double = quick().decode_us(1000).device(&cpu).start().await;
    let all = (0..8).map(|_| chat(&double, "x"));
    let replies = futures::future::join_all(all).await;
    assert!(replies.iter().all(|reply| reply.last()["done"] == true));
    assert_eq!(double.max_in_flight(), 8);
    let spans = cpu.timeline();
    assert_eq!(spans.len(), 8, "the load takes no time and no device");
    assert!(spans.windows(2).all(|two| two[0].end <= Some(two[1].start)), "one slot, one at a time");
}

#[tokio::test]
async fn a_load_that_nobody_wants_any_more_is_given_up() {
    let cpu = Device::new("cpu0", Profile::Fair);
    let double = quick().load_ms(600_000).device(&cpu).start().await;
    let mut stream = TcpStream::connect(double.addr()).await.expect("connect");
    stream.write_all(&post_bytes("/api/chat", &chat_body("x"))).await.expect("send");
    until("the load begins", || cpu.timeline().len() == 1).await;
    // Since 0.30 it is not said what is loaded while a load goes on.
    let ps = tokio::time::timeout(Duration::from_millis(50), get(&double, "/api/ps")).await;
    assert!(ps.is_err(), "answered {ps:?}");
    drop(stream);
    until("the device is free", || cpu.timeline()[0].end.is_some()).await;
    assert_eq!(get(&double, "/api/ps").await.json(), json!({"models": []}));
    assert_eq!(double.loads(), 0);
    until("the outcome", || double.requests()[0].outcome == Outcome::HungUp).await;
}

#[tokio::test]
async fn hanging_up_stops_generation_but_not_the_reading_of_a_prompt() {
    let cpu = Device::new("cpu0", Profile::Fair);
    let double = quick().first_ms(600_000).device(&cpu).start().await;
    let mut stream = TcpStream::connect(double.addr()).await.expect("connect");
    stream.write_all(&post_bytes("/api/chat", &chat_body("x"))).await.expect("send");
    until("it reads", || cpu.timeline().len() == 1).await;
    drop(stream);
    until("it has hung up", || double.in_flight() == 0).await;
    assert!(cpu.timeline()[0].end.is_none(), "the prompt is still being read");
    post(&double, "/api/generate", &json!({"model": "m", "prompt": "", "keep_alive": 0})).await;
    until("the closed runner frees the device", || cpu.timeline()[0].end.is_some()).await;

    let double = quick().decode_us(600_000_000).device(&cpu).start().await;
    let mut stream = TcpStream::connect(double.addr()).await.expect("connect");
    stream.write_all(&post_bytes("/api/chat", &chat_body("x"))).await.expect("send");
    until("it generates", || cpu.timeline().len() == 2).await;
    drop(stream);
    until("generation stops", || cpu.timeline()[1].end.is_some()).await;
}

#[tokio::test]
async fn a_device_is_idle_before_its_client_learns_that_the_work_is_done() {
    let cpu = Device::new("cpu0", Profile::Fair);
    // One byte at a time: when the first bytes of the last line are here, the rest takes a while.
    let double = quick().tokens(1).device(&cpu).fault("drip:2").start().await;
    let mut stream = TcpStream::connect(double.addr()).await.expect("connect");
    stream.write_all(&post_bytes("/api/chat", &chat_body("x"))).await.expect("send");
    let mut text = Vec::new();
    let read = async {
        while !text.windows(11).any(|part| part == b"\"done\":true") {
            assert!(
                stream.read_buf(&mut text).await.expect("read") > 0,
                "{}",
                String::from_utf8_lossy(&text)
            );
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the last line in time");
    assert!(!text.ends_with(b"0\r\n\r\n"), "it ended before we looked");
    assert!(cpu.timeline().iter().all(|span| span.end.is_some()), "{:?}", cpu.timeline());
    assert_eq!(double.in_flight(), 0, "the next request may come now and is no second one");
}

#[tokio::test]
async fn the_queue_overflows_only_for_what_is_not_loaded() {
    let double = quick().max_queue(1).load_ms(700).start().await;
    let replies = futures::future::join_all((0..6).map(|_| chat(&double, "x"))).await;
    let refused = replies.iter().filter(|reply| reply.status == 503).count();
    assert_eq!(refused, 3, "one loads, two wait, the rest is refused");
    let text = replies.iter().find(|reply| reply.status == 503).expect("a refusal").error();
    assert!(text.contains("maximum pending requests exceeded"), "{text}");
    let replies = futures::future::join_all((0..6).map(|_| chat(&double, "x"))).await;
    assert!(replies.iter().all(|reply| reply.status == 200));
}

#[tokio::test]
async fn thinking_is_on_by_default_and_spends_tokens() {
    let double = quick().model(Model::new("deep").capabilities(&["completion", "thinking"])).start().await;
    let body = json!({"model": "deep", "messages": [{"role": "user", "content": "x"}],
        "options": {"num_ctx": 256, "num_predict": 5}});
    let reply = post(&double, "/api/chat", &body).await;
    assert_eq!(reply.content(), "");
    assert_eq!(reply.last()["done_reason"], "length");
    assert!(reply.lines()[0]["message"]["thinking"].is_string());
}

#[tokio::test]
async fn a_schema_echo_and_replies_decide_the_text() {
    let double = quick().reply("needle", "found it").start().await;
    assert_eq!(chat(&double, "a needle").await.content(), "found it");
    let mut body = chat_body("x");
    body["options"]["num_predict"] = 100.into();
    body["format"] = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
    let text = post(&double, "/api/chat", &body).await.content();
    assert!(serde_json::from_str::<Value>(&text).is_ok_and(|value| value["n"].is_i64()), "{text}");
    let echo = quick().echo(true).start().await;
    assert_eq!(chat(&echo, "año nuevo, sí").await.content(), "año nuevo, sí");
}

#[tokio::test]
async fn embeddings_are_unit_vectors_in_the_order_of_the_inputs() {
    let double = quick().start().await;
    let body = json!({"model": "m", "input": ["one", "two"], "truncate": false, "options": {"num_ctx": 256}});
    let both = post(&double, "/api/embed", &body).await.json();
    let second = post(&double, "/api/embed", &json!({"model": "m", "input": "two"})).await.json();
    assert_eq!(both["embeddings"][1], second["embeddings"][0]);
    assert_ne!(both["embeddings"][0], both["embeddings"][1]);
    assert_eq!(both["embeddings"][0].as_array().map(Vec::len), Some(384));
    assert_eq!(both["prompt_eval_count"], 18);
}

#[tokio::test]
async fn a_forbidden_call_and_an_unused_fault_fail_the_test() {
    let double = quick().fault("crash").lenient().start().await;
    assert_eq!(post(&double, "/api/pull", &json!({"model": "m"})).await.status, 403);
    post(&double, "/v1/chat/completions", &json!({})).await;
    post(&double, "/api/show", &json!({"model": "big:cloud"})).await;
    assert_eq!(double.forbidden().len(), 3, "{:?}", double.forbidden());
    assert_eq!(double.unused_faults(), ["crash"]);
    let strict = quick().fault("crash").start().await;
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(strict)));
    assert!(dropped.is_err(), "an unused fault passed");
    let strict = quick().start().await;
    post(&strict, "/api/delete", &json!({"model": "m"})).await;
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(strict)));
    assert!(dropped.is_err(), "a forbidden call passed");
}

#[tokio::test]
async fn strangers_are_refused_and_neighbours_are_not() {
    let double = quick().start().await;
    for (host, status) in [
        ("evil.example", 403),
        ("93.184.216.34:11434", 403),
        ("localhost:11434", 200),
        ("box.local", 200),
        ("[::1]:80", 200),
        ("10.0.0.7", 200),
    ] {
        let request = format!("GET /api/version HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert_eq!(exchange(double.addr(), request.as_bytes()).await.status, status, "{host}");
    }
}

#[tokio::test]
async fn an_ordinary_client_keeps_its_connection() {
    let double = quick().start().await;
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    for _ in 0..3 {
        let reply = client.post(format!("{}/api/chat", double.url())).json(&chat_body("x")).send().await;
        let text = reply.expect("a reply").text().await.expect("a body");
        assert!(text.contains("\"done\":true"), "{text}");
    }
    assert_eq!((double.connections(), double.requests().len()), (1, 3));
    assert!(double.requests().iter().all(|request| request.header("origin").is_none()));
}

#[tokio::test]
async fn stop_lets_a_running_request_end_and_kill_does_not() {
    let double = quick().decode_us(5000).start().await;
    let reply = async { chat(&double, "x").await };
    let stop = async {
        until("it runs", || double.in_flight() == 1).await;
        double.stop().await;
    };
    let (reply, ()) = tokio::join!(reply, stop);
    assert_eq!(reply.last()["done"], true);
    assert!(TcpStream::connect(double.addr()).await.is_err(), "a stopped double accepts");

    let double = quick().decode_us(600_000_000).start().await;
    let reply = async { chat(&double, "x").await };
    let kill = async {
        until("it runs", || double.in_flight() == 1).await;
        double.kill();
    };
    let (reply, ()) = tokio::join!(reply, kill);
    assert!(reply.reset && reply.raw.is_empty(), "{reply:?}");
}
