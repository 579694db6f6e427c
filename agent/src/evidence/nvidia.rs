//! NVIDIA GPUs: by NVML where its library is there, else by what the driver shows in `/proc`.
//!
//! The uuid that NVML gives (`GPU-…`) is the same on the host, in a container, in WSL2 and in a guest with
//! passthrough, so it links and separates machines. A MIG slice is a device of its own and names its parent. A
//! virtual GPU's uuid says nothing about the card.
//!
//! The library is loaded when it is asked for and its absence is no error: most machines have none.

use tropa_proto::{
    bounded::Text,
    canonical,
    evidence::{Gpu, GpuKind},
};

use super::{cpus, files::Root};

/// GPUs of one host: as many as a bundle carries.
const MAX_CARDS: u32 = 64;

/// Slices of one GPU: NVIDIA makes at most seven.
const MAX_SLICES: u32 = 16;

/// Where Windows puts the library into WSL2.
const WSL_LIBRARY: &str = "/usr/lib/wsl/lib/libnvidia-ml.so.1";

/// One NVIDIA GPU as its library shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Card {
    /// `GPU-…`.
    pub uuid: String,
    /// The name for people.
    pub name: String,
    /// The PCI address as NVML writes it, `00000000:01:00.0`.
    pub pci: String,
    /// Memory in bytes; `None` where the GPU has none of its own.
    pub memory: Option<u64>,
    /// Memory in use by whomever, in bytes, where it is known.
    pub used: Option<u64>,
    /// A virtual GPU inside a guest.
    pub is_virtual: bool,
    /// The slices, where MIG is on.
    pub slices: Vec<Slice>,
    /// Who computes on it.
    pub processes: Vec<Process>,
}

/// A MIG slice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// `MIG-…`.
    pub uuid: String,
    /// Its name for people.
    pub name: String,
    /// Memory in bytes; `None` where it is not known.
    pub memory: Option<u64>,
    /// Memory in use by whomever, in bytes, where it is known.
    pub used: Option<u64>,
    /// Who computes on it.
    pub processes: Vec<Process>,
}

/// A process that computes on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Its id, as the driver sees it: inside a container it may be the host's.
    pub pid: u32,
    /// GPU memory in bytes; `None` under Windows' display driver model.
    pub memory: Option<u64>,
}

/// Where cards come from: NVML, or a test's own.
pub trait Library {
    /// Lists the cards.
    ///
    /// # Errors
    /// When there is no library, no driver, or no answer; says why.
    fn cards(&self) -> Result<Vec<Card>, String>;
}

/// NVIDIA's own library, loaded at every call and let go afterwards.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nvml;

/// A host without the library.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoLibrary;

impl Library for NoLibrary {
    fn cards(&self) -> Result<Vec<Card>, String> {
        Err("not asked".to_owned())
    }
}

impl Library for Nvml {
    fn cards(&self) -> Result<Vec<Card>, String> {
        // In WSL2 only Windows' own copy works; elsewhere the file is not there.
        let wsl = nvml_wrapper::Nvml::builder().lib_path(WSL_LIBRARY.as_ref()).init();
        let nvml = wsl.or_else(|_| nvml_wrapper::Nvml::init()).map_err(|error| error.to_string())?;
        let count = nvml.device_count().map_err(|error| error.to_string())?.min(MAX_CARDS);
        let devices = (0..count).filter_map(|index| match nvml.device_by_index(index) {
            Ok(device) => Some(device),
            Err(error) => {
                tracing::debug!(index, %error, "a GPU does not answer");
                None
            }
        });
        Ok(devices.map(|device| card(&device)).collect())
    }
}

/// Turns cards into entries of the bundle: a card with slices is its slices, any other is itself.
#[must_use]
pub fn gpus(cards: &[Card]) -> Vec<Gpu<String>> {
    let mut gpus = Vec::new();
    for card in cards {
        let whole = Gpu {
            vendor: Text::cut("nvidia"),
            name: Text::cut(&card.name),
            uuid: gpu_id(&card.uuid),
            kind: if card.is_virtual { GpuKind::Vgpu } else { GpuKind::Full },
            pci: pci_address(&card.pci),
            memory: card.memory.unwrap_or(0),
            uma: card.memory.is_none() || shares_memory(&card.name),
        };
        match &whole.uuid {
            Some(parent) if !card.slices.is_empty() => {
                gpus.extend(card.slices.iter().map(|slice| Gpu {
                    name: Text::cut(&slice.name),
                    uuid: gpu_id(&slice.uuid),
                    kind: GpuKind::Mig { parent: parent.clone() },
                    memory: slice.memory.unwrap_or(0),
                    ..whole.clone()
                }));
            }
            // Slices of a card without an id cannot name their parent: the card stands for them all.
            Some(_) | None => gpus.push(whole),
        }
    }
    gpus
}

/// Memory in use of one entry of the bundle, in bytes.
#[must_use]
pub fn used_memory(cards: &[Card], gpu: &Gpu<String>) -> Option<u64> {
    let is_it = |uuid: &str| gpu.uuid.is_some() && gpu_id(uuid) == gpu.uuid;
    cards.iter().find_map(|card| {
        if is_it(&card.uuid) || (gpu.uuid.is_none() && pci_address(&card.pci) == gpu.pci) {
            return card.used;
        }
        card.slices.iter().find(|slice| is_it(&slice.uuid))?.used
    })
}

/// Reads the cards from `/proc/driver/nvidia/gpus/*/information`, which the driver shows without its library.
#[must_use]
pub fn from_proc(root: &Root) -> Vec<Card> {
    const GPUS: &str = "proc/driver/nvidia/gpus";
    let addresses = root.names(GPUS).into_iter().take(MAX_CARDS as usize);
    let cards = addresses.filter_map(|address| {
        let text = root.line(&format!("{GPUS}/{address}/information"))?;
        let field = |key| cpus::field(&text, key).unwrap_or_default().to_owned();
        let pci = Some(field("Bus Location")).filter(|found| !found.is_empty()).unwrap_or(address);
        // Its memory is not shown; 0 is "not known", while `None` would mean that it has none of its own.
        Some(Card { uuid: field("GPU UUID"), name: field("Model"), pci, memory: Some(0), ..Card::default() })
    });
    cards.collect()
}

/// Writes a PCI address as the kernel does, `0000:01:00.0`; NVML writes eight digits of domain.
#[must_use]
pub fn pci_address(text: &str) -> Option<Text<16>> {
    let text = text.trim().to_ascii_lowercase();
    let mut parts = text.rsplitn(3, ':');
    let (slot, bus) = (parts.next()?, parts.next()?);
    let domain = u32::from_str_radix(parts.next().unwrap_or("0"), 16).ok()?;
    let (device, function) = slot.split_once('.')?;
    let number = |digits: &str| u8::from_str_radix(digits, 16).ok();
    let (bus, device, function) = (number(bus)?, number(device)?, number(function)?);
    Text::new(format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}")).ok()
}

/// A driver that has not started its GPU shows question marks instead of an id.
fn gpu_id(text: &str) -> Option<String> {
    if text.contains('?') { None } else { canonical::gpu_id(text).value().cloned() }
}

/// Boards whose GPU works in the memory of the processors, by name: NVML has no flag for it.
fn shares_memory(name: &str) -> bool {
    ["GB10", "Orin", "Xavier", "Thor", "Tegra"].iter().any(|board| name.contains(board))
}

fn card(device: &nvml_wrapper::Device<'_>) -> Card {
    let slices = (0..device.mig_device_count().unwrap_or(0).min(MAX_SLICES))
        .filter_map(|index| device.mig_device_by_index(index).ok())
        .map(|slice| Slice {
            uuid: slice.uuid().unwrap_or_default(),
            name: slice.name().unwrap_or_default(),
            memory: slice.memory_info().ok().map(|memory| memory.total),
            used: slice.memory_info().ok().map(|memory| memory.used),
            processes: processes(&slice),
        })
        .collect();
    Card {
        uuid: device.uuid().unwrap_or_default(),
        name: device.name().unwrap_or_default(),
        pci: device.pci_info().map(|pci| pci.bus_id).unwrap_or_default(),
        memory: device.memory_info().ok().map(|memory| memory.total),
        used: device.memory_info().ok().map(|memory| memory.used),
        is_virtual: is_virtual(device),
        slices,
        processes: processes(device),
    }
}

/// A virtual GPU inside a guest; the library tells on Linux only.
#[cfg(target_os = "linux")]
fn is_virtual(device: &nvml_wrapper::Device<'_>) -> bool {
    use nvml_wrapper::enum_wrappers::device::GpuVirtualizationMode;
    matches!(device.virtualization_mode(), Ok(GpuVirtualizationMode::Vgpu))
}

#[cfg(not(target_os = "linux"))]
fn is_virtual(_: &nvml_wrapper::Device<'_>) -> bool {
    false
}

fn processes(device: &nvml_wrapper::Device<'_>) -> Vec<Process> {
    use nvml_wrapper::enums::device::UsedGpuMemory;
    let processes = device.running_compute_processes().unwrap_or_default();
    processes
        .into_iter()
        .map(|process| Process {
            pid: process.pid,
            memory: match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            },
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{super::files::tests::tree, *};

    fn plain() -> Card {
        Card {
            uuid: "GPU-4A1C0000-0000-4000-8000-000000000001".into(),
            name: "NVIDIA GeForce RTX 4090".into(),
            pci: "00000000:01:00.0".into(),
            memory: Some(24 << 30),
            ..Card::default()
        }
    }

    #[test]
    fn a_whole_card_is_itself_and_shares_no_memory() {
        let [gpu] = &gpus(&[plain()])[..] else { panic!("one GPU") };
        assert_eq!(gpu.uuid.as_deref(), Some("gpu-4a1c0000-0000-4000-8000-000000000001"));
        assert_eq!((gpu.pci.as_deref(), gpu.memory, gpu.uma), (Some("0000:01:00.0"), 24 << 30, false));
    }

    #[test]
    fn a_card_with_slices_is_its_slices_and_each_names_its_parent() {
        let slice = |uuid: &str| Slice { uuid: uuid.into(), name: "MIG 3g.40gb".into(), ..Slice::default() };
        let card = Card { slices: vec![slice("MIG-1111"), slice("MIG-2222")], ..plain() };
        let gpus = gpus(&[card]);
        assert_eq!(gpus.len(), 2);
        let parent = "gpu-4a1c0000-0000-4000-8000-000000000001".to_owned();
        assert!(gpus.iter().all(|gpu| gpu.kind == GpuKind::Mig { parent: parent.clone() }));
        assert_eq!(gpus[1].uuid.as_deref(), Some("mig-2222"));
    }

    #[test]
    fn a_virtual_gpu_says_so_and_a_card_without_own_memory_shares_the_hosts() {
        let gpu = |card| gpus(&[card]).remove(0);
        assert_eq!(gpu(Card { is_virtual: true, ..plain() }).kind, GpuKind::Vgpu);
        assert!(gpu(Card { memory: None, ..plain() }).uma);
        assert!(gpu(Card { name: "NVIDIA GB10".into(), ..plain() }).uma);
    }

    #[test]
    fn the_drivers_files_stand_in_where_the_library_is_missing() {
        let (_directory, root) = tree(&[
            (
                "proc/driver/nvidia/gpus/0000:01:00.0/information",
                "Model: \t\t NVIDIA RTX A2000\nIRQ:   \t\t 60\nGPU UUID: \t GPU-0b7c0000-0000-4000-8000-00000000000f\n\
                 Bus Location: \t 0000:01:00.0\n",
            ),
            (
                "proc/driver/nvidia/gpus/0000:02:00.0/information",
                "Model: X\nGPU UUID: GPU-????????-????-????-????\n",
            ),
            ("proc/driver/nvidia/gpus/0000:03:00.0/information", ""),
        ]);
        let found = gpus(&from_proc(&root));
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].uuid.as_deref(), Some("gpu-0b7c0000-0000-4000-8000-00000000000f"));
        assert_eq!(&*found[0].name, "NVIDIA RTX A2000");
        assert_eq!((&found[1].uuid, found[1].pci.as_deref()), (&None, Some("0000:02:00.0")));
        assert_eq!(found[2].uuid, None);
        assert!(found.iter().all(|gpu| !gpu.uma), "not known is not shared");
    }

    #[test]
    fn addresses_are_written_as_the_kernel_does() {
        assert_eq!(pci_address("00000000:0A:1F.1").as_deref(), Some("0000:0a:1f.1"));
        assert_eq!(pci_address("0a:00.0").as_deref(), Some("0000:0a:00.0"));
        assert_eq!(pci_address("10001:00:00.0").as_deref(), Some("10001:00:00.0"));
        for junk in ["", "x", "1.0", "0000:zz:00.0", "0000:01:00", "a:b:c:d.e:f"] {
            assert_eq!(pci_address(junk), None, "{junk}");
        }
    }

    #[test]
    fn a_machine_without_the_library_gets_a_reason_and_no_panic() {
        // On a machine with NVIDIA's driver this lists its cards instead.
        match Nvml.cards() {
            Ok(cards) => assert!(gpus(&cards).iter().all(|gpu| &*gpu.vendor == "nvidia")),
            Err(why) => assert!(!why.is_empty()),
        }
    }
}
