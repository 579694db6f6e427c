//! The `tropa` command.

pub mod journal;
pub mod schedule;
