//! What installs do that have nothing left to take: they help those that still have work.
//!
//! Two ways, the cheaper first. What lies ready at a busier install and has not started is *taken back* and runs here.
//! What runs there and would end later than a fresh run here gets a *backup attempt* (`reliability.md` §4): the first
//! result that arrives is committed, the other attempt is cancelled. Neither costs a chunk's budget anything.

use std::{collections::BTreeMap, time::Duration};

use tropa_proto::id::{AgentId, AttemptId};

use super::{
    Action, ModelIndex, Schedule, Status, Work,
    forecast::Due,
    holdings::{Active, Stage},
    seen::Seen,
};

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
        let (mut late, least) = self.in_question(now);
        let soonest: Vec<f64> = idle.iter().map(|agent| self.soonest(agent, &least)).collect();
        let first = soonest.iter().copied().fold(f64::INFINITY, f64::min);
        // Most often nothing is late, or little, so that little is looked at closely and sorted.
        late.retain(|due| due.ends > LATER * first && self.holdings.of_chunk(due.attempt).count() == 1);
        late.sort_by(|a, b| b.ends.total_cmp(&a.ends).then(a.attempt.cmp(&b.attempt)));
        let mut promised = self.returning();
        let mut has_taken = false;
        for (agent, soonest) in idle.into_iter().zip(soonest) {
            if late.is_empty() {
                return;
            }
            // What another of them has just taken may be on its devices.
            if has_taken && !self.is_free(&agent, now) {
                continue;
            }
            if promised > 0 {
                promised -= 1;
                continue;
            }
            let mut in_question = late.iter().take_while(|due| due.ends > LATER * soonest);
            let found = in_question.position(|due| self.helps(&agent, due));
            let Some(due) = found.map(|at| late.remove(at)) else { continue };
            self.take_over(agent, due, now, actions);
            has_taken = true;
        }
    }

    fn is_free(&self, agent: &AgentId, now: Duration) -> bool {
        self.seen(agent).is_some_and(|seen| !seen.holds_any() && !self.is_blocked(&seen, now))
    }

    /// What anybody might do instead of or beside the install that holds it, and for each model among these chunks
    /// that are no larger than any of them.
    fn in_question(&self, now: Duration) -> (Vec<Due>, Vec<Work>) {
        let mut all = Vec::new();
        // A chunk of no known size is no measure for others.
        let mut least: BTreeMap<(ModelIndex, bool), Work> = BTreeMap::new();
        for seen in self.all_seen().filter(Seen::holds_any) {
            self.line_up(&seen, now, |due, active| {
                if !self.may_be_helped(&due, active, now) {
                    return;
                }
                all.push(due);
                let work = self.work(due.attempt.chunk);
                let least = least.entry((work.model, work.is_sized())).or_insert(work);
                least.prompt_tokens = least.prompt_tokens.min(work.prompt_tokens);
                least.output_tokens = least.output_tokens.min(work.output_tokens);
            });
        }
        (all, least.into_values().collect())
    }

    /// Whether what an install holds may be done elsewhere as well.
    fn may_be_helped(&self, due: &Due, active: &Active, now: Duration) -> bool {
        let how = match active.stage {
            // What was given in this moment stays where it is: its row would be written for nothing.
            Stage::Recording => active.since < now,
            Stage::Recorded => true,
            Stage::Sent if !active.running => due.starts > TOO_LATE_S,
            Stage::Sent => self.backups,
            Stage::Returning | Stage::Cancelling | Stage::Checking => false,
        };
        how && self.status(due.attempt.chunk) == Some(Status::Open)
    }

    /// Seconds in which an install can do the smallest of these.
    fn soonest(&self, agent: &AgentId, least: &[Work]) -> f64 {
        let standing = self.standing.get(agent);
        let seconds = least.iter().filter_map(|work| self.seconds(standing?, work));
        seconds.fold(f64::INFINITY, f64::min)
    }

    /// What has been asked back and is on its way: it is promised to one idle install each.
    fn returning(&self) -> usize {
        let held = self.holdings.by_agent().flat_map(|(_, held)| held);
        let returns = |(attempt, active): &&(AttemptId, Active)| {
            matches!(active.stage, Stage::Returning | Stage::Cancelling)
                && self.status(attempt.chunk) == Some(Status::Open)
        };
        held.filter(returns).count()
    }

    /// Whether a fresh run on this install would end well before that attempt.
    fn helps(&self, agent: &AgentId, due: &Due) -> bool {
        let (Some(seen), Some(active)) = (self.seen(agent), self.holdings.get(&due.attempt)) else {
            return false;
        };
        let chunk = due.attempt.chunk;
        let work = self.work(chunk);
        let tried = self.history.get(&chunk).is_some_and(|history| history.failed_on.contains(agent));
        let may = self.is_eligible(&seen, work.kind()) && self.may_begin(seen.install, work.kind());
        if tried || active.agent == *agent || !may {
            return false;
        }
        let Some(seconds) = self.seconds(seen.standing, &work) else { return false };
        due.ends > LATER * (self.load_seconds(&seen, work.kind()) + seconds)
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
            active.stage = Stage::Returning;
            actions.push(Action::TakeBack(attempt, active.agent));
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
