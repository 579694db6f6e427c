//! What a user is told about identity: a code, whom it concerns, and what to do (`identity.md` §14).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::id::AgentId;

/// How many agents a text names before it counts the rest: a line stays readable.
const NAMED: usize = 6;

/// The kinds of warnings. Order is the order of display: what needs attention first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// A live test shows two kernels that claim one boot.
    SnapshotCloneOrSpoof,
    /// Boot id and boot time disagree.
    KernelConflict,
    /// An agent looks like part of two machines that cannot be one.
    MergeRefusedConflict,
    /// Two machines by evidence slow each other.
    MeasuredSharing,
    /// Rules say same and distinct for one pair.
    RulesContradict,
    /// A rule says otherwise than a proof or a hard negative.
    OverrideContradictsProof,
    /// One GPU on two machines.
    GpuUuidConflict,
    /// One agent key in two kernels.
    ClonedAgentKey,
    /// Agents key their identifiers with another salt than the others, so nothing can be compared.
    OtherIdSalt,
    /// A machine has more agents than it may have.
    TooManyAgents,
    /// One machine-id or MachineGuid on two kernels.
    ClonedImage,
    /// Two boards show one SMBIOS UUID.
    DuplicateSmbiosUuid,
    /// Two VMs show one UUID.
    DuplicateVmUuid,
    /// Two agents show one virtual GPU id.
    VgpuUuidDuplicate,
    /// The identity of an agent keeps changing.
    IdentityFlapping,
    /// It is not known which GPU an install uses.
    DeviceUnattributed,
    /// A known machine has new parts.
    HardwareChanged,
    /// A known system disk runs on other hardware.
    OsMovedToOtherHardware,
    /// A container will be a new machine after its restart.
    NoDurableAnchor,
    /// A container shows its own boot id.
    BootIdVirtualised,
}

/// One warning; agents that share a cause share a warning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// Which kind.
    pub code: Code,
    /// Whom it concerns, sorted.
    pub agents: Vec<AgentId>,
}

impl Code {
    /// The code as users see it and as `--json` prints it.
    #[must_use]
    pub fn text(self) -> &'static str {
        self.row().0
    }

    /// What the user reads; `{}` stands for the agents.
    fn says(self) -> &'static str {
        self.row().1
    }

    /// What to do about it.
    #[must_use]
    pub fn fix(self) -> &'static str {
        self.row().2
    }

    /// Only information: nothing is wrong.
    #[must_use]
    pub fn is_information(self) -> bool {
        self == Self::BootIdVirtualised
    }

    fn row(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::SnapshotCloneOrSpoof => (
                "SNAPSHOT_CLONE_OR_SPOOF",
                "{} claim one boot, a live test shows two kernels",
                "reboot the resumed copy; if neither is a copy, one agent lies: remove it",
            ),
            Self::KernelConflict => (
                "KERNEL_CONFLICT",
                "boot id and boot time of {} disagree; counted as one until a live test decides",
                "wait a minute; if it stays, see `tropa doctor`",
            ),
            Self::MergeRefusedConflict => (
                "MERGE_REFUSED_CONFLICT",
                "{} look like parts of one machine, yet belong to machines that cannot be one",
                "see `tropa machines --why`, then set a rule `same` or `distinct`",
            ),
            Self::MeasuredSharing => (
                "MEASURED_SHARING",
                "{} should be two machines, yet one slows the other; counted as one",
                "look for a shared host, power or thermal limit; or set a rule `distinct`",
            ),
            Self::RulesContradict => (
                "RULES_CONTRADICT",
                "rules say `same` and `distinct` for {}; taken as `same`",
                "delete one of the rules",
            ),
            Self::OverrideContradictsProof => (
                "OVERRIDE_CONTRADICTS_PROOF",
                "your rule for {} says otherwise than the evidence; the rule is followed",
                "delete the rule if it is old",
            ),
            Self::GpuUuidConflict => (
                "GPU_UUID_CONFLICT",
                "{} list one GPU on two machines; it is used by one install at a time",
                "a remote GPU: nothing to do; otherwise check the agents",
            ),
            Self::ClonedAgentKey => (
                "CLONED_AGENT_KEY",
                "{} run with one key: the state directory was copied",
                "delete it on the copy, or give each its own volume",
            ),
            Self::OtherIdSalt => (
                "OTHER_ID_SALT",
                "{} key their hardware ids with another id-salt than the others, so they are counted by what needs none",
                "give them the mesh secret file of the others, or one with both salts (`tropa mesh resalt`), and \
                 restart them",
            ),
            Self::TooManyAgents => (
                "TOO_MANY_AGENTS",
                "{} are beyond the 64 agents that one machine may have; they get no work",
                "stop agents of that machine that are not needed",
            ),
            Self::ClonedImage => (
                "CLONED_IMAGE",
                "{} carry one machine-id on different kernels: a disk, VM or container image was copied",
                "truncate -s0 /etc/machine-id, remove /var/lib/dbus/machine-id, reboot; on Windows run sysprep; \
                 leave it empty in images",
            ),
            Self::DuplicateSmbiosUuid => (
                "DUPLICATE_SMBIOS_UUID",
                "the boards of {} show one SMBIOS UUID; it is ignored",
                "nothing to do, or set one in the firmware",
            ),
            Self::DuplicateVmUuid => (
                "DUPLICATE_VM_UUID",
                "the VMs of {} show one UUID",
                "give the copy a new UUID in the hypervisor",
            ),
            Self::VgpuUuidDuplicate => {
                ("VGPU_UUID_DUPLICATE", "{} show one virtual GPU id; it is ignored", "nothing to do")
            }
            Self::IdentityFlapping => {
                ("IDENTITY_FLAPPING", "the identity of {} keeps changing; held apart", "see `tropa doctor`")
            }
            Self::DeviceUnattributed => (
                "DEVICE_UNATTRIBUTED",
                "it is not known which GPU the installs of {} use; all are reserved",
                "start the agent with `--lane`, or pin Ollama with CUDA_VISIBLE_DEVICES",
            ),
            Self::HardwareChanged => {
                ("HARDWARE_CHANGED", "the machine of {} is known, parts of it are new", "nothing to do")
            }
            Self::OsMovedToOtherHardware => (
                "OS_MOVED_TO_OTHER_HARDWARE",
                "a known system disk runs on other hardware at {}",
                "nothing to do; forget the old record if that machine is gone",
            ),
            Self::NoDurableAnchor => (
                "NO_DURABLE_ANCHOR",
                "{} will be a new machine after a restart",
                "mount a volume for the state, or set TROPA_MACHINE",
            ),
            Self::BootIdVirtualised => (
                "BOOT_ID_VIRTUALISED",
                "{} show the boot id of a container; the boot epoch was used",
                "nothing to do",
            ),
        }
    }
}

impl Warning {
    /// What the user reads, with the names that `name` gives the agents; ends with what to do.
    #[must_use]
    pub fn text(&self, name: impl FnMut(&AgentId) -> String) -> String {
        let mut names = self.agents.iter().take(NAMED).map(name).collect::<Vec<_>>().join(", ");
        if self.agents.len() > NAMED {
            names.push_str(&format!(" and {} more", self.agents.len() - NAMED));
        }
        format!("{}. Fix: {}", self.code.says().replacen("{}", &names, 1), self.code.fix())
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.text(AgentId::short))
    }
}

/// Collects warnings; those of one code and one cause become one.
#[derive(Clone, Debug, Default)]
pub(super) struct Warnings(BTreeMap<(Code, Vec<u8>), BTreeSet<AgentId>>);

impl Warnings {
    /// Adds agents under a cause that they share, a tag for example.
    pub(super) fn add(&mut self, code: Code, cause: &[u8], agents: impl IntoIterator<Item = AgentId>) {
        self.0.entry((code, cause.to_vec())).or_default().extend(agents);
    }

    /// Adds two agents, whose pair is the cause.
    pub(super) fn pair(&mut self, code: Code, a: AgentId, b: AgentId) {
        let (a, b) = (a.min(b), a.max(b));
        self.add(code, &[a.0, b.0].concat(), [a, b]);
    }

    /// The warnings, sorted by code and agents, each once.
    pub(super) fn finish(self) -> Vec<Warning> {
        let warnings: BTreeSet<Warning> = self
            .0
            .into_iter()
            .map(|((code, _), agents)| Warning { code, agents: agents.into_iter().collect() })
            .collect();
        warnings.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_names_the_agents_and_ends_with_what_to_do() {
        let mut warnings = Warnings::default();
        warnings.pair(Code::ClonedAgentKey, AgentId([2; 32]), AgentId([1; 32]));
        let text = warnings.finish()[0].to_string();
        assert!(text.starts_with("CLONED_AGENT_KEY: a-0101, a-0202 run with one key"), "{text}");
        assert!(text.ends_with("give each its own volume"), "{text}");
    }

    #[test]
    fn many_agents_are_counted_and_not_listed() {
        let agents = (0..9).map(|at| AgentId([at; 32])).collect();
        let text = Warning { code: Code::BootIdVirtualised, agents }.to_string();
        assert!(text.contains("and 3 more"), "{text}");
    }
}
