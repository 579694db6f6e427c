//! Is this machine one that is known already? Matches what is seen now to a machine's record.
//!
//! A machine's uid is random and kept by its agents, not derived from any serial number, so that board swaps and
//! reinstalled systems do not change it. What ties a machine to its record are anchors: values by type, each worth
//! something. A copy that appears while the original is alive is a clone and gets a uid of its own
//! (`identity.md` §11).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::fuse::Code;

/// Types of anchors, the hardware ones first. Their names stand in the records on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Anchor {
    /// Processor serials.
    Ppin,
    /// SMBIOS UUID or board serial.
    ProductUuid,
    /// macOS IOPlatformUUID.
    PlatformUuid,
    /// Physical GPUs.
    Gpu,
    /// Permanent MAC addresses.
    Mac,
    /// NVMe serials.
    Nvme,
    /// The systemd machine-id.
    MachineId,
    /// Windows MachineGuid.
    MachineGuid,
    /// The agent's public key.
    AgentKey,
}

/// The anchors of a machine or of a record, and the boots it was seen in. `I` is a tag, or any text in tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchors<I> {
    /// Values by type; an empty set says nothing.
    pub values: BTreeMap<Anchor, BTreeSet<I>>,
    /// Boot ids.
    pub boots: BTreeSet<I>,
}

/// What a match came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It is the machine of the record.
    Rebind,
    /// It is another machine.
    New,
    /// It is a copy of the machine of the record: a fresh uid.
    Clone,
}

/// The verdict about one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// What it came to.
    pub outcome: Outcome,
    /// What the user is told.
    pub warning: Option<Code>,
    /// The sum of the anchors, by which the best of several records is chosen.
    pub sum: i32,
}

/// The sum from which a record matches. Judgement (`identity.md` §18).
const MATCHES: i32 = 3;

impl Anchor {
    /// What a common value is worth, and what it costs that there is none. Judgement (`identity.md` §18).
    fn weights(self) -> (i32, i32) {
        match self {
            Self::Ppin => (5, -4),
            Self::ProductUuid | Self::PlatformUuid => (4, -4),
            Self::Gpu | Self::AgentKey => (3, 0),
            Self::Mac | Self::Nvme | Self::MachineId | Self::MachineGuid => (2, 0),
        }
    }

    /// Belongs to the hardware: a changed disk or a reinstalled system leaves it as it is.
    #[must_use]
    pub fn is_hardware(self) -> bool {
        match self {
            Self::Ppin | Self::ProductUuid | Self::PlatformUuid | Self::Gpu | Self::Mac => true,
            Self::Nvme | Self::MachineId | Self::MachineGuid | Self::AgentKey => false,
        }
    }
}

impl<I: Ord> Anchors<I> {
    /// Matches what is seen now (`self`) to a record. `record_alive`: another machine that is present holds it.
    #[must_use]
    pub fn matches(&self, record: &Self, record_alive: bool) -> Match {
        let mut sum = 0;
        let (mut hardware, mut mismatch, mut software) = (false, false, false);
        for (anchor, seen) in &self.values {
            let Some(known) = record.values.get(anchor).filter(|known| !known.is_empty() && !seen.is_empty())
            else {
                continue;
            };
            let common = !seen.is_disjoint(known);
            let (gain, cost) = anchor.weights();
            sum += if common { gain } else { cost };
            hardware |= common && anchor.is_hardware();
            mismatch |= !common && anchor.is_hardware();
            software |= common && !anchor.is_hardware();
        }
        let boots_differ = self.boots.is_disjoint(&record.boots);
        let (outcome, warning) = if sum >= MATCHES && record_alive && boots_differ {
            (Outcome::Clone, Some(Code::ClonedImage))
        } else if sum >= MATCHES && (hardware || !mismatch) {
            (Outcome::Rebind, mismatch.then_some(Code::HardwareChanged))
        } else if software && record_alive {
            (Outcome::New, Some(Code::ClonedImage))
        } else if software {
            (Outcome::New, Some(Code::OsMovedToOtherHardware))
        } else {
            (Outcome::New, None)
        };
        Match { outcome, warning, sum }
    }

    /// How many values of hardware both know.
    #[must_use]
    pub fn hardware_in_common(&self, record: &Self) -> usize {
        let hardware = self.values.iter().filter(|(anchor, _)| anchor.is_hardware());
        hardware
            .map(|(anchor, seen)| {
                record.values.get(anchor).map_or(0, |known| seen.intersection(known).count())
            })
            .sum()
    }
}

/// Chooses among the records that a machine rebinds to: the highest sum, then the oldest, then the smallest uid.
/// Each is (uid, when created, verdict).
#[must_use]
pub fn best<U: Ord + Copy, T: Ord + Copy>(candidates: impl IntoIterator<Item = (U, T, Match)>) -> Option<U> {
    candidates
        .into_iter()
        .filter(|(_, _, found)| found.outcome == Outcome::Rebind)
        .min_by_key(|(uid, created, found)| (-found.sum, *created, *uid))
        .map(|(uid, _, _)| uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchors(values: &[(Anchor, &'static str)], boot: &'static str) -> Anchors<&'static str> {
        let mut anchors = Anchors { values: BTreeMap::new(), boots: BTreeSet::from([boot]) };
        for &(anchor, value) in values {
            anchors.values.entry(anchor).or_insert_with(BTreeSet::new).insert(value);
        }
        anchors
    }

    #[test]
    fn a_known_disk_in_other_hardware_is_a_new_machine_and_says_so() {
        let record = anchors(&[(Anchor::ProductUuid, "u1"), (Anchor::MachineId, "i1")], "b1");
        let seen = anchors(&[(Anchor::ProductUuid, "u2"), (Anchor::MachineId, "i1")], "b2");
        let found = seen.matches(&record, false);
        assert_eq!((found.outcome, found.warning), (Outcome::New, Some(Code::OsMovedToOtherHardware)));
        assert_eq!(seen.matches(&record, true).warning, Some(Code::ClonedImage));
    }

    #[test]
    fn the_same_boot_seen_twice_is_no_clone() {
        let record = anchors(&[(Anchor::ProductUuid, "u1")], "b1");
        assert_eq!(record.matches(&record, true).outcome, Outcome::Rebind);
    }

    #[test]
    fn the_best_record_has_the_highest_sum_then_is_the_oldest_then_has_the_smallest_uid() {
        let rebind = |sum| Match { outcome: Outcome::Rebind, warning: None, sum };
        let new = Match { outcome: Outcome::New, warning: None, sum: 99 };
        assert_eq!(best([(1, 9, rebind(4)), (2, 8, rebind(4)), (3, 8, rebind(4)), (4, 0, new)]), Some(2));
        assert_eq!(best([(1, 9, rebind(5)), (2, 8, rebind(4))]), Some(1));
        assert_eq!(best([(1, 1, new)]), None);
    }
}
