//! tropa
fn main() {}
