//! What an Ollama makes of a request: every way of `ollama-api.md` §4 to end, as its agent tells it.

use std::time::Duration;

use tropa_proto::failure::Reason;

use super::random::Random;

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Course {
    /// Until its answer ends, or its agent hangs up by a limit of its own.
    pub(super) takes: Duration,
    /// Why there is no result.
    pub(super) fails: Option<Reason>,
    /// How long the engine computes on after the agent hung up.
    pub(super) lingers: Duration,
}

/// How long the engine goes on after its client has gone: mostly it notices within a second, but a prompt is read to
/// its end (`reliability.md` §8.4).
pub(super) fn lingers(random: &mut Random) -> Duration {
    if random.one_in(6) { random.ms(2_000, 28_000) } else { random.ms(10, 1_000) }
}

/// How long an answer takes.
pub(super) fn answer(random: &mut Random) -> Duration {
    if random.one_in(10) { random.ms(2_000, 20_000) } else { random.ms(20, 1_500) }
}

/// Chooses a course; `faulty` where anything may go wrong.
pub(super) fn course(random: &mut Random, faulty: bool) -> Course {
    let takes = answer(random);
    let fine = Course { takes, fails: None, lingers: Duration::ZERO };
    if !faulty || !random.one_in(12) {
        return fine;
    }
    // Reasons that say that an install can never run the job are faults of their own (`ModelGone`); a cancel comes
    // from the coordinator; what ends a chunk at once is rare, or a job would be over before anything happens.
    let reasons: Vec<Reason> = Reason::ALL
        .into_iter()
        .filter(|reason| {
            !matches!(
                reason,
                Reason::ModelMissing
                    | Reason::ModelChanged
                    | Reason::ModelRemote
                    | Reason::Unsupported
                    | Reason::PromptCut
                    | Reason::Cancelled
            )
        })
        .collect();
    let mut reason = reasons[random.index(reasons.len())];
    if matches!(reason, Reason::TooLong | Reason::BadRequest | Reason::ResultTooLarge) && !random.one_in(4) {
        reason = Reason::RunnerCrash;
    }
    fails_with(random, reason, takes)
}

/// The course of a request that fails for this reason; `takes` where that is as long as an answer.
pub(super) fn fails_with(random: &mut Random, reason: Reason, takes: Duration) -> Course {
    let takes = match reason {
        Reason::Stalled => random.ms(60_000, 61_000),
        Reason::Deadline => Duration::from_secs(15 * 60),
        Reason::QueueFull | Reason::BadRequest | Reason::TooLong | Reason::Refused | Reason::NotOllama => {
            random.ms(1, 20)
        }
        Reason::LoadFailed | Reason::OutOfMemory => random.ms(100, 5_000),
        Reason::EngineDown => random.ms(100, 60_000),
        Reason::ModelMissing
        | Reason::ModelChanged
        | Reason::ModelRemote
        | Reason::Unsupported
        | Reason::PromptCut
        | Reason::RunnerCrash
        | Reason::EngineError
        | Reason::Garbled
        | Reason::BadOutput
        | Reason::Incomplete
        | Reason::ResultTooLarge
        | Reason::Cancelled => takes,
    };
    let lingers = if reason.hangs_up() { lingers(random) } else { Duration::ZERO };
    Course { takes, fails: Some(reason), lingers }
}
