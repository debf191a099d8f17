//! `netaudit tighten`: what nobody uses is taken out, and nothing else.

mod simulation;
