//! What becomes of a `Run` that arrives: it is taken in, or refused with the first reason that stands against it.

use tokio::time::Instant;
use tropa_proto::{
    bounded::Text,
    id::Incarnation,
    message::Refusal,
    permit::{Denial, Rule},
    proof::{Bug, planted},
};

use super::{
    Action, Admission, Key, RETRY_MS, Unfit,
    state::{Lane, Queued, State},
};

impl Admission {
    pub(super) fn run(
        &mut self,
        key: Key,
        incarnation: Incarnation,
        asked: Result<(String, usize), Unfit>,
        room: bool,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if incarnation != self.incarnation {
            actions.push(Action::Refuse(key, Refusal::Stale(self.incarnation)));
            return;
        }
        if let Some(state) = self.known.get(&key)
            && !planted(Bug::RunNotIdempotent)
        {
            actions.push(self.present(key, state));
            return;
        }
        let at_once = asked.as_ref().map_or(1, |(_, at_once)| *at_once);
        let denial = if let Err(Unfit::Denied(denial)) = &asked { Some(denial) } else { None };
        let refusal = match denial {
            Some(denial) => Some(Refusal::Denied(denial.text())),
            None => self.refusal(&key, at_once, room, now),
        };
        if let Some(refusal) = refusal {
            return self.refuse(key, refusal, actions);
        }
        let runner = match asked {
            Ok((runner, _)) => runner,
            Err(Unfit::Failed(failure)) => return self.fail(key, failure, actions),
            Err(Unfit::Denied(_)) => return,
        };
        let waits = (!matches!(self.lane, Lane::Held { .. })).then_some(now);
        self.follow_newest(&key, &runner, at_once);
        self.known.insert(key, State::Queued(Queued { runner, at_once, waits }));
        self.held.insert(key);
        self.queues.entry(key.0).or_default().push_back(key.1);
        self.leases.begin(key.0, key.1.job, now);
    }

    /// What stands against one more attempt that its policy permits, in the order in which it would stand longest.
    fn refusal(&mut self, key: &Key, at_once: usize, room: bool, now: Instant) -> Option<Refusal> {
        let full = |why: &str| Some(Refusal::Draining(Text::cut(why)));
        if let Some(denial) = &self.shut {
            Some(Refusal::Denied(denial.text()))
        } else if let Some(why) = &self.draining {
            full(why)
        } else if !room {
            full("results wait to be fetched, and no more fit in memory")
        } else if let Some(refusal) = self.health.refusal() {
            Some(refusal)
        } else if !self.rate.has_room(self.queued(), now) {
            let why = "as many chunks have started as may in an hour".to_owned();
            Some(Refusal::Denied(Denial { rule: Rule::Rate, why }.text()))
        } else if !self.has_place(key, at_once) {
            Some(Refusal::Busy { retry_ms: RETRY_MS })
        } else if !self.can_remember() {
            full("no more attempts can be remembered before results are fetched")
        } else {
            None
        }
    }
}
