//! Every test of the mesh as a whole, in one binary: one link instead of one per file.
#![expect(clippy::unwrap_used, reason = "a test, or what it calls, fails by a panic")]

mod bench;
mod canary;
mod caps;
mod cli;
mod conformance;
#[cfg(target_os = "linux")]
mod crash;
mod decisions;
mod double_own;
mod embed;
#[cfg(target_os = "linux")]
mod environments;
#[cfg(target_os = "linux")]
mod evil;
mod failure_modes;
#[cfg(target_os = "linux")]
mod faults;
mod floors;
#[cfg(target_os = "linux")]
mod hostile;
mod identity;
mod identity_oracle;
mod identity_properties;
mod jobs;
mod journals;
mod keys;
#[cfg(target_os = "linux")]
mod lan;
mod live;
mod map;
mod planted;
#[cfg(target_os = "linux")]
mod policy;
mod privileged;
mod real_engine;
mod real_jobs;
mod real_texts;
mod report_page;
mod restarts;
mod rules;
mod salts;
mod schedule;
mod simulated;
mod texts;
mod traps;
mod uid;
