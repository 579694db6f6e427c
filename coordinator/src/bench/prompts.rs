//! What `tropa bench` asks where the user gives no file: questions of about the same length, none a repetition.

/// What is asked about.
const TOPICS: [&str; 12] = [
    "llamas",
    "the Andes",
    "rope bridges",
    "potatoes",
    "wool",
    "rain",
    "maps",
    "clocks",
    "bread",
    "volcanoes",
    "markets",
    "the sea",
];

/// What is asked about it.
const QUESTIONS: [&str; 8] = [
    "Describe {} in three sentences.",
    "Why do people care about {}?",
    "Give a short history of {}.",
    "Write four lines of verse about {}.",
    "What would a child ask about {}?",
    "Name five facts about {}.",
    "How would you draw {}?",
    "What is often believed of {} and wrong?",
];

/// How many there are.
pub const PROMPTS: u32 = (TOPICS.len() * QUESTIONS.len()) as u32;

/// The first of them, one a line; neighbours share neither topic nor question.
#[must_use]
pub(super) fn lines(count: u32) -> String {
    let mut lines = String::new();
    for at in 0..count.min(PROMPTS) as usize {
        let topic = TOPICS[at % TOPICS.len()];
        let question = QUESTIONS[(at + at / TOPICS.len()) % QUESTIONS.len()];
        lines.push_str(&question.replace("{}", topic));
        lines.push('\n');
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_prompt_comes_twice() {
        let all = lines(PROMPTS);
        let distinct: BTreeSet<&str> = all.lines().collect();
        assert_eq!(distinct.len(), PROMPTS as usize);
        assert_eq!(lines(PROMPTS + 1), all, "there are no more");
        assert!(all.starts_with(&lines(3)));
    }
}
