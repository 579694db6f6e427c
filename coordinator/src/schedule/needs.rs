//! Chunks that build on the answers of others: when they may run, and what becomes of them when one has failed.
//!
//! A chunk enters its queue when all that it needs is done on disk and its own request, with their answers in it,
//! is on disk as well. Of chunks that may run, the one with the longest chain of others behind it goes first. Where
//! one that it needs has failed, it fails too, and so does all that builds on it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use tropa_proto::id::ChunkIndex;

use super::{Action, Schedule, Status, waiting::Rank};

/// Which chunks build on which, and what they still wait for.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// For every chunk that builds on others: those, all of them.
    on: BTreeMap<ChunkIndex, BTreeSet<ChunkIndex>>,
    /// The same, without those that are done.
    waiting: BTreeMap<ChunkIndex, BTreeSet<ChunkIndex>>,
    /// For every chunk that others build on: those.
    wanted_by: BTreeMap<ChunkIndex, Vec<ChunkIndex>>,
    /// The length of the longest chain behind a chunk; absent: nothing builds on it.
    chain: BTreeMap<ChunkIndex, u32>,
    /// Chunks whose requests can be made now.
    to_fill: BTreeSet<ChunkIndex>,
    /// Chunks whose requests are on their way to the disk.
    filling: BTreeSet<ChunkIndex>,
    /// Chunks that have failed, on disk or on the way there.
    failed: BTreeSet<ChunkIndex>,
    /// Chunks that fail because of another: each with that one.
    doomed: BTreeMap<ChunkIndex, ChunkIndex>,
}

impl Needs {
    /// Everything that the chunk builds on.
    pub(super) fn of(&self, chunk: ChunkIndex) -> impl Iterator<Item = ChunkIndex> {
        self.on.get(&chunk).into_iter().flatten().copied()
    }

    pub(super) fn has_failed(&self, chunk: ChunkIndex) -> bool {
        self.failed.contains(&chunk)
    }

    /// The chunk has failed, or is about to on disk.
    pub(super) fn fails(&mut self, chunk: ChunkIndex) {
        self.failed.insert(chunk);
    }

    /// Some request is on its way to the disk.
    pub(super) fn is_filling(&self) -> bool {
        !self.filling.is_empty() || !self.to_fill.is_empty()
    }

    /// Longest chain behind it first, then by number: where a chunk stands in its line.
    pub(super) fn rank(&self, chunk: ChunkIndex) -> Rank {
        (Reverse(self.chain.get(&chunk).copied().unwrap_or(0)), chunk)
    }
}

impl Schedule {
    /// Says which chunks build on which, after [`Schedule::resume`] and before the first event: `on` has for each
    /// chunk those that it needs, all before it; `unfilled` are the chunks whose requests are not on disk yet;
    /// `failed` those that are closed with a failure.
    pub fn depend(
        &mut self,
        on: BTreeMap<ChunkIndex, BTreeSet<ChunkIndex>>,
        unfilled: &BTreeSet<ChunkIndex>,
        failed: BTreeSet<ChunkIndex>,
    ) {
        if on.is_empty() {
            return;
        }
        self.needs = Needs { failed, ..Needs::default() };
        for (chunk, needed) in on.iter().rev() {
            let behind = self.needs.chain.get(chunk).copied().unwrap_or(0) + 1;
            for one in needed {
                let chain = self.needs.chain.entry(*one).or_default();
                *chain = behind.max(*chain);
            }
        }
        for (chunk, needed) in &on {
            for one in needed {
                self.needs.wanted_by.entry(*one).or_default().push(*chunk);
            }
            if self.status(*chunk) != Some(Status::Open) {
                continue;
            }
            if let Some(culprit) = needed.iter().find(|one| self.needs.failed.contains(*one)) {
                self.needs.doomed.insert(*chunk, *culprit);
            }
            let open = needed.iter().copied().filter(|one| self.status(*one) != Some(Status::Closed));
            let open: BTreeSet<ChunkIndex> = open.collect();
            if !open.is_empty() || unfilled.contains(chunk) {
                if open.is_empty() && !self.needs.doomed.contains_key(chunk) {
                    self.needs.to_fill.insert(*chunk);
                }
                self.needs.waiting.insert(*chunk, open);
            }
        }
        self.needs.on = on;
        let needs = &self.needs;
        for (chunk, work) in (0..).map(ChunkIndex).zip(&self.works) {
            let blocked = needs.waiting.contains_key(&chunk) || needs.doomed.contains_key(&chunk);
            // Until now nothing was known of chains.
            if self.waiting.remove((Reverse(0), chunk), work) && !blocked {
                self.waiting.add(needs.rank(chunk), work);
            }
        }
    }

    /// The chunk is closed on disk: what builds on it may go on, or has failed with it.
    pub(super) fn passed_on(&mut self, chunk: ChunkIndex) {
        let Some(behind) = self.needs.wanted_by.remove(&chunk) else { return };
        let failed = self.needs.failed.contains(&chunk);
        for one in behind {
            if failed {
                self.needs.doomed.entry(one).or_insert(chunk);
            }
            let Some(waiting) = self.needs.waiting.get_mut(&one) else { continue };
            waiting.remove(&chunk);
            if waiting.is_empty() && !self.needs.doomed.contains_key(&one) {
                self.needs.to_fill.insert(one);
            }
        }
    }

    /// The request of the chunk is on disk: it waits for an install like any other.
    pub(super) fn on_filled(&mut self, chunk: ChunkIndex) {
        if !self.needs.filling.remove(&chunk) || self.status(chunk) != Some(Status::Open) {
            return;
        }
        self.needs.waiting.remove(&chunk);
        self.waiting.add(self.needs.rank(chunk), &self.work(chunk));
        self.wake_all();
    }

    /// No request comes of the answers: the chunk's failure is on its way to the disk.
    pub(super) fn on_unfit(&mut self, chunk: ChunkIndex) {
        self.needs.filling.remove(&chunk);
        self.needs.waiting.remove(&chunk);
        self.needs.fails(chunk);
        self.finish(chunk);
    }

    /// Makes the requests that can be made, and fails what cannot run any more.
    pub(super) fn follow_needs(&mut self, actions: &mut Vec<Action>) {
        for chunk in std::mem::take(&mut self.needs.to_fill) {
            if self.status(chunk) == Some(Status::Open) {
                self.needs.filling.insert(chunk);
                actions.push(Action::Fill(chunk));
            }
        }
        for (chunk, culprit) in std::mem::take(&mut self.needs.doomed) {
            if self.status(chunk) == Some(Status::Open) {
                self.needs.waiting.remove(&chunk);
                self.needs.fails(chunk);
                self.finish(chunk);
                actions.push(Action::FailNeed(chunk, culprit));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tropa_proto::{
        failure::Reason,
        id::{AgentId, AttemptId, EngineRun, Incarnation, JobId, MachineId},
    };

    use super::{super::*, *};

    type On = BTreeMap<ChunkIndex, BTreeSet<ChunkIndex>>;

    /// Chunks and a driver that does every action at once, but for work, which it keeps until it is told to end.
    struct World {
        schedule: Schedule,
        now: Duration,
        running: Vec<AttemptId>,
        /// The order in which chunks were sent.
        sent: Vec<ChunkIndex>,
        filled: BTreeSet<ChunkIndex>,
        done: BTreeSet<ChunkIndex>,
        failed: BTreeMap<ChunkIndex, Option<ChunkIndex>>,
    }

    fn on(needs: &[(u32, &[u32])]) -> On {
        needs
            .iter()
            .map(|(chunk, on)| (ChunkIndex(*chunk), on.iter().map(|on| ChunkIndex(*on)).collect()))
            .collect()
    }

    fn install(n: u8) -> Install {
        Install {
            agent: AgentId([n; 32]),
            incarnation: Incarnation(1),
            engine: EngineRun(1),
            machine: MachineId(AgentId([n; 32])),
            width: 1,
            models: [ModelIndex(0)].into(),
            largest: Largest::default(),
            shut: false,
            warm: BTreeSet::new(),
            loads: BTreeMap::new(),
            rivals: BTreeSet::new(),
            unguarded: BTreeSet::new(),
            gpu_lanes: None,
            unplaced: Default::default(),
        }
    }

    impl World {
        fn new(chunks: u32, on: On, installs: u8) -> Self {
            let unfilled = on.keys().copied().collect();
            Self::resumed(chunks, on, &unfilled, &BTreeSet::new(), BTreeSet::new(), installs)
        }

        fn resumed(
            chunks: u32,
            on: On,
            unfilled: &BTreeSet<ChunkIndex>,
            done: &BTreeSet<ChunkIndex>,
            failed: BTreeSet<ChunkIndex>,
            installs: u8,
        ) -> Self {
            let mut schedule = Schedule::new(JobId([7; 16]), vec![ModelIndex(0); chunks as usize]);
            schedule.resume(done.union(&failed).copied(), BTreeMap::new(), Left::default());
            schedule.depend(on, unfilled, failed.clone());
            let mut world = Self {
                schedule,
                now: Duration::ZERO,
                running: Vec::new(),
                sent: Vec::new(),
                filled: BTreeSet::new(),
                done: done.clone(),
                failed: failed.into_iter().map(|chunk| (chunk, None)).collect(),
            };
            world.tell(Event::Roster((1..=installs).map(install).collect()));
            world
        }

        fn tell(&mut self, event: Event) {
            self.now += Duration::from_millis(1);
            for action in self.schedule.handle(event, self.now) {
                match action {
                    Action::Record(attempt, ..) => self.tell(Event::Recorded(attempt)),
                    Action::Send(attempt, _) => {
                        self.sent.push(attempt.chunk);
                        self.running.push(attempt);
                    }
                    Action::Fill(chunk) => {
                        assert!(self.filled.insert(chunk), "chunk {} is filled once", chunk.0);
                        self.tell(Event::Filled(chunk));
                    }
                    Action::Commit(attempt) => {
                        self.done.insert(attempt.chunk);
                        self.tell(Event::Committed(attempt.chunk));
                    }
                    Action::Fail(chunk, ..) => self.fails(chunk, None),
                    Action::FailNeed(chunk, culprit) => self.fails(chunk, Some(culprit)),
                    Action::Unguarded(..)
                    | Action::Cancel(..)
                    | Action::TakeBack(..)
                    | Action::End(..)
                    | Action::Recall(..)
                    | Action::Reattach(_)
                    | Action::Fetch(..)
                    | Action::Drop(_) => {}
                }
            }
        }

        fn fails(&mut self, chunk: ChunkIndex, culprit: Option<ChunkIndex>) {
            assert!(self.failed.insert(chunk, culprit).is_none(), "chunk {} fails once", chunk.0);
            self.tell(Event::Committed(chunk));
        }

        /// Ends what has run longest.
        fn end(&mut self, pick: usize, fine: bool) {
            if self.running.is_empty() {
                return;
            }
            let attempt = self.running.remove(pick % self.running.len());
            let event =
                if fine { Event::Finished(attempt) } else { Event::Failed(attempt, Reason::BadRequest) };
            self.tell(event);
        }

        fn run(&mut self) {
            while !self.running.is_empty() {
                self.end(0, true);
            }
        }
    }

    #[test]
    fn a_chunk_waits_for_all_that_it_needs_and_for_its_own_request() {
        let mut world = World::new(4, on(&[(1, &[0]), (2, &[0]), (3, &[1, 2])]), 2);
        assert_eq!(world.sent, [ChunkIndex(0)], "the diamond begins with its one top");
        world.end(0, true);
        assert_eq!(world.sent.len(), 3);
        world.end(0, true);
        assert_eq!(world.sent.len(), 3, "one of two is not enough");
        world.end(0, true);
        assert_eq!(world.sent[3], ChunkIndex(3));
        world.run();
        assert!(world.schedule.is_done() && world.schedule.is_idle());
    }

    #[test]
    fn the_longest_chain_behind_a_chunk_decides_what_goes_first() {
        // 0 and 1 stand alone; 4 builds on 2 and 3 builds on nothing, but 5 builds on 4.
        let world = World::new(6, on(&[(4, &[2]), (5, &[4])]), 1);
        assert_eq!(world.sent[0], ChunkIndex(2));
    }

    #[test]
    fn a_failure_fails_all_that_builds_on_it_and_nothing_else() {
        let mut world = World::new(6, on(&[(2, &[0]), (3, &[1]), (4, &[2, 3]), (5, &[3])]), 1);
        assert_eq!(world.sent[0], ChunkIndex(0));
        world.end(0, false);
        world.run();
        let failed: Vec<_> = world.failed.iter().map(|(chunk, on)| (chunk.0, on.map(|on| on.0))).collect();
        assert_eq!(failed, [(0, None), (2, Some(0)), (4, Some(2))]);
        assert!(world.schedule.is_done());
        assert_eq!(world.done, BTreeSet::from([ChunkIndex(1), ChunkIndex(3), ChunkIndex(5)]));
    }

    #[test]
    fn after_a_restart_requests_that_are_on_disk_are_not_made_again_and_failures_still_spread() {
        let chunks = |list: &[u32]| list.iter().map(|n| ChunkIndex(*n)).collect::<BTreeSet<_>>();
        let needs = on(&[(3, &[0]), (4, &[1]), (5, &[2])]);
        // 0 and 1 are done, 2 has failed; the request of 3 is on disk, that of 4 is not.
        let mut world = World::resumed(6, needs, &chunks(&[4, 5]), &chunks(&[0, 1]), chunks(&[2]), 1);
        world.run();
        assert_eq!(world.filled, chunks(&[4]));
        assert_eq!(world.failed.get(&ChunkIndex(5)), Some(&Some(ChunkIndex(2))));
        assert_eq!(world.done, chunks(&[0, 1, 3, 4]));
        assert!(world.schedule.is_done());
    }

    proptest! {
        /// The check after every event, in `handle` itself, judges the order.
        #[test]
        fn every_graph_ends_with_each_chunk_done_or_failed_for_a_reason(
            edges in proptest::collection::vec((1u32..30, 0u32..30), 0..60),
            ends in proptest::collection::vec((any::<usize>(), 0u8..10), 0..60),
            installs in 1u8..4,
        ) {
            let mut needs = On::new();
            for (chunk, on) in edges {
                needs.entry(ChunkIndex(chunk)).or_default().insert(ChunkIndex(on % chunk));
            }
            let mut world = World::new(30, needs.clone(), installs);
            for (pick, kind) in ends {
                world.end(pick, kind > 0);
            }
            world.run();
            prop_assert!(world.schedule.is_done() && world.schedule.is_idle());
            prop_assert_eq!(world.done.len() + world.failed.len(), 30);
            for (chunk, culprit) in &world.failed {
                let on = needs.get(chunk).cloned().unwrap_or_default();
                match culprit {
                    Some(culprit) => prop_assert!(on.contains(culprit) && world.failed.contains_key(culprit)),
                    None => prop_assert!(on.iter().all(|one| world.done.contains(one))),
                }
            }
        }
    }
}
