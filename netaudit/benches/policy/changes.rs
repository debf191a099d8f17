//! Compiling a large cluster, and what a change costs in it.

use std::{hint::black_box, time::Instant};

use serde_json::{Value, json};

use crate::{
    FLOWS,
    engine::{Engine, NOW},
    goal, heap, median,
    world::{Among, World, object},
};

const WORLD: World = World { policies: 10_000, pods: 100_000 };
const MIB: f64 = (1 << 20) as f64;
const CHANGES: usize = 21;

/// All of it.
pub fn measure() -> Value {
    let flows = WORLD.flows(Among::Node, FLOWS);
    let resident = peak_resident();
    let live = heap::live();
    heap::take_peak();
    let objects: Vec<_> = WORLD.objects().map(|value| object(&value)).collect();
    let objects_live = heap::live() - live;
    let mut engine = Engine::empty();
    let start = Instant::now();
    engine.load(objects);
    let loaded = start.elapsed().as_secs_f64();
    engine.identify();
    for flow in &flows {
        black_box(engine.verdicts(flow));
    }
    let seconds = start.elapsed().as_secs_f64();
    let (peak, kept) = (heap::take_peak() - live, heap::live() - live);
    eprintln!(
        "{} policies and {} pods, from objects to an identity for every pod and the verdicts of {} flows",
        WORLD.policies,
        WORLD.pods,
        flows.len()
    );
    let mut goals = vec![
        goal("compile", seconds, "s", 5.0),
        goal("peak of the heap, the objects themselves included", peak as f64 / MIB, "MiB", 300.0),
    ];
    if let (Some(before), Some(after)) = (resident, peak_resident()) {
        goals.push(goal("peak of resident memory beyond the start's", (after - before) / MIB, "MiB", 300.0));
    }
    eprintln!(
        "  of it applying the objects {loaded:.2} s; the objects hold {:.0} MiB, all that is kept {:.0} MiB",
        objects_live as f64 / MIB,
        kept as f64 / MIB
    );
    goals.extend(changes(&mut engine));
    json!(goals)
}

/// From one changed object to a verdict that knows it.
fn changes(engine: &mut Engine) -> Vec<Value> {
    let flows = WORLD.flows(Among::Node, FLOWS);
    let [mut alone, mut held, mut node, mut pod] = [const { Vec::new() }; 4];
    for n in 0..CHANGES {
        // Port and labels are new each time, so that the vocabulary grows with each.
        for reader in [false, true] {
            let kept = reader.then(|| engine.cluster.rules().clone());
            let changed = object(&WORLD.changed_policy(n, &format!("new-{n}-{reader}")));
            let start = Instant::now();
            engine.cluster.apply(changed, NOW);
            black_box(engine.verdicts(&flows[n]));
            let seconds = start.elapsed().as_secs_f64();
            flows.iter().for_each(|flow| drop(black_box(engine.verdicts(flow))));
            if reader { &mut held } else { &mut alone }.push(seconds * 1e3);
            node.push(start.elapsed().as_secs_f64() * 1e3);
            drop(kept);
        }
        let changed = object(&WORLD.relabelled(n, ["job", "api"][n % 2]));
        let start = Instant::now();
        engine.cluster.apply(changed, NOW);
        black_box(engine.verdicts(&flows[n]));
        pod.push(start.elapsed().as_secs_f64() * 1e3);
    }
    vec![
        goal("one policy's change to the first verdict", median(&alone), "ms", 50.0),
        goal("  the same while a reader holds the old policies", median(&held), "ms", 50.0),
        goal("  the same to the verdicts of all flows of a node", median(&node), "ms", 50.0),
        goal("one pod's change of labels to the first verdict", median(&pod), "ms", 1.0),
    ]
}

/// The most memory that the process had at a time; `None` where the kernel does not tell.
fn peak_resident() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? * 1024.0)
}
