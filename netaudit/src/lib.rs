//! netaudit: which connections do pods really attempt, what does the declared policy say of each, what really happened
//! to it, and which declared allowances does nobody use?
//!
//! # The data's way
//!
//! ```text
//! kernel hooks → ring → drain → attribute → resolve peer → evaluate → account → { metrics, flow log }
//! kube watch / manifest files → convert (once, at the edge) → cluster index → compiled policies
//! ```
//!
//! The order of stages is a straight line; nothing later reaches back.
//!
//! # Core and shell
//!
//! The core ([`model`], [`cluster`], [`policy`], [`audit`], [`advise`]) is pure: no IO, no clock, no logging, no async; time is an
//! argument. Nothing in it knows Kubernetes clients. `.clippy.toml` names what it must not call, and the attributes below
//! make that an error. The shell ([`kernel`], [`watch`], [`metrics`], [`http`], [`report`],
//! [`publish`], [`store`]) depends on the core and never on each
//! other; [`agent`] wires them: async chooses the next action, synchronous code applies it.

// Core, in reading order.
#[deny(clippy::disallowed_methods, reason = "the core is pure: IO and clocks belong to the shell")]
pub mod advise;
#[deny(clippy::disallowed_methods, reason = "the core is pure: IO and clocks belong to the shell")]
pub mod audit;
#[deny(clippy::disallowed_methods, reason = "the core is pure: IO and clocks belong to the shell")]
pub mod cluster;
#[deny(clippy::disallowed_methods, reason = "the core is pure: IO and clocks belong to the shell")]
pub mod model;
#[deny(clippy::disallowed_methods, reason = "the core is pure: IO and clocks belong to the shell")]
pub mod policy;

// Shell.
pub mod accepted;
pub mod causes;
pub mod http;
pub mod kernel;
pub mod metrics;
pub mod privacy;
pub mod publish;
pub mod report;
pub mod store;
pub mod watch;

// Wiring.
pub mod agent;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod query;
