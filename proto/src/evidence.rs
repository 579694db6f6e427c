//! What an agent can read about its kernel, its machine and its devices; typed, and keyed before it leaves.
//!
//! A reader (in the agent) finds raw text and turns it into a [`Reading`] of a canonical value by the functions
//! of [`canonical`](crate::canonical); that is [`Facts`], which never leaves the machine. [`Facts::keyed`] replaces
//! every identifier by a [`Tag`], and only that [`Evidence`] is published. The truth tables go the same way, through
//! the same functions. The rules are those of `identity.md` §3 and §4.

mod ignore;
mod keying;
mod unkeyed;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    bounded::{List, Text},
    id::hex,
};

pub use ignore::{IdKind, Ignore, NotAnIgnore};
pub use keying::{Key, Salt};

/// How one signal was read. Never does one signal stand in for another silently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reading<T> {
    /// The kernel's or the hardware's own value.
    Value(T),
    /// Present, but not the kernel's or the hardware's own: a container's boot id, for example.
    Virtual(T),
    /// Not there.
    Absent,
    /// There, but this user may not read it.
    Denied,
    /// There, and not to be believed; says why.
    Rejected(Text<96>),
}

/// A keyed hash of one identifier: the first 16 bytes of HMAC-SHA-256 (`identity.md` §4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tag(pub [u8; 16]);

/// Names the salt that tags are keyed with, so that tags of two salts are never compared: four bytes of a keyed hash,
/// which say nothing of the salt. All zero in [`Facts`], where nothing is keyed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SaltName(pub [u8; 4]);

/// The operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Os {
    /// Linux, WSL2 included.
    Linux,
    /// macOS.
    Macos,
    /// Windows.
    Windows,
}

/// What the kernel runs on (`identity.md` §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Hypervisor {
    /// Positively known to be bare metal.
    None,
    /// The privileged partition of a hypervisor on bare metal.
    Root,
    /// A guest.
    Vm,
    /// Not known, which is treated as a guest.
    Unknown,
}

/// Which kind of hypervisor, where it is known; in doubt never `Cloud`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum HypervisorClass {
    /// A named hypervisor of a home or an office.
    Homelab,
    /// WSL2 or Docker Desktop.
    Desktop,
    /// A public cloud by its own name in DMI.
    Cloud,
    /// Not known.
    Unknown,
}

/// One GPU, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Gpu<I> {
    /// `nvidia`, `amd`, `intel` or `apple`.
    pub vendor: Text<16>,
    /// The name for people.
    pub name: Text<64>,
    /// The id that is unique in the world, where the vendor gives one; of a MIG slice the slice's own.
    pub uuid: Option<I>,
    /// A whole GPU, a slice or a virtual one.
    pub kind: GpuKind<I>,
    /// The PCI address, `0000:01:00.0`; separates GPUs of one kernel, never links two.
    pub pci: Option<Text<16>>,
    /// Memory in bytes; 0 where it is not known.
    pub memory: u64,
    /// GPU and CPU share one memory (Apple, APUs, Jetson, GB10).
    pub uma: bool,
}

/// What kind of GPU an entry is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GpuKind<I> {
    /// A whole GPU.
    Full,
    /// A MIG slice of the GPU with this id.
    Mig {
        /// The id of the whole GPU.
        parent: I,
    },
    /// A virtual GPU, whose id says nothing about the card.
    Vgpu,
}

/// Processors: what the host has and what this agent's container may use. Never an identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpus {
    /// Logical processors of the host.
    pub host: u16,
    /// Physical cores of the host; 0 where it is not known.
    pub physical: u16,
    /// Processors that this agent may use, as the kernel lists them (`0,2-3`).
    pub allowed: Text<128>,
    /// The CPU quota in thousandths of one processor, where there is one.
    pub quota_milli: Option<u32>,
    /// Memory nodes that this agent may use, as the kernel lists them.
    pub memory_nodes: Text<64>,
    /// NUMA nodes of the host, at least 1.
    pub numa_nodes: u16,
}

/// How an agent came to know which devices its install uses: the rung of the ladder of `identity.md` §3.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Attribution {
    /// The operator said so.
    Operator,
    /// The runner's process was found on the GPU.
    Process,
    /// The runner's DRM file descriptors name the GPU.
    DrmFd,
    /// The server's log names the GPU.
    ServerLog,
    /// The serve process's environment pins the GPU.
    Environment,
    /// GPU memory rose with the model's.
    VramStep,
    /// Nothing decided: everything visible is reserved.
    Everything,
}

/// Which devices the install of this agent may occupy while it works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneClaim {
    /// Places in the bundle's `gpus`.
    pub gpus: List<u16, 64>,
    /// The memory system of the machine is occupied as well (CPU work, partial offload, or not known).
    pub dram: bool,
    /// Pinned by CPUs and memory to these NUMA nodes; empty: not pinned, all of them.
    pub numa_nodes: List<u16, 64>,
    /// How this is known.
    pub method: Attribution,
}

/// Everything that an agent could read. `I` is a canonical text in [`Facts`] and a [`Tag`] in [`Evidence`].
///
/// `epoch_ns`, `seq` and the time of sampling are not here: they travel in the announcement, so that the hash of
/// the bundle changes only when something lasting changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle<I> {
    /// The operating system.
    pub os: Os,
    /// What the kernel runs on.
    pub hypervisor: Hypervisor,
    /// Which kind of hypervisor.
    pub hypervisor_class: HypervisorClass,
    /// The evidence was read from a root that the operator declared, not from the machine; believed only by a
    /// coordinator that was told to.
    pub declared: bool,
    /// The boot epoch is shifted by a time namespace.
    pub time_namespace: bool,
    /// The kernel's boot id.
    pub boot_id: Reading<I>,
    /// The systemd machine-id.
    pub machine_id: Reading<I>,
    /// SMBIOS UUID, or a board's serial number.
    pub product_uuid: Reading<I>,
    /// macOS IOPlatformUUID.
    pub platform_uuid: Reading<I>,
    /// Windows MachineGuid.
    pub machine_guid: Reading<I>,
    /// In WSL2: the MachineGuid of the Windows around it.
    pub wsl_host_guid: Reading<I>,
    /// Processor serials.
    pub ppin: Reading<List<I, 16>>,
    /// Permanent MAC addresses that passed the reader's filter.
    pub macs: Reading<List<I, 16>>,
    /// NVMe serials.
    pub nvme: Reading<List<I, 32>>,
    /// SMBIOS UUIDs of the guests that run here.
    pub hosts_vms: Reading<List<I, 256>>,
    /// GPUs, in the order of their PCI addresses.
    pub gpus: List<Gpu<I>, 64>,
    /// The processor's retail name.
    pub cpu_model: Reading<Text<64>>,
    /// Processor counts and limits.
    pub cpus: Cpus,
    /// Memory of the host in bytes; 0 where it is not known.
    pub memory: u64,
    /// What `TROPA_MACHINE` says, as a rule of the operator (`identity.md` §13).
    pub machine_rule: Option<I>,
    /// Which devices the install may occupy with what it has loaded.
    pub lane: LaneClaim,
    /// Which devices it may load another model on: no fewer, for nobody knows where that will be.
    pub anywhere: LaneClaim,
    /// What the identifiers are keyed with.
    pub salt: SaltName,
}

/// Canonical values as read; never leaves the machine.
pub type Facts = Bundle<String>;

/// What is published: every identifier is a keyed hash.
pub type Evidence = Bundle<Tag>;

/// The part of the evidence that gossip carries: it places most agents before anything else is fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Core {
    /// The operating system.
    pub os: Os,
    /// What the kernel runs on.
    pub hypervisor: Hypervisor,
    /// The evidence was read from a root that the operator declared.
    pub declared: bool,
    /// The boot epoch is shifted by a time namespace.
    pub time_namespace: bool,
    /// The kernel's boot id.
    pub boot_id: Reading<Tag>,
    /// Boot epoch in nanoseconds: `CLOCK_REALTIME` − `CLOCK_BOOTTIME`.
    pub epoch_ns: Reading<i64>,
    /// The systemd machine-id.
    pub machine_id: Reading<Tag>,
    /// SMBIOS UUID, or a board's serial number.
    pub product_uuid: Reading<Tag>,
    /// Logical processors of the host.
    pub host_cpus: u16,
    /// Memory of the host in bytes.
    pub memory: u64,
    /// The ids of the first eight GPUs.
    pub gpus: List<Tag, 8>,
    /// What the identifiers are keyed with.
    pub salt: SaltName,
}

impl<T> Reading<T> {
    /// The kernel's or the hardware's own value, if there is one: only this is evidence.
    #[must_use]
    pub fn value(&self) -> Option<&T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Virtual(_) | Self::Absent | Self::Denied | Self::Rejected(_) => None,
        }
    }

    /// There is a value, and it is the kernel's or the hardware's own.
    #[must_use]
    pub fn is_genuine(&self) -> bool {
        self.value().is_some()
    }

    /// Something is there, but it is not the kernel's or the hardware's own.
    #[must_use]
    pub fn is_virtual(&self) -> bool {
        matches!(self, Self::Virtual(_))
    }

    /// Marks a value as not the kernel's or the hardware's own; other readings stay.
    #[must_use]
    pub fn into_virtual(self) -> Self {
        match self {
            Self::Value(value) => Self::Virtual(value),
            other @ (Self::Virtual(_) | Self::Absent | Self::Denied | Self::Rejected(_)) => other,
        }
    }

    /// Applies a function to the value, genuine or not; how it was read stays.
    #[must_use]
    pub fn map<U>(&self, f: impl FnOnce(&T) -> U) -> Reading<U> {
        match self {
            Self::Value(value) => Reading::Value(f(value)),
            Self::Virtual(value) => Reading::Virtual(f(value)),
            Self::Absent => Reading::Absent,
            Self::Denied => Reading::Denied,
            Self::Rejected(why) => Reading::Rejected(why.clone()),
        }
    }

    /// Reads on from a genuine value; other readings stay, a virtual value of another type is absent.
    #[must_use]
    pub fn and_then<U>(self, f: impl FnOnce(T) -> Reading<U>) -> Reading<U> {
        match self {
            Self::Value(value) => f(value),
            Self::Virtual(_) | Self::Absent => Reading::Absent,
            Self::Denied => Reading::Denied,
            Self::Rejected(why) => Reading::Rejected(why),
        }
    }

    /// Says in words why there is no genuine value; `None` where there is one.
    #[must_use]
    pub fn why_not(&self) -> Option<String> {
        match self {
            Self::Value(_) => None,
            Self::Virtual(_) => Some("virtual".to_owned()),
            Self::Absent => Some("absent".to_owned()),
            Self::Denied => Some("denied".to_owned()),
            Self::Rejected(why) => Some(format!("rejected ({why})")),
        }
    }
}

impl<I: Clone> Gpu<I> {
    /// The id of the physical GPU: its own, or its parent's for a slice. A virtual GPU has none, for its id says
    /// nothing about the card.
    #[must_use]
    pub fn physical(&self) -> Option<I> {
        match &self.kind {
            GpuKind::Full => self.uuid.clone(),
            GpuKind::Mig { parent } => Some(parent.clone()),
            GpuKind::Vgpu => None,
        }
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0)[..8])
    }
}
