//! `cargo xtask fuzz`: the evaluator of policies against a plain one, on clusters made by chance, the reader of DNS
//! answers on hostile ones, the use of rules and what is tightened by it against what really happened, and the replay of flows, for as long
//! as one likes.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{
    mutate::mutate,
    process::{cargo, run},
};

/// What is fuzzed.
#[derive(clap::Subcommand)]
pub enum Task {
    /// Compare verdicts and their causes with those of a second, plain evaluator
    Policy {
        /// Flows to compare
        #[arg(long, default_value_t = 10_000_000)]
        flows: u64,
        /// The first cluster's seed; each cluster's is one more than the last one's
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// How many different differences end it
        #[arg(long, default_value_t = 1, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
        most: u16,
    },
    /// Read DNS answers that are broken in every way, and look at what comes out
    Dns {
        /// Answers of each kind
        #[arg(long, default_value_t = 1_000_000)]
        cases: u32,
    },
    /// Watch clusters in which much goes wrong: no rule may be called unused that was used
    Usage {
        /// Clusters
        #[arg(long, default_value_t = 10_000)]
        seeds: u64,
        /// The first cluster's seed
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Tighten policies of clusters with traffic: nothing that is needed may go, nothing new may be allowed, nearly all else must go
    Tighten {
        /// Clusters
        #[arg(long, default_value_t = 5_000)]
        seeds: u64,
        /// The first cluster's seed
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Judge flows again by other policies while objects change: by classes, one by one, and by a second evaluator
    WhatIf {
        /// Clusters
        #[arg(long, default_value_t = 5_000)]
        seeds: u64,
        /// The first cluster's seed
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Plant errors in a copy of the evaluator's text, and show which the comparison finds
    Mutants {
        /// How many
        #[arg(long, default_value_t = 60)]
        count: usize,
    },
}

/// Runs it to the end or to a difference, which is an error and is printed as the smallest case that shows it.
///
/// The comparison lives in the integration tests, which build in release mode here.
pub fn fuzz(root: &Path, task: &Task) -> Result<()> {
    let (flows, seed, most) = match task {
        Task::Policy { flows, seed, most } => (flows, seed, most),
        Task::Mutants { count } => return mutate(root, *count),
        Task::Usage { seeds, seed } => return clusters(root, "usage::simulation::long_run", *seeds, *seed),
        Task::Tighten { seeds, seed } => {
            return clusters(root, "tighten::simulation::long_run", *seeds, *seed);
        }
        Task::WhatIf { seeds, seed } => return clusters(root, "what_if::random::long_run", *seeds, *seed),
        Task::Dns { cases } => {
            let mut test = long_run(root, "dns::reading::long_run");
            return run(test.env("NETAUDIT_FUZZ_CASES", cases.to_string()));
        }
    };
    let mut test = long_run(root, "policy::fuzz::long_run");
    test.env("NETAUDIT_FUZZ_FLOWS", flows.to_string());
    test.env("NETAUDIT_FUZZ_SEED", seed.to_string());
    run(test.env("NETAUDIT_FUZZ_MOST", most.to_string()))
}

/// A test that makes a cluster of each seed.
fn clusters(root: &Path, test: &str, seeds: u64, first: u64) -> Result<()> {
    let mut test = long_run(root, test);
    test.env("NETAUDIT_FUZZ_SEEDS", seeds.to_string());
    run(test.env("NETAUDIT_FUZZ_SEED", first.to_string()))
}

/// A test that takes as long as one likes, in release mode.
fn long_run(root: &Path, name: &str) -> Command {
    let mut test = cargo(root, ["test", "--release", "--locked", "-p", "netaudit", "--test", "tests", "--"]);
    test.args(["--ignored", "--exact", name, "--nocapture"]);
    // With assertions, as the evaluator compares its quick way with the long one in them.
    test.env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true");
    // What says where the two differ is the message; where the test noticed is of no interest.
    test.env("RUST_BACKTRACE", "0");
    test
}
