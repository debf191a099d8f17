//! How long connections took to be made: whose are timed, and by what they went to.

use std::{num::NonZeroU64, time::Duration};

use netaudit::model::{Folded, Observation, Outcome};

use super::{HOST, World, a_to_b, egress, ingress, service, t};

/// (destination, how many, seconds in all) of those that have any.
fn timed(world: &World) -> Vec<(&'static str, u64, f64)> {
    let all = world.auditor.counts().connects();
    all.map(|(to, times)| (to, times.count(), times.sum())).filter(|(_, count, _)| *count > 0).collect()
}

fn after(milliseconds: u64, seen: Observation) -> Observation {
    Observation { waited: Duration::from_millis(milliseconds), ..seen }
}

#[test]
fn what_pods_connect_to_is_timed_by_its_kind() {
    let mut world =
        World::new(service("web", "10.96.0.1", &[("b", "10.0.0.2"), ("a", "10.0.0.1")], 8080).into());
    for (milliseconds, remote) in
        [(500, "10.0.0.2:80"), (1500, "10.0.0.2:81"), (250, "203.0.113.9:443"), (4, "10.96.0.1:80")]
    {
        world.see(after(milliseconds, egress(101, 11, "10.0.0.1:40000", remote)));
    }
    let expected = [("pod", 2, 2.0), ("service", 1, 0.004), ("external", 1, 0.25)];
    assert_eq!(timed(&world), expected);
}

#[test]
fn what_says_nothing_of_a_handshake_is_not_timed() {
    let mut world = World::new(vec![]);
    let folded = Some(Folded { count: NonZeroU64::new(5).unwrap(), first: t(9) });
    let untimed = [
        ("accepted", ingress(102, 12, "10.0.0.2:80", "10.0.0.1:40000")),
        ("refused", Observation { outcome: Outcome::Refused, ..a_to_b() }),
        ("a timeout", Observation { outcome: Outcome::Timeout, ..a_to_b() }),
        ("the node's own", Observation { netns: HOST, ..a_to_b() }),
        ("folded", Observation { folded, ..a_to_b() }),
        ("over its own loopback", egress(101, 11, "127.0.0.1:40000", "127.0.0.1:80")),
    ];
    for (what, seen) in untimed {
        world.see(after(7, seen));
        world.settle(t(60));
        assert_eq!(timed(&world), [], "{what}");
    }
    world.see(after(7, a_to_b()));
    assert_eq!(timed(&world), [("pod", 1, 0.007)]);
}
