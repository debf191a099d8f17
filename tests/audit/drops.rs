//! Drops of the node's filter: which attempt each belongs to, and what it proves at the destination.

use netaudit::model::{DropReason, PacketDrop, Reach};

use super::*;

const NETFILTER: DropReason = DropReason("NETFILTER_DROP");

/// The node's filter dropped a SYN, at that many seconds.
pub(super) fn dropped(source: &str, destination: &str, at: Timestamp) -> PacketDrop {
    PacketDrop {
        at,
        netns: HOST,
        protocol: Protocol::Tcp,
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        reason: NETFILTER,
        sequence: 1,
        opens: true,
        folded: None,
        maybe_repeated: false,
    }
}

/// What `a` attempted from port 40000 at second 10, and how it ended.
fn ended(outcome: Outcome, waited: Duration, remote: &str) -> Observation {
    Observation { outcome, waited, answered: false, ..egress(101, 11, "10.0.0.1:40000", remote) }
}

fn deny_ingress() -> Object {
    policy("deny-in", json!({"podSelector": {"matchLabels": {"app": "b"}}, "policyTypes": ["Ingress"]}))
}

impl World {
    pub(super) fn drop(&mut self, seen: PacketDrop) -> Vec<Flow> {
        let mut flows = Vec::new();
        self.auditor.observe_drop(&seen, seen.at, &mut flows);
        flows
    }
}

const FROM_A: (&str, &str) = ("10.0.0.1:40000", "10.0.0.2:80");

#[test]
fn a_drop_stops_the_attempt_that_it_belongs_to_however_it_ends() {
    for (outcome, waited) in [
        (Outcome::Timeout, Duration::from_secs(127)),
        (Outcome::Rejected, Duration::from_secs(1)),
        (Outcome::Refused, Duration::from_millis(1)),
        (Outcome::Aborted, Duration::from_millis(1)),
        (Outcome::Unreachable, Duration::from_millis(1)),
    ] {
        let mut world = World::new(vec![deny_egress()]);
        assert!(world.drop(dropped(FROM_A.0, FROM_A.1, t(10))).is_empty(), "egress policies explain it");
        let flow = world.one(ended(outcome, waited, FROM_A.1));
        assert_eq!((flow.reach, flow.stopped_by), (Reach::Stopped, Some(NETFILTER)), "{outcome}");
        assert_eq!(flow.finding, Some(Finding::Blocked), "{outcome}");
        let again = world.one(Observation { sequence: 2, ..ended(outcome, waited, FROM_A.1) });
        assert_eq!(again.stopped_by, None, "{outcome}: one drop is of one attempt");
    }
}

#[test]
fn what_stops_an_allowed_attempt_is_suspected_for_certain() {
    let mut world = World::new(vec![]);
    // Both ends are of this node, and each has its own flow of it.
    let ingress = world.drop(dropped(FROM_A.0, FROM_A.1, t(10)));
    assert_eq!((ingress.len(), ingress[0].finding), (1, Some(Finding::SuspectedBlock)));
    // Too early to mean anything by itself.
    let flow = world.one(ended(Outcome::Aborted, Duration::from_millis(1), FROM_A.1));
    assert_eq!((flow.reach, flow.finding), (Reach::Stopped, Some(Finding::SuspectedBlock)));
}

#[test]
fn a_drop_of_another_time_place_or_protocol_belongs_to_another_attempt() {
    let timeout = || ended(Outcome::Timeout, Duration::from_secs(3), FROM_A.1);
    let good = dropped(FROM_A.0, FROM_A.1, t(11));
    for (what, other) in [
        ("before the port was used again", PacketDrop { at: t(9), ..good }),
        ("after the end", PacketDrop { at: t(14), ..good }),
        ("of another pod", dropped("10.0.0.3:40000", FROM_A.1, t(11))),
        ("from another port", dropped("10.0.0.1:40001", FROM_A.1, t(11))),
        ("to another port", dropped(FROM_A.0, "10.0.0.2:81", t(11))),
        ("to another address", dropped(FROM_A.0, "10.0.0.3:80", t(11))),
        ("a datagram", PacketDrop { protocol: Protocol::Udp, ..good }),
    ] {
        let mut world = World::new(vec![deny_egress(), pod("c", Some("10.0.0.3"))]);
        world.drop(other);
        let flow = world.one(timeout());
        assert_eq!((flow.reach, flow.stopped_by), (Reach::NoAnswer, None), "{what}");
    }
    let mut world = World::new(vec![deny_egress()]);
    world.drop(good);
    assert_eq!(world.one(timeout()).reach, Reach::Stopped);
}

#[test]
fn a_reset_answers_the_syn_that_was_dropped_only_if_it_was_the_last() {
    let mut world = World::new(vec![deny_egress()]);
    // The first SYN was dropped, the second got as far as a closed port.
    world.drop(dropped(FROM_A.0, FROM_A.1, t(10)));
    let flow = world.one(ended(Outcome::Refused, Duration::from_millis(1_001), FROM_A.1));
    assert_eq!((flow.reach, flow.finding), (Reach::Rejected, Some(Finding::DeniedRefused)));
}

#[test]
fn a_first_syn_that_was_dropped_does_not_undo_a_connection() {
    let mut world = World::new(vec![deny_egress()]);
    world.drop(dropped(FROM_A.0, FROM_A.1, t(10)));
    let made = ended(Outcome::Established, Duration::from_secs(1), FROM_A.1);
    let flow = world.one(made);
    assert_eq!(
        (flow.reach, flow.stopped_by, flow.finding),
        (Reach::Reached, None, Some(Finding::Unenforced))
    );
}

#[test]
fn an_attempt_under_way_at_the_end_is_stopped_too() {
    let mut world = World::new(vec![deny_egress()]);
    world.see(ended(Outcome::Pending, Duration::from_secs(1), FROM_A.1));
    // The filter came later than the attempt.
    world.drop(dropped(FROM_A.0, FROM_A.1, t(13)));
    let mut flows = Vec::new();
    world.auditor.finish(&mut flows);
    world.auditor.finish_pending(&mut flows);
    assert_eq!((flows[0].observation.outcome, flows[0].reach), (Outcome::Pending, Reach::Stopped));
}

#[test]
fn behind_a_service_a_drop_shows_the_endpoint() {
    let objects = || {
        let mut objects = vec![pod("c", Some("10.0.0.3")), pod("d", Some("10.0.0.4"))];
        objects.extend(service("b", "10.96.0.1", &[("b", "10.0.0.2"), ("c", "10.0.0.3")], 8080));
        objects
    };
    for (destination, expected) in [
        ("10.0.0.2:8080", Reach::Stopped),
        ("10.0.0.3:8080", Reach::Stopped),
        // Dropped before it was translated.
        ("10.96.0.1:80", Reach::Stopped),
        ("10.0.0.4:8080", Reach::NoAnswer),
        ("10.0.0.2:80", Reach::NoAnswer),
    ] {
        let mut world = World::new(objects());
        world.drop(dropped(FROM_A.0, destination, t(10)));
        let flow = world.one(ended(Outcome::Timeout, Duration::from_secs(3), "10.96.0.1:80"));
        assert_eq!(flow.reach, expected, "{destination}");
    }
}

#[test]
fn a_denied_inbound_attempt_is_seen_whoever_its_source() {
    let mut world = World::new(vec![deny_ingress()]);
    let flows = world.drop(dropped("203.0.113.7:40000", "10.0.0.2:80", t(10)));
    let flow = &flows[0];
    assert_eq!(
        (&flow.subject, flow.observation.direction),
        (&Subject::Pod(world.id("b")), Direction::Ingress)
    );
    assert_eq!((flow.observation.outcome, flow.reach), (Outcome::Dropped, Reach::Stopped));
    assert_eq!((&flow.peer.kind, flow.port), (&PeerKind::External, 80));
    assert_eq!((flow.finding, flow.stopped_by), (Some(Finding::Blocked), Some(NETFILTER)));
    let series = world.auditor.violations().series();
    assert_eq!((series.len(), series[0].0.direction), (1, Direction::Ingress));
    assert_eq!((&*series[0].0.source_workload, &*series[0].0.destination_workload), ("external", "b"));
    // What is on its way to somebody else, or to the node itself, is nobody's ingress here.
    let remote = object(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "far", "uid": uid("far")},
        "spec": {"nodeName": "node-2"}, "status": {"phase": "Running", "podIP": "10.0.1.5"},
    }));
    world.apply(remote, t(10));
    for destination in ["10.0.1.5:80", "192.168.0.1:80", "10.0.0.254:80", "203.0.113.8:80"] {
        assert!(world.drop(dropped("10.0.0.1:40000", destination, t(11))).is_empty(), "{destination}");
    }
    assert_eq!(world.auditor.waiting(), (0, 0));
}

#[test]
fn one_attempt_is_one_violation_a_direction() {
    let mut world = World::new(vec![deny_egress(), deny_ingress()]);
    assert_eq!(world.drop(dropped(FROM_A.0, FROM_A.1, t(10))).len(), 1);
    // Its packet was sent again, and the kernel had forgotten that it told of it.
    assert!(world.drop(dropped(FROM_A.0, FROM_A.1, t(11))).is_empty());
    let flow = world.one(ended(Outcome::Timeout, Duration::from_secs(3), FROM_A.1));
    assert_eq!((flow.reach, flow.finding), (Reach::Stopped, Some(Finding::Blocked)));
    let series = world.auditor.violations().series();
    let counts: Vec<_> = series.iter().map(|(key, count)| (key.direction, count.total)).collect();
    assert_eq!(counts, [(Direction::Egress, 1), (Direction::Ingress, 1)]);
    // The next attempt from that port is another.
    let next = PacketDrop { sequence: 2, ..dropped(FROM_A.0, FROM_A.1, t(20)) };
    assert_eq!(world.drop(next).len(), 1);
}

#[test]
fn what_the_sources_policies_explain_was_not_kept_from_coming_in() {
    let mut world = World::new(vec![deny_egress()]);
    assert!(world.drop(dropped(FROM_A.0, FROM_A.1, t(10))).is_empty());
    assert_eq!(world.auditor.counts().total(), 0);
    // Nor is it where the destination's node is this one and the source has its flow elsewhere.
    let allowed = world.drop(dropped("10.0.0.2:40000", "10.0.0.1:80", t(10)));
    assert_eq!((allowed.len(), allowed[0].finding), (1, Some(Finding::SuspectedBlock)));
}

#[test]
fn a_destination_that_is_not_known_yet_is_waited_for() {
    let mut world = World::new(vec![]);
    assert!(world.drop(dropped("203.0.113.7:40000", "10.0.0.9:80", t(10))).is_empty());
    assert_eq!(world.auditor.waiting(), (1, 0));
    world.apply(pod("new", Some("10.0.0.9")), t(11));
    let flows = world.tick(t(11));
    assert_eq!(flows[0].subject, Subject::Pod(world.id("new")));
    // An address that nobody has is nobody's.
    assert!(world.drop(dropped("203.0.113.7:40000", "10.0.0.10:80", t(11))).is_empty());
    assert!(world.tick(t(14)).is_empty());
    assert_eq!(world.auditor.waiting(), (0, 0));
}

#[test]
fn before_the_objects_are_listed_a_drop_waits_and_is_then_counted() {
    let mut world = World::unready(vec![deny_ingress()]);
    assert!(world.drop(dropped("203.0.113.7:40000", "10.0.0.2:80", t(10))).is_empty());
    world.auditor.set_ready();
    assert_eq!(world.tick(t(12))[0].finding, Some(Finding::Blocked));
    let mut world = World::unready(vec![deny_ingress()]);
    world.drop(dropped("203.0.113.7:40000", "10.0.0.2:80", t(10)));
    assert!(world.tick(t(30)).is_empty());
    assert_eq!(world.auditor.drops_unjudged(), 1);
}

#[test]
fn a_neighbours_pod_with_the_same_address_is_not_ours() {
    let mut world = World::new(vec![deny_ingress(), deny_egress()]);
    let elsewhere = |drop: PacketDrop| PacketDrop { netns: NetnsCookie(999), ..drop };
    assert!(world.drop(elsewhere(dropped("203.0.113.7:40000", "10.0.0.2:80", t(10)))).is_empty());
    world.drop(elsewhere(dropped(FROM_A.0, FROM_A.1, t(10))));
    assert!(world.tick(t(13)).is_empty());
    assert_eq!((world.auditor.waiting(), world.auditor.drops_unjudged()), ((0, 0), 2));
    assert_eq!(world.one(ended(Outcome::Timeout, Duration::from_secs(3), FROM_A.1)).reach, Reach::NoAnswer);
    // A pod's own filter is of this node.
    let own = PacketDrop { netns: NetnsCookie(102), ..dropped("203.0.113.7:40001", "10.0.0.2:80", t(14)) };
    assert_eq!(world.drop(own)[0].finding, Some(Finding::Blocked));
}

#[test]
fn nobody_is_accused_by_a_packet_that_a_pod_makes_in_a_namespace_of_its_own() {
    // `a` has made a namespace, where it is root and may have every address, and sends itself packets there.
    const MADE: NetnsCookie = NetnsCookie(777);
    let forged = PacketDrop { netns: MADE, ..dropped("10.0.0.3:40000", "10.0.0.2:80", t(10)) };
    let closed = PacketDrop { reason: DropReason::NO_SOCKET, ..forged };
    for forged in [forged, closed, PacketDrop { netns: NetnsCookie(101), ..closed }] {
        let mut world = World::new(vec![deny_ingress(), pod("c", Some("10.0.0.3"))]);
        world.auditor.attribution_mut().pair(MADE, CgroupId(11));
        let mut flows = world.drop(forged);
        flows.extend(world.tick(t(13)));
        assert!(flows.is_empty(), "{flows:?}");
        assert_eq!((world.auditor.waiting(), world.auditor.drops_unjudged()), ((0, 0), 1));
    }
    // Nor does that stop what it sends to others.
    let mut world = World::new(vec![deny_egress()]);
    world.auditor.attribution_mut().pair(MADE, CgroupId(11));
    world.drop(PacketDrop { netns: MADE, ..dropped(FROM_A.0, FROM_A.1, t(10)) });
    assert_eq!(world.one(ended(Outcome::Timeout, Duration::from_secs(3), FROM_A.1)).reach, Reach::NoAnswer);
    // What its own filter stops is.
    world.drop(PacketDrop { netns: NetnsCookie(101), sequence: 2, ..dropped(FROM_A.0, FROM_A.1, t(10)) });
    assert_eq!(world.one(ended(Outcome::Timeout, Duration::from_secs(3), FROM_A.1)).reach, Reach::Stopped);
}

#[test]
fn the_nodes_own_address_may_stand_for_anybody() {
    let mut world = World::new(vec![deny_ingress()]);
    assert!(world.drop(dropped("10.0.0.254:40000", "10.0.0.2:80", t(10))).is_empty());
    assert_eq!(reason(&world.tick(t(11))[0]), Some(Gap::SourceTranslated));
    // The node's own attempt is exempt, and what stops it deserves a look.
    world.see(egress(1, 99, "10.0.0.254:40001", "10.0.0.2:80"));
    let flows = world.drop(dropped("10.0.0.254:40001", "10.0.0.2:80", t(10)));
    assert_eq!(exemption(&flows[0]), Some(Exemption::OwnNode));
}

pub(super) fn datagram(local: &str) -> Observation {
    Observation {
        protocol: Protocol::Udp,
        outcome: Outcome::Sent,
        answered: false,
        ..egress(101, 11, local, "10.0.0.2:53")
    }
}

#[test]
fn a_datagrams_flow_waits_for_its_drop_and_no_longer() {
    let after = |milliseconds| t(10).plus(Duration::from_millis(milliseconds));
    let of_datagram = |at| PacketDrop {
        protocol: Protocol::Udp,
        sequence: 0,
        opens: false,
        folded: None,
        ..dropped("10.0.0.1:5000", "10.0.0.2:53", at)
    };
    for local in ["10.0.0.1:5000", "0.0.0.0:5000"] {
        let mut world = World::new(vec![deny_egress(), deny_ingress()]);
        world.auditor.set_sees_drops();
        assert!(world.see(datagram(local)).is_empty());
        // Nothing says that it opens something, so it is no attempt to come in.
        assert!(world.drop(of_datagram(after(1))).is_empty());
        assert!(world.settle(after(50)).is_empty());
        let flows = world.settle(after(100));
        assert_eq!((flows[0].reach, flows[0].finding), (Reach::Stopped, Some(Finding::Blocked)), "{local}");
        // Told again, and it passes.
        world.see(Observation { at: t(40), sequence: 2, ..datagram(local) });
        assert!(world.settle(t(41)).is_empty());
        assert_eq!(world.settle(t(46))[0].reach, Reach::Unproven);
        // With connection tracking it is known to open something.
        let opening = PacketDrop { opens: true, ..of_datagram(t(50)) };
        assert_eq!(world.drop(opening)[0].finding, Some(Finding::Blocked));
    }
    // From another pod's address, whose socket had the same port.
    let mut world = World::new(vec![deny_egress(), pod("c", Some("10.0.0.3"))]);
    world.auditor.set_sees_drops();
    world.see(datagram("0.0.0.0:5000"));
    let other = PacketDrop { source: "10.0.0.3:5000".parse().unwrap(), ..of_datagram(after(1)) };
    world.drop(other);
    assert!(world.settle(after(100)).is_empty());
    assert_eq!(world.settle(after(5_000))[0].finding, Some(Finding::Attempted));
}

#[test]
fn a_datagram_that_waits_at_the_end_is_written() {
    let mut world = World::new(vec![]);
    world.auditor.set_sees_drops();
    world.see(datagram("10.0.0.1:5000"));
    let mut flows = Vec::new();
    world.auditor.finish(&mut flows);
    assert_eq!(flows.len(), 1);
}

#[test]
fn a_syn_that_is_sent_again_to_a_closed_port_is_one_flow_however_many_come() {
    let mut world = World::new(vec![deny_ingress()]);
    let closed = |port: u16, second| PacketDrop {
        netns: NetnsCookie(102),
        reason: DropReason::NO_SOCKET,
        ..dropped("203.0.113.1:40000", &format!("10.0.0.2:{port}"), t(second))
    };
    world.one(ingress(102, 12, "10.0.0.2:80", "10.0.0.1:40000"));
    // A scan from one port, of which each SYN is sent twice.
    let mut flows = Vec::new();
    for second in [20, 21] {
        for port in 1_000..3_000 {
            flows.extend(world.drop(closed(port, second)));
        }
    }
    assert_eq!(flows.len(), 2_000);
    assert!(flows.iter().all(|flow| flow.finding == Some(Finding::DeniedRefused) && flow.closed_port));
    let other_attempt = PacketDrop { sequence: 2, ..closed(1_000, 22) };
    assert_eq!(world.drop(other_attempt).len(), 1);
}
