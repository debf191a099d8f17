//! Integration tests: one binary.

mod audit;
