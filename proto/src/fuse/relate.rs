//! What two agents' kernels are to each other, by themselves: the first of twelve rules that matches
//! (`identity.md` §5). Live tests come first, then the kernel's own ids, then what only some systems have.

use super::{ClockOffset, Test, world::World};
use crate::{
    epoch::EpochComparison,
    evidence::{Os, Tag},
};

/// How far a clock offset may exceed half a round trip: scheduling of the two processes. Judgement.
const CLOCK_SLACK_NS: u64 = 1_000_000;

/// What two agents' kernels are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// One kernel.
    Same { proof: bool },
    /// Two kernels.
    Different { live: bool },
    /// Not known.
    Unknown { conflict: bool },
}

/// Which rule of §5 decided, for `--why`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Because {
    Rendezvous,
    BeaconPassed,
    BeaconFailed,
    SandwichAgainstClock,
    SandwichFailed,
    ClockDisproves,
    SandwichPassed,
    BootAgainstEpoch,
    BootEqual,
    EpochEqual,
    BootAndEpochEqual,
    BootDiffers,
    EpochDiffers,
    SystemDiffers,
    PlatformDiffers,
    PlatformEqual,
    WindowsEqual,
    NotBothAlive,
    Nothing,
}

/// The kernel relation of two agents.
#[derive(Clone, Copy, Debug)]
pub(super) struct KernelRelation {
    pub(super) verdict: Verdict,
    pub(super) because: Because,
    /// A live test separates two that claim one boot.
    pub(super) snapshot: bool,
}

/// The kernel relation of two agents by themselves: the first rule that matches.
pub(super) fn relate(world: &World, i: usize, j: usize) -> KernelRelation {
    let (one, other) = (&world.agents[i], &world.agents[j]);
    let facts = world.between(i, j).facts;
    let boot = one.boot.zip(other.boot).map(|(one, other)| one == other);
    let epoch = match one.epoch.compare(&other.epoch) {
        EpochComparison::Equal => Some(true),
        EpochComparison::Different => Some(false),
        EpochComparison::NotComparable => None,
    };
    let says = |verdict, because| KernelRelation { verdict, because, snapshot: false };
    let separated = |because| KernelRelation {
        verdict: Verdict::Different { live: true },
        because,
        snapshot: boot == Some(true) || epoch == Some(true),
    };
    let (proof, high) = (Verdict::Same { proof: true }, Verdict::Same { proof: false });
    let (conflict, unknown) = (Verdict::Unknown { conflict: true }, Verdict::Unknown { conflict: false });
    let disproved = facts.clock.is_some_and(ClockOffset::disproves);

    if facts.rendezvous {
        return says(proof, Because::Rendezvous);
    }
    match facts.beacon {
        Some(Test::Pass) => return says(proof, Because::BeaconPassed),
        Some(Test::Fail) => return separated(Because::BeaconFailed),
        None => {}
    }
    match facts.sandwich {
        Some(Test::Pass) if disproved => return says(conflict, Because::SandwichAgainstClock),
        Some(Test::Pass) => return says(proof, Because::SandwichPassed),
        Some(Test::Fail) => return separated(Because::SandwichFailed),
        None if disproved => return separated(Because::ClockDisproves),
        None => {}
    }
    // What is only now seen to differ says nothing while the one may be the other after a reboot.
    let differs = |because| {
        if world.both_alive(i, j) {
            says(Verdict::Different { live: false }, because)
        } else {
            says(unknown, Because::NotBothAlive)
        }
    };
    match (boot, epoch) {
        (Some(true), Some(false)) | (Some(false), Some(true)) => {
            return says(conflict, Because::BootAgainstEpoch);
        }
        (Some(true), Some(true)) => return says(high, Because::BootAndEpochEqual),
        (Some(true), None) => return says(high, Because::BootEqual),
        (None, Some(true)) => return says(high, Because::EpochEqual),
        (Some(false), _) => return differs(Because::BootDiffers),
        (None, Some(false)) => return differs(Because::EpochDiffers),
        (None, None) => {}
    }
    if one.os != other.os {
        return differs(Because::SystemDiffers);
    }
    let equal = |pair: Option<(Tag, Tag)>| pair.is_some_and(|(one, other)| one == other);
    let bare = one.bare && other.bare;
    match one.platform.zip(other.platform) {
        Some((one, other)) if one != other => {
            return says(Verdict::Different { live: false }, Because::PlatformDiffers);
        }
        Some(_) if bare => return says(high, Because::PlatformEqual),
        Some(_) | None => {}
    }
    let windows = one.os == Os::Windows && bare;
    if windows && equal(one.guid.zip(other.guid)) && equal(one.smbios.zip(other.smbios)) {
        return says(high, Because::WindowsEqual);
    }
    says(unknown, Because::Nothing)
}

/// What the kernels' own ids say, whatever a live test said before them.
pub(super) fn by_ids(world: &World, i: usize, j: usize) -> Option<Because> {
    let (one, other) = (&world.agents[i], &world.agents[j]);
    let boot = one.boot.zip(other.boot).map(|(one, other)| one == other);
    match (boot, one.epoch.compare(&other.epoch)) {
        (Some(true), EpochComparison::Equal) => Some(Because::BootAndEpochEqual),
        (Some(true), EpochComparison::NotComparable) => Some(Because::BootEqual),
        (None, EpochComparison::Equal) => Some(Because::EpochEqual),
        (Some(true), EpochComparison::Different) | (Some(false), EpochComparison::Equal) => {
            Some(Because::BootAgainstEpoch)
        }
        (Some(false), EpochComparison::Different | EpochComparison::NotComparable) => {
            Some(Because::BootDiffers)
        }
        (None, EpochComparison::Different) => Some(Because::EpochDiffers),
        (None, EpochComparison::NotComparable) => None,
    }
}

impl ClockOffset {
    /// Says whether the clocks are too far apart to be one: |offset| > round trip / 2 + 1 ms.
    #[must_use]
    pub fn disproves(self) -> bool {
        u128::from(self.offset_ns.unsigned_abs()) * 2
            > u128::from(self.rtt_ns) + 2 * u128::from(CLOCK_SLACK_NS)
    }
}

impl Because {
    /// A live test decided.
    pub(super) fn is_live(self) -> bool {
        matches!(
            self,
            Self::Rendezvous
                | Self::BeaconPassed
                | Self::BeaconFailed
                | Self::SandwichAgainstClock
                | Self::SandwichFailed
                | Self::ClockDisproves
                | Self::SandwichPassed
        )
    }

    /// The reason in words.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Rendezvous => "rendezvous passed",
            Self::BeaconPassed => "file-descriptor beacon passed",
            Self::BeaconFailed => "file-descriptor beacon failed",
            Self::SandwichAgainstClock => "counter sandwich passed, yet the clocks differ",
            Self::SandwichFailed => "counter sandwich failed",
            Self::ClockDisproves => "clocks differ",
            Self::SandwichPassed => "counter sandwich passed",
            Self::BootAgainstEpoch => "boot id and boot epoch contradict each other",
            Self::BootEqual => "boot id equal",
            Self::EpochEqual => "boot epoch equal",
            Self::BootAndEpochEqual => "boot id and boot epoch equal",
            Self::BootDiffers => "boot ids differ",
            Self::EpochDiffers => "boot epochs differ",
            Self::SystemDiffers => "operating systems differ",
            Self::PlatformDiffers => "platform UUIDs differ",
            Self::PlatformEqual => "platform UUID equal, both bare metal",
            Self::WindowsEqual => "MachineGuid and SMBIOS UUID equal, both bare metal",
            Self::NotBothAlive => "not both heard since the other came: may be one before and after a reboot",
            Self::Nothing => "nothing decides whether they are one kernel",
        }
    }
}
