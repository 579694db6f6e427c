//! Placeholder until the module lands in the next commits.
