//! Exit codes, which are part of the interface: scripts read them (`conventions.md` §3).

use std::process::ExitCode;

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Done, and some chunks failed.
    SomeFailed = 2,
    /// Nothing can run it: no agent, or no lane has the model.
    NothingCanRun = 4,
    /// Wrong usage: an unknown flag, an unknown configuration key, a value out of range.
    Usage = 64,
    /// The input does not match the job, or cannot be read.
    Input = 65,
    /// Input or output failed: a full disk, a broken pipe.
    Io = 74,
    /// Busy or locked: another coordinator works on the job.
    Busy = 75,
    /// Not authorised: a wrong mesh secret, or the policy of every agent that could run it denies it.
    NotAuthorised = 77,
    /// Stopped by ctrl-c; the job can be resumed.
    Interrupted = 130,
    /// Stopped by SIGTERM; the job can be resumed.
    Terminated = 143,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A command that could not do what it was asked to: what it says, and the code that it ends with.
#[derive(Debug)]
pub struct Failed {
    /// The code.
    pub exit: Exit,
    /// What failed, outermost action first.
    pub error: anyhow::Error,
}

/// The result of a command.
pub type Outcome = Result<Exit, Failed>;

impl Failed {
    /// Fails with this code and message.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, error: anyhow::Error::msg(message.into()) }
    }
}

/// Gives an error the code that the command ends with.
pub trait OrExit<T> {
    /// Ends with this code if it is an error.
    ///
    /// # Errors
    /// The error, with the code.
    fn or_exit(self, exit: Exit) -> Result<T, Failed>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T, Failed> {
        self.map_err(|error| Failed { exit, error: error.into() })
    }
}
