//! What a job learns of its installs while it runs: how fast they are, and how many chunks they gain from at once.

use std::time::Duration;

use tropa_proto::id::{AgentId, AttemptId};

use super::{
    Install, ModelIndex, Schedule,
    pace::{Pace, Sample},
    width::{Search, Width},
};

impl Schedule {
    /// How fast each install has turned out to be in this job with each model, and the width that was found, in order.
    pub fn measured(&self) -> impl Iterator<Item = (AgentId, ModelIndex, Pace, Option<Width>)> {
        let measured = self.paces.iter().filter(|(key, _)| self.measured.contains(key));
        measured.map(|(key, pace)| (key.0, key.1, *pace, self.widths.get(key).and_then(Search::found)))
    }

    /// How fast an install is with a model, where this job or an earlier one has seen it.
    #[must_use]
    pub fn pace(&self, agent: AgentId, model: ModelIndex) -> Option<&Pace> {
        self.paces.get(&(agent, model))
    }

    /// How many attempts may be at the engine together with this one, itself included; at least 1.
    #[must_use]
    pub fn at_once(&self, attempt: AttemptId) -> u16 {
        let install = self.holdings.get(&attempt).and_then(|active| self.installs.get(&active.agent));
        install.map_or(1, |install| u16::try_from(self.width_of(install)).unwrap_or(u16::MAX))
    }

    /// How many chunks an install may hold at the engine: what was declared, else what is being tried or was found with
    /// the model that it has loaded.
    pub(super) fn width_of(&self, install: &Install) -> usize {
        if install.width > 0 { install.width } else { self.search_at(install).map_or(1, Search::width) }
    }

    /// How many it may hold soon, if more than it holds now pays: their rows are written meanwhile.
    pub(super) fn next_width_of(&self, install: &Install) -> usize {
        let search = self.search_at(install).filter(|_| install.width == 0);
        let enough = |search: &&Search| self.waiting.total().chunks >= search.wants();
        search.filter(enough).map_or(0, Search::next_width)
    }

    fn search_at(&self, install: &Install) -> Option<&Search> {
        let last = self.standing.get(&install.agent).and_then(|standing| standing.kind);
        let model = last.map(|kind| kind.model).or_else(|| install.models.first().copied())?;
        self.widths.get(&(install.agent, model))
    }

    pub(super) fn on_measured(&mut self, attempt: AttemptId, sample: &Sample, now: Duration) {
        let Some(active) = self.holdings.get(&attempt) else { return };
        let (agent, began) = (active.agent, active.running_since);
        let work = self.work(attempt.chunk);
        self.sizes.learn(&work, sample.prompt_tokens, sample.output_tokens);
        self.paces.entry((agent, work.model)).or_default().learn(sample);
        self.typical.entry(work.model).or_default().learn(sample);
        self.measured.insert((agent, work.model));
        let measures = self.installs.get(&agent).is_some_and(|install| install.width == 0);
        if let Some(pace) = self.paces.get(&(agent, work.model)).filter(|_| measures) {
            let others =
                self.holdings.of(&agent).filter(|(other, active)| **other != attempt && active.running);
            let running: Vec<Duration> = others.filter_map(|(_, active)| active.running_since).collect();
            let search =
                self.widths.entry((agent, work.model)).or_insert_with(|| Search::new(Duration::ZERO));
            let enough = self.waiting.total().chunks >= search.wants() * self.installs.len() as u64;
            search.ended(sample, began, (pace, &running), enough, now);
            self.woken.insert(agent);
        }
    }

    /// An earlier job has measured this; what the present one measures itself counts more.
    pub(super) fn on_remembered(&mut self, key: (AgentId, ModelIndex), pace: Pace, width: Option<Width>) {
        self.paces.entry(key).or_insert(pace);
        self.typical.entry(key.1).or_insert(pace);
        if let Some(width) = width {
            self.widths.entry(key).or_insert_with(|| Search::remembered(width, Duration::ZERO));
        }
    }
}
