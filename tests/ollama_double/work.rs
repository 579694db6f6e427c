//! Chat and generate: from the request to the last line, with every fault that shows on the way.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::answer::{Answer, Line, room};
use super::ask::{Ask, Kind};
use super::attempt::Attempt;
use super::engine::{Engine, Want};
use super::faults::{Fault, Mode};
use super::http::Out;
use super::model::{Model, is_cloud_name};
use super::record::Outcome;
use super::routes::{Call, QUEUE_FULL};
use super::run::Run;

/// What a runner that died is called, in every version.
const CRASHED: &str = "model runner has unexpectedly stopped, this may be due to resource limitations or an \
                       internal error, check ollama server logs for details";

pub(crate) fn millis(fault: &Fault) -> Duration {
    Duration::from_millis(fault.number("ms").unsigned_abs())
}

/// Answers chat and generate.
pub(crate) async fn generate(call: &mut Call<'_>, out: &mut Out, ask: &Ask) -> io::Result<Outcome> {
    let engine = Arc::clone(call.engine);
    let settings = &engine.settings;
    let Some(model) = call.find(&ask.model) else {
        return call.no_model(out, ask).await;
    };
    if let Some(refusal) = refusal(ask, &model, call) {
        return call.error(out, refusal.0, &refusal.1).await;
    }
    let want = want(call, ask, &model);
    if ask.texts.iter().all(String::is_empty) {
        return load_only(call, out, ask, &want).await;
    }
    if let Some(text) = ask.wrong_format() {
        return call.late_error(out, ask.stream, 500, &text).await;
    }
    if call.is(Mode::Foreign) {
        foreign(&engine, &want, call.fault.as_ref()).await;
    }
    if let Some(text) = load_fault(call).await {
        return call.error(out, 500, text).await;
    }
    let Ok(mut attempt) = Attempt::begin(&engine, &want).await else {
        return call.error(out, 503, QUEUE_FULL).await;
    };
    let counted: u64 = ask.texts.iter().map(|text| model.count(text)).sum();
    let Some(prompt) = fit(call, ask, attempt.context, counted) else {
        let text = too_long(call, attempt.context, counted);
        attempt.finish();
        return call.late_error(out, ask.stream, 400, &text).await;
    };
    if let Some(fault) = call.fault.as_ref() {
        before_reading(&mut attempt, fault).await;
    }
    let unread = if settings.cached_prefix {
        let text = ask.prompt();
        prompt.saturating_sub((attempt.cached(text.as_bytes()) / model.bytes_per_token) as u64)
    } else {
        prompt
    };
    let reading = settings.first + settings.prefill.saturating_mul(u32::try_from(unread).unwrap_or(u32::MAX));
    let read = attempt.read(reading).await;
    if call.is(Mode::Crash) || call.is(Mode::Poison) {
        attempt.crash();
        return call.late_error(out, ask.stream, 500, CRASHED).await;
    }
    let room = room(ask, &call.version, attempt.context, prompt);
    let mode = call.fault.as_ref().map(|fault| fault.mode);
    let answer = Answer::new(ask, &model, settings, room, mode, &call.version);
    Run::new(ask, answer, prompt, read).stream(call, out, attempt).await
}

/// Why Ollama refuses before it looks at its engine: status and text.
fn refusal(ask: &Ask, model: &Model, call: &Call<'_>) -> Option<(u16, String)> {
    if let Some(host) = &model.remote_host {
        let lookup = "dial tcp: lookup ollama.com: no such host";
        return Some((502, format!("Post \"https://ollama.com/api/chat\": {lookup} ({host})")));
    }
    if !model.can("completion") {
        return Some((400, format!("\"{}\" does not support chat", ask.model)));
    }
    if !ask.tools.is_empty() && !model.can("tools") {
        return Some((400, format!("registry.ollama.ai/library/{} does not support tools", ask.model)));
    }
    if let Some(think) = ask.think.as_ref().filter(|_| call.version.at_least(0, 9, 0)) {
        let levels: &[&str] = if call.version.at_least(0, 22, 0) {
            &["low", "medium", "high", "max"]
        } else {
            &["low", "medium", "high"]
        };
        let level = think.as_str().map(|level| levels.contains(&level));
        if level == Some(false) || (level.is_none() && !think.is_boolean()) {
            let allowed = "(must be \"high\", \"medium\", \"low\", true, or false)";
            return Some((400, format!("invalid think value: {think} {allowed}")));
        }
        if think != &Value::Bool(false) && !model.can("thinking") {
            return Some((400, format!("\"{}\" does not support thinking", ask.model)));
        }
    }
    ask.wrong_option().map(|text| (500, text))
}

/// What the request needs loaded. A context beyond the trained one is cut to it.
pub(crate) fn want(call: &Call<'_>, ask: &Ask, model: &Model) -> Want {
    let settings = &call.engine.settings;
    let by_vram = match settings.vram >> 30 {
        _ if !call.version.at_least(0, 15, 5) => 4096,
        0..24 => 4096,
        24..48 => 32_768,
        _ => 262_144,
    };
    let asked = ask.whole("num_ctx").and_then(|count| u64::try_from(count).ok()).filter(|count| *count > 0);
    let least = if model.can("vision") { 2048 } else { 4 };
    let context = asked.unwrap_or(by_vram).max(least).min(model.context);
    Want {
        model: model.clone(),
        options: ask.load_options(&call.version, context),
        context,
        keep_alive: ask.keep_alive.unwrap_or(settings.keep_alive),
    }
}

/// An empty prompt loads; with `keep_alive: 0` it unloads.
async fn load_only(call: &mut Call<'_>, out: &mut Out, ask: &Ask, want: &Want) -> io::Result<Outcome> {
    let reason = if ask.keep_alive == Some(Duration::ZERO) {
        call.engine.unload(&want.model);
        "unload"
    } else {
        if let Some(text) = load_fault(call).await {
            return call.error(out, 500, text).await;
        }
        if call.engine.acquire(want).await.is_err() {
            return call.error(out, 503, QUEUE_FULL).await;
        }
        "load"
    };
    let at = call.created_at();
    let mut line = Line::new(ask.kind, &ask.model, &at, "");
    line.done = true;
    line.done_reason = Some(reason);
    call.json(out, 200, &line.bytes()).await
}

/// Faults of a load: they happen whether or not the model is loaded.
pub(crate) async fn load_fault(call: &Call<'_>) -> Option<&'static str> {
    let fault = call.fault.as_ref()?;
    let new = call.version.at_least(0, 30, 0);
    if fault.mode == Mode::LoadOom {
        return Some("llama runner process has terminated: cudaMalloc failed: out of memory");
    }
    if fault.mode == Mode::LoadStall {
        let pace = call.engine.pace(false);
        tokio::time::sleep(millis(fault)).await;
        drop(pace);
        return Some(if new {
            "timed out waiting for llama-server to start - "
        } else {
            "timed out waiting for llama runner to start - "
        });
    }
    None
}

/// Somebody else uses this install first; with a context of their own they make it reload.
pub(crate) async fn foreign(engine: &Arc<Engine>, want: &Want, fault: Option<&Fault>) {
    let Some(fault) = fault else { return };
    let mut theirs = want.clone();
    if let Ok(context @ 1..) = u64::try_from(fault.number("num_ctx")) {
        theirs.context = context;
        theirs.options = format!("num_ctx={context} foreign");
    }
    let Ok(hold) = engine.acquire(&theirs).await else { return };
    let slot = hold.slot().await;
    let pace = engine.pace(true);
    tokio::time::sleep(millis(fault)).await;
    drop((pace, slot, hold));
}

/// What a fault does between having the slot and reading the prompt.
pub(crate) async fn before_reading(attempt: &mut Attempt, fault: &Fault) {
    if fault.mode == Mode::LoadSlow {
        attempt.spend(millis(fault)).await;
        attempt.load += millis(fault);
    }
    if fault.mode == Mode::StallFirst {
        attempt.stall(millis(fault)).await;
    }
    if fault.mode == Mode::Slow {
        attempt.slow_down(u32::try_from(fault.number("factor")).unwrap_or(1).max(1));
    }
    if fault.mode == Mode::Zombie {
        attempt.zombie = millis(fault);
    }
}

/// How many tokens of the prompt are read: all, or what is left of one that was cut; `None` when it is too long.
fn fit(call: &Call<'_>, ask: &Ask, context: u64, counted: u64) -> Option<u64> {
    if counted <= context {
        return Some(counted);
    }
    let half = context - context.saturating_sub(4) / 2;
    if call.is(Mode::CutsPrompt) {
        return Some(half);
    }
    if ask.truncate == Some(false) && call.version.at_least(0, 12, 6) {
        return None;
    }
    Some(if call.version.at_least(0, 30, 0) { half } else { context })
}

fn too_long(call: &Call<'_>, context: u64, counted: u64) -> String {
    if call.version.at_least(0, 30, 9) {
        return format!(
            "the prompt is longer than the context length currently available ({counted} > {context} tokens)"
        );
    }
    if call.version.at_least(0, 30, 0) {
        nested(counted, context)
    } else {
        "the input length exceeds the context length".to_owned()
    }
}

/// The text of the inner runner, which is JSON itself.
pub(crate) fn nested(counted: u64, context: u64) -> String {
    let message = format!("request ({counted} tokens) exceeds the available context size ({context} tokens)");
    json!({"error": {"code": 400, "message": message, "type": "exceed_context_size_error",
        "n_prompt_tokens": counted, "n_ctx": context}})
    .to_string()
}

impl Call<'_> {
    /// The model is not here: a name of Ollama's cloud is asked there, another one is not found.
    pub(crate) async fn no_model(&mut self, out: &mut Out, ask: &Ask) -> io::Result<Outcome> {
        if is_cloud_name(&ask.model) && self.version.at_least(0, 18, 0) {
            let text = "Post \"https://ollama.com:443/api/chat\": dial tcp: lookup ollama.com: no such host";
            return self.error(out, 502, text).await;
        }
        let text = if ask.kind == Kind::Embed {
            format!("model \"{}\" not found, try pulling it first", ask.model)
        } else {
            format!("model '{}' not found", ask.model)
        };
        self.error(out, 404, &text).await
    }
}
