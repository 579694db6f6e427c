//! The agent's side of the live tests (`identity.md` §9): is this kernel that other agent's kernel?
//!
//! A coordinator asks, step by step; each step runs in a task of its own, so the agent's loop never waits. What can
//! be asked is little on purpose: to listen for five seconds under a random name with a prefix of ours, to go to such a
//! name, to tell the time, to read four counters that every process of the kernel may read, and to name the peers whose
//! traffic arrives through this machine itself. The name belongs to the network namespace, on Windows to the machine,
//! and leaves nothing behind.
//!
//! An agent whose hardware is declared answers nothing here: it does run on this kernel, and would prove to be what
//! its operator says that it is not.

#[cfg(unix)]
#[path = "live_test/unix.rs"]
mod rendezvous;
#[cfg(windows)]
#[path = "live_test/windows.rs"]
mod rendezvous;

use std::{collections::BTreeSet, io, net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tropa_proto::{
    bounded::{List, Text},
    id::{AgentId, Incarnation},
    mesh::{Mesh, Ticket},
    message::{Answer, LiveFinding, LiveStep},
};

use crate::{
    clock::wall_clock,
    evidence::{Networks, Root, read_counters},
};
use rendezvous::{Host, visit};

/// How long an offer stands and a visit takes, at most: a coordinator needs two round trips in between.
const STANDS_FOR: Duration = Duration::from_secs(5);

/// Steps at work at once, beyond which the answer is "busy": four pairs of one coordinator, and two coordinators.
const AT_ONCE: usize = 8;

/// Visitors of one offer: the one that is meant, and a few who read `/proc/net/unix`.
const VISITORS: usize = 4;

/// Answers the steps of live tests.
#[derive(Debug)]
pub(crate) struct LiveTests {
    root: Root,
    incarnation: Incarnation,
    places: Arc<Semaphore>,
}

impl LiveTests {
    pub(crate) fn new(root: Root, incarnation: Incarnation) -> Self {
        Self { root, incarnation, places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Takes a step and answers its ticket from a task of its own. Of neighbours only these members are named.
    pub(crate) fn take(
        &self,
        mesh: &Mesh,
        ticket: Ticket,
        (id, step): (u64, LiveStep),
        members: &BTreeSet<AgentId>,
    ) {
        let received_ns = wall_clock();
        let (mesh, root, incarnation) = (mesh.clone(), self.root.clone(), self.incarnation);
        let place = Arc::clone(&self.places).try_acquire_owned();
        let members = if step == LiveStep::Neighbours { members.clone() } else { BTreeSet::new() };
        tokio::spawn(async move {
            let finding = match place {
                _ if root.is_declared() => cannot("the hardware of this agent is declared"),
                Ok(_place) if step == LiveStep::Neighbours => neighbours(&mesh, root, &members).await,
                Ok(place) => perform(step, received_ns, root, place).await,
                Err(_) => cannot("busy with other live tests"),
            };
            mesh.answer(ticket, Answer::LiveTest { id, incarnation, finding }).await;
        });
    }
}

async fn perform(step: LiveStep, received_ns: i64, root: Root, at_work: OwnedSemaphorePermit) -> LiveFinding {
    match step {
        LiveStep::Offer { place, nonce } => match offer(place, nonce, at_work, STANDS_FOR) {
            Ok(()) => LiveFinding::Offered,
            Err(error) => cannot(&format!("cannot listen: {error}")),
        },
        LiveStep::Meet { place } => match timeout(STANDS_FOR, visit(place)).await {
            Ok(Ok(nonce)) => LiveFinding::Met(nonce),
            Ok(Err(error)) => cannot(&format!("nobody met: {error}")),
            Err(_elapsed) => cannot("nobody met in time"),
        },
        // A clock that was stepped back meanwhile says nothing, and the coordinator repeats.
        LiveStep::Clock => LiveFinding::Clock { received_ns, sent_ns: wall_clock().max(received_ns) },
        LiveStep::Counters => match tokio::task::spawn_blocking(move || read_counters(&root)).await {
            Ok(counters) => LiveFinding::Counters(counters),
            Err(_panic) => cannot("the counters could not be read"),
        },
        LiveStep::Neighbours => cannot("only a member of a mesh has neighbours"),
    }
}

/// Names the members whose traffic arrives through this machine itself. Their addresses go no further, and coordinators
/// are nobody's business.
async fn neighbours(mesh: &Mesh, root: Root, members: &BTreeSet<AgentId>) -> LiveFinding {
    let (links, listening) = (mesh.links().await, mesh.listening());
    let Ok(networks) = tokio::task::spawn_blocking(move || Networks::read(&root)).await else {
        return cannot("the routes could not be read");
    };
    let is_own = |address: &IpAddr| listening.iter().any(|own| own.ip().to_canonical() == *address);
    let near = links.iter().filter(|(_, address)| networks.is_within(*address) || is_own(address));
    let agents: BTreeSet<AgentId> =
        near.map(|(agent, _)| *agent).filter(|agent| members.contains(agent)).collect();
    LiveFinding::Neighbours(List::cut(agents.into_iter().collect()).0)
}

/// Listens at this place, gives the nonce to whoever comes, and ends by itself.
fn offer(
    place: [u8; 16],
    nonce: [u8; 32],
    at_work: OwnedSemaphorePermit,
    stands: Duration,
) -> io::Result<()> {
    let mut host = Host::at(place)?;
    tokio::spawn(async move {
        let serving = async {
            for _ in 0..VISITORS {
                host.receive(&nonce).await?;
            }
            io::Result::Ok(())
        };
        // Whatever ends it, the name is free again.
        let _ = timeout(stands, serving).await;
        drop(host);
        drop(at_work);
    });
    Ok(())
}

fn cannot(why: &str) -> LiveFinding {
    LiveFinding::Cannot(Text::cut(why))
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    async fn step(step: LiveStep, places: &Arc<Semaphore>) -> LiveFinding {
        let place = Arc::clone(places).try_acquire_owned().unwrap();
        perform(step, wall_clock(), Root::live(), place).await
    }

    fn random() -> [u8; 16] {
        let mut place = [0; 16];
        getrandom::fill(&mut place).unwrap();
        place
    }

    #[tokio::test]
    async fn who_comes_to_the_place_gets_the_nonce_and_nobody_else_does() {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let (place, nonce) = (random(), [7; 32]);
        assert_eq!(step(LiveStep::Offer { place, nonce }, &places).await, LiveFinding::Offered);
        assert_eq!(step(LiveStep::Meet { place }, &places).await, LiveFinding::Met(nonce));
        let elsewhere = step(LiveStep::Meet { place: random() }, &places).await;
        assert!(matches!(elsewhere, LiveFinding::Cannot(_)), "{elsewhere:?}");
        let again = step(LiveStep::Offer { place, nonce }, &places).await;
        assert!(matches!(again, LiveFinding::Cannot(_)), "a name that stands is not given twice: {again:?}");
    }

    #[tokio::test]
    async fn an_offer_ends_by_itself_and_frees_its_place() {
        let places = Arc::new(Semaphore::new(1));
        let place = random();
        let permit = Arc::clone(&places).try_acquire_owned().unwrap();
        offer(place, [1; 32], permit, Duration::from_millis(20)).unwrap();
        // The place comes back when the offer is over, and not before.
        assert!(places.try_acquire().is_err());
        drop(timeout(Duration::from_secs(60), Arc::clone(&places).acquire_owned()).await.unwrap().unwrap());
        let late = step(LiveStep::Meet { place }, &places).await;
        assert!(matches!(late, LiveFinding::Cannot(_)), "{late:?}");
    }

    #[tokio::test]
    async fn clock_and_counters_are_read() {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let LiveFinding::Clock { received_ns, sent_ns } = step(LiveStep::Clock, &places).await else {
            panic!("a clock")
        };
        assert!(received_ns <= sent_ns && sent_ns - received_ns < 60_000_000_000);
        let LiveFinding::Counters(counters) = step(LiveStep::Counters, &places).await else {
            panic!("counters")
        };
        assert!(counters.ctxt.value().is_none_or(|count| *count > 0), "{counters:?}");
    }
}
