//! From a record's bytes to an event: a pure function, so that recorded and malformed bytes can be tried anywhere.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use netaudit_ebpf::abi::{
    Address, AnswerRecord, CGROUP_PATH, CgroupRecord, DROP_REASONS, DropRecord, FlowRecord, RawSocketRecord,
    TaskRecord, flag, kind, raw,
};

use super::{Clock, Event, outcome::Closed};
use crate::model::{
    Actor, Answer, CgroupId, Comm, Direction, DropReason, NetnsCookie, Observation, Outcome, PacketDrop,
    Protocol, RawSocket, RawSocketKind,
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
        kind::CGROUP_MADE | kind::CGROUP_REMOVED => {
            let record: CgroupRecord = take(bytes).ok_or(wrong_length)?;
            cgroup(&record, clock)
        }
        _ => Err(DecodeError::Kind(kind)),
    }
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

fn take<T: Record>(bytes: &[u8]) -> Option<T> {
    // SAFETY: the length is right, alignment is not asked for, and records hold only integers, for which all bytes
    // are a value.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

pub(super) fn observation(record: &FlowRecord, clock: &Clock) -> Observation {
    let remote = socket_address(record.remote, record.remote_port);
    let requested = socket_address(record.requested, record.requested_port);
    let closed = Closed::new(record.detail, record.flags, remote.is_ipv4());
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
        folded: None,
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

fn packet_drop(record: &DropRecord, clock: &Clock) -> Result<PacketDrop, DecodeError> {
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
    cgroup_path(&record).ok()
}

fn cgroup(record: &CgroupRecord, clock: &Clock) -> Result<Event, DecodeError> {
    if record.kind == kind::CGROUP_REMOVED {
        return Ok(Event::CgroupGone { id: CgroupId(record.id), at: clock.wall(record.at) });
    }
    cgroup_path(record)
}

fn cgroup_path(record: &CgroupRecord) -> Result<Event, DecodeError> {
    let length = record.length as usize;
    // A path that ends at the last byte of its room was cut, and would name another cgroup.
    if length == 0 || length >= CGROUP_PATH - 1 {
        return Err(DecodeError::Path);
    }
    let path = std::str::from_utf8(&record.path[..length]).map_err(|_| DecodeError::Path)?;
    let path = below(path, record.below).ok_or(DecodeError::Path)?;
    Ok(Event::Cgroup { id: CgroupId(record.id), path: path.to_owned() })
}

/// The last components of `path`, which are those below the watched cgroup; all of it where `levels` is 0.
fn below(path: &str, levels: u32) -> Option<&str> {
    match (levels as usize).checked_sub(1) {
        None => Some(path),
        Some(more) => path.rmatch_indices('/').nth(more).map(|(at, _)| &path[at..]),
    }
}

#[cfg(test)]
mod tests {
    use netaudit_ebpf::abi::detail;

    use super::*;
    use crate::model::{Errno, Timestamp};

    fn v4(a: u8, b: u8, c: u8, d: u8) -> Address {
        Address::v4(u32::from_ne_bytes([a, b, c, d]))
    }

    fn record(kind: u32) -> FlowRecord {
        FlowRecord {
            kind,
            at: 3_000,
            started: 1_000,
            netns: 42,
            cgroup: 77,
            socket: 9,
            sequence: 2,
            pid: 1234,
            comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
            local: v4(10, 0, 0, 1),
            local_port: 40_000,
            remote: v4(10, 0, 0, 2),
            remote_port: 8080,
            requested: v4(10, 0, 0, 2),
            requested_port: 8080,
            flags: flag::ACTOR,
            ..FlowRecord::default()
        }
    }

    fn flow(record: &FlowRecord) -> Observation {
        match decode(&encode(record), &Clock::fixed(500)).unwrap() {
            Event::Flow(observation) => observation,
            other => panic!("{other:?} is no flow"),
        }
    }

    #[test]
    fn an_established_flow_keeps_every_field() {
        assert_eq!(
            flow(&record(kind::TCP_ESTABLISHED)),
            Observation {
                at: Timestamp(1_500),
                direction: Direction::Egress,
                protocol: Protocol::Tcp,
                netns: NetnsCookie(42),
                actor: Actor { cgroup: Some(CgroupId(77)), pid: 1234, comm: Comm::new("curl") },
                local: "10.0.0.1:40000".parse().unwrap(),
                remote: "10.0.0.2:8080".parse().unwrap(),
                requested: None,
                outcome: Outcome::Established,
                errno: None,
                waited: Duration::from_nanos(2_000),
                answered: false,
                socket: 9,
                sequence: 2,
                folded: None,
            }
        );
    }

    #[test]
    fn a_rewritten_destination_shows_both_addresses() {
        let mut record = record(kind::TCP_ESTABLISHED);
        record.requested = v4(10, 96, 0, 1);
        record.requested_port = 80;
        let flow = flow(&record);
        assert_eq!(flow.remote, "10.0.0.2:8080".parse().unwrap());
        assert_eq!(flow.requested, Some("10.96.0.1:80".parse().unwrap()));
    }

    #[test]
    fn an_unmarked_listener_has_a_cgroup_at_most() {
        let mut record = record(kind::TCP_ACCEPTED);
        record.flags = 0;
        let actor = flow(&record).actor;
        assert_eq!((actor.cgroup, actor.pid, actor.comm), (Some(CgroupId(77)), 0, Comm::default()));
        record.cgroup = 0;
        assert_eq!(flow(&record).actor.cgroup, None);
    }

    #[test]
    fn an_unspecified_end_takes_the_family_of_the_peer() {
        let mut record = record(kind::UDP_SENT);
        record.local = Address([0; 4]);
        assert_eq!(flow(&record).local, "0.0.0.0:40000".parse().unwrap());
        record.remote = Address::from_octets("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(flow(&record).local, "[::]:40000".parse().unwrap());
    }

    #[test]
    fn a_clock_that_ran_backwards_is_no_long_wait() {
        let mut record = record(kind::TCP_CLOSED);
        record.at = 10;
        assert_eq!(flow(&record).waited, Duration::ZERO);
    }

    #[test]
    fn cgroups_come_with_their_path_and_go() {
        let clock = Clock::fixed(1);
        let path = "/kubepods/burstable/pod1/abc";
        assert_eq!(
            decode(&encode_cgroup(kind::CGROUP_MADE, 5, 8, path), &clock),
            Ok(Event::Cgroup { id: CgroupId(8), path: path.to_owned() })
        );
        assert_eq!(
            decode(&encode_cgroup(kind::CGROUP_REMOVED, 5, 8, path), &clock),
            Ok(Event::CgroupGone { id: CgroupId(8), at: Timestamp(6) })
        );
    }

    #[test]
    fn in_a_part_paths_begin_at_the_watched_cgroup() {
        let clock = Clock::fixed(0);
        // As of a node in a pod of another cluster.
        let outer = "/kubepods/podffffffff/node/kubepods/pod1/abc";
        let told = |below: u32| {
            let mut bytes = encode_cgroup(kind::CGROUP_MADE, 0, 1, outer);
            bytes[24..28].copy_from_slice(&below.to_ne_bytes());
            decode(&bytes, &clock).map(|event| match event {
                Event::Cgroup { path, .. } => path,
                other => panic!("{other:?} is no cgroup"),
            })
        };
        assert_eq!(told(0).as_deref(), Ok(outer));
        assert_eq!(told(1).as_deref(), Ok("/abc"));
        assert_eq!(told(3).as_deref(), Ok("/kubepods/pod1/abc"));
        assert_eq!(told(6).as_deref(), Ok(outer));
        assert_eq!(told(7), Err(DecodeError::Path));
        assert_eq!(told(u32::MAX), Err(DecodeError::Path));
    }

    #[test]
    fn a_drop_keeps_every_field_and_its_reason_has_a_name() {
        let record = DropRecord {
            kind: kind::DROP,
            reason: 1,
            at: 7,
            netns: 42,
            source: v4(10, 0, 0, 1),
            destination: v4(10, 0, 0, 2),
            source_port: 40_000,
            destination_port: 53,
            protocol: 17,
            sequence: 0,
            tracked: 0,
        };
        // SAFETY: no padding: its size is asserted to be the sum of its fields.
        let bytes = |record: DropRecord| -> [u8; 72] { unsafe { std::mem::transmute(record) } };
        let told = |record| decode(&bytes(record), &Clock::fixed(500));
        let expected = PacketDrop {
            at: Timestamp(507),
            netns: NetnsCookie(42),
            protocol: Protocol::Udp,
            source: "10.0.0.1:40000".parse().unwrap(),
            destination: "10.0.0.2:53".parse().unwrap(),
            reason: DropReason("TC_INGRESS"),
            sequence: 0,
            opens: false,
        };
        assert_eq!(told(record), Ok(Event::Drop(expected)));
        let tracked = told(DropRecord { tracked: 1, ..record });
        assert_eq!(tracked, Ok(Event::Drop(PacketDrop { opens: true, ..expected })));
        let unknown = |reason, protocol| Err(DecodeError::Drop { reason, protocol });
        assert_eq!(told(DropRecord { reason: 5, ..record }), unknown(5, 17));
        assert_eq!(told(DropRecord { protocol: 1, ..record }), unknown(1, 1));
    }

    #[test]
    fn what_comes_back_names_its_flow_and_what_it_was() {
        let record = AnswerRecord {
            kind: kind::UDP_ERROR,
            detail: detail::pack(libc::EHOSTUNREACH as u8, 0, 3, 1),
            at: 7,
            socket: 9,
            sequence: 2,
            flags: u32::from(flag::ICMP | flag::V4),
        };
        // SAFETY: no padding: its size is asserted to be the sum of its fields.
        let bytes = |record: AnswerRecord| -> [u8; 32] { unsafe { std::mem::transmute(record) } };
        let told = |record| decode(&bytes(record), &Clock::fixed(500));
        let unreachable = Answer {
            at: Timestamp(507),
            socket: 9,
            sequence: 2,
            outcome: Outcome::Unreachable,
            errno: Some(Errno::EHOSTUNREACH),
        };
        assert_eq!(told(record), Ok(Event::Answer(unreachable)));
        let v4_prohibited = AnswerRecord { flags: flag::V4.into(), ..record };
        assert_eq!(
            told(v4_prohibited),
            Ok(Event::Answer(Answer { outcome: Outcome::Rejected, ..unreachable }))
        );
        let answered = AnswerRecord { kind: kind::UDP_ANSWERED, detail: 0, flags: 0, ..record };
        assert_eq!(
            told(answered),
            Ok(Event::Answer(Answer { outcome: Outcome::Answered, errno: None, ..unreachable }))
        );
    }

    #[test]
    fn a_raw_socket_keeps_every_field_and_its_kind_has_a_name() {
        let record = RawSocketRecord {
            kind: kind::RAW_SOCKET,
            socket: raw::PACKET,
            at: 7,
            netns: 42,
            cgroup: 77,
            pid: 1234,
            protocol: 0x0800,
            comm: *b"scan\0\0\0\0\0\0\0\0\0\0\0\0",
        };
        // SAFETY: no padding: its size is asserted to be the sum of its fields.
        let bytes = |record: RawSocketRecord| -> [u8; 56] { unsafe { std::mem::transmute(record) } };
        let told = |socket| decode(&bytes(RawSocketRecord { socket, ..record }), &Clock::fixed(500));
        let expected = RawSocket {
            at: Timestamp(507),
            netns: NetnsCookie(42),
            actor: Actor { cgroup: Some(CgroupId(77)), pid: 1234, comm: Comm::new("scan") },
            kind: RawSocketKind::Packet,
            protocol: 0x0800,
        };
        for (socket, kind) in [
            (raw::IP, RawSocketKind::Ip),
            (raw::PING, RawSocketKind::Ping),
            (raw::PACKET, RawSocketKind::Packet),
        ] {
            assert_eq!(told(socket), Ok(Event::RawSocket(RawSocket { kind, ..expected })));
        }
        assert_eq!(told(0), Err(DecodeError::RawSocket(0)));
        assert_eq!(told(4), Err(DecodeError::RawSocket(4)));
    }

    #[test]
    fn a_path_that_was_cut_or_lies_about_its_length_is_refused() {
        let clock = Clock::fixed(0);
        let long = format!("/{}", "x".repeat(CGROUP_PATH));
        assert_eq!(decode(&encode_cgroup(kind::CGROUP_MADE, 0, 1, &long), &clock), Err(DecodeError::Path));
        assert_eq!(decode(&encode_cgroup(kind::CGROUP_MADE, 0, 1, ""), &clock), Err(DecodeError::Path));
        let mut bytes = encode_cgroup(kind::CGROUP_MADE, 0, 1, "/a");
        bytes[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(decode(&bytes, &clock), Err(DecodeError::Path));
        let mut bytes = encode_cgroup(kind::CGROUP_MADE, 0, 1, "/a");
        bytes[33] = 0xff;
        assert_eq!(decode(&bytes, &clock), Err(DecodeError::Path));
    }

    #[test]
    fn malformed_records_are_errors_and_never_panics() {
        let clock = Clock::fixed(0);
        let good = encode(&record(kind::TCP_ESTABLISHED));
        for length in 0..good.len() {
            let kind = if length < 4 { 0 } else { kind::TCP_ESTABLISHED };
            assert_eq!(decode(&good[..length], &clock), Err(DecodeError::Length { kind, length }));
        }
        let mut longer = good.to_vec();
        longer.push(0);
        assert!(decode(&longer, &clock).is_err());
        for unknown in [0, kind::NO_STORAGE, kind::DROP_LIMITED, kind::COUNT, u32::MAX] {
            let mut bytes = good;
            bytes[..4].copy_from_slice(&unknown.to_ne_bytes());
            assert_eq!(decode(&bytes, &clock), Err(DecodeError::Kind(unknown)));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..1100), kind in 0_u32..kind::COUNT + 1) {
            if let Some(word) = bytes.first_chunk_mut::<4>() {
                *word = kind.to_ne_bytes();
            }
            for length in [bytes.len(), 32.min(bytes.len()), 56.min(bytes.len()), 72.min(bytes.len()), 128.min(bytes.len()), 1024.min(bytes.len())] {
                let _ = decode(&bytes[..length], &Clock::now());
            }
            let _ = decode_tasks(&bytes).count();
        }
    }
}
