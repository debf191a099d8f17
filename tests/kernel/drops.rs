//! Packets that a filter drops: which are told, how often, and by whose agent.

use std::{
    io,
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use netaudit::{
    kernel::{Event, Feature, RecordCount},
    model::{DropReason, PacketDrop, Protocol},
};

use super::pods::{Pod, Stage, check, ready, skip};

const NETFILTER: DropReason = DropReason("NETFILTER_DROP");

/// A pod `a` at `10.9.0.1` and `fd09::1`, and its neighbour `b` at `.2`, each with a filter.
struct Pair {
    a: Pod,
    b: Pod,
    // Last: pods leave the tree before it goes.
    stage: Stage,
}

impl Pair {
    fn new() -> Option<Self> {
        if !ready() {
            return None;
        }
        if std::process::Command::new("nft").arg("--version").output().is_err() {
            skip("no nft: apt-get install nftables");
            return None;
        }
        let stage = Stage::new();
        assert!(stage.kernel.features().contains(&Feature { name: Feature::DROPS, absent: None }));
        let (a, b) = (stage.pod("a"), stage.pod("b"));
        a.join(&b);
        a.sysctl("ipv4/tcp_syn_retries", "1");
        Some(Self { stage, a, b })
    }

    /// Waits for `count` drops, and a moment more for one too many.
    #[track_caller]
    fn expect(&mut self, count: usize) -> Vec<PacketDrop> {
        expect(&mut self.stage, count)
    }
}

#[track_caller]
fn expect(stage: &mut Stage, count: usize) -> Vec<PacketDrop> {
    let is_drop = |event: &&Event| matches!(event, Event::Drop(_));
    stage.wait(|events| events.iter().filter(is_drop).count() >= count);
    std::thread::sleep(Duration::from_millis(50));
    stage.drain();
    let drops: Vec<_> = stage
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Drop(drop) => Some(*drop),
            _ => None,
        })
        .collect();
    assert_eq!(drops.len(), count, "{drops:#?}");
    stage.events.clear();
    drops
}

fn told(stage: &Stage, told: &str) -> u64 {
    stage.kernel.drop_counts().iter().find(|count| count.told == told).map_or(u64::MAX, |count| count.count)
}

/// Makes a pod drop what matches `rule` at `hook`.
fn filter(pod: &Pod, hook: &str, rule: &str) {
    pod.command(
        "nft",
        &[&format!("add table inet t; add chain inet t c {{ type filter hook {hook} priority 0; }}")],
    );
    pod.command("nft", &[&format!("add rule inet t c {rule}")]);
}

#[test]
fn a_syn_is_told_once_however_often_it_is_sent() {
    let Some(mut pair) = Pair::new() else { return };
    filter(&pair.a, "output", "tcp dport 81 drop");
    for to in ["10.9.0.2:81", "[fd09::2]:81", "[::ffff:10.9.0.2]:81"] {
        let repeated = told(&pair.stage, "repeated");
        pair.a.run(|| match TcpStream::connect(to) {
            Ok(_) => Err(io::Error::other("it connected")),
            Err(_) => Ok(()),
        });
        let drop = pair.expect(1).remove(0);
        let to: SocketAddr = to.parse().unwrap();
        assert_eq!(drop.destination, SocketAddr::new(to.ip().to_canonical(), 81));
        assert_eq!((drop.protocol, drop.reason, drop.opens), (Protocol::Tcp, NETFILTER, true));
        assert_eq!((drop.netns, drop.source.is_ipv4()), (pair.a.netns, drop.destination.is_ipv4()));
        assert_ne!((drop.source.port(), drop.sequence), (0, 0));
        assert!(told(&pair.stage, "repeated") > repeated, "it was sent again");
    }
    // Another attempt from the same port is another.
    for _ in 0..2 {
        pair.a.run(|| {
            let socket = super::pods::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK)?;
            let (local, length) = super::tcp::raw("10.9.0.1:40000".parse().unwrap());
            // SAFETY: the address is as long as said.
            check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const local).cast(), length) })?;
            let _ = super::tcp::connect(&socket, "10.9.0.2:81".parse().unwrap());
            Ok(())
        });
    }
    let drops = pair.expect(2);
    assert!(drops.iter().all(|drop| drop.source == "10.9.0.1:40000".parse().unwrap()));
    assert_ne!(drops[0].sequence, drops[1].sequence);
}

#[test]
fn what_is_dropped_on_its_way_in_is_told_by_the_namespace_that_did() {
    let Some(mut pair) = Pair::new() else { return };
    pair.stage.kernel.scan().unwrap();
    filter(&pair.b, "input", "ct state established,related accept");
    pair.b.command("nft", &["add rule inet t c tcp dport 81 drop"]);
    pair.b.command("nft", &["add rule inet t c udp dport 53 drop"]);
    // Not a beginning: it never was a connection.
    pair.b.command("nft", &["add rule inet t c tcp dport 82 tcp flags & syn == 0 drop"]);
    for host in ["10.9.0.2", "[fd09::2]"] {
        pair.a.run(|| {
            assert!(TcpStream::connect(format!("{host}:81")).is_err());
            assert!(TcpStream::connect(format!("{host}:82")).is_err());
            UdpSocket::bind("[::]:0")
                .and_then(|socket| {
                    let to = format!("{host}:53").parse::<SocketAddr>().unwrap();
                    // A v6 socket names a v4 address by its mapped form.
                    let to = match to {
                        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
                        v6 => v6,
                    };
                    socket.send_to(b"x", to)
                })
                .map(drop)
        });
        let mut drops = pair.expect(3);
        // The other port was closed.
        drops.retain(|drop| !drop.found_closed_port());
        let mut seen: Vec<_> =
            drops.iter().map(|drop| (drop.protocol, drop.destination.port(), drop.opens)).collect();
        seen.sort_unstable();
        assert_eq!(seen, [(Protocol::Tcp, 81, true), (Protocol::Udp, 53, true)]);
        assert!(drops.iter().all(|drop| drop.netns == pair.b.netns), "{drops:#?}");
    }
}

#[test]
fn datagrams_are_told_once_an_interval_and_without_tracking_nothing_says_who_began() {
    let Some(mut pair) = Pair::new() else { return };
    filter(&pair.a, "output", "udp dport 53 drop");
    pair.a.run(|| {
        let socket = UdpSocket::bind("10.9.0.1:5000")?;
        for _ in 0..100 {
            // A filter of its own node tells the sender.
            let _ = socket.send_to(b"x", "10.9.0.2:53");
        }
        Ok(())
    });
    let drop = pair.expect(1).remove(0);
    assert_eq!((drop.protocol, drop.opens), (Protocol::Udp, false));
    assert_eq!((drop.source, drop.destination.port()), ("10.9.0.1:5000".parse().unwrap(), 53));
    assert_eq!((told(&pair.stage, "recorded"), told(&pair.stage, "repeated")), (1, 99));
    assert_eq!(pair.stage.kernel.losses(), []);
}

#[test]
fn headers_between_are_passed_over() {
    const IPV6_DSTOPTS: i32 = 59;
    let Some(mut pair) = Pair::new() else { return };
    filter(&pair.a, "output", "meta l4proto udp drop");
    pair.a.run(|| {
        let socket = UdpSocket::bind("[fd09::1]:5000")?;
        // A header of eight bytes that is all padding.
        let options: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
        // SAFETY: the option is as long as said.
        check(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IPV6,
                IPV6_DSTOPTS,
                options.as_ptr().cast(),
                options.len() as libc::socklen_t,
            )
        })?;
        let _ = socket.send_to(b"x", "[fd09::2]:53");
        Ok(())
    });
    let drop = pair.expect(1).remove(0);
    assert_eq!((drop.source.port(), drop.destination.port()), (5000, 53));
    assert_eq!(told(&pair.stage, "unreadable"), 0);
}

#[test]
fn a_flood_is_limited_and_the_rest_of_it_folded() {
    const PORTS: u64 = 10_000;
    let Some(mut pair) = Pair::new() else { return };
    filter(&pair.a, "output", "udp dport 10000-20000 drop");
    pair.a.run(|| {
        let socket = UdpSocket::bind("10.9.0.1:0")?;
        for port in 0..PORTS {
            let _ = socket.send_to(b"x", ("10.9.0.2", 10_000 + port as u16));
        }
        Ok(())
    });
    let mut drops = Vec::new();
    let mut keep = |event: Event| {
        if let Event::Drop(drop) = event {
            drops.push(drop);
        }
    };
    while pair.stage.kernel.drain(1024, &mut keep) > 0 {}
    // The two maps take turns.
    for _ in 0..2 {
        pair.stage.kernel.take_folded(&mut keep).unwrap();
    }
    let single = drops.iter().filter(|drop| drop.folded.is_none()).count() as u64;
    let mut ports: Vec<_> = drops.iter().map(|drop| drop.destination.port()).collect();
    ports.sort_unstable();
    assert!(ports.into_iter().eq(10_000..10_000 + PORTS as u16), "{} of {PORTS}", drops.len());
    assert!(
        drops.iter().all(|drop| drop.count() == 1 && drop.reason == NETFILTER && drop.netns == pair.a.netns)
    );
    let counts = pair.stage.kernel.record_counts();
    let sum = |part: fn(&RecordCount) -> u64| {
        counts.iter().filter(|count| count.kind == "drop").map(part).sum::<u64>()
    };
    assert_eq!(sum(|count| count.made), PORTS);
    assert_eq!(sum(|count| count.folded), PORTS - single);
    assert!((1..PORTS).contains(&single), "{single} told one by one");
    assert_eq!(told(&pair.stage, "recorded"), PORTS);
}

#[test]
fn a_closed_port_of_a_pod_is_told_and_what_a_pod_does_with_itself_is_not() {
    let Some(mut pair) = Pair::new() else { return };
    pair.stage.kernel.scan().unwrap();
    for host in ["10.9.0.2", "[fd09::2]"] {
        pair.a.run(|| {
            let refused = |to: String| match TcpStream::connect(&to) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
                other => Err(io::Error::other(format!("{to}: {other:?}"))),
            };
            refused(format!("{host}:81"))?;
            refused("127.0.0.1:81".to_owned())?;
            refused("10.9.0.1:81".to_owned())?;
            // The answer to a datagram cannot be told from a question.
            UdpSocket::bind("[::]:0")?.send_to(b"x", "[fd09::2]:81").map(drop)
        });
        let drop = pair.expect(1).remove(0);
        let to: SocketAddr = format!("{host}:81").parse().unwrap();
        assert_eq!((drop.reason, drop.netns, drop.destination), (DropReason::NO_SOCKET, pair.b.netns, to));
        assert_eq!((drop.protocol, drop.opens, drop.source.is_ipv4()), (Protocol::Tcp, true, to.is_ipv4()));
        assert!(drop.found_closed_port() && drop.source.port() != 0);
    }
    assert_eq!(told(&pair.stage, "recorded"), 0, "no filter did it");
}

#[test]
fn another_nodes_drops_are_not_told() {
    let Some(mut pair) = Pair::new() else { return };
    let mut other = Stage::new();
    pair.stage.kernel.scan().unwrap();
    other.kernel.scan().unwrap();
    let pods = [other.pod("c"), other.pod("d")];
    pods[0].join(&pods[1]);
    filter(&pods[0], "output", "udp dport 53 drop");
    filter(&pair.a, "output", "udp dport 54 drop");
    let send = |to: &str| UdpSocket::bind("10.9.0.1:0").map(|socket| drop(socket.send_to(b"x", to)));
    pods[0].run(|| send("10.9.0.2:53"));
    pair.a.run(|| send("10.9.0.2:54"));
    let (ours, theirs) = (pair.expect(1), expect(&mut other, 1));
    assert_eq!((ours[0].netns, ours[0].destination.port()), (pair.a.netns, 54));
    assert_eq!((theirs[0].netns, theirs[0].destination.port()), (pods[0].netns, 53));
    drop(pods);
}
