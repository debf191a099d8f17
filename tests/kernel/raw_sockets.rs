//! Sockets that make their own packets: their creation is told, with who did it, and nobody else's.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::Duration,
};

use netaudit::{
    kernel::Event,
    model::{RawSocket, RawSocketKind},
};

use super::pods::{Pod, Running, Stage, ready, socket_of};

fn made(stage: &mut Stage) -> Vec<RawSocket> {
    std::thread::sleep(Duration::from_millis(50));
    stage.drain();
    let events = std::mem::take(&mut stage.events);
    events
        .into_iter()
        .filter_map(|event| match event {
            Event::RawSocket(seen) => Some(seen),
            _ => None,
        })
        .collect()
}

fn make(pod: &Pod, act: impl FnOnce() -> io::Result<OwnedFd>) {
    pod.run(|| act().map(drop));
}

/// A packet socket's protocol is an Ethernet type in network order.
const ALL_FRAMES: i32 = (libc::ETH_P_ALL as u16).to_be() as i32;

#[test]
fn each_kind_is_told_with_its_process_and_namespace() {
    if !ready() {
        return;
    }
    let mut stage = Stage::new();
    let pod = stage.pod("a");
    // Ping sockets are for the groups that this names.
    pod.sysctl("ipv4/ping_group_range", "0 0");
    made(&mut stage);
    for (family, form, protocol, kind, told) in [
        (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP, RawSocketKind::Ip, 1),
        (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP, RawSocketKind::Ip, 6),
        (libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6, RawSocketKind::Ip, 58),
        (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW, RawSocketKind::Ip, 255),
        (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP, RawSocketKind::Ping, 1),
        (libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6, RawSocketKind::Ping, 58),
    ] {
        make(&pod, || socket_of(family, form, protocol));
        let seen = made(&mut stage);
        assert_eq!(seen.len(), 1, "{kind} {told}: {seen:?}");
        assert_eq!((seen[0].kind, seen[0].protocol), (kind, told));
        assert_eq!((seen[0].netns, seen[0].actor.cgroup), (pod.netns, Some(pod.cgroup.id())));
        assert!(seen[0].actor.pid != 0 && !seen[0].actor.comm.is_empty());
    }
}

#[test]
fn plain_sockets_and_refused_ones_are_not_told() {
    if !ready() {
        return;
    }
    let mut stage = Stage::new();
    let pod = stage.pod("a");
    pod.sysctl("ipv4/ping_group_range", "1 0");
    made(&mut stage);
    pod.run(|| {
        for (family, form) in [
            (libc::AF_INET, libc::SOCK_STREAM),
            (libc::AF_INET6, libc::SOCK_DGRAM),
            (libc::AF_UNIX, libc::SOCK_DGRAM),
            (libc::AF_NETLINK, libc::SOCK_RAW),
        ] {
            socket_of(family, form, 0)?;
        }
        // As a pod without the capability.
        // SAFETY: plain system calls on this process's ids.
        if unsafe { libc::setgid(65_534) != 0 || libc::setuid(65_534) != 0 } {
            return Err(io::Error::last_os_error());
        }
        for (family, form, protocol) in [
            (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
            (libc::AF_PACKET, libc::SOCK_RAW, ALL_FRAMES),
        ] {
            if socket_of(family, form, protocol).is_ok() {
                return Err(io::Error::other("it was allowed"));
            }
        }
        Ok(())
    });
    assert_eq!(made(&mut stage), []);
}

#[test]
fn a_process_that_goes_on_is_told_once_an_interval() {
    if !ready() {
        return;
    }
    let interval = Duration::from_secs(2);
    let mut stage = Stage::with_retell(interval);
    let pod = stage.pod("a");
    pod.run(|| {
        for _ in 0..100 {
            socket_of(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)?;
        }
        std::thread::sleep(interval + Duration::from_millis(100));
        socket_of(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP).map(drop)
    });
    let protocols: Vec<_> = made(&mut stage).iter().map(|seen| seen.protocol).collect();
    assert_eq!(protocols, [1, 6]);
}

/// Holds a socket in the pod until the guard goes.
fn hold(pod: &Pod, family: i32, form: i32, protocol: i32) -> Running {
    let (ready, signal) = UnixStream::pair().unwrap();
    let process = pod.start(|| {
        let _socket = socket_of(family, form, protocol)?;
        io::Write::write_all(&mut &signal, b"x")?;
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    });
    io::Read::read_exact(&mut &ready, &mut [0]).unwrap();
    process
}

#[test]
fn packet_sockets_are_found_and_told_once() {
    if !ready() {
        return;
    }
    let (mut stage, mut theirs) = (Stage::new(), Stage::new());
    let pod = stage.pod("a");
    let held = [
        hold(&pod, libc::AF_PACKET, libc::SOCK_RAW, ALL_FRAMES),
        hold(&pod, libc::AF_PACKET, libc::SOCK_DGRAM, 0),
    ];
    assert_eq!(made(&mut stage), [], "no hook shows them");
    stage.kernel.look_for_raw_sockets().unwrap();
    let seen = made(&mut stage);
    assert_eq!(seen.len(), 2, "{seen:?}");
    for (seen, process) in seen.iter().zip(&held) {
        assert_eq!((seen.kind, seen.netns), (RawSocketKind::Packet, pod.netns));
        assert_eq!((seen.actor.cgroup, seen.actor.pid), (Some(pod.cgroup.id()), process.pid as u32));
        assert!(!seen.actor.comm.is_empty());
    }
    stage.kernel.look_for_raw_sockets().unwrap();
    theirs.kernel.look_for_raw_sockets().unwrap();
    assert_eq!((made(&mut stage).len(), made(&mut theirs).len()), (0, 0), "known, or of another node");
    drop(held);
}

#[test]
fn what_was_there_before_the_agent_is_found_at_its_start() {
    if !ready() {
        return;
    }
    let root = Stage::root();
    let pod = Pod::new(&root, "a");
    let held = hold(&pod, libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP);
    let mut stage = Stage::attach(root);
    stage.kernel.scan().unwrap();
    let seen = made(&mut stage);
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!((seen[0].kind, seen[0].protocol, seen[0].actor.pid), (RawSocketKind::Ip, 1, held.pid as u32));
    drop((held, pod));
}

#[test]
fn another_nodes_are_not_told() {
    if !ready() {
        return;
    }
    let (mut ours, mut theirs) = (Stage::new(), Stage::new());
    let pod = theirs.pod("a");
    make(&pod, || socket_of(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP));
    assert_eq!((made(&mut ours).len(), made(&mut theirs).len()), (0, 1));
}
