//! Advice: what could be better in what is declared, and what a change of policies would do, before somebody makes it.
//!
//! [`lint`] looks at manifests alone; [`what_if`] judges recorded flows again, by the policies of then and by a candidate set;
//! [`expectations`] are what somebody expects of policies; [`tighten`] takes out of policies what nobody uses, and [`suggest`] makes first ones from
//! recorded flows where there are none. Nothing here reads stores or clocks: who calls brings the flows as classes, and the objects.

pub mod expectations;
pub mod lint;
mod outcome;
pub mod suggest;
pub mod text;
pub mod tighten;
pub mod what_if;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

pub use self::outcome::Outcome;

/// The names that addresses outside the cluster had, by address in canonical form.
pub type Names = BTreeMap<IpAddr, BTreeSet<Arc<str>>>;
