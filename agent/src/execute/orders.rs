//! The way into an executor, and what can be seen of it from outside.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tropa_proto::{
    id::{AgentId, AttemptId, Incarnation, JobId},
    message::{FromAgent, MAX_MEASURED_WIDTH, Run},
    permit::Denial,
};

use crate::{
    admission::{Key, Unfit},
    device_lock::DeviceLocks,
    occupation::Occupation,
    ollama::Request,
    policy::Policy,
};

/// Orders on their way to the driver; it takes them in microseconds, so more would only hide a fault.
pub(super) const MAX_ORDERS: usize = 256;

/// What an executor is made of.
#[derive(Debug)]
pub struct Settings {
    /// This run of the agent.
    pub incarnation: Incarnation,
    /// How many attempts the install holds at once, as its operator declared; 0: nothing was declared.
    pub width: u16,
    /// The locks of this agent's devices; `None` where there is no directory for them.
    pub locks: Option<Arc<DeviceLocks>>,
    /// The devices that attempts occupy.
    pub devices: Occupation,
}

impl Settings {
    /// How many attempts may be at the engine, if their coordinators want so many.
    pub(super) fn admits(&self) -> usize {
        usize::from(if self.width == 0 { MAX_MEASURED_WIDTH } else { self.width })
    }
}

/// How much there is at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Attempts at the engine.
    pub running: usize,
    /// Attempts that wait for a place, for the devices or for settling.
    pub queued: usize,
    /// Attempts whose digest is being checked.
    pub checking: usize,
    /// Results that wait for their `Ack`.
    pub waiting_results: usize,
    /// Something is being settled.
    pub settling: bool,
    /// The last settling ended without proof: a request that nobody waits for may still run.
    pub unsettled: bool,
    /// The engine has failed with two chunks one after the other, and has written no token since.
    pub ill: bool,
    /// As many attempts have started as may in an hour: more may from this time on.
    pub used_up_until: Option<Instant>,
    /// How many attempts began whose models had to be loaded somewhere.
    pub loads: u64,
    /// Something is at the engine of which it is not known yet where it is.
    pub loading: bool,
}

/// Whose work or results are here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guests {
    /// The coordinators.
    pub peers: BTreeSet<AgentId>,
    /// What their results take in memory, in bytes, to the mebibyte below.
    pub bytes: u64,
}

/// Where orders for an executor go. A clone is another way in.
#[derive(Clone, Debug)]
pub struct Orders {
    orders: mpsc::Sender<Order>,
    load: watch::Receiver<Load>,
    guests: watch::Receiver<Guests>,
    policy: Arc<Policy>,
}

/// Says that the executor has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("handing an order to the executor failed: it has ended")]
pub struct Ended;

#[derive(Debug)]
pub(super) enum Order {
    Run(Box<RunOrder>),
    Cancel(Key, mpsc::Sender<FromAgent>),
    TakeBack(Key, mpsc::Sender<FromAgent>),
    Ack(Key),
    Fetch(Key, u32, mpsc::Sender<FromAgent>),
    Renew(AgentId, JobId),
    Reattach(AgentId, JobId, mpsc::Sender<FromAgent>),
    Drain(String),
    Occupy(Box<Occupation>),
    Shut(Option<Denial>),
}

#[derive(Debug)]
pub(super) struct RunOrder {
    pub(super) key: Key,
    pub(super) incarnation: Incarnation,
    pub(super) request: Result<Request, Unfit>,
    pub(super) show_text: bool,
    pub(super) at_once: usize,
    pub(super) reports: mpsc::Sender<FromAgent>,
}

impl Orders {
    pub(super) fn new(
        orders: mpsc::Sender<Order>,
        load: watch::Receiver<Load>,
        guests: watch::Receiver<Guests>,
        policy: Arc<Policy>,
    ) -> Self {
        Self { orders, load, guests, policy }
    }

    /// Hands a `Run` over that came from this peer at this address; what the policy denies is refused before anything
    /// else is decided about it. Everything about the attempt is reported to `reports`, which should have room for
    /// eight frames and is never waited for; a closed one stops nothing.
    ///
    /// Known attempts answer with their present state: their place, their result again, or their failure.
    ///
    /// # Errors
    /// When the executor has ended.
    pub async fn run(
        &self,
        (from, at): (AgentId, Option<IpAddr>),
        run: Run,
        reports: mpsc::Sender<FromAgent>,
    ) -> Result<(), Ended> {
        let (key, incarnation, show_text) = ((from, run.attempt), run.incarnation, run.show_text);
        let at_once = usize::from(run.at_once.max(1));
        // Reading the body may take a millisecond; here it costs the caller's task and not the driver's.
        let request = match self.policy.denies_sender(at) {
            Some(denial) => Err(Unfit::Denied(denial)),
            None => Request::check(run, self.policy.allow_remote_models).map_err(Unfit::Failed),
        };
        let request = request.and_then(|request| match self.policy.permit.denies(&request.asks()) {
            Some(denial) => Err(Unfit::Denied(denial)),
            None => Ok(request),
        });
        self.send(Order::Run(Box::new(RunOrder { key, incarnation, request, show_text, at_once, reports })))
            .await
    }

    /// Cancels: what waits is dropped, what runs is hung up on. An attempt of another sender is unknown.
    ///
    /// # Errors
    /// When the executor has ended.
    pub async fn cancel(
        &self,
        from: AgentId,
        attempt: AttemptId,
        reports: mpsc::Sender<FromAgent>,
    ) -> Result<(), Ended> {
        self.send(Order::Cancel((from, attempt), reports)).await
    }

    /// Gives back what has not started, as if it were cancelled; what has is answered with its present state.
    ///
    /// # Errors
    /// When the executor has ended.
    pub async fn take_back(
        &self,
        from: AgentId,
        attempt: AttemptId,
        reports: mpsc::Sender<FromAgent>,
    ) -> Result<(), Ended> {
        self.send(Order::TakeBack((from, attempt), reports)).await
    }

    /// Says that the result is committed: it is forgotten.
    ///
    /// # Errors
    /// When the executor has ended.
    pub async fn ack(&self, from: AgentId, attempt: AttemptId) -> Result<(), Ended> {
        self.send(Order::Ack((from, attempt))).await
    }

    /// Asks what has become of an attempt, now and from now on; a result comes from `offset` on. One that is not known
    /// is refused as such and not started.
    ///
    /// # Errors
    /// When the executor has ended.
    pub async fn fetch(
        &self,
        from: AgentId,
        attempt: AttemptId,
        offset: u32,
        reports: mpsc::Sender<FromAgent>,
    ) -> Result<(), Ended> {
        self.send(Order::Fetch((from, attempt), offset, reports)).await
    }

    /// Says that the coordinator of a job lives.
    ///
    /// # Errors
    /// When the executor has ended.
    pub async fn renew(&self, from: AgentId, job: JobId) -> Result<(), Ended> {
        self.send(Order::Renew(from, job)).await
    }

    /// Asks what is held of a job of this sender: `Attached` at once, then a `Beat` every second while there is
    /// anything. A later channel for the same job replaces this one.
    ///
    /// # Errors
    /// When the executor has ended.
    pub async fn reattach(
        &self,
        from: AgentId,
        job: JobId,
        reports: mpsc::Sender<FromAgent>,
    ) -> Result<(), Ended> {
        self.send(Order::Reattach(from, job, reports)).await
    }

    /// Takes nothing new from now on and gives back what has not started; what runs goes on.
    ///
    /// # Errors
    /// When the executor has ended.
    pub async fn drain(&self, why: &str) -> Result<(), Ended> {
        self.send(Order::Drain(why.to_owned())).await
    }

    /// Says which devices an attempt occupies from now on: a model that lies on a GPU whole leaves the memory system
    /// to others. Takes effect when the locks are taken next.
    ///
    /// # Errors
    /// When the executor has ended.
    pub async fn occupy(&self, devices: Occupation) -> Result<(), Ended> {
        self.send(Order::Occupy(Box::new(devices))).await
    }

    /// Takes nothing new by this rule and gives back what has not started, until it is over (`None`).
    ///
    /// # Errors
    /// When the executor has ended.
    pub async fn shut(&self, rule: Option<Denial>) -> Result<(), Ended> {
        self.send(Order::Shut(rule)).await
    }

    /// Gives the present load, which also tells when it changes.
    #[must_use]
    pub fn load(&self) -> watch::Receiver<Load> {
        self.load.clone()
    }

    /// Gives whose work and results are here, which also tells when that changes.
    #[must_use]
    pub fn guests(&self) -> watch::Receiver<Guests> {
        self.guests.clone()
    }

    async fn send(&self, order: Order) -> Result<(), Ended> {
        self.orders.send(order).await.map_err(|_| Ended)
    }
}
