//! An agent that gets no processor while a ring that is far too small overflows: what it knows afterwards.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Result, bail};

use super::harness::{NETAUDIT, World, eventually, kernel_or_skip, python, sum};
use crate::lab::{Launch, Owner, PodSpec, Process, Qos};

const CONNECTIONS: u32 = 2_000;
const PORTS: u32 = 3_000;
const DATAGRAMS: u32 = 500;

/// The client may connect to the server's port 8080 and to nothing else; the server lets nobody in.
const POLICIES: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: out, namespace: shop}\n\
     spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress],\n\
     \u{20}egress: [{to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: 8080}]}]}\n";

fn signal(process: &Process, signal: i32) {
    // SAFETY: a plain system call; the process is our child and not reaped.
    unsafe { libc::kill(process.pid() as i32, signal) };
}

/// Connections to a server, to one closed port after the other, and datagrams to a closed port from ever new sockets.
fn burst(world: &World) -> Result<()> {
    let program = format!(
        "import socket\na='{}'\n\
         for _ in range({CONNECTIONS}):\n socket.create_connection((a,8080),5).close()\n\
         for port in range(20000,20000+{PORTS}):\n\
         \u{20}s=socket.socket()\n assert s.connect_ex((a,port)) == 111\n s.close()\n\
         for _ in range({DATAGRAMS}):\n s=socket.socket(type=socket.SOCK_DGRAM)\n s.sendto(b'x',(a,5353))\n s.close()\n",
        world.server.v4
    );
    let output =
        Launch::new("python3", ["-c", &program]).run(&world.client.place, Duration::from_secs(60))?;
    if !output.status.success() {
        bail!("the client failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[test]
fn an_agent_that_stalls_knows_every_violation_and_every_used_rule() -> Result<()> {
    if !kernel_or_skip("overload") {
        return Ok(());
    }
    let mut world = World::new("overload")?;
    world.deny_all()?;
    world.lab.write_manifest("out.yaml", POLICIES)?;
    let _server = world.serve()?;
    let mut arguments = world.arguments();
    arguments.extend(["--ring-bytes", "262144"].map(str::to_owned));
    let mut agent = world.agent_by(&Launch::new(NETAUDIT, arguments))?;

    signal(&agent, libc::SIGSTOP);
    let done = burst(&world);
    // Of this pod's cgroups the ring has no room to tell.
    let spec = PodSpec {
        namespace: "shop",
        name: "late-5d8f7b9c6-q8w2e",
        labels: &[("app", "late")],
        owner: Owner::Deployment("late", "5d8f7b9c6"),
        qos: Qos::Burstable,
        container: "main",
        ports: &[],
    };
    let late = world.lab.add_pod(spec, Ipv4Addr::new(10, 96, 0, 10));
    signal(&agent, libc::SIGCONT);
    done?;
    let late = late?;
    world.lab.write_manifests()?;

    let flows = |direction: &str, protocol: &str, verdict: &str, reach: &str| {
        format!(
            "netaudit_flows_total{{direction=\"{direction}\",protocol=\"{protocol}\",verdict=\"{verdict}\",reach=\"{reach}\"}}"
        )
    };
    let violations = |metrics: &str, direction: &str, finding: &str| -> f64 {
        let of = |line: &&str| {
            line.starts_with(&format!("netaudit_violations_total{{direction=\"{direction}\""))
                && line.contains(&format!("finding=\"{finding}\""))
        };
        sum(&metrics.lines().filter(of).collect::<Vec<_>>().join("\n"), "netaudit_violations_total")
    };
    eventually("every flow is counted by what the policies say of it", || {
        let (_, metrics) = world.get("/metrics")?;
        Ok([
            (sum(&metrics, &flows("egress", "TCP", "allowed", "reached")), CONNECTIONS),
            (sum(&metrics, &flows("ingress", "TCP", "denied", "reached")), CONNECTIONS),
            (sum(&metrics, &flows("egress", "TCP", "denied", "rejected")), PORTS),
            (sum(&metrics, &flows("egress", "UDP", "denied", "unproven")), DATAGRAMS),
            (sum(&metrics, "netaudit_rule_matches_total{"), CONNECTIONS),
            (violations(&metrics, "ingress", "unenforced"), CONNECTIONS),
            (violations(&metrics, "egress", "denied-refused"), PORTS),
            (violations(&metrics, "egress", "attempted"), DATAGRAMS),
        ]
        .iter()
        .all(|(counted, made)| *counted == f64::from(*made)))
    })?;
    // The question itself is a flow, whose record may just have been made.
    eventually("made = recorded + folded + lost", || {
        let (_, metrics) = world.get("/metrics")?;
        let made = sum(&metrics, "netaudit_records_made_total{");
        let (taken, folded) =
            (sum(&metrics, "netaudit_records_total "), sum(&metrics, "netaudit_records_folded_total{"));
        let lost = sum(&metrics, "netaudit_records_lost_total{stage=\"ring\"");
        assert!(folded > f64::from(CONNECTIONS) && lost > 0.0, "{metrics}");
        assert_eq!(sum(&metrics, "netaudit_records_lost_total{stage=\"fold\""), 0.0, "{metrics}");
        Ok(made == taken + folded + lost)
    })?;
    let lines = world.wait_for_flows("every line", |lines| {
        let of = |line: &&serde_json::Value| line["subject"]["workload"] == "client";
        let count = |line: &serde_json::Value| line["count"].as_u64().unwrap_or(1);
        lines.iter().filter(of).map(count).sum::<u64>() == u64::from(CONNECTIONS + PORTS + DATAGRAMS)
    })?;
    let folded = lines.iter().filter(|line| line["folded"] == true && line["port"] == 8080);
    let ends: Vec<_> = folded.map(|line| (&line["direction"], &line["verdict"], &line["outcome"])).collect();
    assert!(ends.contains(&(&"egress".into(), &"allowed".into(), &"established".into())), "{ends:?}");
    assert!(ends.contains(&(&"ingress".into(), &"denied".into(), &"accepted".into())), "{ends:?}");

    // Cgroups were listed again, so that who acts in the late pod is known.
    let program =
        format!("import socket\nsocket.create_connection(('{}',8080),5).close()\n", world.server.v4);
    python(&late.place, &program)?;
    let lines = world.wait_for_flows("the late pod's flow", |lines| {
        lines.iter().any(|line| line["subject"]["workload"] == "late")
    })?;
    let line = lines.iter().find(|line| line["subject"]["workload"] == "late");
    assert_eq!(line.map(|line| &line["actor"]["container"]), Some(&late.container_id.as_str().into()));
    assert!(agent.log_tail().contains("they were listed again"), "{}", agent.log_tail());
    agent.terminate(Duration::from_secs(5))
}
