//! Literate cases: the Markdown files in `semantics/`, where prose says a rule, YAML shows it, and a table says what
//! follows.
//!
//! A case is a section (`##`). Its objects are the `yaml` blocks of the section and those before the first section.
//! Its table has the columns `from`, `to`, `port`, `egress`, `ingress`; an empty cell is not checked. A `warnings`
//! block holds every warning that the objects give, one a line. An ellipsis stands for the rest of a text.

use std::{fmt::Write as _, fs, net::IpAddr, path::Path};

use netaudit::{
    cluster::{Cluster, Endpoint, Party, PodId},
    model::{Cause, Decision, Denial, Direction, Protocol, Timestamp, Verdict},
    watch::manifests,
};

const NOW: Timestamp = Timestamp::from_seconds(1_000);

#[derive(Default)]
struct Case {
    name: String,
    yaml: String,
    warnings: Option<Vec<String>>,
    rows: Vec<(usize, Vec<String>)>,
}

#[test]
fn every_markdown_case_holds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/semantics");
    let mut files: Vec<_> =
        fs::read_dir(&folder).expect("the folder").flatten().map(|it| it.path()).collect();
    files.retain(|path| path.extension().is_some_and(|it| it == "md"));
    files.sort();
    let (mut failures, mut rows) = (String::new(), 0);
    for file in &files {
        let text = fs::read_to_string(file).expect("readable");
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        for case in parse(&text) {
            assert!(!case.rows.is_empty(), "{name}: {}: no table", case.name);
            rows += case.rows.len();
            for problem in check(&case) {
                let _ = writeln!(failures, "{name}: {}: {problem}", case.name);
            }
        }
    }
    assert!(rows > 100, "only {rows} flows in {} files", files.len());
    assert!(failures.is_empty(), "\n{failures}");
}

fn parse(text: &str) -> Vec<Case> {
    let mut common = String::new();
    let mut cases: Vec<Case> = Vec::new();
    let mut block: Option<(String, String)> = None;
    for (number, line) in (1..).zip(text.lines()) {
        match &mut block {
            Some((kind, content)) if line.starts_with("```") => {
                match (kind.as_str(), cases.last_mut()) {
                    ("yaml", None) => common += &format!("---\n{content}"),
                    ("yaml", Some(case)) => case.yaml += &format!("---\n{content}"),
                    ("warnings", Some(case)) => {
                        case.warnings = Some(content.lines().map(str::to_owned).collect())
                    }
                    (kind, _) => panic!("line {number}: a {kind:?} block has no place here"),
                }
                block = None;
            }
            Some((_, content)) => {
                content.push_str(line);
                content.push('\n');
            }
            None => {
                if let Some(kind) = line.strip_prefix("```") {
                    block = Some((kind.to_owned(), String::new()));
                } else if let Some(name) = line.strip_prefix("## ") {
                    cases.push(Case { name: name.to_owned(), ..Case::default() });
                } else if let Some(row) = line.strip_prefix("| ").and_then(|it| it.strip_suffix('|'))
                    && !row.starts_with("from ")
                    && let Some(case) = cases.last_mut()
                {
                    let cells: Vec<_> = row.split('|').map(|it| it.trim().to_owned()).collect();
                    assert_eq!(cells.len(), 5, "line {number}: five columns");
                    case.rows.push((number, cells));
                }
            }
        }
    }
    for case in &mut cases {
        case.yaml = format!("{common}{}", case.yaml);
    }
    cases
}

fn check(case: &Case) -> Vec<String> {
    let loaded = manifests::load_text("case.yaml", &case.yaml);
    let mut cluster = Cluster::new();
    cluster.reset_all(loaded.into_objects(), NOW);
    let mut problems = Vec::new();
    let mut warnings: Vec<String> = cluster.warnings().map(ToString::to_string).collect();
    warnings.extend(cluster.broken().map(ToString::to_string));
    let expected = case.warnings.as_deref().unwrap_or_default();
    if warnings.len() != expected.len() || warnings.iter().zip(expected).any(|(got, it)| !agrees(it, got)) {
        problems.push(format!("warnings:\n  {}", warnings.join("\n  ")));
    }
    for (line, cells) in &case.rows {
        let [from, to, port, egress, ingress] = cells.as_slice() else { unreachable!("checked when parsed") };
        let (protocol, port) = port.split_once(' ').expect("PROTOCOL PORT");
        let (protocol, port): (Protocol, u16) =
            (protocol.parse().expect("a protocol"), port.parse().expect("a port"));
        for (direction, own, peer, expected) in
            [(Direction::Egress, from, to, egress), (Direction::Ingress, to, from, ingress)]
        {
            if expected.is_empty() {
                continue;
            }
            let (subject, _) = find(&cluster, own);
            let subject =
                subject.unwrap_or_else(|| panic!("line {line}: {own} is no pod, so it has no verdict"));
            let party = party(&cluster, subject, peer);
            let verdict = cluster.verdict(direction, subject, party, protocol, port);
            let why = cluster.explain(direction, subject, party, protocol, port);
            if !why.explains(&verdict) {
                problems.push(format!("line {line}: {direction}: {verdict:?} is not explained by {why:?}"));
            }
            let got = render(&verdict);
            if !agrees(expected, &got) {
                problems.push(format!("line {line}: {direction}: expected {expected}, got {got}"));
            }
        }
    }
    problems
}

/// Whether `got` is what is expected, of which an ellipsis at the end stands for the rest.
fn agrees(expected: &str, got: &str) -> bool {
    match expected.trim_end().strip_suffix('…') {
        Some(start) => got.starts_with(start.trim_end()),
        None => got == expected,
    }
}

/// A pod by name or address, and the address if that was given.
fn find(cluster: &Cluster, end: &str) -> (Option<PodId>, Option<IpAddr>) {
    if let Ok(ip) = end.parse::<IpAddr>() {
        return match cluster.resolve(ip, 1, Protocol::Tcp, NOW) {
            Endpoint::Pod(id) => (Some(id), Some(ip)),
            Endpoint::External | Endpoint::Node(_) => (None, Some(ip)),
            other => panic!("{end} is {other:?}"),
        };
    }
    let (namespace, name) = end.split_once('/').unwrap_or_else(|| panic!("{end} is no end"));
    (Some(cluster.pod_by_name(namespace, name).unwrap_or_else(|| panic!("no pod {end}"))), None)
}

fn party(cluster: &Cluster, subject: PodId, end: &str) -> Party {
    let own_node = cluster.pod(subject).and_then(|pod| pod.node.clone());
    match find(cluster, end) {
        (Some(id), Some(ip)) => Party::PodAt(id, ip),
        (Some(id), None) => Party::Pod(id),
        (None, Some(ip)) => match cluster.resolve(ip, 1, Protocol::Tcp, NOW) {
            Endpoint::Node(name) if Some(&name) == own_node.as_ref() => Party::OwnNode,
            _ => Party::Ip(ip),
        },
        (None, None) => unreachable!("an end is a pod or an address"),
    }
}

/// A verdict as the tables write it.
fn render(verdict: &Verdict) -> String {
    let passed: String =
        verdict.passed.iter().map(|it| format!("passed: {} {}, ", it.rule.policy.name, it.path())).collect();
    let decision = match &verdict.decision {
        Decision::Allowed(Cause::NotIsolated) => "allowed: not isolated".to_owned(),
        Decision::Allowed(Cause::Exempt(why)) => format!("allowed: {why}"),
        Decision::Allowed(Cause::Rules(rules)) => {
            let rules: Vec<_> =
                rules.iter().map(|it| format!("{} {}", it.rule.policy.name, it.path())).collect();
            format!("allowed: {}", rules.join(", "))
        }
        Decision::Denied(Denial::Rule(found)) => {
            format!("denied: {} {}", found.rule.policy.name, found.path())
        }
        Decision::Denied(Denial::Isolation(misses)) => {
            let by: Vec<_> = (misses.iter())
                .map(|miss| match miss.peer_matches_rule {
                    Some(index) => format!("{} (rule {index}, but not the port)", miss.policy.name),
                    None => miss.policy.name.to_string(),
                })
                .collect();
            format!("denied: {}", by.join(", "))
        }
        Decision::Unknown(gap) => format!("unknown: {gap}"),
    };
    let caveats: String = verdict.caveats.iter().map(|it| format!(", but {it}")).collect();
    passed + &decision + &caveats
}
