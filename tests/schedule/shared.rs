//! What installs share that are no rivals as they stand: the processors that feed their GPUs, and devices on which a
//! model may be loaded.

use tropa_coordinator::schedule::Unplaced;

use super::*;

/// So many installs of one machine, each on a GPU of its own, of which so many may be busy at once.
fn gpu_lanes(count: usize, most: usize) -> Vec<Install> {
    let devices: Vec<BTreeSet<u8>> = (0..).take(count).map(|device| BTreeSet::from([device])).collect();
    let mut installs = roster(&devices, &[1; 8]);
    installs.iter_mut().for_each(|install| {
        (install.machine, install.gpu_lanes) = (MachineId(agent(0)), Some(most));
    });
    installs
}

/// Installs with a device each, where their first model is loaded; their second may go anywhere of these. No lock keeps
/// any two of them apart.
fn unplaced(anywhere: &[BTreeSet<u8>]) -> (Vec<BTreeSet<u8>>, Vec<Install>) {
    let devices: Vec<BTreeSet<u8>> =
        (0..).take(anywhere.len()).map(|device| BTreeSet::from([device])).collect();
    let mut installs = roster(&devices, &[1; 8]);
    for (n, install) in installs.iter_mut().enumerate() {
        let others = |met: &dyn Fn(usize) -> bool| {
            (0..anywhere.len()).filter(|other| *other != n && met(*other)).map(agent).collect()
        };
        install.models.insert(ModelIndex(1));
        install.unplaced = Unplaced {
            loaded: BTreeMap::from([(ModelIndex(0), (2048, 2048))]),
            here: others(&|other| !anywhere[n].is_disjoint(&devices[other])),
            there: others(&|other| !devices[n].is_disjoint(&anywhere[other])),
            both: others(&|other| !anywhere[n].is_disjoint(&anywhere[other])),
        };
    }
    (devices, installs)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_more_gpu_lanes_are_busy_than_their_processors_serve_and_every_chunk_ends_once(
        (count, most) in (1usize..6, 1usize..4),
        chunks in 1usize..40,
        steps in prop::collection::vec((0u8..18, any::<usize>(), any_reason()), 0..200),
    ) {
        let mut world = World::of(vec![ModelIndex(0); chunks], Vec::new(), gpu_lanes(count, most), most);
        for (kind, pick, reason) in steps {
            world.step(kind, pick, reason);
        }
        world.run_out();
        prop_assert_eq!(world.ended.len(), chunks);
    }

    #[test]
    fn a_chunk_that_loads_its_model_meets_nobody_on_any_device_that_it_may_go_to(
        wider in prop::collection::vec(prop::collection::btree_set(0u8..6, 0..3), 1..6),
        models in prop::collection::vec(0u16..2, 1..40),
        steps in prop::collection::vec((0u8..18, any::<usize>(), any_reason()), 0..200),
    ) {
        let own = |(device, more): (u8, &BTreeSet<u8>)| more.iter().copied().chain([device]).collect();
        let anywhere: Vec<BTreeSet<u8>> = (0..).zip(&wider).map(own).collect();
        let (devices, installs) = unplaced(&anywhere);
        let models: Vec<ModelIndex> = models.into_iter().map(ModelIndex).collect();
        let chunks = models.len();
        let mut world = World::of(models, devices, installs, usize::MAX);
        world.anywhere = anywhere;
        for (kind, pick, reason) in steps {
            world.step(kind, pick, reason);
        }
        world.run_out();
        prop_assert_eq!(world.ended.len(), chunks);
    }
}

#[test]
fn gpu_lanes_take_turns_where_their_processors_feed_fewer_and_who_works_when_that_is_found_goes_on() {
    let lanes_at_work = |world: &mut World| {
        while let Some(attempt) = world.recording.pop() {
            world.tell(Event::Recorded(attempt));
        }
        world.held.values().filter(|held| !held.is_empty()).count()
    };
    let mut world = World::of(vec![ModelIndex(0); 20], Vec::new(), gpu_lanes(4, 2), 2);
    assert_eq!(lanes_at_work(&mut world), 2);
    (world.most, world.excused) = (4, true);
    world.tell(Event::Roster(gpu_lanes(4, 4)));
    assert_eq!(lanes_at_work(&mut world), 4, "more processors were found");
    world.tell(Event::Roster(gpu_lanes(4, 1)));
    assert_eq!(lanes_at_work(&mut world), 4, "what runs is let finish");
    world.run_out();
}

#[test]
fn a_load_waits_for_a_neighbour_whose_device_it_may_take_and_not_for_one_that_is_pinned_elsewhere() {
    let at_work = |anywhere: [BTreeSet<u8>; 2], models: [u16; 2]| {
        let (devices, installs) = unplaced(&anywhere);
        let models = models.map(ModelIndex).to_vec();
        let mut world = World::of(models, devices, installs, usize::MAX);
        world.anywhere = anywhere.to_vec();
        while let Some(attempt) = world.recording.pop() {
            world.tell(Event::Recorded(attempt));
        }
        let busy = world.held.values().filter(|held| !held.is_empty()).count();
        world.run_out();
        busy
    };
    let (any, memory) = (|| BTreeSet::from([0, 1, 9]), |n: u8| BTreeSet::from([n, 9]));
    assert_eq!(at_work([any(), any()], [0, 0]), 2, "what is loaded runs where it is");
    assert_eq!(at_work([any(), any()], [0, 1]), 1, "a load may take either device");
    assert_eq!(at_work([memory(0), memory(1)], [0, 1]), 2, "pinned, and only the other's memory is touched");
    assert_eq!(at_work([memory(0), memory(1)], [1, 1]), 1, "two loads may both spill into memory");
}

#[test]
fn two_idle_rivals_do_not_both_help_a_slow_install() {
    let mut schedule = Schedule::new(JOB, vec![ModelIndex(0); 2]);
    for (n, chunk_s) in [(0, 1000.0), (1, 1.0), (2, 1.0)] {
        let pace = Pace { chunk_s, samples: 1, ..Pace::default() };
        schedule.handle(Event::Remembered(agent(n), ModelIndex(0), pace, None), Duration::ZERO);
    }
    let all = roster(&[BTreeSet::from([0]), BTreeSet::from([1]), BTreeSet::from([1])], &[2, 1, 1]);
    schedule.handle(Event::Roster(all[..1].to_vec()), Duration::ZERO);
    for chunk in 0..2 {
        let first = AttemptId { job: JOB, chunk: ChunkIndex(chunk), no: 1 };
        schedule.handle(Event::Recorded(first), Duration::ZERO);
        schedule.handle(Event::Accepted(first, Place::Running), Duration::ZERO);
    }
    let mut helpers = BTreeSet::new();
    let mut note = |actions: Vec<Action>| {
        for action in actions {
            if let Action::Record(_, agent, _) = action {
                helpers.insert(agent);
            }
        }
    };
    note(schedule.handle(Event::Roster(all), Duration::from_secs(1)));
    note(schedule.handle(Event::Tick, Duration::from_secs(2)));
    assert_eq!(helpers, BTreeSet::from([agent(1)]), "one device helps once");
}
