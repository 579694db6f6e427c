//! Which devices an attempt takes (`identity.md` §8): those of what is loaded, where its model is; else all that the
//! install may load it on, for nobody knows where that will be.

use std::collections::{BTreeMap, BTreeSet};

use tropa_proto::{
    device::runs_as_loaded,
    evidence::Facts,
    message::{Inventory, Loaded},
};

use crate::{
    device_lock::{DeviceName, Occupies, occupied},
    ollama::{Request, full_name},
};

/// The devices of an install as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Occupation {
    /// What the loaded models occupy; while nothing is loaded, all that the lane claims.
    pub loaded: BTreeSet<DeviceName>,
    /// What a model that is not loaded may occupy.
    pub anywhere: BTreeSet<DeviceName>,
    /// The contexts in tokens of the loaded models, by full name.
    contexts: BTreeMap<String, Context>,
    /// How many loads had begun when this was looked at.
    pub(crate) as_of: u64,
}

/// How long a loaded model's context is, and how long it can be; 0 where that is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Context {
    allocated: u32,
    trained: u32,
}

impl Occupation {
    /// An install whose attempts take the same devices whatever is loaded.
    #[must_use]
    pub fn always(devices: BTreeSet<DeviceName>) -> Self {
        Self { loaded: devices.clone(), anywhere: devices, ..Self::default() }
    }

    /// Puts together what the facts say of the install's devices, and what it has loaded.
    #[must_use]
    pub fn new(facts: &Facts, inventory: &Inventory) -> Self {
        let contexts = inventory.models.iter().filter_map(|model| {
            let context = Context { allocated: model.loaded?.context, trained: model.context };
            Some((full_name(&model.name), context))
        });
        let another = Facts { lane: facts.anywhere.clone(), ..facts.clone() };
        Self {
            loaded: occupied(facts, Occupies::of(all_loaded(inventory))),
            anywhere: occupied(&another, Occupies::Claimed),
            contexts: contexts.collect(),
            as_of: 0,
        }
    }

    /// An install that has one model loaded, whatever its context, looked at after so many loads had begun.
    #[cfg(test)]
    pub(crate) fn with(
        loaded: BTreeSet<DeviceName>,
        anywhere: BTreeSet<DeviceName>,
        model: &str,
        as_of: u64,
    ) -> Self {
        Self { loaded, anywhere, contexts: BTreeMap::from([(full_name(model), Context::default())]), as_of }
    }

    /// Says whether a request runs where the loaded models are: it needs no load, so it goes nowhere else.
    #[must_use]
    pub fn is_placed(&self, request: &Request) -> bool {
        self.anywhere.is_subset(&self.loaded) || self.has_loaded(&request.model, request.num_ctx)
    }

    /// A model is being loaded: where it goes, and what leaves for it, is not known until somebody looks again.
    pub(crate) fn unsettle(&mut self) {
        self.contexts.clear();
    }

    fn has_loaded(&self, model: &str, num_ctx: u64) -> bool {
        let loaded = self.contexts.get(&full_name(model));
        loaded.is_some_and(|context| runs_as_loaded(context.allocated, context.trained, num_ctx))
    }
}

/// How all loaded models together lie in memory; none while nothing is loaded.
pub(crate) fn all_loaded(inventory: &Inventory) -> Option<Loaded> {
    let loaded = inventory.models.iter().filter_map(|model| model.loaded);
    loaded.reduce(|one, other| Loaded {
        size: one.size.saturating_add(other.size),
        size_vram: one.size_vram.saturating_add(other.size_vram),
        context: one.context.max(other.context),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_runs_where_its_model_is_loaded_with_its_context() {
        let context = |allocated, trained| Context { allocated, trained };
        let occupation = Occupation {
            anywhere: BTreeSet::from([DeviceName::Dram]),
            contexts: BTreeMap::from([
                ("tiny:latest".to_owned(), context(2048, 2048)),
                ("old:1b".to_owned(), context(0, 4096)),
            ]),
            ..Occupation::default()
        };
        assert!(occupation.has_loaded("tiny", 2048));
        assert!(occupation.has_loaded("TINY:latest", 8192), "more than it was trained for is not allocated");
        assert!(!occupation.has_loaded("tiny", 1024), "another context is another load");
        assert!(occupation.has_loaded("old:1b", 4096), "its Ollama does not tell its context");
        assert!(!occupation.has_loaded("another", 2048));
    }
}
