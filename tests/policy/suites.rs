//! The plain evaluator against every case of other suites, named causes included: what it is compared with must be right
//! itself.

use std::{fmt::Write as _, fs, path::Path};

use super::{
    case::{Answer, By, Case, Effect, Flow, Verdict},
    naive::Naive,
};

#[test]
fn the_plain_evaluator_passes_every_case_of_other_suites() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        // cargo shows no output of tests that pass: where the folder must be there, its absence is a failure.
        Err(error) if std::env::var_os("NETAUDIT_REQUIRE_SHARED").is_some_and(|it| it == "1") => {
            panic!("NETAUDIT_REQUIRE_SHARED=1, but ../shared/conformance beside the workspace: {error}")
        }
        Err(error) => {
            eprintln!("SKIPPED: ../shared/conformance beside the workspace: {error}");
            return;
        }
    };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|it| it == "jsonl"));
    assert!(!files.is_empty(), "no cases in {}", folder.display());
    let (mut problems, mut cases, mut flows, mut causes) = (String::new(), 0, 0, 0);
    for file in files {
        let text = fs::read_to_string(&file).expect("readable");
        for (line, text) in (1..).zip(text.lines()) {
            let case: Case = serde_json::from_str(text)
                .unwrap_or_else(|error| panic!("{}:{line}: {error}", file.display()));
            cases += 1;
            for flow in &case.flows {
                flows += 1;
                causes += flow.egress_by.len() + flow.ingress_by.len();
                for problem in check(&case, flow) {
                    let _ = writeln!(problems, "{}: {flow}: {problem}", case.name);
                }
            }
        }
    }
    assert!(problems.is_empty(), "\n{problems}");
    assert!(
        cases >= 317 && flows >= 9_558 && causes >= 3_700,
        "{cases} cases, {flows} flows, {causes} causes"
    );
}

/// What does not agree with the case.
pub fn check(case: &Case, flow: &Flow) -> Vec<String> {
    let naive = Naive { objects: &case.objects, dns: case.dns.as_ref(), seen: None };
    let [egress, ingress] = naive.ask(flow);
    let mut problems = Vec::new();
    let mut compare = |what: &str, expected: Option<Verdict>, got: Verdict| {
        if expected.is_some_and(|it| it != got) {
            problems.push(format!("{what}: expected {expected:?}, got {got:?}"));
        }
    };
    compare("flow", flow.expect, Verdict::both(egress.verdict, ingress.verdict));
    compare("egress", flow.egress, egress.verdict);
    compare("ingress", flow.ingress, ingress.verdict);
    for (what, answer, expected) in
        [("egress", &egress, &flow.egress_by), ("ingress", &ingress, &flow.ingress_by)]
    {
        for by in expected {
            if !answer.by().iter().any(|it| is_cause(by, it)) {
                problems.push(format!("{what}: not among the causes: {by:?}: {:?}", answer.by()));
            }
        }
        if !expected.is_empty() && !is_complete(answer, expected) {
            problems.push(format!("{what}: more causes than expected: {:?}", answer.by()));
        }
    }
    problems
}

/// Whether a cause is the expected one, of which only what is said must hold.
fn is_cause(expected: &By, got: &By) -> bool {
    let same_effect = match expected.effect {
        Effect::DefaultAllow => matches!(got.effect, Effect::DefaultAllow | Effect::Exempt),
        effect => effect == got.effect,
    };
    same_effect
        && expected.policy == got.policy
        && expected.rule_index.is_none_or(|it| got.rule_index == Some(it))
        && expected.rule_name.as_ref().is_none_or(|it| got.rule_name.as_ref() == Some(it))
}

/// Whether every cause was expected: on a deny all that select the pod are listed.
fn is_complete(answer: &Answer, expected: &[By]) -> bool {
    answer.verdict != Verdict::Deny
        || answer.by().iter().all(|got| expected.iter().any(|it| is_cause(it, got)))
}
