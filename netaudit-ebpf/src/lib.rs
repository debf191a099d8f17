//! The records that netaudit's eBPF programs and its agent share.
#![no_std]
