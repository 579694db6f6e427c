//! Long beginnings that prompts share: an engine that has just read one need not read it again.
//!
//! Two beginnings of a prompt are looked at: the system prompt, and that together with the first words of what is asked,
//! where a document stands. The longer one names a chunk where another one begins the same way, else the shorter.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

/// A beginning shorter than this, in bytes, is read in no time.
const LONG: usize = 1024;

/// Bytes of what is asked that tell one document from another.
pub(super) const FIRST_WORDS: usize = 1024;

/// Beginnings that are compared; those of items behind are not known to be shared.
const MAX_BEGINNINGS: usize = 1 << 16;

/// The beginnings of a job's prompts.
#[derive(Clone, Debug, Default)]
pub(super) struct Prefixes {
    /// Whether more than one begins so.
    shared: BTreeMap<u32, bool>,
}

impl Prefixes {
    /// Looks at a prompt: its system prompt and what is asked, of which the first words are enough.
    pub(super) fn add(&mut self, system: &str, asked: &str) {
        for beginning in beginnings(system, asked).into_iter().flatten() {
            if let Some(shared) = self.shared.get_mut(&beginning) {
                *shared = true;
            } else if self.shared.len() < MAX_BEGINNINGS {
                self.shared.insert(beginning, false);
            }
        }
    }

    /// Names the longest beginning that a prompt shares with another one; 0: none.
    pub(super) fn of(&self, system: &str, asked: &str) -> u32 {
        let mut found = beginnings(system, asked).into_iter().flatten();
        found.find(|beginning| self.shared.get(beginning) == Some(&true)).unwrap_or(0)
    }
}

/// The longer and the shorter beginning, where they are long.
fn beginnings(system: &str, asked: &str) -> [Option<u32>; 2] {
    let words = &asked.as_bytes()[..asked.len().min(FIRST_WORDS)];
    let longer = (words.len() == FIRST_WORDS).then(|| name(system, words));
    [longer, (system.len() >= LONG).then(|| name(system, &[]))]
}

fn name(system: &str, words: &[u8]) -> u32 {
    let mut hasher = DefaultHasher::new();
    (system, words).hash(&mut hasher);
    // Two beginnings of one name cost nothing but a chunk in a less lucky place.
    ((hasher.finish() >> 32) as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_over_one_document_share_a_name_and_others_share_their_system_prompt() {
        let rules = "rules ".repeat(300);
        let document = |name: &str| name.repeat(2000);
        let prompts = [
            (rules.as_str(), format!("{}who?", document("a"))),
            (&rules, format!("{}when?", document("a"))),
            (&rules, format!("{}who?", document("b"))),
            (&rules, "short".to_owned()),
            ("be brief", "short".to_owned()),
        ];
        let mut prefixes = Prefixes::default();
        prompts.iter().for_each(|(system, asked)| prefixes.add(system, asked));
        let names: Vec<u32> = prompts.iter().map(|(system, asked)| prefixes.of(system, asked)).collect();
        assert_eq!(names[0], names[1]);
        assert_ne!(names[0], names[2]);
        assert_eq!(names[2], names[3], "alone with its document, but not with its rules");
        assert_eq!(names[4], 0);
        assert!(names[..4].iter().all(|name| *name != 0));
    }
}
