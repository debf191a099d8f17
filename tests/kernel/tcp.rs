//! TCP: every way that an attempt can end.

use std::{
    io::{self, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use netaudit::model::{Comm, Direction, Observation, Outcome, Protocol};

use super::pods::{Pod, Stage, check, ready, skip, socket};

/// A pod `a` at `10.9.0.1` and `fd09::1`, and its neighbour `b` at `.2`, which forwards nothing unless told.
pub struct Pair {
    pub a: Pod,
    pub b: Pod,
    // Last: pods leave the tree before it goes.
    pub stage: Stage,
}

impl Pair {
    pub fn new() -> Option<Self> {
        if !ready() {
            return None;
        }
        let stage = Stage::new();
        let (a, b) = (stage.pod("a"), stage.pod("b"));
        a.join(&b);
        // One retransmission, so that a timeout takes three seconds and not two minutes.
        a.sysctl("ipv4/tcp_syn_retries", "1");
        Some(Self { stage, a, b })
    }

    /// Makes `b` a router that treats 10.66.0.0/16 and fd66::/32 as the route type says, such as `prohibit`.
    pub fn route(&self, kind: &str) {
        self.b.sysctl("ipv4/ip_forward", "1");
        self.b.sysctl("ipv6/conf/all/forwarding", "1");
        self.b.ip(&format!("route add {kind} 10.66.0.0/16"));
        self.b.ip(&format!("-6 route add {kind} fd66::/32"));
        self.a.ip("route add 10.66.0.0/16 via 10.9.0.2");
        self.a.ip("-6 route add fd66::/32 via fd09::2");
    }

    /// What comes of one attempt from `a`, however it goes.
    fn attempt(&mut self, act: impl FnOnce() -> io::Result<()>) -> Vec<Observation> {
        let before = self.stage.flows(&self.a).len();
        self.a.run(act);
        let netns = self.a.netns;
        self.stage.wait(|events| {
            events
                .iter()
                .filter(|event| matches!(event, netaudit::kernel::Event::Flow(flow) if flow.netns == netns))
                .skip(before)
                .any(|event| matches!(event, netaudit::kernel::Event::Flow(flow) if flow.outcome != Outcome::Pending))
        });
        std::thread::sleep(Duration::from_millis(50));
        self.stage.drain();
        self.stage.flows(&self.a).split_off(before)
    }
}

/// A blocking connect whose failure is expected.
fn try_connect(to: &str) -> io::Result<()> {
    let to: SocketAddr = to.parse().unwrap();
    match TcpStream::connect_timeout(&to, Duration::from_secs(20)) {
        Ok(_) => Err(io::Error::other("it connected")),
        Err(_) => Ok(()),
    }
}

/// A `connect` that blocks, as most programs call it: the standard library's with a timeout does not.
fn blocking_connect(to: &str) -> io::Result<()> {
    match TcpStream::connect(to) {
        Ok(_) => Err(io::Error::other("it connected")),
        Err(_) => Ok(()),
    }
}

/// Starts a connect without waiting for its end.
fn start_connect(to: &str) -> io::Result<OwnedFd> {
    let to: SocketAddr = to.parse().unwrap();
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK)?;
    match connect(&socket, to) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error),
        Ok(()) => Ok(socket),
    }
}

/// The plain system call.
pub fn connect(socket: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    let (storage, length) = raw(to);
    // SAFETY: the address is as long as said.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const storage).cast(), length) })
}

/// An address as system calls take it.
pub fn raw(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: zeros are a value of both structures, and the storage has room for either.
    unsafe {
        let mut storage: libc::sockaddr_storage = std::mem::zeroed();
        let length = match address {
            SocketAddr::V4(v4) => {
                let to = (&raw mut storage).cast::<libc::sockaddr_in>();
                (*to).sin_family = libc::AF_INET as u16;
                (*to).sin_port = v4.port().to_be();
                (*to).sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(v6) => {
                let to = (&raw mut storage).cast::<libc::sockaddr_in6>();
                (*to).sin6_family = libc::AF_INET6 as u16;
                (*to).sin6_port = v6.port().to_be();
                (*to).sin6_addr.s6_addr = v6.ip().octets();
                size_of::<libc::sockaddr_in6>()
            }
        };
        (storage, length as libc::socklen_t)
    }
}

fn outcomes(flows: &[Observation]) -> Vec<Outcome> {
    flows.iter().map(|flow| flow.outcome).collect()
}

/// Both records of a connection from `a` to a server of another process in `b`, by the way that `connect` is called.
pub fn connected(
    pair: &mut Pair,
    listen: &str,
    to: &str,
    act: impl FnOnce() -> io::Result<()>,
) -> (Observation, Observation) {
    let before = (pair.stage.flows(&pair.a).len(), pair.stage.flows(&pair.b).len());
    let begun = Instant::now();
    let (ready, signal) = std::os::unix::net::UnixStream::pair().unwrap();
    let server = pair.b.start(|| {
        let listener = TcpListener::bind(listen)?;
        io::Write::write_all(&mut &signal, b"x")?;
        listener.accept()?;
        Ok(())
    });
    io::Read::read_exact(&mut &ready, &mut [0]).unwrap();
    pair.a.run(act);
    let server_pid = server.pid as u32;
    server.finish();
    let took = begun.elapsed();
    let made = pair.stage.expect(&pair.a, before.0 + 1).pop().unwrap();
    let taken = pair.stage.expect(&pair.b, before.1 + 1).pop().unwrap();

    let to: SocketAddr = to.parse().unwrap();
    assert_eq!(
        (made.direction, made.protocol, made.outcome),
        (Direction::Egress, Protocol::Tcp, Outcome::Established)
    );
    assert_eq!((made.remote, made.requested), (to, None));
    assert_eq!(made.actor.cgroup, Some(pair.a.cgroup.id()));
    assert!(made.waited > Duration::ZERO && made.waited < took, "{:?} of {took:?}", made.waited);

    assert_eq!(
        (taken.direction, taken.protocol, taken.outcome),
        (Direction::Ingress, Protocol::Tcp, Outcome::Accepted)
    );
    assert_eq!((taken.local, taken.remote), (to, made.local));
    assert_eq!(taken.actor.cgroup, Some(pair.b.cgroup.id()));
    assert_eq!(taken.actor.pid, server_pid);
    assert!(taken.at >= made.at && taken.at.since(made.at) < took);
    (made, taken)
}

#[test]
fn established_v4_v6_mapped_nonblocking() {
    let Some(mut pair) = Pair::new() else { return };
    let to = "10.9.0.2:8080";
    connected(&mut pair, to, to, || TcpStream::connect(to).map(drop));
    connected(&mut pair, to, to, || {
        TcpStream::connect_timeout(&to.parse().unwrap(), Duration::from_secs(5)).map(drop)
    });
    // A v6 socket to a mapped address is a v4 flow, at a server that listens for both too.
    let mapped = "[::ffff:10.9.0.2]:8080";
    connected(&mut pair, "[::]:8080", to, || TcpStream::connect(mapped).map(drop));
    let v6 = "[fd09::2]:8081";
    connected(&mut pair, v6, v6, || TcpStream::connect(v6).map(drop));
}

#[test]
fn loopback_inside_a_pod_is_seen_from_both_ends() {
    if !ready() {
        return;
    }
    let mut stage = Stage::new();
    let pod = stage.pod("a");
    pod.run(|| {
        let listener = TcpListener::bind("127.0.0.1:8080")?;
        let _client = TcpStream::connect("127.0.0.1:8080")?;
        listener.accept()?;
        Ok(())
    });
    let flows = stage.expect(&pod, 2);
    assert_eq!(outcomes(&flows), [Outcome::Established, Outcome::Accepted]);
    assert_eq!(flows[0].local, flows[1].remote);
    assert!(!flows[0].actor.comm.is_empty() && flows[0].actor.comm == flows[1].actor.comm);
    assert_ne!(flows[0].actor.comm, Comm::default());
}

#[test]
fn both_ends_of_a_connection_tell_the_same_number_and_no_other_connection_does() {
    if !ready() {
        return;
    }
    let mut stage = Stage::new();
    let pod = stage.pod("a");
    pod.run(|| {
        for address in ["127.0.0.1:8080", "[::1]:8080"] {
            let listener = TcpListener::bind(address)?;
            // The kernel accepts when the first byte comes, long after the other end was established.
            let seconds: libc::c_int = 5;
            // SAFETY: the option is as long as said.
            check(unsafe {
                libc::setsockopt(
                    listener.as_raw_fd(),
                    libc::IPPROTO_TCP,
                    libc::TCP_DEFER_ACCEPT,
                    (&raw const seconds).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            })?;
            let mut clients = [TcpStream::connect(address)?, TcpStream::connect(address)?];
            for client in clients.iter_mut().rev() {
                client.write_all(b"x")?;
                listener.accept()?;
            }
        }
        Ok(())
    });
    let flows = stage.expect(&pod, 8);
    let (made, accepted): (Vec<&Observation>, Vec<&Observation>) =
        flows.iter().partition(|flow| flow.outcome == Outcome::Established);
    assert_eq!(accepted.len(), 4);
    for end in &made {
        assert!(end.handshake.is_some());
        let of_it = |other: &&&Observation| other.handshake == end.handshake;
        let others: Vec<_> = accepted.iter().filter(of_it).map(|other| other.remote).collect();
        assert_eq!(others, [end.local]);
    }
}

#[test]
fn a_socket_that_connects_to_itself_is_seen_from_both_ends() {
    if !ready() {
        return;
    }
    let mut stage = Stage::new();
    let pod = stage.pod("a");
    for (count, to) in [(2, "127.0.0.1:8080"), (4, "[::1]:8080")] {
        let to: SocketAddr = to.parse().unwrap();
        pod.run(|| {
            let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            let socket = socket(family, libc::SOCK_STREAM)?;
            let (storage, length) = raw(to);
            // SAFETY: the address is as long as said.
            check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const storage).cast(), length) })?;
            connect(&socket, to)
        });
        let flows = stage.expect(&pod, count).split_off(count - 2);
        assert_eq!(outcomes(&flows), [Outcome::Established, Outcome::Accepted], "{to}");
        for flow in &flows {
            assert_eq!((flow.local, flow.remote), (to, to));
            assert_eq!(flow.actor.cgroup, Some(pod.cgroup.id()));
        }
    }
}

#[test]
fn a_closed_port_refuses() {
    let Some(mut pair) = Pair::new() else { return };
    for to in ["10.9.0.2:9", "[fd09::2]:9", "[::ffff:10.9.0.2]:9"] {
        for connect in [blocking_connect, try_connect] {
            let flows = pair.attempt(|| connect(to));
            assert_eq!(outcomes(&flows), [Outcome::Refused], "{to}");
            assert_eq!(flows[0].remote.port(), 9);
            assert_eq!(flows[0].remote.ip().to_canonical(), flows[0].remote.ip());
            assert_ne!(flows[0].local.port(), 0);
        }
    }
    assert_eq!(pair.stage.flows(&pair.b), [], "the neighbour's kernel refused, none of its programs");
}

#[test]
fn silence_is_pending_and_then_a_timeout() {
    let Some(mut pair) = Pair::new() else { return };
    pair.route("blackhole");
    for to in ["10.66.0.1:80", "[fd66::1]:80"] {
        let begun = Instant::now();
        let flows = pair.attempt(|| blocking_connect(to));
        let took = begun.elapsed().as_secs_f64();
        assert_eq!(outcomes(&flows), [Outcome::Pending, Outcome::Timeout], "{to}");
        assert_eq!((flows[0].socket, flows[0].sequence), (flows[1].socket, flows[1].sequence));
        let waited = [flows[0].waited.as_secs_f64(), flows[1].waited.as_secs_f64()];
        // The first retransmission after a second, the end two seconds later, and neither before its time.
        assert!((0.9..took).contains(&waited[0]) && (2.5..took).contains(&waited[1]), "{waited:?} of {took}");
        assert!(waited[0] < waited[1], "{waited:?}");
        assert!(!flows[1].answered);
    }
}

#[test]
fn a_prohibiting_router_rejects() {
    let Some(mut pair) = Pair::new() else { return };
    pair.route("prohibit");
    for to in ["10.66.0.1:80", "[fd66::1]:80", "[::ffff:10.66.0.1]:80"] {
        let flows = pair.attempt(|| blocking_connect(to));
        assert_eq!(outcomes(&flows).last(), Some(&Outcome::Rejected), "{to}: {flows:#?}");
        // A router answers a few at once and then one a second.
        std::thread::sleep(Duration::from_secs(2));
    }
}

#[test]
fn an_unreachable_network_is_no_reject() {
    let Some(mut pair) = Pair::new() else { return };
    pair.route("unreachable");
    for to in ["10.66.0.1:80", "[fd66::1]:80"] {
        let flows = pair.attempt(|| blocking_connect(to));
        assert_eq!(outcomes(&flows).last(), Some(&Outcome::Unreachable), "{to}: {flows:#?}");
    }
}

#[test]
fn a_silent_neighbour_is_unreachable() {
    let Some(mut pair) = Pair::new() else { return };
    // Longer than the three seconds for which the kernel asks who has the address.
    pair.a.sysctl("ipv4/tcp_syn_retries", "3");
    for to in ["10.9.0.77:80", "[fd09::77]:80"] {
        let flows = pair.attempt(|| blocking_connect(to));
        assert_eq!(outcomes(&flows).last(), Some(&Outcome::Unreachable), "{to}: {flows:#?}");
    }
}

#[test]
fn no_route_is_a_failure_before_anything_was_sent() {
    let Some(mut pair) = Pair::new() else { return };
    for to in ["10.77.0.1:80", "[fd77::1]:80"] {
        let flows = pair.attempt(|| blocking_connect(to));
        assert_eq!(outcomes(&flows), [Outcome::Failed], "{to}");
        assert_eq!(flows[0].remote, to.parse().unwrap());
        assert_eq!(flows[0].actor.cgroup, Some(pair.a.cgroup.id()));
    }
    // A socket that tries again tells of its first attempt then.
    let flows = pair.attempt(|| {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM)?;
        assert!(connect(&socket, "10.77.0.1:80".parse().unwrap()).is_err());
        assert!(connect(&socket, "10.9.0.2:9".parse().unwrap()).is_err());
        Ok(())
    });
    assert_eq!(outcomes(&flows), [Outcome::Failed, Outcome::Refused]);
    assert_eq!(flows[0].socket, flows[1].socket);
    assert_ne!(flows[0].sequence, flows[1].sequence);
}

#[test]
fn giving_up_is_aborted_with_the_time_waited() {
    let Some(mut pair) = Pair::new() else { return };
    pair.route("blackhole");
    for wait in [1, 200].map(Duration::from_millis) {
        let begun = Instant::now();
        let flows = pair.attempt(|| {
            let _socket = start_connect("10.66.0.1:80")?;
            std::thread::sleep(wait);
            Ok(())
        });
        let took = begun.elapsed();
        // On a machine so slow that this takes a second, it is told as pending before.
        let flow = flows.last().unwrap();
        assert_eq!(flow.outcome, Outcome::Aborted, "{flows:#?}");
        assert!((wait..took).contains(&flow.waited), "{:?} of {took:?}", flow.waited);
        assert!(!flow.answered);
    }
}

#[test]
fn a_local_filter_rejects_or_drops() {
    let Some(mut pair) = Pair::new() else { return };
    if std::process::Command::new("nft").arg("--version").output().is_err() {
        return skip("no nft: apt-get install nftables");
    }
    let nft = |pod: &Pod, rules: &str| pod.command("nft", &[rules]);
    nft(&pair.a, "add table inet t; add chain inet t o { type filter hook output priority 0; }");
    for (port, verdict) in [(1, "reject"), (2, "reject with icmpx admin-prohibited"), (3, "drop")] {
        nft(&pair.a, &format!("add rule inet t o tcp dport {port} {verdict}"));
    }
    nft(&pair.a, "add rule inet t o tcp dport 4 reject with tcp reset");
    for host in ["10.9.0.2", "[fd09::2]"] {
        for port in [1, 2] {
            let to = format!("{host}:{port}");
            for connect in [blocking_connect, try_connect] {
                let flows = pair.attempt(|| connect(&to));
                assert_eq!(outcomes(&flows).last(), Some(&Outcome::Rejected), "{to}: {flows:#?}");
            }
            // It gives up before the kernel would have told it.
            let flows = pair.attempt(|| {
                let _socket = start_connect(&to)?;
                std::thread::sleep(Duration::from_millis(1));
                Ok(())
            });
            assert_eq!(outcomes(&flows).last(), Some(&Outcome::Rejected), "{to}: {flows:#?}");
        }
        let flows = pair.attempt(|| blocking_connect(&format!("{host}:3")));
        assert_eq!(outcomes(&flows), [Outcome::Pending, Outcome::Timeout]);
        // A reset is a reset, whoever sends it.
        let flows = pair.attempt(|| blocking_connect(&format!("{host}:4")));
        assert_eq!(outcomes(&flows).last(), Some(&Outcome::Refused), "{flows:#?}");
    }
}

#[test]
fn a_destination_that_another_program_rewrites_shows_both() {
    let Some(mut pair) = Pair::new() else { return };
    // As a socket load balancer does. Attached after ours to the same cgroup, it runs after ours.
    let rewriter = rewrite_to_port(&pair, 9).unwrap();
    let flows = pair.attempt(|| blocking_connect("10.9.0.2:80"));
    assert_eq!(outcomes(&flows), [Outcome::Refused]);
    assert_eq!(flows[0].remote, "10.9.0.2:9".parse().unwrap());
    assert_eq!(flows[0].requested, Some("10.9.0.2:80".parse().unwrap()));
    assert_eq!(flows[0].port(), 9);
    detach(&rewriter).unwrap();
    let flows = pair.attempt(|| blocking_connect("10.9.0.2:80"));
    assert_eq!((flows[0].remote, flows[0].requested), ("10.9.0.2:80".parse().unwrap(), None));
}

/// Attaches a `cgroup/connect4` program that sets the port of every connect in the stage's cgroup. The link ends with
/// the last descriptor of it, at the latest with this process.
fn rewrite_to_port(pair: &Pair, port: u16) -> io::Result<OwnedFd> {
    const PROG_LOAD: i64 = 5;
    const LINK_CREATE: i64 = 28;
    const CGROUP_SOCK_ADDR: u32 = 18;
    const INET4_CONNECT: u32 = 10;
    /// `offsetof(struct bpf_sock_addr, user_port)`
    const USER_PORT: i16 = 24;
    let instruction = |code: u8, registers: u8, offset: i16, value: i32| {
        u64::from(code)
            | u64::from(registers) << 8
            | u64::from(offset as u16) << 16
            | u64::from(value as u32) << 32
    };
    let program = [
        instruction(0xb7, 2, 0, i32::from(port.to_be())), // r2 = port
        instruction(0x63, 1 | 2 << 4, USER_PORT, 0),      // *(u32 *)(r1 + 24) = r2
        instruction(0xb7, 0, 0, 1),                       // r0 = 1: allow
        instruction(0x95, 0, 0, 0),                       // exit
    ];
    let licence = c"Apache-2.0";
    let mut load = [0_u64; 16];
    load[0] = u64::from(CGROUP_SOCK_ADDR) | (program.len() as u64) << 32;
    load[1] = program.as_ptr() as u64;
    load[2] = licence.as_ptr() as u64;
    // After the log's level, size and buffer, the version, flags, name and interface.
    load[8] = u64::from(INET4_CONNECT) << 32;
    let program = bpf(PROG_LOAD, &load)?;

    let cgroup = std::fs::File::open(pair.stage.kernel.cgroup_root())?;
    let descriptor = |fd: i32| u64::from(fd as u32);
    let mut link = [0_u64; 16];
    link[0] = descriptor(program.as_raw_fd()) | descriptor(cgroup.as_raw_fd()) << 32;
    link[1] = u64::from(INET4_CONNECT);
    bpf(LINK_CREATE, &link)
}

/// Ends a link now. To close the descriptor is not enough: a child that another test's thread is just forking holds a
/// copy until it executes its program.
fn detach(link: &OwnedFd) -> io::Result<()> {
    const LINK_DETACH: i64 = 34;
    let mut attributes = [0_u64; 16];
    attributes[0] = u64::from(link.as_raw_fd() as u32);
    check(bpf_raw(LINK_DETACH, &attributes)).map(drop)
}

fn bpf(command: i64, attributes: &[u64; 16]) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd as _;
    let fd = bpf_raw(command, attributes);
    check(fd)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf_raw(command: i64, attributes: &[u64; 16]) -> i32 {
    // SAFETY: the attributes are as long as said, and what they point to lives until the call returns.
    unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) as i32 }
}
