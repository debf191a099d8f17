//! The history of objects: what the policies, labels and addresses were that flows were judged by, kept beside the flows.
//!
//! ```text
//! Content, deletion, binding ─what is new─► batch ─log thread─► segment ─roll thread─► Parquet files of the table `objects`
//!                                                                         ─what flows are too old for─► folded, see `fold`
//!                                                                         ─for a bucket, what still holds─► see `snapshot`
//! ```
//!
//! Each agent run tells all objects that there are once (`present`), says of each kind when it has (`listed`), and then only what
//! changes: the rows of a run alone say what it knew at any time.

pub mod doubts;
mod fold;
pub(super) mod holding;
pub mod parts;
pub mod read;
mod rows;
mod schema;
mod snapshot;
pub mod state;

use std::{
    fs::File,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, atomic::Ordering, mpsc},
    time::{Duration, Instant},
};

use foldhash::{HashMap, HashSet};
use sha2::{Digest as _, Sha256};

pub use schema::{BINDING, VERSION, Verb, schema};

use self::{fold::Folded, rows::Rows};
use super::flows::{
    Beginning, Job, Lost, Shared, log, retention::Bounds, segment::Mark, table::OBJECTS, upload::Uploading,
};
use crate::{
    cluster::{Content, Kind, ObjectKey, Pod},
    model::Timestamp,
};

/// Bytes of one batch, above which it is handed over before the second is over.
const BATCH_BYTES: usize = 1 << 20;

/// Batches that wait for the log thread while there is room for more: a whole list comes at once, and is then waited for.
const ENOUGH_WAITING: usize = 2;

/// Batches beyond which changes are lost: what comes without asking for room, or a disk that stands still.
const MOST_WAITING: usize = 8;

/// How long a disk may stand still before changes are lost rather than waited with: policies must not wait for it.
const PATIENCE: Duration = Duration::from_secs(1);

/// The history that an agent run writes.
///
/// In memory are what waits for the disk, and two numbers for each object.
#[derive(Debug)]
pub struct History {
    rows: Rows,
    /// What was last told of each object, by digests of its key and of its content.
    told: HashMap<u128, u128>,
    listed: HashSet<Kind>,
    /// Rows that were lost when `told` was last believed.
    lost: u64,
    /// Since when there is no room.
    full_since: Option<Instant>,
    queue: mpsc::Sender<Job>,
    shared: Arc<Shared>,
    done: mpsc::Receiver<()>,
}

/// The pod of a binding, and the address.
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The address that was seen in its network namespace.
    pub ip: IpAddr,
}

impl History {
    /// Opens or makes the table. `lock` keeps others from writing the store, and `turn` the other table from making files.
    pub(super) fn open(
        store: &Path,
        (lock, turn): (Arc<File>, Arc<Mutex<()>>),
        begin: &Beginning,
        (bounds, uploading): (Arc<Bounds>, Option<Uploading>),
    ) -> anyhow::Result<Self> {
        let (queue, jobs) = mpsc::channel();
        let (finished, done) = mpsc::channel();
        let shared = Arc::new(Shared::new(&OBJECTS));
        let first = Mark::first(&OBJECTS, &begin.node, &begin.run, begin.from);
        let folded_in = store.to_owned();
        let run = begin.run.clone();
        let keeping = move || Folded::new(&folded_in, &run, bounds, uploading);
        // What changed while no agent ran is not known, whatever became of the flows.
        let (store, table) = (store.to_owned(), &OBJECTS);
        let start = log::Start { store, table, lock, turn, first, goes_on: false, keeping };
        log::start(start, jobs, shared.clone(), finished)?;
        let rows = Rows::new(begin.node.clone(), begin.run.clone());
        Ok(Self {
            rows,
            told: HashMap::default(),
            listed: HashSet::default(),
            lost: 0,
            full_since: None,
            queue,
            shared,
            done,
        })
    }

    /// Whether more can come without being lost. After a second without room it is lost rather than waited with.
    pub fn has_room(&mut self) -> bool {
        if self.shared.waiting.load(Ordering::Relaxed) < ENOUGH_WAITING {
            self.full_since = None;
            return true;
        }
        self.full_since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE
    }

    /// What an object is like, at a wall time. What was told of it already is not told again.
    pub fn seen(&mut self, content: &Content, at: Timestamp) {
        let Content { key, json, .. } = content;
        let (key_digest, digest) = (digest_of(key), digest([&**json]));
        if self.told.insert(key_digest, digest) == Some(digest) {
            return;
        }
        let verb = if self.listed.contains(&key.kind) { Verb::Applied } else { Verb::Present };
        self.rows.push_object(at, verb, key, Some(content));
        self.flush_much();
    }

    /// An object is gone.
    pub fn deleted(&mut self, key: &ObjectKey, at: Timestamp) {
        // After a loss it may have been told all the same.
        if self.told.remove(&digest_of(key)).is_some() || self.lost > 0 {
            self.rows.push_object(at, Verb::Deleted, key, None);
            self.flush_much();
        }
    }

    /// All objects of a kind that were there have been told.
    pub fn listed(&mut self, kind: Kind, at: Timestamp) {
        if self.listed.insert(kind) {
            self.rows.push_listed(at, kind);
        }
    }

    /// The kernel shows that a pod has an address, from this wall time on, or until then.
    pub fn bound(&mut self, bound: Bound<'_>, has_ended: bool, at: Timestamp) {
        self.rows.push_binding(at, if has_ended { Verb::Deleted } else { Verb::Applied }, bound);
        self.flush_much();
    }

    /// A second passed: all until then is handed over, to be synced.
    pub(super) fn tick(&mut self, until: Timestamp) {
        self.flush();
        let lost = self.shared.lost.load(Ordering::Relaxed);
        if lost > self.lost {
            // Nobody knows of which objects: whatever comes again is told again.
            self.told.clear();
            self.lost = lost;
        }
        // The thread has ended: told by its rows.
        let _ = self.queue.send(Job::Reached { until, lost: Lost { kernel: 0, own: lost } });
    }

    fn flush_much(&mut self) {
        if self.rows.bytes() >= BATCH_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let rows = self.rows.len() as u64;
        if rows == 0 {
            return;
        }
        match self.rows.finish() {
            Ok(batch) => drop(self.shared.hand_over(&self.queue, batch, MOST_WAITING)),
            Err(error) => self.shared.failed(rows, &error.to_string()),
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Waits until everything is on the disk, but no longer than `limit`.
    pub(super) fn finish(self, limit: Duration) {
        let Self { queue, done, .. } = self;
        drop(queue);
        let _ = done.recv_timeout(limit);
    }
}

fn digest_of(key: &ObjectKey) -> u128 {
    digest([key.kind.as_str(), &key.namespace, &key.name])
}

/// Texts as a number that no others have.
fn digest<'a>(texts: impl IntoIterator<Item = &'a str>) -> u128 {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update(text);
        hash.update([0]);
    }
    let hash: [u8; 32] = hash.finalize().into();
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    u128::from_le_bytes(half)
}
