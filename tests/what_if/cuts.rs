//! Flows that differ in nothing but their time fare differently where the objects changed in between: also those that a verdict hangs
//! on by way of an address or a Service.

use netaudit::store::history::Bound;

use super::*;

/// Of the pods that are behind [`behind`], in another namespace.
fn far(name: &str, app: &str, ip: &str) -> Value {
    let mut pod = pod_on("node-2", name, &format!("uid-{name}"), &[ip]);
    pod["metadata"]["namespace"] = "far".into();
    pod["metadata"]["labels"]["app"] = app.into();
    pod
}

fn namespace(name: &str, team: &str) -> Value {
    json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name, "labels": {"team": team}}})
}

fn node(name: &str, ip: &str) -> Value {
    json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name},
           "status": {"addresses": [{"type": "InternalIP", "address": ip}]}})
}

/// A Service that selects nobody, and who is behind it, each with its port.
fn behind(agent: &mut Agent, endpoints: &[(&str, u16)], at: i64) {
    agent.apply(
        &json!({"kind": "Service", "apiVersion": "v1", "metadata": {"namespace": "shop", "name": "far"},
                "spec": {"clusterIP": "10.96.0.2", "type": "NodePort",
                         "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30_080}]}}),
        at,
    );
    for (ip, port) in endpoints {
        agent.apply(
            &json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
                    "metadata": {"namespace": "shop", "name": format!("far-{}", ip.replace('.', "-")),
                                 "labels": {"kubernetes.io/service-name": "far"}},
                    "ports": [{"port": port}], "endpoints": [{"addresses": [ip]}]}),
            at,
        );
    }
}

/// Lets web out to pods with these labels only.
fn only_to(namespaces: Value, pods: Value) -> Value {
    let peer =
        json!({"namespaceSelector": {"matchLabels": namespaces}, "podSelector": {"matchLabels": pods}});
    named("web", "web", json!({"policyTypes": ["Egress"], "egress": [{"to": [peer]}]}))
}

/// Lets everybody out to nodes like these only.
fn only_nodes(selector: Value) -> Value {
    json!({
        "kind": "ClusterNetworkPolicy", "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "metadata": {"name": "nodes"},
        "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": [
            {"name": "nodes", "action": "Accept", "to": [{"nodes": selector}]},
            {"name": "others", "action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}]},
        ]},
    })
}

#[test]
fn pods_and_namespaces_behind_a_service_that_selects_nobody() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut agent = Agent::new(store, "run-a")?;
    begin(&mut agent);
    agent.apply(&namespace("far", "one"), 3);
    agent.apply(&far("x", "good", "10.0.1.5"), 3);
    agent.apply(&far("y", "good", "10.0.1.6"), 3);
    behind(&mut agent, &[("10.0.1.5", 8080), ("10.0.1.6", 8080)], 3);
    let flow = |agent: &mut Agent, at| agent.connects("uid-1", "10.0.0.1", "10.96.0.2:80", at);
    flow(&mut agent, 40);
    agent.apply(&far("y", "bad", "10.0.1.6"), 100);
    let disagree = flow(&mut agent, 140);
    agent.apply(&far("y", "good", "10.0.1.6"), 200);
    flow(&mut agent, 240);
    agent.apply(&namespace("far", "two"), 300);
    let denied = flow(&mut agent, 340);
    agent.finish(400);

    let (told, _) = answer(store, &[only_to(json!({"team": "one"}), json!({"app": "good"}))], &[])?;
    assert_eq!(
        changes(&told),
        [
            "allowed→denied shop/web→service shop/far 8080 egress 1",
            "allowed→unknown shop/web→service shop/far 8080 egress 1",
        ],
        "{told:#}"
    );
    assert_eq!([&told["changes"][0]["example"], &told["changes"][1]["example"]], [&*denied, &*disagree]);
    Ok(())
}

#[test]
fn an_address_that_the_kernel_showed_at_another_pod() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut agent = Agent::new(store, "run-a")?;
    begin(&mut agent);
    behind(&mut agent, &[("10.0.0.4", 8080), ("198.18.0.9", 8080)], 3);
    let nobody = agent.connects("uid-1", "10.0.0.1", "10.96.0.2:80", 40);
    // Its object does not say so.
    let ip = "198.18.0.9".parse()?;
    let id = agent.auditor.cluster().pod_by_uid("uid-3").context("api-0")?;
    agent.auditor.cluster_mut().bind(ip, id, t(100));
    let pod = agent.auditor.cluster().pod(id).context("api-0")?;
    agent.store.history_mut().bound(Bound { pod, ip }, false, t(100));
    agent.connects("uid-1", "10.0.0.1", "10.96.0.2:80", 140);
    agent.finish(200);

    let candidate =
        named("web", "web", json!({"policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}]}]}));
    let (told, _) = answer(store, &[candidate], &[])?;
    assert_eq!(changes(&told), ["allowed→unknown shop/web→service shop/far 8080 egress 1"], "{told:#}");
    assert_eq!(told["changes"][0]["example"], *nobody);
    Ok(())
}

#[test]
fn a_node_gets_an_address_that_is_behind_a_service() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut agent = Agent::new(store, "run-a")?;
    begin(&mut agent);
    agent.apply(&node("node-2", "192.168.0.2"), 3);
    behind(&mut agent, &[("192.168.0.2", 6443), ("192.168.0.3", 6443)], 3);
    let before = agent.connects("uid-1", "10.0.0.1", "10.96.0.2:80", 40);
    agent.apply(&node("node-3", "192.168.0.3"), 100);
    agent.connects("uid-1", "10.0.0.1", "10.96.0.2:80", 140);
    agent.finish(200);

    let (told, _) = answer(store, &[only_nodes(json!({}))], &[])?;
    assert_eq!(changes(&told), ["allowed→unknown shop/web→service shop/far 6443 egress 1"], "{told:#}");
    assert_eq!(told["changes"][0]["example"], *before);
    Ok(())
}

#[test]
fn the_label_of_a_node_behind_a_service_of_which_nobody_says_where_it_leads() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut agent = Agent::new(store, "run-a")?;
    begin(&mut agent);
    let node_in = |name: &str, ip: &str, zone: &str| {
        let mut node = node(name, ip);
        node["metadata"]["labels"] = json!({"zone": zone});
        node
    };
    for (number, node) in ["node-2", "node-3"].into_iter().enumerate() {
        let (name, ip) = (format!("host-{number}"), format!("192.168.0.{}", number + 2));
        agent.apply(&node_in(node, &ip, "x"), 3);
        let mut pod = pod_on(node, &name, &format!("uid-host-{number}"), &[&ip]);
        pod["spec"]["hostNetwork"] = true.into();
        agent.apply(&pod, 3);
    }
    agent.apply(
        &json!({"kind": "Service", "apiVersion": "v1", "metadata": {"namespace": "shop", "name": "hosts"},
                "spec": {"clusterIP": "10.96.0.3", "selector": {"app": "host"}, "ports": [{"port": 80}]}}),
        3,
    );
    agent.connects("uid-1", "10.0.0.1", "10.96.0.3:80", 40);
    agent.apply(&node_in("node-3", "192.168.0.3", "y"), 100);
    let disagree = agent.connects("uid-1", "10.0.0.1", "10.96.0.3:80", 140);
    agent.finish(200);

    let (told, _) = answer(store, &[only_nodes(json!({"matchLabels": {"zone": "x"}}))], &[])?;
    assert_eq!(changes(&told), ["allowed→unknown shop/web→service shop/hosts 80 egress 1"], "{told:#}");
    assert_eq!(told["changes"][0]["example"], *disagree);
    Ok(())
}

#[test]
fn a_node_port_whose_endpoints_disagree_is_judged_again_by_them() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut agent = Agent::new(store, "run-a")?;
    begin(&mut agent);
    agent.apply(&node("node-2", "192.168.0.2"), 3);
    behind(&mut agent, &[("10.0.0.4", 8080), ("10.0.0.3", 9090)], 3);
    let to_api = json!({"podSelector": {"matchLabels": {"app": "api"}}});
    agent.apply(&named("web", "web", json!({"policyTypes": ["Egress"], "egress": [{"to": [to_api]}]})), 4);
    let flow = agent.connects("uid-1", "10.0.0.1", "192.168.0.2:30080", 40);
    agent.finish(100);

    let everything = named("web", "web", json!({"policyTypes": ["Egress"], "egress": [{}]}));
    let (told, ran) = answer(store, &[policy("web"), everything], &[])?;
    assert_eq!(changes(&told), ["unknown→allowed shop/web→service shop/far 30080 egress 1"], "{told:#}");
    assert_eq!(told["changes"][0]["example"], *flow);
    assert!(!ran.err.contains("recorded with another verdict"), "{}", ran.err);
    let told = run(netaudit().args(["why", &flow, "--flow-store"]).arg(store));
    assert!(told.out.contains("unknown, as recorded") && told.out.contains("10.0.0.3"), "{}", told.out);
    Ok(())
}

/// The end that connects shows that api's own namespace redirects.
fn redirects(agent: &mut Agent) -> Result<()> {
    let (web, api) = (number("uid-1"), number("uid-3"));
    let mut flows = Vec::new();
    let made = Observation { at: t(40), ..egress(web, web, "10.0.0.1:40000", "10.0.0.3:8080") };
    let accepted = Observation { at: t(40), ..ingress(api, api, "10.0.0.3:15006", "10.0.0.1:40000") };
    agent.auditor.observe(&made, t(40), &mut flows);
    agent.auditor.observe(&accepted, t(40), &mut flows);
    ensure!(flows.len() == 2, "{flows:?}");
    Ok(())
}

#[test]
fn a_port_that_a_redirect_hid_while_no_policy_was_in_the_way() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut agent = Agent::new(store, "run-a")?;
    begin(&mut agent);
    redirects(&mut agent)?;
    let hidden = agent.accepts("uid-3", "10.0.0.3:15006", "203.0.113.9", 50);
    agent.finish(100);

    let only_8080 = |spec| named("api", "api", spec);
    let (told, _) = answer(store, &[only_8080(json!({"ingress": [{"ports": [{"port": 8080}]}]}))], &[])?;
    assert_eq!(changes(&told), ["allowed→unknown external→shop/api 15006 ingress 1"], "{told:#}");
    assert_eq!(told["changes"][0]["example"], *hidden);
    // Whatever port it was.
    let (told, _) = answer(store, &[only_8080(json!({"policyTypes": ["Ingress"]}))], &[])?;
    assert_eq!(changes(&told), ["allowed→denied external→shop/api 15006 ingress 1"], "{told:#}");
    let (told, ran) = answer(store, &[only_8080(json!({"policyTypes": ["Egress"]}))], &[])?;
    assert_eq!((changes(&told), ran.status), (vec![], 0), "{told:#}");
    Ok(())
}

#[test]
fn where_a_port_is_hidden_the_other_end_may_be_certain_all_the_same() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut agent = Agent::new(store, "run-a")?;
    begin(&mut agent);
    agent.apply(&namespace("far", "one"), 3);
    agent.apply(&far("x", "good", "10.0.1.5"), 3);
    redirects(&mut agent)?;
    agent.accepts("uid-3", "10.0.0.3:15006", "10.0.1.5", 50);
    agent.finish(100);
    let egress = |rules| {
        let mut policy = named("x", "good", json!({"policyTypes": ["Egress"], "egress": rules}));
        policy["metadata"]["namespace"] = "far".into();
        policy
    };
    let (told, _) = answer(store, &[egress(json!([]))], &[])?;
    assert_eq!(changes(&told), ["allowed→denied far/x→shop/api 15006 egress 1"], "{told:#}");
    let (told, _) = answer(store, &[egress(json!([{"ports": [{"port": 8080}]}]))], &[])?;
    assert_eq!(changes(&told), ["allowed→unknown far/x→shop/api 15006 egress 1"], "{told:#}");
    Ok(())
}

#[test]
fn a_clock_that_was_set_back_brings_nothing_back_that_was_gone() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut agent = Agent::new(store, "run-a")?;
    begin(&mut agent);
    agent.apply(&named("api", "api", json!({"policyTypes": ["Ingress"]})), 200);
    // By the clock this was before the policy was made.
    agent.delete(Kind::NetworkPolicy, "api", 100);
    agent.accepts("uid-3", "10.0.0.3:80", "10.0.0.1", 110);
    agent.accepts("uid-3", "10.0.0.3:80", "10.0.0.1", 300);
    agent.finish(400);

    let (told, ran) = answer(store, &[policy("web")], &[])?;
    assert_eq!((changes(&told), ran.status), (vec![], 0), "{told:#}");
    assert_eq!(told["recorded_otherwise"], json!([]), "they are judged as they were recorded: {told:#}");
    Ok(())
}
