//! Policies: from what was declared to what it means, and what it says of a flow.

pub mod declared;
mod labels;

pub use labels::{Labels, METADATA_NAME, NamedPort};

use std::{fmt, sync::Arc};

use crate::model::{Direction, PolicyId, RuleId};

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

/// A policy whose meaning is known.
#[derive(Debug)]
pub struct CompiledPolicy {
    /// Which policy it is.
    pub id: Arc<PolicyId>,
    rules: [Vec<Rule>; 2],
}

/// One rule of a compiled policy.
#[derive(Debug)]
pub struct Rule {
    /// Its identity and where it stands.
    pub id: Arc<RuleId>,
    /// What it allows, in one line: `to app=postgres TCP 5432`.
    pub summary: String,
}

impl CompiledPolicy {
    /// The rules of a direction, in the policy's order.
    pub fn rules(&self, direction: Direction) -> &[Rule] {
        &self.rules[direction as usize]
    }

    /// Whether pods that it selects are isolated in this direction.
    pub fn isolates(&self, _direction: Direction) -> bool {
        false
    }
}
