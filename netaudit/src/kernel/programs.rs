//! What the loaded programs are and what they cost, as the kernel counts it.

use std::{os::fd::OwnedFd, time::Duration};

use aya::sys::{Stats, enable_stats};

use super::Kernel;

/// A program of the object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProgramState {
    /// The name of its function, such as `on_connect4`.
    pub name: String,
    /// Whether the kernel has it. What it has is attached too, or runs when a scan asks for it.
    pub loaded: bool,
    /// How often it ran while costs were counted.
    pub runs: u64,
    /// How long it ran in all of these.
    pub time: Duration,
}

/// Costs are counted while this is kept: by every program of the machine, at some ten nanoseconds a run.
#[derive(Debug)]
pub struct CostCounter(#[expect(dead_code, reason = "what matters is that it is open")] OwnedFd);

impl CostCounter {
    /// Begins to count.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, in its words: older than 5.8, or without `CAP_SYS_ADMIN`.
    pub fn start() -> Result<Self, String> {
        let refused = |error: aya::sys::SyscallError| error.io_error.to_string();
        enable_stats(Stats::RunTime).map(Self).map_err(refused)
    }
}

impl Kernel {
    /// Every program of the object, in order of name.
    pub fn programs(&self) -> Vec<ProgramState> {
        let state = |(name, program): (&str, &aya::programs::Program)| {
            let info = program.info().ok();
            let (runs, time) =
                info.as_ref().map_or_else(Default::default, |it| (it.run_count(), it.run_time()));
            ProgramState { name: name.to_owned(), loaded: info.is_some(), runs, time }
        };
        let mut programs: Vec<_> = self.ebpf.programs().map(state).collect();
        programs.sort_by(|a, b| a.name.cmp(&b.name));
        programs
    }
}
