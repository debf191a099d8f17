//! The kernel side: loads the eBPF programs, reads what they record, and says it in the model's words.
//!
//! ```text
//!  connect, sendmsg, recvmsg, bind, release, sock_ops ─┐
//!  packets dropped by a filter ────────────────────────┤
//!  cgroup made, removed ───────────────────────────────┴─► ring ──► drain ──► decode ──► Event
//!                                                            └─ full ─► folds ─► take ─────┤
//!  scan: iter/task, iter/task_file, the cgroup tree ───────────────────────────────────────┘
//! ```
//!
//! Records keep the order in which the kernel reserved them, so a cgroup's birth stands before the flows of its
//! processes. Everything here is about sockets, namespaces and cgroups; nothing in it knows pods or policies.
//!
//! What is watched is the whole cgroup hierarchy or a part of it: a directory that the configuration names, or all that
//! a node sees which is itself a container (kind, k3d) and has a cgroup namespace of its own. The programs then tell of
//! the sockets, tasks and cgroups of that part only; the kernel may run other nodes beside it. Paths are relative to the
//! mount, be it of the whole or of a part.

mod btf;
mod cgroups;
mod clock;
mod decode;
mod drops;
mod folds;
mod host;
mod load;
mod outcome;
mod programs;
mod tallies;

use std::{
    io::{self, Read as _},
    num::NonZeroU64,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use aya::{
    maps::{MapData, MapError, RingBuf},
    programs::{Program, ProgramError, links::LinkError},
};
use aya_log::EbpfLogger;
use netaudit_ebpf::abi::TaskRecord;
use tokio::io::unix::AsyncFd;

pub use btf::BtfError;
pub use clock::Clock;
pub use decode::{DecodeError, decode, encode, encode_cgroup};
pub use host::{own_addresses, own_netns};
pub use load::{BTF_PATH, LoadError};
/// The records' layout, for whoever makes records up: benches and tests.
pub use netaudit_ebpf::abi;
pub use programs::{CostCounter, ProgramState};
pub use tallies::{RecordCount, losses};

use crate::model::{CgroupId, NetnsCookie, Observation, PacketDrop, Timestamp};
use cgroups::Hierarchy;
use drops::Drops;
use folds::Folds;
use load::Loaded;
use tallies::Tallies;

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
    /// How many keys flows are folded by that find no room in the ring, until they are taken.
    pub fold_keys: u32,
    /// How many subjects the rest is folded by.
    pub fold_subjects: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cgroup_root: None,
            ring_bytes: 8 << 20,
            udp_retell: Duration::from_secs(30),
            fold_keys: abi::FOLD_KEYS,
            fold_subjects: abi::FOLD_SUBJECTS,
        }
    }
}

/// What the kernel told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A flow, or several alike in one.
    Flow(Observation),
    /// A filter of this node dropped the first packet of an attempt.
    Drop(PacketDrop),
    /// A cgroup exists: from a scan, or made just now.
    Cgroup {
        /// Its id.
        id: CgroupId,
        /// Its path from [`Kernel::cgroup_mount`], such as `/kubepods/burstable/pod<uid>/<container>`.
        path: String,
    },
    /// A cgroup is gone. Flows of its processes may still follow.
    CgroupGone {
        /// Its id.
        id: CgroupId,
        /// When.
        at: Timestamp,
    },
    /// Flows of which no more is known than whose they are.
    FoldedSubject {
        /// The namespace that their sockets live in.
        netns: NetnsCookie,
        /// What kind of record each would have been, such as `tcp-established`.
        kind: &'static str,
        /// How many.
        count: NonZeroU64,
        /// When the last of them began.
        last: Timestamp,
    },
    /// A process exists: from a scan.
    Task {
        /// The namespace that it is in.
        netns: NetnsCookie,
        /// The cgroup that it is in.
        cgroup: CgroupId,
        /// Its thread group id, in the first pid namespace.
        pid: u32,
    },
}

/// Something that the kernel may or may not have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Feature {
    /// What it is for: one of the constants of this type.
    pub name: &'static str,
    /// Why it is not there; `None` where it is.
    pub absent: Option<String>,
}

impl Feature {
    /// A connected UDP socket's flow begins with its first datagram, and not with `connect`.
    pub const UDP_FIRST_DATAGRAM: &str = "udp first datagram";
    /// Processes from before the start are found, with their namespaces.
    pub const TASKS: &str = "tasks";
    /// Sockets that served before the start are found, with their processes.
    pub const LISTENERS: &str = "listeners";
    /// Packets that a filter drops are seen.
    pub const DROPS: &str = "drops";
}

/// Packets that a filter dropped and that attempt something, by what became of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DropCount {
    /// `recorded`, `repeated` (one that was told is sent again), `answer` (of a connection), `unreadable`.
    pub told: &'static str,
    /// How many, since load.
    pub count: u64,
}

/// Records that could not be delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loss {
    /// Where: `ring`, or `fold` where at least the subject of each is known.
    pub stage: &'static str,
    /// What kind of record, such as `tcp-established`.
    pub cause: &'static str,
    /// On which CPU.
    pub cpu: u32,
    /// How many, since load.
    pub count: u64,
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
    /// An iterator cannot be read.
    #[error("cannot read the iterator {0}")]
    Read(&'static str, #[source] io::Error),
}

/// The running programs. Dropping it detaches and unloads everything.
pub struct Kernel {
    ebpf: aya::Ebpf,
    hierarchy: Hierarchy,
    features: Vec<Feature>,
    ring: RingBuf<MapData>,
    tallies: Tallies,
    folds: Folds,
    drops: Drops,
    host_netns: NetnsCookie,
    clock: Clock,
    undecodable: u64,
    ready: OnceLock<io::Result<AsyncFd<OwnedFd>>>,
    /// What the programs say of themselves; hardly ever anything.
    log: Option<EbpfLogger<&'static dyn log::Log>>,
}

impl Kernel {
    /// Loads the programs and attaches them at the cgroup root. From here on records are made.
    ///
    /// # Errors
    ///
    /// When a capability, the kernel's type information, cgroup v2 or a hook that nothing can replace is missing: the
    /// error names it and says what to do.
    pub fn load(options: &Options) -> Result<Self, LoadError> {
        let host_netns = own_netns().map_err(LoadError::Netns)?;
        let Loaded { mut ebpf, folds, hierarchy, features } = load::load(options, host_netns)?;
        let ring = ebpf.take_map("RECORDS").ok_or(LoadError::Lacks("RECORDS"))?;
        let ring = RingBuf::try_from(ring).map_err(|source| LoadError::Map { map: "RECORDS", source })?;
        let tallies = Tallies::new(&mut ebpf)?;
        let drops = Drops::new(&mut ebpf)?;
        // Without it the counts still tell.
        let log = EbpfLogger::init(&mut ebpf)
            .inspect_err(|error| tracing::warn!(%error, "the eBPF programs' log cannot be read"))
            .ok();
        Ok(Self {
            ebpf,
            hierarchy,
            features,
            ring,
            tallies,
            folds,
            drops,
            host_netns,
            clock: Clock::now(),
            undecodable: 0,
            ready: OnceLock::new(),
            log,
        })
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
        self.iterate("scan_files")?;
        // Processes before cgroups: one that is in a cgroup made meanwhile is then found in the list of cgroups.
        let written = self.iterate("scan_tasks")?;
        let mut events = self
            .hierarchy
            .list()
            .map_err(|source| ScanError::Cgroups { path: self.hierarchy.root.clone(), source })?;
        for task in decode::decode_tasks(&written) {
            if let Event::Task { netns, .. } = task {
                self.drops.meet(netns);
            }
            events.push(task);
        }
        Ok(events)
    }

    /// Runs an iterator to its end; returns what it wrote. Nothing where the kernel does not have it.
    fn iterate(&mut self, name: &'static str) -> Result<Vec<u8>, ScanError> {
        let Some(Program::Iter(program)) = self.ebpf.program_mut(name) else { return Ok(Vec::new()) };
        if program.fd().is_err() {
            return Ok(Vec::new());
        }
        let id = program.attach().map_err(|error| ScanError::Attach(name, error))?;
        let link = program.take_link(id).map_err(|error| ScanError::Attach(name, error))?;
        let mut file = link.into_file().map_err(|error| ScanError::Open(name, error))?;
        let mut written = Vec::with_capacity(64 * size_of::<TaskRecord>());
        file.read_to_end(&mut written).map_err(|error| ScanError::Read(name, error))?;
        Ok(written)
    }

    /// Takes up to `max` records out of the ring, passes what they say to `sink` in their order, and returns how many
    /// it took. Call it every 10 to 50 ms, and when [`Kernel::ready`] tells that the ring fills up.
    pub fn drain(&mut self, max: usize, sink: &mut dyn FnMut(Event)) -> usize {
        if let Some(log) = &mut self.log {
            log.flush();
        }
        let mut taken = 0;
        while taken < max {
            let Some(item) = self.ring.next() else { break };
            taken += 1;
            match decode(&item, &self.clock) {
                Ok(Event::Cgroup { id, path }) => {
                    sink(Event::Cgroup { id, path: self.hierarchy.path_from_mount(path) });
                }
                Ok(event) => {
                    if let Event::Flow(seen) = &event {
                        self.drops.meet(seen.netns);
                    }
                    sink(event);
                }
                Err(error) => {
                    self.undecodable += 1;
                    tracing::debug!(%error, "a kernel record cannot be read");
                }
            }
        }
        taken
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
        self.folds.waiting()
    }

    /// Takes what found no room in the ring and was folded, each exactly once, and passes it to `sink`. Waits some
    /// milliseconds for the programs that may still be adding to it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. What was not passed on is still there for the next time.
    pub fn take_folded(&mut self, sink: &mut dyn FnMut(Event)) -> Result<(), MapError> {
        let drops = &mut self.drops;
        let unreadable = self.folds.take(&self.clock, &mut |event| {
            if let Event::Flow(seen) = &event {
                drops.meet(seen.netns);
            }
            sink(event);
        })?;
        self.undecodable += unreadable;
        Ok(())
    }

    /// What became of all records since load, by kind and CPU; without those of which none was made.
    pub fn record_counts(&self) -> Vec<RecordCount> {
        self.tallies.counts()
    }

    /// How many records were lost since load, by kind and CPU; without those that are zero.
    pub fn losses(&self) -> Vec<Loss> {
        losses(&self.record_counts())
    }

    /// Packets that a filter dropped, by what became of them, since load. What found no room in the ring or was too
    /// much is among the [losses](Kernel::losses).
    pub fn drop_counts(&self) -> Vec<DropCount> {
        self.drops.counts()
    }

    /// Records of an unknown kind or size, and folds of such, since load.
    pub fn undecodable(&self) -> u64 {
        self.undecodable
    }
}
