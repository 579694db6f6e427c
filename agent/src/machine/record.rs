//! What an agent remembers of its machine: its name, and what it is known by.
//!
//! ```text
//! <state>/agents/<install>/machine    0600   JSON: uid, aliases, anchors by type with first and last seen, boots
//! ```
//!
//! Anchors are kept as keyed hashes under a salt of the record's own, so a record means the same to every agent that
//! can read it, in every mesh, and a hardware id never leaves the process that read it. A file that is not a record
//! is set aside as `machine.damaged` and said so: the name comes back from the neighbours or is made anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use serde::{Deserialize, Serialize};
use tropa_proto::{
    continuity::{Anchor, Anchors},
    evidence::{Facts, Gpu, Key, Salt},
    id::{AgentId, hex, unhex},
    uid::MachineUid,
};

use crate::state::{StateError, at, read, write_new};

/// The name of the file.
const FILE: &str = "machine";

/// The form of the file; another is not read.
const SCHEMA: &str = "tropa.machine/1";

/// Values that are kept per type of anchor, those seen last: as many as evidence may have of any type (64 GPUs), and
/// the file stays below the bound of files of the state.
const MAX_VALUES: usize = 64;

/// Boots, aliases and given-up names that are kept, the newest: some months of daily boots are of no use, since only
/// the latest tell a copy from the original.
const MAX_LIST: usize = 16;

/// Records of other agents in one state directory that are looked at: agents on one machine (`security.md` §6).
const MAX_NEIGHBOURS: usize = 64;

/// A machine as one agent remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its name.
    pub uid: MachineUid,
    /// Names that it had before or goes by too; the newest last.
    pub aliases: Vec<MachineUid>,
    /// Names that were left to another machine which claimed them with more right; never taken again.
    pub given_up: Vec<MachineUid>,
    salt: Salt,
    anchors: BTreeMap<Anchor, BTreeMap<String, Seen>>,
    boots: Vec<String>,
}

/// When a value was seen, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    first_ms: u64,
    last_ms: u64,
}

/// The form on disk.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    schema: String,
    uid: String,
    aliases: Vec<String>,
    given_up: Vec<String>,
    salt: String,
    anchors: BTreeMap<Anchor, BTreeMap<String, Seen>>,
    boots: Vec<String>,
}

impl Record {
    /// A record that knows nothing but a name; the salt is chance.
    #[must_use]
    pub fn new(uid: MachineUid, salt: Salt) -> Self {
        Self {
            uid,
            aliases: Vec::new(),
            given_up: Vec::new(),
            salt,
            anchors: BTreeMap::new(),
            boots: Vec::new(),
        }
    }

    /// What is seen now, hashed as this record hashes, for a match.
    #[must_use]
    pub fn hashed(&self, keys: &[AgentId], facts: &Facts) -> Anchors<String> {
        let key = Key::new(&self.salt);
        let tag = |kind: &str, value: &str| hex(&key.tag(kind, value).0);
        let mut values: BTreeMap<Anchor, BTreeSet<String>> = BTreeMap::new();
        for (anchor, value) in raw(keys, facts) {
            values.entry(anchor).or_default().insert(tag(kind(anchor), &value));
        }
        let boots = facts.boot_id.value().map(|boot| tag("boot", boot)).into_iter().collect();
        Anchors { values, boots }
    }

    /// What it remembers.
    #[must_use]
    pub fn anchors(&self) -> Anchors<String> {
        let values = self.anchors.iter().map(|(anchor, seen)| (*anchor, seen.keys().cloned().collect()));
        Anchors { values: values.collect(), boots: self.boots.iter().cloned().collect() }
    }

    /// Takes in what is seen now; of what is more than the bounds, what was seen longest ago is forgotten.
    pub fn see(&mut self, seen: &Anchors<String>, now_ms: u64) {
        for (anchor, values) in &seen.values {
            let known = self.anchors.entry(*anchor).or_default();
            for value in values {
                known.entry(value.clone()).or_insert(Seen { first_ms: now_ms, last_ms: now_ms }).last_ms =
                    now_ms;
            }
            while known.len() > MAX_VALUES {
                let oldest = known.iter().min_by_key(|(value, seen)| (seen.last_ms, (*value).clone()));
                let Some(oldest) = oldest.map(|(value, _)| value.clone()) else { break };
                known.remove(&oldest);
            }
        }
        for boot in &seen.boots {
            push(&mut self.boots, boot.clone());
        }
    }

    /// Takes another name; the one before forwards to it.
    pub fn rename(&mut self, uid: MachineUid) {
        self.aliases.retain(|alias| *alias != uid);
        push(&mut self.aliases, std::mem::replace(&mut self.uid, uid));
    }

    /// Lets another name forward to its own.
    pub fn forward(&mut self, alias: MachineUid) {
        if alias != self.uid {
            push(&mut self.aliases, alias);
        }
    }

    /// Leaves its name to another machine, and takes a fresh one.
    pub fn give_up(&mut self, fresh: MachineUid) {
        push(&mut self.given_up, std::mem::replace(&mut self.uid, fresh));
        self.aliases.clear();
    }

    /// Reads the record of a state directory; `None` where there is none, or where it was set aside as damaged.
    ///
    /// # Errors
    /// When the file is open to others or not ours, or cannot be read or set aside.
    pub fn load(directory: &Path) -> Result<Option<Self>, StateError> {
        let why = match read(directory, FILE) {
            Ok(None) => return Ok(None),
            Ok(Some(text)) => match Self::parse(&text) {
                Ok(record) => return Ok(Some(record)),
                Err(why) => why,
            },
            Err(StateError::Damaged { what, .. }) => what.to_owned(),
            Err(error) => return Err(error),
        };
        let (path, aside) = (directory.join(FILE), directory.join("machine.damaged"));
        fs::rename(&path, &aside).map_err(at("set aside", &path))?;
        tracing::warn!(
            file = %aside.display(),
            why,
            "identity.record: what this agent remembers of its machine is damaged and was set aside; the machine's name comes back from other agents of this machine, or a new one is made"
        );
        Ok(None)
    }

    /// Reads the records of other agents whose state lies beside this one, in the order of their names. What cannot
    /// be read is no neighbour.
    #[must_use]
    pub fn neighbours(directory: &Path) -> Vec<Self> {
        let Some(all) = directory.parent().and_then(|parent| fs::read_dir(parent).ok()) else {
            return Vec::new();
        };
        let mut places: Vec<_> = all
            .take(MAX_NEIGHBOURS)
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|at| at != directory)
            .collect();
        places.sort();
        let records = places.iter().filter_map(|place| Self::parse(&read(place, FILE).ok()??).ok());
        records.collect()
    }

    /// Writes it in place whole.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, directory: &Path) -> Result<(), StateError> {
        let texts = |list: &[MachineUid]| list.iter().map(ToString::to_string).collect();
        let on_disk = OnDisk {
            schema: SCHEMA.to_owned(),
            uid: self.uid.to_string(),
            aliases: texts(&self.aliases),
            given_up: texts(&self.given_up),
            salt: hex(&self.salt.0),
            anchors: self.anchors.clone(),
            boots: self.boots.clone(),
        };
        let text = serde_json::to_vec(&on_disk).map_err(|error| at("write", directory)(error.into()))?;
        write_new(directory, FILE, &text)
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        let found: OnDisk = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if found.schema != SCHEMA {
            return Err(format!("its form is not {SCHEMA}"));
        }
        let uids =
            |list: &[String]| list.iter().map(|text| text.parse()).collect::<Result<Vec<MachineUid>, _>>();
        let not_a_uid = |error: tropa_proto::uid::NotAUid| error.to_string();
        let record = Self {
            uid: found.uid.parse().map_err(not_a_uid)?,
            aliases: uids(&found.aliases).map_err(not_a_uid)?,
            given_up: uids(&found.given_up).map_err(not_a_uid)?,
            salt: Salt(unhex(&found.salt).ok_or("its salt is not 64 hexadecimal digits")?),
            anchors: found.anchors,
            boots: found.boots,
        };
        let lists = [record.aliases.len(), record.given_up.len(), record.boots.len()];
        if lists.into_iter().max() > Some(MAX_LIST)
            || record.anchors.values().any(|values| values.len() > MAX_VALUES)
        {
            return Err("it holds more than is ever written".to_owned());
        }
        Ok(record)
    }
}

/// Puts a value at the end of a list, once, and drops the oldest beyond the bound.
fn push<T: PartialEq>(list: &mut Vec<T>, value: T) {
    list.retain(|known| *known != value);
    list.push(value);
    if list.len() > MAX_LIST {
        list.remove(0);
    }
}

/// What an anchor is hashed as.
fn kind(anchor: Anchor) -> &'static str {
    match anchor {
        Anchor::Ppin => "ppin",
        Anchor::ProductUuid => "product_uuid",
        Anchor::PlatformUuid => "platform_uuid",
        Anchor::Gpu => "gpu",
        Anchor::Mac => "mac",
        Anchor::Nvme => "nvme",
        Anchor::MachineId => "machine_id",
        Anchor::MachineGuid => "machine_guid",
        Anchor::AgentKey => "agent_key",
    }
}

/// The anchors of this machine as they were read.
fn raw(keys: &[AgentId], facts: &Facts) -> Vec<(Anchor, String)> {
    let single = [
        (Anchor::ProductUuid, &facts.product_uuid),
        (Anchor::PlatformUuid, &facts.platform_uuid),
        (Anchor::MachineId, &facts.machine_id),
        (Anchor::MachineGuid, &facts.machine_guid),
    ];
    let mut found: Vec<(Anchor, String)> =
        single.into_iter().filter_map(|(anchor, reading)| Some((anchor, reading.value()?.clone()))).collect();
    let list = |anchor, values: &[String]| {
        values.iter().map(move |value| (anchor, value.clone())).collect::<Vec<_>>()
    };
    found.extend(facts.ppin.value().map_or_else(Vec::new, |values| list(Anchor::Ppin, values)));
    found.extend(facts.macs.value().map_or_else(Vec::new, |values| list(Anchor::Mac, values)));
    found.extend(facts.nvme.value().map_or_else(Vec::new, |values| list(Anchor::Nvme, values)));
    found.extend(facts.gpus.iter().filter_map(Gpu::physical).map(|gpu| (Anchor::Gpu, gpu)));
    found.extend(keys.iter().map(|key| (Anchor::AgentKey, key.to_string())));
    found
}
