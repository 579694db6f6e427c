//! Long beginnings that prompts share: an engine that has just read one need not read it again.
//!
//! Two beginnings of a prompt are looked at: the system prompt, and that together with the first words of what is asked,
//! where a document stands. The longer one names a chunk where another item begins the same way, else the shorter.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use serde_json::Value;

use super::item::Item;

/// A beginning shorter than this, in bytes, is read in no time.
const LONG: usize = 1024;

/// Bytes of what is asked that tell one document from another.
const FIRST_WORDS: usize = 1024;

/// Beginnings that are compared; those of items behind are not known to be shared.
const MAX_BEGINNINGS: usize = 1 << 16;

/// The beginnings of a job's prompts.
#[derive(Clone, Debug, Default)]
pub(super) struct Prefixes {
    /// Whether more than one item begins so.
    shared: BTreeMap<u32, bool>,
}

impl Prefixes {
    /// Looks at an item.
    pub(super) fn add(&mut self, item: &Item) {
        for beginning in beginnings(item).into_iter().flatten() {
            if let Some(shared) = self.shared.get_mut(&beginning) {
                *shared = true;
            } else if self.shared.len() < MAX_BEGINNINGS {
                self.shared.insert(beginning, false);
            }
        }
    }

    /// Names the longest beginning that the item shares with another one; 0: none.
    pub(super) fn of(&self, item: &Item) -> u32 {
        let mut found = beginnings(item).into_iter().flatten();
        found.find(|beginning| self.shared.get(beginning) == Some(&true)).unwrap_or(0)
    }
}

/// The longer and the shorter beginning, where they are long.
fn beginnings(item: &Item) -> [Option<u32>; 2] {
    let (system, asked) = match item.ask.get("messages") {
        Some(Value::Array(messages)) => {
            let content = |system: bool| {
                let mut found = messages.iter().filter(|message| (message["role"] == "system") == system);
                found.next().and_then(|message| message["content"].as_str()).unwrap_or_default()
            };
            (content(true), content(false))
        }
        Some(_) | None => {
            let text = |key: &str| item.ask.get(key).and_then(Value::as_str).unwrap_or_default();
            (text("system"), text("prompt"))
        }
    };
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
    use serde_json::json;
    use tropa_proto::message::Endpoint;

    use super::{super::Shape, *};

    fn item(system: &str, asked: &str) -> Item {
        let messages = json!([{"role": "system", "content": system}, {"role": "user", "content": asked}]);
        Item::new(1, "a".to_owned(), Shape::Text, Endpoint::Chat).ask("messages", messages)
    }

    #[test]
    fn items_over_one_document_share_a_name_and_others_share_their_system_prompt() {
        let rules = "rules ".repeat(300);
        let document = |name: &str| name.repeat(2000);
        let items = [
            item(&rules, &format!("{}who?", document("a"))),
            item(&rules, &format!("{}when?", document("a"))),
            item(&rules, &format!("{}who?", document("b"))),
            item(&rules, "short"),
            item("be brief", "short"),
        ];
        let mut prefixes = Prefixes::default();
        items.iter().for_each(|item| prefixes.add(item));
        let names: Vec<u32> = items.iter().map(|item| prefixes.of(item)).collect();
        assert_eq!(names[0], names[1]);
        assert_ne!(names[0], names[2]);
        assert_eq!(names[2], names[3], "alone with its document, but not with its rules");
        assert_eq!(names[4], 0);
        assert!(names[..4].iter().all(|name| *name != 0));
    }
}
