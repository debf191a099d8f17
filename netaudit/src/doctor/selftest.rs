//! Connections over loopback, made for the programs to see: what they should record is known before.

use std::{
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketType, ipproto};
use serde::Serialize;

use crate::{
    kernel::{Event, Kernel},
    model::{Comm, Direction, Observation, OpenConnection, Outcome, RawSocketKind},
};

/// Something that the self-test does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trial {
    /// A TCP connection over IPv4, accepted.
    Tcp4,
    /// The same over IPv6.
    Tcp6,
    /// A TCP connection to a port that nobody listens on.
    Refused,
    /// A TCP connection to a listener that was there before the programs.
    OldListener,
    /// TCP connections that were there before the programs, over IPv4 and IPv6, both ends.
    OldConnection,
    /// A datagram over IPv4 whose destination is named, and its server.
    Udp4,
    /// The same over IPv6.
    Udp6,
    /// A datagram of a connected socket.
    UdpConnected,
    /// A datagram whose answer is read together with its sender.
    UdpAnswered,
    /// A datagram of a connected socket whose answer is read without.
    UdpAnsweredUnnamed,
    /// A datagram to a port that nobody listens on.
    UdpRejected,
    /// A raw socket.
    RawSocket,
    /// A packet socket.
    PacketSocket,
    /// A DNS answer.
    Dns,
}

impl Trial {
    /// Every one, in the order in which they are made.
    pub const ALL: [Self; 14] = [
        Self::Tcp4,
        Self::Tcp6,
        Self::Refused,
        Self::OldListener,
        Self::OldConnection,
        Self::Udp4,
        Self::Udp6,
        Self::UdpConnected,
        Self::UdpAnswered,
        Self::UdpAnsweredUnnamed,
        Self::UdpRejected,
        Self::RawSocket,
        Self::PacketSocket,
        Self::Dns,
    ];

    /// What it is, in words.
    pub const fn what(self) -> &'static str {
        match self {
            Self::Tcp4 => "a TCP connection over IPv4, both ends",
            Self::Tcp6 => "a TCP connection over IPv6, both ends",
            Self::Refused => "a TCP connection to a closed port",
            Self::OldListener => "who serves at a listener that is older than the programs",
            Self::OldConnection => "TCP connections that are older than the programs, both ends",
            Self::Udp4 => "a UDP datagram over IPv4, both ends",
            Self::Udp6 => "a UDP datagram over IPv6, both ends",
            Self::UdpConnected => "a UDP datagram of a connected socket",
            Self::UdpAnswered => "an answer that is read together with its sender",
            Self::UdpAnsweredUnnamed => "an answer that is read without its sender",
            Self::UdpRejected => "a UDP datagram to a closed port",
            Self::RawSocket => "a raw socket, and who made it",
            Self::PacketSocket => "a packet socket, and who made it",
            Self::Dns => "a DNS answer, and who got it",
        }
    }
}

/// How a trial went.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Result {
    /// What was made was recorded.
    Works,
    /// It was made, and this was not recorded.
    Unseen(String),
    /// It could not be made here, for this reason.
    NotMade(String),
}

/// A listener from before the programs were loaded, and both ends of connections that were made then.
pub struct Before(io::Result<(TcpListener, Vec<[TcpStream; 2]>)>);

impl Before {
    /// To be called before [`Kernel::load`].
    pub fn open() -> Self {
        let join = |listener: &TcpListener, ip: IpAddr| -> io::Result<_> {
            let to = SocketAddr::new(ip, listener.local_addr()?.port());
            let client = TcpStream::connect_timeout(&to, PATIENCE)?;
            Ok([client, listener.accept()?.0])
        };
        let open = || -> io::Result<_> {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let mut made = vec![join(&listener, Ipv4Addr::LOCALHOST.into())?];
            // Where there is no IPv6, another trial says so.
            if let Ok(dual) = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)) {
                made.extend(join(&dual, Ipv6Addr::LOCALHOST.into()).ok());
                made.extend(join(&dual, Ipv4Addr::LOCALHOST.into()).ok());
            }
            Ok((listener, made))
        };
        Self(open())
    }

    fn get(&self) -> io::Result<&(TcpListener, Vec<[TcpStream; 2]>)> {
        self.0.as_ref().map_err(|error| io::Error::other(error.to_string()))
    }
}

/// What must be recorded: which end, what the socket saw, and the port there and the one of the server.
struct Expected {
    direction: Direction,
    outcome: Outcome,
    port: u16,
    /// Whether the process must be known too.
    with_actor: bool,
}

impl Expected {
    fn is(&self, flow: &Observation, own: &Comm) -> bool {
        flow.direction == self.direction
            && flow.outcome == self.outcome
            && flow.port() == self.port
            && flow.peer_ip().is_loopback()
            && (!self.with_actor || flow.actor.pid != 0 && flow.actor.comm == *own)
    }
}

/// How long a record may take from the socket to us.
const PATIENCE: Duration = Duration::from_secs(1);

/// Makes every trial, and looks for what the kernel recorded of each.
pub fn run(kernel: &mut Kernel, before: &Before) -> Vec<(Trial, Result)> {
    // By name and not by number: where this is not the first pid namespace, records have another number.
    let own = std::fs::read_to_string("/proc/thread-self/comm").unwrap_or_default();
    let own = Comm::new(own.trim_end());
    Trial::ALL.map(|trial| (trial, one(kernel, trial, before, &own))).into()
}

fn one(kernel: &mut Kernel, trial: Trial, before: &Before, own: &Comm) -> Result {
    match trial {
        Trial::RawSocket => return raw_socket(kernel, RawSocketKind::Ip, own),
        Trial::PacketSocket => return raw_socket(kernel, RawSocketKind::Packet, own),
        Trial::Dns => return dns(kernel),
        Trial::OldConnection => return old_connection(kernel, before, own),
        _ => {}
    }
    let expected = match make(trial, before) {
        Ok(expected) => expected,
        Err(error) => return Result::NotMade(error.to_string()),
    };
    let mut seen: Vec<Observation> = Vec::new();
    let until = Instant::now() + PATIENCE;
    loop {
        kernel.drain(usize::MAX, &mut |event| match event {
            Event::Flow(flow) => seen.push(flow),
            Event::Answer(answer) => {
                let key = (answer.socket, answer.sequence);
                let answered = seen.iter_mut().filter(|flow| (flow.socket, flow.sequence) == key);
                answered.for_each(|flow| flow.outcome = answer.outcome);
            }
            _ => {}
        });
        let missing = expected.iter().find(|it| !seen.iter().any(|flow| it.is(flow, own)));
        let Some(Expected { direction, outcome, with_actor, .. }) = missing else { return Result::Works };
        if Instant::now() >= until {
            let process = if *with_actor { " with its process" } else { "" };
            return Result::Unseen(format!("no {direction} flow `{outcome}`{process}"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Makes a socket that makes its own packets, sends none, and looks for the record of it.
fn raw_socket(kernel: &mut Kernel, kind: RawSocketKind, own: &Comm) -> Result {
    let made = match kind {
        RawSocketKind::Packet => rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, None),
        _ => rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)),
    };
    let _socket = match made {
        Ok(socket) => socket,
        Err(error) => return Result::NotMade(io::Error::from(error).to_string()),
    };
    if kind == RawSocketKind::Packet
        && let Err(error) = kernel.look_for_raw_sockets()
    {
        return Result::Unseen(error.to_string());
    }
    let until = Instant::now() + PATIENCE;
    loop {
        let mut is_seen = false;
        kernel.drain(usize::MAX, &mut |event| {
            is_seen |=
                matches!(event, Event::RawSocket(seen) if seen.kind == kind && seen.actor.comm == *own);
        });
        if is_seen {
            return Result::Works;
        }
        if Instant::now() >= until {
            return Result::Unseen(format!("no {kind} socket with its process"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Port 53 of an address that nobody else is likely to have a server at.
const DNS_SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 53, 86, 53), 53);

/// An answer to a question for `netaudit.invalid`: one address, for a second.
const DNS_ANSWER: &[u8] = b"\x4e\x41\x81\x80\0\x01\0\x01\0\0\0\0\x08netaudit\x07invalid\0\0\x01\0\x01\
                            \xc0\x0c\0\x01\0\x01\0\0\0\x01\0\x04\xc0\0\x02\x01";

/// Answers a question over loopback, and looks for the record of it.
fn dns(kernel: &mut Kernel) -> Result {
    let exchange = || -> io::Result<()> {
        let server = UdpSocket::bind(DNS_SERVER)?;
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(PATIENCE))?;
        }
        client.connect(DNS_SERVER)?;
        client.send(b"netaudit doctor")?;
        let (_, asker) = server.recv_from(&mut [0; 64])?;
        server.send_to(DNS_ANSWER, asker)?;
        client.recv(&mut [0; 64]).map(drop)
    };
    if let Err(error) = exchange() {
        return Result::NotMade(format!("port 53: {error}"));
    }
    let until = Instant::now() + PATIENCE;
    loop {
        let mut is_seen = false;
        kernel.drain(usize::MAX, &mut |event| {
            is_seen |= matches!(event, Event::Dns(seen) if *seen.payload == *DNS_ANSWER);
        });
        if is_seen {
            return Result::Works;
        }
        if Instant::now() >= until {
            return Result::Unseen("no DNS answer".to_owned());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Looks for both ends of the connections from before.
fn old_connection(kernel: &mut Kernel, before: &Before, own: &Comm) -> Result {
    let ends = before.get().and_then(|(_, made)| {
        let ends = |[client, _]: &[TcpStream; 2]| Ok((client.local_addr()?, client.peer_addr()?));
        made.iter().map(ends).collect::<io::Result<Vec<_>>>()
    });
    let ends = match ends {
        Ok(ends) => ends,
        Err(error) => return Result::NotMade(error.to_string()),
    };
    let mut found = Vec::new();
    let look = kernel.look().map_err(|error| error.to_string());
    let looked = look.and_then(|look| {
        let look = look.ok_or_else(|| "this kernel cannot look through open sockets".to_owned())?;
        look.take_all(&mut |it| found.extend(it.connection())).map_err(|error| error.to_string())
    });
    if let Err(error) = looked {
        return Result::Unseen(error);
    }
    let find = |direction: Direction, local: SocketAddr, remote: SocketAddr| {
        let is_it = |open: &&OpenConnection| {
            let seen = &open.seen;
            (open.unknown_end, open.is_told, seen.direction) == (None, false, direction)
                && (seen.local, seen.remote, seen.actor.comm) == (local, remote, *own)
        };
        found.iter().find(is_it).map(|open| open.seen.handshake)
    };
    for (client, server) in ends {
        let found = [find(Direction::Egress, client, server), find(Direction::Ingress, server, client)];
        let [Some(made), Some(accepted)] = found else {
            return Result::Unseen(format!("not both ends of {client} to {server} with their process"));
        };
        if made.is_none() || made != accepted {
            return Result::Unseen(format!(
                "nothing tells that the ends of {client} to {server} are of one connection"
            ));
        }
    }
    Result::Works
}

/// Makes one, and says what must be recorded of it.
fn make(trial: Trial, before: &Before) -> io::Result<Vec<Expected>> {
    let expected = |direction, outcome, port| Expected { direction, outcome, port, with_actor: true };
    let tcp = |port| {
        vec![
            expected(Direction::Egress, Outcome::Established, port),
            expected(Direction::Ingress, Outcome::Accepted, port),
        ]
    };
    let udp = |outcome, port| {
        vec![
            expected(Direction::Egress, outcome, port),
            expected(Direction::Ingress, Outcome::Received, port),
        ]
    };
    Ok(match trial {
        Trial::Tcp4 => tcp(connect(&TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)?),
        Trial::Tcp6 => tcp(connect(&TcpListener::bind((Ipv6Addr::LOCALHOST, 0))?)?),
        Trial::OldListener => tcp(connect(&before.get()?.0)?),
        Trial::Refused => {
            let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
            match TcpStream::connect(closed) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
                Ok(_) => return Err(io::Error::other(format!("{closed} is not closed"))),
            }
            vec![expected(Direction::Egress, Outcome::Refused, closed.port())]
        }
        Trial::Udp4 => udp(Outcome::Sent, datagram(Ipv4Addr::LOCALHOST.into(), false)?),
        Trial::Udp6 => udp(Outcome::Sent, datagram(Ipv6Addr::LOCALHOST.into(), false)?),
        Trial::UdpConnected => udp(Outcome::Sent, datagram(Ipv4Addr::LOCALHOST.into(), true)?),
        Trial::UdpAnswered => udp(Outcome::Answered, exchange(false)?),
        Trial::UdpAnsweredUnnamed => udp(Outcome::Answered, exchange(true)?),
        Trial::UdpRejected => {
            let closed = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
            let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            client.connect(closed)?;
            client.send(b"netaudit doctor")?;
            vec![expected(Direction::Egress, Outcome::Rejected, closed.port())]
        }
        Trial::OldConnection | Trial::RawSocket | Trial::PacketSocket | Trial::Dns => vec![],
    })
}

/// A connection to the listener, whose port is returned.
fn connect(listener: &TcpListener) -> io::Result<u16> {
    let address = listener.local_addr()?;
    let mut client = TcpStream::connect_timeout(&address, PATIENCE)?;
    drop(listener.accept()?);
    client.set_read_timeout(Some(PATIENCE))?;
    client.read_to_end(&mut Vec::new())?;
    Ok(address.port())
}

/// A datagram to a server that reads it with its sender. Returns the server's port.
fn datagram(ip: IpAddr, connected: bool) -> io::Result<u16> {
    let server = UdpSocket::bind((ip, 0))?;
    server.set_read_timeout(Some(PATIENCE))?;
    let address = server.local_addr()?;
    let client = UdpSocket::bind(SocketAddr::new(ip, 0))?;
    if connected {
        client.connect(address)?;
        client.send(b"netaudit doctor")?;
    } else {
        client.send_to(b"netaudit doctor", address)?;
    }
    server.recv_from(&mut [0; 64])?;
    Ok(address.port())
}

/// A datagram and its answer, which the client reads with or without its sender. Returns the server's port.
fn exchange(connected: bool) -> io::Result<u16> {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    let address = server.local_addr()?;
    let mut buffer = [0; 64];
    if connected {
        client.connect(address)?;
        client.send(b"netaudit doctor")?;
    } else {
        client.send_to(b"netaudit doctor", address)?;
    }
    let (length, asker) = server.recv_from(&mut buffer)?;
    server.send_to(&buffer[..length], asker)?;
    if connected {
        client.recv(&mut buffer)?
    } else {
        client.recv_from(&mut buffer)?.0
    };
    Ok(address.port())
}

/// Something to count costs by: so many connections and datagrams over loopback.
///
/// # Errors
///
/// When a socket fails.
pub fn load(kernel: &mut Kernel, count: u32) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    for turn in 0..count {
        connect(&listener)?;
        datagram(Ipv4Addr::LOCALHOST.into(), turn % 2 == 0)?;
        // Nobody wants these records; they must only not fill the ring.
        kernel.drain(usize::MAX, &mut |_| {});
    }
    Ok(())
}
