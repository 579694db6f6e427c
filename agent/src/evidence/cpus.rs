//! Processors and memory: what the host has, and what this process may use of it. Never an identity.
//!
//! Host totals and limits are kept apart: a quota of two processors on a host of 64 is both facts, and which of
//! them matters is for the roster to say.

use std::collections::BTreeSet;

use tropa_proto::{bounded::Text, canonical, evidence::Cpus};

use super::files::Root;

/// Levels of a cgroup path that are looked at; systemd and Kubernetes together make about eight.
const MAX_DEPTH: usize = 64;

const CPU: &str = "sys/devices/system/cpu";

/// Reads processor counts and limits of this process.
#[must_use]
pub fn read(root: &Root) -> Cpus {
    let status = root.line("proc/self/status").unwrap_or_default();
    let processors = processors(root);
    let nodes = numa_nodes(root);
    let allowed = if root.is_declared() { None } else { affinity() };
    let allowed =
        allowed.or_else(|| list(&status, "Cpus_allowed_list")).unwrap_or_else(|| processors.clone());
    Cpus {
        host: count(processors.len()),
        physical: count(physical_cores(root, &processors)),
        allowed: text(&allowed),
        quota_milli: quota_milli(root),
        memory_nodes: list(&status, "Mems_allowed_list").map(|nodes| text(&nodes)).unwrap_or_default(),
        numa_nodes: count(nodes.len().max(1)),
    }
}

/// Reads the memory of the host in bytes; 0 where it is not known.
#[must_use]
pub fn memory(root: &Root) -> u64 {
    if root.is_declared() {
        let meminfo = root.line("proc/meminfo").unwrap_or_default();
        let kibibytes =
            field(&meminfo, "MemTotal").and_then(|text| text.split_whitespace().next()?.parse().ok());
        return kibibytes.and_then(|kibibytes: u64| kibibytes.checked_mul(1024)).unwrap_or(0);
    }
    sysinfo::System::new().map_or(0, |mut system| {
        system.refresh_memory_specifics(sysinfo::MemoryRefreshKind::nothing().with_ram());
        system.total_memory()
    })
}

/// Gives the NUMA nodes to which a process is pinned by processors **and** memory; empty where it is not, or
/// where the host has one node only.
#[must_use]
pub fn pinned_nodes(root: &Root, status: &str) -> BTreeSet<u16> {
    let nodes = numa_nodes(root);
    let (Some(processors), Some(memory)) =
        (list(status, "Cpus_allowed_list"), list(status, "Mems_allowed_list"))
    else {
        return BTreeSet::new();
    };
    if nodes.len() < 2 || memory.is_empty() || memory.is_superset(&nodes) || !memory.is_subset(&nodes) {
        return BTreeSet::new();
    }
    let near: BTreeSet<u16> =
        memory.iter().filter_map(|node| node_processors(root, *node)).flatten().collect();
    if processors.is_subset(&near) { memory } else { BTreeSet::new() }
}

/// Finds `key: value` in a text of the kernel's.
pub(super) fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(found, _)| found.trim() == key)
        .map(|(_, v)| v.trim())
}

/// Lists the processors of the host: those that are online, else those that `/proc/cpuinfo` shows.
fn processors(root: &Root) -> BTreeSet<u16> {
    let online = root.line(&format!("{CPU}/online")).and_then(|text| canonical::cpu_list(&text));
    online.filter(|list| !list.is_empty()).unwrap_or_else(|| {
        let cpuinfo = root.text_up_to("proc/cpuinfo", super::files::MAX_CPUINFO);
        let cpuinfo = cpuinfo.value().map_or("", String::as_str);
        let numbers = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        numbers
            .filter(|(key, _)| key.trim() == "processor")
            .filter_map(|(_, n)| n.trim().parse().ok())
            .collect()
    })
}

/// Counts different pairs of package and core; 0 where the topology is not shown for every processor.
fn physical_cores(root: &Root, processors: &BTreeSet<u16>) -> usize {
    let core = |processor: &u16| {
        let read = |what| root.line(&format!("{CPU}/cpu{processor}/topology/{what}"));
        Some((read("physical_package_id")?, read("core_id")?))
    };
    let cores: Option<BTreeSet<_>> = processors.iter().map(core).collect();
    cores.map_or(0, |cores| cores.len())
}

#[cfg(target_os = "linux")]
fn affinity() -> Option<BTreeSet<u16>> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let set = sched_getaffinity(None).ok()?;
    Some(
        (0..CpuSet::MAX_CPU)
            .filter(|cpu| set.is_set(*cpu))
            .filter_map(|cpu| u16::try_from(cpu).ok())
            .collect(),
    )
}

#[cfg(not(target_os = "linux"))]
fn affinity() -> Option<BTreeSet<u16>> {
    None
}

fn numa_nodes(root: &Root) -> BTreeSet<u16> {
    let names = root.names("sys/devices/system/node");
    names.iter().filter_map(|name| name.strip_prefix("node")?.parse().ok()).collect()
}

fn node_processors(root: &Root, node: u16) -> Option<BTreeSet<u16>> {
    canonical::cpu_list(&root.line(&format!("sys/devices/system/node/node{node}/cpulist"))?)
}

/// The smallest quota on the whole path from this process's cgroup to the root, in thousandths of a processor.
///
/// In a container without a cgroup namespace the path names directories that only the host sees; what the
/// container sees of itself is then the root of the mount, which the walk reaches too.
fn quota_milli(root: &Root) -> Option<u32> {
    let cgroup = root.line("proc/self/cgroup")?;
    let mut quotas = Vec::new();
    for line in cgroup.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        if controllers.is_empty() {
            for mount in ["sys/fs/cgroup", "sys/fs/cgroup/unified"] {
                quotas.extend(levels(path).filter_map(|level| {
                    let text = root.line(&format!("{mount}/{level}cpu.max"))?;
                    let (quota, period) = text.split_once(char::is_whitespace)?;
                    milli(quota, period)
                }));
            }
        } else if controllers.split(',').any(|controller| controller == "cpu") {
            for mount in ["sys/fs/cgroup/cpu".to_owned(), format!("sys/fs/cgroup/{controllers}")] {
                quotas.extend(levels(path).filter_map(|level| {
                    let quota = root.line(&format!("{mount}/{level}cpu.cfs_quota_us"))?;
                    let period = root.line(&format!("{mount}/{level}cpu.cfs_period_us"))?;
                    milli(&quota, &period)
                }));
            }
        }
    }
    quotas.into_iter().min()
}

/// Every directory from a cgroup path up to the root, each ending in `/` or empty.
fn levels(path: &str) -> impl Iterator<Item = String> {
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != "." && *part != "..")
        .take(MAX_DEPTH)
        .collect();
    (0..=parts.len())
        .map(|depth| parts[..depth].iter().map(|part| format!("{part}/")).collect())
        .collect::<Vec<String>>()
        .into_iter()
}

/// `max` and `-1` are no quota; neither is what makes no sense.
fn milli(quota: &str, period: &str) -> Option<u32> {
    let (quota, period): (u64, u64) = (quota.trim().parse().ok()?, period.trim().parse().ok()?);
    let milli = quota.checked_mul(1000)?.checked_div(period)?;
    u32::try_from(milli.max(1)).ok()
}

fn list(status: &str, key: &str) -> Option<BTreeSet<u16>> {
    canonical::cpu_list(field(status, key)?)
}

/// A list that does not fit is left out, never cut: half of it would be another list.
fn text<const MAX: usize>(list: &BTreeSet<u16>) -> Text<MAX> {
    Text::new(canonical::cpu_list_text(list)).unwrap_or_default()
}

fn count(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::{super::files::tests::tree, *};

    fn quota(files: &[(&str, &str)]) -> Option<u32> {
        let (_directory, root) = tree(files);
        read(&root).quota_milli
    }

    #[test]
    fn the_smallest_quota_on_the_path_counts() {
        let path = ("proc/self/cgroup", "0::/kubepods/pod1/c1\n");
        let at = |level: &'static str| -> String { format!("sys/fs/cgroup/{level}cpu.max") };
        assert_eq!(quota(&[path, (&at("kubepods/pod1/c1/"), "50000 100000\n")]), Some(500));
        assert_eq!(quota(&[path, (&at("kubepods/pod1/c1/"), "max 100000\n")]), None);
        let nested = [
            path,
            (&at("kubepods/pod1/c1/"), "400000 100000\n"),
            (&at("kubepods/pod1/"), "150000 100000\n"),
            (&at("kubepods/"), "max 100000\n"),
        ];
        assert_eq!(quota(&nested), Some(1500));
        assert_eq!(
            quota(&[path, (&at(""), "200000 100000\n")]),
            Some(2000),
            "the root of a container's mount"
        );
        for junk in ["", "a b", "1", "5 0", "-5 100000", "99999999999999999999 1"] {
            assert_eq!(quota(&[path, (&at(""), junk)]), None, "{junk}");
        }
    }

    #[test]
    fn the_older_cgroups_are_read_too_and_minus_one_is_no_quota() {
        let path = ("proc/self/cgroup", "4:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n0::/\n");
        let period = ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
        let file = "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us";
        assert_eq!(quota(&[path, period, (file, "250000\n")]), Some(2500));
        assert_eq!(quota(&[path, period, (file, "-1\n")]), None);
        let outside = ("proc/self/cgroup", "0::/../../other\n");
        assert_eq!(quota(&[outside, ("sys/fs/cgroup/other/cpu.max", "1000 100000")]), Some(10));
    }

    #[test]
    fn what_may_be_used_and_what_is_there_are_two_numbers() {
        let (_directory, root) = tree(&[
            ("sys/devices/system/cpu/online", "0-3\n"),
            ("sys/devices/system/cpu/cpu0/topology/core_id", "0\n"),
            ("sys/devices/system/cpu/cpu0/topology/physical_package_id", "0\n"),
            ("sys/devices/system/cpu/cpu1/topology/core_id", "1\n"),
            ("sys/devices/system/cpu/cpu1/topology/physical_package_id", "0\n"),
            ("sys/devices/system/cpu/cpu2/topology/core_id", "0\n"),
            ("sys/devices/system/cpu/cpu2/topology/physical_package_id", "0\n"),
            ("sys/devices/system/cpu/cpu3/topology/core_id", "1\n"),
            ("sys/devices/system/cpu/cpu3/topology/physical_package_id", "0\n"),
            ("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0,2-3\nMems_allowed_list:\t0\n"),
            ("sys/devices/system/node/node0/cpulist", "0-3\n"),
            ("proc/meminfo", "MemTotal:       16384 kB\nMemFree: 1 kB\n"),
        ]);
        let cpus = read(&root);
        assert_eq!((cpus.host, cpus.physical, &*cpus.allowed), (4, 2, "0,2-3"));
        assert_eq!((&*cpus.memory_nodes, cpus.numa_nodes), ("0", 1));
        assert_eq!(memory(&root), 16 << 20);
    }

    #[test]
    fn without_any_file_the_counts_say_unknown() {
        let (_directory, root) = tree(&[]);
        assert_eq!(read(&root), Cpus { numa_nodes: 1, ..Cpus::default() });
        assert_eq!(memory(&root), 0);
    }

    #[test]
    fn only_processors_and_memory_together_pin_to_a_node() {
        let (_directory, root) = tree(&[
            ("sys/devices/system/node/node0/cpulist", "0-3\n"),
            ("sys/devices/system/node/node1/cpulist", "4-7\n"),
        ]);
        let pinned = |cpus: &str, mems: &str| {
            pinned_nodes(&root, &format!("Cpus_allowed_list:\t{cpus}\nMems_allowed_list:\t{mems}\n"))
        };
        assert_eq!(pinned("4-5", "1"), BTreeSet::from([1]));
        assert!(pinned("4-5", "0-1").is_empty(), "memory anywhere");
        assert!(pinned("0-7", "1").is_empty(), "processors anywhere");
        assert!(pinned("0-3", "1").is_empty(), "processors of the other node");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_machine_that_runs_this_test_has_processors_and_memory() {
        let root = Root::live();
        assert!(read(&root).host > 0 && memory(&root) > 0 && !read(&root).allowed.is_empty());
    }
}
