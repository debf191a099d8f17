//! Policies that get smaller: what nobody uses is taken out of them, and nothing else changes.
//!
//! ```text
//! recorded flows, judged by the policies as they are ──Uses::add──▶ Uses: which flows need which element
//! declared policies, what usage says of their rules, Uses ──advise──▶ Advice: Changes with their reasons, and what stays and why
//! policy + Changes ──changed──▶ policy, ──write──▶ text of the manifest
//! both policies ──containment──▶ nothing new is allowed;   both sets, recorded flows ──Broken::add──▶ nothing observed is denied
//! ```
//!
//! A change only ever takes away: an element that nobody used, or the part of a range that nobody used. It is believed when both proofs
//! hold for what was written, read again.

mod advice;
mod change;
mod containment;
mod narrow;
mod replayed;
mod settle;
#[cfg(test)]
mod tests;
mod uses;
mod write;

pub use self::{
    advice::{Advice, Element, Options, Policy, Proposal, Rule, advise},
    change::{Change, changed, explicit_types},
    containment::{Contained, containment, is_same_selector, of_sets},
    replayed::{Broken, Denied},
    settle::{Settled, settle},
    uses::{Needed, Needs, Uses},
    write::{Written, write},
};
