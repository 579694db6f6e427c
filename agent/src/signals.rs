//! How a program is stopped from outside: by its user at the terminal, and by the system.
//!
//! Unix: SIGINT and SIGTERM. Windows: ctrl-c, and what else comes to a console: ctrl-break, its closing, the end of the
//! session, of which the last two leave a program some seconds.

use std::io;

#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};
#[cfg(windows)]
use tokio::signal::windows::{CtrlBreak, CtrlC, CtrlClose, CtrlShutdown};

/// Who stopped the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoppedBy {
    /// The user, with ctrl-c.
    User,
    /// The system, a service manager, or somebody's `kill`.
    System,
}

/// Listens for what stops a program.
#[derive(Debug)]
pub struct Signals {
    #[cfg(unix)]
    interrupt: Signal,
    #[cfg(unix)]
    terminate: Signal,
    #[cfg(windows)]
    interrupt: CtrlC,
    #[cfg(windows)]
    terminate: (CtrlBreak, CtrlClose, CtrlShutdown),
}

impl Signals {
    /// Begins to listen; from now on they do not end the program by themselves.
    ///
    /// # Errors
    /// When the system does not let it listen.
    #[cfg(unix)]
    pub fn new() -> io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate })
    }

    /// Begins to listen; from now on they do not end the program by themselves.
    ///
    /// # Errors
    /// When the system does not let it listen.
    #[cfg(windows)]
    pub fn new() -> io::Result<Self> {
        use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown};
        Ok(Self { interrupt: ctrl_c()?, terminate: (ctrl_break()?, ctrl_close()?, ctrl_shutdown()?) })
    }

    /// Waits for the next one. May be dropped at any time.
    pub async fn next(&mut self) -> StoppedBy {
        #[cfg(unix)]
        let system = self.terminate.recv();
        #[cfg(windows)]
        let system = async {
            let (brk, close, shutdown) = &mut self.terminate;
            tokio::select! {
                ended = brk.recv() => ended,
                ended = close.recv() => ended,
                ended = shutdown.recv() => ended,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => StoppedBy::User,
            _ = system => StoppedBy::System,
        }
    }
}
