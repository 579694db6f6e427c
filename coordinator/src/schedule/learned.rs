//! What a job learns of its installs while it runs: how fast they are, and how many chunks they gain from at once.

use std::time::Duration;

use tropa_proto::id::{AgentId, AttemptId};

use super::{
    ModelIndex, Schedule,
    pace::{Pace, Sample},
    width::{Search, Width},
};

impl Schedule {
    /// How fast each install has turned out to be in this job with each model, and the width that was found, in order.
    pub fn measured(&self) -> impl Iterator<Item = (AgentId, ModelIndex, Pace, Option<Width>)> {
        self.standing.iter().flat_map(|(agent, standing)| {
            let measured = standing.paces.iter().filter(move |(model, _)| standing.measured.contains(*model));
            let width = move |model| standing.widths.get(model).and_then(Search::found);
            measured.map(move |(model, pace)| (*agent, *model, *pace, width(model)))
        })
    }

    /// How fast an install is with a model, where this job or an earlier one has seen it.
    #[must_use]
    pub fn pace(&self, agent: AgentId, model: ModelIndex) -> Option<&Pace> {
        self.standing.get(&agent)?.paces.get(&model)
    }

    /// How many attempts may be at the engine together with this one, itself included; at least 1.
    #[must_use]
    pub fn at_once(&self, attempt: AttemptId) -> u16 {
        let holder = self.holdings.get(&attempt).and_then(|active| self.seen(&active.agent));
        holder.map_or(1, |seen| u16::try_from(seen.width()).unwrap_or(u16::MAX))
    }

    pub(super) fn on_measured(&mut self, attempt: AttemptId, sample: &Sample, now: Duration) {
        let Some(active) = self.holdings.get(&attempt) else { return };
        let (agent, began) = (active.agent, active.running_since);
        let work = self.work(attempt.chunk);
        self.sizes.learn(&work, sample.prompt_tokens, sample.output_tokens);
        self.typical.entry(work.model).or_default().learn(sample);
        let standing = self.standing.entry(agent).or_default();
        standing.measured.insert(work.model);
        let pace = standing.paces.entry(work.model).or_default();
        pace.learn(sample);
        if self.installs.get(&agent).is_some_and(|install| install.width == 0) {
            let held = self.holdings.of(&agent).iter();
            let others = held.filter(|(other, active)| *other != attempt && active.running);
            let running: Vec<Duration> = others.filter_map(|(_, active)| active.running_since).collect();
            let search = standing.widths.entry(work.model).or_insert_with(|| Search::new(Duration::ZERO));
            let enough = self.waiting.total().chunks >= search.wants() * self.installs.len() as u64;
            search.ended(sample, began, (pace, &running), enough, now);
            self.woken.insert(agent);
        }
    }

    /// An earlier job has measured this; what the present one measures itself counts more.
    pub(super) fn on_remembered(
        &mut self,
        (agent, model): (AgentId, ModelIndex),
        pace: Pace,
        width: Option<Width>,
    ) {
        self.typical.entry(model).or_insert(pace);
        let standing = self.standing.entry(agent).or_default();
        standing.paces.entry(model).or_insert(pace);
        if let Some(width) = width {
            standing.widths.entry(model).or_insert_with(|| Search::remembered(width, Duration::ZERO));
        }
    }
}
