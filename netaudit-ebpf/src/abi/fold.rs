//! What is kept of records that find no room: counts.

use core::mem::offset_of;

use super::Address;

/// What became of the records of one kind on one CPU: each that was made was delivered to the ring, or is in one of the
/// others. 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// Made, whatever became of them.
    pub made: u64,
    /// Found no room, and were added to the [`Fold`] of their key.
    pub by_key: u64,
    /// Nor was there room for their key, and they were added to the fold of their subject.
    pub by_subject: u64,
    /// Nothing is left of them but this number.
    pub lost: u64,
}

/// What flow records that found no room in the ring have in common when they are folded into one count: everything that
/// a verdict, an outcome and its reach depend on. 64 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FoldKey {
    /// As in [`FlowRecord`](super::FlowRecord), and so are all others of the same name.
    pub netns: u64,
    /// The opener's cgroup.
    pub cgroup: u64,
    /// This end's address.
    pub local: Address,
    /// The other end's address.
    pub remote: Address,
    /// The record's kind.
    pub kind: u32,
    /// What the socket held; of a dropped packet see [`drop_detail`].
    pub detail: u32,
    /// The destination's port: the other end's on the source side, this end's on the destination side.
    pub port: u16,
    /// Bits of [`flag`](super::flag) without [`flag::ACTOR`](super::flag::ACTOR).
    pub flags: u16,
    /// How many of [`WAITED_STEPS`] passed from the attempt to its outcome.
    pub waited: u32,
}

impl FoldKey {
    /// The key of all records of one kind and one subject.
    #[inline(always)]
    pub const fn subject(netns: u64, kind: u32) -> Self {
        let none = Address([0; 4]);
        Self { netns, cgroup: 0, local: none, remote: none, kind, detail: 0, port: 0, flags: 0, waited: 0 }
    }
}

/// What tells dropped packets apart beside their addresses: the place of the reason, the protocol, and whether connection
/// tracking knows it for no answer, in one word.
pub mod drop_detail {
    /// Packs the fields of the same names of a [`DropRecord`](crate::abi::DropRecord).
    #[inline(always)]
    pub const fn pack(reason: u32, protocol: u32, tracked: u32) -> u32 {
        reason | protocol << 8 | tracked << 16
    }

    /// The inverse of [`pack`]: `(reason, protocol, tracked)`.
    pub const fn unpack(detail: u32) -> (u32, u32, u32) {
        (detail & 0xff, detail >> 8 & 0xff, detail >> 16)
    }
}

/// Nanoseconds at which the time that an aborted attempt waited gets another meaning: a fold must not mix them. The
/// agent decides what they mean.
pub const WAITED_STEPS: [u64; 2] = [200_000_000, 1_000_000_000];

/// What is kept of the records of a [`FoldKey`]. 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Fold {
    /// How many.
    pub count: u64,
    /// When the first of them began, in nanoseconds since boot.
    pub first: u64,
    /// When the last of them began.
    pub last: u64,
    /// How long they waited for their outcome, all together, in nanoseconds.
    pub waited: u64,
}

/// The two levels of folds: indexes into the array of maps that takes them, and into the map of their keys' numbers.
pub mod level {
    /// Folds by [`super::FoldKey`].
    pub const KEY: u32 = 0;
    /// Folds by [`super::FoldKey::subject`], for what finds no room in the former.
    pub const SUBJECT: u32 = 1;
    /// One more than the greatest.
    pub const COUNT: u32 = 2;
}

/// Slots for the state of TCP sockets that have called `connect` or were accepted, and are not closed: a power of two. 128 bytes each.
pub const ATTEMPTS: u32 = 16_384;

/// Keys that one map of folds has room for.
pub const FOLD_KEYS: u32 = 16_384;

/// Subjects that one map of folds has room for.
pub const FOLD_SUBJECTS: u32 = 1_024;

const _: () = {
    assert!(size_of::<Tally>() == 32);
    assert!(size_of::<FoldKey>() == 64);
    assert!(offset_of!(FoldKey, local) == 16);
    assert!(offset_of!(FoldKey, kind) == 48);
    assert!(offset_of!(FoldKey, port) == 56);
    assert!(size_of::<Fold>() == 32);
};
