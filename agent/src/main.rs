//! tropa-agent
fn main() {}
