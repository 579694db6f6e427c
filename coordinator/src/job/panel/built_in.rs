//! The panels that come with tropa, as lists of roles.
//!
//! A draft comes from a researcher, or from several ideas and a choice among them; critics look at it, each for
//! something else; an editor writes the answer, which the next round takes as its draft. With votes the ideas are the
//! candidates and nobody edits.

use super::{Role, Roles, template::Template};

/// Rounds of critics and an editor, at most: a text that ten rounds did not mend stays as it is.
pub const LARGEST_ROUNDS: u32 = 10;

/// Sampling temperature of ideas, so that they differ.
const IDEAS_TEMPERATURE: f64 = 1.0;

/// Ideas that are voted on where no number is given.
const USUAL_IDEAS: u32 = 3;

/// A panel that comes with tropa.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BuiltIn {
    /// Critics in each round; absent: one, and none where ideas are chosen from.
    pub critics: Option<u32>,
    /// Rounds of critics and editor; absent: one, and none where ideas are chosen from.
    pub rounds: Option<u32>,
    /// Ideas; absent: a researcher instead.
    pub brainstorm: Option<u32>,
    /// Voters, who choose among the ideas; excludes critics and rounds.
    pub vote: Option<u32>,
}

/// What each critic looks for, one after the other and from the front again.
const VIEWS: [&str; 6] = [
    "is it right: facts, figures, and whether one thing follows from the other",
    "is anything missing that whoever asks would need",
    "is it clear and to the point, or can it be shorter",
    "what could go wrong for somebody who acts on it",
    "what would somebody say who sees it quite differently",
    "does it answer what was asked, or something else",
];

/// Where each idea starts from, one after the other and from the front again.
const ANGLES: [&str; 8] = [
    "the most direct way",
    "the cheapest or simplest way that could work",
    "what an expert of the field would do",
    "what somebody from quite another field would do",
    "the opposite of the obvious",
    "doing without what everybody takes for granted",
    "what would still be right in ten years",
    "beginning with what can be done today",
];

const LANGUAGE: &str = "Write in the language of the question. Answer with the text itself and nothing else: no remarks about the task.";

impl BuiltIn {
    pub(super) fn roles(self) -> Roles {
        let mut roles = Vec::new();
        if self.brainstorm.is_some() || self.vote.is_some() {
            roles.push(ideas(self.brainstorm.unwrap_or(USUAL_IDEAS)));
        } else {
            roles.push(researcher());
        }
        if let Some(voters) = self.vote {
            roles.push(voter(voters));
            return Roles { roles, answer: "voter".to_owned() };
        }
        let mut draft = "researcher".to_owned();
        if self.brainstorm.is_some() {
            roles.push(choice());
            draft = "choice".to_owned();
        }
        let asked = self.critics.is_some() || self.rounds.is_some();
        if self.brainstorm.is_none() || asked {
            let rounds = self.rounds.unwrap_or(1);
            for round in 1..=rounds {
                let shown = if rounds > 1 { round } else { 0 };
                roles.push(critics(self.critics.unwrap_or(1), &draft, shown));
                roles.push(editor(&draft, shown));
                draft = key("editor", shown);
            }
        }
        Roles { roles, answer: draft }
    }
}

fn researcher() -> Role {
    role(
        "researcher",
        "You look into a question thoroughly and say how sure you are.",
        vec![
            "The question:\n\n{{question}}\n\nAnswer it as well as you can. Say for each point how sure it is, and what \
             is not known."
                .to_owned(),
        ],
    )
}

fn ideas(count: u32) -> Role {
    let prompts = cycle(&ANGLES, count, |number, angle| {
        format!(
            "The question:\n\n{{{{question}}}}\n\nGive one answer, number {number} of {count} that are given \
             independently. Start from {angle}. Work it out so far that one can judge it."
        )
    });
    Role {
        temperature: Some(IDEAS_TEMPERATURE),
        ..role("idea", "You have ideas and say them plainly.", prompts)
    }
}

fn choice() -> Role {
    role(
        "choice",
        "You choose among ideas and work out what you chose.",
        vec![
            "The question:\n\n{{question}}\n\nIdeas:\n\n{{answer:idea}}\n\nChoose the best of them, or join the best of \
             several, and work it out into one answer. Say briefly why you chose it."
                .to_owned(),
        ],
    )
}

fn voter(count: u32) -> Role {
    Role {
        vote: Some("idea".to_owned()),
        repeats: count,
        ..role(
            "voter",
            "You judge answers and choose one.",
            vec![
                "The question:\n\n{{question}}\n\nAnswers, each under its number:\n\n{{candidates}}\n\nWhich of them \
                 answers the question best? Answer with nothing but its number in this form: {\"vote\": 1}"
                    .to_owned(),
            ],
        )
    }
}

fn critics(count: u32, draft: &str, round: u32) -> Role {
    let prompts = cycle(&VIEWS, count, |number, view| {
        format!(
            "The question:\n\n{{{{question}}}}\n\nAn answer to it:\n\n{{{{answer:{draft}}}}}\n\nYou are critic {number} of \
             {count}. Look for one thing: {view}. Name each fault, where it is, and how to mend it. Where there is none, \
             say so. Do not write a new answer."
        )
    });
    in_round(role("critic", "You are a strict and fair critic.", prompts), round)
}

fn editor(draft: &str, round: u32) -> Role {
    let critic = key("critic", round);
    let prompt = format!(
        "The question:\n\n{{{{question}}}}\n\nAn answer to it:\n\n{{{{answer:{draft}}}}}\n\nWhat critics say of it:\n\n\
         {{{{answer:{critic}}}}}\n\nWrite the answer anew. Take up what the critics are right about and leave what they \
         are wrong about. Do not mention them."
    );
    in_round(role("editor", "You write the final answer.", vec![prompt]), round)
}

/// What holes call a role of a round.
fn key(name: &str, round: u32) -> String {
    if round == 0 { name.to_owned() } else { format!("{name}, round {round}") }
}

fn in_round(role: Role, round: u32) -> Role {
    Role { key: key(&role.name, round), round, ..role }
}

fn cycle(list: &[&str], count: u32, prompt: impl Fn(u32, &str) -> String) -> Vec<String> {
    (1..=count).zip(list.iter().cycle()).map(|(number, entry)| prompt(number, entry)).collect()
}

fn role(name: &str, system: &str, prompts: Vec<String>) -> Role {
    let repeats = u32::try_from(prompts.len()).unwrap_or(u32::MAX);
    let parse = |text: &str| match Template::parse(text) {
        Ok(template) => template,
        Err(error) => unreachable!("a prompt of our own: {}", error.what),
    };
    Role {
        key: name.to_owned(),
        name: name.to_owned(),
        round: 0,
        line: 0,
        model: None,
        system: Some(parse(&format!("{system} {LANGUAGE}"))),
        prompts: prompts.iter().map(|prompt| parse(prompt)).collect(),
        repeats,
        max_tokens: None,
        temperature: None,
        vote: None,
    }
}
