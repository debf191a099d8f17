//! netaudit's integration tests: one binary, a module per part.

mod audit;
mod kernel;
