//! What is found on flows: asked of an agent, with what is known of enforcement, and with what somebody has accepted.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::harness::{LISTEN, NETAUDIT, PATIENCE, World, kernel_or_skip, of, python};
use crate::lab::Launch;

/// Exit status, stdout and stderr of `netaudit findings` with these arguments.
fn ask(world: &World, arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
    let all = ["findings"].iter().chain(arguments).map(|it| (*it).to_owned());
    let output = Launch::new(NETAUDIT, all).run(&world.agent_place()?, PATIENCE)?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((output.status.code(), text(output.stdout), text(output.stderr)))
}

/// The only agent's document.
fn findings(world: &World) -> Result<(Option<i32>, Value)> {
    let url = format!("http://{LISTEN}");
    let (status, answer, errors) = ask(world, &[&url, "--output", "json"])?;
    let answer: Value = serde_json::from_str(&answer).context(errors)?;
    Ok((status, answer["agents"][0].clone()))
}

/// The node's filter drops what goes to the server.
const FILTER: &str = "table inet stop { chain forward { type filter hook forward priority 0; policy accept;
    tcp dport 8080 drop
}
}
";

#[test]
fn findings_tell_what_passed_what_was_stopped_and_what_is_accepted() -> Result<()> {
    if !kernel_or_skip("findings") {
        return Ok(());
    }
    let world = World::new("findings")?;
    world.deny_all()?;
    let _server = world.serve()?;
    let accepted = world.lab.directory().join("accepted.yaml");
    let mut arguments = world.arguments();
    arguments.extend(["--accepted-flows".to_owned(), accepted.display().to_string()]);
    // There is no such file yet: the agent says so, and works.
    let mut agent = world.agent_by(&Launch::new(NETAUDIT, arguments))?;
    let is_valid = || world.metric("netaudit_accepted_file_valid").ok().flatten();
    ensure!(is_valid() == Some(0.0), "{:?}", is_valid());
    let (status, nothing) = findings(&world)?;
    ensure!(status == Some(0) && nothing["findings"] == Value::Array(vec![]), "{nothing:#}");

    world.connect(2)?;
    world.wait_for_flows("two denied", |flows| of(flows, "ingress").len() == 2)?;
    let (status, told) = findings(&world)?;
    let [one] = told["findings"].as_array().context("a list")?.as_slice() else { panic!("{told:#}") };
    assert_eq!(status, Some(1));
    assert_eq!(
        (&one["severity"], &one["finding"], &one["cause"], &one["count"]),
        (&"critical".into(), &"unenforced".into(), &Value::Null, &2.into()),
        "{one:#}"
    );
    assert_eq!((&one["from"]["workload"], &one["to"]["workload"]), (&"client".into(), &"server".into()));
    assert_eq!((&one["policy"], &one["port"]), (&"NetworkPolicy/shop/deny".into(), &8080.into()));
    let flows = world.flows()?;
    let last = of(&flows, "ingress").last().map(|flow| flow["flow_id"].clone());
    assert_eq!(Some(one["flowId"].clone()), last);
    // One pod alone does not show that nothing enforces, but what passed is told.
    assert_eq!(told["enforcement"][1]["state"], "untested");
    // The same in the metrics, with the flow's name where there is room for it.
    let (_, text) = world.get("/metrics")?;
    assert!(text.contains(r#"netaudit_enforcement{direction="ingress",state="untested"} 1"#), "{text}");
    assert!(text.contains(r#"cause="",accepted=""} 2"#), "{text}");

    // Known from now on.
    std::fs::write(
        &accepted,
        "accepted: [{name: old-client, why: it moves, owner: team-a, until: 2261-01-01, from: {workload: client}}]",
    )?;
    let is_read =
        || world.metric("netaudit_accepted_expired{name=\"old-client\"").is_ok_and(|it| it == Some(0.0));
    agent.wait_until(PATIENCE, "accepted flows", is_read)?;
    world.connect(1)?;
    world.wait_for_flows("another denied", |flows| of(flows, "ingress").len() == 3)?;
    let (_, told) = findings(&world)?;
    let names: Vec<_> =
        told["findings"].as_array().context("a list")?.iter().map(|it| &it["accepted"]).collect();
    assert_eq!(names, [&Value::Null, &"old-client".into()], "what weighs more comes first: {told:#}");
    ensure!(is_valid() == Some(1.0), "{:?}", is_valid());
    // A slip does not undo it.
    std::fs::write(&accepted, "accepted: [{name: old-client}]")?;
    std::thread::sleep(Duration::from_millis(2_100));
    let log = std::fs::read_to_string(world.lab.log("agent"))?;
    assert!(
        log.contains("accepted.yaml") && log.contains("what was accepted before is accepted still"),
        "{log}"
    );
    assert!(is_read());
    let (status, ready) = world.get("/readyz")?;
    ensure!(is_valid() == Some(0.0) && status == 200, "{ready}");
    ensure!(
        ready.contains("degraded: accepted flows are those of before") && ready.contains("why"),
        "{ready}"
    );

    // Somebody enforces after all.
    world.lab.node().nft(FILTER)?;
    let address = world.server.v4;
    python(
        &world.client.place,
        &format!(
            "import socket\ns=socket.socket(); s.settimeout(1.3)\ntry: s.connect(('{address}',8080))\nexcept OSError: pass\n"
        ),
    )?;
    let is_partly = || findings(&world).is_ok_and(|(_, told)| told["enforcement"][1]["state"] == "partly");
    agent.wait_until(PATIENCE, "a stop", is_partly)?;
    let url = format!("http://{LISTEN}");
    let (status, table, _) = ask(&world, &[&url])?;
    assert_eq!(status, Some(1));
    for words in
        ["ingress: partly since", "critical  unenforced", "shop/client", "accepted as old-client", "blocked"]
    {
        assert!(table.contains(words), "{words} is not in\n{table}");
    }
    let (status, table, _) = ask(&world, &[&url, "-n", "elsewhere"])?;
    assert_eq!((status, table.contains("no findings")), (Some(0), true), "{table}");

    // A copy of the answer says the same, and together they are one agent.
    let copy = world.lab.directory().join("findings.json");
    std::fs::write(&copy, world.get("/findings")?.1)?;
    let copy = copy.display().to_string();
    let (_, both, _) = ask(&world, &[&url, &copy, "--output", "json"])?;
    assert_eq!(serde_json::from_str::<Value>(&both)?["agents"].as_array().map(Vec::len), Some(1));
    let (_, yaml, _) = ask(&world, &[&copy, "--output", "yaml", "--fail-on", "never"])?;
    assert!(yaml.contains("flowId:"), "{yaml}");
    agent.terminate(Duration::from_secs(2))?;

    for (source, words) in [
        (url.as_str(), "cannot ask the agent at http://127.0.0.1"),
        ("https://127.0.0.1:1", "only http:// is spoken here"),
        ("/nonexistent/findings.json", "cannot read /nonexistent/findings.json"),
        (world.flow_log().to_string_lossy().as_ref(), "is no answer of /findings"),
    ] {
        let (status, _, errors) = ask(&world, &[source])?;
        assert!(status == Some(2) && errors.contains(words), "{source}: {errors}");
    }
    Ok(())
}
