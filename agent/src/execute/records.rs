//! Settle records: what the lock files say of a request at the engine, and how one is proved over.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tropa_proto::id::hex;

use crate::{
    admission::Key,
    device_lock::{LockError, SettleRecord},
    ollama::{Ollama, OllamaUrl, Settled},
};

/// The least time for settling, where hardly anything of the attempt's own limit is left: a load may have to end
/// first.
pub(super) const SETTLE_LEAST: Duration = Duration::from_secs(30);

/// The most that a record of somebody else may ask us to wait: what a long answer on a slow machine takes. Without
/// a bound a broken record would close the lane for ever.
pub(super) const SETTLE_MOST: Duration = Duration::from_secs(60 * 60);

/// Proves one record over, or waits for as long as it may run; says whether it is proved.
pub(super) async fn settle_one(ollama: &Ollama, netns: u64, record: &SettleRecord, limit: Duration) -> bool {
    let here = record.netns == netns;
    if here && record.endpoint == ollama.base().to_string() {
        return ollama.settle(&record.model, limit).await != Settled::Unsettled;
    }
    let other = OllamaUrl::parse(&record.endpoint, false).ok().and_then(|url| Ollama::new(url).ok());
    match other.filter(|_| here) {
        Some(other) => other.settle(&record.model, limit).await != Settled::Unsettled,
        // Out of reach: another network namespace.
        None => {
            tokio::time::sleep(limit).await;
            false
        }
    }
}

/// The key of a settle record: sender and attempt, since attempts of two senders are two.
pub(super) fn record_name((from, attempt): &Key) -> String {
    format!("{from}/{}/{}/{}", attempt.job, attempt.chunk.0, attempt.no)
}

/// What tells runner options apart in a record, without showing them.
pub(super) fn options_hash(runner: &str) -> String {
    hex(&Sha256::digest(runner)[..8])
}

pub(super) fn warn_record(error: &LockError) {
    tracing::warn!(error = error as &dyn std::error::Error, "writing a settle record failed");
}
