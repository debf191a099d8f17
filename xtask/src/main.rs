//! netaudit tasks
fn main(){}
