//! netaudit's integration tests, in one binary.

mod conformance;
mod eval;
mod policy_laws;
mod semantics;
