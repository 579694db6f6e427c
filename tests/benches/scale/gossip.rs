//! How often an announcement travels before everybody has it: links and gossipsub's mesh as agents make them, with a
//! fixed seed, and one message from each of some authors.
//!
//! Every copy that is sent costs its receiver a signature or a look into a cache, and both ends its bytes. Real agents
//! measure what a copy costs; this says how the number of copies grows where nobody can start so many.

use std::collections::{BTreeSet, VecDeque};

/// Up to so many agents everybody is connected to everybody (`libp2p.md` §8).
const FULL_MESH: usize = 30;

/// In a larger mesh an agent dials so many others (`libp2p.md` §8).
const OUTGOING: usize = 8;

/// Whoever has fewer links in the gossip mesh takes the next one at once: `mesh_n_low` of the swarm.
const MESH_LOW: usize = 5;

/// Nobody takes more: `mesh_n_high` of the swarm.
const MESH_HIGH: usize = 12;

/// Authors whose announcements are followed.
const AUTHORS: usize = 20;

/// What one announcement comes to, on average over its authors.
pub(crate) struct Spread {
    /// How often it is sent, for each agent.
    pub(crate) copies: f64,
    /// The longest way, in hops.
    pub(crate) hops: usize,
    /// Agents that it reaches; all, unless the links fall apart.
    pub(crate) reached: usize,
}

/// One size.
pub(crate) fn spread(agents: u32) -> Spread {
    let count = agents as usize;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let links = links(count, &mut random);
    let mesh = mesh(&links, &mut random);
    let authors = AUTHORS.min(count);
    let (mut sent, mut hops, mut reached) = (0, 0, count);
    for _ in 0..authors {
        let (copies, way, heard) = follow(random.below(count), &links, &mesh);
        sent += copies;
        hops = hops.max(way);
        reached = reached.min(heard);
    }
    Spread { copies: sent as f64 / (authors * count) as f64, hops, reached }
}

/// Who is connected to whom.
fn links(count: usize, random: &mut Random) -> Vec<BTreeSet<usize>> {
    let mut links = vec![BTreeSet::new(); count];
    for one in 0..count {
        let dialled: Vec<usize> = if count <= FULL_MESH {
            (0..count).collect()
        } else {
            (0..OUTGOING).map(|_| random.below(count)).collect()
        };
        for other in dialled.into_iter().filter(|other| *other != one) {
            links[one].insert(other);
            links[other].insert(one);
        }
    }
    links
}

/// Which links gossip uses: in any order, each that one of its ends still needs.
fn mesh(links: &[BTreeSet<usize>], random: &mut Random) -> Vec<BTreeSet<usize>> {
    let mut all: Vec<(usize, usize)> = links
        .iter()
        .enumerate()
        .flat_map(|(one, others)| others.range(..one).map(move |other| (one, *other)))
        .collect();
    for at in (1..all.len()).rev() {
        all.swap(at, random.below(at + 1));
    }
    let mut mesh = vec![BTreeSet::new(); links.len()];
    for (one, other) in all {
        let [a, b] = [mesh[one].len(), mesh[other].len()];
        if a.min(b) < MESH_LOW && a.max(b) < MESH_HIGH {
            mesh[one].insert(other);
            mesh[other].insert(one);
        }
    }
    mesh
}

/// The author sends to all its links; who hears it first sends it on in the mesh, but not back.
fn follow(author: usize, links: &[BTreeSet<usize>], mesh: &[BTreeSet<usize>]) -> (usize, usize, usize) {
    let mut hops = vec![None; links.len()];
    hops[author] = Some(0);
    let mut waiting = VecDeque::from([(author, author)]);
    let mut sent = 0;
    while let Some((one, from)) = waiting.pop_front() {
        let next = hops[one].unwrap_or_default() + 1;
        let to = if one == author { &links[one] } else { &mesh[one] };
        for other in to.iter().filter(|other| **other != from && **other != author) {
            sent += 1;
            if hops[*other].is_none() {
                hops[*other] = Some(next);
                waiting.push_back((*other, one));
            }
        }
    }
    let heard = hops.iter().flatten().count();
    (sent, hops.into_iter().flatten().max().unwrap_or_default(), heard)
}

/// xorshift64: the same numbers every time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }
}
