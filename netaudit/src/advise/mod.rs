//! What could be better in what is declared: advice on policies, without any flow.

pub mod lint;
