//! Whom to dial, and when: every wanted peer until it is connected, with growing pauses.
//!
//! Pure: the driver asks with the present time what is due, dials, and says what became of it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{id::AgentId, random::Random};

/// Pauses between attempts, the last one for ever; each is shortened at random (full jitter), so that many agents
/// do not come back at once (`reliability.md` §4).
const PAUSES_MS: [u64; 7] = [200, 500, 1_000, 2_000, 5_000, 10_000, 30_000];

/// How long the agent with the higher id leaves it to the other to dial, when both have learnt of each other; it
/// dials then all the same, since the way may be open in one direction only (`libp2p.md` §3.1).
const GRACE: Duration = Duration::from_secs(2);

/// Up to so many agents everybody is connected to everybody (`libp2p.md` §8).
const FULL_MESH: usize = 30;

/// In a larger mesh an agent keeps so many connections of its own making.
const OUTGOING: usize = 8;

/// In a larger mesh an address that the operator named is dialled anew after at most so long for each agent: so all of
/// them together come by once in half a second, which joins what was parted, and finds again who has restarted.
const VISIT_MS: u64 = 1_000;

/// Dials at once: half of what may be pending, so that answers to questions find room.
const FLYING: usize = 16;

/// Targets that the operator named or that announced themselves: more than there may be members.
const TARGETS: usize = 1_536;

/// Neighbours that mDNS saw and that have not announced themselves. They may be made up, so they have places of
/// their own; as many as one network has addresses in most homes.
const NEIGHBOURS: usize = 256;

/// Addresses of one target: six announced, and two seen by mDNS.
const ADDRESSES: usize = 8;

/// What is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// Whoever answers at an address that the operator named.
    Address(SocketAddr),
    /// An agent, at the addresses that it announced or that mDNS saw.
    Agent(AgentId),
}

/// The peers to keep connections to.
#[derive(Debug)]
pub(super) struct Dialer {
    me: AgentId,
    /// A coordinator wants all agents, at once: somebody waits for it, and few agents know of it.
    wants_all: bool,
    targets: BTreeMap<Target, Aim>,
    random: Random,
}

#[derive(Debug)]
struct Aim {
    addresses: Vec<SocketAddr>,
    /// Who answered at an address, once somebody has.
    who: Option<AgentId>,
    /// Only mDNS has seen it.
    neighbour: bool,
    failures: usize,
    next: Instant,
    flying: bool,
    /// Orders targets of equal right differently at every node.
    rank: u64,
}

/// What the dialler must know of the present connections.
pub(super) trait Present {
    /// Is there a connection to this agent?
    fn connected(&self, agent: &AgentId) -> bool;
    /// Counts the connections that were dialled here.
    fn outgoing(&self) -> usize;
    /// Counts the agents that are present, as far as known.
    fn agents(&self) -> usize;
}

impl Dialer {
    /// `seed` is any number that differs from node to node.
    pub(super) fn new(me: AgentId, wants_all: bool, seed: u64) -> Self {
        Self { me, wants_all, targets: BTreeMap::new(), random: Random::new(seed) }
    }

    /// Wants whoever is at an address, for ever.
    pub(super) fn keep(&mut self, address: SocketAddr, now: Instant) {
        self.want(Target::Address(address), &[address], false, now);
    }

    /// Wants an agent that has announced itself.
    pub(super) fn announced(&mut self, agent: AgentId, addresses: &[SocketAddr], now: Instant) {
        self.agent(agent, addresses, false, now);
    }

    /// Wants whoever mDNS has seen.
    pub(super) fn neighbour(&mut self, agent: AgentId, address: SocketAddr, now: Instant) {
        self.agent(agent, &[address], true, now);
    }

    fn agent(&mut self, agent: AgentId, addresses: &[SocketAddr], neighbour: bool, now: Instant) {
        if agent != self.me && !addresses.is_empty() {
            let leave_it = !self.wants_all && self.me > agent;
            let grace = if leave_it { GRACE } else { Duration::ZERO };
            self.want(Target::Agent(agent), addresses, neighbour, now + grace);
        }
    }

    /// Wants an agent no longer.
    pub(super) fn forget(&mut self, agent: &AgentId) {
        self.targets.remove(&Target::Agent(*agent));
    }

    /// Gives the addresses at which an agent may be.
    pub(super) fn addresses(&self, agent: &AgentId) -> Vec<SocketAddr> {
        self.targets.get(&Target::Agent(*agent)).map(|aim| aim.addresses.clone()).unwrap_or_default()
    }

    /// Takes the targets whose time has come; of each, [`Dialer::landed`] or [`Dialer::failed`] must follow.
    ///
    /// Addresses that the operator named come first, then agents that announced themselves, then what mDNS saw, each
    /// in an order that differs from node to node.
    pub(super) fn due(&mut self, present: &impl Present, now: Instant) -> Vec<(Target, Vec<SocketAddr>)> {
        let key = |target: &Target, aim: &Aim| (matches!(target, Target::Agent(_)), aim.neighbour, aim.rank);
        let mut room = self.room(present);
        let mut due: Vec<_> = self
            .wanted(present)
            .filter(|(_, aim)| aim.next <= now)
            .map(|(t, aim)| (key(t, aim), *t))
            .collect();
        due.sort_unstable();
        let mut taken = Vec::new();
        for ((is_agent, ..), target) in due {
            if room.all == 0 || (is_agent && room.agents == 0) {
                continue;
            }
            if let Some(aim) = self.targets.get_mut(&target) {
                room.all -= 1;
                room.agents = room.agents.saturating_sub(usize::from(is_agent));
                aim.flying = true;
                taken.push((target, aim.addresses.clone()));
            }
        }
        taken
    }

    /// Says when something is due next, if nothing happens until then.
    pub(super) fn next_deadline(&self, present: &impl Present) -> Option<Instant> {
        let room = self.room(present);
        self.wanted(present)
            .filter(|(target, _)| match target {
                Target::Address(_) => room.all > 0,
                Target::Agent(_) => room.all > 0 && room.agents > 0,
            })
            .map(|(_, aim)| aim.next)
            .min()
    }

    /// Learns that a target answered, and who it is.
    pub(super) fn landed(&mut self, target: &Target, who: AgentId) {
        if let Some(aim) = self.targets.get_mut(target) {
            aim.flying = false;
            aim.failures = 0;
            aim.who = Some(who);
        }
    }

    /// Learns that a target did not answer; it is due again after a pause.
    pub(super) fn failed(&mut self, target: &Target, now: Instant) {
        let random = self.random.number();
        if let Some(aim) = self.targets.get_mut(target) {
            aim.flying = false;
            aim.next = now + pause(aim.failures, random);
            aim.failures += 1;
        }
    }

    /// Learns that a target is this node itself, which is never dialled again.
    pub(super) fn is_me(&mut self, target: &Target) {
        self.targets.remove(target);
    }

    /// Learns that the last connection to an agent is gone: it is due again soon. In a large mesh an address is not: it
    /// is that of one member of many, who has closed because too many hold to it.
    pub(super) fn lost(&mut self, agent: &AgentId, present: &impl Present, now: Instant) {
        let random = self.random.number();
        let visit = VISIT_MS.saturating_mul(present.agents() as u64);
        let large = self.is_large(present);
        for (target, aim) in &mut self.targets {
            if *target == Target::Agent(*agent) || aim.who == Some(*agent) {
                let by_address = matches!(target, Target::Address(_));
                let longest = if large && by_address { visit } else { PAUSES_MS[0] };
                aim.next = now + up_to(longest, random);
            }
        }
    }

    fn want(&mut self, target: Target, addresses: &[SocketAddr], neighbour: bool, next: Instant) {
        let rank = self.random.number();
        let bound = if neighbour { NEIGHBOURS } else { TARGETS };
        let full = || self.targets.values().filter(|aim| aim.neighbour == neighbour).count() >= bound;
        if !self.targets.contains_key(&target) && full() {
            return;
        }
        let aim = self.targets.entry(target).or_insert(Aim {
            addresses: Vec::new(),
            who: None,
            neighbour,
            failures: 0,
            next,
            flying: false,
            rank,
        });
        aim.neighbour &= neighbour;
        // The newest come first and push out the oldest.
        let mut all = addresses.to_vec();
        all.extend(aim.addresses.iter().filter(|old| !addresses.contains(old)));
        all.truncate(ADDRESSES);
        aim.addresses = all;
    }

    fn wanted(&self, present: &impl Present) -> impl Iterator<Item = (&Target, &Aim)> {
        self.targets.iter().filter(|(target, aim)| {
            let who = match target {
                Target::Address(_) => aim.who,
                Target::Agent(agent) => Some(*agent),
            };
            !aim.flying && !who.is_some_and(|who| present.connected(&who))
        })
    }

    fn room(&self, present: &impl Present) -> Room {
        let flying = self.targets.values().filter(|aim| aim.flying).count();
        let all = FLYING.saturating_sub(flying);
        let agents =
            if self.is_large(present) { OUTGOING.saturating_sub(present.outgoing() + flying) } else { all };
        Room { all, agents }
    }

    /// Is this node content with some of many?
    fn is_large(&self, present: &impl Present) -> bool {
        !self.wants_all && present.agents() > FULL_MESH
    }
}

/// How many more dials may be in the air.
struct Room {
    all: usize,
    agents: usize,
}

fn pause(failures: usize, random: u64) -> Duration {
    up_to(PAUSES_MS[failures.min(PAUSES_MS.len() - 1)], random)
}

fn up_to(longest_ms: u64, random: u64) -> Duration {
    Duration::from_millis(random % longest_ms + 1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[derive(Default)]
    struct Scene {
        connected: BTreeSet<AgentId>,
        agents: usize,
    }

    impl Present for Scene {
        fn connected(&self, agent: &AgentId) -> bool {
            self.connected.contains(agent)
        }
        fn outgoing(&self) -> usize {
            self.connected.len()
        }
        fn agents(&self) -> usize {
            self.agents
        }
    }

    const ME: AgentId = AgentId([100; 32]);

    #[expect(clippy::disallowed_methods, reason = "an Instant has no other source; only differences matter")]
    fn start() -> Instant {
        Instant::now()
    }

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn agent(number: u8) -> AgentId {
        AgentId([number; 32])
    }

    #[test]
    fn an_address_is_dialled_at_once_again_after_failures_and_not_while_it_is_connected() {
        let (now, mut scene) = (start(), Scene::default());
        let mut dialer = Dialer::new(ME, false, 7);
        dialer.keep(address(1), now);
        let target = Target::Address(address(1));
        assert_eq!(dialer.due(&scene, now), [(target, vec![address(1)])]);
        assert_eq!(dialer.due(&scene, now), [], "not twice");
        dialer.failed(&target, now);
        assert_eq!(dialer.due(&scene, now), [], "not without a pause");
        let again = now + Duration::from_millis(PAUSES_MS[0]);
        assert_eq!(dialer.due(&scene, again).len(), 1);
        dialer.landed(&target, agent(1));
        scene.connected.insert(agent(1));
        assert_eq!(dialer.next_deadline(&scene), None);
        assert_eq!(dialer.due(&scene, again), []);
        scene.connected.clear();
        dialer.lost(&agent(1), &scene, again);
        assert!(dialer.next_deadline(&scene).is_some_and(|next| next > again));
    }

    #[test]
    fn pauses_grow_to_half_a_minute_and_no_further() {
        for (failures, longest) in PAUSES_MS.into_iter().chain([30_000; 3]).enumerate() {
            for random in [0, 1, longest - 1, longest, u64::MAX] {
                let pause = pause(failures, random);
                assert!(pause > Duration::ZERO && pause <= Duration::from_millis(longest), "{pause:?}");
            }
        }
    }

    #[test]
    fn the_higher_of_two_agents_waits_for_the_lower_to_dial() {
        let (now, scene) = (start(), Scene::default());
        let mut dialer = Dialer::new(ME, false, 7);
        dialer.announced(agent(101), &[address(1)], now);
        dialer.announced(agent(99), &[address(2)], now);
        assert_eq!(dialer.due(&scene, now), [(Target::Agent(agent(101)), vec![address(1)])]);
        assert_eq!(dialer.next_deadline(&scene), Some(now + GRACE));
        assert_eq!(dialer.due(&scene, now + GRACE), [(Target::Agent(agent(99)), vec![address(2)])]);
        let mut coordinator = Dialer::new(ME, true, 7);
        coordinator.announced(agent(99), &[address(2)], now);
        assert_eq!(coordinator.due(&scene, now).len(), 1, "a coordinator waits for nobody");
    }

    #[test]
    fn made_up_neighbours_take_no_place_and_no_turn_from_members() {
        let (now, scene) = (start(), Scene::default());
        let mut dialer = Dialer::new(AgentId([0; 32]), false, 7);
        for number in 0..2_000_u16 {
            let mut id = [0xff; 32];
            id[..2].copy_from_slice(&number.to_be_bytes());
            dialer.neighbour(AgentId(id), address(1), now);
        }
        assert_eq!(dialer.targets.len(), NEIGHBOURS);
        dialer.announced(agent(5), &[address(2)], now);
        dialer.keep(address(3), now);
        let first: Vec<_> = dialer.due(&scene, now).into_iter().take(2).map(|(target, _)| target).collect();
        assert_eq!(first, [Target::Address(address(3)), Target::Agent(agent(5))]);
    }

    #[test]
    fn in_a_large_mesh_an_agent_holds_eight_connections_and_a_coordinator_all() {
        let (now, mut scene) = (start(), Scene { agents: 90, ..Scene::default() });
        for (wants_all, expected) in [(false, OUTGOING), (true, 90)] {
            scene.connected.clear();
            let mut dialer = Dialer::new(AgentId([0; 32]), wants_all, 7);
            for number in 1..=90 {
                dialer.announced(agent(number), &[address(number.into())], now);
            }
            loop {
                let due = dialer.due(&scene, now);
                assert!(due.len() <= FLYING);
                if due.is_empty() {
                    break;
                }
                for (target, _) in due {
                    let Target::Agent(agent) = target else { panic!() };
                    dialer.landed(&target, agent);
                    scene.connected.insert(agent);
                }
            }
            assert_eq!(scene.connected.len(), expected);
            assert_eq!(dialer.next_deadline(&scene), None, "nothing is left that would wake the loop");
        }
    }

    #[test]
    fn in_a_large_mesh_an_address_is_dialled_again_at_leisure_and_still_dialled() {
        let (now, mut scene) = (start(), Scene::default());
        let mut dialer = Dialer::new(ME, false, 7);
        dialer.keep(address(1), now);
        let target = Target::Address(address(1));
        assert_eq!(dialer.due(&scene, now).len(), 1);
        dialer.landed(&target, agent(1));
        scene.connected = (1..=8).map(agent).collect();
        scene.agents = 300;
        let mut pauses = Vec::new();
        for _ in 0..20 {
            scene.connected.remove(&agent(1));
            dialer.lost(&agent(1), &scene, now);
            // Eight others are connected, and it is dialled all the same.
            scene.connected.insert(agent(9));
            let next = dialer.next_deadline(&scene).unwrap();
            assert_eq!(dialer.due(&scene, next), [(target, vec![address(1)])]);
            dialer.landed(&target, agent(1));
            pauses.push(next - now);
        }
        let all: Duration = pauses.iter().sum();
        assert!(
            all > Duration::from_millis(VISIT_MS * 300 * 5),
            "a quarter of the longest pause on average, at least: {pauses:?}"
        );
        assert!(pauses.iter().all(|pause| *pause <= Duration::from_millis(VISIT_MS * 300)), "{pauses:?}");
    }

    #[test]
    fn this_node_itself_is_never_dialled_again() {
        let (now, scene) = (start(), Scene::default());
        let mut dialer = Dialer::new(ME, false, 7);
        dialer.announced(ME, &[address(1)], now);
        dialer.keep(address(2), now);
        dialer.is_me(&Target::Address(address(2)));
        assert_eq!(dialer.next_deadline(&scene), None);
    }
}
