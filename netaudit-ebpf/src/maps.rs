//! The maps, and the ways out of the programs: a record in the ring, or where that is full a count.

use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    mem::MaybeUninit,
    ptr,
};

use aya_ebpf::{
    bindings::{
        BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP,
        BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE,
    },
    btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, RingBuf},
    helpers::generated::{bpf_ringbuf_query, bpf_sk_storage_get},
    macros::btf_map,
};
use aya_log_ebpf::error;
use netaudit_ebpf::abi::{
    self, FOLD_KEYS, FOLD_SUBJECTS, FlowRecord, Fold, FoldKey, Settings, Tally, dns, dropped, kind, level,
};

use crate::{
    attempts::Slot,
    drops::{DropKey, Told},
    listeners::{Listener, Place},
    overload::fold,
    rate::Rate,
    raw::RawKey,
    socket::{Socket, address_of},
    udp::{Peer, PeerKey},
};

/// Offsets and settings, patched by the loader: see [`Settings`]. Read single fields with [`setting!`].
#[unsafe(no_mangle)]
pub static SETTINGS: Settings = UNSET;

// SAFETY: `Settings` holds integers only, for which all bytes zero is a value.
const UNSET: Settings = unsafe { core::mem::zeroed() };

/// One field of [`SETTINGS`], read so that the compiler does not take the value before patching for the truth.
macro_rules! setting {
    ($field:ident) => {{
        // SAFETY: a static lives as long as the program.
        unsafe { core::ptr::read_volatile(&raw const $crate::maps::SETTINGS.$field) }
    }};
}
pub(crate) use setting;

/// Every record goes through this ring, so that a cgroup's birth stands before the connects of its processes. The
/// size is set at load.
#[btf_map]
pub static RECORDS: RingBuf<FlowRecord, { 8 << 20 }> = RingBuf::new();

/// What an agent keeps here for the one that comes after it: see [`abi::KEPT_TAKEN`] and those beside it.
#[btf_map]
pub static KEPT: Array<u64, { abi::KEPT as usize }> = Array::new();

/// What became of records, by [`kind`].
#[btf_map]
pub static TALLIES: PerCpuArray<Tally, { kind::COUNT as usize }> = PerCpuArray::new();

/// Flows that found no room, by [`level`]: the maps that take them now. The agent puts others in their place, and reads
/// those that it has taken out once no program can be using them: the kernel waits for that before the exchange returns.
#[btf_map]
pub static FOLDED: ArrayOfMaps<Folds, { level::COUNT as usize }> = ArrayOfMaps::new();

/// A map of folds. How many it has room for is not part of what the kernel compares.
pub type Folds<const ROOM: usize = 1> = HashMap<FoldKey, Fold, ROOM>;

/// One of the two that take turns in [`FOLDED`].
#[btf_map]
pub static FOLDS_BY_KEY_A: Folds<{ FOLD_KEYS as usize }> = HashMap::new();
/// The other one.
#[btf_map]
pub static FOLDS_BY_KEY_B: Folds<{ FOLD_KEYS as usize }> = HashMap::new();
/// One of the two for subjects.
#[btf_map]
pub static FOLDS_BY_SUBJECT_A: Folds<{ FOLD_SUBJECTS as usize }> = HashMap::new();
/// The other one.
#[btf_map]
pub static FOLDS_BY_SUBJECT_B: Folds<{ FOLD_SUBJECTS as usize }> = HashMap::new();

/// Keys that were ever made in maps of folds, by [`level`]: tells the agent cheaply that there is something to take.
#[btf_map]
pub static FOLD_COUNTS: Array<u64, { level::COUNT as usize }> = Array::new();

/// What the agent switches after load, since only attaching shows whether the kernel has it.
#[btf_map]
pub static SWITCHES: Array<u32, { abi::SWITCHES as usize }> = Array::new();

/// UDP peers of a socket beyond the latest, which is in the socket's own storage.
#[btf_map]
pub static PEERS: LruHashMap<PeerKey, Peer, 32768> = LruHashMap::new();

/// TCP sockets that called `connect` or were accepted, see [`crate::attempts`].
#[btf_map]
pub static ATTEMPTS: Array<Slot, { abi::ATTEMPTS as usize }> = Array::new();

/// TCP listeners by where they are, see [`crate::listeners`]. Those that nobody asks for are forgotten first.
#[btf_map]
pub static LISTENERS: LruHashMap<Place, Listener, 8192> = LruHashMap::new();

/// Attempts of multipath sockets that have no slot, and of which no SYN was sent, by the cookie of the path: see
/// [`crate::tcp::release_paths`].
#[btf_map]
pub static PATHS: LruHashMap<u64, Socket, 1024> = LruHashMap::new();

/// What was told of dropped packets, by what they attempt. Forgetting costs a record too many, never a missing one.
#[btf_map]
pub static DROPS: LruHashMap<DropKey, Told, 8192> = LruHashMap::new();

/// When it was last told that somebody made a raw socket, by [`crate::socket::ticks`].
#[btf_map]
pub static RAW_TOLD: LruHashMap<RawKey, u32, 4096> = LruHashMap::new();

/// How much was told of dropped packets just now.
#[btf_map]
pub static DROP_RATE: PerCpuArray<Rate, 1> = PerCpuArray::new();

/// Dropped packets by what became of them, see [`dropped`].
#[btf_map]
pub static DROP_COUNTS: PerCpuArray<u64, { dropped::COUNT as usize }> = PerCpuArray::new();

/// How many DNS answers this CPU told just now.
#[btf_map]
pub static DNS_RATE: PerCpuArray<Rate, 1> = PerCpuArray::new();

/// How many DNS answers were told of a namespace just now. Forgetting lets one tell more than its share.
#[btf_map]
pub static DNS_RATES: LruHashMap<u64, Rate, 1024> = LruHashMap::new();

/// Packets from port 53 by what became of them, see [`dns`].
#[btf_map]
pub static DNS_COUNTS: PerCpuArray<u64, { dns::COUNT as usize }> = PerCpuArray::new();

/// Cookies of the watched pods' namespaces, as far as the agent has met them. Not asked where everything is watched.
#[btf_map]
pub static NAMESPACES: LruHashMap<u64, u8, 16384> = LruHashMap::new();

/// State of sockets by address, in place of [`SOCKETS`]: only where [`Settings::sockets_untrusted`], as a look finds no other. Those that
/// were not used for longest are forgotten first.
#[btf_map]
pub static BY_ADDRESS: LruHashMap<u64, Socket, { abi::BY_ADDRESS as usize }> = LruHashMap::new();

/// State of a socket, of which accepted sockets get a copy if their listener has any.
#[btf_map]
pub static SOCKETS: SocketStorage = SocketStorage::new();

/// A socket storage map. aya-ebpf's own has no room for `BPF_F_CLONE`, and takes one kind of context only.
#[repr(C)]
pub struct SocketStorage {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const Socket,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the fields are a description for the loader; nothing reads through them.
unsafe impl Sync for SocketStorage {}

impl SocketStorage {
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// The state of `socket`, if it has one.
    ///
    /// # Safety
    ///
    /// `socket` must be what the verifier takes for a socket in this type of program: the context of a `cgroup_sock`
    /// program, or the socket that another context points to, tested for null.
    #[inline(always)]
    pub unsafe fn get<T>(&self, socket: *mut T) -> Option<&'static mut Socket> {
        if setting!(sockets_untrusted) != 0
            && let state @ Some(_) = state_at(address_of(socket))
        {
            return state;
        }
        // SAFETY: by contract; the kernel returns null or storage that outlives the program's run.
        unsafe { self.storage(socket, 0).as_mut() }
    }

    /// The state of `socket`, made of zeros if it has none yet. `None`, counted, where there is no memory for it.
    ///
    /// # Safety
    ///
    /// As for [`SocketStorage::get`].
    #[inline(always)]
    pub unsafe fn get_or_create<T>(&self, socket: *mut T) -> Option<&'static mut Socket> {
        // SAFETY: by contract, as above.
        counted(unsafe { self.get_or_add(socket) })
    }

    /// As [`SocketStorage::get_or_create`], where nothing is lost without it.
    ///
    /// # Safety
    ///
    /// As for [`SocketStorage::get`].
    #[inline(always)]
    pub unsafe fn get_or_add<T>(&self, socket: *mut T) -> Option<&'static mut Socket> {
        if setting!(sockets_untrusted) != 0 {
            // A copy of its listener's, or one that it needs.
            // SAFETY: by contract, as above.
            let own = unsafe { self.get(socket) };
            return if own.is_some() { own } else { add_at(address_of(socket)) };
        }
        // SAFETY: by contract, as above.
        unsafe { self.storage(socket, BPF_SK_STORAGE_GET_F_CREATE.into()).as_mut() }
    }

    /// As [`SocketStorage::get_or_create`], always in the kernel's own storage, of which a listener's connections get copies.
    ///
    /// # Safety
    ///
    /// As for [`SocketStorage::get`].
    #[inline(always)]
    pub unsafe fn to_copy<T>(&self, socket: *mut T) -> Option<&'static mut Socket> {
        // SAFETY: by contract, as above.
        counted(unsafe { self.storage(socket, BPF_SK_STORAGE_GET_F_CREATE.into()).as_mut() })
    }

    #[inline(always)]
    unsafe fn storage<T>(&self, socket: *mut T, flags: u64) -> *mut Socket {
        let map = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: by contract of the callers.
        unsafe { bpf_sk_storage_get(map, socket.cast(), ptr::null_mut(), flags) }.cast()
    }
}

/// The state of the socket at an address, if it has one: only where [`Settings::sockets_untrusted`].
#[inline(always)]
pub fn state_at(address: u64) -> Option<&'static mut Socket> {
    // SAFETY: a value of the map. Whoever takes its place meanwhile is another socket's, and no invalid value.
    BY_ADDRESS.get_ptr_mut(address).map(|state| unsafe { &mut *state })
}

/// A new one, made of zeros.
#[inline(always)]
pub fn add_at(address: u64) -> Option<&'static mut Socket> {
    // SAFETY: integers only, for which zeros are a value.
    let _ = BY_ADDRESS.insert(address, unsafe { core::mem::zeroed::<Socket>() }, 0);
    state_at(address)
}

/// Counts a state that there was no memory for.
#[inline(always)]
pub fn counted<T>(state: Option<T>) -> Option<T> {
    if state.is_none() {
        no_storage();
    }
    state
}

/// Forgets the state of the socket at an address, which is gone, or was another one there.
#[inline(always)]
pub fn forget<T>(socket: *const T) {
    if setting!(sockets_untrusted) != 0 {
        let _ = BY_ADDRESS.remove(address_of(socket));
    }
}

/// Reserves a record, lets `fill` write all of it, and submits it. A full ring counts as a loss of `kind`. Returns
/// whether there was room.
#[inline(always)]
pub fn emit<T: 'static>(kind: u32, fill: impl FnOnce(*mut T)) -> bool {
    let Some(mut record) = RECORDS.reserve_untyped::<T>(0) else {
        lose(kind);
        return false;
    };
    make(kind);
    fill(record.as_mut_ptr());
    record.submit(wakeup::<T>());
    true
}

/// As [`emit`], for a flow: where the ring is full, it is folded into a count.
#[inline(always)]
pub fn emit_flow(kind: u32, fill: impl FnOnce(*mut FlowRecord)) {
    emit_or(kind, true, fill, fold);
}

/// As [`emit`]; where the ring is full, or the record `may` not go there, `fold` takes it, all of it written.
#[inline(always)]
pub fn emit_or<T: 'static>(
    kind: u32,
    may: bool,
    fill: impl FnOnce(*mut T),
    fold: impl FnOnce(*const MaybeUninit<T>),
) {
    make(kind);
    if may && let Some(mut record) = RECORDS.reserve_untyped::<T>(0) {
        fill(record.as_mut_ptr());
        record.submit(wakeup::<T>());
    } else {
        let mut aside = MaybeUninit::uninit();
        fill(aside.as_mut_ptr());
        fold(&raw const aside);
    }
}

/// Counts a socket whose flow cannot be told for lack of memory. The first on each CPU is also worth a line in the
/// agent's log: whoever reads it has a node to look after. A function of its own, as logging takes much of the stack.
#[inline(never)]
fn no_storage() {
    if TALLIES.get(kind::NO_STORAGE).is_some_and(|tally| tally.lost == 0) {
        error!((), "no memory for a socket's state: its flows are lost, and counted as no-storage");
    }
    lose(kind::NO_STORAGE);
}

/// Counts a record of `kind` that is made.
#[inline(always)]
fn make(kind: u32) {
    if let Some(tally) = TALLIES.get_ptr_mut(kind) {
        // SAFETY: a value of the map.
        raise(unsafe { &raw mut (*tally).made });
    }
}

/// Counts a record of `kind` that is made and cannot be delivered.
#[inline(always)]
pub fn lose(kind: u32) {
    if let Some(tally) = TALLIES.get_ptr_mut(kind) {
        // SAFETY: a value of the map.
        unsafe {
            raise(&raw mut (*tally).made);
            raise(&raw mut (*tally).lost);
        }
    }
}

/// Adds one to a number in a map.
#[inline(always)]
pub fn raise(count: *mut u64) {
    add(count, 1);
}

/// Adds to a number in a map.
#[inline(always)]
pub fn add(sum: *mut u64, more: u64) {
    // SAFETY: the callers took it from a map. Atomic even where it is this CPU's own: a program in a soft interrupt may
    // come between.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(sum, more) };
}

/// A wake-up costs more than everything else together, so readers poll; only the records around the one that crosses
/// the fill threshold wake them. Several, as producers on other CPUs may step over the exact mark.
#[inline(always)]
fn wakeup<T>() -> u64 {
    let wake_at = u64::from(setting!(wake_at));
    if wake_at != 0 {
        let ring = (&raw const RECORDS).cast_mut().cast();
        // SAFETY: `ring` is a ring buffer map.
        let filled = unsafe { bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA.into()) };
        if filled >= wake_at && filled < wake_at + 8 * size_of::<T>() as u64 {
            return BPF_RB_FORCE_WAKEUP.into();
        }
    }
    BPF_RB_NO_WAKEUP.into()
}
