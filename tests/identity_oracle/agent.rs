//! What an agent shows, in the canonical forms of section 3, by parsers of the oracle's own.

use std::collections::BTreeSet;

use crate::identity::AgentFacts;

/// The facts of one agent that can be compared; rejected values are absent.
#[derive(Clone, Debug, Default)]
pub(super) struct Agent {
    pub(super) name: String,
    pub(super) os: String,
    pub(super) hv: String,
    pub(super) hv_class: String,
    pub(super) key: Option<String>,
    /// Only if genuine.
    pub(super) boot_id: Option<String>,
    pub(super) boot_id_virtual: bool,
    /// Only if comparable.
    pub(super) epoch: Option<i64>,
    pub(super) machine_id: Option<String>,
    pub(super) product_uuid: Option<String>,
    pub(super) platform_uuid: Option<String>,
    pub(super) machine_guid: Option<String>,
    pub(super) wsl_host_guid: Option<String>,
    pub(super) hosts_vms: BTreeSet<String>,
    pub(super) ppin: BTreeSet<String>,
    pub(super) macs: BTreeSet<String>,
    pub(super) nvme: BTreeSet<String>,
    pub(super) cpu_model: Option<String>,
    pub(super) whole: BTreeSet<String>,
    /// Slices: their own id and their GPU's.
    pub(super) slices: BTreeSet<(String, String)>,
    pub(super) vgpus: BTreeSet<String>,
}

impl Agent {
    pub(super) fn read(name: &str, facts: &AgentFacts) -> Self {
        let word = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
        let boot_id = facts.boot_id.as_deref().and_then(uuid);
        let mut agent = Self {
            name: name.to_owned(),
            os: facts.os.clone(),
            hv: word(&facts.hv),
            hv_class: word(&facts.hv_class),
            key: facts.agent_key.clone(),
            boot_id: boot_id.clone().filter(|_| !facts.boot_id_virtual),
            boot_id_virtual: facts.boot_id_virtual && boot_id.is_some(),
            // 3.1: before 2020-01-01 is rejected. 5: a time namespace makes it incomparable.
            epoch: facts.epoch_ns.filter(|ns| *ns >= 1_577_836_800_000_000_000 && !facts.time_namespace),
            machine_id: facts.machine_id.as_deref().and_then(machine_id),
            product_uuid: facts.product_uuid.as_deref().and_then(product_uuid),
            platform_uuid: facts.platform_uuid.as_deref().and_then(uuid),
            machine_guid: facts.machine_guid.as_deref().and_then(uuid),
            wsl_host_guid: facts.wsl_host_guid.as_deref().and_then(uuid),
            hosts_vms: facts.hosts_vms.iter().filter_map(|text| product_uuid(text)).collect(),
            ppin: facts.ppin.iter().map(|text| text.to_lowercase()).filter(|text| !all(text, '0')).collect(),
            macs: facts.macs.iter().map(|text| text.to_lowercase()).collect(),
            nvme: facts.nvme.iter().map(|text| text.trim().to_owned()).filter(|text| varied(text)).collect(),
            cpu_model: facts.cpu_model.as_deref().and_then(cpu_model),
            ..Self::default()
        };
        for gpu in &facts.gpus {
            match (gpu.kind.as_str(), gpu.uuid.clone(), gpu.parent.clone()) {
                ("mig", Some(uuid), Some(parent)) => _ = agent.slices.insert((uuid, parent)),
                ("vgpu", Some(uuid), _) => _ = agent.vgpus.insert(uuid),
                (_, Some(uuid), _) => _ = agent.whole.insert(uuid),
                (_, None, _) => {}
            }
        }
        agent
    }

    /// The agent's own word for bare metal.
    pub(super) fn says_bare(&self) -> bool {
        self.hv == "none" || self.hv == "root"
    }

    /// 6, line "GPU": `full` uuid or MIG parent.
    pub(super) fn physical_gpus(&self) -> BTreeSet<String> {
        self.whole.iter().cloned().chain(self.slices.iter().map(|(_, parent)| parent.clone())).collect()
    }

    /// 8: the same device, or a whole GPU against a slice whose parent it is.
    pub(super) fn gpus_conflict(&self, other: &Self) -> bool {
        let parents = |agent: &Self| agent.slices.iter().map(|(_, parent)| parent.clone()).collect();
        !self.whole.is_disjoint(&other.whole)
            || self.slices.iter().any(|(slice, _)| other.slices.iter().any(|(other, _)| slice == other))
            || !self.whole.is_disjoint(&parents(other))
            || !other.whole.is_disjoint(&parents(self))
    }
}

/// 3: trim, drop braces, lower case, 8-4-4-4-12 hex, all digits equal → rejected.
fn uuid(text: &str) -> Option<String> {
    let text = text.trim().trim_start_matches('{').trim_end_matches('}').to_lowercase();
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    (groups == [8, 4, 4, 4, 12] && digits.chars().all(|c| c.is_ascii_hexdigit()) && varied(&digits))
        .then_some(text)
}

/// 3.1: the smaller of the two byte orders; the denylist in both orders.
fn product_uuid(text: &str) -> Option<String> {
    let one = uuid(text)?;
    let groups: Vec<&str> = one.split('-').collect();
    let turn = |text: &str| -> String {
        (0..text.len() / 2).rev().map(|byte| text[2 * byte..2 * byte + 2].to_owned()).collect()
    };
    let other =
        [turn(groups[0]), turn(groups[1]), turn(groups[2]), groups[3].to_owned(), groups[4].to_owned()];
    let other = other.join("-");
    let denied = "03000200-0400-0500-0006-000700080009";
    (one != denied && other != denied).then(|| one.min(other))
}

/// 3.1: 32 hex, lower case.
fn machine_id(text: &str) -> Option<String> {
    let text = text.trim().to_lowercase();
    let right = text.len() == 32 && text.chars().all(|c| c.is_ascii_hexdigit()) && varied(&text);
    (right && text != "b08dfa6083e7567a1921a715000001fb").then_some(text)
}

/// 3.1: only a retail name counts.
fn cpu_model(text: &str) -> Option<String> {
    let text = text.replace("(R)", "").replace("(TM)", "");
    let text = text.split('@').next().unwrap_or_default();
    let (mut depth, mut bare) = (0, String::new());
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            c if depth == 0 => bare.push(c),
            _ => {}
        }
    }
    let name = bare.split_whitespace().collect::<Vec<_>>().join(" ");
    let chars: Vec<char> = name.chars().collect();
    let three = chars.windows(3).any(|three| three.iter().all(char::is_ascii_digit));
    let apple = name.split("Apple M").skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let series = chars.windows(3).any(|three| three[0].is_ascii_digit() && three[1..] == ['x', 'x']);
    let preset = ["QEMU", "KVM", "Virtual", "class"].iter().any(|word| name.contains(word)) || series;
    ((three || apple) && !preset).then_some(name)
}

fn varied(text: &str) -> bool {
    let mut chars = text.chars();
    let first = chars.next();
    first.is_some() && chars.any(|c| Some(c) != first)
}

fn all(text: &str, digit: char) -> bool {
    text.chars().all(|c| c == digit)
}
