//! The operator's rules: what the configuration file says against, or beyond, the evidence (`identity.md` §13).
//!
//! ```toml
//! [[rule]]
//! same = ["den", "a-91c2"]          # these are one machine
//! [[rule]]
//! distinct = ["attic", "cellar"]    # these are different machines
//! [[rule]]
//! lane = { agent = "den", devices = "gpu:0" }
//! [[rule]]
//! ignore = "mac:1b2c"               # a kind of identifier and the beginning of its tag
//! [[rule]]
//! name = { agent = "den", name = "the machine under the desk" }
//! ```
//!
//! Agents are named by label or by the beginning of their ids, so what a rule means depends on who is here:
//! [`Book::resolve`] is pure and is asked anew whenever the roster changes. A rule that names nobody who is here
//! waits; one that names several agents at once is not followed and warns. The file carries no dates: the age of
//! its rules is the time since the file was changed.

use std::{collections::BTreeSet, fmt, path::PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use toml::Spanned;
use tropa_agent::evidence::LaneSpec;
use tropa_proto::{
    evidence::{Evidence, Gpu, GpuKind, Ignore, LaneClaim, Tag},
    fuse,
    id::{AgentId, hex},
    roster::Rules,
};

/// Rules that a file may have: one for each agent of a full mesh would be 1,024, and nobody writes those by hand.
const MAX_RULES: usize = 256;

/// Agents that one `same` or `distinct` may name: every pair of them becomes a rule, 496 at most.
const MAX_NAMED: usize = 32;

/// One rule as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Said {
    /// These agents' kernels are one machine.
    Same(Names),
    /// Each of these agents is on another machine than the others.
    Distinct(Names),
    /// The install of an agent uses these devices.
    Lane(SaidLane),
    /// Identifiers of this kind that start so count nowhere.
    Ignore(SaidIgnore),
    /// The machine of this agent has this name.
    Name(SaidName),
}

/// Two or more agents.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Names(Vec<String>);

/// A rule `lane`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaidLane {
    agent: String,
    devices: Devices,
}

/// Devices as `tropa-agent --lane` takes them; GPUs by their number or PCI address.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct Devices(LaneSpec);

/// A rule `ignore`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SaidIgnore {
    text: String,
    ignore: Ignore,
}

/// A rule `name`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaidName {
    agent: String,
    name: String,
}

/// All rules of one file, in the order in which they are written.
#[derive(Clone, Debug, Default)]
pub struct Book {
    rules: Vec<(u32, Said)>,
    file: PathBuf,
    changed_ms: Option<u64>,
}

/// How a rule fares with the agents that are here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "because")]
pub enum Standing {
    /// It is followed.
    Followed,
    /// It names agents that are not here: it waits for them.
    Waits(String),
    /// It cannot be followed as it is written.
    NotFollowed(String),
}

/// A rule and how it fares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleRow {
    /// Its line in the file.
    pub line: u32,
    /// What it says.
    pub rule: String,
    /// How it fares.
    #[serde(flatten)]
    pub standing: Standing,
}

/// The rules as `tropa machines` lists them.
#[derive(Clone, Debug, Serialize)]
pub struct RulesReport {
    /// The file that they stand in.
    pub file: PathBuf,
    /// The version of the rules: the first 16 hex digits of a SHA-256 over what they say, in the order of the file. It
    /// changes with every rule, and not with comments, blanks or the place of the file.
    pub version: String,
    /// Seconds since the file was changed; `null` where the file system does not say.
    pub age_s: Option<u64>,
    /// The rules, in the order of the file.
    pub rules: Vec<RuleRow>,
}

/// An agent that a rule may name: its id, its label, and its evidence once it has been described.
pub type Known<'a> = (AgentId, &'a str, Option<&'a Evidence>);

impl Book {
    /// Takes the rules of a file with this text, changed at this time (milliseconds since 1970).
    ///
    /// # Errors
    /// When there are more than 256.
    pub fn new(
        rules: Vec<Spanned<Said>>,
        text: &str,
        file: PathBuf,
        changed_ms: Option<u64>,
    ) -> Result<Self, String> {
        if rules.len() > MAX_RULES {
            return Err(format!("{} rules; {MAX_RULES} at most", rules.len()));
        }
        let line = |rule: &Spanned<Said>| line_at(text, rule.span().start);
        let rules = rules.into_iter().map(|rule| (line(&rule), rule.into_inner())).collect();
        Ok(Self { rules, file, changed_ms })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// What the rules say of the agents that are here, and how each rule fares. A label goes before the beginning of
    /// an id.
    #[must_use]
    pub fn resolve(&self, known: &[Known<'_>]) -> (Rules, Vec<RuleRow>) {
        let mut rules = Rules::default();
        let mut rows = Vec::with_capacity(self.rules.len());
        for (line, said) in &self.rules {
            let standing = said.resolve(known, &mut rules).map_or_else(Into::into, |()| Standing::Followed);
            rows.push(RuleRow { line: *line, rule: said.to_string(), standing });
        }
        (rules, rows)
    }

    /// The rules as they are listed; `None` where there are none. `now_ms`: milliseconds since 1970.
    #[must_use]
    pub fn report(&self, known: &[Known<'_>], now_ms: u64) -> Option<RulesReport> {
        (!self.is_empty()).then(|| RulesReport {
            file: self.file.clone(),
            version: self.version(),
            age_s: self.changed_ms.map(|changed| now_ms.saturating_sub(changed) / 1000),
            rules: self.resolve(known).1,
        })
    }
}

/// The line, counted from 1, of the byte at a place in a text.
pub(crate) fn line_at(text: &str, at: usize) -> u32 {
    let before = text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count();
    u32::try_from(before + 1).unwrap_or(u32::MAX)
}

impl Book {
    fn version(&self) -> String {
        let mut hash = Sha256::new();
        for words in self.rules.iter().map(|(_, said)| said.words()) {
            hash.update((words.len() as u64).to_le_bytes());
            for word in words {
                hash.update((word.len() as u64).to_le_bytes());
                hash.update(word);
            }
        }
        hex(&hash.finalize()[..8])
    }
}

/// Why a rule is not followed.
enum Trouble {
    Absent(Vec<String>),
    Other(String),
}

impl From<Trouble> for Standing {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Absent(names) => Self::Waits(format!("nobody here is called {}", names.join(" or "))),
            Trouble::Other(why) => Self::NotFollowed(why),
        }
    }
}

impl Said {
    /// What it says, word by word: two rules that mean different things have different words.
    fn words(&self) -> Vec<String> {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        match self {
            Self::Same(Names(names)) => [&["same".to_owned()], names.as_slice()].concat(),
            Self::Distinct(Names(names)) => [&["distinct".to_owned()], names.as_slice()].concat(),
            Self::Lane(said) => own(&["lane", &said.agent, &said.devices.0.to_string()]),
            Self::Ignore(said) => own(&["ignore", &said.text]),
            Self::Name(said) => own(&["name", &said.agent, &said.name]),
        }
    }

    /// Adds what the rule says. A `same` or `distinct` of several is followed for those who are here, and waits for
    /// the others.
    fn resolve(&self, known: &[Known<'_>], rules: &mut Rules) -> Result<(), Trouble> {
        match self {
            Self::Same(names) => pairs(names, known, fuse::Rule::Same, rules),
            Self::Distinct(names) => pairs(names, known, fuse::Rule::Distinct, rules),
            Self::Lane(said) => {
                let agent = find(known, &said.agent)?;
                let (_, _, evidence) =
                    known.iter().find(|(id, ..)| *id == agent).copied().unwrap_or((agent, "", None));
                // Until the agent has said what it has, it gets no work, and its devices have no places.
                if let Some(evidence) = evidence {
                    rules.lanes.insert(agent, claim(&said.devices.0, evidence).map_err(Trouble::Other)?);
                }
                Ok(())
            }
            Self::Ignore(said) => {
                rules.ignore.push(said.ignore.clone());
                Ok(())
            }
            Self::Name(said) => {
                rules.names.insert(find(known, &said.agent)?, said.name.clone());
                Ok(())
            }
        }
    }
}

fn pairs(names: &Names, known: &[Known<'_>], rule: fuse::Rule, rules: &mut Rules) -> Result<(), Trouble> {
    let (mut here, mut absent) = (BTreeSet::new(), Vec::new());
    for name in &names.0 {
        match find(known, name) {
            Ok(agent) => {
                if !here.insert(agent) {
                    let why = format!("{name} is named twice, by label or by id");
                    return Err(Trouble::Other(why));
                }
            }
            Err(Trouble::Absent(names)) => absent.extend(names),
            Err(trouble @ Trouble::Other(_)) => return Err(trouble),
        }
    }
    let here: Vec<AgentId> = here.into_iter().collect();
    for (at, one) in here.iter().enumerate() {
        rules.pairs.extend(here[at + 1..].iter().map(|other| (*one, *other, rule)));
    }
    if absent.is_empty() { Ok(()) } else { Err(Trouble::Absent(absent)) }
}

/// The agent of this label, else the one whose id begins so, with or without `a-`.
fn find(known: &[Known<'_>], name: &str) -> Result<AgentId, Trouble> {
    let by_label: Vec<&Known<'_>> = known.iter().filter(|(_, label, _)| *label == name).collect();
    let digits = name.strip_prefix("a-").unwrap_or(name).to_ascii_lowercase();
    let by_id = || known.iter().filter(|(id, ..)| hex(&id.0).starts_with(&digits));
    let found = if by_label.is_empty() && !digits.is_empty() { by_id().collect() } else { by_label };
    match found.as_slice() {
        [] => Err(Trouble::Absent(vec![name.to_owned()])),
        [(one, ..)] => Ok(*one),
        [(first, ..), (second, ..), ..] => {
            let digits = |id: &AgentId| hex(&id.0)[..12].to_owned();
            Err(Trouble::Other(format!(
                "{name} may be a-{} or a-{}{}; name it by its id",
                digits(first),
                digits(second),
                if found.len() > 2 { format!(" or {} others", found.len() - 2) } else { String::new() }
            )))
        }
    }
}

/// The devices among those that the agent found. A coordinator knows GPUs by their tags and not by their ids.
fn claim(devices: &LaneSpec, evidence: &Evidence) -> Result<LaneClaim, String> {
    let text = |tag: &Tag| hex(&tag.0);
    let gpus: Vec<Gpu<String>> = evidence
        .gpus
        .iter()
        .map(|gpu| Gpu {
            vendor: gpu.vendor.clone(),
            name: gpu.name.clone(),
            uuid: gpu.uuid.as_ref().map(text),
            kind: match &gpu.kind {
                GpuKind::Full => GpuKind::Full,
                GpuKind::Mig { parent } => GpuKind::Mig { parent: text(parent) },
                GpuKind::Vgpu => GpuKind::Vgpu,
            },
            pci: gpu.pci.clone(),
            memory: gpu.memory,
            uma: gpu.uma,
        })
        .collect();
    devices.resolve(&gpus).map_err(|error| error.to_string())
}

impl TryFrom<Vec<String>> for Names {
    type Error = String;
    fn try_from(names: Vec<String>) -> Result<Self, String> {
        let different: BTreeSet<&String> = names.iter().collect();
        if (2..=MAX_NAMED).contains(&names.len()) && different.len() == names.len() {
            Ok(Self(names))
        } else {
            Err(format!("a rule about agents names 2 to {MAX_NAMED} different ones"))
        }
    }
}

impl TryFrom<String> for Devices {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(Self).map_err(|error: tropa_agent::evidence::LaneError| error.to_string())
    }
}

impl TryFrom<String> for SaidIgnore {
    type Error = tropa_proto::evidence::NotAnIgnore;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Ok(Self { ignore: text.parse()?, text })
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same(names) => write!(f, "same {}", names.0.join(" ")),
            Self::Distinct(names) => write!(f, "distinct {}", names.0.join(" ")),
            Self::Lane(said) => write!(f, "lane {} {}", said.agent, said.devices.0),
            Self::Ignore(said) => write!(f, "ignore {}", said.text),
            Self::Name(said) => write!(f, "name {} \"{}\"", said.agent, said.name),
        }
    }
}

#[cfg(test)]
mod tests;
