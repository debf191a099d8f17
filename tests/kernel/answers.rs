//! What comes back for datagrams: answers however they are read, ICMP errors, and nothing where nothing is certain.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use netaudit::{
    kernel::{Event, Feature},
    model::{Answer, Direction, Errno, Observation, Outcome},
};

use super::{
    pods::{Pod, Stage, check, ready, skip},
    udp::{FIRST_DATAGRAM, Service, client, echo, send_many},
};

/// The client's flows so far, in order, each with what came back for it.
fn answered(service: &Service) -> Vec<(Observation, Option<Answer>)> {
    let answers: Vec<Answer> = service
        .stage
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Answer(answer) => Some(*answer),
            _ => None,
        })
        .collect();
    let flows = service.stage.flows(&service.client);
    let is_of = |flow: &Observation, answer: &Answer| {
        flow.direction == Direction::Egress
            && (flow.socket, flow.sequence) == (answer.socket, answer.sequence)
    };
    for answer in &answers {
        assert!(flows.iter().any(|flow| is_of(flow, answer)), "of no flow: {answer:?} in {flows:#?}");
    }
    flows
        .into_iter()
        .map(|flow| {
            let mut of_flow = answers.iter().filter(|answer| is_of(&flow, answer));
            let answer = of_flow.next().copied();
            assert_eq!(of_flow.next(), None, "told twice");
            assert!(answer.is_none_or(|answer| answer.at >= flow.at), "{flow:?} {answer:?}");
            (flow, answer)
        })
        .collect()
}

/// Runs `act` in the client's pod, and tells the outcomes of the flows that it made, in order.
fn outcomes(service: &mut Service, act: impl FnOnce() -> io::Result<()>) -> Vec<(Outcome, Option<Errno>)> {
    service.stage.drain();
    let before = service.stage.flows(&service.client).len();
    service.client.run(act);
    std::thread::sleep(Duration::from_millis(50));
    service.stage.drain();
    let decide = |(flow, answer): (Observation, Option<Answer>)| match answer {
        Some(answer) => (answer.outcome, answer.errno),
        None => (flow.outcome, flow.errno),
    };
    answered(service).into_iter().skip(before).map(decide).collect()
}

const ANSWERED: (Outcome, Option<Errno>) = (Outcome::Answered, None);
const SENT: (Outcome, Option<Errno>) = (Outcome::Sent, None);
const REFUSED: (Outcome, Option<Errno>) = (Outcome::Rejected, Some(Errno::ECONNREFUSED));

/// The forms of the server's address, each with whether it takes a v6 socket.
fn forms(port: u16) -> [(bool, String); 3] {
    [(false, "10.9.0.2"), (true, "[::ffff:10.9.0.2]"), (true, "[fd09::2]")]
        .map(|(v6, host)| (v6, format!("{host}:{port}")))
}

/// Reads `count` datagrams by `recvmmsg`, with or without room for their senders.
fn receive_many(socket: &UdpSocket, count: usize, with_sender: bool) -> io::Result<()> {
    let mut data = [0_u8; 64];
    // SAFETY: zeros are a value of the structure.
    let mut address: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    for _ in 0..count {
        let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
        // SAFETY: zeros are a value of the structure.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_iov = &raw mut part;
        message.msg_hdr.msg_iovlen = 1;
        if with_sender {
            message.msg_hdr.msg_name = (&raw mut address).cast();
            message.msg_hdr.msg_namelen = size_of_val(&address) as libc::socklen_t;
        }
        let no_limit = std::ptr::null_mut();
        // SAFETY: the message and what it points to live until the call returns.
        check(unsafe { libc::recvmmsg(socket.as_raw_fd(), &raw mut message, 1, 0, no_limit) })?;
    }
    Ok(())
}

/// Makes the kernel tell all ICMP errors, also to a socket that is not connected.
fn ask_for_errors(socket: &UdpSocket) -> io::Result<()> {
    let v6 = socket.local_addr()?.is_ipv6();
    let on = 1_i32;
    for (level, option) in [(libc::IPPROTO_IP, libc::IP_RECVERR), (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)] {
        if level == libc::IPPROTO_IPV6 && !v6 {
            continue;
        }
        // SAFETY: the option is an integer.
        check(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                option,
                (&raw const on).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        })?;
    }
    Ok(())
}

#[test]
fn an_answer_is_noticed_however_it_is_read() {
    let Some(mut service) = Service::new() else { return };
    for (v6, to) in forms(53) {
        let named = || echo(&client(v6)?, &to);
        let connected_named = || {
            let socket = client(v6)?;
            socket.connect(&to)?;
            socket.send(b"hello")?;
            socket.recv_from(&mut [0; 64]).map(drop)
        };
        let connected_unnamed = || {
            let socket = client(v6)?;
            socket.connect(&to)?;
            socket.send(b"hello")?;
            socket.recv(&mut [0; 64]).map(drop)
        };
        let unnamed = || {
            let socket = client(v6)?;
            socket.send_to(b"hello", &to)?;
            socket.recv(&mut [0; 64]).map(drop)
        };
        let many = || {
            let socket = client(v6)?;
            send_many(&socket, &to, 5)?;
            receive_many(&socket, 5, true)
        };
        let bound = || {
            let socket = UdpSocket::bind(if v6 { "[::]:0" } else { "0.0.0.0:0" })?;
            echo(&socket, &to)
        };
        let bound_connected = || {
            let socket = UdpSocket::bind(if v6 { "[::]:0" } else { "0.0.0.0:0" })?;
            socket.connect(&to)?;
            socket.send(b"hello")?;
            socket.recv(&mut [0; 64]).map(drop)
        };
        let ways: [(&str, &dyn Fn() -> io::Result<()>); 7] = [
            ("recvfrom", &named),
            ("connected, recvfrom", &connected_named),
            ("connected, recv", &connected_unnamed),
            ("recv", &unnamed),
            ("recvmmsg", &many),
            ("bound, recvfrom", &bound),
            ("bound and connected, recv", &bound_connected),
        ];
        for (way, act) in ways {
            assert_eq!(outcomes(&mut service, act), [ANSWERED], "{way}, {to}");
        }
    }
    let of_server = service.stage.flows(&service.server);
    assert!(
        of_server.iter().all(|flow| flow.outcome == Outcome::Received),
        "an answer is no flow: {of_server:#?}"
    );
}

#[test]
fn what_is_not_certain_stays_sent() {
    let Some(mut service) = Service::new() else { return };
    let other = service.serve("10.9.0.2:54");
    // Nobody reads at this one, so nothing comes back.
    let silent = service.server.start(|| {
        let _socket = UdpSocket::bind("10.9.0.2:55")?;
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    });
    let no_answer = || {
        let socket = client(false)?;
        socket.connect("10.9.0.2:55")?;
        socket.send(b"hello")?;
        socket.send(b"hello").map(drop)
    };
    // A silent server's port must be open first.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(outcomes(&mut service, no_answer), [SENT]);
    let of_two_unnamed = || {
        let socket = client(false)?;
        for to in ["10.9.0.2:53", "10.9.0.2:54"] {
            socket.send_to(b"hello", to)?;
            socket.recv(&mut [0; 64])?;
        }
        Ok(())
    };
    assert_eq!(outcomes(&mut service, of_two_unnamed), [SENT, SENT]);
    let of_two_connects = || {
        let socket = client(false)?;
        for to in ["10.9.0.2:53", "10.9.0.2:55"] {
            socket.connect(to)?;
            socket.send(b"hello")?;
            if to.ends_with("53") {
                socket.recv(&mut [0; 64])?;
            }
        }
        Ok(())
    };
    assert_eq!(outcomes(&mut service, of_two_connects), [SENT, SENT]);
    // It may serve as well: what it read may have been asked by anybody.
    let bound = || {
        let socket = UdpSocket::bind("10.9.0.1:0")?;
        socket.send_to(b"hello", "10.9.0.2:53")?;
        socket.recv(&mut [0; 64]).map(drop)
    };
    assert_eq!(outcomes(&mut service, bound), [SENT]);
    drop((other, silent));
}

#[test]
fn of_several_destinations_those_are_answered_that_did() {
    let Some(mut service) = Service::new() else { return };
    let other = service.serve("10.9.0.2:54");
    let act = || {
        let socket = client(false)?;
        for port in [53, 9, 54, 10, 53, 54] {
            socket.send_to(b"hello", ("10.9.0.2", port))?;
        }
        (0..4).try_for_each(|_| socket.recv_from(&mut [0; 64]).map(drop))
    };
    assert_eq!(outcomes(&mut service, act), [ANSWERED, SENT, ANSWERED, SENT]);
    drop(other);
}

#[test]
fn a_long_exchange_is_answered_before_its_end() {
    let Some(mut service) = Service::new() else { return };
    if !service.stage.kernel.features().contains(&FIRST_DATAGRAM) {
        return skip("nothing shows what a connected socket sends");
    }
    let process = service.client.start(|| {
        let socket = client(false)?;
        socket.connect("10.9.0.2:53")?;
        for _ in 0..2 {
            socket.send(b"hello")?;
            socket.recv(&mut [0; 64])?;
        }
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    });
    let is_answer =
        |event: &Event| matches!(event, Event::Answer(answer) if answer.outcome == Outcome::Answered);
    assert!(service.stage.wait(|events| events.iter().any(is_answer)), "{:#?}", service.stage.events);
    drop(process);
    assert_eq!(answered(&service).len(), 1);
}

#[test]
fn a_flow_that_is_told_again_is_answered_again_only_where_that_is_seen() {
    if !ready() {
        return;
    }
    let interval = Duration::from_millis(300);
    let mut service = Service::on(Stage::with_retell(interval));
    if !service.stage.kernel.features().contains(&FIRST_DATAGRAM) {
        return skip("nothing shows what a connected socket sends");
    }
    let named = || {
        let socket = client(false)?;
        for _ in 0..3 {
            echo(&socket, "10.9.0.2:53")?;
            std::thread::sleep(2 * interval);
        }
        Ok(())
    };
    assert_eq!(outcomes(&mut service, named), [ANSWERED; 3]);
    let unnamed = || {
        let socket = client(false)?;
        socket.connect("10.9.0.2:53")?;
        for _ in 0..3 {
            socket.send(b"hello")?;
            socket.recv(&mut [0; 64])?;
            std::thread::sleep(2 * interval);
        }
        Ok(())
    };
    // Of a later one nothing is known: the kernel does not tell how often it received.
    assert_eq!(outcomes(&mut service, unnamed), [ANSWERED, SENT, SENT]);
}

#[test]
fn a_closed_port_rejects() {
    let Some(mut service) = Service::new() else { return };
    let errors = Feature { name: Feature::UDP_ERRORS, absent: None };
    assert!(service.stage.kernel.features().contains(&errors));
    for (v6, to) in forms(9) {
        // The kernel tells it to the next call, whichever that is.
        let is_refused = |result: io::Result<usize>| match result {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            other => Err(io::Error::other(format!("{other:?}"))),
        };
        let connected = || {
            let socket = client(v6)?;
            socket.connect(&to)?;
            socket.send(b"hello")?;
            is_refused(socket.recv(&mut [0; 64]))
        };
        let not_read = || {
            let socket = client(v6)?;
            socket.connect(&to)?;
            socket.send(b"hello")?;
            std::thread::sleep(Duration::from_millis(20));
            Ok(())
        };
        let asking = || {
            let socket = client(v6)?;
            ask_for_errors(&socket)?;
            socket.send_to(b"hello", &to)?;
            is_refused(socket.recv(&mut [0; 64]))
        };
        assert_eq!(outcomes(&mut service, connected), [REFUSED], "connected, {to}");
        assert_eq!(outcomes(&mut service, not_read), [REFUSED], "not read, {to}");
        assert_eq!(outcomes(&mut service, asking), [REFUSED], "asking for errors, {to}");
    }
    // The kernel keeps this one from the program, and from us.
    let unconnected = || client(false)?.send_to(b"hello", "10.9.0.2:9").map(drop);
    assert_eq!(outcomes(&mut service, unconnected), [SENT]);
    let of_two = || {
        let socket = client(false)?;
        socket.send_to(b"hello", "10.9.0.2:53")?;
        socket.recv(&mut [0; 64])?;
        ask_for_errors(&socket)?;
        socket.send_to(b"hello", "10.9.0.2:9")?;
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    };
    assert_eq!(outcomes(&mut service, of_two), [SENT, SENT], "either may be the one");
}

#[test]
fn a_filter_rejects_and_a_lost_way_is_no_filter() {
    let Some(mut service) = Service::new() else { return };
    if std::process::Command::new("nft").arg("--version").output().is_err() {
        return skip("no nft: apt-get install nftables");
    }
    let nft = |pod: &Pod, rules: &str| pod.command("nft", &[rules]);
    nft(&service.server, "add table inet t; add chain inet t i { type filter hook input priority 0; }");
    nft(&service.server, "add rule inet t i udp dport 20 reject with icmpx admin-prohibited");
    service.server.sysctl("ipv4/icmp_ratelimit", "0");
    service.server.sysctl("ipv6/icmp/ratelimit", "0");
    let send = |to: SocketAddr, v6: bool, asking: bool| {
        move || {
            let socket = client(v6)?;
            if asking {
                ask_for_errors(&socket)?;
            }
            socket.connect(to)?;
            socket.send(b"hello")?;
            socket.recv(&mut [0; 64]).map_or(Ok(()), |_| Err(io::Error::other("an answer")))
        }
    };
    for (v6, to) in forms(20) {
        let is_v4 = !to.contains("fd09");
        let errno = if is_v4 { Errno::EHOSTUNREACH } else { Errno::EACCES };
        for asking in [false, true] {
            let told = outcomes(&mut service, send(to.parse().unwrap(), v6, asking));
            assert_eq!(told, [(Outcome::Rejected, Some(errno))], "{to}, asking for errors: {asking}");
        }
    }
    // Nobody has this address, which takes the kernel three seconds to find out.
    for (v6, to) in [(false, "10.9.0.77:53"), (true, "[fd09::77]:53")] {
        let told = outcomes(&mut service, send(to.parse().unwrap(), v6, true));
        assert_eq!(told, [(Outcome::Unreachable, Some(Errno::EHOSTUNREACH))], "{to}");
    }
}
