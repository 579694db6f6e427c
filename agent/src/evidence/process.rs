//! The server of the install among the processes of the host: from its listening socket to its process, from there
//! to its runners.
//!
//! Another user's process shows neither its file descriptors nor its environment; then it is not found, which is
//! an answer.

use std::collections::{BTreeMap, BTreeSet};

use tropa_proto::evidence::Reading;

use super::{cpus::field, files::Root, nvidia::pci_address};

/// Bytes of the table of sockets: 150 each, and a busy host has some ten thousand.
const MAX_SOCKETS: usize = 4 << 20;

/// Bytes of an environment: Linux takes a quarter of the stack's limit for it and the arguments, 2 MiB by default. One
/// that is longer is not read at all: a variable behind the end could undo one before it.
const MAX_ENVIRONMENT: usize = 2 << 20;

/// Processes of one server: one runner per loaded model, and their helpers.
const MAX_FAMILY: usize = 256;

/// The first namespace of process ids (`PROC_PID_INIT_INO` of the kernel): there numbers mean what the driver means.
const FIRST_NAMESPACE: &str = "pid:[4026531836]";

/// The server and its runners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Server {
    /// The process that listens.
    pub main: u32,
    /// The processes of the server and of all its descendants, as this process sees them.
    pub family: BTreeSet<u32>,
    /// Every number that these processes have in any namespace that can be seen.
    pub numbers: BTreeSet<u32>,
    /// The environment of the server, `NAME=value`.
    pub environment: Vec<String>,
    /// `/proc/<pid>/status` of the server.
    pub status: String,
}

/// Finds the server that listens on a port; `None` where it cannot be seen.
#[must_use]
pub fn server(root: &Root, port: u16) -> Option<Server> {
    let sockets = listening(root, port);
    let processes = processes(root);
    let target = |process: &u32| {
        let directory = format!("proc/{process}/fd");
        root.names(&directory).iter().any(|fd| {
            root.link(&format!("{directory}/{fd}")).is_some_and(|link| {
                link.strip_prefix("socket:[")
                    .and_then(|rest| rest.strip_suffix(']'))
                    .is_some_and(|inode| sockets.contains(inode))
            })
        })
    };
    if sockets.is_empty() {
        return None;
    }
    let first = processes.into_iter().find(target)?;
    let family = family(root, first);
    let numbers = family.iter().flat_map(|process| {
        let status = status(root, *process);
        let numbers = field(&status, "NSpid").unwrap_or_default().to_owned();
        let numbers: Vec<u32> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        numbers
    });
    let numbers = numbers.chain(family.iter().copied()).collect();
    let environment = match root.all_strings(&format!("proc/{first}/environ"), MAX_ENVIRONMENT) {
        Reading::Value(entries) | Reading::Virtual(entries) => entries,
        Reading::Absent | Reading::Denied | Reading::Rejected(_) => Vec::new(),
    };
    Some(Server { main: first, numbers, environment, status: status(root, first), family })
}

/// Lists the processes that call themselves servers of Ollama, other users' among them; at most 256.
#[must_use]
pub fn by_name(root: &Root) -> Vec<u32> {
    let serves = |process: &u32| {
        let words = root.strings(&format!("proc/{process}/cmdline"));
        match words.value().map(Vec::as_slice) {
            Some([program, command, ..]) => {
                command == "serve" && program.rsplit('/').next().is_some_and(|name| name == "ollama")
            }
            Some(_) | None => false,
        }
    };
    processes(root).into_iter().filter(serves).take(MAX_FAMILY).collect()
}

/// Says whether process ids here are those of the whole host.
#[must_use]
pub fn is_first_namespace(root: &Root) -> bool {
    root.link("proc/self/ns/pid").as_deref() == Some(FIRST_NAMESPACE)
}

/// Adds up what the runners hold on GPUs through DRM, in KiB by PCI address.
///
/// Each client of a process may appear behind several descriptors: it counts once.
#[must_use]
pub fn drm_memory(root: &Root, server: &Server) -> BTreeMap<String, u64> {
    let mut clients: BTreeMap<(String, String), u64> = BTreeMap::new();
    for process in &server.family {
        let directory = format!("proc/{process}/fdinfo");
        for fd in root.names(&directory) {
            let Some(text) = root.line(&format!("{directory}/{fd}")) else { continue };
            let Some(address) = field(&text, "drm-pdev").and_then(pci_address) else { continue };
            let client = field(&text, "drm-client-id").unwrap_or(&fd).to_owned();
            let held = clients.entry((address.to_string(), client)).or_default();
            *held = (*held).max(memory_kib(&text));
        }
    }
    let mut held = BTreeMap::new();
    for ((address, _), kibibytes) in clients {
        let sum: &mut u64 = held.entry(address).or_default();
        *sum = sum.saturating_add(kibibytes);
    }
    held
}

/// The largest of the memory regions that a client names: `drm-memory-vram`, `drm-total-local0` and their like, of
/// which drivers print several views of the same bytes.
fn memory_kib(text: &str) -> u64 {
    let regions = text.lines().filter_map(|line| {
        let (key, value) = line.split_once(':')?;
        let is_region =
            ["drm-memory-", "drm-total-", "drm-resident-"].iter().any(|prefix| key.starts_with(prefix));
        let (number, unit) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
        let factor = match unit.trim() {
            "KiB" => 1,
            "MiB" => 1024,
            _ => return None,
        };
        is_region.then(|| number.parse::<u64>().ok()?.checked_mul(factor)).flatten()
    });
    regions.max().unwrap_or(0)
}

/// Inodes of the sockets that listen on a port, of both families. The kernel shows them to every user, and gives a number
/// to another socket only when four billion more were made.
#[must_use]
pub fn listening(root: &Root, port: u16) -> BTreeSet<String> {
    const LISTEN: &str = "0A";
    let port = format!("{port:04X}");
    let mut inodes = BTreeSet::new();
    for table in ["proc/net/tcp", "proc/net/tcp6"] {
        let read = root.text_up_to(table, MAX_SOCKETS);
        let lines = read.value().map_or("", String::as_str).lines().skip(1);
        inodes.extend(lines.filter_map(|line| {
            let mut columns = line.split_whitespace().skip(1);
            let local = columns.next()?;
            let state = columns.nth(1)?;
            let inode = columns.nth(5)?;
            (state == LISTEN && local.rsplit(':').next() == Some(&port)).then(|| inode.to_owned())
        }));
    }
    inodes
}

/// The process and its descendants, from the lists of children that every process shows.
fn family(root: &Root, first: u32) -> BTreeSet<u32> {
    let mut parents: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for process in processes(root) {
        if let Some(parent) = field(&status(root, process), "PPid").and_then(|parent| parent.parse().ok()) {
            parents.entry(parent).or_default().push(process);
        }
    }
    let mut family = BTreeSet::new();
    let mut next = vec![first];
    while let Some(process) = next.pop() {
        if family.len() < MAX_FAMILY && family.insert(process) {
            next.extend(parents.get(&process).into_iter().flatten());
        }
    }
    family
}

fn processes(root: &Root) -> Vec<u32> {
    root.names("proc").iter().filter_map(|name| name.parse().ok()).collect()
}

fn status(root: &Root, process: u32) -> String {
    root.line(&format!("proc/{process}/status")).unwrap_or_default()
}
