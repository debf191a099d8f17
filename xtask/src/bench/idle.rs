//! `cargo xtask bench idle`: what an agent takes on a node full of pods that do nothing.

use std::{fs, net::Ipv4Addr, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::start_agent;
use crate::lab::{Lab, Launch, Owner, PodSpec, Process, Qos};

/// How long the agent settles before it is looked at.
const SETTLE: Duration = Duration::from_secs(15);

/// One policy for every ten pods, with three rules.
fn policy(number: usize) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p{number}, namespace: bench}}\n\
         spec:\n  podSelector: {{matchLabels: {{group: g{number}}}}}\n  policyTypes: [Ingress, Egress]\n\
         \x20 ingress: [{{from: [{{podSelector: {{matchLabels: {{group: g{}}}}}}}], ports: [{{port: 8080}}]}}]\n\
         \x20 egress: [{{ports: [{{protocol: UDP, port: 53}}]}}, {{to: [{{ipBlock: {{cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}}}]}}]\n---\n",
        number + 1
    )
}

/// Lays out `pods` pods, starts the agent, and looks at it for `seconds`. Returns the figures as JSON.
pub fn idle(agent: &Path, pods: u8, seconds: u16) -> Result<Value> {
    let mut lab = Lab::new("idle")?;
    let mut pauses = Vec::new();
    for number in 0..usize::from(pods) {
        // As long as the process, which ends with the benchmark.
        let name = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
        let labels = Box::leak(Box::new([("group", name(format!("g{}", number / 10)))]));
        let pod = lab.add_pod(
            PodSpec {
                namespace: "bench",
                name: name(format!("w{}-5d8f7b9c6-{:05}", number / 5, number)),
                labels: &*labels,
                owner: Owner::Deployment(name(format!("w{}", number / 5)), "5d8f7b9c6"),
                qos: Qos::Burstable,
                container: "main",
                ports: &[("http", "TCP", 8080)],
            },
            Ipv4Addr::new(10, 96, 0, 10),
        )?;
        pauses.push(Launch::new("sleep", ["100000"]).spawn(&pod.place, &lab.log("pause"))?);
    }
    lab.write_manifests()?;
    let policies: String = (0..usize::from(pods).div_ceil(10)).map(policy).collect();
    lab.write_manifest("policies.yaml", &policies)?;
    let mut watching = start_agent(&lab, agent, &[])?;
    thread::sleep(SETTLE);
    let before = Taken::by(&watching)?;
    thread::sleep(Duration::from_secs(seconds.into()));
    let after = Taken::by(&watching)?;
    let share = (after.processor - before.processor) as f64 / (f64::from(seconds) * 1e9);
    let wakeups = (after.wakeups - before.wakeups) as f64 / f64::from(seconds);
    println!(
        "bench: {pods} idle pods, {seconds} s: {:.3} % of a core, {wakeups:.0} wake-ups/s",
        share * 100.0
    );
    println!(
        "bench: memory {} KiB now ({} of its own, {} of files), {} KiB at most",
        after.resident, after.own, after.files, after.most
    );
    watching.terminate(Duration::from_secs(10))?;
    drop(pauses);
    Ok(json!({"pods": pods, "core_share": share, "wakeups_per_second": wakeups,
              "resident_kib": after.resident, "most_kib": after.most}))
}

/// What a process has taken since it began.
struct Taken {
    /// Nanoseconds on a processor.
    processor: u64,
    wakeups: u64,
    resident: u64,
    own: u64,
    files: u64,
    most: u64,
}

impl Taken {
    fn by(process: &Process) -> Result<Self> {
        let base = format!("/proc/{}", process.pid());
        let (mut processor, mut wakeups) = (0, 0);
        for task in fs::read_dir(format!("{base}/task"))? {
            let task = task?.path();
            let spent = fs::read_to_string(task.join("schedstat"))?;
            processor += spent.split(' ').next().context("schedstat")?.parse::<u64>()?;
            wakeups += line(&fs::read_to_string(task.join("status"))?, "voluntary_ctxt_switches")?;
        }
        let status = fs::read_to_string(format!("{base}/status"))?;
        Ok(Self {
            processor,
            wakeups,
            resident: line(&status, "VmRSS")?,
            own: line(&status, "RssAnon")?,
            files: line(&status, "RssFile")?,
            most: line(&status, "VmHWM")?,
        })
    }
}

fn line(status: &str, name: &str) -> Result<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = value.and_then(|value| value.split_whitespace().next());
    number.with_context(|| format!("no {name}"))?.parse().context(name.to_owned())
}
