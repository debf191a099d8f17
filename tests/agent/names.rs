//! Names of addresses outside the cluster: a real resolver asks a real name server, and the flow log has the answer.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    harness::{NETAUDIT, World, eventually, kernel_or_skip, python, python_up, to},
    prometheus::check_by_promtool,
};
use crate::lab::{Launch, Owner, PodSpec, Process, Qos, ServicePort, ServiceSpec};

const PATIENCE: Duration = Duration::from_secs(20);

/// The client may talk to one name outside, and to nobody else there.
const POLICY: &str = "
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: domains}
spec:
  tier: Admin
  priority: 10
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: client}}}}
  egress:
  - {name: named, action: Accept, to: [{domainNames: [shop.example.com]}]}
  - {name: others, action: Deny, to: [{networks: [203.0.113.0/24, '2001:db8::/32']}]}
";

/// The cluster's DNS in a pod of kube-system, behind the Service that every pod's resolver asks.
fn name_server(world: &mut World) -> Result<Process> {
    let spec = PodSpec {
        namespace: "kube-system",
        name: "coredns-5d78c9869d-m7j3s",
        labels: &[("k8s-app", "kube-dns")],
        owner: Owner::Deployment("coredns", "5d78c9869d"),
        qos: Qos::Burstable,
        container: "dns",
        ports: &[],
    };
    let pod = world.lab.add_pod(spec, "10.96.0.10".parse()?)?;
    let ports = [("dns", "UDP"), ("dns-tcp", "TCP")].map(|(name, protocol)| ServicePort {
        name,
        protocol,
        port: 53,
        target_port: 53,
        node_port: None,
    });
    let selector = &[("k8s-app", "kube-dns")];
    let service = ServiceSpec { namespace: "kube-system", name: "kube-dns", selector, ports: ports.into() };
    world.lab.add_service(service, "10.96.0.10".parse()?)?;
    world.lab.write_manifests()?;
    let arguments = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--user=root",
        "--group=root",
        "--pid-file=",
        "--no-hosts",
        "--no-resolv",
        "--log-facility=-",
        "--log-queries",
        "--local=/#/",
        "--local-ttl=300",
        "--host-record=edge.cdn.example,203.0.113.10,2001:db8::10",
        "--cname=shop.example.com,edge.cdn.example",
        "--host-record=other.example.org,203.0.113.10",
    ];
    let log = world.lab.log("dns");
    let mut server = Launch::new("dnsmasq", arguments).spawn(&pod.place, &log)?;
    server.wait_until(PATIENCE, "started", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("started"))
    })?;
    Ok(server)
}

/// Accepts on port 443 of every address outside.
fn outside(world: &World) -> Result<Process> {
    let program = "import socket\ns=socket.create_server(('::',443),family=socket.AF_INET6,dualstack_ipv6=True)\n\
                   print('up',flush=True)\nwhile True:\n c,_=s.accept()\n c.close()\n";
    python_up(world, "outside", &world.lab.outside_place(), program)
}

fn run(world: &World, program: &str) -> Result<()> {
    let program = format!(
        "import socket\ndef go(ip): socket.create_connection((ip,443),5).close()\n\
         def ask(name): return sorted({{a[4][0] for a in socket.getaddrinfo(name,443)}})\n{program}"
    );
    python(&world.client.place, &program)
}

fn out(flows: &[Value]) -> Vec<&Value> {
    to(flows, "egress", 443)
}

/// (name, asked for, counts for policies).
fn names(flow: &Value) -> Vec<(&str, bool, bool)> {
    let names = flow["peer"]["names"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named = names.iter().map(|it| {
        let is = |field: &str| it[field] == true;
        (it["name"].as_str().unwrap_or_default(), is("asked"), is("counts"))
    });
    named.collect()
}

#[test]
fn what_a_pod_has_looked_up_names_its_flows_and_decides_what_policies_say() -> Result<()> {
    if !kernel_or_skip("names") {
        return Ok(());
    }
    let mut world = World::new("names")?;
    world.lab.write_manifest("policy.yaml", POLICY)?;
    let _dns = name_server(&mut world)?;
    let _outside = outside(&world)?;
    let mut arguments = world.arguments();
    arguments.push("--dns-names".to_owned());
    let mut agent = world.agent_by(&Launch::new(NETAUDIT, arguments))?;

    run(
        &world,
        "go('203.0.113.10')\n\
         assert ask('shop.example.com') == ['2001:db8::10', '203.0.113.10']\n\
         go('203.0.113.10'); go('2001:db8::10')\n\
         assert ask('other.example.org.') == ['203.0.113.10']\n\
         go('203.0.113.10'); go('203.0.113.99')\n",
    )?;
    let flows = world.wait_for_flows("five connections", |flows| out(flows).len() == 5)?;
    let flows = out(&flows);
    let said: Vec<_> = flows.iter().map(|flow| (&flow["verdict"], names(flow))).collect();
    let chain = vec![("shop.example.com", true, true), ("edge.cdn.example", false, false)];
    let all = vec![("other.example.org", true, true), chain[0], chain[1]];
    assert_eq!(
        said,
        [
            // Nothing was looked up yet: it may have a name that allows it.
            (&json!("unknown"), vec![]),
            (&json!("allowed"), chain.clone()),
            (&json!("allowed"), chain),
            (&json!("allowed"), all),
            (&json!("unknown"), vec![]),
        ],
        "{flows:#?}"
    );
    assert_eq!(flows[1]["rule_paths"], json!(["domains egress[0].to[0]"]));
    let name = &flows[1]["peer"]["names"][0];
    assert_eq!((&name["state"], &name["server"]), (&json!("fresh"), &json!("10.96.0.10")), "{name:#}");
    assert!(name["answered"].as_str() < flows[1]["time"].as_str(), "{:#}", flows[1]);

    // Bytes that are no DNS from port 53, and names that are not for a terminal.
    run(
        &world,
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.connect(('10.96.0.10',53))\n\
         q=b'\\x12\\x34\\x01\\0\\0\\x01\\0\\0\\0\\0\\0\\0\\x04\\x1b[2J\\x07example\\0\\0\\x01\\0\\x01'\n\
         s.send(q); s.recv(512)\n",
    )?;
    let became = |what: &str| world.metric(&format!(r#"netaudit_dns_answers_total{{became="{what}"}}"#));
    eventually("answers are counted", || Ok(became("empty")?.is_some_and(|count| count > 0.0)))?;
    // One for each family of the first name, one of the second.
    assert_eq!((became("named")?, became("malformed")?), (Some(3.0), Some(0.0)));
    assert_eq!(
        (world.metric("netaudit_dns_addresses ")?, world.metric("netaudit_dns_names ")?),
        (Some(2.0), Some(5.0))
    );
    assert_eq!(world.metric(r#"netaudit_hook_attached{hook="dns answers"}"#)?, Some(1.0));
    assert_eq!(world.metric_sum("netaudit_records_lost_total{")?, 0.0);
    check_by_promtool(&world.get("/metrics")?.1)?;
    agent.terminate(Duration::from_secs(2))
}
