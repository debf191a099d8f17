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
            handshake: None,
            translated: None,
            maybe_repeated: false,
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
        Ok(Event::Cgroup { id: CgroupId(8), path: path.to_owned(), made: Some(Timestamp(6)) })
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
        folded: None,
        maybe_repeated: false,
    };
    assert_eq!(told(record), Ok(Event::Drop(expected)));
    let tracked = told(DropRecord { tracked: 1, ..record });
    assert_eq!(tracked, Ok(Event::Drop(PacketDrop { opens: true, ..expected })));
    let unknown = |reason, protocol| Err(DecodeError::Drop { reason, protocol });
    assert_eq!(told(DropRecord { reason: 6, ..record }), unknown(6, 17));
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
    assert_eq!(told(v4_prohibited), Ok(Event::Answer(Answer { outcome: Outcome::Rejected, ..unreachable })));
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
    for (socket, kind) in
        [(raw::IP, RawSocketKind::Ip), (raw::PING, RawSocketKind::Ping), (raw::PACKET, RawSocketKind::Packet)]
    {
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
    for unknown in [0, kind::NO_STORAGE, 12, kind::COUNT, u32::MAX] {
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
