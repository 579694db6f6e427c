//! The two ways to stop a command from outside: ctrl-c and SIGTERM. The first asks, the second does not.

use tropa_agent::signals::{Signals, StoppedBy};

use crate::exit::{Exit, Failed, OrExit as _};

/// Listens for the signals.
#[derive(Debug)]
pub struct Stop {
    signals: Signals,
    seen: bool,
}

/// Somebody wants the command to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The code that the command ends with.
    pub exit: Exit,
    /// This is the second time: do not wait for what runs.
    pub at_once: bool,
}

impl Stop {
    /// Starts to listen.
    ///
    /// # Errors
    /// When the system does not let the command listen.
    pub fn new() -> Result<Self, Failed> {
        let signals = Signals::new().or_exit(Exit::Io)?;
        Ok(Self { signals, seen: false })
    }

    /// Works on something that has changed nothing yet, and gives it up at the first signal.
    ///
    /// # Errors
    /// Its own, or the code of the signal.
    pub async fn cuts<T>(&mut self, work: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
        tokio::select! {
            done = work => done,
            stopped = self.next() => Err(Failed::new(stopped.exit, "stopped before anything ran")),
        }
    }

    /// Waits for the next signal. May be dropped at any time.
    pub async fn next(&mut self) -> Stopped {
        let exit = match self.signals.next().await {
            StoppedBy::User => Exit::Interrupted,
            StoppedBy::System => Exit::Terminated,
        };
        Stopped { exit, at_once: std::mem::replace(&mut self.seen, true) }
    }
}
