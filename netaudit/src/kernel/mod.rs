//! The kernel side: loads the eBPF programs, reads what they record, and says it in the model's words.
//!
//! ```text
//!  connect, sendmsg, recvmsg, bind, release, sock_ops ─┐
//!  errors for datagrams, raw sockets made ─────────────┤
//!  packets dropped by a filter, DNS answers ───────────┤
//!  cgroup made, removed ───────────────────────────────┴─► ring ──► drain ──► decode ──► Event
//!                                                            └─ full ─► folds ─► take ─────┤
//!  scan: iter/task, iter/task_file, the cgroup tree ───────────────────────────────────────┘
//!  look: iter/task_file, now and then ──────────────────────────────────► OpenConnection
//! ```
//!
//! Records keep the order in which the kernel reserved them, so a cgroup's birth stands before the flows of its
//! processes. Everything here is about sockets, namespaces and cgroups; nothing in it knows pods or policies.
//!
//! What is watched is the whole cgroup hierarchy or a part of it: a directory that the configuration names, or all that
//! a node sees which is itself a container (kind, k3d) and has a cgroup namespace of its own. The programs then tell of
//! the sockets, tasks and cgroups of that part only; the kernel may run other nodes beside it. Paths are relative to the
//! mount, be it of the whole or of a part.

mod attach;
mod btf;
mod cgroups;
mod clock;
mod conntrack;
mod decode;
mod dns;
mod drops;
mod event;
mod first;
mod folds;
mod former;
mod host;
mod kept;
mod load;
mod open;
mod outcome;
mod pins;
mod programs;
mod reader;
mod ring;
mod tallies;

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use aya::{
    maps::MapError,
    programs::{Program, ProgramError, links::LinkError},
};
use aya_log::EbpfLogger;
use netaudit_ebpf::abi::TaskRecord;
use tokio::io::unix::AsyncFd;

pub use btf::BtfError;
pub use clock::Clock;
pub use conntrack::{Conntrack, Lookups};
pub use decode::{DecodeError, decode, encode, encode_cgroup};
pub use event::{DnsCount, DropCount, Event, Feature, Loss};
pub use host::{AddressNews, own_addresses, own_netns};
pub use load::{BTF_PATH, LoadError};
/// The records' layout, for whoever makes records up: benches and tests.
pub use netaudit_ebpf::abi;
pub use open::{Look, Looked};
pub use pins::{DEFAULT_DIRECTORY as DEFAULT_PIN_DIRECTORY, PinError, Removed, uninstall};
pub use programs::{CostCounter, ProgramState};
pub use ring::Position;
pub use tallies::{RecordCount, losses};

use crate::model::{NetnsCookie, Timestamp};
use cgroups::Hierarchy;
use decode::decode_removed;
use dns::DnsCounts;
use drops::Drops;
use folds::Folds;
use former::{Former, Formers, Span};
use kept::Kept;
use load::{Loaded, Pinned};
use reader::Reader;
use ring::Ring;
use tallies::{Tallies, sum};

/// How to load.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory of the cgroup whose sockets are watched. Found by itself if absent: the root of the hierarchy, or
    /// of the part of it that shows a node.
    pub cgroup_root: Option<PathBuf>,
    /// Size of the ring in bytes, a power of two from 4,096.
    pub ring_bytes: u32,
    /// A UDP flow that goes on is told again when this long has passed since it was told, to about a millisecond.
    pub udp_retell: Duration,
    /// The directory of a BPF file system in which the programs and maps outlive the agent; nothing does without it.
    pub pin_directory: Option<PathBuf>,
    /// How long programs of another version or with other settings, which are pinned there too, go on beside the new ones: as
    /// long as the kernel tries to connect.
    pub overlap: Duration,
    /// For how many TCP sockets that connect or were accepted there are slots for their state, at most and by default
    /// [`abi::ATTEMPTS`]; without one it costs the connection a microsecond more.
    pub attempts: u32,
    /// How many keys flows are folded by that find no room in the ring, until they are taken.
    pub fold_keys: u32,
    /// How many subjects the rest is folded by.
    pub fold_subjects: u32,
    /// Whether DNS answers are told, which every packet that reaches a socket pays for.
    pub dns_names: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cgroup_root: None,
            ring_bytes: 8 << 20,
            udp_retell: Duration::from_secs(30),
            pin_directory: None,
            overlap: Duration::from_secs(150),
            attempts: abi::ATTEMPTS,
            fold_keys: abi::FOLD_KEYS,
            fold_subjects: abi::FOLD_SUBJECTS,
            dns_names: false,
        }
    }
}

/// Why a scan is incomplete.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The cgroup tree cannot be read.
    #[error("cannot read the cgroups below {}", path.display())]
    Cgroups {
        /// The root.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An iterator cannot be started.
    #[error("cannot start the iterator {0}")]
    Attach(&'static str, #[source] ProgramError),
    /// An iterator cannot be opened.
    #[error("cannot open the iterator {0}")]
    Open(&'static str, #[source] LinkError),
    /// The programs cannot be told what to look for.
    #[error("cannot ask for open connections")]
    Switch(#[source] Box<LoadError>),
    /// An iterator cannot be read.
    #[error("cannot read the iterator {0}")]
    Read(&'static str, #[source] io::Error),
}

/// The running programs. Dropping it detaches and unloads what is not pinned.
pub struct Kernel {
    ebpf: aya::Ebpf,
    hierarchy: Hierarchy,
    features: Vec<Feature>,
    ring: Ring,
    kept: Kept,
    tallies: Tallies,
    folds: Folds,
    /// Links of which aya knows nothing, where they are not pinned.
    _links: Vec<OwnedFd>,
    drops: Drops,
    dns: DnsCounts,
    host_netns: NetnsCookie,
    clock: Clock,
    /// When this run began.
    loaded: Timestamp,
    undecodable: u64,
    ready: OnceLock<io::Result<AsyncFd<OwnedFd>>>,
    /// What the programs say of themselves; hardly ever anything.
    log: Option<EbpfLogger<&'static dyn log::Log>>,
    /// Where they are pinned: locked for as long as we use them.
    pinned: Option<Pinned>,
    formers: Formers,
    /// What the last of them had folded, to be passed on with ours.
    folds_of_retired: Vec<Event>,
    taken_before: u64,
    /// What begins in it is taken from our own ring.
    span: Span,
}

impl Kernel {
    /// Loads the programs and attaches them at the cgroup root. From here on records are made. Where they are pinned and an
    /// earlier run has attached the same, it takes those over, with all the records that nobody has [released](Self::release).
    ///
    /// # Errors
    ///
    /// When a capability, the kernel's type information, cgroup v2 or a hook that nothing can replace is missing, or another
    /// agent has pinned its programs in the same place: the error names it and says what to do.
    pub fn load(options: &Options) -> Result<Self, LoadError> {
        let host_netns = own_netns().map_err(LoadError::Netns)?;
        let Loaded { mut ebpf, folds, links, hierarchy, features, pinned } = load::load(options, host_netns)?;
        let ring = ebpf.take_map("RECORDS").ok_or(LoadError::Lacks("RECORDS"))?;
        let kept = Kept::new(ebpf.take_map(kept::MAP).ok_or(LoadError::Lacks(kept::MAP))?)?;
        let ring = Ring::new(ring, kept.taken()).map_err(LoadError::Ring)?;
        let tallies = ebpf.take_map(tallies::MAP).ok_or(LoadError::Lacks(tallies::MAP))?;
        let tallies = Tallies::new(tallies)?;
        let drops = Drops::new(&mut ebpf)?;
        let dns = DnsCounts::new(&mut ebpf)?;
        // Without it the counts still tell.
        let log = EbpfLogger::init(&mut ebpf)
            .inspect_err(|error| tracing::warn!(%error, "the eBPF programs' log cannot be read"))
            .ok();
        let clock = Clock::now();
        let mut kernel = Self {
            ebpf,
            hierarchy,
            features,
            ring,
            kept,
            tallies,
            folds,
            _links: links,
            drops,
            dns,
            host_netns,
            clock,
            loaded: clock.time(),
            undecodable: 0,
            ready: OnceLock::new(),
            log,
            pinned,
            formers: Formers::default(),
            folds_of_retired: Vec::new(),
            taken_before: 0,
            span: Span { from: Timestamp(i64::MIN), until: Timestamp::MAX },
        };
        if let Some(pinned) = kernel.pinned.take() {
            kernel.take_over_formers(&pinned, options.overlap)?;
            kernel.pinned = Some(pinned);
        }
        Ok(kernel)
    }

    /// Finds the programs of other generations: what begins from now on is told by ours.
    fn take_over_formers(&mut self, pinned: &Pinned, overlap: Duration) -> Result<(), LoadError> {
        if !pinned.resumed
            && let Err(error) = self.iterate("scan_files")
        {
            tracing::warn!(%error, "sockets that served before these programs are not known to them");
        }
        // Only now, since from here on ours know what serves already.
        let found = pinned.pins.former(&pinned.generation, Clock::boot())?;
        self.formers = Formers::take_over(found, overlap, &self.clock)?;
        let formers =
            self.formers.running.iter_mut().map(|former| former.tallies.delivered(&mut former.ring));
        self.taken_before = formers.sum::<u64>() + self.tallies.delivered(&mut self.ring);
        if let Some(latest) = self.formers.running.last() {
            self.span.from = latest.span.until;
        }
        Ok(())
    }

    /// The directory that the programs are attached to.
    pub fn cgroup_root(&self) -> &Path {
        &self.hierarchy.root
    }

    /// Where the v2 hierarchy, or the part of it that this node sees, is mounted: what paths of cgroups are relative to.
    pub fn cgroup_mount(&self) -> &Path {
        &self.hierarchy.mount
    }

    /// Whether that is the whole hierarchy, and not a part of it.
    pub fn watches_everything(&self) -> bool {
        self.hierarchy.part.is_none()
    }

    /// The namespace of the thread that loaded.
    pub fn host_netns(&self) -> NetnsCookie {
        self.host_netns
    }

    /// This moment on the time line that all events use: the time since boot, shifted by a constant so that it read
    /// like the wall clock at load. It never steps, whatever is done to the wall clock.
    pub fn now(&self) -> Timestamp {
        self.clock.time()
    }

    /// What to add to a time of that line, in nanoseconds, for what the wall clock says now; 0 where that is less than
    /// a millisecond. For output only.
    pub fn wall_correction(&self) -> i64 {
        self.clock.correction()
    }

    /// How far that line is ahead of the time since boot, in nanoseconds.
    pub fn line(&self) -> i64 {
        self.clock.ahead()
    }

    /// What this kernel has of the optional hooks.
    pub fn features(&self) -> &[Feature] {
        &self.features
    }

    /// What exists now: the cgroups of the watched part first, then its processes. Also marks the sockets that serve
    /// already with their process, so that what they accept can be told from whom. An optional iterator that the
    /// kernel lacks is left out: see [`Kernel::features`].
    ///
    /// # Errors
    ///
    /// When the cgroup tree or an iterator cannot be read.
    pub fn scan(&mut self) -> Result<Vec<Event>, ScanError> {
        let mut events = self.cgroups_of_unread();
        self.iterate("scan_files")?;
        // Processes before cgroups: one that is in a cgroup made meanwhile is then found in the list of cgroups.
        let tasks = self.look_for_tasks()?;
        let list = self.hierarchy.list();
        events
            .extend(list.map_err(|source| ScanError::Cgroups { path: self.hierarchy.root.clone(), source })?);
        events.extend(tasks);
        Ok(events)
    }

    /// The processes that exist now, with their namespaces. Takes about a microsecond a process of the node.
    ///
    /// # Errors
    ///
    /// When the iterator cannot be read.
    pub fn look_for_tasks(&mut self) -> Result<Vec<Event>, ScanError> {
        let written = self.iterate("scan_tasks")?;
        let tasks: Vec<_> = decode::decode_tasks(&written).collect();
        for task in &tasks {
            if let Event::Task { netns, .. } = task {
                self.drops.meet(*netns);
            }
        }
        Ok(tasks)
    }

    /// Looks through all open sockets for those that make their own packets, which no hook shows: new ones come as events.
    /// Takes some hundred nanoseconds a file that a process of the node has open.
    ///
    /// # Errors
    ///
    /// When the iterator cannot be read.
    pub fn look_for_raw_sockets(&mut self) -> Result<(), ScanError> {
        self.iterate("scan_files").map(drop)
    }

    /// Begins a look at all open connections. Those that no hook told are told as such by each look, until somebody
    /// [says](Kernel::told_open) that they are told. It also does what [`Kernel::look_for_raw_sockets`] does. `None` where the kernel
    /// cannot look.
    ///
    /// # Errors
    ///
    /// When the iterator cannot be started.
    pub fn look(&mut self) -> Result<Option<Look>, ScanError> {
        const NAME: &str = "scan_files";
        load::switch(&mut self.ebpf, abi::SWITCH_OPEN, true)
            .map_err(|error| ScanError::Switch(error.into()))?;
        let Some(file) = self.open_iterator(NAME)? else { return Ok(None) };
        Look::begin(file, self.clock, self.loaded).map(Some).map_err(|error| ScanError::Read(NAME, error))
    }

    /// Whatever looks found up to `until` has been told, for good: looks take it for told from now on, those of later runs too.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn told_open(&mut self, until: Timestamp) -> Result<(), MapError> {
        self.kept.tell(self.clock.since_boot(until))
    }

    /// Runs an iterator to its end; returns what it wrote. Nothing where the kernel does not have it.
    fn iterate(&mut self, name: &'static str) -> Result<Vec<u8>, ScanError> {
        let mut written = Vec::with_capacity(64 * size_of::<TaskRecord>());
        if let Some(mut file) = self.open_iterator(name)? {
            file.read_to_end(&mut written).map_err(|error| ScanError::Read(name, error))?;
        }
        Ok(written)
    }

    fn open_iterator(&mut self, name: &'static str) -> Result<Option<File>, ScanError> {
        let Some(Program::Iter(program)) = self.ebpf.program_mut(name) else { return Ok(None) };
        if program.fd().is_err() {
            return Ok(None);
        }
        let id = program.attach().map_err(|error| ScanError::Attach(name, error))?;
        let link = program.take_link(id).map_err(|error| ScanError::Attach(name, error))?;
        link.into_file().map(Some).map_err(|error| ScanError::Open(name, error))
    }

    /// The cgroups that are gone, but of whose processes an earlier run has left records unread: it knew where they were.
    fn cgroups_of_unread(&mut self) -> Vec<Event> {
        let mut found = Vec::new();
        if self.pinned.as_ref().is_some_and(|pinned| pinned.resumed) {
            self.ring.for_each_unread(|record| found.extend(decode_removed(record)));
        }
        for former in &mut self.formers.running {
            former.ring.for_each_unread(|record| found.extend(decode_removed(record)));
        }
        for event in &mut found {
            if let Event::Cgroup { path, .. } = event {
                *path = self.hierarchy.path_from_mount(std::mem::take(path));
            }
        }
        found
    }

    /// Takes up to `max` records out of the ring, passes what they say to `sink` in their order, and returns how many
    /// it took. Call it every 10 to 50 ms, and when [`Kernel::ready`] tells that the ring fills up.
    ///
    /// What an earlier run may have told of already says so. Where the programs are pinned, the room of these records is given back to the kernel with [`Kernel::release`] only.
    pub fn drain(&mut self, max: usize, sink: &mut dyn FnMut(Event)) -> usize {
        if let Some(log) = &mut self.log {
            log.flush();
        }
        let mut reader = Reader {
            clock: &self.clock,
            hierarchy: &self.hierarchy,
            drops: &mut self.drops,
            undecodable: &mut self.undecodable,
            sink,
        };
        let mut taken = 0;
        for mut former in self.formers.retire(self.clock.time()) {
            // All of it, as it does not come again.
            taken += reader.read(&mut former.ring, former.span, usize::MAX);
            for _ in 0..2 {
                let span = former.span;
                let mut keep = |event: Event| {
                    if span.holds(&event) {
                        self.folds_of_retired.push(event);
                    }
                };
                match former.folds.take(&self.clock, &mut keep) {
                    Ok(unreadable) => *reader.undecodable += unreadable,
                    Err(error) => tracing::warn!(%error, "folded flows of an earlier version are lost"),
                }
            }
        }
        for former in &mut self.formers.running {
            taken += reader.read(&mut former.ring, former.span, max.saturating_sub(taken));
            former.ring.release(former.ring.position());
        }
        taken += reader.read(&mut self.ring, self.span, max.saturating_sub(taken));
        if self.pinned.is_none() {
            self.ring.release(self.ring.position());
        } else if let Err(error) = self.kept.take(self.ring.position()) {
            tracing::warn!(%error, "if this agent is killed, the next one may tell some flows again without saying so");
        }
        taken
    }

    /// Up to where the records have been taken out of the ring.
    pub fn position(&self) -> Position {
        self.ring.position()
    }

    /// Whoever is done with all records up to `position` says so: only what comes after it is there for the next run, if
    /// this one is killed. Without pins that is done by itself.
    pub fn release(&mut self, position: Position) {
        self.ring.release(position);
    }

    /// What share of the ring is taken up by records that have been taken out and not released, from 0 to 1.
    pub fn unreleased(&self) -> f64 {
        self.ring.position().since(self.ring.released()) as f64 / self.ring.size() as f64
    }

    /// Whether the programs outlive this process.
    pub fn is_pinned(&self) -> bool {
        self.pinned.is_some()
    }

    /// Whether they were attached by an earlier run, and have recorded ever since.
    pub fn is_resumed(&self) -> bool {
        self.pinned.as_ref().is_some_and(|pinned| pinned.resumed)
    }

    /// Resolves when the ring has filled up to a quarter: time to drain at once. Records below that wake nobody.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn ready(&self) {
        let register = || {
            let ring = self.ring.as_fd().try_clone_to_owned()?;
            // SAFETY: the descriptor is a duplicate that nobody else holds; it closes with the registration.
            Ok(unsafe { AsyncFd::register(ring) }?)
        };
        let said = |error: &io::Error| {
            tracing::warn!(%error, "no wake-ups from the kernel's ring; it is drained by timer only");
        };
        let descriptor = self.ready.get_or_init(|| register().inspect_err(said));
        match descriptor {
            Ok(descriptor) => match descriptor.readable().await {
                Ok(mut guard) => guard.clear_ready(),
                Err(_) => std::future::pending().await,
            },
            // Without it the caller's timer drains alone.
            Err(_) => std::future::pending().await,
        }
    }

    /// How many keys flows have been folded by since [`Kernel::take_folded`]: it is to be called when they are many, and
    /// from time to time as long as there are any.
    pub fn folded_keys(&self) -> u64 {
        self.folds_of_retired.len() as u64
            + self.folds.waiting()
            + self.formers.running.iter().map(|former| former.folds.waiting()).sum::<u64>()
    }

    /// Takes what found no room in the ring and was folded, each exactly once, and passes it to `sink`. Waits some
    /// milliseconds for the programs that may still be adding to it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. What was not passed on is still there for the next time.
    pub fn take_folded(&mut self, sink: &mut dyn FnMut(Event)) -> Result<(), MapError> {
        self.folds_of_retired.drain(..).for_each(&mut *sink);
        let drops = &mut self.drops;
        let mut told = |span: Span, event: Event| {
            if !span.holds(&event) {
                return;
            }
            if let Event::Flow(seen) = &event {
                drops.meet(seen.netns);
            }
            sink(event);
        };
        for Former { folds, span, .. } in &mut self.formers.running {
            self.undecodable += folds.take(&self.clock, &mut |event| told(*span, event))?;
        }
        self.undecodable += self.folds.take(&self.clock, &mut |event| told(self.span, event))?;
        Ok(())
    }

    /// What became of all records since the programs were attached, by kind and CPU; without those of which none was made.
    pub fn record_counts(&self) -> Vec<RecordCount> {
        sum(self.tallies.counts(), self.formers.record_counts())
    }

    /// Of all records, those that earlier runs have taken out of the rings.
    pub fn taken_before(&self) -> u64 {
        self.taken_before
    }

    /// How many records were lost since the programs were attached, by kind and CPU; without those that are zero.
    pub fn losses(&self) -> Vec<Loss> {
        let mut losses = losses(&self.record_counts());
        if self.formers.unreadable > 0 {
            let count = self.formers.unreadable;
            losses.push(Loss { stage: "upgrade", cause: "another version", cpu: 0, count });
        }
        losses
    }

    /// Packets that a filter dropped, by what became of them, since load. What found no room in the ring or was too
    /// much is among the [losses](Kernel::losses).
    pub fn drop_counts(&self) -> Vec<DropCount> {
        self.drops.counts()
    }

    /// Packets from port 53 that reached a socket, by what became of them, since load. None come without
    /// [`Options::dns_names`].
    pub fn dns_counts(&self) -> Vec<DnsCount> {
        self.dns.counts()
    }

    /// Records of an unknown kind or size, and folds of such, since load.
    pub fn undecodable(&self) -> u64 {
        self.undecodable + self.ring.corrupt()
    }
}
