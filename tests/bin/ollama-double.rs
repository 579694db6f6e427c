//! double
fn main() {}
