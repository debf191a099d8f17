//! DNS answers without a kernel: what is read of them, who gets names by them, and that no bytes can do harm.

pub mod message;
mod names;
mod reading;
