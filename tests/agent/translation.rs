//! Where a connection really went: real nftables and iptables translation, asked and seen, and a proxy in the pod.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::harness::{World, kernel_or_skip, python, python_up, up};
use crate::lab::{Launch, Place, Process};

/// A Service in the outside world: policies allow the client the first of these endpoints only.
const NEAR: [&str; 2] = ["203.0.113.5", "2001:db8::5"];
const FAR: [&str; 2] = ["203.0.113.6", "2001:db8::6"];
const SERVICE: [&str; 2] = ["10.96.0.77", "fd00:96::77"];

/// The Service has these endpoints now.
fn endpoints(world: &World, now: &[[&str; 2]]) -> Result<()> {
    let metadata = json!({"namespace": "shop", "name": "far"});
    let ports = json!([{"name": "t", "port": 80, "targetPort": 8080, "protocol": "TCP"},
                       {"name": "u", "port": 53, "targetPort": 5353, "protocol": "UDP"}]);
    world.lab.write_object(&json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata,
        "spec": {"clusterIP": SERVICE[0], "clusterIPs": SERVICE, "ports": ports}}))?;
    for (n, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
        let ready = |endpoint: &[&str; 2]| json!({"addresses": [endpoint[n]], "conditions": {"ready": true}});
        let ready: Vec<_> = now.iter().map(ready).collect();
        world.lab.write_object(&json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "addressType": family,
            "metadata": {"namespace": "shop", "name": format!("far-{}", family.to_lowercase()),
                         "labels": {"kubernetes.io/service-name": "far"}},
            "ports": [{"name": "t", "port": 8080, "protocol": "TCP"}, {"name": "u", "port": 5353, "protocol": "UDP"}],
            "endpoints": ready}))?;
    }
    world.lab.write_object(&json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "near"},
        "spec": {"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
                 "egress": [{"to": [{"ipBlock": {"cidr": format!("{}/32", NEAR[0])}},
                                    {"ipBlock": {"cidr": format!("{}/128", NEAR[1])}}]}]}}))
}

/// Answers connections at port 8080 and datagrams at port 5353, at all addresses.
fn serve(world: &World, place: &Place) -> Result<Process> {
    // A socket an address, so that each answers from where it was asked.
    let addresses: Vec<_> = NEAR.into_iter().chain(FAR).collect();
    let program = format!(
        "import socket,threading\n\
        def udp(ip):\n u=socket.socket(socket.AF_INET6 if ':' in ip else socket.AF_INET,socket.SOCK_DGRAM)\n\
        \x20u.setsockopt(0,15,1)\n if ':' in ip: u.setsockopt(41,78,1)\n u.bind((ip,5353))\n\
        \x20while True:\n  d,a=u.recvfrom(9); u.sendto(d,a)\n\
        for ip in {addresses:?}: threading.Thread(target=udp,args=(ip,),daemon=True).start()\n\
        s=socket.create_server(('::',8080),family=socket.AF_INET6,dualstack_ipv6=True)\nprint('up',flush=True)\n\
        while True:\n c,_=s.accept(); c.close()\n"
    );
    python_up(world, "server", place, &program)
}

/// One connection and one question to the Service over both families.
fn ask(world: &World) -> Result<()> {
    let [v4, v6] = SERVICE;
    python(
        &world.client.place,
        &format!(
            "import socket\nfor f,a in ((socket.AF_INET,'{v4}'),(socket.AF_INET6,'{v6}')):\n\
             \x20socket.create_connection((a,80),3).recv(1)\n\
             \x20s=socket.socket(f,socket.SOCK_DGRAM); s.settimeout(3); s.sendto(b'q',(a,53)); s.recvfrom(9)\n"
        ),
    )
}

/// The flows of the client to the Service, in order of time.
fn to_service(flows: &[Value]) -> Vec<&Value> {
    flows.iter().filter(|flow| flow["peer"]["service"] == "shop/far").collect()
}

/// Translates as kube-proxy does.
fn translate(world: &World, by: &str, to: [&str; 2]) -> Result<()> {
    let node = world.lab.host_place("kube-proxy")?;
    for (family, (service, to)) in ["", "6"].iter().zip(SERVICE.iter().zip(to)) {
        for (protocol, port, target) in [("tcp", 80, 8080), ("udp", 53, 5353)] {
            let (command, to) = if family.is_empty() {
                ("ip", format!("{to}:{target}"))
            } else {
                ("ip6", format!("[{to}]:{target}"))
            };
            if by == "nftables" {
                let table = format!("table {command} far_{protocol}");
                world.lab.node().nft(&format!(
                    "{table}\ndelete {table}\n{table} {{\nchain c {{\ntype nat hook prerouting priority -100\n\
                     {command} daddr {service} {protocol} dport {port} dnat to {to}\n}}\n}}\n"
                ))?;
                continue;
            }
            let iptables = format!("ip{family}tables -t nat");
            let line = format!(
                "{iptables} -F far_{protocol} 2>/dev/null \
                 || {{ {iptables} -N far_{protocol} && {iptables} -A PREROUTING -j far_{protocol}; }}; \
                 {iptables} -A far_{protocol} -d {service} -p {protocol} --dport {port} -j DNAT --to-destination {to}"
            );
            let output = Launch::new("sh", ["-c", &line]).run(&node, Duration::from_secs(10))?;
            ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok(())
}

#[test]
fn connection_tracking_tells_which_endpoint_was_chosen_by_nftables_and_by_iptables() -> Result<()> {
    if !kernel_or_skip("translation") {
        return Ok(());
    }
    for by in ["nftables", "iptables"] {
        let world = World::new("translation")?;
        endpoints(&world, &[NEAR, FAR])?;
        let _server = serve(&world, &world.lab.outside_place())?;
        let mut agent = world.agent()?;
        for (round, to) in [NEAR, FAR].into_iter().enumerate() {
            translate(&world, by, to)?;
            ask(&world)?;
            let flows = world.wait_for_flows("two connections and two questions", |flows| {
                to_service(flows).len() == 4 * (round + 1)
            })?;
            for flow in &to_service(&flows)[4 * round..] {
                assert_eq!(flow["translation"], "conntrack", "{by}: {flow:#}");
                let v4 = flow["requested"]["ip"] == SERVICE[0];
                assert_eq!(flow["peer"]["ip"], to[usize::from(!v4)], "{by}: {flow:#}");
                let tcp = flow["protocol"] == "TCP";
                assert_eq!(flow["port"], if tcp { 8080 } else { 5353 });
                assert_eq!(flow["requested"]["port"], if tcp { 80 } else { 53 });
                assert_eq!(flow["verdict"], if round == 0 { "allowed" } else { "denied" }, "{by}: {flow:#}");
            }
        }
        let lookups =
            |result: &str| world.metric(&format!(r#"netaudit_conntrack_lookups_total{{result="{result}"}}"#));
        assert_eq!((lookups("found")?, lookups("failed")?), (Some(8.0), Some(0.0)));
        assert_eq!(world.metric(r#"netaudit_unknown_flows_total{reason="endpoints disagree"}"#)?, Some(0.0));
        agent.terminate(Duration::from_secs(2))?;
    }
    Ok(())
}

#[test]
fn an_open_connection_is_judged_by_the_endpoint_that_it_leads_to_and_not_by_those_of_now() -> Result<()> {
    if !kernel_or_skip("open and translated") {
        return Ok(());
    }
    let world = World::new("led")?;
    endpoints(&world, &[FAR])?;
    let server = "import socket,time\n\
                  s=socket.create_server(('::',8080),family=socket.AF_INET6,dualstack_ipv6=True)\n\
                  print('up',flush=True)\nc=[s.accept() for _ in range(2)]\ntime.sleep(600)\n";
    let _server = python_up(&world, "keeping-server", &world.lab.outside_place(), server)?;
    translate(&world, "nftables", NEAR)?;
    let client = format!(
        "import socket,time\nc=[socket.create_connection((a,80),3) for a in {SERVICE:?}]\nprint('up',flush=True)\n\
         time.sleep(600)\n"
    );
    let _client = python_up(&world, "keeping-client", &world.client.place, &client)?;
    let mut agent = world.agent()?;
    let flows = world.wait_for_flows("both connections", |flows| to_service(flows).len() == 2)?;
    let mut led_to = Vec::new();
    for flow in to_service(&flows) {
        assert_eq!((&flow["open_before_start"], &flow["translation"]), (&true.into(), &"conntrack".into()));
        assert_eq!((&flow["verdict"], &flow["port"]), (&"allowed".into(), &8080.into()), "{flow:#}");
        led_to.push(flow["peer"]["ip"].as_str().unwrap_or_default());
    }
    led_to.sort_unstable();
    assert_eq!(led_to, ["2001:db8::5", "203.0.113.5"]);
    agent.terminate(Duration::from_secs(2))
}

/// What a mesh's init container makes of the pod's namespace: all but the proxy's own connections are redirected to it.
const REDIRECT: &str = "table inet mesh {
    chain output {
        type nat hook output priority -100
        meta skuid 1337 return
        tcp dport 8080 redirect to :15001
    }
}";

/// A proxy that passes each connection on to where it was going, as the kernel tells it.
const PROXY: &str = "import socket,struct,threading
s=socket.create_server(('::',15001),family=socket.AF_INET6,dualstack_ipv6=True)
print('up',flush=True)
def serve(c):
 if '.' in c.getsockname()[0]:
  raw=c.getsockopt(0,80,16); to=(socket.inet_ntop(socket.AF_INET,raw[4:8]),struct.unpack('!H',raw[2:4])[0])
 else:
  raw=c.getsockopt(41,80,28); to=(socket.inet_ntop(socket.AF_INET6,raw[8:24]),struct.unpack('!H',raw[2:4])[0])
 u=socket.create_connection(to,3)
 while True:
  d=u.recv(9)
  if not d: break
  c.sendall(d)
 c.close(); u.close()
while True:
 c,_=s.accept(); threading.Thread(target=serve,args=(c,)).start()
";

#[test]
fn what_a_proxy_in_the_pod_takes_is_proxied_and_what_it_connects_to_is_judged() -> Result<()> {
    if !kernel_or_skip("proxied") {
        return Ok(());
    }
    let world = World::new("proxied")?;
    world.deny_all()?;
    let _server = serve(&world, &world.server.place)?;
    world.client.place.netns.nft(REDIRECT)?;
    let proxy = Launch::new("python3", ["-c", PROXY]).user(1337, 1337);
    let _proxy = up(&world, "proxy", &world.client.place, &proxy)?;
    let mut agent = world.agent()?;
    let addresses = [world.server.v4.to_string(), world.server.v6.to_string()];
    const TIMES: usize = 100;
    python(
        &world.client.place,
        &format!(
            "import socket\nfor a in {addresses:?}:\n for _ in range({TIMES}): socket.create_connection((a,8080),3).recv(1)\n"
        ),
    )?;
    let of = |flows: &[Value], direction: &str, port: u16| -> Vec<Value> {
        let is_it = |flow: &&Value| flow["direction"] == direction && flow["port"] == port;
        flows.iter().filter(is_it).cloned().collect()
    };
    let all = 2 * TIMES;
    let flows = world.wait_for_flows("every connection, its proxy's and both accepted", |flows| {
        [("egress", 15001), ("ingress", 15001), ("egress", 8080), ("ingress", 8080)]
            .iter()
            .all(|(direction, port)| of(flows, direction, *port).len() == all)
    })?;
    for flow in of(&flows, "egress", 15001) {
        assert_eq!((&flow["reason"], &flow["translation"]), (&"proxied".into(), &"proxy".into()), "{flow:#}");
        assert_eq!((&flow["verdict"], &flow["peer"]["kind"]), (&"allowed".into(), &"loopback".into()));
        assert_eq!(flow["requested"]["port"], 8080);
        let asked = flow["requested"]["ip"].as_str().unwrap_or_default();
        assert!(addresses.iter().any(|address| address == asked), "{flow:#}");
    }
    for flow in of(&flows, "ingress", 15001) {
        assert_eq!(flow["verdict"], "allowed", "a pod to itself: {flow:#}");
    }
    for flow in of(&flows, "egress", 8080) {
        assert_eq!(flow["peer"]["pod"], world.server_name(), "{flow:#}");
        assert!(flow["translation"].is_null() && flow["requested"].is_null(), "{flow:#}");
        assert_eq!(flow["subject"]["pod"], world.client.spec.name);
    }
    for flow in of(&flows, "ingress", 8080) {
        assert_eq!((&flow["verdict"], &flow["finding"]), (&"denied".into(), &"unenforced".into()));
        assert_eq!(flow["peer"]["pod"], world.client.spec.name);
    }
    assert_eq!(world.metric_sum("netaudit_violations_total{")?, all as f64, "one a connection");
    agent.terminate(Duration::from_secs(2))
}
