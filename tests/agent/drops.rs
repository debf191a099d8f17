//! What the node's filter stops: proven at both ends, told from what nobody stopped, and seen without the source's agent.

use std::{net::IpAddr, time::Duration};

use anyhow::Result;
use serde_json::Value;

use super::harness::{World, eventually, kernel_or_skip, python, python_up, to};
use crate::lab::{Launch, Owner, Place, PodSpec, ServicePort, ServiceSpec};

/// What the node does with a packet to the server's ports, with connection tracking as every enforcer has it.
const FILTER: &str = "table inet enforcer {
    chain forward {
        type filter hook forward priority 0;
        udp sport 8086 counter drop
        ct state established,related accept
        tcp dport 8081 drop
        tcp dport 8082 reject
        tcp dport 8083 reject with tcp reset
        udp dport 8085 drop
    }
}";
const DROPPED: u16 = 8081;
const REJECTED: u16 = 8082;
const RESET: u16 = 8083;
/// Not filtered, and nobody listens.
const CLOSED: u16 = 8084;
const UDP_DROPPED: u16 = 8085;
/// A server's, whose answers are dropped.
const UDP_ANSWER_DROPPED: u16 = 8086;

fn filtered(purpose: &str) -> Result<Option<World>> {
    if !kernel_or_skip(purpose) {
        return Ok(None);
    }
    let world = World::new(purpose)?;
    world.lab.node().nft(FILTER)?;
    // One retransmission, so that a timeout takes three seconds and not two minutes.
    for place in [&world.client.place, &world.lab.outside_place()] {
        place.netns.sysctl(&[("net/ipv4/tcp_syn_retries", "1")])?;
    }
    Ok(Some(world))
}

/// Connects to `address` at each port, all at once, and waits until each attempt has ended.
fn attempt(place: &Place, address: IpAddr, ports: &[u16]) -> Result<()> {
    let program = format!(
        "import socket,threading\ndef go(p):\n try: socket.create_connection(('{address}',p))\n except OSError: pass\n\
         ts=[threading.Thread(target=go,args=(p,)) for p in {ports:?}]\n[t.start() for t in ts]\n[t.join() for t in ts]\n"
    );
    python(place, &program)
}

/// Sends one datagram.
fn send(place: &Place, address: IpAddr, port: u16) -> Result<()> {
    let family = if address.is_ipv4() { "INET" } else { "INET6" };
    python(
        place,
        &format!(
            "import socket\nsocket.socket(socket.AF_{family},socket.SOCK_DGRAM).sendto(b'x',('{address}',{port}))\n"
        ),
    )
}

fn told(world: &World, told: &str) -> Result<f64> {
    Ok(world.metric(&format!(r#"netaudit_filter_drops_total{{told="{told}"}}"#))?.unwrap_or(-1.0))
}

#[test]
fn what_the_filter_stops_is_proven_and_a_closed_port_is_not() -> Result<()> {
    let Some(world) = filtered("stopped")? else { return Ok(()) };
    world.deny_all()?;
    // It does nothing by which its namespace would become known.
    let _pause = Launch::new("sleep", ["1000"]).spawn(&world.server.place, &world.lab.log("pause"))?;
    let mut agent = world.agent()?;
    let addresses = [IpAddr::from(world.server.v4), IpAddr::from(world.server.v6)];
    for address in addresses {
        attempt(&world.client.place, address, &[DROPPED, REJECTED, RESET, CLOSED])?;
    }
    let flows = world.wait_for_flows("end of every attempt", |flows| {
        [DROPPED, REJECTED, RESET, CLOSED].iter().all(|port| to(flows, "egress", *port).len() == 2)
    })?;
    for (port, outcome) in [(DROPPED, "timeout"), (REJECTED, "rejected"), (RESET, "refused")] {
        for flow in to(&flows, "egress", port) {
            assert_eq!((&flow["outcome"], &flow["reach"]), (&outcome.into(), &"stopped".into()), "{flow:#}");
            assert_eq!(flow["drop_reason"], "NETFILTER_DROP");
            assert!(flow["finding"].is_null(), "the server's policy denies it: {flow:#}");
        }
        let ingress = to(&flows, "ingress", port);
        assert_eq!(ingress.len(), 2, "one attempt is one flow: {ingress:#?}");
        for (flow, address) in ingress.iter().zip(addresses) {
            assert_eq!((&flow["outcome"], &flow["reach"]), (&"dropped".into(), &"stopped".into()));
            assert_eq!((&flow["finding"], &flow["verdict"]), (&"blocked".into(), &"denied".into()));
            assert_eq!(flow["drop_reason"], "NETFILTER_DROP");
            assert_eq!(flow["subject"]["pod"], world.server_name());
            assert_eq!(flow["peer"]["pod"], world.client.spec.name);
            let client =
                if address.is_ipv4() { world.client.v4.to_string() } else { world.client.v6.to_string() };
            assert_eq!(flow["peer"]["ip"], client.as_str());
        }
    }
    for flow in to(&flows, "egress", CLOSED) {
        assert_eq!((&flow["outcome"], &flow["reach"]), (&"refused".into(), &"rejected".into()), "{flow:#}");
        assert!(flow["drop_reason"].is_null() && flow["closed_port"] == true, "{flow:#}");
    }
    let closed = to(&flows, "ingress", CLOSED);
    assert_eq!(closed.len(), 2);
    for flow in closed {
        assert_eq!((&flow["outcome"], &flow["reach"]), (&"refused".into(), &"rejected".into()), "{flow:#}");
        assert_eq!((&flow["verdict"], &flow["finding"]), (&"denied".into(), &"denied-refused".into()));
        assert_eq!(
            (&flow["closed_port"], &flow["subject"]["pod"]),
            (&true.into(), &world.server_name().into())
        );
    }

    assert_eq!(told(&world, "recorded")?, 6.0);
    assert!(told(&world, "repeated")? >= 2.0, "each silently dropped SYN was sent again");
    assert_eq!(world.metric_sum("netaudit_violations_total{")?, 8.0);
    assert_eq!(world.metric_sum("netaudit_records_lost_total{")?, 0.0);
    let stopped =
        r#"netaudit_flows_total{direction="ingress",protocol="TCP",verdict="denied",reach="stopped"}"#;
    assert_eq!(world.metric(stopped)?, Some(6.0));
    assert_eq!(world.metric(r#"netaudit_hook_attached{hook="drops"}"#)?, Some(1.0));
    agent.terminate(Duration::from_secs(2))
}

#[test]
fn a_source_without_an_agent_is_seen_and_datagrams_too() -> Result<()> {
    let Some(world) = filtered("no-agent")? else { return Ok(()) };
    world.deny_all()?;
    let mut agent = world.agent()?;
    let outside = world.lab.outside_place();
    let addresses = [IpAddr::from(world.server.v4), IpAddr::from(world.server.v6)];
    for address in addresses {
        attempt(&outside, address, &[DROPPED])?;
        send(&outside, address, UDP_DROPPED)?;
        send(&world.client.place, address, UDP_DROPPED)?;
    }
    let flows = world.wait_for_flows("what came from everywhere", |flows| {
        to(flows, "ingress", DROPPED).len() == 2
            && to(flows, "ingress", UDP_DROPPED).len() == 4
            && to(flows, "egress", UDP_DROPPED).len() == 2
    })?;
    for flow in to(&flows, "ingress", DROPPED).iter().chain(&to(&flows, "ingress", UDP_DROPPED)) {
        assert_eq!((&flow["outcome"], &flow["finding"]), (&"dropped".into(), &"blocked".into()), "{flow:#}");
        assert_eq!(flow["subject"]["workload"], "server");
        let peer = &flow["peer"];
        let from_client =
            peer["ip"] == world.client.v4.to_string() || peer["ip"] == world.client.v6.to_string();
        assert_eq!(peer["kind"], if from_client { "pod" } else { "external" }, "{flow:#}");
        assert!(from_client || peer["ip"] == "192.168.50.1" || peer["ip"] == "fd00:50::1", "{flow:#}");
    }
    for flow in to(&flows, "egress", UDP_DROPPED) {
        assert_eq!((&flow["outcome"], &flow["reach"]), (&"sent".into(), &"stopped".into()), "{flow:#}");
        assert_eq!((&flow["subject"]["workload"], &flow["finding"]), (&"client".into(), &Value::Null));
    }
    assert_eq!(world.metric_sum("netaudit_violations_total{")?, 6.0);
    agent.terminate(Duration::from_secs(2))
}

#[test]
fn a_syn_that_is_sent_again_to_a_closed_port_is_one_flow() -> Result<()> {
    let Some(world) = filtered("syn-again")? else { return Ok(()) };
    world.deny_all()?;
    let _pause = Launch::new("sleep", ["1000"]).spawn(&world.server.place, &world.lab.log("pause"))?;
    let mut agent = world.agent()?;
    // Nobody hears the reset, so each comes twice; of the two attempts from one port each is one.
    let program = format!(
        "import socket,struct,time\n\
         to='{}'\na=socket.inet_aton('192.168.50.1')\nb=socket.inet_aton(to)\n\
         def half(n): return (n&0xffff)+(n>>16)\n\
         def syn(sequence):\n\
         \x20def header(check): return struct.pack('>HHIIBBHHH',40000,{CLOSED},sequence,0,5<<4,2,1024,check,0)\n\
         \x20pseudo=a+b+struct.pack('>BBH',0,6,20)+header(0)\n\
         \x20total=half(half(sum(struct.unpack('>16H',pseudo))))\n\
         \x20return header(~total&0xffff)\n\
         s=socket.socket(socket.AF_INET,socket.SOCK_RAW,socket.IPPROTO_TCP)\n\
         for sequence in (7,7,8,8,7): s.sendto(syn(sequence),(to,0)); time.sleep(0.1)\n",
        world.server.v4
    );
    python(&world.lab.outside_place(), &program)?;
    let made = r#"netaudit_records_made_total{kind="drop""#;
    eventually("each SYN is a record", || Ok(world.metric_sum(made)? == 5.0))?;
    let flows = world.wait_for_flows("both attempts", |flows| to(flows, "ingress", CLOSED).len() == 2)?;
    for flow in to(&flows, "ingress", CLOSED) {
        assert_eq!((&flow["finding"], &flow["closed_port"]), (&"denied-refused".into(), &true.into()));
        assert_eq!(flow["peer"]["ip"], "192.168.50.1");
    }
    assert_eq!(world.metric_sum("netaudit_violations_total{")?, 2.0);
    agent.terminate(Duration::from_secs(2))
}

#[test]
fn a_dropped_answer_is_no_attempt() -> Result<()> {
    let Some(world) = filtered("answer")? else { return Ok(()) };
    let mut agent = world.agent()?;
    let program = format!(
        "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.bind(('',{UDP_ANSWER_DROPPED}))\n\
         print('up',flush=True)\n_,a=s.recvfrom(9)\ns.sendto(b'y',a)\n"
    );
    let _server = python_up(&world, "answering", &world.server.place, &program)?;
    send(&world.client.place, world.server.v4.into(), UDP_ANSWER_DROPPED)?;
    eventually("the answer is counted", || Ok(told(&world, "answer")? == 1.0))?;
    let flows = world.wait_for_flows("the question at both ends", |flows| {
        to(flows, "egress", UDP_ANSWER_DROPPED).len() == 1
            && to(flows, "ingress", UDP_ANSWER_DROPPED).len() == 1
    })?;
    assert!(flows.iter().all(|flow| flow["reach"] != "stopped"), "{flows:#?}");
    assert_eq!(told(&world, "recorded")?, 0.0);
    agent.terminate(Duration::from_secs(2))
}

#[test]
fn what_egress_policies_forbid_or_nobody_does_is_told_once_behind_a_service_too() -> Result<()> {
    let Some(mut world) = filtered("service")? else { return Ok(()) };
    let port = ServicePort { name: "http", protocol: "TCP", port: 80, target_port: DROPPED, node_port: None };
    let selector: &[_] = &[("app", "server")];
    let service = ServiceSpec { namespace: "shop", name: "server", selector, ports: vec![port] };
    let service = world.lab.add_service(service, "10.96.0.20".parse()?)?;
    world.lab.write_manifests()?;
    let mut agent = world.agent()?;
    for address in [IpAddr::from(service.v4), IpAddr::from(service.v6)] {
        attempt(&world.client.place, address, &[80])?;
    }
    let flows = world.wait_for_flows("stopped attempts", |flows| {
        to(flows, "egress", DROPPED).len() == 2 && to(flows, "ingress", DROPPED).len() == 2
    })?;
    for flow in to(&flows, "egress", DROPPED) {
        assert_eq!((&flow["outcome"], &flow["reach"]), (&"timeout".into(), &"stopped".into()), "{flow:#}");
        assert_eq!(
            (&flow["peer"]["service"], &flow["requested"]["port"]),
            (&"shop/server".into(), &80.into())
        );
        assert_eq!(flow["finding"], "suspected-block", "nothing denies it: {flow:#}");
    }
    for flow in to(&flows, "ingress", DROPPED) {
        assert_eq!((&flow["verdict"], &flow["finding"]), (&"allowed".into(), &"suspected-block".into()));
    }

    world.lab.write_manifest(
        "policy.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: stay, namespace: shop}\n\
         spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}\n",
    )?;
    eventually("the policy is in the index", || {
        Ok(world.metric(r#"netaudit_objects{kind="NetworkPolicy"}"#)? == Some(1.0))
    })?;
    attempt(&world.client.place, service.v4.into(), &[80])?;
    attempt(&world.client.place, world.server.v4.into(), &[DROPPED])?;
    let flows = world.wait_for_flows("two more", |flows| to(flows, "egress", DROPPED).len() == 4)?;
    for flow in &to(&flows, "egress", DROPPED)[2..] {
        assert_eq!((&flow["reach"], &flow["finding"]), (&"stopped".into(), &"blocked".into()), "{flow:#}");
        assert_eq!(flow["denied_by"][0], "NetworkPolicy/shop/stay");
    }
    assert_eq!(to(&flows, "ingress", DROPPED).len(), 2, "it was kept from leaving, not from coming in");
    assert_eq!(world.metric_sum("netaudit_violations_total{")?, 2.0);
    agent.terminate(Duration::from_secs(2))
}

#[test]
fn a_pod_that_comes_later_and_only_waits_is_known_by_its_processes() -> Result<()> {
    let Some(mut world) = filtered("late")? else { return Ok(()) };
    let mut agent = world.agent()?;
    let spec = PodSpec {
        name: "late-1",
        owner: Owner::Bare,
        labels: &[("app", "late")],
        ..world.server.spec.clone()
    };
    let late = world.lab.add_pod(spec, "10.96.0.10".parse()?)?;
    let _pause = Launch::new("sleep", ["1000"]).spawn(&late.place, &world.lab.log("pause"))?;
    world.lab.write_manifests()?;
    eventually("its object is known", || Ok(world.metric(r#"netaudit_objects{kind="Pod"}"#)? == Some(3.0)))?;
    std::thread::sleep(Duration::from_secs(3));
    attempt(&world.client.place, late.v4.into(), &[CLOSED])?;
    let flows = world.wait_for_flows("both ends", |flows| {
        to(flows, "egress", CLOSED).len() == 1 && to(flows, "ingress", CLOSED).len() == 1
    })?;
    assert_eq!(to(&flows, "ingress", CLOSED)[0]["subject"]["pod"], "late-1");
    assert_eq!(to(&flows, "egress", CLOSED)[0]["closed_port"], true);
    agent.terminate(Duration::from_secs(2))
}
