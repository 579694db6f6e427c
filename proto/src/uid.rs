//! The lasting name of a machine, and what an agent says of the machine that it is on.
//!
//! Fusion names a machine by the smallest id among the agents that are present, which changes as agents come and go.
//! A [`MachineUid`] does not: it is random, made when a machine is first formed, kept by every agent of the machine
//! and told with every announcement. It is not derived from any serial number, so that a new board or a reinstalled
//! system does not change it. Agents of one kernel take the oldest uid among them, so whoever has lost its state gets
//! the name back from its neighbours (`identity.md` §11).

use std::{cmp::Reverse, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    epoch::EQUAL_WITHIN_NS,
    evidence::Core,
    id::{AgentId, Incarnation, MachineId, hex, unhex},
};

/// Bits of the time in a uid: milliseconds until the year 10889, and twelve digits in its text.
const CREATED_BITS: u32 = 48;

/// Bytes of a uid: six of its time, then chance.
const UID_BYTES: usize = 22;

/// Names a machine for as long as anybody remembers it. Its order is the age, the oldest first; then chance decides.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MachineUid {
    /// When it was made, in milliseconds since 1970 by the clock of the agent that made it; below 2⁴⁸.
    pub created_ms: u64,
    /// Chance.
    pub random: [u8; 16],
}

/// The id of a machine that people see, the same in `tropa machines`, plans, journals, results and reports.
///
/// A uid where the machine has one; else, where another machine claims that with more right, the smallest id among its
/// agents, which changes as they come and go. Shown as `m-` and four digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShownId {
    /// Its lasting name.
    Uid(MachineUid),
    /// Its id in the roster.
    Roster(MachineId),
}

/// What an agent says of the machine that it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineClaim {
    /// The machine's name as this agent knows it.
    pub uid: MachineUid,
    /// The name that it had before.
    pub before: Before,
    /// How many values of the present hardware the agent's record of the machine has: who has more is believed where
    /// two machines claim one uid.
    pub hardware: u8,
    /// The record was made, or matched, in this boot already: it was not copied here with a disk.
    pub same_boot: bool,
    /// What has changed since the record was made.
    pub change: Change,
    /// The record outlives a restart: it lies on something that lasts, or the operator has named the machine.
    pub durable: bool,
}

/// The name that a machine had before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Before {
    /// It had no other.
    Nothing,
    /// It had this one, which now stands for the present one.
    Alias(MachineUid),
    /// The record was copied from a machine that has this name and is alive.
    CopyOf(MachineUid),
}

/// What an agent found when it matched its record to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Change {
    /// Nothing to tell.
    None,
    /// The machine is the one of the record, and parts of it are new.
    HardwareChanged,
    /// The record came here with a disk: the machine is another one.
    Moved,
}

/// How well a claim to a uid is founded; of two machines that claim one uid, the one with the greater hold has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hold {
    hardware: u8,
    same_boot: bool,
    started: Reverse<Incarnation>,
}

impl MachineUid {
    /// Makes a new one.
    ///
    /// # Errors
    /// When the operating system has no random bytes to give.
    pub fn mint(since_1970: Duration) -> Result<Self, getrandom::Error> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)?;
        let created_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        Ok(Self { created_ms: created_ms.min((1 << CREATED_BITS) - 1), random })
    }

    /// Shows the short form, `m-` and four digits.
    #[must_use]
    pub fn short(&self) -> String {
        format!("m-{}", &hex(&self.random)[..4])
    }

    /// Its bytes in a journal: their order is that of uids.
    #[must_use]
    pub fn to_bytes(self) -> [u8; UID_BYTES] {
        let mut bytes = [0; UID_BYTES];
        bytes[..6].copy_from_slice(&self.created_ms.to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&self.random);
        bytes
    }

    /// Reads what [`MachineUid::to_bytes`] gave.
    #[must_use]
    pub fn from_bytes(bytes: [u8; UID_BYTES]) -> Self {
        let (mut created, mut random) = ([0; 8], [0; 16]);
        created[2..].copy_from_slice(&bytes[..6]);
        random.copy_from_slice(&bytes[6..]);
        Self { created_ms: u64::from_be_bytes(created), random }
    }

    /// The time is one that a uid can have.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.created_ms >> CREATED_BITS == 0
    }
}

impl ShownId {
    /// Its bytes in a journal: 22 of a uid, 32 of an agent's id.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Uid(uid) => uid.to_bytes().into(),
            Self::Roster(MachineId(AgentId(id))) => id.into(),
        }
    }

    /// Reads what [`ShownId::to_bytes`] gave; `None` for any other number of bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let uid = bytes.try_into().map(|bytes| Self::Uid(MachineUid::from_bytes(bytes)));
        uid.or_else(|_| bytes.try_into().map(|id| Self::Roster(MachineId(AgentId(id))))).ok()
    }
}

impl MachineClaim {
    /// The claim of an agent that knows no more than a name.
    #[must_use]
    pub const fn new(uid: MachineUid) -> Self {
        Self {
            uid,
            before: Before::Nothing,
            hardware: 0,
            same_boot: true,
            change: Change::None,
            durable: true,
        }
    }

    /// How well it is founded, made by this run of an agent: the most hardware, then a record of this boot, then the
    /// run that started first, which a copy did not.
    #[must_use]
    pub fn hold(&self, incarnation: Incarnation) -> Hold {
        Hold { hardware: self.hardware, same_boot: self.same_boot, started: Reverse(incarnation) }
    }

    /// Refuses times that no uid has.
    pub(crate) fn is_valid(&self) -> bool {
        let before = match &self.before {
            Before::Nothing => true,
            Before::Alias(uid) | Before::CopyOf(uid) => uid.is_valid() && *uid != self.uid,
        };
        before && self.uid.is_valid()
    }
}

/// Says whether two agents are on one kernel by what they announce, both sampled now; `None` where it does not tell.
///
/// Genuine boot ids decide, unless boot epochs contradict them; epochs decide where a container shows a boot id of its
/// own, or where the two are keyed with different salts. A difference of epochs may be a step of the clock: who acts
/// on it waits until it is settled ([`SETTLED_AFTER`](crate::epoch::SETTLED_AFTER)). Live tests are the coordinator's
/// (`identity.md` §5).
#[must_use]
pub fn one_kernel(a: &Core, b: &Core) -> Option<bool> {
    if a.declared != b.declared {
        return None;
    }
    if a.os != b.os {
        return Some(false);
    }
    let boots = a.boot_id.value().zip(b.boot_id.value()).filter(|_| a.salt == b.salt);
    let boot = boots.map(|(a, b)| a == b);
    let epochs =
        a.epoch_ns.value().zip(b.epoch_ns.value()).filter(|_| !a.time_namespace && !b.time_namespace);
    let epoch = epochs.map(|(a, b)| a.abs_diff(*b) <= EQUAL_WITHIN_NS);
    match (boot, epoch) {
        (Some(boot), Some(epoch)) => (boot == epoch).then_some(boot),
        (known, None) | (None, known) => known,
    }
}

impl fmt::Display for MachineUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.to_bytes()))
    }
}

impl fmt::Display for ShownId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&match self {
            Self::Uid(uid) => uid.short(),
            Self::Roster(id) => id.short(),
        })
    }
}

impl fmt::Debug for MachineUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// Says that a text is not the name of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the uid of a machine is 44 hexadecimal digits")]
pub struct NotAUid;

impl FromStr for MachineUid {
    type Err = NotAUid;

    fn from_str(text: &str) -> Result<Self, NotAUid> {
        unhex(text).map(Self::from_bytes).ok_or(NotAUid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::{Evidence, Os, Reading, SaltName, Tag};

    fn core(boot: Option<u8>, epoch: Option<i64>) -> Core {
        let mut evidence = Evidence::empty(Os::Linux);
        evidence.boot_id = boot.map_or(Reading::Absent, |boot| Reading::Value(Tag([boot; 16])));
        Core::new(&evidence, epoch.map_or(Reading::Absent, Reading::Value))
    }

    #[test]
    fn a_uid_survives_its_text_and_its_text_sorts_by_age() {
        let older = MachineUid { created_ms: 5, random: [9; 16] };
        let younger = MachineUid { created_ms: 1_790_000_000_000, random: [1; 16] };
        assert!(older < younger && older.to_string() < younger.to_string());
        assert_eq!(younger.to_string().parse(), Ok(younger));
        assert_eq!(younger.short(), "m-0101");
        for text in ["", "m-0101", &"g".repeat(44), &"a".repeat(43)] {
            assert_eq!(text.parse::<MachineUid>(), Err(NotAUid));
        }
        assert!(MachineUid::mint(Duration::MAX).unwrap().is_valid());
    }

    #[test]
    fn the_id_that_people_see_survives_a_journal_and_nothing_else_reads_as_one() {
        let uid = MachineUid { created_ms: 1_790_000_000_000, random: [1; 16] };
        let [lasting, roster] = [ShownId::Uid(uid), ShownId::Roster(MachineId(AgentId([2; 32])))];
        for id in [lasting, roster] {
            assert_eq!(ShownId::from_bytes(&id.to_bytes()), Some(id));
        }
        assert_eq!([lasting.to_string(), roster.to_string()], ["m-0101", "m-0202"]);
        for length in [0, 21, 23, 31, 33] {
            assert_eq!(ShownId::from_bytes(&vec![1; length]), None);
        }
    }

    #[test]
    fn boot_ids_and_epochs_tell_one_kernel_unless_they_contradict_each_other() {
        let far = 1_790_000_000_000_000_000;
        for (one, other, expected) in [
            (core(Some(1), None), core(Some(1), None), Some(true)),
            (core(Some(1), Some(0)), core(Some(1), Some(2_000)), Some(true)),
            (core(Some(1), Some(0)), core(Some(1), Some(far)), None),
            (core(Some(1), Some(0)), core(Some(2), Some(0)), None),
            (core(Some(1), Some(0)), core(Some(2), Some(far)), Some(false)),
            (core(None, Some(far)), core(Some(2), Some(far)), Some(true)),
            (core(None, None), core(Some(2), Some(far)), None),
        ] {
            assert_eq!(one_kernel(&one, &other), expected, "{one:?} {other:?}");
            assert_eq!(one_kernel(&other, &one), expected);
        }
        let shifted = Core { time_namespace: true, ..core(Some(1), Some(far)) };
        assert_eq!(one_kernel(&shifted, &core(Some(1), Some(0))), Some(true));
        let salted = |epoch| Core { salt: SaltName([7; 4]), ..core(Some(2), epoch) };
        assert_eq!(one_kernel(&salted(Some(0)), &core(Some(1), Some(0))), Some(true), "epochs need no salt");
        assert_eq!(one_kernel(&salted(None), &core(Some(1), None)), None);
        let declared = Core { declared: true, ..core(Some(1), None) };
        assert_eq!(one_kernel(&declared, &core(Some(1), None)), None);
    }

    #[test]
    fn more_hardware_holds_a_uid_then_a_record_of_this_boot_then_the_older_run() {
        let uid = MachineUid { created_ms: 1, random: [1; 16] };
        let claim = |hardware, same_boot| MachineClaim { hardware, same_boot, ..MachineClaim::new(uid) };
        let run = Incarnation;
        assert!(claim(2, false).hold(run(9)) > claim(1, true).hold(run(1)));
        assert!(claim(1, true).hold(run(9)) > claim(1, false).hold(run(1)));
        assert!(claim(1, true).hold(run(1)) > claim(1, true).hold(run(9)));
    }
}
