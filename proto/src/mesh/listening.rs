//! Listening on an address, and knowing which it became before anything is said of it.

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use futures::StreamExt as _;
use libp2p::{
    core::transport::{ListenerId, TransportError},
    swarm::SwarmEvent,
};

use super::{
    MeshError,
    driver::{Driver, clock},
    swarm::multiaddr,
};

/// How long binding may take; a wildcard asks the system for its interfaces first.
const BIND_LIMIT: Duration = Duration::from_secs(5);

impl Driver {
    /// Binds one address, and waits until it is known which.
    pub(super) async fn listen(&mut self, addr: SocketAddr) -> Result<(), MeshError> {
        let failed = |source| MeshError::Listen { addr, source };
        // libp2p listens with SO_REUSEPORT, with which two agents of one user would share a port silently.
        drop(TcpListener::bind(addr).map_err(failed)?);
        let listener = self.swarm.listen_on(multiaddr(addr)).map_err(|error| match error {
            TransportError::Other(source) => failed(source),
            TransportError::MultiaddrNotSupported(_) => failed(std::io::ErrorKind::Unsupported.into()),
        })?;
        tokio::time::timeout(BIND_LIMIT, self.bound(listener))
            .await
            .unwrap_or_else(|_elapsed| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(failed)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "all other events are for later")]
    async fn bound(&mut self, listener: ListenerId) -> std::io::Result<()> {
        loop {
            let event = self.swarm.select_next_some().await;
            let bound = match &event {
                SwarmEvent::NewListenAddr { listener_id, .. } => *listener_id == listener,
                SwarmEvent::ListenerClosed { listener_id, .. } if *listener_id == listener => {
                    return Err(std::io::ErrorKind::AddrNotAvailable.into());
                }
                _ => false,
            };
            self.react(event, clock());
            if bound {
                return Ok(());
            }
        }
    }
}
