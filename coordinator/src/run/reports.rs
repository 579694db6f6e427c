//! What agents report of attempts, as events for the scheduler.

use tropa_proto::{
    failure::Reason,
    id::AttemptId,
    message::{Place, Refusal},
    permit::Rule,
    proof,
};

use super::{After, Loop};
use crate::{
    attempt::Report,
    exit::Failed,
    journal::Step,
    liveness::Input,
    schedule::{Event, Sample},
};

impl Loop<'_> {
    pub(super) fn on_report(&mut self, attempt: AttemptId, report: Report) -> Result<(), Failed> {
        let agent = self.attempts.get(&attempt).map(|live| live.agent);
        if let Some(agent) = agent
            && !matches!(report, Report::Detached(..) | Report::Lost(_))
        {
            self.alive(Input::Heard(agent))?;
        }
        let taken = self.take_report(attempt, report);
        if let Some(agent) = agent.filter(|agent| !self.schedule.awaits(agent)) {
            self.alive(Input::Idle(agent))?;
        }
        taken
    }

    fn take_report(&mut self, attempt: AttemptId, report: Report) -> Result<(), Failed> {
        match report {
            Report::Accepted(place) => {
                if let Some(live) = self.attempts.get_mut(&attempt) {
                    live.note = match &place {
                        Place::Running | Place::Next | Place::Checking => String::new(),
                        Place::Waiting(holder) => format!("waiting for {}", &**holder),
                        Place::Settling => "waiting for an old request to end".to_owned(),
                    };
                }
                if place == Place::Running {
                    let now_ms = self.run.clock.wall_ms();
                    let started = Step::Started { chunk: attempt.chunk, no: attempt.no, now_ms };
                    self.submit(started, After::Nothing);
                }
                self.tell(Event::Accepted(attempt, place))
            }
            Report::Refused(refusal) => {
                if let (Refusal::Denied(rule), Some(live)) = (&refusal, self.attempts.get(&attempt))
                    && !Rule::of(rule).is_some_and(Rule::passes)
                {
                    self.denials.insert(live.agent, rule.to_string());
                }
                self.note(attempt, None, refusal_text(&refusal));
                self.attempts.remove(&attempt);
                self.tell(Event::Refused(attempt, refusal))
            }
            Report::Tokens(count) => {
                if let Some(live) = self.attempts.get_mut(&attempt) {
                    live.tokens = u64::from(count);
                }
                self.tell(Event::Tokens(attempt, count))
            }
            Report::Finished(outcome, body) => {
                if let Some(wrong) = self.widths.wrong(self.schedule.model_of(attempt.chunk), &body) {
                    self.note(attempt, Some(Reason::BadOutput), wrong);
                    self.tell(Event::Failed(attempt, Reason::BadOutput))?;
                    self.attempts.remove(&attempt);
                    return Ok(());
                }
                proof::event("result", &attempt, "");
                proof::passes("coordinator.result");
                let sample = Sample::of(&outcome);
                self.results.insert(attempt, (outcome, body));
                self.tell(Event::Measured(attempt, sample))?;
                self.tell(Event::Finished(attempt))
            }
            Report::Failed(failure) => {
                self.note(attempt, Some(failure.reason), failure.detail.to_string());
                self.tell(Event::Failed(attempt, failure.reason))?;
                self.attempts.remove(&attempt);
                Ok(())
            }
            Report::Detached(why, partial) => {
                tracing::debug!(?attempt, why, "a stream broke off");
                if self.results.contains_key(&attempt) {
                    // The result is here; only its acknowledgement did not get through.
                    return Ok(());
                }
                self.partials.extend(partial.map(|partial| (attempt, partial)));
                self.tell(Event::Detached(attempt))
            }
            Report::Lost(why) => {
                self.note(attempt, None, why);
                self.attempts.remove(&attempt);
                if self.results.contains_key(&attempt) {
                    // The result is here; only its acknowledgement did not get through.
                    return Ok(());
                }
                self.tell(Event::Lost(attempt))
            }
        }
    }
}

fn refusal_text(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Busy { .. } => "the agent has no free place".to_owned(),
        Refusal::NoModel => "the install does not have the model".to_owned(),
        Refusal::Draining(why) => format!("the agent is draining: {}", &**why),
        Refusal::Denied(rule) => format!("the agent's policy forbids it: {}", &**rule),
        Refusal::Stale(_) => "the agent has been restarted".to_owned(),
        Refusal::Unknown => "the agent gave it up before it started".to_owned(),
    }
}
