//! The file with the raw data, and what is said there of the machine.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::report::{Environment, Report};
use crate::exit::{Exit, Failed, OrExit as _};

/// A file that takes the raw data: there from the beginning, so that an hour of work does not end without a place.
pub(super) struct Raw<'a> {
    path: &'a Path,
    beside: PathBuf,
}

impl<'a> Raw<'a> {
    pub(super) fn create(path: &'a Path) -> Result<Self, Failed> {
        let mut name = path.as_os_str().to_owned();
        name.push(".tmp");
        let beside = PathBuf::from(name);
        File::create(&beside).with_context(|| format!("creating {}", beside.display())).or_exit(Exit::Io)?;
        Ok(Self { path, beside })
    }

    pub(super) fn write(&self, report: &Report) -> Result<(), Failed> {
        let mut bytes = serde_json::to_vec_pretty(report).context("writing JSON").or_exit(Exit::Io)?;
        bytes.push(b'\n');
        let written =
            std::fs::write(&self.beside, bytes).and_then(|()| std::fs::rename(&self.beside, self.path));
        written.with_context(|| format!("writing {}", self.path.display())).or_exit(Exit::Io)
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        // It is there only where nothing came of the measurement.
        let _ = std::fs::remove_file(&self.beside);
    }
}

pub(super) fn environment() -> Environment {
    let line = |file: &str| std::fs::read_to_string(file).ok().map(|text| text.trim().to_owned());
    let processor = line("/proc/cpuinfo").and_then(|text| {
        let named = text.lines().find(|line| line.starts_with("model name"))?;
        Some(named.split_once(':')?.1.trim().to_owned())
    });
    Environment {
        tropa: env!("CARGO_PKG_VERSION"),
        debug_build: cfg!(debug_assertions),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        kernel: line("/proc/sys/kernel/osrelease"),
        processor,
        cores: std::thread::available_parallelism().map_or(0, usize::from),
    }
}

/// Of the last minute; absent where the system does not say.
pub(super) fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// What the system counts of its processors' time, in ticks since it started.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProcessorTime {
    all: u64,
    stolen: u64,
}

/// Read from the first line of `/proc/stat`; absent where there is none.
pub(super) fn processor_time() -> Option<ProcessorTime> {
    ticks(&std::fs::read_to_string("/proc/stat").ok()?)
}

/// The part of all processors' time, from 0 to 1, that a hypervisor gave to others between the two.
pub(super) fn stolen(before: Option<ProcessorTime>, after: Option<ProcessorTime>) -> Option<f64> {
    let (before, after) = (before?, after?);
    let all = after.all.checked_sub(before.all).filter(|all| *all > 0)?;
    Some(after.stolen.saturating_sub(before.stolen) as f64 / all as f64)
}

fn ticks(stat: &str) -> Option<ProcessorTime> {
    let times = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    // User, nice, system, idle, waiting, two kinds of interrupts, stolen; guests, which follow, are in the first two.
    let times: Vec<u64> = times.take(8).map_while(|time| time.parse().ok()).collect();
    Some(ProcessorTime { all: times.iter().sum(), stolen: *times.get(7)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hypervisor_takes_is_a_part_of_all_time() {
        let before = ticks("cpu  10 0 10 80 0 0 0 0 5 5\ncpu0 1\n");
        let after = ticks("cpu  40 0 20 110 5 1 4 20 9 9\n");
        assert_eq!(stolen(before, after), Some(0.2));
        assert_eq!(stolen(before, before), None);
        assert!(ticks("intr 7\n").is_none() && ticks("cpu  1 2 3\n").is_none());
    }
}
