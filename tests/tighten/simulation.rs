//! Clusters by the hundred with policies, traffic, real agents and a ledger of what happened; then policies are tightened as the command does
//! it. No flow that was observed and allowed may be denied, nothing new may be allowed, both by the independent evaluator of the tests, and nearly
//! all that the ledger knows to be unused must be gone.
//!
//! Each planted error must be found, or the simulation would not find one of its kind that somebody makes.

mod ask;
mod checks;
mod line;
mod planted;
mod recall;
mod render;
mod traffic;
mod world;

use std::{
    ops::Range,
    panic::{self, AssertUnwindSafe},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use netaudit::advise::tighten::Change;

use checks::{Figures, Written};
use planted::Planted;
use traffic::Trouble;
use world::{Lean, World};

use crate::policy::random::setting;

/// In every run of the tests.
const SEEDS: u64 = 60;

/// In how many worlds each planted error must be found.
const PLANTED_SEEDS: u64 = 80;

/// Connections that are asked of both sets of policies.
const PROBES: usize = 300;

/// Runs one world; the first thing that does not hold is the error.
fn run(seed: u64, planted: Planted, probes: usize) -> Result<Figures, String> {
    let lean = match planted {
        Planted::Except => Lean::Holes,
        Planted::Sctp => Lean::Sctp,
        // All worlds of a long run are not alike.
        _ if seed % 10 == 3 => Lean::Holes,
        _ => Lean::Nothing,
    };
    let mut world = World::new(seed, lean);
    let trouble = match planted {
        Planted::Losses => Some(Trouble::Loss(0, 2..28)),
        Planted::Elsewhere => Some(Trouble::NoAgent(0)),
        Planted::Except => Some(Trouble::Nothing),
        _ => None,
    };
    let past = traffic::pass(&mut world, trouble, planted.skips_replay());
    let files = render::render(&world.policies, &mut world.random);
    let line = line::line(&mut world, &past, &files, planted)?;
    let mut texts = line.patched.texts.clone();
    planted.texts(&mut texts);
    let mut new = line::values(&texts)?;
    let changes: Vec<Vec<&Change>> = (0..line.targets.len()).map(|it| line.changes(it)).collect();
    planted.values(&mut new, &changes);
    let written = Written { files: &files, texts: &texts, policies: &new };
    let mut figures = checks::check(&mut world, &past, &line, &written, planted, probes)?;
    figures.recall = recall::recall(&world, &past, &line);
    Ok(figures)
}

/// The same, where a panic is an error too.
fn tried(seed: u64, planted: Planted, probes: usize) -> Result<Figures, String> {
    let result = panic::catch_unwind(AssertUnwindSafe(|| run(seed, planted, probes)));
    let result = result.unwrap_or_else(|_| Err("it panicked".to_owned()));
    result.map_err(|error| format!("seed {seed}: {error}"))
}

/// Runs worlds on both of two processors, in no order. The first error that is met ends it.
fn run_all(seeds: Range<u64>, planted: Planted, probes: usize) -> Result<Figures, String> {
    let (next, failed) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let work = || -> Result<Figures, String> {
        let mut total = Figures::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || failed.load(Ordering::Relaxed) {
                return Ok(total);
            }
            let found = tried(seed, planted, probes);
            total.add(found.inspect_err(|_| failed.store(true, Ordering::Relaxed))?);
        }
    };
    thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        let mut total = Figures::default();
        for thread in threads {
            total.add(thread.join().expect("a thread that did not panic")?);
        }
        Ok(total)
    })
}

#[test]
fn nothing_that_is_needed_goes_and_nearly_all_else_does() {
    let figures = run_all(0..SEEDS, Planted::Nothing, PROBES).unwrap_or_else(|error| panic!("{error}"));
    println!("{figures:#?}\n{:.1} %", figures.recall.percent());
    assert!(figures.flows > 500 && figures.probes > 5_000 && figures.comments > 200, "{figures:?}");
    assert!(figures.changed_worlds * 2 > figures.worlds, "{figures:?}");
    assert!(figures.recall.percent() >= 95.0, "{figures:?}");
}

#[test]
fn every_planted_error_is_found() {
    // Or what is found would not be the error.
    run_all(0..PLANTED_SEEDS / 2, Planted::NoReplay, PROBES).unwrap_or_else(|error| panic!("{error}"));
    let found = Planted::ALL.map(|planted| {
        let error = run_all(0..PLANTED_SEEDS, planted, PROBES).err();
        let told = error.as_deref().map(|it| it.lines().next().unwrap_or_default().to_owned());
        println!("{planted:?}: {told:?}");
        (planted, error)
    });
    let is_missed = |(planted, error): &&(Planted, Option<String>)| {
        let told = error.as_deref().and_then(|it| it.lines().next()).unwrap_or_default();
        !told.contains(planted.shows())
    };
    let missed: Vec<Planted> = found.iter().filter(is_missed).map(|it| it.0).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// `cargo xtask fuzz tighten`: NETAUDIT_FUZZ_SEEDS worlds from NETAUDIT_FUZZ_SEED on.
#[test]
#[ignore = "as long as one likes"]
fn long_run() {
    let (first, seeds) = (setting("NETAUDIT_FUZZ_SEED", 0), setting("NETAUDIT_FUZZ_SEEDS", 5_000));
    let mut total = Figures::default();
    let end = first + seeds;
    for first in (first..end).step_by(100) {
        let next = end.min(first + 100);
        let figures = run_all(first..next, Planted::Nothing, 4 * PROBES);
        total.add(figures.unwrap_or_else(|error| panic!("{error}")));
        let (changes, percent) = (total.changes.values().sum::<u64>(), total.recall.percent());
        println!("fuzz: seeds before {next}: {changes} changes, {percent:.1} % of what is unused");
    }
    println!("{total:#?}");
    assert!(total.recall.percent() >= 95.0, "{:?}", total.recall);
}
