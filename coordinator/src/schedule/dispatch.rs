//! Who gets what next: the hard rule, then an order of preference that ends in the id.

use std::{cmp::Reverse, collections::BTreeSet, time::Duration};

use tropa_proto::id::{AgentId, AttemptId, ChunkIndex};

use super::{
    Action, Schedule,
    forecast::Outlook,
    holdings::{Active, Stage},
    seen::Seen,
    spare::LOOK,
    waiting::Sum,
    work::Kind,
};

/// Attempts recorded ahead of need on one install, at most. At 0.3 ms a chunk and 8 ms a sync 27 are enough; more
/// only delays the moment when a slow install's share can go elsewhere.
const MAX_AHEAD: usize = 32;

/// Chunks that wait for each install below which one that is not known gets no second chunk ahead: by then a slow one
/// could keep what others need.
const EXPLORES_BELOW: u64 = 4;

struct Places {
    send: usize,
    record: usize,
}

/// What waits for an install.
enum Next {
    /// This chunk.
    Take(ChunkIndex),
    /// This chunk, but others will have finished all that waits sooner.
    Leave(ChunkIndex),
    /// Nothing that it could run.
    Nothing,
}

impl Schedule {
    /// Sends what is recorded and records what may come next, for the installs that something has changed for; those
    /// that find nothing help others.
    pub(super) fn dispatch(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.paused || self.stopped {
            return;
        }
        let look = self.look_at.is_some_and(|at| at <= now);
        if look {
            self.look_at = None;
            self.woken.append(&mut self.idle);
        }
        if self.woken.is_empty() {
            return;
        }
        self.refresh_rate(now);
        let woken = std::mem::take(&mut self.woken);
        let (mut spare, mut left) = (Vec::new(), Vec::new());
        let mut outlook = Outlook::default();
        for agent in self.by_preference(woken) {
            self.idle.remove(&agent);
            let mut places = self.free_places(&agent, now);
            self.send_recorded(agent, places.send, now, actions);
            while places.record > 0 {
                match self.next_chunk(&agent, &mut outlook, now) {
                    Next::Take(chunk) => {
                        outlook = Outlook::default();
                        self.take_out(chunk);
                        self.record(agent, chunk, now, actions);
                        places.record -= 1;
                    }
                    Next::Leave(chunk) => {
                        self.idle.insert(agent);
                        left.push((agent, chunk));
                        break;
                    }
                    Next::Nothing => {
                        self.idle.insert(agent);
                        spare.push(agent);
                        break;
                    }
                }
            }
        }
        if self.holdings.is_empty() {
            self.begin_one_of(left, now, actions);
        } else if !spare.is_empty() {
            self.help_out(spare, now, actions);
        }
        if !self.idle.is_empty() && self.look_at.is_none() && !self.holdings.is_empty() {
            self.look_at = Some(now + LOOK);
        }
    }

    fn send_recorded(&mut self, agent: AgentId, at_most: usize, now: Duration, actions: &mut Vec<Action>) {
        let recorded = self.holdings.of(&agent).iter().filter(|(_, active)| active.stage == Stage::Recorded);
        let recorded: Vec<AttemptId> = recorded.map(|(attempt, _)| *attempt).take(at_most).collect();
        for attempt in recorded {
            if let Some(active) = self.holdings.get_mut(&attempt) {
                (active.stage, active.since) = (Stage::Sent, now);
                actions.push(Action::Send(attempt, agent));
            }
        }
    }

    /// Nothing runs, and each of these leaves its chunk to the others: whoever would end first begins. The rule counts
    /// with chunks of the mean size, so each may be right that the others finish as many while it does a longer one.
    fn begin_one_of(&mut self, left: Vec<(AgentId, ChunkIndex)>, now: Duration, actions: &mut Vec<Action>) {
        let ends = |(agent, chunk): &(AgentId, ChunkIndex)| {
            let (seen, work) = (self.seen(agent)?, self.work(*chunk));
            Some(self.load_seconds(&seen, work.kind()) + self.seconds(seen.standing, &work)?)
        };
        let ends = |one: &(AgentId, ChunkIndex)| ends(one).unwrap_or(f64::INFINITY);
        let first = left.into_iter().min_by(|a, b| ends(a).total_cmp(&ends(b)));
        if let Some((agent, chunk)) = first {
            self.take_out(chunk);
            self.record(agent, chunk, now, actions);
        }
    }

    /// Issues the next attempt of a chunk.
    pub(super) fn record(
        &mut self,
        agent: AgentId,
        chunk: ChunkIndex,
        now: Duration,
        actions: &mut Vec<Action>,
    ) {
        let Some(install) = self.installs.get(&agent) else { return };
        let incarnation = install.incarnation;
        let first = AttemptId { job: self.job, chunk, no: 0 };
        let beside = self.holdings.of_chunk(first).map(|attempt| attempt.no).max().unwrap_or(0);
        let last = self.history.get(&chunk).map_or(0, |history| history.last_no).max(beside);
        let attempt = AttemptId { no: last + 1, ..first };
        actions.push(Action::Record(attempt, agent, incarnation));
        self.hold(attempt, Active::recording(agent, incarnation, now));
    }

    /// An install holds this from now on: its model is loaded for it, or will be.
    pub(super) fn hold(&mut self, attempt: AttemptId, active: Active) {
        let work = self.work(attempt.chunk);
        let standing = self.standing.entry(active.agent).or_default();
        if let Some(before) = standing.kind.replace(work.kind())
            && let Some(count) = self.at_kind.get_mut(&before)
        {
            *count -= 1;
        }
        *self.at_kind.entry(work.kind()).or_default() += 1;
        self.waiting.reads(std::mem::replace(&mut standing.prefix, work.prefix), work.prefix);
        self.holdings.insert(attempt, active);
    }

    /// How many attempts may be sent to this install and how many recorded for it. **The rule of tropa**: none while
    /// a rival, an install that shares a device with it, holds any, or may still run one that was lost.
    fn free_places(&self, agent: &AgentId, now: Duration) -> Places {
        let none = Places { send: 0, record: 0 };
        let Some(seen) = self.seen(agent) else { return none };
        if self.is_blocked(&seen, now) {
            return none;
        }
        let occupied = seen.held.iter().filter(|(_, active)| active.occupies()).count();
        // One beyond the width lies ready at the agent, so that the lane never waits for the network.
        let depth = seen.width() + 1;
        let interval = seen.standing.interval;
        let syncs = self.record_time.as_secs_f64() / interval.as_secs_f64().max(1e-6);
        let ahead = if interval.is_zero() { 0 } else { ((syncs * 2.0) as usize).min(MAX_AHEAD) };
        let ready = depth.max(seen.next_width(self.waiting.total().chunks) + 1) + ahead;
        Places { send: depth.saturating_sub(occupied), record: ready.saturating_sub(seen.held.len()) }
    }

    /// Whether an install gets nothing now: it is shut, pauses, has closed, its devices are or may be in use by a
    /// rival, or the GPU lanes of its machine that are busy need all its processors.
    pub(super) fn is_blocked(&self, seen: &Seen<'_>, now: Duration) -> bool {
        if seen.install.shut || self.away.contains(seen.agent()) {
            return true;
        }
        let pauses = seen.standing.pause_until > now || seen.is_closed();
        let kept_off = || self.is_kept_off(seen.install, None, |other| self.is_taken(other));
        let crowded = || self.holdings.crews().keeps_off(seen.agent(), seen.holds_any());
        pauses || kept_off() || self.may_be_in_use(seen.agent()) || crowded()
    }

    /// The next chunk for this install: retries first, then of the kind that it has loaded, then as [`Self::next_kind`]
    /// says.
    fn next_chunk(&self, agent: &AgentId, outlook: &mut Outlook, now: Duration) -> Next {
        let Some(seen) = self.seen(agent) else { return Next::Nothing };
        let retry = self.retries.iter().copied().find(|chunk| self.may_retry(*chunk, &seen));
        let fresh = || self.waiting.next(self.next_kind(&seen)?, seen.standing.prefix);
        let Some(chunk) = retry.or_else(fresh) else { return Next::Nothing };
        if !self.has_company(&seen, &self.work(chunk)) {
            return Next::Take(chunk);
        }
        if self.explores(&seen, chunk) || !self.is_worth_it(&seen, chunk, outlook, now) {
            return Next::Leave(chunk);
        }
        Next::Take(chunk)
    }

    /// An install of which nothing is known shows with its first chunks how fast it is, before it gets more, unless
    /// so much waits that it will be right in any case.
    fn explores(&self, seen: &Seen<'_>, chunk: ChunkIndex) -> bool {
        let unknown = !seen.standing.paces.contains_key(&self.model_of(chunk));
        let plenty = EXPLORES_BELOW * self.installs.len() as u64;
        unknown && self.waiting.total().chunks < plenty && seen.held.len() >= seen.width()
    }

    /// The kind that an install takes from: what it was given last, so that nothing is loaded anew; else a model that is
    /// loaded; else the largest context, whose chunks take longest; else the kind with most waiting for each install
    /// that is at it; else that of the first chunk.
    fn next_kind(&self, seen: &Seen<'_>) -> Option<Kind> {
        let has = |kind: &Kind| self.may_run(seen, *kind) && self.may_begin(seen.install, *kind);
        if let Some(last) = seen.standing.kind.filter(|last| self.waiting.first(*last).is_some() && has(last))
        {
            return Some(last);
        }
        let order = |(kind, sum): (Kind, Sum)| {
            let at_it = self.at_kind.get(&kind).map_or(0, |count| *count as u64);
            let warm = seen.install.warm.contains(&kind.model);
            let first = self.waiting.first(kind);
            (!warm, Reverse(kind.context), Reverse(sum.chunks / (1 + at_it)), first, kind)
        };
        let kinds = self.waiting.kinds().filter(|(kind, _)| has(kind));
        kinds.map(order).min().map(|(.., kind)| kind)
    }

    /// Takes a chunk from where it waits.
    fn take_out(&mut self, chunk: ChunkIndex) {
        if !self.retries.remove(&chunk) {
            self.waiting.remove(self.needs.rank(chunk), &self.work(chunk));
        }
    }

    /// A chunk that failed goes to other hardware, and back to the same only where there is no other.
    fn may_retry(&self, chunk: ChunkIndex, seen: &Seen<'_>) -> bool {
        let kind = self.work(chunk).kind();
        let Some(history) = self.history.get(&chunk) else { return false };
        let tried = |seen: &Seen<'_>| {
            history.failed_on.contains(seen.agent())
                || seen.install.rivals.iter().any(|rival| history.failed_on.contains(rival))
        };
        // Who opens in an hour is not waited for where others may do it.
        let mut open = self.eligible(kind).filter(|other| !other.install.shut);
        self.is_eligible(seen, kind)
            && self.may_begin(seen.install, kind)
            && (!tried(seen) || open.all(|other| tried(&other)))
    }

    /// The installs that may run chunks of this kind, now or when they open, and have not been found to be closed.
    pub(super) fn eligible(&self, kind: Kind) -> impl Iterator<Item = Seen<'_>> {
        self.all_seen().filter(move |seen| self.is_eligible(seen, kind))
    }

    pub(super) fn is_eligible(&self, seen: &Seen<'_>, kind: Kind) -> bool {
        self.may_run(seen, kind) && !seen.is_closed()
    }

    /// Whether an install has the model, has not been found to lack it, and its agent denies no chunk of the kind: who
    /// denies one gets none of them.
    fn may_run(&self, seen: &Seen<'_>, kind: Kind) -> bool {
        let permitted = |asked: u32, most: u32| most == 0 || asked <= most;
        let longest = self.longest.get(&kind).copied().unwrap_or(0);
        let install = seen.install;
        install.models.contains(&kind.model)
            && permitted(kind.context, install.largest.context)
            && permitted(longest, install.largest.answer)
            && seen.standing.takes(kind.model)
    }

    /// Whoever holds work keeps its devices; then a warm model; then the faster, and before all those that are not known
    /// yet; then the smaller id.
    fn by_preference(&self, woken: BTreeSet<AgentId>) -> Vec<AgentId> {
        let mut order: Vec<_> = woken
            .into_iter()
            .filter_map(|agent| {
                let seen = self.seen(&agent)?;
                Some((!seen.holds_any(), seen.install.warm.is_empty(), seen.standing.interval, agent))
            })
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(.., agent)| agent).collect()
    }
}
