//! `tropa write` and `tropa panel`: from a topic or a question to a graph at work.

use std::{io::Read as _, path::Path};

use anyhow::{Context as _, anyhow};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::graph::{self, GraphJob};
use crate::{
    args::{OutputArgs, PanelArgs, WriteArgs},
    clock::Clock,
    exit::{Exit, Failed, OrExit as _, Outcome},
    job::{
        self, InputError,
        longform::{self, LARGEST_TOPIC, Length},
        panel::{self, BuiltIn, Cast, LARGEST_FILE, LARGEST_QUESTION},
    },
    journal::Kind,
    settings::Settings,
};

/// `tropa write`.
///
/// # Errors
/// With [`Exit::Input`] for a topic that is none, and the codes of [`graph::run`].
pub async fn write(mut args: WriteArgs, settings: &Settings, clock: Clock) -> Outcome {
    let topic = typed(args.topic, LARGEST_TOPIC, "topic").await?;
    settings.job.fill_ask(&mut args.ask);
    let length = Length { words: args.words.or(args.length.map(|length| length.words())), parts: args.parts };
    let mut wish = longform::Wish {
        content: args.content,
        length,
        outline: args.outline,
        no_synthesis: args.no_synthesis,
        max_tokens: args.max_tokens,
        // The parts have system prompts of their own, which would win.
        system: args.ask.system.take(),
        topic,
        ..longform::Wish::default()
    };
    // What is wrong with the wish is said before anybody is looked for.
    longform::plan(&wish).map_err(refused)?;
    let job = GraphJob {
        kind: Kind::Write,
        spec: json!({
            "schema": "tropa.write/1", "topic": wish.topic, "type": args.content.map(longform::Content::name),
            "words": length.words, "parts": length.parts, "outline": args.outline,
            "synthesis": !args.no_synthesis, "max_tokens": args.max_tokens,
        }),
        input_sha256: Sha256::digest(&wish.topic).into(),
        ask: args.ask,
        output: OutputArgs { output: args.output, as_completed: false },
    };
    let build = |room: &graph::Room| {
        wish.context = Some(room.context);
        wish.density = room.density;
        let text = longform::plan(&wish).map_err(refused)?;
        say(&text.notes, settings);
        Ok(text.graph)
    };
    graph::run(job, build, settings, clock).await
}

/// `tropa panel`.
///
/// # Errors
/// With [`Exit::Input`] for a question that is none or a file of roles that is wrong, and the codes of
/// [`graph::run`].
pub async fn panel(mut args: PanelArgs, settings: &Settings, clock: Clock) -> Outcome {
    let question = typed(args.question, LARGEST_QUESTION, "question").await?;
    settings.job.fill_ask(&mut args.ask);
    let cast = match &args.roles {
        Some(path) => Cast::File(file(path)?),
        None => Cast::BuiltIn(BuiltIn {
            critics: args.critics,
            rounds: args.rounds,
            brainstorm: args.brainstorm,
            vote: args.vote,
        }),
    };
    let wish = panel::Wish {
        question,
        cast,
        max_tokens: args.max_tokens.unwrap_or(job::DEFAULT_MAX_TOKENS),
        // What roles of a file do not say themselves the job says for them.
        system: args.ask.system.take_if(|_| args.roles.is_none()),
        temperature: args.ask.temperature,
        models: args.role_model,
    };
    let panel = panel::plan(&wish).map_err(|error| {
        let failed = refused(error);
        match &args.roles {
            Some(path) => Failed { error: failed.error.context(path.display().to_string()), ..failed },
            None => failed,
        }
    })?;
    let job = GraphJob {
        kind: Kind::Panel,
        spec: json!({
            "schema": "tropa.panel/1", "layout": panel.layout, "all": args.all, "max_tokens": wish.max_tokens,
        }),
        input_sha256: Sha256::digest(&wish.question).into(),
        ask: args.ask,
        output: OutputArgs { output: args.output, as_completed: false },
    };
    graph::run(job, |_| Ok(panel.graph), settings, clock).await
}

/// What was typed, or what stdin holds where `-` was.
async fn typed(text: String, most: usize, what: &'static str) -> Result<String, Failed> {
    if text != "-" {
        return Ok(text);
    }
    let reading = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        // One byte more than fits tells that it is too much.
        let read = std::io::stdin().lock().take(most as u64 + 1).read_to_end(&mut bytes);
        read.with_context(|| format!("cannot read the {what} from stdin")).or_exit(Exit::Io)?;
        utf8(bytes)
    });
    reading.await.or_exit(Exit::Io)?
}

/// Reads a file of roles.
fn file(path: &Path) -> Result<String, Failed> {
    let opened = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let mut bytes = Vec::new();
    let read = opened.or_exit(Exit::Input)?.take(LARGEST_FILE as u64 + 1).read_to_end(&mut bytes);
    // A directory opens and does not read.
    read.with_context(|| format!("cannot read {}", path.display())).or_exit(Exit::Input)?;
    utf8(bytes).map_err(|failed| Failed { error: failed.error.context(path.display().to_string()), ..failed })
}

fn utf8(bytes: Vec<u8>) -> Result<String, Failed> {
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(valid).filter(|byte| **byte == b'\n').count() + 1;
        anyhow!("line {line}: not UTF-8; convert it, for example with `iconv -t UTF-8`")
    });
    let text = text.or_exit(Exit::Input)?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

fn refused(error: InputError) -> Failed {
    Failed { exit: Exit::Input, error: error.into() }
}

#[expect(clippy::print_stderr, reason = "messages go to stderr")]
fn say(notes: &[String], settings: &Settings) {
    if !settings.quiet {
        for note in notes {
            eprintln!("{note}");
        }
    }
}
