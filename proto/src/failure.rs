//! Why an attempt ended without a result: the reason that the agent saw, and the class that decides what follows.
//!
//! A *reason* says what happened at the install (`ollama-api.md` §4); a *class* says what the coordinator does
//! about it (`reliability.md` §5). Each reason belongs to one class. Both are written in snake case everywhere:
//! on the wire by their place, in the journal, the result file and the metrics by their name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong at the install, as its agent saw it. The order is the wire's and is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reason {
    /// Ollama's queue of requests that need a load is full (503).
    QueueFull,
    /// The model is not there, or not any more.
    ModelMissing,
    /// The model's fingerprint is not the pinned one, or changed during the attempt.
    ModelChanged,
    /// The model would run, or ran, in Ollama's cloud.
    ModelRemote,
    /// The model cannot do what the chunk asks under this version of Ollama.
    Unsupported,
    /// The server cut the prompt although it was told not to.
    PromptCut,
    /// The request has a wrong type, a wrong schema or lacks a field.
    BadRequest,
    /// The prompt does not fit the context.
    TooLong,
    /// The model did not load, or stalled while loading.
    LoadFailed,
    /// Memory ran out, at load or later.
    OutOfMemory,
    /// The inner runner died or broke off.
    RunnerCrash,
    /// Any other 5xx or error line.
    EngineError,
    /// The stream breaks its own rules.
    Garbled,
    /// An answer that Ollama cannot parse, or vectors of the wrong number or length.
    BadOutput,
    /// A clean end without `done:true`.
    Incomplete,
    /// No first line in time, or idle too long between lines.
    Stalled,
    /// Lines came, but the attempt took too long.
    Deadline,
    /// The install refused the connection, reset it or is gone.
    EngineDown,
    /// Something answers that is not Ollama.
    NotOllama,
    /// The install answers 401 or 403.
    Refused,
    /// The text is above its cap.
    ResultTooLarge,
    /// A `Cancel` came and the agent hung up.
    Cancelled,
}

/// What the coordinator does about a failure. The names are those of `errors.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Class {
    /// The install is busy: wait and try again; costs no budget.
    Busy,
    /// This install cannot run the chunk's model: choose among the others; costs no budget.
    NoModel,
    /// The agent's policy forbids it: choose among the others; costs no budget.
    Denied,
    /// The agent is gone, or no longer knows the attempt.
    Lost,
    /// Ollama is out of reach of its agent.
    EngineDown,
    /// The model did not load.
    LoadFailed,
    /// The runner died.
    RunnerCrash,
    /// The engine reported an error or broke its rules.
    EngineError,
    /// Nothing came for too long.
    Stalled,
    /// The attempt took too long.
    Deadline,
    /// The answer ended without success.
    Incomplete,
    /// The prompt does not fit: terminal.
    TooLong,
    /// The request is wrong: terminal.
    BadRequest,
    /// The answer is too large: terminal.
    ResultTooLarge,
    /// The user cancelled: terminal.
    Cancelled,
    /// Another attempt of the chunk won.
    Superseded,
    /// A chunk that this one needs has failed: terminal.
    NeedFailed,
    /// The chunk crashed on at least two machines: terminal.
    Poison,
    /// The chunk used up its crash budget on one machine only: terminal.
    Crashed,
}

impl Reason {
    /// Every reason, in wire order.
    pub const ALL: [Self; 22] = [
        Self::QueueFull,
        Self::ModelMissing,
        Self::ModelChanged,
        Self::ModelRemote,
        Self::Unsupported,
        Self::PromptCut,
        Self::BadRequest,
        Self::TooLong,
        Self::LoadFailed,
        Self::OutOfMemory,
        Self::RunnerCrash,
        Self::EngineError,
        Self::Garbled,
        Self::BadOutput,
        Self::Incomplete,
        Self::Stalled,
        Self::Deadline,
        Self::EngineDown,
        Self::NotOllama,
        Self::Refused,
        Self::ResultTooLarge,
        Self::Cancelled,
    ];

    /// Gives the one class that the reason belongs to (`ollama-api.md` §4.1).
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Self::QueueFull => Class::Busy,
            Self::ModelMissing
            | Self::ModelChanged
            | Self::ModelRemote
            | Self::Unsupported
            | Self::PromptCut => Class::NoModel,
            Self::BadRequest => Class::BadRequest,
            Self::TooLong => Class::TooLong,
            Self::LoadFailed | Self::OutOfMemory => Class::LoadFailed,
            Self::RunnerCrash => Class::RunnerCrash,
            Self::EngineError | Self::Garbled | Self::BadOutput => Class::EngineError,
            Self::Incomplete => Class::Incomplete,
            Self::Stalled => Class::Stalled,
            Self::Deadline => Class::Deadline,
            Self::EngineDown | Self::NotOllama | Self::Refused => Class::EngineDown,
            Self::ResultTooLarge => Class::ResultTooLarge,
            Self::Cancelled => Class::Cancelled,
        }
    }

    /// Says whether the agent hung up on a request that the engine may still compute: nothing else may use its devices
    /// before that is settled (`reliability.md` §8.4).
    #[must_use]
    pub fn hangs_up(self) -> bool {
        matches!(
            self,
            Self::Cancelled | Self::Stalled | Self::Deadline | Self::ResultTooLarge | Self::Garbled
        )
    }

    /// Gives the name in snake case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::ModelMissing => "model_missing",
            Self::ModelChanged => "model_changed",
            Self::ModelRemote => "model_remote",
            Self::Unsupported => "unsupported",
            Self::PromptCut => "prompt_cut",
            Self::BadRequest => "bad_request",
            Self::TooLong => "too_long",
            Self::LoadFailed => "load_failed",
            Self::OutOfMemory => "out_of_memory",
            Self::RunnerCrash => "runner_crash",
            Self::EngineError => "engine_error",
            Self::Garbled => "garbled",
            Self::BadOutput => "bad_output",
            Self::Incomplete => "incomplete",
            Self::Stalled => "stalled",
            Self::Deadline => "deadline",
            Self::EngineDown => "engine_down",
            Self::NotOllama => "not_ollama",
            Self::Refused => "refused",
            Self::ResultTooLarge => "result_too_large",
            Self::Cancelled => "cancelled",
        }
    }
}

impl Class {
    /// Every class, in wire order.
    pub const ALL: [Self; 19] = [
        Self::Busy,
        Self::NoModel,
        Self::Denied,
        Self::Lost,
        Self::EngineDown,
        Self::LoadFailed,
        Self::RunnerCrash,
        Self::EngineError,
        Self::Stalled,
        Self::Deadline,
        Self::Incomplete,
        Self::TooLong,
        Self::BadRequest,
        Self::ResultTooLarge,
        Self::Cancelled,
        Self::Superseded,
        Self::NeedFailed,
        Self::Poison,
        Self::Crashed,
    ];

    /// Gives the name in snake case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::NoModel => "no_model",
            Self::Denied => "denied",
            Self::Lost => "lost",
            Self::EngineDown => "engine_down",
            Self::LoadFailed => "load_failed",
            Self::RunnerCrash => "runner_crash",
            Self::EngineError => "engine_error",
            Self::Stalled => "stalled",
            Self::Deadline => "deadline",
            Self::Incomplete => "incomplete",
            Self::TooLong => "too_long",
            Self::BadRequest => "bad_request",
            Self::ResultTooLarge => "result_too_large",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
            Self::NeedFailed => "need_failed",
            Self::Poison => "poison",
            Self::Crashed => "crashed",
        }
    }

    /// Finds a class by its name in snake case, as the journal holds it.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_without_a_class_of_its_own_bears_the_name_of_its_class() {
        for reason in Reason::ALL {
            if let Some(class) = Class::from_name(reason.name()) {
                assert_eq!(reason.class(), class, "{reason}");
            }
        }
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = Class::ALL.iter().map(|class| class.name()).collect();
        assert_eq!(names.len(), Class::ALL.len());
    }
}
