//! One attempt as the coordinator sees it: a work stream to the agent, from `Run` to `Ack`.
//!
//! The task reports what the agent says and obeys two orders. A stream that breaks off says nothing about the attempt,
//! which is then `Detached`; one on which the agent breaks the rules is `Lost`. The schedule decides what follows.
//! Nothing here retries.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::task::TaskTracker;
use tropa_proto::{
    chunk_stream::{WorkError, WorkReader},
    id::{AgentId, AttemptId},
    mesh::Mesh,
    message::{Failure, FromAgent, Hello, Outcome, Place, Refusal, Run, ToAgent},
    proof,
};

use crate::work_stream::{self, Unopened};

/// What the agent says of an attempt.
#[derive(Debug)]
pub enum Report {
    /// It has it, here.
    Accepted(Place),
    /// It does not take it.
    Refused(Refusal),
    /// Tokens so far.
    Tokens(u32),
    /// The result, complete and checked.
    Finished(Box<Outcome>, Vec<u8>),
    /// It failed.
    Failed(Failure),
    /// The stream broke off; says how, and what had arrived of a result.
    Detached(String, Option<Partial>),
    /// The agent broke the rules; says which.
    Lost(String),
}

/// A result that arrived in part.
#[derive(Debug)]
pub struct Partial {
    outcome: Outcome,
    body: Vec<u8>,
}

/// The way to the agents, for attempts.
#[derive(Clone, Debug)]
pub struct Streams {
    mesh: Mesh,
    hello: Hello,
    reports: mpsc::Sender<(AttemptId, Report)>,
    tasks: TaskTracker,
}

/// The coordinator's hold on an attempt. Dropping it closes the stream, which cancels nothing.
#[derive(Debug)]
pub struct Attempt {
    orders: mpsc::Sender<ToAgent>,
    id: AttemptId,
}

impl Streams {
    /// Streams of this mesh. Reports go to `reports`, with the attempt's id.
    #[must_use]
    pub fn new(mesh: Mesh, hello: Hello, reports: mpsc::Sender<(AttemptId, Report)>) -> Self {
        Self { mesh, hello, reports, tasks: TaskTracker::new() }
    }

    /// Opens a stream to the agent and sends the run.
    #[must_use]
    pub fn start(&self, agent: AgentId, run: Run) -> Attempt {
        let id = run.attempt;
        self.open(agent, (id, ToAgent::Run(Box::new(run))), None)
    }

    /// Opens a stream to an agent that has the attempt, and listens to what becomes of it. Of a result that arrived in
    /// part only the rest is sent.
    #[must_use]
    pub fn fetch(&self, agent: AgentId, id: AttemptId, partial: Option<Partial>) -> Attempt {
        let have = partial.as_ref().map_or(0, |partial| partial.body.len());
        let offset = u32::try_from(have).unwrap_or(u32::MAX);
        self.open(agent, (id, ToAgent::Fetch { attempt: id, offset }), partial)
    }

    /// Opens a stream to an agent that had the attempt when an earlier stream broke off, and cancels it there. The
    /// agent answers with its end, or with its result where it has one.
    #[must_use]
    pub fn recall(&self, agent: AgentId, id: AttemptId) -> Attempt {
        self.open(agent, (id, ToAgent::Cancel(id)), None)
    }

    /// Waits until the last acknowledgements have left, at most so long. Streams whose attempt is dropped end.
    pub async fn finish(self, at_most: Duration) {
        self.tasks.close();
        // What is not out by then is asked for again by whoever resumes, or expires at the agent.
        let _ = timeout(at_most, self.tasks.wait()).await;
    }

    fn open(&self, agent: AgentId, (id, first): (AttemptId, ToAgent), partial: Option<Partial>) -> Attempt {
        let (mesh, hello, reports) = (self.mesh.clone(), self.hello.clone(), self.reports.clone());
        // At most one TakeBack, one Cancel and one Ack are ever sent.
        let (orders, inbox) = mpsc::channel(3);
        self.tasks.spawn(async move {
            let mut conversation = Conversation { id, reports, orders: inbox, partial };
            if let Err(broken) = conversation.hold(&mesh, agent, hello, first).await {
                let why = broken.to_string();
                let report = match broken {
                    Broken::WrongResult | Broken::OtherAttempt => Report::Lost(why),
                    Broken::Unopened(_) | Broken::NoHello | Broken::Stream(_) | Broken::Closed => {
                        Report::Detached(why, conversation.partial.take())
                    }
                };
                conversation.report(report).await;
            }
        });
        Attempt { orders, id }
    }
}

impl Attempt {
    /// Asks the agent to stop it.
    pub fn cancel(&self) {
        // A full or closed channel means that the attempt is over already.
        let _ = self.orders.try_send(ToAgent::Cancel(self.id));
    }

    /// Asks the agent to give it back if it has not started.
    pub fn take_back(&self) {
        let _ = self.orders.try_send(ToAgent::TakeBack(self.id));
    }

    /// Lets the agent forget what came of it. Dropping the attempt afterwards loses nothing.
    pub fn acknowledge(&self) {
        proof::event("ack", &self.id, "");
        let _ = self.orders.try_send(ToAgent::Ack(self.id));
    }
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Unopened(#[from] Unopened),
    #[error("the agent said hello twice")]
    NoHello,
    #[error("the stream to the agent broke off")]
    Stream(#[from] WorkError),
    #[error("the agent closed the stream before the attempt had ended")]
    Closed,
    #[error("the result does not match its length or its hash")]
    WrongResult,
    #[error("the agent speaks of another attempt")]
    OtherAttempt,
}

struct Conversation {
    id: AttemptId,
    reports: mpsc::Sender<(AttemptId, Report)>,
    orders: mpsc::Receiver<ToAgent>,
    partial: Option<Partial>,
}

impl Conversation {
    async fn hold(
        &mut self,
        mesh: &Mesh,
        agent: AgentId,
        hello: Hello,
        order: ToAgent,
    ) -> Result<(), Broken> {
        let (mut reader, mut writer, _) = work_stream::open(mesh, agent, hello, &order).await?;
        loop {
            tokio::select! {
                frame = reader.recv::<FromAgent>() => {
                    let frame = frame?.ok_or(Broken::Closed)?;
                    if self.on_frame(frame, &mut reader).await? {
                        break;
                    }
                }
                order = self.orders.recv() => match order {
                    Some(order) => writer.send(&order).await?,
                    None => return Ok(()),
                },
            }
        }
        // Only the coordinator's loop knows when the result is on disk.
        while let Some(order) = self.orders.recv().await {
            writer.send(&order).await?;
            if matches!(order, ToAgent::Ack(_)) {
                break;
            }
        }
        Ok(())
    }

    /// Passes a frame on and says whether it was the last.
    async fn on_frame(&mut self, frame: FromAgent, reader: &mut WorkReader) -> Result<bool, Broken> {
        let (about, report, last) = match frame {
            FromAgent::Hello(_) => return Err(Broken::NoHello),
            FromAgent::Accepted(about, place) => (about, Report::Accepted(place), false),
            FromAgent::Tokens { attempt, count, .. } => {
                // Progress is dropped first.
                let _ = self.reports.try_send((attempt, Report::Tokens(count)));
                return Ok(false);
            }
            FromAgent::Refused(about, refusal) => (about, Report::Refused(refusal), true),
            FromAgent::Failed(about, failure) => (about, Report::Failed(failure), true),
            FromAgent::Done(about, outcome) => {
                let body = self.read_result(&outcome, reader).await?;
                (about, Report::Finished(outcome, body), true)
            }
            FromAgent::Body(_) => return Err(Broken::WrongResult),
            FromAgent::Beat(_) | FromAgent::Attached(_) => return Err(Broken::OtherAttempt),
        };
        if about != self.id {
            return Err(Broken::OtherAttempt);
        }
        self.report(report).await;
        Ok(last)
    }

    /// Reads the frames of a result, after those that an earlier stream brought; it must have the length and the hash
    /// that were announced.
    async fn read_result(&mut self, outcome: &Outcome, reader: &mut WorkReader) -> Result<Vec<u8>, Broken> {
        let length = outcome.bytes as usize;
        let fresh = || Partial { outcome: outcome.clone(), body: Vec::new() };
        let partial = self.partial.get_or_insert_with(fresh);
        if partial.outcome != *outcome {
            return Err(Broken::WrongResult);
        }
        while partial.body.len() < length {
            let FromAgent::Body(piece) = reader.recv::<FromAgent>().await?.ok_or(Broken::Closed)? else {
                return Err(Broken::WrongResult);
            };
            if piece.is_empty() || partial.body.len() + piece.len() > length {
                return Err(Broken::WrongResult);
            }
            partial.body.extend_from_slice(&piece);
        }
        let body = self.partial.take().map(|partial| partial.body).unwrap_or_default();
        let hash: [u8; 32] = Sha256::digest(&body).into();
        if hash == outcome.sha256 { Ok(body) } else { Err(Broken::WrongResult) }
    }

    async fn report(&self, report: Report) {
        // A closed channel means that the job is over.
        let _ = self.reports.send((self.id, report)).await;
    }
}
