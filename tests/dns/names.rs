//! Which names an address has, when, and for whom.

use std::{net::IpAddr, sync::Arc, time::Duration};

use netaudit::{
    audit::{DnsReading, FRESH_AT_LEAST, Names, STALE, SeenName, UnreadableDns, read_dns},
    model::{NetnsCookie, Timestamp},
};
use proptest::prelude::*;

use super::message::{A, ASKED, Message};

const POD: NetnsCookie = NetnsCookie(101);
const OTHER: NetnsCookie = NetnsCookie(102);
const SERVER: &str = "10.96.0.10";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn t(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(1_000_000 + seconds)
}

fn told(names: &[&str], addresses: &[&str], seconds: u64) -> DnsReading {
    DnsReading {
        names: names.iter().map(|name| Arc::from(*name)).collect(),
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        ttl: Duration::from_secs(seconds),
    }
}

/// (name, fresh, asked, counts) of an address of the pod's.
fn of(names: &Names, at: i64) -> Vec<(String, bool, bool, bool)> {
    let seen = names.of(POD, ip("192.0.2.1"), t(at), |server| server == ip(SERVER));
    seen.into_iter().map(|it| (it.name.to_string(), it.is_fresh, it.is_asked, it.counts)).collect()
}

fn one(name: &str, fresh: bool, asked: bool, counts: bool) -> (String, bool, bool, bool) {
    (name.to_owned(), fresh, asked, counts)
}

#[test]
fn a_name_is_fresh_then_stale_then_forgotten() {
    let mut names = Names::default();
    names.learn(POD, ip(SERVER), t(10), &told(&["a.example"], &["192.0.2.1"], 60));
    assert_eq!(of(&names, 9), [], "it was not known then");
    assert_eq!(of(&names, 10), [one("a.example", true, true, true)]);
    assert_eq!(of(&names, 69), [one("a.example", true, true, true)]);
    assert_eq!(of(&names, 70), [one("a.example", false, true, false)]);
    assert_eq!(of(&names, 70 + 3_599), [one("a.example", false, true, false)]);
    assert_eq!(of(&names, 70 + 3_600), []);
    names.expire(t(70 + 3_599));
    assert_eq!((names.len(), names.counts().expired), ((1, 1), 0));
    names.expire(t(70 + 3_600));
    assert_eq!((names.len(), names.counts().expired), ((0, 0), 1));
    assert!(names.is_empty());
}

#[test]
fn an_answer_for_this_once_is_good_for_the_connect_that_follows() {
    let mut names = Names::default();
    names.learn(POD, ip(SERVER), t(0), &told(&["a.example"], &["192.0.2.1"], 0));
    let least = FRESH_AT_LEAST.as_secs() as i64;
    assert_eq!(of(&names, least - 1), [one("a.example", true, true, true)]);
    assert_eq!(of(&names, least), [one("a.example", false, true, false)]);
    assert!(STALE > FRESH_AT_LEAST);
}

#[test]
fn another_answer_makes_it_fresh_from_then_on_and_not_before() {
    let mut names = Names::default();
    let answer = told(&["a.example"], &["192.0.2.1"], 60);
    names.learn(POD, ip(SERVER), t(0), &answer);
    names.learn(POD, ip(SERVER), t(30), &answer);
    assert_eq!(of(&names, 80), [one("a.example", true, true, true)]);
    names.learn(POD, ip(SERVER), t(200), &answer);
    assert_eq!(of(&names, 150), [one("a.example", false, true, false)], "between the two it was stale");
    assert_eq!(of(&names, 259), [one("a.example", true, true, true)]);
    let seen = names.of(POD, ip("192.0.2.1"), t(230), |_| true);
    assert_eq!(seen[0].answered, t(200));
    // One that is good for less takes nothing from one that is good for more.
    names.learn(POD, ip(SERVER), t(210), &told(&["a.example"], &["192.0.2.1"], 5));
    assert_eq!(of(&names, 250), [one("a.example", true, true, true)]);
    assert_eq!(names.len(), (1, 1));
}

#[test]
fn all_names_of_an_address_are_kept_those_that_were_asked_for_first() {
    let mut names = Names::default();
    names.learn(POD, ip(SERVER), t(0), &told(&["old.example"], &["192.0.2.1"], 5));
    names.learn(POD, ip(SERVER), t(10), &told(&["www.example", "edge.cdn"], &["192.0.2.1", "192.0.2.2"], 60));
    names.learn(POD, ip(SERVER), t(20), &told(&["api.example", "edge.cdn"], &["192.0.2.1"], 60));
    assert_eq!(
        of(&names, 30),
        [
            one("api.example", true, true, true),
            one("www.example", true, true, true),
            one("old.example", false, true, false),
            // Policies do not go by what others stand for: nobody asked for it.
            one("edge.cdn", true, false, false),
        ]
    );
    // Until somebody does.
    names.learn(POD, ip(SERVER), t(31), &told(&["edge.cdn"], &["192.0.2.1"], 60));
    assert_eq!(of(&names, 32)[0], one("edge.cdn", true, true, true));
    assert_eq!(names.len(), (2, 6));
}

#[test]
fn names_are_for_the_namespace_that_asked_and_by_whom_it_asked() {
    let mut names = Names::default();
    names.learn(OTHER, ip(SERVER), t(0), &told(&["evil.example"], &["192.0.2.1"], 60));
    assert_eq!(of(&names, 1), [], "another pod's answer names nobody here");
    // The pod's own server says what the pod likes: told, and nothing that policies go by.
    names.learn(POD, ip("127.0.0.1"), t(0), &told(&["bank.example"], &["192.0.2.1"], 60));
    assert_eq!(of(&names, 1), [one("bank.example", true, true, false)]);
    // Both told it.
    names.learn(POD, ip(SERVER), t(2), &told(&["bank.example"], &["192.0.2.1"], 60));
    let both = [one("bank.example", true, true, true), one("bank.example", true, true, false)];
    assert_eq!(of(&names, 3), both);
}

#[test]
fn room_is_bounded_and_who_takes_most_gives_most() {
    let mut names = Names::default();
    names.learn(OTHER, ip(SERVER), t(0), &told(&["kept.example"], &["192.0.2.9"], 60));
    let address = |n: u32| IpAddr::from(n.to_be_bytes());
    for n in 0..10_000_u32 {
        let reading =
            DnsReading { addresses: [address(n)].into_iter().collect(), ..told(&["a.example"], &[], 60) };
        names.learn(POD, ip(SERVER), t(n.into()), &reading);
    }
    let (addresses, known) = names.len();
    assert!((1_500..=2_049).contains(&addresses) && known == addresses, "{addresses} {known}");
    assert_eq!(names.counts().evicted + known as u64, 10_001);
    assert_eq!(names.of(POD, address(9_999), t(9_999), |_| true).len(), 1, "the latest is kept");
    assert_eq!(names.of(OTHER, ip("192.0.2.9"), t(1), |_| true).len(), 1, "and what is others'");

    // Many namespaces at once.
    for n in 0..60_000_u32 {
        let reading =
            DnsReading { addresses: [address(n)].into_iter().collect(), ..told(&["a.example"], &[], 60) };
        names.learn(NetnsCookie(u64::from(n % 1_000)), ip(SERVER), t(10_000), &reading);
        if n % 20_000 == 0 {
            assert!(names.len().0 <= 32_768);
        }
    }

    // Many names of one address, each as long as can be.
    let mut names = Names::default();
    for n in 0..100 {
        names.learn(POD, ip(SERVER), t(n), &told(&[&format!("n{n}.example")], &["192.0.2.1"], 60));
    }
    assert_eq!((names.len(), names.counts().evicted), ((1, 16), 84));
    assert_eq!(of(&names, 99)[0].0, "n99.example");
    let long = "x".repeat(250);
    for n in 0..20_000_u32 {
        let reading = DnsReading {
            addresses: [address(n % 2_000)].into_iter().collect(),
            ..told(&[&format!("{n}{long}")], &[], 60)
        };
        names.learn(POD, ip(SERVER), t(100), &reading);
    }
    let (_, known) = names.len();
    assert!(known * 250 <= 2 << 20, "{known} long names");
}

#[test]
fn answers_count_once_each() {
    let mut names = Names::default();
    let good = Message::answer("a.example", A).address_of(&ASKED, "192.0.2.1", 60).0;
    names.learn(POD, ip(SERVER), t(0), &read_dns(&good, false).unwrap());
    names.learn(POD, ip(SERVER), t(0), &told(&["a.example"], &[], 0));
    assert_eq!((names.counts().named, names.counts().without_address), (1, 1));
    assert_eq!(read_dns(&good[..20], false), Err(UnreadableDns::Malformed));
}

/// Something that happens: who is told which name of which address when, and for how long it is good.
fn happenings() -> impl Strategy<Value = Vec<(u64, u8, u8, i64, u64)>> {
    prop::collection::vec((0..4_u64, 0..6_u8, 0..8_u8, 0..20_000_i64, 0..9_000_u64), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// A plain account of the same: all answers are kept, and asked each time.
    #[test]
    fn names_are_what_a_plain_list_of_answers_says(mut happened in happenings(), asked in 0..30_000_i64) {
        // Records come in the order of their times.
        happened.sort_by_key(|it| it.3);
        let mut names = Names::default();
        for (netns, name, address, at, seconds) in &happened {
            let reading = told(&[&format!("n{name}.example")], &[&format!("192.0.2.{address}")], *seconds);
            names.learn(NetnsCookie(*netns), ip(SERVER), t(*at), &reading);
        }
        for netns in 0..4_u64 {
            for address in 0..8_u8 {
                let answers: Vec<_> = happened.iter().filter(|it| it.0 == netns && it.2 == address).collect();
                let until = |it: &(u64, u8, u8, i64, u64)| it.3 + it.4.max(5) as i64;
                let seen = names.of(NetnsCookie(netns), ip(&format!("192.0.2.{address}")), t(asked), |_| true);
                for name in 0..6_u8 {
                    let of_name: Vec<_> = answers.iter().filter(|it| it.1 == name).collect();
                    let first = of_name.iter().map(|it| it.3).min();
                    let last = of_name.iter().map(|it| until(it)).max();
                    let known = first.is_some_and(|first| first <= asked) && last.is_some_and(|last| asked < last + 3_600);
                    let found: Option<&SeenName> = seen.iter().find(|it| *it.name == *format!("n{name}.example"));
                    prop_assert_eq!(found.is_some(), known);
                    // Of what is over nobody says that it was fresh; of what is not, that it is.
                    if let Some(found) = found {
                        let is_good = |it: &&&&(u64, u8, u8, i64, u64)| it.3 <= asked && asked < until(it);
                        let fresh = of_name.iter().filter(is_good).count() > 0;
                        let later = of_name.iter().any(|it| it.3 > asked);
                        prop_assert!(found.is_fresh == fresh || (fresh && later), "{:?} {}", found, fresh);
                    }
                }
            }
        }
    }
}
