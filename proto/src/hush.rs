//! Warnings that come too often: one of a kind about one peer in a minute, and then how many there were.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Between two warnings of one kind about one peer (`security.md` §6).
pub const WARNS_EVERY: Duration = Duration::from_secs(60);

/// Peers and kinds that are remembered: as many as a mesh has members. Beyond it the one that warned first is forgotten.
const REMEMBERED: usize = 1_024;

/// Who was warned about last, and when. A key names peer and kind.
#[derive(Debug)]
pub struct Hush<K>(BTreeMap<K, Said>);

#[derive(Clone, Copy, Debug)]
struct Said {
    at: Instant,
    kept_back: u64,
}

impl<K> Default for Hush<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Hush<K> {
    /// Says whether to warn now: with how many warnings were kept back since the last; `None`: keep this one back too.
    pub fn warns(&mut self, about: &K, now: Instant) -> Option<u64> {
        if let Some(said) = self.0.get_mut(about) {
            if now.saturating_duration_since(said.at) < WARNS_EVERY {
                said.kept_back += 1;
                return None;
            }
            let kept_back = said.kept_back;
            *said = Said { at: now, kept_back: 0 };
            return Some(kept_back);
        }
        if self.0.len() >= REMEMBERED {
            let first = self.0.iter().min_by_key(|(_, said)| said.at).map(|(about, _)| about.clone());
            first.and_then(|first| self.0.remove(&first));
        }
        self.0.insert(about.clone(), Said { at: now, kept_back: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an Instant has no other source; only differences matter")]
    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn one_warning_a_minute_says_how_many_there_were() {
        let (mut hush, start) = (Hush::default(), now());
        let just = Duration::from_millis(1);
        assert_eq!(hush.warns(&"a", start), Some(0));
        assert_eq!(hush.warns(&"a", start + WARNS_EVERY - just), None);
        assert_eq!(hush.warns(&"b", start), Some(0), "another peer or kind is another warning");
        assert_eq!(hush.warns(&"a", start + WARNS_EVERY), Some(1));
        assert_eq!(hush.warns(&"a", start + WARNS_EVERY + just), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut hush, start) = (Hush::default(), now());
        for number in 0..=REMEMBERED {
            assert_eq!(hush.warns(&number, start + Duration::from_micros(number as u64)), Some(0));
        }
        assert_eq!(hush.0.len(), REMEMBERED);
        assert!(!hush.0.contains_key(&0));
    }
}
