//! Services of every kind, and what of the destination each lets an observer know.

use std::{
    io::{BufRead as _, BufReader},
    net::IpAddr,
    process::Stdio,
};

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    apps::{self, FOREVER, container, list, pod, service, spec},
    batchivo::{Apps, EXTERNAL, curl},
    driven::is,
    world::{Pod, World},
};
use crate::account::{
    batchivo::OPEN,
    ledger::{Expected, Party, Says},
};

const NAMESPACE: &str = "forgotten";

/// The pods that the Services lead to.
pub struct Webs {
    /// On the first node, like the client.
    pub near: Pod,
    /// On the second.
    pub far: Pod,
}

/// Makes the pods and Services.
pub fn set_up(world: &World) -> Result<Webs> {
    let server = "from http.server import *; ThreadingHTTPServer(('', 8080), SimpleHTTPRequestHandler).serve_forever()";
    let mut web = container("web", &["/usr/bin/python3", "-c", server]);
    web["workingDir"] = json!("/tmp");
    web["ports"] = json!([{ "name": "web", "containerPort": 8080 }]);
    web["readinessProbe"] = json!({ "tcpSocket": { "port": 8080 }, "periodSeconds": 1 });
    let labels = |name: &str| json!({ "app": "web", "which": name });
    let (both, near, far) = (json!({ "app": "web" }), json!({ "which": "near" }), json!({ "which": "far" }));
    let mut headless = service(NAMESPACE, "headless", None, &near, &[("web", 8080, json!("web"))]);
    headless["spec"]["clusterIP"] = json!("None");
    let mut node_port = service(NAMESPACE, "node-port", None, &far, &[("web", 80, json!("web"))]);
    node_port["spec"]["type"] = json!("NodePort");
    node_port["spec"]["ports"][0]["nodePort"] = json!(30081);
    let external = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": NAMESPACE, "name": "external" },
        "spec": { "type": "ExternalName", "externalName": EXTERNAL[0].0 },
    });
    world.cluster.apply(&list(&[
        apps::namespace(NAMESPACE),
        pod(NAMESPACE, "near", &labels("near"), &spec("node1", &[web.clone()])),
        pod(NAMESPACE, "far", &labels("far"), &spec("node2", &[web])),
        pod(
            NAMESPACE,
            "client",
            &json!({ "app": "client" }),
            &spec("node1", &[container("shell", &FOREVER)]),
        ),
        service(NAMESPACE, "one", Some([10, 96, 2, 1].into()), &far, &[("web", 80, json!("web"))]),
        service(NAMESPACE, "both", Some([10, 96, 2, 2].into()), &both, &[("web", 80, json!(8080))]),
        service(
            NAMESPACE,
            "nobody",
            Some([10, 96, 2, 3].into()),
            &json!({ "app": "nobody" }),
            &[("web", 80, json!(8080))],
        ),
        headless,
        node_port,
        external,
    ]))?;
    world.wait_for_pods(&[NAMESPACE])?;
    Ok(Webs { near: world.pod_named(NAMESPACE, "near")?, far: world.pod_named(NAMESPACE, "far")? })
}

/// Drives each kind once.
pub fn drive(world: &mut World, apps: &Apps, webs: &Webs) -> Result<()> {
    let client = world.pod_named(NAMESPACE, "client")?;
    let dns = |sockets| {
        Expected::udp(&client, &apps.dns, 53)
            .outcome("answered")
            .requested(crate::cluster::DNS_SERVICE, 53)
            .egress(OPEN)
            .ingress(OPEN)
            .times(sockets)
    };
    let to = |pod: &Pod| Expected::tcp(&client, pod, 8080).egress(OPEN).ingress(OPEN);
    // One endpoint: the address is the pod's, the port its own, whatever was asked for.
    let flows = [dns(1), to(&webs.far).requested([10, 96, 2, 1], 80)];
    world.attempt(&client, &curl("http://one/", &[]), "status=200", &flows)?;
    // Headless: names lead to the pods themselves.
    let flows = [dns(1), to(&webs.near)];
    world.attempt(&client, &curl("http://headless:8080/", &[]), "status=200", &flows)?;
    // Another name for somebody outside. The search list ends at the first name that exists: the Service's own.
    let outside = Party::External(IpAddr::V4(EXTERNAL[0].1));
    let flows = [dns(1), Expected::tcp(&client, outside, 443).egress(OPEN)];
    world.attempt(&client, &curl("https://external/", &[]), "status=200", &flows)?;
    world.compare("one endpoint, headless, ExternalName")?;

    // Two endpoints that the policies treat alike: allowed, though the pod stays open at the source. The destination
    // names it.
    for _ in 0..4 {
        world.attempt(&client, &curl("http://10.96.2.2/", &[]), "status=200", &[])?;
    }
    world.settle()?;
    world.expect("both endpoints' Service at the source", 4, |line| {
        line.node == "node1"
            && is(&line.record.subject, &client)
            && line.record.direction == "egress"
            && line.record.peer.kind == "service"
            && line.record.peer.ip == Some([10, 96, 2, 2].into())
            && line.record.port == 8080
            && line.record.verdict == "allowed"
            && line.record.outcome == "established"
    })?;
    world.expect("its connections at the destinations", 4, |line| {
        line.record.direction == "ingress"
            && line.record.outcome == "accepted"
            && is(&line.record.peer, &client)
            && [(&webs.near, "node1"), (&webs.far, "node2")]
                .iter()
                .any(|(pod, node)| is(&line.record.subject, pod) && line.node == *node)
    })?;
    world.forget()?;

    // Nobody behind it: the proxy rejects, and no pod is named.
    world.attempt(&client, &curl("http://10.96.2.3/", &[]), "exit=7", &[])?;
    world.settle()?;
    world.expect("a Service without endpoints", 1, |line| {
        is(&line.record.subject, &client)
            && line.record.requested.as_ref().map_or(line.record.peer.ip, |asked| Some(asked.ip))
                == Some([10, 96, 2, 3].into())
            && line.record.outcome == "rejected"
            && line.record.peer.pod.is_none()
            && line.record.verdict != "denied"
    })?;
    world.forget()?;

    // A node port on the other node: the pod sees that node's address and not who asks. Where policies would ask, as this
    // one, netaudit says that it cannot know.
    world.cluster.apply(&json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": NAMESPACE, "name": "clients-to-far" },
        "spec": { "podSelector": { "matchLabels": { "which": "far" } }, "policyTypes": ["Ingress"], "ingress": [
            {
                "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }],
                "ports": [{ "port": "web" }],
            },
        ] },
    }))?;
    world.wait_for_policy("clients-to-far", &["node2"])?;
    // Its port has a name, which is the destination's to resolve.
    let rule = "forgotten/clients-to-far ingress[0].from[0].ports[0]";
    let flow = Expected::tcp(&client, &webs.far, 8080)
        .requested([10, 96, 2, 1], 80)
        .egress(OPEN)
        .ingress(Says::Rules(vec![rule.to_owned()]));
    world.attempt(&client, &curl("http://10.96.2.1/", &[]), "status=200", &[flow])?;
    world.compare("a named port")?;
    let outside = world.cluster.outside.clone();
    let url = format!("http://{}:30081/", world.cluster.node_address("node1"));
    world.attempt_on(&outside, &curl(&url, &[]), "status=200", &[])?;
    world.settle()?;
    world.expect("a node port by way of the other node", 1, |line| {
        line.node == "node2"
            && is(&line.record.subject, &webs.far)
            && line.record.direction == "ingress"
            && line.record.verdict == "unknown"
            && line.record.reason.as_deref() == Some("source translated")
    })?;
    world.kubectl(&["delete", "networkpolicy", "-n", NAMESPACE, "clients-to-far"])?;
    world.forget()
}

/// A pod to itself through its Service: the node translates both addresses, and no policy can forbid it.
pub fn hairpin(world: &mut World, apps: &Apps) -> Result<()> {
    let backend = apps.backend.clone();
    let url = format!("http://{}:8000/health", service::BACKEND);
    world.attempt(&backend, &curl(&url, &[]), "status=200", &[])?;
    world.settle()?;
    world.expect("a pod to itself, as the client", 1, |line| {
        is(&line.record.subject, &backend)
            && is(&line.record.peer, &backend)
            && line.record.direction == "egress"
            && line.record.verdict == "allowed"
            && line.record.outcome == "established"
    })?;
    // The server sees its node's address: whoever that is, no policy may be said to deny it.
    world.expect("a pod to itself, as the server", 1, |line| {
        is(&line.record.subject, &backend)
            && line.record.direction == "ingress"
            && line.record.port == 8000
            && line.record.outcome == "accepted"
            && line.record.actor.comm.starts_with("python")
            && line.record.verdict != "denied"
            && line.record.reason.as_deref() != Some("own node")
    })?;
    world.forget()
}

/// A real port-forward: containerd dials the loopback of the pod's network. It is the pod's connection, made by the host.
pub fn port_forward(world: &mut World, apps: &Apps) -> Result<()> {
    let backend = apps.backend.clone();
    let target = format!("pod/{}", backend.name);
    let arguments = ["port-forward", "-n", &backend.namespace, &target, "18000:8000"];
    let mut forward = world.cluster.kubectl(arguments)?.stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    let forwarded = BufReader::new(forward.stdout.take().expect("stdout is piped"))
        .read_line(&mut said)
        .map_err(Into::into)
        .and_then(|_| {
            ensure!(said.starts_with("Forwarding from"), "kubectl port-forward said {said:?}");
            let node = world.cluster.nodes[0].clone();
            world.attempt_on(&node, &curl("http://127.0.0.1:18000/health", &[]), "status=200", &[])
        });
    let ended = forward.kill().and_then(|()| forward.wait());
    forwarded?;
    ended?;
    world.settle()?;
    world.expect("the pod's own connection, made by the host", 1, |line| {
        is(&line.record.subject, &backend)
            && line.record.direction == "egress"
            && line.record.peer.kind == "loopback"
            && line.record.port == 8000
            && line.record.outcome == "established"
            && line.record.verdict == "allowed"
            && line.record.actor.kind == "host"
            && line.record.actor.comm.starts_with("containerd")
    })?;
    world.forget()
}
