//! `netaudit test` against what flow stores have: the objects of a time, and recorded flows.

use super::*;

#[test]
fn expectations_are_checked_against_the_objects_of_then_and_recorded_flows() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path().join("store");
    let mut agent = Agent::new(&store, "run-a")?;
    begin(&mut agent);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.1", 10);
    agent.apply(&policy("api"), 30);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.4", 40);
    agent.finish(50);
    let text = "apiVersion: netaudit/v1\nkind: Expectations\ncases:
  - {name: web gets in, expect: allow, from: {namespace: shop, workload: web}, to: shop/db-0, port: 5432, observed: true}
  - {name: api stays out, expect: deny, from: shop/api-0, to: shop/db-0, port: 5432, observed: false}
";
    let file = directory.path().join("expect.yaml");
    fs::write(&file, text)?;
    let test =
        |more: &[&str]| run(netaudit().arg("test").arg(&file).arg("--flow-store").arg(&store).args(more));
    let ran = test(&["--at", "2026-01-01T00:00:20Z"]);
    assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
    assert!(
        ran.out.contains("ok   web gets in (2 flows recorded)\nok   api stays out (0 flows recorded)"),
        "{}",
        ran.out
    );
    let ran = test(&["--at", "2026-01-01T00:00:35Z", "--output", "json"]);
    let told: Value = serde_json::from_str(&ran.out)?;
    assert_eq!((ran.status, &told["failed"]), (1, &json!(2)), "the policy is another: {told:#}");
    // In another time there were none.
    let ran = test(&["--at", "2026-01-01T00:00:20Z", "--since", "2026-01-01T00:00:45Z"]);
    assert_eq!(ran.status, 1);
    assert!(ran.out.contains("no such flow was recorded in that time"), "{}", ran.out);
    fs::write(&file, text.replace("observed: true", "observed: false"))?;
    let ran = test(&["--at", "2026-01-01T00:00:20Z"]);
    assert!(
        ran.status == 1 && ran.out.contains("2 such flows were recorded, and none was to be"),
        "{}",
        ran.out
    );
    // Of a time that nobody knows nothing is said.
    let ran = test(&["--at", "2025-12-31T00:00:00Z"]);
    assert_eq!(ran.status, 2);
    assert!(
        ran.err.contains(
            "no history of objects tells of 2025-12-31T00:00:00Z: it begins at 2026-01-01T00:00:02Z"
        ),
        "{}",
        ran.err
    );
    Ok(())
}
