//! Which salt the identifiers of a mesh are compared under (`identity.md` §4).
//!
//! Tags of two salts say nothing to each other. A salt belongs to its mesh and stays; where it is replaced on purpose,
//! agents publish under the former one as well, until all have the new one. So at any moment there is a salt that all
//! have, and under it nothing changes. Who has it not is compared without identifiers, which counts less hardware, and
//! a warning says so.

use std::{collections::BTreeMap, sync::Arc};

use crate::evidence::{Evidence, SaltName};

/// What one agent has published: under the salt of its mesh, and under the former one where it has that.
#[derive(Clone, Debug)]
pub(super) struct Published {
    evidence: Arc<Evidence>,
    former: Option<Arc<Evidence>>,
}

impl Published {
    pub(super) fn new(evidence: Evidence, former: Option<Box<Evidence>>) -> Self {
        Self { evidence: Arc::new(evidence), former: former.map(|former| Arc::new(*former)) }
    }

    /// What it says of itself, whatever the salt.
    pub(super) fn own(&self) -> &Evidence {
        &self.evidence
    }

    /// Its evidence with the identifiers that can be compared under this salt, all or none.
    pub(super) fn under(&self, salt: SaltName) -> Arc<Evidence> {
        match self.exact(salt) {
            Some(evidence) => Arc::clone(evidence),
            None => Arc::new(self.evidence.without_ids()),
        }
    }

    /// Its evidence under this salt, or where it has that not, under its own.
    pub(super) fn nearest(&self, salt: SaltName) -> &Evidence {
        self.exact(salt).unwrap_or(&self.evidence)
    }

    /// It has this salt.
    pub(super) fn has(&self, salt: SaltName) -> bool {
        self.exact(salt).is_some()
    }

    fn exact(&self, salt: SaltName) -> Option<&Arc<Evidence>> {
        [Some(&self.evidence), self.former.as_ref()].into_iter().flatten().find(|of| of.salt == salt)
    }
}

/// The salt that most of these have; of two that equally many have, the one whose name comes first.
pub(super) fn common<'a>(all: impl Iterator<Item = &'a Published>) -> SaltName {
    let mut counts: BTreeMap<SaltName, usize> = BTreeMap::new();
    for published in all {
        for evidence in [Some(&published.evidence), published.former.as_ref()].into_iter().flatten() {
            *counts.entry(evidence.salt).or_default() += 1;
        }
    }
    let most = counts.values().max().copied();
    counts.into_iter().find(|(_, count)| Some(*count) == most).map(|(salt, _)| salt).unwrap_or_default()
}
