//! What `netaudit suggest` says beside the policies.

use serde_json::{Value, json};

use super::{history::microsecond, one_line, suggest::Answer};
use crate::advise::{
    suggest::{Explained, Reason, manifest},
    what_if::Row,
};

/// So many lines of what does not count are told.
const TOLD: usize = 20;

fn say(text: &str) {
    eprintln!("netaudit: {}", one_line(text));
}

/// `1 flow`, `3 flows`.
fn flows(count: u64) -> String {
    if count == 1 { "1 flow".to_owned() } else { format!("{count} flows") }
}

/// Says what a person has to know before the policies are applied.
pub(super) fn to_stderr(answer: &Answer) {
    let suggestion = &answer.suggestion;
    answer.doubts.iter().for_each(|doubt| say(doubt));
    for namespace in &suggestion.empty {
        say(&format!(
            "no pod of namespace {namespace} is known of that time, so there is nothing to suggest for it"
        ));
    }
    for over in &suggestion.passed_over {
        let hint = if matches!(over.reason, Reason::Selected(_)) { " (--all takes it too)" } else { "" };
        say(&format!("passed over: {}: {}{hint}", over.unit, over.reason));
    }
    if !answer.replaced.is_empty() {
        say(&format!(
            "taken to give way, and to be deleted when these are applied: {}",
            answer.replaced.join(", ")
        ));
    }
    for (namespace, why) in &suggestion.no_default {
        say(&format!("namespace {namespace} gets no policy that denies the rest: {why}"));
    }
    for suggested in &suggestion.policies {
        let name = format!("{}/{}", suggested.policy.namespace, suggested.policy.name);
        suggested.gaps.iter().for_each(|gap| say(&format!("{name}: {gap}")));
    }
    for left in answer.left_out.iter().take(TOLD) {
        let mut ports: Vec<String> = left.ports.iter().map(ToString::to_string).collect();
        if left.different_ports > ports.len() {
            ports.push(format!("… {} ports", left.different_ports));
        }
        say(&format!(
            "left out: {} {} → {} {}/{}: {}",
            flows(left.flows),
            left.source,
            left.destination,
            left.protocol,
            ports.join(","),
            left.why
        ));
    }
    if answer.left_out.len() > TOLD {
        say(&format!("left out: {} more kinds of flows, see --output json", answer.left_out.len() - TOLD));
    }
    proof(answer);
}

fn proof(answer: &Answer) {
    let proof = &answer.proof;
    let count = match suggestion_size(answer) {
        1 => "1 policy".to_owned(),
        many => format!("{many} policies"),
    };
    let row = |what: &str, row: &Row| {
        let by: Vec<&str> = row.after_by.iter().take(3).map(|why| why.by.as_str()).collect();
        let told = format!(
            "{what}: {} → {} {}/{}, {}: {} (e.g. {})",
            row.source,
            row.destination,
            row.protocol,
            row.port,
            flows(row.flows),
            by.join("; "),
            row.example
        );
        say(&told);
    };
    proof.denied.iter().for_each(|it| row("WOULD BE DENIED", it));
    proof.unknown.iter().for_each(|it| row("not certain", it));
    for (reason, count) in &proof.unreplayed {
        say(&format!("{} could not be judged again: {reason}", flows(*count)));
    }
    let counts = if proof.replayed == 1 { "counts" } else { "count" };
    let judged = format!("{} that {counts} judged again with {count}", flows(proof.replayed));
    say(&match proof.denied.is_empty() {
        true if proof.holds() => format!("{judged}: none becomes denied"),
        true => format!("{judged}: none becomes denied, of what is known"),
        false => format!("{judged}: some would be DENIED"),
    });
}

fn suggestion_size(answer: &Answer) -> usize {
    answer.suggestion.policies.len()
}

/// All of it, for programs.
pub(super) fn json(answer: &Answer) -> Value {
    let rules = |rules: &[Explained]| -> Vec<Value> {
        rules.iter().map(|it| json!({"why": it.why, "peers": it.peers, "flows": it.flows})).collect()
    };
    let policies = answer.suggestion.policies.iter().map(|it| {
        json!({
            "workloads": it.members.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "denies_the_rest": it.is_default,
            "manifest": manifest(&it.policy),
            "header": it.header,
            "ingress": rules(&it.ingress),
            "egress": rules(&it.egress),
            "gaps": it.gaps,
        })
    });
    let passed_over = answer.suggestion.passed_over.iter().map(|it| {
        json!({"workload": it.unit.to_string(), "reason": it.reason.to_string(), "is_gap": it.reason.is_gap()})
    });
    json!({
        "namespaces": answer.namespaces,
        "from": microsecond(answer.from),
        "until": microsecond(answer.until),
        "flows": answer.flows,
        "policies": policies.collect::<Vec<_>>(),
        "passed_over": passed_over.collect::<Vec<_>>(),
        "no_default_deny": answer.suggestion.no_default,
        "without_pods": answer.suggestion.empty,
        "left_out": answer.left_out,
        "proof": {
            "replayed": answer.proof.replayed,
            "denied": answer.proof.denied,
            "unknown": answer.proof.unknown,
            "not_judged": answer.proof.unreplayed,
            "holds": answer.proof.holds(),
        },
        "replaced": answer.replaced,
        "doubts": answer.doubts,
    })
}
