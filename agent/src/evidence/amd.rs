//! AMD and Intel GPUs, from the kernel's DRM tree.
//!
//! AMD's `unique_id` is a number in the silicon of some cards; APUs have none. Intel's is `device_uid`, of the driver
//! `xe` from Linux 7.4 on and for root only; it has been read on fixtures and not on a card. A GPU without such a
//! number is separated from others of its kernel by its PCI address and links nothing.
//!
//! Where it is not known whether a GPU has memory of its own, it shares the host's: that counts less hardware.

use tropa_proto::{
    bounded::Text,
    canonical,
    evidence::{Gpu, GpuKind},
};

use super::{files::Root, nvidia::pci_address};

const DRM: &str = "sys/class/drm";
const KFD: &str = "sys/class/kfd/kfd/topology/nodes";

/// Cards of one host that are looked at: connectors (`card0-HDMI-A-1`) are no cards.
const MAX_CARDS: usize = 64;

/// Reads the GPUs of AMD and Intel.
#[must_use]
pub fn gpus(root: &Root) -> Vec<Gpu<String>> {
    cards(root).iter().filter_map(|card| gpu(root, card)).collect()
}

/// Memory in use of the card at a PCI address, in bytes; AMD's driver alone tells.
#[must_use]
pub fn used_memory(root: &Root, pci: &str) -> Option<u64> {
    let is_there = |card: &String| address(root, card).as_deref() == Some(pci);
    let card = cards(root).into_iter().find(is_there)?;
    root.line(&format!("{DRM}/{card}/device/mem_info_vram_used"))?.parse().ok()
}

fn cards(root: &Root) -> Vec<String> {
    let names = root.names(DRM).into_iter();
    let cards =
        names.filter(|name| name.strip_prefix("card").is_some_and(|number| number.parse::<u16>().is_ok()));
    cards.take(MAX_CARDS).collect()
}

fn address(root: &Root, card: &str) -> Option<Text<16>> {
    let uevent = root.line(&format!("{DRM}/{card}/device/uevent"))?;
    pci_address(uevent.lines().find_map(|line| line.strip_prefix("PCI_SLOT_NAME="))?)
}

fn gpu(root: &Root, card: &str) -> Option<Gpu<String>> {
    let read = |what: &str| root.line(&format!("{DRM}/{card}/device/{what}"));
    let number = |what: &str| read(what).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let vendor = match read("vendor")?.as_str() {
        "0x1002" => "amd",
        "0x8086" => "intel",
        _ => return None,
    };
    let pci = address(root, card);
    let uuid = match vendor {
        "amd" => read("unique_id"),
        // What is no number is something else under this name.
        _ => read("device_uid").filter(|id| is_number(id)),
    };
    let uuid = uuid.and_then(|id| canonical::gpu_id(&id).value().cloned());
    let memory = number("mem_info_vram_total");
    let own_memory = match (vendor, is_apu(root, pci.as_deref())) {
        (_, Some(apu)) => !apu,
        ("amd", None) => uuid.is_some(),
        // Intel's integrated GPU sits at one address since two decades; its cards do not.
        _ => pci.as_deref().is_some_and(|pci| pci != "0000:00:02.0") && number("lmem_total_bytes") > 0,
    };
    let model = read("product_name").filter(|name| !name.is_empty()).or_else(|| read("device"));
    let name = match model {
        Some(model) => format!("{vendor} {model}"),
        None => vendor.to_owned(),
    };
    Some(Gpu {
        vendor: Text::cut(vendor),
        name: Text::cut(&name),
        // ROCm shows the same number as `GPU-<id>`, without a prefix in sysfs.
        uuid,
        kind: GpuKind::Full,
        pci,
        memory,
        uma: !own_memory,
    })
}

/// Says whether the compute topology shows a GPU and processors as one node; `None` where it shows neither.
fn is_apu(root: &Root, pci: Option<&str>) -> Option<bool> {
    let wanted = location(pci?)?;
    root.names(KFD).into_iter().take(MAX_CARDS * 2).find_map(|node| {
        let properties = root.line(&format!("{KFD}/{node}/properties"))?;
        let property = |key: &str| {
            properties
                .lines()
                .find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok())
                .unwrap_or(0)
        };
        let is_it = property("simd_count ") > 0
            && property("location_id ") == wanted.1
            && property("domain ") == wanted.0;
        is_it.then(|| property("cpu_cores_count ") > 0)
    })
}

fn is_number(text: &str) -> bool {
    let digits = text.trim_start_matches("0x");
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The domain and KFD's `location_id` of a PCI address: bus, device and function in one number.
fn location(pci: &str) -> Option<(u64, u64)> {
    let mut parts = pci.splitn(3, ':');
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
    let (domain, bus) = (hexadecimal(parts.next()?)?, hexadecimal(parts.next()?)?);
    let (device, function) = parts.next()?.split_once('.')?;
    Some((domain, bus << 8 | hexadecimal(device)? << 3 | hexadecimal(function)?))
}

#[cfg(test)]
mod tests {
    use super::{super::files::tests::tree, *};

    fn only(files: &[(&str, &str)]) -> Gpu<String> {
        let (_directory, root) = tree(files);
        let mut gpus = gpus(&root);
        assert_eq!(gpus.len(), 1);
        gpus.remove(0)
    }

    const AMD: (&str, &str) = ("sys/class/drm/card1/device/vendor", "0x1002\n");
    const SLOT: (&str, &str) =
        ("sys/class/drm/card1/device/uevent", "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:03:00.0\n");

    #[test]
    fn a_card_with_a_unique_id_links_and_has_its_own_memory() {
        let gpu = only(&[
            AMD,
            SLOT,
            ("sys/class/drm/card1/device/unique_id", "7A13DC5F4C0BF3E2\n"),
            ("sys/class/drm/card1/device/mem_info_vram_total", "17163091968\n"),
            ("sys/class/drm/card1-HDMI-A-1/status", "connected\n"),
        ]);
        assert_eq!(gpu.uuid.as_deref(), Some("7a13dc5f4c0bf3e2"));
        assert_eq!((gpu.pci.as_deref(), gpu.memory, gpu.uma), (Some("0000:03:00.0"), 17_163_091_968, false));
    }

    #[test]
    fn an_apu_shares_the_hosts_memory() {
        assert!(only(&[AMD, SLOT]).uma, "nothing known counts as shared");
        let node =
            |cores: &str| format!("cpu_cores_count {cores}\nsimd_count 24\nlocation_id 768\ndomain 0\n");
        let path = "sys/class/kfd/kfd/topology/nodes/1/properties";
        assert!(only(&[AMD, SLOT, (path, &node("16"))]).uma);
        let card = only(&[AMD, SLOT, (path, &node("0"))]);
        assert!(!card.uma);
        assert_eq!(card.uuid, None, "no unique id: the address separates, nothing links");
        assert_eq!(only(&[AMD, ("sys/class/drm/card1/device/unique_id", "0\n")]).uuid, None);
    }

    #[test]
    fn an_integrated_gpu_of_intel_shares_memory_and_other_vendors_are_left_to_their_readers() {
        let gpu = only(&[
            ("sys/class/drm/card0/device/vendor", "0x8086\n"),
            ("sys/class/drm/card0/device/uevent", "PCI_SLOT_NAME=0000:00:02.0\n"),
            ("sys/class/drm/card2/device/vendor", "0x10de\n"),
            ("sys/class/drm/card3/device/vendor", "0x1af4\n"),
            ("sys/class/drm/renderD128/device/vendor", "0x8086\n"),
        ]);
        assert!(gpu.uma && gpu.uuid.is_none());
        assert_eq!(&*gpu.vendor, "intel");
    }

    #[test]
    fn a_card_of_intel_links_by_its_number_where_the_kernel_shows_one() {
        let card = |uid: &str| {
            only(&[
                ("sys/class/drm/card0/device/vendor", "0x8086\n"),
                ("sys/class/drm/card0/device/uevent", "PCI_SLOT_NAME=0000:03:00.0\n"),
                ("sys/class/drm/card0/device/device_uid", uid),
            ])
        };
        assert_eq!(card("0x7A13DC5F4C0BF3E2\n").uuid.as_deref(), Some("0x7a13dc5f4c0bf3e2"));
        for nothing in ["", "0x0\n", "0000000000000000\n", "Not Present\n"] {
            assert_eq!(card(nothing).uuid, None, "{nothing}");
        }
    }
}
