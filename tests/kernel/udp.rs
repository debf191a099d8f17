//! UDP: one flow a destination at the source, one a client at the server, and none for an answer.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    time::{Duration, Instant},
};

use netaudit::{
    kernel::{Event, Feature},
    model::{Direction, Observation, Outcome, Protocol},
};

use super::{
    pods::{Pod, Running, Stage, check, ready},
    tcp::raw,
};

/// A pod with an echo server on port 53 and one with clients.
pub struct Service {
    // In the order in which they must end: processes leave the pods, and pods the tree.
    process: Option<Running>,
    pub client: Pod,
    pub server: Pod,
    pub stage: Stage,
}

impl Service {
    pub fn new() -> Option<Self> {
        ready().then(|| Self::on(Stage::new()))
    }

    pub fn on(stage: Stage) -> Self {
        let (client, server) = (stage.pod("client"), stage.pod("server"));
        client.join(&server);
        let mut service = Self { process: None, client, server, stage };
        service.process = Some(service.serve("[::]:53"));
        service
    }

    /// Starts an echo server in the server's pod.
    pub fn serve(&self, address: &str) -> Running {
        let (ready, signal) = UnixStream::pair().unwrap();
        let process = self.server.start(|| {
            let socket = UdpSocket::bind(address)?;
            io::Write::write_all(&mut &signal, b"x")?;
            loop {
                let mut buffer = [0; 64];
                let (length, client) = socket.recv_from(&mut buffer)?;
                socket.send_to(&buffer[..length], client)?;
            }
        });
        io::Read::read_exact(&mut &ready, &mut [0]).unwrap();
        process
    }
}

/// The hook that shows what a connected socket sends, where the kernel has it.
pub const FIRST_DATAGRAM: Feature = Feature { name: "udp first datagram", absent: None };

/// A client's socket: never bound by its program to anything in particular, and with a time limit.
pub fn client(v6: bool) -> io::Result<UdpSocket> {
    let kind = libc::SOCK_DGRAM;
    let socket = super::pods::socket(if v6 { libc::AF_INET6 } else { libc::AF_INET }, kind)?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    Ok(socket)
}

pub fn echo(socket: &UdpSocket, to: &str) -> io::Result<()> {
    socket.send_to(b"hello", to)?;
    socket.recv_from(&mut [0; 64])?;
    Ok(())
}

fn is_sent(flow: &Observation, to: &str) {
    let to: SocketAddr = to.parse().unwrap();
    assert_eq!(
        (flow.direction, flow.protocol, flow.outcome),
        (Direction::Egress, Protocol::Udp, Outcome::Sent)
    );
    assert_eq!((flow.remote, flow.requested), (to, None));
}

#[test]
fn one_flow_a_destination_however_it_is_sent() {
    let Some(mut service) = Service::new() else { return };
    let mut count = 0;
    for (v6, to, shown) in [
        (false, "10.9.0.2:53", "10.9.0.2:53"),
        (true, "[fd09::2]:53", "[fd09::2]:53"),
        (true, "[::ffff:10.9.0.2]:53", "10.9.0.2:53"),
    ] {
        let unconnected = || {
            let socket = client(v6)?;
            (0..3).try_for_each(|_| echo(&socket, to))
        };
        let connected = || {
            let socket = client(v6)?;
            socket.connect(to)?;
            for _ in 0..3 {
                socket.send(b"hello")?;
                socket.recv(&mut [0; 64])?;
            }
            Ok(())
        };
        let many = || {
            let socket = client(v6)?;
            send_many(&socket, to, 5)?;
            (0..5).try_for_each(|_| socket.recv_from(&mut [0; 64]).map(drop))
        };
        for act in [&unconnected as &dyn Fn() -> io::Result<()>, &connected, &many] {
            service.client.run(act);
            count += 1;
            let flows = service.stage.expect(&service.client, count);
            is_sent(flows.last().unwrap(), shown);
            assert_eq!(flows.last().unwrap().actor.cgroup, Some(service.client.cgroup.id()));
        }
    }
}

/// `sendmmsg` with `count` messages to the same place.
pub fn send_many(socket: &UdpSocket, to: &str, count: usize) -> io::Result<()> {
    let (mut address, length) = raw(to.parse().unwrap());
    let mut data = *b"hello";
    let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    let mut messages: Vec<libc::mmsghdr> = (0..count)
        .map(|_| {
            // SAFETY: zeros are a value of the structure.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_name = (&raw mut address).cast();
            message.msg_hdr.msg_namelen = length;
            message.msg_hdr.msg_iov = &raw mut part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    // SAFETY: the messages, their address and their data live until the call returns.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count as u32, 0) };
    check(sent)?;
    assert_eq!(sent as usize, count);
    Ok(())
}

#[test]
fn a_server_receives_from_each_client_once_and_its_answers_are_no_flows() {
    let Some(mut service) = Service::new() else { return };
    // Eight sockets at once, so that the server sees ports come and go; then the other family.
    service.client.run(|| {
        let sockets: Vec<_> = (0..8).map(|_| client(false)).collect::<Result<_, _>>()?;
        for _ in 0..3 {
            sockets.iter().try_for_each(|socket| echo(socket, "10.9.0.2:53"))?;
        }
        let socket = client(true)?;
        echo(&socket, "[fd09::2]:53")?;
        echo(&sockets[0], "10.9.0.2:53")
    });
    service.stage.expect(&service.client, 9);
    let flows = service.stage.expect(&service.server, 2);
    for (flow, from) in flows.iter().zip(["10.9.0.1", "fd09::1"]) {
        assert_eq!(
            (flow.direction, flow.protocol, flow.outcome),
            (Direction::Ingress, Protocol::Udp, Outcome::Received)
        );
        assert_eq!(flow.remote.ip().to_string(), from);
        assert_eq!(flow.port(), 53);
        assert_eq!(flow.actor.cgroup, Some(service.server.cgroup.id()));
        assert_eq!(flow.actor.pid, service.process.as_ref().unwrap().pid as u32);
    }
}

#[test]
fn a_bound_client_gets_answers_and_not_requests() {
    let Some(mut service) = Service::new() else { return };
    service.client.run(|| {
        let socket = UdpSocket::bind("10.9.0.1:4000")?;
        (0..3).try_for_each(|_| echo(&socket, "10.9.0.2:53"))
    });
    let flows = service.stage.expect(&service.client, 1);
    is_sent(&flows[0], "10.9.0.2:53");
    assert_eq!(flows[0].local, "10.9.0.1:4000".parse().unwrap());
}

#[test]
fn each_destination_of_one_socket_is_a_flow_and_comes_back_without_another() {
    let Some(mut service) = Service::new() else { return };
    let others: Vec<_> = (54..57).map(|port| service.serve(&format!("0.0.0.0:{port}"))).collect();
    service.client.run(|| {
        let socket = client(false)?;
        for _ in 0..4 {
            (53..57).try_for_each(|port| echo(&socket, &format!("10.9.0.2:{port}")))?;
        }
        Ok(())
    });
    let flows = service.stage.expect(&service.client, 4);
    let mut ports: Vec<u16> = flows.iter().map(Observation::port).collect();
    ports.sort_unstable();
    assert_eq!(ports, [53, 54, 55, 56]);
    let sequences: std::collections::HashSet<u32> = flows.iter().map(|flow| flow.sequence).collect();
    assert_eq!(sequences.len(), 4, "(socket, sequence) tells them apart");
    drop(others);
}

#[test]
fn a_server_that_asks_on_its_own_is_a_flow() {
    let Some(mut service) = Service::new() else { return };
    service.client.run(|| {
        let socket = client(false)?;
        echo(&socket, "10.9.0.2:53")
    });
    service.stage.expect(&service.server, 1);
    // A DNS server that forwards: it asks the one from whom it was asked, at a service's port.
    let (ready, signal) = UnixStream::pair().unwrap();
    let process = service.server.start(|| {
        let socket = UdpSocket::bind("10.9.0.2:5300")?;
        io::Write::write_all(&mut &signal, b"x")?;
        let mut buffer = [0; 64];
        let (_, client) = socket.recv_from(&mut buffer)?;
        socket.send_to(b"question", (client.ip(), 53))?;
        socket.send_to(b"answer", client)?;
        Ok(())
    });
    io::Read::read_exact(&mut &ready, &mut [0]).unwrap();
    service.client.run(|| {
        let socket = client(false)?;
        echo(&socket, "10.9.0.2:5300")
    });
    process.finish();
    let flows = service.stage.expect(&service.server, 3);
    assert_eq!((flows[1].outcome, flows[1].port()), (Outcome::Received, 5300));
    is_sent(&flows[2], "10.9.0.1:53");
}

#[test]
fn a_flow_that_goes_on_is_told_again_after_the_interval() {
    if !ready() {
        return;
    }
    // Long enough for some datagrams to be within it on a machine that is busy.
    let interval = Duration::from_secs(4);
    let mut service = Service::on(Stage::with_retell(interval));
    let other = service.serve("[::]:54");
    // The latest peer of a socket and further ones are kept in different places: two destinations of one socket in
    // turn, two clients of each server in turn, and a socket that is connected.
    service.client.run(|| {
        let (v4, v6, connected) = (client(false)?, client(true)?, client(false)?);
        connected.connect("10.9.0.2:54")?;
        let round = || {
            for port in [53, 54] {
                echo(&v4, &format!("10.9.0.2:{port}"))?;
                echo(&v6, &format!("[fd09::2]:{port}"))?;
            }
            connected.send(b"hello")?;
            connected.recv(&mut [0; 64]).map(drop)
        };
        let begun = Instant::now();
        (0..3).try_for_each(|_| round())?;
        assert!(begun.elapsed() < interval, "too slow to show anything: {:?}", begun.elapsed());
        std::thread::sleep(interval + Duration::from_millis(200));
        (0..3).try_for_each(|_| round())
    });
    // Where nothing shows what a connected socket sends, its flow is told at `connect`, and that once.
    let seen = service.stage.kernel.features().contains(&FIRST_DATAGRAM);
    let mut sent = service.stage.expect(&service.client, if seen { 10 } else { 9 });
    if !seen {
        let at = sent.iter().position(|flow| flow.local.port() == 0).expect("told at connect");
        sent.remove(at);
    }
    let received = service.stage.expect(&service.server, 8);
    for flows in [&sent, &received] {
        for flow in flows {
            // The same flow is the same socket's to, or from, the same address.
            let same = |other: &&Observation| {
                (other.socket, other.remote.ip()) == (flow.socket, flow.remote.ip())
                    && (flow.direction == Direction::Ingress || other.remote == flow.remote)
            };
            let [first, again] = flows.iter().filter(same).collect::<Vec<_>>()[..] else {
                panic!("not told twice: {flow:#?}\nof {flows:#?}")
            };
            assert!(first.sequence < again.sequence, "{first:#?} {again:#?}");
            assert!(again.at.since(first.at) >= interval, "{first:#?} {again:#?}");
            assert_eq!(first.actor, again.actor);
        }
    }
    drop(other);
}

#[test]
fn a_connected_flow_is_told_again_only_by_its_own_datagrams() {
    if !ready() {
        return;
    }
    let interval = Duration::from_millis(300);
    let mut service = Service::on(Stage::with_retell(interval));
    if !service.stage.kernel.features().contains(&FIRST_DATAGRAM) {
        return super::pods::skip("nothing shows what a connected socket sends");
    }
    let other = service.serve("10.9.0.2:54");
    service.client.run(|| {
        let socket = client(false)?;
        socket.connect("10.9.0.2:54")?;
        socket.send(b"hello")?;
        std::thread::sleep(2 * interval);
        // Due, but this one goes elsewhere.
        socket.send_to(b"hello", "10.9.0.2:53")?;
        // Late enough for this one to be told even if that one had been, by mistake.
        std::thread::sleep(2 * interval);
        socket.send(b"hello").map(drop)
    });
    let flows = service.stage.expect(&service.client, 3);
    assert_eq!(flows.iter().map(Observation::port).collect::<Vec<_>>(), [54, 53, 54]);
    drop(other);
}

#[test]
fn whoever_asks_once_and_listens_to_a_stream_is_told_again_while_it_comes() {
    if !ready() {
        return;
    }
    let interval = Duration::from_millis(500);
    let mut stage = Stage::with_retell(interval);
    let pod = stage.pod("a");
    pod.run(|| {
        let servers = [UdpSocket::bind("127.0.0.1:53")?, UdpSocket::bind("127.0.0.1:54")?];
        let client = UdpSocket::bind("127.0.0.1:0")?;
        // The latest peer and one before it are kept in different places.
        for (server, port) in servers.iter().zip([53, 54]) {
            client.send_to(b"?", ("127.0.0.1", port))?;
            server.recv_from(&mut [0; 16])?;
        }
        let begun = Instant::now();
        while begun.elapsed() < 5 * interval / 2 {
            for server in &servers {
                server.send_to(b"!", client.local_addr()?)?;
                client.recv_from(&mut [0; 16])?;
            }
            std::thread::sleep(interval / 10);
        }
        Ok(())
    });
    stage.drain();
    let flows = stage.flows(&pod);
    let told = |outcome, port| {
        let is = |flow: &&Observation| flow.outcome == outcome && flow.port() == port;
        flows.iter().filter(is).count()
    };
    for port in [53, 54] {
        assert_eq!((told(Outcome::Sent, port), told(Outcome::Received, port)), (3, 1), "{port}: {flows:#?}");
    }
    let answered = stage.events.iter().filter(|event| matches!(event, Event::Answer(_))).count();
    assert_eq!(answered, 6);
}

#[test]
fn a_connect_that_sends_nothing_is_no_flow() {
    let Some(mut service) = Service::new() else { return };
    let feature =
        service.stage.kernel.features().iter().find(|feature| feature.name == "udp first datagram").unwrap();
    if let Some(reason) = feature.absent.clone() {
        return super::pods::skip(&reason);
    }
    // As a resolver sorts candidates by the address from which it would reach them.
    service.client.run(|| {
        let socket = client(false)?;
        socket.connect("10.9.0.2:443")?;
        socket.local_addr()?;
        socket.connect("10.9.0.2:53")?;
        socket.send(b"hello")?;
        // Elsewhere, in between: that is a flow, and not the connected one's beginning.
        let other = client(false)?;
        other.connect("10.9.0.2:444")?;
        other.send_to(b"hello", "10.9.0.2:53")?;
        Ok(())
    });
    let flows = service.stage.expect(&service.client, 2);
    assert!(flows.iter().all(|flow| flow.port() == 53), "{flows:#?}");
    assert_ne!(flows[0].local.port(), 0);
}
