//! The shapes of control replies (`ollama-api.md` §2.3): numbers default to 0, all else is optional, unknown
//! fields are ignored.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Version {
    pub(super) version: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Tags {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) models: Vec<Tag>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Tag {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) digest: String,
    #[serde(default)]
    pub(super) size: i64,
    pub(super) capabilities: Option<Vec<String>>,
    pub(super) remote_model: Option<String>,
    pub(super) remote_host: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Ps {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) models: Vec<Running>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Running {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) digest: String,
    #[serde(default)]
    pub(super) size: i64,
    #[serde(default)]
    pub(super) size_vram: i64,
    #[serde(default)]
    pub(super) context_length: i64,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Show {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) modelfile: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) template: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) system: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) parameters: String,
    #[serde(default)]
    pub(super) messages: Value,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) renderer: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) parser: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) model_info: serde_json::Map<String, Value>,
    pub(super) capabilities: Option<Vec<String>>,
    pub(super) remote_model: Option<String>,
    pub(super) remote_host: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Status {
    pub(super) cloud: Option<Cloud>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Cloud {
    #[serde(default)]
    pub(super) disabled: bool,
}

impl Tag {
    /// Says whether the entry runs in Ollama's cloud, by its marks or by its name.
    pub(super) fn is_remote(&self) -> bool {
        marked(&self.remote_host) || marked(&self.remote_model) || is_cloud_name(&self.name)
    }
}

impl Show {
    pub(super) fn is_remote(&self) -> bool {
        marked(&self.remote_host) || marked(&self.remote_model)
    }

    /// Gives the trained context in tokens; 0 where it is not said.
    pub(super) fn context(&self) -> u32 {
        let architecture = self.model_info.get("general.architecture").and_then(Value::as_str).unwrap_or("");
        let context = self.model_info.get(&format!("{architecture}.context_length"));
        context.and_then(Value::as_u64).and_then(|context| u32::try_from(context).ok()).unwrap_or(0)
    }
}

/// Says whether a name means Ollama's cloud: the part after the last `:` is `cloud` or ends in `-cloud`.
#[must_use]
pub fn is_cloud_name(name: &str) -> bool {
    let tag = name.rsplit_once(':').map_or("", |(_, tag)| tag).to_ascii_lowercase();
    tag == "cloud" || tag.ends_with("-cloud")
}

/// Gives a name as Ollama compares it: lower case, with its tag.
#[must_use]
pub fn full_name(name: &str) -> String {
    let name = name.to_lowercase();
    // A colon before a slash belongs to a host and port.
    let tagged = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if tagged { name } else { format!("{name}:latest") }
}

/// Says whether a model can have this name: `host/namespace/model:tag`, of which only the model is needed, each part of
/// letters, digits, `_`, `-` and in most places `.`, none of them empty or longer than 80 (Ollama's
/// `types/model/name.go`, in 0.24.0). A name with a digest is refused: lists of models show none.
pub fn is_name(name: &str) -> bool {
    let part = |part: &str, more: &str, most: usize| {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        part.starts_with(word)
            && part.len() <= most
            && part.chars().all(|c| word(c) || c == '-' || more.contains(c))
    };
    let mut parts = name.rsplitn(3, '/');
    let last = parts.next().unwrap_or_default();
    let (model, tag) = last.split_once(':').map_or((last, None), |(model, tag)| (model, Some(tag)));
    part(model, ".", 80)
        && tag.is_none_or(|tag| part(tag, ".", 80))
        && parts.next().is_none_or(|namespace| part(namespace, "", 80))
        && parts.next().is_none_or(|host| part(host, ".:", 350))
}

/// Says whether the name of a model can begin so.
pub fn begins_name(text: &str) -> bool {
    ["", "a", "a/a"].iter().any(|rest| is_name(&format!("{text}{rest}")))
}

fn marked(field: &Option<String>) -> bool {
    field.as_deref().is_some_and(|text| !text.is_empty())
}

/// Go writes an empty list as `null`.
fn nullable<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_a_model_can_have() {
        let long = "a".repeat(80);
        for name in ["tiny", "Llama3.2:3b", "user/m_1:latest", "hf.co/a-b/c.d:Q4_K_M", "host:80/n/m", &long] {
            assert!(is_name(name), "{name}");
        }
        let longer = "a".repeat(81);
        for name in [
            "",
            "=",
            "--model",
            "-x",
            ".m",
            "m:",
            ":t",
            "/m",
            "a//m",
            "n/",
            "m:t:u",
            "a.b/m",
            "a b",
            "m\n",
            "m@x",
            "mé",
            "http://host/n/m",
            "../m",
            "a/b/c/d",
            &longer,
        ] {
            assert!(!is_name(name), "{name}");
        }
        for text in ["", "qwen3:", "hf.co/", "hf.co/a/", "host:80/", "m"] {
            assert!(begins_name(text), "{text}");
        }
        for text in ["=", ":", "/", "a//", "a/b/c/", "m:t:"] {
            assert!(!begins_name(text), "{text}");
        }
    }

    #[test]
    fn cloud_is_read_from_the_tag_alone_and_in_any_case() {
        for name in ["gpt-oss:120b-cloud", "m:cloud", "m:CLOUD", "host:80/m:7b-Cloud"] {
            assert!(is_cloud_name(name), "{name}");
        }
        for name in ["cloud", "my-cloud", "m:cloudy", "m:local", "m-cloud:latest", ""] {
            assert!(!is_cloud_name(name), "{name}");
        }
    }

    #[test]
    fn a_name_without_a_tag_is_the_latest() {
        assert_eq!(full_name("Tiny"), "tiny:latest");
        assert_eq!(full_name("tiny:7B"), "tiny:7b");
        assert_eq!(full_name("host:5000/a/tiny"), "host:5000/a/tiny:latest");
    }

    #[test]
    fn absent_null_and_unknown_fields_are_no_error() {
        assert!(serde_json::from_str::<Tags>(r#"{"models":null,"new":1}"#).unwrap().models.is_empty());
        assert!(serde_json::from_str::<Ps>("{}").unwrap().models.is_empty());
        let show: Show = serde_json::from_str(r#"{"model_info":null,"system":null}"#).unwrap();
        assert_eq!(show.context(), 0);
    }
}
