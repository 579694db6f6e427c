//! What an agent would publish, for the eyes of its operator.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tropa_proto::{
    bounded::List,
    evidence::{Evidence, Facts, Gpu, GpuKind, LaneClaim, Reading, SaltName, Tag},
    id::hex,
};

use super::Logged;

/// One signal: its name, how it was read, what is published of it, and what was read.
struct Row {
    signal: &'static str,
    reading: &'static str,
    why: Option<String>,
    published: Vec<String>,
    raw: Vec<String>,
}

/// What was read, and what of it is published.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// What was read.
    pub facts: &'a Facts,
    /// What is published of it.
    pub evidence: &'a Evidence,
    /// The boot epoch, which travels in announcements.
    pub epoch: &'a Reading<i64>,
    /// What the log of the install's server says of its devices; of it the lane is published, where it decided.
    pub log: &'a Reading<Logged>,
    /// The former salt, under which the same is published while the mesh replaces it.
    pub former: Option<SaltName>,
}

/// Shows as text what would be published, what could not be read, and why. Raw values only with `raw`.
#[must_use]
pub fn show(shown: &Shown<'_>, raw: bool) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:<15}    {:<8}    {}",
        "SIGNAL",
        "READ",
        if raw { "PUBLISHED, AND RAW VALUE" } else { "PUBLISHED" }
    );
    for row in rows(shown) {
        let mut what = row.published.join(" ");
        if raw && !row.raw.is_empty() {
            let _ = write!(what, "  {}", row.raw.join(" "));
        }
        if let Some(why) = row.why {
            what = if what.is_empty() { why } else { format!("{what} ({why})") };
        }
        let line = format!("{:<15}    {:<8}    {what}", row.signal, row.reading);
        // Names come from files that others may have written, and this goes to a terminal.
        let line = line.replace(char::is_control, "\u{fffd}");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// Shows the same as one JSON object, `"schema":"tropa.evidence/1"`; raw values only with `raw`.
#[must_use]
pub fn show_json(shown: &Shown<'_>, raw: bool) -> Value {
    let signals = rows(shown).into_iter().map(|row| {
        let mut entry = json!({ "read": row.reading, "published": row.published });
        if let Some(why) = row.why {
            entry["why"] = json!(why);
        }
        if raw && !row.raw.is_empty() {
            entry["raw"] = json!(row.raw);
        }
        (row.signal.to_owned(), entry)
    });
    json!({
        "schema": "tropa.evidence/1",
        "declared": shown.facts.declared,
        "signals": Value::Object(signals.collect()),
    })
}

fn rows(shown: &Shown<'_>) -> Vec<Row> {
    let Shown { facts, evidence, epoch, log, former } = *shown;
    let cpus = &facts.cpus;
    let mut rows = vec![
        plain(
            "os",
            format!("{:?}{}", facts.os, if facts.declared { ", declared by the operator" } else { "" }),
        ),
        plain("hypervisor", format!("{:?}, class {:?}", facts.hypervisor, facts.hypervisor_class)),
        plain("time_namespace", facts.time_namespace.to_string()),
        row("epoch_ns", epoch, &[]),
        one("boot_id", &facts.boot_id, &evidence.boot_id),
        one("machine_id", &facts.machine_id, &evidence.machine_id),
        one("product_uuid", &facts.product_uuid, &evidence.product_uuid),
        one("platform_uuid", &facts.platform_uuid, &evidence.platform_uuid),
        one("machine_guid", &facts.machine_guid, &evidence.machine_guid),
        one("wsl_host_guid", &facts.wsl_host_guid, &evidence.wsl_host_guid),
        many("ppin", &facts.ppin, &evidence.ppin),
        many("macs", &facts.macs, &evidence.macs),
        many("nvme", &facts.nvme, &evidence.nvme),
        many("hosts_vms", &facts.hosts_vms, &evidence.hosts_vms),
        row("cpu_model", &facts.cpu_model, &[]),
        plain(
            "cpus",
            format!(
                "{} ({} cores), may use {}{}, memory nodes {} of {}",
                cpus.host,
                if cpus.physical == 0 { "unknown".to_owned() } else { cpus.physical.to_string() },
                or_unknown(&cpus.allowed),
                cpus.quota_milli.map_or_else(String::new, |milli| format!(", quota {milli}/1000")),
                or_unknown(&cpus.memory_nodes),
                cpus.numa_nodes,
            ),
        ),
        plain("memory", format!("{} bytes", facts.memory)),
    ];
    rows.extend(facts.gpus.iter().zip(evidence.gpus.iter()).map(|(gpu, keyed)| gpu_row(gpu, keyed)));
    rows.extend(
        facts
            .machine_rule
            .iter()
            .zip(&evidence.machine_rule)
            .map(|(rule, keyed)| Row { raw: vec![rule.clone()], ..plain("machine_rule", tag(keyed)) }),
    );
    rows.push(row("server_log", &log.map(logged), &[]));
    rows.push(plain("lane", claimed(&facts.lane)));
    rows.push(plain("lane_of_another", claimed(&facts.anywhere)));
    let former = former.map_or_else(String::new, |former| format!(", and {} before", hex(&former.0)));
    rows.push(plain("id_salt", format!("{}{former}", hex(&evidence.salt.0))));
    rows
}

/// The devices of a lane, as the operator would name them.
fn claimed(lane: &LaneClaim) -> String {
    let mut devices: Vec<String> = lane.gpus.iter().map(|place| format!("gpu:{place}")).collect();
    if lane.dram && lane.numa_nodes.is_empty() {
        devices.push("dram".to_owned());
    } else if lane.dram {
        devices.extend(lane.numa_nodes.iter().map(|node| format!("dram-node{node}")));
    }
    format!("{}, known by {:?}", devices.join(","), lane.method)
}

fn logged(log: &Logged) -> String {
    let addresses: Vec<&str> = log.addresses.iter().map(|address| &**address).collect();
    let devices = if addresses.is_empty() { "no GPU".to_owned() } else { addresses.join(" ") };
    format!("{devices}, says {}", log.place)
}

fn gpu_row(gpu: &Gpu<String>, keyed: &Gpu<Tag>) -> Row {
    let kind = match &keyed.kind {
        GpuKind::Full => String::new(),
        GpuKind::Mig { parent } => format!(", slice of {}", tag(parent)),
        GpuKind::Vgpu => ", virtual".to_owned(),
    };
    let id = keyed.uuid.as_ref().map_or_else(|| "no id".to_owned(), tag);
    let address = gpu.pci.as_deref().unwrap_or("no address");
    let shared = if gpu.uma { ", shares the host's memory" } else { "" };
    Row {
        raw: gpu.uuid.iter().cloned().collect(),
        ..plain(
            "gpu",
            format!("{} {} at {address}, {id}{kind}{shared}, {} bytes", &*gpu.vendor, &*gpu.name, gpu.memory),
        )
    }
}

fn plain(signal: &'static str, published: String) -> Row {
    Row { signal, reading: "ok", why: None, published: vec![published], raw: Vec::new() }
}

fn one(signal: &'static str, raw: &Reading<String>, keyed: &Reading<Tag>) -> Row {
    let values = [raw];
    let raw: Vec<String> = values.iter().filter_map(|reading| inner(reading).cloned()).collect();
    row(signal, &keyed.map(tag), &raw)
}

fn many<const MAX: usize>(
    signal: &'static str,
    raw: &Reading<List<String, MAX>>,
    keyed: &Reading<List<Tag, MAX>>,
) -> Row {
    let tags = keyed.map(|list| list.iter().map(tag).collect::<Vec<_>>().join(" "));
    row(signal, &tags, inner(raw).map_or(&[][..], |list| &list[..]))
}

fn row<T: std::fmt::Display>(signal: &'static str, published: &Reading<T>, raw: &[String]) -> Row {
    let reading = match published {
        Reading::Value(_) => "ok",
        Reading::Virtual(_) => "virtual",
        Reading::Absent => "absent",
        Reading::Denied => "denied",
        Reading::Rejected(_) => "rejected",
    };
    let why = match published {
        Reading::Value(_) | Reading::Absent => None,
        Reading::Virtual(_) => Some("not the kernel's own".to_owned()),
        Reading::Denied => Some("this user may not read it".to_owned()),
        Reading::Rejected(why) => Some(why.to_string()),
    };
    Row {
        signal,
        reading,
        why,
        published: inner(published).map(T::to_string).into_iter().collect(),
        raw: raw.to_vec(),
    }
}

fn inner<T>(reading: &Reading<T>) -> Option<&T> {
    match reading {
        Reading::Value(value) | Reading::Virtual(value) => Some(value),
        Reading::Absent | Reading::Denied | Reading::Rejected(_) => None,
    }
}

/// Eight digits are enough to compare by eye.
fn tag(tag: &Tag) -> String {
    hex(&tag.0[..4])
}

fn or_unknown(text: &str) -> &str {
    if text.is_empty() { "unknown" } else { text }
}
