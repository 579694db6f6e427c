//! The arguments of `tropa write` and `tropa panel`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};

use super::AskArgs;
use crate::job::{
    longform::{Content, LARGEST_PARTS, LARGEST_WORDS},
    panel::{LARGEST_REPEATS, LARGEST_ROUNDS},
};

/// `tropa write`.
#[derive(Debug, ClapArgs)]
#[command(after_help = WRITE_NOTES)]
pub struct WriteArgs {
    /// What the text is about, in any language; - reads it from stdin
    #[arg(value_name = "TOPIC")]
    pub topic: String,
    /// The kind of text: it decides what the parts are about [default: general]
    #[arg(long = "type", value_name = "TYPE", value_parser = content())]
    pub content: Option<Content>,
    /// Words of all parts together; decides how many parts there are
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(LARGEST_WORDS)))]
    pub words: Option<u32>,
    /// The same in a word: 400, 1500 or 4000 words
    #[arg(long, value_name = "LENGTH", conflicts_with = "words")]
    pub length: Option<TextLength>,
    /// Parts, whatever the length
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(LARGEST_PARTS)))]
    pub parts: Option<u32>,
    /// Write an outline first, then all parts from it at once
    #[arg(long)]
    pub outline: bool,
    /// Leave out the synthesis that reads all parts and comes last
    #[arg(long)]
    pub no_synthesis: bool,
    /// Tokens of each part, at most [default: room for its words]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_tokens: Option<u32>,
    /// What is asked of the models
    #[command(flatten)]
    pub ask: AskArgs,
    /// Write the text to this file, complete or not at all [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

const WRITE_NOTES: &str = "\
The first part is written alone, then all others at once, each with its own focus; a synthesis reads them all. A story \
is written part after part, each from the end of the one before. With --outline all parts depend on the outline alone.

Without --words, --length, --parts, --type and --outline, a question of one line and at most 64 bytes is answered in \
one part.";

/// A length in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TextLength {
    /// About a page.
    Short,
    /// Three pages.
    Medium,
    /// Eight pages.
    Long,
}

/// `tropa panel`.
#[derive(Debug, ClapArgs)]
#[command(after_help = PANEL_NOTES, after_long_help = PANEL_FILE)]
pub struct PanelArgs {
    /// What the panel is to answer, in any language; - reads it from stdin
    #[arg(value_name = "QUESTION")]
    pub question: String,
    /// Critics in each round, each looking for something else [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(LARGEST_REPEATS)))]
    pub critics: Option<u32>,
    /// Rounds of critics and editor, each on the answer of the one before [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(LARGEST_ROUNDS)))]
    pub rounds: Option<u32>,
    /// Begin with N ideas at once and a choice among them, and not with a researcher
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=i64::from(LARGEST_REPEATS)))]
    pub brainstorm: Option<u32>,
    /// Let N voters choose among the ideas; of 3 ideas without --brainstorm
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(LARGEST_REPEATS)),
        conflicts_with_all = ["critics", "rounds"])]
    pub vote: Option<u32>,
    /// Take roles and prompts from this TOML file; --help shows one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["critics", "rounds", "brainstorm", "vote"])]
    pub roles: Option<PathBuf>,
    /// Give a role a model of its own (repeatable)
    #[arg(long, value_name = "ROLE=MODEL", value_parser = role_model)]
    pub role_model: Vec<(String, String)>,
    /// Show what every role said, and not the answer alone
    #[arg(long)]
    pub all: bool,
    /// Tokens of each answer, at most [default: 512]
    #[arg(long, value_name = "N", env = "TROPA_MAX_TOKENS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_tokens: Option<u32>,
    /// What is asked of the models
    #[command(flatten)]
    pub ask: AskArgs,
    /// Write the answer to this file, complete or not at all [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

const PANEL_NOTES: &str = "\
By itself: a researcher, a critic, an editor. A vote must be {\"vote\": N} or the number alone; anything else is an \
abstention and counted. Of a tie the first is chosen, and it is said.";

/// The same, with a file of roles; short lines, since an example is not to be wrapped.
const PANEL_FILE: &str = r#"By itself: a researcher, a critic, an editor. A vote must be {"vote": N} or the number
alone; anything else is an abstention and counted. Of a tie the first is chosen, and it is said.

A file for --roles:

    answer = "editor"             # whose answer is the panel's [default: the last role's]

    [[role]]
    name = "thinker"
    repeats = 3                   # answers three times, at once
    temperature = 1.0
    prompt = "As expert {{number}} of {{repeats}}: {{question}}"

    [[role]]
    name = "judge"
    vote = "thinker"              # votes on these answers
    repeats = 5
    prompt = """{{question}}

    {{candidates}}

    The best? Answer {"vote": N} and nothing else."""

    [[role]]
    name = "editor"
    model = "llama3.2:3b"         # [default: --model]
    system = "You are brief."
    max-tokens = 300              # [default: --max-tokens]
    prompt = "{{question}} Answers: {{answer:thinker}} Join them."

A role waits for the roles whose answers its prompt names; those that do not wait for each
other answer at once."#;

impl TextLength {
    /// The words that it stands for.
    #[must_use]
    pub fn words(self) -> u32 {
        match self {
            Self::Short => 400,
            Self::Medium => 1500,
            Self::Long => 4000,
        }
    }
}

/// The kinds of text by their names.
fn content() -> impl clap::builder::TypedValueParser<Value = Content> {
    use clap::builder::TypedValueParser as _;
    clap::builder::PossibleValuesParser::new(Content::ALL.map(Content::name))
        .map(|name| Content::ALL.into_iter().find(|content| content.name() == name).unwrap_or_default())
}

/// Reads `ROLE=MODEL`.
fn role_model(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((role, model)) if !role.trim().is_empty() && !model.trim().is_empty() => {
            Ok((role.trim().to_owned(), model.trim().to_owned()))
        }
        Some(_) | None => Err("not ROLE=MODEL, such as critic=llama3.2:3b".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::panel::{Cast, Wish, plan};

    #[test]
    fn the_file_of_roles_that_the_help_shows_is_one_and_is_not_wrapped() {
        let example = PANEL_FILE.lines().filter_map(|line| line.strip_prefix("    "));
        let cast = Cast::File(example.collect::<Vec<_>>().join("\n"));
        let question = "Why?".to_owned();
        let wish =
            Wish { question, cast, max_tokens: 512, system: None, temperature: None, models: Vec::new() };
        assert_eq!(plan(&wish).unwrap().graph.nodes().len(), 3 + 5 + 1);
        // `max_term_width` is 100.
        assert!(PANEL_FILE.lines().all(|line| line.len() <= 100));
    }
}
