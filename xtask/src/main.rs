//! netaudit tasks
fn main() {}
