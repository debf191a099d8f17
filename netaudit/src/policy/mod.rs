//! Policies: from what was declared to what it means, and what it says of a flow.
//!
//! ```text
//! declared ──compile──▶ CompiledPolicy (+ warnings, doubts) ──Policies::put──▶ Ruleset (one generation, shared)
//! pod ──Evaluator::identity──▶ IdentityId
//! (direction, subject, peer, protocol, port) ──Evaluator::verdict──▶ Arc<Verdict>
//! ruleset, all pods and nodes ──symbolic::Connections::new──▶ everything that is allowed, as a set
//! ```
//!
//! The semantics are those that the APIs document: `networking.k8s.io/v1` NetworkPolicy, `policy.networking.k8s.io`
//! ClusterNetworkPolicy `v1alpha2`, AdminNetworkPolicy and BaselineAdminNetworkPolicy `v1alpha1`. Each rule of an API is
//! told beside the code that implements it. Nothing here knows pods, addresses' owners, time or Kubernetes clients.

mod canonical;
mod certain;
mod certainty;
mod compile;
mod crowd;
pub mod declared;
mod domains;
mod evaluate;
mod evaluator;
mod explain;
mod foreign;
mod labels;
mod loaded;
mod ruleset;
#[cfg(test)]
mod ruleset_tests;
mod selector;
mod selector_sets;
mod summary;
pub mod symbolic;
mod words;

use std::{fmt, sync::Arc};

pub(crate) use self::compile::parse_cidr;
pub use self::{
    certainty::Certainty,
    compile::{CompiledPolicy, Element, Rule, Span, Tier},
    crowd::Crowd,
    domains::{KnownNames, normal as normal_name},
    evaluator::{Evaluator, IdentityId, NodeId, PeerEnd, Question},
    explain::{Explanation, PartTrace, PeerFacts, PodFacts, PolicyTrace, RuleTrace, Says, explain},
    foreign::CompiledForeign,
    labels::{Labels, METADATA_NAME, NamedPort},
    ruleset::{Doubt, Policies, Ruleset, UnreadNamespaces},
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
