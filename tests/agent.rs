//! The real agent binary on a laid-out node.

mod actors;
mod alerting;
mod answers;
mod api_server;
mod control_plane;
mod dashboards;
mod drops;
mod events;
mod faults;
mod findings;
mod flow_store;
mod harness;
mod history;
mod main_line;
mod names;
mod open;
mod operator;
mod overload;
mod prometheus;
mod query;
mod raw_sockets;
mod reports;
mod shipping;
mod translation;
mod usage;
