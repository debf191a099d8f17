//! From a record's bytes to an event: a pure function, so that recorded and malformed bytes can be tried anywhere.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    time::Duration,
};

use netaudit_ebpf::abi::{
    Address, AnswerRecord, CGROUP_PATH, CgroupRecord, DNS_LONG, DNS_SHORT, DROP_REASONS, DnsRecord,
    DropRecord, FlowRecord, RawSocketRecord, TaskRecord, flag, kind, raw,
};

use super::{Clock, Event, outcome::Closed};
use crate::model::{
    Actor, Answer, CgroupId, Comm, Direction, DnsAnswer, DropReason, NetnsCookie, Observation, Outcome,
    PacketDrop, Protocol, RawSocket, RawSocketKind,
};

/// Why bytes are no record. Each is counted, none is fatal: the ring may have been written by a newer agent's programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Too few bytes for the kind, or too many.
    #[error("a record of kind {kind} has {length} bytes")]
    Length {
        /// The record's kind; 0 where there are not even bytes for that.
        kind: u32,
        /// How many bytes there are.
        length: usize,
    },
    /// A kind that this version does not know.
    #[error("unknown record kind {0}")]
    Kind(u32),
    /// A cgroup's path that is longer than its room, cut, shorter than the record says, or not UTF-8.
    #[error("the path of a cgroup record cannot be read")]
    Path,
    /// A raw socket of a kind that this version does not know.
    #[error("a raw socket's record has kind {0}")]
    RawSocket(u32),
    /// A DNS answer that is longer than its room, or that the kernel could not read.
    #[error("a DNS answer's record has length {0}")]
    Dns(u32),
    /// A drop's reason or protocol that this version does not know.
    #[error("a drop record has reason {reason} and protocol {protocol}")]
    Drop {
        /// The place of the reason in the list.
        reason: u32,
        /// The number in the packet's header.
        protocol: u32,
    },
}

/// Decodes one record. A cgroup's path comes as from the cgroup that is watched.
///
/// # Errors
///
/// When the bytes are not exactly one record of a known kind.
pub fn decode(bytes: &[u8], clock: &Clock) -> Result<Event, DecodeError> {
    let kind = match bytes.first_chunk::<4>() {
        Some(word) => u32::from_ne_bytes(*word),
        None => return Err(DecodeError::Length { kind: 0, length: bytes.len() }),
    };
    let wrong_length = DecodeError::Length { kind, length: bytes.len() };
    match kind {
        kind::TCP_ESTABLISHED..=kind::UDP_RECEIVED => {
            let record: FlowRecord = take(bytes).ok_or(wrong_length)?;
            Ok(Event::Flow(observation(&record, clock)))
        }
        kind::DROP => {
            let record: DropRecord = take(bytes).ok_or(wrong_length)?;
            packet_drop(&record, clock).map(Event::Drop)
        }
        kind::UDP_ANSWERED | kind::UDP_ERROR => {
            let record: AnswerRecord = take(bytes).ok_or(wrong_length)?;
            Ok(Event::Answer(answer(&record, clock)))
        }
        kind::RAW_SOCKET => {
            let record: RawSocketRecord = take(bytes).ok_or(wrong_length)?;
            raw_socket(&record, clock).map(Event::RawSocket)
        }
        kind::DNS_ANSWER if bytes.len() == size_of::<DnsRecord<DNS_SHORT>>() => {
            let record: DnsRecord<DNS_SHORT> = take(bytes).ok_or(wrong_length)?;
            dns_answer(&record, clock).map(Event::Dns)
        }
        kind::DNS_ANSWER => {
            let record: DnsRecord<DNS_LONG> = take(bytes).ok_or(wrong_length)?;
            dns_answer(&record, clock).map(Event::Dns)
        }
        kind::CGROUP_MADE | kind::CGROUP_REMOVED => {
            let record: CgroupRecord = take(bytes).ok_or(wrong_length)?;
            cgroup(&record, clock)
        }
        _ => Err(DecodeError::Kind(kind)),
    }
}

/// The bytes of exactly one flow record, from wherever.
pub(super) fn take_flow(bytes: &[u8]) -> Option<FlowRecord> {
    take(bytes)
}

/// Decodes what the task iterator wrote: as many records as there are. An incomplete last one is left out.
pub fn decode_tasks(bytes: &[u8]) -> impl Iterator<Item = Event> + '_ {
    bytes.chunks_exact(size_of::<TaskRecord>()).filter_map(|chunk| {
        let record: TaskRecord = take(chunk)?;
        Some(Event::Task {
            netns: NetnsCookie(record.netns),
            cgroup: CgroupId(record.cgroup),
            pid: record.pid,
        })
    })
}

/// The bytes of a record, for tests and benches that play the kernel.
pub fn encode(record: &FlowRecord) -> [u8; size_of::<FlowRecord>()] {
    // SAFETY: the record has no padding (its size is asserted to be the sum of its fields), so every byte is set.
    unsafe { std::mem::transmute(*record) }
}

/// As [`encode`], for a cgroup's record. A path that does not fit is cut, as the kernel does.
pub fn encode_cgroup(kind: u32, at: u64, id: u64, path: &str) -> Vec<u8> {
    let mut room = [0; CGROUP_PATH];
    let length = path.len().min(CGROUP_PATH - 1);
    room[..length].copy_from_slice(&path.as_bytes()[..length]);
    let record = CgroupRecord { kind, length: length as u32, at, id, below: 0, reserved: 0, path: room };
    // SAFETY: as above: no padding.
    let bytes: [u8; size_of::<CgroupRecord>()] = unsafe { std::mem::transmute(record) };
    bytes.to_vec()
}

/// The kinds of record that may be read out of bytes.
trait Record: Copy {}
impl Record for FlowRecord {}
impl Record for AnswerRecord {}
impl Record for DropRecord {}
impl Record for RawSocketRecord {}
impl Record for CgroupRecord {}
impl Record for TaskRecord {}
impl<const ROOM: usize> Record for DnsRecord<ROOM> {}

fn take<T: Record>(bytes: &[u8]) -> Option<T> {
    // SAFETY: the length is right, alignment is not asked for, and records hold only integers, for which all bytes
    // are a value.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

pub(super) fn observation(record: &FlowRecord, clock: &Clock) -> Observation {
    let remote = socket_address(record.remote, record.remote_port);
    let requested = socket_address(record.requested, record.requested_port);
    let is_made = matches!(record.kind, kind::TCP_ESTABLISHED | kind::TCP_ACCEPTED);
    let closed = Closed::new(if is_made { 0 } else { record.detail }, record.flags, remote.is_ipv4());
    let (direction, protocol, outcome) = match record.kind {
        kind::TCP_ESTABLISHED => (Direction::Egress, Protocol::Tcp, Outcome::Established),
        kind::TCP_ACCEPTED => (Direction::Ingress, Protocol::Tcp, Outcome::Accepted),
        kind::TCP_CLOSED => (Direction::Egress, Protocol::Tcp, closed.outcome()),
        kind::TCP_PENDING => (Direction::Egress, Protocol::Tcp, Outcome::Pending),
        kind::TCP_FAILED => (Direction::Egress, Protocol::Tcp, Outcome::Failed),
        kind::UDP_SENT => (Direction::Egress, Protocol::Udp, Outcome::Sent),
        // `decode` lets nothing else through.
        _ => (Direction::Ingress, Protocol::Udp, Outcome::Received),
    };
    Observation {
        at: clock.wall(record.started),
        direction,
        protocol,
        netns: NetnsCookie(record.netns),
        actor: actor(record),
        local: local_address(record, remote.is_ipv4()),
        remote,
        requested: (requested != remote).then_some(requested),
        outcome,
        errno: closed.errno(outcome),
        waited: Duration::from_nanos(record.at.saturating_sub(record.started)),
        answered: record.flags & flag::ANSWERED != 0,
        socket: record.socket,
        sequence: record.sequence,
        handshake: NonZeroU32::new(record.detail).filter(|_| is_made),
        folded: None,
        translated: None,
        maybe_repeated: false,
    }
}

fn answer(record: &AnswerRecord, clock: &Clock) -> Answer {
    let flags = record.flags as u16;
    let error = Closed::new(record.detail, flags, flags & flag::V4 != 0);
    // `decode` lets nothing else through.
    let outcome =
        if record.kind == kind::UDP_ERROR { error.outcome_of_datagram() } else { Outcome::Answered };
    Answer {
        at: clock.wall(record.at),
        socket: record.socket,
        sequence: record.sequence,
        outcome,
        errno: error.errno(outcome),
    }
}

fn raw_socket(record: &RawSocketRecord, clock: &Clock) -> Result<RawSocket, DecodeError> {
    let kind = match record.socket {
        raw::IP => RawSocketKind::Ip,
        raw::PING => RawSocketKind::Ping,
        raw::PACKET => RawSocketKind::Packet,
        unknown => return Err(DecodeError::RawSocket(unknown)),
    };
    let cgroup = (record.cgroup != 0).then_some(CgroupId(record.cgroup));
    Ok(RawSocket {
        at: clock.wall(record.at),
        netns: NetnsCookie(record.netns),
        actor: Actor { cgroup, pid: record.pid, comm: Comm(record.comm) },
        kind,
        protocol: record.protocol,
    })
}

pub(super) fn packet_drop(record: &DropRecord, clock: &Clock) -> Result<PacketDrop, DecodeError> {
    let unknown = DecodeError::Drop { reason: record.reason, protocol: record.protocol };
    let protocol = match i32::try_from(record.protocol) {
        Ok(libc::IPPROTO_TCP) => Protocol::Tcp,
        Ok(libc::IPPROTO_UDP) => Protocol::Udp,
        _ => return Err(unknown),
    };
    Ok(PacketDrop {
        at: clock.wall(record.at),
        netns: NetnsCookie(record.netns),
        protocol,
        source: socket_address(record.source, record.source_port),
        destination: socket_address(record.destination, record.destination_port),
        reason: DropReason(DROP_REASONS.get(record.reason as usize).ok_or(unknown)?),
        sequence: record.sequence,
        // A SYN without an ACK opens; of a datagram only connection tracking can say so.
        opens: protocol == Protocol::Tcp || record.tracked == 1,
        folded: None,
        maybe_repeated: false,
    })
}

fn dns_answer<const ROOM: usize>(record: &DnsRecord<ROOM>, clock: &Clock) -> Result<DnsAnswer, DecodeError> {
    let wrong = DecodeError::Dns(record.length);
    let payload = record.payload.get(..record.length as usize).filter(|it| !it.is_empty()).ok_or(wrong)?;
    Ok(DnsAnswer {
        over_loopback: record.over_loopback != 0,
        at: clock.wall(record.at),
        netns: NetnsCookie(record.netns),
        server: socket_address(record.server, 0).ip(),
        payload: payload.into(),
        is_cut: record.whole > record.length,
    })
}

fn actor(record: &FlowRecord) -> Actor {
    let known = record.flags & flag::ACTOR != 0;
    Actor {
        cgroup: (record.cgroup != 0).then_some(CgroupId(record.cgroup)),
        pid: if known { record.pid } else { 0 },
        comm: if known { Comm(record.comm) } else { Comm::default() },
    }
}

fn socket_address(address: Address, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::from(address.octets())).to_canonical(), port)
}

/// This end. Where a socket has no address yet, a dual-stack one shows `::` even with a v4 peer: say it in the peer's
/// family.
fn local_address(record: &FlowRecord, v4: bool) -> SocketAddr {
    let local = socket_address(record.local, record.local_port);
    if v4 && local.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), local.port())
    } else {
        local
    }
}

/// What a record of a cgroup's end says of the time before: that it was, and where. `None` for other records.
pub fn decode_removed(bytes: &[u8]) -> Option<Event> {
    let record: CgroupRecord =
        take(bytes).filter(|record: &CgroupRecord| record.kind == kind::CGROUP_REMOVED)?;
    let path = cgroup_path(&record).ok()?;
    Some(Event::Cgroup { id: CgroupId(record.id), path, made: None })
}

fn cgroup(record: &CgroupRecord, clock: &Clock) -> Result<Event, DecodeError> {
    if record.kind == kind::CGROUP_REMOVED {
        return Ok(Event::CgroupGone { id: CgroupId(record.id), at: clock.wall(record.at) });
    }
    let made = Some(clock.wall(record.at));
    cgroup_path(record).map(|path| Event::Cgroup { id: CgroupId(record.id), path, made })
}

fn cgroup_path(record: &CgroupRecord) -> Result<String, DecodeError> {
    let length = record.length as usize;
    // A path that ends at the last byte of its room was cut, and would name another cgroup.
    if length == 0 || length >= CGROUP_PATH - 1 {
        return Err(DecodeError::Path);
    }
    let path = std::str::from_utf8(&record.path[..length]).map_err(|_| DecodeError::Path)?;
    let path = below(path, record.below).ok_or(DecodeError::Path)?;
    Ok(path.to_owned())
}

/// The last components of `path`, which are those below the watched cgroup; all of it where `levels` is 0.
fn below(path: &str, levels: u32) -> Option<&str> {
    match (levels as usize).checked_sub(1) {
        None => Some(path),
        Some(more) => path.rmatch_indices('/').nth(more).map(|(at, _)| &path[at..]),
    }
}

#[cfg(test)]
mod tests;
