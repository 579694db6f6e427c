//! Settling: proving that nothing of ours still runs at an install (`reliability.md` §8.4).
//!
//! A request that we hung up on may run on, most of all while the prompt is read; a sleep proves nothing. An
//! empty prompt with `keep_alive: 0` asks Ollama to close the runner as soon as no live request refers to it, and
//! closing ends whatever still computes; when `/api/ps` no longer lists the model, that has happened.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{
    client::{Call, Client, Fault},
    shapes::{Ps, full_name},
};
use crate::clock::now;

/// The pause between two looks at `/api/ps`: the first, and the longest. The model is gone in under 0.1 s
/// (measured), unless somebody else's request still needs it.
const LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// How often the request to close is sent again: another client's request restarts the runner's time.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Two refusals within this time mean that the engine is gone.
const REFUSALS: Duration = Duration::from_secs(2);

/// A runner that survives its server has no client; it ends the token that it is at (`reliability.md` §8.4).
const LAST_TOKEN: Duration = Duration::from_secs(2);

/// How settling ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Settled {
    /// The model is closed: nothing of ours runs.
    Idle,
    /// The engine is gone, and with it its requests.
    Gone,
    /// The limit passed without proof; the lane opens all the same, and the plan says so.
    Unsettled,
}

/// Settles a model at an install within the limit.
pub(super) async fn settle(client: &Client, model: &str, limit: Duration) -> Settled {
    tokio::time::timeout(limit, closed(client, model)).await.unwrap_or(Settled::Unsettled)
}

async fn closed(client: &Client, model: &str) -> Settled {
    let body = json!({ "model": model, "prompt": "", "stream": false, "keep_alive": 0 }).to_string();
    let mut asked: Option<Instant> = None;
    let mut refused: Option<Instant> = None;
    let mut pause = LOOK.0;
    loop {
        let fault = if asked.is_none_or(|at| now() - at >= ASK_AGAIN) {
            asked = Some(now());
            // A 404 or any other word is as good as success: only the list proves anything.
            client.control(Call::Generate, Some(body.clone().into())).await.err()
        } else {
            None
        };
        let fault = match fault {
            Some(fault @ (Fault::Refused(_) | Fault::Lost(_))) => Some(fault),
            _ => match client.control(Call::Ps, None).await {
                Ok(reply) if reply.status == 200 => match serde_json::from_slice::<Ps>(&reply.body) {
                    Ok(ps) if !ps.models.iter().any(|row| full_name(&row.name) == full_name(model)) => {
                        return Settled::Idle;
                    }
                    Ok(_) | Err(_) => None,
                },
                Ok(_) => None,
                Err(fault) => Some(fault),
            },
        };
        match (fault, refused) {
            (Some(Fault::Refused(_)), Some(at)) if now() - at <= REFUSALS => {
                sleep(LAST_TOKEN).await;
                return Settled::Gone;
            }
            (Some(Fault::Refused(_)), _) => {
                refused = Some(now());
                asked = None;
                pause = LOOK.1;
            }
            (_, _) => refused = None,
        }
        sleep(pause).await;
        pause = (pause * 2).min(LOOK.1);
    }
}
