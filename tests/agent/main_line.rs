//! The straight line on real hooks: what two pods do is what the agent says.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use serde_json::Value;

use super::harness::{NETAUDIT, PATIENCE, World, eventually, kernel_or_skip, of, python};
use crate::lab::{BpfFs, Launch};

#[test]
fn a_denied_connection_is_told_with_both_ends_the_policy_and_what_became_of_it() -> Result<()> {
    if !kernel_or_skip("main line") {
        return Ok(());
    }
    let world = World::new("main-line")?;
    world.deny_all()?;
    let _server = world.serve()?;
    let mut agent = world.agent()?;
    world.connect(1)?;
    let flows = world.wait_for_flows("pair of flows", |flows| {
        of(flows, "egress").len() == 1 && of(flows, "ingress").len() == 1
    })?;
    let (egress, ingress) = (of(&flows, "egress")[0], of(&flows, "ingress")[0]);

    assert_eq!(egress["subject"]["pod"], world.client.spec.name, "{egress:#}");
    assert_eq!(egress["subject"]["workload"], "client");
    assert_eq!(egress["actor"]["container"], world.client.container_id.as_str());
    assert_eq!(egress["actor"]["comm"], "python3");
    assert_eq!(egress["actor"]["kind"], "subject");
    assert_eq!(egress["peer"]["workload"], "server");
    assert_eq!(egress["outcome"], "established");
    assert_eq!((&egress["verdict"], &egress["reason"]), (&"allowed".into(), &"not isolated".into()));
    assert_eq!(egress["peer_verdict"]["verdict"], "denied");
    assert!(egress["finding"].is_null(), "the destination's node counts the ingress violation: {egress:#}");

    assert_eq!(ingress["subject"]["uid"], world.server.uid.as_str());
    assert_eq!(ingress["peer"]["workload"], "client");
    assert_eq!(ingress["outcome"], "accepted");
    assert_eq!(ingress["verdict"], "denied");
    assert_eq!(ingress["denied_by"][0], "NetworkPolicy/shop/deny");
    assert_eq!(ingress["finding"], "unenforced");
    assert_eq!(ingress["actor"]["container"], world.server.container_id.as_str());

    let violation = world.metric("netaudit_violations_total{")?;
    assert_eq!(violation, Some(1.0));
    let (_, metrics) = world.get("/metrics")?;
    let labels = r#"direction="ingress",source_namespace="shop",source_workload="client",destination_namespace="shop",destination_workload="server",protocol="TCP",port="8080",finding="unenforced",policy="NetworkPolicy/shop/deny""#;
    assert!(metrics.contains(labels), "{metrics}");
    assert_eq!(world.metric_sum("netaudit_records_lost_total{")?, 0.0);
    agent.terminate(Duration::from_secs(2))
}

#[test]
fn policies_are_followed_while_the_agent_runs() -> Result<()> {
    if !kernel_or_skip("following policies") {
        return Ok(());
    }
    let world = World::new("follow")?;
    let _server = world.serve()?;
    let _agent = world.agent()?;
    world.connect(1)?;
    let flows = world.wait_for_flows("accepted flow", |flows| of(flows, "ingress").len() == 1)?;
    assert_eq!(of(&flows, "ingress")[0]["reason"], "not isolated");
    world.deny_all()?;
    eventually("the policy is in the index", || {
        Ok(world.metric(r#"netaudit_objects{kind="NetworkPolicy"}"#)? == Some(1.0))
    })?;
    world.connect(1)?;
    let flows = world.wait_for_flows("second accepted flow", |flows| of(flows, "ingress").len() == 2)?;
    assert_eq!(of(&flows, "ingress")[1]["verdict"], "denied");
    Ok(())
}

#[test]
fn killed_and_restarted_during_traffic_it_knows_who_was_there_before() -> Result<()> {
    if !kernel_or_skip("restart") {
        return Ok(());
    }
    let world = World::new("restart")?;
    world.deny_all()?;
    let _server = world.serve()?;
    let first = world.agent()?;
    world.connect(10)?;
    world.wait_for_flows("first ten", |flows| of(flows, "ingress").len() == 10)?;
    // Dropping kills: nothing is drained, nothing is said.
    drop(first);
    world.connect(5)?;
    let mut second = world.agent()?;
    world.connect(10)?;
    let flows = world.wait_for_flows("ten more", |flows| of(flows, "ingress").len() == 20)?;
    let runs: BTreeSet<_> = of(&flows, "ingress")
        .iter()
        .map(|flow| {
            flow["flow_id"].as_str().unwrap_or_default().rsplit_once('-').map(|(run, _)| run.to_owned())
        })
        .collect();
    assert_eq!(runs.len(), 2, "each run says that it is another one: {runs:?}");
    for flow in of(&flows, "ingress") {
        assert_eq!(flow["subject"]["workload"], "server", "{flow:#}");
        assert_eq!(flow["finding"], "unenforced");
    }
    // The server listened before the second agent: its listener is found and named.
    let last = of(&flows, "ingress")[19];
    assert_eq!(last["actor"]["container"], world.server.container_id.as_str(), "{last:#}");
    second.terminate(Duration::from_secs(2))
}

#[test]
fn with_pins_neither_a_kill_nor_an_end_loses_a_flow() -> Result<()> {
    if !kernel_or_skip("pins") {
        return Ok(());
    }
    const CONNECTIONS: usize = 3_000;
    let files = BpfFs::mount()?;
    let world = World::new("pins")?;
    let _server = world.serve()?;
    let pins = files.pins().display().to_string();
    let launch =
        Launch::new(NETAUDIT, [world.arguments(), vec!["--pin-directory".to_owned(), pins.clone()]].concat());
    let mut agent = std::thread::scope(|scope| {
        let mut agent = world.agent_by(&launch)?;
        let address = world.server.v4;
        let program = format!(
            "import socket,time\nfor i in range({CONNECTIONS}):\n \
             socket.create_connection(('{address}',8080),9,('',20000+i)).close()\n time.sleep(0.002)\n"
        );
        let client = &world.client.place;
        let load = scope.spawn(move || Launch::new("python3", ["-c", &program]).run(client, 4 * PATIENCE));
        for round in 0..4 {
            let before = world.flows()?.len();
            world.wait_for_flows("more", |flows| flows.len() > before + 100)?;
            if round % 2 == 0 {
                // Dropping kills.
                drop(agent);
            } else {
                agent.terminate(Duration::from_secs(2))?;
            }
            std::thread::sleep(Duration::from_millis(200));
            agent = world.agent_by(&launch)?;
        }
        let output = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
        anyhow::ensure!(output.status.success(), "the client: {}", String::from_utf8_lossy(&output.stderr));
        Ok(agent)
    })?;
    // Each connection's client has a port of its own.
    let served = |flow: &&Value| flow["direction"] == "ingress" && flow["port"] == 8080;
    let connections = |flows: &[Value]| -> BTreeSet<String> {
        flows.iter().filter(served).map(|flow| flow["peer"]["port"].to_string()).collect()
    };
    world.wait_for_flows("flow of each", |flows| connections(flows).len() == CONNECTIONS)?;
    agent.terminate(Duration::from_secs(2))?;
    let flows: Vec<_> = world.flows()?.into_iter().filter(|flow| flow["port"] == 8080).collect();
    let ingress = flows.iter().filter(served).count();
    let egress = flows.len() - ingress;
    let certain = flows.iter().filter(served).filter(|flow| flow["maybe_repeated"] != true);
    let mut ports: Vec<_> = certain.map(|flow| flow["peer"]["port"].to_string()).collect();
    ports.sort_unstable();
    let twice: Vec<_> = ports.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(twice.is_empty(), "each that is written again says that it may be: {twice:?}");
    // Those of the last moments before a kill may have been written and not been released.
    assert!(
        egress >= CONNECTIONS && egress + ingress < 3 * CONNECTIONS,
        "{egress} egress, {ingress} ingress"
    );
    let runs: BTreeSet<_> = flows
        .iter()
        .filter_map(|flow| flow["flow_id"].as_str()?.rsplit_once('-').map(|(run, _)| run))
        .collect();
    // The last ones may have come after the traffic.
    assert!(runs.len() >= 3, "{runs:?}");
    let nameless: Vec<_> = flows.iter().filter(|flow| flow["subject"]["kind"] != "pod").collect();
    assert!(nameless.is_empty(), "{nameless:#?}");

    let output = Launch::new(NETAUDIT, ["uninstall", "--pin-directory", &pins])
        .run(&world.agent_place()?, PATIENCE)?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("links"));
    assert!(!files.pins().exists());
    Ok(())
}

#[test]
fn what_a_killed_agent_has_written_and_not_released_is_marked_when_it_is_written_again() -> Result<()> {
    if !kernel_or_skip("repeats") {
        return Ok(());
    }
    let files = BpfFs::mount()?;
    let world = World::new("repeats")?;
    let _server = world.serve()?;
    let pins = files.pins().display().to_string();
    let launch =
        Launch::new(NETAUDIT, [world.arguments(), vec!["--pin-directory".to_owned(), pins]].concat());
    let first = world.agent_by(&launch)?;
    world.connect(1)?;
    world.wait_for_flows("first connection", |flows| of(flows, "ingress").len() == 1)?;
    // Its answer is waited for, in vain: whatever comes meanwhile is written, and kept back.
    let silent = format!(
        "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.bind(('',8085))\n\
         c=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\nc.sendto(b'x',('{}',8085))\n",
        world.client.v4
    );
    let ask = || python(&world.client.place, &silent);
    // The record before may not have been released at the moment that it was written.
    std::thread::sleep(Duration::from_millis(500));
    ask()?;
    world.connect(10)?;
    world.wait_for_flows("ten more", |flows| of(flows, "ingress").len() == 11)?;
    // Dropping kills.
    drop(first);
    let before = world.flows()?;
    assert!(before.iter().all(|flow| flow["maybe_repeated"].is_null()), "{before:#?}");
    world.connect(5)?;
    let second = world.agent_by(&launch)?;
    let count = before.len();
    let flows = world.wait_for_flows("those of then", |flows| of(&flows[count..], "ingress").len() >= 15)?;
    let again = of(&flows[count..], "ingress");
    let marked: Vec<_> = again.iter().map(|flow| flow["maybe_repeated"] == true).collect();
    assert_eq!(marked, [[true; 10].as_slice(), &[false; 5]].concat(), "{again:#?}");
    let ports = |flows: &[&Value]| -> BTreeSet<String> {
        flows.iter().map(|flow| flow["peer"]["port"].to_string()).collect()
    };
    assert_eq!(ports(&again[..10]), ports(&of(&before, "ingress")[1..]), "they are the same");

    // Killed at once: what the first one had taken is marked by the third all the same.
    ask()?;
    world.connect(1)?;
    world.wait_for_flows("one more", |flows| of(flows, "ingress").len() == 27)?;
    drop(second);
    let count = world.flows()?.len();
    let mut third = world.agent_by(&launch)?;
    world.connect(1)?;
    world.wait_for_flows("last one", |flows| {
        of(&flows[count..], "ingress").iter().any(|flow| flow["maybe_repeated"].is_null())
    })?;
    third.terminate(Duration::from_secs(2))?;
    // One that ends by itself leaves none.
    let count = world.flows()?.len();
    let mut fourth = world.agent_by(&launch)?;
    world.connect(2)?;
    let flows = world.wait_for_flows("last two", |flows| of(&flows[count..], "ingress").len() == 2)?;
    assert!(flows[count..].iter().all(|flow| flow["maybe_repeated"].is_null()), "{:#?}", &flows[count..]);
    fourth.terminate(Duration::from_secs(2))
}

#[test]
fn sigterm_writes_what_is_still_under_way() -> Result<()> {
    if !kernel_or_skip("sigterm") {
        return Ok(());
    }
    let world = World::new("sigterm")?;
    let _server = world.serve()?;
    let mut agent = world.agent()?;
    world.connect(200)?;
    agent.terminate(Duration::from_secs(2))?;
    let flows = world.flows()?;
    assert_eq!((of(&flows, "egress").len(), of(&flows, "ingress").len()), (200, 200));
    Ok(())
}

#[test]
fn sigterm_ends_it_under_traffic_that_does_not() -> Result<()> {
    if !kernel_or_skip("sigterm under load") {
        return Ok(());
    }
    let world = World::new("sigterm-load")?;
    let _server = world.serve()?;
    let mut agent = world.agent()?;
    let program = format!(
        "import socket\nwhile True:\n socket.create_connection(('{}',8080),2).close()\n",
        world.server.v4
    );
    let mut client =
        Launch::new("python3", ["-c", &program]).spawn(&world.client.place, &world.lab.log("client"))?;
    world.wait_for_flows("traffic", |flows| of(flows, "egress").len() > 100)?;
    agent.terminate(Duration::from_secs(5))?;
    client.check()
}
