//! Who the other end is: pods of one or both families, behind Services, on nodes without an agent, DNS, nodes, and addresses outside.

use netaudit::model::{Direction, Outcome};

use super::*;

/// A workload that sends, one that receives, and a Service with another port than its pods.
fn shop() -> Vec<Value> {
    let mut objects: Vec<Value> = ["shop", "kube-system"].map(namespace).to_vec();
    objects.push(node("node-1", "192.168.1.1"));
    objects.push(dns_server());
    objects.push(pod("shop", "web-0", &json!({"app": "web"}), &["10.0.0.1", "fd00::1"], "node-1"));
    for (name, ip, ip6, port) in
        [("api-0", "10.0.0.2", "fd00::2", 8080), ("api-1", "10.0.0.3", "fd00::3", 8081)]
    {
        let mut api = pod("shop", name, &json!({"app": "api"}), &[ip, ip6], "node-1");
        api["spec"]["containers"] =
            json!([{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]);
        objects.push(api);
    }
    let ports = json!([{"port": 80, "targetPort": "http"}]);
    objects.push(service("shop", "api", "10.96.0.1", &json!({"app": "api"}), &ports));
    objects
}

fn slice(name: &str, ip: &str, pod: &str, port: u16) -> Value {
    json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
           "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": "api"}},
           "addressType": "IPv4", "ports": [{"port": port}],
           "endpoints": [{"addresses": [ip], "targetRef": {"kind": "Pod", "name": pod}}]})
}

fn allowed(objects: &[Value], told: &Value, from: &str, to: &str, port: u16) -> bool {
    verdict(objects, told, from, to, Protocol::Tcp, port) == Verdict::Allow
}

#[test]
fn of_a_service_the_pods_and_their_target_ports_are_allowed_never_its_own_port() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut objects = shop();
    objects.push(slice("api-a", "10.0.0.2", "api-0", 8080));
    objects.push(slice("api-b", "10.0.0.3", "api-1", 8081));
    let mut agent = begin(directory.path(), &objects)?;
    // It is not known which of the two it was.
    agent.connects("shop-web-0", "10.0.0.1", "10.96.0.1", 80);
    agent.finish(100);
    let (told, ran) = answer(directory.path(), "shop", &[])?;
    let out = &spec(&told, "web")["egress"][0];
    assert_eq!(out["to"], json!([{"podSelector": {"matchLabels": {"app": "api"}}}]));
    let ports = json!([{"protocol": "TCP", "port": 8080}, {"protocol": "TCP", "port": 8081}]);
    assert_eq!(out["ports"], ports);
    // No agent told of the other end, and its policy lets the connection in all the same.
    assert_eq!(spec(&told, "api")["ingress"][0]["ports"], ports);
    assert_eq!(policy(&told, "api")["ingress"][0]["flows"], 1);
    assert!(allowed(&objects, &told, "shop/web-0", "shop/api-1", 8081));
    assert!(!allowed(&objects, &told, "shop/web-0", "shop/api-1", 80));
    assert_eq!(told["proof"]["holds"], true, "{}", ran.err);

    // The policies of the namespace alone that the pods are in: who asks the Service is elsewhere.
    let directory = tempfile::tempdir()?;
    objects.push(namespace("front"));
    objects.push(pod("front", "proxy-0", &json!({"app": "proxy"}), &["10.0.5.1"], "node-1"));
    let mut agent = begin(directory.path(), &objects)?;
    agent.connects("front-proxy-0", "10.0.5.1", "10.96.0.1", 80);
    agent.finish(100);
    let (told, _) = answer(directory.path(), "shop", &[])?;
    assert!(allowed(&objects, &told, "front/proxy-0", "shop/api-0", 8080), "{told:#}");
    assert!(!allowed(&objects, &told, "shop/web-0", "shop/api-0", 8080));
    Ok(())
}

#[test]
fn ipv6_is_what_ipv4_is() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let objects = shop();
    let mut agent = begin(directory.path(), &objects)?;
    agent.accepts("shop-api-0", "fd00::2", "fd00::1", 8080);
    agent.asks("shop-web-0", "fd00::1", "fd00::9:53", 53);
    agent.names("shop-web-0", "api.example.com", "2001:db8::7");
    agent.connects("shop-web-0", "fd00::1", "2001:db8::7", 443);
    agent.connects("shop-web-0", "10.0.0.1", "203.0.113.9", 443);
    agent.finish(100);
    let (told, ran) = answer(directory.path(), "shop", &[])?;
    assert_eq!(ran.status, 0, "{}", ran.err);
    let blocks = &spec(&told, "web")["egress"][2]["to"];
    assert_eq!(
        blocks,
        &json!([{"ipBlock": {"cidr": "203.0.113.9/32"}}, {"ipBlock": {"cidr": "2001:db8::7/128"}}])
    );
    assert_eq!(policy(&told, "web")["egress"][2]["peers"], json!([[], ["api.example.com"]]));
    // By labels both families are allowed.
    assert!(allowed(&objects, &told, "shop/web-0", "shop/api-0", 8080));
    assert!(allowed(&objects, &told, "shop/web-0", "2001:db8::7", 443));
    assert!(!allowed(&objects, &told, "shop/web-0", "2001:db8::8", 443));
    Ok(())
}

/// Only the end without a policy of its own told, and the other way round.
#[test]
fn what_one_end_told_counts_for_both() -> Result<()> {
    let mut objects = shop();
    objects.push(pod("shop", "far-0", &json!({"app": "far"}), &["10.0.7.1"], "node-2"));
    for is_source in [true, false] {
        let directory = tempfile::tempdir()?;
        let mut agent = begin(directory.path(), &objects)?;
        if is_source {
            agent.connects("shop-web-0", "10.0.0.1", "10.0.7.1", 9000);
        } else {
            agent.accepts("shop-web-0", "10.0.0.1", "10.0.7.1", 9000);
        }
        agent.finish(100);
        let (told, ran) = answer(directory.path(), "shop", &[])?;
        let (from, to) = if is_source { ("shop/web-0", "shop/far-0") } else { ("shop/far-0", "shop/web-0") };
        assert_eq!(names(&told), ["default-deny-all", "far", "web"], "{}", ran.err);
        assert!(allowed(&objects, &told, from, to, 9000), "{told:#}");
        assert!(!allowed(&objects, &told, to, from, 9000));
    }
    Ok(())
}

#[test]
fn dns_is_what_was_asked_or_else_assumed() -> Result<()> {
    let web = ("shop-web-0", "10.0.0.1");
    let udp = |objects: &[Value], told: &Value, to: &str, port| {
        [Protocol::Udp, Protocol::Tcp]
            .map(|it| verdict(objects, told, "shop/web-0", to, it, port) == Verdict::Allow)
    };
    // A server that listens elsewhere than on 53, behind its Service.
    let mut objects = shop();
    let ports = json!([{"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 1053}]);
    objects.push(service("kube-system", "kube-dns", "10.96.0.10", &json!({"k8s-app": "kube-dns"}), &ports));
    let directory = tempfile::tempdir()?;
    let mut agent = begin(directory.path(), &objects)?;
    agent.asks(web.0, web.1, "10.0.9.53", 1053);
    agent.connects("shop-api-0", "10.0.0.2", "203.0.113.1", 443);
    agent.finish(100);
    let (told, ran) = answer(directory.path(), "shop", &[])?;
    assert_eq!(udp(&objects, &told, "kube-system/coredns-0", 1053), [true, true]);
    assert_eq!(udp(&objects, &told, "kube-system/coredns-0", 53), [false, false]);
    // Who was not seen to ask gets the server that others ask.
    let why = policy(&told, "api")["egress"].to_string();
    assert!(why.contains("DNS, others of this namespace ask it, these pods were not seen to"), "{why}");
    assert_eq!(ran.status, 0, "{}", ran.err);

    // Nobody asked; then the Service says where the servers are.
    let directory = tempfile::tempdir()?;
    let mut agent = begin(directory.path(), &objects)?;
    agent.connects(web.0, web.1, "203.0.113.1", 443);
    agent.finish(100);
    let (told, _) = answer(directory.path(), "shop", &[])?;
    assert_eq!(udp(&objects, &told, "kube-system/coredns-0", 1053), [true, true]);
    assert!(
        policy(&told, "web")["egress"].to_string().contains("ASSUMED: nobody was seen to ask, and a Service")
    );

    // Nothing is known of DNS: a guess, and that is a gap.
    let directory = tempfile::tempdir()?;
    let objects = shop();
    let mut agent = begin(directory.path(), &objects)?;
    agent.connects(web.0, web.1, "203.0.113.1", 443);
    agent.finish(100);
    let (told, ran) = answer(directory.path(), "shop", &[])?;
    assert_eq!(ran.status, 1, "{}", ran.err);
    assert!(
        ran.err.contains("shop/web: no DNS server is known, so that the rule for kube-dns is a guess"),
        "{}",
        ran.err
    );
    assert_eq!(udp(&objects, &told, "kube-system/coredns-0", 53), [true, true]);

    // A cache on the node, which not every CNI takes for the node, and a server outside that is only one pod's.
    let directory = tempfile::tempdir()?;
    let mut agent = begin(directory.path(), &objects)?;
    agent.asks(web.0, web.1, "169.254.20.10", 53);
    agent.asks("shop-api-0", "10.0.0.2", "198.51.100.53", 53);
    agent.finish(100);
    let (told, _) = answer(directory.path(), "shop", &[])?;
    assert_eq!(udp(&objects, &told, "169.254.20.10", 53), [true, true], "{told:#}");
    assert_eq!(udp(&objects, &told, "198.51.100.53", 53), [false, false]);
    Ok(())
}

#[test]
fn nodes_are_addresses_and_a_pods_own_node_needs_no_rule() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut objects = shop();
    objects.push(node("node-2", "192.168.1.2"));
    let mut host = pod("kube-system", "exporter-0", &json!({"app": "exporter"}), &["192.168.1.2"], "node-2");
    host["spec"]["hostNetwork"] = json!(true);
    objects.push(host);
    let mut agent = begin(directory.path(), &objects)?;
    // An exporter on each node, that of its own too; the next pod may run on the other.
    agent.connects("shop-web-0", "10.0.0.1", "192.168.1.1", 9100);
    agent.connects("shop-web-0", "10.0.0.1", "192.168.1.2", 9100);
    agent.connects("shop-api-0", "10.0.0.2", "192.168.1.1", 10_250);
    agent.accepts("shop-api-0", "10.0.0.2", "192.168.1.2", 8080);
    agent.finish(100);
    let (told, _) = answer(directory.path(), "shop", &[])?;
    let blocks = &spec(&told, "web")["egress"][0];
    assert_eq!(
        blocks["to"],
        json!([{"ipBlock": {"cidr": "192.168.1.1/32"}}, {"ipBlock": {"cidr": "192.168.1.2/32"}}]),
        "{told:#}"
    );
    assert_eq!(policy(&told, "web")["egress"][0]["peers"], json!([["node-1"], ["node-2"]]));
    assert_eq!(spec(&told, "api")["ingress"][0]["from"], json!([{"ipBlock": {"cidr": "192.168.1.2/32"}}]));
    assert_eq!(spec(&told, "api")["egress"], json!([]), "its own node");
    assert!(policy(&told, "api")["header"].to_string().contains("A pod and its own node"), "{told:#}");
    Ok(())
}

#[test]
fn many_nodes_are_ranges_of_nodes() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut objects = shop();
    for number in 0..24 {
        objects.push(node(&format!("node-{}", number + 10), &format!("192.168.2.{number}")));
    }
    let mut agent = begin(directory.path(), &objects)?;
    for number in 0..24 {
        agent.connects("shop-web-0", "10.0.0.1", &format!("192.168.2.{number}"), 9100);
    }
    agent.finish(100);
    let (told, ran) = answer(directory.path(), "shop", &[])?;
    let blocks = spec(&told, "web")["egress"][0]["to"].as_array().context("blocks")?;
    assert_eq!(blocks.len(), 8, "{}", ran.err);
    assert!((0..24).all(|number| allowed(
        &objects,
        &told,
        "shop/web-0",
        &format!("192.168.2.{number}"),
        9100
    )));
    assert!(!allowed(&objects, &told, "shop/web-0", "192.168.2.24", 9100));
    Ok(())
}

#[test]
fn many_addresses_become_few_ranges_and_what_changes_is_said() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let objects = shop();
    let mut agent = begin(directory.path(), &objects)?;
    agent.asks("shop-web-0", "10.0.0.1", "10.0.9.53", 53);
    for last in (0..40).map(|it| it * 3) {
        let ip = format!("203.0.113.{last}");
        agent.names("shop-web-0", "cdn.example.com", &ip);
        agent.connects("shop-web-0", "10.0.0.1", &ip, 443);
    }
    // From all over the internet.
    for number in 0..200_u32 {
        let ip = std::net::Ipv4Addr::from(0x0b00_0000 + number * 0x0111_1111).to_string();
        agent.accepts("shop-api-0", "10.0.0.2", &ip, 8080);
    }
    // Ports that a server did not choose, and some that it did.
    for port in (0..10).map(|it| 40_000 + it * 11).chain(7_000..7_010) {
        agent.accepts("shop-api-1", "10.0.0.3", "10.0.0.1", port);
    }
    agent.finish(1_000);
    let (told, ran) = answer(directory.path(), "shop", &[])?;
    let out = &policy(&told, "web")["egress"];
    let rule = out.as_array().into_iter().flatten().find(|it| it["flows"] == 40).context("a rule")?;
    assert_eq!(
        rule["why"][1],
        "the addresses behind a name change, and these have done so: cdn.example.com (40 addresses); the next will not be here"
    );
    assert!(
        rule["peers"][0][0].as_str().context("told")?.contains(" addresses were seen: cdn.example.com"),
        "{rule:#}"
    );
    let ranges = rule["peers"].as_array().map(Vec::len);
    assert!(ranges.is_some_and(|it| it <= 8), "{rule:#}");
    for last in (0..40).map(|it| it * 3) {
        assert!(allowed(&objects, &told, "shop/web-0", &format!("203.0.113.{last}"), 443));
    }
    assert!(!allowed(&objects, &told, "shop/web-0", "203.0.113.200", 443));
    let from = spec(&told, "api")["ingress"].to_string();
    assert!(from.contains(r#""cidr":"0.0.0.0/0","except":["10.0.0.0/8","#), "{from}");
    assert!(policy(&told, "api")["ingress"].to_string().contains("this is ANYBODY but the private ranges"));
    let ports = &spec(&told, "api")["ingress"][0]["ports"];
    assert_eq!(ports[0], json!({"protocol": "TCP", "port": 7000, "endPort": 7009}));
    assert_eq!(ports.as_array().map(Vec::len), Some(11));
    let why = policy(&told, "api")["ingress"][0]["why"].to_string();
    assert!(why.contains("10 different ports from 32768 on"), "{why}");
    assert_eq!(told["proof"]["denied"], json!([]), "{}", ran.err);
    Ok(())
}

#[test]
fn who_is_hidden_gets_no_rule_and_that_is_said() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut objects = shop();
    objects.push(node("node-2", "192.168.1.2"));
    let ports = json!([{"port": 80, "targetPort": 8080, "nodePort": 30_080}]);
    let mut open = service("shop", "open", "10.96.0.7", &json!({"app": "api"}), &ports);
    open["spec"]["type"] = json!("NodePort");
    objects.push(open);
    let mut agent = begin(directory.path(), &objects)?;
    let own = ["192.168.1.1".parse()?];
    agent.auditor.set_own_addresses(own);
    agent.accepts("shop-api-0", "10.0.0.2", "192.168.1.1", 8080);
    agent.accepts("shop-api-0", "10.0.0.2", "192.168.1.2", 8080);
    agent.see(Told {
        direction: Direction::Ingress,
        uid: "shop-web-0",
        own: "10.0.0.1",
        peer: "203.0.113.1",
        port: 80,
        ..tcp(Outcome::Accepted)
    });
    agent.finish(100);
    let (told, ran) = answer(directory.path(), "shop", &[])?;
    assert_eq!(ran.status, 1, "{}", ran.err);
    let gaps = policy(&told, "api")["gaps"].to_string();
    assert!(gaps.contains("a translation hid who asked or for what, so there is no rule"), "{gaps}");
    assert!(gaps.contains("behind a node's address may be anybody who asks a port on it"), "{gaps}");
    assert_eq!(
        spec(&told, "api")["ingress"][0]["from"],
        json!([{"ipBlock": {"cidr": "192.168.1.2/32"}}]),
        "{told:#}"
    );
    assert!(ran.err.contains("not certain: node node-2 → shop/api TCP/8080"), "{}", ran.err);
    Ok(())
}
