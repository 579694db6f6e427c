//! `tropa panel`: several roles on one question.
//!
//! A role is a model with a prompt that has holes: the question, and the answers of other roles. What a role needs is
//! read off its holes, so a list of roles is a graph, and roles that do not need each other answer at once. The panels
//! that come with tropa are such lists too; a user writes others as a TOML file.
//!
//! A role may repeat, as several critics do, and it may vote on the answers of another. A vote is a number in a fixed
//! form; what cannot be read as one is an abstention and counted as such, never guessed at. Votes are counted when the
//! answers are in and from the journal alone, so they decide what is shown and never what is asked.

mod built_in;
mod compile;
mod file;
mod outcome;
mod template;
mod vote;

use serde::{Deserialize, Serialize};
use template::Template;

use super::{InputError, graph::Graph};

pub use built_in::{BuiltIn, LARGEST_ROUNDS};
pub use file::LARGEST_FILE;
pub use outcome::{outcome, proceedings, tallies};
pub use vote::{Abstention, Tally};

/// The longest question in bytes: several pages. What is longer is a document, which `tropa map` reads.
pub const LARGEST_QUESTION: usize = 64 << 10;

/// How often one role may answer, at most: beyond that they say the same again, and their reader has no room for them.
pub const LARGEST_REPEATS: u32 = 64;

/// Roles that one panel may have, at most: far more than anybody writes by hand.
pub const LARGEST_ROLES: usize = 64;

/// Tokens of a vote, at most: a number in its form, with room for blanks.
const VOTE_TOKENS: u32 = 48;

/// What the user wants answered, and by whom.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The question.
    pub question: String,
    /// Who answers.
    pub cast: Cast,
    /// Tokens of each answer where its role does not say; at least 1.
    pub max_tokens: u32,
    /// What the user has the roles told besides; roles of a file that say something themselves are not.
    pub system: Option<String>,
    /// Sampling temperature of all roles; roles of a file that say one themselves keep it.
    pub temperature: Option<f64>,
    /// Models of single roles, by the name of the role.
    pub models: Vec<(String, String)>,
}

/// Who is on a panel.
#[derive(Clone, Debug)]
pub enum Cast {
    /// One of the panels that come with tropa.
    BuiltIn(BuiltIn),
    /// The text of a file of roles.
    File(String),
}

/// A panel that can be asked: what is asked, and which answer is whose.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// What is asked.
    pub graph: Graph,
    /// Which answer is whose.
    pub layout: Layout,
}

/// Which answer is whose; the journal keeps it, so that the outcome can be told from the journal alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// The question.
    pub question: String,
    /// The roles, each behind those that it needs.
    pub seats: Vec<Seat>,
    /// The place among them of the one whose answer is the panel's.
    pub answer: usize,
}

/// A role in a [`Layout`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// Its name.
    pub name: String,
    /// Which round it is in; 0 where there is only one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub round: u32,
    /// Its nodes in the graph, one for each time that it answers.
    pub nodes: Vec<u32>,
    /// What it votes on, if it votes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ballot: Option<Ballot>,
}

/// What a role votes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ballot {
    /// The place among the seats of the one whose answers are voted on.
    pub on: usize,
    /// For each voter the answers in the order in which it saw them: each sees another one first, since models like
    /// what comes first.
    pub orders: Vec<Vec<u32>>,
}

impl Seat {
    /// What its answer of this place, from 0, is called.
    #[must_use]
    pub fn title(&self, at: usize) -> String {
        title(&self.name, self.nodes.len(), at, self.round)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(round: &u32) -> bool {
    *round == 0
}

/// What the answer of a role is called that gives so many: `critic 2, round 1`.
fn title(name: &str, of: usize, at: usize, round: u32) -> String {
    let name = if of > 1 { format!("{name} {}", at + 1) } else { name.to_owned() };
    if round > 0 { format!("{name}, round {round}") } else { name }
}

/// A role as it is written, before it is known what it needs.
#[derive(Clone, Debug)]
struct Role {
    /// What holes call it; unique.
    key: String,
    /// What people call it.
    name: String,
    /// Which round it is in; 0 where there is only one.
    round: u32,
    /// Where it stands in its file; 0 without one.
    line: u64,
    model: Option<String>,
    system: Option<Template>,
    /// One prompt for all times that it answers, or one for each.
    prompts: Vec<Template>,
    repeats: u32,
    max_tokens: Option<u32>,
    temperature: Option<f64>,
    /// The key of the role that it votes on.
    vote: Option<String>,
}

/// Roles and which of them answers for all.
#[derive(Clone, Debug)]
struct Roles {
    roles: Vec<Role>,
    /// Its key.
    answer: String,
}

impl Roles {
    /// The same roles as the user wants all of them.
    fn told(mut self, wish: &Wish) -> Self {
        for role in &mut self.roles {
            if let Some(system) = &wish.system {
                let own = role.system.get_or_insert_with(Template::default);
                own.parts.insert(0, template::Part::Text(format!("{}\n\n", system.trim())));
            }
            role.temperature = role.temperature.filter(|_| wish.temperature.is_none());
        }
        self
    }
}

/// Makes the graph of a panel.
///
/// # Errors
/// When the question is empty or too long, a file of roles is wrong (with the line), or a model is given to a role that
/// is not there.
pub fn plan(wish: &Wish) -> Result<Panel, InputError> {
    let question = wish.question.trim();
    if question.is_empty() {
        return Err(InputError::at(0, "the question is empty", "say what the panel is to answer"));
    }
    if question.len() > LARGEST_QUESTION {
        let what = format!("the question has {} bytes, and at most {LARGEST_QUESTION} fit", question.len());
        return Err(InputError::at(0, what, "shorten it, or use `tropa map` for a long document"));
    }
    let mut roles = match &wish.cast {
        Cast::BuiltIn(cast) => cast.roles().told(wish),
        Cast::File(text) => file::roles(text)?,
    };
    for (name, model) in &wish.models {
        let mut named = roles.roles.iter_mut().filter(|role| role.name == *name).peekable();
        if named.peek().is_none() {
            let there: std::collections::BTreeSet<&str> =
                roles.roles.iter().map(|role| role.name.as_str()).collect();
            let what = format!("no role is called `{name}`");
            let remedy = format!("take one of {}", there.into_iter().collect::<Vec<_>>().join(", "));
            return Err(InputError::at(0, what, remedy));
        }
        named.for_each(|role| role.model = Some(model.clone()));
    }
    compile::compile(question, &roles, wish.max_tokens)
}

#[cfg(test)]
mod tests;
