//! Asking the policies allocates nothing, whoever asks: a binary of its own, as the allocator counts for a whole process.

use std::hint::black_box;

#[path = "../netaudit/benches/policy/engine.rs"]
#[allow(dead_code, reason = "shared with the benchmark, and each side uses a part of it")]
mod engine;
#[path = "../netaudit/benches/policy/heap.rs"]
#[allow(dead_code, reason = "shared with the benchmark, and each side uses a part of it")]
mod heap;
#[path = "../netaudit/benches/policy/world.rs"]
#[allow(dead_code, reason = "shared with the benchmark, and each side uses a part of it")]
mod world;

use engine::{Engine, NOW};
use serde_json::json;
use world::{Among, World, object};

#[global_allocator]
static HEAP: heap::Counting = heap::Counting;

/// Allocations while `work` runs, the least of three times: the test's own thread is not the only one.
fn allocations(mut work: impl FnMut()) -> usize {
    let once = |_| {
        let before = heap::calls();
        work();
        heap::calls() - before
    };
    (0..3).map(once).min().unwrap_or(0)
}

/// One pod's policies are so many that no list of a sane length holds what they say.
fn crowded(engine: &mut Engine) {
    for n in 0..40 {
        let peer = json!([{"podSelector": {}}, {"ipBlock": {"cidr": "203.0.113.0/24"}}]);
        let policy = json!({"kind": "NetworkPolicy", "metadata": {"namespace": "shop-0", "name": format!("more-{n}")},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
                     "ingress": [{"from": peer, "ports": [{"port": 8080}]}], "egress": [{"to": peer}]}});
        engine.cluster.apply(object(&policy), NOW);
    }
    engine.identify();
}

#[test]
fn a_verdict_allocates_nothing() {
    let world = World { policies: 100, pods: 600 };
    let mut engine = Engine::new(world);
    for names in [false, true] {
        if names {
            crowded(&mut engine);
            engine.cluster.set_names([("example.com".to_owned(), "203.0.113.7".parse().unwrap())]);
        }
        let flows = world.flows(Among::Node, 2_000);
        let asked: Vec<_> = flows.iter().flat_map(|flow| engine.asked(flow)).flatten().collect();
        let allowed = asked.iter().filter(|it| engine.evaluator.allows(&it.question()) == Some(true)).count();
        assert!((asked.len() / 10..asked.len() * 9 / 10).contains(&allowed), "{allowed} of {}", asked.len());

        let computed = allocations(|| {
            asked.iter().for_each(|it| _ = black_box(engine.evaluator.allows(&it.question())));
        });
        assert_eq!(computed, 0, "computed without causes");

        asked.iter().for_each(|it| drop(engine.evaluator.verdict(&it.question())));
        let remembered = allocations(|| {
            asked.iter().for_each(|it| drop(black_box(engine.evaluator.verdict(&it.question()))));
        });
        assert_eq!(remembered, 0, "remembered");

        flows.iter().for_each(|flow| drop(engine.verdicts(flow)));
        let through_the_index = allocations(|| {
            flows.iter().for_each(|flow| drop(black_box(engine.verdicts(flow))));
        });
        assert_eq!(through_the_index, 0, "from addresses, through the index");
    }
}
