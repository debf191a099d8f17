//! Usage of rules: rows that merge, what is stored, and a simulation in which nothing that was used is called unused.

pub mod agents;
mod ledger;
mod simulation;
mod store;
mod world;
