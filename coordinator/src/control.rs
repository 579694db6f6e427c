//! The control stream of a job to one agent: what it holds, its beats, and `Renew`.
//!
//! It lives as long as the job works with the agent. When it breaks off the task says so and ends; whether and when
//! another is opened is decided in `liveness.rs`.

use tokio::sync::mpsc;
use tropa_proto::{
    chunk_stream::WorkError,
    id::{AgentId, Incarnation, JobId},
    mesh::{Mesh, MeshError},
    message::{FromAgent, Held, Hello, ToAgent},
};

use crate::work_stream::{self, Unopened};

/// Orders that may wait: a question and a `Renew` or two. What finds no room is sent again with the next.
const ORDERS: usize = 4;

/// What the agent says, or what became of the stream.
#[derive(Debug)]
pub(crate) enum Said {
    /// This run of it holds this.
    Attached(Incarnation, Held),
    /// It lives and holds this.
    Beat(Held),
    /// The stream is of no use any more; `gone` where nobody listens there.
    Broken {
        /// How.
        why: String,
        /// The agent has ended.
        gone: bool,
    },
}

/// The coordinator's end. Dropping it closes the stream.
#[derive(Debug)]
pub(crate) struct Control {
    orders: mpsc::Sender<ToAgent>,
    job: JobId,
    /// Which stream to this agent it is; what an earlier one says is old.
    pub(crate) number: u64,
}

/// What is said on the control stream of this number.
pub(crate) type Saying = (AgentId, u64, Said);

impl Control {
    /// Opens the stream and asks what is held.
    pub(crate) fn open(
        mesh: Mesh,
        agent: AgentId,
        hello: Hello,
        job: JobId,
        number: u64,
        sayings: mpsc::Sender<Saying>,
    ) -> Self {
        let (orders, inbox) = mpsc::channel(ORDERS);
        tokio::spawn(async move {
            let mut conversation = Conversation { agent, number, sayings, orders: inbox };
            let Err(broken) = conversation.hold(&mesh, hello, job).await else { return };
            let gone = matches!(broken, Broken::Unopened(Unopened::Open(MeshError::Refused(_))));
            conversation.say(Said::Broken { why: broken.to_string(), gone }).await;
        });
        Self { orders, job, number }
    }

    /// Says that this coordinator lives.
    pub(crate) fn renew(&self) {
        let _ = self.orders.try_send(ToAgent::Renew(self.job));
    }

    /// Asks again what is held.
    pub(crate) fn ask(&self) {
        let _ = self.orders.try_send(ToAgent::Reattach(self.job));
    }
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Unopened(#[from] Unopened),
    #[error("the stream to the agent broke off")]
    Stream(#[from] WorkError),
    #[error("the agent closed the stream")]
    Closed,
    #[error("the agent speaks of another job")]
    OtherJob,
}

struct Conversation {
    agent: AgentId,
    number: u64,
    sayings: mpsc::Sender<Saying>,
    orders: mpsc::Receiver<ToAgent>,
}

impl Conversation {
    /// Ends well only when the coordinator drops its end.
    async fn hold(&mut self, mesh: &Mesh, hello: Hello, job: JobId) -> Result<(), Broken> {
        let reattach = ToAgent::Reattach(job);
        let opened = tokio::select! {
            opened = work_stream::open(mesh, self.agent, hello, &reattach) => opened,
            () = abandoned(&mut self.orders) => return Ok(()),
        };
        let (mut reader, mut writer, incarnation) = opened?;
        loop {
            tokio::select! {
                frame = reader.recv::<FromAgent>() => {
                    let said = match frame?.ok_or(Broken::Closed)? {
                        FromAgent::Attached(held) if held.job == job => Said::Attached(incarnation, *held),
                        FromAgent::Beat(beat) if beat.held.job == job => Said::Beat(beat.held),
                        FromAgent::Attached(_)
                        | FromAgent::Beat(_)
                        | FromAgent::Hello(_)
                        | FromAgent::Accepted(..)
                        | FromAgent::Refused(..)
                        | FromAgent::Tokens { .. }
                        | FromAgent::Done(..)
                        | FromAgent::Body(_)
                        | FromAgent::Failed(..) => return Err(Broken::OtherJob),
                    };
                    self.say(said).await;
                }
                order = self.orders.recv() => match order {
                    Some(order) => writer.send(&order).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    async fn say(&self, said: Said) {
        // A closed channel means that the job is over.
        let _ = self.sayings.send((self.agent, self.number, said)).await;
    }
}

/// Waits until the other end is dropped; orders for a stream that is not open yet are of no use.
async fn abandoned(orders: &mut mpsc::Receiver<ToAgent>) {
    while orders.recv().await.is_some() {}
}
