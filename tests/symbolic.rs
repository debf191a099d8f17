//! The symbolic side against the evaluator: on random clusters, at every end of every range, both say the same.

mod exact;
mod representatives;
mod worlds;
