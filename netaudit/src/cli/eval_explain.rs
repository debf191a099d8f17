//! A verdict of one end in words that a tired person understands, and the same as JSON.

use serde_json::{Value, json};

use super::{eval_flow::Side, one_line};
use crate::{
    model::{Cause, Decision, Denial, Direction, RuleMatch},
    policy::{Explanation, PolicyTrace, RuleTrace, Says},
};

/// The reasons of a verdict, a line each: what decided, then what else selects the subject and what it lacks.
pub(super) fn lines(direction: Direction, side: &Side) -> Vec<String> {
    let Side { verdict, why } = side;
    let mut told = Vec::new();
    let mut by = |how: &str, found: &RuleMatch| {
        told.push(found.rule.policy.to_string());
        let name =
            if found.rule.name.is_empty() { String::new() } else { format!(" {:?}", &*found.rule.name) };
        format!("{how}by {} {}{name}: {}", found.rule.policy, found.path(), summary(why, found))
    };
    let mut lines: Vec<String> = verdict.passed.iter().map(|found| by("passed on ", found)).collect();
    match &verdict.decision {
        Decision::Allowed(Cause::NotIsolated) => lines.push(format!("no policy isolates it for {direction}")),
        Decision::Allowed(Cause::Exempt(why)) => lines.push(format!("policies do not apply: {why}")),
        Decision::Allowed(Cause::Rules(rules)) => lines.extend(rules.iter().map(|found| by("", found))),
        Decision::Denied(Denial::Rule(found)) => lines.push(by("denied ", found)),
        // Each of them is told below, with what it lacks.
        Decision::Denied(Denial::Isolation(_)) => {}
        Decision::Unknown(gap) => lines.push(gap.to_string()),
    }
    let others = why.policies.iter().filter(|trace| !told.contains(&trace.policy));
    // What is allowed needs no more than one rule: the others are only named.
    let is_silent = |trace: &&PolicyTrace| {
        verdict.is_allowed() && matches!(trace.says, Says::Isolates | Says::Nothing | Says::NotAsked)
    };
    let (silent, others): (Vec<_>, Vec<_>) = others.partition(is_silent);
    lines.extend(others.into_iter().flat_map(|trace| other(direction, trace, verdict.is_denied())));
    if !silent.is_empty() {
        let names: Vec<_> = silent.iter().map(|trace| trace.policy.as_str()).collect();
        lines.push(format!("selected by {} too", names.join(", ")));
    }
    lines.extend(verdict.caveats.iter().map(|caveat| format!("but {caveat}")));
    lines.iter().map(|line| one_line(line)).collect()
}

/// What a policy says that did not decide, or that decided by isolating; what it lacks on lines of their own.
fn other(direction: Direction, trace: &PolicyTrace, denied: bool) -> Vec<String> {
    let selects = match trace.selects.as_str() {
        "" => String::new(),
        selects => format!(" (selects {selects})"),
    };
    let policy = format!("{}{selects}", trace.policy);
    let head = match trace.says {
        Says::Isolates if denied => format!("isolated by {policy}"),
        Says::Isolates | Says::Nothing => format!("not matched by {policy}"),
        Says::Unknown => {
            let mut doubts = trace.doubt.iter().chain(trace.rules.iter().filter_map(|it| it.doubt.as_ref()));
            let why = doubts.next().map_or("something in it is in doubt", String::as_str);
            return vec![format!("perhaps by {policy}: {why}")];
        }
        Says::NotAsked => return vec![format!("not asked: {policy}, of {}", trace.place)],
        Says::Allows | Says::Denies | Says::Passes => {
            let place = match trace.place.as_str() {
                "NetworkPolicy" => String::new(),
                place => format!(", of {place}"),
            };
            return vec![format!("matched by {policy} too{place}")];
        }
    };
    let Some(rule) = trace.nearest() else {
        return vec![format!("{head}, which allows no {direction} at all")];
    };
    let mut place = rule.path.clone();
    for part in [&rule.peer, &rule.port] {
        if !part.element.is_empty() {
            place.push('.');
            place.push_str(&part.element);
        }
    }
    let nearest = match trace.rules.len() {
        1 => "its only rule is".to_owned(),
        rules => format!("nearest of {rules} rules is"),
    };
    let mut lines = vec![head, format!("  {nearest} {place}: {}", rule.summary)];
    lines.extend(rule.missing().map(|missing| format!("  but {missing}")));
    lines
}

fn summary<'a>(why: &'a Explanation, found: &RuleMatch) -> &'a str {
    rule(why, found).map_or("", |rule| &rule.summary)
}

fn rule<'a>(why: &'a Explanation, found: &RuleMatch) -> Option<&'a RuleTrace> {
    let policy = found.rule.policy.to_string();
    let trace = why.policies.iter().find(|trace| trace.policy == policy)?;
    trace.rules.get(found.rule.index as usize)
}

/// The verdict with everything that the policies say.
pub(super) fn json(side: &Side) -> Value {
    let Side { verdict, why } = side;
    let mut value = json!({ "verdict": verdict.as_str(), "generation": verdict.generation });
    let found = |found: &RuleMatch| {
        json!({
            "id": found.rule.to_string(),
            "policy": found.rule.policy.to_string(),
            "path": found.path(),
            "name": (!found.rule.name.is_empty()).then_some(&found.rule.name),
            "action": found.rule.action.as_str(),
            "summary": rule(why, found).map(|rule| &rule.summary),
        })
    };
    if !verdict.passed.is_empty() {
        value["passed_by"] = verdict.passed.iter().map(found).collect();
    }
    if !verdict.caveats.is_empty() {
        value["caveats"] = verdict.caveats.iter().map(ToString::to_string).collect();
    }
    match &verdict.decision {
        Decision::Allowed(Cause::NotIsolated) => value["reason"] = json!("not isolated"),
        Decision::Allowed(Cause::Exempt(why)) => value["reason"] = json!(why.as_str()),
        Decision::Unknown(gap) => value["reason"] = json!(gap.to_string()),
        Decision::Allowed(Cause::Rules(rules)) => value["rules"] = rules.iter().map(found).collect(),
        Decision::Denied(Denial::Rule(denying)) => value["rules"] = json!([found(denying)]),
        Decision::Denied(Denial::Isolation(misses)) => {
            value["denied_by"] = (misses.iter())
                .map(|miss| {
                    let policy = miss.policy.to_string();
                    let trace = why.policies.iter().find(|trace| trace.policy == policy);
                    json!({ "policy": policy, "nearest": trace.and_then(PolicyTrace::nearest) })
                })
                .collect();
        }
    }
    value["policies"] = json!(why.policies);
    value
}
