//! Which ends of open connections belong together: by a number of the handshake that is found whatever was sent since.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    num::NonZeroU32,
    os::fd::OwnedFd,
};

use netaudit::model::{Direction, OpenConnection};
use rustix::net::{Shutdown, accept, bind, connect, listen, shutdown, sockopt};

use super::{
    open_sockets::{Held, Ways, hold, look},
    pods::{Pod, Stage, ready, socket_of},
};

/// More than any window, so that a count of what is under way would be wrong.
const BYTES: usize = 3_000_000;

const FAMILIES: [i32; 2] = [libc::AF_INET, libc::AF_INET6];

/// A server that accepts one connection, and at the next step sends and reads a lot, then closes its half.
fn talks(pod: &Pod, ways: Ways) -> Held {
    hold(pod, move |line| {
        let listener = ways.listen()?;
        line.done()?;
        let mut stream = TcpStream::from(accept(&listener)?);
        line.done()?;
        stream.write_all(&vec![1; BYTES])?;
        stream.read_exact(&mut vec![0; BYTES])?;
        stream.shutdown(std::net::Shutdown::Write)?;
        Ok((stream, listener))
    })
}

/// Its client.
fn answers(pod: &Pod, ways: Ways, to: &'static str) -> Held {
    hold(pod, move |line| {
        let mut stream = TcpStream::from(ways.connect(to)?);
        line.done()?;
        stream.read_exact(&mut vec![0; BYTES])?;
        stream.write_all(&vec![2; BYTES])?;
        assert_eq!(stream.read(&mut [0])?, 0);
        Ok(stream)
    })
}

/// The number of the connection to `port` at each end.
#[track_caller]
fn numbers(found: &[OpenConnection], port: u16) -> [NonZeroU32; 2] {
    [Direction::Egress, Direction::Ingress].map(|direction| {
        let is = |it: &&OpenConnection| it.seen.direction == direction && it.seen.port() == port;
        let ends: Vec<_> = found.iter().filter(is).collect();
        let [end] = ends[..] else { panic!("{direction} {port}: {found:#?}") };
        assert_eq!(end.unknown_end, None);
        end.seen.handshake.unwrap_or_else(|| panic!("{direction} {port} has no number"))
    })
}

fn look_at_both(stage: &mut Stage, client: &Pod, server: &Pod) -> Vec<OpenConnection> {
    [look(stage, client), look(stage, server)].concat()
}

#[test]
fn both_ends_keep_the_number_whatever_they_send_and_close() {
    if !ready() {
        return;
    }
    let multipath = |ways| Ways { multipath: true, ..ways };
    let cases = [
        (Ways::at("0.0.0.0:1001"), Ways::PLAIN, "10.9.0.2:1001"),
        (Ways::at("[::]:1002"), Ways::PLAIN, "[fd09::2]:1002"),
        (multipath(Ways::at("0.0.0.0:1003")), multipath(Ways::PLAIN), "10.9.0.2:1003"),
    ];
    // Made before the programs, and after: then the hooks have told the number.
    for before in [true, false] {
        let root = Stage::root();
        let (client, server) = (Pod::new(&root, "client"), Pod::new(&root, "server"));
        client.join(&server);
        let connect = || {
            cases.map(|(listens, connects, to)| {
                let mut accepts = talks(&server, listens);
                let connected = answers(&client, connects, to);
                accepts.next();
                (connected, accepts)
            })
        };
        let (mut stage, mut held) = if before {
            let held = connect();
            (Stage::attach(root), held)
        } else {
            let stage = Stage::attach(root);
            (stage, connect())
        };
        let first = look_at_both(&mut stage, &client, &server);
        for (connected, accepts) in &mut held {
            connected.go_on();
            accepts.next();
            connected.wait();
        }
        let second = look_at_both(&mut stage, &client, &server);
        let told = if before { 0 } else { cases.len() };
        let flows = [stage.expect(&client, told), stage.expect(&server, told)].concat();
        for (_, _, to) in &cases {
            let port = to.parse::<SocketAddr>().unwrap().port();
            let [made, accepted] = numbers(&first, port);
            assert_eq!((made, numbers(&second, port)), (accepted, [made; 2]), "{to}");
            for flow in flows.iter().filter(|flow| flow.port() == port) {
                assert_eq!(flow.handshake, Some(made), "{to} as its hook told");
            }
        }
        drop((held, client, server));
    }
}

#[test]
fn a_fast_open_with_data_is_paired_too() {
    if !ready() {
        return;
    }
    let mut stage = Stage::new();
    let pod = stage.pod("a");
    // Clients and listeners, without having to ask, and without cookies.
    pod.sysctl("ipv4/tcp_fastopen", "1543");
    let held = hold(&pod, |_| {
        let at: SocketAddr = "127.0.0.1:1001".parse().unwrap();
        let listener = Ways::at("127.0.0.1:1001").listen()?;
        let client = socket_of(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        super::ways::send_first(&client, at, 0)?;
        let mut server = TcpStream::from(accept(&listener)?);
        server.read_exact(&mut [0])?;
        server.write_all(b"answer")?;
        TcpStream::from(client.try_clone()?).read_exact(&mut [0; b"answer".len()])?;
        Ok((listener, client, server))
    });
    let [made, accepted] = numbers(&look(&mut stage, &pod), 1001);
    assert_eq!(made, accepted);
    drop((held, pod));
}

/// A program that uses one port for two connections cannot have the one taken for the other.
#[test]
fn connections_from_one_port_have_numbers_of_their_own() {
    if !ready() {
        return;
    }
    for family in FAMILIES {
        let root = Stage::root();
        let (client, server) = (Pod::new(&root, "client"), Pod::new(&root, "server"));
        client.join(&server);
        let [own, theirs] = match family {
            libc::AF_INET => ["10.9.0.1", "10.9.0.2"],
            _ => ["[fd09::1]", "[fd09::2]"],
        };
        let at = |host: &str, port: u16| format!("{host}:{port}").parse::<SocketAddr>().unwrap();
        let mut accepts = hold(&server, |line| {
            let listener = socket_of(family, libc::SOCK_STREAM, 0)?;
            bind(&listener, &at(theirs, 1001))?;
            listen(&listener, 5)?;
            line.done()?;
            Ok((accept(&listener)?, listener))
        });
        let connected = hold(&client, |_| {
            let from_port = || -> std::io::Result<OwnedFd> {
                let made = socket_of(family, libc::SOCK_STREAM, 0)?;
                sockopt::set_socket_reuseaddr(&made, true)?;
                bind(&made, &at(own, 900))?;
                Ok(made)
            };
            let listener = socket_of(family, libc::SOCK_STREAM, 0)?;
            bind(&listener, &at(own, 1002))?;
            listen(&listener, 5)?;
            let (abroad, at_home) = (from_port()?, from_port()?);
            connect(&abroad, &at(theirs, 1001))?;
            connect(&at_home, &at(own, 1002))?;
            let served = accept(&listener)?;
            shutdown(&at_home, Shutdown::Both)?;
            Ok((abroad, served, listener))
        });
        accepts.next();
        let mut stage = Stage::attach(root);
        let ours = look(&mut stage, &client);
        let theirs = look(&mut stage, &server);
        let all = [&ours[..], &theirs].concat();
        assert_eq!(all.len(), 3, "the other end of the one at home is closed: {all:#?}");
        let [made, accepted] = numbers(&all, 1001);
        let at_home = ours.iter().find(|it| it.seen.direction == Direction::Ingress).unwrap();
        let abroad = ours.iter().find(|it| it.seen.direction == Direction::Egress).unwrap();
        assert_eq!(at_home.seen.remote, abroad.seen.local, "one port");
        assert_eq!(made, accepted);
        assert!(at_home.seen.handshake.is_some_and(|number| number != made), "{all:#?}");
        drop((connected, accepts, client, server));
    }
}
