//! How pods come and go in real clusters: probes, jobs of milliseconds, addresses used again, static pods, init and
//! ephemeral containers, rollouts.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{
    apps::{FOREVER, container, list, pod, spec},
    batchivo::Apps,
    driven::is,
    services::Webs,
    world::{Line, World},
};
use crate::{account::record::Record, cluster::TOOLS_IMAGE};

const NAMESPACE: &str = "forgotten";

/// HTTP, TCP and exec probes are seen and exempt; someone on the node who does the same is seen as who it is.
pub fn probes(world: &mut World, apps: &Apps) -> Result<()> {
    for (what, pod, port) in [("HTTP", &apps.frontend, 8080), ("TCP", &apps.redis, 6379)] {
        world.wait_for_line(&format!("{what} probe at the pod"), |line| {
            is(&line.record.subject, pod)
                && line.record.direction == "ingress"
                && line.record.port == port
                && line.record.peer.kind == "node"
                && line.record.peer.node.as_deref() == Some(&pod.node)
                && line.record.verdict == "allowed"
                && line.record.reason.as_deref() == Some("own node")
        })?;
        world.wait_for_line(&format!("{what} probe at the node"), |line| {
            line.node == pod.node
                && line.record.subject.kind == "node"
                && line.record.direction == "egress"
                && is(&line.record.peer, pod)
                && line.record.port == port
                && line.record.actor.comm.starts_with("kubelet")
        })?;
    }
    world.wait_for_line("exec probe", |line| {
        is(&line.record.subject, &apps.postgres)
            && line.record.peer.kind == "loopback"
            && line.record.actor.comm == "pg_isready"
            && line.record.verdict == "allowed"
    })?;
    let node = world.node(&apps.redis.node).clone();
    let command = super::batchivo::connect(&apps.redis.ip, 6379);
    world.attempt_on(&node, &command, "open", &[])?;
    world.wait_for_line("an intruder on the node, by name", |line| {
        line.node == node.name
            && line.record.subject.kind == "node"
            && is(&line.record.peer, &apps.redis)
            && line.record.actor.comm == "bash"
    })?;
    world.forget()
}

/// A connection to the near web server, in a container's own words.
fn call(webs: &Webs) -> String {
    format!("exec 3<>/dev/tcp/{}/8080 && echo open", webs.near.ip)
}

/// Whether a line tells of the connection of [`call`] by a pod of this name.
fn calls(line: &Line, name: &str, webs: &Webs) -> bool {
    line.record.subject.namespace.as_deref() == Some(NAMESPACE)
        && line.record.subject.pod.as_deref() == Some(name)
        && line.record.direction == "egress"
        && is(&line.record.peer, &webs.near)
        && line.record.port == 8080
        && line.record.outcome == "established"
        && line.record.verdict == "allowed"
}

/// Jobs that have ended before anybody could look: each connection has its pod.
pub fn jobs(world: &mut World, webs: &Webs) -> Result<()> {
    const COUNT: usize = 6;
    let job = |index: usize| {
        let mut spec = spec(
            if index.is_multiple_of(2) { "node1" } else { "node2" },
            &[container("job", &["bash", "-c", &call(webs)])],
        );
        spec["restartPolicy"] = json!("Never");
        json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": { "namespace": NAMESPACE, "name": format!("short-{index}") },
            "spec": { "backoffLimit": 0, "template": { "metadata": { "labels": { "app": "short" } }, "spec": spec } },
        })
    };
    world.cluster.apply(&list(&(0..COUNT).map(job).collect::<Vec<_>>()))?;
    world.kubectl(&[
        "wait",
        "-n",
        NAMESPACE,
        "--for=condition=Complete",
        "job",
        "--all",
        "--timeout=120s",
    ])?;
    let pods = world.get(&["pods", "-n", NAMESPACE, "-l", "app=short"])?;
    let names: BTreeSet<&str> = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|pod| pod["metadata"]["name"].as_str())
        .collect();
    ensure!(names.len() == COUNT, "{} pods of {COUNT} jobs", names.len());
    for name in names {
        world.expect(&format!("the job {name}"), 1, |line| calls(line, name, webs))?;
        world.expect(&format!("the job {name} at its destination"), 1, |line| {
            is(&line.record.subject, &webs.near)
                && line.record.direction == "ingress"
                && line.record.peer.pod.as_deref() == Some(name)
        })?;
    }
    world.kubectl(&["delete", "-n", NAMESPACE, "job", "--all", "--wait=false"])?;
    world.forget()
}

/// One pod goes and the next has its address within a second or so; each keeps its own flows.
pub fn address_used_again(world: &mut World, webs: &Webs) -> Result<()> {
    let object = |name: &str| {
        pod(NAMESPACE, name, &json!({ "app": name }), &spec("node1", &[container("shell", &FOREVER)]))
    };
    let ready = |world: &World, name: &str| {
        world.kubectl(&["wait", "-n", NAMESPACE, "--for=condition=Ready", "pod", name, "--timeout=60s"])
    };
    world.cluster.apply(&object("first"))?;
    ready(world, "first")?;
    let first = world.pod_named(NAMESPACE, "first")?;
    world.attempt(&first, &["bash", "-c", &call(webs)], "open", &[])?;
    world.kubectl(&["delete", "pod", "-n", NAMESPACE, "first", "--grace-period=0", "--force"])?;
    // The plugin hands addresses out in turn, and remembers here where it is; without, it takes the lowest free one.
    let taken = world.node("node1").var("lib/cni/networks/cluster").join(&first.ip);
    world.wait("the address is free", || Ok((!taken.exists()).then_some(())))?;
    let _ = fs::remove_file(world.node("node1").var("lib/cni/networks/cluster/last_reserved_ip.0"));
    // Lower ones may be free as well.
    let mut second = None;
    for index in 0..8 {
        let name = format!("second-{index}");
        world.cluster.apply(&object(&name))?;
        let got = world.pod_named(NAMESPACE, &name)?;
        if got.ip == first.ip {
            second = Some(got);
            break;
        }
    }
    let second = second.with_context(|| format!("nobody got {} again", first.ip))?;
    ready(world, &second.name)?;
    world.attempt(&second, &["bash", "-c", &call(webs)], "open", &[])?;
    world.settle()?;
    for pod in [&first, &second] {
        world.expect(&format!("{} at {}", pod.name, pod.ip), 1, |line| calls(line, &pod.name, webs))?;
        world.expect(&format!("{} at {} as a peer", pod.name, pod.ip), 1, |line| {
            is(&line.record.subject, &webs.near)
                && line.record.direction == "ingress"
                && is(&line.record.peer, pod)
        })?;
    }
    world.forget()
}

/// A static pod's cgroup has the hash of its manifest where others have their UID.
pub fn static_pod(world: &mut World, webs: &Webs) -> Result<()> {
    let mut spec =
        spec("node1", &[container("shell", &["bash", "-c", &format!("{}; sleep infinity", call(webs))])]);
    spec.as_object_mut().expect("an object").remove("nodeSelector");
    let object = pod(NAMESPACE, "static", &json!({ "app": "static" }), &spec);
    let manifest = world.node("node1").var("lib/kubelet/manifests/static.json");
    fs::write(&manifest, object.to_string())?;
    world.wait_for_line("the static pod", |line| calls(line, "static-node1", webs))?;
    world.expect("the static pod, once", 1, |line| calls(line, "static-node1", webs))?;
    fs::remove_file(&manifest)?;
    world.forget()
}

/// Containers that are not a pod's ordinary ones act for the pod, too, and are told apart.
pub fn init_and_ephemeral(world: &mut World, webs: &Webs) -> Result<()> {
    let mut spec = spec("node1", &[container("shell", &FOREVER)]);
    spec["initContainers"] = json!([container("init", &["bash", "-c", &call(webs)])]);
    world.cluster.apply(&pod(NAMESPACE, "staged", &json!({ "app": "staged" }), &spec))?;
    world.kubectl(&["wait", "-n", NAMESPACE, "--for=condition=Ready", "pod", "staged", "--timeout=60s"])?;
    let container_id = |world: &World, field: &str| -> Result<String> {
        let staged = world.get(&["pod", "-n", NAMESPACE, "staged"])?;
        let id = staged["status"][field][0]["containerID"].as_str().context("a container's id")?;
        Ok(id.trim_start_matches("containerd://").to_owned())
    };
    let by = |line: &Line, id: &str| {
        calls(line, "staged", webs) && line.record.actor.container.as_deref() == Some(id)
    };
    let id = container_id(world, "initContainerStatuses")?;
    world.expect("the init container", 1, |line| by(line, &id))?;
    // What `kubectl debug` makes. It has no mounts, so it makes do with what the image holds.
    let script = format!("nc -w 1 {} 8080 </dev/null; sleep 3600", webs.near.ip);
    world.kubectl(&[
        "debug",
        "-n",
        NAMESPACE,
        "staged",
        "--image",
        TOOLS_IMAGE,
        "--image-pull-policy=Never",
        "--container=debugger",
        "--",
        "sh",
        "-c",
        &script,
    ])?;
    world.wait("the ephemeral container runs", || {
        let staged = world.get(&["pod", "-n", NAMESPACE, "staged"])?;
        Ok(staged["status"]["ephemeralContainerStatuses"][0]["state"]["running"].is_object().then_some(()))
    })?;
    let id = container_id(world, "ephemeralContainerStatuses")?;
    world.expect("the ephemeral container", 1, |line| by(line, &id))?;
    world.forget()
}

/// A pod that shares its node's network is its node.
pub fn host_network(world: &mut World, webs: &Webs) -> Result<()> {
    let mut spec =
        spec("node1", &[container("shell", &["bash", "-c", &format!("{}; sleep infinity", call(webs))])]);
    spec["hostNetwork"] = json!(true);
    world.cluster.apply(&pod(NAMESPACE, "hosted", &json!({ "app": "hosted" }), &spec))?;
    world.wait_for_line("a hostNetwork pod's flow is its node's", |line| {
        line.node == "node1"
            && line.record.subject.kind == "node"
            && line.record.direction == "egress"
            && is(&line.record.peer, &webs.near)
            && line.record.actor.comm == "bash"
            && line.record.verdict == "allowed"
            && line.record.reason.as_deref() == Some("host network")
    })?;
    world.forget()
}

/// A Deployment is rolled out under traffic: every connection is told, and with a pod at its other end.
pub fn rollout(world: &mut World, apps: &mut Apps, programs: &str) -> Result<()> {
    const COUNT: usize = 60;
    let stranger = apps.stranger.clone();
    let url = format!("http://{}/", super::apps::service::FRONTEND);
    let script = format!(
        "for i in $(seq {COUNT}); do curl -s -o /dev/null -m 2 {url}; sleep 0.1; done; echo finished"
    );
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| world.exec(&stranger, &["bash", "-c", &script]));
        std::thread::sleep(Duration::from_millis(500));
        world.kubectl(&["rollout", "restart", "-n", "batchivo", "deployment/frontend"])?;
        world.kubectl(&["rollout", "status", "-n", "batchivo", "deployment/frontend", "--timeout=60s"])?;
        traffic.join().expect("kubectl does not panic")?;
        Ok::<_, anyhow::Error>(())
    })?;
    world.settle()?;
    let fresh: Vec<&Record> = world
        .fresh()
        .map(|line| &line.record)
        .filter(|record| is(&record.subject, &stranger) && record.direction == "egress")
        .collect();
    ensure!(fresh.len() == COUNT, "{} of {COUNT} connections were told", fresh.len());
    // While both pods are ready the source cannot know which of them it got; the destination does.
    let lost: Vec<String> = fresh
        .iter()
        .filter(|record| record.outcome == "established" && record.verdict != "allowed")
        .map(|record| record.line())
        .collect();
    ensure!(lost.is_empty(), "established connections that are not judged:\n{}", lost.join("\n"));
    let established = fresh.iter().filter(|record| record.outcome == "established").count();
    let accepted: Vec<&str> = world
        .fresh()
        .map(|line| &line.record)
        // A pod that does not listen yet refuses, and tells that too.
        .filter(|record| record.outcome == "accepted" && is(&record.peer, &stranger) && record.port == 8080)
        .filter_map(|record| record.subject.pod.as_deref())
        .collect();
    ensure!(accepted.len() == established, "{established} established, but {} accepted", accepted.len());
    let pods: BTreeSet<&str> = accepted.into_iter().collect();
    ensure!(pods.len() == 2, "the old pod and the new one, but the flows have {pods:?}");
    *apps = Apps::find(world, programs)?;
    world.forget()
}
