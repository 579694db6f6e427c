//! A generation that has read its prompt: its tokens, its lines, and every fault that shows in a stream.

use std::io;
use std::time::Duration;

use serde_json::json;

use super::answer::{Answer, Line, MAX_EQUAL, Metrics};
use super::ask::{Ask, Kind};
use super::attempt::Attempt;
use super::clock;
use super::faults::{Fault, Mode};
use super::http::Out;
use super::lines::Lines;
use super::record::Outcome;
use super::routes::Call;
use super::work::millis;

/// A generation that has read its prompt.
pub(crate) struct Run<'a> {
    ask: &'a Ask,
    answer: Answer,
    prompt: u64,
    read: Duration,
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

impl<'a> Run<'a> {
    /// `prompt` tokens were read in `read`.
    pub(crate) fn new(ask: &'a Ask, answer: Answer, prompt: u64, read: Duration) -> Self {
        Self { ask, answer, prompt, read, talk: Talk::default() }
    }

    /// Sends the answer, token by token or whole.
    pub(crate) async fn stream(
        mut self,
        call: &mut Call<'_>,
        out: &mut Out,
        mut attempt: Attempt,
    ) -> io::Result<Outcome> {
        let begun = clock::now();
        let load = attempt.load;
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
        let last = self.last_line(call, held.as_deref(), (load, clock::now() - begun), mode);
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

    fn last_line(
        &self,
        call: &Call<'_>,
        held: Option<&str>,
        (load, took): (Duration, Duration),
        mode: Option<Mode>,
    ) -> Vec<u8> {
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
        line.metrics = Some(Metrics::new(total, load, prompt, (self.talk.tokens, took)));
        line.bytes()
    }
}

/// How a fault breaks a stream.
enum Break {
    Error(&'static str),
    NoDone,
    Reset,
    Cut,
    Stall(Duration),
}

/// After how many lines the stream breaks, and how.
#[expect(clippy::wildcard_enum_match_arm, reason = "seven of sixty modes break a stream")]
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
        _ => return None,
    };
    // Arguments are parsed when all of them are there.
    let after = if fault.mode == Mode::BadTool { u64::MAX } else { fault.number("after").unsigned_abs() };
    Some((after, how))
}
