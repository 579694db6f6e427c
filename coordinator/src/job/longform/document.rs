//! A text as Markdown, from what the journal holds: the layout and the answers.

use std::fmt::Write as _;

use super::{Answer, Layout, Section};

/// A title longer than this is no title.
const LONGEST_TITLE: usize = 120;

/// Writes the text. `answers` are those of the graph's nodes, in their order; one that is not there is open.
///
/// A text of one part is the answer alone. Several stand under a title, each under the heading that the model gave it,
/// else under its number. A part that has failed, or is not written yet, is named in its place.
#[must_use]
pub fn document(layout: &Layout, answers: &[Answer]) -> String {
    let open = Answer::Open;
    let sections =
        || (0..).zip(&layout.sections).map(|(at, section)| (*section, answers.get(at).unwrap_or(&open)));
    let parts = layout.sections.iter().filter(|section| matches!(section, Section::Part(_))).count();
    let mut text = String::new();
    if parts > 1 {
        text = title(&layout.topic).map_or_else(String::new, |title| format!("# {title}\n\n"));
    }
    for (section, answer) in sections() {
        let name = match section {
            Section::Outline { .. } => continue,
            Section::Part(no) => format!("part {no}"),
            Section::Synthesis {} => "synthesis".to_owned(),
        };
        match (answer, section) {
            (Answer::Done { text: part, .. }, Section::Part(no))
                if parts > 1 && !part.trim().starts_with('#') =>
            {
                let _ = writeln!(text, "## {no}\n\n{}\n", part.trim());
            }
            (Answer::Done { text: part, .. }, Section::Synthesis {}) if !part.trim().starts_with('#') => {
                let _ = writeln!(text, "---\n\n{}\n", part.trim());
            }
            (Answer::Done { text: part, .. }, _) => {
                let _ = writeln!(text, "{}\n", part.trim());
            }
            (Answer::Failed { class, message }, _) => {
                let why = message.split_whitespace().collect::<Vec<_>>().join(" ");
                let _ = writeln!(text, "> **{name} is missing** ({class}): {why}\n");
            }
            (Answer::Open, _) => {
                let _ = writeln!(text, "> **{name} is not written yet**\n");
            }
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// The first line of the topic, where it is short enough for a heading.
fn title(topic: &str) -> Option<String> {
    let line = topic.lines().next()?.trim().trim_start_matches('#').trim();
    (!line.is_empty() && line.chars().count() <= LONGEST_TITLE).then(|| line.to_owned())
}
