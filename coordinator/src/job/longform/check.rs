//! What can be said about a text without reading its language: parts that are empty, cut short, go round in circles or
//! say again what another part said. It is reported and nothing is dropped: only the reader can judge.

use std::{
    collections::BTreeSet,
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use super::{Answer, Layout, Section};

/// Letters that are compared at once: two words or so in most scripts. Fewer meet by chance, more miss what was
/// rewritten a little.
const GRAM: usize = 12;

/// A part is said to repeat another from this share of its grams on, in percent; parts about one topic share below a
/// tenth.
const REPEATS: usize = 50;

/// A part is said to go round in circles where fewer than this share of its grams differ, in percent.
const CIRCLES: usize = 50;

/// A part with fewer grams is too short to tell.
const FEWEST: usize = 50;

/// Something that the reader of a text should know about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// A stable name of it.
    pub code: &'static str,
    /// What it is, and what to do.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.text)
    }
}

/// Looks at a text. `answers` are those of the graph's nodes, in their order.
#[must_use]
pub fn findings(layout: &Layout, answers: &[Answer]) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut say = |code, text: String| found.push(Finding { code, text });
    let mut before: Vec<(u32, BTreeSet<u64>)> = Vec::new();
    for (section, answer) in layout.sections.iter().zip(answers) {
        let name = match section {
            Section::Outline { .. } => "the outline".to_owned(),
            Section::Part(no) => format!("part {no}"),
            Section::Synthesis {} => "the synthesis".to_owned(),
        };
        let (text, cut) = match answer {
            Answer::Done { text, cut } => (text, cut),
            Answer::Failed { class, .. } => {
                say("text.missing", format!("{name} has failed ({class})"));
                continue;
            }
            Answer::Open => continue,
        };
        if *cut {
            say("text.cut", format!("{name} reached its limit of tokens before its end; raise --max-tokens"));
        }
        if text.trim().is_empty() {
            say("text.empty", format!("{name} is empty; try another model or a higher --max-tokens"));
            continue;
        }
        let no = match section {
            Section::Outline { parts } => {
                let points = text.lines().filter(|line| is_point(line)).count();
                if points < *parts as usize {
                    say("outline.short", format!("the outline has {points} points for {parts} parts"));
                }
                continue;
            }
            Section::Synthesis {} => continue,
            Section::Part(no) => *no,
        };
        let (own, count) = grams(text);
        if count >= FEWEST && own.len() * 100 < count * CIRCLES {
            say("text.circles", format!("{name} says the same again and again"));
        }
        let share = |other: &BTreeSet<u64>| own.intersection(other).count() * 100 / own.len().max(1);
        let most = before
            .iter()
            .map(|(no, other)| (share(other), *no))
            .max_by_key(|(share, no)| (*share, u32::MAX - no));
        if let Some((share, other)) = most.filter(|(share, _)| own.len() >= FEWEST && *share >= REPEATS) {
            say("text.repeats", format!("{share} % of {name} stands in part {other} already"));
        }
        before.push((no, own));
    }
    found
}

/// Every run of [`GRAM`] letters and digits, without regard to case and to what stands between, and how many there are.
fn grams(text: &str) -> (BTreeSet<u64>, usize) {
    let letters: Vec<char> =
        text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    let mut count = 0;
    let grams = letters.windows(GRAM).map(|gram| {
        count += 1;
        let mut hash = DefaultHasher::new();
        gram.hash(&mut hash);
        hash.finish()
    });
    (grams.collect(), count)
}

/// Says whether a line is a point of a list with numbers, in any script's digits.
fn is_point(line: &str) -> bool {
    line.trim_start_matches(|c: char| !c.is_alphanumeric()).starts_with(char::is_numeric)
}
