//! Datagrams and what came back for them: what the flow log and the metrics say in the end, once a flow.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::harness::{World, eventually, kernel_or_skip, python, python_up, to};
use crate::lab::{Place, Process};

/// Answers every question; those who ask from port 4000 never.
const SERVER: &str = "import socket\ns=socket.socket(socket.AF_INET6,socket.SOCK_DGRAM)\ns.bind(('::',53))\n\
                      print('up',flush=True)\n\
                      while True:\n d,a=s.recvfrom(99)\n if a[1]!=4000: s.sendto(d,a)\n";
const CLOSED: u16 = 54;

fn serve(world: &World) -> Result<Process> {
    python_up(world, "dns", &world.server.place, SERVER)
}

fn run(place: &Place, program: &str) -> Result<()> {
    let program = format!(
        "import socket\ndef sock(): return socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n{program}"
    );
    python(place, &program)
}

/// Denies the client everything but DNS, and admits only DNS to the server.
const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out, namespace: shop}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress: [{ports: [{protocol: UDP, port: 53}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: in, namespace: shop}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress: [{ports: [{protocol: UDP, port: 53}]}]
";

#[test]
fn a_question_is_answered_a_closed_port_rejects_and_silence_is_only_sent() -> Result<()> {
    if !kernel_or_skip("answers") {
        return Ok(());
    }
    let world = World::new("answers")?;
    world.lab.write_manifest("policy.yaml", POLICIES)?;
    let _server = serve(&world)?;
    let mut agent = world.agent()?;
    let address = world.server.v4;
    run(
        &world.client.place,
        &format!(
            "s=sock(); s.connect(('{address}',53)); s.send(b'q'); s.recv(9); s.close()\n\
             s=sock(); s.sendto(b'q',('{address}',53)); s.recvfrom(9)\n\
             s=sock(); s.connect(('{address}',{CLOSED})); s.send(b'q')\n\
             s=sock(); s.bind(('',4000)); s.sendto(b'q',('{address}',53)); s.close()\n"
        ),
    )?;
    let flows = world.wait_for_flows("questions and answers", |flows| {
        to(flows, "egress", 53).len() == 3 && to(flows, "egress", CLOSED).len() == 1
    })?;
    let questions = to(&flows, "egress", 53);
    let outcomes: Vec<_> =
        questions.iter().map(|flow| flow["outcome"].as_str().unwrap_or_default()).collect();
    assert_eq!(outcomes, ["answered", "answered", "sent"], "silence takes its time");
    for flow in &questions[..2] {
        assert_eq!((&flow["reach"], &flow["verdict"]), (&"reached".into(), &"allowed".into()), "{flow:#}");
        assert_eq!(flow["rule_paths"][0], "shop/out egress[0].ports[0]");
        let waited = flow["waited_seconds"].as_f64().unwrap_or_default();
        assert!(waited > 0.0 && waited < 5.0, "{flow:#}");
        assert!(flow["errno"].is_null());
    }
    assert_eq!((&questions[2]["reach"], &questions[2]["finding"]), (&"unproven".into(), &Value::Null));
    let closed = to(&flows, "egress", CLOSED)[0];
    assert_eq!((&closed["outcome"], &closed["errno"]), (&"rejected".into(), &"ECONNREFUSED".into()));
    assert_eq!(
        (&closed["reach"], &closed["finding"]),
        (&"rejected".into(), &"denied-refused".into()),
        "{closed:#}"
    );

    // One client, told once; the answers are no flows of the server's, and no questions to the client.
    let received = to(&flows, "ingress", 53);
    assert_eq!(received.len(), 1, "{received:#?}");
    assert_eq!(
        (&received[0]["outcome"], &received[0]["subject"]["workload"]),
        (&"received".into(), &"server".into())
    );
    let datagrams = flows.iter().filter(|flow| flow["protocol"] == "UDP").count();
    assert_eq!(datagrams, 5, "{flows:#?}");

    let rule = |direction: &str| {
        world.metric_sum(&format!(
            r#"netaudit_rule_matches_total{{kind="NetworkPolicy",namespace="shop",networkpolicy="{direction}""#
        ))
    };
    assert_eq!((rule("out")?, rule("in")?), (3.0, 1.0), "a DNS server's rule is used");
    let counted = |reach: &str, verdict: &str| {
        world.metric(&format!(
            r#"netaudit_flows_total{{direction="egress",protocol="UDP",verdict="{verdict}",reach="{reach}"}}"#
        ))
    };
    assert_eq!(counted("reached", "allowed")?, Some(2.0));
    assert_eq!(counted("unproven", "allowed")?, Some(1.0));
    assert_eq!(counted("rejected", "denied")?, Some(1.0));
    assert_eq!(world.metric_sum("netaudit_violations_total{")?, 1.0);
    assert_eq!(world.metric_sum("netaudit_records_lost_total{")?, 0.0);
    assert_eq!(world.metric(r#"netaudit_hook_attached{hook="udp errors"}"#)?, Some(1.0));
    agent.terminate(Duration::from_secs(2))
}

#[test]
fn a_service_answers_in_its_own_name_and_a_filter_that_rejects_is_proven() -> Result<()> {
    use crate::lab::{ServicePort, ServiceSpec};
    if !kernel_or_skip("service answers") {
        return Ok(());
    }
    let mut world = World::new("udp-service")?;
    let port = ServicePort { name: "dns", protocol: "UDP", port: 53, target_port: 53, node_port: None };
    let service =
        ServiceSpec { namespace: "shop", name: "dns", selector: &[("app", "server")], ports: vec![port] };
    let service = world.lab.add_service(service, "10.96.0.20".parse()?)?;
    world.lab.write_manifests()?;
    world.lab.node().nft(&format!(
        "table inet enforcer {{\n chain forward {{\n type filter hook forward priority 0;\n udp dport {CLOSED} reject\n }}\n}}\n"
    ))?;
    let _server = serve(&world)?;
    let mut agent = world.agent()?;
    let (service, address) = (service.v4, world.server.v4);
    run(
        &world.client.place,
        &format!(
            "s=sock(); s.sendto(b'q',('{service}',53)); s.recvfrom(9)\n\
             s=sock(); s.connect(('{address}',{CLOSED})); s.send(b'q')\n"
        ),
    )?;
    let flows = world.wait_for_flows("both", |flows| {
        to(flows, "egress", 53).len() == 1 && to(flows, "egress", CLOSED).len() == 1
    })?;
    let question = to(&flows, "egress", 53)[0];
    assert_eq!(
        (&question["outcome"], &question["peer"]["service"]),
        (&"answered".into(), &"shop/dns".into())
    );
    let rejected = to(&flows, "egress", CLOSED)[0];
    assert_eq!(
        (&rejected["outcome"], &rejected["reach"]),
        (&"rejected".into(), &"stopped".into()),
        "{rejected:#}"
    );
    assert_eq!(rejected["drop_reason"], "NETFILTER_DROP");
    agent.terminate(Duration::from_secs(2))
}

#[test]
fn what_still_waits_for_an_answer_is_written_at_the_end() -> Result<()> {
    if !kernel_or_skip("answers at the end") {
        return Ok(());
    }
    let world = World::new("udp-end")?;
    let _server = serve(&world)?;
    let mut agent = world.agent()?;
    let address = world.server.v4;
    run(&world.client.place, &format!("s=sock(); s.bind(('',4000)); s.sendto(b'q',('{address}',53))\n"))?;
    eventually("it waits", || {
        Ok(world.metric(r#"netaudit_waiting_records{state="held"}"#)? == Some(1.0)
            || !to(&world.flows()?, "egress", 53).is_empty())
    })?;
    agent.terminate(Duration::from_secs(2))?;
    let flows = world.flows()?;
    assert_eq!(to(&flows, "egress", 53).len(), 1, "{flows:#?}");
    assert_eq!(to(&flows, "egress", 53)[0]["outcome"], "sent");
    Ok(())
}
