//! Texts to vectors: several inputs in one request, each with a line of its own in the output.
//!
//! An embedding runner works the texts of a request one by one (`ollama-api.md` §5), so a batch saves requests and
//! commits, and costs nothing. Its bounds keep it small enough that every lane gets some: a lane that is slower holds
//! the end of the job up by one batch at most.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tropa_proto::message::{Endpoint, MAX_BODY};

use super::{
    Error, InputError, Origin, Prepared, Shape,
    batch::Chunks,
    item::{BODY_RESERVE, Item, full_name},
};
use crate::journal::NewChunk;

/// Texts in one request, at most: beyond it requests cost nothing any more (`ollama-api.md` §5), and the vectors of
/// this many texts fit a result at 5,000 numbers each.
pub const MAX_TEXTS: usize = 128;

/// Estimated tokens in one request, unless `--batch` says otherwise: some seconds of work for a small model on
/// processors, which is lost where an attempt fails.
pub const BATCH_TOKENS: u64 = 8192;

/// How large batches may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSize {
    /// Texts, at least 1 and at most [`MAX_TEXTS`].
    pub texts: usize,
    /// Estimated tokens of all texts together; one text may have more.
    pub tokens: u64,
}

/// What the journal keeps beside a batch: an [`Origin`] for all of it, and its items.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchOrigin {
    /// Of the batch; its id and line are those of the first item.
    #[serde(flatten)]
    pub origin: Origin,
    /// The items, in order.
    pub parts: Vec<Part>,
}

/// One item in a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its place in the output.
    pub index: u32,
    /// Its own name, else the number of its line.
    pub id: String,
    /// The line of the input where it begins, from 1.
    pub line: u64,
    /// How many texts it has, and so vectors.
    pub texts: u32,
    /// What came with it and means nothing to us.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
}

impl BatchSize {
    /// A size at which each of `lanes` that work at the same time gets four batches or more of so many items, so that
    /// none waits long for another's last.
    #[must_use]
    pub fn spread(items: u32, lanes: usize, tokens: u64) -> Self {
        let share = (items as usize).div_ceil(lanes.max(1).saturating_mul(4));
        Self { texts: share.clamp(1, MAX_TEXTS), tokens }
    }
}

/// The batches of an input, made as they are asked for.
#[derive(Debug)]
pub struct Batches<'a> {
    chunks: Chunks<'a>,
    size: BatchSize,
    /// The item that did not fit the batch before.
    held: Option<Item>,
    index: u32,
}

impl Prepared {
    /// Reads the input again and makes batches of it. `model` stands in where an item names none.
    ///
    /// The last item is an error if the input is not what was measured.
    ///
    /// # Errors
    /// When the input cannot be opened again.
    pub fn batches(&self, model: &str, size: BatchSize) -> Result<Batches<'_>, Error> {
        Ok(Batches { chunks: self.chunks(model)?, size, held: None, index: 0 })
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<NewChunk, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut batch = Batch::default();
        loop {
            let item = match self.held.take().map(Ok).or_else(|| self.chunks.next_item()) {
                None => break,
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(item)) => item,
            };
            if batch.takes(&item, self.size) {
                batch.push(item);
            } else {
                self.held = Some(item);
                break;
            }
        }
        let first = self.index;
        self.index += u32::try_from(batch.items.len()).unwrap_or(u32::MAX);
        let num_ctx = self.chunks.num_ctx();
        batch.chunk(self.chunks.model(), num_ctx, first).map(Ok)
    }
}

#[derive(Default)]
struct Batch {
    items: Vec<Item>,
    texts: usize,
    tokens: u64,
    bytes: usize,
}

impl Batch {
    /// Whether an item fits: by size, and because one request can ask for all of it.
    fn takes(&self, item: &Item, size: BatchSize) -> bool {
        let Some(first) = self.items.first() else { return true };
        let same = |a: &Item, b: &Item| {
            let others = |item: &Item| {
                item.ask
                    .iter()
                    .filter(|(key, _)| *key != "input")
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect()
            };
            let (a_asks, b_asks): (Map<_, _>, Map<_, _>) = (others(a), others(b));
            a.model == b.model && a.options == b.options && a_asks == b_asks
        };
        self.texts + texts(item).count() <= size.texts
            && self.tokens + tokens(item) <= size.tokens
            && self.bytes + bytes(item) + BODY_RESERVE <= MAX_BODY
            && same(first, item)
    }

    fn push(&mut self, item: Item) {
        self.texts += texts(&item).count();
        self.tokens += tokens(&item);
        self.bytes += bytes(&item);
        self.items.push(item);
    }

    /// Makes the one request of all items; `None` where there is none.
    fn chunk(mut self, model: &str, num_ctx: u32, first: u32) -> Option<NewChunk> {
        let parts = (first..).zip(&self.items).map(|(index, item)| Part {
            index,
            id: item.id.clone(),
            line: item.line,
            texts: u32::try_from(texts(item).count()).unwrap_or(u32::MAX),
            metadata: item.metadata.clone(),
        });
        let parts: Vec<Part> = parts.collect();
        let input: Vec<Value> = self.items.iter().flat_map(texts).cloned().collect();
        let longest = self.items.iter().map(Item::prompt_tokens).max().unwrap_or(0);
        if self.items.is_empty() {
            return None;
        }
        let mut whole = self.items.swap_remove(0);
        whole.ask.insert("input".to_owned(), input.into());
        let origin = Origin {
            id: whole.id.clone(),
            line: whole.line,
            shape: Shape::Vectors,
            num_ctx,
            seed: None,
            num_predict: 0,
            prompt_tokens: u32::try_from(longest).unwrap_or(u32::MAX),
            prefix: 0,
            metadata: Map::new(),
            stage: None,
        };
        Some(NewChunk {
            endpoint: Endpoint::Embed,
            model: full_name(whole.model.as_deref().unwrap_or(model)),
            body: whole.body(model, num_ctx),
            needs: BTreeSet::new(),
            shown: true,
            origin: json!(BatchOrigin { origin, parts }).to_string(),
        })
    }
}

impl Item {
    /// Makes an item that asks for vectors of one that holds a text: a line, a row, or an object with `input` or
    /// `prompt`.
    pub(super) fn into_embedding(mut self, dimensions: Option<u32>) -> Result<Self, InputError> {
        if self.endpoint != Endpoint::Embed {
            let text = match self.ask.get_mut("messages").and_then(Value::as_array_mut).map(Vec::as_mut_slice)
            {
                Some([only]) if only["role"] == "user" && only["images"].is_null() => only["content"].take(),
                Some(_) | None => Value::Null,
            };
            if !text.is_string() || self.shape != Shape::Text {
                let (what, remedy) = ("no text to embed", "write {\"input\": \"…\"}, or a line of text");
                return Err(InputError { line: self.line, what: what.to_owned(), remedy: remedy.to_owned() });
            }
            self = Self {
                options: self.options,
                model: self.model,
                metadata: self.metadata,
                ..Self::new(self.line, self.id, Shape::Vectors, Endpoint::Embed).ask("input", text)
            };
        }
        if let Some(dimensions) = dimensions {
            self.ask.entry("dimensions").or_insert(dimensions.into());
        }
        Ok(self)
    }
}

/// The texts of an item.
fn texts(item: &Item) -> impl Iterator<Item = &Value> {
    match item.ask.get("input") {
        Some(Value::Array(texts)) => texts.iter(),
        Some(text) => std::slice::from_ref(text).iter(),
        None => [].iter(),
    }
}

/// Estimated tokens of all texts of an item, at three bytes each (`ollama-api.md` §5).
fn tokens(item: &Item) -> u64 {
    texts(item).filter_map(Value::as_str).map(|text| (text.len() as u64).div_ceil(3)).sum()
}

/// Bytes of the texts of an item in a request, escaped.
fn bytes(item: &Item) -> usize {
    texts(item).map(|text| text.to_string().len() + 1).sum()
}
