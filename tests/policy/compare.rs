//! Where the real evaluator and the plain one differ.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    case::{Answer, By, Case, Direction, Effect, End, Verdict},
    naive::{Naive, name_of},
    real::Real,
    shrink,
};

/// One direction of one flow that got two answers.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Which flow of the case.
    pub flow: usize,
    pub direction: Direction,
    pub naive: Answer,
    pub real: Answer,
}

impl Difference {
    /// What stays the same while the case is made smaller.
    fn class(&self) -> (Direction, Verdict, Verdict) {
        (self.direction, self.naive.verdict, self.real.verdict)
    }
}

/// The first difference. The real evaluator is given `altered`, which is the case itself unless errors are planted.
pub fn first(case: &Case, altered: &Case) -> Option<Difference> {
    all(case, altered).into_iter().next()
}

/// Every difference.
fn all(case: &Case, altered: &Case) -> Vec<Difference> {
    let mut differences = Vec::new();
    let pairs = plain_answers(case).into_iter().zip(real_answers(altered));
    for (index, (naive, real)) in pairs.enumerate() {
        for (direction, (naive, real)) in Direction::BOTH.into_iter().zip(naive.into_iter().zip(real)) {
            if !agree(&naive, &real) {
                differences.push(Difference { flow: index, direction, naive, real });
            }
        }
    }
    differences
}

/// What the plain evaluator says of each flow: egress, ingress.
pub fn plain_answers(case: &Case) -> Vec<[Answer; 2]> {
    let naive = Naive { objects: &case.objects, dns: case.dns.as_ref(), seen: None };
    case.flows.iter().map(|flow| naive.ask(flow)).collect()
}

/// What the real one says.
pub fn real_answers(case: &Case) -> Vec<[Answer; 2]> {
    let mut real = Real::new(case);
    case.flows.iter().map(|flow| real.ask(flow)).collect()
}

/// Where something is left open, each of the ways is right.
fn agree(naive: &Answer, real: &Answer) -> bool {
    let said = |by: &[By]| -> BTreeSet<By> {
        // Of a flow that is allowed nobody needs to know which policies do not allow it.
        let is_said = |by: &&By| {
            real.verdict == Verdict::Deny
                || !matches!(by.effect, Effect::SelectsNoRuleMatches | Effect::SelectsPortsDoNotMatch)
        };
        by.iter().filter(is_said).cloned().collect()
    };
    naive.verdict == real.verdict
        && (naive.verdict == Verdict::Unknown
            || real.ways.iter().all(|real| naive.ways.iter().any(|naive| said(naive) == said(real))))
}

/// The smallest case that still differs in the same way, and how it does.
pub fn smallest(case: &Case, alter: &dyn Fn(&Case) -> Case, found: &Difference) -> (Case, Difference) {
    let class = found.class();
    let case = shrink::shrink(case, &mut |case| {
        is_whole(case) && first(case, &alter(case)).is_some_and(|it| it.class() == class)
    });
    let difference = first(&case, &alter(&case)).expect("it still differs");
    (case, difference)
}

/// Whether every pod that a flow names is there.
fn is_whole(case: &Case) -> bool {
    let pods: Vec<String> = case.objects.iter().filter(|it| it["kind"] == "Pod").map(name_of).collect();
    let mut ends = case.flows.iter().flat_map(|flow| [&flow.from, &flow.to]);
    ends.all(|end| match end {
        End::Pod(name) => pods.contains(name),
        End::Ip(_) => true,
    })
}

/// The words of a small case: differences with the same ones are likely one.
pub fn words(case: &Case, difference: &Difference) -> String {
    fn walk<'a>(value: &'a Value, words: &mut BTreeSet<&'a str>) {
        match value {
            Value::Array(list) => list.iter().for_each(|it| walk(it, words)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    words.insert(name);
                    walk(value, words);
                }
            }
            Value::String(text) => {
                words.extend(
                    ["Accept", "Allow", "Deny", "Pass", "Admin", "Baseline"].iter().filter(|it| *it == text),
                );
            }
            _ => {}
        }
    }
    let mut words = BTreeSet::new();
    for object in &case.objects {
        words.extend(object["kind"].as_str());
        walk(&object["spec"], &mut words);
    }
    format!("{:?} {words:?}", difference.class())
}

/// What a person reads of a difference: both answers, and the case as a line for a file of cases, in which the plain
/// evaluator's answer is what is expected.
pub fn describe(case: &Case, difference: &Difference) -> String {
    let mut case = case.clone();
    let naive = Naive { objects: &case.objects, dns: case.dns.as_ref(), seen: None };
    for flow in &mut case.flows {
        let [egress, ingress] = naive.ask(flow);
        flow.expect = Some(Verdict::both(egress.verdict, ingress.verdict));
        (flow.egress, flow.ingress) = (Some(egress.verdict), Some(ingress.verdict));
        (flow.egress_by, flow.ingress_by) = (plain(&egress), plain(&ingress));
    }
    format!(
        "{}: {} of {}\n  plain: {:?} {}\n  real:  {:?} {}\n{}",
        case.name,
        difference.direction.as_str(),
        case.flows[difference.flow],
        difference.naive.verdict,
        serde_json::to_string(&difference.naive.by()).expect("JSON"),
        difference.real.verdict,
        serde_json::to_string(&difference.real.by()).expect("JSON"),
        serde_json::to_string(&case).expect("JSON"),
    )
}

/// The causes as files of cases have them.
fn plain(answer: &Answer) -> Vec<By> {
    let plain = |by: By| By {
        effect: if by.effect == Effect::Exempt { Effect::DefaultAllow } else { by.effect },
        rule_index: by.rule_index.filter(|_| by.effect != Effect::SelectsPortsDoNotMatch),
        peer: None,
        port: None,
        ..by
    };
    if answer.verdict == Verdict::Unknown { Vec::new() } else { answer.by().into_iter().map(plain).collect() }
}
