//! Connections that are open: what a look through all open sockets writes of each, as a [`super::FlowRecord`].
//!
//! Besides, UDP sockets of which more is unknown than known: [`BLIND_READER`].
//!
//! A connection's `kind` is `TCP_ESTABLISHED` or `TCP_ACCEPTED` by the end that the socket is, or [`UNKNOWN_END`]; `at` is the moment of the
//! look, `started` when the connection was told to begin, or else when it was first found. `detail` is 0 where the sequence number could
//! not be read at this moment.

/// The kind of one of which nothing says whether it connected or was accepted: `detail` says why.
pub const UNKNOWN_END: u32 = 0;

/// The kind of a UDP socket that has read and never asked who sent: no record tells of whoever asks it. Only its own end is known.
pub const BLIND_READER: u32 = u32::MAX;

/// Bit of the record's flags: the connection has been told before, by a hook or after an earlier look.
pub const TOLD: u16 = 16;

/// The [`super::Settings::bind_bucket`] and what hangs on it are not in this kernel.
pub const NO_FIELDS: u32 = 1;
/// The socket has no port any more.
pub const NO_PORT: u32 = 2;
/// Its port and its own fields disagree.
pub const DISAGREES: u32 = 3;

/// Why an end is not known, for metrics; `None` for a number that is no reason.
pub const fn reason(detail: u32) -> Option<&'static str> {
    Some(match detail {
        NO_FIELDS => "kernel",
        NO_PORT => "no port",
        DISAGREES => "ambiguous",
        _ => return None,
    })
}
