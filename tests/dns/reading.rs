//! What is read of an answer.

use std::{net::IpAddr, time::Duration};

use netaudit::{
    audit::{DnsReading, UnreadableDns, is_truncated, read_dns},
    kernel::{Clock, Event, abi, decode},
    model::NetnsCookie,
};
use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
    sample::{Index, select},
    test_runner::{Config, TestCaseError, TestRunner},
};

use super::message::{A, AAAA, ASKED, CNAME, Message, TXT, wire};

fn read(message: Message) -> Result<DnsReading, UnreadableDns> {
    read_dns(&message.0, false)
}

/// (names, addresses, seconds).
fn said(message: Message) -> (Vec<String>, Vec<IpAddr>, u64) {
    let reading = read(message).unwrap();
    let names = reading.names.iter().map(ToString::to_string).collect();
    (names, reading.addresses.to_vec(), reading.ttl.as_secs())
}

fn ips(ips: &[&str]) -> Vec<IpAddr> {
    ips.iter().map(|ip| ip.parse().unwrap()).collect()
}

#[test]
fn addresses_of_both_families_each_once() {
    let message = Message::answer("Connect.SquareUp.com", A)
        .address_of(&ASKED, "203.0.113.10", 60)
        .address("connect.squareup.COM", "203.0.113.11", 30)
        .address_of(&ASKED, "203.0.113.10", 45);
    let name = vec!["connect.squareup.com".to_owned()];
    assert_eq!(said(message), (name, ips(&["203.0.113.10", "203.0.113.11"]), 30));

    let message = Message::answer("v6.example.com", AAAA).address_of(&ASKED, "2001:db8::1", 60).address_of(
        &ASKED,
        "::ffff:192.0.2.1",
        60,
    );
    assert_eq!(said(message).1, ips(&["2001:db8::1", "192.0.2.1"]), "a mapped address is the IPv4 one");
}

#[test]
fn what_was_asked_comes_first_and_then_what_it_stands_for() {
    // In any order of records.
    let message = Message::answer("www.example.com", A)
        .address("edge.cdn.example", "192.0.2.1", 20)
        .alias("www.cdn.example", "edge.cdn.example", 300)
        .alias("www.example.com", "www.cdn.example", 3_600)
        .address("edge.cdn.example", "192.0.2.2", 40);
    let names = ["www.example.com", "www.cdn.example", "edge.cdn.example"].map(str::to_owned);
    assert_eq!(said(message), (names.into(), ips(&["192.0.2.1", "192.0.2.2"]), 20));
}

#[test]
fn what_the_question_does_not_lead_to_names_nobody() {
    // Whoever answers for one name must not speak for another.
    let message = Message::answer("evil.example", A)
        .address("connect.squareup.com", "192.0.2.66", 60)
        .alias("connect.squareup.com", "evil.example", 60)
        .address_of(&ASKED, "192.0.2.1", 60);
    assert_eq!(said(message), (vec!["evil.example".to_owned()], ips(&["192.0.2.1"]), 60));

    let message = Message::answer("evil.example", A).address("example", "192.0.2.66", 60);
    assert_eq!(said(message).1, ips(&[]));
    // An alias without the address that it leads to, as of a service outside that is asked for next.
    let message = Message::answer("a.example", A).alias("a.example", "b.example", 60);
    assert_eq!(said(message), (vec!["a.example".to_owned(), "b.example".to_owned()], vec![], 0));
    // Records of another class.
    let mut message = Message::answer("a.example", A).address_of(&ASKED, "192.0.2.1", 60);
    let class = message.0.len() - 11;
    message.0[class] = 3;
    assert_eq!(said(message).1, ips(&[]));
}

#[test]
fn times_to_live_from_none_to_the_longest() {
    for (seconds, good_for) in [
        (0, 0),
        (1, 1),
        (86_400, 86_400),
        (86_401, 86_400),
        (u32::MAX >> 1, 86_400),
        // RFC 2181: as if it were none.
        (1 << 31, 0),
        (u32::MAX, 0),
    ] {
        let message = Message::answer("a.example", A).address_of(&ASKED, "192.0.2.1", seconds);
        assert_eq!(said(message).2, good_for, "{seconds}");
    }
}

#[test]
fn names_that_no_host_has_are_refused() {
    let of = |label: &[u8]| {
        let name = [&[label.len() as u8], label, &wire("example.com")].concat();
        read(Message::answer_to(&name, A).address_of(&ASKED, "192.0.2.1", 60))
    };
    assert_eq!(&*of(b"xn--bcher-kva").unwrap().names[0], "xn--bcher-kva.example.com");
    assert_eq!(&*of(b"_dns-sd_1").unwrap().names[0], "_dns-sd_1.example.com");
    for label in [
        b"a.b".as_slice(),
        b"a\\.b",
        b"\x1b[31mred",
        b"a\nb",
        b"a b",
        b"\0",
        b"\"}",
        b"*",
        "b\u{fc}cher".as_bytes(),
        b"\xff\xfe",
    ] {
        assert_eq!(of(label), Err(UnreadableDns::NotAHost), "{label:?}");
    }
    let root = Message::answer_to(&[0], A).address_of(&ASKED, "192.0.2.1", 60);
    assert_eq!(read(root), Err(UnreadableDns::NotAHost));
    // On the way such a name names nobody, and the others hold.
    let odd = [b"\x03a b".as_slice(), &wire("example")].concat();
    let message = Message::answer("a.example", A).record(&wire("a.example"), CNAME, 60, &odd).address_of(
        &odd,
        "192.0.2.1",
        60,
    );
    assert_eq!(said(message), (vec!["a.example".to_owned()], ips(&["192.0.2.1"]), 60));
}

#[test]
fn malformed_answers_are_refused_whole() {
    let good = || Message::answer("a.example", A).address_of(&ASKED, "192.0.2.1", 60);
    let end = good().0.len() as u8;
    let malformed = Err(UnreadableDns::Malformed);
    for (what, message) in [
        ("nothing", Message(vec![])),
        ("no header", Message(good().0[..11].to_vec())),
        ("a question", good().flags(0x0100)),
        ("an update", good().flags(0xa800)),
        ("an error", good().flags(0x8183)),
        ("more records than there are", good().count(2)),
        ("as many as can be said", good().count(u16::MAX)),
        ("an address of three bytes", Message::answer("a.example", A).record(&ASKED, A, 60, &[1, 2, 3])),
        ("an address of five bytes", Message::answer("a.example", A).record(&ASKED, A, 60, &[1, 2, 3, 4, 5])),
        ("an owner that points to itself", good().record(&[0xc0, end], A, 60, &[1, 2, 3, 4])),
        ("one that points beyond", good().record(&[0xc0, end + 40], A, 60, &[1, 2, 3, 4])),
        ("one that points to a pointer to it", {
            let mut message = good();
            message.0.extend([0xc0, end + 2, 0xc0, end]);
            message.record(&[], A, 60, &[1, 2, 3, 4])
        }),
        ("a label of a kind that is not", good().record(&[0x80, 0], A, 60, &[1, 2, 3, 4])),
        ("a name that is too long", Message::answer_to(&[[63; 64].repeat(4), vec![0]].concat(), A)),
        ("a name without end", Message(good().0[..16].to_vec())),
    ] {
        assert_eq!(read(message), malformed, "{what}");
    }
    let mut questions = good();
    questions.0[5] = 2;
    assert_eq!(read(questions), malformed, "two questions");
    let mut questions = good();
    questions.0[5] = 0;
    assert_eq!(read(questions), malformed, "no question");
    // What is beyond the records is nobody's business.
    let mut more = good();
    more.0.extend([0xff; 40]);
    assert_eq!(said(more).1, ips(&["192.0.2.1"]));
}

#[test]
fn aliases_in_a_circle_and_without_end_come_to_one() {
    let message = Message::answer("a.example", A)
        .alias("a.example", "b.example", 60)
        .alias("b.example", "a.example", 60)
        .address("c.example", "192.0.2.1", 60);
    assert_eq!(said(message).1, ips(&[]));
    let mut message = Message::answer("n0.example", A);
    for n in 0..40 {
        message = message.alias(&format!("n{n}.example"), &format!("n{}.example", n + 1), 60);
    }
    let (names, addresses, _) = said(message.address("n40.example", "192.0.2.1", 60));
    assert_eq!((names.len(), addresses), (17, vec![]));
}

#[test]
fn of_many_records_the_first_are_read_and_of_a_cut_answer_what_is_there() {
    let mut message = Message::answer("a.example", A);
    for n in 0..1_000_u16 {
        message = message.record(&ASKED, A, 60, &[10, 0, (n >> 8) as u8, n as u8]);
    }
    assert_eq!(said(message.clone()).1.len(), 128);
    let whole = 12 + wire("a.example").len() + 4;
    for length in whole..whole + 100 {
        let cut = &message.0[..length];
        let reading = read_dns(cut, true).unwrap();
        assert_eq!(reading.addresses.len(), (length - whole) / 16, "{length}");
        assert_eq!(read_dns(cut, false), Err(UnreadableDns::Malformed));
    }
    assert!(!is_truncated(&message.0) && is_truncated(&message.flags(0x8380).0) && !is_truncated(b"x"));
}

/// What holds of every reading, whatever the bytes.
fn is_bounded(bytes: &[u8], is_cut: bool) -> Result<(), TestCaseError> {
    let _ = is_truncated(bytes);
    let Ok(DnsReading { names, addresses, ttl }) = read_dns(bytes, is_cut) else { return Ok(()) };
    let is_letter = |it: u8| matches!(it, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
    let is_name = |name: &str| (1..=253).contains(&name.len()) && name.bytes().all(is_letter);
    let all = (1..=17).contains(&names.len())
        && names.iter().all(|name| is_name(name) && !name.starts_with('.') && !name.contains(".."))
        && addresses.len() <= 128
        && addresses.iter().all(|ip| *ip == ip.to_canonical())
        && ttl <= Duration::from_secs(86_400);
    if all { Ok(()) } else { Err(TestCaseError::fail(format!("{names:?} {addresses:?} {ttl:?}"))) }
}

/// A real answer, or nearly.
fn answers() -> impl Strategy<Value = Vec<u8>> {
    let name = || select(vec!["a.example", "b.example", "c.example", "www.connect.squareup.com"]);
    let owner = || {
        prop_oneof![
            4 => name().prop_map(wire),
            4 => Just(ASKED.to_vec()),
            1 => any::<u16>().prop_map(|at| (0xc000 | at).to_be_bytes().to_vec()),
            1 => vec(any::<u8>(), 0..80),
        ]
    };
    let data = prop_oneof![
        vec(any::<u8>(), 4).prop_map(|data| (A, data)),
        vec(any::<u8>(), 16).prop_map(|data| (AAAA, data)),
        owner().prop_map(|name| (CNAME, name)),
        vec(any::<u8>(), 0..300).prop_map(|data| (TXT, data)),
        (any::<u16>(), vec(any::<u8>(), 0..40)),
    ];
    let records = vec((owner(), data, any::<u32>()), 0..12);
    (owner(), records).prop_map(|(asked, records)| {
        let add = |message: Message, (owner, (kind, data), seconds): (Vec<u8>, (u16, Vec<u8>), u32)| {
            message.record(&owner, kind, seconds, &data)
        };
        records.into_iter().fold(Message::answer_to(&asked, A), add).0
    })
}

/// The same with some bytes changed, taken out or put in.
fn broken() -> impl Strategy<Value = Vec<u8>> {
    let change = (0..4_u8, any::<Index>(), any::<u8>());
    (answers(), vec(change, 0..12)).prop_map(|(mut bytes, changes)| {
        for (how, at, byte) in changes {
            let at = at.index(bytes.len().max(1)).min(bytes.len().saturating_sub(1));
            match how {
                _ if bytes.is_empty() => {}
                0 => bytes[at] = byte,
                1 => bytes[at] ^= 1 << (byte % 8),
                2 => bytes.truncate(at),
                _ => bytes.insert(at, byte),
            }
        }
        bytes
    })
}

fn fuzz(cases: u32) {
    let config = Config { failure_persistence: None, ..Config::with_cases(cases) };
    let run = |strategy: &dyn Fn(&mut TestRunner)| strategy(&mut TestRunner::new(config.clone()));
    run(&|runner| {
        let bytes = vec(any::<u8>(), 0..1_500);
        runner.run(&(bytes, any::<bool>()), |(bytes, cut)| is_bounded(&bytes, cut)).unwrap();
    });
    run(&|runner| {
        runner.run(&(broken(), any::<bool>()), |(bytes, cut)| is_bounded(&bytes, cut)).unwrap();
    });
    // 64 KiB of nothing but one byte: labels, pointers, counts.
    run(&|runner| {
        let long = (any::<u8>(), 0..=65_535_usize, any::<bool>());
        let all = |(byte, length, cut)| {
            let mut bytes = vec![byte; length];
            bytes.splice(
                ..length.min(12),
                [0, 0, 0x80, 0, 0, 1, 0xff, 0xff, 0, 0, 0, 0].into_iter().take(length),
            );
            is_bounded(&bytes, cut)
        };
        runner.run(&long, all).unwrap();
    });
    run(&|runner| runner.run(&records(), |bytes| decodes(&bytes)).unwrap());
}

/// A kernel record with any numbers in it.
fn records() -> impl Strategy<Value = Vec<u8>> {
    let sizes = [abi::DNS_SHORT, abi::DNS_LONG].map(|room| room + 48);
    let size = prop_oneof![4 => select(sizes.to_vec()), 1 => 0..1_400_usize];
    (size, any::<u32>(), any::<bool>()).prop_flat_map(|(size, length, likely)| {
        vec(any::<u8>(), size).prop_map(move |mut bytes| {
            let length = if likely { length % 1_300 } else { length };
            let head = [abi::kind::DNS_ANSWER.to_ne_bytes(), length.to_ne_bytes()].concat();
            bytes.splice(..head.len().min(size), head.into_iter().take(size));
            bytes
        })
    })
}

fn decodes(bytes: &[u8]) -> Result<(), TestCaseError> {
    match decode(bytes, &Clock::fixed(0)) {
        Ok(Event::Dns(answer)) => {
            let length = u32::from_ne_bytes(bytes[4..8].try_into().unwrap()) as usize;
            assert_eq!(*answer.payload, bytes[48..48 + length]);
            is_bounded(&answer.payload, answer.is_cut)
        }
        Ok(event) => Err(TestCaseError::fail(format!("{event:?}"))),
        Err(_) => Ok(()),
    }
}

#[test]
fn a_record_is_decoded_to_the_byte() {
    let payload = Message::answer("a.example", A).address_of(&ASKED, "192.0.2.1", 60).0;
    let mut bytes = vec![0xee; 48 + abi::DNS_SHORT];
    let head: [&[u8]; 7] = [
        &abi::kind::DNS_ANSWER.to_ne_bytes(),
        &(payload.len() as u32).to_ne_bytes(),
        &7_000_000_000_u64.to_ne_bytes(),
        &42_u64.to_ne_bytes(),
        &(payload.len() as u32).to_ne_bytes(),
        &[0; 4],
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 96, 0, 10],
    ];
    bytes.splice(..48, head.concat());
    bytes.splice(48..48 + payload.len(), payload.iter().copied());
    let Ok(Event::Dns(answer)) = decode(&bytes, &Clock::fixed(5)) else { panic!() };
    assert_eq!((answer.at.0, answer.netns), (7_000_000_005, NetnsCookie(42)));
    assert_eq!((answer.server, answer.is_cut), ("10.96.0.10".parse().unwrap(), false));
    assert_eq!(*answer.payload, payload);
}

#[test]
fn no_bytes_do_harm() {
    fuzz(2_000);
}

/// `cargo xtask fuzz dns`.
#[test]
#[ignore = "takes as long as one likes"]
fn long_run() {
    let cases = std::env::var("NETAUDIT_FUZZ_CASES").ok().and_then(|text| text.parse().ok());
    fuzz(cases.unwrap_or(1_000_000));
}
