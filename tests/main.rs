//! netaudit's integration tests, in one binary.

mod conformance;
mod policy_laws;
mod semantics;
