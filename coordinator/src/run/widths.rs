//! Vectors of one job and one model have one width. The fingerprint makes that so; this makes sure of it, since a
//! vector of another width would spoil whatever is built from the file, long after anybody looks for the reason.

use std::collections::BTreeMap;

use tropa_proto::id::ChunkIndex;

use crate::{
    journal::{Decided, Error, Journal, Kind},
    report::vector_width,
    schedule::{ModelIndex, Schedule},
};

/// The width of the vectors of each model of a job of embeddings.
#[derive(Debug, Default)]
pub(super) struct Widths {
    watches: bool,
    known: BTreeMap<ModelIndex, usize>,
}

impl Widths {
    /// Begins with what is in the journal. Jobs of other kinds are not looked at: their items may ask for several
    /// widths.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub(super) fn of(journal: &Journal, schedule: &Schedule) -> Result<Self, Error> {
        let mut widths = Self { watches: journal.job().kind == Kind::Embed, known: BTreeMap::new() };
        if !widths.watches {
            return Ok(widths);
        }
        let finished = journal.load()?.finished;
        for index in 0..journal.job().chunks {
            let chunk = ChunkIndex(index);
            let done = finished.contains(chunk) && !finished.is_failed(chunk);
            if !done || widths.known.contains_key(&schedule.model_of(chunk)) {
                continue;
            }
            if let Some(Decided::Done(done)) = journal.item(index)?.map(|item| item.decided) {
                // What is committed stays, whatever its width: it is the one to compare with.
                let _ = widths.wrong(schedule.model_of(chunk), &done.body);
            }
        }
        Ok(widths)
    }

    /// Says what is wrong with a result, if its vectors have not the width of those before it.
    pub(super) fn wrong(&mut self, model: ModelIndex, body: &[u8]) -> Option<String> {
        if !self.watches {
            return None;
        }
        let Some(width) = vector_width(body) else { return Some("the result holds no vector".to_owned()) };
        let known = *self.known.entry(model).or_insert(width);
        (known != width).then(|| format!("vectors of {width} numbers, and the job's have {known}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_of_another_width_is_wrong_for_its_model_only() {
        let mut widths = Widths { watches: true, known: BTreeMap::new() };
        let of =
            |width: usize| format!("{{\"embeddings\":[[{}]]}}", vec!["0.5"; width].join(",")).into_bytes();
        let (one, two) = (ModelIndex(0), ModelIndex(1));
        assert_eq!(widths.wrong(one, &of(3)), None);
        assert_eq!(widths.wrong(two, &of(4)), None);
        assert_eq!(widths.wrong(one, &of(3)), None);
        let wrong = widths.wrong(one, &of(4)).unwrap();
        assert!(wrong.contains("4 numbers") && wrong.contains("have 3"), "{wrong}");
        assert!(widths.wrong(one, b"{}").is_some());
        assert_eq!(Widths::default().wrong(one, b"{}"), None, "other jobs are not looked at");
    }
}
