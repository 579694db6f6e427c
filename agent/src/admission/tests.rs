//! Admission as lists of events.

mod health;
mod policy;
mod world;

use tropa_proto::id::{ChunkIndex, JobId};

use super::*;
use crate::clock::now;

const ME: Incarnation = Incarnation(7);

fn key(peer: u8, no: u32) -> Key {
    (AgentId([peer; 32]), AttemptId { job: JobId([peer; 16]), chunk: ChunkIndex(0), no })
}

fn run(key: Key, runner: &str) -> Event {
    Event::Run { key, incarnation: ME, runner: Ok(runner.to_owned()), at_once: 64, room: true }
}

fn started(actions: &[Action]) -> Vec<Key> {
    let start = |action: &Action| if let Action::Start { key, .. } = action { Some(*key) } else { None };
    actions.iter().filter_map(start).collect()
}

/// An admission whose lane is held and where `key(1, 1)` runs.
fn busy(width: usize) -> (Admission, Instant) {
    let (mut admission, at) = (Admission::new(ME, width), now());
    assert!(admission.handle(run(key(1, 1), "m"), at).contains(&Action::Acquire));
    let actions = admission.handle(Event::LaneHeld { dirty: false }, at);
    assert_eq!(started(&actions), [key(1, 1)]);
    assert!(actions.contains(&Action::Accept(key(1, 1), Place::Running)));
    (admission, at)
}

/// The coordinator of a peer's job says that it lives.
fn renew(admission: &mut Admission, peer: u8, at: Instant) {
    admission.handle(Event::Renew(AgentId([peer; 32]), JobId([peer; 16])), at);
}

fn end(admission: &mut Admission, key: Key, at: Instant) -> Vec<Action> {
    let mut actions = admission.handle(Event::Ended { key, may_run: false }, at);
    actions.extend(admission.handle(Event::Finished(key, None), at));
    actions
}

#[test]
fn what_may_be_loaded_anywhere_takes_all_devices_of_the_install_and_gives_them_back() {
    let (mut admission, at) = busy(1);
    assert!(!admission.takes_all());
    admission.place(BTreeSet::from([key(1, 2)]));
    admission.handle(run(key(1, 2), "other"), at);
    let actions = end(&mut admission, key(1, 1), at);
    let place = |action: &Action| actions.iter().position(|found| found == action);
    assert!(started(&actions).is_empty(), "not with the devices of the first");
    assert!(place(&Action::Release) < place(&Action::Acquire) && place(&Action::Release).is_some());
    assert!(admission.takes_all());
    assert_eq!(started(&admission.handle(Event::LaneHeld { dirty: false }, at)), [key(1, 2)]);
    admission.handle(run(key(1, 3), "other"), at);
    assert_eq!(admission.handle(Event::Placed { someone_waits: true }, at), [], "it is not loaded yet");
    admission.place(BTreeSet::new());
    assert_eq!(admission.handle(Event::Placed { someone_waits: false }, at), [], "nobody else wants them");
    admission.handle(Event::Placed { someone_waits: true }, at);
    let actions = end(&mut admission, key(1, 2), at);
    assert!(started(&actions).is_empty() && actions.contains(&Action::Acquire), "{actions:?}");
    assert!(!admission.takes_all());
    assert_eq!(started(&admission.handle(Event::LaneHeld { dirty: false }, at)), [key(1, 3)]);
}

#[test]
fn one_next_attempt_for_each_coordinator_lies_ready_and_a_second_is_refused() {
    let (mut admission, at) = busy(1);
    for peer in [1, 2] {
        let next = admission.handle(run(key(peer, 2), "m"), at);
        assert_eq!(next, [Action::Accept(key(peer, 2), Place::Next)]);
        let more = admission.handle(run(key(peer, 3), "m"), at);
        assert_eq!(more, [Action::Refuse(key(peer, 3), Refusal::Busy { retry_ms: RETRY_MS })]);
    }
    let actions = admission.handle(Event::Ended { key: key(1, 1), may_run: false }, at);
    assert_eq!(started(&actions), [key(2, 2)], "in turn, before the digest of the first is checked");
}

#[test]
fn an_attempt_starts_only_while_so_few_are_at_the_engine_as_its_coordinator_wants_and_nobody_passes_it() {
    let run =
        |key, at_once| Event::Run { key, incarnation: ME, runner: Ok("m".to_owned()), at_once, room: true };
    let (mut admission, at) = busy(8);
    assert_eq!(started(&admission.handle(run(key(1, 2), 2), at)), [key(1, 2)]);
    assert_eq!(started(&admission.handle(run(key(2, 1), 1), at)), [], "two are at the engine");
    assert_eq!(started(&admission.handle(run(key(1, 3), 4), at)), [], "the other coordinator is next");
    let refused = admission.handle(run(key(2, 2), 1), at);
    assert_eq!(refused, [Action::Refuse(key(2, 2), Refusal::Busy { retry_ms: RETRY_MS })]);
    assert_eq!(started(&end(&mut admission, key(1, 1), at)), []);
    let then = started(&end(&mut admission, key(1, 2), at));
    assert_eq!(then, [key(2, 1), key(1, 3)], "in turn; the second is content with four");
}

#[test]
fn what_waits_follows_the_newest_word_of_its_coordinator_about_the_width() {
    let run =
        |key, at_once| Event::Run { key, incarnation: ME, runner: Ok("m".to_owned()), at_once, room: true };
    let (mut admission, at) = busy(8);
    assert_eq!(started(&admission.handle(run(key(1, 2), 1), at)), [], "one is at the engine");
    let both = [key(1, 2), key(1, 3)];
    assert_eq!(started(&admission.handle(run(key(1, 3), 4), at)), both, "the first one holds nobody up");
}

#[test]
fn the_width_is_filled_and_not_passed() {
    let (mut admission, at) = busy(2);
    assert_eq!(started(&admission.handle(run(key(1, 2), "m"), at)), [key(1, 2)]);
    assert_eq!(started(&admission.handle(run(key(1, 3), "m"), at)), []);
    assert_eq!((admission.running(), admission.queued()), (2, 1));
}

#[test]
fn the_same_run_again_is_answered_and_not_executed_again() {
    let (mut admission, at) = busy(1);
    let again = |admission: &mut Admission| admission.handle(run(key(1, 1), "m"), at);
    assert_eq!(again(&mut admission), [Action::Accept(key(1, 1), Place::Running)]);
    end(&mut admission, key(1, 1), at);
    assert_eq!(again(&mut admission), [Action::Deliver(key(1, 1))]);
    assert_eq!(admission.handle(Event::Ack(key(1, 1)), at), [Action::Discard(key(1, 1))]);
    assert_eq!(admission.handle(Event::Ack(key(1, 1)), at), []);
    assert!(matches!(again(&mut admission)[..], [Action::Fail(..)]));
    let foreign = admission.handle(run((AgentId([9; 32]), key(1, 1).1), "m"), at);
    assert_eq!(started(&foreign).len(), 1, "the same number from another sender is another attempt");
}

#[test]
fn what_was_refused_or_given_back_does_not_start_when_its_run_comes_once_more() {
    let (mut admission, at) = busy(1);
    admission.handle(run(key(1, 2), "m"), at);
    let again = |admission: &mut Admission, no| admission.handle(run(key(1, no), "m"), at);
    assert!(matches!(again(&mut admission, 3)[..], [Action::Refuse(_, Refusal::Busy { .. })]));
    admission.handle(Event::Cancel(key(1, 2)), at);
    assert!(
        matches!(again(&mut admission, 3)[..], [Action::Refuse(..)]),
        "there would be a place for it now"
    );
    for acknowledged in [3, 9] {
        assert_eq!(admission.handle(Event::Ack(key(1, acknowledged)), at), []);
        let run = again(&mut admission, acknowledged);
        assert!(matches!(run[..], [Action::Fail(..)]), "whether or not it had arrived: {run:?}");
    }
}

#[test]
fn another_sender_can_neither_cancel_nor_acknowledge() {
    let (mut admission, at) = busy(1);
    let thief = (AgentId([9; 32]), key(1, 1).1);
    let actions = admission.handle(Event::Cancel(thief), at);
    assert!(matches!(&actions[..], [Action::Fail(told, _)] if *told == thief));
    end(&mut admission, key(1, 1), at);
    assert_eq!(admission.handle(Event::Ack(thief), at), []);
    assert_eq!(admission.handle(run(key(1, 1), "m"), at), [Action::Deliver(key(1, 1))]);
}

#[test]
fn a_cancel_takes_back_what_waits_hangs_up_on_what_runs_and_outruns_its_run() {
    let (mut admission, at) = busy(1);
    admission.handle(run(key(1, 2), "m"), at);
    let taken_back = admission.handle(Event::Cancel(key(1, 2)), at);
    assert!(matches!(&taken_back[..], [Action::Fail(_, failure)] if failure.reason == Reason::Cancelled));
    assert_eq!(admission.handle(Event::Cancel(key(1, 1)), at), [Action::HangUp(key(1, 1))]);
    assert!(matches!(admission.handle(Event::Cancel(key(1, 3)), at)[..], [Action::Fail(..)]));
    assert!(matches!(admission.handle(run(key(1, 3), "m"), at)[..], [Action::Fail(..)]), "it does not start");
}

#[test]
fn only_what_has_not_started_is_given_back_and_what_runs_says_so_and_goes_on() {
    let (mut admission, at) = busy(1);
    admission.handle(run(key(1, 2), "m"), at);
    let given_back = admission.handle(Event::TakeBack(key(1, 2)), at);
    assert!(matches!(&given_back[..], [Action::Fail(_, failure)] if failure.reason == Reason::Cancelled));
    let goes_on = [Action::Accept(key(1, 1), Place::Running)];
    assert_eq!(admission.handle(Event::TakeBack(key(1, 1)), at), goes_on);
    end(&mut admission, key(1, 1), at);
    assert_eq!(admission.handle(Event::TakeBack(key(1, 1)), at), [Action::Deliver(key(1, 1))]);
    assert!(matches!(admission.handle(Event::TakeBack(key(1, 3)), at)[..], [Action::Fail(..)]));
    assert!(matches!(admission.handle(run(key(1, 3), "m"), at)[..], [Action::Fail(..)]), "it does not start");
}

#[test]
fn after_a_hang_up_nothing_starts_before_it_is_settled() {
    let (mut admission, at) = busy(1);
    admission.handle(run(key(1, 2), "m"), at);
    let actions = admission.handle(Event::Ended { key: key(1, 1), may_run: true }, at);
    assert_eq!(actions, [Action::Settle, Action::Accept(key(1, 2), Place::Settling)]);
    let cancelled = failure(Reason::Cancelled, "x");
    assert!(started(&admission.handle(Event::Finished(key(1, 1), Some(cancelled)), at)).is_empty());
    let later = at + Duration::from_secs(3);
    let actions = admission.handle(Event::Settled, later);
    let waited = Duration::from_secs(3);
    assert!(actions.contains(&Action::Start { key: key(1, 2), waited }), "{actions:?}");
}

#[test]
fn what_an_earlier_holder_left_is_settled_first() {
    let (mut admission, at) = (Admission::new(ME, 1), now());
    admission.handle(run(key(1, 1), "m"), at);
    let actions = admission.handle(Event::LaneHeld { dirty: true }, at);
    assert_eq!(actions, [Action::Settle, Action::Accept(key(1, 1), Place::Settling)]);
    assert_eq!(started(&admission.handle(Event::Settled, at)), [key(1, 1)]);
}

#[test]
fn who_holds_the_devices_is_told_and_a_wait_that_nobody_wants_is_given_up() {
    let (mut admission, at) = (Admission::new(ME, 1), now());
    let actions = admission.handle(run(key(1, 1), "m"), at);
    assert_eq!(actions, [Action::Acquire, Action::Accept(key(1, 1), Place::Next)]);
    let waiting = Place::Waiting(Text::cut("other"));
    let actions = admission.handle(Event::LaneBlocked("other".to_owned()), at);
    assert_eq!(actions, [Action::Accept(key(1, 1), waiting.clone())]);
    assert_eq!(admission.handle(run(key(1, 1), "m"), at), [Action::Accept(key(1, 1), waiting)]);
    let actions = admission.handle(Event::Cancel(key(1, 1)), at);
    assert!(matches!(actions[..], [Action::Fail(..), Action::Release]));
    assert_eq!(admission.handle(Event::LaneHeld { dirty: false }, at), [], "a late answer changes nothing");
}

#[test]
fn the_lane_is_kept_between_attempts_and_given_back_when_nothing_comes() {
    let (mut admission, at) = busy(1);
    admission.handle(run(key(1, 2), "m"), at);
    assert!(!end(&mut admission, key(1, 1), at).contains(&Action::Release));
    assert!(!end(&mut admission, key(1, 2), at).contains(&Action::Release));
    let tick = Event::Tick { someone_waits: true, displaced: false };
    assert_eq!(admission.next_deadline(), Some(at + LINGER));
    assert_eq!(admission.handle(tick.clone(), at + LINGER / 2), []);
    assert_eq!(admission.handle(tick, at + LINGER), [Action::Release]);
    assert_eq!(admission.next_deadline(), None);
}

#[test]
fn after_its_turn_a_lane_that_others_wait_for_drains_and_asks_again() {
    let (mut admission, at) = busy(1);
    admission.handle(run(key(1, 2), "m"), at);
    let tick = |someone_waits| Event::Tick { someone_waits, displaced: false };
    let over = at + TURN;
    for passed in (5..=60).step_by(5) {
        renew(&mut admission, 1, at + Duration::from_secs(passed));
    }
    assert_eq!(admission.next_deadline(), Some(over));
    assert_eq!(admission.handle(tick(false), over), []);
    assert_eq!(admission.next_deadline(), Some(over + LOOK), "nobody waits: look again");
    assert_eq!(admission.handle(tick(true), over + LOOK), []);
    let actions = admission.handle(Event::Ended { key: key(1, 1), may_run: false }, over + LOOK);
    assert_eq!(actions, [Action::Accept(key(1, 1), Place::Checking), Action::Release, Action::Acquire]);
    let actions = admission.handle(Event::LaneHeld { dirty: false }, over + 2 * LOOK);
    assert_eq!(started(&actions), [key(1, 2)]);
}

#[test]
fn other_runner_options_wait_for_the_turn_and_for_what_runs() {
    let (mut admission, at) = busy(2);
    assert_eq!(started(&admission.handle(run(key(2, 1), "other"), at)), [], "it would load the model anew");
    assert_eq!(started(&admission.handle(run(key(1, 2), "m"), at)), [key(1, 2)]);
    admission.handle(run(key(1, 3), "m"), at);
    assert_eq!(started(&end(&mut admission, key(1, 1), at)), [key(1, 3)], "while the turn lasts");
    admission.handle(run(key(1, 4), "m"), at);
    let late = at + TURN;
    for passed in (5..=60).step_by(5) {
        renew(&mut admission, 1, at + Duration::from_secs(passed));
        renew(&mut admission, 2, at + Duration::from_secs(passed));
    }
    assert_eq!(started(&end(&mut admission, key(1, 2), late)), []);
    assert_eq!(started(&end(&mut admission, key(1, 3), late)), [key(2, 1)]);
    assert_eq!(started(&end(&mut admission, key(2, 1), late)), [key(1, 4)]);
}

#[test]
fn draining_gives_back_what_waits_and_lets_go_on_what_runs() {
    let (mut admission, at) = busy(1);
    admission.handle(run(key(1, 2), "m"), at);
    let actions = admission.handle(Event::Drain("stop".to_owned()), at);
    let leaving = Refusal::Draining(Text::cut("stop"));
    assert_eq!(actions, [Action::Refuse(key(1, 2), leaving.clone())]);
    assert_eq!(admission.handle(run(key(1, 3), "m"), at), [Action::Refuse(key(1, 3), leaving)]);
    assert_eq!(admission.handle(run(key(1, 1), "m"), at), [Action::Accept(key(1, 1), Place::Running)]);
    assert!(end(&mut admission, key(1, 1), at).contains(&Action::Deliver(key(1, 1))));
}

#[test]
fn stale_full_and_malformed_are_refused_without_a_start() {
    let (mut admission, at) = (Admission::new(ME, 1), now());
    let stale = Event::Run {
        key: key(1, 1),
        incarnation: Incarnation(6),
        runner: Ok(String::new()),
        at_once: 1,
        room: true,
    };
    assert_eq!(admission.handle(stale, at), [Action::Refuse(key(1, 1), Refusal::Stale(ME))]);
    let full =
        Event::Run { key: key(1, 1), incarnation: ME, runner: Ok(String::new()), at_once: 1, room: false };
    assert!(matches!(admission.handle(full, at)[..], [Action::Refuse(_, Refusal::Draining(_))]));
    let wrong = failure(Reason::BadRequest, "x");
    let malformed = Event::Run {
        key: key(1, 2),
        incarnation: ME,
        runner: Err(Unfit::Failed(wrong.clone())),
        at_once: 1,
        room: true,
    };
    assert_eq!(admission.handle(malformed, at), [Action::Fail(key(1, 2), wrong)]);
}

#[test]
fn locks_that_fail_give_everything_back() {
    let (mut admission, at) = (Admission::new(ME, 1), now());
    admission.handle(run(key(1, 1), "m"), at);
    let actions = admission.handle(Event::LaneFailed("disk".to_owned()), at);
    assert_eq!(actions, [Action::Refuse(key(1, 1), Refusal::Draining(Text::cut("disk")))]);
    assert!(admission.handle(run(key(1, 2), "m"), at).contains(&Action::Acquire), "nothing was started");
}

#[test]
fn an_attempt_that_could_not_start_is_given_back_and_the_locks_are_taken_anew() {
    let (mut admission, at) = busy(1);
    admission.handle(run(key(2, 1), "m"), at);
    let actions = admission.handle(Event::NotStarted(key(1, 1), "disk".to_owned()), at);
    let refused = Action::Refuse(key(1, 1), Refusal::Draining(Text::cut("disk")));
    assert_eq!(actions, [refused.clone(), Action::Release, Action::Acquire]);
    assert_eq!(admission.handle(run(key(1, 1), "m"), at), [refused], "its coordinator makes another one");
}

/// An attempt that fails as it arrives.
fn malformed(admission: &mut Admission, no: u32, at: Instant) -> Vec<Action> {
    let runner = Err(Unfit::Failed(failure(Reason::BadRequest, "x")));
    admission.handle(Event::Run { key: key(1, no), incarnation: ME, runner, at_once: 1, room: true }, at)
}

#[test]
fn what_is_acknowledged_is_forgotten_before_what_failed_and_what_runs_is_not() {
    let (mut admission, at) = busy(1);
    let known = u32::try_from(MAX_KNOWN).unwrap();
    for no in 2..=known {
        malformed(&mut admission, no, at);
    }
    assert_eq!(admission.known.len(), MAX_KNOWN);
    assert!(admission.knows(&key(1, 2)), "as many as may be known are");
    admission.handle(Event::Ack(key(1, 9)), at);
    for (no, forgotten) in [(known + 1, 9), (known + 2, 2), (known + 3, 3)] {
        assert!(admission.knows(&key(1, forgotten)));
        assert!(matches!(malformed(&mut admission, no, at)[..], [Action::Fail(..)]));
        assert!(!admission.knows(&key(1, forgotten)) && admission.knows(&key(1, no)), "{no}");
        assert_eq!(admission.known.len(), MAX_KNOWN);
    }
    assert!(admission.knows(&key(1, 1)), "it runs");
}

#[test]
fn results_that_wait_are_never_forgotten_and_at_the_cap_new_work_is_refused() {
    let (mut admission, at) = busy(1);
    let known = u32::try_from(MAX_KNOWN).unwrap();
    for no in 1..known {
        end(&mut admission, key(1, no), at);
        renew(&mut admission, 1, at);
        assert_eq!(started(&admission.handle(run(key(1, no + 1), "m"), at)), [key(1, no + 1)]);
    }
    end(&mut admission, key(1, known), at);
    let refused = admission.handle(run(key(1, known + 1), "m"), at);
    assert!(matches!(refused[..], [Action::Refuse(_, Refusal::Draining(_))]), "{refused:?}");
    assert!(matches!(malformed(&mut admission, known + 2, at)[..], [Action::Refuse(..)]));
    assert_eq!(admission.known.len(), MAX_KNOWN);
    assert_eq!(admission.handle(Event::Fetch(key(1, 1)), at), [Action::Deliver(key(1, 1))]);
    // A cancel of what never came is answered all the same.
    assert!(matches!(admission.handle(Event::Cancel(key(1, known + 3)), at)[..], [Action::Fail(..)]));
    admission.handle(Event::Ack(key(1, 1)), at);
    assert_eq!(started(&admission.handle(run(key(1, known + 1), "m"), at)), [key(1, known + 1)]);
}

#[test]
fn an_acknowledged_attempt_is_known_for_ten_minutes_and_another_for_longer() {
    let (mut admission, at) = busy(1);
    end(&mut admission, key(1, 1), at);
    malformed(&mut admission, 2, at);
    admission.handle(Event::Ack(key(1, 1)), at);
    let tick = Event::Tick { someone_waits: false, displaced: false };
    admission.handle(tick.clone(), at + KNOWN_AFTER_ACK - Duration::from_millis(1));
    assert!(admission.knows(&key(1, 1)));
    admission.handle(tick, at + KNOWN_AFTER_ACK);
    assert!(!admission.knows(&key(1, 1)) && admission.knows(&key(1, 2)));
}

#[test]
fn sixty_four_attempts_wait_and_eight_jobs_of_one_coordinator() {
    let (mut admission, at) = busy(1);
    let waiting = u8::try_from(MAX_WAITING).unwrap();
    for peer in 2..=waiting + 1 {
        assert_eq!(admission.handle(run(key(peer, 1), "m"), at), [Action::Accept(key(peer, 1), Place::Next)]);
    }
    let busy = [Action::Refuse(key(100, 1), Refusal::Busy { retry_ms: RETRY_MS })];
    assert_eq!(admission.handle(run(key(100, 1), "m"), at), busy);
    admission.handle(Event::Cancel(key(2, 1)), at);
    assert_eq!(admission.handle(run(key(100, 2), "m"), at), [Action::Accept(key(100, 2), Place::Next)]);

    let mut admission = Admission::new(ME, 32);
    let of_job = |job: u8, no| {
        let attempt = AttemptId { job: JobId([job; 16]), chunk: ChunkIndex(0), no };
        (AgentId([1; 32]), attempt)
    };
    for job in 0..u8::try_from(MAX_JOBS).unwrap() {
        assert!(
            admission.handle(run(of_job(job, 1), "m"), at).iter().all(|a| !matches!(a, Action::Refuse(..)))
        );
    }
    let ninth = of_job(100, 1);
    assert_eq!(
        admission.handle(run(ninth, "m"), at),
        [Action::Refuse(ninth, Refusal::Busy { retry_ms: RETRY_MS })]
    );
    assert!(matches!(admission.handle(run(of_job(0, 2), "m"), at)[..], [Action::Accept(..)]));
}

#[test]
fn an_attempt_and_its_next_are_both_taken_before_the_devices_are_ours() {
    let (mut admission, at) = (Admission::new(ME, 1), now());
    assert!(admission.handle(run(key(1, 1), "m"), at).contains(&Action::Acquire));
    let next = admission.handle(run(key(1, 2), "m"), at);
    assert!(!next.iter().any(|action| matches!(action, Action::Refuse(..))), "{next:?}");
    let third = admission.handle(run(key(1, 3), "m"), at);
    assert_eq!(third, [Action::Refuse(key(1, 3), Refusal::Busy { retry_ms: RETRY_MS })]);
}

#[test]
fn what_has_not_started_is_dropped_when_its_coordinator_is_silent_and_what_runs_goes_on() {
    let (mut admission, at) = busy(1);
    admission.handle(run(key(1, 2), "m"), at);
    admission.handle(run(key(2, 1), "m"), at);
    let tick = Event::Tick { someone_waits: false, displaced: false };
    let almost = at + LEASE - Duration::from_millis(1);
    assert_eq!(admission.handle(tick.clone(), almost), []);
    assert_eq!(admission.next_deadline(), Some(at + LEASE));
    admission.handle(Event::Renew(AgentId([2; 32]), JobId([2; 16])), almost);
    let dropped = admission.handle(tick.clone(), at + LEASE);
    assert_eq!(dropped, [Action::Refuse(key(1, 2), Refusal::Unknown)], "the renewed one stays");
    assert_eq!((admission.running(), admission.queued()), (1, 1));
    // It was never executed, so the same attempt may come again.
    assert_eq!(admission.handle(run(key(1, 2), "m"), at + LEASE), [Action::Accept(key(1, 2), Place::Next)]);
}

#[test]
fn what_is_held_of_a_job_is_named_until_it_is_acknowledged_and_only_to_its_sender() {
    let (mut admission, at) = busy(1);
    admission.handle(run(key(1, 2), "m"), at);
    let held = |admission: &Admission, peer| -> Vec<Holding> {
        admission.held(AgentId([peer; 32]), JobId([1; 16])).collect()
    };
    let open = |no, running| Holding::Open { attempt: key(1, no).1, running };
    assert_eq!(held(&admission, 1), [open(1, true), open(2, false)]);
    assert_eq!(held(&admission, 9), []);
    end(&mut admission, key(1, 1), at);
    assert_eq!(held(&admission, 1), [Holding::Ended(key(1, 1).1), open(2, true)]);
    admission.handle(Event::Ack(key(1, 1)), at);
    assert_eq!(held(&admission, 1), [open(2, true)]);
}

#[test]
fn a_fetch_reads_the_present_state_and_starts_nothing() {
    let (mut admission, at) = busy(1);
    let fetch = |admission: &mut Admission, key| admission.handle(Event::Fetch(key), at);
    assert_eq!(fetch(&mut admission, key(1, 1)), [Action::Accept(key(1, 1), Place::Running)]);
    assert_eq!(fetch(&mut admission, key(1, 7)), [Action::Refuse(key(1, 7), Refusal::Unknown)]);
    let thief = (AgentId([9; 32]), key(1, 1).1);
    assert_eq!(fetch(&mut admission, thief), [Action::Refuse(thief, Refusal::Unknown)]);
    end(&mut admission, key(1, 1), at);
    assert_eq!(fetch(&mut admission, key(1, 1)), [Action::Deliver(key(1, 1))]);
    assert_eq!(fetch(&mut admission, thief), [Action::Refuse(thief, Refusal::Unknown)]);
    admission.handle(Event::Ack(key(1, 1)), at);
    assert_eq!(fetch(&mut admission, key(1, 1)), [Action::Refuse(key(1, 1), Refusal::Unknown)]);
}
