//! When things will be finished: whether an install should take a chunk at all, and what is late.
//!
//! The rule of the earliest finish, for chunks that are alike: **an install takes a chunk only if all others together
//! could not finish everything that waits by the time at which it would have finished that one.** While much waits
//! everybody works. At the end a slow install stops early, and what is left goes to those that are done with it
//! sooner; among equal ones each takes its last.

use std::time::Duration;

use tropa_proto::id::{AgentId, AttemptId, ChunkIndex};

use super::{
    Schedule,
    holdings::Active,
    pace::Pace,
    seen::Seen,
    standing::Standing,
    work::{Kind, Work},
};

/// The speed of all installs together is added up anew after this time: it only spares a closer look.
const RATE_LASTS: Duration = Duration::from_millis(100);

/// Two finishes that differ by less than this share are the same: otherwise two equal installs would each leave the
/// last chunk to the other.
const SAME: f64 = 0.01;

/// Seconds to load a model where no load was ever seen and its size is not known: a few GB from a disk.
const LOAD_S: f64 = 3.0;

/// An attempt as an install will get to it; in seconds from now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Due {
    pub(super) attempt: AttemptId,
    pub(super) starts: f64,
    pub(super) ends: f64,
}

/// What all installs together were found to finish of the chunks that wait, at one moment and until one takes something:
/// who would be done later than another that left them is not worth a closer look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outlook {
    /// Chunks like this, by so many seconds from now: so many.
    known: Option<(Work, f64, u64)>,
}

impl Outlook {
    /// At least so many chunks like this one are finished by then.
    fn least(&self, like: &Work, by: f64) -> u64 {
        self.known.filter(|(of, then, _)| of == like && *then <= by).map_or(0, |(.., count)| count)
    }
}

impl Schedule {
    /// Whether an install should take this chunk now, by the rule of the earliest finish.
    pub(super) fn is_worth_it(
        &self,
        seen: &Seen<'_>,
        chunk: ChunkIndex,
        outlook: &mut Outlook,
        now: Duration,
    ) -> bool {
        let work = self.work(chunk);
        let count = self.waiting.total().chunks + self.retries.len() as u64;
        let Some(alone) = self.seconds(seen.standing, &work) else { return true };
        let starts = self.slots(seen, now).into_iter().fold(f64::INFINITY, f64::min);
        let by = (starts + self.load_seconds(seen, work.kind()) + alone) * (1.0 - SAME);
        if by * self.rate < count as f64 {
            return true;
        }
        let mean = Work { prefix: 0, ..self.usual(work) };
        let finishes = |other: Seen<'_>| self.finishes(&other, &mean, by, now);
        let rivals = seen.install.rivals.iter().filter_map(|rival| self.seen(rival));
        let own: u64 = rivals.chain([*seen]).map(finishes).sum();
        let failed_on = self.history.get(&chunk).map(|history| &history.failed_on);
        if let Some(failed_on) = failed_on.filter(|failed_on| !failed_on.is_empty()) {
            let others = self.all_seen().filter(|other| !failed_on.contains(other.agent()));
            return others.map(finishes).sum::<u64>().saturating_sub(own) < count;
        }
        if outlook.least(&mean, by).saturating_sub(own) >= count {
            return false;
        }
        let enough = (count + own).saturating_mul(2);
        let mut all = 0;
        for other in self.all_seen() {
            all += finishes(other);
            if all >= enough {
                break;
            }
        }
        outlook.known = Some((mean, by, all));
        all.saturating_sub(own) < count
    }

    /// How many chunks like this one an install finishes in so many seconds, beside what it holds; 0 where it gets none.
    fn finishes(&self, seen: &Seen<'_>, like: &Work, by: f64, now: Duration) -> u64 {
        let Some(seconds) = self.seconds(seen.standing, like) else { return 0 };
        // Most answers at the end of a job are that not even one more would be finished.
        let left = if by < seconds { 0.0 } else { by - self.load_seconds(seen, like.kind()) };
        if left < seconds {
            return 0;
        }
        let of_slot = |slot: f64| ((left - slot).max(0.0) / seconds.max(1e-6)) as u64;
        let finished = if seen.width() == 1 {
            // One after the other, in whatever order.
            of_slot(seen.held.iter().map(|held| self.remaining(seen, held, now)).sum())
        } else {
            self.slots(seen, now).into_iter().map(of_slot).sum()
        };
        let counts = finished > 0
            && self.is_eligible(seen, like.kind())
            && self.stands_for_its_devices(seen)
            && self.may_begin(seen.install, like.kind())
            && !self.is_blocked(seen, now);
        if counts { finished } else { 0 }
    }

    /// Whether anybody else could work on this model at the same time.
    pub(super) fn has_company(&self, seen: &Seen<'_>, work: &Work) -> bool {
        self.eligible(work.kind())
            .filter(|other| !other.install.shut)
            .any(|other| other.agent() != seen.agent() && !seen.install.rivals.contains(other.agent()))
    }

    /// Seconds that a chunk takes on an install, its model loaded; by the usual speed of others where the install's
    /// own is not known, `None` where nobody's is.
    pub(super) fn seconds(&self, standing: &Standing, work: &Work) -> Option<f64> {
        Some(self.pace_of(standing, work)?.seconds(self.sizes.expected(work)))
    }

    fn pace_of<'a>(&'a self, standing: &'a Standing, work: &Work) -> Option<&'a Pace> {
        standing.paces.get(&work.model).or_else(|| self.typical.get(&work.model))
    }

    /// Seconds until the model can be used for this kind: 0 where it is loaded for it; else as its loads took here, or
    /// elsewhere, or as its size lets expect.
    pub(super) fn load_seconds(&self, seen: &Seen<'_>, kind: Kind) -> f64 {
        let loaded = match seen.standing.kind {
            Some(last) => last == kind,
            None => seen.install.warm.contains(&kind.model),
        };
        if loaded {
            return 0.0;
        }
        let known = |pace: &Pace| (pace.load_s > 0.0).then_some(pace.load_s);
        let own = seen.standing.paces.get(&kind.model).and_then(known);
        let by_size = || seen.install.loads.get(&kind.model).map(Duration::as_secs_f64);
        own.or_else(|| self.typical.get(&kind.model).and_then(known)).or_else(by_size).unwrap_or(LOAD_S)
    }

    /// When each place at the engine is free, in seconds from now.
    fn slots(&self, seen: &Seen<'_>, now: Duration) -> Vec<f64> {
        self.line_up(seen, now, |_, _| {})
    }

    /// Goes through what an install holds in the order in which it gets to it, and says when each place at the engine is
    /// free after that, in seconds from now.
    pub(super) fn line_up(
        &self,
        seen: &Seen<'_>,
        now: Duration,
        mut each: impl FnMut(Due, &Active),
    ) -> Vec<f64> {
        let mut slots: Vec<f64> = vec![0.0; seen.width()];
        let mut held: Vec<_> = seen.held.iter().collect();
        // What runs first, then what was sent, then what is only recorded.
        held.sort_by_key(|(attempt, active)| (!active.running, active.is_unsent(), *attempt));
        for one in held {
            let Some(slot) = slots.iter_mut().min_by(|a: &&mut f64, b: &&mut f64| a.total_cmp(b)) else {
                break;
            };
            let starts = *slot;
            *slot += self.remaining(seen, one, now);
            each(Due { attempt: one.0, starts, ends: *slot }, &one.1);
        }
        slots
    }

    /// Seconds until an attempt ends, once it has its place: what it has written so far tells most.
    fn remaining(&self, at: &Seen<'_>, (attempt, active): &(AttemptId, Active), now: Duration) -> f64 {
        let work = self.work(attempt.chunk);
        let pace = self.pace_of(at.standing, &work);
        let (prompt, output) = self.sizes.expected(&work);
        let whole = pace.map(|pace| pace.seconds((prompt, output)));
        let Some(since) = active.running_since.filter(|_| active.running) else {
            return whole.unwrap_or(0.0);
        };
        let elapsed = now.saturating_sub(since).as_secs_f64();
        if active.tokens == 0 {
            // Nothing yet though it should be over: it may take as long again.
            return whole.map_or(elapsed, |whole| if elapsed < whole { whole - elapsed } else { elapsed });
        }
        let written = f64::from(active.tokens);
        let limit = f64::from(work.output_tokens).max(written);
        let left = if written < output { output - written } else { (limit - written) / 2.0 };
        let reading = pace.map_or(0.0, |pace| prompt * pace.prompt_s);
        let own = (elapsed - reading).max(0.0) / written;
        let own = active.lately(now).map_or(own, |lately| lately.max(own));
        let learned = pace.map_or(own, |pace| pace.decode_s);
        // Its own speed counts where it is, or has become, much slower than the install was before.
        let per_token = if own > learned * 1.5 { own } else { learned };
        left * per_token
    }

    /// Of installs that share a device only one works: the one that does, else the one with the smallest id; and of GPU
    /// lanes that share processors as many as may.
    fn stands_for_its_devices(&self, seen: &Seen<'_>) -> bool {
        let comes_after = |rival: &AgentId| rival > seen.agent() && !self.holdings.holds(rival);
        seen.holds_any()
            || (seen.install.rivals.iter().all(comes_after)
                && self.holdings.crews().is_of_the_first(seen.agent()))
    }

    /// Adds up how many chunks of the usual size all installs finish in a second; infinitely many where no speed is
    /// known, so that nothing is concluded of it.
    pub(super) fn refresh_rate(&mut self, now: Duration) {
        let fresh = self.rate_at.is_some_and(|at| now < at + RATE_LASTS) && self.rate.is_finite();
        if fresh || self.typical.is_empty() {
            return;
        }
        let first = self.waiting.kinds().next().and_then(|(kind, _)| self.waiting.first(kind));
        let Some(like) = first.map(|(_, chunk)| chunk).or_else(|| self.retries.first().copied()) else {
            return;
        };
        self.rate_at = Some(now);
        let mean = self.usual(self.work(like));
        let rate = |seen: Seen<'_>| {
            let seconds = self.seconds(seen.standing, &mean)?;
            Some(seen.width() as f64 / seconds.max(1e-6))
        };
        let rate: f64 = self.all_seen().filter_map(rate).sum();
        self.rate = if rate > 0.0 { rate } else { f64::INFINITY };
    }

    /// A chunk like this one, of the mean size of those that wait; where only those wait that run again, this one.
    fn usual(&self, like: Work) -> Work {
        let waiting = self.waiting.total();
        if waiting.chunks == 0 { like } else { waiting.mean(&like) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use tropa_proto::id::{EngineRun, Incarnation, JobId, MachineId};

    use super::{
        super::{Action, Event, Install, Largest, ModelIndex},
        *,
    };

    const MODEL: ModelIndex = ModelIndex(0);

    /// One whose model is loaded, or takes so long to load as far as that is known.
    fn install(n: u8, loaded: bool, load: Option<Duration>) -> Install {
        Install {
            agent: AgentId([n; 32]),
            incarnation: Incarnation(1),
            engine: EngineRun(1),
            machine: MachineId(AgentId([n; 32])),
            width: 1,
            models: [MODEL].into(),
            largest: Largest::default(),
            shut: false,
            warm: if loaded { [MODEL].into() } else { BTreeSet::new() },
            loads: load.map(|load| (MODEL, load)).into_iter().collect::<BTreeMap<_, _>>(),
            rivals: BTreeSet::new(),
            unguarded: BTreeSet::new(),
            gpu_lanes: None,
            unplaced: Default::default(),
        }
    }

    /// Whom the first chunks of a job go to on these installs, all of this pace.
    fn begins(mut schedule: Schedule, pace: Pace, installs: Vec<Install>) -> Vec<AgentId> {
        for install in &installs {
            schedule.handle(Event::Remembered(install.agent, MODEL, pace, None), Duration::ZERO);
        }
        let actions = schedule.handle(Event::Roster(installs), Duration::ZERO);
        let begun = |action| if let Action::Record(_, agent, _) = action { Some(agent) } else { None };
        actions.into_iter().filter_map(begun).collect()
    }

    /// How many of three chunks of a second go at first to a machine whose model is not loaded and so large.
    fn given_to_the_cold(load: Option<Duration>) -> usize {
        let pace = Pace { chunk_s: 1.0, samples: 1, ..Pace::default() };
        let installs = vec![install(1, true, load), install(2, false, load)];
        let begun = begins(Schedule::new(JobId([7; 16]), vec![MODEL; 3]), pace, installs);
        begun.into_iter().filter(|agent| agent.0 == [2; 32]).count()
    }

    #[test]
    fn a_small_model_is_loaded_for_a_short_job_and_a_large_one_is_not() {
        assert!(given_to_the_cold(Some(Duration::from_millis(400))) > 0);
        assert_eq!(given_to_the_cold(Some(Duration::from_secs(40))), 0);
        assert_eq!(given_to_the_cold(None), 0, "not knowing is no reason to load");
    }

    #[test]
    fn a_chunk_that_each_leaves_to_the_others_is_begun_by_one() {
        // While one does the long chunk the two others could do two of the mean size; so says each of the three.
        let works = [1_000, 100].map(|output_tokens| Work { model: MODEL, output_tokens, ..Work::default() });
        let pace = Pace { decode_s: 0.01, samples: 1, ..Pace::default() };
        let installs = (1..=3).map(|n| install(n, true, None)).collect();
        let begun = begins(Schedule::of(JobId([7; 16]), works.into()), pace, installs);
        assert_eq!(begun.first(), Some(&AgentId([1; 32])), "the smallest id of equal ones: {begun:?}");
    }
}
