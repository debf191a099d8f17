//! Connections that were open before the programs, and those that go on: found by looks, with their process and their end.

use std::{
    io,
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    time::{Duration, Instant},
};

use netaudit::{
    kernel::{Feature, Options},
    model::{Direction, OpenConnection, Outcome},
};
use rustix::net::{accept, connect, listen};

use super::{
    open_sockets::{Ways, datagrams, disconnect, hold, listeners_may_connect, look, pair, serve},
    pods::{Pod, Stage, ready},
};
use crate::lab::BpfFs;

/// Of a connection whose server's port is `port`, the one end.
#[track_caller]
fn end(found: &[OpenConnection], direction: Direction, port: u16) -> OpenConnection {
    let is = |it: &&OpenConnection| {
        it.unknown_end.is_none() && it.seen.direction == direction && it.seen.port() == port
    };
    let ends: Vec<_> = found.iter().filter(is).collect();
    assert_eq!(ends.len(), 1, "{direction} {port} in {found:#?}");
    *ends[0]
}

/// Pods that are joined, without an agent yet.
fn joined() -> (super::pods::Cgroup, Pod, Pod) {
    let root = Stage::root();
    let (client, server) = (Pod::new(&root, "client"), Pod::new(&root, "server"));
    client.join(&server);
    (root, client, server)
}

#[test]
fn both_ends_of_every_kind_of_connection_from_before_are_known() {
    if !ready() {
        return;
    }
    let (root, client, server) = joined();
    let plain = Ways::PLAIN;
    let cases = [
        ("v4", Ways::at("0.0.0.0:1001"), plain, "10.9.0.2:1001"),
        ("v4 to an address", Ways::at("10.9.0.2:1002"), plain, "10.9.0.2:1002"),
        ("v6", Ways::at("[::]:1003"), plain, "[fd09::2]:1003"),
        ("v4 to a dual-stack listener", Ways::at("[::]:1004"), plain, "10.9.0.2:1004"),
        ("a mapped address", Ways::at("0.0.0.0:1005"), plain, "[::ffff:10.9.0.2]:1005"),
        ("reused address", Ways { reuse_address: true, ..Ways::at("0.0.0.0:1006") }, plain, "10.9.0.2:1006"),
        ("reused port", Ways { reuse_port: true, ..Ways::at("0.0.0.0:1007") }, plain, "10.9.0.2:1007"),
        ("no backlog", Ways { backlog: 0, ..Ways::at("0.0.0.0:1008") }, plain, "10.9.0.2:1008"),
        ("no backlog, v6", Ways { backlog: 0, ..Ways::at("[::]:1009") }, plain, "[fd09::2]:1009"),
        ("a device", Ways { device: Some("v0"), ..Ways::at("0.0.0.0:1010") }, plain, "10.9.0.2:1010"),
        ("client at an address", Ways::at("0.0.0.0:1011"), Ways::at("10.9.0.1:0"), "10.9.0.2:1011"),
        ("client at any address", Ways::at("0.0.0.0:1012"), Ways::at("0.0.0.0:0"), "10.9.0.2:1012"),
        ("client at a port", Ways::at("0.0.0.0:1013"), Ways::at("10.9.0.1:999"), "10.9.0.2:1013"),
        (
            "client whose port comes late",
            Ways::at("0.0.0.0:1014"),
            Ways { late_port: true, ..Ways::at("10.9.0.1:0") },
            "10.9.0.2:1014",
        ),
        (
            "client that reuses ports",
            Ways::at("0.0.0.0:1015"),
            Ways { reuse_address: true, reuse_port: true, ..Ways::at("10.9.0.1:998") },
            "10.9.0.2:1015",
        ),
        (
            "client with a device",
            Ways::at("[::]:1016"),
            Ways { device: Some("v0"), ..plain },
            "[fd09::2]:1016",
        ),
        ("client at an address, v6", Ways::at("[::]:1017"), Ways::at("[fd09::1]:0"), "[fd09::2]:1017"),
        (
            "multipath",
            Ways { multipath: true, ..Ways::at("0.0.0.0:1018") },
            Ways { multipath: true, ..plain },
            "10.9.0.2:1018",
        ),
        (
            "multipath that fell back",
            Ways::at("0.0.0.0:1019"),
            Ways { multipath: true, ..plain },
            "10.9.0.2:1019",
        ),
    ];
    let held: Vec<_> = cases
        .iter()
        .map(|(_, listens, connects, to)| pair(&client, &server, *listens, *connects, to))
        .collect();

    let mut stage = Stage::attach(root);
    stage.kernel.scan().unwrap();
    let (ours, theirs) = (look(&mut stage, &client), look(&mut stage, &server));
    assert_eq!((ours.len(), theirs.len()), (cases.len(), cases.len()), "{ours:#?} {theirs:#?}");
    for ((name, _, _, to), (connected, accepted)) in cases.iter().zip(&held) {
        let to: std::net::SocketAddr = to.parse().unwrap();
        let egress = end(&ours, Direction::Egress, to.port());
        let ingress = end(&theirs, Direction::Ingress, to.port());
        assert_eq!(egress.seen.outcome, Outcome::Established, "{name}");
        assert_eq!(ingress.seen.outcome, Outcome::Accepted, "{name}");
        assert_eq!(egress.seen.remote.ip(), to.ip().to_canonical(), "{name}");
        assert_eq!(ingress.seen.local.ip(), to.ip().to_canonical(), "{name}");
        assert_eq!(ingress.seen.remote, egress.seen.local, "{name}");
        assert!(!egress.is_told, "{name}");
        for (seen, process, pod) in [(egress.seen, connected, &client), (ingress.seen, accepted, &server)] {
            assert_eq!(seen.netns, pod.netns, "{name}");
            assert_eq!(seen.actor.cgroup, Some(pod.cgroup.id()), "{name}");
            assert_eq!(seen.actor.pid, process.pid(), "{name}");
            assert!(!seen.actor.comm.is_empty() && seen.socket != 0, "{name}");
        }
    }
    stage.drain();
    assert_eq!((stage.flows(&client).len(), stage.flows(&server).len()), (0, 0), "a look is no record");
    drop(held);
    drop((client, server));
}

#[test]
fn what_was_found_is_told_by_every_look_until_it_is_said_to_be_told() {
    if !ready() {
        return;
    }
    let (root, client, server) = joined();
    let held = pair(&client, &server, Ways::at("0.0.0.0:1001"), Ways::PLAIN, "10.9.0.2:1001");
    let mut stage = Stage::attach(root);
    // A scan that nobody reads takes nothing for told.
    for _ in 0..3 {
        stage.kernel.scan().unwrap();
    }
    let told = |stage: &mut Stage| -> Vec<bool> {
        look(stage, &client).iter().chain(&look(stage, &server)).map(|it| it.is_told).collect()
    };
    let before = stage.kernel.now();
    let first = look(&mut stage, &client)[0];
    std::thread::sleep(Duration::from_millis(5));
    let second = look(&mut stage, &client)[0];
    assert!(!first.is_told && !second.is_told);
    assert_eq!(first.seen.at, second.seen.at, "it began when it was found");
    assert!(first.looked < second.looked);
    assert_eq!(told(&mut stage), [false, false]);
    // Whoever was done before that cannot have told it.
    stage.kernel.told_open(before).unwrap();
    assert_eq!(told(&mut stage), [false, false]);
    stage.kernel.told_open(second.looked).unwrap();
    assert_eq!(told(&mut stage), [true, true]);
    drop((held, client, server));
}

#[test]
fn what_hooks_told_is_known_as_told_with_what_was_asked_for() {
    if !ready() {
        return;
    }
    let mut stage = Stage::new();
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    client.join(&server);
    let multipath = |ways| Ways { multipath: true, ..ways };
    let cases = [
        (Ways::at("0.0.0.0:1001"), Ways::PLAIN, "10.9.0.2:1001"),
        (Ways::at("[::]:1002"), Ways::PLAIN, "10.9.0.2:1002"),
        (Ways::at("[::]:1003"), Ways::at("[fd09::1]:0"), "[fd09::2]:1003"),
        (multipath(Ways::at("0.0.0.0:1004")), multipath(Ways::PLAIN), "10.9.0.2:1004"),
    ];
    let held: Vec<_> =
        cases.iter().map(|(listens, connects, to)| pair(&client, &server, *listens, *connects, to)).collect();
    let flows = stage.expect(&client, cases.len());
    stage.expect(&server, cases.len());
    let (ours, theirs) = (look(&mut stage, &client), look(&mut stage, &server));
    assert_eq!((ours.len(), theirs.len()), (cases.len(), cases.len()), "{ours:#?} {theirs:#?}");
    assert!(ours.iter().chain(&theirs).all(|it| it.is_told), "{ours:#?} {theirs:#?}");
    for port in 1001..1004 {
        let flow = flows.iter().find(|flow| flow.port() == port).unwrap();
        let found = end(&ours, Direction::Egress, port);
        assert_eq!((found.seen.socket, found.seen.sequence), (flow.socket, flow.sequence));
        assert_eq!((found.seen.at, found.seen.local), (flow.at, flow.local));
        assert_eq!(found.seen.actor, flow.actor);
        end(&theirs, Direction::Ingress, port);
    }
    drop(held);
}

#[test]
fn a_listener_that_nothing_marked_accepts_what_is_told_once() {
    if !ready() {
        return;
    }
    let root = Stage::root();
    let pod = Pod::new(&root, "a");
    let mut server = serve(&pod, Ways::at("127.0.0.1:1001"), 1, true);
    // No scan: the listener has no mark.
    let mut stage = Stage::attach(root);
    let client = hold(&pod, |_| Ways::PLAIN.connect("127.0.0.1:1001"));
    server.next();
    stage.expect(&pod, 2);
    let found = look(&mut stage, &pod);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found.iter().all(|it| it.is_told), "{found:#?}");
    assert_eq!(end(&found, Direction::Ingress, 1001).seen.actor.pid, server.pid());
    drop((server, client, pod));
}

#[test]
fn a_multipath_socket_from_before_that_connects_after_is_told_once() {
    if !ready() {
        return;
    }
    let (root, client, server) = joined();
    let multipath = Ways { multipath: true, ..Ways::at("0.0.0.0:1001") };
    let mut accepts = serve(&server, multipath, 1, true);
    let mut connects = hold(&client, |line| {
        let socket = super::pods::socket_of(libc::AF_INET, libc::SOCK_STREAM, 262)?;
        line.done()?;
        connect(&socket, &"10.9.0.2:1001".parse::<std::net::SocketAddr>().unwrap())?;
        Ok(socket)
    });
    let mut stage = Stage::attach(root);
    stage.kernel.scan().unwrap();
    connects.next();
    accepts.next();
    stage.expect(&client, 1);
    stage.expect(&server, 1);
    for (pod, direction) in [(&client, Direction::Egress), (&server, Direction::Ingress)] {
        let found = look(&mut stage, pod);
        assert!(end(&found, direction, 1001).is_told, "{found:#?}");
    }
    drop((accepts, connects, client, server));
}

#[test]
fn sockets_that_were_something_else_before_are_what_they_are_now() {
    if !ready() {
        return;
    }
    let (root, client, server) = joined();
    // Listened without and with a port of its own; then it connected.
    let listeners: &[_] = if listeners_may_connect("sockets that listened, and connected") {
        &[None, Some("10.9.0.1:900")]
    } else {
        &[]
    };
    let count = 2 + listeners.len();
    let mut accepts = serve(&server, Ways::at("0.0.0.0:1001"), count, true);
    let to: std::net::SocketAddr = "10.9.0.2:1001".parse().unwrap();
    let listened = hold(&client, |_| {
        let mut all = Vec::new();
        for bound in listeners {
            let socket = match bound {
                None => {
                    let socket = super::pods::socket(libc::AF_INET, libc::SOCK_STREAM)?;
                    listen(&socket, 5)?;
                    socket
                }
                Some(bound) => Ways::at(bound).listen()?,
            };
            disconnect(&socket)?;
            connect(&socket, &to)?;
            all.push(socket);
        }
        Ok(all)
    });
    // Was accepted before.
    let accepted = hold(&client, |_| {
        let listener = Ways::at("0.0.0.0:2001").listen()?;
        let _first = TcpStream::connect("127.0.0.1:2001")?;
        let socket = accept(&listener)?;
        disconnect(&socket)?;
        connect(&socket, &to)?;
        Ok((listener, socket))
    });
    // Connected twice.
    let twice = hold(&client, |_| {
        let listener = TcpListener::bind("127.0.0.1:2002")?;
        let socket = Ways::PLAIN.connect("127.0.0.1:2002")?;
        disconnect(&socket)?;
        connect(&socket, &to)?;
        Ok((listener, socket))
    });
    accepts.next();
    let mut stage = Stage::attach(root);
    let found = look(&mut stage, &client);
    let to_server: Vec<_> = found.iter().filter(|it| it.seen.remote == to).collect();
    assert_eq!(to_server.len(), count, "{found:#?}");
    assert!(
        to_server.iter().all(|it| it.unknown_end.is_none() && it.seen.direction == Direction::Egress),
        "{to_server:#?}"
    );
    let there = look(&mut stage, &server);
    assert!(there.iter().all(|it| it.seen.direction == Direction::Ingress), "{there:#?}");
    drop((listened, accepted, twice, accepts, client, server));
}

#[test]
fn what_could_be_either_is_said_to_be_unknown() {
    if !ready() || !listeners_may_connect("a socket that listened, and connected") {
        return;
    }
    let (root, client, server) = joined();
    let mut accepts = serve(&server, Ways::at("0.0.0.0:1001"), 1, true);
    // It listened, gave its port back, was bound to another of the kernel's choice and connected.
    let odd = hold(&client, |_| {
        let socket = super::pods::socket(libc::AF_INET, libc::SOCK_STREAM)?;
        listen(&socket, 5)?;
        disconnect(&socket)?;
        rustix::net::bind(&socket, &"10.9.0.1:0".parse::<std::net::SocketAddr>().unwrap())?;
        connect(&socket, &"10.9.0.2:1001".parse::<std::net::SocketAddr>().unwrap())?;
        Ok(socket)
    });
    accepts.next();
    let mut stage = Stage::attach(root);
    let found = look(&mut stage, &client);
    assert_eq!(found.iter().map(|it| it.unknown_end).collect::<Vec<_>>(), [Some("ambiguous")], "{found:#?}");
    drop((odd, accepts, client, server));
}

#[test]
fn whoever_shares_a_socket_shares_one_cookie_and_noise_is_left_out() {
    if !ready() {
        return;
    }
    let root = Stage::root();
    let pod = Pod::new(&root, "a");
    let path = std::env::temp_dir().join(format!("netaudit-open-{}", std::process::id()));
    let (there, here) = UnixStream::pair().unwrap();
    let other = pod.start(|| {
        // A descriptor that was passed to this process, which made nothing itself.
        let _passed = receive(&here)?;
        io::Write::write_all(&mut &here, b"x")?;
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    });
    let held = hold(&pod, |_| {
        let listener = TcpListener::bind("127.0.0.1:1001")?;
        let client = TcpStream::connect("127.0.0.1:1001")?;
        let served = listener.accept()?.0;
        let copies = (client.try_clone()?, client.try_clone()?);
        send(&there, client.as_raw_fd())?;
        // SAFETY: the child only sleeps.
        let child = unsafe { libc::fork() };
        if child == 0 {
            std::thread::sleep(Duration::from_secs(60));
        }
        // Noise: nothing of it is an open connection.
        let _ = std::fs::remove_file(&path);
        let unix = (UnixListener::bind(&path)?, UnixStream::connect(&path)?, UnixStream::pair()?);
        let idle = super::pods::socket(libc::AF_INET, libc::SOCK_STREAM)?;
        let plain = UdpSocket::bind("127.0.0.1:0")?;
        let packets = super::pods::socket(libc::AF_NETLINK, libc::SOCK_RAW)?;
        // Closed by its program here and there: nobody holds it.
        let gone = TcpStream::connect("127.0.0.1:1001")?;
        drop((listener.accept()?, gone));
        Ok((listener, client, served, copies, (unix, idle, plain, packets)))
    });
    io::Read::read_exact(&mut &there, &mut [0]).unwrap();
    let mut stage = Stage::attach(root);
    let found = look(&mut stage, &pod);
    let egress: Vec<_> = found.iter().filter(|it| it.seen.direction == Direction::Egress).collect();
    let ingress: Vec<_> = found.iter().filter(|it| it.seen.direction == Direction::Ingress).collect();
    // Three descriptors in each of two processes, and one in a third.
    assert_eq!((egress.len(), ingress.len()), (7, 2), "{found:#?}");
    for same in [&egress, &ingress] {
        assert!(same.iter().all(|it| it.seen.socket == same[0].seen.socket), "{same:#?}");
        assert!(
            same.iter().all(|it| it.seen.actor == same[0].seen.actor),
            "whoever is found first: {same:#?}"
        );
    }
    assert_ne!(egress[0].seen.socket, ingress[0].seen.socket);
    let _ = std::fs::remove_file(&path);
    drop((held, other, pod));
}

#[test]
fn half_closed_is_open_and_closed_by_both_is_not() {
    if !ready() {
        return;
    }
    let root = Stage::root();
    let pod = Pod::new(&root, "a");
    let mut held = hold(&pod, |line| {
        let listener = TcpListener::bind("127.0.0.1:1001")?;
        let client = TcpStream::connect("127.0.0.1:1001")?;
        let served = listener.accept()?.0;
        drop(listener);
        client.shutdown(std::net::Shutdown::Write)?;
        std::thread::sleep(Duration::from_millis(50));
        line.done()?;
        served.shutdown(std::net::Shutdown::Write)?;
        std::thread::sleep(Duration::from_millis(50));
        Ok((client, served))
    });
    let mut stage = Stage::attach(root);
    // The listener is gone.
    let found = look(&mut stage, &pod);
    assert_eq!(found.len(), 2, "{found:#?}");
    end(&found, Direction::Egress, 1001);
    end(&found, Direction::Ingress, 1001);
    held.next();
    let found = look(&mut stage, &pod);
    assert_eq!(found, [], "TIME_WAIT and CLOSE");
    drop((held, pod));
}

#[test]
fn another_nodes_connections_are_left_alone() {
    if !ready() {
        return;
    }
    let (mut ours, theirs) = (Stage::new(), Stage::new());
    let pod = theirs.pod("a");
    let held = pair(&pod, &pod, Ways::at("127.0.0.1:1001"), Ways::PLAIN, "127.0.0.1:1001");
    assert_eq!(look(&mut ours, &pod), []);
    drop(held);
}

#[test]
fn with_pins_what_is_told_stays_told() {
    if !ready() {
        return;
    }
    let files = BpfFs::mount().unwrap();
    let options = || Options { ring_bytes: 1 << 20, pin_directory: Some(files.pins()), ..Options::default() };
    let root = Stage::root();
    let pod = Pod::new(&root, "a");
    let old = pair(&pod, &pod, Ways::at("127.0.0.1:1001"), Ways::PLAIN, "127.0.0.1:1001");
    let mut stage = Stage::with(root, options());
    let new = pair(&pod, &pod, Ways::at("127.0.0.1:1002"), Ways::PLAIN, "127.0.0.1:1002");
    let told = |found: &[OpenConnection]| -> Vec<(u16, bool)> {
        let mut told: Vec<_> = found.iter().map(|it| (it.seen.port(), it.is_told)).collect();
        told.sort();
        told
    };
    let expected = |old| [(1001, old), (1001, old), (1002, true), (1002, true)];
    assert_eq!(told(&look(&mut stage, &pod)), expected(false));
    // Killed after looks that it may not have told of, and so is the next one.
    assert_eq!(told(&look(&mut stage, &pod)), expected(false));
    for _ in 0..2 {
        let (root, _) = stage.kill();
        stage = Stage::with(root, options());
        stage.kernel.scan().unwrap();
        let found = look(&mut stage, &pod);
        assert_eq!(told(&found), expected(false));
        assert!(found.iter().all(|it| it.seen.maybe_repeated != it.is_told), "{found:#?}");
    }
    let latest = look(&mut stage, &pod).iter().map(|it| it.looked).max().unwrap();
    stage.kernel.told_open(latest).unwrap();
    let (root, _) = stage.kill();
    let mut stage = Stage::with(root, options());
    assert_eq!(told(&look(&mut stage, &pod)), expected(true));
    drop((old, new, pod));
}

#[test]
fn a_connected_datagram_socket_from_before_is_told_when_it_sends() {
    if !ready() {
        return;
    }
    let (root, client, server) = joined();
    let mut clients: Vec<_> =
        [("10.9.0.2:53", None), ("[fd09::2]:53", None), ("10.9.0.2:54", Some("10.9.0.1:54"))]
            .into_iter()
            .map(|(to, bound)| {
                hold(&client, move |line| {
                    let to: std::net::SocketAddr = to.parse().unwrap();
                    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
                    let socket = datagrams(family)?;
                    if let Some(bound) = bound {
                        rustix::net::bind(&socket, &bound.parse::<std::net::SocketAddr>().unwrap())?;
                    }
                    connect(&socket, &to)?;
                    rustix::net::send(&socket, b"before", rustix::net::SendFlags::empty())?;
                    line.done()?;
                    // Nobody may be there.
                    let _ = rustix::net::send(&socket, b"after", rustix::net::SendFlags::empty());
                    let _ = rustix::net::send(&socket, b"again", rustix::net::SendFlags::empty());
                    Ok(socket)
                })
            })
            .collect();
    let mut stage = Stage::attach(root);
    stage.kernel.scan().unwrap();
    clients.iter_mut().for_each(super::open_sockets::Held::next);
    // Of the one with a port of its own it is not known whether it asks or answers.
    let flows = stage.expect(&client, 2);
    for (flow, client) in flows.iter().zip(&clients) {
        assert_eq!((flow.outcome, flow.remote.port()), (Outcome::Sent, 53), "{flow:#?}");
        assert_eq!(flow.actor.pid, client.pid());
        assert!(!flow.local.ip().is_unspecified());
    }
    drop((clients, client, server));
}

/// Not a test of speed, but it prints what a look costs: a million files a second would be 1 µs each.
#[test]
fn thousands_are_found_whole_and_soon() {
    if !ready() {
        return;
    }
    let count: usize = std::env::var("NETAUDIT_OPEN").ok().and_then(|it| it.parse().ok()).unwrap_or(2_000);
    let root = Stage::root();
    let pod = Pod::new(&root, "a");
    // Few enough descriptors for a process without any right to more.
    let each = 400;
    let held: Vec<_> = (0..count.div_ceil(each))
        .map(|process| {
            let here = each.min(count - process * each);
            let pod = &pod;
            hold(pod, move |_| {
                let address = format!("127.0.0.1:{}", 1_001 + process);
                let listener = TcpListener::bind(&address)?;
                let mut all = Vec::new();
                for _ in 0..here {
                    all.push((TcpStream::connect(&address)?, listener.accept()?.0));
                }
                Ok((listener, all))
            })
        })
        .collect();
    let mut stage = Stage::attach(root);
    for turn in ["first", "second", "third"] {
        let begun = Instant::now();
        let found = look(&mut stage, &pod);
        let took = begun.elapsed();
        let cookies: std::collections::HashSet<_> = found.iter().map(|it| it.seen.socket).collect();
        assert_eq!((found.len(), cookies.len()), (2 * count, 2 * count));
        assert!(found.iter().all(|it| it.unknown_end.is_none() && it.is_told == (turn == "third")));
        assert!(found.iter().all(|it| !it.seen.maybe_repeated));
        if turn == "second" {
            stage.kernel.told_open(stage.kernel.now()).unwrap();
        }
        eprintln!("{turn} look at {} sockets: {took:?}, {:?} each", found.len(), took / found.len() as u32);
    }
    let begun = Instant::now();
    stage.kernel.scan().unwrap();
    eprintln!("a scan that tells nothing: {:?}", begun.elapsed());
    drop((held, pod));
}

#[test]
fn whether_connections_can_be_looked_at_is_said() {
    if !ready() {
        return;
    }
    let stage = Stage::new();
    let said = stage.kernel.features().iter().find(|it| it.name == Feature::CONNECTIONS).unwrap();
    assert_eq!(said.absent, None);
}

/// Passes a descriptor over a socket.
fn send(over: &UnixStream, descriptor: i32) -> io::Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    // SAFETY: the caller's descriptor is open for the whole call.
    let borrowed = [unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) }];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&borrowed));
    sendmsg(over, &[io::IoSlice::new(b"x")], &mut control, SendFlags::empty())?;
    Ok(())
}

/// Takes a descriptor that was passed.
fn receive(over: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(over, &mut [io::IoSliceMut::new(&mut byte)], &mut control, RecvFlags::empty())?;
    Ok(control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
            _ => Vec::new(),
        })
        .collect())
}
