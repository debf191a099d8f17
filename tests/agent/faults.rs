//! What goes wrong around an agent: each a clear message or a counted state, and nothing else lost.

use std::{fs, time::Duration};

use anyhow::Result;

use super::harness::{LISTEN, NETAUDIT, World, eventually, kernel_or_skip, of, sum};

const SOON: Duration = Duration::from_secs(10);

/// Runs an agent that must fail at once, by a shell line in which `$@` is the agent's own command line.
fn refused(world: &World, shell: &str) -> Result<String> {
    let output = world.shell(shell).run(&world.agent_place()?, SOON)?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{errors}");
    Ok(errors)
}

#[test]
fn what_the_machine_lacks_is_named() -> Result<()> {
    if !kernel_or_skip("missing parts") {
        return Ok(());
    }
    let world = World::new("missing")?;
    for (shell, names) in [
        ("exec setpriv --bounding-set=-sys_admin,-bpf --inh-caps=-sys_admin,-bpf \"$@\"", "CAP_BPF"),
        // With CAP_SYS_ADMIN, as a whole root has it, the kernel would ask for none of them.
        (
            "exec setpriv --bounding-set=-sys_admin,-net_admin --inh-caps=-sys_admin,-net_admin \"$@\"",
            "CAP_NET_ADMIN",
        ),
        (
            "exec setpriv --bounding-set=-sys_admin,-perfmon --inh-caps=-sys_admin,-perfmon \"$@\"",
            "CAP_PERFMON",
        ),
        (
            "mkdir -p /tmp/netaudit-none && exec unshare -m sh -c 'mount --bind /tmp/netaudit-none /sys/kernel/btf && exec \"$@\"' sh \"$@\"",
            "/sys/kernel/btf",
        ),
        ("exec \"$@\" --cgroup-root /proc", "cgroup v2"),
        (
            "exec unshare -m sh -c 'umount -l /sys/fs/cgroup/unified 2>/dev/null; umount -l /sys/fs/cgroup; exec \"$1\" agent --manifests \"$4\" --listen 127.0.0.1:0' sh \"$@\"",
            "cgroup v2",
        ),
    ] {
        let errors = refused(&world, shell)?;
        assert!(errors.contains(names), "{shell} says {errors}");
    }
    let _ = fs::remove_dir("/tmp/netaudit-none");
    Ok(())
}

#[test]
fn a_port_in_use_is_named_with_what_to_do() -> Result<()> {
    if !kernel_or_skip("port in use") {
        return Ok(());
    }
    let world = World::new("port")?;
    let _first = world.agent()?;
    let errors = refused(&world, "exec \"$@\"")?;
    assert!(errors.contains(LISTEN) && errors.contains("--listen"), "{errors}");
    Ok(())
}

#[test]
fn a_manifest_that_does_not_parse_blinds_only_what_it_could_change() -> Result<()> {
    if !kernel_or_skip("bad manifest") {
        return Ok(());
    }
    let world = World::new("bad-manifest")?;
    world.deny_all()?;
    let _server = world.serve()?;
    let mut agent = world.agent()?;
    // A policy in the same namespace whose text is broken: it may admit anybody, so the denial is not certain.
    let broken = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: x, namespace: shop}\nspec: {podSelector: {}, ingress: [\n";
    world.lab.write_manifest("broken.yaml", broken)?;
    eventually("the broken file is known", || Ok(world.metric("netaudit_invalid_objects ")? > Some(0.0)))?;
    world.connect(1)?;
    let flows = world.wait_for_flows("accepted flow", |flows| of(flows, "ingress").len() == 1)?;
    let flow = of(&flows, "ingress")[0];
    assert_eq!(flow["verdict"], "unknown", "{flow:#}");
    let reason = flow["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("invalid object") && reason.contains("broken.yaml"), "{reason}");
    assert!(agent.log_tail().contains("broken.yaml"), "{}", agent.log_tail());
    // Mended, everything is certain again.
    fs::remove_file(world.lab.manifests().join("broken.yaml"))?;
    eventually("the broken file is forgotten", || {
        Ok(world.metric("netaudit_invalid_objects ")? == Some(0.0))
    })?;
    world.connect(1)?;
    let flows = world.wait_for_flows("accepted flow", |flows| of(flows, "ingress").len() == 2)?;
    assert_eq!(of(&flows, "ingress")[1]["verdict"], "denied");
    agent.check()
}

#[test]
fn a_full_disk_loses_lines_counted_and_nothing_else() -> Result<()> {
    if !kernel_or_skip("full disk") {
        return Ok(());
    }
    let world = World::new("disk-full")?;
    let _server = world.serve()?;
    let small = world.lab.directory().join("small");
    fs::create_dir(&small)?;
    // The small disk lives in the agent's own mount namespace, and goes with it.
    let log = small.join("flows.jsonl");
    let agent = world.agent_by(&world.shell(&format!(
        "exec unshare -m --propagation private sh -c \
         'mount -t tmpfs -o size=16k none {} && exec \"$@\" --flow-log {}' sh \"$@\"",
        small.display(),
        log.display()
    )))?;
    world.connect(100)?;
    eventually("flows are counted", || Ok(world.metric_sum("netaudit_flows_total{")? >= 200.0))?;
    let seen = std::path::PathBuf::from(format!("/proc/{}/root{}", agent.pid(), log.display()));
    let counted = || -> Result<(f64, f64)> {
        let (_, text) = world.get("/metrics")?;
        Ok((
            sum(&text, "netaudit_flows_total{"),
            sum(&text, r#"netaudit_records_lost_total{stage="flow-log""#),
        ))
    };
    // Asking is a flow too, so what was made lies between two questions.
    eventually("written + lost = made, and no line is torn", || {
        let (made_before, lost) = counted()?;
        let text = fs::read_to_string(&seen)?;
        let whole = |line| serde_json::from_str::<serde_json::Value>(line).is_ok();
        if !text.lines().all(whole) {
            // Seen in the middle of a write: a torn line that stays fails in the end.
            return Ok(false);
        }
        let (made_after, lost_after) = counted()?;
        let told = text.lines().count() as f64 + lost;
        assert!(lost > 0.0, "a disk of 16 KiB does not hold 200 flows");
        Ok(lost == lost_after && (made_before..=made_after).contains(&told))
    })?;
    // Room again: writing resumes by itself.
    fs::OpenOptions::new().write(true).open(&seen)?.set_len(0)?;
    world.connect(1)?;
    eventually("lines are written again", || Ok(fs::read_to_string(&seen)?.lines().count() >= 2))
}

#[test]
fn a_wrong_configuration_is_refused_before_anything_is_attached() -> Result<()> {
    let output = std::process::Command::new(NETAUDIT).args(["agent", "--ring-bytes", "1000"]).output()?;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("power of two"));
    let output = std::process::Command::new(NETAUDIT)
        .args(["agent", "--print-config", "--manifests", "/m"])
        .output()?;
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("manifests: /m"));
    Ok(())
}

#[test]
fn a_reader_that_stopped_reading_stops_nothing_else() -> Result<()> {
    if !kernel_or_skip("stalled reader") {
        return Ok(());
    }
    let world = World::new("stalled-reader")?;
    let _server = world.serve()?;
    let pipe = world.lab.directory().join("pipe");
    // The agent's own process holds the reading end, and never reads.
    let shell = format!("mkfifo {0} && exec 9<> {0} && exec \"$@\" --flow-log {0}", pipe.display());
    let mut agent = world.agent_by(&world.shell(&shell))?;
    // Far more than a pipe holds.
    world.connect(300)?;
    eventually("flows are counted", || Ok(world.metric_sum("netaudit_flows_total{")? >= 600.0))?;
    assert_eq!(world.get("/healthz")?.0, 200);
    agent.terminate(Duration::from_secs(5))
}

#[test]
fn a_fifo_that_nobody_reads_is_refused_at_once() -> Result<()> {
    if !kernel_or_skip("fifo without a reader") {
        return Ok(());
    }
    let world = World::new("fifo")?;
    let pipe = world.lab.directory().join("pipe");
    let errors = refused(&world, &format!("mkfifo {0} && exec \"$@\" --flow-log {0}", pipe.display()))?;
    assert!(errors.contains("nobody reads the FIFO"), "{errors}");
    Ok(())
}
