//! Evidence of an incident as one file: the flows of a window, what policies and addresses were then, what is missing, and the
//! digests of all that.
//!
//! ```text
//! README.txt                             what this is, and how to check and read it without netaudit
//! flows/date=…/hour=…/<n>.parquet        the flows, and of what time they are complete: as in a flow store
//! objects/date=…/hour=…/<n>.parquet      the history of objects that they are judged by: as in a flow store
//! policies/<kind>/<namespace>/<name>     the text of each policy at the end of the window; policies/gone/… of those that went in it
//! usage.jsonl                            rules' use, where it was given
//! manifest.json                          what was asked for, what is missing, and every member's length, digest and rows
//! manifest.sha256                        the seal: the digest of the manifest
//! ```
//!
//! It is a plain tar file in which nothing is left to chance (see `archive`), so that each of its bits is checked. Unpacked it
//! is a flow store.

mod archive;
mod flows;
mod objects;
mod stretches;
pub mod verify;
mod write;

use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use super::flows::{Coverage, ask::Store, filter::Filter};
use crate::model::Timestamp;

pub use archive::Section;
pub use flows::Flows;
pub use objects::{History, add as add_history};
pub use write::{Asked, Bundle};

/// The version of bundles. Others are refused, by name.
pub const FORMAT: u32 = 1;

/// The name of the member that tells what there is.
pub const MANIFEST: &str = "manifest.json";

/// The name of the last member.
pub const SEAL: &str = "manifest.sha256";

/// The name of the member for people.
const README: &str = "README.txt";

/// The name of the member with rules' use.
const USAGE: &str = "usage.jsonl";

/// What a bundle says of itself.
#[derive(Clone, PartialEq, serde::Serialize, serde::Deserialize, Debug)]
pub struct Manifest {
    /// The version of the format.
    pub format: u32,
    /// What the incident is called.
    pub incident: String,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// By which netaudit.
    pub netaudit: String,
    /// Versions of the columns of flows and of objects.
    pub columns: ColumnVersions,
    /// Flows began at this time or later.
    pub since: jiff::Timestamp,
    /// And before this one.
    pub until: jiff::Timestamp,
    /// Which of them are here; all where it is empty.
    pub filter: Filter,
    /// Where they come from.
    pub stores: Vec<String>,
    /// Whether nothing is missing: neither flows nor the history that they are judged by.
    pub complete: bool,
    /// What is missing, in sentences.
    pub missing: Vec<String>,
    /// What is missing of flows.
    pub coverage: Coverage,
    /// What could not be read. What it held is missing.
    pub unreadable: Vec<Unreadable>,
    /// Flows, as rows.
    pub flows: u64,
    /// The agent runs whose history is here.
    pub runs: Vec<RunTold>,
    /// Policies that there were in the window.
    pub policies: Vec<PolicyTold>,
    /// All members but this one and its digest, in the order of the file.
    pub members: Vec<Member>,
}

/// Versions of columns.
#[derive(Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, Debug)]
pub struct ColumnVersions {
    /// Of flows.
    pub flows: u32,
    /// Of objects.
    pub objects: u32,
}

impl ColumnVersions {
    /// Of this netaudit.
    pub const OURS: Self = Self { flows: super::flows::schema::VERSION, objects: super::history::VERSION };
}

/// Something that could not be read.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, Debug)]
pub struct Unreadable {
    /// Where it is.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// An agent run whose history is in a bundle.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, Debug)]
pub struct RunTold {
    /// Its node.
    pub node: String,
    /// Its name, as in flow ids.
    pub run: String,
    /// From when on its history says everything; from its beginning where there is none.
    pub history_from: Option<jiff::Timestamp>,
}

/// A policy of the window.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, Debug)]
pub struct PolicyTold {
    /// Its kind, namespace and name.
    pub policy: String,
    /// The member with its text.
    pub member: String,
    /// Whether it was there at the end of the window.
    pub at_end: bool,
    /// What became of it, the first row as it was at the beginning.
    pub changes: Vec<PolicyChange>,
}

/// A change of a policy.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, Debug)]
pub struct PolicyChange {
    /// When an agent learnt of it.
    pub time: jiff::Timestamp,
    /// present, applied or deleted.
    pub verb: String,
    /// The API server's; empty where there is none.
    pub resource_version: String,
    /// Of what it is like from then on, as the history has it; none where it is gone.
    pub sha256: Option<String>,
}

/// A member of a bundle.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, Debug)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Of its content.
    pub sha256: String,
    /// Rows of a table.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rows: Option<u64>,
}

/// What is missing of a store because it is an unpacked bundle of some flows only, in a sentence.
pub fn partly(store: &Store) -> Option<String> {
    let Store::Directory(directory) = store else { return None };
    let text = std::fs::read(directory.join(MANIFEST)).ok()?;
    let manifest: Manifest = serde_json::from_slice(&text).ok()?;
    (manifest.filter != Filter::default()).then(|| {
        let filter = serde_json::to_string(&manifest.filter).unwrap_or_default();
        format!("{store} holds only flows of incident {} that are {filter}", manifest.incident)
    })
}

/// A time as the manifest tells it.
pub fn wall(time: Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(i128::from(time.0)).unwrap_or(jiff::Timestamp::MIN)
}

/// A time of the manifest.
fn time(wall: jiff::Timestamp) -> Timestamp {
    Timestamp(i64::try_from(wall.as_nanosecond()).unwrap_or(i64::MAX))
}

/// A digest as people write it.
fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is in [`SEAL`]: `sha256sum --check` reads it.
fn seal(digest: &str) -> String {
    format!("{digest}  {MANIFEST}\n")
}
