//! A graph on its way to chunks: what it needs, and every body written, with holes for answers that are to come.
//!
//! The context of a request is what it needs when every answer in it is as long as it may be, so no answer can make a
//! later request too long. Contexts come in classes, as those of an input do, and only rise from a request to those that
//! build on it: a lane that follows a job through its rounds loads each class once.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tropa_proto::{id::ChunkIndex, message::Endpoint};

use super::{
    Density, Error, InputError, JobOptions, Origin, Shape,
    classes::Contexts,
    graph::{Graph, Message, Node, NodeIndex, Piece, Role},
    item::{Item, full_name},
    prefix::{FIRST_WORDS, Prefixes},
};
use crate::{journal::NewChunk, recipe};

/// Bytes of an answer for each token of its limit, where it is about how much of a prompt it will make.
const BYTES_PER_TOKEN: usize = 2;

/// Stands for an answer that is to come where a prompt is checked for being empty.
const TO_COME: &str = "…";

/// A graph that has been checked, with all that the job decides.
#[derive(Debug)]
pub struct Measured {
    graph: Graph,
    options: JobOptions,
    density: Density,
    /// What each node needs, before rounding, and the class that it is in.
    needs: Vec<(u64, usize)>,
    /// The contexts of the classes, rising.
    contexts: Vec<u32>,
    prefixes: Prefixes,
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
        let (mut needs, mut counted, mut prefixes) = (Vec::new(), Contexts::default(), Prefixes::default());
        for (index, node) in (0..).map(NodeIndex).zip(graph.nodes()) {
            let item = item(index, node, &options)?;
            bytes += item.body("", 0).len() as u64;
            match &node.model {
                Some(model) => _ = models.insert(full_name(model)),
                None => unnamed += 1,
            }
            let context = graph.context(index, density) + system_tokens(node, &options, density);
            needs.push((context, 0));
            counted.add(context);
            let (system, asked) = beginning(&graph, node, &options);
            prefixes.add(&system, &asked);
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
        let contexts = options.num_ctx.map_or_else(|| counted.classes(), |said| vec![said]);
        classify(&graph, &contexts, &mut needs);
        Ok(Self { graph, options, density, needs, contexts, prefixes, largest, models, unnamed, bytes })
    }

    /// Does without the rounding where a model was trained for less than the rounded context, and for enough.
    pub fn cap(&mut self, trained: u32) {
        let need = self.needs.iter().map(|(need, _)| *need).max().unwrap_or(0);
        if self.options.num_ctx.is_none() && u64::from(trained) >= need {
            self.contexts.iter_mut().for_each(|context| *context = trained.min(*context));
        }
    }

    /// Takes at least this context for all, where the user gives none: that with which the model is loaded already.
    pub fn widen(&mut self, num_ctx: u32) {
        if self.options.num_ctx.is_none() {
            self.contexts.iter_mut().for_each(|context| *context = num_ctx.max(*context));
        }
    }

    /// The graph.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The largest context of the job, in tokens: that of `--num-ctx`, else the largest need rounded up to 1024.
    #[must_use]
    pub fn num_ctx(&self) -> u32 {
        self.contexts.last().copied().unwrap_or_default()
    }

    /// The contexts that its requests ask for, rising, each once; at most three.
    #[must_use]
    pub fn contexts(&self) -> Vec<u32> {
        let used: BTreeSet<u32> = self.needs.iter().map(|(_, class)| self.context_of(*class)).collect();
        used.into_iter().collect()
    }

    fn context_of(&self, class: usize) -> u32 {
        self.contexts.get(class).copied().unwrap_or_else(|| self.num_ctx())
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
        let class = self.needs.get(index.0 as usize).map_or(0, |(_, class)| *class);
        let num_ctx = self.context_of(class);
        let (system, asked) = beginning(&self.graph, node, &self.options);
        let origin = Origin {
            id: node.name.clone(),
            line: 0,
            stage: Some(node.stage.clone()),
            shape: Shape::Text,
            num_ctx,
            seed: seed(index, &self.options),
            num_predict: node.num_predict,
            prompt_tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
            prefix: self.prefixes.of(&system, &asked),
            metadata: node.metadata.clone(),
        };
        Ok(NewChunk {
            endpoint: Endpoint::Chat,
            model: full_name(node.model.as_deref().unwrap_or(model)),
            body: item.body(model, num_ctx),
            needs,
            shown: node.shown,
            origin: json!(origin).to_string(),
        })
    }
}

/// Puts every node into the smallest class that fits it and is no smaller than those of the nodes that it needs.
fn classify(graph: &Graph, contexts: &[u32], needs: &mut [(u64, usize)]) {
    for (index, node) in graph.nodes().iter().enumerate() {
        let below = node.needs().iter().map(|NodeIndex(on)| needs[*on as usize].1).max().unwrap_or(0);
        let fits = contexts.iter().position(|context| u64::from(*context) >= needs[index].0);
        needs[index].1 = fits.unwrap_or(contexts.len().saturating_sub(1)).max(below);
    }
}

/// The system prompt of a node and as much of what it is asked as tells beginnings apart. An answer that is to come is
/// as long as it is expected to be, and equal only to itself.
fn beginning(graph: &Graph, node: &Node, options: &JobOptions) -> (String, String) {
    let text = |system: bool| {
        let mut text = String::new();
        let messages = node.messages.iter().filter(|message| (message.role == Role::System) == system);
        for piece in messages.flat_map(|message| &message.content) {
            if text.len() >= FIRST_WORDS {
                break;
            }
            match piece {
                Piece::Text(known) => text.push_str(known),
                Piece::Answer(on) | Piece::Tail { node: on, .. } => {
                    let mark = format!("\u{0}{piece:?}");
                    let tokens = graph.get(*on).map_or(0, |node| node.num_predict as usize);
                    text.push_str(
                        &mark.repeat((BYTES_PER_TOKEN * tokens / mark.len()).clamp(1, FIRST_WORDS)),
                    );
                }
            }
        }
        text
    };
    let own = text(true);
    (if own.is_empty() { options.system.clone().unwrap_or_default() } else { own }, text(false))
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

    fn chunks(measured: &Measured) -> Vec<Origin> {
        let chunks =
            measured.chunks("m:1").map(|chunk| serde_json::from_str(&chunk.unwrap().origin).unwrap());
        chunks.collect()
    }

    #[test]
    fn a_request_that_needs_far_more_gets_a_context_of_its_own_which_those_behind_it_keep() {
        let mut graph = Graph::default();
        for part in 0..6 {
            graph.add(Node::new(format!("part {part}"), "part", 200, ask(vec!["write".into()]))).unwrap();
        }
        let all = (0..6).map(|part| Piece::Answer(NodeIndex(part))).chain(["join ".repeat(500).into()]);
        let joined = graph.add(Node::new("all", "join", 400, ask(all.collect()))).unwrap();
        graph
            .add(Node::new("title", "title", 20, ask(vec![Piece::Tail { node: joined, bytes: 90 }])))
            .unwrap();
        let contexts = |options| {
            let measured = Measured::new(graph.clone(), options, Density::default()).unwrap();
            let each: Vec<u32> = chunks(&measured).iter().map(|origin| origin.num_ctx).collect();
            (each, measured.contexts())
        };
        let (each, all) = contexts(JobOptions::default());
        assert_eq!(each, [1024, 1024, 1024, 1024, 1024, 1024, 3072, 3072], "the title could do with less");
        assert_eq!(all, [1024, 3072]);
        let said = JobOptions { num_ctx: Some(4096), ..JobOptions::default() };
        assert_eq!(contexts(said), (vec![4096; 8], vec![4096]));
        let mut loaded = Measured::new(graph, JobOptions::default(), Density::default()).unwrap();
        loaded.widen(8192);
        assert_eq!((loaded.contexts(), loaded.num_ctx()), (vec![8192], 8192));
    }

    #[test]
    fn requests_over_one_answer_or_one_system_prompt_share_a_prefix() {
        let mut graph = Graph::default();
        let drafts: Vec<NodeIndex> = ["a", "b"]
            .map(|name| graph.add(Node::new(name, "draft", 600, ask(vec!["write".into()]))).unwrap())
            .to_vec();
        for draft in [drafts[0], drafts[1], drafts[0]] {
            let over = ask(vec!["judge: ".into(), draft.into(), " be strict".into()]);
            graph.add(Node::new("critic", "critic", 50, over)).unwrap();
        }
        let prefixes = |options| {
            let measured = Measured::new(graph.clone(), options, Density::default()).unwrap();
            chunks(&measured).iter().map(|origin| origin.prefix).collect::<Vec<_>>()
        };
        let without = prefixes(JobOptions::default());
        assert_eq!(without[2], without[4]);
        assert_eq!([without[0], without[1], without[3]], [0; 3], "nobody shares theirs");
        assert_ne!(without[2], 0);
        let rules = JobOptions { system: Some("rules ".repeat(300)), ..JobOptions::default() };
        let with = prefixes(rules);
        assert_eq!((with[0], with[1], with[2]), (with[3], with[3], with[4]));
        assert!(with[0] != with[2] && !with.contains(&0));
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
