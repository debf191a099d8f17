//! Whether what was watched of a rule is enough to call it unused.
//!
//! Time is laid out as it is known to have passed, slice by slice: in each some runs watched the rule, and say how many pods it
//! selected and how many of those they saw. Where no run watched, as many pods are taken to have been there as before or after,
//! and none to have been seen. So whoever was away, whatever the reason, lowers the coverage until that time is older than
//! the window.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::model::Timestamp;

/// For no CronJob is more kept of a rule's use than of so much time, so that one that runs every few years is not waited for.
pub const MOST_KEPT: Duration = Duration::from_secs(400 * 24 * 3_600);

/// What it takes to call a rule unused.
#[derive(Clone, Copy, Debug)]
pub struct Evidence {
    /// How long it must have been watched.
    pub window: Duration,
    /// The least coverage, from 0 to 1.
    pub coverage: f64,
}

/// What is missing for calling a rule unused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Missing {
    /// It has not been watched for long enough.
    Window,
    /// Too little of what it selects was watched.
    Coverage,
    /// Records were lost in the window.
    Loss,
    /// Flows in the window have no verdict, and it may have allowed them.
    Verdicts,
    /// A CronJob that may need it has not had the time to run.
    Period,
    /// Nothing can see what it allows: SCTP. It is unobservable, not unused.
    Sensor,
}

impl Missing {
    /// Every value.
    pub const ALL: [Self; 6] =
        [Self::Window, Self::Coverage, Self::Loss, Self::Verdicts, Self::Period, Self::Sensor];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Window => "window",
            Self::Coverage => "coverage",
            Self::Loss => "loss",
            Self::Verdicts => "verdicts",
            Self::Period => "period",
            Self::Sensor => "sensor",
        }
    }
}

/// What is missing, and when it will not be any more if all goes on as it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lack {
    /// What.
    pub missing: Missing,
    /// When; `None` where it does not get better by waiting.
    pub enough_at: Option<Timestamp>,
}

/// How seldom the pods of CronJobs run that a rule may be for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Schedule {
    /// The longest time between two runs of any of them; zero where there is none, `None` where nobody knows.
    period: Option<Duration>,
    /// When each of them has had the time for a run since it was made.
    due: Timestamp,
}

/// Where there is no CronJob.
impl Default for Schedule {
    fn default() -> Self {
        Self { period: Some(Duration::ZERO), due: Timestamp::MIN }
    }
}

impl Schedule {
    /// As told by [`Self::period`] and [`Self::due`].
    pub const fn new(period: Option<Duration>, due: Timestamp) -> Self {
        Self { period, due }
    }

    /// The longest time between two runs of any of them; zero where there is none, `None` where nobody knows.
    pub const fn period(&self) -> Option<Duration> {
        self.period
    }

    /// When each of them has had the time for a run since it was made.
    pub const fn due(&self) -> Timestamp {
        self.due
    }

    /// Takes in a CronJob that was made at `since`, and whose runs are at most so far apart.
    pub fn add(&mut self, period: Option<Duration>, since: Timestamp) {
        self.join(&Self { period, due: Timestamp::MIN });
        if let Some(period) = period {
            self.due = self.due.max(since.plus(with_delay(period)));
        }
    }

    /// The CronJobs of both.
    pub(super) fn join(&mut self, other: &Self) {
        self.period = self.period.zip(other.period).map(|(a, b)| a.max(b));
        self.due = self.due.max(other.due);
    }

    /// For how long a rule must be watched at least, so that each of them has run once; zero where there is none, `None` where
    /// nobody knows.
    pub fn window(&self) -> Option<Duration> {
        self.period.map(|period| if period.is_zero() { period } else { with_delay(period) })
    }

    /// The same on another time line.
    pub(super) fn shifted(self, by: i64) -> Self {
        match self.due {
            Timestamp::MIN => self,
            due => Self { due: Timestamp(due.0.saturating_add(by)), ..self },
        }
    }
}

/// A run is late, takes its time, and its clock may be changed by an hour.
fn with_delay(period: Duration) -> Duration {
    period.saturating_add(period / 10).saturating_add(Duration::from_secs(3_600))
}

/// A time in which one run watched a rule, on the wall clock.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Slice {
    /// Which node's run it was; any number that tells nodes apart.
    pub node: u32,
    /// From when on.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// For how long of that.
    pub watched: Duration,
    /// Pod-time of the pods of the cluster that the rule selects.
    pub selected: Duration,
    /// Pod-time of those that the run saw.
    pub observed: Duration,
    /// Whether a record was lost.
    pub lost: bool,
    /// Whether there was a flow without a verdict that it may have allowed.
    pub unjudged: bool,
}

/// Adds a slice, or makes the last one longer.
pub(super) fn push_slice(slices: &mut Vec<Slice>, next: Slice) {
    if !slices.last_mut().is_some_and(|last| last.goes_on_with(&next)) {
        slices.push(next);
    }
}

impl Slice {
    fn length(&self) -> f64 {
        self.until.since(self.from).as_secs_f64()
    }

    /// Pods that it selected while it was watched, on the average.
    fn pods(&self) -> f64 {
        let watched = self.watched.as_secs_f64();
        if watched > 0.0 { self.selected.as_secs_f64() / watched } else { 0.0 }
    }

    /// Pods that were seen, on the average of the whole time.
    fn seen(&self) -> f64 {
        let length = self.length();
        if length > 0.0 { self.observed.as_secs_f64() / length } else { 0.0 }
    }

    /// Takes in the slice after this one, where the two say the same of every moment: a rule that is watched for weeks by one
    /// run has one slice. `false` where they do not.
    pub(super) fn goes_on_with(&mut self, next: &Self) -> bool {
        // Each row's milliseconds are rounded.
        let same = |a: f64, b: f64| (a - b).abs() <= 1e-7 * a.abs().max(b.abs());
        let goes_on = (self.node, self.until, self.lost, self.unjudged)
            == (next.node, next.from, next.lost, next.unjudged)
            && same(self.pods(), next.pods())
            && same(self.seen(), next.seen())
            && same(1.0 - self.away(), 1.0 - next.away());
        if goes_on {
            self.until = next.until;
            self.watched += next.watched;
            self.selected = self.selected.saturating_add(next.selected);
            self.observed = self.observed.saturating_add(next.observed);
        }
        goes_on
    }

    /// The part of the time in which it was not watched.
    fn away(&self) -> f64 {
        let length = self.length();
        if length > 0.0 { 1.0 - (self.watched.as_secs_f64() / length).min(1.0) } else { 0.0 }
    }
}

/// How much of what a rule selects was watched.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Coverage {
    /// Pod-seconds of the selected pods.
    pub existing: f64,
    /// Pod-seconds of those that were watched.
    pub observed: f64,
    /// Seconds in which nobody watched.
    pub away: f64,
    /// The end of the last time in which not all was watched.
    pub lacking_until: Option<Timestamp>,
}

impl Coverage {
    /// Observed ÷ existing, from 0 to 1; 0 where no pod existed.
    pub fn ratio(&self) -> f64 {
        if self.existing > 0.0 { (self.observed / self.existing).clamp(0.0, 1.0) } else { 0.0 }
    }

    /// Whether it was watched all the time and selected no pod ever.
    pub fn selects_nothing(&self) -> bool {
        // Each row's milliseconds are rounded.
        self.existing == 0.0 && self.away < 1.0
    }
}

/// A stretch of time in which nothing of what is known changes.
struct Stretch {
    until: Timestamp,
    seconds: f64,
    /// `None` where nobody watched.
    pods: Option<f64>,
    seen: f64,
    away: f64,
}

/// How much was watched between `since` and `now`.
pub fn coverage(slices: &[Slice], since: Timestamp, now: Timestamp) -> Coverage {
    let stretches = stretches(slices, since, now);
    // The pods that the rule selects where nobody watched: as many as just before or just after, one at least.
    let before = neighbours(stretches.iter());
    let mut after = neighbours(stretches.iter().rev());
    after.reverse();
    let mut total = Coverage::default();
    for (n, stretch) in stretches.iter().enumerate() {
        let nobody = before[n].max(after[n]).max(1.0);
        let pods = stretch.pods.unwrap_or(nobody);
        let seen = stretch.seen.min(pods);
        total.existing += pods * stretch.seconds;
        total.observed += seen * stretch.seconds;
        total.away += stretch.away * stretch.seconds;
        // Seconds and their fractions do not add up to the last digit.
        if pods - seen > pods * 1e-6 || stretch.away > 1e-6 {
            total.lacking_until = Some(stretch.until);
        }
    }
    total
}

/// For each stretch the pods of the last one before it in which somebody watched.
fn neighbours<'a>(stretches: impl Iterator<Item = &'a Stretch>) -> Vec<f64> {
    let mut last = 0.0;
    stretches
        .map(|stretch| {
            let known = last;
            last = stretch.pods.unwrap_or(last);
            known
        })
        .collect()
}

fn stretches(slices: &[Slice], since: Timestamp, now: Timestamp) -> Vec<Stretch> {
    let mut cuts = BTreeSet::from([since, now]);
    let mut begins: BTreeMap<Timestamp, Vec<&Slice>> = BTreeMap::new();
    for slice in slices {
        let (from, until) = (slice.from.max(since), slice.until.min(now));
        if from < until {
            cuts.extend([from, until]);
            begins.entry(from).or_default().push(slice);
        }
    }
    let cuts: Vec<Timestamp> = cuts.into_iter().filter(|at| (since..=now).contains(at)).collect();
    let mut active: Vec<&Slice> = Vec::new();
    let pairs = cuts.windows(2).map(|pair| (pair[0], pair[1]));
    pairs
        .map(|(from, until)| {
            active.retain(|slice| slice.until > from);
            active.extend(begins.get(&from).into_iter().flatten());
            let seconds = until.since(from).as_secs_f64();
            // Two runs of one node never saw the same pod at once: where they seem to, its clock was set back.
            let mut by_node: BTreeMap<u32, f64> = BTreeMap::new();
            for slice in &active {
                let seen = by_node.entry(slice.node).or_default();
                *seen = seen.max(slice.seen());
            }
            let pods = active.iter().map(|slice| slice.pods()).reduce(f64::max);
            let away = active.iter().map(|slice| slice.away()).reduce(f64::min).unwrap_or(1.0);
            Stretch { until, seconds, pods, seen: by_node.values().sum(), away }
        })
        .collect()
}

/// Since when a rule that nobody was seen to use can be said to be unused, or what is missing for it. `now` is the time up to
/// which rows have been told.
pub fn unused_since(
    slices: &[Slice],
    schedule: &Schedule,
    needs: &Evidence,
    now: Timestamp,
) -> Result<Timestamp, Lack> {
    let since = unused_for(slices, needs, now);
    // That no pod was there may be what it is for: the pods of a CronJob come and go.
    let selects_nothing = |window: Duration| coverage(slices, now.minus(window), now).selects_nothing();
    let is_idle =
        matches!(since, Err(Lack { missing: Missing::Coverage, .. })) && selects_nothing(needs.window);
    let missing = since.err().map_or(Missing::Period, |lack| lack.missing);
    let missing = if is_idle { Missing::Period } else { missing };
    let Some(window) = schedule.window() else { return Err(Lack { missing, enough_at: None }) };
    let since = if window <= needs.window {
        since
    } else {
        let longer = unused_for(slices, &Evidence { window, ..*needs }, now);
        if is_idle
            && matches!(longer, Err(Lack { missing: Missing::Coverage, .. }))
            && selects_nothing(window)
        {
            // Nor was one in the time of its CronJobs.
            longer
        } else {
            // What is missing for everybody is told first, and when it is enough for this one.
            let enough_at = |lack: Lack| lack.enough_at.filter(|_| window <= MOST_KEPT);
            longer.map_err(|lack| Lack { missing, enough_at: enough_at(lack) })
        }
    };
    let is_due = now >= schedule.due;
    match since {
        Ok(_) if !is_due => Err(Lack { missing: Missing::Period, enough_at: Some(schedule.due) }),
        Err(Lack { missing: Missing::Coverage, .. }) if is_idle && !is_due => {
            Err(Lack { missing: Missing::Period, enough_at: Some(schedule.due) })
        }
        since => since,
    }
}

fn unused_for(slices: &[Slice], needs: &Evidence, now: Timestamp) -> Result<Timestamp, Lack> {
    let since = now.minus(needs.window);
    let recent: Vec<Slice> = slices.iter().filter(|slice| slice.until > since).copied().collect();
    let lack =
        |missing, at: Option<Timestamp>| Lack { missing, enough_at: at.map(|at| at.plus(needs.window)) };
    let last = |what: fn(&Slice) -> bool| recent.iter().filter(|it| what(it)).map(|it| it.until).max();
    if let Some(at) = last(|slice| slice.lost) {
        return Err(lack(Missing::Loss, Some(at)));
    }
    if let Some(at) = last(|slice| slice.unjudged) {
        return Err(lack(Missing::Verdicts, Some(at)));
    }
    let Some(first) = recent.iter().map(|slice| slice.from).min().filter(|from| *from <= now) else {
        return Err(lack(Missing::Window, None));
    };
    if first > since {
        return Err(lack(Missing::Window, Some(first)));
    }
    let coverage = coverage(&recent, since, now);
    if coverage.existing == 0.0 || coverage.ratio() < needs.coverage {
        let lacking = coverage.lacking_until.filter(|until| *until < now);
        return Err(lack(Missing::Coverage, lacking));
    }
    Ok(since)
}
