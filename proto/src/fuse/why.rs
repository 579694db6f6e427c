//! Why two agents are what they are to each other: the lines behind `tropa machines --why`.

use std::fmt;

use super::{
    Confidence, Kind, Relation,
    judge::Apart,
    kernels::Kernels,
    machines::{Gap, Machines},
    relate::{Verdict, by_ids, relate},
    score::Line,
    world::World,
};
use crate::{evidence::Reading, id::AgentId};

/// One reason, with its number where it has one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reason {
    /// In words.
    pub text: String,
    /// Tenths of log10 odds; `None` for what is not a score.
    pub tenths: Option<i32>,
}

/// The relation of two agents and everything that led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// What they are to each other.
    pub relation: Relation,
    /// The sum of the scored lines in tenths, where it came to scoring.
    pub score: Option<i32>,
    /// What counted, in the order of the rules.
    pub reasons: Vec<Reason>,
    /// What could not be read: who, and which signal, and why.
    pub unreadable: Vec<(AgentId, &'static str, String)>,
    /// The pair of kernels that carries an inherited relation.
    pub inherited_from: Option<(AgentId, AgentId)>,
}

/// Collects what led to the relation of two agents.
pub(super) fn explain(world: &World, kernels: &Kernels, machines: &Machines, i: usize, j: usize) -> Why {
    let relation = machines.relation(world, kernels, i, j);
    let mut why = Why {
        relation,
        score: None,
        reasons: kernel_reasons(world, i, j),
        unreadable: [i, j].into_iter().flat_map(|at| unreadable(world, at)).collect(),
        inherited_from: None,
    };
    let (k, l) = (kernels.of(i), kernels.of(j));
    if k == l {
        if !matches!(relate(world, i, j).verdict, Verdict::Same { .. }) {
            why.reasons.push(say("joined through others of their kernel"));
        }
        if relation.confidence == Confidence::Proof && !relate(world, i, j).because.is_live() {
            why.reasons.push(say("connected by live tests that passed"));
        }
        return why;
    }
    let own = machines.judge.judge(world, kernels, k, l);
    let carrier = |(k, l): (usize, usize)| Some((kernels.id(world, k), kernels.id(world, l)));
    match own.apart {
        Apart::Yes => {}
        Apart::Conflict => why.reasons.push(say("what is known about their kernels contradicts itself")),
        Apart::Unknown => why.reasons.push(say("it is not known whether they are two kernels")),
    }
    if let Some(ruled_same) = machines.judge.rule(k, l) {
        why.reasons.push(say(if ruled_same {
            "the operator's rule says same"
        } else {
            "the operator's rule says distinct"
        }));
    }
    why.reasons.extend(own.hard_negative.map(say));
    if own.measured {
        why.reasons.push(say("yet one slows the other"));
    }
    why.score = own.score;
    why.reasons.extend(
        own.lines
            .iter()
            .map(|line: &Line| Reason { text: line.text().to_owned(), tenths: Some(line.tenths()) }),
    );
    if machines.first(k) == machines.first(l) {
        if own.relation.kind != Kind::SameMachine {
            why.reasons.push(say("joined through others"));
            why.inherited_from = machines.weakest_join(k, l).and_then(|(k, l, _)| carrier((k, l)));
        }
    } else if machines.refused_or_measured(kernels, i, j, &own) {
        if !own.measured {
            why.reasons.push(say("joining them was refused: their groups cannot be one"));
        }
    } else {
        match machines.gap(world, kernels, k, l) {
            Gap::Distinct { by, .. } if own.relation.kind != Kind::Distinct => {
                why.reasons.push(say("their machines are distinct by another pair"));
                why.inherited_from = carrier(by);
            }
            Gap::Unknown { by } if own.relation.kind == Kind::Distinct => {
                why.reasons.push(say("another pair of their machines is unknown"));
                why.inherited_from = carrier(by);
            }
            Gap::Distinct { .. } | Gap::Unknown { .. } | Gap::Open => {}
        }
    }
    why
}

impl Why {
    /// The relation and its most telling reason, for one line of a message.
    #[must_use]
    pub fn brief(&self) -> String {
        let telling = self.reasons.iter().max_by_key(|reason| reason.tenths.unwrap_or(0).abs());
        let telling = self.reasons.first().filter(|_| self.score.is_none()).or(telling);
        telling.map_or_else(
            || self.relation.kind.to_string(),
            |reason| format!("{}: {}", self.relation.kind, reason.text),
        )
    }
}

/// What decided between the kernels; where a live test did, what their ids say as well.
fn kernel_reasons(world: &World, i: usize, j: usize) -> Vec<Reason> {
    let because = relate(world, i, j).because;
    let ids = if because.is_live() { by_ids(world, i, j) } else { None };
    [Some(because), ids].into_iter().flatten().map(|because| say(because.text())).collect()
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match self.tenths {
            Some(tenths) => write!(f, " {}", odds(tenths)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Relation { kind, confidence } = self.relation;
        write!(f, "{kind} ({confidence}")?;
        if let Some(score) = self.score {
            write!(f, ", {}", odds(score))?;
        }
        f.write_str("): ")?;
        let reasons: Vec<String> = self.reasons.iter().map(Reason::to_string).collect();
        f.write_str(&reasons.join(", "))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SameKernel => "same kernel",
            Self::SameMachine => "same machine",
            Self::UnknownExclude => "unknown",
            Self::Distinct => "distinct",
        })
    }
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Operator => "operator",
            Self::Proof => "proof",
        })
    }
}

fn say(text: &str) -> Reason {
    Reason { text: text.to_owned(), tenths: None }
}

/// Tenths as people read them: `+3.7`, `−0.3`.
fn odds(tenths: i32) -> String {
    let sign = if tenths < 0 { '−' } else { '+' };
    format!("{sign}{}.{}", tenths.unsigned_abs() / 10, tenths.unsigned_abs() % 10)
}

/// The signals that are there but could not be used.
fn unreadable(world: &World, at: usize) -> Vec<(AgentId, &'static str, String)> {
    let evidence = &world.agents[at].evidence;
    let mut found = Vec::new();
    let mut note = |signal, why: Option<String>, absent: bool| {
        if let Some(why) = why.filter(|_| !absent) {
            found.push((world.agents[at].id, signal, why));
        }
    };
    let single = [
        ("boot id", &evidence.boot_id),
        ("machine-id", &evidence.machine_id),
        ("SMBIOS UUID", &evidence.product_uuid),
        ("platform UUID", &evidence.platform_uuid),
        ("MachineGuid", &evidence.machine_guid),
        ("WSL host", &evidence.wsl_host_guid),
    ];
    for (signal, reading) in single {
        note(signal, reading.why_not(), *reading == Reading::Absent);
    }
    note("processor serials", evidence.ppin.why_not(), evidence.ppin == Reading::Absent);
    note("MAC addresses", evidence.macs.why_not(), evidence.macs == Reading::Absent);
    note("NVMe serials", evidence.nvme.why_not(), evidence.nvme == Reading::Absent);
    found
}
