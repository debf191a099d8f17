//! `netaudit tighten`: what goes, what stays and why, how it is written, and the proofs.

mod command;
mod gitops;
mod proofs;
mod simulation;
mod writing;
