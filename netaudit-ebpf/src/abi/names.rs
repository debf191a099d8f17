//! DNS answers as they came to a socket.

use core::mem::{offset_of, size_of};

use super::Address;

/// Bytes of payload that a record of the smaller size has room for: most answers fit.
pub const DNS_SHORT: usize = 256;

/// The same of the larger size: as much as servers send over UDP where they keep to the usual limit.
pub const DNS_LONG: usize = 1232;

/// An answer that came from port 53 to a socket that had asked there. It has at least one record, and tells no error. 48 bytes
/// and the payload.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DnsRecord<const ROOM: usize> {
    /// [`DNS_ANSWER`](super::kind::DNS_ANSWER).
    pub kind: u32,
    /// Bytes of `payload` in use; what follows is left of other records. 0 where the packet could not be read.
    pub length: u32,
    /// When it came, in nanoseconds since boot.
    pub at: u64,
    /// Cookie of the network namespace that the socket lives in.
    pub netns: u64,
    /// Bytes that the answer had: more than `length` where it was cut.
    pub whole: u32,
    /// 1 where it came over the namespace's own loopback, else 0.
    pub over_loopback: u32,
    /// Who answered.
    pub server: Address,
    /// The answer.
    pub payload: [u8; ROOM],
}

/// What became of a packet from port 53 that reached a socket: indexes the map of their counts. Those that found no room in
/// the ring or were too many are among the losses.
pub mod dns {
    /// A [`DnsRecord`](super::DnsRecord) was made.
    pub const RECORDED: u32 = 0;
    /// The socket has asked nobody there.
    pub const UNASKED: u32 = 1;
    /// It is no answer of DNS.
    pub const NOT_DNS: u32 = 2;
    /// An error, or an answer without a record.
    pub const EMPTY: u32 = 3;
    /// One more than the greatest.
    pub const COUNT: u32 = 4;

    /// The word for it in metrics; `None` for a number that is none.
    pub const fn name(what: u32) -> Option<&'static str> {
        Some(match what {
            RECORDED => "recorded",
            UNASKED => "unasked",
            NOT_DNS => "not-dns",
            EMPTY => "empty",
            _ => return None,
        })
    }
}

const _: () = {
    assert!(size_of::<DnsRecord<DNS_SHORT>>() == 304);
    assert!(size_of::<DnsRecord<DNS_LONG>>() == 1280);
    assert!(offset_of!(DnsRecord<DNS_SHORT>, server) == 32);
    assert!(offset_of!(DnsRecord<DNS_LONG>, payload) == 48);
};
