//! Opening a work stream to an agent: a hello and the first order go out at once, the agent's hello comes back.

use std::time::Duration;

use tokio::time::timeout;
use tropa_proto::{
    chunk_stream::{WorkError, WorkReader, WorkWriter},
    id::{AgentId, Incarnation},
    mesh::{Mesh, MeshError},
    message::{Hello, ToAgent},
};

/// Opening a stream and saying hello on a live connection takes well under a millisecond; this is the limit of
/// `Hello` in `security.md` §6. A frozen agent takes connections and says nothing.
const OPEN_WITHIN: Duration = Duration::from_secs(5);

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unopened {
    #[error("the agent did not take a stream within 5 s")]
    NoStream,
    #[error("opening a stream to the agent failed")]
    Open(#[from] MeshError),
    #[error("the stream to the agent broke off")]
    Stream(#[from] WorkError),
}

/// Opens a stream to the agent and sends the order; gives its two halves, and the run of the agent that answers.
///
/// # Errors
/// When the agent is not reached, takes no stream, or is none.
pub(crate) async fn open(
    mesh: &Mesh,
    agent: AgentId,
    hello: Hello,
    order: &ToAgent,
) -> Result<(WorkReader, WorkWriter, Incarnation), Unopened> {
    let opening = async {
        let (reader, mut writer) = mesh.open(agent).await?.split();
        // Both at once: waiting for the agent's hello would cost a round trip for every chunk. The agent reads no
        // order before a proper hello.
        writer.send(&ToAgent::Hello(hello)).await?;
        writer.send(order).await?;
        Ok::<_, Unopened>((reader, writer))
    };
    let (mut reader, writer) = timeout(OPEN_WITHIN, opening).await.map_err(|_| Unopened::NoStream)??;
    let hello = reader.hello_of_agent().await?;
    Ok((reader, writer, hello.incarnation))
}
