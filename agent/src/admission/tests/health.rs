//! Engines that fail, and the probe that they get.

use super::*;

/// The attempt at the engine fails, of a chunk of its own number, and the lane is settled where it must be.
fn fails(admission: &mut Admission, key: Key, reason: Reason, at: Instant) -> Vec<Action> {
    admission.handle(Event::Broke { key, may_run: false, failure: failure(reason, "x") }, at)
}

fn of_chunk(chunk: u32) -> Key {
    let (peer, attempt) = key(1, 1);
    (peer, AttemptId { chunk: ChunkIndex(chunk), ..attempt })
}

#[test]
fn an_engine_that_fails_with_two_chunks_in_a_row_gets_no_work_before_it_has_written_a_token() {
    let (mut admission, at) = busy(1);
    admission.handle(run(of_chunk(1), "m"), at);
    let actions = fails(&mut admission, key(1, 1), Reason::Stalled, at);
    assert_eq!(started(&actions), [of_chunk(1)], "one failure may be the chunk's fault");
    admission.handle(run(of_chunk(2), "m"), at);
    let actions = fails(&mut admission, of_chunk(1), Reason::RunnerCrash, at);
    assert!(actions.contains(&Action::Probe) && started(&actions).is_empty(), "{actions:?}");
    let busy = |key| Action::Refuse(key, Refusal::Busy { retry_ms: 1_000 });
    assert!(actions.contains(&busy(of_chunk(2))), "what waited may run elsewhere");
    assert_eq!(admission.handle(run(of_chunk(3), "m"), at), [busy(of_chunk(3))]);
    admission.handle(Event::Probed { works: true, may_run: false }, at);
    assert_eq!(started(&admission.handle(run(of_chunk(4), "m"), at)), [of_chunk(4)]);
}

#[test]
fn a_chunk_that_fails_again_or_a_result_between_two_failures_says_nothing_of_the_engine() {
    let (mut admission, at) = busy(1);
    let again = (key(1, 1).0, AttemptId { no: 2, ..key(1, 1).1 });
    admission.handle(run(again, "m"), at);
    assert_eq!(started(&fails(&mut admission, key(1, 1), Reason::Stalled, at)), [again]);
    admission.handle(run(of_chunk(2), "m"), at);
    assert_eq!(started(&fails(&mut admission, again, Reason::Stalled, at)), [of_chunk(2)]);
    end(&mut admission, of_chunk(2), at);
    assert_eq!(started(&admission.handle(run(of_chunk(3), "m"), at)), [of_chunk(3)]);
    admission.handle(run(of_chunk(4), "m"), at);
    assert_eq!(started(&fails(&mut admission, of_chunk(3), Reason::EngineError, at)), [of_chunk(4)]);
    let actions = fails(&mut admission, of_chunk(4), Reason::TooLong, at);
    assert!(!actions.contains(&Action::Probe), "that is the chunk's fault: {actions:?}");
}

#[test]
fn a_probe_that_fails_is_settled_and_made_again_when_somebody_has_work_and_then_said() {
    let (mut admission, at) = busy(1);
    admission.handle(run(of_chunk(1), "m"), at);
    fails(&mut admission, key(1, 1), Reason::Stalled, at);
    assert!(fails(&mut admission, of_chunk(1), Reason::Stalled, at).contains(&Action::Probe));
    let mut at = at;
    for failed in 1..=3 {
        let actions = admission.handle(Event::Probed { works: false, may_run: true }, at);
        assert!(actions.contains(&Action::Settle), "the probe may still run: {actions:?}");
        admission.handle(Event::Settled, at);
        // Nobody wants to know: the devices go back.
        at += Duration::from_secs(60);
        let tick = Event::Tick { someone_waits: false, displaced: false };
        let actions = admission.handle(tick, at);
        assert!(actions.contains(&Action::Release) && !actions.contains(&Action::Probe), "{actions:?}");
        let actions = admission.handle(run(of_chunk(10 + failed), "m"), at);
        assert!(actions.contains(&Action::Acquire), "{actions:?}");
        let said = matches!(actions.first(), Some(Action::Refuse(_, Refusal::Draining(_))));
        assert_eq!(said, failed == 3, "{failed}: {actions:?}");
        let actions = admission.handle(Event::LaneHeld { dirty: false }, at);
        assert!(actions.contains(&Action::Probe), "{failed}: {actions:?}");
    }
    admission.handle(Event::Probed { works: true, may_run: false }, at);
    assert_eq!(started(&admission.handle(run(of_chunk(20), "m"), at)), [of_chunk(20)]);
}
