//! The step in GPU memory while a model loads: it tells where an install works although neither its processes nor its
//! log can be seen, in WSL2 and under another user for instance (`identity.md` §3.5, rung 6).
//!
//! Only what was seen to load is known. While a model is loaded that was there before the first sample, or that no
//! single GPU's memory accounts for, the whole is unknown.

use std::collections::{BTreeMap, BTreeSet};

/// What a process holds on an NVIDIA GPU beside the model: the context of CUDA and its libraries.
pub(super) const CONTEXT: u64 = 1 << 30;

/// What the GPUs and the install hold at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Memory in use of each GPU in bytes, by its place; `None` where a GPU does not tell.
    pub used: Vec<Option<u64>>,
    /// The loaded models with their bytes on GPUs, from `/api/ps`.
    pub loaded: BTreeMap<String, u64>,
    /// Whether the install is at work for us, so that a model may be half loaded.
    pub busy: bool,
}

/// Follows the memory of the GPUs beside what the install says it has loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VramWatch {
    /// The memory in use when all that was loaded had a place: steps are counted from there.
    before: Option<Vec<u64>>,
    /// The models that were seen to load, with their places.
    places: BTreeMap<String, u16>,
}

impl VramWatch {
    /// Takes a sample and gives the GPUs on which all that is loaded was seen to load, by their places: empty while
    /// nothing is loaded and where that is not known.
    pub fn see(&mut self, sample: &Sample) -> BTreeSet<u16> {
        let Some(used) = sample.used.iter().copied().collect::<Option<Vec<u64>>>() else {
            // One that does not tell may be the one that rose.
            *self = Self::default();
            return BTreeSet::new();
        };
        let on_gpu: BTreeMap<&String, u64> = sample
            .loaded
            .iter()
            .map(|(model, bytes)| (model, *bytes))
            .filter(|(_, bytes)| *bytes > 0)
            .collect();
        self.places.retain(|model, _| on_gpu.contains_key(model));
        self.forget_what_cannot_be(&used, &on_gpu);
        let new: Vec<&String> =
            on_gpu.keys().copied().filter(|model| !self.places.contains_key(*model)).collect();
        let bytes = new.iter().map(|model| on_gpu[*model]).fold(0, u64::saturating_add);
        if let Some(place) = self.before.as_ref().and_then(|before| vram_step(before, &used, bytes)) {
            self.places.extend(new.into_iter().map(|model| (model.clone(), place)));
        }
        let known = self.places.len() == on_gpu.len();
        if known && !sample.busy {
            self.before = Some(used);
        }
        if known { self.places.values().copied().collect() } else { BTreeSet::new() }
    }

    /// A model that was unloaded and came back on another GPU between two samples leaves its place too empty for it.
    fn forget_what_cannot_be(&mut self, used: &[u64], on_gpu: &BTreeMap<&String, u64>) {
        let mut held: BTreeMap<u16, u64> = BTreeMap::new();
        for (model, place) in &self.places {
            let sum = held.entry(*place).or_default();
            *sum = sum.saturating_add(on_gpu.get(model).copied().unwrap_or(0));
        }
        let holds = |place: u16| {
            let bytes = held.get(&place).copied().unwrap_or(0);
            used.get(usize::from(place)).is_some_and(|used| *used >= bytes - bytes / 10)
        };
        self.places.retain(|_, place| holds(*place));
    }
}

/// Says which GPU's used memory rose by `size_vram` ± 10 %, and by the context of a new runner at most, while a model
/// appeared with that size: exactly one, or nothing is decided. Both slices are bytes by place; `None` from different
/// lengths or a size of 0.
#[must_use]
pub fn vram_step(before: &[u64], after: &[u64], size_vram: u64) -> Option<u16> {
    if before.len() != after.len() || size_vram == 0 {
        return None;
    }
    let tolerance = size_vram / 10;
    let near =
        size_vram.saturating_sub(tolerance)..=size_vram.saturating_add(tolerance).saturating_add(CONTEXT);
    let mut rose = before
        .iter()
        .zip(after)
        .enumerate()
        .filter(|(_, (before, after))| near.contains(&after.saturating_sub(**before)));
    let (place, _) = rose.next()?;
    if rose.next().is_some() { None } else { u16::try_from(place).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn sample(used: [u64; 2], loaded: &[(&str, u64)]) -> Sample {
        Sample {
            used: used.map(|gib| Some(gib * GIB)).to_vec(),
            loaded: loaded.iter().map(|(model, gib)| ((*model).to_owned(), gib * GIB)).collect(),
            busy: false,
        }
    }

    fn none() -> BTreeSet<u16> {
        BTreeSet::new()
    }

    #[test]
    fn a_step_in_memory_counts_only_on_one_gpu() {
        assert_eq!(vram_step(&[9 * GIB, 5 * GIB], &[9 * GIB, 15 * GIB], 10 * GIB), Some(1));
        assert_eq!(vram_step(&[0, 0], &[0, 11 * GIB], 10 * GIB), Some(1), "with the context of its runner");
        assert_eq!(vram_step(&[0, 0], &[10 * GIB, 10 * GIB], 10 * GIB), None, "both rose");
        assert_eq!(vram_step(&[0, 0], &[0, 13 * GIB], 10 * GIB), None, "by too much");
        assert_eq!(vram_step(&[0, 0], &[5 * GIB, 5 * GIB], 10 * GIB), None, "half on each");
        assert_eq!(vram_step(&[0, 5 * GIB], &[0, 0], 10 * GIB), None, "fell");
        assert_eq!(vram_step(&[1], &[1, 2], 1), None);
        assert_eq!(vram_step(&[1], &[1], 0), None);
    }

    #[test]
    fn a_real_card_rises_by_the_model_and_the_context_of_its_runner() {
        // Ollama 0.24.0 on an NVIDIA H200: MiB in use after a load from an idle card, and `size_vram`.
        for (mebibytes, size_vram) in [(707, 34_393_088), (2723, 2_003_191_808), (2387, 1_732_659_200)] {
            assert_eq!(vram_step(&[0], &[mebibytes << 20], size_vram), Some(0), "{mebibytes}");
        }
    }

    #[test]
    fn what_was_seen_to_load_is_known_while_it_is_loaded() {
        let mut watch = VramWatch::default();
        assert_eq!(watch.see(&sample([1, 1], &[])), none());
        assert_eq!(watch.see(&sample([1, 11], &[("a", 10)])), BTreeSet::from([1]));
        assert_eq!(watch.see(&sample([3, 11], &[("a", 10)])), BTreeSet::from([1]), "somebody else's two");
        assert_eq!(watch.see(&sample([9, 11], &[("a", 10), ("b", 6)])), BTreeSet::from([0, 1]));
        assert_eq!(watch.see(&sample([9, 1], &[("b", 6), ("on the processor", 0)])), BTreeSet::from([0]));
        assert_eq!(watch.see(&sample([3, 1], &[])), none());
        assert_eq!(watch.see(&sample([13, 1], &[("a", 10)])), BTreeSet::from([0]));
    }

    #[test]
    fn what_was_not_seen_to_load_leaves_the_whole_unknown() {
        let mut watch = VramWatch::default();
        assert_eq!(watch.see(&sample([11, 1], &[("a", 10)])), none(), "there before the first sample");
        assert_eq!(
            watch.see(&sample([11, 7], &[("a", 10), ("b", 6)])),
            none(),
            "the first is still not known"
        );
        assert_eq!(watch.see(&sample([1, 1], &[])), none());
        assert_eq!(watch.see(&sample([6, 6], &[("a", 10)])), none(), "over both");
        assert_eq!(watch.see(&sample([6, 12], &[("a", 10), ("b", 6)])), none(), "one of them is not enough");
    }

    #[test]
    fn a_model_that_came_back_elsewhere_is_not_where_it_was() {
        let mut watch = VramWatch::default();
        watch.see(&sample([1, 1], &[]));
        assert_eq!(watch.see(&sample([1, 11], &[("a", 10)])), BTreeSet::from([1]));
        assert_eq!(watch.see(&sample([11, 1], &[("a", 10)])), BTreeSet::from([0]), "seen to rise there");
        assert_eq!(watch.see(&sample([1, 1], &[("a", 10)])), none());
    }

    #[test]
    fn a_model_that_is_half_loaded_is_no_beginning_to_count_from() {
        let mut watch = VramWatch::default();
        watch.see(&sample([1, 1], &[]));
        assert_eq!(watch.see(&Sample { busy: true, ..sample([1, 6], &[]) }), none());
        let loaded = Sample { busy: true, ..sample([1, 11], &[("a", 10)]) };
        assert_eq!(watch.see(&loaded), BTreeSet::from([1]));
    }

    #[test]
    fn a_gpu_that_does_not_tell_or_comes_anew_decides_nothing() {
        let mut watch = VramWatch::default();
        watch.see(&sample([1, 1], &[]));
        let silent = Sample { used: vec![None, Some(11 * GIB)], ..sample([0, 0], &[("a", 10)]) };
        assert_eq!(watch.see(&silent), none());
        assert_eq!(watch.see(&sample([1, 11], &[("a", 10)])), none(), "nothing to count from");
        watch.see(&sample([1, 1], &[]));
        let used = vec![Some(GIB), Some(11 * GIB), Some(0)];
        assert_eq!(watch.see(&Sample { used, ..sample([0, 0], &[("a", 10)]) }), none());
    }
}
