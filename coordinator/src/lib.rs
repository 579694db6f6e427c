//! The `tropa` command.

pub mod schedule;
