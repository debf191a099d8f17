//! What becomes of a flow that finds no room in the ring: it is counted, at the first of three levels that has room.
//!
//! ```text
//!  ring full ─► by key: subject, peer, port, outcome ─► by subject ─► lost
//! ```
//!
//! Each ends at exactly one of them, and each level counts what it takes, so that the sum is what was made. Nothing here
//! is run while the ring has room.
//!
//! The maps are shared by all CPUs: values of each CPU's own would take many times the memory, for an atomic addition that
//! only what overflows has to pay.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::BPF_NOEXIST;
use netaudit_ebpf::abi::{
    DropRecord, FlowRecord, Fold, FoldKey, Tally, WAITED_STEPS, drop_detail, flag, kind, level,
};

use crate::maps::{FOLD_COUNTS, FOLDED, Folds, TALLIES, add, raise};

/// Counts `record`, all of which is written. A function of its own, since the stack of its callers is nearly full.
#[inline(never)]
pub fn fold(record: *const MaybeUninit<FlowRecord>) {
    // SAFETY: written by the caller, which owns it.
    let record = unsafe { (*record).assume_init_ref() };
    let Some(tally) = TALLIES.get_ptr_mut(record.kind) else { return };
    let slot = place(record, tally);
    raise(slot);
}

/// Puts `record` where there is room, and returns where that is counted.
#[inline(always)]
fn place(record: &FlowRecord, tally: *mut Tally) -> *mut u64 {
    // Only announces the record with the outcome, which follows.
    if record.kind == kind::TCP_PENDING {
        // SAFETY: `tally` is a value of the map.
        return unsafe { &raw mut (*tally).lost };
    }
    let waited = record.at.wrapping_sub(record.started);
    let at_destination = record.kind == kind::TCP_ACCEPTED || record.kind == kind::UDP_RECEIVED;
    let is_made = record.kind == kind::TCP_ESTABLISHED || record.kind == kind::TCP_ACCEPTED;
    let key = FoldKey {
        netns: record.netns,
        cgroup: record.cgroup,
        local: record.local,
        remote: record.remote,
        kind: record.kind,
        // Of a connection that was made it is another one each time.
        detail: if is_made { 0 } else { record.detail },
        port: if at_destination { record.local_port } else { record.remote_port },
        flags: record.flags & !flag::ACTOR,
        waited: u32::from(waited >= WAITED_STEPS[0]) + u32::from(waited >= WAITED_STEPS[1]),
    };
    let fold = Fold { count: 1, first: record.started, last: record.started, waited };
    by_key_or_subject(&key, &fold, tally)
}

/// Counts a dropped packet, all of whose record is written.
#[inline(never)]
pub fn fold_drop(record: *const MaybeUninit<DropRecord>) {
    // SAFETY: written by the caller, which owns it.
    let record = unsafe { (*record).assume_init_ref() };
    let Some(tally) = TALLIES.get_ptr_mut(record.kind) else { return };
    let key = FoldKey {
        netns: record.netns,
        cgroup: 0,
        local: record.destination,
        remote: record.source,
        kind: record.kind,
        detail: drop_detail::pack(record.reason, record.protocol, record.tracked),
        port: record.destination_port,
        flags: 0,
        waited: 0,
    };
    let fold = Fold { count: 1, first: record.at, last: record.at, waited: 0 };
    raise(by_key_or_subject(&key, &fold, tally));
}

#[inline(always)]
fn by_key_or_subject(key: &FoldKey, fold: &Fold, tally: *mut Tally) -> *mut u64 {
    // SAFETY: `tally` is a value of the map.
    let (by_key, by_subject, lost) =
        unsafe { (&raw mut (*tally).by_key, &raw mut (*tally).by_subject, &raw mut (*tally).lost) };
    if take(level::KEY, key, fold) {
        return by_key;
    }
    let key = FoldKey::subject(key.netns, key.kind);
    if take(level::SUBJECT, &key, fold) { by_subject } else { lost }
}

/// Adds one record to the fold of `key`. `false` where there is no room for another key.
#[inline(always)]
fn take(level: u32, key: &FoldKey, one: &Fold) -> bool {
    let Some(folds) = FOLDED.get(level) else { return false };
    if join(folds, key, one) {
        return true;
    }
    if folds.insert(key, one, BPF_NOEXIST.into()).is_err() {
        // There is no room, or another CPU or a soft interrupt has just made it.
        return join(folds, key, one);
    }
    if let Some(count) = FOLD_COUNTS.get_ptr_mut(level) {
        raise(count);
    }
    true
}

/// Adds one record to a fold that is there. Only the agent takes folds out, and not of a map that programs can see.
#[inline(always)]
fn join(folds: &Folds, key: &FoldKey, one: &Fold) -> bool {
    let Some(fold) = folds.get_ptr_mut(key) else { return false };
    // SAFETY: a value of the map. Who writes `last` beside us leaves another time that is as good.
    unsafe {
        raise(&raw mut (*fold).count);
        add(&raw mut (*fold).waited, one.waited);
        if (*fold).last < one.last {
            (*fold).last = one.last;
        }
    }
    true
}
