//! What surrounds the flows: cgroups that come and go, what was there before the agent, and records that are lost.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    time::Duration,
};

use netaudit::{
    kernel::{Event, Kernel, LoadError, Options},
    model::{CgroupId, Outcome},
};

use super::pods::{Pod, Stage, check, path_of, ready};

#[test]
fn cgroups_that_live_for_an_instant_keep_their_names() {
    if !ready() {
        return;
    }
    let mut stage = Stage::new();
    let root = stage.kernel.cgroup_root().to_owned();
    let mut made = Vec::new();
    for number in 0..50 {
        let pod = root.join(format!("pod{number}"));
        let container = pod.join("0123456789abcdef".repeat(4));
        fs::create_dir_all(&container).unwrap();
        made.push((CgroupId(fs::metadata(&container).unwrap().ino()), path_of(&container)));
        fs::remove_dir(&container).unwrap();
        fs::remove_dir(&pod).unwrap();
    }
    stage.wait(|events| events.len() >= 200);
    for (id, path) in made {
        let born = stage.events.iter().position(|event| {
            let made = matches!(event, Event::Cgroup { made: Some(_), .. });
            made && matches!(event, Event::Cgroup { id: of, path: at, .. } if (*of, at) == (id, &path))
        });
        let died = stage
            .events
            .iter()
            .position(|event| matches!(event, Event::CgroupGone { id: gone, .. } if *gone == id));
        assert!(born.is_some() && born < died, "{path}: made at {born:?}, gone at {died:?}");
    }
}

#[test]
fn a_cgroup_is_known_before_the_flows_of_its_processes() {
    if !ready() {
        return;
    }
    let mut stage = Stage::new();
    let pod = stage.pod("short");
    pod.run(|| TcpStream::connect("127.0.0.1:9").map(drop).or(Ok(())));
    stage.expect(&pod, 1);
    let id = pod.cgroup.id();
    let born = stage
        .events
        .iter()
        .position(|event| matches!(event, Event::Cgroup { id: known, .. } if *known == id));
    let flow = stage.events.iter().position(|event| matches!(event, Event::Flow(_)));
    assert!(born.is_some() && born < flow, "{:#?}", stage.events);
}

#[test]
fn other_parts_of_the_hierarchy_are_not_told() {
    if !ready() {
        return;
    }
    let (mut stage, other) = (Stage::new(), Stage::new());
    let pod = other.pod("elsewhere");
    pod.run(|| TcpStream::connect("127.0.0.1:9").map(drop).or(Ok(())));
    std::thread::sleep(Duration::from_millis(100));
    stage.drain();
    assert_eq!(stage.events, []);
    drop(pod);
}

#[test]
fn what_was_there_before_is_scanned_and_servers_are_marked() {
    if !ready() {
        return;
    }
    let root = Stage::root();
    let pod = Pod::new(&root, "old");
    let (ready, signal) = UnixStream::pair().unwrap();
    let server = pod.start(|| {
        let tcp = TcpListener::bind("127.0.0.1:8080")?;
        let udp = UdpSocket::bind("127.0.0.1:53")?;
        io::Write::write_all(&mut &signal, b"x")?;
        tcp.accept()?;
        let mut buffer = [0; 16];
        let (length, client) = udp.recv_from(&mut buffer)?;
        udp.send_to(&buffer[..length], client)?;
        Ok(())
    });
    io::Read::read_exact(&mut &ready, &mut [0]).unwrap();

    let mut stage = Stage::attach(root);
    let events = stage.kernel.scan().unwrap();
    let id = pod.cgroup.id();
    assert!(
        events.contains(&Event::Cgroup { id, path: path_of(&pod.cgroup.path), made: None }),
        "{events:#?}"
    );
    assert!(
        events.contains(&Event::Task { netns: pod.netns, cgroup: id, pid: pod.pid as u32 }),
        "{events:#?}"
    );
    assert!(
        events.contains(&Event::Task { netns: pod.netns, cgroup: id, pid: server.pid as u32 }),
        "{events:#?}"
    );
    assert!(
        events.iter().all(|event| !matches!(event, Event::Task { pid, .. } if *pid == std::process::id())),
        "the test itself is in no cgroup of the stage"
    );

    pod.run(|| {
        let _tcp = TcpStream::connect("127.0.0.1:8080")?;
        let udp = UdpSocket::bind("127.0.0.1:0")?;
        udp.send_to(b"hello", "127.0.0.1:53")?;
        udp.recv_from(&mut [0; 16])?;
        Ok(())
    });
    let pid = server.pid as u32;
    server.finish();
    let flows = stage.expect(&pod, 4);
    for outcome in [Outcome::Accepted, Outcome::Received] {
        let flow = flows.iter().find(|flow| flow.outcome == outcome).unwrap();
        assert_eq!((flow.actor.cgroup, flow.actor.pid), (Some(id), pid), "{flow:#?}");
    }
    drop(pod);
}

#[test]
fn answers_to_what_was_asked_before_are_no_flows() {
    if !ready() {
        return;
    }
    let root = Stage::root();
    let pod = Pod::new(&root, "old");
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let server = pod.start(|| {
        let server = UdpSocket::bind("127.0.0.1:53")?;
        let client = UdpSocket::bind("127.0.0.1:0")?;
        client.send_to(b"?", "127.0.0.1:53")?;
        let (_, from) = server.recv_from(&mut [0; 16])?;
        io::Write::write_all(&mut &theirs, b"x")?;
        io::Read::read_exact(&mut &theirs, &mut [0])?;
        server.send_to(b"!", from)?;
        // What it asks itself is a flow all the same.
        server.send_to(b"?", "127.0.0.1:123").map(drop)
    });
    io::Read::read_exact(&mut ours, &mut [0]).unwrap();
    let mut stage = Stage::attach(root);
    stage.kernel.scan().unwrap();
    io::Write::write_all(&mut ours, b"x").unwrap();
    server.finish();
    let flows = stage.expect(&pod, 1);
    assert_eq!((flows[0].outcome, flows[0].remote.port()), (Outcome::Sent, 123));
}

#[test]
fn an_unmarked_listener_still_tells_its_cgroup() {
    if !ready() {
        return;
    }
    let root = Stage::root();
    let pod = Pod::new(&root, "old");
    let (ready, signal) = UnixStream::pair().unwrap();
    let server = pod.start(|| {
        let listener = TcpListener::bind("127.0.0.1:8080")?;
        io::Write::write_all(&mut &signal, b"x")?;
        listener.accept().map(drop)
    });
    io::Read::read_exact(&mut &ready, &mut [0]).unwrap();
    // No scan, so nothing marks it.
    let mut stage = Stage::attach(root);
    pod.run(|| TcpStream::connect("127.0.0.1:8080").map(drop));
    server.finish();
    let flows = stage.expect(&pod, 2);
    let flow = flows.iter().find(|flow| flow.outcome == Outcome::Accepted).unwrap();
    assert_eq!((flow.actor.cgroup, flow.actor.pid), (Some(pod.cgroup.id()), 0));
    drop(pod);
}

#[test]
fn nothing_is_lost_where_there_is_room() {
    if !ready() {
        return;
    }
    const CONNECTIONS: usize = 3_000;
    let mut stage = Stage::with_ring(4 << 20);
    let pod = stage.pod("busy");
    pod.run(|| {
        let listener = TcpListener::bind("127.0.0.1:8080")?;
        for _ in 0..CONNECTIONS {
            let _client = TcpStream::connect("127.0.0.1:8080")?;
            listener.accept()?;
        }
        Ok(())
    });
    let flows = stage.expect(&pod, 2 * CONNECTIONS);
    let sockets: std::collections::HashSet<_> =
        flows.iter().map(|flow| (flow.socket, flow.sequence)).collect();
    assert_eq!(sockets.len(), 2 * CONNECTIONS, "each is told apart");
    assert_eq!(stage.kernel.losses(), []);
}

#[test]
fn a_filling_ring_wakes_the_reader_and_a_single_record_does_not() {
    if !ready() {
        return;
    }
    let mut stage = Stage::with_ring(4 << 20);
    let pod = stage.pod("busy");
    stage.drain();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refused = |count: usize| {
        pod.run(|| {
            for _ in 0..count {
                assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, 9)).is_err());
            }
            Ok(())
        });
    };
    let woken = |stage: &Stage, within: Duration| {
        runtime.block_on(async { tokio::time::timeout(within, stage.kernel.ready()).await.is_ok() })
    };
    // What does not come is waited for briefly, and what must come for as long as a slow machine takes.
    let (brief, long) = (Duration::from_millis(300), Duration::from_secs(30));
    // The registration itself may find the ring readable once.
    refused(1);
    woken(&stage, brief);
    stage.drain();
    refused(1);
    assert!(!woken(&stage, brief), "one record wakes nobody");
    // A quarter of the ring is 7,711 records of 128 bytes and their headers.
    refused(8_000);
    assert!(woken(&stage, long), "a filling ring wakes");
}

#[test]
fn loading_says_what_is_wrong() {
    if !ready() {
        return;
    }
    let at = |path: &str| {
        Kernel::load(&Options { cgroup_root: Some(path.into()), ..Options::default() }).map(drop)
    };
    let missing = at("/no/such/cgroup").unwrap_err();
    assert!(matches!(missing, LoadError::CgroupRoot { .. }), "{missing}");
    let foreign = at("/proc").unwrap_err();
    assert!(matches!(foreign, LoadError::NotCgroup2 { .. }), "{foreign}");
    assert!(foreign.to_string().contains("/proc"));
}

#[test]
fn three_capabilities_suffice_and_a_missing_one_is_named() {
    if !ready() {
        return;
    }
    let stage = Stage::new();
    let pod = stage.pod("rights");
    let options = Options { cgroup_root: Some(stage.kernel.cgroup_root().to_owned()), ..Options::default() };
    let (net_admin, perfmon, bpf) = (1 << 12, 1_u64 << 38, 1_u64 << 39);
    // As the DaemonSet runs it: some user, and these three.
    pod.run(|| {
        become_user(net_admin | perfmon | bpf)?;
        let mut kernel = Kernel::load(&options).map_err(io::Error::other)?;
        let events = kernel.scan().map_err(io::Error::other)?;
        assert!(events.iter().any(|event| matches!(event, Event::Task { .. })), "{events:?}");
        assert!(kernel.features().iter().all(|feature| feature.absent.is_none()), "{:?}", kernel.features());
        Ok(())
    });
    for (kept, named) in
        [(net_admin | bpf, "CAP_PERFMON"), (perfmon | bpf, "CAP_NET_ADMIN"), (net_admin | perfmon, "CAP_BPF")]
    {
        pod.run(|| {
            become_user(kept)?;
            match Kernel::load(&options) {
                Err(error @ LoadError::Capabilities { .. })
                    if error.to_string().starts_with(&format!("missing {named}:")) =>
                {
                    Ok(())
                }
                Err(error) => Err(io::Error::other(error)),
                Ok(_) => Err(io::Error::other("it loaded")),
            }
        });
    }
}

/// Gives up root for the user `nobody` with `capabilities` only.
fn become_user(capabilities: u64) -> io::Result<()> {
    const NOBODY: u32 = 65_534;
    // `_LINUX_CAPABILITY_VERSION_3`, and this thread; then effective, permitted and inheritable, low halves first.
    let header: [u32; 2] = [0x2008_0522, 0];
    let (low, high) = (capabilities as u32, (capabilities >> 32) as u32);
    let data: [u32; 6] = [low, low, 0, high, high, 0];
    // SAFETY: plain system calls; the arrays have the layout that `capset` asks for.
    unsafe {
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 1))?;
        check(libc::setresuid(NOBODY, NOBODY, NOBODY))?;
        check(libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) as i32)
    }
}
