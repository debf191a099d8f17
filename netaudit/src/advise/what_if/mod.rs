//! Recorded flows, judged again by other policies.
//!
//! ```text
//! recorded flows ──▶ Class (all that decides a verdict, but objects) ──judge(index of then)──────▶ Judged ─┐
//!                    + Tally (how many, from when to when)           ──judge(with the candidate)─▶ Judged ─┴─▶ Report
//! ```
//!
//! A flow's ends are those that were recorded: who had an address is not asked again. What is asked again is what policies say of
//! them, by the labels that pods and namespaces had. Both ends are asked where the other end is a pod too, since each end's policies can
//! stop a connection.

mod candidate;
mod class;
mod judge;
mod report;

pub use self::{
    candidate::{Candidate, Scope},
    class::{Class, End, Hidden, Missing, Tally, Workload},
    judge::{Judged, decided_by, judge},
    report::{Change, Doubt, Enforced, Report, Row, Unreplayed, Why},
};
