//! What other versions of Ollama do otherwise, and what the engine does with load options, memory and prefixes.

use super::*;

#[tokio::test]
async fn below_0_12_6_an_error_before_the_first_line_comes_with_status_200() {
    let old = quick().version("0.12.5").fault("crash").start().await;
    let reply = chat(&old, "x").await;
    assert_eq!((reply.status, reply.content_type().as_deref()), (200, Some("application/x-ndjson")));
    assert!(reply.lines()[0]["error"].is_string());
    let new = quick().version("0.12.6").fault("crash").start().await;
    assert_eq!(chat(&new, "x").await.status, 500);
}

#[tokio::test]
async fn a_prompt_that_may_be_cut_is_cut_to_the_context_and_since_0_30_to_half() {
    for (version, count) in [("0.29.0", 256), ("0.30.0", 130), ("0.0.0", 130)] {
        let double = quick().version(version).start().await;
        let mut body = chat_body(&"x".repeat(4000));
        body["truncate"] = true.into();
        assert_eq!(post(&double, "/api/chat", &body).await.last()["prompt_eval_count"], count, "{version}");
    }
}

#[tokio::test]
async fn too_long_is_said_in_the_words_of_the_version() {
    for (version, words) in [
        ("0.24.0", "the input length exceeds the context length"),
        ("0.30.0", "exceed_context_size_error"),
        ("0.30.9", "the prompt is longer than the context length"),
    ] {
        let double = quick().version(version).start().await;
        let error = chat(&double, &"x".repeat(4000)).await.error();
        assert!(error.contains(words), "{version}: {error}");
    }
}

#[tokio::test]
async fn without_num_ctx_the_context_depends_on_the_video_memory() {
    let allocated = async |version: &str, vram: u64| {
        let model = Model::new("m").context(1 << 20).size(1 << 30);
        let double = Double::builder().model(model).version(version).vram(vram).start().await;
        post(&double, "/api/generate", &json!({"model": "m", "prompt": ""})).await;
        let loaded = get(&double, "/api/ps").await.json()["models"][0].clone();
        (loaded["context_length"].as_u64(), loaded["size_vram"].as_u64())
    };
    assert_eq!(allocated("0.15.4", 80 << 30).await, (Some(4096), Some(1 << 30)));
    assert_eq!(allocated("0.33.0", 0).await, (Some(4096), Some(0)));
    assert_eq!(allocated("0.33.0", 24 << 30).await, (Some(32_768), Some(1 << 30)));
    assert_eq!(allocated("0.33.0", 80 << 30).await, (Some(262_144), Some(1 << 30)));
}

#[tokio::test]
async fn shift_is_a_load_option_since_0_30() {
    for (version, reloads) in [("0.29.0", 0), ("0.30.0", 1)] {
        let double = quick().version(version).start().await;
        chat(&double, "x").await;
        let mut body = chat_body("x");
        body["shift"] = true.into();
        post(&double, "/api/chat", &body).await;
        assert_eq!(double.reloads(), reloads, "{version}");
    }
}

#[tokio::test]
async fn names_of_the_cloud_are_asked_there_and_local_ones_stay() {
    let double = quick().start().await;
    let mut body = chat_body("x");
    body["model"] = "big:120b-cloud".into();
    let reply = post(&double, "/api/chat", &body).await;
    assert_eq!(reply.status, 502);
    assert!(reply.error().contains("https://ollama.com"), "{}", reply.error());
    body["model"] = "m:latest:local".into();
    assert_eq!(post(&double, "/api/chat", &body).await.last()["done"], true);
    double.inject("version:0.17.4");
    assert_eq!(post(&double, "/api/chat", &body).await.status, 404);
}

#[tokio::test]
async fn two_names_over_one_file_evict_each_other() {
    let double =
        quick().model(Model::new("n").weights("same")).model(Model::new("o").weights("same")).start().await;
    let load = async |name: &str| post(&double, "/api/generate", &json!({"model": name, "prompt": ""})).await;
    load("n").await;
    load("o").await;
    let listed = get(&double, "/api/ps").await.json();
    assert_eq!(listed["models"].as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(listed["models"][0]["name"], "o:latest");
}

#[tokio::test]
async fn more_models_than_fit_evict_the_one_that_expires_first() {
    let double = quick().max_loaded(2).model("a").model("b").model("c").start().await;
    for (name, keep) in [("a", "10m"), ("b", "5m"), ("c", "20m")] {
        let body = json!({"model": name, "prompt": "", "keep_alive": keep});
        post(&double, "/api/generate", &body).await;
    }
    let listed = get(&double, "/api/ps").await.json();
    let names: Vec<_> =
        listed["models"].as_array().into_iter().flatten().map(|model| &model["name"]).collect();
    assert_eq!(names, ["a:latest", "c:latest"]);
}

#[tokio::test]
async fn a_prefix_that_is_cached_costs_no_time_and_counts_all_the_same() {
    let double = quick().prefill_us(5000).cached_prefix(true).start().await;
    let prompt = "x".repeat(800);
    let (first, second) = (chat(&double, &prompt).await.last(), chat(&double, &prompt).await.last());
    assert_eq!(first["prompt_eval_count"], second["prompt_eval_count"]);
    let time = |last: &Value| last["prompt_eval_duration"].as_u64().unwrap_or(0);
    assert!(time(&first) > 1_000_000_000 && time(&second) < 500_000_000, "{first} {second}");
}

#[tokio::test]
async fn a_model_that_nobody_uses_expires() {
    let double = quick().start().await;
    let body = json!({"model": "m", "prompt": "", "keep_alive": 0.05});
    post(&double, "/api/generate", &body).await;
    let gone = async {
        while get(&double, "/api/ps").await.json() != json!({"models": []}) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it expires");
}
