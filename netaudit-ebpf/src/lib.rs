//! The records that netaudit's eBPF programs and its agent share.
//!
//! The library is the ABI only, built for the host and for the kernel alike. The programs are the binary of this
//! package: see `main.rs`, and `cargo xtask build-ebpf`.
#![no_std]

pub mod abi;
