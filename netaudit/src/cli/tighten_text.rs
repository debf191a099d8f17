//! What `netaudit tighten` found, for people and programs.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use serde_json::{Value, json};

use super::{one_line, tighten::Answer};
use crate::{
    advise::tighten::{Change, Contained, Element, Needs, Policy, Proposal, Rule},
    model::Timestamp,
};

/// Pairs of workloads that are told of an element.
const PAIRS: usize = 3;

/// The same for programs.
const PAIRS_IN_JSON: usize = 20;

/// Of each policy what goes and what stays.
pub(super) fn report(answer: &Answer<'_>, out: &mut impl Write) -> io::Result<()> {
    let days = answer.evidence.window.as_secs_f64() / 86_400.0;
    let told = answer.told.map(Timestamp::to_the_second).unwrap_or_default();
    let changes: usize = answer.patched.patches.iter().map(|it| it.made.len()).sum();
    let policies = answer.patched.patches.iter().filter(|it| !it.made.is_empty()).count();
    writeln!(
        out,
        "as of {told}, by the {days:.2} days before: {}",
        match changes {
            0 => format!("nothing to take out of {}", counted(answer.targets.len(), "policy", "policies")),
            many => format!(
                "{} in {} of {}",
                counted(many, "change", "changes"),
                policies,
                counted(answer.targets.len(), "policy", "policies")
            ),
        }
    )?;
    for (number, policy) in answer.advice.iter().enumerate() {
        of_policy(answer, number, policy, out)?;
    }
    proofs(answer, out)?;
    for warning in &answer.warnings {
        writeln!(out, "note: {}", one_line(warning))?;
    }
    Ok(())
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// The proposals that are made, and those that are not with the reason.
fn made<'a>(answer: &'a Answer<'_>, number: usize) -> (Vec<&'a Proposal>, Vec<(&'a Proposal, &'a str)>) {
    let refused = &answer.refused[number];
    let proposals = &answer.advice[number].proposals;
    let kept = proposals.iter().enumerate().filter_map(|(at, it)| Some((it, refused.get(&at)?.as_str())));
    let is_any = !answer.patched.patches[number].made.is_empty();
    let made = proposals.iter().enumerate().filter(|(at, _)| is_any && !refused.contains_key(at));
    (made.map(|(_, it)| it).collect(), kept.collect())
}

fn place(answer: &Answer<'_>, number: usize) -> String {
    let source = &answer.loaded.sources[answer.targets[number].item].0;
    format!("{}:{}", source.file.display(), source.line)
}

fn of_policy(answer: &Answer<'_>, number: usize, policy: &Policy, out: &mut impl Write) -> io::Result<()> {
    let (made, kept) = made(answer, number);
    writeln!(out, "\n{} ({})", policy.id, place(answer, number))?;
    if let Some(reason) = answer.targets[number].closed.as_ref().or(policy.refused.as_ref()) {
        writeln!(out, "  nothing is changed: {}", one_line(reason))?;
    }
    for it in made {
        writeln!(out, "  - {}: {}", place_and_what(it), it.change)?;
        writeln!(out, "      {}", one_line(&it.why))?;
    }
    for (it, reason) in kept {
        writeln!(out, "  ! {} {}: not changed: {}", it.change.path(), one_line(&it.what), one_line(reason))?;
    }
    let gone = gone(answer, number);
    for rule in &policy.rules {
        if !gone.contains(&format!("{}[{}]", rule.direction, rule.index)) {
            of_rule(rule, &gone, out)?;
        }
    }
    Ok(())
}

/// `egress[1].to[0] app=old`.
fn place_and_what(proposal: &Proposal) -> String {
    format!("{} {}", proposal.change.path(), one_line(&proposal.what)).trim_end().to_owned()
}

/// The places that are taken out.
fn gone(answer: &Answer<'_>, number: usize) -> BTreeSet<String> {
    let is_gone = |it: &&Proposal| {
        matches!(it.change, Change::RemoveRule { .. } | Change::RemovePeer { .. } | Change::RemovePort { .. })
    };
    made(answer, number).0.into_iter().filter(is_gone).map(|it| it.change.path()).collect()
}

fn of_rule(rule: &Rule, gone: &BTreeSet<String>, out: &mut impl Write) -> io::Result<()> {
    let coverage = match rule.coverage {
        Some(ratio) => format!("; {:.2}% watched", (ratio * 10_000.0).floor() / 100.0),
        None => String::new(),
    };
    let since = rule.observed_since.map_or_else(String::new, |it| format!(" since {}", it.to_the_second()));
    writeln!(
        out,
        "  {}[{}] {}: {}{coverage}{since}",
        rule.direction,
        rule.index,
        one_line(&rule.summary),
        used(rule.matches, rule.last)
    )?;
    if let Some(reason) = &rule.kept {
        writeln!(out, "      stays: {}", one_line(reason))?;
    }
    // Where a list has one element, that is the rule.
    let is_plain = rule.elements.len() <= 2 && rule.elements.iter().all(|it| it.kept.is_none());
    if is_plain {
        return needed(&rule.needs, "      ", out);
    }
    for element in rule.elements.iter().filter(|it| !gone.contains(&it.path)) {
        let path = element.path.split_once('.').map_or(element.path.as_str(), |(_, it)| it);
        writeln!(out, "      {path} {}: {}", one_line(&element.what), used(element.matches, element.last))?;
        if let Some(reason) = &element.kept {
            writeln!(out, "          stays: {}", one_line(reason))?;
        }
        needed(&element.needs, "          ", out)?;
    }
    Ok(())
}

fn used(matches: u64, last: Option<Timestamp>) -> String {
    match last {
        Some(last) => format!("{matches} flows, the last {}", last.to_the_second()),
        None => "no flow".to_owned(),
    }
}

/// The recorded flows that keep something alive.
fn needed(needs: &Needs, indent: &str, out: &mut impl Write) -> io::Result<()> {
    for it in needs.most(PAIRS) {
        writeln!(
            out,
            "{indent}{} → {} {} {}: {} recorded, the last {} ({})",
            it.source,
            it.destination,
            it.protocol,
            it.port,
            it.flows,
            it.last.to_the_second(),
            it.example
        )?;
    }
    match needs.pairs() {
        Some(pairs) if pairs > PAIRS => writeln!(out, "{indent}and {} more pairs", pairs - PAIRS),
        Some(_) => Ok(()),
        None => writeln!(out, "{indent}and more pairs than are remembered"),
    }
}

fn proofs(answer: &Answer<'_>, out: &mut impl Write) -> io::Result<()> {
    let replay = &answer.replay;
    let (from, until) = replay.broken.span.map_or_else(
        || ("".to_owned(), String::new()),
        |(from, until)| (format!(" from {}", from.to_the_second()), format!(" to {}", until.to_the_second())),
    );
    writeln!(
        out,
        "\nreplay: none of {} flows{from}{until} that were allowed would be denied",
        replay.broken.replayed
    )?;
    if !replay.complete {
        writeln!(out, "INCOMPLETE: what is missing may need more")?;
        for doubt in &replay.doubts {
            writeln!(out, "  {}", one_line(doubt))?;
        }
    }
    let changed = || answer.patched.patches.iter().filter(|it| !it.made.is_empty());
    if changed().next().is_some() {
        let in_part = changed().filter(|it| !it.contained.is_shown()).count();
        let words = match (changed().all(|it| it.contained == Contained::ByElements), in_part) {
            (true, _) => "each new rule is within an old one, whatever pods there are".to_owned(),
            (false, 0) => "between all pods and addresses that the policies tell apart".to_owned(),
            (false, some) => format!("not shown for {some} policies: they tell too much apart"),
        };
        writeln!(out, "containment: nothing new is allowed: {words}")?;
    }
    Ok(())
}

/// The unified differences of all policies, one after the other.
pub(super) fn differences(answer: &Answer<'_>, out: &mut impl Write) -> io::Result<()> {
    let all = answer.patched.patches.iter().filter(|it| !it.made.is_empty());
    all.into_iter().try_for_each(|it| write!(out, "\n{}", it.difference))
}

/// A name and a mail for each policy that changes, as `git am` reads it.
pub(super) fn patches(answer: &Answer<'_>) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (number, policy) in answer.advice.iter().enumerate() {
        let patch = &answer.patched.patches[number];
        if patch.made.is_empty() {
            continue;
        }
        let (made, _) = made(answer, number);
        let id = &policy.id;
        let date = answer.told.unwrap_or_default();
        let reasons: Vec<String> = made
            .iter()
            .map(|it| format!("- {}: {}\n  ({})", place_and_what(it), it.change, one_line(&it.why)))
            .collect();
        let replay = &answer.replay;
        let complete = match replay.complete {
            true => "the record of that time is complete".to_owned(),
            false => format!(
                "incomplete: {}",
                replay.doubts.iter().map(|it| one_line(it)).collect::<Vec<_>>().join("; ")
            ),
        };
        let text = format!(
            "From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001\nFrom: netaudit <netaudit@localhost>\nDate: {}\n\
             Subject: [PATCH] {}/{}: allow only what is used\n\n{}\n\nNone of {} recorded flows that were allowed would be denied; {complete}.\nNothing \
             new is allowed.\n---\n{}--\nnetaudit {}\n",
            mail_date(date),
            id.namespace,
            id.name,
            reasons.join("\n"),
            replay.broken.replayed,
            patch.difference,
            env!("CARGO_PKG_VERSION"),
        );
        all.push((format!("{}-{}", id.namespace, id.name), text));
    }
    all
}

/// As RFC 5322 has it.
fn mail_date(time: Timestamp) -> String {
    let days = time.0.div_euclid(86_400_000_000_000);
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    // 2026-01-31T12:00:00Z
    let text = time.to_the_second();
    let part = |range: std::ops::Range<usize>| text.get(range).unwrap_or_default();
    let month = part(5..7).parse::<usize>().unwrap_or(1).clamp(1, 12) - 1;
    let day = DAYS[usize::try_from(days.rem_euclid(7)).unwrap_or(0)];
    format!("{day}, {} {} {} {} +0000", part(8..10), MONTHS[month], part(0..4), part(11..19))
}

/// Everything, for programs.
pub(super) fn json(answer: &Answer<'_>) -> Value {
    let time = |it: Option<Timestamp>| it.map(Timestamp::to_the_second);
    let policies: Vec<Value> = answer
        .advice
        .iter()
        .enumerate()
        .map(|(number, policy)| {
            let patch = &answer.patched.patches[number];
            let (made, kept) = made(answer, number);
            let gone = gone(answer, number);
            let proposal = |it: &Proposal| {
                json!({
                    "path": it.change.path(),
                    "what": it.what,
                    "change": it.change.to_string(),
                    "why": it.why,
                    "unused_since": time(it.unused_since),
                })
            };
            let refused = kept.iter().map(|(it, reason)| {
                let mut value = proposal(it);
                value["reason"] = json!(reason);
                value
            });
            let source = &answer.loaded.sources[answer.targets[number].item].0;
            json!({
                "kind": policy.id.kind,
                "namespace": policy.id.namespace,
                "name": policy.id.name,
                "file": source.file.display().to_string(),
                "line": source.line,
                "closed": answer.targets[number].closed.as_ref().or(policy.refused.as_ref()),
                "changes": made.iter().map(|it| proposal(it)).collect::<Vec<_>>(),
                "not_changed": refused.collect::<Vec<_>>(),
                "rules": policy.rules.iter().map(|it| rule_json(it, &gone)).collect::<Vec<_>>(),
                "containment": patch.contained,
                "difference": patch.difference,
            })
        })
        .collect();
    let replay = &answer.replay;
    json!({
        "as_of": time(answer.told),
        "window_seconds": answer.evidence.window.as_secs_f64(),
        "least_coverage": answer.evidence.coverage,
        "policies": policies,
        "replay": {
            "flows": replay.broken.replayed,
            "from": time(replay.broken.span.map(|it| it.0)),
            "until": time(replay.broken.span.map(|it| it.1)),
            "denied": replay.broken.denied(),
            "not_judged": replay.missing,
            "complete": replay.complete,
            "doubts": replay.doubts,
        },
        "warnings": answer.warnings,
    })
}

fn rule_json(rule: &Rule, gone: &BTreeSet<String>) -> Value {
    let path = format!("{}[{}]", rule.direction, rule.index);
    let element = |it: &Element| {
        json!({
            "path": it.path,
            "what": it.what,
            "goes": gone.contains(&it.path),
            "matches": it.matches,
            "last": it.last.map(Timestamp::to_the_second),
            "needed_by": it.needs.most(PAIRS_IN_JSON),
            "pairs": it.needs.pairs(),
            "stays_because": it.kept,
        })
    };
    json!({
        "path": path,
        "summary": rule.summary,
        "goes": gone.contains(&path),
        "coverage": rule.coverage,
        "observed_since": rule.observed_since.map(Timestamp::to_the_second),
        "matches": rule.matches,
        "last": rule.last.map(Timestamp::to_the_second),
        "needed_by": rule.needs.most(PAIRS_IN_JSON),
        "pairs": rule.needs.pairs(),
        "stays_because": rule.kept,
        "elements": rule.elements.iter().map(element).collect::<Vec<_>>(),
    })
}
