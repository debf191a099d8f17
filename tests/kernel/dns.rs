//! DNS answers on the real hook: told where a socket has asked for them, and nothing else that comes from port 53.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, UdpSocket},
    os::unix::net::UnixStream,
    time::Duration,
};

use netaudit::{
    kernel::{Event, Feature, Options},
    model::DnsAnswer,
};

use super::{
    pods::{Pod, Running, Stage, ready},
    udp::client,
};
use crate::dns::message::{A, ASKED, Message};

/// Loads with or without names.
fn stage(dns_names: bool) -> Option<Stage> {
    let options = Options { ring_bytes: 4 << 20, dns_names, ..Options::default() };
    ready().then(|| Stage::with(Stage::root(), options))
}

/// A pod with a server, one with clients, and what runs in the server's.
struct Asked {
    // In the order in which they must end: processes leave the pods, and pods the tree.
    server: Option<Running>,
    client: Pod,
    server_pod: Pod,
    stage: Stage,
}

impl Asked {
    /// With a server that answers every datagram with what it holds.
    fn new() -> Option<Self> {
        Self::on(stage(true)?)
    }

    fn on(stage: Stage) -> Option<Self> {
        let (client, server_pod) = (stage.pod("client"), stage.pod("server"));
        client.join(&server_pod);
        let server = serve(&server_pod, "[::]:53");
        Some(Self { server: Some(server), client, server_pod, stage })
    }

    /// The answers that were told by now.
    fn told(&mut self) -> Vec<DnsAnswer> {
        std::thread::sleep(Duration::from_millis(50));
        self.stage.drain();
        let events = std::mem::take(&mut self.stage.events);
        events
            .into_iter()
            .filter_map(|event| match event {
                Event::Dns(answer) => Some(answer),
                _ => None,
            })
            .collect()
    }

    /// What became of packets from port 53, without what is zero.
    fn counts(&self) -> BTreeMap<&'static str, u64> {
        let counts = self.stage.kernel.dns_counts();
        counts.into_iter().filter(|it| it.count > 0).map(|it| (it.became, it.count)).collect()
    }
}

/// Starts a server that sends back what it gets.
fn serve(pod: &Pod, address: &str) -> Running {
    let (ready, signal) = UnixStream::pair().unwrap();
    let process = pod.start(|| {
        let socket = UdpSocket::bind(address)?;
        io::Write::write_all(&mut &signal, b"x")?;
        let mut buffer = [0; 8_192];
        loop {
            let (length, client) = socket.recv_from(&mut buffer)?;
            socket.send_to(&buffer[..length], client)?;
        }
    });
    io::Read::read_exact(&mut &ready, &mut [0]).unwrap();
    process
}

fn example() -> Vec<u8> {
    Message::answer("www.example.com", A).address_of(&ASKED, "192.0.2.7", 60).0
}

/// Sends what shall come back, and reads it.
fn ask(socket: &UdpSocket, to: &str, answer: &[u8]) -> io::Result<()> {
    socket.send_to(answer, to)?;
    socket.recv_from(&mut [0; 8_192]).map(drop)
}

#[test]
fn an_answer_is_told_with_who_got_it_and_who_sent_it() {
    let Some(mut asked) = Asked::new() else { return };
    assert!(asked.stage.kernel.features().contains(&Feature { name: Feature::DNS_ANSWERS, absent: None }));
    let payload = example();
    let mut count = 0;
    for (v6, to, server) in [
        (false, "10.9.0.2:53", "10.9.0.2"),
        (true, "[fd09::2]:53", "fd09::2"),
        (true, "[::ffff:10.9.0.2]:53", "10.9.0.2"),
    ] {
        let unconnected = || ask(&client(v6)?, to, &payload);
        let connected = || {
            let socket = client(v6)?;
            socket.connect(to)?;
            socket.send(&payload)?;
            socket.recv(&mut [0; 512]).map(drop)
        };
        // As a resolver does that asks all its servers through one socket.
        let several = || {
            let socket = client(v6)?;
            let elsewhere = if v6 && to.contains("fd09") { "[fd09::2]:54" } else { "10.9.0.2:54" };
            let elsewhere = if to.contains("ffff") { "[::ffff:10.9.0.2]:54" } else { elsewhere };
            socket.send_to(&payload, elsewhere)?;
            ask(&socket, to, &payload)
        };
        for act in [&unconnected as &dyn Fn() -> io::Result<()>, &connected, &several] {
            asked.client.run(act);
            count += 1;
            let told = asked.told();
            assert_eq!(told.len(), 1, "{to}: {told:?} {:?}", asked.counts());
            assert_eq!(
                (told[0].netns, told[0].server),
                (asked.client.netns, server.parse::<IpAddr>().unwrap())
            );
            assert_eq!((&*told[0].payload, told[0].is_cut), (&*payload, false));
            assert!(asked.stage.kernel.now().since(told[0].at) < Duration::from_secs(10));
            // The question reached the server from another port, and is none of them.
            assert_eq!(asked.counts(), [("recorded", count)].into());
        }
    }
}

#[test]
fn nothing_is_told_that_nobody_asked_for() {
    let Some(stage) = stage(true) else { return };
    let Some(mut asked) = Asked::on(stage) else { return };
    asked.server = None;
    let payload = example();
    // A socket that has never sent, one that has asked elsewhere, and one that has sent to another port of the same.
    let (ready, signal) = UnixStream::pair().unwrap();
    let listening = asked.client.start(|| {
        let sockets = ["10.9.0.1:4001", "10.9.0.1:4002", "10.9.0.1:4003"].map(UdpSocket::bind);
        let [never, elsewhere, other_port] = sockets;
        let (never, elsewhere, other_port) = (never?, elsewhere?, other_port?);
        elsewhere.send_to(b"x", "10.9.0.77:53")?;
        other_port.send_to(b"x", "10.9.0.2:5300")?;
        io::Write::write_all(&mut &signal, b"x")?;
        for socket in [never, elsewhere, other_port] {
            socket.recv_from(&mut [0; 512])?;
        }
        Ok(())
    });
    io::Read::read_exact(&mut &ready, &mut [0]).unwrap();
    asked.server_pod.run(|| {
        let socket = UdpSocket::bind("10.9.0.2:53")?;
        (4001..4004).try_for_each(|port| socket.send_to(&payload, ("10.9.0.1", port)).map(drop))
    });
    listening.finish();
    assert_eq!(asked.told(), []);
    assert_eq!(asked.counts(), [("unasked", 3)].into());
}

#[test]
fn only_answers_with_records_from_port_53_are_told() {
    let Some(mut asked) = Asked::new() else { return };
    let _other = serve(&asked.server_pod, "[::]:5353");
    let good = example();
    let through = |to: &'static str, payloads: &[Vec<u8>]| {
        asked.client.run(|| {
            let socket = client(false)?;
            payloads.iter().try_for_each(|payload| ask(&socket, to, payload))
        });
    };
    through("10.9.0.2:5353", std::slice::from_ref(&good));
    let nxdomain = Message(good.clone()).flags(0x8183).0;
    let empty = Message::answer("www.example.com", A).0;
    let question = Message(good.clone()).flags(0x0100).0;
    let update = Message(good.clone()).flags(0xa800).0;
    through(
        "10.9.0.2:53",
        &[
            b"hello".to_vec(),
            b"hello, this is no DNS".to_vec(),
            question,
            update,
            nxdomain,
            empty,
            Message(good.clone()).flags(0x8380).0,
        ],
    );
    let told = asked.told();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(netaudit::audit::is_truncated(&told[0].payload));
    assert_eq!(asked.counts(), [("recorded", 1), ("not-dns", 4), ("empty", 2)].into());
}

#[test]
fn answers_of_every_length_are_told_as_far_as_there_is_room() {
    let Some(mut asked) = Asked::new() else { return };
    let least = example().len() + 13;
    for length in [least, 255, 256, 257, 512, 1_231, 1_232, 1_233, 1_400, 4_096] {
        let payload = Message(example()).padded(length).0;
        assert_eq!(payload.len(), length);
        asked.client.run(|| ask(&client(false)?, "10.9.0.2:53", &payload));
        asked.client.run(|| ask(&client(true)?, "[fd09::2]:53", &payload));
        let told = asked.told();
        assert_eq!(told.len(), 2, "{length}");
        for answer in told {
            assert_eq!(*answer.payload, payload[..length.min(1_232)], "{length}");
            assert_eq!(answer.is_cut, length > 1_232);
        }
    }
    assert_eq!(asked.stage.kernel.undecodable(), 0);
}

#[test]
fn a_flood_takes_its_own_share_and_is_counted() {
    let Some(mut asked) = Asked::new() else { return };
    let other = asked.stage.pod("other");
    let _own = serve(&other, "[::]:53");
    let payload = example();
    asked.client.run(|| {
        let socket = client(false)?;
        socket.connect("10.9.0.2:53")?;
        for _ in 0..4_000 {
            socket.send(&payload)?;
            socket.recv(&mut [0; 512])?;
        }
        Ok(())
    });
    other.run(|| ask(&client(false)?, "127.0.0.1:53", &payload));
    let told = asked.told();
    let (own, others): (Vec<_>, Vec<_>) = told.iter().partition(|answer| answer.netns == other.netns);
    assert_eq!(own.len(), 1, "another pod's answer finds room");
    let lost: u64 = asked.stage.kernel.losses().iter().map(|loss| loss.count).sum();
    let limited = asked.stage.kernel.losses().iter().all(|loss| loss.cause == "dns-limited");
    assert!(limited && lost > 0, "{:?}", asked.stage.kernel.losses());
    assert_eq!(others.len() as u64 + lost, 4_000);
    assert!(others.len() >= 1_000, "{}", others.len());
}

#[test]
fn without_the_option_nothing_is_attached() {
    let Some(mut asked) = stage(false).and_then(Asked::on) else { return };
    asked.client.run(|| ask(&client(false)?, "10.9.0.2:53", &example()));
    assert_eq!((asked.told(), asked.counts()), (vec![], BTreeMap::new()));
    let loaded = asked.stage.kernel.programs().into_iter().any(|it| it.name == "on_answer" && it.loaded);
    assert!(!loaded);
    assert!(asked.stage.kernel.features().iter().all(|it| it.name != Feature::DNS_ANSWERS));
}
