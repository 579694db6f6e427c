//! One install, one command: where no agent answers and an Ollama does, the command brings its own agent.
//!
//! It is the same agent, over the same mesh, in the same process, for as long as the command runs.

use std::net::SocketAddr;

use anyhow::Context as _;
use tokio::{sync::oneshot, task::JoinHandle};
use tropa_agent::{Agent, Config, evidence::Root, policy::Policy};

use crate::{
    exit::{Exit, Failed, OrExit as _},
    settings::Settings,
};

/// An agent inside this process.
#[derive(Debug)]
pub struct OwnAgent {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl OwnAgent {
    /// Starts an agent beside the Ollama of these settings, on a free port of loopback; other programs do not see
    /// it.
    ///
    /// # Errors
    /// When it cannot keep its key or open a socket.
    pub async fn start(settings: &Settings) -> Result<Self, Failed> {
        let config = Config {
            ollama: settings.ollama.clone(),
            policy: Policy::default(),
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            peers: Vec::new(),
            secret: settings.secret.clone(),
            mdns: false,
            lane: None,
            log: None,
            label: tropa_agent::host_name(),
            width: 0,
            machine: None,
            root: Root::live(),
            lock_dir: settings.locks.choose(),
            runtime: None,
            state: settings.state.clone(),
            // The process is the command's, and so is what it has in memory.
            memory: None,
        };
        let agent = Agent::start(config).await.context("starting an agent of our own").or_exit(Exit::Io)?;
        let address = agent.address();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            // Dropping the sender stops it as well.
            let shutdown = async { drop(stopped.await) };
            if let Err(error) = agent.run(shutdown).await {
                tracing::error!(%error, "our own agent has ended");
            }
        });
        Ok(Self { address, stop, task })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets it end in good order.
    pub async fn finish(self) {
        let _ = self.stop.send(());
        // A panic of the agent has been printed.
        let _ = self.task.await;
    }
}
