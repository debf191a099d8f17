//! A flow judged again by what the history says that policies and labels were then.

use std::{collections::BTreeSet, fmt::Write as _};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{
    cannot_be_read,
    history::{microsecond, pod_key, rebuild, since, yaml},
    one_line,
    stores::history,
    why::{Judged, Line, LineEnd, Than, judge},
};
use crate::{
    cluster::{Kind, REMEMBERED},
    model::Timestamp,
    store::flows::ask::Store,
    store::history::{
        parts::{Parts, Span},
        read::Change,
        state::{HELD, Run, State, runs},
    },
};

/// What the objects of then say.
pub(super) struct Then {
    pub text: String,
    pub json: Value,
    /// Whether it is what was recorded; `None` where nobody can know.
    pub same: Option<bool>,
}

impl Then {
    fn unknown(why: &str) -> Self {
        Self { text: format!("unknown: {why}\n"), json: json!({ "unknown": why }), same: None }
    }
}

/// The flow, judged by the objects that its agent run knew when it was.
pub(super) fn judge_then(id: &str, line: &Line, stores: &[Store]) -> anyhow::Result<Then> {
    let time = time(&line.time)?;
    let name = id.rsplit_once('-').map_or(id, |(run, _)| run);
    let parts = history(stores, Span { run: Some(name), ..Span::of_flows(Some(time), Some(time)) })?;
    let (known, read) = runs(&parts)?;
    for (path, reason) in &read.unreadable {
        eprintln!("netaudit: {} cannot be read, its history is missing: {reason}", path.display());
    }
    let Some(run) = known.iter().find(|run| run.run == name) else {
        return Ok(Then::unknown(&format!("the stores hold no history of the objects of run {name}")));
    };
    let Some(complete) = run.complete() else {
        let kinds: Vec<&str> = run.missing().into_iter().map(Kind::as_str).collect();
        let why = format!("run {name} never had a list of all objects: {} were missing", kinds.join(", "));
        return Ok(Then::unknown(&why));
    };
    let at = time.max(complete);
    let state = State::of(&parts, run, at, &[])?;
    if let Some(begins) = state.begins(run).filter(|begins| at < *begins) {
        let why = format!("the history of {} begins at {}", run.node, microsecond(begins));
        return Ok(Then::unknown(&why));
    }
    let mut notes = state.doubts(run);
    notes.extend(read.unreadable.iter().map(cannot_be_read));
    if at > time {
        notes.push(format!("the run knew all objects from {} on, and judged it by those", microsecond(at)));
    }
    let mut instead = Vec::new();
    for end in [&line.subject, &line.peer] {
        instead.extend(of_its_time(end, &state, run, &parts, &mut notes)?);
    }
    let cluster = rebuild(&state, &instead);
    match judge(line, cluster, &Than::RECORDED) {
        Ok(judged) => told(&judged, line, run, &state, notes),
        Err(error) => Ok(Then::unknown(&format!("{error:#}"))),
    }
}

/// The pod of an end, where it was not there at the very time: it had just gone, or its object had not come yet.
fn of_its_time(
    end: &LineEnd,
    state: &State,
    run: &Run,
    parts: &Parts,
    notes: &mut Vec<String>,
) -> anyhow::Result<Option<Change>> {
    let (Some(namespace), Some(pod)) = (&end.namespace, &end.pod) else { return Ok(None) };
    let key = pod_key(namespace, pod);
    let is_it = |change: &Change| {
        change.key() == key && end.uid.as_deref().is_none_or(|uid| change.uid.is_empty() || change.uid == uid)
    };
    if state.get(&key).is_some_and(is_it) {
        return Ok(None);
    }
    if let Some((change, at)) = state.gone(REMEMBERED).find(|(change, _)| is_it(change)) {
        notes.push(format!("{namespace}/{pod} was deleted at {}, before the flow", microsecond(at)));
        return Ok(Some(change.clone()));
    }
    let later = State::of(parts, run, state.at.plus(HELD), &[Kind::Pod.as_str()])?;
    let found = later.get(&key).filter(|change| is_it(change)).cloned();
    if let Some(change) = &found {
        notes.push(format!(
            "the object of {namespace}/{pod} came at {}, after the flow",
            microsecond(change.time)
        ));
    }
    Ok(found)
}

fn told(
    judged: &Judged,
    line: &Line,
    run: &Run,
    state: &State,
    mut notes: Vec<String>,
) -> anyhow::Result<Then> {
    // What was said to decide then, and what decides by the history.
    let recorded = line.rules.iter().chain(&line.denied_by).chain(&line.passed_rules);
    let recorded = recorded.map(|id| id.split('#').next().unwrap_or_default().to_owned());
    let recorded: BTreeSet<String> = recorded.collect();
    let found: BTreeSet<String> = judged.deciding.iter().cloned().collect();
    if judged.same && !recorded.is_empty() && recorded != found {
        let recorded: Vec<&str> = recorded.iter().map(String::as_str).collect();
        notes.push(format!("it was recorded as decided by {}", recorded.join(", ")));
    }
    let mut text = judged.text.clone();
    for note in &notes {
        let _ = writeln!(text, "  but {}", one_line(note));
    }
    let deciding: BTreeSet<String> = recorded.union(&found).cloned().collect();
    let mut policies = Vec::new();
    for policy in &deciding {
        let mut parts: Vec<&str> = policy.splitn(3, '/').collect();
        if parts.len() == 2 {
            parts.insert(1, "");
        }
        let [kind, namespace, name] = parts.as_slice() else { continue };
        let key = ((*kind).to_owned(), (*namespace).to_owned(), (*name).to_owned());
        match state.get(&key) {
            Some(change) => {
                let _ = write!(text, "\n{policy}, {}\n{}", since(change), yaml(change, "  ")?);
                let content: Value = serde_json::from_str(change.content.as_deref().unwrap_or("null"))?;
                policies.push(json!({
                    "policy": policy, "since": change.time.to_string(), "verb": change.verb,
                    "resource_version": change.resource_version, "content": content,
                }));
            }
            None => {
                let _ = writeln!(text, "\n{policy} is not in the history of that time");
                policies.push(json!({ "policy": policy, "unknown": "not in the history of that time" }));
            }
        }
    }
    let mut json = judged.json.clone();
    json["node"] = json!(run.node);
    json["run"] = json!(run.run);
    json["policies_of_then"] = json!(policies);
    json["notes"] = json!(notes);
    Ok(Then { text, json, same: Some(judged.same) })
}

fn time(text: &str) -> anyhow::Result<Timestamp> {
    let time: jiff::Timestamp = text.parse().with_context(|| format!("the record's time {text:?}"))?;
    Ok(Timestamp(i64::try_from(time.as_nanosecond())?))
}
