//! One install of the virtual world: an agent that admits and an engine with slots that share its speed.

use std::{collections::VecDeque, time::Duration};

use tropa_coordinator::schedule::{Kind, Sample};
use tropa_proto::id::{AttemptId, EngineRun};

use super::{ChunkOf, LaneOf};

/// An attempt at the engine.
#[derive(Clone, Debug)]
struct Running {
    attempt: AttemptId,
    chunk: ChunkOf,
    /// Seconds of work that are left, at the speed of one alone.
    left: f64,
    /// Seconds of loading that are left.
    load_left: f64,
    load: Duration,
    since: Duration,
    /// When it got a slot.
    slot_at: Option<Duration>,
}

/// The state of a lane.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) of: LaneOf,
    pub(super) engine: EngineRun,
    pub(super) loads: usize,
    pub(super) blocked_until: Duration,
    pub(super) telling: bool,
    queue: VecDeque<(AttemptId, ChunkOf, u16)>,
    running: Vec<Running>,
    loaded: Option<Kind>,
    version: u64,
    at: Duration,
}

/// An attempt that has ended.
pub(super) struct Ends {
    pub(super) attempt: AttemptId,
    pub(super) sample: Sample,
}

/// What an order to cancel met.
pub(super) enum Cancelled {
    Unknown,
    Queued,
    Running,
}

impl Lane {
    pub(super) fn new(of: LaneOf) -> Self {
        Self {
            of,
            engine: EngineRun(1),
            loads: 0,
            blocked_until: Duration::ZERO,
            telling: false,
            queue: VecDeque::new(),
            running: Vec::new(),
            loaded: None,
            version: 0,
            at: Duration::ZERO,
        }
    }

    pub(super) fn arrives(&mut self, attempt: AttemptId, chunk: ChunkOf, at_once: u16) {
        // What waits follows the newest word of how many at once.
        self.queue.iter_mut().for_each(|(.., wished)| *wished = at_once);
        self.queue.push_back((attempt, chunk, at_once));
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.running.is_empty()
    }

    /// Starts what the places at the engine allow; chunks of another kind wait until it is empty.
    pub(super) fn start(&mut self, now: Duration) -> Vec<AttemptId> {
        self.work(now);
        let mut started = Vec::new();
        while let Some((attempt, chunk, at_once)) = self.queue.front().copied() {
            let kind = chunk.work.kind();
            let same = self.running.is_empty() || self.loaded == Some(kind);
            if now < self.blocked_until || self.running.len() >= usize::from(at_once) || !same {
                break;
            }
            self.queue.pop_front();
            let cold = self.loaded != Some(kind);
            self.loads += usize::from(cold);
            self.loaded = Some(kind);
            let load = if cold { self.of.load } else { Duration::from_millis(1) };
            let left = chunk.seconds(&self.of);
            let load_left = load.as_secs_f64();
            self.running.push(Running { attempt, chunk, left, load_left, load, since: now, slot_at: None });
            started.push(attempt);
        }
        self.give_slots();
        started
    }

    /// Another process of the engine: nothing is loaded, and its agent sends what it was at once more.
    pub(super) fn restart(&mut self, now: Duration) {
        self.work(now);
        if let Some((_, curve)) = self.of.restarts.take() {
            self.of.curve = curve;
        }
        self.engine.0 += 1;
        let load = self.of.load;
        for running in &mut self.running {
            let (left, load_left) = (running.chunk.seconds(&self.of), load.as_secs_f64());
            *running = Running { left, load_left, load, slot_at: None, ..running.clone() };
        }
        self.give_slots();
    }

    pub(super) fn is_running(&self, attempt: AttemptId) -> bool {
        self.running.iter().any(|running| running.attempt == attempt)
    }

    pub(super) fn cancel(&mut self, attempt: AttemptId, now: Duration) -> Cancelled {
        self.work(now);
        if let Some(at) = self.queue.iter().position(|(queued, ..)| *queued == attempt) {
            self.queue.remove(at);
            return Cancelled::Queued;
        }
        if let Some(at) = self.running.iter().position(|running| running.attempt == attempt) {
            self.running.remove(at);
            return Cancelled::Running;
        }
        Cancelled::Unknown
    }

    /// When the next thing ends here, with the version of the state for which that holds.
    pub(super) fn next_end(&mut self, now: Duration) -> Option<(Duration, u64)> {
        self.version += 1;
        let (speed, slots) = (self.speed(now), self.in_slots());
        let ends =
            self.running.iter().take(slots).map(|running| {
                if running.load_left > 0.0 { running.load_left } else { running.left / speed }
            });
        let next = ends.fold(f64::INFINITY, f64::min);
        let unblocked = (now < self.blocked_until && !self.queue.is_empty()).then_some(self.blocked_until);
        let ends = next.is_finite().then(|| now + Duration::from_secs_f64(next) + Duration::from_nanos(1));
        // A change of speed is looked at when it comes.
        let slows = self.of.slows.map(|(at, _)| at).filter(|at| *at > now && self.is_busy());
        let weather = self.of.weather.as_ref().map(|weather| weather.changes(now)).filter(|_| self.is_busy());
        [unblocked, ends, slows, weather].into_iter().flatten().min().map(|at| (at, self.version))
    }

    /// Whether nothing has changed since this version.
    pub(super) fn is(&self, version: u64) -> bool {
        version == self.version
    }

    /// One that has ended by now, if there is one.
    pub(super) fn ends(&mut self, now: Duration) -> Option<Ends> {
        self.work(now);
        let over = |running: &Running| running.load_left <= 0.0 && running.left <= 1e-9;
        let at = self.running.iter().take(self.in_slots()).position(over)?;
        let running = self.running.remove(at);
        let slot_at = running.slot_at.unwrap_or(running.since);
        let working = now.saturating_sub(slot_at).saturating_sub(running.load).as_secs_f64();
        let alone = running.chunk.seconds(&self.of);
        let prompt = f64::from(running.chunk.work.prompt_tokens) / self.of.prompt / alone * working;
        let prompt = Duration::from_secs_f64(prompt);
        let decode = Duration::from_secs_f64(working).saturating_sub(prompt);
        let sample = Sample {
            prompt_tokens: running.chunk.work.prompt_tokens,
            output_tokens: running.chunk.output,
            wall: now.saturating_sub(running.since),
            first: slot_at.saturating_sub(running.since) + running.load + prompt,
            load: running.load,
            prompt,
            decode,
        };
        Some(Ends { attempt: running.attempt, sample })
    }

    /// Tokens that everything here has written so far.
    pub(super) fn written(&mut self, now: Duration) -> Vec<(AttemptId, u32)> {
        self.work(now);
        let count = |running: &Running| {
            let alone = running.chunk.seconds(&self.of);
            let reading = f64::from(running.chunk.work.prompt_tokens) / self.of.prompt;
            let done = ((alone - running.left - reading) * self.of.decode).max(0.0);
            (running.attempt, done as u32)
        };
        self.running.iter().map(count).filter(|(_, count)| *count > 0).collect()
    }

    /// Lets time pass.
    fn work(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        let (speed, slots) = (self.speed(self.at), self.in_slots());
        for running in self.running.iter_mut().take(slots) {
            let loading = passed.min(running.load_left);
            running.load_left -= loading;
            running.left -= (passed - loading) * speed;
            if running.left < 1e-6 {
                running.left = 0.0;
            }
            if running.load_left < 1e-6 {
                running.load_left = 0.0;
            }
        }
        self.at = now;
        self.give_slots();
    }

    fn give_slots(&mut self) {
        let (slots, at) = (self.in_slots(), self.at);
        for running in self.running.iter_mut().take(slots) {
            running.slot_at.get_or_insert(at);
        }
    }

    fn in_slots(&self) -> usize {
        self.running.len().min(self.of.curve.len())
    }

    /// The speed of each in a slot, of one alone being 1.
    fn speed(&self, now: Duration) -> f64 {
        let slower = self.of.slows.filter(|(at, _)| now >= *at).map_or(1.0, |(_, factor)| factor);
        let slower = slower * self.of.weather.as_ref().map_or(1.0, |weather| weather.slower(now));
        match self.in_slots() {
            0 => 1.0,
            many => self.of.curve[many - 1] / many as f64 / slower,
        }
    }
}
