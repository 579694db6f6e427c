//! The `tropa` command.

pub mod job;
pub mod journal;
pub mod schedule;
