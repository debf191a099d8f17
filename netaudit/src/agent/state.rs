//! The state of the agent's loop, and what happens to it. Nothing here waits.

mod looks;
mod losses;
mod objects;
mod publish;
mod raw_sockets;

use super::sinks::{Sinks, open_otlp, open_store};
use super::{
    progress::Progress,
    usage_store::{Beginning, UsageStore},
};
use looks::Looks;
use losses::{missed, of_cgroups};
pub(super) use publish::Publishing;
use raw_sockets::log_raw_socket;
use std::{
    collections::HashSet,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    accepted::AcceptedFile,
    audit::{Auditor, Budget, Flow, Privacy, RawSocketSeen, Settings, Tuple, usage_window},
    cluster::Kind,
    config::{Config, Source},
    http::UsageDocuments,
    kernel::{self, AddressNews, Conntrack, Event, Kernel, Loss, losses, own_addresses},
    metrics::{self, AgentState, Format, WatchState},
    model::{CgroupId, NetnsCookie, Observation, PacketDrop, Timestamp},
    policy::Warning,
    report::{FlowLog, findings},
    store::{Directory, Found, bucket::Bucket},
};

/// Records taken from the ring and judged at once.
const BATCH: usize = 4_096;

/// How long one drain may go on taking batches: a scrape or an object waits no longer behind a burst.
const DRAIN_TIME: Duration = Duration::from_millis(100);

/// A fault of a watch that has not come again for this long is over: kube's longest pause between tries is 30 s.
const FAULT_MEMORY: Duration = Duration::from_secs(90);

/// How often the node's own addresses are read, though nothing told that they have changed.
const ADDRESSES_EVERY: Duration = Duration::from_secs(30);

/// How long after a cgroup was made its processes are looked for, each second: a runtime makes the cgroup first.
const LOOK_FOR_TASKS: Duration = Duration::from_secs(3);

/// How long the last drain may take under traffic that does not end.
const LAST_DRAIN: Duration = Duration::from_millis(400);

/// How long the flow log's last lines are waited for.
const LAST_WRITE: Duration = Duration::from_millis(300);

#[derive(Debug)]
struct Watch {
    kind: Kind,
    state: WatchState,
    last_fault: Option<Timestamp>,
}

/// What the auditor has said and nobody has been told yet.
#[derive(Default)]
struct Told {
    flows: Vec<Flow>,
    raw_sockets: Vec<RawSocketSeen>,
}

/// Everything that the agent's loop owns.
pub(super) struct State {
    kernel: Kernel,
    /// `None` where this kernel has none.
    conntrack: Option<Conntrack>,
    auditor: Auditor,
    sinks: Sinks,
    usage_store: UsageStore,
    watches: Vec<Watch>,
    records: u64,
    unseen_before: u64,
    /// Where the programs are pinned: without, the kernel has the room back as soon as records are taken.
    progress: Option<Progress>,
    /// Keys of folded flows at which they are taken at once, and not by the next second.
    many_folded: u64,
    /// Records of cgroups that were lost when the cgroups were last listed.
    cgroups_lost: u64,
    addresses_read: Option<Timestamp>,
    address_news: Option<AddressNews>,
    accepted: Option<AcceptedFile>,
    looks: Looks,
    /// When a cgroup was last made: its processes may not be in their namespace yet.
    cgroup_made: Option<Timestamp>,
    started: Timestamp,
    /// What is wrong with objects and has been said: a file or list that is read again repeats nothing.
    warned: HashSet<Warning>,
    /// Kept between batches for its capacity.
    told: Told,
    publishing: Publishing,
}

impl State {
    pub(super) fn new(
        config: Config,
        privacy: Privacy,
        kernel: Kernel,
        flow_log: Option<FlowLog>,
        stored: Option<(PathBuf, Directory, Found)>,
        publishing: Publishing,
    ) -> anyhow::Result<Self> {
        let now = kernel.now();
        let node: Arc<str> = config.node.as_str().into();
        let mut auditor = Auditor::new(Settings {
            run: format!("{node}-{:x}", now.0 / 1_000_000).into(),
            node,
            host: kernel.host_netns(),
            budget: Budget {
                series: config.violation_series,
                per_namespace: config.violation_series_per_namespace,
                lifetime: config.violation_series_lifetime,
                rules: config.rule_series,
            },
            unused_after: config.unused_after,
            unused_coverage: config.unused_coverage,
        });
        if kernel.features().iter().any(|hook| hook.name == kernel::Feature::DROPS && hook.absent.is_none()) {
            auditor.set_sees_drops();
        }
        if config.dns_names {
            auditor.set_sees_names(config.dns_servers.clone());
        }
        let conntrack = Conntrack::open()
            .inspect(|_| auditor.set_asks_for_translations())
            .inspect_err(|error| tracing::warn!(%error, "this kernel's connection tracking cannot be asked"))
            .ok();
        let address_news = AddressNews::open()
            .inspect_err(|error| tracing::warn!(%error, "new addresses of the node are noticed late"))
            .ok();
        let progress = kernel.is_pinned().then(Progress::default);
        let (losses_before, taken_before) = (kernel.losses(), kernel.taken_before());
        let beginning = Beginning {
            key: auditor.usage().run().clone(),
            from: now,
            line: kernel.line(),
            correction: kernel.wall_correction(),
            losses: missed(&losses_before),
            records_go_on: kernel.is_resumed(),
            unused_after: config.unused_after,
            window: usage_window(config.unused_after),
        };
        let (mut usage_store, restored) = UsageStore::new(beginning, stored);
        if let Some(url) = &config.flow_bucket {
            let bucket = Bucket::open(url, &config.flow_bucket_access);
            let bucket = bucket.context("choose another with --flow-bucket")?;
            usage_store.upload(bucket).context("starting the upload of rules' use")?;
        }
        auditor.usage_mut().restore(restored.histories, restored.resumed);
        let watches = Kind::ALL.map(|kind| Watch {
            kind,
            state: WatchState { kind: kind.as_str(), ready: false, errors: 0, failing: None },
            last_fault: None,
        });
        match &config.source {
            Source::Manifests(dir) => tracing::info!(dir = %dir.display(), "objects are read from files"),
            Source::Api(_) => tracing::info!("objects are read from the API server"),
        }
        let store = open_store(&config, &auditor, &kernel, missed(&losses_before))?;
        if store.is_some() {
            auditor.cluster_mut().keep_binding_news();
        }
        let sinks = Sinks {
            node: config.node.as_str().into(),
            privacy,
            log: flow_log,
            store,
            otlp: open_otlp(&config)?,
        };
        Ok(Self {
            kernel,
            conntrack,
            auditor,
            sinks,
            usage_store,
            watches: watches.into(),
            records: taken_before,
            // What was lost since an earlier run's end is restored with what that run watched.
            unseen_before: missed(&losses_before),
            progress,
            // Half of what there is room for.
            many_folded: u64::from(config.fold_keys / 2),
            cgroups_lost: of_cgroups(&losses_before),
            addresses_read: None,
            address_news,
            accepted: config.accepted_flows.as_deref().map(AcceptedFile::new),
            looks: Looks::new(config.look_every, now),
            cgroup_made: None,
            started: now,
            warned: HashSet::new(),
            told: Told::default(),
            publishing,
        })
    }

    /// Learns of the cgroups, namespaces and addresses that exist already.
    pub(super) fn start(&mut self, now: Timestamp) {
        self.read_accepted();
        self.read_addresses(now);
        match self.kernel.scan() {
            Ok(events) => {
                events.into_iter().for_each(|event| take(&mut self.auditor, event, now, &mut self.told));
            }
            Err(error) => tracing::warn!(
                %error,
                "what ran before the agent could not be listed: it is attributed by its addresses only"
            ),
        }
        self.hand_on();
        let resumed = self.kernel.is_resumed();
        tracing::info!(cgroup_root = %self.kernel.cgroup_root().display(), resumed, "watching");
        for feature in self.kernel.features() {
            if let Some(reason) = &feature.absent {
                tracing::warn!(hook = feature.name, %reason, "an optional hook is not attached");
            }
        }
    }

    /// Takes what is in the ring, for as long as one drain may take, and a few of the connections that a look has found.
    /// Returns how many that were.
    pub(super) fn drain(&mut self, now: Timestamp) -> usize {
        self.drain_until(now, Instant::now() + DRAIN_TIME) + self.take_open()
    }

    fn drain_until(&mut self, now: Timestamp, deadline: Instant) -> usize {
        // Before the records of whoever uses a new one.
        if self.address_news.as_mut().is_some_and(AddressNews::any) {
            self.read_addresses(now);
        }
        let mut taken = 0;
        loop {
            let batch = self.drain_batch(now);
            taken += batch;
            if batch < BATCH || Instant::now() >= deadline {
                break;
            }
        }
        if self.kernel.folded_keys() >= self.many_folded {
            self.take_folded(now);
        }
        taken
    }

    fn drain_batch(&mut self, now: Timestamp) -> usize {
        let Self { kernel, auditor, told, cgroup_made, .. } = self;
        let taken = kernel.drain(BATCH, &mut |event| {
            if matches!(event, Event::Cgroup { .. }) {
                *cgroup_made = Some(now);
            }
            take(auditor, event, now, told);
        });
        self.records += taken as u64;
        // What the kernel told before `now` has been taken if this was all of it.
        if taken < BATCH {
            self.auditor.settle(now, &mut self.told.flows);
        }
        self.translate(now);
        self.hand_on();
        self.release();
        taken
    }

    /// Asks where flows went of which only that is missing.
    fn translate(&mut self, now: Timestamp) {
        self.auditor.translate(&mut asking(&mut self.conntrack), now, &mut self.told.flows);
    }

    /// Gives the room of records that are done with back to the kernel.
    fn release(&mut self) {
        let (handed, done) = (self.sinks.handed(), self.sinks.done());
        self.told_open(done);
        let Some(progress) = &mut self.progress else { return };
        progress.took(self.kernel.position(), self.auditor.taken());
        progress.judged(self.auditor.settled(), handed);
        let kernel = &mut self.kernel;
        progress.release(done, |position| {
            if let Some(position) = position {
                kernel.release(position);
            }
            kernel.unreleased()
        });
    }

    /// Takes what found no room in the ring and was folded.
    fn take_folded(&mut self, now: Timestamp) {
        if self.kernel.folded_keys() == 0 {
            return;
        }
        let (mut folds, mut drops) = (Vec::<Observation>::new(), Vec::<PacketDrop>::new());
        let mut subjects = Vec::<(u64, NetnsCookie)>::new();
        let result = self.kernel.take_folded(&mut |event| match event {
            Event::FoldedSubject { netns, count, .. } => subjects.push((count.get(), netns)),
            Event::Flow(seen) => folds.push(seen),
            Event::Drop(seen) => drops.push(seen),
            _ => {}
        });
        if let Err(error) = result {
            tracing::warn!(%error, "folded flows cannot be taken now: they are counted later");
        }
        for folds in folds.chunks(BATCH) {
            self.auditor.observe_folded(folds, now, &mut self.told.flows);
            self.hand_on();
        }
        for drops in drops.chunks(BATCH) {
            self.auditor.observe_folded_drops(drops, now, &mut self.told.flows);
            self.hand_on();
        }
        if let Some((most, netns)) = subjects.iter().max() {
            let flows: u64 = subjects.iter().map(|(count, _)| count).sum();
            let busiest = self.auditor.owner_name(*netns);
            tracing::warn!(
                flows,
                busiest,
                most,
                "too many different flows at once: not judged, only counted"
            );
        }
    }

    /// Learns the namespaces of processes that came since, as long as new ones may come: a pod that only waits makes no
    /// flow that would tell.
    fn look_for_tasks(&mut self, now: Timestamp) {
        let Some(made) = self.cgroup_made else { return };
        if now.since(made) >= LOOK_FOR_TASKS {
            self.cgroup_made = None;
        }
        match self.kernel.look_for_tasks() {
            Ok(tasks) => {
                tasks.into_iter().for_each(|task| take(&mut self.auditor, task, now, &mut self.told))
            }
            Err(error) => tracing::warn!(%error, "new processes could not be looked for"),
        }
    }

    /// Lists the cgroups again if a record of one was lost: who belongs to a pod is known by them.
    fn find_lost_cgroups(&mut self, losses: &[Loss], now: Timestamp) {
        let lost = of_cgroups(losses);
        if lost == self.cgroups_lost {
            return;
        }
        match self.kernel.scan() {
            Ok(events) => {
                let id = |event: &Event| match event {
                    Event::Cgroup { id, .. } => Some(*id),
                    _ => None,
                };
                let existing: HashSet<CgroupId, _> = events.iter().filter_map(id).collect();
                events.into_iter().for_each(|event| take(&mut self.auditor, event, now, &mut self.told));
                self.auditor.attribution_mut().only_cgroups(&existing, now);
                self.cgroups_lost = lost;
                tracing::warn!(
                    cgroups = existing.len(),
                    "records of cgroups were lost: they were listed again"
                );
            }
            // Tried again a second later.
            Err(error) => tracing::warn!(%error, "records of cgroups were lost, and they cannot be listed"),
        }
    }

    /// Reads the file of accepted flows again if it says something else by now.
    fn read_accepted(&mut self) {
        let Some(file) = &mut self.accepted else { return };
        match file.changed() {
            Ok(Some(accepted)) => {
                tracing::info!(exceptions = accepted.0.len(), "accepted flows are read");
                self.auditor.set_accepted(accepted);
            }
            Ok(None) => {}
            Err(error) => tracing::error!("{error:#}: what was accepted before is accepted still"),
        }
    }

    /// A second passed.
    pub(super) fn tick(&mut self, now: Timestamp) {
        self.auditor.set_correction(self.kernel.wall_correction());
        self.read_accepted();
        if self.addresses_read.is_none_or(|read| now.since(read) >= ADDRESSES_EVERY || now < read) {
            self.read_addresses(now);
        }
        self.look_again(now);
        self.look_for_tasks(now);
        for watch in &mut self.watches {
            if watch.last_fault.is_some_and(|fault| now.since(fault) >= FAULT_MEMORY) {
                watch.last_fault = None;
                watch.state.failing = None;
            }
        }
        let losses = self.kernel.losses();
        self.find_lost_cgroups(&losses, now);
        self.take_folded(now);
        // What the flow log loses has been judged and credited all the same: only records that never came can hide a
        // rule's use.
        let unseen = missed(&losses) + self.kernel.undecodable();
        if unseen > self.unseen_before {
            tracing::warn!(lost = unseen - self.unseen_before, "records were lost");
            self.auditor.lost(unseen - self.unseen_before);
            self.unseen_before = unseen;
        }
        self.auditor.tick(now, &mut self.told.flows);
        self.translate(now);
        let correction = self.kernel.wall_correction();
        self.usage_store.tick(self.auditor.usage_mut(), now, correction, missed(&losses));
        self.auditor.name_raw_sockets(now, &mut self.told.raw_sockets);
        self.hand_on();
        self.remember_bindings();
        self.sinks.tick(self.wall(now), self.lost(missed(&losses)));
        self.publish(now);
    }

    /// Takes everything that is still under way, and ends in any case within a second. Attempts without an outcome are
    /// written as pending.
    pub(super) fn finish(mut self, now: Timestamp) {
        // What was in the ring when the end was asked for comes out by this; traffic may go on and fill it meanwhile.
        self.drain_until(now, Instant::now() + LAST_DRAIN);
        self.take_folded(now);
        self.auditor.finish(&mut self.told.flows);
        // With pins the next run is told the outcome.
        if !self.kernel.is_pinned() {
            self.auditor.finish_pending(&mut self.told.flows);
        }
        self.auditor.name_raw_sockets(Timestamp::MAX, &mut self.told.raw_sockets);
        self.hand_on();
        self.publish_last(now);
        let lost = self.lost(missed(&self.kernel.losses()));
        self.remember_bindings();
        let wall = self.wall(now);
        let unwritten = self.sinks.finish(wall, lost, LAST_WRITE);
        if unwritten == 0 {
            self.told_open(u64::MAX);
            self.kernel.release(self.kernel.position());
        }
        let (correction, losses) = (self.kernel.wall_correction(), missed(&self.kernel.losses()));
        let losses_in_all = self.losses();
        self.usage_store.finish(self.auditor.usage_mut(), now, correction, losses, LAST_WRITE);
        // With log and store taken, these are the kernel's and the auditor's only.
        let lost = unwritten + losses_in_all.iter().map(|loss| loss.count).sum::<u64>();
        tracing::info!(records = self.records, flows = self.auditor.counts().total(), lost, "ended");
    }

    pub(super) fn metrics(&mut self, format: Format, now: Timestamp) -> String {
        // So that records made and records taken are counts of one moment, as nearly as can be.
        self.drain_batch(now);
        let record_counts = self.kernel.record_counts();
        let watches: Vec<_> = self.watches.iter().map(|watch| watch.state.clone()).collect();
        self.auditor.usage_mut().settle();
        let state = AgentState {
            auditor: &self.auditor,
            losses: &self.losses_with(losses(&record_counts)),
            record_counts: &record_counts,
            features: self.kernel.features(),
            drops: &self.kernel.drop_counts(),
            dns: &self.kernel.dns_counts(),
            lookups: self.conntrack.as_ref().map(Conntrack::lookups),
            watches: &watches,
            usage_faults: self.usage_store.faults(),
            flow_store: self.sinks.store_state(),
            flow_bucket: self.sinks.bucket_state(),
            events: self.publishing.events_state(),
            reports: self.publishing.reports_state(),
            accepted_valid: self.accepted.as_ref().map(|file| file.fault().is_none()),
            records: self.records,
            started: self.started,
            now,
            correction: self.kernel.wall_correction(),
        };
        metrics::render(&state, format)
    }

    /// The rows of usage that this agent has.
    pub(super) fn usage(&mut self, now: Timestamp) -> UsageDocuments {
        let (correction, losses) = (self.kernel.wall_correction(), missed(&self.kernel.losses()));
        self.usage_store.documents(self.auditor.usage_mut(), now, correction, losses)
    }

    /// What was found on flows, as a document.
    pub(super) fn findings(&mut self, now: Timestamp) -> String {
        self.drain_batch(now);
        let findings = findings(&self.auditor, now, self.kernel.wall_correction());
        // Strings and numbers only.
        serde_json::to_string(&findings).unwrap_or_default()
    }

    /// What is missing for being ready: kinds of objects that have not been listed.
    pub(super) fn missing(&self) -> Vec<String> {
        let needed = self.watches.iter().filter(|watch| watch.kind.changes_verdicts());
        needed.filter_map(Watch::unlisted).collect()
    }

    /// What is not as it should be, though the agent does its work.
    pub(super) fn degraded(&self) -> Vec<String> {
        let absent = self.kernel.features().iter().filter_map(|feature| {
            let reason = feature.absent.as_ref()?;
            Some(format!("the kernel hook {:?} is not attached: {reason}", feature.name))
        });
        let failing = self.watches.iter().filter(|watch| watch.state.ready).filter_map(|watch| {
            let error = watch.state.failing.as_ref()?;
            Some(format!("changes of {} objects are not heard: {error}", watch.state.kind))
        });
        let unneeded = self.watches.iter().filter(|watch| !watch.kind.changes_verdicts());
        let unlisted = unneeded.filter_map(Watch::unlisted);
        let unlisted = unlisted.map(|fault| format!("{fault}: no rule is called unused until they are"));
        let accepted = self.accepted.as_ref().and_then(AcceptedFile::fault);
        absent
            .chain(failing)
            .chain(unlisted)
            .chain(accepted.map(|fault| format!("accepted flows are those of before: {fault}")))
            .chain(self.sinks.failing())
            .chain(self.publishing.degraded())
            .chain(self.usage_store.failing().map(|fault| format!("usage of rules is not stored: {fault}")))
            .chain(
                self.usage_store
                    .not_uploaded()
                    .map(|fault| format!("usage of rules is not uploaded: {fault}")),
            )
            .collect()
    }

    fn hand_on(&mut self) {
        self.note_events();
        self.told
            .raw_sockets
            .drain(..)
            .for_each(|seen| log_raw_socket(&seen, self.auditor.cluster(), &self.sinks.privacy));
        let flows = self.told.flows.drain(..);
        if self.sinks.any() {
            self.sinks.take(flows, self.auditor.cluster(), self.kernel.wall_correction());
        }
    }

    fn read_addresses(&mut self, now: Timestamp) {
        match own_addresses() {
            Ok(addresses) => {
                self.auditor.set_own_addresses(addresses);
                self.addresses_read = Some(now);
            }
            Err(error) => tracing::warn!(%error, "the node's own addresses could not be read"),
        }
    }

    /// Waits until the kernel says that the ring fills faster than it is drained.
    pub(super) async fn filling(&self) {
        self.kernel.ready().await;
    }

    /// A time of the kernel's records on the wall clock.
    fn wall(&self, time: Timestamp) -> Timestamp {
        Timestamp(time.0.saturating_add(self.kernel.wall_correction()))
    }

    /// Now, on the time line of the kernel's records.
    pub(super) fn now(&self) -> Timestamp {
        self.kernel.now()
    }
}

fn take(auditor: &mut Auditor, event: Event, now: Timestamp, Told { flows, raw_sockets }: &mut Told) {
    match event {
        Event::Flow(seen) => auditor.observe(&seen, now, flows),
        Event::Answer(seen) => auditor.observe_answer(&seen, now, flows),
        Event::RawSocket(seen) => auditor.observe_raw_socket(&seen, now, raw_sockets),
        Event::Drop(seen) => auditor.observe_drop(&seen, now, flows),
        Event::Dns(answer) => auditor.observe_dns(&answer),
        Event::Cgroup { id, path, made } => {
            auditor.attribution_mut().cgroup(id, &path);
            if let Some(made) = made {
                auditor.attribution_mut().cgroup_made(id, made);
            }
        }
        // Comes out of folds only.
        Event::FoldedSubject { .. } => {}
        Event::CgroupGone { id, at } => auditor.attribution_mut().cgroup_gone(id, at),
        Event::Task { netns, cgroup, .. } => auditor.attribution_mut().pair(netns, cgroup),
    }
}

/// Asks connection tracking where a flow went; where there is none, nobody knows.
fn asking(conntrack: &mut Option<Conntrack>) -> impl FnMut(&Tuple) -> Option<SocketAddr> {
    move |tuple| conntrack.as_mut()?.destination(tuple.protocol, tuple.source, tuple.destination)
}
