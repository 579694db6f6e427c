//! A graph on its way to chunks: what it needs, and every body written, with holes for answers that are to come.
//!
//! The one context of the job is that of the largest request when every answer in it is as long as it may be, so no
//! answer can make a later request too long.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tropa_proto::{id::ChunkIndex, message::Endpoint};

use super::{
    Density, Error, InputError, JobOptions, Origin, Shape,
    graph::{Graph, Message, Node, NodeIndex, Piece, Role},
    item::{Item, full_name},
};
use crate::{journal::NewChunk, recipe};

/// Contexts are rounded up to this, so that jobs of like size do not reload the model for each other.
const CONTEXT_STEP: u64 = 1024;

/// Stands for an answer that is to come where a prompt is checked for being empty.
const TO_COME: &str = "…";

/// A graph that has been checked, with all that the job decides.
#[derive(Debug)]
pub struct Measured {
    graph: Graph,
    options: JobOptions,
    density: Density,
    /// The largest need, before rounding.
    need: u64,
    num_ctx: u32,
    largest: String,
    models: BTreeSet<String>,
    unnamed: usize,
    bytes: u64,
}

impl Measured {
    /// Checks every node and finds out what the graph needs. `density` is how the job's models count text.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty graph, a node that cannot be asked, or one that does not fit `--num-ctx`.
    pub fn new(graph: Graph, options: JobOptions, density: Density) -> Result<Self, Error> {
        let (mut need, mut largest, mut bytes) = (0, String::new(), 0);
        let (mut models, mut unnamed) = (BTreeSet::new(), 0);
        for (index, node) in (0..).map(NodeIndex).zip(graph.nodes()) {
            let item = item(index, node, &options)?;
            bytes += item.body("", 0).len() as u64;
            match &node.model {
                Some(model) => _ = models.insert(full_name(model)),
                None => unnamed += 1,
            }
            let context = graph.context(index, density) + system_tokens(node, &options, density);
            if context > need {
                (need, largest) = (context, node.name.clone());
            }
        }
        if need == 0 {
            return Err(InputError::at(0, "there is nothing to ask", "add something").into());
        }
        if let Some(limit) = options.num_ctx.filter(|limit| u64::from(*limit) < need) {
            let what = format!("{largest} needs a context of about {need} tokens, --num-ctx is {limit}");
            return Err(InputError::at(0, what, "raise it, or lower --max-tokens").into());
        }
        let planned = u32::try_from(need.next_multiple_of(CONTEXT_STEP)).unwrap_or(u32::MAX);
        let num_ctx = options.num_ctx.unwrap_or(planned);
        Ok(Self { graph, options, density, need, num_ctx, largest, models, unnamed, bytes })
    }

    /// Does without the rounding where a model was trained for less than the rounded context, and for enough.
    pub fn cap(&mut self, trained: u32) {
        if self.options.num_ctx.is_none() && u64::from(trained) >= self.need {
            self.num_ctx = self.num_ctx.min(trained);
        }
    }

    /// Takes at least this context, where the user gives none: that with which the model is loaded already.
    pub fn widen(&mut self, num_ctx: u32) {
        if self.options.num_ctx.is_none() {
            self.num_ctx = self.num_ctx.max(num_ctx);
        }
    }

    /// The graph.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The one context of the job, in tokens: that of `--num-ctx`, else the largest need rounded up to 1024.
    #[must_use]
    pub fn num_ctx(&self) -> u32 {
        self.num_ctx
    }

    /// The name of the node that needs most context.
    #[must_use]
    pub fn largest(&self) -> &str {
        &self.largest
    }

    /// The models that nodes name, with their tags, sorted.
    #[must_use]
    pub fn models(&self) -> &BTreeSet<String> {
        &self.models
    }

    /// How many nodes name no model, so that [`Measured::chunks`] needs one.
    #[must_use]
    pub fn without_model(&self) -> usize {
        self.unnamed
    }

    /// Estimated tokens of all prompts together, at worst.
    #[must_use]
    pub fn prompt_tokens(&self) -> u64 {
        let all = (0..).map(NodeIndex).take(self.graph.nodes().len());
        all.map(|node| self.graph.prompt_tokens(node, self.density)).sum()
    }

    /// Tokens of all answers together, at most.
    #[must_use]
    pub fn output_tokens(&self) -> u64 {
        self.graph.nodes().iter().map(|node| u64::from(node.num_predict)).sum()
    }

    /// Bytes that the journal may need: all requests, the answers in them, twice the output at four bytes a token, and
    /// the journal's own rows.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        const ROWS: u64 = 2048;
        let nodes = self.graph.nodes().len() as u64;
        let passed_on = self.prompt_tokens().saturating_mul(4);
        2 * self.bytes + passed_on + 2 * self.output_tokens().saturating_mul(4) + nodes * ROWS
    }

    /// SHA-256 over everything that is asked, for recognising the job.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for chunk in self.chunks("").flatten() {
            hash.update((chunk.body.len() as u64).to_le_bytes());
            hash.update(&chunk.body);
        }
        hash.finalize().into()
    }

    /// Makes the chunks, one at a time. `model` stands in where a node names none.
    pub fn chunks(&self, model: &str) -> impl Iterator<Item = Result<NewChunk, Error>> {
        (0..).map(NodeIndex).zip(self.graph.nodes()).map(move |(index, node)| self.chunk(index, node, model))
    }

    fn chunk(&self, index: NodeIndex, node: &Node, model: &str) -> Result<NewChunk, Error> {
        let mut item = item(index, node, &self.options)?;
        let needs: BTreeSet<ChunkIndex> = node.needs().iter().map(|NodeIndex(on)| ChunkIndex(*on)).collect();
        if !needs.is_empty()
            && let Some(Value::Array(messages)) = item.ask.get_mut("messages")
        {
            // The job's system prompt may stand before the node's own messages.
            let before = messages.len().saturating_sub(node.messages.len());
            for (place, message) in messages.iter_mut().skip(before).zip(&node.messages) {
                place["content"] = recipe::content(&pieces(message));
            }
        }
        let tokens = self.graph.prompt_tokens(index, self.density);
        let origin = Origin {
            id: node.name.clone(),
            line: 0,
            stage: Some(node.stage.clone()),
            shape: Shape::Text,
            num_ctx: self.num_ctx,
            seed: seed(index, &self.options),
            num_predict: node.num_predict,
            prompt_tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
            prefix: 0,
            metadata: node.metadata.clone(),
        };
        Ok(NewChunk {
            endpoint: Endpoint::Chat,
            model: full_name(node.model.as_deref().unwrap_or(model)),
            body: item.body(model, self.num_ctx),
            needs,
            shown: node.shown,
            origin: json!(origin).to_string(),
        })
    }
}

/// Makes the item of a node, with a mark in place of answers that are to come, and checks it.
fn item(index: NodeIndex, node: &Node, options: &JobOptions) -> Result<Item, Error> {
    let messages: Vec<Value> = node
        .messages
        .iter()
        .map(|message| {
            let texts = pieces(message).into_iter().map(|piece| match piece {
                recipe::Piece::Text(text) => text,
                recipe::Piece::Answer(_) | recipe::Piece::Tail(..) => TO_COME,
            });
            json!({"role": role(message.role), "content": texts.collect::<String>()})
        })
        .collect();
    let mut item =
        Item::new(0, node.name.clone(), Shape::Text, Endpoint::Chat).ask("messages", messages.into());
    item.model.clone_from(&node.model);
    if let Some(seed) = seed(index, options) {
        item.options.insert("seed".to_owned(), seed.into());
    }
    item.options.insert("num_predict".to_owned(), node.num_predict.into());
    if let Some(temperature) = node.temperature {
        item.options.insert("temperature".to_owned(), json!(temperature));
    }
    if let Some(format) = &node.format {
        item.ask.insert("format".to_owned(), format.clone());
    }
    item.complete(options)
        .map_err(|error| InputError { what: format!("{}: {}", node.name, error.what), ..error })?;
    Ok(item)
}

/// Every node has a seed of its own, so that those that are asked the same do not say the same.
fn seed(NodeIndex(index): NodeIndex, options: &JobOptions) -> Option<i64> {
    options.seed.map(|seed| seed.wrapping_add(index.into()))
}

/// What the job's system prompt adds to a node that has none of its own.
fn system_tokens(node: &Node, options: &JobOptions, density: Density) -> u64 {
    let own = node.messages.iter().any(|message| message.role == Role::System);
    let system = options.system.as_ref().filter(|_| !own);
    system.map_or(0, |system| (density.tokens(system.len() as u64) * 115).div_ceil(100) + 12)
}

fn pieces(message: &Message) -> Vec<recipe::Piece<'_>> {
    message.content.iter().map(piece).collect()
}

fn piece(piece: &Piece) -> recipe::Piece<'_> {
    match piece {
        Piece::Text(text) => recipe::Piece::Text(text),
        Piece::Answer(NodeIndex(on)) => recipe::Piece::Answer(ChunkIndex(*on)),
        Piece::Tail { node: NodeIndex(on), bytes } => recipe::Piece::Tail(ChunkIndex(*on), *bytes),
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(content: Vec<Piece>) -> Vec<Message> {
        vec![Message::new(Role::User, content)]
    }

    fn pair() -> Graph {
        let mut graph = Graph::default();
        let first = graph.add(Node::new("part 1", "part", 100, ask(vec!["read this".into()]))).unwrap();
        let mut second = Node::new("all", "join", 50, ask(vec!["join: ".into(), first.into()])).shown();
        second.temperature = Some(0.5);
        graph.add(second).unwrap();
        graph
    }

    #[test]
    fn a_node_with_answers_to_come_is_a_recipe_and_one_without_is_final() {
        let options =
            JobOptions { system: Some("be brief".to_owned()), seed: Some(7), ..JobOptions::default() };
        let measured = Measured::new(pair(), options, Density::default()).unwrap();
        assert_eq!((measured.num_ctx(), measured.largest()), (1024, "all"));
        let chunks: Vec<NewChunk> = measured.chunks("m:1").collect::<Result<_, _>>().unwrap();
        assert_eq!((chunks[0].shown, chunks[1].shown), (false, true));
        assert!(chunks[0].needs.is_empty());
        assert_eq!(chunks[1].needs, BTreeSet::from([ChunkIndex(0)]));
        assert_eq!(recipe::needs(&chunks[1].body), Some(chunks[1].needs.clone()));
        let body: Value = serde_json::from_slice(&chunks[1].body).unwrap();
        assert_eq!(body["messages"][0]["content"], "be brief");
        assert_eq!(body["messages"][1]["content"], json!(["join: ", {"answer": 0}]));
        assert_eq!(
            body["options"],
            json!({"num_predict": 50, "temperature": 0.5, "seed": 8, "num_ctx": 1024})
        );
        assert_eq!(
            (&body["truncate"], &body["shift"], &body["think"]),
            (&json!(false), &json!(false), &json!(false))
        );
        let origin: Origin = serde_json::from_str(&chunks[1].origin).unwrap();
        assert_eq!((origin.id.as_str(), origin.stage.as_deref()), ("all", Some("join")));
    }

    #[test]
    fn what_does_not_fit_the_context_that_was_asked_for_is_refused_before_it_runs() {
        let options = JobOptions { num_ctx: Some(200), ..JobOptions::default() };
        let error = Measured::new(pair(), options, Density::default()).unwrap_err();
        assert!(error.to_string().contains("all needs a context of about"), "{error}");
        assert_eq!(error.exit_code(), 65);
        assert!(Measured::new(Graph::default(), JobOptions::default(), Density::default()).is_err());
    }

    #[test]
    fn the_model_that_counts_more_tokens_gets_more_context() {
        let long = "word ".repeat(1000);
        let mut graph = Graph::default();
        graph.add(Node::new("a", "a", 10, ask(vec![long.into()]))).unwrap();
        let measured =
            |density| Measured::new(graph.clone(), JobOptions::default(), density).unwrap().num_ctx();
        assert_eq!(measured(Density::default()), 2048);
        assert_eq!(measured(Density::counted(1, 1).unwrap()), 6144);
    }
}
