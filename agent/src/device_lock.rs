//! The kernel locks that an attempt holds on its devices: whoever holds the lock works, nobody else does.
//!
//! One file per device, named by the device's native id, so that every agent of one kernel that shares the
//! directory locks the same file whatever it believes about machines, and two meshes exclude each other as well.
//! The lock is a `flock`: the kernel frees it the moment its holder dies, whatever killed it, and keeps it while
//! the holder is stopped. There is no leader, no lease and no clock (`reliability.md` §8.2).
//!
//! A device is held exclusively and its parent shared: a MIG slice shares its GPU's file, a NUMA node shares
//! `dram`. Locks are taken in the order of their names, so two agents never wait for each other in a circle. A
//! blocking `flock` cannot be called back, so all waiting happens in one thread per [`DeviceLocks`]; a wait that
//! nobody wants any more ends for its caller at once, and the thread gives the lock back as soon as it gets it.
//!
//! Beside the lock itself the file tells two things. *Who holds it*, for the message of those who wait. And the
//! *settle records*: which request the holder has at the engine. A holder that dies leaves them behind, and the
//! next one must prove that request over before it starts its own (§8.4).
//!
//! Not promised: the kernel lets a new shared lock pass an exclusive one that waits, so slices of a GPU that never
//! rest can keep a whole-GPU user out; and the holder's name may be that of the last exclusive holder if it was
//! killed and slices hold the file now.

mod directory;
mod lock_file;
#[cfg(test)]
mod tests;
mod waiter;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as thread_channel},
};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tropa_proto::{
    evidence::{Facts, GpuKind},
    message::Loaded,
};

pub use directory::LockPlaces;
use lock_file::{LockFile, Mode, Plan};
use waiter::{Event, Mark, Request, Shared, Unmark};

/// Requests that may wait at one install: more than any width, so reaching it means that nobody takes answers.
const MAX_REQUESTS: usize = 64;

/// A device by its native id, as it names the lock file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceName {
    /// The memory system of the machine.
    Dram,
    /// One NUMA node of it.
    DramNode(u16),
    /// A GPU by the id that its vendor gave it.
    Gpu(String),
    /// A GPU without such an id, by its PCI address.
    GpuPci(String),
    /// A MIG slice.
    Mig {
        /// The slice's own id.
        uuid: String,
        /// The id of the GPU that it is a slice of.
        parent: String,
    },
}

/// Which part of its lane an attempt occupies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupies {
    /// The model lies on the GPU whole.
    Gpus,
    /// The model lies in main memory.
    Dram,
    /// Partly on both.
    Both,
    /// Not known yet: all that the lane claims.
    Claimed,
}

impl Occupies {
    /// Says what a model occupies from how `/api/ps` shows it lie in memory; not loaded: not known.
    #[must_use]
    pub fn of(loaded: Option<Loaded>) -> Self {
        match loaded {
            Some(Loaded { size: 0, .. }) | None => Self::Claimed,
            Some(Loaded { size_vram: 0, .. }) => Self::Dram,
            Some(loaded) if loaded.size_vram >= loaded.size => Self::Gpus,
            Some(_) => Self::Both,
        }
    }
}

impl DeviceName {
    /// The name of the lock file: lower case, and only characters that any file system takes.
    #[must_use]
    pub fn file_name(&self) -> String {
        match self {
            Self::Dram => "dram".to_owned(),
            Self::DramNode(node) => format!("dram-node{node}"),
            Self::Gpu(uuid) => format!("gpu-{}", plain(uuid, "gpu-")),
            Self::GpuPci(address) => format!("gpu-pci-{}", plain(address, "")),
            Self::Mig { uuid, .. } => format!("mig-{}", plain(uuid, "mig-")),
        }
    }

    /// The device that this one is a part of.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        match self {
            Self::DramNode(_) => Some(Self::Dram),
            Self::Mig { parent, .. } => Some(Self::Gpu(parent.clone())),
            Self::Dram | Self::Gpu(_) | Self::GpuPci(_) => None,
        }
    }
}

/// Says which devices an attempt occupies on the lane that the facts claim (`identity.md` §8).
///
/// A GPU that shares the CPU's memory occupies `dram` too. A lane without a GPU is always `dram`, whatever the
/// caller believes. A virtual GPU is named by its PCI address, because its own id says nothing.
#[must_use]
pub fn occupied(facts: &Facts, what: Occupies) -> BTreeSet<DeviceName> {
    let gpus: Vec<_> =
        facts.lane.gpus.iter().filter_map(|place| facts.gpus.get(usize::from(*place))).collect();
    let mut devices = BTreeSet::new();
    if what != Occupies::Dram {
        for (place, gpu) in gpus.iter().enumerate() {
            devices.insert(match (&gpu.kind, &gpu.uuid, &gpu.pci) {
                (GpuKind::Mig { parent }, Some(uuid), _) => {
                    DeviceName::Mig { uuid: uuid.clone(), parent: parent.clone() }
                }
                (GpuKind::Mig { parent }, None, _) => DeviceName::Gpu(parent.clone()),
                (GpuKind::Full, Some(uuid), _) => DeviceName::Gpu(uuid.clone()),
                (GpuKind::Full | GpuKind::Vgpu, _, Some(pci)) => DeviceName::GpuPci(pci.to_string()),
                (GpuKind::Full | GpuKind::Vgpu, _, None) => DeviceName::GpuPci(format!("unknown{place}")),
            });
        }
    }
    let in_memory = match what {
        Occupies::Gpus => false,
        Occupies::Dram | Occupies::Both => true,
        Occupies::Claimed => facts.lane.dram,
    };
    if in_memory || gpus.is_empty() || gpus.iter().any(|gpu| gpu.uma && what != Occupies::Dram) {
        // A GPU without memory of its own reaches all of it.
        if facts.lane.numa_nodes.is_empty() || gpus.iter().any(|gpu| gpu.uma) {
            devices.insert(DeviceName::Dram);
        } else {
            devices.extend(facts.lane.numa_nodes.iter().map(|node| DeviceName::DramNode(*node)));
        }
    }
    devices
}

/// What a holder has at the engine: enough for whoever comes next to prove it over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettleRecord {
    /// The install, as a URL.
    pub endpoint: String,
    /// The inode of the network namespace in which that URL means this install.
    pub netns: u64,
    /// The model.
    pub model: String,
    /// What tells requests with other runner options apart.
    pub options_hash: String,
    /// The attempt; the key by which a record is cleared.
    pub attempt: String,
    /// How long the request may still run, in milliseconds from the writing of this record.
    pub remaining_ms: u64,
}

/// What earlier holders left in the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftBehind {
    /// Requests that were not cleared; sorted by attempt, each once.
    pub records: Vec<SettleRecord>,
    /// There was something that could not be read as a record: settle as if it were one.
    pub unreadable: bool,
}

/// Why a device cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The operating system refused.
    #[error("{what} {path}")]
    Io {
        /// The action that failed.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else lies where a lock file or its directory belongs.
    #[error("{path} is {what}")]
    Unfit {
        /// The path.
        path: PathBuf,
        /// What is wrong, and where there is one the command that mends it.
        what: String,
    },
    /// The directory is wiped faster than locks can be taken.
    #[error("{0} keeps changing while its locks are taken")]
    Unstable(PathBuf),
    /// Too many requests wait at this install.
    #[error("{MAX_REQUESTS} requests wait for the devices already")]
    TooManyWait,
    /// The waiting thread is gone.
    #[error("the thread that waits for devices has ended")]
    Ended,
}

/// The locks of one agent's devices in one directory.
#[derive(Debug)]
pub struct DeviceLocks {
    directory: PathBuf,
    devices: BTreeSet<DeviceName>,
    shared: Arc<Shared>,
}

impl DeviceLocks {
    /// Opens, and where they are missing makes, the lock files of the devices and of their parents, and starts
    /// the thread that waits. `label` is what those who wait for us will read.
    ///
    /// # Errors
    /// When the directory is no place for locks (on a network file system, world-writable), or a file there is
    /// not a lock file of ours.
    pub fn open(directory: &Path, devices: BTreeSet<DeviceName>, label: &str) -> Result<Self, LockError> {
        directory::check(directory)?;
        for (device, mode) in with_parents(&devices).values() {
            LockFile::open(directory, device, *mode)?;
        }
        let label = label.chars().filter(|c| !c.is_control()).take(128).collect();
        let shared = waiter::start(directory, label)?;
        Ok(Self { directory: directory.to_owned(), devices, shared })
    }

    /// Gives the lock id of every device, in the order of the devices: equal ids mean a shared directory.
    ///
    /// Read anew each time, since a wiped directory changes them.
    ///
    /// # Errors
    /// As [`DeviceLocks::open`].
    pub fn ids(&self) -> Result<Vec<[u8; 8]>, LockError> {
        self.devices
            .iter()
            .map(|device| LockFile::open(&self.directory, device, Mode::Exclusive)?.lock_id())
            .collect()
    }

    /// The devices that were opened.
    #[must_use]
    pub fn devices(&self) -> &BTreeSet<DeviceName> {
        &self.devices
    }

    /// Waits until the devices are ours; dropping the future gives the wait up at once.
    ///
    /// `blocked` is called with a name for whoever holds what we wait for, each time the wait meets one. Requests
    /// of one `DeviceLocks` are served in order, one at a time.
    ///
    /// # Errors
    /// When a lock file cannot be opened or is not ours, or too many requests wait.
    pub async fn acquire(
        &self,
        devices: &BTreeSet<DeviceName>,
        mut blocked: impl FnMut(String),
    ) -> Result<Held, LockError> {
        // Room for a few names of holders, which may be lost, and for the one answer.
        let (events, mut answers) = mpsc::channel(4);
        let mark = Mark::default();
        self.shared.push(Request { plan: with_parents(devices), events, mark: Arc::clone(&mark) })?;
        let _unmark = Unmark(mark);
        loop {
            match answers.recv().await {
                Some(Event::Blocked(holder)) => blocked(holder),
                Some(Event::Answer(answer)) => return answer,
                None => return Err(LockError::Ended),
            }
        }
    }
}

impl Drop for DeviceLocks {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// The devices are ours until this is dropped.
pub struct Held {
    // Dropped before `done`: the locks are free when the waiting thread goes on.
    files: Vec<LockFile>,
    state: Mutex<HeldState>,
    directory: PathBuf,
    label: String,
    // Dropping it tells the waiting thread that the devices are free again.
    _done: thread_channel::SyncSender<()>,
}

#[derive(Default)]
struct HeldState {
    own: BTreeMap<String, SettleRecord>,
    left: LeftBehind,
}

impl Held {
    /// Writes that a request goes to the engine; call it before the request is sent. One per running attempt.
    ///
    /// # Errors
    /// When it cannot be written: then the request must not be sent.
    pub fn record(&self, record: SettleRecord) -> Result<(), LockError> {
        let mut state = self.state();
        state.own.insert(record.attempt.clone(), record);
        self.write(&state)
    }

    /// Clears the record of a request that has proved to be over. Clearing an unknown attempt does nothing.
    ///
    /// # Errors
    /// When it cannot be written: then the next holder will settle once too often.
    pub fn clear(&self, attempt: &str) -> Result<(), LockError> {
        let mut state = self.state();
        if state.own.remove(attempt).is_none() {
            return Ok(());
        }
        self.write(&state)
    }

    /// What earlier holders left behind, an earlier life of this agent included: settle it before working.
    #[must_use]
    pub fn foreign_records(&self) -> LeftBehind {
        self.state().left.clone()
    }

    /// Says that everything in [`Held::foreign_records`] has proved to be over, and forgets it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn settled(&self) -> Result<(), LockError> {
        let mut state = self.state();
        state.left = LeftBehind::default();
        for file in &self.files {
            // Also in files that we share or that belong to parts of our device: whoever wrote there is dead,
            // or we would not hold what we hold.
            if file.mode() != Mode::Exclusive {
                file.write_lines(&[])?;
            }
        }
        self.write(&state)
    }

    /// Says whether another agent waits for one of these devices, and so whether to give it a turn.
    ///
    /// Right at this moment only; a failure to find out counts as somebody waiting.
    #[must_use]
    pub fn someone_waits(&self) -> bool {
        self.files.iter().filter(|file| file.mode() != Mode::Part).any(LockFile::someone_waits)
    }

    /// Says whether the files still lie where they were locked. If not, somebody wiped the directory and may hold
    /// the same devices through new files: start nothing, and acquire again.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.files.iter().filter(|file| file.mode() != Mode::Part).all(LockFile::is_in_place)
    }

    fn write(&self, state: &HeldState) -> Result<(), LockError> {
        let mut lines = vec![Line::Holder(self.label.clone())];
        lines.extend(state.lines());
        self.write_exclusive(&lines)
    }

    fn write_exclusive(&self, lines: &[Line]) -> Result<(), LockError> {
        for file in self.files.iter().filter(|file| file.mode() == Mode::Exclusive) {
            file.write_lines(lines)?;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, HeldState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldState {
    fn lines(&self) -> impl Iterator<Item = Line> {
        let unreadable = self.left.unreadable.then_some(Line::Unreadable);
        self.left.records.iter().chain(self.own.values()).cloned().map(Line::Record).chain(unreadable)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // What is not cleared stays for the next holder; our name goes.
        let lines: Vec<Line> = self.state().lines().collect();
        if let Err(error) = self.write_exclusive(&lines) {
            tracing::warn!(error = &error as &dyn std::error::Error, "the lock file keeps an old name");
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// One line of a lock file below its header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    /// Who holds the file exclusively.
    Holder(String),
    /// A request at the engine.
    Record(SettleRecord),
    /// Something stood here that nobody could read and nobody has settled.
    Unreadable,
}

/// Adds the parents: what is locked exclusively, and what shared with others who hold parts of the same. By file
/// name, which is the order of locking; exclusive wins where both are wanted.
fn with_parents(devices: &BTreeSet<DeviceName>) -> Plan {
    let mut plan = Plan::new();
    for parent in devices.iter().filter_map(DeviceName::parent) {
        plan.insert(parent.file_name(), (parent, Mode::Shared));
    }
    for device in devices {
        plan.insert(device.file_name(), (device.clone(), Mode::Exclusive));
    }
    plan
}

/// Keeps of a native id what any file system takes, without the vendor's prefix; at most 96 bytes, more than any
/// id has.
fn plain(id: &str, prefix: &str) -> String {
    let id = id.trim().to_ascii_lowercase();
    let id = id.strip_prefix(prefix).unwrap_or(&id);
    let keep = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | ':' | '.') { c } else { '_' };
    id.chars().take(96).map(keep).collect()
}
