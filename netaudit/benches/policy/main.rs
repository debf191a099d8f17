//! How fast policies are compiled and asked, by the goals of the evaluator, and beside the engine of kube-network-policies.
//!
//! Everything is measured in one run, in rounds that visit each side and size in turn, and told as medians. Prints tables on
//! stderr and JSON on stdout. Started by `cargo xtask bench policy`, which gives it the other engine's program and a directory
//! in the environment. `instructions POLICIES` asks one cluster's flows under a name that callgrind can count.

mod changes;
mod engine;
mod heap;
mod peer;
mod scale;
mod world;

use std::hint::black_box;

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use self::{
    engine::{Asked, Engine},
    world::{Among, Flow, World},
};

#[global_allocator]
static HEAP: heap::Counting = heap::Counting;

/// New connections that are asked: those of the pods of one node.
const FLOWS: usize = 1_024;
const ROUNDS: usize = 41;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|it| it == "instructions") {
        return instructions(arguments[at + 1].parse().expect("a number of policies"));
    }
    // First, as it looks at the most memory that the process ever had.
    let changes = changes::measure();
    let verdicts = verdicts();
    let scale = scale::measure();
    println!("{}", json!({"changes": changes, "verdicts": verdicts, "scale": scale}));
}

/// Nanoseconds of each of `count` pieces of work, by this thread's own clock: while others have the core it stands still.
fn nanoseconds(count: usize, work: impl FnOnce()) -> f64 {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
    };
    let start = now();
    work();
    (now() - start) / count as f64
}

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * q).round() as usize]
}

fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// A figure beside its goal.
fn goal(name: &str, figure: f64, unit: &str, limit: f64) -> Value {
    let met = if figure <= limit { "" } else { "   MISSED" };
    eprintln!("{name:<68} {figure:>10.1} {unit:<4} goal ≤ {limit}{met}");
    json!({"name": name, "figure": figure, "unit": unit, "goal": limit})
}

fn questions(engine: &Engine, flows: &[Flow]) -> Vec<Asked> {
    flows.iter().flat_map(|flow| engine.asked(flow)).flatten().collect()
}

/// One verdict, with 1,000 policies.
fn verdicts() -> Value {
    let world = World { policies: 1_000, pods: 10_000 };
    let mut engine = Engine::new(world);
    let asked = questions(&engine, &world.flows(Among::Node, FLOWS));
    // Every question again at ports that no rule names: each is new to the reader, and no rule ends it early.
    let new: Vec<Asked> =
        (0..16).flat_map(|n| asked.iter().map(move |it| it.at(20_000 + n))).chain(asked.clone()).collect();
    let [mut allows, mut first, mut again, mut among] = [const { Vec::new() }; 4];
    let mut allocations = [0; 2];
    for _ in 0..ROUNDS {
        engine.forget();
        let before = heap::calls();
        let took = nanoseconds(new.len(), || {
            new.iter().for_each(|it| _ = black_box(engine.evaluator.allows(&it.question())));
        });
        allocations[0] += heap::calls() - before;
        allows.push(took);
        first.push(nanoseconds(new.len(), || {
            new.iter().for_each(|it| drop(black_box(engine.evaluator.verdict(&it.question()))));
        }));
        // With all those remembered too, and with no more than a node's flows.
        for (forget, again) in [(false, &mut among), (true, &mut again)] {
            if forget {
                engine.forget();
                asked.iter().for_each(|it| drop(engine.evaluator.verdict(&it.question())));
            }
            let before = heap::calls();
            let took = nanoseconds(asked.len() * 16, || {
                for _ in 0..16 {
                    asked.iter().for_each(|it| drop(black_box(engine.evaluator.verdict(&it.question()))));
                }
            });
            allocations[1] += heap::calls() - before;
            again.push(took);
        }
    }
    eprintln!("\none verdict, 1,000 policies, 10,000 pods; medians of {ROUNDS} rounds");
    json!([
        goal("computed, without causes", median(&allows), "ns", 500.0),
        goal("computed, with causes, and remembered", median(&first), "ns", 500.0),
        goal(&format!("remembered, one of {}", asked.len()), median(&again), "ns", 50.0),
        goal(&format!("remembered, one of {}", new.len()), median(&among), "ns", 50.0),
        goal("allocations, computed without causes", allocations[0] as f64, "", 0.0),
        goal("allocations, remembered", allocations[1] as f64, "", 0.0),
    ])
}

/// Asks the flows of a cluster of so many policies, for callgrind to count.
fn instructions(policies: usize) {
    let world = World { policies, pods: 10_000 };
    let mut engine = Engine::new(world);
    let asked = questions(&engine, &world.flows(Among::Namespace, FLOWS));
    asked.iter().for_each(|it| drop(engine.evaluator.verdict(&it.question())));
    counted(&mut engine, &asked);
}

/// What callgrind counts, by this name.
#[inline(never)]
#[unsafe(no_mangle)]
fn netaudit_counted(engine: &mut Engine, asked: &[Asked]) {
    for it in asked {
        black_box(engine.evaluator.allows(&it.question()));
        black_box(engine.evaluator.verdict(&it.question()));
    }
}

fn counted(engine: &mut Engine, asked: &[Asked]) {
    netaudit_counted(black_box(engine), black_box(asked));
}
