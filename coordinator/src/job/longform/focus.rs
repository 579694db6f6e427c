//! The kinds of text, and what each part of one is about, so that parts that are written at the same time do not all
//! write the same.

use serde::{Deserialize, Serialize};

/// A kind of text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// What is known, how, and what is not.
    Research,
    /// The views that there are, and what speaks for each.
    Discussion,
    /// Something that happens to somebody.
    Story,
    /// How something works, for somebody who does not know it.
    Explanation,
    /// Something taken apart and judged.
    Analysis,
    /// Any other text.
    #[default]
    General,
}

/// What a part is about. Of a list of them the smallest ranks are taken, in the order of the list.
struct Focus {
    rank: u8,
    text: &'static str,
}

const fn focus(rank: u8, text: &'static str) -> Focus {
    Focus { rank, text }
}

const RESEARCH: [Focus; 10] = [
    focus(0, "the question, why it matters, and what is and is not part of it"),
    focus(2, "how the matter came about, and what was thought of it before"),
    focus(6, "how one can know anything about it: sources, methods, measurements"),
    focus(1, "what is known, with the evidence for each point"),
    focus(5, "how the causes and mechanisms work"),
    focus(4, "where sources or schools disagree, and why"),
    focus(7, "cases and examples, each with what it shows"),
    focus(8, "what follows in practice, and for whom"),
    focus(3, "what is not known, how sure the rest is, and what would settle it"),
    focus(9, "what is likely to change, and what to watch"),
];

const DISCUSSION: [Focus; 8] = [
    focus(0, "what the dispute is about, its terms, and who is affected"),
    focus(5, "how the dispute came about"),
    focus(1, "the strongest case for it"),
    focus(2, "the strongest case against it"),
    focus(6, "views that are on neither side"),
    focus(4, "what facts would decide, and what is a matter of values"),
    focus(7, "what has been tried elsewhere, and how it went"),
    focus(3, "where the sides can meet, and what stays between them"),
];

const EXPLANATION: [Focus; 8] = [
    focus(0, "what it is, in plain words, and why one would want to know"),
    focus(3, "what one needs to know before"),
    focus(1, "how it works, step by step"),
    focus(2, "a worked example from beginning to end"),
    focus(6, "why it is made this way and no other"),
    focus(4, "what is often misunderstood, and how it really is"),
    focus(5, "where it applies, where it ends, and what happens there"),
    focus(7, "how to go on from here: what to try and what to read"),
];

const ANALYSIS: [Focus; 9] = [
    focus(0, "what is analysed, for what purpose, and by which measures"),
    focus(6, "the situation that it stands in"),
    focus(1, "its parts and how they act on each other"),
    focus(4, "figures and facts, and what they do and do not show"),
    focus(2, "strengths and what they rest on"),
    focus(3, "weaknesses and risks, with how likely and how bad each is"),
    focus(7, "how it compares with the alternatives"),
    focus(8, "what would change the judgement"),
    focus(5, "the judgement, with what should be done about it"),
];

const GENERAL: [Focus; 8] = [
    focus(0, "what it is about and why it matters"),
    focus(3, "where it comes from"),
    focus(1, "the main points, each with its reason"),
    focus(2, "examples that show it"),
    focus(5, "what speaks against it or is disputed"),
    focus(4, "what it means in practice"),
    focus(6, "how it is connected with other things"),
    focus(7, "what comes next"),
];

/// How a story goes, from its first part to its last.
const STORY: [&str; 7] = [
    "the people, the place, and what somebody wants",
    "what happens that nobody can undo",
    "the first attempt, and what it costs",
    "a setback that changes what is at stake",
    "the turn: what is understood now that was not before",
    "the decision, and what comes of it",
    "the end: what has changed, and for whom",
];

impl Content {
    /// All kinds, as `--type` lists them.
    pub const ALL: [Self; 6] =
        [Self::Research, Self::Discussion, Self::Story, Self::Explanation, Self::Analysis, Self::General];

    /// The name that `--type` takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Research => "research",
            Self::Discussion => "discussion",
            Self::Story => "story",
            Self::Explanation => "explanation",
            Self::Analysis => "analysis",
            Self::General => "general",
        }
    }

    /// What it is called in a prompt.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Research => "a research report",
            Self::Discussion => "a balanced discussion",
            Self::Story => "a story",
            Self::Explanation => "an explanation for somebody new to it",
            Self::Analysis => "an analysis",
            Self::General => "a text",
        }
    }

    /// How many words a part has: as many as a small model writes without going round in circles, more where a part
    /// needs room.
    #[must_use]
    pub fn words_per_part(self) -> u32 {
        match self {
            Self::Research | Self::Analysis => 500,
            Self::Story => 600,
            Self::Discussion | Self::Explanation | Self::General => 400,
        }
    }

    /// How many parts it has where no length is asked for.
    #[must_use]
    pub fn usual_parts(self) -> u32 {
        match self {
            Self::Research | Self::Analysis => 5,
            Self::Discussion | Self::Story | Self::Explanation => 4,
            Self::General => 3,
        }
    }
}

/// What each of so many parts is about; empty where this kind of text has no list as long, so that it takes an
/// outline.
pub(super) fn of(content: Content, parts: u32) -> Vec<&'static str> {
    let list: &[Focus] = match content {
        Content::Story => return arc(parts),
        Content::Research => &RESEARCH,
        Content::Discussion => &DISCUSSION,
        Content::Explanation => &EXPLANATION,
        Content::Analysis => &ANALYSIS,
        Content::General => &GENERAL,
    };
    if parts as usize > list.len() {
        return Vec::new();
    }
    list.iter().filter(|focus| u32::from(focus.rank) < parts).map(|focus| focus.text).collect()
}

/// A story of any number of parts goes through all of its stages: the first part begins it and the last ends it.
fn arc(parts: u32) -> Vec<&'static str> {
    let last = STORY.len() - 1;
    let gaps = (parts.max(2) - 1) as usize;
    (0..parts as usize).map(|no| STORY[(no * last + gaps / 2) / gaps]).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_part_has_a_focus_of_its_own_and_the_first_opens() {
        for content in Content::ALL.into_iter().filter(|content| *content != Content::Story) {
            let all = (1..=64).rev().map(|parts| of(content, parts)).find(|foci| !foci.is_empty()).unwrap();
            for parts in 1..=all.len() {
                let foci = of(content, u32::try_from(parts).unwrap());
                assert_eq!(foci.len(), parts, "{content:?}");
                assert_eq!(foci.iter().collect::<BTreeSet<_>>().len(), parts, "{content:?}");
                assert_eq!(foci[0], all[0]);
                assert!(foci.is_sorted_by_key(|focus| all.iter().position(|other| other == focus)));
            }
            assert!(all.len() as u32 >= content.usual_parts());
        }
    }

    #[test]
    fn a_story_of_any_length_begins_and_ends() {
        for parts in 2..=64 {
            let foci = of(Content::Story, parts);
            assert_eq!(foci.len() as u32, parts);
            assert_eq!((foci[0], foci[foci.len() - 1]), (STORY[0], STORY[6]));
            assert!(foci.is_sorted_by_key(|focus| STORY.iter().position(|stage| stage == focus)));
        }
        assert_eq!(of(Content::Story, 7), STORY);
    }
}
