//! How many chunks one install should work on at once: measured, since nothing in Ollama's API says it.
//!
//! An install that batches gives more tokens in all with several requests at a time; one that does not lets them wait
//! for each other. So the widths 1, 2, 4, 8 are tried in turn, each over some chunks, and a wider step is kept where
//! it does a tenth more than what was best before. The curve is not monotone (`ollama-api.md` §6): one step that is no
//! better does not end the search, two in a row do. Where the added chunks only wait for the others' ends the install
//! has no more slots, and the search is over.

use std::{collections::VecDeque, time::Duration};

use tropa_proto::{failure::Class, message::MAX_MEASURED_WIDTH};

use super::pace::{Pace, Sample};

/// The widths that are tried.
const STEPS: [usize; 4] = [1, 2, 4, MAX_MEASURED_WIDTH as usize];

/// Chunks over which a step is measured.
const CHUNKS: u32 = 8;

/// What a wider step must do more than the best before, to be worth its memory.
const GAIN: f64 = 1.10;

/// Steps without gain, one after the other, that end the search.
const MAX_BAD: u32 = 2;

/// Chunks that all waited for another's end prove a step too wide before it is measured to its end.
const WAITED_ENOUGH: u32 = 4;

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
    /// The best width so far and what it did, in seconds of work alone for each second.
    best: (usize, f64),
    bad: u32,
    /// How long chunks take with nobody beside them; known when the first step is measured.
    alone: Option<Pace>,
    /// First tokens came so long after loading and reading with nobody beside them, in seconds.
    first_s: f64,
    found: Option<Width>,
    /// Too little waits to go on: the best so far serves this job, and the next one searches again.
    given_up: bool,
    ends: VecDeque<Duration>,
}

/// One width being tried or in use.
#[derive(Clone, Debug)]
struct Step {
    width: usize,
    /// Ends to pass over: attempts that began before the step.
    skip: usize,
    since: Option<Duration>,
    prompt: u64,
    output: u64,
    ended: u32,
    judged: u32,
    waited: u32,
}

impl Step {
    fn new(width: usize, skip: usize) -> Self {
        Self { width, skip, since: None, prompt: 0, output: 0, ended: 0, judged: 0, waited: 0 }
    }
}

impl Search {
    pub(super) fn new() -> Self {
        Self {
            step: Step::new(STEPS[0], 1),
            best: (STEPS[0], 0.0),
            bad: 0,
            alone: None,
            first_s: 0.0,
            found: None,
            given_up: false,
            ends: VecDeque::new(),
        }
    }

    /// Starts with what an earlier job found at this install.
    pub(super) fn remembered(width: Width) -> Self {
        let at_once = usize::from(width.at_once.max(1)).min(STEPS[STEPS.len() - 1]);
        Self { step: Step::new(at_once, at_once), found: Some(width), ..Self::new() }
    }

    /// How many chunks at once, at present.
    pub(super) fn width(&self) -> usize {
        self.step.width
    }

    /// What was found; `None` while the search goes on.
    pub(super) fn found(&self) -> Option<Width> {
        self.found
    }

    /// Chunks that should wait for this install before it tries the next step: to measure it and to gain from it.
    pub(super) fn wants(&self) -> u64 {
        3 * (u64::from(CHUNKS) + 2 * self.step.width as u64)
    }

    /// An attempt has ended with a result. `began` is when it was at the engine; `pace` the install's at present;
    /// `enough`: more than [`Self::wants`] wait.
    pub(super) fn ended(
        &mut self,
        sample: &Sample,
        began: Option<Duration>,
        pace: &Pace,
        enough: bool,
        now: Duration,
    ) {
        let waited = self.has_waited(sample, began);
        self.ends.push_back(now);
        if self.ends.len() > MAX_ENDS {
            self.ends.pop_front();
        }
        if self.step.skip > 0 {
            self.step.skip -= 1;
            self.step.since = Some(now);
            return;
        }
        self.step.ended += 1;
        self.step.prompt += u64::from(sample.prompt_tokens);
        self.step.output += u64::from(sample.output_tokens);
        self.step.judged += u32::from(waited.is_some());
        self.step.waited += u32::from(waited == Some(true));
        if self.alone.is_none() && self.step.width == STEPS[0] {
            let first = sample.first.saturating_sub(sample.load + sample.prompt).as_secs_f64();
            self.first_s += (first - self.first_s) / f64::from(self.step.ended);
        }
        let Step { ended, judged, waited, .. } = self.step;
        let all_waited = judged >= WAITED_ENOUGH && waited == judged;
        let wide = self.step.width > STEPS[0];
        if self.found.is_none() && !self.given_up {
            if wide && all_waited {
                self.conclude(true);
            } else if ended >= CHUNKS {
                self.measured(pace, enough, now);
            }
        } else if ended >= CHUNKS {
            if wide && all_waited && judged >= CHUNKS {
                // Everything waited inside the engine: its process is another one, with fewer slots.
                *self = Self::new();
            } else {
                self.step = Step { since: Some(now), ..Step::new(self.step.width, 0) };
            }
        }
    }

    /// An attempt crashed, stalled or ran out of memory: fewer at once may fit.
    pub(super) fn failed(&mut self) {
        if self.step.width > 1 {
            let lower = STEPS.iter().rev().find(|step| **step < self.step.width).copied().unwrap_or(1);
            self.settle(lower, false);
        }
    }

    fn measured(&mut self, pace: &Pace, enough: bool, now: Duration) {
        let waited = self.step.judged > 0 && self.step.waited * 4 >= self.step.judged * 3;
        if waited && self.step.width > 1 {
            return self.conclude(true);
        }
        let alone = *self.alone.get_or_insert(*pace);
        let since = self.step.since.unwrap_or_default();
        let elapsed = now.saturating_sub(since).as_secs_f64().max(1e-6);
        let Step { prompt, output, ended, .. } = self.step;
        let work = alone.overhead_s * f64::from(ended)
            + alone.prompt_s * prompt as f64
            + alone.decode_s * output as f64;
        let rate = work / elapsed;
        if rate >= self.best.1 * GAIN {
            (self.best, self.bad) = ((self.step.width, rate), 0);
        } else {
            self.bad += 1;
        }
        let next = STEPS.iter().find(|step| **step > self.step.width);
        match next {
            Some(next) if self.bad < MAX_BAD && enough => self.step = Step::new(*next, self.step.width),
            Some(_) if self.bad < MAX_BAD => {
                self.given_up = true;
                self.step = Step { since: Some(now), ..Step::new(self.best.0, 0) };
            }
            Some(_) | None => self.conclude(false),
        }
    }

    /// The search is over; `waited`: the present step has more places than the engine.
    fn conclude(&mut self, waited: bool) {
        let serialises = waited && self.step.width == STEPS[1];
        self.settle(self.best.0, serialises);
    }

    fn settle(&mut self, width: usize, serialises: bool) {
        self.found = Some(Width { at_once: u16::try_from(width).unwrap_or(1), serialises });
        self.step = Step::new(width, self.step.width);
    }

    /// Whether an attempt waited inside the engine: its first token came only after another's end, and much later than
    /// with nobody beside it. `None` where its first token is not known.
    fn has_waited(&self, sample: &Sample, began: Option<Duration>) -> Option<bool> {
        let began = began.filter(|_| !sample.first.is_zero())?;
        let first = began + sample.first + HEARD_WITHIN;
        let after_an_end = self.ends.iter().any(|end| *end > began && *end <= first);
        let late = sample.first.saturating_sub(sample.load + sample.prompt).as_secs_f64() - self.first_s;
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
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Feeds chunks of a second to an install that does so much in all with so many at once.
    fn found(curve: &[f64], chunks: u32, enough: u32) -> (Search, Vec<usize>) {
        let sample = Sample {
            prompt_tokens: 10,
            output_tokens: 100,
            wall: SECOND,
            first: Duration::from_millis(20),
            prompt: Duration::from_millis(10),
            decode: Duration::from_millis(990),
            ..Sample::default()
        };
        let pace = Pace::first(&sample);
        let (mut search, mut now, mut widths) = (Search::new(), Duration::ZERO, vec![1]);
        for n in 0..chunks {
            now += SECOND.div_f64(curve[search.width() - 1]);
            search.ended(&sample, None, &pace, n < enough, now);
            if search.width() != widths[widths.len() - 1] {
                widths.push(search.width());
            }
        }
        (search, widths)
    }

    fn curve(two: f64, four: f64, eight: f64) -> Vec<f64> {
        vec![1.0, two, two, four, four, four, four, eight]
    }

    #[test]
    fn the_best_step_is_kept_also_behind_one_that_is_no_better() {
        let (search, widths) = found(&curve(0.9, 1.25, 1.26), 60, 60);
        assert_eq!(widths, [1, 2, 4, 8, 4]);
        assert_eq!(search.found(), Some(Width { at_once: 4, serialises: false }));
    }

    #[test]
    fn two_steps_without_gain_end_the_search_and_a_gain_below_a_tenth_is_none() {
        let (search, widths) = found(&curve(1.08, 1.09, 3.0), 60, 60);
        assert_eq!(widths, [1, 2, 4, 1]);
        assert_eq!(search.found(), Some(Width { at_once: 1, serialises: false }));
    }

    #[test]
    fn nothing_wider_is_tried_when_too_little_waits_and_the_next_job_searches_again() {
        let (search, widths) = found(&curve(1.5, 2.0, 3.0), 60, 12);
        assert_eq!(widths, [1, 2]);
        assert_eq!(search.found(), None);
    }

    #[test]
    fn a_failure_makes_it_narrower_for_good() {
        let (mut search, _) = found(&curve(1.5, 2.0, 3.0), 60, 60);
        assert_eq!(search.width(), 8);
        search.failed();
        assert_eq!(search.found(), Some(Width { at_once: 4, serialises: false }));
    }

    /// One slot: every chunk beside the first waits for the end of the one before.
    fn serialised(search: &mut Search, from: Duration, chunks: u32) -> Duration {
        let alone = Sample {
            output_tokens: 100,
            first: Duration::from_millis(20),
            decode: Duration::from_millis(980),
            wall: SECOND,
            ..Sample::default()
        };
        let pace = Pace::first(&alone);
        let mut now = from;
        for _ in 0..chunks {
            let beside = u32::try_from(search.width() - 1).expect("a small width");
            let sample = Sample { first: alone.first + SECOND * beside, ..alone };
            let began = now.checked_sub(SECOND * beside).unwrap_or_default();
            now += SECOND;
            search.ended(&sample, Some(began), &pace, true, now);
        }
        now
    }

    #[test]
    fn an_install_that_lets_others_wait_is_found_after_a_few_chunks() {
        let mut search = Search::new();
        serialised(&mut search, Duration::ZERO, 9 + 1 + WAITED_ENOUGH);
        assert_eq!(search.found(), Some(Width { at_once: 1, serialises: true }));
        assert_eq!(search.width(), 1);
    }

    #[test]
    fn what_was_remembered_of_another_process_is_found_out_and_measured_anew() {
        let mut search = Search::remembered(Width { at_once: 4, serialises: false });
        let now = serialised(&mut search, Duration::ZERO, 4 + CHUNKS);
        assert_eq!((search.width(), search.found()), (1, None));
        serialised(&mut search, now, 30);
        assert_eq!(search.found(), Some(Width { at_once: 1, serialises: true }));
    }
}
