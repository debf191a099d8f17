//! A connection that is open, as a look through all open sockets found it.

use super::{Observation, Timestamp};

/// An open connection, and one end of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenConnection {
    /// Its end as if it had been seen to begin: `at` is when it was told to, or when it was first found, and `outcome` is
    /// established or accepted.
    pub seen: Observation,
    /// When it was looked at.
    pub looked: Timestamp,
    /// Whether it was told before, when it began or after an earlier look.
    pub is_told: bool,
    /// Why nothing says whether it connected or was accepted; then direction and outcome of `seen` mean nothing.
    pub unknown_end: Option<&'static str>,
}
