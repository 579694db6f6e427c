//! What an install has: its models by name, and what makes a model the same one elsewhere.
//!
//! The digest in `/api/tags` is the hash of the manifest, which holds the install's own path of the weights: the
//! same file imported into two installs has two digests. So a model is pinned by a *fingerprint* over what it
//! consists of (`ollama-api.md` §5, check 1). It is asked for once per digest and kept.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use semver::Version;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tropa_proto::{
    bounded::{List, Text},
    id::unhex,
    message::{EngineState, Fingerprint, Inventory, Loaded, Model},
    permit::Permit,
};

use super::{
    client::{Call, Client, Fault, Kind, Reply},
    shapes::{Ps, Running, Show, Tag, Tags, full_name},
};

/// Digests whose facts are kept: four times the models of a full inventory, so that models may be replaced.
const MAX_DIGESTS: usize = 4096;

/// The oldest version that can be kept from cutting prompts (`ollama-api.md` §10).
const MINIMUM: Version = Version::new(0, 12, 6);

/// The oldest version that `--allow-old-ollama` accepts: `capabilities` in show begin there.
const MINIMUM_ALLOWED: Version = Version::new(0, 6, 4);

/// The first version with the fixes of the known holes of the writing endpoints.
pub const NOT_VULNERABLE: Version = Version::new(0, 20, 3);

/// Why a control call brought nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The install is out of reach.
    #[error("asking {path} failed: {why}")]
    Down {
        /// What was asked.
        path: &'static str,
        /// What went wrong.
        why: String,
    },
    /// No answer came in time; of `/api/ps` that means that a model is loading.
    #[error("{0} did not answer in time")]
    Late(&'static str),
    /// What answers is not Ollama.
    #[error("{path} was not answered as by Ollama: {what}")]
    NotOllama {
        /// What was asked.
        path: &'static str,
        /// What came.
        what: String,
    },
    /// The install has no such model.
    #[error("there is no such model")]
    NoModel,
}

/// What is known of a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) fingerprint: Fingerprint,
    context: u32,
    capabilities: Vec<String>,
    remote: bool,
}

/// The facts by digest, bounded; the oldest goes first.
#[derive(Debug, Default)]
pub(super) struct Digests {
    facts: BTreeMap<[u8; 32], Facts>,
    order: VecDeque<[u8; 32]>,
}

impl Digests {
    pub(super) fn get(&self, digest: &[u8; 32]) -> Option<&Facts> {
        self.facts.get(digest)
    }

    pub(super) fn insert(&mut self, digest: [u8; 32], facts: Facts) {
        if self.facts.insert(digest, facts).is_none() {
            self.order.push_back(digest);
            if self.order.len() > MAX_DIGESTS
                && let Some(oldest) = self.order.pop_front()
            {
                self.facts.remove(&oldest);
            }
        }
    }
}

/// Asks for the version and judges it.
pub(super) async fn engine(client: &Client, allow_old: bool) -> (EngineState, String) {
    match ask::<super::shapes::Version>(client, Call::Version, None).await {
        Ok(answer) => (judge(&answer.version, allow_old), answer.version),
        Err(AskError::NotOllama { what, .. }) => (EngineState::NotOllama(Text::cut(&what)), String::new()),
        Err(error) => (EngineState::Down(Text::cut(&error.to_string())), String::new()),
    }
}

/// Judges a version by the rules of `ollama-api.md` §10. `0.0.0` is built from source: unknown, not old.
fn judge(version: &str, allow_old: bool) -> EngineState {
    let least = if allow_old { MINIMUM_ALLOWED } else { MINIMUM };
    match Version::parse(version.trim_start_matches('v')) {
        Ok(version) if version == Version::new(0, 0, 0) || version >= least => EngineState::Up,
        Ok(_) => EngineState::TooOld,
        Err(_) => EngineState::NotOllama(Text::cut(&format!("version {version:?}"))),
    }
}

/// Says whether an install of this version has the known holes of the writing endpoints (below 0.20.3).
#[must_use]
pub fn is_vulnerable(version: &str) -> bool {
    Version::parse(version.trim_start_matches('v'))
        .is_ok_and(|version| version != Version::new(0, 0, 0) && version < NOT_VULNERABLE)
}

/// Sends a control call and reads its shape.
pub(super) async fn ask<T: DeserializeOwned>(
    client: &Client,
    call: Call,
    body: Option<Value>,
) -> Result<T, AskError> {
    let path = call.path();
    let strange = |what: String| AskError::NotOllama { path, what };
    let reply = client.control(call, body.map(|body| Bytes::from(body.to_string()))).await;
    let Reply { status, kind, body } = reply.map_err(|fault| match fault {
        Fault::TimedOut => AskError::Late(path),
        Fault::NotHttp(_) | Fault::TooLarge => strange(fault.to_string()),
        Fault::Refused(_) | Fault::Lost(_) | Fault::Cut(_) => AskError::Down { path, why: fault.to_string() },
    })?;
    match (status, kind) {
        (200, Kind::Json) => serde_json::from_slice(&body).map_err(|error| strange(error.to_string())),
        (404, Kind::Json) => Err(AskError::NoModel),
        (200 | 300..=499, _) => Err(strange(format!("status {status}"))),
        (_, _) => Err(AskError::Down { path, why: format!("status {status}") }),
    }
}

/// Asks for what stands behind the name. Never call it for a cloud name: Ollama would ask its cloud.
pub(super) async fn facts(client: &Client, name: &str, digest: [u8; 32]) -> Result<Facts, AskError> {
    let show: Show = ask(client, Call::Show, Some(json!({ "model": name }))).await?;
    Ok(Facts {
        fingerprint: fingerprint(&show, digest),
        context: show.context(),
        remote: show.is_remote(),
        capabilities: show.capabilities.unwrap_or_default(),
    })
}

/// Builds the inventory from what the calls brought; `known` gives the facts of a digest.
pub(super) fn build(
    engine: EngineState,
    version: &str,
    tags: Tags,
    ps: &Ps,
    known: impl Fn(&[u8; 32]) -> Option<Facts>,
) -> Inventory {
    let mut models: Vec<Model> = tags.models.iter().filter_map(|tag| model(tag, ps, &known)).collect();
    models.sort_by(|a, b| a.name.cmp(&b.name));
    let (models, cut) = List::cut(models);
    Inventory { engine, version: Text::cut(version), models, cut, port: 0, permit: Permit::default() }
}

/// One model. One that is here and whose facts are not known cannot be pinned, so it is left out.
fn model(tag: &Tag, ps: &Ps, known: &impl Fn(&[u8; 32]) -> Option<Facts>) -> Option<Model> {
    let name = Text::new(tag.name.clone()).ok()?;
    let digest = unhex(&tag.digest);
    let facts = digest.as_ref().and_then(known);
    let remote = tag.is_remote() || facts.as_ref().is_some_and(|facts| facts.remote);
    let (digest, facts) = match (remote, digest, facts) {
        (true, digest, _) => (digest.unwrap_or_default(), None),
        (false, Some(digest), Some(facts)) => (digest, Some(facts)),
        (false, _, _) => {
            tracing::debug!(model = %tag.name, "a model whose facts could not be read is left out");
            return None;
        }
    };
    let capabilities = tag.capabilities.as_ref().or(facts.as_ref().map(|facts| &facts.capabilities));
    let can = |what: &str| capabilities.is_some_and(|list| list.iter().any(|entry| entry == what));
    let loaded = ps.models.iter().find(|row| full_name(&row.name) == full_name(&tag.name)).map(loaded);
    Some(Model {
        name,
        digest,
        fingerprint: facts.as_ref().map_or([0; 32], |facts| facts.fingerprint),
        size: tag.size.try_into().unwrap_or(0),
        context: facts.as_ref().map_or(0, |facts| facts.context),
        completion: can("completion"),
        embedding: can("embedding"),
        thinking: can("thinking"),
        tools: can("tools"),
        remote,
        loaded,
    })
}

fn loaded(row: &Running) -> Loaded {
    Loaded {
        size: row.size.try_into().unwrap_or(0),
        size_vram: row.size_vram.try_into().unwrap_or(0),
        context: row.context_length.try_into().unwrap_or(0),
    }
}

/// SHA-256 over the parts that make a model the same elsewhere, each with its length in front. Where no file of
/// weights is named, the digest stands for it.
fn fingerprint(show: &Show, digest: [u8; 32]) -> Fingerprint {
    let mut files: Vec<&str> = show.modelfile.lines().filter_map(blob).collect();
    if files.is_empty() {
        return digest;
    }
    files.sort_unstable();
    let mut parameters: Vec<&str> = show.parameters.lines().map(str::trim).collect();
    parameters.retain(|line| !line.is_empty());
    parameters.sort_unstable();
    let messages = if show.messages.is_null() { String::new() } else { show.messages.to_string() };
    let (files, parameters) = (files.join("\n"), parameters.join("\n"));
    let mut hash = Sha256::new();
    for part in
        [files.as_str(), &show.template, &show.system, &parameters, &messages, &show.renderer, &show.parser]
    {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// Gives the `sha256-…` file name of a `FROM` or `ADAPTER` line, without its folders.
fn blob(line: &str) -> Option<&str> {
    let (word, path) = line.trim().split_once(char::is_whitespace)?;
    if !word.eq_ignore_ascii_case("FROM") && !word.eq_ignore_ascii_case("ADAPTER") {
        return None;
    }
    let name = path.trim().rsplit(['/', '\\']).next()?;
    let digits = name.strip_prefix("sha256-")?;
    (digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_versions_and_built_from_source_is_not_old() {
        for (version, state) in [
            ("0.12.6", EngineState::Up),
            ("0.33.0-rc2", EngineState::Up),
            ("0.0.0", EngineState::Up),
            ("0.100.0", EngineState::Up),
            ("0.12.5", EngineState::TooOld),
            ("0.12.6-rc1", EngineState::TooOld),
            ("0.6.4", EngineState::TooOld),
        ] {
            assert_eq!(judge(version, false), state, "{version}");
        }
        assert_eq!(judge("0.6.4", true), EngineState::Up);
        assert_eq!(judge("0.6.3", true), EngineState::TooOld);
        assert!(matches!(judge("latest", false), EngineState::NotOllama(_)));
        assert!(is_vulnerable("0.20.2") && !is_vulnerable("0.20.3") && !is_vulnerable("0.0.0"));
    }

    fn show(folder: &str) -> Show {
        Show {
            modelfile: format!("# FROM x\nFROM {folder}/sha256-{}\nTEMPLATE x\n", "a".repeat(64)),
            template: "x".to_owned(),
            parameters: "stop b\nstop a".to_owned(),
            ..Show::default()
        }
    }

    #[test]
    fn the_same_file_in_another_folder_is_the_same_model() {
        let one = fingerprint(&show("/home/a/.ollama/models/blobs"), [1; 32]);
        let mut other = show("C:\\models\\blobs");
        other.modelfile = other.modelfile.replace("blobs/", "blobs\\");
        other.parameters = "stop a\nstop b\n".to_owned();
        assert_eq!(one, fingerprint(&other, [2; 32]));
        for change in [
            Show { system: "s".to_owned(), ..show("/m") },
            Show { template: "y".to_owned(), ..show("/m") },
            Show { parameters: "stop c".to_owned(), ..show("/m") },
            Show { messages: json!([{"role": "user"}]), ..show("/m") },
            Show { parser: "p".to_owned(), ..show("/m") },
        ] {
            assert_ne!(one, fingerprint(&change, [1; 32]));
        }
    }

    #[test]
    fn without_a_named_file_the_digest_is_the_fingerprint() {
        let show = Show { modelfile: "FROM tiny:latest\n".to_owned(), ..Show::default() };
        assert_eq!(fingerprint(&show, [9; 32]), [9; 32]);
    }

    #[test]
    fn facts_are_bounded_and_the_oldest_goes_first() {
        let facts = Facts { fingerprint: [0; 32], context: 0, capabilities: Vec::new(), remote: false };
        let digest = |n: usize| {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&n.to_le_bytes());
            digest
        };
        let mut digests = Digests::default();
        for n in 0..=MAX_DIGESTS {
            digests.insert(digest(n), facts.clone());
        }
        assert_eq!(digests.facts.len(), MAX_DIGESTS);
        assert!(digests.get(&digest(0)).is_none() && digests.get(&digest(MAX_DIGESTS)).is_some());
    }
}
