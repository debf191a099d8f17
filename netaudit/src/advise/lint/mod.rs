//! Static faults in policies: what the manifests say is not what anybody can have meant.
//!
//! ```text
//! manifests (objects + places) ──World::new──▶ rules in comparable form ──checks──▶ findings, and what was not checked
//! finding with a Change ──fix::edits──▶ text ──read again──▶ fix::verify
//! ```
//!
//! Each check is for one [`Code`] of one [table](codes::TABLE), and fires only where the APIs' semantics make it a fault; what may be meant
//! is a note. What a check could only know from objects that are not there it does not guess: it tells that it was not made, and why.

mod addresses;
mod cni;
pub mod codes;
mod dns;
mod doubles;
mod explanations;
pub mod fix;
mod overlap;
mod ports;
mod reach;
mod selectors;
mod tiers;
mod types;
mod world;

use std::{collections::HashSet, fmt};

use self::world::{Out, World};
pub use self::{
    codes::{About, Code, Severity, TABLE, UnknownCode},
    doubles::doubled,
    world::{Item, Manifests, Pods, Probe, What},
};
use crate::{
    advise::text::join,
    model::{Direction, Protocol},
};

/// What the manifests do not say.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Options {
    /// Whether there may be more objects than these, also because some cannot be read: then nothing is concluded from what is not there.
    pub is_partial: bool,
    /// Whether a pod's own node needs a rule to reach it.
    pub probes_need_rule: bool,
    /// The network that the cluster has, by the name that `netaudit_enforcement_info` gives it.
    pub cni: Option<String>,
}

/// A fault.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Which kind.
    pub code: Code,
    /// How much it matters here.
    pub severity: Severity,
    /// The object in [`Manifests::items`].
    pub item: usize,
    /// The field of the object: `spec.egress[0].ports[1]`.
    pub path: String,
    /// What is wrong, and what to do.
    pub message: String,
    /// What would correct it, where that is safe.
    pub change: Option<Change>,
}

impl Finding {
    fn new(code: Code, severity: Severity, item: usize, path: String, message: String) -> Self {
        Self { code, severity, item, path, message, change: None }
    }

    /// The field in its document.
    pub fn full_path(&self, manifests: &Manifests) -> String {
        join(&manifests.items[self.item].prefix, &self.path)
    }
}

/// A correction of a NetworkPolicy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The same port of another protocol beside one of a rule's.
    AddPort {
        /// Of which rules.
        direction: Direction,
        /// Which rule.
        rule: usize,
        /// Which element of `ports`.
        port: usize,
        /// The protocol of the new one.
        protocol: Protocol,
        /// Its number.
        number: u16,
    },
    /// Without an `except`.
    RemoveExcept {
        /// Of which rules.
        direction: Direction,
        /// Which rule.
        rule: usize,
        /// Which element of `from` or `to`.
        peer: usize,
        /// Which element of `except`.
        except: usize,
    },
}

/// What it does: `add protocol: TCP, port: 53`.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddPort { protocol, number, .. } => write!(f, "add protocol: {protocol}, port: {number}"),
            Self::RemoveExcept { .. } => f.write_str("remove this except, which takes nothing out"),
        }
    }
}

/// What was not checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Skipped {
    /// Which check.
    pub code: Code,
    /// Why.
    pub reason: String,
    /// How often.
    pub count: usize,
}

/// What was found.
#[derive(Debug)]
pub struct Report {
    /// The faults, in order of object, place and code.
    pub findings: Vec<Finding>,
    /// What was not checked.
    pub skipped: Vec<Skipped>,
}

/// Makes all checks.
pub fn check(manifests: &Manifests, options: &Options) -> Report {
    let world = World::new(manifests, options);
    let mut out = Out::default();
    for check in [
        selectors::check,
        dns::check,
        addresses::check,
        ports::check,
        types::check,
        overlap::check,
        tiers::check,
        cni::check,
        doubles::check,
    ] {
        check(&world, &mut out);
    }
    let Out { mut findings, skipped } = out;
    let place = |it: &Finding| {
        let item = &manifests.items[it.item];
        let found = manifests.documents[item.document].find(&it.full_path(manifests));
        found.map_or(0, |it| it.node.pointer().start.offset)
    };
    findings.sort_by_cached_key(|it| (it.item, place(it), it.code, it.path.clone()));
    findings.dedup();
    // What one check says better than another is told once.
    let better = |code| match code {
        Code::AndMeant => Some(Code::Shadowed),
        Code::ExceptOutsideCidr | Code::RulesWithoutType => Some(Code::Invalid),
        _ => None,
    };
    let told: HashSet<(usize, String, Code)> =
        findings.iter().filter_map(|it| Some((it.item, it.path.clone(), better(it.code)?))).collect();
    findings.retain(|it| !told.contains(&(it.item, it.path.clone(), it.code)));
    let skipped = skipped.into_iter().map(|((code, reason), count)| Skipped { code, reason, count });
    Report { findings, skipped: skipped.collect() }
}
