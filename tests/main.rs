//! netaudit's integration tests: one binary, a module per part.

mod agent;
mod audit;
mod kernel;
#[allow(dead_code, unused_imports, reason = "shared with the tasks, and each side uses a part of it")]
mod lab;
mod deploy;
mod lab_layout;
