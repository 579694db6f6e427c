//! Attempts that end without a result: what that says of the install, and what becomes of the chunk.

use std::time::Duration;

use tropa_proto::{
    failure::{Class, Reason},
    id::{AttemptId, MachineId},
    message::Refusal,
    permit::Rule,
};

use super::{Action, Doubt, Schedule, Status, Verdict, holdings::Stage, width};

impl Schedule {
    pub(super) fn on_refused(
        &mut self,
        attempt: AttemptId,
        refusal: &Refusal,
        now: Duration,
        actions: &mut Vec<Action>,
    ) {
        let Some((agent, adopted)) = self.holdings.get(&attempt).map(|active| (active.agent, active.adopted))
        else {
            if self.heard(attempt, None, now) {
                actions.push(Action::Drop(attempt));
            }
            return;
        };
        let standing = self.standing.entry(agent).or_default();
        let class = match refusal {
            // What a predecessor recorded ahead and never sent may find all places taken: that says nothing of the
            // install.
            Refusal::Busy { .. } if adopted => Class::Busy,
            Refusal::Busy { retry_ms } => {
                standing.busy(now, Duration::from_millis(u64::from(*retry_ms)), &mut self.random);
                Class::Busy
            }
            Refusal::Draining(_) | Refusal::Stale(_) => {
                standing.close(self.installs.get(&agent).map(|install| install.incarnation), now);
                Class::Busy
            }
            // It was given up before it started, because nothing was heard of this coordinator.
            Refusal::Unknown => Class::Busy,
            // The roster tells when it opens.
            Refusal::Denied(denial) if Rule::of(denial).is_some_and(Rule::passes) => {
                standing.busy(now, Duration::ZERO, &mut self.random);
                Class::Busy
            }
            Refusal::NoModel => Class::NoModel,
            Refusal::Denied(_) => Class::Denied,
        };
        self.on_ended(attempt, (class, None), now, actions);
    }

    /// An attempt is over without a result: what that says of the install, and what becomes of the chunk.
    pub(super) fn on_ended(
        &mut self,
        attempt: AttemptId,
        (class, reason): (Class, Option<Reason>),
        now: Duration,
        actions: &mut Vec<Action>,
    ) {
        let doubt = Doubt::of(class, reason);
        let Some(active) = self.holdings.remove(&attempt) else {
            if self.heard(attempt, doubt, now) && class != Class::Lost {
                actions.push(Action::Drop(attempt));
            }
            return;
        };
        let agent = active.agent;
        match doubt {
            Some(Doubt::Lost) if !active.is_unsent() => self.miss(attempt, &active, now),
            Some(Doubt::HungUp) if active.occupies() => self.unsettled(attempt, &active, now),
            Some(_) | None => {}
        }
        self.freed(agent);
        // A chunk never fails because an attempt of it was cancelled: what we cancelled runs again, and what the
        // agent has forgotten, because of a predecessor's orders or its age, is lost.
        let class = match (class, active.stage) {
            (Class::Cancelled, Stage::Returning | Stage::Cancelling) => Class::Superseded,
            (Class::Cancelled, _) => Class::Lost,
            (class, _) => class,
        };
        actions.push(Action::End(attempt, class));
        let model = self.model_of(attempt.chunk);
        // That a predecessor's attempt is gone says nothing of the install.
        if class != Class::Lost || !active.adopted {
            let standing = self.standing.entry(agent).or_default();
            standing.failed(model, class, now);
            if width::is_too_much(class)
                && let Some(search) = standing.widths.get_mut(&model)
            {
                search.failed(now);
            }
        }
        self.wakes_at = self.pauses_end(now);
        if self.status(attempt.chunk) != Some(Status::Open) {
            return;
        }
        let machine = self.installs.get(&agent).map_or(MachineId(agent), |install| install.machine).short();
        let history = self.history.entry(attempt.chunk).or_default();
        match history.after(attempt.no, class, agent, &machine) {
            Verdict::Again => self.again(attempt),
            Verdict::Over(class) => {
                self.finish(attempt.chunk);
                self.needs.fails(attempt.chunk);
                actions.push(Action::Fail(attempt.chunk, attempt, class));
                self.cancel_others(attempt, actions);
            }
        }
    }

    /// Ends an attempt that was never sent; its chunk waits again.
    pub(super) fn take_back(&mut self, attempt: AttemptId, actions: &mut Vec<Action>) {
        let Some(active) = self.holdings.remove(&attempt) else { return };
        self.freed(active.agent);
        actions.push(Action::End(attempt, Class::Superseded));
        let history = self.history.entry(attempt.chunk).or_default();
        history.last_no = history.last_no.max(attempt.no);
        if self.status(attempt.chunk) == Some(Status::Open) {
            self.again(attempt);
        }
    }

    /// The chunk of an attempt that is over runs again, wherever it may, unless another attempt of it is under way.
    pub(super) fn again(&mut self, attempt: AttemptId) {
        if self.holdings.of_chunk(attempt).next().is_none() {
            self.retries.insert(attempt.chunk);
            self.wake_all();
        }
    }
}
