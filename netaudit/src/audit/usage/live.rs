//! One rule as this agent run watches it: the window of now, and what is known from before.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    Evidence, MOST_KEPT, Missing, Row, Schedule, Slice, Tally, Touched, Uses, Watched, push_slice,
    unused_since,
};
use crate::{
    model::{RuleId, RuleMatch, Timestamp},
    policy::{Element, Span},
};

/// What is known of one rule's use. Times are on the time line of the run.
#[derive(Clone, Debug)]
pub struct RuleUsage {
    /// The rule with its position of today.
    pub rule: Arc<RuleId>,
    /// Flows that it allowed, alone or with others.
    pub matches: u64,
    /// Flows that it alone allowed.
    pub sole_matches: u64,
    /// The first match, or when a connection that it allows was first found open.
    pub first: Option<Timestamp>,
    /// The last match, or when a connection that it allows was last found open.
    pub last: Option<Timestamp>,
    /// Since when it has been watched, perhaps with gaps.
    pub observed_since: Timestamp,
    /// Pod-seconds of the selected pods since then.
    pub existing_pod_seconds: f64,
    /// Pod-seconds of those that this agent watched.
    pub observed_pod_seconds: f64,
    /// Whether its policy exists and concerns this agent today; history is kept where not.
    pub current: bool,
    /// Whether it has series of its own, of which there is a bounded number.
    pub has_series: bool,
    /// Whether its policy exists today.
    there: bool,
    summary: Arc<str>,
    observable: bool,
    schedule: Schedule,
    selected: usize,
    observed: usize,
    elsewhere: usize,
    /// Since when it has not been current.
    left: Option<Timestamp>,
    window: Window,
    elements: Arc<[(u64, Element)]>,
    /// Whether an element is a range of addresses.
    has_networks: bool,
    possible: bool,
    certain: bool,
    past: Vec<Slice>,
}

/// What belongs to the window of now.
#[derive(Clone, Debug)]
struct Window {
    from: Timestamp,
    until: Timestamp,
    watched: Duration,
    selected: Duration,
    observed: Duration,
    uses: Uses,
    sole: Uses,
    /// As long as [`RuleUsage::elements`].
    elements: Vec<Uses>,
    touched: Touched,
}

impl Window {
    fn new(from: Timestamp, elements: usize) -> Self {
        Self {
            from,
            until: from,
            watched: Duration::ZERO,
            selected: Duration::ZERO,
            observed: Duration::ZERO,
            uses: Uses::default(),
            sole: Uses::default(),
            elements: vec![Uses::default(); elements],
            touched: Touched::default(),
        }
    }

    fn pass(&mut self, time: Duration, pods: [usize; 2]) {
        let [selected, observed] = pods.map(|pods| u32::try_from(pods).unwrap_or(u32::MAX));
        self.watched += time;
        self.selected = self.selected.saturating_add(time.saturating_mul(selected));
        self.observed = self.observed.saturating_add(time.saturating_mul(observed));
    }

    fn slice(&self, lost: bool, unjudged: bool) -> Slice {
        Slice {
            node: 0,
            from: self.from,
            until: self.until,
            watched: self.watched,
            selected: self.selected,
            observed: self.observed,
            lost,
            unjudged,
        }
    }
}

impl RuleUsage {
    /// A rule that has never been watched before.
    pub(super) fn new(watched: &Watched, since: Timestamp) -> Self {
        Self {
            rule: watched.rule.clone(),
            matches: 0,
            sole_matches: 0,
            first: None,
            last: None,
            observed_since: since,
            existing_pod_seconds: 0.0,
            observed_pod_seconds: 0.0,
            current: false,
            has_series: false,
            there: false,
            summary: watched.summary.clone(),
            observable: watched.observable,
            schedule: watched.schedule,
            selected: 0,
            observed: 0,
            elsewhere: 0,
            left: None,
            window: Window::new(since, watched.elements.len()),
            elements: watched.elements.clone(),
            has_networks: names_networks(&watched.elements),
            possible: watched.possible,
            certain: watched.certain,
            past: Vec::new(),
        }
    }

    /// A rule as earlier runs have left it: `uses` and `sole` in all, and when it was watched. `now` is when this run begins.
    pub fn restored(watched: &Watched, uses: &Uses, sole: u64, past: Vec<Slice>, now: Timestamp) -> Self {
        let since = past.iter().map(|slice| slice.from).min().unwrap_or(now);
        let seconds = |what: fn(&Slice) -> Duration| past.iter().map(what).sum::<Duration>().as_secs_f64();
        Self {
            matches: uses.matches,
            sole_matches: sole,
            first: uses.first,
            last: uses.last,
            observed_since: since,
            // Those that this agent was responsible for and did not see are not known any more.
            existing_pod_seconds: seconds(|slice| slice.observed),
            observed_pod_seconds: seconds(|slice| slice.observed),
            left: Some(now),
            window: Window::new(now, watched.elements.len()),
            past,
            ..Self::new(watched, since)
        }
    }

    pub(super) fn watch(&mut self, watched: &Watched, now: Timestamp) {
        if self.window.watched == Duration::ZERO && !self.there {
            // It was known before this run, and nobody watched it until now.
            self.window.from = now;
            self.window.until = now;
        }
        self.rule = watched.rule.clone();
        self.current = watched.here;
        self.there = true;
        self.left = None;
        self.observable = watched.observable;
        self.schedule = watched.schedule;
        self.selected = watched.selected;
        self.observed = watched.observed;
        self.elsewhere = watched.elsewhere;
        self.summary = watched.summary.clone();
        self.possible = watched.possible;
        self.certain = watched.certain;
        if !Arc::ptr_eq(&self.elements, &watched.elements) {
            // Content is the same, order may not be.
            let before: BTreeMap<u64, Uses> = self
                .elements
                .iter()
                .map(|(hash, _)| *hash)
                .zip(self.window.elements.iter().copied())
                .collect();
            let uses = watched.elements.iter().map(|(hash, _)| before.get(hash).copied().unwrap_or_default());
            self.window.elements = uses.collect();
            self.elements = watched.elements.clone();
            self.has_networks = names_networks(&self.elements);
        }
    }

    pub(super) fn leave(&mut self) {
        self.current = false;
        self.there = false;
        (self.selected, self.observed, self.elsewhere) = (0, 0, 0);
        self.left = self.left.or(Some(self.window.until));
    }

    /// What was recorded since `until` is still to come: that time counts as watched.
    pub(super) fn resume(&mut self, until: Timestamp) {
        let gap = self.window.from.since(until);
        if self.there && gap > Duration::ZERO {
            self.window.from = until;
            self.window.pass(gap, [self.selected + self.elsewhere, self.observed]);
            self.existing_pod_seconds += gap.as_secs_f64() * self.selected as f64;
            self.observed_pod_seconds += gap.as_secs_f64() * self.observed as f64;
        }
    }

    pub(super) fn pass(&mut self, time: Duration, now: Timestamp) {
        self.window.pass(time, [self.selected + self.elsewhere, self.observed]);
        self.window.until = now;
        self.existing_pod_seconds += time.as_secs_f64() * self.selected as f64;
        self.observed_pod_seconds += time.as_secs_f64() * self.observed as f64;
    }

    /// All of these flows were allowed by this rule, or denied or passed on by it.
    pub(super) fn credit(&mut self, matched: &RuleMatch, sole: bool, tally: &Tally) {
        let used = &tally.uses;
        self.matches = self.matches.saturating_add(used.matches);
        if sole {
            self.sole_matches = self.sole_matches.saturating_add(used.matches);
            self.window.sole.plus(used);
        }
        self.first = self.first.into_iter().chain(used.first).min();
        self.last = self.last.max(used.last);
        let window = &mut self.window;
        window.uses.plus(used);
        let peers = self.elements.iter().filter(|(_, it)| it.list != "ports").count();
        let of_peers = matched.elements.peers().chain(matched.peer.filter(|it| *it >= 64));
        let of_ports = matched.elements.ports().chain(matched.port.filter(|it| *it >= 64));
        let places = of_peers
            .map(|place| place as usize)
            .filter(|place| *place < peers)
            .chain(of_ports.map(|place| peers + place as usize));
        for place in places {
            if let Some(uses) = window.elements.get_mut(place) {
                uses.plus(used);
            }
        }
        let names_addresses = self.has_networks || (peers == 0 && !tally.of_pods);
        window.touched.absorb(&tally.touched, names_addresses);
    }

    /// The window has ended.
    pub(super) fn close(&mut self, end: Timestamp, lost: bool, unjudged: bool) {
        if self.window.watched > Duration::ZERO {
            let slice = self.window.slice(lost, unjudged || !self.certain);
            push_slice(&mut self.past, slice);
        }
        self.window = Window::new(end, self.elements.len());
    }

    /// Forgets what is older than `age`, and than what its CronJobs need; whether anything is left.
    pub(super) fn forget(&mut self, now: Timestamp, age: Duration) -> bool {
        let limit = now.minus(age.max(self.schedule.window().unwrap_or_default().min(MOST_KEPT)));
        // As a run that begins now would find it.
        if self.last.is_some_and(|last| last <= limit) {
            (self.first, self.last) = (None, None);
        }
        self.past.retain(|slice| slice.until > limit);
        let kept = self.past.iter().map(|slice| slice.from).chain([self.window.from]).min();
        self.observed_since = self.observed_since.max(kept.unwrap_or(self.observed_since));
        self.left.is_none_or(|left| left > limit)
    }

    /// The window of now as a row; `None` where it was not watched in it.
    pub(super) fn row(&self, lost: u64, unjudged: u64) -> Option<Row> {
        let window = &self.window;
        if window.watched == Duration::ZERO && window.uses.last.is_none() && !self.there {
            return None;
        }
        let mut elements: BTreeMap<u64, (Element, Uses)> = BTreeMap::new();
        for ((hash, element), uses) in self.elements.iter().zip(&window.elements) {
            // An element that is listed twice is one.
            elements.entry(*hash).or_insert_with(|| (element.clone(), Uses::default())).1.plus(uses);
        }
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Some(Row {
            from: window.from,
            until: window.until,
            index: self.rule.index,
            current: self.there,
            observable: self.observable,
            schedule: self.schedule,
            summary: self.summary.clone(),
            possible: self.possible,
            watched_ms: ms(window.watched),
            selected_ms: ms(window.selected),
            observed_ms: ms(window.observed),
            lost,
            unjudged: unjudged.max(u64::from(!self.certain)),
            uses: window.uses,
            sole: window.sole,
            elements,
            touched: window.touched.clone(),
        })
    }

    /// Everything that is known of when it was watched.
    fn slices(&self, lost: bool, unjudged: bool) -> Vec<Slice> {
        self.past.iter().copied().chain([self.window.slice(lost, unjudged || !self.certain)]).collect()
    }

    /// Observed ÷ existing pod-seconds, from 0 to 1; 0 while no pod that the rule selects has existed.
    /// The time in which nobody watched counts as that of pods that nobody saw.
    pub fn coverage(&self, now: Timestamp) -> f64 {
        let slices = self.slices(false, false);
        let watched: Duration = slices.iter().map(|slice| slice.watched).sum();
        let known = now.since(self.observed_since).as_secs_f64();
        if self.existing_pod_seconds > 0.0 && known > 0.0 {
            (self.observed_pod_seconds / self.existing_pod_seconds) * (watched.as_secs_f64() / known).min(1.0)
        } else {
            0.0
        }
    }

    /// Whether it can be called unused, or what is missing for saying so either way. `lost` and `unjudged` are of the window of
    /// now.
    pub(super) fn unused(
        &self,
        lost: bool,
        unjudged: bool,
        now: Timestamp,
        needs: &Evidence,
    ) -> Result<bool, Missing> {
        // Without a match where it allows a connection that began before the agent did.
        if self.last.is_some() {
            return Ok(false);
        }
        if !self.observable {
            return Err(Missing::Sensor);
        }
        match unused_since(&self.slices(lost, unjudged), &self.schedule, needs, now) {
            Ok(_) => Ok(true),
            Err(lack) => Err(lack.missing),
        }
    }
}

fn names_networks(elements: &[(u64, Element)]) -> bool {
    elements.iter().any(|(_, it)| matches!(it.span, Some(Span::Network(_))))
}
