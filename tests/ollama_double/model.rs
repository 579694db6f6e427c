//! A model as an install lists it, and the versions of Ollama that change its shapes.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::text;

/// A model that a double has.
#[derive(Debug, Clone)]
pub struct Model {
    pub(crate) name: String,
    pub(crate) digest: String,
    pub(crate) weights: String,
    pub(crate) size: u64,
    pub(crate) context: u64,
    pub(crate) capabilities: Vec<String>,
    pub(crate) embeds: bool,
    pub(crate) remote_host: Option<String>,
    pub(crate) bytes_per_token: usize,
    pub(crate) per_message: u64,
}

impl Model {
    /// A model of 1 GB with a trained context of 8192 that can complete and embed. Its digest is the hash of its
    /// name, so that doubles agree on it; a name without a tag gets `latest`.
    pub fn new(name: &str) -> Self {
        let name = tagged(name);
        let digest = hex(&Sha256::digest(name.to_ascii_lowercase().as_bytes()));
        Self {
            weights: digest.clone(),
            digest,
            name,
            size: 1_000_000_000,
            context: 8192,
            capabilities: vec!["completion".to_owned()],
            embeds: true,
            remote_host: None,
            bytes_per_token: 4,
            per_message: 8,
        }
    }

    /// The hash of its manifest.
    #[must_use]
    pub fn digest(mut self, digest: &str) -> Self {
        self.digest = digest.to_owned();
        self
    }

    /// The hash of its weight file. Two names over one file evict each other. By default the digest that
    /// [`Model::new`] gave.
    #[must_use]
    pub fn weights(mut self, hash: &str) -> Self {
        self.weights = hash.to_owned();
        self
    }

    /// Bytes on disk and in memory.
    #[must_use]
    pub fn size(mut self, bytes: u64) -> Self {
        self.size = bytes;
        self
    }

    /// Trained context in tokens.
    #[must_use]
    pub fn context(mut self, tokens: u64) -> Self {
        self.context = tokens;
        self
    }

    /// What it can: `completion`, `tools`, `thinking`, `vision`, `embedding`, `insert`. It embeds too unless
    /// [`Model::cannot_embed`] says otherwise.
    #[must_use]
    pub fn capabilities(mut self, names: &[&str]) -> Self {
        self.capabilities = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// Embedding fails, as for models whose architecture has none.
    #[must_use]
    pub fn cannot_embed(mut self) -> Self {
        self.embeds = false;
        self
    }

    /// It runs on this host, not here.
    #[must_use]
    pub fn remote(mut self, host: &str) -> Self {
        self.remote_host = Some(host.to_owned());
        self
    }

    /// How it counts: one token per `bytes` begun plus `per_message` for each message; 4 and 8 by default.
    #[must_use]
    pub fn tokens(mut self, bytes: usize, per_message: u64) -> Self {
        self.bytes_per_token = bytes.max(1);
        self.per_message = per_message;
        self
    }

    /// Tokens of one message of this text.
    pub fn count(&self, text: &str) -> u64 {
        text::tokens_in(text.len(), self.bytes_per_token) + self.per_message
    }

    pub(crate) fn can(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|have| have == capability)
    }

    pub(crate) fn is_named(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(&tagged(name))
    }

    fn details(&self, version: &Version) -> Value {
        let mut details = json!({"parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"],
            "parameter_size": "1.0B", "quantization_level": "Q8_0"});
        if version.at_least(0, 30, 0) {
            details["context_length"] = self.context.into();
            details["embedding_length"] = text::DIMENSIONS.into();
        }
        details
    }

    /// Its entry in `/api/tags`.
    pub(crate) fn in_tags(&self, version: &Version, digest: &str, cloud: bool, modified: &str) -> Value {
        let mut entry = json!({"name": self.name, "model": self.name, "modified_at": modified,
            "size": self.size, "digest": digest, "details": self.details(version)});
        if version.at_least(0, 30, 0) {
            entry["capabilities"] = json!(self.capabilities);
        }
        let cloud = cloud.then(|| "https://ollama.com:443".to_owned());
        if let Some(host) = self.remote_host.clone().or(cloud) {
            entry["remote_model"] = self.name.clone().into();
            entry["remote_host"] = host.into();
        }
        entry
    }

    /// Its entry in `/api/ps`.
    pub(crate) fn in_ps(
        &self,
        version: &Version,
        digest: &str,
        vram: u64,
        context: u64,
        expires: &str,
    ) -> Value {
        let mut entry = json!({"name": self.name, "model": self.name, "size": self.size, "digest": digest,
            "details": self.details(version), "expires_at": expires, "size_vram": self.size.min(vram)});
        if version.at_least(0, 10, 0) {
            entry["context_length"] = context.into();
        }
        entry
    }

    /// The reply of `/api/show`; another `edition` has another template.
    pub(crate) fn show(&self, version: &Version, edition: u64, modified: &str) -> Value {
        let blob = format!("/srv/ollama/models/blobs/sha256-{}", self.weights);
        let template =
            if edition == 0 { "{{ .Prompt }}".to_owned() } else { format!("{{{{ .Prompt }}}} {edition}") };
        let mut show = json!({
            "modelfile": format!("# Modelfile generated by \"ollama show\"\nFROM {blob}\nTEMPLATE {template}\n"),
            "template": template,
            "details": self.details(version),
            "model_info": {"general.architecture": "llama", "general.file_type": 7,
                "general.parameter_count": self.size, "llama.attention.head_count": 4,
                "llama.attention.head_count_kv": 4, "llama.attention.layer_norm_rms_epsilon": 0.00001,
                "llama.block_count": 4, "llama.context_length": self.context,
                "llama.embedding_length": text::DIMENSIONS, "llama.feed_forward_length": 512,
                "llama.rope.dimension_count": 64, "tokenizer.ggml.bos_token_id": 1,
                "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.model": "llama",
                "tokenizer.ggml.scores": null, "tokenizer.ggml.token_type": null, "tokenizer.ggml.tokens": null,
                "tokenizer.ggml.unknown_token_id": 0},
            "tensors": [{"name": "token_embd.weight", "type": "Q8_0", "shape": [384, 512]}],
        });
        show["details"]["parent_model"] = blob.into();
        if version.at_least(0, 6, 4) {
            show["capabilities"] = json!(self.capabilities);
        }
        if let Some(host) = &self.remote_host {
            show["remote_model"] = self.name.clone().into();
            show["remote_host"] = host.clone().into();
        }
        show["modified_at"] = modified.into();
        show
    }
}

impl From<&str> for Model {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

/// Whether Ollama would ask its cloud for this name: what follows the last colon is `cloud` or ends in `-cloud`.
pub(crate) fn is_cloud_name(name: &str) -> bool {
    let tag = name.rsplit(':').next().unwrap_or_default().to_ascii_lowercase();
    name.contains(':') && (tag == "cloud" || tag.ends_with("-cloud"))
}

/// The name with its tag.
fn tagged(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') { name.to_owned() } else { format!("{name}:latest") }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A version of Ollama: what it says, and what shapes follow from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) text: String,
    /// Major, minor, patch, and 0 for a pre-release or 1 for a release.
    number: (u64, u64, u64, u8),
}

impl Version {
    /// Reads what Ollama calls itself. `0.0.0`, and what is no version, is a build from source: the newest.
    pub(crate) fn new(text: &str) -> Self {
        let (core, release) = text.split_once('-').map_or((text, 1), |(core, _)| (core, 0));
        let mut parts = core.split('.').map(|part| part.parse().unwrap_or(0));
        let mut part = || parts.next().unwrap_or(0);
        let number = match (part(), part(), part()) {
            (0, 0, 0) => (u64::MAX, 0, 0, 1),
            (major, minor, patch) => (major, minor, patch, release),
        };
        Self { text: text.to_owned(), number }
    }

    pub(crate) fn at_least(&self, major: u64, minor: u64, patch: u64) -> bool {
        self.number >= (major, minor, patch, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pre_release_is_below_its_release_and_no_version_is_the_newest() {
        assert!(!Version::new("0.30.0-rc1").at_least(0, 30, 0));
        assert!(Version::new("0.33.0-rc2").at_least(0, 30, 9));
        assert!(Version::new("0.0.0").at_least(0, 33, 0));
        assert!(!Version::new("0.12.5").at_least(0, 12, 6));
    }

    #[test]
    fn names_compare_without_case_and_without_their_latest() {
        assert!(Model::new("Tiny").is_named("tiny:LATEST"));
        assert!(is_cloud_name("big:120b-CLOUD") && is_cloud_name("big:cloud") && !is_cloud_name("cloud"));
    }
}
