//! The table of outcomes: every way to connect, over IPv4, IPv6 and IPv4 from a v6 socket, and every way it can end.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use netaudit::{
    kernel::Event,
    model::{Observation, Outcome},
};

use super::{
    pods::{Pod, skip},
    tcp::{Pair, connected},
    ways::Way,
};

/// An attempt, what the program was told, and what the kernel recorded of it.
struct Attempt {
    way: Way,
    /// As the program named it.
    to: SocketAddr,
    flows: Vec<Observation>,
    /// How long all of them took.
    took: Duration,
}

/// The three forms of a destination, with ports of their own, so that records tell whose they are.
fn forms(v4: Ipv4Addr, v6: Ipv6Addr, port: u16) -> [SocketAddr; 3] {
    let forms = [(IpAddr::from(v4), port), (v4.to_ipv6_mapped().into(), port + 1), (v6.into(), port + 2)];
    forms.map(SocketAddr::from)
}

const NEIGHBOUR: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 9, 0, 2), Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2));
const ROUTED: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 66, 0, 1), Ipv6Addr::new(0xfd66, 0, 0, 0, 0, 0, 0, 1));

/// Makes one attempt by each of `ways` to each form of the destination, all at once, from `first` port up.
fn attempt_all(
    pair: &mut Pair,
    ways: &[Way],
    (v4, v6): (Ipv4Addr, Ipv6Addr),
    first: u16,
    act: impl Fn(Way, SocketAddr) -> io::Result<()>,
) -> Vec<Attempt> {
    let begun = Instant::now();
    let mut made = Vec::new();
    for (way, port) in ways.iter().zip((first..).step_by(3)) {
        for to in forms(v4, v6, port) {
            let process = pair.a.start(|| act(*way, to));
            made.push((*way, to, process));
        }
    }
    let netns = pair.a.netns;
    let is_of = |event: &Event, port: u16| matches!(event, Event::Flow(flow) if flow.netns == netns && flow.remote.port() == port);
    let has_ended = |events: &[Event], port: u16| {
        let is_final =
            |event: &&Event| !matches!(event, Event::Flow(flow) if flow.outcome == Outcome::Pending);
        events.iter().filter(is_final).any(|event| is_of(event, port))
    };
    pair.stage.wait(|events| made.iter().all(|(_, to, _)| has_ended(events, to.port())));
    let all = made.into_iter().map(|(way, to, process)| {
        process.finish();
        (way, to)
    });
    let all: Vec<_> = all.collect();
    let took = begun.elapsed();
    // For one too many.
    std::thread::sleep(Duration::from_millis(50));
    pair.stage.drain();
    let flows = pair.stage.flows(&pair.a);
    let attempt = |(way, to): (Way, SocketAddr)| {
        let flows: Vec<_> = flows.iter().filter(|flow| flow.remote.port() == to.port()).copied().collect();
        for flow in &flows {
            assert_eq!(flow.remote.ip(), to.ip().to_canonical(), "{way:?} {to}");
            assert_eq!(flow.local.is_ipv4(), flow.remote.is_ipv4(), "{way:?} {to}");
            assert_eq!(flow.actor.cgroup, Some(pair.a.cgroup.id()), "{way:?} {to}");
            assert!(flow.waited <= took, "{way:?} {to}: {:?} of {took:?}", flow.waited);
        }
        let same =
            flows.windows(2).all(|two| (two[0].socket, two[0].sequence) == (two[1].socket, two[1].sequence));
        assert!(same, "{way:?} {to}: one attempt: {flows:#?}");
        Attempt { way, to, flows, took }
    };
    all.into_iter().map(attempt).collect()
}

/// The attempt fails, as it should.
fn fail(way: Way, to: SocketAddr) -> io::Result<()> {
    match way.go(to) {
        Ok(()) => Err(io::Error::other(format!("{way:?} connected to {to}"))),
        Err(_) => Ok(()),
    }
}

/// Each is told once, with this outcome, and perhaps as pending before.
fn all_end(attempts: &[Attempt], outcome: Outcome) {
    for Attempt { way, to, flows, .. } in attempts {
        let told: Vec<_> = flows.iter().map(|flow| flow.outcome).collect();
        let is_right = told == [outcome] || told == [Outcome::Pending, outcome];
        assert!(is_right, "{way:?} {to}: {told:?} and not {outcome}");
    }
}

/// The same, and never as pending.
fn all_end_at_once(attempts: &[Attempt], outcome: Outcome) {
    all_end(attempts, outcome);
    // On a machine so slow that an answer takes a second, it was pending.
    let late = |attempt: &&Attempt| attempt.flows.len() > 1 && attempt.took < Duration::from_secs(1);
    assert_eq!(attempts.iter().filter(late).map(|it| (it.way, it.to)).collect::<Vec<_>>(), []);
}

#[test]
fn established_by_every_way() {
    let Some(mut pair) = Pair::new() else { return };
    for pod in [&pair.a, &pair.b] {
        // Clients and listeners, without having to ask.
        pod.sysctl("ipv4/tcp_fastopen", "1027");
    }
    // Twice: the first time a cookie for opening fast is asked for, the second time it is there.
    for _ in 0..2 {
        for way in Way::offered() {
            for to in forms(NEIGHBOUR.0, NEIGHBOUR.1, 8080) {
                let shown = SocketAddr::new(to.ip().to_canonical(), to.port());
                connected(&mut pair, &format!("[::]:{}", to.port()), &shown.to_string(), || way.go(to));
            }
        }
    }
}

#[test]
fn a_closed_port_refuses_every_way() {
    let Some(mut pair) = Pair::new() else { return };
    let attempts = attempt_all(&mut pair, &Way::offered(), NEIGHBOUR, 100, fail);
    all_end_at_once(&attempts, Outcome::Refused);
    assert!(attempts.iter().all(|it| it.flows[0].answered || it.flows[0].local.port() != 0));
}

#[test]
fn the_neighbours_filter_rejects_resets_and_drops_every_way() {
    let Some(mut pair) = Pair::new() else { return };
    if std::process::Command::new("nft").arg("--version").output().is_err() {
        return skip("no nft: apt-get install nftables");
    }
    let nft = |pod: &Pod, rules: &str| pod.command("nft", &[rules]);
    nft(&pair.b, "add table inet t; add chain inet t i { type filter hook input priority 0; }");
    for (first, verdict) in [
        (100, "reject with icmpx port-unreachable"),
        (200, "reject with icmpx admin-prohibited"),
        (300, "reject with tcp reset"),
        (400, "drop"),
    ] {
        nft(&pair.b, &format!("add rule inet t i tcp dport {first}-{} {verdict}", first + 99));
    }
    // Else only the first few are answered.
    pair.b.sysctl("ipv4/icmp_ratelimit", "0");
    pair.b.sysctl("ipv6/icmp/ratelimit", "0");
    let ways = Way::offered();
    all_end(&attempt_all(&mut pair, &ways, NEIGHBOUR, 100, fail), Outcome::Rejected);
    all_end(&attempt_all(&mut pair, &ways, NEIGHBOUR, 200, fail), Outcome::Rejected);
    // A reset is a reset, whoever sends it.
    all_end_at_once(&attempt_all(&mut pair, &ways, NEIGHBOUR, 300, fail), Outcome::Refused);
    let dropped = attempt_all(&mut pair, &ways, NEIGHBOUR, 400, fail);
    all_end(&dropped, Outcome::Timeout);
    for Attempt { way, to, flows, .. } in &dropped {
        assert_eq!(flows.len(), 2, "{way:?} {to}: pending, and then the end");
        assert!(flows[0].waited < flows[1].waited && !flows[1].answered, "{way:?} {to}: {flows:#?}");
        assert!(flows[0].waited > Duration::from_millis(900), "{way:?} {to}: {flows:#?}");
    }
}

#[test]
fn without_a_route_every_way_fails_before_anything_is_sent() {
    let Some(mut pair) = Pair::new() else { return };
    let nowhere = (Ipv4Addr::new(10, 77, 0, 1), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1));
    all_end_at_once(&attempt_all(&mut pair, &Way::offered(), nowhere, 100, fail), Outcome::Failed);
}

#[test]
fn a_neighbour_that_does_not_answer_for_its_address_is_unreachable_every_way() {
    let Some(mut pair) = Pair::new() else { return };
    // Longer than the three seconds for which the kernel asks who has the address.
    pair.a.sysctl("ipv4/tcp_syn_retries", "3");
    let nobody = (Ipv4Addr::new(10, 9, 0, 77), Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 0x77));
    all_end(&attempt_all(&mut pair, &Way::offered(), nobody, 100, fail), Outcome::Unreachable);
}

#[test]
fn giving_up_is_aborted_with_the_time_waited_every_way() {
    let Some(mut pair) = Pair::new() else { return };
    pair.route("blackhole");
    let offered = Way::offered();
    let ways: Vec<_> = [Way::NonBlocking, Way::FastOpen, Way::Multipath]
        .into_iter()
        .filter(|way| offered.contains(way))
        .collect();
    for (first, wait) in [(100, 1), (200, 200)] {
        let wait = Duration::from_millis(wait);
        let attempts = attempt_all(&mut pair, &ways, ROUTED, first, |way, to| {
            let _socket = way.start(to)?;
            std::thread::sleep(wait);
            Ok(())
        });
        all_end_at_once(&attempts, Outcome::Aborted);
        for Attempt { way, to, flows, .. } in &attempts {
            let end = flows.last().unwrap();
            assert!(end.waited >= wait && !end.answered, "{way:?} {to}: {end:#?}");
        }
    }
}
