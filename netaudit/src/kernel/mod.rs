//! kernel: being built.
