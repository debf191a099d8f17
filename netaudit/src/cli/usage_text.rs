//! How `netaudit usage` prints what it found.

use std::{
    io::{self, Write},
    time::Duration,
};

use serde_json::{Value, json};

use super::{columns::Widths, one_line};
use crate::{
    audit::usage::{Evidence, Histories, History, Judgement, RuleFinding, RuleKey, Severity, Uses},
    model::Timestamp,
    policy::Element,
};

/// A line a rule, and below it what there is to say of it.
pub(super) fn table(
    out: &mut impl Write,
    histories: &Histories,
    judged: &[Judgement<'_>],
    needs: &Evidence,
) -> io::Result<()> {
    let Some(told) = histories.told else {
        return writeln!(out, "no agent has told anything yet");
    };
    let days = needs.window.as_secs_f64() / 86_400.0;
    writeln!(out, "as of {}, by the {days:.2} days before", told.to_the_second())?;
    let head = ["FINDING", "RULE", "MATCHES", "SOLE", "LAST", "COVERAGE"].map(str::to_owned);
    let lines: Vec<[String; 6]> = judged
        .iter()
        .map(|it| {
            let history = it.history;
            [
                it.finding.as_str().to_owned(),
                format!("{} {}", history.key.policy, path(history)),
                history.uses.matches.to_string(),
                history.sole.matches.to_string(),
                history.uses.last.map_or_else(|| "never".to_owned(), Timestamp::to_the_second),
                format!("{:.2}%", (it.coverage * 10_000.0).floor() / 100.0),
            ]
        })
        .collect();
    let widths = Widths::of(lines.iter().chain([&head]));
    writeln!(out, "{}", widths.line(&head))?;
    for (line, it) in lines.iter().zip(judged) {
        writeln!(out, "{}", widths.line(line))?;
        for note in notes(it) {
            writeln!(out, "    {}", one_line(&note))?;
        }
    }
    Ok(())
}

/// What there is to say beside the figures.
fn notes(judgement: &Judgement<'_>) -> Vec<String> {
    let history = judgement.history;
    let mut notes = vec![history.summary.to_string()];
    match &judgement.finding {
        RuleFinding::Used => {}
        RuleFinding::Unused { since } => notes.push(format!("no match since {}", since.to_the_second())),
        RuleFinding::Redundant { set } => {
            let others: Vec<String> = set.iter().filter(|key| **key != history.key).map(rule_text).collect();
            let with = match others.as_slice() {
                [] => String::new(),
                others => format!(" together with {}", others.join(", ")),
            };
            notes.push(format!("every flow that it allowed is allowed by others too; it can go{with}"));
        }
        RuleFinding::Broad { parts } => {
            notes.extend(parts.iter().map(|part| {
                format!(
                    "{} says {}; enough for what matched: {}",
                    part.path,
                    part.says,
                    part.enough.words().join(", ")
                )
            }));
        }
        RuleFinding::Dead { why } => notes.push((*why).to_owned()),
        RuleFinding::Insufficient(lack) => notes.push(match lack.enough_at {
            Some(at) => format!("missing: {}; enough by {}", lack.missing.as_str(), at.to_the_second()),
            None => format!("missing: {}; waiting does not help", lack.missing.as_str()),
        }),
    }
    match history.schedule.period() {
        Some(Duration::ZERO) => {}
        Some(period) => {
            let days = period.as_secs_f64() / 86_400.0;
            notes.push(format!("it may be for a CronJob of which two runs are up to {days:.2} days apart"));
        }
        None => notes.push(
            "it may be for a CronJob whose schedule is not understood, or that is not known yet".to_owned(),
        ),
    }
    if history.uses.last.is_some() {
        let unmatched = elements(history).into_iter().filter(|(_, uses)| uses.last.is_none());
        notes.extend(
            unmatched.map(|(element, _)| format!("no match so far: {} {}", element.path(), element.what)),
        );
    }
    notes
}

/// Everything, for programs.
pub(super) fn json(histories: &Histories, judged: &[Judgement<'_>], needs: &Evidence) -> Value {
    json!({
        "as_of": histories.told.map(Timestamp::to_the_second),
        "window_seconds": needs.window.as_secs_f64(),
        "least_coverage": needs.coverage,
        "rules": judged.iter().map(rule_json).collect::<Vec<_>>(),
    })
}

fn rule_json(judgement: &Judgement<'_>) -> Value {
    let history = judgement.history;
    let mut value = rule_key_json(&history.key);
    let more = json!({
        "path": path(history),
        "summary": history.summary,
        "finding": judgement.finding.as_str(),
        "severity": judgement.finding.severity().map(|severity| match severity {
            Severity::Info => "info",
            Severity::Warning => "warning",
        }),
        "matches": history.uses.matches,
        "sole_matches": history.sole.matches,
        "first": history.uses.first.map(Timestamp::to_the_second),
        "last": history.uses.last.map(Timestamp::to_the_second),
        "observed_since": history.observed_since().map(Timestamp::to_the_second),
        "coverage": judgement.coverage,
        "cron_jobs": json!({
            "longest_period_seconds": history.schedule.period().map(|period| period.as_secs()),
            "enough_seconds": history.schedule.window().map(|window| window.as_secs()),
        }),
        "elements": elements(history).iter().map(|(element, uses)| json!({
            "path": element.path(),
            "what": element.what,
            "matches": uses.matches,
            "first": uses.first.map(Timestamp::to_the_second),
            "last": uses.last.map(Timestamp::to_the_second),
        })).collect::<Vec<_>>(),
    });
    extend(&mut value, more);
    extend(
        &mut value,
        match &judgement.finding {
            RuleFinding::Used => json!({}),
            RuleFinding::Unused { since } => json!({ "unused_since": since.to_the_second() }),
            RuleFinding::Redundant { set } => {
                json!({ "can_go_together": set.iter().map(rule_key_json).collect::<Vec<_>>() })
            }
            RuleFinding::Broad { parts } => json!({ "broad": parts.iter().map(|part| {
            json!({ "path": part.path, "says": part.says, "enough": part.enough.words() })
        }).collect::<Vec<_>>() }),
            RuleFinding::Dead { why } => json!({ "why": why }),
            RuleFinding::Insufficient(lack) => {
                json!({ "missing": lack.missing.as_str(), "enough_at": lack.enough_at.map(Timestamp::to_the_second) })
            }
        },
    );
    value
}

fn extend(value: &mut Value, more: Value) {
    if let (Value::Object(value), Value::Object(more)) = (value, more) {
        value.extend(more);
    }
}

fn rule_key_json(key: &RuleKey) -> Value {
    json!({
        "kind": key.policy.kind,
        "namespace": key.policy.namespace,
        "policy": key.policy.name,
        "direction": key.direction,
        "rule": format!("{:016x}", key.hash),
    })
}

fn rule_text(key: &RuleKey) -> String {
    format!("{} {}#{:016x}", key.policy, key.direction, key.hash)
}

fn path(history: &History) -> String {
    format!("{}[{}]", history.key.direction, history.index)
}

/// In the order of the policy: peers, then ports.
fn elements(history: &History) -> Vec<(&Element, &Uses)> {
    let mut elements: Vec<_> = history.elements.values().map(|(element, uses)| (element, uses)).collect();
    elements.sort_by_key(|(element, _)| (element.list == "ports", element.index));
    elements
}
