//! Whether something enforces policies here, learnt from what became of denied flows, and how long it takes to begin.
//!
//! ```text
//! denied and stopped ──► that direction is enforced on this node
//! denied and passed  ──► excused, if its pod, its policy, a label or the owner of an address is younger than the enforcer's
//!                        usual delay, else evidence that nothing enforces that direction, or not always: where nothing was ever
//!                        stopped, that of several pods or times, since one pass may have found a way of its own
//! ```
//!
//! The delay is learnt: the last denied flow of a new pod that passed, once a later one of the same pod was stopped, tells how
//! long the pod stayed open.

mod delays;
#[cfg(test)]
mod tests;

use std::time::Duration;

use foldhash::HashMap;

use super::Histogram;
use crate::{
    cluster::PodId,
    model::{Direction, Reach, Timestamp},
};
use delays::Delays;

/// Taken for the enforcer's delay until more of it was seen: those that poll the API server or batch their updates stay
/// below it.
const USUAL_DELAY: Duration = Duration::from_secs(10);

/// No enforcer is taken to be slower than this.
const LONGEST_DELAY: Duration = Duration::from_secs(120);

/// Pods whose passes are remembered until one of their flows is stopped. Others teach nothing.
const MOST_OPEN: usize = 4_096;

/// How often something is excused before the excuse is none: nothing was ever stopped.
const MOST_EXCUSES: u32 = 10;

/// Passes without an excuse that show that nothing enforces, where nothing was ever stopped: of different pods, or so far apart that
/// no enforcer's delay spans them. One alone may have a reason that nobody knows; two may share it.
const ENOUGH_PASSES: usize = 3;

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
    /// The labels of the pod or of its peer, or those of one's namespace, changed within the enforcer's usual delay.
    #[serde(rename = "labels just changed")]
    LabelsJustChanged,
    /// The address of the pod or of its peer was another pod's within the enforcer's usual delay.
    #[serde(rename = "address just reused")]
    AddressJustReused,
    /// Not one denied flow of this direction has been stopped since the agent started, and enough have passed to say so.
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
    /// Every value.
    pub const ALL: [Self; 7] = [
        Self::PodJustStarted,
        Self::PolicyJustChanged,
        Self::LabelsJustChanged,
        Self::AddressJustReused,
        Self::NothingEnforces,
        Self::OlderConnection,
        Self::OlderThanPolicy,
    ];

    /// The words of the flow log and the metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PodJustStarted => "pod just started",
            Self::PolicyJustChanged => "policy just changed",
            Self::LabelsJustChanged => "labels just changed",
            Self::AddressJustReused => "address just reused",
            Self::NothingEnforces => "nothing enforces",
            Self::OlderConnection => "older connection",
            Self::OlderThanPolicy => "older than the policy",
        }
    }
}

/// What is known of the enforcement of one direction on this node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Enforced {
    /// Nothing was denied whose end tells, or too little to say that nothing enforces.
    Untested,
    /// Denied flows are stopped; what passed was excused.
    Yes,
    /// Some are stopped, and some pass without an excuse.
    Partly,
    /// Denied flows of several pods or times pass, and none was ever stopped.
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
    /// When its labels or those of its namespace were, in the same way.
    pub relabelled: Option<Timestamp>,
    /// When those of the peer of the flow were.
    pub peer_relabelled: Option<Timestamp>,
    /// When its address, or the peer's, was last another pod's.
    pub readdressed: Option<Timestamp>,
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
struct Excuse {
    cause: UnenforcedCause,
    /// When what it may be due to came.
    since: Timestamp,
    /// Whether that is of the pod that is isolated: any flow of it that is stopped shows that the enforcer has heard. What is of one peer
    /// is not ended by a stop on the way to another.
    is_own: bool,
}

/// The latest pass of a pod that was not followed by a stop yet.
#[derive(Clone, Copy, Debug)]
struct Open {
    excuse: Excuse,
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
    /// Passes without an excuse that do not come of one another, up to [`ENOUGH_PASSES`].
    independent: Vec<(PodId, Timestamp)>,
    state_since: Option<Timestamp>,
    open: HashMap<PodId, Open>,
    starts: Histogram,
    changes: Histogram,
    delays: Delays,
}

impl Default for Side {
    fn default() -> Self {
        Self {
            stopped: 0,
            passed: 0,
            excused: 0,
            excuses: 0,
            latest_excuse: None,
            independent: Vec::new(),
            state_since: None,
            open: HashMap::default(),
            starts: Histogram::of_delays(),
            changes: Histogram::of_delays(),
            delays: Delays::default(),
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

    /// What is known of a direction, and since when; `None` where that is as it was at the start.
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
        side.excuse(isolated, at).map(|excuse| excuse.cause)
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
        let shows_nobody = self.independent.len() >= ENOUGH_PASSES || self.excuses >= MOST_EXCUSES;
        match (self.stopped > 0, self.passed > 0) {
            (true, false) => Enforced::Yes,
            (true, true) => Enforced::Partly,
            (false, _) if shows_nobody => Enforced::No,
            (false, _) => Enforced::Untested,
        }
    }

    fn delay(&self, at: Timestamp) -> Duration {
        // Half as long again as the longest that was seen: the next one may be the longest.
        (self.delays.longest(at) * 3 / 2).clamp(USUAL_DELAY, LONGEST_DELAY)
    }

    fn excuse(&self, isolated: &Isolated, at: Timestamp) -> Option<Excuse> {
        let delay = self.delay(at);
        let is_recent = |then: &Timestamp| at.since(*then) < delay;
        let excuse = |cause, since: Option<Timestamp>, is_own| Some(Excuse { cause, since: since?, is_own });
        let excuses = [
            excuse(UnenforcedCause::AddressJustReused, isolated.readdressed, false),
            excuse(UnenforcedCause::LabelsJustChanged, isolated.peer_relabelled, false),
            excuse(UnenforcedCause::LabelsJustChanged, isolated.relabelled, true),
            excuse(UnenforcedCause::PolicyJustChanged, isolated.changed, true),
            excuse(UnenforcedCause::PodJustStarted, isolated.started, true),
        ];
        // What came later explains it, and of several at once the last of these; a pod that starts under a new policy is a new pod.
        let recent = excuses.into_iter().flatten().filter(|excuse| is_recent(&excuse.since));
        recent.max_by_key(|excuse| excuse.since)
    }

    fn stop(&mut self, isolated: &Isolated, tried: &Tried) {
        self.stopped += tried.count;
        let Some(open) = self.open.remove(&isolated.pod) else { return };
        let exposures = match open.excuse.cause {
            UnenforcedCause::PodJustStarted => &mut self.starts,
            _ => &mut self.changes,
        };
        let exposed = open.last.since(open.excuse.since);
        exposures.observe(exposed.as_secs_f64());
        self.delays.learn(exposed.min(LONGEST_DELAY), tried.at);
    }

    fn pass(&mut self, isolated: &Isolated, tried: &Tried) {
        match self.excuse(isolated, tried.at) {
            Some(excuse) => {
                self.excused += tried.count;
                if self.latest_excuse.is_none_or(|latest| tried.at.since(latest) >= LONGEST_DELAY) {
                    self.excuses = self.excuses.saturating_add(1);
                    self.latest_excuse = Some(tried.at);
                }
                let has_room = self.open.len() < MOST_OPEN || self.open.contains_key(&isolated.pod);
                if excuse.is_own && has_room {
                    self.open.insert(isolated.pod, Open { excuse, last: tried.at });
                }
            }
            None => {
                self.passed += tried.count;
                let apart = |(pod, at): &(PodId, Timestamp)| {
                    *pod != isolated.pod || tried.at.since(*at) >= LONGEST_DELAY
                };
                if self.independent.len() < ENOUGH_PASSES && self.independent.iter().all(apart) {
                    self.independent.push((isolated.pod, tried.at));
                }
                // It goes on beyond the delay: how long is learnt when it ends.
                if let Some(open) = self.open.get_mut(&isolated.pod) {
                    open.last = tried.at;
                }
            }
        }
    }
}
