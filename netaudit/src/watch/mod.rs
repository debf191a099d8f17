//! Where Kubernetes objects come from: the API server or files. Both end in the same index.

pub mod api;
mod content;
pub mod convert;
mod convert_cluster_policy;
mod convert_fields;
mod convert_foreign;
mod convert_kinds;
mod convert_lists;
mod convert_policy;
#[cfg(test)]
mod convert_tests;
pub mod files;
mod json;
pub mod kustomize;
pub mod manifests;
mod manifests_text;
pub mod placed;
mod schedule;
mod workloads;

pub use content::content;

use crate::cluster::{Content, Kind, Object, ObjectKey};

/// A change of objects, on its way to the index.
#[derive(Debug)]
pub enum Update {
    /// The complete list of a kind: replaces what was known of it.
    Reset {
        /// The kind.
        kind: Kind,
        /// All objects of it.
        objects: Vec<Object>,
    },
    /// What is kept of an object, where that is wanted: it comes before what the object is in.
    Seen(Content),
    /// An object is new or changed.
    Apply(Object),
    /// An object is gone.
    Delete(ObjectKey),
    /// All files were read: replaces everything.
    Files(manifests::Loaded),
    /// A kind's source has a fault. What is known stays known.
    Fault {
        /// The kind.
        kind: Kind,
        /// What is wrong.
        error: String,
    },
}
