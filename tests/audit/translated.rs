//! Where flows went whose address was translated after the socket: each rung of the ladder, and none.

use netaudit::{
    audit::Tuple,
    model::{PacketDrop, Translation},
};

use super::{drops::dropped, *};

const SERVICE: &str = "10.96.0.1:80";

/// `b` and `c` behind one Service, of which policies let `a` reach `b` only.
fn disagreeing() -> World {
    let mut objects = vec![
        pod("c", Some("10.0.0.3")),
        policy(
            "only-b",
            json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"],
                   "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "b"}}}]}]}),
        ),
    ];
    objects.extend(service("both", "10.96.0.1", &[("b", "10.0.0.2"), ("c", "10.0.0.3")], 8080));
    let mut world = World::new(objects);
    world.auditor.attribution_mut().cgroup(CgroupId(13), &format!("/kubepods/pod{}/c", uid("c")));
    world.auditor.attribution_mut().pair(NetnsCookie(103), CgroupId(13));
    world
}

fn to_service() -> Observation {
    egress(101, 11, "10.0.0.1:40000", SERVICE)
}

/// As an end of the connection with that number, where another one than all others are of.
fn of(number: u32, seen: Observation) -> Observation {
    Observation { handshake: NonZeroU32::new(number), ..seen }
}

impl World {
    fn observe(&mut self, seen: Observation) -> Vec<Flow> {
        let mut flows = Vec::new();
        self.auditor.observe(&seen, seen.at, &mut flows);
        flows
    }

    /// Answers what is asked; returns the questions too.
    fn translate(&mut self, answer: Option<&str>) -> (Vec<Tuple>, Vec<Flow>) {
        let (mut asked, mut flows) = (Vec::new(), Vec::new());
        let mut ask = |tuple: &Tuple| {
            asked.push(*tuple);
            answer.map(|to| to.parse().unwrap())
        };
        self.auditor.translate(&mut ask, t(11), &mut flows);
        (asked, flows)
    }
}

#[track_caller]
fn check(flow: &Flow, world: &World, translation: Translation, pod: &str) {
    assert_eq!(flow.translation, Some(translation));
    assert_eq!(flow.peer.kind, PeerKind::Pod(world.id(pod)));
    assert_eq!((flow.port, flow.requested), (8080, Some(SERVICE.parse().unwrap())));
    let service = flow.peer.service.as_ref().map(|(namespace, name)| format!("{namespace}/{name}"));
    assert_eq!(service.as_deref(), Some("shop/both"));
    match pod {
        "b" => assert!(flow.verdict.is_allowed(), "{:?}", flow.verdict),
        _ => assert!(flow.verdict.is_denied(), "{:?}", flow.verdict),
    }
}

#[test]
fn an_address_rewritten_at_the_socket_is_the_endpoints() {
    let mut world = disagreeing();
    let seen = Observation {
        requested: Some(SERVICE.parse().unwrap()),
        ..egress(101, 11, "10.0.0.1:40000", "10.0.0.3:8080")
    };
    let flow = world.one(seen);
    check(&flow, &world, Translation::Socket, "c");
}

#[test]
fn where_the_endpoints_agree_nobody_is_asked() {
    let mut objects = vec![pod("c", Some("10.0.0.3")), deny_egress()];
    objects.extend(service("both", "10.96.0.1", &[("b", "10.0.0.2"), ("c", "10.0.0.3")], 8080));
    let mut world = World::new(objects);
    world.auditor.set_asks_for_translations();
    let flow = world.one(to_service());
    assert_eq!((flow.translation, &flow.peer.kind), (Some(Translation::Endpoints), &PeerKind::Service));
    // Nor does it matter that the other end was seen: what is the same for all is told the same way.
    assert!(world.observe(Observation { at: t(12), ..to_service() }).is_empty());
    let flows =
        world.observe(Observation { at: t(12), ..ingress(103, 13, "10.0.0.3:8080", "10.0.0.1:40000") });
    assert_eq!(flows[0].translation, Some(Translation::Endpoints));
}

#[test]
fn where_they_do_not_connection_tracking_is_asked_once() {
    for (answer, pod) in [("10.0.0.2:8080", "b"), ("10.0.0.3:8080", "c"), ("[::ffff:10.0.0.3]:8080", "c")] {
        let mut world = disagreeing();
        world.auditor.set_asks_for_translations();
        assert!(world.see(to_service()).is_empty());
        assert_eq!((world.auditor.waiting().0, world.auditor.settled()), (1, 0));
        let (asked, flows) = world.translate(Some(answer));
        assert_eq!(
            asked,
            [Tuple {
                protocol: Protocol::Tcp,
                source: "10.0.0.1:40000".parse().unwrap(),
                destination: SERVICE.parse().unwrap()
            }]
        );
        check(&flows[0], &world, Translation::Conntrack, pod);
        assert_eq!((flows.len(), world.auditor.waiting().0, world.auditor.settled()), (1, 0, 1));
        assert_eq!(world.translate(None).0, []);
    }
}

#[test]
fn what_connection_tracking_does_not_know_is_said_to_be_unknown() {
    // The second: it knows the flow, and that it was not translated.
    for answer in [None, Some(SERVICE)] {
        let mut world = disagreeing();
        world.auditor.set_asks_for_translations();
        assert!(world.see(to_service()).is_empty());
        let (_, flows) = world.translate(answer);
        assert_eq!((reason(&flows[0]), flows[0].translation), (Some(Gap::EndpointsDisagree), None));
        assert_eq!(flows[0].peer.kind, PeerKind::Service);
    }
    // Nobody to ask.
    let mut world = disagreeing();
    assert_eq!(reason(&world.one(to_service())), Some(Gap::EndpointsDisagree));
    // The end comes before an answer.
    let mut world = disagreeing();
    world.auditor.set_asks_for_translations();
    assert!(world.see(to_service()).is_empty());
    let mut flows = Vec::new();
    world.auditor.finish(&mut flows);
    assert_eq!((flows.len(), reason(&flows[0])), (1, Some(Gap::EndpointsDisagree)));
}

#[test]
fn a_datagrams_socket_without_an_address_is_asked_for_by_its_pods() {
    let mut world = disagreeing();
    world.auditor.set_asks_for_translations();
    let objects = [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "dns"},
               "spec": {"clusterIP": "10.96.0.2", "clusterIPs": ["10.96.0.2"],
                        "ports": [{"port": 53, "targetPort": 53, "protocol": "UDP"}]}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
               "metadata": {"namespace": "shop", "name": "dns-1", "labels": {"kubernetes.io/service-name": "dns"}},
               "ports": [{"name": "", "port": 53, "protocol": "UDP"}],
               "endpoints": [{"addresses": ["10.0.0.2"], "conditions": {"ready": true}},
                             {"addresses": ["10.0.0.3"], "conditions": {"ready": true}}]}),
    ];
    for value in objects {
        world.apply(object(value), t(1));
    }
    let seen = Observation {
        protocol: Protocol::Udp,
        outcome: Outcome::Sent,
        ..egress(101, 11, "0.0.0.0:5000", "10.96.0.2:53")
    };
    world.see(seen);
    world.settle(t(20));
    let (asked, flows) = world.translate(Some("10.0.0.2:53"));
    assert_eq!(asked[0].source, "10.0.0.1:5000".parse().unwrap());
    assert_eq!(
        (flows[0].peer.kind.clone(), flows[0].verdict.is_allowed()),
        (PeerKind::Pod(world.id("b")), true)
    );
}

#[test]
fn the_other_ends_record_tells_where_it_went() {
    for (netns, cgroup, to, pod) in [(102, 12, "10.0.0.2:8080", "b"), (103, 13, "10.0.0.3:8080", "c")] {
        let mut world = disagreeing();
        world.auditor.set_asks_for_translations();
        assert!(world.observe(to_service()).is_empty(), "the other end is waited for");
        let flows = world.observe(ingress(netns, cgroup, to, "10.0.0.1:40000"));
        assert_eq!(flows.len(), 2);
        check(&flows[0], &world, Translation::Destination, pod);
        assert_eq!(flows[1].observation.direction, Direction::Ingress);
        assert_eq!(world.translate(None).0, [], "nobody needs to be asked");
    }
    // Another connection's, or too late to be this one's.
    for (from, after) in [("10.0.0.1:40001", Duration::ZERO), ("10.0.0.1:40000", Duration::from_secs(1))] {
        let mut world = disagreeing();
        assert!(world.observe(to_service()).is_empty());
        let accepted = ingress(103, 13, "10.0.0.3:8080", from);
        let mut flows = world.observe(Observation { at: accepted.at.plus(after), ..accepted });
        flows.extend(world.settle(t(20)));
        let seen = flows.iter().find(|flow| flow.observation.direction == Direction::Egress).unwrap();
        assert_eq!(reason(seen), Some(Gap::EndpointsDisagree), "{from}");
    }
}

#[test]
fn a_dropped_packet_tells_it_too_and_so_does_a_closed_port() {
    let timeout = Observation { outcome: Outcome::Timeout, waited: Duration::from_secs(3), ..to_service() };
    let refused = Observation { outcome: Outcome::Refused, waited: Duration::from_millis(1), ..to_service() };
    let at = |destination| dropped("10.0.0.1:40000", destination, t(10));
    let closed = PacketDrop {
        reason: netaudit::model::DropReason::NO_SOCKET,
        netns: NetnsCookie(103),
        ..at("10.0.0.3:8080")
    };
    for (drop, seen, pod) in
        [(at("10.0.0.2:8080"), timeout, "b"), (at("10.0.0.3:8080"), timeout, "c"), (closed, refused, "c")]
    {
        let mut world = disagreeing();
        world.auditor.set_asks_for_translations();
        world.drop(drop);
        let flow = world.one(seen);
        check(&flow, &world, Translation::Destination, pod);
    }
    // Before it was translated it tells nothing.
    let mut world = disagreeing();
    world.drop(at(SERVICE));
    assert_eq!(reason(&world.one(timeout)), Some(Gap::EndpointsDisagree));
}

#[test]
fn other_translations_than_services_are_followed_as_far_as_the_other_end_shows() {
    // A port of the node that leads to a pod without any Service, as hostPort does.
    let mut world = World::new(vec![deny_egress()]);
    assert!(world.observe(egress(101, 11, "10.0.0.1:40000", "192.168.0.1:80")).is_empty());
    let flows = world.observe(ingress(102, 12, "10.0.0.2:8080", "10.0.0.1:40000"));
    assert_eq!((flows[0].translation, flows[0].port), (Some(Translation::Destination), 8080));
    assert_eq!(flows[0].peer.kind, PeerKind::Pod(world.id("b")));
    assert!(flows[0].verdict.is_denied(), "the node itself would have been exempt");
}

#[test]
fn what_is_redirected_to_a_proxy_of_the_pod_is_exempt_and_the_proxys_connection_is_judged() {
    let mut world = World::new(vec![deny_egress()]);
    assert!(world.observe(egress(101, 11, "10.0.0.1:40000", "10.0.0.2:80")).is_empty());
    let flows = world.observe(ingress(101, 11, "127.0.0.1:15001", "10.0.0.1:40000"));
    assert_eq!(flows.len(), 2);
    assert_eq!(
        (exemption(&flows[0]), flows[0].translation),
        (Some(Exemption::Proxied), Some(Translation::Proxy))
    );
    assert_eq!((&flows[0].peer.kind, flows[0].port), (&PeerKind::Loopback, 15001));
    assert_eq!(flows[0].requested, Some("10.0.0.2:80".parse().unwrap()));
    assert_eq!((flows[0].finding, exemption(&flows[1])), (None, Some(Exemption::SelfTraffic)));
    // The proxy's own connection goes to where the program wanted to go.
    let upstream = world.one(Observation { at: t(11), ..egress(101, 11, "10.0.0.1:40002", "10.0.0.2:80") });
    assert_eq!((upstream.translation, upstream.finding), (None, Some(Finding::Unenforced)));
    assert_eq!(world.auditor.violations().series()[0].1.total, 1);
}

#[test]
fn a_proxy_that_is_reached_by_a_rewrite_at_the_socket_is_one_too() {
    let mut world = World::new(vec![deny_egress()]);
    let seen = Observation {
        requested: Some("10.0.0.2:80".parse().unwrap()),
        ..egress(101, 11, "127.0.0.1:40000", "127.0.0.1:15001")
    };
    let flow = world.one(seen);
    assert_eq!((exemption(&flow), flow.requested), (Some(Exemption::Proxied), seen.requested));
    // One to a rewritten loopback address is plain loopback.
    let seen = Observation { at: t(11), requested: Some("127.0.0.1:80".parse().unwrap()), ..seen };
    assert_eq!(exemption(&world.one(seen)), Some(Exemption::Loopback));
}

#[test]
fn one_port_for_two_destinations_is_paired_by_handshake_and_a_pod_that_talks_to_itself_is_no_proxy() {
    let mut world = World::new(vec![deny_egress()]);
    let destinations = [(1, "203.0.113.1:80"), (2, "203.0.113.2:80")];
    for (number, destination) in destinations {
        assert!(world.observe(of(number, egress(101, 11, "10.0.0.1:40000", destination))).is_empty());
    }
    for (number, destination) in destinations.into_iter().rev() {
        let flows = world.observe(of(number, ingress(101, 11, "127.0.0.1:15001", "10.0.0.1:40000")));
        assert_eq!(flows[0].requested, Some(destination.parse().unwrap()));
    }

    assert!(world.observe(egress(101, 11, "10.0.0.1:40003", "10.0.0.1:80")).is_empty());
    let flows = world.observe(ingress(101, 11, "10.0.0.1:80", "10.0.0.1:40003"));
    assert_eq!((exemption(&flows[0]), flows[0].translation), (Some(Exemption::SelfTraffic), None));
}

#[test]
fn what_a_pod_redirects_on_its_way_in_is_judged_by_the_port_that_was_asked_for() {
    let only_8080 = || {
        policy(
            "in-b",
            json!({"podSelector": {"matchLabels": {"app": "b"}}, "policyTypes": ["Ingress"],
                   "ingress": [{"ports": [{"port": 8080}]}]}),
        )
    };
    // Directly, and by a Service whose endpoints agree.
    for asked in ["10.0.0.2:8080", "10.96.0.1:80"] {
        let mut objects = vec![only_8080(), pod("c", Some("10.0.0.3"))];
        objects.extend(service("both", "10.96.0.1", &[("b", "10.0.0.2"), ("c", "10.0.0.3")], 8080));
        let mut world = World::new(objects);
        let remote = || ingress(102, 12, "10.0.0.2:15006", "203.0.113.7:555");
        // Nothing has told yet that the port is a proxy's.
        assert!(world.one(remote()).verdict.is_denied());
        assert!(world.observe(egress(101, 11, "10.0.0.1:40000", asked)).is_empty());
        let flows = world.observe(ingress(102, 12, "10.0.0.2:15006", "10.0.0.1:40000"));
        assert_eq!((flows.len(), flows[0].port, flows[1].port), (2, 8080, 8080), "{asked}");
        assert_ne!(flows[0].translation, Some(Translation::Destination), "the endpoints agree: {asked}");
        assert_eq!(flows[1].translation, Some(Translation::Proxy));
        assert!(flows[0].verdict.is_allowed() && flows[1].verdict.is_allowed());
        assert_eq!(
            flows[0].other_end.as_ref().map(|verdict| verdict.is_allowed()),
            flows[0].other_end.as_ref().map(|_| true)
        );
        // From now on nobody is accused for the port of a proxy.
        assert_eq!(reason(&world.one(remote())), Some(Gap::PortTranslated), "{asked}");
        // Nor is the pod's own connection to it.
        let own = ingress(102, 12, "127.0.0.1:15006", "127.0.0.1:999");
        assert_eq!(exemption(&world.one(own)), Some(Exemption::Loopback));
    }
    // Where no policy isolates, the port makes no difference, until there are other policies.
    let mut world = World::new(vec![]);
    world.observe(egress(101, 11, "10.0.0.1:40000", "10.0.0.2:8080"));
    world.observe(ingress(102, 12, "10.0.0.2:15006", "10.0.0.1:40000"));
    let flow = world.one(ingress(102, 12, "10.0.0.2:15006", "203.0.113.7:555"));
    assert!(flow.verdict.is_allowed());
    assert_eq!(flow.translation, Some(Translation::Redirect));
    // Policies never apply to what it sends itself, whatever its port.
    let own = world.one(ingress(102, 12, "10.0.0.2:15006", "10.0.0.2:999"));
    assert_eq!((exemption(&own), own.translation), (Some(Exemption::SelfTraffic), None));
}

#[test]
fn a_redirect_that_has_not_shown_for_a_day_is_forgotten() {
    const DAY: i64 = 24 * 3_600;
    let only_8080 = policy(
        "in-b",
        json!({"podSelector": {"matchLabels": {"app": "b"}}, "policyTypes": ["Ingress"],
               "ingress": [{"ports": [{"port": 8080}]}]}),
    );
    let mut world = World::new(vec![only_8080]);
    let at = |seen: Observation, second| Observation { at: t(second), ..seen };
    let redirect = |world: &mut World, second| {
        world.observe(at(egress(101, 11, "10.0.0.1:40000", "10.0.0.2:8080"), second));
        world.observe(at(ingress(102, 12, "10.0.0.2:15006", "10.0.0.1:40000"), second));
    };
    let remote = |second| at(ingress(102, 12, "10.0.0.2:15006", "203.0.113.7:555"), second);
    redirect(&mut world, 10);
    // It shows again, half a day later.
    redirect(&mut world, DAY / 2);
    world.tick(t(DAY + 100));
    assert_eq!(reason(&world.one(remote(DAY + 100))), Some(Gap::PortTranslated));
    world.tick(t(DAY / 2 + DAY + 1));
    assert!(world.one(remote(DAY / 2 + DAY + 1)).verdict.is_denied());
}

#[test]
fn a_service_whose_endpoints_disagree_is_followed_through_a_redirect_too() {
    let mut world = disagreeing();
    world.observe(to_service());
    let flows = world.observe(ingress(103, 13, "10.0.0.3:15006", "10.0.0.1:40000"));
    check(&flows[0], &world, Translation::Destination, "c");
    assert_eq!((flows[1].port, flows[1].translation), (8080, Some(Translation::Proxy)));
}

#[test]
fn a_denied_connection_cannot_be_passed_off_for_another_one_from_its_port() {
    let only_b = policy(
        "only-b",
        json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"],
               "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "b"}}}]}]}),
    );
    let denied = of(1, egress(101, 11, "10.0.0.1:40000", "203.0.113.1:443"));
    let at_b = ingress(102, 12, "10.0.0.2:8080", "10.0.0.1:40000");
    for (asked, accepted) in [
        // A listener of the pod's own, at its address and at the loopback one.
        ("10.0.0.1:9999", ingress(101, 11, "10.0.0.1:9999", "10.0.0.1:40000")),
        ("127.0.0.1:9999", ingress(101, 11, "127.0.0.1:9999", "10.0.0.1:40000")),
        // Another pod, directly, by a Service, and by a port of the node that no object tells of.
        ("10.0.0.2:8080", at_b),
        (SERVICE, at_b),
        ("192.168.0.1:80", at_b),
    ] {
        let other = of(2, egress(101, 11, "10.0.0.1:40000", asked));
        let accepted = of(2, accepted);
        // Who accepts may also have put that off until now (TCP_DEFER_ACCEPT).
        let long_ago = Observation { at: t(9), ..other };
        for order in [[denied, other, accepted], [other, denied, accepted], [long_ago, denied, accepted]] {
            let objects = service("b", "10.96.0.1", &[("b", "10.0.0.2")], 8080);
            let mut world = World::new(objects.into_iter().chain([only_b.clone()]).collect());
            let mut flows: Vec<_> = order.into_iter().flat_map(|it| world.observe(it)).collect();
            flows.extend(world.settle(t(11)));
            let told: Vec<_> = flows.iter().filter(|flow| flow.observation.remote == denied.remote).collect();
            let [told] = told[..] else { panic!("{flows:?}") };
            assert_eq!((told.finding, told.translation), (Some(Finding::Unenforced), None), "{asked}");
            assert_eq!((flows.len(), world.auditor.waiting().0), (3, 0));
        }
    }
}

#[test]
fn nobody_makes_a_port_of_another_pod_look_like_a_proxys() {
    let only_8080 = policy(
        "in-b",
        json!({"podSelector": {"matchLabels": {"app": "b"}}, "policyTypes": ["Ingress"],
               "ingress": [{"ports": [{"port": 8080}]}]}),
    );
    let mut objects = vec![only_8080, pod("c", Some("10.0.0.3"))];
    objects.extend(service("both", "10.96.0.1", &[("b", "10.0.0.2"), ("c", "10.0.0.3")], 8080));
    let mut world = World::new(objects);
    // It went to an endpoint on another node, say.
    world.observe(to_service());
    world.observe(of(8, egress(101, 11, "10.0.0.1:40000", "10.0.0.2:9000")));
    let flows = world.observe(of(8, ingress(102, 12, "10.0.0.2:9000", "10.0.0.1:40000")));
    let inward = flows.iter().find(|flow| flow.observation.direction == Direction::Ingress).unwrap();
    assert_eq!((inward.port, inward.finding), (9000, Some(Finding::Unenforced)));
    world.settle(t(11));
    let later = world.one(ingress(102, 12, "10.0.0.2:9000", "203.0.113.7:555"));
    assert!(later.verdict.is_denied(), "{:?}", later.verdict);
}

/// Policies let `a` reach `b` and `new`, of which the watch has not told yet.
fn before_a_pod_is_known(endpoints: &[(&str, &str)]) -> World {
    let allow = policy(
        "allow",
        json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"],
               "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "b"}}},
                                  {"podSelector": {"matchLabels": {"app": "new"}}}]}]}),
    );
    let mut objects = vec![allow, pod("c", Some("10.0.0.3"))];
    objects.extend(service("both", "10.96.0.1", endpoints, 8080));
    let mut world = World::new(objects);
    world.auditor.set_asks_for_translations();
    world
}

#[test]
fn a_pod_that_the_watch_has_not_told_of_is_waited_for_where_it_was_translated_to() {
    for rung in [Translation::Conntrack, Translation::Destination] {
        let mut world = before_a_pod_is_known(&[("b", "10.0.0.2"), ("c", "10.0.0.3")]);
        let mut flows = Vec::new();
        if rung == Translation::Conntrack {
            flows.extend(world.see(to_service()));
            flows.extend(world.translate(Some("10.0.0.9:8080")).1);
        } else {
            flows.extend(world.observe(egress(101, 11, "10.0.0.1:40000", "192.168.0.1:80")));
            flows.extend(world.observe(ingress(109, 19, "10.0.0.9:8080", "10.0.0.1:40000")));
        }
        let is_out = |flow: &&Flow| flow.observation.direction == Direction::Egress;
        assert_eq!(flows.iter().find(is_out).map(|flow| &flow.verdict), None, "{rung:?}");
        world.apply(pod("new", Some("10.0.0.9")), t(11));
        let flows = world.tick(t(11));
        let flow = flows.iter().find(is_out).unwrap_or_else(|| panic!("{rung:?}"));
        assert_eq!((flow.finding, flow.translation), (None, Some(rung)));
        assert_eq!(flow.peer.kind, PeerKind::Pod(world.id("new")));
    }
}

#[test]
fn an_endpoint_that_the_watch_has_not_told_of_is_waited_for() {
    // Else `c`, and an address that is nobody's, agree that `a` may not reach them.
    let mut world = before_a_pod_is_known(&[("c", "10.0.0.3"), ("new", "10.0.0.9")]);
    assert!(world.see(to_service()).is_empty());
    world.apply(pod("new", Some("10.0.0.9")), t(11));
    assert!(world.tick(t(11)).is_empty());
    let (_, flows) = world.translate(Some("10.0.0.9:8080"));
    assert_eq!((flows[0].finding, &flows[0].peer.kind), (None, &PeerKind::Pod(world.id("new"))));
    // Not for ever.
    let mut world = before_a_pod_is_known(&[("c", "10.0.0.3"), ("new", "10.0.0.9")]);
    world.see(to_service());
    assert_eq!((world.tick(t(11)).len(), world.tick(t(13)).len(), world.auditor.waiting().0), (0, 1, 0));
}
