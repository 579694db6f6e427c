//! Every test of the mesh as a whole, in one binary: one link instead of one per file.
#![expect(clippy::unwrap_used, reason = "a test, or what it calls, fails by a panic")]

mod cli;
mod conformance;
mod double_own;
mod embed;
#[cfg(target_os = "linux")]
mod environments;
mod failure_modes;
#[cfg(target_os = "linux")]
mod faults;
mod floors;
mod identity;
mod identity_oracle;
mod identity_properties;
mod jobs;
mod keys;
#[cfg(target_os = "linux")]
mod lan;
mod live;
mod map;
mod privileged;
mod real_engine;
mod real_jobs;
mod real_texts;
mod report_page;
mod rules;
mod schedule;
mod simulation;
mod texts;
mod uid;
