//! Chat and generate: from the request to the last line, with every fault that shows on the way.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::answer::{Answer, Line, MAX_EQUAL, Metrics, room};
use super::ask::{Ask, Kind};
use super::attempt::Attempt;
use super::clock;
use super::engine::{Engine, Want};
use super::faults::{Fault, Mode};
use super::http::Out;
use super::lines::Lines;
use super::model::{Model, is_cloud_name};
use super::record::Outcome;
use super::routes::{Call, QUEUE_FULL};

/// What a runner that died is called, in every version.
const CRASHED: &str = "model runner has unexpectedly stopped, this may be due to resource limitations or an \
                       internal error, check ollama server logs for details";

/// How a fault breaks a stream.
enum Break {
    Error(&'static str),
    NoDone,
    Reset,
    Cut,
    Stall(Duration),
}

/// After how many lines the stream breaks, and how.
fn break_of(fault: &Fault) -> Option<(u64, Break)> {
    let how = match fault.mode {
        Mode::Oom => {
            Break::Error("an error was encountered while running the model: CUDA error: out of memory")
        }
        Mode::ErrorLine => Break::Error("an error was encountered while running the model: unexpected EOF"),
        Mode::BadTool => Break::Error("invalid tool call arguments: unexpected end of JSON input"),
        Mode::NoDone => Break::NoDone,
        Mode::Reset => Break::Reset,
        Mode::CutChunk => Break::Cut,
        Mode::Stall => Break::Stall(millis(fault)),
        // The other modes act elsewhere.
        #[expect(clippy::wildcard_enum_match_arm, reason = "six of sixty modes break a stream")]
        _ => return None,
    };
    // Arguments are parsed when all of them are there.
    let after = if fault.mode == Mode::BadTool { u64::MAX } else { fault.number("after").unsigned_abs() };
    Some((after, how))
}

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
    let run = Run { ask, answer, prompt, read, load: attempt.load, talk: Talk::default() };
    run.stream(call, out, attempt).await
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

/// A generation that has read its prompt.
struct Run<'a> {
    ask: &'a Ask,
    answer: Answer,
    prompt: u64,
    read: Duration,
    load: Duration,
    talk: Talk,
}

/// What has been said so far.
#[derive(Default)]
struct Talk {
    thinking: String,
    content: String,
    tokens: u64,
    last: String,
    equal: usize,
}

impl Talk {
    /// Adds a token; false when it is one equal token too many.
    fn add(&mut self, thinks: bool, piece: &str) -> bool {
        let word = piece.trim();
        if word == self.last {
            self.equal += 1;
        } else {
            self.equal = 1;
            word.clone_into(&mut self.last);
        }
        if self.equal > MAX_EQUAL {
            return false;
        }
        if thinks { &mut self.thinking } else { &mut self.content }.push_str(piece);
        self.tokens += 1;
        true
    }
}

impl Run<'_> {
    async fn stream(
        mut self,
        call: &mut Call<'_>,
        out: &mut Out,
        mut attempt: Attempt,
    ) -> io::Result<Outcome> {
        let begun = clock::now();
        let fault = call.fault.clone();
        let mode = fault.as_ref().map(|fault| fault.mode);
        let mut broken = fault.as_ref().and_then(break_of);
        if !self.ask.stream {
            out.close |= mode == Some(Mode::CutChunk);
        }
        let held = if mode == Some(Mode::FinalText) { self.answer.content.pop() } else { None };
        let thoughts = std::mem::take(&mut self.answer.thinking);
        let words = std::mem::take(&mut self.answer.content);
        let count = thoughts.len() + words.len();
        let endless = mode == Some(Mode::Endless) && !words.is_empty();
        let mut lines = Lines::begin(out, fault.clone());
        let mut nth = 0;
        loop {
            let all_said = nth >= count && !endless;
            let due = broken.as_ref().is_some_and(|(after, _)| all_said || *after == nth as u64);
            if due && let Some((_, how)) = broken.take() {
                if let Break::Stall(time) = how {
                    attempt.stall(time).await;
                } else {
                    return self.end_early(call, lines, attempt, how).await;
                }
            }
            if all_said {
                break;
            }
            attempt.token().await;
            let thinks = nth < thoughts.len();
            let piece = if thinks { &thoughts[nth] } else { &words[(nth - thoughts.len()) % words.len()] };
            if !self.talk.add(thinks, piece) {
                return self.end_early(call, lines, attempt, Break::NoDone).await;
            }
            if self.ask.stream {
                call.entry.first_byte();
                let line = self.token_line(call, thinks, piece, nth, fault.as_ref());
                lines.line(&line).await?;
            }
            nth += 1;
        }
        if let Some(tool) = self.answer.tool_call.take() {
            attempt.token().await;
            self.talk.tokens += 1;
            if self.ask.stream {
                call.entry.first_byte();
                let at = call.created_at();
                lines
                    .line(&Line::new(self.ask.kind, &self.ask.model, &at, "").tool_call(&tool).bytes())
                    .await?;
            }
            self.answer.tool_call = Some(tool);
        }
        if let Some(held) = &held {
            attempt.token().await;
            self.talk.add(false, held);
        }
        attempt.finish();
        call.entry.land();
        call.entry.first_byte();
        let last = self.last_line(call, held.as_deref(), clock::now() - begun, mode);
        if self.ask.stream {
            lines.last(&last).await?
        } else {
            call.json(out, 200, &last).await.map(drop)?
        }
        Ok(Outcome::Answered(200))
    }

    /// Ends without `done`.
    async fn end_early(
        self,
        call: &mut Call<'_>,
        mut lines: Lines<'_>,
        mut attempt: Attempt,
        how: Break,
    ) -> io::Result<Outcome> {
        if matches!(how, Break::Error(_)) && !call.is(Mode::BadTool) {
            attempt.crash();
        }
        attempt.finish();
        call.entry.land();
        let at = call.created_at();
        let so_far = Line::new(self.ask.kind, &self.ask.model, &at, &self.talk.content);
        match how {
            Break::Reset => lines.reset(),
            Break::Cut => lines.cut(&so_far.bytes()).await?,
            Break::Error(text) if self.ask.stream && self.talk.tokens > 0 => {
                lines.last(json!({"error": text}).to_string().as_bytes()).await?;
                return Ok(Outcome::Answered(200));
            }
            Break::Error(text) => {
                return call.late_error(lines.into_out(), self.ask.stream, 500, text).await;
            }
            Break::NoDone | Break::Stall(_) if self.ask.stream => {
                lines.end().await?;
                return Ok(Outcome::Answered(200));
            }
            Break::NoDone | Break::Stall(_) => {
                return call.json(lines.into_out(), 200, &so_far.bytes()).await;
            }
        }
        Ok(Outcome::Broken)
    }

    fn token_line(
        &self,
        call: &Call<'_>,
        thinks: bool,
        piece: &str,
        nth: usize,
        fault: Option<&Fault>,
    ) -> Vec<u8> {
        let at = call.created_at();
        let (kind, model) = (self.ask.kind, self.ask.model.as_str());
        let mode = fault.map(|fault| fault.mode);
        let huge;
        let text = if mode == Some(Mode::HugeLine) && nth == 1 {
            huge = "x".repeat(usize::try_from(fault.map_or(0, |fault| fault.number("bytes"))).unwrap_or(0));
            &huge
        } else {
            piece
        };
        let mut line = Line::new(kind, model, &at, if thinks { "" } else { text });
        if thinks {
            line = line.thinking(piece);
        }
        if mode == Some(Mode::RemoteLine) && nth == 0 {
            line.remote_model = Some(model);
            line.remote_host = Some("https://ollama.com:443");
        }
        if self.ask.logprobs && !thinks {
            line.logprobs = Some(json!([{"token": text, "logprob": -0.1, "bytes": text.as_bytes()}]));
        }
        let mut bytes = line.bytes();
        if mode == Some(Mode::BadJson) && nth == 1 {
            bytes.truncate(bytes.len() / 2);
        }
        if mode == Some(Mode::BadUtf8) && nth == 1 {
            let place = bytes.windows(2).position(|two| two == b"\":").unwrap_or(0);
            bytes.insert(place, 0xff);
        }
        bytes
    }

    fn last_line(&self, call: &Call<'_>, held: Option<&str>, took: Duration, mode: Option<Mode>) -> Vec<u8> {
        let at = call.created_at();
        let whole = !self.ask.stream;
        let content = if whole { self.talk.content.as_str() } else { held.unwrap_or_default() };
        let mut line = Line::new(self.ask.kind, &self.ask.model, &at, content);
        if whole {
            line = line.thinking(&self.talk.thinking);
            if let Some(tool) = &self.answer.tool_call {
                line = line.tool_call(tool);
            }
        }
        line.done = true;
        line.done_reason = match mode {
            Some(Mode::NoReason) => None,
            Some(Mode::LoadReason) => Some("load"),
            Some(_) | None => Some(self.answer.reason),
        };
        if self.ask.kind == Kind::Generate {
            line.context = Some((0..self.prompt + self.talk.tokens).map(|nth| 259 + nth % 64).collect());
        }
        // A prompt that is cached or free takes no time; one that was read took at least a nanosecond.
        let total = clock::now() - call.received;
        let prompt = (self.prompt, self.read);
        line.metrics = Some(Metrics::new(total, self.load, prompt, (self.talk.tokens, took)));
        line.bytes()
    }
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
