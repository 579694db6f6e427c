//! The actions of the scheduler, done: steps for the journal, streams to agents, results and failures committed.

use anyhow::anyhow;
use tropa_proto::{
    bounded::{Blob, Text},
    failure::Class,
    id::{AgentId, AttemptId, ChunkIndex, Incarnation, MachineId},
    message::Run,
    proof::{self, Bug, planted},
};

use super::{After, Live, Loop};
use crate::{
    attempt::{Attempt, Report},
    exit::{Exit, Failed, OrExit as _},
    journal::{Done, Effect, Filled, Step, Token},
    limits::Limits,
    liveness::Input,
    schedule::{Action, Event, ModelIndex},
};

impl Loop<'_> {
    /// Tells the scheduler and does what it says.
    pub(super) fn tell(&mut self, event: Event) -> Result<(), Failed> {
        let now = self.now();
        for action in self.schedule.handle(event, now) {
            match action {
                Action::Unguarded(agent, rivals) => {
                    self.submit(Step::Unguarded { agent, rivals }, After::Nothing);
                }
                Action::Record(attempt, agent, incarnation) => self.record(attempt, agent, incarnation),
                Action::Send(attempt, agent) => self.send(attempt, agent)?,
                Action::Cancel(attempt, _) => {
                    if let Some(live) = self.attempts.get(&attempt) {
                        live.attempt.cancel();
                    }
                }
                Action::TakeBack(attempt, _) => {
                    if let Some(live) = self.attempts.get(&attempt) {
                        live.attempt.take_back();
                    }
                }
                Action::End(attempt, class) => self.ended(attempt, class),
                Action::Fail(chunk, attempt, class) => self.fail(chunk, attempt, class),
                Action::Recall(attempt, agent) => {
                    let recalled = self.streams.recall(agent, attempt);
                    self.hold(attempt, agent, recalled)?;
                }
                Action::Reattach(agent) => self.ask(agent)?,
                Action::Fetch(attempt, agent) => {
                    let partial = self.partials.remove(&attempt);
                    let fetched = self.streams.fetch(agent, attempt, partial);
                    self.hold(attempt, agent, fetched)?;
                }
                Action::Commit(attempt) => self.commit(attempt),
                Action::Fill(chunk) => self.fill(chunk)?,
                Action::FailNeed(chunk, culprit) => {
                    let why = self.run.journal.why_need_failed(culprit).or_exit(Exit::Io)?;
                    self.fail_untried(chunk, Class::NeedFailed, why);
                }
                Action::Drop(attempt) => {
                    self.results.remove(&attempt);
                    // What came before it, and made it late, is on disk before it is acknowledged.
                    self.ended(attempt, Class::Superseded);
                }
            }
        }
        // Whatever was to be said of them has been handed to the journal.
        self.details.clear();
        Ok(())
    }

    fn record(&mut self, attempt: AttemptId, agent: AgentId, incarnation: Incarnation) {
        let machine = self.installs.get(&agent).map_or(MachineId(agent), |install| install.machine);
        let step = Step::Attempt {
            chunk: attempt.chunk,
            no: attempt.no,
            agent,
            incarnation,
            machine,
            lane: self.lanes.get(&agent).cloned().unwrap_or_default(),
            now_ms: self.run.clock.wall_ms(),
        };
        self.submit(step, After::Recorded(attempt));
    }

    fn send(&mut self, attempt: AttemptId, agent: AgentId) -> Result<(), Failed> {
        proof::passes("coordinator.send");
        proof::event("send", &attempt, agent.short());
        let chunk = self.run.journal.chunk(attempt.chunk).or_exit(Exit::Io)?;
        let index = self.model_named(&chunk.model);
        let Some(install) = self.installs.get(&agent) else {
            let lost = (attempt, Report::Lost("the agent has left".to_owned()));
            // The channel holds far more than the attempts of one turn.
            let _ = self.reports.try_send(lost);
            return Ok(());
        };
        let at_once = self.schedule.at_once(attempt);
        let warm = index.is_some_and(|index| install.warm.contains(&index));
        let pace = index.and_then(|index| self.schedule.pace(agent, index));
        let limits = Limits::of(&chunk.body, warm, pace).beside(at_once);
        let pinned = index.and_then(|ModelIndex(index)| self.run.models.get(usize::from(index)));
        let run = Run {
            attempt,
            incarnation: install.incarnation,
            endpoint: chunk.endpoint,
            model: Text::cut(&chunk.model),
            fingerprint: pinned.map_or([0; 32], |pinned| pinned.fingerprint),
            deadline_ms: limits.deadline_ms,
            first_token_ms: limits.first_token_ms,
            idle_ms: limits.idle_ms,
            show_text: false,
            at_once,
            body: Blob::new(chunk.body).or_exit(Exit::Input)?,
        };
        let started = self.streams.start(agent, run);
        self.hold(attempt, agent, started)?;
        proof::passes("coordinator.sent");
        Ok(())
    }

    fn hold(&mut self, attempt: AttemptId, agent: AgentId, held: Attempt) -> Result<(), Failed> {
        self.attempts.insert(attempt, Live { attempt: held, agent, tokens: 0, note: String::new() });
        self.alive(Input::Wanted(agent))
    }

    fn ended(&mut self, attempt: AttemptId, class: Class) {
        let silent = || (None, "the agent is gone, or silent for too long".to_owned());
        let known = self.details.get(&attempt).cloned();
        let (reason, detail) =
            known.unwrap_or_else(|| if class == Class::Lost { silent() } else { Default::default() });
        self.partials.remove(&attempt);
        proof::event("ended", &attempt, class.name());
        let held = self.attempts.remove(&attempt);
        let step = Step::Ended {
            chunk: attempt.chunk,
            no: attempt.no,
            class,
            reason,
            detail,
            now_ms: self.run.clock.wall_ms(),
        };
        // The agent forgets a failure only when it is on disk: a successor that asks again must hear it again.
        self.submit(step, After::Ended(attempt, class, held.map(|live| live.attempt)));
    }

    /// Makes the request of a chunk that builds on others.
    fn fill(&mut self, chunk: ChunkIndex) -> Result<(), Failed> {
        match self.run.journal.fill(chunk).or_exit(Exit::Io)? {
            Filled::Body(body) => {
                self.submit(Step::Request { chunk, body }, After::Filled(chunk));
                Ok(())
            }
            Filled::Failed(class, why) => {
                self.fail_untried(chunk, class, why);
                self.tell(Event::Unfit(chunk))
            }
        }
    }

    /// Commits a failure that no attempt decided.
    fn fail_untried(&mut self, chunk: ChunkIndex, class: Class, detail: String) {
        self.submit(Step::Failed { chunk, no: None, class, detail }, After::Untried(chunk));
    }

    fn fail(&mut self, chunk: ChunkIndex, attempt: AttemptId, class: Class) {
        let (_, detail) = self.details.remove(&attempt).unwrap_or_default();
        let after = After::Closed { chunk, attempt, done: false, tokens: 0, agent: None };
        self.submit(Step::Failed { chunk, no: Some(attempt.no), class, detail }, after);
    }

    fn commit(&mut self, attempt: AttemptId) {
        let Some((outcome, body)) = self.results.remove(&attempt) else { return };
        let fingerprint = self.fingerprint_of(attempt.chunk);
        if planted(Bug::AckBeforeCommit)
            && let Some(live) = self.attempts.get(&attempt)
        {
            live.attempt.acknowledge();
        }
        let agent = self.attempts.get(&attempt).map(|live| live.agent);
        let after = After::Closed {
            chunk: attempt.chunk,
            attempt,
            done: true,
            tokens: u64::from(outcome.output_tokens),
            agent,
        };
        let done = Box::new(Done { fingerprint, outcome: *outcome, body });
        let step =
            Step::Result { chunk: attempt.chunk, no: attempt.no, done, now_ms: self.run.clock.wall_ms() };
        self.submit(step, after);
    }

    pub(super) fn after(&mut self, after: After, effect: Effect) -> Result<(), Failed> {
        if effect == Effect::Refused {
            // The journal would lack what the rest of the run believes to be in it.
            let error = anyhow!("the journal refused a step: it breaks a rule, which is a bug");
            return Err(error).or_exit(Exit::Io);
        }
        match after {
            After::Nothing => Ok(()),
            After::Ended(attempt, class, held) => {
                proof::event("ended", &attempt, class);
                if let Some(held) = held {
                    held.acknowledge();
                }
                Ok(())
            }
            After::Recorded(attempt) => {
                proof::event("record", &attempt, "");
                self.tell(Event::Recorded(attempt))
            }
            After::Closed { chunk, attempt, done, tokens, agent } => {
                if effect == Effect::First {
                    proof::event("commit", &attempt, if done { "done" } else { "failed" });
                }
                proof::passes("coordinator.committed");
                if let Some(live) = self.attempts.remove(&attempt) {
                    live.attempt.acknowledge();
                }
                if effect == Effect::First {
                    self.count(done, tokens, agent);
                    self.run.output.committed(self.run.journal, chunk).or_exit(Exit::Io)?;
                }
                proof::passes("coordinator.acknowledged");
                self.tell(Event::Committed(chunk))
            }
            After::Filled(chunk) => self.tell(Event::Filled(chunk)),
            After::Untried(chunk) => {
                if effect == Effect::First {
                    self.count(false, 0, None);
                    self.run.output.committed(self.run.journal, chunk).or_exit(Exit::Io)?;
                }
                self.tell(Event::Committed(chunk))
            }
        }
    }

    pub(super) fn submit(&mut self, step: Step, after: After) {
        let token = Token(self.next_token);
        self.next_token += 1;
        if !matches!(after, After::Nothing) {
            self.tokens.insert(token, after);
        }
        self.backlog.push_back((token, step));
        self.flush();
    }

    /// Hands steps to the writer in order, as many as it takes.
    pub(super) fn flush(&mut self) {
        while let Some((token, step)) = self.backlog.pop_front() {
            if let Err(step) = self.writer.submit(token, step) {
                self.backlog.push_front((token, *step));
                break;
            }
        }
    }

    fn model_named(&self, name: &str) -> Option<ModelIndex> {
        let named = (0..).zip(&self.run.models).find(|(_, pinned)| pinned.name.eq_ignore_ascii_case(name));
        named.map(|(index, _)| ModelIndex(index))
    }

    fn fingerprint_of(&self, chunk: ChunkIndex) -> [u8; 32] {
        let ModelIndex(index) = self.schedule.model_of(chunk);
        self.run.models.get(usize::from(index)).map_or([0; 32], |pinned| pinned.fingerprint)
    }
}
