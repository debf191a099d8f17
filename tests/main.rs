//! netaudit's integration tests: one binary, a module per part.

mod agent;
mod alerts;
mod audit;
mod command;
mod conformance;
mod deploy;
mod dns;
mod eval;
mod eval_ends;
mod expectations;
mod flow_store;
mod history;
mod kernel;
#[allow(dead_code, unused_imports, reason = "shared with the tasks, and each side uses a part of it")]
mod lab;
mod lab_layout;
mod lint;
mod matrix;
mod otlp;
mod policy;
mod policy_laws;
mod semantics;
mod shell;
mod sql;
mod symbolic;
mod tighten;
mod usage;
mod watch;
mod what_if;
mod why;
