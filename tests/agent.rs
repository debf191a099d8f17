//! The real agent binary on a laid-out node.

mod api_server;
mod drops;
mod faults;
mod harness;
mod main_line;
mod overload;
mod prometheus;
