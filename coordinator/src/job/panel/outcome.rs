//! What a panel came to, as Markdown, from what the journal holds: the layout and the answers.

use std::fmt::Write as _;

use super::{super::Answer, Layout, Tally};

/// Counts the votes of every role that votes. `answers` are those of the graph's nodes, in their order.
#[must_use]
pub fn tallies(layout: &Layout, answers: &[Answer]) -> Vec<Tally> {
    layout.seats.iter().filter_map(|seat| Tally::of(layout, seat, answers)).collect()
}

/// Writes the answer of the panel: what the role in question wrote, or what it chose if it votes.
///
/// An answer that has failed, is not there yet or was not chosen is named in its place.
#[must_use]
pub fn outcome(layout: &Layout, answers: &[Answer]) -> String {
    let Some(seat) = layout.seats.get(layout.answer) else { return String::new() };
    let (seat, only) = match Tally::of(layout, seat, answers) {
        None => (seat, None),
        Some(tally) => {
            let on = seat.ballot.as_ref().and_then(|ballot| layout.seats.get(ballot.on));
            match (tally.chosen(), on) {
                (Some(chosen), Some(on)) => (on, Some(chosen)),
                (None, _) | (_, None) => {
                    return format!("> **no answer was chosen**: {}\n", tally.sentence());
                }
            }
        }
    };
    let mut text = String::new();
    for (at, node) in seat.nodes.iter().enumerate().filter(|(at, _)| only.is_none_or(|only| only == *at)) {
        if only.is_none() && seat.nodes.len() > 1 {
            let _ = writeln!(text, "## {}\n", seat.title(at));
        }
        write(&mut text, &seat.title(at), answers.get(*node as usize));
    }
    end(text)
}

/// Writes all that was said, each role under its name, and how votes went.
#[must_use]
pub fn proceedings(layout: &Layout, answers: &[Answer]) -> String {
    let mut text = String::new();
    for seat in &layout.seats {
        for (at, node) in seat.nodes.iter().enumerate() {
            let _ = writeln!(text, "## {}\n", seat.title(at));
            write(&mut text, &seat.title(at), answers.get(*node as usize));
        }
        if let Some(tally) = Tally::of(layout, seat, answers) {
            let _ = writeln!(text, "> {}\n", tally.sentence());
        }
    }
    end(text)
}

fn write(text: &mut String, name: &str, answer: Option<&Answer>) {
    let _ = match answer {
        Some(Answer::Done { text: said, .. }) => writeln!(text, "{}\n", said.trim()),
        Some(Answer::Failed { class, message }) => {
            let why = message.split_whitespace().collect::<Vec<_>>().join(" ");
            writeln!(text, "> **the answer of {name} is missing** ({class}): {why}\n")
        }
        Some(Answer::Open) | None => writeln!(text, "> **{name} has not answered yet**\n"),
    };
}

fn end(mut text: String) -> String {
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}
