//! The eBPF programs on real hooks: what a socket does, and what is recorded of it.
//!
//! They need root. Where they cannot run they say `SKIPPED`, and fail with `NETAUDIT_REQUIRE_KERNEL` set.

mod answers;
mod attempts;
mod blind_readers;
mod dns;
mod doctor;
mod drops;
mod life;
mod listeners;
mod open;
mod open_pairs;
mod open_sockets;
mod outcomes;
mod overload;
mod parts;
mod pins;
mod pods;
mod raw_sockets;
mod rewrites;
mod seccomp;
mod tcp;
mod udp;
mod ways;
