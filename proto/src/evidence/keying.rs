//! Keyed hashing: what turns canonical values into tags that only the members of one mesh can compare.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{
    Bundle, Core, Evidence, Facts, Gpu, GpuKind, Hypervisor, HypervisorClass, LaneClaim, Os, Reading,
    SaltName, Tag,
};
use crate::{
    bounded::{List, Text},
    canonical::SERIAL_PREFIX,
    evidence::{Attribution, Cpus},
    id::{hex, unhex},
};

/// What the HKDF key is bound to; raised when the construction of tags changes.
const INFO: &[u8] = b"tropa-hwid-v1";

/// What the name of a salt is made of.
const NAME: &[u8] = b"the name of this salt";

/// Our application id for systemd's construction, as `machine-id(5)` asks: the raw machine-id is never hashed
/// alone. Drawn once; changing it changes every machine-id tag.
const APPLICATION_ID: [u8; 16] =
    [0x6c, 0x1f, 0x0a, 0xd7, 0x52, 0x38, 0x4e, 0x6b, 0x9d, 0x04, 0xc5, 0x7e, 0x21, 0xb8, 0xf3, 0x90];

/// The mesh's salt for hardware ids. It belongs to the mesh, travels in the invite, is not the mesh secret and is
/// not rotated with it, else every identity breaks (`identity.md` §4).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Salt(pub [u8; 32]);

/// The key of all tags of one mesh.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Salt {
    /// The salt of a mesh without a secret, which never leaves loopback.
    pub const LOOPBACK: Self = Self(*b"tropa mesh on loopback, no salt.");
}

impl Key {
    /// Derives the key: HKDF-SHA-256 of the salt, which is two HMAC calls.
    #[must_use]
    pub fn new(salt: &Salt) -> Self {
        let pseudorandom = hmac(&[0; 32], &[&salt.0]);
        Self(hmac(&pseudorandom, &[INFO, &[1]]))
    }

    /// Names the salt, which evidence that is keyed with it carries.
    #[must_use]
    pub fn salt_name(&self) -> SaltName {
        let full = hmac(&self.0, &[NAME]);
        SaltName([full[0], full[1], full[2], full[3]])
    }

    /// Tags a canonical value; values of different kinds never get equal tags.
    #[must_use]
    pub fn tag(&self, kind: &str, value: &str) -> Tag {
        let full = hmac(&self.0, &[kind.as_bytes(), &[0], value.as_bytes()]);
        let mut tag = [0; 16];
        tag.copy_from_slice(&full[..16]);
        Tag(tag)
    }

    /// Tags a machine-id by way of systemd's application-specific id.
    fn machine_id(&self, value: &str) -> Tag {
        self.tag("machine_id", &application_specific(value))
    }

    /// Tags an SMBIOS UUID, or a board's serial number under its own kind.
    fn product(&self, value: &str) -> Tag {
        let kind = if value.starts_with(SERIAL_PREFIX) { "board_serial" } else { "product_uuid" };
        self.tag(kind, value)
    }

    fn set<const MAX: usize>(
        &self,
        kind: &str,
        values: &Reading<List<String, MAX>>,
    ) -> Reading<List<Tag, MAX>> {
        values.map(|list| sorted(list.map(|value| self.tag(kind, value))))
    }

    fn gpu(&self, gpu: &Gpu<String>) -> Gpu<Tag> {
        let kind = match &gpu.kind {
            GpuKind::Full => GpuKind::Full,
            GpuKind::Mig { parent } => GpuKind::Mig { parent: self.tag("gpu", parent) },
            GpuKind::Vgpu => GpuKind::Vgpu,
        };
        Gpu {
            vendor: gpu.vendor.clone(),
            name: gpu.name.clone(),
            uuid: gpu.uuid.as_deref().map(|uuid| self.tag("gpu", uuid)),
            kind,
            pci: gpu.pci.clone(),
            memory: gpu.memory,
            uma: gpu.uma,
        }
    }
}

impl Facts {
    /// What may be published: every identifier becomes its tag, everything else stays.
    #[must_use]
    pub fn keyed(&self, key: &Key) -> Evidence {
        Bundle {
            os: self.os,
            hypervisor: self.hypervisor,
            hypervisor_class: self.hypervisor_class,
            declared: self.declared,
            time_namespace: self.time_namespace,
            boot_id: self.boot_id.map(|value| key.tag("boot_id", value)),
            machine_id: self.machine_id.map(|value| key.machine_id(value)),
            product_uuid: self.product_uuid.map(|value| key.product(value)),
            platform_uuid: self.platform_uuid.map(|value| key.tag("platform_uuid", value)),
            machine_guid: self.machine_guid.map(|value| key.tag("machine_guid", value)),
            // The kind of the Windows around it: the two are compared with each other.
            wsl_host_guid: self.wsl_host_guid.map(|value| key.tag("machine_guid", value)),
            ppin: key.set("ppin", &self.ppin),
            macs: key.set("mac", &self.macs),
            nvme: key.set("nvme", &self.nvme),
            hosts_vms: self.hosts_vms.map(|list| sorted(list.map(|value| key.product(value)))),
            gpus: self.gpus.map(|gpu| key.gpu(gpu)),
            cpu_model: self.cpu_model.clone(),
            cpus: self.cpus.clone(),
            memory: self.memory,
            machine_rule: self.machine_rule.as_deref().map(|value| key.tag("rule", value)),
            lane: self.lane.clone(),
            anywhere: self.anywhere.clone(),
            salt: key.salt_name(),
        }
    }
}

impl<I> Bundle<I> {
    /// A bundle that says nothing but the operating system; the lane is everything that may be there.
    #[must_use]
    pub fn empty(os: Os) -> Self {
        let everything = LaneClaim {
            gpus: List::default(),
            dram: true,
            numa_nodes: List::default(),
            method: Attribution::Everything,
        };
        Self {
            os,
            hypervisor: Hypervisor::Unknown,
            hypervisor_class: HypervisorClass::Unknown,
            declared: false,
            time_namespace: false,
            boot_id: Reading::Absent,
            machine_id: Reading::Absent,
            product_uuid: Reading::Absent,
            platform_uuid: Reading::Absent,
            machine_guid: Reading::Absent,
            wsl_host_guid: Reading::Absent,
            ppin: Reading::Absent,
            macs: Reading::Absent,
            nvme: Reading::Absent,
            hosts_vms: Reading::Absent,
            gpus: List::default(),
            cpu_model: Reading::Absent,
            cpus: Cpus::default(),
            memory: 0,
            machine_rule: None,
            lane: everything.clone(),
            anywhere: everything,
            salt: SaltName::default(),
        }
    }
}

impl Evidence {
    /// What the core alone says: everything else is absent, and the lane is all that the core names.
    #[must_use]
    pub fn from_core(core: &Core) -> Self {
        let gpu = |id: &Tag| Gpu {
            vendor: Text::default(),
            name: Text::default(),
            uuid: Some(*id),
            kind: GpuKind::Full,
            pci: None,
            memory: 0,
            uma: false,
        };
        let (gpus, _) = List::cut(core.gpus.iter().map(gpu).collect());
        let (places, _) = List::cut((0..).take(core.gpus.len()).collect());
        let empty = Self::empty(core.os);
        let lane = LaneClaim { gpus: places, ..empty.lane };
        Self {
            hypervisor: core.hypervisor,
            declared: core.declared,
            time_namespace: core.time_namespace,
            boot_id: core.boot_id.clone(),
            machine_id: core.machine_id.clone(),
            product_uuid: core.product_uuid.clone(),
            gpus,
            cpus: Cpus { host: core.host_cpus, ..Cpus::default() },
            memory: core.memory,
            anywhere: lane.clone(),
            lane,
            salt: core.salt,
            ..empty
        }
    }
}

impl Core {
    /// The part of the evidence that gossip carries, with the boot epoch as last sampled. GPUs are the physical
    /// ones: a MIG slice counts as the GPU that it is a part of, a virtual GPU says nothing.
    #[must_use]
    pub fn new(evidence: &Evidence, epoch_ns: Reading<i64>) -> Self {
        let mut physical: Vec<Tag> = Vec::new();
        for id in evidence.gpus.iter().filter_map(Gpu::physical) {
            if !physical.contains(&id) {
                physical.push(id);
            }
        }
        let (gpus, _) = List::cut(physical);
        Self {
            os: evidence.os,
            hypervisor: evidence.hypervisor,
            declared: evidence.declared,
            time_namespace: evidence.time_namespace,
            boot_id: evidence.boot_id.clone(),
            epoch_ns,
            machine_id: evidence.machine_id.clone(),
            product_uuid: evidence.product_uuid.clone(),
            host_cpus: evidence.cpus.host,
            memory: evidence.memory,
            gpus,
            salt: evidence.salt,
        }
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt")
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// systemd's `sd_id128_get_machine_app_specific`: HMAC-SHA-256 of the application id under the machine-id, cut to
/// 16 bytes and marked as a random UUID.
fn application_specific(machine_id: &str) -> String {
    let full = match unhex::<16>(machine_id) {
        Some(raw) => hmac(&raw, &[&APPLICATION_ID]),
        None => hmac(machine_id.as_bytes(), &[&APPLICATION_ID]),
    };
    let mut id = [0; 16];
    id.copy_from_slice(&full[..16]);
    id[6] = (id[6] & 0x0f) | 0x40;
    id[8] = (id[8] & 0x3f) | 0x80;
    hex(&id)
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn sorted<const MAX: usize>(list: List<Tag, MAX>) -> List<Tag, MAX> {
    let mut tags = list.into_vec();
    tags.sort_unstable();
    tags.dedup();
    List::cut(tags).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_hkdf_sha256() {
        // RFC 5869 with an empty salt, checked against Python's hmac.
        assert_eq!(
            hex(&Key::new(&Salt([7; 32])).0),
            "5b939d36e39b1a63b65532b61c49afd569f8ba90502151c87033cecef292e2d3"
        );
    }

    #[test]
    fn one_value_under_two_salts_has_two_tags() {
        let (one, other) = (Key::new(&Salt([1; 32])), Key::new(&Salt([2; 32])));
        assert_ne!(one.tag("boot_id", "x"), other.tag("boot_id", "x"));
        assert_ne!(one.tag("boot_id", "x"), one.tag("mac", "x"));
        assert_ne!(one.salt_name(), other.salt_name());
    }

    #[test]
    fn a_machine_id_goes_through_the_application_id_first() {
        let id = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1";
        assert_eq!(application_specific(id), "98112185172c4a849eb548b3cdac2209");
    }

    #[test]
    fn a_wsl_guest_and_its_windows_show_one_tag() {
        let guid = Reading::Value("60000000-0000-4000-8000-000000000001".to_owned());
        let windows = Facts { machine_guid: guid.clone(), ..Facts::empty(Os::Windows) };
        let guest = Facts { wsl_host_guid: guid, ..Facts::empty(Os::Linux) };
        let key = Key::new(&Salt::LOOPBACK);
        assert_eq!(windows.keyed(&key).machine_guid, guest.keyed(&key).wsl_host_guid);
    }

    #[test]
    fn the_core_survives_the_way_through_the_whole_bundle() {
        let facts = Facts {
            boot_id: Reading::Value("b".to_owned()),
            machine_id: Reading::Denied,
            memory: 7,
            ..Facts::empty(Os::Linux)
        };
        let core = Core::new(&facts.keyed(&Key::new(&Salt::LOOPBACK)), Reading::Value(5));
        assert_eq!(Core::new(&Evidence::from_core(&core), Reading::Value(5)), core);
    }
}
