//! The engine over HTTP: what an install has, one attempt at it, and the proof that nothing of ours still runs.
//!
//! An install is not trusted to say how it failed: a stream can end cleanly without success, HTTP 500 may be the
//! user's fault, a prompt can be cut and a model exchanged with HTTP 200. So success is `done:true` and nothing
//! else, and around every attempt stand checks: the body before any HTTP (`request.rs`), the model before and
//! after (here), every line in between (`stream.rs`). reqwest is named in `client.rs` alone.
//!
//! The check of the digest after an attempt costs a round trip. It is apart from the attempt
//! ([`Ollama::verify`]), so that the next one can start meanwhile, and one answer of `/api/ps` serves every
//! attempt that ended before it was asked for.

mod attempt;
mod classify;
mod client;
mod inventory;
mod lines;
mod request;
mod settle;
mod shapes;
mod stream;
mod url;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tropa_proto::{
    failure::Reason,
    id::unhex,
    message::{EngineState, Failure, Fingerprint, Inventory},
};

use self::{
    attempt::Ahead,
    client::Client,
    inventory::{Digests, Facts},
    shapes::{Ps, Status, Tags},
    stream::{Broken, Rules},
};
pub use self::{
    attempt::{Completed, Progress, Unfinished},
    client::{Call, ClientError},
    inventory::{AskError, NOT_VULNERABLE, is_vulnerable},
    request::{Limits, Request},
    settle::Settled,
    shapes::{begins_name, full_name, is_cloud_name, is_name},
    url::{OllamaUrl, UrlError},
};
use crate::{clock::now, policy::Policy};

/// The least time between two questions to `/api/ps` for verification. The first after a pause is asked at once;
/// in a burst, fifty a second serve any number of attempts, and the lane does not wait for them.
const VERIFY_SPACING: Duration = Duration::from_millis(20);

/// Names of models whose digest is remembered; twice what an inventory holds.
const MAX_NAMES: usize = 2048;

/// Bytes of prompt from which on an answer shows how many bytes a token has: in a shorter one the template counts
/// for more than the text.
const CALIBRATES: u64 = 256;

/// One install.
#[derive(Debug)]
pub struct Ollama {
    client: Client,
    policy: Policy,
    ahead: Ahead,
    digests: Mutex<Digests>,
    names: Mutex<BTreeMap<String, [u8; 32]>>,
    /// Bytes of prompt per token by model.
    ratios: Mutex<BTreeMap<String, f64>>,
    /// The latest answer of `/api/ps` and when it was asked for; the lock is held while asking, so that one asks
    /// for all.
    ps: tokio::sync::Mutex<Option<Look>>,
    /// Another process answers than the one that said what is remembered of names and digests.
    outdated: AtomicBool,
}

/// One look at `/api/ps`.
#[derive(Clone, Debug)]
struct Look {
    asked_at: Instant,
    answer: Result<Arc<Ps>, AskError>,
}

impl Ollama {
    /// Makes a client of the install at `base`. Nothing is sent.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn new(base: OllamaUrl) -> Result<Self, ClientError> {
        Self::with_policy(base, Policy::default())
    }

    /// As [`Ollama::new`], with what the operator permits.
    ///
    /// # Errors
    /// As [`Ollama::new`].
    pub fn with_policy(base: OllamaUrl, policy: Policy) -> Result<Self, ClientError> {
        Ok(Self {
            client: Client::new(base)?,
            policy,
            ahead: Ahead::default(),
            digests: Mutex::default(),
            names: Mutex::default(),
            ratios: Mutex::default(),
            ps: tokio::sync::Mutex::default(),
            outdated: AtomicBool::new(false),
        })
    }

    /// Gives the address of the install.
    #[must_use]
    pub fn base(&self) -> &OllamaUrl {
        self.client.base()
    }

    /// Gives what the operator permits.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Waits until the install refuses a connection of ours.
    pub(crate) async fn refused(&self) {
        self.client.refused().await;
    }

    /// Takes in that another process answers now: with the next stock everything is asked anew. It may serve another
    /// folder of models under the same names, and another version may make something else of the same digest (what it
    /// can do, which renderer and parser belong to it).
    pub(crate) fn is_another(&self) {
        self.outdated.store(true, Ordering::Release);
    }

    /// Says whether the install answers, and its version; empty where there is none. Takes at most 2 s.
    pub async fn engine(&self) -> (EngineState, String) {
        inventory::engine(&self.client, self.policy.allow_old).await
    }

    /// Says whether the install's cloud is switched off; `None` below 0.16.2, which cannot say.
    pub async fn cloud_disabled(&self) -> Option<bool> {
        let status = inventory::ask::<Status>(&self.client, Call::Status, None).await.ok()?;
        Some(status.cloud.is_some_and(|cloud| cloud.disabled))
    }

    /// Takes stock: version, models with their fingerprints, and what is loaded.
    ///
    /// `/api/show` is asked once per digest and never for a cloud model. A model whose facts cannot be read is
    /// left out. `/api/ps` may wait while a model loads: then nothing counts as loaded.
    pub async fn inventory(&self) -> Inventory {
        let base = self.client.base();
        let port = if base.is_loopback() { base.host_and_port().1 } else { 0 };
        Inventory { port, permit: self.policy.permit.clone(), ..self.take_stock().await }
    }

    async fn take_stock(&self) -> Inventory {
        let (engine, version) = self.engine().await;
        if matches!(engine, EngineState::Down(_) | EngineState::NotOllama(_)) {
            return inventory::build(engine, &version, Tags::default(), &Ps::default(), |_| None);
        }
        let tags = match inventory::ask::<Tags>(&self.client, Call::Tags, None).await {
            Ok(tags) => tags,
            Err(AskError::NotOllama { what, .. }) => {
                let engine = EngineState::NotOllama(tropa_proto::bounded::Text::cut(&what));
                return inventory::build(engine, &version, Tags::default(), &Ps::default(), |_| None);
            }
            Err(error) => {
                let engine = EngineState::Down(tropa_proto::bounded::Text::cut(&error.to_string()));
                return inventory::build(engine, &version, Tags::default(), &Ps::default(), |_| None);
            }
        };
        // At the beginning of a stock and not in the middle of one, which would miss what it has read.
        if self.outdated.swap(false, Ordering::AcqRel) {
            *self.digests.lock().unwrap_or_else(PoisonError::into_inner) = Digests::default();
        }
        self.remember(&tags);
        for tag in tags.models.iter().filter(|tag| !tag.is_remote()) {
            if let Some(digest) = unhex(&tag.digest)
                && let Err(error) = self.facts(&tag.name, digest).await
            {
                tracing::warn!(model = %tag.name, %error, "reading what stands behind a model failed");
            }
        }
        let ps = inventory::ask::<Ps>(&self.client, Call::Ps, None).await.unwrap_or_default();
        inventory::build(engine, &version, tags, &ps, |digest| self.known(digest))
    }

    /// Asks what the name stands for at present and gives its fingerprint.
    ///
    /// # Errors
    /// When the install does not answer or has no such model, a cloud model included.
    pub async fn pin(&self, model: &str) -> Result<Fingerprint, AskError> {
        let tags = inventory::ask::<Tags>(&self.client, Call::Tags, None).await?;
        self.remember(&tags);
        let name = full_name(model);
        let tag = tags.models.iter().find(|tag| full_name(&tag.name) == name && !tag.is_remote());
        let (tag, digest) = tag.and_then(|tag| Some((tag, unhex(&tag.digest)?))).ok_or(AskError::NoModel)?;
        self.facts(&tag.name, digest).await.map(|facts| facts.fingerprint)
    }

    /// Executes a request once: the model must be the pinned one before, and what streams in must keep the rules.
    ///
    /// `on_progress` is called for each line with text. The digest that ran is read by [`Ollama::verify`].
    ///
    /// # Errors
    /// With the reason of `ollama-api.md` §4, and whether the request may still run at the install; a `cancel`
    /// ends it at once with `cancelled`.
    pub async fn run(
        &self,
        request: &Request,
        on_progress: &mut (dyn FnMut(Progress<'_>) + Send),
        cancel: &CancellationToken,
    ) -> Result<Completed, Unfinished> {
        let started = now();
        let ready = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Broken::new(Reason::Cancelled, "cancelled before it was sent", "")),
            ready = self.expect_pinned(request) => ready,
        };
        if let Err(broken) = ready {
            return Err(Unfinished { failure: attempt::failure(broken, started), may_run: false });
        }
        self.exchange(request, on_progress, cancel).await
    }

    async fn exchange(
        &self,
        request: &Request,
        on_progress: &mut (dyn FnMut(Progress<'_>) + Send),
        cancel: &CancellationToken,
    ) -> Result<Completed, Unfinished> {
        let name = full_name(&request.model);
        let bytes_per_token = self.ratios.lock().unwrap_or_else(PoisonError::into_inner).get(&name).copied();
        let rules = Rules { allow_remote: self.policy.allow_remote_models, bytes_per_token };
        let done = attempt::run(&self.client, &self.ahead, rules, request, on_progress, cancel).await;
        if let Ok(completed) = &done
            && completed.outcome.prompt_tokens > 0
            && request.prompt_bytes >= CALIBRATES
        {
            // The largest ratio seen gives the lowest estimate, so that no sound answer is called cut.
            let ratio = request.prompt_bytes as f64 / f64::from(completed.outcome.prompt_tokens);
            let mut ratios = self.ratios.lock().unwrap_or_else(PoisonError::into_inner);
            if ratios.len() < MAX_NAMES || ratios.contains_key(&name) {
                let known = ratios.entry(name).or_insert(ratio);
                *known = known.max(ratio);
            }
        }
        done
    }

    /// Reads the digest that ran and compares its fingerprint with the pinned one.
    ///
    /// It comes from an answer of `/api/ps` that was asked for after the attempt ended, from `/api/tags` where
    /// that does not list the model. Such an answer is shared: it is younger than the attempt, which is all that
    /// the check needs, and at most one is asked for in 20 ms.
    ///
    /// # Errors
    /// `model_changed` where the fingerprints differ, `model_missing` where the install no longer lists the model,
    /// `engine_down` where it does not answer; the result must then be dropped.
    pub async fn verify(&self, request: &Request, mut completed: Completed) -> Result<Completed, Failure> {
        let started = now();
        match self.digest_after(request, completed.ended).await {
            Ok(digest) => {
                completed.outcome.digest = digest;
                Ok(completed)
            }
            Err(broken) => {
                self.forget(&request.model);
                let mut failure = attempt::failure(broken, started);
                let wall_ms = completed.outcome.wall_us / 1_000;
                failure.ms = failure.ms.saturating_add(u32::try_from(wall_ms).unwrap_or(u32::MAX));
                Err(failure)
            }
        }
    }

    /// Proves that nothing of ours runs on `model` any more, by way 1 or 3 of `reliability.md` §8.4. Closes the
    /// model, which costs a reload: only for attempts of which [`Unfinished::may_run`] holds.
    pub async fn settle(&self, model: &str, limit: Duration) -> Settled {
        settle::settle(&self.client, model, limit).await
    }

    /// Makes sure, without a request where that is known, that the name stands for the pinned model here.
    async fn expect_pinned(&self, request: &Request) -> Result<(), Broken> {
        if self.fingerprint_of(&request.model) == Some(request.fingerprint) {
            return Ok(());
        }
        let name = full_name(&request.model);
        let tags =
            inventory::ask::<Tags>(&self.client, Call::Tags, None).await.map_err(|error| asked(&error))?;
        self.remember(&tags);
        let Some(tag) = tags.models.iter().find(|tag| full_name(&tag.name) == name) else {
            return Err(Broken::new(Reason::ModelMissing, "the install does not list the model", ""));
        };
        if tag.is_remote() {
            if self.policy.allow_remote_models {
                return Ok(());
            }
            return Err(Broken::new(Reason::ModelRemote, "the model runs in Ollama's cloud", ""));
        }
        let digest = unhex(&tag.digest).ok_or_else(no_digest)?;
        let facts = self.facts(&tag.name, digest).await.map_err(|error| asked(&error))?;
        same(request, &facts)
    }

    async fn digest_after(&self, request: &Request, ended: Instant) -> Result<[u8; 32], Broken> {
        let name = full_name(&request.model);
        let running = match self.ps_after(ended).await {
            Ok(ps) => ps.models.iter().find(|row| full_name(&row.name) == name).and_then(|row| {
                let short = row.context_length > 0
                    && u64::try_from(row.context_length).is_ok_and(|context| context < request.num_ctx);
                if short {
                    tracing::warn!(
                        model = %request.model,
                        context = row.context_length,
                        wanted = request.num_ctx,
                        "the model is loaded with less context than the job asks for"
                    );
                }
                unhex(&row.digest)
            }),
            Err(AskError::Late(_)) => None,
            Err(error) => return Err(asked(&error)),
        };
        if let Some(digest) = running
            && let Some(facts) = self.known(&digest)
        {
            return same(request, &facts).map(|()| digest);
        }
        let tags =
            inventory::ask::<Tags>(&self.client, Call::Tags, None).await.map_err(|error| asked(&error))?;
        self.remember(&tags);
        let Some(tag) = tags.models.iter().find(|tag| full_name(&tag.name) == name) else {
            return Err(Broken::new(Reason::ModelMissing, "the install no longer lists the model", ""));
        };
        let listed: [u8; 32] = unhex(&tag.digest).ok_or_else(no_digest)?;
        if tag.is_remote() && self.policy.allow_remote_models {
            return Ok(listed);
        }
        // What ran is neither known nor what the name stands for now, so nobody can say what it was.
        if running.is_some_and(|digest| digest != listed) {
            return Err(Broken::new(Reason::ModelChanged, "the model changed while it ran", ""));
        }
        let facts = self.facts(&tag.name, listed).await.map_err(|error| asked(&error))?;
        same(request, &facts).map(|()| listed)
    }

    /// Gives an answer of `/api/ps` that was asked for after `ended`.
    async fn ps_after(&self, ended: Instant) -> Result<Arc<Ps>, AskError> {
        let mut latest = self.ps.lock().await;
        if let Some(Look { asked_at, answer }) = latest.as_ref() {
            if *asked_at >= ended {
                return answer.clone();
            }
            sleep_until(*asked_at + VERIFY_SPACING).await;
        }
        let asked_at = now();
        let answer = inventory::ask::<Ps>(&self.client, Call::Ps, None).await.map(Arc::new);
        *latest = Some(Look { asked_at, answer: answer.clone() });
        answer
    }

    /// Gives the facts of a digest, asking once.
    async fn facts(&self, name: &str, digest: [u8; 32]) -> Result<Facts, AskError> {
        if let Some(facts) = self.known(&digest) {
            return Ok(facts);
        }
        let facts = inventory::facts(&self.client, name, digest).await?;
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, facts.clone());
        Ok(facts)
    }

    fn known(&self, digest: &[u8; 32]) -> Option<Facts> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    fn fingerprint_of(&self, model: &str) -> Option<Fingerprint> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = names.get(&full_name(model))?;
        let digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        digests.get(digest).map(|facts| facts.fingerprint)
    }

    fn remember(&self, tags: &Tags) {
        let local = tags.models.iter().filter(|tag| !tag.is_remote()).take(MAX_NAMES);
        let names = local.filter_map(|tag| Some((full_name(&tag.name), unhex(&tag.digest)?))).collect();
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }

    fn forget(&self, model: &str) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).remove(&full_name(model));
    }
}

fn same(request: &Request, facts: &Facts) -> Result<(), Broken> {
    if facts.fingerprint == request.fingerprint {
        Ok(())
    } else {
        Err(Broken::new(Reason::ModelChanged, "the model is not the pinned one", ""))
    }
}

fn no_digest() -> Broken {
    Broken::new(Reason::NotOllama, "the install gives no digest for the model", "")
}

fn asked(error: &AskError) -> Broken {
    let reason = match error {
        AskError::Down { .. } | AskError::Late(_) => Reason::EngineDown,
        AskError::NotOllama { .. } => Reason::NotOllama,
        AskError::NoModel => Reason::ModelMissing,
    };
    Broken::new(reason, "reading what the install has failed", error.to_string())
}

#[cfg(test)]
pub(crate) mod raw_server;
#[cfg(test)]
mod replay;
#[cfg(test)]
pub(crate) use self::request::tests as sample;
