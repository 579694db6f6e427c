//! Fusion.

mod warnings;

pub use warnings::{Code, Warning};
