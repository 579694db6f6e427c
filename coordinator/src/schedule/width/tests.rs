use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// An engine with a slot for each entry of its curve: what it does in all with so many at once.
struct Engine {
    search: Search,
    curve: Vec<f64>,
    now: Duration,
    /// Since when each place is taken, and how much is left of its second.
    places: Vec<(Duration, f64)>,
    widths: Vec<usize>,
}

impl Engine {
    fn new(curve: &[f64]) -> Self {
        let search = Search::new(Duration::ZERO);
        Self { search, curve: curve.to_vec(), now: Duration::ZERO, places: Vec::new(), widths: vec![1] }
    }

    /// Works on so many chunks of a second alone; `enough` of them wait. Speeds are those of `weather`, by the
    /// time and by how many are at work.
    fn work(&mut self, chunks: u32, enough: u32, weather: impl Fn(f64, usize) -> f64) {
        for n in 0..chunks {
            while self.places.len() < self.search.width() {
                self.places.push((self.now, 1.0));
            }
            let least = self.places.iter().map(|place| place.1).fold(f64::INFINITY, f64::min);
            let many = self.places.len();
            let speed = self.curve[many - 1] / many as f64 * weather(self.now.as_secs_f64(), many);
            self.now += Duration::from_secs_f64(least / speed);
            self.places.iter_mut().for_each(|place| place.1 -= least);
            let over = self.places.iter().position(|place| place.1 <= 1e-9).expect("the first one");
            let (began, _) = self.places.remove(over);
            let sample = chunk(self.now - began);
            let running: Vec<Duration> = self.places.iter().map(|place| place.0).collect();
            let pace = Pace::first(&chunk(SECOND));
            self.search.ended(&sample, Some(began), (&pace, &running), n < enough, self.now);
            if self.widths.last() != Some(&self.search.width()) {
                self.widths.push(self.search.width());
            }
        }
    }
}

/// A chunk that took so long and waited for nothing.
fn chunk(wall: Duration) -> Sample {
    Sample {
        prompt_tokens: 10,
        output_tokens: 100,
        wall,
        first: Duration::from_millis(20),
        prompt: Duration::from_millis(10),
        decode: wall.saturating_sub(Duration::from_millis(10)),
        ..Sample::default()
    }
}

/// What is found at an install that does so much in all with so many at once.
fn found(curve: &[f64], chunks: u32, enough: u32) -> (Search, Vec<usize>) {
    let mut engine = Engine::new(curve);
    engine.work(chunks, enough, |_, _| 1.0);
    (engine.search, engine.widths)
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
    let (search, widths) = found(&curve(1.5, 2.0, 3.0), 60, 6);
    assert_eq!(widths, [1, 2]);
    assert_eq!(search.found(), None);
}

#[test]
fn a_failure_makes_it_narrower_for_good() {
    let (mut search, _) = found(&curve(1.5, 2.0, 3.0), 60, 60);
    assert_eq!(search.width(), 8);
    search.failed(SECOND);
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
        let wall = SECOND * (beside + 1);
        let sample = Sample { first: alone.first + SECOND * beside, wall, ..alone };
        let began = now.checked_sub(SECOND * beside).unwrap_or_default();
        now += SECOND;
        search.ended(&sample, Some(began), (&pace, &[]), true, now);
    }
    now
}

#[test]
fn an_install_that_lets_others_wait_is_found_after_a_few_chunks() {
    let mut search = Search::new(Duration::ZERO);
    serialised(&mut search, Duration::ZERO, 16);
    assert_eq!(search.found(), Some(Width { at_once: 1, serialises: true }));
    assert_eq!(search.width(), 1);
}

#[test]
fn what_was_remembered_of_another_process_is_found_out_and_measured_anew() {
    let mut search = Search::remembered(Width { at_once: 4, serialises: false }, Duration::ZERO);
    let mut now = Duration::ZERO;
    while search.width() > 1 {
        now = serialised(&mut search, now, 1);
    }
    assert!(search.found().is_none() && now < SECOND * 24, "after {now:?}");
    serialised(&mut search, now, 30);
    assert_eq!(search.found(), Some(Width { at_once: 1, serialises: true }));
}

#[test]
fn chunks_that_agree_are_enough_by_four_and_others_are_not() {
    let mut engine = Engine::new(&curve(1.5, 2.0, 3.0));
    engine.work(5, 100, |_, _| 1.0);
    assert_eq!(engine.widths, [1, 2]);
    let mut engine = Engine::new(&curve(1.5, 2.0, 3.0));
    engine.work(7, 100, |at, _| if (at as u64).is_multiple_of(3) { 0.5 } else { 1.0 });
    assert_eq!(engine.widths, [1], "a third of them took twice as long");
}

#[test]
fn a_step_that_lost_by_bad_luck_is_tried_again_and_one_that_lost_fairly_is_not() {
    // The first four at once meet a machine that does something else.
    let mut engine = Engine::new(&curve(1.2, 1.8, 1.3));
    let busy = |at: f64, many| if at < 16.0 && many == 4 { 0.2 } else { 1.0 };
    engine.work(150, 150, busy);
    assert_eq!(engine.search.found(), Some(Width { at_once: 4, serialises: false }), "{:?}", engine.widths);
    let mut engine = Engine::new(&curve(1.5, 1.2, 1.2));
    engine.work(300, 300, |_, _| 1.0);
    assert_eq!(engine.widths, [1, 2, 4, 8, 2], "nothing is tried twice where nothing is in doubt");
}

#[test]
fn a_width_that_no_longer_does_what_it_promised_is_left_and_no_two_take_turns() {
    let mut engine = Engine::new(&curve(1.5, 2.0, 2.0));
    engine.work(60, 60, |_, _| 1.0);
    assert_eq!(engine.search.width(), 4);
    engine.widths.clear();
    // Somebody else has come: alone it is as fast as with others.
    engine.curve = curve(0.9, 0.6, 0.5);
    engine.work(400, 400, |_, _| 1.0);
    assert!(engine.search.width() < 4, "{:?}", engine.widths);
    assert!(engine.widths.len() < 12, "{:?}", engine.widths);
}
