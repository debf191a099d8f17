//! The cost of a verdict over the size of the cluster, ours and the peer's, and whether both say the same.

use std::{hint::black_box, path::PathBuf, sync::Arc};

use netaudit::model::{Decision, Denial, Verdict};
use serde_json::{Value, json};

use crate::{
    FLOWS, ROUNDS,
    engine::{Asked, Engine},
    goal, median, nanoseconds,
    peer::Peer,
    questions,
    world::{Among, Flow, World},
};

/// Along one axis policies grow, along the other pods.
const POLICIES: [World; 4] =
    [world(10, 10_000), world(100, 10_000), world(1_000, 10_000), world(10_000, 10_000)];
const PODS: [World; 4] = [world(100, 100), world(100, 1_000), world(100, 10_000), world(100, 100_000)];

const fn world(policies: usize, pods: usize) -> World {
    World { policies, pods }
}

/// The figures by whose connections they are of.
fn named([same, node, anybody]: [f64; 3]) -> Value {
    json!({"same": same, "node": node, "anybody": anybody})
}

/// One size, and what was measured of it, in nanoseconds, a figure a round.
struct Point {
    world: World,
    flows: Vec<Flow>,
    engine: Engine,
    /// The same questions at every size, those of one node, and those of pods anywhere.
    asked: [Vec<Asked>; 3],
    peer: Option<Peer>,
    allows: [Vec<f64>; 3],
    remembered: [Vec<f64>; 3],
    flow_computed: Vec<f64>,
    flow_remembered: Vec<f64>,
    flow_peer: Vec<f64>,
}

impl Point {
    fn new(world: World, program: Option<&(PathBuf, PathBuf)>) -> Self {
        let engine = Engine::new(world);
        let asked = [Among::Namespace, Among::Node, Among::Everybody]
            .map(|among| questions(&engine, &world.flows(among, FLOWS)));
        let flows = world.flows(Among::Node, FLOWS);
        let peer = program.map(|(program, directory)| Peer::start(program, directory, world, &flows));
        let [flow_computed, flow_remembered, flow_peer] = [const { Vec::new() }; 3];
        Self {
            world,
            flows,
            engine,
            asked,
            peer,
            allows: Default::default(),
            remembered: Default::default(),
            flow_computed,
            flow_remembered,
            flow_peer,
        }
    }

    fn round(&mut self) {
        /// Our sides are so much faster that one turn of the flows is too short to be measured.
        const TURNS: usize = 32;
        let Self { engine, asked, flows, .. } = self;
        for (asked, (allows, remembered)) in
            asked.iter().zip(self.allows.iter_mut().zip(&mut self.remembered))
        {
            let count = asked.len() * TURNS;
            allows.push(nanoseconds(count, || {
                for _ in 0..TURNS {
                    asked.iter().for_each(|it| _ = black_box(engine.evaluator.allows(&it.question())));
                }
            }));
            remembered.push(nanoseconds(count, || {
                for _ in 0..TURNS {
                    asked.iter().for_each(|it| drop(black_box(engine.evaluator.verdict(&it.question()))));
                }
            }));
        }
        let count = flows.len() * TURNS;
        self.flow_computed.push(nanoseconds(count, || {
            for _ in 0..TURNS {
                flows.iter().for_each(|flow| _ = black_box(engine.computed(flow)));
            }
        }));
        self.flow_remembered.push(nanoseconds(count, || {
            for _ in 0..TURNS {
                flows.iter().for_each(|flow| _ = black_box(engine.remembered(flow)));
            }
        }));
        self.flow_peer.extend(self.peer.as_mut().map(Peer::round));
    }
}

/// Measures all sizes.
pub fn measure() -> Value {
    let program = std::env::var_os("NETAUDIT_BENCH_PEER").zip(std::env::var_os("NETAUDIT_BENCH_DIRECTORY"));
    let program = program.map(|(program, directory)| (PathBuf::from(program), PathBuf::from(directory)));
    if program.is_none() {
        eprintln!("\nno other engine to compare with: cargo xtask bench policy builds it");
    }
    let mut goals = Vec::new();
    let mut axes = serde_json::Map::new();
    for (axis, worlds) in [("policies", POLICIES), ("pods", PODS)] {
        let mut points = worlds.map(|world| Point::new(world, program.as_ref()));
        let agreements: Vec<Value> = points.iter_mut().map(agreement).collect();
        for _ in 0..ROUNDS {
            points.iter_mut().for_each(Point::round);
        }
        eprintln!("\nover the number of {axis}; ns, medians of {ROUNDS} interleaved rounds");
        eprintln!(
            "{:20}{:-^34} {:-^33} {:-^48}",
            "", " one end, computed ", " one end, remembered ", " a whole flow, of a node's "
        );
        eprintln!(
            "{:>9} {:>9}  {:>10} {:>10} {:>10}  {:>10} {:>10} {:>10}  {:>11} {:>11} {:>13} {:>7}",
            "policies",
            "pods",
            "the same",
            "a node's",
            "anybody's",
            "the same",
            "a node's",
            "anybody's",
            "computed",
            "remembered",
            "kube-n.-pol.",
            "ratio"
        );
        let mut rows = Vec::new();
        for (point, agreement) in points.iter().zip(agreements) {
            let World { policies, pods } = point.world;
            let [allows, remembered] =
                [&point.allows, &point.remembered].map(|side| side.each_ref().map(|it| median(it)));
            let [computed, again] = [&point.flow_computed, &point.flow_remembered].map(|it| median(it));
            let theirs = (!point.flow_peer.is_empty()).then(|| median(&point.flow_peer));
            let ratio = theirs.map(|theirs| theirs / computed);
            let ends = allows.map(|it| format!("{it:>10.1}")).join(" ");
            let ends_again = remembered.map(|it| format!("{it:>10.1}")).join(" ");
            let [theirs_text, ratio_text] =
                [theirs, ratio].map(|it| it.map_or("-".to_owned(), |it| format!("{it:.0}")));
            eprintln!(
                "{policies:>9} {pods:>9}  {ends}  {ends_again}  {computed:>11.1} {again:>11.1} {theirs_text:>13} {ratio_text:>7}"
            );
            rows.push(json!({"policies": policies, "pods": pods,
                "computed_ns": named(allows), "remembered_ns": named(remembered),
                "flow_computed_ns": computed, "flow_remembered_ns": again, "peer_ns": theirs, "peer_ratio": ratio,
                "agreement": agreement}));
        }
        let [first, .., last] = &points;
        let growth = |side: fn(&Point) -> &Vec<f64>| median(side(last)) / median(side(first));
        let name = |what: &str| format!("{what}, {axis} {} → {}", size(axis, first), size(axis, last));
        let computed = growth(|it| &it.allows[0]);
        goals.push(goal(&name("the same verdicts computed cost so many times as much"), computed, "", 1.2));
        goals.push(goal(&name("remembered"), growth(|it| &it.remembered[0]), "", 1.2));
        axes.insert(axis.to_owned(), json!(rows));
    }
    axes.insert("goals".to_owned(), json!(goals));
    Value::Object(axes)
}

fn size(axis: &str, point: &Point) -> usize {
    if axis == "pods" { point.world.pods } else { point.world.policies }
}

/// How many flows both sides allow and deny, and those of which they say different things.
fn agreement(point: &mut Point) -> Value {
    let Point { world, flows, engine, peer, .. } = point;
    let Some(peer) = peer else { return Value::Null };
    let (mut allowed, mut differ) = (0, Vec::new());
    for (flow, theirs) in flows.iter().zip(&peer.verdicts) {
        let ours = engine.remembered(flow);
        assert_eq!(ours, engine.computed(flow), "computed and remembered differ: {flow:?}");
        allowed += usize::from(ours);
        if ours != *theirs {
            let why = cause(&engine.verdicts(flow));
            differ.push(json!({"flow": format!("{} → {} {} {}", flow.source, flow.destination, flow.protocol, flow.port),
                "ours": ours, "theirs": theirs, "why": why}));
        }
    }
    eprintln!(
        "{} policies, {} pods: {} flows, {allowed} allowed, {} judged differently",
        world.policies,
        world.pods,
        flows.len(),
        differ.len()
    );
    for it in differ.iter().take(3) {
        eprintln!("  {it}");
    }
    json!({"flows": flows.len(), "allowed": allowed, "differ": differ})
}

/// Where the peer is known to differ from the API's text.
fn cause(verdicts: &[Option<Arc<Verdict>>; 2]) -> String {
    let baseline = |verdict: &Arc<Verdict>| match &verdict.decision {
        Decision::Denied(Denial::Rule(by)) => by.rule.policy.kind == "BaselineAdminNetworkPolicy",
        _ => false,
    };
    if verdicts.iter().flatten().any(baseline) {
        return "the peer asks the Baseline tier only of pods that no NetworkPolicy selects, in whichever direction; \
                the API, only of those that none isolates in this one"
            .to_owned();
    }
    let said: Vec<String> =
        verdicts.iter().flatten().map(|verdict| format!("{:?}", verdict.decision)).collect();
    format!("not known; ours: {}", said.join(", "))
}
