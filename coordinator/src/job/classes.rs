//! Classes of context: one long prompt must not make ten thousand short ones expensive.
//!
//! A model is loaded with a context, and another context loads it anew. One value for all items is best where they are
//! alike. Where the longest needs more than twice the context of the median one, items are put into at most three
//! classes; a lane works on one class after the other, so it reloads at most twice.

use std::collections::BTreeMap;

/// Contexts are rounded up to this, so that jobs of like size do not reload the model for each other.
const CONTEXT_STEP: u64 = 1024;

/// Within this factor of the median's context all items are one class.
const ALIKE: u64 = 2;

/// How many items need how large a context, in tokens rounded up.
#[derive(Clone, Debug, Default)]
pub(super) struct Contexts {
    counts: BTreeMap<u64, u32>,
    items: u32,
}

impl Contexts {
    /// Counts an item that needs so many tokens.
    pub(super) fn add(&mut self, tokens: u64) {
        *self.counts.entry(tokens.max(1).next_multiple_of(CONTEXT_STEP)).or_default() += 1;
        self.items += 1;
    }

    /// The contexts of the classes, rising, at most three; the last fits every item. The first fits all items of up to
    /// twice the median's need. One between them, at the geometric mean, is there where items need it and it spares
    /// them half of the last.
    pub(super) fn classes(&self) -> Vec<u32> {
        let longest = self.counts.last_key_value().map_or(CONTEXT_STEP, |(context, _)| *context);
        let mut below = 0;
        let mut median = longest;
        for (context, count) in &self.counts {
            below += count;
            if below >= self.items.div_ceil(2) {
                median = *context;
                break;
            }
        }
        let up_to =
            |limit: u64| self.counts.range(..=limit).next_back().map_or(limit, |(context, _)| *context);
        let first = up_to(median.saturating_mul(ALIKE));
        let between = up_to((first as f64 * longest as f64).sqrt() as u64);
        let mut classes = vec![first];
        if between > first && between.saturating_mul(2) <= longest {
            classes.push(between);
        }
        if longest > first {
            classes.push(longest);
        }
        classes.into_iter().map(|context| u32::try_from(context).unwrap_or(u32::MAX)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(needs: &[(u64, u32)]) -> Vec<u32> {
        let mut contexts = Contexts::default();
        for (tokens, count) in needs {
            (0..*count).for_each(|_| contexts.add(*tokens));
        }
        contexts.classes()
    }

    #[test]
    fn items_within_twice_the_median_are_one_class() {
        assert_eq!(classes(&[(900, 10), (1800, 3)]), [2048]);
        assert_eq!(classes(&[(1, 1)]), [1024]);
        assert_eq!(classes(&[(30_000, 5)]), [30_720]);
    }

    #[test]
    fn one_long_item_does_not_make_the_short_ones_expensive() {
        assert_eq!(classes(&[(900, 10_000), (30_000, 1)]), [1024, 30_720]);
    }

    #[test]
    fn there_are_at_most_three_classes_and_the_last_fits_all() {
        let needs: Vec<(u64, u32)> = (0..60).map(|n| (700 + n * n * 10, 1 + u32::from(n < 5) * 50)).collect();
        let classes = classes(&needs);
        assert_eq!(classes.len(), 3, "{classes:?}");
        assert!(classes.is_sorted() && u64::from(classes[2]) >= 700 + 59 * 59 * 10);
    }

    #[test]
    fn a_class_between_is_there_only_for_items_that_it_spares_much() {
        assert_eq!(classes(&[(900, 100), (2500, 2), (5000, 1)]), [1024, 5120]);
        assert_eq!(classes(&[(900, 100), (2500, 2), (30_000, 1)]), [1024, 3072, 30_720]);
    }
}
