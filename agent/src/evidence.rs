//! What can be read about this kernel, this machine and its devices: one reader per signal over a root directory.
//!
//! Every reader is a function of a [`Root`], which is `/` or a fixture tree, so that each trap has a test. A
//! signal that is not there, not readable or not to be believed says so; none stands in for another silently. The
//! canonical forms and the denylists are `tropa_proto::canonical`'s. [`files`] lists the tree of a declared root.
//!
//! Nothing here leaves the machine as it is read: [`Facts`] are keyed into `Evidence` before they are published,
//! and only [`show()`] with `raw` prints them, to the operator.

pub mod amd;
pub mod clock;
pub mod command;
pub mod counters;
pub mod cpus;
pub mod files;
#[cfg(test)]
mod garbage;
pub mod lane;
pub mod linux;
pub mod macos;
pub mod neighbours;
pub mod nvidia;
pub mod platform;
mod privileged;
pub mod process;
pub mod server_log;
mod show;
#[cfg(test)]
mod tests;
pub mod vram;
pub mod windows;

use std::collections::BTreeMap;

use serde::Deserialize;
use tropa_proto::{
    bounded::{List, Text},
    canonical,
    evidence::{Facts, Gpu, GpuKind, Os, Reading},
    message::Loaded,
};

pub use clock::BootClock;
pub use counters::read_counters;
pub use files::Root;
pub use lane::{LaneError, LaneSpec};
pub use neighbours::Networks;
pub use privileged::Privileged;
pub use server_log::Logged;
pub use show::{Shown, show, show_json};
pub use vram::VramWatch;

use lane::Clues;
use nvidia::{Card, Library, NoLibrary, Nvml};
use vram::Sample;

/// What a reading needs beside the file system.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which devices the install uses, as the operator says.
    pub lane: Option<LaneSpec>,
    /// The port of the install, if it is on this host.
    pub port: Option<u16>,
    /// The log of the install's server, as the operator names it: a path below the root.
    pub log: Option<String>,
    /// How the loaded model lies in memory, from `/api/ps`.
    pub loaded: Option<Loaded>,
    /// The loaded models with their bytes on GPUs.
    pub on_gpu: BTreeMap<String, u64>,
    /// Whether the install is at work for us, so that a model may be half loaded.
    pub busy: bool,
    /// What `TROPA_MACHINE` says.
    pub machine: Option<String>,
}

/// Reads everything. NVIDIA's library is asked on the machine's own root only.
///
/// Reads files and may load a library: some milliseconds, up to a second with NVML; not for an async thread. The
/// watch is the same one for all readings of an install.
#[must_use]
pub fn read(root: &Root, options: &Options, watch: &mut VramWatch) -> Facts {
    let library: &dyn Library = if root.is_declared() { &NoLibrary } else { &Nvml };
    read_with(root, options, watch, library)
}

/// Reads everything, with cards from a given library.
#[must_use]
pub fn read_with(root: &Root, options: &Options, watch: &mut VramWatch, library: &dyn Library) -> Facts {
    let mut facts = match os(root) {
        Os::Linux => linux::read(root),
        Os::Macos => macos::read(root),
        Os::Windows => windows::read(root),
    };
    facts.declared = root.is_declared();
    facts.machine_rule = options.machine.clone().filter(|rule| !rule.trim().is_empty());

    let cards = library.cards().unwrap_or_else(|why| {
        tracing::debug!(%why, "no NVML; looking at the driver's files");
        nvidia::from_proc(root)
    });
    facts.gpus = gpus(root, &facts, &cards);
    let stepped = watch.see(&Sample {
        used: facts.gpus.iter().map(|gpu| used_memory(root, gpu, &cards)).collect(),
        loaded: options.on_gpu.clone(),
        busy: options.busy,
    });
    let clues = Clues {
        named: options.lane.as_ref(),
        port: options.port,
        log: options.log.as_deref(),
        loaded: options.loaded,
        stepped: Some(&stepped),
        cards: &cards,
    };
    facts.lane = lane::claim(root, &facts, platform::read(root).wsl, &clues);
    facts.anywhere = lane::claim_of_another(root, &facts, &clues);
    facts
}

/// Reads what the log of the install's server says of its devices: what the lane was decided from, where no better
/// sign was there, or why the log says nothing. For the operator.
#[must_use]
pub fn read_server_log(root: &Root, options: &Options) -> Reading<Logged> {
    let server = options.port.and_then(|port| process::server(root, port));
    server_log::read(root, os(root), options.log.as_deref(), options.port, server.as_ref())
}

fn os(root: &Root) -> Os {
    let declared = root.line("tropa/os").filter(|_| root.is_declared());
    match declared.as_deref() {
        Some("macos") => Os::Macos,
        Some("windows") => Os::Windows,
        Some(_) => Os::Linux,
        None if root.is_declared() || cfg!(target_os = "linux") => Os::Linux,
        None if cfg!(target_os = "macos") => Os::Macos,
        None => Os::Windows,
    }
}

/// Memory of a GPU that is in use by whomever, in bytes.
fn used_memory(root: &Root, gpu: &Gpu<String>, cards: &[Card]) -> Option<u64> {
    match &*gpu.vendor {
        "nvidia" => nvidia::used_memory(cards, gpu),
        _ => amd::used_memory(root, gpu.pci.as_deref()?),
    }
}

/// All GPUs in the order of their addresses. Each card once: the DRM tree shows the cards of AMD and Intel only.
fn gpus(root: &Root, facts: &Facts, cards: &[Card]) -> List<Gpu<String>, 64> {
    let mut gpus = facts.gpus.to_vec();
    gpus.extend(nvidia::gpus(cards));
    gpus.extend(amd::gpus(root));
    gpus.extend(declared_gpus(root));
    gpus.sort_by(|a, b| (&a.pci, a).cmp(&(&b.pci, b)));
    gpus.dedup();
    let (list, cut) = List::cut(gpus);
    if cut {
        tracing::warn!("more than {} GPUs: the rest is left out", list.len());
    }
    list
}

/// A GPU as a declared tree writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DeclaredGpu {
    vendor: String,
    name: String,
    uuid: Option<String>,
    kind: String,
    parent: Option<String>,
    pci: Option<String>,
    memory: u64,
    uma: bool,
}

impl Default for DeclaredGpu {
    fn default() -> Self {
        Self {
            vendor: "nvidia".to_owned(),
            name: String::new(),
            uuid: None,
            kind: "full".to_owned(),
            parent: None,
            pci: None,
            memory: 0,
            uma: false,
        }
    }
}

fn declared_gpus(root: &Root) -> Vec<Gpu<String>> {
    let Some(text) = root.line("tropa/gpus.json").filter(|_| root.is_declared()) else { return Vec::new() };
    let declared: Vec<DeclaredGpu> = serde_json::from_str(&text).unwrap_or_else(|error| {
        tracing::warn!(%error, "tropa/gpus.json of the declared host is not a list of GPUs");
        Vec::new()
    });
    let id = |text: &str| canonical::gpu_id(text).value().cloned();
    let known = |gpu: &DeclaredGpu| {
        let known = match gpu.kind.as_str() {
            "full" | "vgpu" => true,
            "mig" => gpu.parent.as_deref().and_then(id).is_some(),
            _ => false,
        };
        if !known {
            let (name, kind) = (&gpu.name, &gpu.kind);
            tracing::warn!(
                name,
                kind,
                "tropa/gpus.json: a GPU is full, vgpu, or mig with a parent; left out"
            );
        }
        known
    };
    let gpu = |gpu: DeclaredGpu| Gpu {
        vendor: Text::cut(&gpu.vendor),
        name: Text::cut(&gpu.name),
        uuid: gpu.uuid.as_deref().and_then(id),
        kind: match (gpu.kind.as_str(), gpu.parent.as_deref().and_then(id)) {
            ("mig", Some(parent)) => GpuKind::Mig { parent },
            ("vgpu", _) => GpuKind::Vgpu,
            _ => GpuKind::Full,
        },
        pci: gpu.pci.as_deref().and_then(nvidia::pci_address),
        memory: gpu.memory,
        uma: gpu.uma,
    };
    declared.into_iter().filter(known).map(gpu).collect()
}
