//! Whose devices are taken for whom: the rule of tropa for chunks that run where their model is loaded, and for those
//! whose model may be loaded on any device of their install (`identity.md` §8).
//!
//! An install *loads* while it holds a chunk whose model is not loaded there as the chunk asks; until the roster says
//! that it is, its work may be on any device that it may use. Where a kernel lock keeps two installs apart, that is
//! its business and nothing here: [`Unplaced`](super::Unplaced) names only the others.

use std::collections::BTreeSet;

use tropa_proto::id::AgentId;

use super::{Install, Schedule, work::Kind};

impl Schedule {
    /// Whether the devices of a chunk of this kind are taken on this install by another, of those that `taken` says to
    /// be at work; without a kind, of any chunk that runs where its model is loaded.
    pub(super) fn is_kept_off(
        &self,
        install: &Install,
        kind: Option<Kind>,
        taken: impl Fn(&AgentId) -> bool,
    ) -> bool {
        if install.rivals.iter().any(&taken) {
            return true;
        }
        let unplaced = &install.unplaced;
        if unplaced.both.is_empty() {
            // As almost everywhere: the question is asked for every install with every decision.
            return false;
        }
        let loads = kind.is_some_and(|kind| unplaced.counts(kind)) || self.loads(&install.agent);
        let loading = if loads { &unplaced.both } else { &unplaced.there };
        (loads && unplaced.here.iter().any(&taken))
            || loading.iter().any(|other| taken(other) && self.loads_or_may(other))
    }

    /// Whether a chunk of this kind may be begun on an install that may work on what it has loaded.
    pub(super) fn may_begin(&self, install: &Install, kind: Kind) -> bool {
        let is_new = !install.unplaced.both.is_empty() && install.unplaced.counts(kind);
        !is_new || !self.is_kept_off(install, Some(kind), |other| self.is_taken(other))
    }

    /// An install holds something, or may hold an attempt of a predecessor.
    pub(super) fn is_taken(&self, agent: &AgentId) -> bool {
        self.holdings.holds(agent) || self.orphaned(agent)
    }

    /// Of these installs those that must not work at the same time as this one with what both hold.
    pub(super) fn colliding<'a>(
        &'a self,
        install: &'a Install,
        among: &'a BTreeSet<AgentId>,
    ) -> impl Iterator<Item = AgentId> + 'a {
        let loads = self.loads(&install.agent);
        let while_loading = install.unplaced.both.intersection(among).filter(move |other| {
            let unplaced = &install.unplaced;
            match (loads, self.loads(other)) {
                (true, true) => true,
                (true, false) => unplaced.here.contains(other),
                (false, true) => unplaced.there.contains(other),
                (false, false) => false,
            }
        });
        install.rivals.intersection(among).chain(while_loading).copied()
    }

    /// Whether an install holds a chunk that may be on any device that it may use.
    pub(super) fn loads(&self, agent: &AgentId) -> bool {
        let counts = |kind| self.installs.get(agent).is_none_or(|install| install.unplaced.counts(kind));
        self.holdings.of(agent).iter().any(|(attempt, _)| counts(self.work(attempt.chunk).kind()))
    }

    /// The same, where it is not even known what it holds.
    fn loads_or_may(&self, agent: &AgentId) -> bool {
        !self.holdings.holds(agent) || self.loads(agent)
    }
}
