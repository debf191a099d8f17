//! What comes back for a datagram, and what it makes of the datagram's flow.

use netaudit::model::{Answer, Errno, PacketDrop, Reach};

use super::{
    drops::{datagram, dropped},
    *,
};

const LOCAL: &str = "10.0.0.1:5000";

fn after(milliseconds: u64) -> Timestamp {
    t(10).plus(Duration::from_millis(milliseconds))
}

/// For the flow of `datagram`, so many milliseconds later.
fn answer(outcome: Outcome, errno: Option<Errno>, milliseconds: u64) -> Answer {
    Answer { at: after(milliseconds), socket: 1, sequence: 1, outcome, errno }
}

fn answered() -> Answer {
    answer(Outcome::Answered, None, 7)
}

fn refused() -> Answer {
    answer(Outcome::Rejected, Some(Errno::ECONNREFUSED), 7)
}

impl World {
    fn hear(&mut self, answer: Answer) -> Vec<Flow> {
        let mut flows = Vec::new();
        self.auditor.observe_answer(&answer, answer.at, &mut flows);
        flows
    }
}

/// A world that is told of drops, in which `a` has just sent.
fn sent(objects: Vec<Object>) -> World {
    let mut world = World::new(objects);
    world.auditor.set_sees_drops();
    assert!(world.see(datagram(LOCAL)).is_empty());
    world
}

#[test]
fn an_answer_decides_a_flow_at_once_and_once() {
    for (objects, finding) in [(vec![], None), (vec![deny_egress()], Some(Finding::Unenforced))] {
        let mut world = sent(objects);
        let flows = world.hear(answered());
        assert_eq!((flows.len(), flows[0].finding, flows[0].reach), (1, finding, Reach::Reached));
        assert_eq!(flows[0].observation.outcome, Outcome::Answered);
        assert_eq!(flows[0].observation.waited, Duration::from_millis(7));
        assert_eq!(flows[0].observation.at, t(10), "it began when it was sent");
        assert!(world.hear(answered()).is_empty() && world.settle(t(60)).is_empty());
        assert_eq!((world.auditor.counts().total(), world.auditor.waiting()), (1, (0, 0)));
    }
}

#[test]
fn an_answer_of_another_flow_decides_nothing() {
    let mut world = sent(vec![]);
    assert!(world.hear(Answer { sequence: 2, ..answered() }).is_empty());
    assert!(world.hear(Answer { socket: 2, ..answered() }).is_empty());
    assert_eq!(world.hear(answered()).len(), 1);
}

#[test]
fn an_answer_that_comes_too_late_finds_the_flow_told_as_sent() {
    let mut world = sent(vec![]);
    assert!(world.settle(after(4_999)).is_empty());
    // As the agent does, many times a second.
    let flows = [after(5_000), after(10_000)].map(|now| world.settle(now));
    let flows: Vec<Flow> = flows.into_iter().flatten().collect();
    assert_eq!((flows.len(), flows[0].observation.outcome), (1, Outcome::Sent));
    assert!(world.hear(answer(Outcome::Answered, None, 10_001)).is_empty());
    assert_eq!(world.auditor.counts().total(), 1);
}

#[test]
fn an_error_waits_for_the_drop_of_the_filter_that_sent_it() {
    let drop = PacketDrop {
        protocol: Protocol::Udp,
        sequence: 0,
        opens: false,
        folded: None,
        ..dropped(LOCAL, "10.0.0.2:53", after(7))
    };
    // In either order; a connected socket's datagram is even dropped before its flow is told.
    let before = PacketDrop { at: t(10).minus(Duration::from_micros(50)), ..drop };
    for (drop, drop_first) in [(drop, true), (drop, false), (before, true)] {
        let mut world = sent(vec![deny_egress()]);
        if drop_first {
            world.drop(drop);
        }
        assert!(world.hear(refused()).is_empty());
        if !drop_first {
            world.drop(drop);
        }
        let flows = world.settle(after(200));
        assert_eq!((flows.len(), flows[0].observation.outcome), (1, Outcome::Rejected));
        assert_eq!((flows[0].reach, flows[0].finding), (Reach::Stopped, Some(Finding::Blocked)));
    }
}

#[test]
fn a_closed_port_is_no_block_and_a_prohibition_is() {
    let prohibited = answer(Outcome::Rejected, Some(Errno::EHOSTUNREACH), 7);
    let unreachable = answer(Outcome::Unreachable, Some(Errno::EHOSTUNREACH), 3_000);
    for (what, reach, denied, allowed) in [
        (refused(), Reach::Rejected, Some(Finding::DeniedRefused), None),
        (prohibited, Reach::Rejected, Some(Finding::Blocked), None),
        (unreachable, Reach::NoAnswer, Some(Finding::Blocked), Some(Finding::SuspectedBlock)),
    ] {
        for (objects, finding) in [(vec![deny_egress()], denied), (vec![], allowed)] {
            let mut world = sent(objects);
            assert!(world.hear(what).is_empty());
            let flows = world.settle(what.at.plus(Duration::from_millis(100)));
            assert_eq!((flows.len(), flows[0].reach, flows[0].finding), (1, reach, finding), "{what:?}");
            assert_eq!(flows[0].observation.errno, what.errno);
        }
    }
    // Where no drops are told, there is nothing to wait for.
    let mut world = World::new(vec![]);
    world.see(datagram(LOCAL));
    assert_eq!(world.hear(refused()).len(), 1);
}

#[test]
fn what_waits_at_the_end_has_the_outcome_that_is_known() {
    let mut world = sent(vec![]);
    world.see(Observation { socket: 2, ..datagram("10.0.0.1:5001") });
    world.hear(refused());
    let mut flows = Vec::new();
    world.auditor.finish(&mut flows);
    let outcomes: Vec<Outcome> = flows.iter().map(|flow| flow.observation.outcome).collect();
    assert_eq!(outcomes, [Outcome::Rejected, Outcome::Sent]);
}
