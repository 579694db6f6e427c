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
