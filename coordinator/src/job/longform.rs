//! `tropa write`: a long text as a graph of parts.
//!
//! The first part is written alone, since it sets what the others build on; then all others at once, each with a
//! focus of its own; a synthesis reads them all and comes last. A story is a chain instead, since each of its parts
//! follows from the one before; with an outline the parts of any text depend on the outline alone and are written at
//! once. All of it is decided before anything runs and from the wish alone, so one machine and ten ask the same.
//!
//! Nothing here reads a language: a wish is flags and numbers, the length of a topic counts in bytes, and the checks of
//! what comes back compare characters.

mod check;
mod document;
mod focus;
mod length;
mod prompt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tropa_proto::message::MAX_BODY;

use super::{
    Answer, Density, InputError,
    graph::{Graph, GraphError, Message, Node, NodeIndex, Piece, Role},
};

pub use check::{Finding, findings};
pub use document::document;
pub use focus::Content;
pub use length::{LARGEST_PARTS, LARGEST_WORDS, Length};

/// The longest topic in bytes: several pages of instructions. What is longer is a document, which `tropa map` reads.
pub const LARGEST_TOPIC: usize = 64 << 10;

/// How much of the part before it a part of a story reads, in bytes: its last paragraphs, so that the context of a
/// long story does not grow with it.
const STORY_TAIL: u32 = 2000;

/// Bytes that a token of an answer takes in a request at most, for the question whether a synthesis fits one.
const BYTES_PER_TOKEN: u64 = 4;

/// A part that the context holds to fewer tokens is not worth writing; the model is too small then.
const FEWEST_TOKENS: u32 = 64;

/// Begins the note that says so.
const HELD_TO: &str = "each part is held to";

/// What the user wants written.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// What it is about.
    pub topic: String,
    /// What kind of text; absent: [`Content::General`].
    pub content: Option<Content>,
    /// How long.
    pub length: Length,
    /// Plan all parts before any of them is written.
    pub outline: bool,
    /// What the user has every model told besides.
    pub system: Option<String>,
    /// Leave out the synthesis.
    pub no_synthesis: bool,
    /// Tokens of each part, at most; absent: room for its words.
    pub max_tokens: Option<u32>,
    /// Tokens of context that the model takes; absent: not known, and everything fits.
    pub context: Option<u32>,
    /// How the model counts text.
    pub density: Density,
}

/// A text that can be written: what is asked, and which answer goes where.
#[derive(Clone, Debug, PartialEq)]
pub struct LongText {
    /// What is asked.
    pub graph: Graph,
    /// Which answer goes where.
    pub layout: Layout,
    /// What the user is told before the work starts, one sentence each.
    pub notes: Vec<String>,
}

/// Which answer goes where in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What it is about.
    pub topic: String,
    /// In the order of the nodes of the graph, from the first on.
    pub sections: Vec<Section>,
}

/// What one node of the graph is for. The journal keeps it as the metadata of the node, `{"part": 3}`, so that the text
/// can be made from the journal alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Section {
    /// The plan of the parts; not in the text.
    Outline {
        /// How many parts it was asked to plan.
        parts: u32,
    },
    /// A part of the text, numbered from 1.
    Part(u32),
    /// What draws the parts together.
    Synthesis {},
}

impl Section {
    /// The stage of the job that it belongs to.
    fn stage(self) -> &'static str {
        match self {
            Self::Outline { .. } => "outline",
            Self::Part(_) => "part",
            Self::Synthesis {} => "synthesis",
        }
    }

    /// As metadata of a node.
    fn metadata(self) -> Map<String, Value> {
        match json!(self) {
            Value::Object(metadata) => metadata,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                Map::new()
            }
        }
    }

    /// Reads it back from the metadata of a node; `None` where it says nothing of the kind.
    #[must_use]
    pub fn from_metadata(metadata: &Map<String, Value>) -> Option<Self> {
        serde_json::from_value(Value::Object(metadata.clone())).ok()
    }
}

/// Makes the graph of a text.
///
/// # Errors
/// When the topic is empty or too long, or an outline is wanted of a single part.
pub fn plan(wish: &Wish) -> Result<LongText, InputError> {
    let topic = wish.topic.trim();
    if topic.is_empty() {
        return Err(InputError::at(0, "the topic is empty", "say what the text is to be about"));
    }
    if topic.len() > LARGEST_TOPIC {
        let what = format!("the topic has {} bytes, and at most {LARGEST_TOPIC} fit", topic.len());
        return Err(InputError::at(0, what, "shorten it, or use `tropa map` for a long document"));
    }
    let content = wish.content.unwrap_or_default();
    let measure = length::measure(topic, wish);
    let parts = measure.parts;
    let mut notes = Vec::new();
    notes.extend(measure.note.clone());
    let mut outline = wish.outline && parts > 1;
    if wish.outline && parts == 1 {
        notes.push("one part needs no outline".to_owned());
    }
    let foci = focus::of(content, parts);
    if foci.is_empty() && !outline {
        outline = true;
        notes.push(format!(
            "{parts} parts are more than {} has by itself, so an outline comes first",
            content.name()
        ));
    }
    let mut writer = Writer {
        words: prompt::Words {
            topic,
            content,
            parts,
            words: measure.words_per_part,
            foci: &foci,
            outlined: outline,
            system: wish.system.as_deref(),
        },
        num_predict: wish.max_tokens.unwrap_or_else(|| measure.tokens_per_part()),
        text: LongText {
            graph: Graph::default(),
            layout: Layout { topic: topic.to_owned(), sections: Vec::new() },
            notes,
        },
    };
    let written = writer.parts_that_fit(wish);
    let ordered = written.and_then(|written| writer.synthesis(&written, wish).map(|()| writer.text));
    ordered.map_err(|error| InputError::at(0, error.to_string(), "ask for fewer parts"))
}

/// Builds one text, node by node.
struct Writer<'a> {
    words: prompt::Words<'a>,
    num_predict: u32,
    text: LongText,
}

impl Writer<'_> {
    /// All parts. Where the user did not say how long a part may be, it is as long as the context allows at most.
    fn parts_that_fit(&mut self, wish: &Wish) -> Result<Vec<NodeIndex>, GraphError> {
        loop {
            let written = self.parts()?;
            let need = self.text.graph.largest_context(wish.density);
            let over = wish.context.map_or(0, |context| need.saturating_sub(context.into()));
            if over == 0 || wish.max_tokens.is_some() || self.num_predict <= FEWEST_TOKENS {
                return Ok(written);
            }
            // A part and the one that it reads are shorter by as much; what is too little now is mended next time.
            let less = u32::try_from(over.div_ceil(3)).unwrap_or(u32::MAX);
            self.num_predict = self.num_predict.saturating_sub(less).max(FEWEST_TOKENS);
            self.text.notes.retain(|note| !note.starts_with(HELD_TO));
            let context = wish.context.unwrap_or_default();
            self.text.notes.push(format!("{HELD_TO} {} tokens: the context is {context}", self.num_predict));
            self.text.graph = Graph::default();
            self.text.layout.sections.clear();
        }
    }

    fn parts(&mut self) -> Result<Vec<NodeIndex>, GraphError> {
        if self.words.outlined {
            self.by_outline()
        } else if self.words.content == Content::Story {
            self.as_chain()
        } else {
            self.with_first_alone()
        }
    }

    /// The outline, then all parts from it.
    fn by_outline(&mut self) -> Result<Vec<NodeIndex>, GraphError> {
        let parts = self.words.parts;
        let outline = vec![self.words.ask_outline().into()];
        let outline = self.add(
            "outline".to_owned(),
            Section::Outline { parts },
            outline,
            length::outline_tokens(parts),
        )?;
        (1..=parts)
            .map(|no| {
                let mut ask = vec![self.words.opening().into(), prompt::OUTLINE.into(), outline.into()];
                ask.push(self.words.ask_part(no).into());
                self.add_part(no, ask)
            })
            .collect()
    }

    /// Each part from the end of the one before.
    fn as_chain(&mut self) -> Result<Vec<NodeIndex>, GraphError> {
        let mut written: Vec<NodeIndex> = Vec::new();
        for no in 1..=self.words.parts {
            let mut ask = vec![self.words.opening().into()];
            if let Some(before) = written.last() {
                ask.push(prompt::STORY_SO_FAR.into());
                ask.push(Piece::Tail { node: *before, bytes: STORY_TAIL });
            }
            ask.push(self.words.ask_part(no).into());
            written.push(self.add_part(no, ask)?);
        }
        Ok(written)
    }

    /// The first part alone, then all others from it.
    fn with_first_alone(&mut self) -> Result<Vec<NodeIndex>, GraphError> {
        let first = vec![self.words.opening().into(), self.words.ask_part(1).into()];
        let mut written = vec![self.add_part(1, first)?];
        for no in 2..=self.words.parts {
            // What all of them read comes first, so that an engine that has read it once keeps it.
            let mut ask = vec![self.words.opening().into(), prompt::FIRST_PART.into(), written[0].into()];
            ask.push(self.words.ask_part(no).into());
            written.push(self.add_part(no, ask)?);
        }
        Ok(written)
    }

    /// What reads all parts, or the reason why there is none.
    fn synthesis(&mut self, written: &[NodeIndex], wish: &Wish) -> Result<(), GraphError> {
        if wish.no_synthesis || written.len() < 2 {
            return Ok(());
        }
        if self.words.content == Content::Story {
            self.text.notes.push("no synthesis: a story ends with its last part".to_owned());
            return Ok(());
        }
        let mut ask = vec![self.words.opening().into()];
        for (no, node) in (1..).zip(written) {
            ask.push(prompt::part_reads(no).into());
            ask.push((*node).into());
        }
        ask.push(self.words.ask_synthesis().into());
        let section = Section::Synthesis {};
        let node = self.node("synthesis".to_owned(), section, ask, self.num_predict);
        // Tried on a copy: a node cannot be taken away again.
        let mut with = self.text.graph.clone();
        let index = with.add(node)?;
        let need = with.context(index, wish.density);
        let answers = written.len() as u64 * u64::from(self.num_predict);
        if let Some(context) = wish.context.filter(|context| need > u64::from(*context)) {
            self.text.notes.push(format!(
                "no synthesis: with parts of full length it would need a context of {need} tokens, and there are \
                 {context}; ask for fewer or shorter parts, raise --num-ctx, or choose a model with more context"
            ));
        } else if answers * BYTES_PER_TOKEN > MAX_BODY as u64 {
            self.text.notes.push(format!(
                "no synthesis: parts of up to {answers} tokens do not fit one request; ask for fewer or shorter parts"
            ));
        } else {
            self.text.graph = with;
            self.text.layout.sections.push(section);
        }
        Ok(())
    }

    fn add_part(&mut self, no: u32, ask: Vec<Piece>) -> Result<NodeIndex, GraphError> {
        let name = format!("part {no} of {}", self.words.parts);
        self.add(name, Section::Part(no), ask, self.num_predict)
    }

    fn add(
        &mut self,
        name: String,
        section: Section,
        ask: Vec<Piece>,
        num_predict: u32,
    ) -> Result<NodeIndex, GraphError> {
        let node = self.node(name, section, ask, num_predict);
        let index = self.text.graph.add(node)?;
        self.text.layout.sections.push(section);
        Ok(index)
    }

    fn node(&self, name: String, section: Section, ask: Vec<Piece>, num_predict: u32) -> Node {
        let system = Message::new(Role::System, vec![self.words.system().into()]);
        let messages = vec![system, Message::new(Role::User, ask)];
        Node {
            metadata: section.metadata(),
            ..Node::new(name, section.stage(), num_predict, messages).shown()
        }
    }
}

#[cfg(test)]
mod tests;
