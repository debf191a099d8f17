//! `netaudit eval --cases`: files of flows with the verdicts that other projects' suites expect.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, BufRead as _, BufReader, Write},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use super::{
    Exit, eval_explain,
    eval_flow::{self, End, NOW, Outcome, Pair, Side},
};
use crate::{
    cluster::{Cluster, Endpoint},
    model::{Cause, Decision, Denial, Direction, Exemption, Protocol, RuleMatch, Verdict},
    watch::convert::{self, Converted},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    objects: Vec<Value>,
    flows: Vec<Flow>,
    /// The addresses of names, as DNS gave them.
    #[serde(default)]
    dns: BTreeMap<String, Vec<IpAddr>>,
    /// What suites say of their cases beside.
    #[serde(default, rename = "suite")]
    _suite: IgnoredAny,
    #[serde(default, rename = "source")]
    _source: IgnoredAny,
    #[serde(default, rename = "tags")]
    _tags: IgnoredAny,
    #[serde(default, rename = "note")]
    _note: IgnoredAny,
    #[serde(default, rename = "derived")]
    _derived: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Flow {
    from: CaseEnd,
    to: CaseEnd,
    protocol: Protocol,
    port: u16,
    expect: Expected,
    egress: Option<Expected>,
    ingress: Option<Expected>,
    #[serde(default)]
    egress_by: Vec<By>,
    #[serde(default)]
    ingress_by: Vec<By>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum CaseEnd {
    Pod(String),
    Ip(IpAddr),
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Expected {
    Allow,
    Deny,
}

/// A policy that a suite names as the cause.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct By {
    policy: Option<String>,
    effect: String,
    rule_index: Option<u32>,
    rule_name: Option<String>,
}

/// Counts of flows.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    /// Flows of cases with policies of a kind that is not known.
    skipped: usize,
    /// Those kinds.
    kinds: BTreeMap<String, usize>,
}

/// Runs every case of every file and prints what does not agree; the last line is `N passed, N failed, N skipped`. A case that
/// cannot be read or asked is a failure, told on stderr, and the others are checked all the same.
pub(super) fn run(files: &[PathBuf], out: &mut impl Write) -> anyhow::Result<Exit> {
    let mut tally = Tally::default();
    let mut unread = 0_usize;
    for path in files {
        let file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        for (number, line) in (1..).zip(BufReader::new(file).split(b'\n')) {
            let place = || format!("{}:{number}", path.display());
            let line = line.with_context(place)?;
            let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line);
            if line.trim_ascii().is_empty() {
                continue;
            }
            let checked = serde_json::from_slice::<Case>(line).with_context(place).and_then(|case| {
                let what = || format!("{}: case {}", place(), case.name);
                check_case(&case, &mut tally, out).with_context(what)
            });
            match checked {
                // Nobody reads what is written, so there is no use in going on.
                Err(error) if error.chain().any(|it| it.is::<io::Error>()) => return Err(error),
                // One that cannot be asked says nothing of the others.
                Err(error) => {
                    eprintln!("netaudit: {error:#}");
                    unread += 1;
                }
                Ok(()) => {}
            }
        }
    }
    for (kind, flows) in &tally.kinds {
        writeln!(out, "skipped: {flows} flows of cases with {kind}, which is not known")?;
    }
    writeln!(out, "{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped)?;
    if unread > 0 {
        bail!("{unread} cases cannot be asked");
    }
    Ok(if tally.failed == 0 { Exit::Clean } else { Exit::Findings })
}

fn check_case(case: &Case, tally: &mut Tally, out: &mut impl Write) -> anyhow::Result<()> {
    let source: Arc<str> = case.name.as_str().into();
    let (mut objects, mut unknown) = (Vec::new(), BTreeSet::new());
    for converted in case.objects.iter().flat_map(|object| convert::document(object, &source)) {
        match converted {
            Converted::Object(object) => objects.push(object),
            // Anything else (a Deployment, say) changes no verdict.
            Converted::Ignored(kind) if kind.contains("Policy") => drop(unknown.insert(kind)),
            Converted::Ignored(_) | Converted::Nothing(_) => {}
        }
    }
    if !unknown.is_empty() {
        tally.skipped += case.flows.len();
        for kind in unknown {
            *tally.kinds.entry(kind).or_default() += case.flows.len();
        }
        return Ok(());
    }
    let mut cluster = Cluster::new();
    for warning in cluster.reset_all(objects, NOW) {
        eprintln!("netaudit: {}: {warning}", case.name);
    }
    cluster.set_names(case.dns.iter().flat_map(|(name, ips)| ips.iter().map(|ip| (name.clone(), *ip))));
    for flow in &case.flows {
        let from = find_end(&cluster, &flow.from, flow)?;
        let to = find_end(&cluster, &flow.to, flow)?;
        let mut pair = Pair::ask(&mut cluster, from, to, flow.protocol, flow.port);
        // An end that a case gives by address has no policy of its own, even if a pod owns the address.
        if let CaseEnd::Ip(_) = flow.from {
            pair.egress = outside();
        }
        if let CaseEnd::Ip(_) = flow.to {
            pair.ingress = outside();
        }
        let mut problems = check_flow(&cluster, flow, &pair);
        for (direction, side) in [(Direction::Egress, &pair.egress), (Direction::Ingress, &pair.ingress)] {
            if !side.why.explains(&side.verdict) {
                problems
                    .push(format!("{direction}: the explanation does not fit the verdict: {:?}", side.why));
            }
        }
        if problems.is_empty() {
            tally.passed += 1;
            continue;
        }
        tally.failed += 1;
        let what = eval_flow::describe(&cluster, &pair, flow.protocol);
        for problem in problems {
            writeln!(out, "{}: {what}: {problem}", case.name)?;
        }
        for (direction, side) in [(Direction::Egress, &pair.egress), (Direction::Ingress, &pair.ingress)] {
            let lines = eval_explain::lines(direction, side);
            writeln!(out, "    {direction} {}: {}", side.verdict.as_str(), lines.join("; "))?;
        }
    }
    Ok(())
}

fn outside() -> Side {
    Side::plain(Verdict::exempt(Exemption::External))
}

fn find_end(cluster: &Cluster, end: &CaseEnd, flow: &Flow) -> anyhow::Result<End> {
    match end {
        CaseEnd::Pod(name) => {
            let pod = name.split_once('/').and_then(|(namespace, name)| cluster.pod_by_name(namespace, name));
            let Some(id) = pod else { bail!("there is no pod {name}") };
            Ok(End::Pod(id, None))
        }
        CaseEnd::Ip(ip) => Ok(match cluster.resolve(*ip, flow.port, flow.protocol, NOW) {
            Endpoint::Pod(id) => End::Pod(id, Some(*ip)),
            Endpoint::Node(name) => End::Node(name, *ip),
            _ => End::External(*ip),
        }),
    }
}

/// What does not agree with the case.
fn check_flow(cluster: &Cluster, flow: &Flow, pair: &Pair) -> Vec<String> {
    let mut problems = Vec::new();
    let mut compare = |what: &str, expected: Expected, got: Outcome| {
        let agrees = match expected {
            Expected::Allow => got == Outcome::Allowed,
            Expected::Deny => got == Outcome::Denied,
        };
        if !agrees {
            let expected = if expected == Expected::Allow { "allowed" } else { "denied" };
            problems.push(format!("{what}: expected {expected}, got {}", got.as_str()));
        }
    };
    compare("flow", flow.expect, pair.outcome());
    for (direction, expected, verdict) in [
        (Direction::Egress, flow.egress, &pair.egress.verdict),
        (Direction::Ingress, flow.ingress, &pair.ingress.verdict),
    ] {
        if let Some(expected) = expected {
            compare(direction.as_str(), expected, Outcome::of(verdict));
        }
    }
    for (direction, by, verdict, own) in [
        (Direction::Egress, &flow.egress_by, &pair.egress.verdict, &pair.from),
        (Direction::Ingress, &flow.ingress_by, &pair.ingress.verdict, &pair.to),
    ] {
        problems.extend(by.iter().filter_map(|by| check_by(cluster, by, direction, verdict, own)));
        // On a deny the case lists every policy that selects the pod.
        if let (Decision::Denied(denial), false) = (&verdict.decision, by.is_empty()) {
            for policy in denial.policies() {
                let name = policy.to_string();
                if !by.iter().any(|it| it.policy.as_ref() == Some(&name)) {
                    problems.push(format!("{direction}: denied by {name}, which is not expected"));
                }
            }
        }
    }
    problems
}

/// What is wrong with a verdict, if a case names this cause for it.
fn check_by(
    cluster: &Cluster,
    by: &By,
    direction: Direction,
    verdict: &Verdict,
    own: &End,
) -> Option<String> {
    let named = |policy: &dyn std::fmt::Display| by.policy.as_deref() == Some(policy.to_string().as_str());
    let is_rule = |found: &RuleMatch| {
        named(&found.rule.policy)
            && by.rule_index.is_none_or(|index| index == found.rule.index)
            && by.rule_name.as_deref().is_none_or(|name| *name == *found.rule.name)
    };
    let agrees = match by.effect.as_str() {
        "default-allow" => {
            matches!(verdict.decision, Decision::Allowed(Cause::NotIsolated | Cause::Exempt(_)))
                && by.policy.is_none()
        }
        "allow" => verdict.rules().iter().any(is_rule),
        "deny" => verdict.denying_rule().is_some_and(is_rule),
        "pass" => verdict.passed.iter().any(is_rule),
        effect @ ("selects-no-rule-matches" | "selects-ports-do-not-match") => match &verdict.decision {
            Decision::Denied(Denial::Isolation(misses)) => misses.iter().any(|miss| {
                named(&miss.policy)
                    && miss.peer_matches_rule.is_some() == (effect == "selects-ports-do-not-match")
            }),
            // Another policy allowed it: this one must select the pod and not be among those that allow.
            Decision::Allowed(Cause::Rules(rules)) => {
                let selects = match own {
                    End::Pod(id, _) => cluster.selected_by(*id, direction).any(|policy| named(&policy.id)),
                    _ => false,
                };
                selects && !rules.iter().any(|found| named(&found.rule.policy))
            }
            _ => false,
        },
        _ => false,
    };
    (!agrees).then(|| {
        let policy = by.policy.as_deref().unwrap_or("no policy");
        let index = by.rule_index.map(|index| format!(" {direction}[{index}]"));
        let rule = index.or(by.rule_name.as_ref().map(|name| format!(" {name:?}"))).unwrap_or_default();
        format!("{direction}: expected {} by {policy}{rule}", by.effect)
    })
}
