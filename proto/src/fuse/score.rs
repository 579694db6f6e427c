//! The log odds that two kernels are one machine: what each line of evidence is worth, in tenths, and what a sum
//! comes to (`identity.md` §6). Every number is judgement (§18) and stands here.

use super::{Confidence, Kind, Relation, judge::Apart};

/// From here on two kernels are one machine.
const SAME_FROM: i32 = 20;

/// From here on that is high.
const SAME_HIGH_FROM: i32 = 30;

/// Above this, P(same machine) is more than 0.25, and a wrong split costs three times a wrong merge:
/// log10(0.25 / 0.75).
const UNKNOWN_ABOVE: i32 = -5;

/// From here down two kernels are two machines with high confidence.
const DISTINCT_HIGH_FROM: i32 = -30;

/// A line that is worth this much may be contradicted, never overruled.
const STRONG: i32 = 40;

/// Where the sum of the lines turns into another verdict; all in tenths of log10 odds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// From here on one machine.
    pub same: i32,
    /// From here on one machine with high confidence.
    pub same_high: i32,
    /// Above this, and below `same`, unknown.
    pub unknown_above: i32,
    /// From here down two machines with high confidence.
    pub distinct_high: i32,
    /// A line that is worth this much makes at least unknown, whatever stands against it.
    pub strong: i32,
}

/// The bounds of this version of the rules.
pub const BOUNDS: Bounds = Bounds {
    same: SAME_FROM,
    same_high: SAME_HIGH_FROM,
    unknown_above: UNKNOWN_ABOVE,
    distinct_high: DISTINCT_HIGH_FROM,
    strong: STRONG,
};

/// One line of evidence that counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Line {
    /// Two bare kernels are rarely one machine.
    PriorBare,
    /// Two cloud VMs are rarely on one host.
    PriorCloud,
    /// Two others, as homes and offices go.
    Prior,
    /// Both have a retail processor name and none in common.
    CpuModelsDiffer,
    /// A physical GPU in common.
    Gpu,
    /// A processor serial in common.
    Ppin,
    /// An SMBIOS UUID in common, both bare.
    Firmware,
    /// One lists the other as its guest.
    GuestClaim,
    /// The same, but more than one lists it or has it.
    GuestClaimDoubtful,
    /// The one is WSL in the other's Windows.
    WslClaim,
    /// The same, but more than one kernel has that GUID.
    WslClaimDoubtful,
    /// Two WSL kernels name one Windows.
    WslSameWindows,
    /// WSL names another Windows.
    WslOtherWindows,
    /// An NVMe serial in common.
    Storage,
    /// A permanent MAC address in common.
    Network,
    /// Traffic arrives through a local interface.
    LocalPeer,
    /// A machine-id or MachineGuid in common, kernels not known to differ.
    Software,
    /// The same on two kernels.
    SoftwareApart,
    /// The active probe shows sharing.
    ProbePositive,
    /// The active probe shows none.
    ProbeNegative,
    /// Production shows sharing.
    PassivePositive,
    /// Production shows none.
    PassiveNegative,
}

impl Line {
    /// Every line there is, in the order of the table.
    pub const ALL: [Self; 22] = [
        Self::PriorBare,
        Self::PriorCloud,
        Self::Prior,
        Self::CpuModelsDiffer,
        Self::Gpu,
        Self::Ppin,
        Self::Firmware,
        Self::GuestClaim,
        Self::GuestClaimDoubtful,
        Self::WslClaim,
        Self::WslClaimDoubtful,
        Self::WslSameWindows,
        Self::WslOtherWindows,
        Self::Storage,
        Self::Network,
        Self::LocalPeer,
        Self::Software,
        Self::SoftwareApart,
        Self::ProbePositive,
        Self::ProbeNegative,
        Self::PassivePositive,
        Self::PassiveNegative,
    ];

    /// What the line is worth, in tenths of log10 odds.
    #[must_use]
    pub fn tenths(self) -> i32 {
        match self {
            Self::PriorBare => -15,
            Self::PriorCloud => -20,
            Self::Prior => -3,
            Self::CpuModelsDiffer | Self::WslOtherWindows | Self::ProbeNegative | Self::PassiveNegative => {
                -30
            }
            Self::Gpu | Self::Firmware | Self::GuestClaim | Self::WslClaim => 40,
            Self::Ppin => 50,
            Self::GuestClaimDoubtful | Self::WslClaimDoubtful | Self::SoftwareApart => 5,
            Self::WslSameWindows | Self::Software => 15,
            Self::Storage | Self::Network | Self::LocalPeer => 20,
            Self::ProbePositive | Self::PassivePositive => 30,
        }
    }

    /// The line in words.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::PriorBare => "prior, both bare metal",
            Self::PriorCloud => "prior, a cloud VM",
            Self::Prior => "prior",
            Self::CpuModelsDiffer => "different CPU models",
            Self::Gpu => "same GPU",
            Self::Ppin => "same processor serial",
            Self::Firmware => "same SMBIOS UUID",
            Self::GuestClaim => "one lists the other as its guest",
            Self::GuestClaimDoubtful => "one lists the other as its guest, but the UUID is not unique",
            Self::WslClaim => "WSL of this Windows",
            Self::WslClaimDoubtful => "WSL of this Windows, but its MachineGuid is not unique",
            Self::WslSameWindows => "WSL of one Windows",
            Self::WslOtherWindows => "WSL of another Windows",
            Self::Storage => "same NVMe serial",
            Self::Network => "same permanent MAC address",
            Self::LocalPeer => "traffic through a local interface",
            Self::Software => "same machine-id",
            Self::SoftwareApart => "same machine-id on two kernels",
            Self::ProbePositive => "the interference probe shows sharing",
            Self::ProbeNegative => "the interference probe shows none",
            Self::PassivePositive => "one slows the other in production",
            Self::PassiveNegative => "neither slows the other in production",
        }
    }

    fn is_prior(self) -> bool {
        matches!(self, Self::PriorBare | Self::PriorCloud | Self::Prior)
    }

    fn is_doubtful(self) -> bool {
        matches!(self, Self::GuestClaimDoubtful | Self::WslClaimDoubtful | Self::WslSameWindows)
    }
}

/// The verdict of the odds.
pub(super) fn verdict(sum: i32, lines: &[Line], apart: Apart) -> Relation {
    let contradicted = lines.iter().any(|line| line.tenths() >= STRONG);
    let doubtful = apart != Apart::Yes || lines.iter().any(|line| line.is_doubtful());
    let against = lines.iter().any(|line| !line.is_prior() && line.tenths() < 0);
    let unknown = sum > UNKNOWN_ABOVE || apart == Apart::Conflict || contradicted || (doubtful && !against);
    let (kind, confidence) = if sum >= SAME_HIGH_FROM {
        (Kind::SameMachine, Confidence::High)
    } else if sum >= SAME_FROM {
        (Kind::SameMachine, Confidence::Medium)
    } else if unknown {
        (Kind::UnknownExclude, Confidence::Low)
    } else if sum <= DISTINCT_HIGH_FROM {
        (Kind::Distinct, Confidence::High)
    } else {
        (Kind::Distinct, Confidence::Medium)
    };
    Relation { kind, confidence }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_line_once_and_under_its_own_words() {
        assert!(Line::ALL.iter().enumerate().all(|(at, line)| *line as usize == at));
        assert_eq!(Line::ALL.len(), Line::PassiveNegative as usize + 1, "the last line there is");
        let texts: std::collections::BTreeSet<&str> = Line::ALL.iter().map(|line| line.text()).collect();
        assert_eq!(texts.len(), Line::ALL.len());
    }
}
