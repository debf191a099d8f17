//! What enforcement is learnt to be, flow by flow.

use super::*;

const NOTHING: Option<UnenforcedCause> = Some(UnenforcedCause::NothingEnforces);

fn seconds(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(1_000_000 + seconds)
}

/// A pod that was always there.
fn old(direction: Direction) -> Isolated {
    Isolated {
        direction,
        pod: PodId(1),
        started: None,
        changed: None,
        relabelled: None,
        peer_relabelled: None,
        readdressed: None,
    }
}

fn tried(at: i64, reach: Reach, denied: &[Isolated]) -> Tried {
    let denied = [denied.first().copied(), denied.get(1).copied()];
    Tried { at: seconds(at), count: 1, reach, refused: false, denied }
}

/// What is known of egress and of ingress.
fn states(known: &Enforcement) -> [Enforced; 2] {
    [Direction::Egress, Direction::Ingress].map(|direction| known.state(direction).0)
}

#[test]
fn what_stops_a_denied_flow_enforces_the_direction_that_denies_it() {
    let (egress, ingress) = (old(Direction::Egress), old(Direction::Ingress));
    for (reach, denied, expected) in [
        (Reach::Rejected, &[egress][..], [Enforced::Yes, Enforced::Untested]),
        (Reach::NoAnswer, &[ingress], [Enforced::Untested, Enforced::Yes]),
        (Reach::Stopped, &[egress, ingress], [Enforced::Yes, Enforced::Yes]),
        (Reach::Stopped, &[], [Enforced::Untested, Enforced::Untested]),
    ] {
        let mut known = Enforcement::default();
        known.learn(&tried(0, reach, denied));
        assert_eq!(states(&known), expected, "{reach:?} {denied:?}");
    }
}

#[test]
fn what_proves_nothing_teaches_nothing() {
    let mut known = Enforcement::default();
    for reach in [Reach::NotSent, Reach::Unproven] {
        known.learn(&tried(0, reach, &[old(Direction::Egress)]));
    }
    assert_eq!(known.state(Direction::Egress), (Enforced::Untested, None));
    assert_eq!(known.cause(&old(Direction::Egress), seconds(0)), None);
}

/// Another one that was always there.
fn other(pod: u32) -> Isolated {
    Isolated { pod: PodId(pod), ..old(Direction::Egress) }
}

#[test]
fn passes_of_several_pods_show_that_nothing_enforces_and_a_stop_that_something_does() {
    let mut known = Enforcement::default();
    for (at, pod) in [(1, 1), (2, 2)] {
        known.learn(&tried(at, Reach::Reached, &[other(pod)]));
        assert_eq!(known.state(Direction::Egress), (Enforced::Untested, None), "too little to say so");
        assert_eq!(known.cause(&other(pod), seconds(at)), None);
    }
    known.learn(&tried(3, Reach::Reached, &[other(3)]));
    assert_eq!(known.state(Direction::Egress), (Enforced::No, Some(seconds(3))));
    assert_eq!(known.cause(&other(3), seconds(3)), NOTHING);
    known.learn(&tried(4, Reach::Reached, &[other(3)]));
    assert_eq!(known.state(Direction::Egress).1, Some(seconds(3)), "since the state began");
    known.learn(&tried(5, Reach::Stopped, &[other(1)]));
    assert_eq!(known.state(Direction::Egress), (Enforced::Partly, Some(seconds(5))));
    assert_eq!(known.cause(&other(1), seconds(6)), None, "nobody knows why");
    assert_eq!(known.counts(Direction::Egress), (1, 4, 0));
}

#[test]
fn one_pod_alone_shows_it_over_longer_than_any_enforcer_takes() {
    let mut known = Enforcement::default();
    // A fold of a thousand is one time.
    known.learn(&Tried { count: 1_000, ..tried(0, Reach::Reached, &[other(1)]) });
    for at in [1, 60, 119, 120, 130, 239] {
        known.learn(&tried(at, Reach::Reached, &[other(1)]));
        assert_eq!(states(&known)[0], Enforced::Untested, "{at}");
    }
    known.learn(&tried(240, Reach::Reached, &[other(1)]));
    assert_eq!(known.state(Direction::Egress), (Enforced::No, Some(seconds(240))));
    assert_eq!(known.counts(Direction::Egress).1, 1_007);
}

#[test]
fn a_closed_port_was_reached() {
    let mut known = Enforcement::default();
    known.learn(&Tried { refused: true, ..tried(0, Reach::Rejected, &[old(Direction::Egress)]) });
    assert_eq!(known.counts(Direction::Egress), (0, 1, 0));
}

#[test]
fn a_new_pod_is_excused_for_as_long_as_the_enforcer_usually_takes() {
    let new = |pod, started| Isolated {
        pod: PodId(pod),
        started: Some(seconds(started)),
        ..old(Direction::Ingress)
    };
    let mut known = Enforcement::default();
    let first = new(1, 0);
    known.learn(&tried(2, Reach::Reached, &[first]));
    assert_eq!(states(&known)[1], Enforced::Untested, "it says nothing of what enforces");
    assert_eq!(known.cause(&first, seconds(2)), Some(UnenforcedCause::PodJustStarted));
    known.learn(&tried(3, Reach::Stopped, &[first]));
    assert_eq!(states(&known)[1], Enforced::Yes);
    let exposures = known.start_exposures(Direction::Ingress);
    assert_eq!((exposures.count(), exposures.sum()), (1, 2.0));
    assert_eq!(known.cause(&first, seconds(9)), Some(UnenforcedCause::PodJustStarted));
    assert_eq!(known.cause(&first, seconds(11)), None, "too late for an excuse");

    // An enforcer that takes 20 seconds.
    let second = new(2, 100);
    known.learn(&tried(105, Reach::Reached, &[second]));
    known.learn(&tried(120, Reach::Reached, &[second]));
    assert_eq!(states(&known)[1], Enforced::Partly);
    known.learn(&tried(125, Reach::NoAnswer, &[second]));
    assert_eq!(known.start_exposures(Direction::Ingress).sum(), 22.0);
    let third = new(3, 200);
    assert_eq!(known.cause(&third, seconds(229)), Some(UnenforcedCause::PodJustStarted));
    assert_eq!(known.cause(&third, seconds(230)), None);
}

#[test]
fn a_delay_of_long_ago_or_one_beyond_belief_excuses_nothing() {
    let new = |pod, started| Isolated {
        pod: PodId(pod),
        started: Some(seconds(started)),
        ..old(Direction::Ingress)
    };
    let day = 24 * 3_600;
    let excused = |known: &Enforcement, started, after| {
        known.cause(&new(9, started), seconds(started + after)) == Some(UnenforcedCause::PodJustStarted)
    };
    let mut known = Enforcement::default();
    // Open for most of an hour: the enforcer was away.
    known.learn(&tried(2, Reach::Reached, &[new(1, 0)]));
    known.learn(&tried(3_000, Reach::Reached, &[new(1, 0)]));
    known.learn(&tried(3_001, Reach::Stopped, &[new(1, 0)]));
    assert_eq!(known.start_exposures(Direction::Ingress).sum(), 3_000.0, "told as it was");
    assert!(excused(&known, 4_000, 119) && !excused(&known, 4_000, 120));
    // On the day after, only what this day has shown is an excuse.
    known.learn(&tried(2 * day, Reach::Reached, &[new(2, 2 * day - 9)]));
    known.learn(&tried(2 * day + 1, Reach::Stopped, &[new(2, 2 * day - 9)]));
    assert!(excused(&known, 2 * day + 100, 13) && !excused(&known, 2 * day + 100, 14));
    assert!(excused(&known, 4 * day, 9) && !excused(&known, 4 * day, 10));
}

#[test]
fn where_nothing_enforces_youth_is_no_excuse() {
    let new = Isolated { pod: PodId(2), started: Some(seconds(10)), ..old(Direction::Egress) };
    let mut known = Enforcement::default();
    for pod in [3, 4, 5] {
        assert_eq!(known.cause(&new, seconds(11)), Some(UnenforcedCause::PodJustStarted));
        known.learn(&tried(1, Reach::Reached, &[other(pod)]));
    }
    assert_eq!(known.cause(&new, seconds(11)), NOTHING);
}

#[test]
fn an_excuse_that_is_always_there_is_none() {
    // Short-lived pods alone, one every five minutes, and nothing is ever stopped.
    let job =
        |n: i64| Isolated { pod: PodId(n as u32), started: Some(seconds(n * 300)), ..old(Direction::Egress) };
    let mut known = Enforcement::default();
    let excused = |known: &mut Enforcement, n: i64| {
        known.learn(&tried(n * 300 + 1, Reach::Reached, &[job(n)]));
        known.cause(&job(n), seconds(n * 300 + 1)) == Some(UnenforcedCause::PodJustStarted)
    };
    for n in 1..i64::from(MOST_EXCUSES) {
        assert!(excused(&mut known, n), "{n}");
    }
    assert_eq!(states(&known)[0], Enforced::Untested);
    assert!(!excused(&mut known, 10));
    assert_eq!(states(&known)[0], Enforced::No);
    known.learn(&tried(3_900, Reach::Stopped, &[old(Direction::Egress)]));
    assert_eq!(states(&known)[0], Enforced::Yes);
    assert!(excused(&mut known, 20));

    // Many at once, as when a node starts, are one time.
    let mut known = Enforcement::default();
    for n in 0..100 {
        let new = Isolated { pod: PodId(n), started: Some(seconds(0)), ..old(Direction::Egress) };
        known.learn(&tried(1, Reach::Reached, &[new]));
    }
    assert_eq!(states(&known)[0], Enforced::Untested);
}

#[test]
fn a_change_of_policy_excuses_what_it_came_after() {
    let mut known = Enforcement::default();
    known.learn(&tried(0, Reach::Stopped, &[old(Direction::Egress)]));
    let changed = Isolated { pod: PodId(2), changed: Some(seconds(50)), ..old(Direction::Egress) };
    known.learn(&tried(51, Reach::Reached, &[changed]));
    assert_eq!(known.cause(&changed, seconds(51)), Some(UnenforcedCause::PolicyJustChanged));
    known.learn(&tried(53, Reach::Stopped, &[changed]));
    assert_eq!(known.change_exposures(Direction::Egress).sum(), 1.0);
    assert_eq!(known.start_exposures(Direction::Egress).count(), 0);
    // A pod that started under the policy as it is.
    let both = Isolated { started: Some(seconds(52)), ..changed };
    assert_eq!(known.cause(&both, seconds(53)), Some(UnenforcedCause::PodJustStarted));
    assert_eq!(states(&known)[0], Enforced::Yes);
}

#[test]
fn new_labels_and_a_new_owner_of_an_address_excuse_for_as_long_and_the_latest_is_named() {
    let egress = old(Direction::Egress);
    let then = |at| Some(seconds(at));
    for (isolated, cause, learns) in [
        (Isolated { relabelled: then(50), ..egress }, UnenforcedCause::LabelsJustChanged, 1),
        (Isolated { peer_relabelled: then(50), ..egress }, UnenforcedCause::LabelsJustChanged, 0),
        (Isolated { readdressed: then(50), ..egress }, UnenforcedCause::AddressJustReused, 0),
        (
            Isolated { readdressed: then(50), changed: then(49), ..egress },
            UnenforcedCause::AddressJustReused,
            0,
        ),
        (
            Isolated { readdressed: then(50), peer_relabelled: then(50), changed: then(50), ..egress },
            UnenforcedCause::PolicyJustChanged,
            1,
        ),
    ] {
        let mut known = Enforcement::default();
        known.learn(&tried(0, Reach::Stopped, &[egress]));
        known.learn(&tried(52, Reach::Reached, &[isolated]));
        assert_eq!(known.cause(&isolated, seconds(52)), Some(cause), "{isolated:?}");
        assert_eq!(known.counts(Direction::Egress), (1, 0, 1), "{isolated:?}");
        known.learn(&tried(53, Reach::Stopped, &[isolated]));
        let exposures = known.change_exposures(Direction::Egress);
        assert_eq!((exposures.count(), exposures.sum()), (learns, 2.0 * learns as f64), "{isolated:?}");
        assert_eq!(known.cause(&isolated, seconds(60)), None, "{isolated:?}: long ago");
    }
}

#[test]
fn what_is_remembered_has_an_end() {
    let mut known = Enforcement::default();
    for pod in 0..2 * MOST_OPEN as u32 {
        let new = Isolated { pod: PodId(pod), started: Some(seconds(0)), ..old(Direction::Egress) };
        known.learn(&tried(1, Reach::Reached, &[new]));
    }
    assert_eq!(known.egress.open.len(), MOST_OPEN);
    known.expire(seconds(2).plus(OPEN_MEMORY));
    assert!(known.egress.open.is_empty());
    assert_eq!(known.counts(Direction::Egress), (0, 0, 2 * MOST_OPEN as u64));
}
