//! Clusters by the hundred, in which agents restart, die and are away, records are lost, clocks are set, files are torn, pods, policies
//! and rules come and go; and a ledger of what really happened. No rule may be called unused that was used, and each that
//! nobody used must be called so once everything has been watched for long enough.
//!
//! Each planted error must be found, or the simulation would not find one of its kind that somebody makes.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use netaudit::audit::{
    Missing, RuleKey,
    usage::{Evidence, Judgement, Lack, Rows, RuleFinding, histories, judge},
};

use super::world::{NEEDS, PERIOD, SECOND, STEP, WINDOW, World};
use crate::policy::random::setting;

/// In every run of the tests.
const SEEDS: u64 = 80;

/// In how many of them each planted error must be found.
const PLANTED_SEEDS: u64 = 40;

/// Days in which things go wrong.
const DAYS: i64 = 3;

/// What was said of the rules of one world.
#[derive(Default)]
struct Said {
    unused: usize,
    insufficient: usize,
    found_at_the_end: usize,
    in_doubt_at_the_end: usize,
    mistaken: usize,
    /// Rules that were said to be unused when the CronJob was there, and when.
    said_unused: BTreeMap<RuleKey, Vec<i64>>,
    /// Uses by the CronJob that were looked at.
    of_cron_job: usize,
    /// Rules of which it was said that the CronJob has not had the time to run.
    waiting: usize,
}

/// An error, made on purpose, in what the rows say.
#[derive(Clone, Copy, Debug)]
enum Planted {
    Nothing,
    /// Losses are forgotten.
    Losses,
    /// Flows without a verdict are forgotten.
    Doubts,
    /// Time in which nobody watched is taken to be watched.
    Gaps,
    /// Pods on nodes without an agent are forgotten.
    Elsewhere,
    /// A run that was killed is taken to have told all.
    Killed,
    /// Uses of earlier runs are forgotten, though not that they watched.
    Uses,
    /// Half of the window is enough.
    Window,
    /// Nobody knows of the CronJob.
    CronJob,
}

impl Planted {
    const ALL: [Self; 8] = [
        Self::Losses,
        Self::Doubts,
        Self::Gaps,
        Self::Elsewhere,
        Self::Killed,
        Self::Uses,
        Self::Window,
        Self::CronJob,
    ];

    /// The rows as they would be with the error.
    fn spoil(self, rows: Rows) -> Rows {
        let mut spoilt = Rows { runs: rows.runs, together: rows.together, ..Rows::default() };
        let last = spoilt.runs.values().map(|run| run.sequence).max().unwrap_or(0);
        for (key, mut row) in rows.rules {
            match self {
                Self::Losses => row.lost = 0,
                Self::Doubts => row.unjudged = 0,
                Self::Elsewhere => row.selected_ms = row.observed_ms,
                Self::CronJob => row.schedule = Default::default(),
                Self::Uses if spoilt.runs.get(&key.run).is_some_and(|run| run.sequence < last) => {
                    row.uses = Default::default();
                }
                Self::Gaps => {
                    let length = u64::try_from(WINDOW.as_millis()).unwrap_or(0) / 4;
                    let pods = row.selected_ms.checked_div(row.watched_ms).unwrap_or(1);
                    row.from = row.from.minus(WINDOW / 4);
                    row.watched_ms += length;
                    row.selected_ms += length * pods;
                    row.observed_ms += length * pods;
                }
                _ => {}
            }
            spoilt.rules.insert(key, row);
        }
        spoilt
    }

    /// What must happen for the error to matter, by its number in the world, so that it happens more often.
    fn shows_where(self) -> Option<usize> {
        match self {
            Self::Losses => Some(10),
            Self::Doubts => Some(9),
            Self::Killed => Some(2),
            Self::Gaps | Self::Window => Some(0),
            Self::Nothing | Self::Elsewhere | Self::Uses | Self::CronJob => None,
        }
    }

    /// Whether there must be a CronJob, or none, for the error to show.
    fn with_cron_job(self) -> Option<bool> {
        match self {
            Self::CronJob => Some(true),
            Self::Window => Some(false),
            _ => None,
        }
    }

    fn needs(self) -> Evidence {
        match self {
            Self::Window => Evidence { window: WINDOW / 2, ..NEEDS },
            _ => NEEDS,
        }
    }
}

/// Runs one world; the first thing that was said wrongly is the error.
fn run(seed: u64, planted: Planted) -> Result<Said, String> {
    let mut world = World::new(seed, planted.shows_where(), planted.with_cron_job());
    let mut said = Said::default();
    let steps = DAYS * 24 * 3_600 * SECOND / STEP;
    for step in 0..steps {
        world.step();
        if matches!(planted, Planted::Killed) {
            world.nodes.iter_mut().for_each(super::agents::Node::call_it_an_end);
        }
        if step % 9 == 8 {
            look(&mut world, planted, &mut said)
                .map_err(|error| format!("seed {seed}, step {step}: {error}"))?;
        }
    }
    world.calm_down();
    // What was on its way when it became calm, and the window that this belongs to, must be older than what is asked for.
    let window = if world.cron_job.is_some() { PERIOD + PERIOD / 10 } else { WINDOW };
    for _ in 0..(i64::try_from(window.as_nanos()).expect("a day") + 4 * 3_600 * SECOND) / STEP {
        world.step();
    }
    look(&mut world, planted, &mut said).map_err(|error| format!("seed {seed}, at the end: {error}"))?;
    at_the_end(&mut world, planted, &mut said)
        .map_err(|error| format!("seed {seed}, at the end: {error}"))?;
    Ok(said)
}

/// Whether anything that is said of the rules is wrong.
fn look(world: &mut World, planted: Planted, said: &mut Said) -> Result<(), String> {
    let histories = histories(&planted.spoil(world.rows()));
    let told = world.told(histories.told);
    let window = i64::try_from(WINDOW.as_nanos()).expect("a day");
    for judgement in judge(&histories, &planted.needs()) {
        let key = &judgement.history.key;
        match judgement.finding {
            RuleFinding::Unused { since } => {
                said.unused += 1;
                // Of a day nine seconds need not be covered.
                let used = world.ledger.between(key, told - window + 10 * SECOND, told);
                if used > 0 {
                    return Err(format!(
                        "{key:?} is said to be unused since {since}, and was used {used} times"
                    ));
                }
                if world.cron_job.is_some() {
                    said.said_unused.entry(key.clone()).or_default().push(told);
                }
            }
            RuleFinding::Insufficient(lack) => {
                said.insufficient += 1;
                said.waiting += usize::from(lack.missing == Missing::Period);
            }
            _ => {}
        }
    }
    needed_by_the_cron_job(world, said)?;
    // Who sees everything says so in metrics.
    for node in &mut world.nodes {
        let line = node.line(world.now);
        let Some(agent) = node.agent.as_mut().filter(|agent| agent.auditor.is_only_agent()) else { continue };
        agent.auditor.usage_mut().settle();
        let (now, usage) = (line, agent.auditor.usage());
        for rule in usage.current() {
            let key = (&*rule.rule).into();
            let used = world.ledger.between(&key, world.now - window + 10 * SECOND, world.now);
            if usage.unused(rule, now, &agent.auditor.evidence()) == Ok(true) && used > 0 {
                return Err(format!("metrics: {key:?} is said to be unused, and was used {used} times"));
            }
        }
    }
    Ok(())
}

/// Whether a rule was said to be unused within the time between two runs of the CronJob, the later of which needed it.
fn needed_by_the_cron_job(world: &World, said: &mut Said) -> Result<(), String> {
    let period = i64::try_from(PERIOD.as_nanos()).expect("hours");
    for (key, at) in &world.ledger.of_cron_job[said.of_cron_job..] {
        let too_early = said.said_unused.get(key).into_iter().flatten();
        if let Some(told) = too_early.filter(|told| (*at - period..*at).contains(*told)).max() {
            return Err(format!(
                "{key:?} is said to be unused at {told}, and was needed at {at} by the CronJob"
            ));
        }
    }
    said.of_cron_job = world.ledger.of_cron_job.len();
    Ok(())
}

/// Whether all that can be said to be unused is.
fn at_the_end(world: &mut World, planted: Planted, said: &mut Said) -> Result<(), String> {
    let histories = histories(&planted.spoil(world.rows()));
    let needs = planted.needs();
    let judged = judge(&histories, &needs);
    // What a rule for the CronJob lacks in the time between two of its runs only is said to be that time, whatever it is.
    let longer = judge(&histories, &Evidence { window: PERIOD + PERIOD / 10, ..needs });
    let is_in_doubt = |found: &Judgement| {
        matches!(found.finding, RuleFinding::Insufficient(Lack { missing: Missing::Verdicts, .. }))
    };
    for key in world.provable() {
        if world.ledger.between(&key, 0, i64::MAX - 1) > 0 {
            continue;
        }
        let Some(found) = judged.iter().find(|it| it.history.key == key) else {
            return Err(format!("nothing is said of {key:?}"));
        };
        match &found.finding {
            RuleFinding::Unused { .. } => said.found_at_the_end += 1,
            _ if is_in_doubt(found) => said.in_doubt_at_the_end += 1,
            RuleFinding::Insufficient(Lack { missing: Missing::Period, .. })
                if longer.iter().any(|it| it.history.key == key && is_in_doubt(it)) =>
            {
                said.in_doubt_at_the_end += 1;
            }
            // A flow that waited for an agent was taken for somebody else's who has the address by now.
            RuleFinding::Used | RuleFinding::Broad { .. } | RuleFinding::Redundant { .. } => {
                said.mistaken += 1
            }
            other => return Err(format!("nobody used {key:?}, and it is said: {other:?}")),
        }
    }
    Ok(())
}

impl Said {
    fn add(&mut self, other: &Self) {
        self.unused += other.unused;
        self.insufficient += other.insufficient;
        self.found_at_the_end += other.found_at_the_end;
        self.in_doubt_at_the_end += other.in_doubt_at_the_end;
        self.mistaken += other.mistaken;
        self.of_cron_job += other.of_cron_job;
        self.waiting += other.waiting;
    }
}

/// Runs worlds on both of two processors, in no order. The first error that is met ends it.
fn run_all(seeds: std::ops::Range<u64>, planted: Planted) -> Result<Said, String> {
    let (next, failed) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let work = || -> Result<Said, String> {
        let mut total = Said::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || failed.load(Ordering::Relaxed) {
                return Ok(total);
            }
            total.add(&run(seed, planted).inspect_err(|_| failed.store(true, Ordering::Relaxed))?);
        }
    };
    thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        let mut total = Said::default();
        for thread in threads {
            total.add(&thread.join().expect("a thread that did not panic")?);
        }
        Ok(total)
    })
}

#[test]
fn nothing_that_was_used_is_called_unused_and_all_else_is_found() {
    let said = run_all(0..SEEDS, Planted::Nothing).unwrap_or_else(|error| panic!("{error}"));
    let Said { unused, insufficient, found_at_the_end, in_doubt_at_the_end, mistaken, .. } = said;
    println!("{unused} times unused, {insufficient} times insufficient");
    println!("at the end: {found_at_the_end} unused, {in_doubt_at_the_end} in doubt, {mistaken} mistaken");
    assert!(unused > 800 && insufficient > 1_000, "{unused} {insufficient}");
    assert!(found_at_the_end > 150 && in_doubt_at_the_end < found_at_the_end, "{found_at_the_end}");
    assert!(said.of_cron_job > 20 && said.waiting > 20, "{} {}", said.of_cron_job, said.waiting);
    assert!(mistaken * 20 < found_at_the_end, "{mistaken} of {found_at_the_end}");
}

#[test]
fn every_planted_error_is_found() {
    let found = Planted::ALL.map(|planted| {
        let error = run_all(0..PLANTED_SEEDS, planted).err();
        println!("{planted:?}: {error:?}");
        (planted, error)
    });
    let missed: Vec<Planted> = found.iter().filter(|it| it.1.is_none()).map(|it| it.0).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// `cargo xtask fuzz usage`: NETAUDIT_FUZZ_SEEDS worlds from NETAUDIT_FUZZ_SEED on.
#[test]
#[ignore = "as long as one likes"]
fn long_run() {
    let (first, seeds) = (setting("NETAUDIT_FUZZ_SEED", 0), setting("NETAUDIT_FUZZ_SEEDS", 10_000));
    let mut total = Said::default();
    let end = first + seeds;
    for first in (first..end).step_by(100) {
        let next = end.min(first + 100);
        let said = run_all(first..next, Planted::Nothing).unwrap_or_else(|error| panic!("{error}"));
        total.add(&said);
        println!("fuzz: seeds before {next}: {} unused rules were found", total.found_at_the_end);
    }
}
