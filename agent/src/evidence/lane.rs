//! Which devices the install of this agent may occupy: a ladder, first hit wins (`identity.md` §3.5).
//!
//! Ollama's API does not say where it works. The operator may (`--lane`); else the runner's process is looked for on
//! the GPUs, then its DRM file descriptors, then the log of the server, then its environment. Nothing decided:
//! everything visible is reserved, which costs parallel work and never correctness.
//!
//! The step in GPU memory while a model loads needs an observer over time, [`super::vram`].
//!
//! Whether `dram` is occupied too depends on how the model lies in memory: it is, until `/api/ps` shows the loaded
//! model whole on the GPU. On a host where no GPU is visible the claim is `dram` by the last rung, and there it is
//! no guess: everything visible is all there is. A finding that the device is not known belongs only to claims of
//! that rung that name a GPU.

mod environment;

use std::{collections::BTreeSet, fmt, str::FromStr};

use tropa_proto::{
    bounded::List,
    canonical,
    evidence::{Attribution, Facts, Gpu, GpuKind, LaneClaim, Reading},
    message::Loaded,
};

use super::{
    cpus,
    files::Root,
    nvidia::{Card, Process},
    process::{self, Server},
    server_log,
    vram::CONTEXT,
};

/// Devices that an operator may name for one lane: as many as a bundle carries GPUs, and `dram`.
const MAX_NAMED: usize = 65;

/// GPU memory that a client must hold to count as working there: opening a device takes a few MiB.
const WORKING_KIB: u64 = 64 << 10;

/// The devices that the operator names: a comma list of `dram`, `dram-node<n>` and `gpu:<uuid, place or PCI
/// address>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneSpec(BTreeSet<Named>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Named {
    Dram,
    Node(u16),
    Gpu(String),
}

/// Why a lane cannot be taken as the operator named it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    /// Not a device at all.
    #[error(
        "{0:?} is no device: use dram, dram-node0 or gpu:<uuid, number or PCI address>, with commas between"
    )]
    Syntax(String),
    /// No GPU of that name is visible here.
    #[error("no GPU here is called {name:?}; visible: {visible}")]
    NoSuchGpu {
        /// What the operator wrote.
        name: String,
        /// What there is.
        visible: String,
    },
}

impl FromStr for LaneSpec {
    type Err = LaneError;

    fn from_str(text: &str) -> Result<Self, LaneError> {
        let names: Vec<&str> = text.split(',').map(str::trim).collect();
        let named = names.iter().take(MAX_NAMED).map(|name| {
            let lower = name.to_ascii_lowercase();
            let named = match (lower.as_str(), lower.strip_prefix("dram-node"), lower.strip_prefix("gpu:")) {
                ("dram", _, _) => Some(Named::Dram),
                (_, Some(node), _) => node.parse().ok().map(Named::Node),
                (_, _, Some(gpu)) if !gpu.is_empty() => Some(Named::Gpu(gpu.to_owned())),
                _ => None,
            };
            named.ok_or_else(|| LaneError::Syntax((*name).to_owned()))
        });
        let named: BTreeSet<Named> = named.collect::<Result<_, _>>()?;
        if names.len() > MAX_NAMED { Err(LaneError::Syntax(text.to_owned())) } else { Ok(Self(named)) }
    }
}

impl fmt::Display for LaneSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, named) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            match named {
                Named::Dram => write!(f, "{comma}dram")?,
                Named::Node(node) => write!(f, "{comma}dram-node{node}")?,
                Named::Gpu(gpu) => write!(f, "{comma}gpu:{gpu}")?,
            }
        }
        Ok(())
    }
}

impl LaneSpec {
    /// Finds the named devices among those that are visible.
    ///
    /// # Errors
    /// When a GPU is not there: the agent should not start, since it would reserve what the operator did not mean.
    pub fn resolve(&self, gpus: &[Gpu<String>]) -> Result<LaneClaim, LaneError> {
        let mut places = BTreeSet::new();
        let mut nodes = BTreeSet::new();
        for named in &self.0 {
            match named {
                Named::Dram => {}
                Named::Node(node) => {
                    nodes.insert(*node);
                }
                Named::Gpu(name) => {
                    places.insert(place_of(gpus, name).ok_or_else(|| LaneError::NoSuchGpu {
                        name: name.clone(),
                        visible: visible(gpus),
                    })?);
                }
            }
        }
        let all = self.0.contains(&Named::Dram);
        Ok(LaneClaim {
            gpus: list(places),
            dram: all || !nodes.is_empty(),
            numa_nodes: if all { List::default() } else { list(nodes) },
            method: Attribution::Operator,
        })
    }
}

/// What a claim is decided from, beside the file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clues<'a> {
    /// What the operator says.
    pub named: Option<&'a LaneSpec>,
    /// The port on which the install listens on this host; `None` where it is elsewhere.
    pub port: Option<u16>,
    /// The log of the server, where the operator names it.
    pub log: Option<&'a str>,
    /// How the loaded model lies in memory, where one is loaded.
    pub loaded: Option<Loaded>,
    /// The GPUs that steps in memory gave away, by their places.
    pub stepped: Option<&'a BTreeSet<u16>>,
    /// NVIDIA's cards, for their processes.
    pub cards: &'a [Card],
}

/// Decides which devices the install may occupy. What the operator names and is not there falls to the last rung
/// with a warning; check it first with [`LaneSpec::resolve`].
#[must_use]
pub fn claim(root: &Root, facts: &Facts, wsl: bool, clues: &Clues<'_>) -> LaneClaim {
    if let Some(named) = clues.named {
        match named.resolve(&facts.gpus) {
            Ok(claim) => return claim,
            Err(error) => tracing::warn!(%error, "everything visible is reserved instead"),
        }
    }
    let server = clues.port.and_then(|port| process::server(root, port));
    let server = server.as_ref();
    let numa_nodes = server.map(|server| cpus::pinned_nodes(root, &server.status)).unwrap_or_default();
    let on_gpu = clues.loaded.is_some_and(|loaded| loaded.size > 0 && loaded.size_vram >= loaded.size);
    let climbed = server.and_then(|server| {
        // WSL2 shows no process of its own to NVML (microsoft/WSL#7162).
        let by_process = if wsl { None } else { by_process(root, server, facts, clues) };
        match (by_process, by_drm(root, server, &facts.gpus)) {
            // One model on NVIDIA's card and one on another's: either sign sees one of them.
            (Some(one), Some(other)) => Some((&one | &other, Attribution::Process)),
            (Some(found), None) => Some((found, Attribution::Process)),
            (None, found) => Some((found?, Attribution::DrmFd)),
        }
    });
    let climbed = climbed.or_else(|| lasting(root, server, facts, clues));
    let stepped = clues.stepped.filter(|places| !places.is_empty());
    let climbed = climbed.or_else(|| Some((stepped?.clone(), Attribution::VramStep)));
    let (gpus, method) = climbed.unwrap_or_else(|| (all(&facts.gpus), Attribution::Everything));
    LaneClaim { dram: gpus.is_empty() || !on_gpu, gpus: list(gpus), numa_nodes: list(numa_nodes), method }
}

/// Decides which devices the install may load a model on that is not loaded: what its processes hold now says nothing
/// of that.
#[must_use]
pub fn claim_of_another(root: &Root, facts: &Facts, clues: &Clues<'_>) -> LaneClaim {
    if let Some(Ok(claim)) = clues.named.map(|named| named.resolve(&facts.gpus)) {
        return claim;
    }
    let server = clues.port.and_then(|port| process::server(root, port));
    let lasting = lasting(root, server.as_ref(), facts, clues);
    let (gpus, method) = lasting.unwrap_or_else(|| (all(&facts.gpus), Attribution::Everything));
    LaneClaim { dram: true, gpus: list(gpus), numa_nodes: facts.lane.numa_nodes.clone(), method }
}

/// What holds for all that the server will ever load.
fn lasting(
    root: &Root,
    server: Option<&Server>,
    facts: &Facts,
    clues: &Clues<'_>,
) -> Option<(BTreeSet<u16>, Attribution)> {
    by_log(root, server, facts, clues)
        .map(|gpus| (gpus, Attribution::ServerLog))
        .or_else(|| Some((environment::usable(&server?.environment, &facts.gpus)?, Attribution::Environment)))
}

/// Finds the runner on NVIDIA's cards. The driver may speak of the host's process ids inside a container, so a
/// number alone counts only in the first namespace; elsewhere the size of its memory must fit too.
fn by_process(root: &Root, server: &Server, facts: &Facts, clues: &Clues<'_>) -> Option<BTreeSet<u16>> {
    let same_numbers = process::is_first_namespace(root);
    let vram = clues.loaded.map_or(0, |loaded| loaded.size_vram);
    let fits = |bytes: u64| {
        vram > 0
            && bytes >= vram - vram / 10
            && bytes <= vram.saturating_add(vram / 10).saturating_add(CONTEXT)
    };
    let is_runner = |process: &Process| {
        server.numbers.contains(&process.pid) && (same_numbers || process.memory.is_some_and(fits))
    };
    let mut found = BTreeSet::new();
    for card in clues.cards {
        if card.processes.iter().any(is_runner) && card.slices.is_empty() {
            found.extend(place_of(&facts.gpus, &card.uuid));
        }
        for slice in card.slices.iter().filter(|slice| slice.processes.iter().any(is_runner)) {
            found.extend(place_of(&facts.gpus, &slice.uuid));
        }
    }
    // In another namespace several candidates are accidents; in the first one they are one model on several GPUs.
    if found.is_empty() || (found.len() > 1 && !same_numbers) { None } else { Some(found) }
}

fn by_drm(root: &Root, server: &Server, gpus: &[Gpu<String>]) -> Option<BTreeSet<u16>> {
    let held = process::drm_memory(root, server);
    let working = held.iter().filter(|(_, kibibytes)| **kibibytes >= WORKING_KIB);
    let found: BTreeSet<u16> = working.filter_map(|(address, _)| place_of(gpus, address)).collect();
    if found.is_empty() { None } else { Some(found) }
}

/// Takes the devices that the server named when it started. A device that is not visible here is of another host
/// than the log, or of one that has changed since: then nothing is decided.
fn by_log(root: &Root, server: Option<&Server>, facts: &Facts, clues: &Clues<'_>) -> Option<BTreeSet<u16>> {
    // Without a GPU all is said.
    if facts.gpus.is_empty() {
        return None;
    }
    let read = server_log::read(root, facts.os, clues.log, clues.port, server);
    let Reading::Value(logged) = read else {
        tracing::debug!(why = read.why_not(), "the server's log does not tell its devices");
        return None;
    };
    let mut found = BTreeSet::new();
    for address in &logged.addresses {
        let at: BTreeSet<u16> = all(&facts.gpus)
            .into_iter()
            .filter(|place| facts.gpus[usize::from(*place)].pci.as_ref() == Some(address))
            .collect();
        if at.is_empty() {
            tracing::debug!(%address, place = logged.place, "the server's log names a device that is not visible");
            return None;
        }
        // All slices of a card stand at its address, and the log does not say which of them.
        found.extend(at);
    }
    Some(found)
}

/// Finds a GPU by its id (with or without the vendor's prefix), its place, or its PCI address.
fn place_of(gpus: &[Gpu<String>], name: &str) -> Option<u16> {
    let place = name.parse::<usize>().ok().filter(|place| *place < gpus.len());
    let address = super::nvidia::pci_address(name);
    let id = match canonical::gpu_id(name) {
        Reading::Value(id) => id,
        Reading::Virtual(_) | Reading::Absent | Reading::Denied | Reading::Rejected(_) => String::new(),
    };
    let bare = |id: &str| id.trim_start_matches("gpu-").trim_start_matches("mig-").to_owned();
    let by_id = || {
        gpus.iter().position(|gpu| {
            gpu.uuid.as_deref().is_some_and(|uuid| uuid == id || (!id.is_empty() && bare(uuid) == bare(&id)))
        })
    };
    // An address names a card; with slices on it, it names none of them.
    let by_address = || {
        let at = |gpu: &Gpu<String>| address.is_some() && gpu.pci == address && gpu.kind == GpuKind::Full;
        gpus.iter().position(at)
    };
    place.or_else(by_id).or_else(by_address).and_then(|place| u16::try_from(place).ok())
}

fn visible(gpus: &[Gpu<String>]) -> String {
    let names = gpus.iter().enumerate().map(|(place, gpu)| {
        format!("{place} ({}, {})", &*gpu.name, gpu.pci.as_deref().unwrap_or("no PCI address"))
    });
    let names = names.collect::<Vec<_>>().join("; ");
    if names.is_empty() { "none".to_owned() } else { names }
}

fn all(gpus: &[Gpu<String>]) -> BTreeSet<u16> {
    (0..gpus.len()).filter_map(|place| u16::try_from(place).ok()).collect()
}

fn list(numbers: BTreeSet<u16>) -> List<u16, 64> {
    // At most as many as there are GPUs in a bundle, or NUMA nodes of a host.
    List::cut(numbers.into_iter().collect()).0
}

#[cfg(test)]
mod tests;
