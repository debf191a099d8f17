//! The lab does what it says, and leaves nothing.

use std::{
    fs,
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::{Lab, Launch, Owner, Pod, PodSpec, Qos, ServicePort, ServiceSpec, find_cgroup2_mount};

const LIMIT: Duration = Duration::from_secs(10);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

fn root_or_skip(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("NETAUDIT_REQUIRE_KERNEL").is_none(), "{test} needs root");
    eprintln!("SKIPPED {test}: not root");
    false
}

fn pod(lab: &mut Lab, name: &'static str, qos: Qos) -> Result<Pod> {
    lab.add_pod(
        PodSpec {
            namespace: "shop",
            name,
            labels: &[("app", "web")],
            owner: Owner::Deployment("web", "5d8f7b9c6"),
            qos,
            container: "main",
            ports: &[("http", "TCP", 8080)],
        },
        DNS,
    )
}

#[test]
fn a_pod_is_laid_out_as_the_kubelet_does_it() -> Result<()> {
    if !root_or_skip("pod layout") {
        return Ok(());
    }
    let mut lab = Lab::new("layout")?;
    for (qos, class) in
        [(Qos::Guaranteed, ""), (Qos::Burstable, "burstable/"), (Qos::BestEffort, "besteffort/")]
    {
        let pod = pod(&mut lab, "web-5d8f7b9c6-abcde", qos)?;
        let output = Launch::new("cat", ["/proc/self/cgroup", "/etc/resolv.conf"]).run(&pod.place, LIMIT)?;
        let text = String::from_utf8(output.stdout)?;
        let expected = format!("/node/kubepods/{class}pod{}/{}", pod.uid, pod.container_id);
        let v2 = text.lines().find(|line| line.starts_with("0::")).context("a line of cgroup v2")?;
        assert!(v2.ends_with(&expected), "{v2} does not end with {expected}");
        assert!(text.contains("search shop.svc.cluster.local"), "{text}");
    }
    Ok(())
}

#[test]
fn services_translate_to_every_endpoint_in_both_families() -> Result<()> {
    if !root_or_skip("services") {
        return Ok(());
    }
    let mut lab = Lab::new("services")?;
    let client = pod(&mut lab, "client", Qos::BestEffort)?;
    let servers = [pod(&mut lab, "web-a", Qos::Burstable)?, pod(&mut lab, "web-b", Qos::Burstable)?];
    let listeners = servers
        .iter()
        .map(|server| server.place.netns.enter(|| TcpListener::bind("[::]:8080"))?.context("listening"))
        .collect::<Result<Vec<_>>>()?;
    // The client has the same label, so that it is an endpoint too: give the Service another selector.
    let service = lab.add_service(
        ServiceSpec {
            namespace: "shop",
            name: "web",
            selector: &[("app", "web")],
            ports: vec![ServicePort {
                name: "http",
                protocol: "TCP",
                port: 80,
                target_port: 8080,
                node_port: None,
            }],
        },
        Ipv4Addr::new(10, 96, 1, 1),
    )?;
    let own = client.place.netns.enter(|| TcpListener::bind("[::]:8080"))?.context("listening")?;
    for address in [SocketAddr::new(service.v4.into(), 80), SocketAddr::new(service.v6.into(), 80)] {
        // Three endpoints in turn; what falls to the client itself is a hairpin, which the lab does not translate back.
        for _ in 0..6 {
            let _ = client
                .place
                .netns
                .enter(|| TcpStream::connect_timeout(&address, Duration::from_millis(200)))?;
        }
    }
    drop(own);
    for listener in listeners {
        listener.set_nonblocking(true)?;
        let peers: Vec<SocketAddr> =
            std::iter::from_fn(|| listener.accept().ok()).map(|(_, peer)| peer).collect();
        let v4 = peers.iter().filter(|peer| peer.ip().to_canonical() == client.v4).count();
        let v6 = peers.iter().filter(|peer| peer.ip() == client.v6).count();
        assert_eq!((v4, v6, peers.len()), (2, 2, 4), "from the client, with its own address: {peers:?}");
    }
    Ok(())
}

#[test]
fn manifests_describe_the_pods_and_follow_the_services() -> Result<()> {
    if !root_or_skip("manifests") {
        return Ok(());
    }
    let mut lab = Lab::new("manifests")?;
    let web = pod(&mut lab, "web-a", Qos::Guaranteed)?;
    lab.add_service(
        ServiceSpec {
            namespace: "shop",
            name: "web",
            selector: &[("app", "web")],
            ports: vec![ServicePort {
                name: "http",
                protocol: "TCP",
                port: 80,
                target_port: 8080,
                node_port: None,
            }],
        },
        Ipv4Addr::new(10, 96, 1, 1),
    )?;
    lab.write_manifests()?;
    let read = |name: &str| -> Result<Value> {
        let text = fs::read_to_string(lab.manifests().join(name)).with_context(|| name.to_owned())?;
        Ok(serde_json::from_str(&text)?)
    };
    let object = read("pod-shop-web-a.json")?;
    assert_eq!(object["metadata"]["uid"], web.uid.as_str());
    assert_eq!(object["metadata"]["labels"]["pod-template-hash"], "5d8f7b9c6");
    assert_eq!(object["metadata"]["ownerReferences"][0]["name"], "web-5d8f7b9c6");
    assert_eq!(object["status"]["podIPs"][1]["ip"], web.v6.to_string());
    let slice = read("endpointslice-shop-web-v4.json")?;
    assert_eq!(slice["endpoints"][0]["addresses"][0], web.v4.to_string());
    assert_eq!(slice["ports"][0]["port"], 8080);
    assert_eq!(read("namespace-shop.json")?["metadata"]["labels"]["kubernetes.io/metadata.name"], "shop");
    Ok(())
}

/// What a lab could leave behind: its directory, its cgroup, and the process in it.
fn traces(lab: &Lab) -> Result<[PathBuf; 2]> {
    let directory = lab.directory().to_owned();
    let name = directory.file_name().context("a run has a name")?;
    let cgroup = find_cgroup2_mount()?.join(name);
    ensure!(
        directory.is_dir() && cgroup.is_dir(),
        "{directory:?} and {cgroup:?} are there while the lab lives"
    );
    Ok([directory, cgroup])
}

/// A process that has put itself into the background, as servers do, so that nobody waits for it.
fn background(lab: &Lab, pod: &Pod) -> Result<u32> {
    let output = Launch::new("sh", ["-c", "sleep 300 > /dev/null 2>&1 & echo $!"]).run(&pod.place, LIMIT)?;
    let pid = String::from_utf8(output.stdout)?.trim().parse()?;
    ensure!(is_sleep(pid), "the process {pid} of {:?} runs", lab.directory());
    Ok(pid)
}

fn is_sleep(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with("sleep\u{0}300"))
}

#[test]
fn nothing_is_left_after_the_drop_nor_after_a_panic() -> Result<()> {
    if !root_or_skip("cleaning") {
        return Ok(());
    }
    let mut lab = Lab::new("clean")?;
    let pod_of_it = pod(&mut lab, "web-a", Qos::Burstable)?;
    let (paths, pid) = (traces(&lab)?, background(&lab, &pod_of_it)?);
    drop(lab);
    assert!(paths.iter().all(|path| !path.exists()) && !is_sleep(pid), "{paths:?}, process {pid}");

    let seen = std::thread::spawn(|| {
        let mut lab = Lab::new("panic").expect("a lab");
        let pod = pod(&mut lab, "web-a", Qos::Burstable).expect("a pod");
        let seen = (traces(&lab).expect("traces"), background(&lab, &pod).expect("a process"));
        // The payload carries what to look for out of the unwinding thread.
        std::panic::resume_unwind(Box::new(seen));
    })
    .join()
    .expect_err("it panicked");
    let (paths, pid) = *seen.downcast::<([PathBuf; 2], u32)>().expect("the payload");
    assert!(paths.iter().all(|path| !path.exists()) && !is_sleep(pid), "{paths:?}, process {pid}");
    Ok(())
}

/// Run by [`what_a_killed_run_left_is_removed_by_the_next`] in a process of its own, which is killed in the middle.
#[test]
#[ignore = "waits to be killed: another test starts it"]
fn wait_to_be_killed() -> Result<()> {
    let mut lab = Lab::new("killed")?;
    let pod = pod(&mut lab, "web-a", Qos::Burstable)?;
    let pid = background(&lab, &pod)?;
    println!("left {} {pid}", lab.directory().display());
    std::thread::sleep(Duration::from_secs(30));
    Ok(())
}

fn start_and_signal(signal: i32) -> Result<([PathBuf; 2], u32)> {
    let mut child = std::process::Command::new(std::env::current_exe()?)
        .args(["lab_layout::wait_to_be_killed", "--exact", "--ignored", "--nocapture"])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut output = child.stdout.take().context("its output")?;
    let mut text = String::new();
    let mut byte = [0];
    while !(text.contains("left ") && text.ends_with('\n')) {
        ensure!(output.read(&mut byte)? == 1, "it ended early: {text}");
        text.push(char::from(byte[0]));
    }
    // SAFETY: a plain system call on our own child, which is not reaped yet.
    unsafe { libc::kill(child.id() as i32, signal) };
    child.wait()?;
    let line = text.lines().find_map(|line| line.split_once("left ")).context("the line")?.1;
    let (directory, pid) = line.split_once(' ').context("two words")?;
    let directory = PathBuf::from(directory);
    let cgroup = find_cgroup2_mount()?.join(directory.file_name().context("a name")?);
    Ok(([directory, cgroup], pid.trim().parse()?))
}

#[test]
fn a_signal_removes_everything() -> Result<()> {
    if !root_or_skip("signals") {
        return Ok(());
    }
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let (paths, pid) = start_and_signal(signal)?;
        assert!(paths.iter().all(|path| !path.exists()) && !is_sleep(pid), "{paths:?}, process {pid}");
    }
    Ok(())
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next() -> Result<()> {
    if !root_or_skip("leftovers") {
        return Ok(());
    }
    let (paths, pid) = start_and_signal(libc::SIGKILL)?;
    // Another test's lab may have been first to clean up.
    let _next = Lab::new("next")?;
    assert!(paths.iter().all(|path| !path.exists()) && !is_sleep(pid), "{paths:?}, process {pid}");
    Ok(())
}
