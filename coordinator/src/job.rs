//! From what a user hands in to chunks: every request final, byte for byte, before the first of them runs.
//!
//! The coordinator writes each body once and its hash is part of the chunk, so a body must hold everything that
//! the job decides, above all its `num_ctx`: another value reloads the model, so there is one for all, or a few
//! classes of it. They need the longest item first. So an input is read twice: the first pass checks and measures
//! every item, the second makes chunks. What cannot be read twice, such as stdin, is copied to a file in the directory
//! of the job first. Neither pass holds more than one item.
//!
//! An item that cannot be read stops the job before anything starts, with its line, the reason and what to do
//! (`conventions.md` §1).

mod answer;
mod batch;
mod classes;
mod csv;
mod density;
pub mod document;
mod embed;
pub mod graph;
mod item;
mod items;
mod jsonl;
mod lines;
pub mod longform;
pub mod map;
mod measured;
mod openai;
pub mod panel;
mod prefix;
pub mod split;

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::journal;

pub use answer::Answer;
pub use batch::{Chunks, Input, Prepared, file_sha256, prepare};
pub use density::Density;
pub use embed::{BATCH_TOKENS, BatchOrigin, BatchSize, Batches, MAX_TEXTS, Part};
pub use item::full_name;
pub use measured::Measured;

/// Tokens of an answer where neither the item nor `--max-tokens` says: room for a page, and finite, since an
/// open-ended answer once took 49,158 tokens (`ollama-api.md` §5).
pub const DEFAULT_MAX_TOKENS: u32 = 512;

/// The largest `num_predict` that is believed; more is a slip of the keyboard.
pub const LARGEST_MAX_TOKENS: u32 = 1_000_000;

/// What the user asked for beside the input. What an item says itself wins.
#[derive(Clone, Debug, Default)]
pub struct JobOptions {
    /// How the input looks.
    pub format: Format,
    /// Tokens of an answer; absent: [`DEFAULT_MAX_TOKENS`].
    pub max_tokens: Option<u32>,
    /// Context in tokens, one value for the job; absent: what the longest item needs, in classes where many need far
    /// less.
    pub num_ctx: Option<u32>,
    /// Whether models may think; absent: they may not.
    pub think: Option<Think>,
    /// Seed.
    pub seed: Option<i64>,
    /// Sampling temperature.
    pub temperature: Option<f64>,
    /// System prompt.
    pub system: Option<String>,
    /// The prompt of a line or row, with `{{line}}` or `{{column}}`.
    pub template: Option<String>,
    /// The column that names the rows.
    pub id_column: Option<String>,
    /// The `url` of batch lines that have none.
    pub endpoint: Option<String>,
    /// Every item is a text whose vector is wanted.
    pub embed: bool,
    /// Numbers in a vector, where the model lets one choose.
    pub dimensions: Option<u32>,
}

/// How an input looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// By suffix, else by the first item.
    #[default]
    Auto,
    /// OpenAI Batch: objects with `body`.
    Batch,
    /// Objects with `prompt`, `messages` or `input`.
    Jsonl,
    /// A header, then rows with commas; with a template.
    Csv,
    /// The same with tabs.
    Tsv,
    /// One prompt a line.
    Lines,
}

/// Whether and how much a model thinks before it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Think {
    /// Not at all.
    Off,
    /// As the model likes.
    On,
    /// Little.
    Low,
    /// Some.
    Medium,
    /// Much.
    High,
    /// As much as it can.
    Max,
}

/// What the journal keeps beside an item, for sending it and for writing its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The item's own name, else the number of its line.
    pub id: String,
    /// The line of the input where it begins, from 1; 0 where it is no line of an input.
    pub line: u64,
    /// The stage of a job whose chunks build on each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// The shape of its result.
    pub shape: Shape,
    /// The context that its body asks for.
    pub num_ctx: u32,
    /// The seed that its body asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Tokens of the answer, at most; 0 for embeddings.
    pub num_predict: u32,
    /// Estimated tokens of the prompt.
    pub prompt_tokens: u32,
    /// Names the long beginning that the prompt shares with those of other items; 0: none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub prefix: u32,
    /// What came with the item and means nothing to us.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
}

/// The shape of a result (`conventions.md` §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// `{"id", "text", …}`.
    Text,
    /// `{"id", "embeddings", …}`.
    Vectors,
    /// Batch, `/v1/chat/completions`.
    ChatCompletion,
    /// Batch, `/v1/completions`.
    TextCompletion,
    /// Batch, `/v1/embeddings`.
    EmbeddingList,
    /// Batch, Ollama's own reply.
    Native,
}

/// An input that cannot be used; exit code 65.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{what}; {remedy}", if *line == 0 { String::new() } else { format!("line {line}: ") })]
pub struct InputError {
    /// The line, from 1; 0 where the input as a whole is meant.
    pub line: u64,
    /// What is wrong. Names keys and never quotes a prompt.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// Why a job cannot be made of an input.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The input cannot be used.
    #[error(transparent)]
    Input(#[from] InputError),
    /// An option does not fit the input, or its text is wrong.
    #[error("{0}")]
    Option(String),
    /// The input, or its copy, cannot be opened, read or written.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// The operation.
        doing: &'static str,
        /// The file; `-` for stdin.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The journal did not take the chunks.
    #[error(transparent)]
    Journal(#[from] journal::Error),
}

impl Error {
    /// The exit code of a program that ends with this error (`conventions.md` §3).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input(_) => 65,
            Self::Option(_) => 64,
            // An input that is not there or not ours to read; whatever fails later is the disk.
            Self::Io { doing: "open", .. } => 65,
            Self::Io { .. } => 74,
            Self::Journal(error) => error.exit_code(),
        }
    }

    fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), source }
    }
}

impl InputError {
    fn at(line: u64, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { line, what: what.into(), remedy: remedy.into() }
    }
}

impl Think {
    /// The value of `think` in a request.
    fn value(self) -> Value {
        match self {
            Self::Off => Value::Bool(false),
            Self::On => Value::Bool(true),
            Self::Low => "low".into(),
            Self::Medium => "medium".into(),
            Self::High => "high".into(),
            Self::Max => "max".into(),
        }
    }

    /// Reads the value of `think` in a request; `None` for anything else.
    #[must_use]
    pub fn from_value(value: &Value) -> Option<Self> {
        [Self::Off, Self::On, Self::Low, Self::Medium, Self::High, Self::Max]
            .into_iter()
            .find(|think| think.value() == *value)
    }
}

impl Format {
    /// The name as `--input` takes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Batch => "batch",
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
            Self::Tsv => "tsv",
            Self::Lines => "lines",
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests;
