//! Whether something enforces policies here, learnt from what became of denied flows, and how long it takes to begin.
//!
//! ```text
//! denied and stopped ──► that direction is enforced on this node
//! denied and passed  ──► excused, if its pod or its policy is younger than the enforcer's usual delay
//!                        else evidence that nothing enforces that direction, or not always
//! ```
//!
//! The delay is learnt: the last denied flow of a new pod that passed, once a later one of the same pod was stopped, tells how
//! long the pod stayed open.

use std::time::Duration;

use foldhash::HashMap;

use super::Histogram;
use crate::{
    cluster::PodId,
    model::{Direction, Reach, Timestamp},
};

/// Taken for the enforcer's delay until more of it was seen: those that poll the API server or batch their updates stay
/// below it.
const USUAL_DELAY: Duration = Duration::from_secs(10);

/// No enforcer is taken to be slower than this.
const LONGEST_DELAY: Duration = Duration::from_secs(120);

/// Pods whose passes are remembered until one of their flows is stopped. Others teach nothing.
const MOST_OPEN: usize = 4_096;

/// How often something is excused before the excuse is none: nothing was ever stopped.
const MOST_EXCUSES: u32 = 10;

/// How long a pass waits for a stop that ends it.
const OPEN_MEMORY: Duration = Duration::from_secs(3_600);

/// Why a denied flow passed, where it is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
pub enum UnenforcedCause {
    /// The pod was younger than the enforcer's usual delay.
    #[serde(rename = "pod just started")]
    PodJustStarted,
    /// What denies it was declared, or changed, within the enforcer's usual delay.
    #[serde(rename = "policy just changed")]
    PolicyJustChanged,
    /// Not one denied flow of this direction has been stopped since the agent started.
    #[serde(rename = "nothing enforces")]
    NothingEnforces,
    /// It was open before the agent started.
    #[serde(rename = "older connection")]
    OlderConnection,
    /// It was open, and allowed, before the policy that denies it.
    #[serde(rename = "older than the policy")]
    OlderThanPolicy,
}

impl UnenforcedCause {
    /// The words of the flow log and the metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PodJustStarted => "pod just started",
            Self::PolicyJustChanged => "policy just changed",
            Self::NothingEnforces => "nothing enforces",
            Self::OlderConnection => "older connection",
            Self::OlderThanPolicy => "older than the policy",
        }
    }
}

/// What is known of the enforcement of one direction on this node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Enforced {
    /// Nothing was denied whose end tells.
    Untested,
    /// Denied flows are stopped; what passed was excused.
    Yes,
    /// Some are stopped, and some pass without an excuse.
    Partly,
    /// Denied flows pass, and none was ever stopped.
    No,
}

impl Enforced {
    /// Every value.
    pub const ALL: [Self; 4] = [Self::Untested, Self::Yes, Self::Partly, Self::No];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Untested => "untested",
            Self::Yes => "enforced",
            Self::Partly => "partly",
            Self::No => "not-enforced",
        }
    }
}

/// What a flow tells about enforcement.
#[derive(Clone, Copy, Debug)]
pub struct Tried {
    /// When it began.
    pub at: Timestamp,
    /// How many flows it stands for.
    pub count: u64,
    /// What its end proves.
    pub reach: Reach,
    /// Whether it found a closed port: it was not stopped on its way there.
    pub refused: bool,
    /// The directions that deny it, and the pod of this node that each of them isolates.
    pub denied: [Option<Isolated>; 2],
}

/// The pod that is isolated, and how long it and what isolates it have been there.
#[derive(Clone, Copy, Debug)]
pub struct Isolated {
    /// The direction that denies.
    pub direction: Direction,
    /// The pod.
    pub pod: PodId,
    /// When it started, if the agent saw that.
    pub started: Option<Timestamp>,
    /// When what denies was last changed, if the agent saw that.
    pub changed: Option<Timestamp>,
}

impl Tried {
    /// Whether something stopped it.
    pub fn is_stopped(&self) -> bool {
        match self.reach {
            Reach::Stopped | Reach::NoAnswer => true,
            Reach::Rejected => !self.refused,
            Reach::Reached | Reach::NotSent | Reach::Unproven => false,
        }
    }

    /// Whether nothing stopped it.
    pub fn is_passed(&self) -> bool {
        match self.reach {
            Reach::Reached => true,
            Reach::Rejected => self.refused,
            Reach::Stopped | Reach::NoAnswer | Reach::NotSent | Reach::Unproven => false,
        }
    }
}

/// Why a pass is excused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Excuse {
    /// The pod started then.
    Start(Timestamp),
    /// What denies changed then.
    Change(Timestamp),
}

/// The latest pass of a pod that was not followed by a stop yet.
#[derive(Clone, Copy, Debug)]
struct Open {
    since: Excuse,
    last: Timestamp,
}

/// What one direction has shown.
#[derive(Clone, Debug)]
struct Side {
    stopped: u64,
    passed: u64,
    excused: u64,
    /// How often something was excused before anything was stopped, and the latest excuse: what is excused within an enforcer's longest
    /// delay counts once, as many pods start together, or under a new policy.
    excuses: u32,
    latest_excuse: Option<Timestamp>,
    state_since: Option<Timestamp>,
    open: HashMap<PodId, Open>,
    starts: Histogram,
    changes: Histogram,
    /// The longest delay that was seen.
    longest: Duration,
}

impl Default for Side {
    fn default() -> Self {
        Self {
            stopped: 0,
            passed: 0,
            excused: 0,
            excuses: 0,
            latest_excuse: None,
            state_since: None,
            open: HashMap::default(),
            starts: Histogram::of_delays(),
            changes: Histogram::of_delays(),
            longest: Duration::ZERO,
        }
    }
}

/// What is known of both directions.
#[derive(Clone, Debug, Default)]
pub struct Enforcement {
    egress: Side,
    ingress: Side,
}

impl Enforcement {
    fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Egress => &self.egress,
            Direction::Ingress => &self.ingress,
        }
    }

    /// Learns from one flow. What something stopped that one direction denies shows that somebody enforces it; where both
    /// deny, it may have been either.
    pub fn learn(&mut self, tried: &Tried) {
        for isolated in tried.denied.into_iter().flatten() {
            let side = match isolated.direction {
                Direction::Egress => &mut self.egress,
                Direction::Ingress => &mut self.ingress,
            };
            let before = side.state();
            if tried.is_stopped() {
                side.stop(&isolated, tried);
            } else if tried.is_passed() {
                side.pass(&isolated, tried);
            }
            if side.state() != before {
                side.state_since = Some(tried.at);
            }
        }
    }

    /// What is known of a direction, and since when; `None` where nothing has been tried.
    pub fn state(&self, direction: Direction) -> (Enforced, Option<Timestamp>) {
        let side = self.side(direction);
        (side.state(), side.state_since)
    }

    /// Denied flows of a direction that were stopped, that passed, and that passed with an excuse.
    pub fn counts(&self, direction: Direction) -> (u64, u64, u64) {
        let side = self.side(direction);
        (side.stopped, side.passed, side.excused)
    }

    /// How long new pods stayed open, in seconds: each one's last pass before its first stop.
    pub fn start_exposures(&self, direction: Direction) -> &Histogram {
        &self.side(direction).starts
    }

    /// How long a change of policy took to bite, in seconds, in the same way.
    pub fn change_exposures(&self, direction: Direction) -> &Histogram {
        &self.side(direction).changes
    }

    /// Why a flow that passed did, that `isolated` denies.
    pub fn cause(&self, isolated: &Isolated, at: Timestamp) -> Option<UnenforcedCause> {
        let side = self.side(isolated.direction);
        // Where nothing enforces, no delay is an excuse.
        if side.state() == Enforced::No {
            return Some(UnenforcedCause::NothingEnforces);
        }
        match side.excuse(isolated, at) {
            Some(Excuse::Start(_)) => Some(UnenforcedCause::PodJustStarted),
            Some(Excuse::Change(_)) => Some(UnenforcedCause::PolicyJustChanged),
            None => (side.stopped == 0).then_some(UnenforcedCause::NothingEnforces),
        }
    }

    /// Forgets passes that no stop will end any more.
    pub fn expire(&mut self, now: Timestamp) {
        for side in [&mut self.egress, &mut self.ingress] {
            side.open.retain(|_, open| now.since(open.last) < OPEN_MEMORY);
        }
    }
}

impl Side {
    fn state(&self) -> Enforced {
        match (self.stopped > 0, self.passed > 0) {
            (false, false) if self.excuses >= MOST_EXCUSES => Enforced::No,
            (false, false) => Enforced::Untested,
            (true, false) => Enforced::Yes,
            (true, true) => Enforced::Partly,
            (false, true) => Enforced::No,
        }
    }

    fn delay(&self) -> Duration {
        // Half as long again as the longest that was seen: the next one may be the longest.
        (self.longest * 3 / 2).clamp(USUAL_DELAY, LONGEST_DELAY)
    }

    fn excuse(&self, isolated: &Isolated, at: Timestamp) -> Option<Excuse> {
        let is_recent = |then: &Timestamp| at.since(*then) < self.delay();
        // What came later explains it; a pod that starts under a new policy is a new pod.
        let start = isolated.started.filter(is_recent);
        let change = isolated.changed.filter(is_recent);
        match (start, change) {
            (Some(start), Some(change)) if change > start => Some(Excuse::Change(change)),
            (Some(start), _) => Some(Excuse::Start(start)),
            (None, change) => change.map(Excuse::Change),
        }
    }

    fn stop(&mut self, isolated: &Isolated, tried: &Tried) {
        self.stopped += tried.count;
        let Some(open) = self.open.remove(&isolated.pod) else { return };
        let (exposures, began) = match open.since {
            Excuse::Start(began) => (&mut self.starts, began),
            Excuse::Change(began) => (&mut self.changes, began),
        };
        let exposed = open.last.since(began);
        exposures.observe(exposed.as_secs_f64());
        self.longest = self.longest.max(exposed);
    }

    fn pass(&mut self, isolated: &Isolated, tried: &Tried) {
        match self.excuse(isolated, tried.at) {
            Some(since) => {
                self.excused += tried.count;
                if self.latest_excuse.is_none_or(|latest| tried.at.since(latest) >= LONGEST_DELAY) {
                    self.excuses = self.excuses.saturating_add(1);
                    self.latest_excuse = Some(tried.at);
                }
                if self.open.len() < MOST_OPEN || self.open.contains_key(&isolated.pod) {
                    self.open.insert(isolated.pod, Open { since, last: tried.at });
                }
            }
            None => {
                self.passed += tried.count;
                // It goes on beyond the delay: how long is learnt when it ends.
                if let Some(open) = self.open.get_mut(&isolated.pod) {
                    open.last = tried.at;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Option<UnenforcedCause> = Some(UnenforcedCause::NothingEnforces);

    fn seconds(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(1_000_000 + seconds)
    }

    /// A pod that was always there.
    fn old(direction: Direction) -> Isolated {
        Isolated { direction, pod: PodId(1), started: None, changed: None }
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
        assert_eq!(known.cause(&old(Direction::Egress), seconds(0)), NOTHING);
    }

    #[test]
    fn passes_show_that_nothing_enforces_and_a_stop_that_something_does() {
        let egress = old(Direction::Egress);
        let mut known = Enforcement::default();
        known.learn(&tried(1, Reach::Reached, &[egress]));
        assert_eq!(known.state(Direction::Egress), (Enforced::No, Some(seconds(1))));
        assert_eq!(known.cause(&egress, seconds(1)), NOTHING);
        known.learn(&tried(2, Reach::Reached, &[egress]));
        assert_eq!(known.state(Direction::Egress).1, Some(seconds(1)), "since the state began");
        known.learn(&tried(3, Reach::Stopped, &[egress]));
        assert_eq!(known.state(Direction::Egress), (Enforced::Partly, Some(seconds(3))));
        assert_eq!(known.cause(&egress, seconds(4)), None, "nobody knows why");
        assert_eq!(known.counts(Direction::Egress), (1, 2, 0));
    }

    #[test]
    fn a_closed_port_was_reached() {
        let mut known = Enforcement::default();
        known.learn(&Tried { refused: true, ..tried(0, Reach::Rejected, &[old(Direction::Egress)]) });
        assert_eq!(states(&known)[0], Enforced::No);
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
    fn where_nothing_enforces_youth_is_no_excuse() {
        let new = Isolated { pod: PodId(2), started: Some(seconds(10)), ..old(Direction::Egress) };
        let mut known = Enforcement::default();
        known.learn(&tried(1, Reach::Reached, &[old(Direction::Egress)]));
        assert_eq!(known.cause(&new, seconds(11)), NOTHING);
    }

    #[test]
    fn an_excuse_that_is_always_there_is_none() {
        // Short-lived pods alone, one every five minutes, and nothing is ever stopped.
        let job = |n: i64| Isolated {
            pod: PodId(n as u32),
            started: Some(seconds(n * 300)),
            ..old(Direction::Egress)
        };
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
}
