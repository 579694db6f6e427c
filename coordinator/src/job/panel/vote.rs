//! Reading votes, strictly, and counting them.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{super::Answer, Layout, Seat};

/// Why a voter has no vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Abstention {
    /// What it answered is no vote.
    Unreadable,
    /// It named an answer that there is not.
    NoSuchAnswer,
    /// It has failed for good.
    Failed,
}

/// How a vote went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Who voted.
    pub voters: String,
    /// On whose answers.
    pub on: String,
    /// Votes for each answer, in the order of the answers.
    pub counts: Vec<u32>,
    /// Those who did not vote, in the order of the voters.
    pub abstentions: Vec<Abstention>,
    /// Votes that are not cast yet.
    pub open: u32,
}

/// A vote in its long form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vote {
    vote: u32,
}

/// Reads a vote among so many answers: `{"vote": N}` or the number alone, with blanks around it and nothing else.
/// Gives the place of the answer, from 0, in the order in which the voter saw them.
pub(super) fn read(text: &str, count: usize) -> Result<usize, Abstention> {
    let text = text.trim();
    let number = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().map_err(|_| Abstention::NoSuchAnswer)?
    } else if text.starts_with('{') {
        serde_json::from_str::<Vote>(text).map_err(|_| Abstention::Unreadable)?.vote
    } else {
        // A list of one number would be read as the object, too.
        return Err(Abstention::Unreadable);
    };
    let place = (number as usize).checked_sub(1).filter(|place| *place < count);
    place.ok_or(Abstention::NoSuchAnswer)
}

impl Tally {
    /// Counts the votes of a seat; `None` where it does not vote. `answers` are those of the graph's nodes.
    pub(super) fn of(layout: &Layout, seat: &Seat, answers: &[Answer]) -> Option<Self> {
        let ballot = seat.ballot.as_ref()?;
        let on = layout.seats.get(ballot.on)?;
        let mut tally = Self {
            voters: seat.name.clone(),
            on: on.name.clone(),
            counts: vec![0; on.nodes.len()],
            abstentions: Vec::new(),
            open: 0,
        };
        for (node, order) in seat.nodes.iter().zip(&ballot.orders) {
            let vote = match answers.get(*node as usize).unwrap_or(&Answer::Open) {
                Answer::Done { text, .. } => read(text, order.len()),
                Answer::Failed { .. } => Err(Abstention::Failed),
                Answer::Open => {
                    tally.open += 1;
                    continue;
                }
            };
            match vote.map(|place| order.get(place).and_then(|at| tally.counts.get_mut(*at as usize))) {
                Ok(Some(count)) => *count += 1,
                Ok(None) => tally.abstentions.push(Abstention::NoSuchAnswer),
                Err(why) => tally.abstentions.push(why),
            }
        }
        Some(tally)
    }

    /// The answers with the most votes, from 0; none where nobody voted or votes are still to come.
    #[must_use]
    pub fn best(&self) -> Vec<usize> {
        let most = self.counts.iter().copied().max().unwrap_or(0);
        if most == 0 || self.open > 0 {
            return Vec::new();
        }
        self.counts.iter().enumerate().filter(|(_, count)| **count == most).map(|(at, _)| at).collect()
    }

    /// The answer that is chosen, from 0: the one with the most votes; of several the first.
    #[must_use]
    pub fn chosen(&self) -> Option<usize> {
        self.best().first().copied()
    }

    /// Tells it in a sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        let counts = self.counts.iter().enumerate();
        let counts: Vec<String> =
            counts.map(|(at, count)| format!("{} {}: {count}", self.on, at + 1)).collect();
        let mut text = format!("votes: {}", counts.join(", "));
        for (why, what) in [
            (Abstention::Unreadable, "unreadable"),
            (Abstention::NoSuchAnswer, "for an answer that there is not"),
            (Abstention::Failed, "failed"),
        ] {
            let count = self.count(why);
            if count > 0 {
                text.push_str(&format!("; {count} counted as abstention ({what})"));
            }
        }
        if self.open > 0 {
            text.push_str(&format!("; {} not cast yet", self.open));
        }
        match self.best().as_slice() {
            [] => text.push_str("; no answer is chosen"),
            [one] => text.push_str(&format!("; {} {} is chosen", self.on, one + 1)),
            [first, ..] => {
                text.push_str(&format!("; a tie, and the first of it is chosen: {} {}", self.on, first + 1))
            }
        }
        text
    }

    /// Tells it to programs; answers count from 1.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "schema": "tropa.vote/1", "voters": self.voters, "on": self.on, "counts": self.counts,
            "abstentions": {
                "unreadable": self.count(Abstention::Unreadable),
                "no_such_answer": self.count(Abstention::NoSuchAnswer),
                "failed": self.count(Abstention::Failed),
            },
            "open": self.open, "chosen": self.chosen().map(|at| at + 1),
            "tied": self.best().iter().map(|at| at + 1).collect::<Vec<_>>(),
        })
    }

    fn count(&self, why: Abstention) -> usize {
        self.abstentions.iter().filter(|abstention| **abstention == why).count()
    }
}
