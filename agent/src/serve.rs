//! One work stream from a coordinator: its orders go to the executor, the executor's reports go back.
//!
//! A coordinator holds one stream for each attempt, and one for the job as a whole, on which beats travel; the agent
//! makes no difference between them.
//!
//! The end of the stream ends this task and nothing else: only a `Cancel` cancels (`reliability.md` §3).

use std::net::IpAddr;

use tokio::sync::mpsc;
use tropa_proto::{
    id::AgentId,
    mesh::{WorkError, WorkReader, WorkStream, WorkWriter, greet_coordinator},
    message::{FromAgent, Hello, Role, ToAgent},
    proof,
};

use crate::execute::Orders;

/// Reports that may wait for a slow coordinator; progress is dropped first, a result waits in the outbox.
const REPORTS: usize = 16;

/// Serves the stream until either side closes it.
pub(crate) async fn serve(from: AgentId, mut stream: WorkStream, hello: Hello, orders: Orders) {
    let at = stream.opened_from();
    match greet_coordinator(&mut stream, hello).await {
        Ok(theirs) if theirs.role == Role::Coordinator => proof::greeted(&from),
        Ok(_) => return,
        Err(error) => {
            tracing::debug!(peer = from.short(), %error, "a stream without a proper hello");
            return;
        }
    }
    let (reader, writer) = stream.split();
    let (reports, reported) = mpsc::channel(REPORTS);
    let ended = tokio::select! {
        ended = obey((from, at), reader, &orders, &reports) => ended,
        ended = report(reported, writer) => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(peer = from.short(), %error, "a work stream broke off");
    }
}

async fn obey(
    (from, at): (AgentId, Option<IpAddr>),
    mut reader: WorkReader,
    orders: &Orders,
    reports: &mpsc::Sender<FromAgent>,
) -> Result<(), WorkError> {
    while let Some(order) = reader.recv::<ToAgent>().await? {
        let taken = match order {
            ToAgent::Hello(_) => Ok(()),
            ToAgent::Run(run) => orders.run((from, at), *run, reports.clone()).await,
            ToAgent::Cancel(attempt) => orders.cancel(from, attempt, reports.clone()).await,
            ToAgent::TakeBack(attempt) => orders.take_back(from, attempt, reports.clone()).await,
            ToAgent::Ack(attempt) => orders.ack(from, attempt).await,
            ToAgent::Fetch { attempt, offset } => orders.fetch(from, attempt, offset, reports.clone()).await,
            ToAgent::Renew(job) => orders.renew(from, job).await,
            ToAgent::Reattach(job) => orders.reattach(from, job, reports.clone()).await,
        };
        if taken.is_err() {
            break;
        }
    }
    Ok(())
}

async fn report(mut reported: mpsc::Receiver<FromAgent>, mut writer: WorkWriter) -> Result<(), WorkError> {
    while let Some(report) = reported.recv().await {
        writer.send(&report).await?;
    }
    Ok(())
}
