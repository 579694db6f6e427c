//! An install with what has been learned of it and what it holds, side by side.
//!
//! Forecasts ask for every install of the mesh after every end. The three maps that answer are in the order of the
//! agents, so they are gone through together, and nothing is looked up.

use tropa_proto::id::{AgentId, AttemptId};

use super::{Install, Schedule, holdings::Active, standing::Standing, width::Search};

/// An install of the roster at this moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    pub(super) install: &'a Install,
    pub(super) standing: &'a Standing,
    /// What takes a place there, or will, in order.
    pub(super) held: &'a [(AttemptId, Active)],
}

impl Seen<'_> {
    pub(super) fn agent(&self) -> &AgentId {
        &self.install.agent
    }

    pub(super) fn holds_any(&self) -> bool {
        !self.held.is_empty()
    }

    /// It has turned out to take nothing in this run of its agent.
    pub(super) fn is_closed(&self) -> bool {
        self.standing.closed_for == Some(self.install.incarnation)
    }

    /// How many chunks it may hold at the engine: what was declared, else what is being tried or was found with the
    /// model that it has loaded.
    pub(super) fn width(&self) -> usize {
        if self.install.width > 0 { self.install.width } else { self.search().map_or(1, Search::width) }
    }

    /// How many it may hold soon, if more than it holds now pays with so many that wait: their rows are written
    /// meanwhile.
    pub(super) fn next_width(&self, waiting: u64) -> usize {
        let search = self.search().filter(|search| self.install.width == 0 && waiting >= search.wants());
        search.map_or(0, Search::next_width)
    }

    fn search(&self) -> Option<&Search> {
        let last = self.standing.kind.map(|kind| kind.model);
        self.standing.widths.get(&last.or_else(|| self.install.models.first().copied())?)
    }
}

impl Schedule {
    /// One install, if the roster has it.
    pub(super) fn seen(&self, agent: &AgentId) -> Option<Seen<'_>> {
        let install = self.installs.get(agent)?;
        Some(Seen { install, standing: self.standing.get(agent)?, held: self.holdings.of(agent) })
    }

    /// All of the roster, in order.
    pub(super) fn all_seen(&self) -> impl Iterator<Item = Seen<'_>> {
        let mut standing = self.standing.iter();
        let mut held = self.holdings.by_agent().peekable();
        self.installs.iter().filter_map(move |(agent, install)| {
            // Whoever is in the roster has a standing; others may have one, or hold something.
            let (_, standing) = standing.find(|(other, _)| *other == agent)?;
            while held.next_if(|(other, _)| *other < agent).is_some() {}
            let held = held.next_if(|(other, _)| *other == agent).map_or(&[][..], |(_, held)| held);
            Some(Seen { install, standing, held })
        })
    }
}
