//! One width at work: what the chunks that began and ended in its time tell of it.
//!
//! A moment in which the machine does something else must not decide about a whole job. So the rate is not what ended
//! over the time that passed: it is how many were at the engine at once, in the mean, times the median of how fast each
//! was. A stall that hits a few of the chunks changes neither much; a place that stays empty changes the first.

use std::{cmp::Ordering, time::Duration};

use super::{Pace, Sample};

/// Chunks over which a width is measured, and judged while it is in use.
pub(super) const CHUNKS: usize = 8;

/// Chunks that are enough where they agree. Measuring is dear where width pays most: with 1.7 times the speed to be won,
/// every chunk that a job of 200 does alone costs it 0.35 %, and eight of them more than all that the search may cost.
const FEW: usize = 4;

/// The speeds of chunks agree when they lie within this share of their median.
const AGREE: f64 = 0.15;

/// Chunks that waited for another's end, all but the first, prove a step too wide before it is measured to its end.
const WAITED_ENOUGH: usize = 4;

/// Chunks that are remembered of one step: some more than the widest is measured over, and those before it.
const MAX_CHUNKS: usize = 64;

/// One width being tried or in use.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) width: usize,
    /// When this measurement began.
    since: Duration,
    /// Since when the width is what it is: chunks that began before ran beside fewer.
    in_force: Duration,
    /// Chunks that are at the install still and ran, or will run, beside more.
    skip: usize,
    chunks: Vec<Chunk>,
}

/// A chunk that has ended since the step began.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    began: Duration,
    ended: Duration,
    size: (f64, f64),
    /// Seconds without loading; `None` where it ran at another width, or loaded a model: it only took a place.
    took: Option<f64>,
    /// Whether it waited inside the engine; `None` where that cannot be known.
    waited: Option<bool>,
}

/// What a width did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rate {
    /// Seconds of work alone, done in each second.
    pub(super) rate: f64,
    /// The chunks did not agree: another look may tell something else.
    pub(super) shaky: bool,
}

impl Step {
    pub(super) fn new(width: usize, now: Duration) -> Self {
        Self { width, since: now, in_force: now, skip: 0, chunks: Vec::new() }
    }

    /// What follows it at this width.
    pub(super) fn then(&self, width: usize, now: Duration) -> Self {
        let next = Self::new(width, now);
        match width.cmp(&self.width) {
            Ordering::Less => Self { skip: self.width + 1, ..next },
            Ordering::Equal => Self { in_force: self.in_force, skip: self.skip, ..next },
            Ordering::Greater => next,
        }
    }

    /// A chunk has ended at this time that was at the engine since `began`.
    pub(super) fn add(
        &mut self,
        sample: &Sample,
        began: Option<Duration>,
        waited: Option<bool>,
        now: Duration,
    ) {
        let began = began.unwrap_or_else(|| now.saturating_sub(sample.wall));
        let ended = (began + sample.wall).min(now);
        // What was next in line began while the coordinator still heard of the end before it.
        let counts = self.skip == 0 && began + sample.wall / 10 >= self.in_force && !sample.was_cold();
        self.skip = self.skip.saturating_sub(1);
        let took = sample.wall.saturating_sub(sample.load).as_secs_f64().max(1e-6);
        if self.chunks.len() < MAX_CHUNKS {
            self.chunks.push(Chunk {
                began,
                ended,
                size: (f64::from(sample.prompt_tokens), f64::from(sample.output_tokens)),
                took: counts.then_some(took),
                waited: waited.filter(|_| counts),
            });
        }
    }

    /// Whether enough has ended to say what the width does; `few`: also by few chunks that agree.
    pub(super) fn is_measured(&self, alone: &Pace, few: bool) -> bool {
        let speeds = self.speeds(alone);
        let agree = || few && speeds.len() >= FEW.max(2 * self.width) && range(&speeds) <= AGREE;
        speeds.len() >= CHUNKS.max(2 * self.width) || agree()
    }

    /// Seconds of work alone that were done in a second, with those that are at the engine still, since these times.
    pub(super) fn rate(&self, alone: &Pace, running: &[Duration], now: Duration) -> Rate {
        let counted = self.chunks.iter().filter(|chunk| chunk.took.is_some());
        let from = counted.map(|chunk| chunk.began).min().unwrap_or(self.since).max(self.since);
        let within = |began: Duration, ended: Duration| ended.saturating_sub(began.max(from)).as_secs_f64();
        let ended: f64 = self.chunks.iter().map(|chunk| within(chunk.began, chunk.ended)).sum();
        let at_work: f64 = running.iter().map(|began| within(*began, now)).sum();
        let at_once = (ended + at_work) / now.saturating_sub(from).as_secs_f64().max(1e-6);
        let speeds = self.speeds(alone);
        // Of many the outermost quarters do not count.
        let edge = if speeds.len() >= CHUNKS { speeds.len() / 4 } else { 0 };
        let shaky = range(speeds.get(edge..speeds.len() - edge).unwrap_or_default()) > AGREE;
        Rate { rate: at_once.min(self.width as f64) * median(&speeds), shaky }
    }

    /// How many of those that can tell did wait, and how many can tell.
    pub(super) fn waited(&self) -> (usize, usize) {
        let told = self.chunks.iter().filter_map(|chunk| chunk.waited);
        told.fold((0, 0), |(waited, all), one| (waited + usize::from(one), all + 1))
    }

    /// Enough waited, and all but the first: it has more places than the engine.
    pub(super) fn all_waited(&self) -> bool {
        let (waited, all) = self.waited();
        waited >= WAITED_ENOUGH && waited + 1 >= all
    }

    /// Seconds alone for each second that a chunk took, in order.
    fn speeds(&self, alone: &Pace) -> Vec<f64> {
        let speed = |chunk: &Chunk| Some(alone.seconds(chunk.size) / chunk.took?);
        let mut speeds: Vec<f64> = self.chunks.iter().filter_map(speed).collect();
        speeds.sort_by(f64::total_cmp);
        speeds
    }
}

/// The middle of values in order; 0 of none.
pub(super) fn median(sorted: &[f64]) -> f64 {
    let middle = |at: usize| sorted.get(at).copied().unwrap_or_default();
    if sorted.is_empty() {
        0.0
    } else {
        f64::midpoint(middle(sorted.len() / 2), middle((sorted.len() - 1) / 2))
    }
}

/// From the first to the last, as a share of the median.
fn range(sorted: &[f64]) -> f64 {
    let (Some(first), Some(last)) = (sorted.first(), sorted.last()) else { return 0.0 };
    (last - first) / median(sorted).max(1e-9)
}
