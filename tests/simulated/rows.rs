//! The rows of the fault catalogue (`reliability.md` §6.2) in virtual time: the fault of a row at a moment of the
//! seed's choice, and the figures of the row taken from what happened. Nothing is late here but by the programs' own
//! timers, so the times are held against their targets as they are.
//!
//! A row whose fault hits nothing with a seed, since the agent has no work at that moment, takes another seed.

use std::{collections::BTreeSet, time::Duration};

use tropa_proto::{
    failure::{Class, Reason},
    id::AttemptId,
};
use tropa_tests::{
    history::{Event, What, chunk_of},
    simulation::{Fault, Place, Planned, Profile, Run, Scenario, one_kernel, staged},
};

use super::seeds;

/// Seeds of a row (`reliability.md` §6.2), unless fewer are asked for.
const SEEDS: usize = 20;

/// Seeds that a row may try for one that it counts.
const TRIES: u64 = 20;

/// A coordinator's number in the history.
const SIDE: u32 = 100;

/// The figures of one seed.
struct Seen {
    run: Run,
    history: Vec<Event>,
    scenario: Scenario,
}

/// What a row came to over its seeds.
#[derive(Default)]
struct Row {
    seeds: usize,
    noticed: Option<Duration>,
    recovered: Option<Duration>,
    again: usize,
    backups: usize,
}

/// So many machines of one install each.
fn machines(count: u8) -> Vec<Place> {
    (0..count).map(|n| Place::new(&[n], n)).collect()
}

/// One job on four machines, without any fault but those of the stage.
fn four(chunks: u32) -> Scenario {
    Scenario { places: machines(4), jobs: vec![chunks], profile: Profile::none() }
}

/// A moment in so many milliseconds that the seed chooses.
fn moment(seed: u64, from: u64, to: u64) -> Duration {
    // A large odd number spreads neighbouring seeds.
    Duration::from_millis(from + seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (to - from))
}

fn lasting(fault: Fault, from: Duration, lasts: Duration) -> Planned {
    Planned { fault, from, until: from + lasts }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap()
}

impl Seen {
    fn of(seed: u64, scenario: Scenario, faults: &[Planned]) -> Self {
        let (run, history) = staged(seed, &scenario, faults);
        Self { run, history, scenario }
    }

    /// The first event after a moment for which something holds, as the time since then.
    fn after(&self, since: Duration, holds: impl Fn(&Event) -> bool) -> Option<Duration> {
        let since = micros(since);
        let found = self.history.iter().find(|event| event.at >= since && holds(event))?;
        Some(Duration::from_micros(found.at - since))
    }

    /// The attempts at an install's engine at a moment.
    fn open_at(&self, install: u32, moment: Duration) -> Vec<AttemptId> {
        let mut open = Vec::new();
        for event in self.history.iter().take_while(|event| event.at < micros(moment)) {
            if let Some(attempt) = started(event).filter(|_| event.by == install) {
                open.push(attempt);
            } else if let What::ExecEnd(attempt) = event.what {
                open.retain(|other| *other != attempt);
            }
        }
        open
    }

    /// What an install began to work on, with the times in microseconds.
    fn started_at(&self, install: u32) -> impl Iterator<Item = (u64, AttemptId)> {
        let here = self.history.iter().filter(move |event| event.by == install);
        here.filter_map(|event| Some((event.at, started(event)?)))
    }

    /// When the coordinator gave an attempt up for this reason.
    fn ended(&self, since: Duration, attempt: AttemptId, class: Class) -> Option<Duration> {
        self.after(since, |event| event.what == What::Ended(attempt, class))
    }

    /// When the chunk of an attempt ran elsewhere, by an attempt that started before or after.
    fn elsewhere(&self, since: Duration, attempt: AttemptId) -> Option<Duration> {
        let other = |event: &Event| {
            started(event).is_some_and(|other| chunk_of(&other) == chunk_of(&attempt) && other != attempt)
        };
        let beside = self.history.iter().find(|event| other(event) && event.at < micros(since));
        if beside.is_some() { Some(Duration::ZERO) } else { self.after(since, other) }
    }

    /// Executions beyond the first of a chunk, without those that were overtaken, and those that were.
    fn again(&self) -> (usize, usize) {
        let ended = |event| ended(event).filter(|(_, class)| *class == Class::Superseded);
        let overtaken: BTreeSet<AttemptId> =
            self.history.iter().filter_map(ended).map(|(id, _)| id).collect();
        let started = self.history.iter().filter_map(started);
        let (backups, started): (BTreeSet<_>, BTreeSet<_>) =
            started.partition(|attempt| overtaken.contains(attempt));
        let chunks: BTreeSet<_> = started.iter().map(chunk_of).collect();
        (started.len() - chunks.len(), backups.len())
    }
}

impl Row {
    /// Runs seeds until as many as the tests of the simulation take have been counted; `judge` gives D and R of a seed,
    /// or `None` where the fault hit nothing.
    fn of(
        name: &str,
        stage: impl Fn(u64) -> (Scenario, Vec<Planned>),
        judge: impl Fn(&Seen, &[Planned]) -> Option<(Option<Duration>, Option<Duration>)>,
    ) -> Self {
        let wanted = usize::try_from(seeds().end - seeds().start).unwrap().min(SEEDS);
        let mut row = Self::default();
        for seed in (seeds().start..).take(wanted * usize::try_from(TRIES).unwrap()) {
            let (scenario, faults) = stage(seed);
            let seen = Seen::of(seed, scenario, &faults);
            assert_eq!(seen.run.violations, [], "{name}: TROPA_SEED={seed} {faults:?}");
            let chunks: usize = seen.scenario.jobs.iter().map(|chunks| *chunks as usize).sum();
            assert_eq!(seen.run.done + seen.run.failed.len(), chunks, "{name}: TROPA_SEED={seed}");
            let Some((noticed, recovered)) = judge(&seen, &faults) else { continue };
            let (again, backups) = seen.again();
            row.seeds += 1;
            row.noticed = row.noticed.max(noticed);
            row.recovered = row.recovered.max(recovered);
            (row.again, row.backups) = (row.again.max(again), row.backups.max(backups));
            if row.seeds == wanted {
                break;
            }
        }
        assert_eq!(row.seeds, wanted, "{name}: the fault hit nothing too often");
        row.print(name);
        row
    }

    #[expect(clippy::print_stdout, reason = "the figures of the catalogue")]
    fn print(&self, name: &str) {
        let seconds = |time: Option<Duration>| {
            time.map_or("-".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()))
        };
        println!(
            "{name} (simulated, at most of {} seeds): D {}, R {}, L 0, U 0, W {} (and {} backups), O 0",
            self.seeds,
            seconds(self.noticed),
            seconds(self.recovered),
            self.again,
            self.backups
        );
    }

    fn within(&self, noticed: Option<Duration>, recovered: Option<Duration>) {
        for (what, found, target) in [("D", self.noticed, noticed), ("R", self.recovered, recovered)] {
            if let Some(target) = target {
                assert!(
                    found.is_some_and(|found| found <= target),
                    "{what} {found:?}, the target is {target:?}"
                );
            }
        }
    }
}

/// The attempt that an agent handed to its engine.
fn started(event: &Event) -> Option<AttemptId> {
    if let What::ExecStart(attempt, _) = event.what { Some(attempt) } else { None }
}

/// The attempt that ended without a result, and how.
fn ended(event: &Event) -> Option<(AttemptId, Class)> {
    if let What::Ended(attempt, class) = event.what { Some((attempt, class)) } else { None }
}

/// The attempt whose result is on disk.
fn committed(event: &Event) -> Option<AttemptId> {
    if let What::Commit(attempt, None) = event.what { Some(attempt) } else { None }
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// D and R of what an agent had at work when it was hit, with idle machines beside it.
fn lost_at(seen: &Seen, faults: &[Planned]) -> Option<(Option<Duration>, Option<Duration>)> {
    let at = faults[0].from;
    let hit = *seen.open_at(0, at).first()?;
    let noticed = seen.ended(at, hit, Class::Lost)?;
    Some((Some(noticed), Some(seen.elsewhere(at, hit)?)))
}

/// One agent of four is hit while the others have nothing left to do, so that R is nothing but our own timers.
fn idle_beside(seed: u64, fault: Fault, lasts: Duration) -> (Scenario, Vec<Planned>) {
    (four(3), vec![lasting(fault, moment(seed, 50, 2_000), lasts)])
}

#[test]
fn fault_f01_simulated_a_killed_agents_chunk_runs_elsewhere_at_once() {
    let row = Row::of("F1 agent killed", |seed| idle_beside(seed, Fault::KillAgent(0), seconds(30)), lost_at);
    row.within(Some(Duration::from_millis(500)), Some(seconds(2)));
    assert!(
        row.again <= 2,
        "only what ran there runs again, and what had just ended and was still to be delivered"
    );
}

#[test]
fn fault_f03_simulated_a_host_that_is_off_is_dead_after_eight_seconds_of_silence() {
    let row = Row::of("F3 host off", |seed| idle_beside(seed, Fault::Cut(0, 0), seconds(600)), lost_at);
    // A word of the agent may have been on its way when the link was cut.
    row.within(Some(seconds(8) + Duration::from_millis(100)), Some(seconds(10)));
}

#[test]
fn fault_f04_simulated_a_frozen_agent_is_given_up_and_comes_back() {
    let row = Row::of("F4 agent frozen", |seed| idle_beside(seed, Fault::StopAgent(0), seconds(30)), lost_at);
    // A word of the agent may have been on its way when it was stopped.
    row.within(Some(seconds(8) + Duration::from_millis(100)), Some(seconds(10)));
}

#[test]
fn fault_f05_simulated_a_frozen_engine_stalls_and_its_chunk_runs_elsewhere() {
    let row = Row::of(
        "F5 engine frozen",
        |_| (four(3), vec![lasting(Fault::Ill(0, Reason::Stalled), Duration::ZERO, seconds(600))]),
        |seen, _| {
            let mut ends = seen.history.iter().filter_map(|event| Some((event.at, ended(event)?)));
            let (at, (attempt, _)) = ends.find(|(_, (_, class))| *class == Class::Stalled)?;
            Some((None, Some(seen.elsewhere(Duration::from_micros(at), attempt)?)))
        },
    );
    // After the timeout, which is the agent's.
    row.within(None, Some(seconds(2)));
}

/// How the link to half of the agents fails.
type Parting = fn(usize, Duration) -> Vec<Planned>;

#[test]
fn fault_f06_simulated_half_a_mesh_that_is_cut_off_finishes_and_comes_back() {
    let minute = seconds(60);
    let shapes: [(&str, Parting); 3] = [
        ("both ways", |at, from| vec![lasting(Fault::Cut(0, at), from, seconds(60))]),
        ("one way", |at, from| vec![lasting(Fault::Mute(0, at), from, seconds(60))]),
        ("2 s on and 2 s off", |at, from| {
            let flap = |n: u32| lasting(Fault::Cut(0, at), from + seconds(4) * n, seconds(2));
            (0..15).map(flap).collect()
        }),
    ];
    for (shape, parting) in shapes {
        let row = Row::of(
            &format!("F6 partition, {shape}"),
            |seed| {
                let from = moment(seed, 500, 5_000);
                (four(200), [0, 1].into_iter().flat_map(|at| parting(at, from)).collect())
            },
            |seen, faults| {
                let healed = faults.iter().map(|fault| fault.until).max()?;
                assert!(healed >= faults[0].from + minute - seconds(4), "as long as the row says");
                let back = [0, 1].map(|install| match seen.open_at(install, healed).as_slice() {
                    [] => seen.after(healed, |event| event.by == install && started(event).is_some()),
                    // It never was without work.
                    [..] => Some(Duration::ZERO),
                });
                Some((None, Some(back[0]?.max(back[1]?))))
            },
        );
        row.within(None, Some(seconds(5)));
    }
}

#[test]
fn fault_f07_simulated_a_coordinator_that_is_back_after_an_hour_runs_nothing_again() {
    for away in [5, 120, 3_600] {
        let row = Row::of(
            &format!("F7 coordinator killed, back after {away} s"),
            |seed| (four(60), vec![lasting(Fault::KillSide(0), moment(seed, 500, 8_000), seconds(away))]),
            |seen, faults| {
                let commits = |event: &Event| committed(event).is_some();
                Some((None, Some(seen.after(faults[0].until, commits)?)))
            },
        );
        row.within(None, Some(seconds(3)));
        assert_eq!(row.again, 0, "no chunk is executed again while the agents live");
    }
}

#[test]
fn fault_f09_f10_simulated_no_failure_of_an_engine_becomes_content() {
    for (row, reason) in [
        ("F9 engine down", Reason::EngineDown),
        ("F10 end without done", Reason::Incomplete),
        ("F10 error line", Reason::RunnerCrash),
        ("F10 500", Reason::EngineError),
        ("F10 garbled", Reason::Garbled),
    ] {
        let ill = || vec![lasting(Fault::Ill(0, reason), Duration::ZERO, seconds(3_600))];
        Row::of(
            row,
            |_| (four(40), ill()),
            |seen, _| {
                let tried: BTreeSet<AttemptId> = seen.started_at(0).map(|(_, attempt)| attempt).collect();
                let mut committed = seen.history.iter().filter_map(committed);
                assert!(!committed.any(|attempt| tried.contains(&attempt)), "it brings no result");
                assert_eq!(seen.run.done, 40, "the others do what it cannot");
                let mut ends = seen.history.iter().filter_map(ended);
                ends.any(|(attempt, class)| tried.contains(&attempt) && class == reason.class())
                    .then_some((None, None))
            },
        );
    }
}

#[test]
fn fault_f12_f13_simulated_an_install_without_the_pinned_model_brings_no_result() {
    Row::of(
        "F12, F13 model missing, or another",
        |_| (four(40), vec![lasting(Fault::ModelGone(0), Duration::ZERO, seconds(3_600))]),
        |seen, _| {
            assert_eq!(seen.started_at(0).count(), 0, "it is not even asked");
            assert_eq!(seen.run.done, 40);
            Some((None, None))
        },
    );
}

#[test]
fn fault_f14_simulated_a_full_disk_pauses_the_job_and_space_lets_it_go_on() {
    let row = Row::of(
        "F14 disk full",
        |seed| (four(60), vec![lasting(Fault::DiskFull(0), moment(seed, 500, 8_000), seconds(20))]),
        |seen, faults| {
            let commits = |event: &Event| committed(event).is_some();
            let full = |event: &&Event| {
                commits(event) && (micros(faults[0].from)..micros(faults[0].until)).contains(&event.at)
            };
            assert_eq!(seen.history.iter().filter(full).count(), 0, "nothing is committed without room");
            Some((None, Some(seen.after(faults[0].until, commits)?)))
        },
    );
    row.within(None, Some(seconds(10)));
}

/// When and for which of two jobs something started.
type Start = (u64, u8);

/// What started at an install while both wanted it: from the first of the one that came later to the last of the one
/// that left first.
fn contested(starts: Vec<Start>) -> Vec<Start> {
    let first = |job: u8| starts.iter().position(|start| start.1 == job);
    let last = |job: u8| starts.iter().rposition(|start| start.1 == job);
    let ends = || Some((first(1)?.max(first(2)?), last(1)?.min(last(2)?)));
    ends().map_or_else(Vec::new, |(begin, end)| starts[begin..=end].to_vec())
}

#[test]
fn fault_f19_simulated_two_coordinators_share_machines_evenly_by_chunks_or_by_turns_of_a_minute() {
    for (what, other_options, longest) in
        [("same options", false, seconds(60)), ("other options", true, seconds(80))]
    {
        let profile = Profile { other_options, ..Profile::none() };
        let chunks = if other_options { 300 } else { 100 };
        let scenario = || Scenario { places: machines(3), jobs: vec![chunks, chunks], profile };
        let row = Row::of(
            &format!("F19 two coordinators, {what} (R: the longest wait)"),
            |_| (scenario(), Vec::new()),
            |seen, _| {
                let (mut most, mut shares) = (Duration::ZERO, [0; 2]);
                for install in 0..3 {
                    let starts = seen.started_at(install).map(|(at, attempt)| (at, attempt.job.0[0]));
                    let both = contested(starts.collect());
                    both.iter().for_each(|start| shares[usize::from(start.1) - 1] += 1);
                    let rows: Vec<_> = both.chunk_by(|a, b| a.1 == b.1).collect();
                    if !other_options {
                        let longest = rows.iter().map(|row| row.len()).max();
                        assert!(longest <= Some(2), "{what}: {longest:?} of one in a row");
                    }
                    for next in rows.windows(2) {
                        most = most.max(Duration::from_micros(next[1][0].0 - next[0][0].0));
                    }
                }
                let share = f64::from(shares[0]) / f64::from(shares[0] + shares[1]);
                // Of a few turns of a minute one is more or less than half.
                let fair = if other_options { 0.35..=0.65 } else { 0.4..=0.6 };
                assert!(fair.contains(&share), "{what}: one of two got {share:.2}");
                Some((None, Some(most)))
            },
        );
        row.within(None, Some(longest));
    }
}

#[test]
fn fault_f20_f33_simulated_who_shares_a_device_with_a_killed_agent_waits_for_what_it_left() {
    let row = Row::of(
        "F20, F33 two agents on one hardware, one killed (R: takeover, the orphan's time included)",
        |seed| {
            let scenario = Scenario { places: one_kernel(), jobs: vec![40, 40], profile: Profile::none() };
            (scenario, vec![lasting(Fault::KillAgent(0), moment(seed, 500, 8_000), seconds(60))])
        },
        |seen, faults| {
            let at = faults[0].from;
            seen.open_at(0, at).first()?;
            let taken = |event: &Event| event.by == 1 && started(event).is_some();
            Some((None, Some(seen.after(at, taken)?)))
        },
    );
    // An orphan reads its prompt for 28 s at most.
    row.within(None, Some(seconds(30)));
}

#[test]
fn fault_f29_f30_simulated_a_chunk_that_crashes_or_hangs_everywhere_fails_alone() {
    for (name, poison_by) in [("F29 poison", Reason::RunnerCrash), ("F30 hanging chunk", Reason::Stalled)] {
        let profile = Profile { poison: 10, poison_by, ..Profile::none() };
        Row::of(
            name,
            |_| (Scenario { profile, ..four(30) }, Vec::new()),
            |seen, _| {
                let failed: Vec<u32> = seen.run.failed.iter().map(|(chunk, _)| *chunk).collect();
                assert_eq!((seen.run.done, failed), (27, vec![0, 10, 20]), "the others are unaffected");
                assert!(seen.run.failed.iter().all(|(_, class)| *class == Class::Poison));
                let starts = |chunk: u32| {
                    seen.history.iter().filter_map(started).filter(|id| id.chunk.0 == chunk).count()
                };
                assert!([0, 10, 20].map(starts).into_iter().all(|times| times <= 3), "three at most");
                Some((None, None))
            },
        );
    }
}

#[test]
fn fault_f31_simulated_an_agent_that_is_asked_to_leave_hands_everything_over() {
    let row = Row::of(
        "F31 agent leaves",
        |seed| (four(60), vec![lasting(Fault::Leave(0), moment(seed, 500, 8_000), seconds(60))]),
        |seen, faults| {
            let at = faults[0].from;
            let elsewhere = |event: &Event| event.by == SIDE && matches!(event.what, What::Send(_));
            let meanwhile = micros(at) + 1..micros(faults[0].until);
            let new = seen.started_at(0).filter(|(at, _)| meanwhile.contains(at)).count();
            assert_eq!(new, 0, "nothing new starts");
            Some((None, seen.after(at, elsewhere)))
        },
    );
    assert_eq!(row.again, 0, "nothing is executed again");
}
