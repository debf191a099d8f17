//! Policies: from what was declared to what it means, and what it says of a flow.
//!
//! ```text
//! declared::NetworkPolicy ──compile──▶ CompiledPolicy (+ warnings, doubts) ──Engine::load──▶ selectors, ranges
//! pod ──Engine::identity──▶ IdentityId        address ──Engine::class──▶ ClassId
//! (direction, subject identity, peer identity and class, protocol, port) ──Engine::verdict──▶ Arc<Verdict>
//! ```
//!
//! The semantics are those that the API documents for `networking.k8s.io/v1` NetworkPolicy; each rule of the API is
//! told beside the code that implements it. Other kinds with tiers and priorities will stand before and behind the
//! one tier that [`Engine`] evaluates now. Nothing here knows pods, addresses' owners, time or Kubernetes clients.

mod canonical;
mod certainty;
mod compile;
pub mod declared;
mod engine;
mod evaluate;
mod labels;
mod selector;
mod summary;

use std::{fmt, sync::Arc};

pub use self::{
    certainty::Certainty,
    compile::{CompiledPolicy, Rule},
    engine::{ClassId, Doubt, Engine, IdentityId},
    labels::{Labels, METADATA_NAME, NamedPort},
    selector::{NamespaceView, Selector},
};

/// Something wrong with an object, where, and why. The rest of the object counts all the same.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Warning {
    /// The object: `NetworkPolicy batchivo/backend-policy`.
    pub object: Arc<str>,
    /// Where in it: `spec.ingress[0].from[1].ipBlock.cidr`; empty for the whole.
    pub path: String,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => write!(f, "{}: {}", self.object, self.reason),
            path => write!(f, "{}: {path}: {}", self.object, self.reason),
        }
    }
}
