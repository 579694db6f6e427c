//! From roles to a graph: each role behind those that it needs, its holes filled with the question and with references
//! to answers.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{
    super::{
        InputError,
        graph::{Graph, GraphError, Message, Node, NodeIndex, Piece, Role as Speaker},
    },
    Ballot, Layout, Panel, Role, Roles, Seat, VOTE_TOKENS,
    template::{Part, Template},
    title,
};

/// Makes the graph. Roles come in the order in which they are written, but each behind what it needs.
pub(super) fn compile(question: &str, roles: &Roles, max_tokens: u32) -> Result<Panel, InputError> {
    let mut builder =
        Builder { question, max_tokens, graph: Graph::default(), seats: Vec::new(), place: BTreeMap::new() };
    for role in in_order(&roles.roles)? {
        let seated = builder.seat(role);
        seated
            .map_err(|error| InputError::at(role.line, error.to_string(), "give the roles fewer repeats"))?;
    }
    let answer = builder.place.get(&roles.answer).copied().unwrap_or(builder.seats.len() - 1);
    let layout = Layout { question: question.to_owned(), seats: builder.seats, answer };
    Ok(Panel { graph: builder.graph, layout })
}

/// Sorts roles so that each stands behind those that it needs.
fn in_order(roles: &[Role]) -> Result<Vec<&Role>, InputError> {
    let mut sorted = Vec::new();
    let mut placed: BTreeSet<&str> = BTreeSet::new();
    let mut left: Vec<&Role> = roles.iter().collect();
    while !left.is_empty() {
        let Some(at) = left.iter().position(|role| role.needs().is_subset(&placed)) else {
            return Err(circle(&left));
        };
        let role = left.remove(at);
        placed.insert(&role.key);
        sorted.push(role);
    }
    Ok(sorted)
}

/// Names roles that need each other. Each of these needs another of them, so following needs comes round.
fn circle(left: &[&Role]) -> InputError {
    let open: BTreeMap<&str, &Role> = left.iter().map(|role| (role.key.as_str(), *role)).collect();
    let next = |role: &Role| role.needs().into_iter().find_map(|key| open.get(key).copied());
    let mut path: Vec<&Role> = left.iter().take(1).copied().collect();
    while let Some(role) = path.last().and_then(|role| next(role)) {
        if let Some(start) = path.iter().position(|before| before.key == role.key) {
            path.drain(..start);
            break;
        }
        path.push(role);
    }
    let mut names: Vec<&str> = path.iter().map(|role| role.key.as_str()).collect();
    names.extend(names.first().copied());
    let line = path.first().map_or(0, |role| role.line);
    let what = format!("roles that wait for each other: {}", names.join(" needs "));
    InputError::at(line, what, "let one of them do without the answer of the other")
}

struct Builder<'a> {
    question: &'a str,
    max_tokens: u32,
    graph: Graph,
    seats: Vec<Seat>,
    /// Where the role with a key sits.
    place: BTreeMap<String, usize>,
}

impl Builder<'_> {
    fn seat(&mut self, role: &Role) -> Result<(), GraphError> {
        let on = role.vote.as_ref().and_then(|key| self.place.get(key).copied());
        let candidates =
            on.and_then(|on| self.seats.get(on)).map_or(&[][..], |seat| &seat.nodes[..]).to_vec();
        let count = u32::try_from(candidates.len()).unwrap_or(u32::MAX);
        let mut seat = Seat {
            name: role.name.clone(),
            round: role.round,
            nodes: Vec::new(),
            ballot: on.map(|on| Ballot { on, orders: Vec::new() }),
        };
        for number in 1..=role.repeats {
            let order: Vec<u32> = (0..count).map(|at| (at + number - 1) % count).collect();
            let seen: Vec<u32> =
                order.iter().filter_map(|at| candidates.get(*at as usize).copied()).collect();
            let fill = |template: &Template| self.fill(template, role, number, &seen);
            let system = role.system.as_ref().map(|system| Message::new(Speaker::System, fill(system)));
            let at = number as usize - 1;
            let prompt = role.prompts.get(at).or_else(|| role.prompts.last()).map(fill).unwrap_or_default();
            let messages = system.into_iter().chain([Message::new(Speaker::User, prompt)]).collect();
            let usual = if on.is_some() { VOTE_TOKENS } else { self.max_tokens };
            let name = title(&role.name, role.repeats as usize, at, role.round);
            let NodeIndex(node) = self.graph.add(Node {
                model: role.model.clone(),
                temperature: role.temperature,
                format: on.map(|_| schema(count)),
                ..Node::new(name, &role.name, role.max_tokens.unwrap_or(usual), messages).shown()
            })?;
            seat.nodes.push(node);
            if let Some(ballot) = &mut seat.ballot {
                ballot.orders.push(order);
            }
        }
        self.place.insert(role.key.clone(), self.seats.len());
        self.seats.push(seat);
        Ok(())
    }

    fn fill(&self, template: &Template, role: &Role, number: u32, seen: &[u32]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for part in &template.parts {
            match part {
                Part::Text(text) => pieces.push(text.as_str().into()),
                Part::Question => pieces.push(self.question.into()),
                Part::Answer(key) => {
                    let seat = self.place.get(key).and_then(|at| self.seats.get(*at));
                    answers(seat.map_or(&[][..], |seat| &seat.nodes), &mut pieces);
                }
                Part::Candidates => answers(seen, &mut pieces),
                Part::Number => pieces.push(number.to_string().into()),
                Part::Repeats => pieces.push(role.repeats.to_string().into()),
            }
        }
        pieces
    }
}

impl Role {
    /// The keys of the roles whose answers it reads or votes on.
    fn needs(&self) -> BTreeSet<&str> {
        let reads = self.prompts.iter().chain(&self.system).flat_map(Template::reads);
        reads.chain(self.vote.as_deref()).collect()
    }
}

/// One answer as it is, several each under its number.
fn answers(nodes: &[u32], pieces: &mut Vec<Piece>) {
    if let [node] = nodes {
        return pieces.push(NodeIndex(*node).into());
    }
    for (number, node) in (1..).zip(nodes) {
        let gap = if number == 1 { "" } else { "\n\n" };
        pieces.push(format!("{gap}[{number}]\n").into());
        pieces.push(NodeIndex(*node).into());
    }
}

/// The form of a vote among so many answers.
fn schema(count: u32) -> Value {
    json!({
        "type": "object",
        "properties": {"vote": {"type": "integer", "minimum": 1, "maximum": count}},
        "required": ["vote"],
        "additionalProperties": false,
    })
}
