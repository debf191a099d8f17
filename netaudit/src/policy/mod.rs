//! policy: being built.
