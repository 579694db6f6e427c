//! Long documents as a graph: a question to every part, and a tree that brings the answers together.
//!
//! A document that fits one request is one request. A longer one is cut at its structure, every part is asked the
//! same, and the answers are merged, as many at once as fit a request, until one is left. Every answer enters its
//! merge behind the mark of the parts that it comes from, such as `[part 3]`, so that a citation can survive the tree;
//! which lines a part has stands in the metadata of the result. The graph depends on the documents, what is asked and
//! the context alone, never on who is there to work on it.

use serde_json::{Map, Value, json};

use super::{
    Density,
    document::Document,
    graph::{Graph, GraphError, MAX_NEEDS, Message, Node, NodeIndex, Piece, Role},
    item::TOKENS_PER_MESSAGE,
    split::{Part, split},
};

/// Tokens of a part where the document does not fit one request and the user gives no other size: a few pages, so that
/// an answer of [`super::DEFAULT_MAX_TOKENS`] is a fourth of what it is about.
pub const PART_TOKENS: u32 = 2048;

/// A part smaller than this says nothing by itself.
pub const LEAST_PART: u64 = 32;

/// The question where the user asks none.
pub const SUMMARISE: &str =
    "Summarise this text. Keep names, numbers, dates and decisions. Write in the language of the text.";

/// How answers are merged where the user does not say. The question stands before it.
const MERGE: &str = "The notes below are answers to this, each for one part of a longer text, in order. Merge them into \
                     one answer without saying anything twice. Behind each statement keep the mark of the part that it \
                     comes from, such as [part 3].";

/// What is asked of documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapAsk {
    /// The question to every part.
    pub prompt: String,
    /// How the answers are merged; absent: into one answer to the same question, with the marks kept.
    pub merge: Option<String>,
    /// Tokens of every answer, at most.
    pub max_tokens: u32,
    /// Tokens of a part; absent: the whole document where it fits, else [`PART_TOKENS`].
    pub part_tokens: Option<u32>,
    /// One answer about all documents; otherwise one for each.
    pub together: bool,
    /// Tokens that a system prompt adds to every request.
    pub system_tokens: u64,
}

/// Why no graph can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The context is too small for any part.
    #[error(
        "a context of {context} tokens leaves {left} for a part of the document beside the question and {max_tokens} tokens of answer"
    )]
    NoPart {
        /// The context.
        context: u32,
        /// What is left.
        left: u64,
        /// The limit of the answer.
        max_tokens: u32,
    },
    /// The context does not hold two answers, so nothing can be merged.
    #[error(
        "a context of {context} tokens does not hold two answers of {max_tokens} tokens and the merge of them"
    )]
    NoMerge {
        /// The context.
        context: u32,
        /// The limit of an answer.
        max_tokens: u32,
    },
    /// There are too many parts.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// Answers on their way through the tree: a node and the parts that it covers, from 1.
struct Covered {
    node: NodeIndex,
    first: usize,
    last: usize,
}

/// A part with the document that it comes from.
struct Source<'a> {
    document: &'a Document,
    part: Part,
}

impl MapAsk {
    /// Makes the graph for these documents in a context of so many tokens: for every document, in order, or for all
    /// together, the parts, then the merges, the last of which is shown.
    ///
    /// # Errors
    /// When the context is too small, or there are too many parts.
    pub fn graph(&self, documents: &[Document], context: u32, density: Density) -> Result<Graph, MapError> {
        let mut graph = Graph::default();
        if self.together && documents.len() > 1 {
            let all: Vec<&Document> = documents.iter().collect();
            self.add("all documents", &all, context, density, &mut graph)?;
        } else {
            for document in documents {
                self.add(&document.name, &[document], context, density, &mut graph)?;
            }
        }
        Ok(graph)
    }

    /// Says whether it is worth knowing how the model counts: some of these documents may have to be cut, since with the
    /// densest one, a token for every byte, not all fit a request whole; and with the sparsest there is room for parts.
    #[must_use]
    pub fn may_cut(&self, documents: &[Document], context: u32) -> bool {
        let densest = Density::DENSEST.bytes(self.room_for_part(context, Density::DENSEST));
        let sparsest = self.room_for_part(context, Density::SPARSEST);
        let bytes = documents.iter().map(|document| document.text.len() as u64);
        let needed = if self.together { bytes.sum() } else { bytes.max().unwrap_or(0) };
        sparsest >= LEAST_PART && (self.part_tokens.is_some() || needed > densest)
    }

    fn add(
        &self,
        name: &str,
        documents: &[&Document],
        context: u32,
        density: Density,
        graph: &mut Graph,
    ) -> Result<(), MapError> {
        let sources = self.parts(documents, context, density)?;
        if let [only] = sources.as_slice() {
            let asked = format!("{}\n\n{}", self.prompt, only.part.text);
            let node = self.node(name.to_owned(), "answer", vec![asked.into()]);
            graph.add(Node { metadata: about(&sources), ..node.shown() })?;
            return Ok(());
        }
        let count = sources.len();
        let mut level = Vec::new();
        for (number, Source { document, part }) in (1..).zip(&sources) {
            let asked = part_text(&self.prompt, number, count, &document.name, &part.text);
            let node = self.node(format!("{name} part {number}"), "part", vec![asked.into()]);
            level.push(Covered { node: graph.add(node)?, first: number, last: number });
        }
        let at_once = self.merged_at_once(count, context, density)?;
        while level.len() > at_once {
            let groups = level.len().div_ceil(at_once);
            let (size, larger) = (level.len() / groups, level.len() % groups);
            let mut rest = level.into_iter();
            level = Vec::new();
            for group in 0..groups {
                let group: Vec<Covered> = rest.by_ref().take(size + usize::from(group < larger)).collect();
                let (first, last) =
                    (group.first().map_or(0, |c| c.first), group.last().map_or(0, |c| c.last));
                let name = format!("{name} parts {first}-{last}");
                let node = self.node(name, "merge", self.merge_text(&group));
                level.push(Covered { node: graph.add(node)?, first, last });
            }
        }
        let node = self.node(name.to_owned(), "answer", self.merge_text(&level));
        graph.add(Node { metadata: about(&sources), ..node.shown() })?;
        Ok(())
    }

    /// Cuts the documents, each by itself. Several together are at least a part each.
    fn parts<'a>(
        &self,
        documents: &[&'a Document],
        context: u32,
        density: Density,
    ) -> Result<Vec<Source<'a>>, MapError> {
        let room = self.room_for_part(context, density);
        if room < LEAST_PART {
            return Err(MapError::NoPart { context, left: room, max_tokens: self.max_tokens });
        }
        let bytes = documents.iter().map(|document| document.text.len() as u64).sum::<u64>();
        let whole = bytes <= density.bytes(room) && documents.len() == 1;
        let tokens = match self.part_tokens {
            Some(tokens) => u64::from(tokens).min(room),
            None if whole => room,
            None => u64::from(PART_TOKENS).min(room),
        };
        let bytes = usize::try_from(density.bytes(tokens)).unwrap_or(usize::MAX);
        let parts = |document: &'a Document| {
            split(document, bytes).into_iter().map(move |part| Source { document, part })
        };
        Ok(documents.iter().copied().flat_map(parts).collect())
    }

    /// Tokens of a prompt in this context, at most: the other way round from what a request needs.
    fn room(&self, context: u32) -> u64 {
        let left = u64::from(context).saturating_sub(64 + u64::from(self.max_tokens));
        (left * 100 / 115).saturating_sub(TOKENS_PER_MESSAGE + self.system_tokens)
    }

    fn room_for_part(&self, context: u32, density: Density) -> u64 {
        // The longest numbers and a long name.
        let frame = part_text(&self.prompt, usize::MAX, usize::MAX, &"\u{10348}".repeat(64), "");
        self.room(context).saturating_sub(density.tokens(frame.len() as u64) + 1)
    }

    /// How many answers one merge takes, at least two.
    fn merged_at_once(&self, parts: usize, context: u32, density: Density) -> Result<usize, MapError> {
        let frame = density.tokens((self.prompt.len() + self.merge_words().len() + 8) as u64);
        let mark = mark(parts, parts + 1).len() as u64;
        let each = u64::from(self.max_tokens) + density.tokens(mark);
        let fit = self.room(context).saturating_sub(frame + 1) / each;
        let fit = usize::try_from(fit).unwrap_or(usize::MAX).min(MAX_NEEDS);
        if fit < 2 {
            return Err(MapError::NoMerge { context, max_tokens: self.max_tokens });
        }
        Ok(fit)
    }

    fn merge_words(&self) -> &str {
        self.merge.as_deref().unwrap_or(MERGE)
    }

    fn merge_text(&self, group: &[Covered]) -> Vec<Piece> {
        let mut pieces = vec![format!("{}\n\n{}", self.prompt, self.merge_words()).into()];
        for covered in group {
            pieces.push(mark(covered.first, covered.last).into());
            pieces.push(covered.node.into());
        }
        pieces
    }

    fn node(&self, name: String, stage: &str, content: Vec<Piece>) -> Node {
        Node::new(name, stage, self.max_tokens, vec![Message::new(Role::User, content)])
    }
}

/// What is asked of a part. Where the document lies is nobody's business: only its last name is told.
fn part_text(prompt: &str, number: usize, count: usize, name: &str, text: &str) -> String {
    let name = name.rsplit('/').next().unwrap_or(name);
    let name: String = name.chars().take(64).collect();
    format!("{prompt}\n\nThis is part {number} of {count} of {name}. Answer from this part alone.\n\n{text}")
}

/// The mark before an answer in a merge.
fn mark(first: usize, last: usize) -> String {
    if first == last { format!("\n\n[part {first}]\n") } else { format!("\n\n[parts {first}-{last}]\n") }
}

/// What the line of a result says of its parts.
fn about(sources: &[Source<'_>]) -> Map<String, Value> {
    let parts: Vec<Value> = (1..)
        .zip(sources)
        .map(|(number, Source { document, part }): (usize, _)| {
            let (first, last) = part.lines;
            json!({"part": number, "document": document.name, "lines": [first, last], "heading": part.heading})
        })
        .collect();
    Map::from_iter([("parts".to_owned(), Value::Array(parts))])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::document::Markup, *};

    fn document(name: &str, words: usize) -> Document {
        let text = "word word word word\n\n".repeat(words / 4);
        Document {
            name: name.to_owned(),
            bytes: text.len() as u64,
            text,
            markup: Markup::Plain,
            sha256: [0; 32],
        }
    }

    fn ask(max_tokens: u32) -> MapAsk {
        let prompt = "What is said?".to_owned();
        MapAsk { prompt, merge: None, max_tokens, part_tokens: None, together: false, system_tokens: 0 }
    }

    fn names(graph: &Graph) -> Vec<&str> {
        graph.nodes().iter().map(|node| node.name.as_str()).collect()
    }

    #[test]
    fn a_document_that_fits_is_one_request_and_a_longer_one_a_tree() {
        let density = Density::default();
        let short = ask(100).graph(&[document("a", 100)], 4096, density).unwrap();
        assert_eq!(names(&short), ["a"]);
        assert_eq!(short.depth(), 1);
        let long = ask(512).graph(&[document("a", 40_000)], 2048, density).unwrap();
        assert!(long.depth() > 2, "{}", long.depth());
        assert_eq!(long.nodes().iter().filter(|node| node.shown).count(), 1);
        assert!(long.nodes().last().unwrap().shown);
        let merge = long.nodes().iter().find(|node| node.stage == "merge").unwrap();
        let Some(Piece::Text(marked)) = merge.messages[0].content.get(1) else { panic!("a mark") };
        assert_eq!(marked, "\n\n[part 1]\n");
    }

    #[test]
    fn every_document_has_its_own_answer_unless_all_are_asked_together() {
        let documents = [document("a", 100), document("b", 9_000)];
        let apart = ask(100).graph(&documents, 4096, Density::default()).unwrap();
        let shown: Vec<_> =
            apart.nodes().iter().filter(|node| node.shown).map(|node| node.name.as_str()).collect();
        assert_eq!(shown, ["a", "b"]);
        let together =
            MapAsk { together: true, ..ask(100) }.graph(&documents, 4096, Density::default()).unwrap();
        let last = together.nodes().last().unwrap();
        assert_eq!((last.name.as_str(), last.shown), ("all documents", true));
        let parts = last.metadata["parts"].as_array().unwrap();
        assert_eq!((&parts[0]["document"], &parts[1]["document"]), (&json!("a"), &json!("b")));
    }

    #[test]
    fn a_context_that_holds_nothing_is_refused() {
        let documents = [document("a", 9_000)];
        let error = ask(512).graph(&documents, 600, Density::default()).unwrap_err();
        assert!(matches!(error, MapError::NoPart { .. }), "{error}");
        let error = ask(512).graph(&documents, 1400, Density::default()).unwrap_err();
        assert!(matches!(error, MapError::NoMerge { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn every_request_fits_the_context_when_every_answer_is_as_long_as_it_may_be(
            words in 4usize..30_000,
            context in 700u32..16_384,
            max_tokens in 16u32..600,
            part_tokens in proptest::option::of(40u32..4096),
            (tokens, bytes) in (1u64..20, 10u64..100),
        ) {
            let ask = MapAsk { part_tokens, ..ask(max_tokens) };
            let density = Density::counted(tokens, bytes).unwrap();
            if let Ok(graph) = ask.graph(&[document("a name of some length.txt", words)], context, density) {
                prop_assert!(graph.largest_context(density) <= u64::from(context));
                let waits: usize = graph.nodes().iter().map(|node| node.needs().len()).sum();
                prop_assert_eq!(waits, graph.nodes().len() - 1, "every answer but the last enters one merge");
            }
        }
    }
}
