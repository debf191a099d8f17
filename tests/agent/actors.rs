//! Whoever enters a pod's network acts as the pod, and is told apart from it.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::harness::{World, kernel_or_skip, of, python};
use crate::lab::Place;

/// Connects from `place` to `address`, port 8080.
fn connect(place: &Place, address: &str) -> Result<()> {
    python(place, &format!("import socket; socket.create_connection(('{address}',8080),2).close()"))
}

#[test]
fn who_enters_a_pods_network_acts_as_the_pod_and_is_named() -> Result<()> {
    if !kernel_or_skip("actors") {
        return Ok(());
    }
    let world = World::new("actors")?;
    world.deny_all()?;
    let _server = world.serve()?;
    let mut agent = world.agent()?;
    let address = world.server.v4.to_string();
    let host = world.lab.host_place("containerd")?;
    let netns = || world.client.place.netns.clone();
    // As the pod itself, as a tunnel that another pod opens in it, and as nsenter from the node.
    connect(&world.client.place, &address)?;
    connect(&Place { netns: netns(), ..world.server.place.clone() }, &address)?;
    connect(&Place { netns: netns(), ..host.clone() }, &address)?;
    // A port-forward: the runtime dials the loopback of the pod.
    connect(&Place { netns: world.server.place.netns.clone(), ..host }, "127.0.0.1")?;

    let all = |flows: &[Value], direction: &str| -> Vec<Value> {
        flows.iter().filter(|flow| flow["direction"] == direction).cloned().collect()
    };
    let flows = world.wait_for_flows("four connections", |flows| {
        all(flows, "egress").len() == 4 && all(flows, "ingress").len() == 4
    })?;
    let mut kinds = Vec::new();
    for flow in all(&flows, "egress") {
        let forwarded = flow["peer"]["kind"] == "loopback";
        let pod = if forwarded { world.server_name() } else { world.client.spec.name };
        assert_eq!(flow["subject"]["pod"], pod, "{flow:#}");
        let actor = &flow["actor"];
        if actor["kind"] == "pod" {
            assert_eq!((&actor["pod"], &actor["workload"]), (&world.server_name().into(), &"server".into()));
            assert_eq!(actor["container"], world.server.container_id.as_str());
        } else {
            assert!(actor["pod"].is_null(), "{flow:#}");
        }
        kinds.push((actor["kind"].as_str().unwrap_or_default().to_owned(), forwarded));
    }
    kinds.sort();
    let expected = [("host", false), ("host", true), ("pod", false), ("subject", false)];
    assert_eq!(kinds, expected.map(|(kind, forwarded)| (kind.to_owned(), forwarded)));
    // The server sees the client in all three, and policies deny it each time.
    let denied: Vec<_> =
        all(&flows, "ingress").into_iter().filter(|flow| flow["verdict"] == "denied").collect();
    assert_eq!(denied.len(), 3);
    assert!(denied.iter().all(|flow| flow["peer"]["pod"] == world.client.spec.name), "{denied:#?}");
    agent.terminate(Duration::from_secs(2))
}

#[test]
fn an_address_that_the_node_gets_later_is_its_own_at_once() -> Result<()> {
    if !kernel_or_skip("new address") {
        return Ok(());
    }
    let world = World::new("address")?;
    world.deny_all()?;
    let _server = world.serve()?;
    let mut agent = world.agent()?;
    // As the bridge gets one with the first pod, and the kubelet probes that pod from there.
    world.lab.node().ip(&["addr add 10.244.1.250/32 dev cni0".to_owned()])?;
    let program = format!(
        "import socket; socket.create_connection(('{}',8080),2,('10.244.1.250',0)).close()",
        world.server.v4
    );
    let kubelet = world.lab.host_place("kubelet")?;
    python(&kubelet, &program)?;
    let flows = world.wait_for_flows("the probe at the pod", |flows| !of(flows, "ingress").is_empty())?;
    let probe = of(&flows, "ingress")[0];
    assert_eq!((&probe["verdict"], &probe["reason"]), (&"allowed".into(), &"own node".into()), "{probe:#}");
    agent.terminate(Duration::from_secs(2))
}
