//! Agents that are away, suspect or back, and coordinators that start again: what is asked before anything is sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tropa_coordinator::schedule::{
    Action, Doubt, Event, History, Left, ModelIndex, Pace, Reattached, Schedule,
};
use tropa_proto::{
    failure::{Class, Reason},
    id::{AttemptId, ChunkIndex, Incarnation},
    message::Place,
};

use super::{JOB, agent, recorded_for, roster, sent};

#[test]
fn a_resumed_job_adopts_what_still_runs_and_repeats_nothing_that_is_closed() {
    let mut schedule = Schedule::new(JOB, vec![ModelIndex(0); 3]);
    let running = AttemptId { job: JOB, chunk: ChunkIndex(1), no: 1 };
    let open = BTreeMap::from([(running, (agent(0), Incarnation(1)))]);
    schedule.resume([ChunkIndex(0)], BTreeMap::new(), Left { open, ..Left::default() });
    let actions = schedule.handle(Event::Roster(roster(&[BTreeSet::from([0])], &[1])), Duration::ZERO);
    assert_eq!(actions[0], Action::Reattach(agent(0)), "the agent is asked before anything is sent");
    let recorded: Vec<u32> = actions
        .iter()
        .filter_map(
            |action| if let Action::Record(attempt, ..) = action { Some(attempt.chunk.0) } else { None },
        )
        .collect();
    assert_eq!(recorded, [2]);
    let said = Reattached {
        agent: agent(0),
        incarnation: Incarnation(1),
        open: BTreeSet::from([running]),
        ended: BTreeSet::new(),
        whole: true,
    };
    let actions = schedule.handle(Event::Reattached(said), Duration::ZERO);
    assert_eq!(actions, [Action::Fetch(running, agent(0))], "what runs is listened to, and not sent again");
    let _ = schedule.handle(Event::Accepted(running, Place::Running), Duration::ZERO);
    let actions = schedule.handle(Event::Finished(running), Duration::ZERO);
    assert!(actions.contains(&Action::Commit(running)));
}

#[test]
fn a_resumed_job_goes_on_at_every_install_that_ran_a_part_of_it() {
    let mut schedule = Schedule::new(JOB, vec![ModelIndex(0); 9]);
    let first = |chunk: u32| AttemptId { job: JOB, chunk: ChunkIndex(chunk), no: 1 };
    let open = BTreeMap::from([0, 1].map(|n| (first(n), (agent(n as usize), Incarnation(1)))));
    schedule.resume([], BTreeMap::new(), Left { open: open.clone(), ..Left::default() });
    let pace = Pace { chunk_s: 0.2, samples: 1, ..Pace::default() };
    for number in [0, 1] {
        schedule.handle(Event::Remembered(agent(number), ModelIndex(0), pace, None), Duration::ZERO);
    }
    // The roster does not say that any model is loaded, and to load one would take longer than all that is left.
    let installs = roster(&[BTreeSet::from([0]), BTreeSet::from([1])], &[1, 1]);
    assert!(installs.iter().all(|install| install.warm.is_empty()));
    let mut actions = schedule.handle(Event::Roster(installs), Duration::ZERO);
    for attempt in open.keys() {
        schedule.handle(Event::Accepted(*attempt, Place::Running), Duration::ZERO);
        actions.extend(schedule.handle(Event::Finished(*attempt), Duration::from_millis(200)));
    }
    assert_eq!(recorded_for(&actions), BTreeSet::from([agent(0), agent(1)]), "{actions:?}");
}

/// Two machines of one lane each: the first runs chunk 0 and has chunk 1 ready, the second has ended chunk 2, so that
/// chunk 1 is asked back.
fn asked_back() -> (Schedule, AttemptId) {
    let mut schedule = Schedule::new(JOB, vec![ModelIndex(0); 3]).without_backups();
    let pace = Pace { chunk_s: 10.0, samples: 1, ..Pace::default() };
    for number in [0, 1] {
        schedule.handle(Event::Remembered(agent(number), ModelIndex(0), pace, None), Duration::ZERO);
    }
    let installs = roster(&[BTreeSet::from([0]), BTreeSet::from([1])], &[1, 1]);
    let [running, ready, ended] = [0, 1, 2].map(|n| AttemptId { job: JOB, chunk: ChunkIndex(n), no: 1 });
    schedule.handle(Event::Roster(installs), Duration::ZERO);
    for attempt in [running, ready, ended] {
        schedule.handle(Event::Recorded(attempt), Duration::ZERO);
    }
    schedule.handle(Event::Accepted(running, Place::Running), Duration::ZERO);
    schedule.handle(Event::Accepted(ready, Place::Next), Duration::ZERO);
    schedule.handle(Event::Accepted(ended, Place::Running), Duration::ZERO);
    let mut actions = schedule.handle(Event::Finished(ended), Duration::from_secs(1));
    actions.extend(schedule.handle(Event::Tick, Duration::from_secs(2)));
    assert!(actions.contains(&Action::TakeBack(ready, agent(0))), "{actions:?}");
    (schedule, ready)
}

#[test]
fn what_is_given_back_runs_at_the_install_that_asked_for_it() {
    let (mut schedule, ready) = asked_back();
    let actions = schedule.handle(Event::Failed(ready, Reason::Cancelled), Duration::from_secs(2));
    assert!(ends(&actions, ready) && recorded_for(&actions).contains(&agent(1)), "{actions:?}");
}

#[test]
fn what_has_begun_before_it_could_be_given_back_goes_on_and_runs_nowhere_else() {
    let (mut schedule, ready) = asked_back();
    let mut actions = schedule.handle(Event::Accepted(ready, Place::Running), Duration::from_secs(2));
    actions.extend(schedule.handle(Event::Tick, Duration::from_secs(3)));
    assert_eq!(actions, [], "it is neither cancelled nor asked back again");
    let actions = schedule.handle(Event::Finished(ready), Duration::from_secs(4));
    assert!(actions.contains(&Action::Commit(ready)), "{actions:?}");
}

/// Two installs on one device that see no common lock; the first has left a restarted coordinator with this.
fn restarted_without(left: impl FnOnce(AttemptId) -> Left) -> Schedule {
    let mut schedule = Schedule::new(JOB, vec![ModelIndex(0); 2]);
    let held = AttemptId { job: JOB, chunk: ChunkIndex(0), no: 1 };
    let mut history = History::default();
    history.last_no = 1;
    let history = BTreeMap::from([(ChunkIndex(0), history)]);
    let unguarded = BTreeMap::from([(agent(0), BTreeSet::from([agent(1)]))]);
    schedule.resume([], history, Left { unguarded, ..left(held) });
    schedule
}

#[test]
fn after_a_restart_a_device_waits_for_an_agent_that_is_away_and_shares_no_lock() {
    let open = |held| Left { open: BTreeMap::from([(held, (agent(0), Incarnation(1)))]), ..Left::default() };
    let lost = |held| {
        let doubtful = BTreeMap::from([(held, ((agent(0), Incarnation(1)), Doubt::Lost))]);
        Left { doubtful, ..Left::default() }
    };
    for mut schedule in [restarted_without(open), restarted_without(lost)] {
        let mut rival = roster(&[BTreeSet::from([0]), BTreeSet::from([0])], &[1, 1]).remove(1);
        (rival.rivals, rival.unguarded) = (BTreeSet::new(), BTreeSet::new());
        for second in [0, 10, 600] {
            let now = Duration::from_secs(second);
            let actions = schedule.handle(Event::Roster(vec![rival.clone()]), now);
            assert!(!actions.iter().any(|a| matches!(a, Action::Record(..))), "{second} s: {actions:?}");
        }
        // An attempt that nobody can ask for is believed to run for so long and no longer.
        let actions = schedule.handle(Event::Tick, Duration::from_secs(16 * 60));
        assert!(actions.iter().any(|a| matches!(a, Action::Record(_, by, _) if *by == agent(1))));
    }
}

#[test]
fn an_attempt_of_an_agent_that_never_comes_back_is_lost_and_runs_elsewhere() {
    let mut schedule = Schedule::new(JOB, vec![ModelIndex(0)]);
    let gone = AttemptId { job: JOB, chunk: ChunkIndex(0), no: 1 };
    let open = BTreeMap::from([(gone, (agent(5), Incarnation(1)))]);
    schedule.resume([], BTreeMap::new(), Left { open, ..Left::default() });
    let early = schedule.handle(Event::Roster(roster(&[BTreeSet::from([0])], &[1])), Duration::ZERO);
    assert!(early.is_empty(), "it may still be running there");
    let at = schedule.next_deadline(Duration::ZERO).expect("the grace ends");
    let late = schedule.handle(Event::Tick, at);
    assert!(late.contains(&Action::End(gone, Class::Lost)));
    assert!(late.iter().any(|action| matches!(action, Action::Record(attempt, ..) if attempt.no == 2)));
}

#[test]
fn a_lost_attempt_keeps_its_device_from_a_rival_without_a_common_lock_until_its_agent_is_back() {
    let mut world = sent(1, &[0, 0]);
    let attempt = world.take_held(0).expect("it runs");
    let mut away = roster(&world.devices, &[1, 1]);
    away.retain(|install| install.agent != agent(0));
    away.iter_mut().for_each(|install| {
        install.rivals.clear();
        install.unguarded.clear();
    });
    world.tell(Event::Lost(attempt));
    world.tell(Event::Roster(away));
    // The recall that followed at once is lost as well.
    world.tell(Event::Lost(attempt));
    assert!(world.recording.is_empty(), "it may still run on the device");
    let recalls = |actions: &[Action]| actions.contains(&Action::Recall(attempt, agent(0)));
    let actions = world.schedule.handle(Event::Roster(roster(&world.devices, &[1, 1])), world.now);
    assert!(recalls(&actions), "{actions:?}");
    let actions = world.schedule.handle(Event::Finished(attempt), world.now);
    assert!(actions.contains(&Action::Commit(attempt)), "its result is the first: {actions:?}");
}

/// A job of two chunks over two machines; the first chunk runs at the first of them.
fn one_runs_at(schedule: &mut Schedule) -> AttemptId {
    schedule
        .handle(Event::Roster(roster(&[BTreeSet::from([0]), BTreeSet::from([1])], &[1, 1])), Duration::ZERO);
    let first = AttemptId { job: JOB, chunk: ChunkIndex(0), no: 1 };
    let actions = schedule.handle(Event::Recorded(first), Duration::ZERO);
    assert!(actions.contains(&Action::Send(first, agent(0))), "{actions:?}");
    schedule.handle(Event::Accepted(first, Place::Running), Duration::ZERO);
    first
}

fn says(open: &[AttemptId], run: u64) -> Event {
    Event::Reattached(Reattached {
        agent: agent(0),
        incarnation: Incarnation(run),
        open: open.iter().copied().collect(),
        ended: BTreeSet::new(),
        whole: true,
    })
}

fn ends(actions: &[Action], attempt: AttemptId) -> bool {
    actions.iter().any(|action| matches!(action, Action::End(ended, _) if *ended == attempt))
}

#[test]
fn a_broken_stream_loses_nothing_before_the_agent_was_asked() {
    let mut schedule = Schedule::new(JOB, vec![ModelIndex(0); 2]);
    let first = one_runs_at(&mut schedule);
    let actions = schedule.handle(Event::Detached(first), Duration::ZERO);
    assert!(actions.contains(&Action::Reattach(agent(0))) && !ends(&actions, first), "{actions:?}");
    let actions = schedule.handle(says(&[first], 1), Duration::ZERO);
    assert!(actions.contains(&Action::Fetch(first, agent(0))) && !ends(&actions, first), "{actions:?}");
    schedule.handle(Event::Detached(first), Duration::ZERO);
    let actions = schedule.handle(says(&[], 1), Duration::ZERO);
    assert!(actions.contains(&Action::Send(first, agent(0))), "it never arrived: {actions:?}");
    schedule.handle(Event::Detached(first), Duration::ZERO);
    let actions = schedule.handle(says(&[], 2), Duration::ZERO);
    assert!(actions.contains(&Action::End(first, Class::Lost)), "another run of the agent: {actions:?}");
}

#[test]
fn a_suspect_gets_nothing_new_and_the_dead_ones_chunk_runs_elsewhere() {
    let mut schedule = Schedule::new(JOB, vec![ModelIndex(0); 9]);
    let first = one_runs_at(&mut schedule);
    schedule.handle(Event::Suspect(agent(0)), Duration::ZERO);
    let to_suspect = |actions: &[Action]| {
        let to = |action: &Action| matches!(action, Action::Send(_, to) if *to == agent(0));
        actions.iter().any(to)
    };
    for chunk in 1..4 {
        let next = AttemptId { job: JOB, chunk: ChunkIndex(chunk), no: 1 };
        assert!(!to_suspect(&schedule.handle(Event::Recorded(next), Duration::ZERO)));
    }
    let actions = schedule.handle(Event::Alive(agent(0)), Duration::ZERO);
    assert!(to_suspect(&actions), "wrongly suspected: {actions:?}");
    let actions = schedule.handle(Event::Dead(agent(0)), Duration::from_secs(8));
    assert!(actions.contains(&Action::End(first, Class::Lost)), "{actions:?}");
    let recalled = actions.iter().any(|action| matches!(action, Action::Recall(..)));
    assert!(!recalled, "nobody answers there");
}

#[test]
fn a_lost_attempt_that_still_runs_is_taken_back_unless_another_has_begun() {
    for begun in [false, true] {
        let mut schedule = Schedule::new(JOB, vec![ModelIndex(0)]);
        let first = one_runs_at(&mut schedule);
        if !begun {
            schedule.handle(Event::Suspect(agent(1)), Duration::ZERO);
        }
        schedule.handle(Event::Dead(agent(0)), Duration::from_secs(8));
        let actions = schedule.handle(says(&[first], 1), Duration::from_secs(30));
        assert_eq!(actions.contains(&Action::Fetch(first, agent(0))), !begun, "{actions:?}");
        assert_eq!(actions.contains(&Action::Recall(first, agent(0))), begun, "{actions:?}");
    }
}
