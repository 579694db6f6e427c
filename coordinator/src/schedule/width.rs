//! How many chunks one install should work on at once: measured, since nothing in Ollama's API says it.
//!
//! An install that batches gives more tokens in all with several requests at a time; one that does not lets them wait
//! for each other. So the widths 1, 2, 4, 8 are tried in turn, each over some chunks (`step.rs`), and a wider step is
//! kept where it does a tenth more than what was best before. The curve is not monotone (`ollama-api.md` §6): one step
//! that is no better does not end the search, two in a row do. Where the added chunks only wait for the others' ends the
//! install has no more slots, and the search is over.
//!
//! What was found is judged as long as it is used. A step is tried again where it lost by chunks that did not agree,
//! or by less than the measurements of the width in use differ among themselves; and every step is where that width
//! gives much less than it promised. All measurements of a step count. Each further trial waits twice as long as the
//! one before, so that a wrong choice does not last and no two widths take turns.

mod step;

use std::{collections::VecDeque, time::Duration};

use tropa_proto::{failure::Class, message::MAX_MEASURED_WIDTH};

use self::step::{CHUNKS, Rate, Step, median};
use super::pace::{Pace, Sample};

/// The widths that are tried.
const STEPS: [usize; 4] = [1, 2, 4, MAX_MEASURED_WIDTH as usize];

/// What a wider step must do more than the best before, to be worth its memory.
const GAIN: f64 = 1.10;

/// Steps without gain, one after the other, that end the search.
const MAX_BAD: u32 = 2;

/// A width in use that does so many times less than it promised, is not what was chosen.
const BELOW: f64 = 1.2;

/// So often in a row, since one time may be a hiccup.
const MAX_OFF: u32 = 2;

/// Measurements of a step that count: what was before them may be no longer so.
const MAX_RATES: usize = 8;

/// A step is in doubt when it lost by less than so many standard errors.
const DOUBT: f64 = 2.0;

/// How many measurements of the width in use lie between the first trial and the second; each further time twice as
/// many.
const PATIENCE: u32 = 2;

/// Ends that are remembered to compare first tokens with: two for each place.
const MAX_ENDS: usize = 16;

/// By how much the coordinator may hear of an end later than of a first token of the same moment.
const HEARD_WITHIN: Duration = Duration::from_millis(20);

/// What is known of the width of an install.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Width {
    /// How many chunks at once.
    pub at_once: u16,
    /// It takes one request at a time, and lets others wait.
    pub serialises: bool,
}

/// The search at one install with one model.
#[derive(Clone, Debug)]
pub(super) struct Search {
    step: Step,
    phase: Phase,
    /// What each of [`STEPS`] did.
    tried: [Tried; STEPS.len()],
    /// The step that was best so far, by its place in [`STEPS`].
    best: usize,
    /// The widest that may be tried.
    widest: usize,
    serialises: bool,
    bad: u32,
    /// Measurements that must pass before anything is tried again, and before the time after that.
    rests: u32,
    patience: u32,
    /// How long chunks take with nobody beside them; known when the first step is measured.
    alone: Option<Pace>,
    /// First tokens came so long after loading and reading with nobody beside them, in seconds, of so many chunks.
    first_s: (f64, u32),
    ends: VecDeque<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// The next wider step is tried, and the next.
    Climbs,
    /// Too little waits to go on: the best so far serves this job, and the next one searches again.
    GivenUp,
    /// The best is used: it promised this rate, and was far below it so often in a row.
    Uses { promised: Option<f64>, off: u32 },
    /// Another than the best is tried again.
    Tries,
}

/// The measurements of one step, the newest last.
#[derive(Clone, Debug, Default)]
struct Tried {
    rates: VecDeque<f64>,
    /// The chunks of the newest did not agree, or much has changed since.
    shaky: bool,
}

impl Tried {
    fn add(&mut self, rate: Rate) {
        self.rates.push_back(rate.rate);
        self.shaky = rate.shaky;
        self.keep(MAX_RATES);
    }

    /// Forgets all but the newest.
    fn keep(&mut self, newest: usize) {
        self.rates.drain(..self.rates.len().saturating_sub(newest));
    }

    fn rate(&self) -> f64 {
        let mut rates: Vec<f64> = self.rates.iter().copied().collect();
        rates.sort_by(f64::total_cmp);
        median(&rates)
    }

    /// By which factor measurements of this step differ, as a logarithm.
    fn scatter(&self) -> f64 {
        let logs = || self.rates.iter().map(|rate| rate.max(1e-9).ln());
        let many = self.rates.len() as f64;
        let mean = logs().sum::<f64>() / many.max(1.0);
        (logs().map(|log| (log - mean).powi(2)).sum::<f64>() / (many - 1.0).max(1.0)).sqrt()
    }
}

impl Search {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            step: Step::new(STEPS[0], now),
            phase: Phase::Climbs,
            tried: Default::default(),
            best: 0,
            widest: STEPS.len() - 1,
            serialises: false,
            bad: 0,
            rests: 0,
            patience: PATIENCE,
            alone: None,
            first_s: (0.0, 0),
            ends: VecDeque::new(),
        }
    }

    /// Starts with what an earlier job found at this install.
    pub(super) fn remembered(width: Width, now: Duration) -> Self {
        let at_once = usize::from(width.at_once);
        let best = STEPS.iter().rposition(|step| *step <= at_once).unwrap_or(0);
        Self {
            step: Step::new(STEPS[best], now),
            phase: Phase::Uses { promised: None, off: 0 },
            best,
            serialises: width.serialises,
            ..Self::new(now)
        }
    }

    /// How many chunks at once, at present.
    pub(super) fn width(&self) -> usize {
        self.step.width
    }

    /// What was found; `None` while the search goes on.
    pub(super) fn found(&self) -> Option<Width> {
        let at_once = u16::try_from(STEPS[self.best]).unwrap_or(1);
        match self.phase {
            Phase::Climbs | Phase::GivenUp => None,
            Phase::Uses { .. } | Phase::Tries => Some(Width { at_once, serialises: self.serialises }),
        }
    }

    /// The width that may be next: what it needs more is made ready meanwhile.
    pub(super) fn next_width(&self) -> usize {
        match self.phase {
            Phase::Climbs => STEPS.get(self.place() + 1).copied().unwrap_or(self.step.width),
            Phase::GivenUp | Phase::Uses { .. } | Phase::Tries => self.step.width,
        }
    }

    /// Chunks that should wait for this install before it tries the next step: to measure it and to gain from it.
    pub(super) fn wants(&self) -> u64 {
        3 * (CHUNKS + 2 * self.step.width) as u64
    }

    /// An attempt has ended with a result. `began` is when it was at the engine; `pace` the install's at present;
    /// `running` since when others are at the engine; `enough`: more than [`Self::wants`] wait.
    pub(super) fn ended(
        &mut self,
        sample: &Sample,
        began: Option<Duration>,
        (pace, running): (&Pace, &[Duration]),
        enough: bool,
        now: Duration,
    ) {
        let waited = self.has_waited(sample, began);
        self.ends.push_back(now);
        if self.ends.len() > MAX_ENDS {
            self.ends.pop_front();
        }
        self.step.add(sample, began, waited, now);
        if self.alone.is_none() && self.step.width == STEPS[0] {
            let first = sample.first.saturating_sub(sample.load + sample.prompt).as_secs_f64();
            self.first_s.1 += 1;
            self.first_s.0 += (first - self.first_s.0) / f64::from(self.first_s.1);
        }
        let tries = matches!(self.phase, Phase::Climbs | Phase::Tries);
        let wide = self.step.width > STEPS[0];
        if tries && wide && self.step.all_waited() {
            return self.too_wide(now);
        }
        let alone = *self.alone.as_ref().unwrap_or(pace);
        if !self.step.is_measured(&alone, tries) {
            return;
        }
        self.alone = Some(alone);
        let rate = self.step.rate(&alone, running, now);
        let (waited, told) = self.step.waited();
        match self.phase {
            Phase::Climbs | Phase::Tries if wide && told > 0 && waited * 4 >= told * 3 => {
                self.too_wide(now);
            }
            Phase::Climbs => self.climb(rate, enough, now),
            Phase::Tries => self.has_tried(rate, now),
            // Everything waited inside the engine: it has fewer slots than when that was found, whatever its agent says.
            Phase::Uses { .. } if wide && waited == told && told >= CHUNKS => *self = Self::new(now),
            Phase::Uses { promised, off } => {
                self.judge(rate, promised.unwrap_or(rate.rate), off, enough, now)
            }
            Phase::GivenUp => self.start(self.best, now),
        }
    }

    /// An attempt crashed, stalled or ran out of memory: fewer at once may fit.
    pub(super) fn failed(&mut self, now: Duration) {
        if self.step.width > 1 {
            self.widest = self.place().saturating_sub(1);
            self.settle(now);
        }
    }

    fn climb(&mut self, rate: Rate, enough: bool, now: Duration) {
        let (here, best) = (self.place(), self.tried[self.best].rate());
        self.tried[here].add(rate);
        if rate.rate >= best * GAIN {
            (self.best, self.bad) = (here, 0);
        } else {
            self.bad += 1;
        }
        if here == self.widest || self.bad >= MAX_BAD {
            self.settle(now);
        } else if enough {
            self.start(here + 1, now);
        } else {
            self.phase = Phase::GivenUp;
            self.start(self.best, now);
        }
    }

    /// The width in use was measured once more: whether another is to be tried again.
    fn judge(&mut self, rate: Rate, promised: f64, off: u32, enough: bool, now: Duration) {
        self.tried[self.best].add(rate);
        let off = if rate.rate * BELOW < promised { off + 1 } else { 0 };
        self.phase = Phase::Uses { promised: Some(promised), off };
        if off >= MAX_OFF {
            // Nothing is as it was when they were compared.
            for tried in &mut self.tried {
                tried.keep(1);
                tried.shaky = true;
            }
            self.phase = Phase::Uses { promised: Some(rate.rate), off: 0 };
        }
        self.rests = self.rests.saturating_sub(1);
        let others = (0..=self.widest).filter(|place| *place != self.best && self.is_in_doubt(*place));
        let by_rate = |a: &usize, b: &usize| self.tried[*a].rate().total_cmp(&self.tried[*b].rate());
        let next = others.max_by(|a, b| by_rate(a, b).then(b.cmp(a)));
        match next {
            Some(place) if self.rests == 0 && enough => {
                self.phase = Phase::Tries;
                self.start(place, now);
            }
            Some(_) | None => self.start(self.best, now),
        }
    }

    /// Whether a step may be better than the best, for all that is known.
    fn is_in_doubt(&self, place: usize) -> bool {
        let (one, best) = (&self.tried[place], &self.tried[self.best]);
        if one.rates.is_empty() {
            return false;
        }
        let error = best.scatter() * (1.0 / one.rates.len() as f64 + 1.0 / best.rates.len() as f64).sqrt();
        one.shaky || (self.needs(place) / one.rate().max(1e-9)).ln() < DOUBT * error
    }

    /// What a step has to do to take the place of the best.
    fn needs(&self, place: usize) -> f64 {
        let best = self.tried[self.best].rate();
        if place > self.best { best * GAIN } else { best }
    }

    /// Another than the best was tried again.
    fn has_tried(&mut self, rate: Rate, now: Duration) {
        let here = self.place();
        // From now on only its measurements call for another look, not their chunks.
        self.tried[here].add(Rate { shaky: false, ..rate });
        if self.tried[here].rate() >= self.needs(here) {
            self.best = here;
        }
        self.rests = self.patience;
        self.patience = self.patience.saturating_mul(2);
        self.settle(now);
    }

    /// The present step has more places than the engine.
    fn too_wide(&mut self, now: Duration) {
        self.serialises = self.step.width == STEPS[1];
        self.widest = self.place().saturating_sub(1);
        self.settle(now);
    }

    fn settle(&mut self, now: Duration) {
        self.best = self.best.min(self.widest);
        let best = &self.tried[self.best];
        self.phase = Phase::Uses { promised: (!best.rates.is_empty()).then(|| best.rate()), off: 0 };
        self.start(self.best, now);
    }

    fn start(&mut self, place: usize, now: Duration) {
        self.step = self.step.then(STEPS[place], now);
    }

    /// The present step's place in [`STEPS`].
    fn place(&self) -> usize {
        STEPS.iter().position(|step| *step == self.step.width).unwrap_or(0)
    }

    /// Whether an attempt waited inside the engine: its first token came only after another's end, and much later than
    /// with nobody beside it. `None` where its first token is not known.
    fn has_waited(&self, sample: &Sample, began: Option<Duration>) -> Option<bool> {
        let began = began.filter(|_| !sample.first.is_zero())?;
        let first = began + sample.first + HEARD_WITHIN;
        let after_an_end = self.ends.iter().any(|end| *end > began && *end <= first);
        let late = sample.first.saturating_sub(sample.load + sample.prompt).as_secs_f64() - self.first_s.0;
        Some(after_an_end && late > sample.decode.as_secs_f64() / 4.0)
    }
}

/// Whether a failure of this class may come of too many at once.
pub(super) fn is_too_much(class: Class) -> bool {
    matches!(
        class,
        Class::LoadFailed | Class::RunnerCrash | Class::EngineError | Class::Stalled | Class::Deadline
    )
}

#[cfg(test)]
mod tests;
