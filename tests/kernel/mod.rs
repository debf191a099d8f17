//! The eBPF programs on real hooks: what a socket does, and what is recorded of it.
//!
//! They need root. Where they cannot run they say `SKIPPED`, and fail with `NETAUDIT_REQUIRE_KERNEL` set.

mod doctor;
mod drops;
mod life;
mod overload;
mod parts;
mod pods;
mod tcp;
mod udp;
