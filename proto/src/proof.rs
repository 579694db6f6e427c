//! What tests may switch and see inside the real programs; no release build has any of it.
//!
//! Three things, chosen at run time, so that one test build serves all (`reliability.md` §7.6, §9):
//!
//! * a *planted bug* takes one defence away, and a test must notice: `TROPA_PLANTED=<name>`, or `plant` within one
//!   thread;
//! * a *failpoint* breaks one step of §7.4: `TROPA_FAILPOINT=<step>:kill|eio|enospc[:<n-th time>]`;
//! * an *event line* says what a program did, for the history checker: `TROPA_EVENTS=<file>`.
//!
//! All of it needs the feature `planted`, which only the tests' own package asks for, and debug assertions, which a
//! release build does not have. Without them each function here is empty, so its callers need no condition.

use std::{fmt, io};

use crate::id::{AgentId, AttemptId};

/// Whether this build has any of it.
pub const COMPILED_IN: bool = cfg!(all(feature = "planted", debug_assertions, unix));

/// A defence that a test may take away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// An agent starts attempts without the locks of its devices.
    NoKernelLock,
    /// What was hung up on or left behind is not waited for.
    NoSettling,
    /// A result is acknowledged before it is on disk.
    AckBeforeCommit,
    /// A second result of a chunk replaces the first.
    NoKeyAtCommit,
    /// A `Run` that comes twice is executed twice.
    RunNotIdempotent,
    /// An answer that ends without `done:true` is a result.
    MissingDoneIsSuccess,
    /// An engine that falls silent is waited for.
    NoIdleTimeout,
    /// After a restart what was under way runs again at once.
    RequeueBeforeReattach,
    /// Results are written as they come.
    OutputByCompletion,
}

impl Bug {
    /// All of them, in the order of `reliability.md` §9.
    pub const ALL: [Self; 9] = [
        Self::NoKernelLock,
        Self::NoSettling,
        Self::AckBeforeCommit,
        Self::NoKeyAtCommit,
        Self::RunNotIdempotent,
        Self::MissingDoneIsSuccess,
        Self::NoIdleTimeout,
        Self::RequeueBeforeReattach,
        Self::OutputByCompletion,
    ];

    /// The name in `TROPA_PLANTED`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoKernelLock => "no_kernel_lock",
            Self::NoSettling => "no_settling",
            Self::AckBeforeCommit => "ack_before_commit",
            Self::NoKeyAtCommit => "no_key_at_commit",
            Self::RunNotIdempotent => "run_not_idempotent",
            Self::MissingDoneIsSuccess => "missing_done_is_success",
            Self::NoIdleTimeout => "no_idle_timeout",
            Self::RequeueBeforeReattach => "requeue_before_reattach",
            Self::OutputByCompletion => "output_by_completion",
        }
    }
}

/// Says whether the defence is taken away here; never in a release build.
#[must_use]
pub fn planted(bug: Bug) -> bool {
    #[cfg(all(feature = "planted", debug_assertions, unix))]
    return tests_only::planted(bug);
    #[cfg(not(all(feature = "planted", debug_assertions, unix)))]
    {
        let _ = bug;
        false
    }
}

/// Passes a step at which a test may break the program.
///
/// # Errors
/// The error that the test asked for; never in a release build.
pub fn step(name: &'static str) -> io::Result<()> {
    #[cfg(all(feature = "planted", debug_assertions, unix))]
    return tests_only::step(name);
    #[cfg(not(all(feature = "planted", debug_assertions, unix)))]
    {
        let _ = name;
        Ok(())
    }
}

/// Passes a step that has no error of its own: a test can only kill the program there.
pub fn passes(name: &'static str) {
    let _ = step(name);
}

/// A number that a test puts in the place of one of ours, such as a time that is too long for a test; never in a
/// release build.
#[must_use]
pub fn number(name: &str) -> Option<u64> {
    #[cfg(all(feature = "planted", debug_assertions, unix))]
    return text(name)?.parse().ok();
    #[cfg(not(all(feature = "planted", debug_assertions, unix)))]
    {
        let _ = name;
        None
    }
}

/// A text that a test gives to the program, such as the path of a file in the place of a clock; never in a release
/// build.
#[must_use]
pub fn text(name: &str) -> Option<String> {
    #[cfg(all(feature = "planted", debug_assertions, unix))]
    return std::env::var(name).ok();
    #[cfg(not(all(feature = "planted", debug_assertions, unix)))]
    {
        let _ = name;
        None
    }
}

/// Writes the event line `<microseconds> <process> <kind> <job>/<chunk>/<attempt> <more>`, on the monotonic clock,
/// where a test listens.
pub fn event(kind: &'static str, attempt: &AttemptId, more: impl fmt::Display) {
    #[cfg(all(feature = "planted", debug_assertions, unix))]
    tests_only::event(kind, format_args!("{}/{}/{} {more}", attempt.job, attempt.chunk.0, attempt.no));
    #[cfg(not(all(feature = "planted", debug_assertions, unix)))]
    let _ = (kind, attempt, more);
}

/// Writes the event line `<microseconds> <process> hello <peer>`: this process takes orders from that peer now.
pub fn greeted(from: &AgentId) {
    #[cfg(all(feature = "planted", debug_assertions, unix))]
    tests_only::event("hello", format_args!("{}", peer(from)));
    #[cfg(not(all(feature = "planted", debug_assertions, unix)))]
    let _ = from;
}

/// The number by which event lines name a peer: the first four bytes of its id.
#[must_use]
pub fn peer(id: &AgentId) -> u32 {
    let [a, b, c, d, ..] = id.0;
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(all(feature = "planted", debug_assertions, unix))]
pub use tests_only::{Planted, plant};

#[cfg(all(feature = "planted", debug_assertions, unix))]
mod tests_only {
    use std::{
        cell::Cell,
        fmt,
        fs::{File, OpenOptions},
        io::{self, Write as _},
        marker::PhantomData,
        sync::{
            OnceLock,
            atomic::{AtomicU32, Ordering},
        },
    };

    use super::Bug;

    thread_local! {
        static HERE: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Keeps a bug planted in this thread until it is dropped.
    #[derive(Debug)]
    pub struct Planted(PhantomData<*const ()>);

    /// Plants a bug in this thread, for a test that runs in one.
    #[must_use]
    pub fn plant(bug: Bug) -> Planted {
        HERE.set(Some(bug));
        Planted(PhantomData)
    }

    impl Drop for Planted {
        fn drop(&mut self) {
            HERE.set(None);
        }
    }

    pub(super) fn planted(bug: Bug) -> bool {
        static WANTED: OnceLock<Option<String>> = OnceLock::new();
        HERE.get() == Some(bug)
            || WANTED.get_or_init(|| std::env::var("TROPA_PLANTED").ok()).as_deref() == Some(bug.name())
    }

    struct Failpoint {
        step: String,
        how: String,
        left: AtomicU32,
    }

    pub(super) fn step(name: &'static str) -> io::Result<()> {
        static WANTED: OnceLock<Option<Failpoint>> = OnceLock::new();
        let wanted = WANTED.get_or_init(|| {
            let text = std::env::var("TROPA_FAILPOINT").ok()?;
            let mut parts = text.split(':');
            let (step, how) = (parts.next()?.to_owned(), parts.next()?.to_owned());
            let left = parts.next().and_then(|n| n.parse().ok()).unwrap_or(1);
            Some(Failpoint { step, how, left: AtomicU32::new(left) })
        });
        let Some(failpoint) = wanted.as_ref().filter(|failpoint| failpoint.step == name) else {
            return Ok(());
        };
        if failpoint.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)) != Ok(1) {
            return Ok(());
        }
        event("failpoint", format_args!("{name}"));
        match failpoint.how.as_str() {
            "eio" => Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())),
            "enospc" => Err(io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())),
            _ => {
                let _ =
                    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                // The signal arrives before this returns; what follows is for the compiler.
                std::process::abort()
            }
        }
    }

    pub(super) fn event(kind: &'static str, ids: fmt::Arguments<'_>) {
        static TO: OnceLock<Option<File>> = OnceLock::new();
        let to = TO.get_or_init(|| {
            let path = std::env::var_os("TROPA_EVENTS")?;
            OpenOptions::new().create(true).append(true).open(path).ok()
        });
        if let Some(mut to) = to.as_ref() {
            let at = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            let micros = at.tv_sec * 1_000_000 + at.tv_nsec / 1_000;
            // In one write, so that lines of several processes do not mix.
            let line = format!("{micros} {} {kind} {ids}\n", std::process::id());
            let _ = to.write_all(line.as_bytes());
        }
    }
}
