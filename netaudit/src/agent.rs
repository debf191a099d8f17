//! agent: being built.
