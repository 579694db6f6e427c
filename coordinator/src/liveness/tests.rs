//! Liveness as lists of inputs, with a world that does nothing by itself.

use super::*;

const A: AgentId = AgentId([1; 32]);

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// One agent, attached at zero, of which something is awaited.
fn attached() -> Liveness {
    let mut liveness = Liveness::new(7);
    assert_eq!(liveness.handle(Input::Wanted(A), at(0), |_| true), [Order::Open(A)]);
    assert_eq!(liveness.handle(Input::Attached(A), at(0), |_| true), []);
    liveness
}

/// Everything that is due until a moment, with its time in milliseconds.
fn until(liveness: &mut Liveness, end: u64, awaits: bool) -> Vec<(u128, Order)> {
    let mut orders = Vec::new();
    while let Some(next) = liveness.next_deadline().filter(|next| *next <= at(end)) {
        orders.extend(liveness.due(next, |_| awaits).into_iter().map(|order| (next.as_millis(), order)));
    }
    orders
}

#[test]
fn silence_is_suspect_after_three_beats_and_death_after_eight_seconds() {
    let mut liveness = attached();
    let orders = until(&mut liveness, 8_000, true);
    let expected = [
        (3_000, Order::Suspect(A)),
        (5_000, Order::Renew(A)),
        (8_000, Order::Close(A)),
        (8_000, Order::Dead(A)),
    ];
    assert_eq!(orders, expected);
    let (again, order) = until(&mut liveness, 8_300, true)[0];
    assert!(again > 8_000 && order == Order::Open(A), "closed and dialled anew");
}

#[test]
fn beats_keep_an_agent_alive_and_one_after_three_missed_clears_it() {
    let mut liveness = attached();
    for second in 1..=20 {
        assert_eq!(liveness.handle(Input::Heard(A), at(second * 1_000), |_| true), []);
        let orders = until(&mut liveness, second * 1_000, true);
        assert!(orders.iter().all(|(_, order)| *order == Order::Renew(A)), "{orders:?}");
    }
    assert_eq!(until(&mut liveness, 24_000, true), [(23_000, Order::Suspect(A))]);
    assert_eq!(liveness.handle(Input::Heard(A), at(24_000), |_| true), [Order::Alive(A)]);
}

#[test]
fn nobody_is_judged_of_whom_nothing_is_awaited() {
    let mut liveness = attached();
    assert_eq!(until(&mut liveness, 60_000, false), []);
    let mut liveness = attached();
    assert_eq!(liveness.handle(Input::Idle(A), at(2_900), |_| false), []);
    assert_eq!(liveness.handle(Input::Wanted(A), at(2_950), |_| true), [], "it is attached");
    let orders = until(&mut liveness, 5_900, true);
    assert_eq!(orders, [(5_000, Order::Renew(A))], "the silence before counts for nothing");
}

#[test]
fn a_broken_stream_is_opened_at_once_and_where_nobody_listens_the_agent_is_dead() {
    let mut liveness = attached();
    let broken = |gone| Input::Broken { agent: A, gone };
    let orders = liveness.handle(broken(false), at(100), |_| true);
    assert_eq!(orders, [Order::Suspect(A), Order::Open(A)]);
    assert_eq!(liveness.handle(broken(true), at(101), |_| true), [Order::Dead(A)]);
    assert_eq!(liveness.handle(Input::Connected(A), at(700), |_| true), [Order::Open(A)], "it is back");
    assert_eq!(liveness.handle(Input::Attached(A), at(701), |_| true), []);
    assert_eq!(until(&mut liveness, 3_000, true), []);
}

#[test]
fn pauses_between_dials_grow_and_stay_short_while_work_of_ours_is_there() {
    let longest = |awaits: bool| {
        let mut liveness = attached();
        let mut now = at(100);
        liveness.handle(Input::Broken { agent: A, gone: false }, now, |_| awaits);
        let mut pauses = Vec::new();
        for _ in 0..300 {
            liveness.handle(Input::Broken { agent: A, gone: false }, now, |_| awaits);
            loop {
                let next = liveness.next_deadline().expect("a dial is planned");
                let orders = liveness.due(next, |_| awaits);
                if orders.contains(&Order::Dead(A)) {
                    // With the verdict the pause begins anew.
                    now = next;
                }
                if orders.contains(&Order::Open(A)) {
                    pauses.push(next.saturating_sub(now));
                    now = now.max(next);
                    break;
                }
            }
        }
        pauses.into_iter().max().unwrap_or_default()
    };
    assert!(longest(true) <= at(LONGEST_WITH_WORK_MS), "{:?}", longest(true));
    let without = longest(false);
    assert!(without > at(15_000) && without <= at(30_000), "{without:?}");
}

#[test]
fn a_late_loop_judges_later() {
    let mut liveness = attached();
    let turned = Input::Turned { passed: at(1_250), planned: at(250) };
    assert_eq!(liveness.handle(turned, at(100), |_| true), []);
    let orders = until(&mut liveness, 16_000, true);
    let dead = orders.iter().find(|(_, order)| *order == Order::Dead(A)).expect("it is dead in the end").0;
    assert!(dead > 8_000 && dead <= 16_000, "a lag of one second doubles the time: {orders:?}");
    let worst = Input::Turned { passed: at(4_900), planned: at(0) };
    let mut liveness = attached();
    liveness.handle(worst, at(0), |_| true);
    assert_eq!(liveness.dead_after(at(0)), DEAD_AFTER * 3, "three times at most");
}

#[test]
fn who_has_slept_opens_everything_anew_and_judges_nobody_before() {
    let mut liveness = attached();
    let now = 600_000;
    let slept = Input::Turned { passed: at(now), planned: at(250) };
    assert_eq!(liveness.handle(slept, at(now), |_| true), [Order::Close(A), Order::Open(A)]);
    assert_eq!(liveness.due(at(now), |_| true), [], "the old silence counts for nothing");
    assert_eq!(liveness.handle(Input::Attached(A), at(now + 50), |_| true), []);
    let orders = until(&mut liveness, now + 4_000, true);
    assert!(orders.iter().all(|(_, order)| *order != Order::Dead(A)), "{orders:?}");
}
