//! The nodes file: `{"nodes": [{"url": …, "name": …, "priority": …}]}`, as SynapticLlamas reads and writes it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};
use tropa_agent::ollama::OllamaUrl;

/// A nodes file, as a whole and sound.
#[derive(Clone, Debug)]
pub(super) struct Nodes {
    pub(super) entries: Vec<Entry>,
}

/// One entry.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The line where it begins, from 1.
    pub(super) line: usize,
    /// As it was written.
    pub(super) url: String,
    pub(super) name: Option<String>,
    /// Where the install listens; what stands for this machine is a loopback address.
    pub(super) host: String,
    pub(super) port: u16,
    /// All of it, as it was written.
    whole: Map<String, Value>,
}

/// Why a file is no nodes file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub(super) struct FileError {
    line: usize,
    what: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole<'a> {
    #[serde(borrow)]
    nodes: Vec<&'a RawValue>,
}

/// The keys of an entry that SynapticLlamas knows.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    url: String,
    name: Option<String>,
    #[expect(dead_code, reason = "it is checked and passed on, and means nothing here")]
    priority: Option<i64>,
}

/// Reads a nodes file.
///
/// # Errors
/// For what is no JSON, unknown keys, a url that is none, and one that comes twice; each with its line.
pub(super) fn parse(text: &str) -> Result<Nodes, FileError> {
    let whole: Whole<'_> = serde_json::from_str(text).map_err(|error| wrong(1, &error))?;
    let mut nodes = Nodes { entries: Vec::new() };
    let mut seen: BTreeMap<(String, u16), usize> = BTreeMap::new();
    for raw in whole.nodes {
        // The raw value is a part of the text, so the difference of their places is where it begins.
        let begin = (raw.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize).min(text.len());
        let line = text.as_bytes()[..begin].iter().filter(|byte| **byte == b'\n').count() + 1;
        let node: Node = serde_json::from_str(raw.get()).map_err(|error| wrong(line, &error))?;
        let whole = serde_json::from_str(raw.get()).map_err(|error| wrong(line, &error))?;
        if !node.url.contains("://") {
            let what = format!("url {:?} has no scheme; write it as http://HOST:11434", node.url);
            return Err(FileError { line, what });
        }
        let url = OllamaUrl::parse(&node.url, true)
            .map_err(|error| FileError { line, what: format!("url {:?}: {error}", node.url) })?;
        let (host, port) = url.host_and_port();
        let host = host.to_ascii_lowercase();
        if let Some(before) = seen.insert((host.clone(), port), line) {
            let what = format!("url {:?} stands in line {before} already; remove one of them", node.url);
            return Err(FileError { line, what });
        }
        nodes.entries.push(Entry { line, url: node.url, name: node.name, host, port, whole });
    }
    if nodes.entries.is_empty() {
        return Err(FileError { line: 1, what: "no entry under \"nodes\"; add one".to_owned() });
    }
    Ok(nodes)
}

/// Gives the error of the reader a line of the file; `at` is where the piece begins that it read.
fn wrong(at: usize, error: &serde_json::Error) -> FileError {
    let text = error.to_string();
    // Its own line is that of the piece; without one it is about the piece as a whole.
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    let what = format!(
        "{what}; a nodes file is {{\"nodes\": [{{\"url\": \"http://HOST:11434\", \"name\": \"…\"}}]}}"
    );
    FileError { line: at + error.line().saturating_sub(1), what }
}

impl Nodes {
    /// The file with the entries of these lines only, each as it was written.
    pub(super) fn only(&self, lines: &BTreeSet<usize>) -> Value {
        let kept: Vec<&Map<String, Value>> = self
            .entries
            .iter()
            .filter(|entry| lines.contains(&entry.line))
            .map(|entry| &entry.whole)
            .collect();
        json!({ "nodes": kept })
    }
}
