//! How an agent joins its mesh: at its start, and again under a new key when another agent runs with its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::sync::mpsc;
use tropa_proto::{
    mesh::{self, Mesh, MeshConfig, MeshError, MeshEvent},
    message::Role,
    secret::MeshSecret,
};

use crate::{PORT, state::State};

/// What it takes to join, whatever the key.
#[derive(Debug)]
pub(crate) struct Joining {
    pub(crate) secret: Option<MeshSecret>,
    /// Empty: the usual port, or another where it is taken.
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) mdns: bool,
    pub(crate) peers: Vec<SocketAddr>,
    /// Bytes in memory from which on nobody new is taken in.
    pub(crate) memory: Option<u64>,
}

impl Joining {
    /// Joins under the key of this state.
    pub(crate) async fn join(&self, state: &State) -> Result<(Mesh, mpsc::Receiver<MeshEvent>), MeshError> {
        if !self.listen.is_empty() {
            return mesh::start(self.config(state, self.listen.clone())).await;
        }
        let any = if self.secret.is_some() { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
        match mesh::start(self.config(state, vec![SocketAddr::from((any, PORT))])).await {
            Err(MeshError::Listen { .. }) => {
                mesh::start(self.config(state, vec![SocketAddr::from((any, 0))])).await
            }
            other => other,
        }
    }

    /// Joins where it listened before, so that whoever has its address finds it again; elsewhere if that is taken.
    pub(crate) async fn join_again(
        &self,
        state: &State,
        before: &[SocketAddr],
    ) -> Result<(Mesh, mpsc::Receiver<MeshEvent>), MeshError> {
        let wanted: Vec<IpAddr> = self.listen.iter().map(SocketAddr::ip).collect();
        let specified = before.iter().filter(|address| wanted.contains(&address.ip()));
        let listen: Vec<SocketAddr> = specified.copied().collect();
        if listen.len() == wanted.len() && !listen.is_empty() {
            match mesh::start(self.config(state, listen)).await {
                Err(MeshError::Listen { .. }) => {}
                other => return other,
            }
        }
        self.join(state).await
    }

    fn config(&self, state: &State, listen: Vec<SocketAddr>) -> MeshConfig {
        MeshConfig {
            key: state.seed(),
            secret: self.secret.clone(),
            listen,
            role: Role::Agent,
            mdns: self.mdns,
            peers: self.peers.clone(),
            memory: self.memory,
            marks: Some(state.directory().join("marks")),
        }
    }
}
