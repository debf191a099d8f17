//! report: being built.
