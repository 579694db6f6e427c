//! What the environment of a server hides from it (`identity.md` §3.5, rung 5).
//!
//! Ollama finds GPUs through libraries: CUDA shows those of NVIDIA, ROCm those of AMD, and Vulkan, where `OLLAMA_VULKAN`
//! switches it on, all of them. Each library has variables of its own, and a GPU that one does not show may be shown by
//! another: it is hidden only where every library hides it. So a server that was kept from a card of NVIDIA's and may
//! use Vulkan may use the card. The variables are those of which Ollama itself warns (`overrideWarnings` of its
//! `discover/runner.go`, in 0.24.0), and that of NVIDIA's container runtime.
//!
//! A variable counts only where it can mean one thing. What is unclear hides nothing.

use std::collections::BTreeSet;

use tropa_proto::evidence::Gpu;

use super::{all, place_of};

/// Filters of the libraries that serve one vendor. A later one of a vendor chooses among what an earlier one left.
const FILTERS: [(&str, &str); 5] = [
    ("CUDA_VISIBLE_DEVICES", "nvidia"),
    ("NVIDIA_VISIBLE_DEVICES", "nvidia"),
    ("ROCR_VISIBLE_DEVICES", "amd"),
    ("HIP_VISIBLE_DEVICES", "amd"),
    ("GPU_DEVICE_ORDINAL", "amd"),
];

/// The filter of Vulkan, whose numbers are those of its own list, with what is no GPU among them.
const VULKAN_FILTER: &str = "GGML_VK_VISIBLE_DEVICES";

/// What the libraries refuse as a device, and so hide all: Ollama's documentation recommends it to switch GPUs off.
const NO_DEVICE: &str = "-1";

/// Finds the GPUs that a server may use, by their places; `None` where no variable tells.
pub(super) fn usable(environment: &[String], gpus: &[Gpu<String>]) -> Option<BTreeSet<u16>> {
    let variables = Variables(environment);
    let mut usable = all(gpus);
    let mut told = false;
    for (name, vendor) in FILTERS {
        if let Some(shown) = shown(&variables, name, vendor, gpus) {
            usable.retain(|place| !is_of(gpus, *place, vendor) || shown.contains(place));
            told = true;
        }
    }
    if !variables.is_on("OLLAMA_VULKAN") {
        return told.then_some(usable);
    }
    // Without a word for Vulkan it shows everything again.
    let by_vulkan = shown_by_vulkan(&variables, gpus)?;
    // What no other library serves, such as a card of Intel's, is Vulkan's alone.
    let served = |place: &u16| FILTERS.iter().any(|(_, vendor)| is_of(gpus, *place, vendor));
    usable.retain(|place| served(place));
    usable.extend(by_vulkan);
    Some(usable)
}

/// The GPUs of a vendor that a variable leaves; `None` where it is not set, or its meaning is not certain. CUDA orders
/// GPUs by speed unless told otherwise, so with several of them a number needs `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
fn shown(variables: &Variables<'_>, name: &str, vendor: &str, gpus: &[Gpu<String>]) -> Option<BTreeSet<u16>> {
    let value = variables.get(name).filter(|value| *value != "all")?;
    if value == NO_DEVICE && name != "NVIDIA_VISIBLE_DEVICES" {
        return Some(BTreeSet::new());
    }
    let own: Vec<u16> = all(gpus).into_iter().filter(|place| is_of(gpus, *place, vendor)).collect();
    let by_address = vendor == "nvidia" && variables.get("CUDA_DEVICE_ORDER") == Some("PCI_BUS_ID");
    let numbers_count = own.len() == 1 || by_address;
    let places = value.split(',').map(str::trim).map(|part| match part.parse::<usize>() {
        // In a container the numbers of NVIDIA's runtime are those of the host.
        Ok(number) if numbers_count && name != "NVIDIA_VISIBLE_DEVICES" => own.get(number).copied(),
        Ok(_) => None,
        Err(_) => place_of(gpus, part).filter(|place| is_of(gpus, *place, vendor)),
    });
    places.collect()
}

/// The GPUs that Vulkan shows; `None` where that is not certain: with several GPUs, any of them.
fn shown_by_vulkan(variables: &Variables<'_>, gpus: &[Gpu<String>]) -> Option<BTreeSet<u16>> {
    let value = variables.get(VULKAN_FILTER)?;
    if value == NO_DEVICE {
        return Some(BTreeSet::new());
    }
    let numbers = value.split(',').all(|part| part.trim().parse::<usize>().is_ok());
    // A number may also be of the processor, which Vulkan can show as a device; the one GPU is then counted too much.
    (numbers && gpus.len() == 1).then(|| all(gpus))
}

fn is_of(gpus: &[Gpu<String>], place: u16, vendor: &str) -> bool {
    gpus.get(usize::from(place)).is_some_and(|gpu| &*gpu.vendor == vendor)
}

/// The variables of a process, `NAME=value`.
struct Variables<'a>(&'a [String]);

impl<'a> Variables<'a> {
    /// The value of one that is set and not empty: an empty one proves nothing.
    fn get(&self, name: &str) -> Option<&'a str> {
        let value = |entry: &'a String| Some(entry.strip_prefix(name)?.strip_prefix('=')?.trim());
        self.0.iter().find_map(value).filter(|value| !value.is_empty())
    }

    /// Whether Ollama takes a switch for on: whatever is not one of Go's words for false (`envconfig.Bool`).
    fn is_on(&self, name: &str) -> bool {
        let off = ["0", "f", "F", "false", "FALSE", "False"];
        self.get(name).map(|value| value.trim_matches(['"', '\''])).is_some_and(|value| !off.contains(&value))
    }
}

#[cfg(test)]
mod tests {
    use tropa_proto::{bounded::Text, evidence::GpuKind};

    use super::*;

    fn gpus(vendors: &[&str]) -> Vec<Gpu<String>> {
        let gpu = |(place, vendor): (usize, &&str)| Gpu {
            vendor: Text::cut(vendor),
            name: Text::cut(vendor),
            uuid: (*vendor != "intel").then(|| format!("gpu-00000000000000a{place}")),
            kind: GpuKind::Full,
            pci: Text::new(format!("0000:0{place}:00.0")).ok(),
            memory: 0,
            uma: false,
        };
        vendors.iter().enumerate().map(gpu).collect()
    }

    fn of(variables: &str, vendors: &[&str]) -> Option<Vec<u16>> {
        let environment: Vec<String> = variables.split_whitespace().map(str::to_owned).collect();
        usable(&environment, &gpus(vendors)).map(|places| places.into_iter().collect())
    }

    #[test]
    fn each_filter_of_ollamas_is_read_for_its_vendor() {
        let mixed = ["nvidia", "amd", "intel"];
        for (variables, places) in [
            ("CUDA_VISIBLE_DEVICES=0", vec![0, 1, 2]),
            ("CUDA_VISIBLE_DEVICES=-1", vec![1, 2]),
            ("ROCR_VISIBLE_DEVICES=-1", vec![0, 2]),
            ("ROCR_VISIBLE_DEVICES=GPU-00000000000000a1 CUDA_VISIBLE_DEVICES=-1", vec![1, 2]),
            ("HIP_VISIBLE_DEVICES=-1", vec![0, 2]),
            ("GPU_DEVICE_ORDINAL=-1", vec![0, 2]),
            ("GPU_DEVICE_ORDINAL=0 HIP_VISIBLE_DEVICES=0 ROCR_VISIBLE_DEVICES=0", vec![0, 1, 2]),
        ] {
            assert_eq!(of(variables, &mixed), Some(places), "{variables}");
        }
    }

    #[test]
    fn what_cannot_mean_one_thing_hides_nothing() {
        for variables in [
            "",
            "ROCR_VISIBLE_DEVICES=1",
            "GPU_DEVICE_ORDINAL=0",
            "HIP_VISIBLE_DEVICES=x",
            "ROCR_VISIBLE_DEVICES=",
            "ROCR_VISIBLE_DEVICES=0,-1",
            "GGML_VK_VISIBLE_DEVICES=0",
            "OLLAMA_VULKAN=1",
        ] {
            assert_eq!(of(variables, &["amd", "amd"]), None, "{variables}");
        }
        let both = "ROCR_VISIBLE_DEVICES=nonsense CUDA_VISIBLE_DEVICES=-1";
        assert_eq!(of(both, &["nvidia", "amd"]), Some(vec![1]), "one that is unclear spoils no other");
    }

    #[test]
    fn a_gpu_that_vulkan_may_show_is_not_hidden_by_another_library() {
        let two = ["nvidia", "nvidia"];
        let pinned = "CUDA_VISIBLE_DEVICES=GPU-00000000000000a1";
        assert_eq!(of(pinned, &two), Some(vec![1]));
        assert_eq!(of(&format!("{pinned} OLLAMA_VULKAN=1"), &two), None);
        assert_eq!(of(&format!("{pinned} OLLAMA_VULKAN=yes GGML_VK_VISIBLE_DEVICES=0"), &two), None);
        assert_eq!(of(&format!("{pinned} OLLAMA_VULKAN=1 GGML_VK_VISIBLE_DEVICES=-1"), &two), Some(vec![1]));
        assert_eq!(of(&format!("{pinned} OLLAMA_VULKAN=false"), &two), Some(vec![1]));
    }

    #[test]
    fn a_number_of_vulkans_counts_where_there_is_one_gpu() {
        let on = |filter: &str| format!("OLLAMA_VULKAN=1 GGML_VK_VISIBLE_DEVICES={filter}");
        assert_eq!(of(&on("0"), &["intel"]), Some(vec![0]));
        assert_eq!(of(&on("-1"), &["intel"]), Some(vec![]));
        assert_eq!(of(&on("-1"), &["nvidia", "intel"]), Some(vec![0]), "CUDA shows its own all the same");
        for unclear in ["1x", "0,-1", ""] {
            assert_eq!(of(&on(unclear), &["intel"]), None, "{unclear}");
        }
    }
}
