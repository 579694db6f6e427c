//! Counters of the kernel, for the counter sandwich (`identity.md` §9): two readers of one kernel see one rising
//! number, and two kernels never keep in step.
//!
//! Both files hold the whole kernel's numbers in every container, unless something is mounted over them (lxcfs over
//! `/proc/stat`) or `/proc` is no procfs at all. So a counter is a value only where its file lies on a procfs, and
//! not under gVisor, which has a `/proc` of its own making.

use tropa_proto::{bounded::Text, evidence::Reading, message::Counters};

use super::{files::Root, platform};

/// Reads the four counters; those that are not the kernel's own are `Virtual`.
#[must_use]
pub fn read_counters(root: &Root) -> Counters {
    let gvisor = platform::read(root).gvisor;
    let file = |path: &str| {
        let text = root.text_up_to(path, MAX_STAT);
        if gvisor || !root.on_procfs(path) { text.into_virtual() } else { text }
    };
    let (stat, vmstat) = (file("proc/stat"), file("proc/vmstat"));
    Counters {
        ctxt: counter(&stat, "ctxt"),
        processes: counter(&stat, "processes"),
        pgfault: counter(&vmstat, "pgfault"),
        pgfree: counter(&vmstat, "pgfree"),
    }
}

/// Bytes of `/proc/stat`: its lines of interrupts grow with the processors, to some hundred KiB on large hosts.
const MAX_STAT: usize = 1 << 20;

/// The number in the line that begins with this word.
fn counter(text: &Reading<String>, word: &str) -> Reading<u64> {
    let find = |text: &String| {
        text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' ')?.trim().parse().ok())
    };
    match text {
        Reading::Value(text) => find(text).map_or(Reading::Absent, Reading::Value),
        Reading::Virtual(text) => find(text).map_or(Reading::Absent, Reading::Virtual),
        Reading::Absent => Reading::Absent,
        Reading::Denied => Reading::Denied,
        Reading::Rejected(why) => Reading::Rejected(Text::clone(why)),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::files::tests::tree, *};

    #[test]
    #[cfg(target_os = "linux")]
    fn the_counters_of_this_kernel_rise_and_are_genuine_on_procfs() {
        let root = Root::live();
        if !root.on_procfs("proc/vmstat") || platform::read(&root).gvisor {
            // A sandbox with a /proc of its own making.
            assert!(!read_counters(&root).pgfault.is_genuine());
            return;
        }
        let (one, other) = (read_counters(&root), read_counters(&root));
        let count = |counters: &Counters| *counters.pgfault.value().unwrap();
        assert!(count(&one) > 0 && count(&one) <= count(&other));
    }

    #[test]
    fn a_file_that_is_no_procfs_gives_no_genuine_counter() {
        let (_directory, root) = tree(&[
            ("proc/stat", "cpu  1 2 3\nctxt 70000\nbtime 1\nprocesses 301\n"),
            ("proc/vmstat", "pgfault 12\npgfree_not 9\npgfree x\n"),
        ]);
        let counters = read_counters(&root);
        assert_eq!(counters.ctxt, Reading::Virtual(70_000));
        assert_eq!(counters.processes, Reading::Virtual(301));
        assert_eq!(counters.pgfault, Reading::Virtual(12));
        assert_eq!(counters.pgfree, Reading::Absent);
        let (_directory, root) = tree(&[]);
        assert_eq!(read_counters(&root).ctxt, Reading::Absent);
    }
}
