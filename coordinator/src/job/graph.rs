//! Jobs whose chunks build on each other: a document that is read in parts, a text that is written in parts, a panel.
//!
//! A graph is fixed before anything runs, so the same job asks the same things whether one machine does it or ten.
//! What is open is only the text of answers that do not exist yet: a message is a list of pieces, and a piece is text,
//! or the answer of an earlier node, or the end of one. A node may only name nodes before it, so a graph has no cycles
//! by construction.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{Density, item::TOKENS_PER_MESSAGE};

/// Answers that one node may build on, at most (`security.md` §6).
pub const MAX_NEEDS: usize = 4096;

/// Nodes of one graph, at most (`security.md` §6).
pub const MAX_NODES: usize = 10_000_000;

/// A node, by its place in the graph; the same number as that of its chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeIndex(pub u32);

/// Nodes in an order in which each comes after all that it needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    nodes: Vec<Node>,
}

/// One question to one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it is, for people and as `id` of its line: `part 3 of 12`, `critic 2`.
    pub name: String,
    /// The stage of the job that it belongs to, for reports: `part`, `synthesis`.
    pub stage: String,
    /// Its answer is a line of the output; otherwise only other nodes read it.
    pub shown: bool,
    /// What is asked.
    pub messages: Vec<Message>,
    /// Tokens of the answer, at most; at least 1.
    pub num_predict: u32,
    /// The model; absent: the job's.
    pub model: Option<String>,
    /// Sampling temperature; absent: the job's, else the model's own.
    pub temperature: Option<f64>,
    /// The JSON schema that the answer keeps to, with the order of its keys; absent: free text.
    pub format: Option<Value>,
    /// What its line says under `metadata`.
    pub metadata: Map<String, Value>,
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whose words they are.
    pub role: Role,
    /// The words, one after the other with nothing between.
    pub content: Vec<Piece>,
}

/// Whose words a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// What the model is to be.
    System,
    /// What it is asked.
    User,
    /// What it has said before.
    Assistant,
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text that is known when the job is made.
    Text(String),
    /// The whole answer of an earlier node, without its thinking.
    Answer(NodeIndex),
    /// The end of the answer of an earlier node, as [`tail`] cuts it.
    Tail {
        /// The node.
        node: NodeIndex,
        /// How much of it, in bytes, at most.
        bytes: u32,
    },
}

/// Why a node does not fit a graph: a mistake of whoever builds it, or an input that is too large.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// It builds on an answer that comes later, or on its own.
    #[error("node {node} ({name}) builds on node {on}, which does not come before it")]
    Order {
        /// The node.
        node: u32,
        /// What it is.
        name: String,
        /// What it builds on.
        on: u32,
    },
    /// It builds on too many.
    #[error("{name} builds on {count} answers, and at most {MAX_NEEDS} fit")]
    TooManyNeeds {
        /// What it is.
        name: String,
        /// How many.
        count: usize,
    },
    /// There are too many nodes.
    #[error("more than {MAX_NODES} chunks")]
    TooMany,
}

impl Graph {
    /// Adds a node behind all that are there.
    ///
    /// # Errors
    /// When it builds on a node that is not there yet, or on too many, or there are too many nodes.
    pub fn add(&mut self, node: Node) -> Result<NodeIndex, GraphError> {
        let index = u32::try_from(self.nodes.len()).ok().filter(|index| (*index as usize) < MAX_NODES);
        let index = index.ok_or(GraphError::TooMany)?;
        let needs = node.needs();
        if let Some(NodeIndex(on)) = needs.last().filter(|NodeIndex(on)| *on >= index) {
            return Err(GraphError::Order { node: index, name: node.name, on: *on });
        }
        if needs.len() > MAX_NEEDS {
            return Err(GraphError::TooManyNeeds { name: node.name, count: needs.len() });
        }
        self.nodes.push(node);
        Ok(NodeIndex(index))
    }

    /// All nodes, each behind what it needs.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by its place.
    #[must_use]
    pub fn get(&self, NodeIndex(index): NodeIndex) -> Option<&Node> {
        self.nodes.get(index as usize)
    }

    /// The context in tokens that a node needs at worst, when every answer that it builds on is as long as it may be:
    /// estimate of the prompt × 1.15 + limit of the answer + 64 (`ollama-api.md` §5); 0 where there is no such node.
    #[must_use]
    pub fn context(&self, node: NodeIndex, density: Density) -> u64 {
        let Some(asked) = self.get(node) else { return 0 };
        (self.prompt_tokens(node, density) * 115).div_ceil(100) + u64::from(asked.num_predict) + 64
    }

    /// Estimates the tokens of a node's prompt at worst; 0 where there is no such node.
    #[must_use]
    pub fn prompt_tokens(&self, node: NodeIndex, density: Density) -> u64 {
        let messages = self.get(node).map_or(&[][..], |node| &node.messages);
        messages.iter().map(|message| self.tokens(message, density)).sum()
    }

    /// The largest [`Graph::context`] of all nodes; 0 where there is none.
    #[must_use]
    pub fn largest_context(&self, density: Density) -> u64 {
        let all = (0..).map(NodeIndex).take(self.nodes.len());
        all.map(|node| self.context(node, density)).max().unwrap_or(0)
    }

    /// Estimates the tokens of a message at worst.
    fn tokens(&self, message: &Message, density: Density) -> u64 {
        let (mut bytes, mut tokens) = (0, TOKENS_PER_MESSAGE);
        for piece in &message.content {
            match piece {
                Piece::Text(text) => bytes += text.len() as u64,
                Piece::Answer(node) => {
                    tokens += self.get(*node).map_or(0, |node| u64::from(node.num_predict));
                }
                Piece::Tail { bytes: tail, .. } => bytes += u64::from(*tail),
            }
        }
        density.tokens(bytes) + tokens
    }

    /// How many nodes must run one after the other at least: the length of the longest chain of needs.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.depths().into_iter().max().unwrap_or(0)
    }

    /// How many nodes stand equally deep at most: as many may run at once, where there are lanes for them.
    #[must_use]
    pub fn width(&self) -> usize {
        let mut count: BTreeMap<usize, usize> = BTreeMap::new();
        for depth in self.depths() {
            *count.entry(depth).or_default() += 1;
        }
        count.into_values().max().unwrap_or(0)
    }

    /// The length of the longest chain of needs that ends in each node.
    fn depths(&self) -> Vec<usize> {
        let mut depths: Vec<usize> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let below = node.needs().iter().map(|NodeIndex(on)| depths[*on as usize]).max();
            depths.push(below.unwrap_or(0) + 1);
        }
        depths
    }
}

impl Node {
    /// A question of a stage to the job's model, whose answer only other nodes read: as the job says in all else.
    #[must_use]
    pub fn new(name: impl Into<String>, stage: &str, num_predict: u32, messages: Vec<Message>) -> Self {
        Self {
            name: name.into(),
            stage: stage.to_owned(),
            shown: false,
            messages,
            num_predict,
            model: None,
            temperature: None,
            format: None,
            metadata: Map::new(),
        }
    }

    /// The same, as a line of the output.
    #[must_use]
    pub fn shown(self) -> Self {
        Self { shown: true, ..self }
    }

    /// The nodes whose answers it builds on, each once, in order.
    #[must_use]
    pub fn needs(&self) -> BTreeSet<NodeIndex> {
        let pieces = self.messages.iter().flat_map(|message| &message.content);
        let answers = pieces.filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Answer(node) | Piece::Tail { node, .. } => Some(*node),
        });
        answers.collect()
    }
}

/// The end of a text: at most so many bytes, from the start of a line if one starts in the first half of them, else
/// from the start of a word, else from a character.
#[must_use]
pub fn tail(text: &str, bytes: u32) -> &str {
    let bytes = bytes as usize;
    if text.len() <= bytes {
        return text;
    }
    let end = &text[text.ceil_char_boundary(text.len() - bytes)..];
    let half = &end[..end.floor_char_boundary(end.len() / 2)];
    let start = half.find('\n').or_else(|| half.find(char::is_whitespace));
    start.map_or(end, |start| end[start..].trim_start())
}

impl Message {
    /// A message from the user, or to be, of these pieces.
    #[must_use]
    pub fn new(role: Role, content: Vec<Piece>) -> Self {
        Self { role, content }
    }
}

impl From<&str> for Piece {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Piece {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<NodeIndex> for Piece {
    fn from(node: NodeIndex) -> Self {
        Self::Answer(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(needs: &[u32]) -> Node {
        let content = needs.iter().map(|on| Piece::Answer(NodeIndex(*on)));
        let content = std::iter::once("say".into()).chain(content).collect();
        Node::new("a", "say", 10, vec![Message::new(Role::User, content)])
    }

    #[test]
    fn a_node_builds_only_on_nodes_before_it() {
        let mut graph = Graph::default();
        graph.add(node(&[])).expect("a first node");
        assert!(matches!(graph.add(node(&[1])), Err(GraphError::Order { node: 1, on: 1, .. })));
        assert!(matches!(graph.add(node(&[0, 7])), Err(GraphError::Order { on: 7, .. })));
        assert_eq!(graph.add(node(&[0])), Ok(NodeIndex(1)));
    }

    #[test]
    fn the_depth_is_the_longest_chain_and_the_width_the_widest_level() {
        let mut graph = Graph::default();
        for needs in [&[][..], &[], &[0], &[1, 2], &[]] {
            graph.add(node(needs)).expect("a graph in order");
        }
        assert_eq!((graph.depth(), graph.width()), (3, 3));
        assert_eq!((Graph::default().depth(), Graph::default().width()), (0, 0));
    }

    #[test]
    fn the_context_allows_for_answers_of_full_length() {
        let mut graph = Graph::default();
        let plain = Density::default();
        let first = graph.add(node(&[])).expect("a first node");
        let second = graph.add(node(&[0])).expect("a second node");
        let mut third = node(&[0, 1]);
        third.messages[0].content.push(Piece::Tail { node: second, bytes: 30 });
        let third = graph.add(third).expect("a third node");
        // `say` is a token, a message costs 10, an answer at most 10, 30 bytes are 10; a margin of 15 %.
        assert_eq!(graph.context(first, plain), 13 + 10 + 64);
        assert_eq!(graph.context(second, plain), 25 + 10 + 64);
        assert_eq!(graph.context(third, plain), 48 + 10 + 64);
        assert_eq!(graph.largest_context(plain), graph.context(third, plain));
        assert_eq!(graph.get(third).map(Node::needs), Some([first, second].into()));
    }

    #[test]
    fn a_tail_begins_at_a_line_else_at_a_word_else_at_a_character() {
        assert_eq!(tail("short", 10), "short");
        assert_eq!(tail("first line\nsecond line", 16), "second line");
        assert_eq!(tail("one two three four", 13), "three four");
        assert_eq!(tail("ññññññññ", 5), "ññ");
        assert_eq!(tail("日本語", 1), "");
    }
}
