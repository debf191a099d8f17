//! The cases of `tests/lint/*.md`: a manifest each, and all that is found in it.

use std::collections::{BTreeMap, BTreeSet};

use netaudit::advise::lint::{Code, Finding, Options, What};

use super::{lines, lint};

const FILES: [(&str, &str); 6] = [
    ("addresses.md", include_str!("addresses.md")),
    ("dns.md", include_str!("dns.md")),
    ("overlap.md", include_str!("overlap.md")),
    ("ports.md", include_str!("ports.md")),
    ("selectors.md", include_str!("selectors.md")),
    ("types.md", include_str!("types.md")),
];

struct Case {
    title: String,
    options: Options,
    manifest: String,
    expected: Vec<String>,
}

fn cases() -> Vec<Case> {
    let all = FILES.iter().flat_map(|(file, text)| text.split("\n## ").skip(1).map(move |it| (file, it)));
    all.map(|(file, text)| {
        let title = format!("{file}: {}", text.lines().next().expect("a title"));
        let (head, rest) = text.split_once("```yaml\n").unwrap_or_else(|| panic!("{title}: no manifest"));
        let (manifest, rest) = rest.split_once("```\n").unwrap_or_else(|| panic!("{title}: no end"));
        let expected: Vec<String> =
            rest.lines().filter_map(|it| it.strip_prefix("- ")).map(str::to_owned).collect();
        // A case that says nothing says so: it is not one whose end was lost.
        assert_eq!(expected.is_empty(), rest.trim() == "nothing", "{title}");
        Case { title, options: options(head), manifest: manifest.to_owned(), expected }
    })
    .collect()
}

fn options(head: &str) -> Options {
    let mut options = Options::default();
    let said = head.lines().find_map(|it| it.strip_prefix("options: ")).unwrap_or_default();
    let mut words = said.split_whitespace();
    while let Some(word) = words.next() {
        match word {
            "--partial" => options.is_partial = true,
            "--probes-need-rule" => options.probes_need_rule = true,
            "--cni" => options.cni = words.next().map(str::to_lowercase),
            other => panic!("unknown option {other}"),
        }
    }
    options
}

#[test]
fn every_case_finds_what_it_says_and_nothing_else() {
    let mut wrong = Vec::new();
    for case in cases() {
        let (placed, report) = lint("case.yaml", &case.manifest, &case.options);
        assert_eq!(placed.errors, [], "{}", case.title);
        let found = lines(&placed, &report);
        if found != case.expected {
            wrong.push(format!("{}\n  expected {:#?}\n  found {found:#?}", case.title, case.expected));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_code_has_a_case_in_which_it_is_said_and_one_in_which_it_is_not() {
    let mut said: BTreeMap<String, [bool; 2]> = BTreeMap::new();
    for case in cases() {
        let about = case.title.split(": ").nth(1).expect("a code").to_owned();
        let finds = case.expected.iter().any(|it| it.contains(&about));
        said.entry(about).or_default()[usize::from(finds)] = true;
    }
    let known: BTreeSet<String> = Code::all().map(|it| it.to_string()).collect();
    assert_eq!(said.keys().cloned().collect::<BTreeSet<_>>(), known);
    for (code, [not_said, is_said]) in said {
        assert!(is_said, "{code} is never said");
        assert!(not_said, "{code} has no case in which it is not said");
    }
}

/// What a list or JSON holds is judged as if each object were a document.
#[test]
fn the_same_policy_is_judged_alike_as_yaml_as_json_and_in_lists() {
    for case in cases() {
        let documents: Vec<serde_json::Value> =
            case.manifest.split("\n---\n").map(|it| serde_saphyr::from_str(it).expect("YAML")).collect();
        let findings = |name: &str, text: &str| {
            let (placed, report) = lint(name, text, &case.options);
            assert_eq!(placed.errors, [], "{}", case.title);
            let finding = |it: &Finding| {
                let object = match &placed.manifests.items[it.item].what {
                    What::Object(object) => object.key().map(|it| it.to_string()),
                    What::Pods(pods) => Some(pods.to_string()),
                };
                (object, it.code, it.severity, it.path.clone())
            };
            report.findings.iter().map(finding).collect::<BTreeSet<_>>()
        };
        let plain = findings("case.yaml", &case.manifest);
        let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": documents });
        assert_eq!(findings("list.json", &format!("{list:#}")), plain, "{}", case.title);
        assert_eq!(findings("list.yaml", &serde_saphyr::to_string(&list).unwrap()), plain, "{}", case.title);
        let many: String = documents.iter().map(|it| format!("{it}\n")).collect();
        assert_eq!(findings("many.json", &many), plain, "{}", case.title);
    }
}
