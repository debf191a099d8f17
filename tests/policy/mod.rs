//! A second evaluator of the policies, written from the API's text alone, and what compares the real one with it on
//! clusters made by chance. Both are asked the same: an answer that differs is a case of its own, made small and printed.

pub mod case;
mod compare;
mod fuzz;
pub mod generate;
mod generate_policies;
pub mod matching;
mod mutants;
mod mutants_network_policy;
mod mutants_tiers;
pub mod naive;
pub mod random;
mod real;
mod shrink;
mod suites;
mod tiers;
