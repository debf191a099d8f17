//! Advice: what a change of policies would do, before somebody makes it.
//!
//! [`what_if`] judges recorded flows again, by the policies of then and by a candidate set; [`expectations`] are what somebody expects
//! of policies. Nothing here reads stores, manifests or clocks: who calls brings the flows as classes and the objects as an index.

pub mod expectations;
mod outcome;
pub mod what_if;

pub use self::outcome::Outcome;
