//! Flows of stores, judged again by the objects of their time and by candidate policies.
//!
//! ```text
//! history of objects ──Histories::read──▶ by agent run: what changed when, and where a verdict may change with it (cuts)
//! flow stores ──scan──▶ Classes::add ──▶ classes × cuts, counted                 a hash for each flow, and no policy is asked
//!              (Replay judges what there is whenever that is half a million)
//! both ──judge──▶ two indexes go through the history side by side, one with the candidate's policies; each class is asked once
//!                 for each state of the objects that matter to it ──▶ advise::what_if::Report
//! ```
//!
//! So the time that it takes grows with the flows by what it costs to read and count them, and with classes and changes by what it
//! costs to ask policies.

mod classes;
mod cuts;
mod follow;
mod gather;
mod history;
mod names;
mod rows;
mod sweep;

pub use self::{
    classes::Classes,
    gather::{GATHERED, Gathered, LeftOut},
    history::{Histories, History},
    names::add_names,
    rows::COLUMNS,
    sweep::{Both, Flows, Replay, Replayed, judge, judge_both, judge_each},
};
