//! SARIF 2.1.0: what the standard requires of a log, by section, and what those who read it look at.

use serde_json::Value;

use crate::command::{folder, netaudit, run};

const MANIFEST: &str = r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: "a b"
  namespace: shop
  annotations: {netaudit/lint-ignore: "NA013: meant"}
spec:
  podSelector: {}
  egress:
  - ports: [{protocol: UDP, port: 53}]
  - to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]
    ports: [{port: 443}]
"#;

#[track_caller]
fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{pointer} in {value:#}"))
}

#[track_caller]
fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).unwrap_or_else(|| panic!("{pointer} in {value:#}"))
}

#[test]
fn a_log_has_what_the_standard_requires() {
    let folder = folder(&[("policy one.yaml", MANIFEST), ("broken.yaml", "a: [\n")]);
    let arguments = ["lint", "--output", "sarif", "--ignore", "NA005", "./policy one.yaml", "broken.yaml"];
    let told = run(netaudit().current_dir(folder.path()).args(arguments));
    assert_eq!(told.status, 2, "{}", told.err);
    let log: Value = serde_json::from_str(&told.out).expect("JSON");
    // 3.13: sarifLog. 3.14: run.
    assert_eq!(text(&log, "/version"), "2.1.0");
    assert!(text(&log, "/$schema").ends_with("/sarif-schema-2.1.0.json"));
    assert_eq!(list(&log, "/runs").len(), 1);
    let run = &log["runs"][0];
    assert_eq!(text(run, "/columnKind"), "unicodeCodePoints");
    // 3.19: toolComponent. 3.49: reportingDescriptor.
    assert!(!text(run, "/tool/driver/name").is_empty());
    assert_eq!(text(run, "/tool/driver/version"), env!("CARGO_PKG_VERSION"));
    let rules = list(run, "/tool/driver/rules");
    for rule in rules {
        assert!(text(rule, "/id").starts_with("NA"));
        for pointer in ["/shortDescription/text", "/fullDescription/text", "/help/text", "/name"] {
            assert!(!text(rule, pointer).is_empty());
        }
        assert!(["note", "warning", "error"].contains(&text(rule, "/defaultConfiguration/level")));
    }
    let mut ids: Vec<&str> = rules.iter().map(|it| text(it, "/id")).collect();
    ids.dedup();
    assert_eq!(ids.len(), 25);
    // 3.27: result; 3.30: region; 3.4: artifactLocation, whose URI is one; 3.35: suppression.
    let results = list(run, "/results");
    for result in results {
        let index = result["ruleIndex"].as_u64().expect("an index") as usize;
        assert_eq!(text(result, "/ruleId"), text(&rules[index], "/id"));
        assert!(["note", "warning", "error"].contains(&text(result, "/level")));
        assert!(!text(result, "/message/text").is_empty());
        let location = &result["locations"][0]["physicalLocation"];
        assert_eq!(text(location, "/artifactLocation/uri"), "policy%20one.yaml");
        let number = |name: &str| location["region"][name].as_u64().expect("a number");
        let (start, end) =
            ((number("startLine"), number("startColumn")), (number("endLine"), number("endColumn")));
        assert!(start.0 >= 1 && start.1 >= 1 && end > start, "{location:#}");
        assert!(!text(result, "/partialFingerprints/objectAndPath~1v1").is_empty());
    }
    let brief = |it: &Value| {
        let place = &it["locations"][0]["physicalLocation"]["region"];
        let suppression = &it["suppressions"][0];
        let kind = suppression["kind"].as_str().map(str::to_owned);
        let reason = suppression["justification"].as_str().map(str::to_owned);
        (text(it, "/ruleId").to_owned(), place["startLine"].as_u64(), kind, reason)
    };
    let own = |text: &str| Some(text.to_owned());
    let found: Vec<_> = results.iter().map(brief).collect();
    assert_eq!(
        found,
        [
            ("NA008".to_owned(), Some(11), None, None),
            ("NA013".to_owned(), Some(7), own("inSource"), own("meant")),
            ("NA005".to_owned(), Some(10), own("external"), None),
        ]
    );
    // 3.20: invocation; 3.58: notification.
    let invocation = &list(run, "/invocations")[0];
    assert_eq!(invocation["executionSuccessful"], false);
    let notifications = list(invocation, "/toolExecutionNotifications");
    let errors: Vec<_> = notifications.iter().filter(|it| it["level"] == "error").collect();
    assert_eq!(errors.len(), 1);
    let place = "/locations/0/physicalLocation";
    assert_eq!(text(errors[0], &format!("{place}/artifactLocation/uri")), "broken.yaml");
    let skipped = notifications.iter().filter(|it| it["level"] == "note");
    for it in skipped {
        assert!(!text(it, "/message/text").is_empty());
        let index = it["associatedRule"]["index"].as_u64().expect("an index") as usize;
        assert_eq!(text(it, "/associatedRule/id"), text(&rules[index], "/id"));
    }
}

#[test]
fn yaml_says_what_json_says() {
    let folder = folder(&[("a.yaml", MANIFEST)]);
    let told = |output: &str| {
        run(netaudit().current_dir(folder.path()).args(["lint", "a.yaml", "--output", output])).out
    };
    let json: Value = serde_json::from_str(&told("json")).expect("JSON");
    let yaml: Value = serde_saphyr::from_str(&told("yaml")).expect("YAML");
    assert_eq!(json, yaml);
    assert_eq!(list(&json, "/findings").len(), 2);
    assert_eq!(list(&json, "/silenced").len(), 1);
}
