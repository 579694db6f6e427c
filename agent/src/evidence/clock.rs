//! The boot epoch: when this kernel was booted, by its own clocks.
//!
//! `CLOCK_REALTIME` − `CLOCK_BOOTTIME` is the same number, to the nanosecond, for every process of one kernel, and
//! slewing the clock does not change it. It changes when the clock is stepped, and a time namespace shifts it.

use tropa_proto::{
    canonical,
    evidence::{Os, Reading},
};

use super::{
    files::{Root, rejected},
    os,
    platform::{self, Platform},
};

/// The name of the time namespace in which no clock is shifted (`PROC_TIME_INIT_INO` of the kernel).
const INITIAL_TIME_NAMESPACE: &str = "time:[4026531834]";

/// The clock of a kernel's boot, which is read whenever an agent is heard. What kind of system keeps it is read once:
/// that takes dozens of files, `/proc/cpuinfo` among them, which wakes idle processors.
#[derive(Clone, Debug)]
pub struct BootClock {
    root: Root,
    /// Of Linux; other systems publish no epoch.
    platform: Option<Platform>,
}

impl BootClock {
    /// Of the kernel that a root shows.
    #[must_use]
    pub fn of(root: &Root) -> Self {
        let platform = match os(root) {
            Os::Linux => Some(platform::read(root)),
            Os::Macos | Os::Windows => None,
        };
        Self { root: root.clone(), platform }
    }

    /// Samples the boot epoch in nanoseconds since 1970; travels in announcements, not in the bundle.
    #[must_use]
    pub fn sample(&self) -> Reading<i64> {
        self.platform.as_ref().map_or(Reading::Absent, |platform| sample_epoch(&self.root, platform))
    }
}

/// Samples the boot epoch in nanoseconds since 1970; of a declared root reads `tropa/epoch_ns`.
#[must_use]
fn sample_epoch(root: &Root, platform: &Platform) -> Reading<i64> {
    let read = if root.is_declared() {
        root.text("tropa/epoch_ns").and_then(|text| match text.trim().parse() {
            Ok(ns) => canonical::epoch(ns),
            Err(_) => rejected("not a number of nanoseconds"),
        })
    } else {
        live()
    };
    // gVisor keeps clocks of its own.
    if platform.gvisor { read.into_virtual() } else { read }
}

/// Says whether a time namespace shifts the clocks of this process. Both files missing: the kernel has none. What is
/// there and cannot be read counts as a shift, since epochs are then compared with nobody's.
#[must_use]
pub fn time_namespace(root: &Root) -> bool {
    let declared = root.line("tropa/time_namespace").filter(|_| root.is_declared());
    if let Some(text) = declared {
        return text == "1" || text == "true";
    }
    const NAMESPACE: &str = "proc/self/ns/time";
    let elsewhere = match root.link(NAMESPACE) {
        Some(name) => name != INITIAL_TIME_NAMESPACE,
        None => root.exists(NAMESPACE),
    };
    // Lines of `monotonic <seconds> <nanoseconds>`.
    let is_zero = |number: &str| number.parse() == Ok(0_i64);
    let shifted = match root.text("proc/self/timens_offsets") {
        Reading::Value(offsets) | Reading::Virtual(offsets) => {
            offsets.lines().any(|line| !line.split_whitespace().skip(1).all(is_zero))
        }
        Reading::Absent => false,
        // They are there, and may be anything.
        Reading::Denied | Reading::Rejected(_) => true,
    };
    elsewhere || shifted
}

#[cfg(target_os = "linux")]
fn live() -> Reading<i64> {
    use rustix::time::{ClockId, clock_gettime};

    /// Tries: the smallest of 64 is free of interruptions even on a busy machine, and all take 10 µs.
    const BRACKETS: usize = 64;

    let nanoseconds = |clock| {
        let time = clock_gettime(clock);
        i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
    };
    let best = (0..BRACKETS)
        .map(|_| {
            let before = nanoseconds(ClockId::Boottime);
            let real = nanoseconds(ClockId::Realtime);
            let after = nanoseconds(ClockId::Boottime);
            (after - before, real - (before + after) / 2)
        })
        .min();
    match best.map(|(_, epoch)| i64::try_from(epoch)) {
        Some(Ok(epoch)) => canonical::epoch(epoch),
        Some(Err(_)) | None => rejected("the clock is out of range"),
    }
}

/// macOS and Windows publish no epoch.
#[cfg(not(target_os = "linux"))]
fn live() -> Reading<i64> {
    Reading::Absent
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tropa_proto::evidence::{Hypervisor, HypervisorClass};

    use super::{super::files::tests::tree, *};

    const PLAIN: Platform = Platform {
        hypervisor: Hypervisor::Unknown,
        class: HypervisorClass::Unknown,
        gvisor: false,
        wsl: false,
    };

    #[test]
    #[cfg(target_os = "linux")]
    fn two_samples_of_one_kernel_agree_within_two_microseconds() {
        let sample = || *sample_epoch(&Root::live(), &PLAIN).value().unwrap();
        // A clock step between the two is possible and rare: three pairs never meet one each.
        assert!((0..3).any(|_| (sample() - sample()).abs() <= 2_000));
    }

    #[test]
    fn a_declared_epoch_is_read_and_one_before_2020_is_not_believed() {
        let epoch = |text: &str| {
            let (_directory, root) = tree(&[("tropa/epoch_ns", text)]);
            sample_epoch(&root, &PLAIN)
        };
        assert_eq!(epoch("1763000000123456789\n"), Reading::Value(1_763_000_000_123_456_789));
        for text in ["12345", "0", "-1", "", "soon", "99999999999999999999999"] {
            assert!(matches!(epoch(text), Reading::Rejected(_)), "{text}");
        }
        let (_directory, root) = tree(&[]);
        assert_eq!(sample_epoch(&root, &PLAIN), Reading::Absent);
        let (_directory, root) = tree(&[("tropa/epoch_ns", "1763000000123456789")]);
        assert!(sample_epoch(&root, &Platform { gvisor: true, ..PLAIN }).is_virtual());
    }

    #[test]
    fn the_clock_is_read_whenever_it_is_asked_and_the_platform_once() {
        let gvisor = "Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016\n";
        let (directory, root) =
            tree(&[("proc/version", gvisor), ("tropa/epoch_ns", "1763000000123456789\n")]);
        let clock = BootClock::of(&root);
        std::fs::remove_file(directory.path().join("proc/version")).unwrap();
        std::fs::write(directory.path().join("tropa/epoch_ns"), "1763000000999999999\n").unwrap();
        assert_eq!(clock.sample(), Reading::Virtual(1_763_000_000_999_999_999));
        assert!(BootClock::of(&root).sample().is_genuine(), "nothing is left that says so");
    }

    #[test]
    fn a_time_namespace_is_known_by_its_name_or_by_its_offsets() {
        let (_directory, root) = tree(&[]);
        assert!(!time_namespace(&root));
        let (_directory, root) = tree(&[("proc/self/timens_offsets", "monotonic  0  0\nboottime  0  0\n")]);
        assert!(!time_namespace(&root));
        let (_directory, root) = tree(&[("proc/self/timens_offsets", "monotonic  0  0\nboottime  -5  0\n")]);
        assert!(time_namespace(&root));
        let (directory, root) = tree(&[("proc/self/ns/x", "")]);
        symlink("time:[4026532345]", directory.path().join("proc/self/ns/time")).unwrap();
        assert!(time_namespace(&root));
        let (_directory, root) = tree(&[("tropa/time_namespace", "1\n")]);
        assert!(time_namespace(&root));
    }
}
