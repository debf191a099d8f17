//! Advice: what could be better in what is declared, and what a change of policies would do, before somebody makes it.
//!
//! [`lint`] looks at manifests alone; [`what_if`] judges recorded flows again, by the policies of then and by a candidate set;
//! [`expectations`] are what somebody expects of policies; [`suggest`] makes a first set of policies of what was seen. Nothing here reads stores, manifests or clocks: who calls brings the flows
//! as classes, and the objects.

pub mod expectations;
pub mod lint;
mod outcome;
pub mod suggest;
pub mod what_if;

pub use self::outcome::Outcome;
