//! The operator's rule `ignore = {type, tag prefix}`: an identifier that is known to mislead counts nowhere.

use std::str::FromStr;

use super::{Evidence, Gpu, GpuKind, Reading, Tag};
use crate::{
    bounded::{List, Text},
    id::hex,
};

/// The kinds of identifiers that a rule can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IdKind {
    /// `boot-id`.
    BootId,
    /// `machine-id`.
    MachineId,
    /// `smbios`: SMBIOS UUIDs and board serials, of guests too.
    Smbios,
    /// `platform-uuid`.
    PlatformUuid,
    /// `machine-guid`: of the Windows around a WSL too.
    MachineGuid,
    /// `ppin`.
    Ppin,
    /// `mac`.
    Mac,
    /// `nvme`.
    Nvme,
    /// `gpu`.
    Gpu,
}

/// One rule: identifiers of this kind whose tag starts so are not there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ignore {
    kind: IdKind,
    prefix: String,
}

/// Says that a text is no rule `ignore`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not `type:tag`, with one of boot-id, machine-id, smbios, platform-uuid, machine-guid, ppin, mac, \
         nvme, gpu and at least four hexadecimal digits"
)]
pub struct NotAnIgnore(String);

/// Digits of a tag that a rule must give: fewer would hit other identifiers by chance.
const MIN_PREFIX: usize = 4;

impl FromStr for Ignore {
    type Err = NotAnIgnore;
    fn from_str(text: &str) -> Result<Self, NotAnIgnore> {
        let wrong = || NotAnIgnore(text.chars().take(64).collect());
        let (kind, prefix) = text.split_once(':').ok_or_else(wrong)?;
        let kind = match kind {
            "boot-id" => IdKind::BootId,
            "machine-id" => IdKind::MachineId,
            "smbios" => IdKind::Smbios,
            "platform-uuid" => IdKind::PlatformUuid,
            "machine-guid" => IdKind::MachineGuid,
            "ppin" => IdKind::Ppin,
            "mac" => IdKind::Mac,
            "nvme" => IdKind::Nvme,
            "gpu" => IdKind::Gpu,
            _ => return Err(wrong()),
        };
        let prefix = prefix.to_ascii_lowercase();
        let digits =
            (MIN_PREFIX..=32).contains(&prefix.len()) && prefix.bytes().all(|byte| byte.is_ascii_hexdigit());
        if digits { Ok(Self { kind, prefix }) } else { Err(wrong()) }
    }
}

impl Evidence {
    /// The same evidence without what the rules name. An ignored GPU keeps its place and loses its id.
    #[must_use]
    pub fn ignoring(&self, rules: &[Ignore]) -> Self {
        let ignored = |kind: IdKind, tag: &Tag| {
            rules.iter().any(|rule| rule.kind == kind && hex(&tag.0).starts_with(&rule.prefix))
        };
        let one = |kind: IdKind, reading: &Reading<Tag>| match reading.value() {
            Some(tag) if ignored(kind, tag) => Reading::Rejected(Text::cut("ignored by a rule")),
            Some(_) | None => reading.clone(),
        };
        let gpu = |gpu: &Gpu<Tag>| {
            let kind = match &gpu.kind {
                GpuKind::Mig { parent } if ignored(IdKind::Gpu, parent) => GpuKind::Full,
                kind @ (GpuKind::Full | GpuKind::Mig { .. } | GpuKind::Vgpu) => kind.clone(),
            };
            Gpu { uuid: gpu.uuid.filter(|id| !ignored(IdKind::Gpu, id)), kind, ..gpu.clone() }
        };
        Self {
            boot_id: one(IdKind::BootId, &self.boot_id),
            machine_id: one(IdKind::MachineId, &self.machine_id),
            product_uuid: one(IdKind::Smbios, &self.product_uuid),
            platform_uuid: one(IdKind::PlatformUuid, &self.platform_uuid),
            machine_guid: one(IdKind::MachineGuid, &self.machine_guid),
            wsl_host_guid: one(IdKind::MachineGuid, &self.wsl_host_guid),
            ppin: without(&self.ppin, |tag| ignored(IdKind::Ppin, tag)),
            macs: without(&self.macs, |tag| ignored(IdKind::Mac, tag)),
            nvme: without(&self.nvme, |tag| ignored(IdKind::Nvme, tag)),
            hosts_vms: without(&self.hosts_vms, |tag| ignored(IdKind::Smbios, tag)),
            gpus: self.gpus.map(gpu),
            ..self.clone()
        }
    }
}

fn without<const MAX: usize>(
    set: &Reading<List<Tag, MAX>>,
    ignored: impl Fn(&Tag) -> bool,
) -> Reading<List<Tag, MAX>> {
    set.map(|list| List::cut(list.iter().copied().filter(|tag| !ignored(tag)).collect()).0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::Os;

    #[test]
    fn only_what_a_rule_names_is_ignored() {
        let mut evidence = Evidence::empty(Os::Linux);
        evidence.machine_id = Reading::Value(Tag([0xab; 16]));
        evidence.boot_id = Reading::Value(Tag([0xab; 16]));
        evidence.macs = Reading::Value(List::cut(vec![Tag([0x11; 16]), Tag([0x22; 16])]).0);
        let rules = ["machine-id:ABAB".parse().unwrap(), "mac:2222".parse().unwrap()];
        let rest = evidence.ignoring(&rules);
        assert!(matches!(rest.machine_id, Reading::Rejected(_)));
        assert_eq!(rest.boot_id, evidence.boot_id);
        assert_eq!(rest.macs.value().unwrap().len(), 1);
    }

    #[test]
    fn a_rule_without_a_kind_or_with_too_few_digits_is_refused() {
        for text in ["", "mac", "mac:", "mac:abc", "mac:xyzt", "serial:abcd", "mac:abcdé"] {
            assert!(text.parse::<Ignore>().is_err(), "{text}");
        }
    }
}
