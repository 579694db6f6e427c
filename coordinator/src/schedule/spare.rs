//! What installs do that have nothing left to take: they help those that still have work.
//!
//! Two ways, the cheaper first. What lies ready at a busier install and has not started is *taken back* and runs here.
//! What runs there and would end later than a fresh run here gets a *backup attempt* (`reliability.md` §4): the first
//! result that arrives is committed, the other attempt is cancelled. Neither costs a chunk's budget anything.

use std::{collections::BTreeMap, time::Duration};

use tropa_proto::id::{AgentId, AttemptId};

use super::{Action, ModelIndex, Schedule, Status, Work, forecast::Due, holdings::Stage};

/// How much later than a fresh run the other must end, as a factor (`reliability.md` §4).
const LATER: f64 = 1.2;

/// What starts sooner than this is not taken back, in seconds: it would be at the engine before the order arrives.
const TOO_LATE_S: f64 = 0.05;

/// How often those with nothing to do look again: time alone makes an attempt late.
pub(super) const LOOK: Duration = Duration::from_millis(50);

impl Schedule {
    /// Finds work for installs that are idle and found nothing that waits.
    pub(super) fn help_out(&mut self, mut idle: Vec<AgentId>, now: Duration, actions: &mut Vec<Action>) {
        idle.retain(|agent| self.is_free(agent, now));
        if idle.is_empty() {
            return;
        }
        let mut late: Vec<Due> = self
            .holdings
            .holders()
            .filter_map(|agent| self.installs.get(agent))
            .flat_map(|install| self.due(install, now))
            .filter(|due| self.may_be_helped(due))
            .collect();
        late.sort_by(|a, b| b.ends.total_cmp(&a.ends).then(a.attempt.cmp(&b.attempt)));
        let least = self.least_work(&late);
        // What has been asked back and is on its way is promised to one of them each.
        let returning = self.holdings.iter().filter(|(attempt, active)| {
            active.stage == Stage::Cancelling && self.status(attempt.chunk) == Some(Status::Open)
        });
        let mut promised = returning.count();
        for agent in idle {
            // What another of them has just taken may be on its devices.
            if !self.is_free(&agent, now) {
                continue;
            }
            if promised > 0 {
                promised -= 1;
                continue;
            }
            let soonest =
                least.iter().filter_map(|work| self.seconds(&agent, work)).fold(f64::INFINITY, f64::min);
            let mut in_question = late.iter().take_while(|due| due.ends > LATER * soonest);
            let found = in_question.position(|due| self.helps(&agent, due));
            let Some(due) = found.map(|at| late.remove(at)) else { continue };
            self.take_over(agent, due, now, actions);
        }
    }

    fn is_free(&self, agent: &AgentId, now: Duration) -> bool {
        let install = self.installs.get(agent);
        install.is_some_and(|install| !self.holdings.holds(agent) && !self.is_blocked(install, now))
    }

    /// Whether anybody may do this instead of or beside the install that holds it.
    fn may_be_helped(&self, due: &Due) -> bool {
        let Some(active) = self.holdings.get(&due.attempt) else { return false };
        let how = match active.stage {
            Stage::Recording | Stage::Recorded => true,
            Stage::Sent if !active.running => due.starts > TOO_LATE_S,
            Stage::Sent => self.backups,
            Stage::Cancelling | Stage::Checking => false,
        };
        how && self.status(due.attempt.chunk) == Some(Status::Open)
            && self.holdings.of_chunk(due.attempt).count() == 1
    }

    /// For each model among these a chunk that is no larger than any of them.
    fn least_work(&self, late: &[Due]) -> Vec<Work> {
        let mut least: BTreeMap<ModelIndex, Work> = BTreeMap::new();
        for due in late {
            let work = self.work(due.attempt.chunk);
            let least = least.entry(work.model).or_insert(work);
            least.prompt_tokens = least.prompt_tokens.min(work.prompt_tokens);
            least.output_tokens = least.output_tokens.min(work.output_tokens);
        }
        least.into_values().collect()
    }

    /// Whether a fresh run on this install would end well before that attempt.
    fn helps(&self, agent: &AgentId, due: &Due) -> bool {
        let (Some(install), Some(active)) = (self.installs.get(agent), self.holdings.get(&due.attempt))
        else {
            return false;
        };
        let chunk = due.attempt.chunk;
        let work = self.work(chunk);
        let tried = self.history.get(&chunk).is_some_and(|history| history.failed_on.contains(agent));
        let may = self.is_eligible(install, work.kind()) && self.may_begin(install, work.kind());
        if tried || active.agent == *agent || !may {
            return false;
        }
        let Some(seconds) = self.seconds(agent, &work) else { return false };
        due.ends > LATER * (self.load_seconds(install, work.kind()) + seconds)
    }

    fn take_over(&mut self, agent: AgentId, due: Due, now: Duration, actions: &mut Vec<Action>) {
        let attempt = due.attempt;
        let Some(active) = self.holdings.get_mut(&attempt) else { return };
        if active.is_unsent() {
            self.take_back(attempt, actions);
            self.retries.remove(&attempt.chunk);
            self.record(agent, attempt.chunk, now, actions);
        } else if active.running {
            self.record(agent, attempt.chunk, now, actions);
        } else {
            active.stage = Stage::Cancelling;
            actions.push(Action::Cancel(attempt, active.agent));
        }
    }
}

/// The attempts of one chunk are at most this many at a time: the first and its backup.
pub(super) const AT_A_TIME: usize = 2;

/// Says whether these attempts of one chunk may be there together.
pub(super) fn may_coexist(attempts: &[(AttemptId, AgentId)]) -> bool {
    let distinct = attempts
        .iter()
        .enumerate()
        .all(|(n, (_, agent))| attempts[..n].iter().all(|(_, before)| before != agent));
    attempts.len() <= AT_A_TIME && distinct
}
