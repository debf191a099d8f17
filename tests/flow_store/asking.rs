//! A filter finds exactly what it says, in the log and in files, and a plain look at every line agrees.

use std::net::IpAddr;

use ipnet::IpNet;
use netaudit::store::flows::{
    ask::{self, Among, Store},
    filter::Named,
};

use super::*;

/// Whether a line is asked for, as plainly as can be said.
fn is_asked(filter: &Filter, line: &Value) -> bool {
    let word = |pointer: &str| line.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let one_of = |asked: &[String], word: &str| asked.is_empty() || asked.iter().any(|it| it == word);
    let at: jiff::Timestamp = word("/time").parse().expect("a time");
    let at = Timestamp(i64::try_from(at.as_nanosecond()).expect("a time of this age"));
    let is_end = |end: &str| {
        let (namespace, pod, workload) = (
            word(&format!("/{end}/namespace")),
            word(&format!("/{end}/pod")),
            word(&format!("/{end}/workload")),
        );
        let named = |asked: &[Named], name: &str| {
            asked.is_empty()
                || asked
                    .iter()
                    .any(|it| it.name == name && it.namespace.as_deref().is_none_or(|it| it == namespace))
        };
        one_of(&filter.namespaces, namespace)
            && named(&filter.pods, pod)
            && named(&filter.workloads, workload)
    };
    let has_ends = !(filter.namespaces.is_empty() && filter.pods.is_empty() && filter.workloads.is_empty());
    let is_address = |text: &str| {
        text.parse::<IpAddr>().is_ok_and(|ip| filter.addresses.iter().any(|net| net.contains(&ip)))
    };
    let names = line["peer"]["names"].as_array().cloned().unwrap_or_default();
    let is_name = |name: &Value| {
        let name = name["name"].as_str().unwrap_or_default();
        filter.names.iter().any(|asked| match asked.strip_prefix("*.") {
            Some(parent) => name.ends_with(&format!(".{parent}")),
            None => asked == name,
        })
    };
    let texts = |pointer: &str| -> Vec<String> {
        let list = line.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
        list.iter().filter_map(|it| it.as_str().map(str::to_owned)).collect()
    };
    let lists = ["/rules", "/denied_by", "/passed_rules", "/peer_verdict/rules", "/peer_verdict/denied_by"];
    let is_policy = |text: &str| {
        filter.policies.iter().any(|asked| {
            let name = text.split_once('/').map_or("", |(_, name)| name);
            let name = name.split('#').next().unwrap_or_default();
            name == asked
        })
    };
    let finding = word("/finding");
    filter.from.is_none_or(|from| at >= from)
        && filter.until.is_none_or(|until| at < until)
        && one_of(&filter.directions, word("/direction"))
        && one_of(&filter.protocols, word("/protocol"))
        && one_of(&filter.verdicts, word("/verdict"))
        && one_of(&filter.outcomes, word("/outcome"))
        && one_of(&filter.processes, word("/actor/comm"))
        && (one_of(&filter.findings, finding) || (filter.findings == ["any"] && !finding.is_empty()))
        && (filter.ports.is_empty()
            || filter
                .ports
                .iter()
                .any(|range| line["port"].as_u64().is_some_and(|it| range.contains(&(it as u16)))))
        && (!has_ends || is_end("subject") || is_end("peer"))
        && (filter.addresses.is_empty()
            || ["/subject/ip", "/peer/ip", "/requested/ip"].iter().any(|place| is_address(word(place))))
        && (filter.names.is_empty() || names.iter().any(is_name))
        && (filter.policies.is_empty() || lists.iter().flat_map(|list| texts(list)).any(|it| is_policy(&it)))
}

fn filter(made: &Made, chance: &mut Chance) -> Filter {
    let mut filter = Filter::default();
    let time = |chance: &mut Chance| {
        let flow = &made.flows[chance.below(made.flows.len() as u64) as usize];
        Some(Timestamp(flow.observation.first().0.div_euclid(1_000) * 1_000))
    };
    let words = |chance: &mut Chance, of: &[&str]| vec![chance.one(of).to_owned()];
    for _ in 0..=chance.below(3) {
        match chance.below(14) {
            0 => filter.from = time(chance),
            1 => filter.until = time(chance),
            2 => filter.directions = words(chance, &["egress", "ingress"]),
            3 => filter.namespaces = words(chance, &["shop", "elsewhere"]),
            4 => {
                let named = |text: &str| text.parse::<Named>().expect("a name");
                filter.pods = vec![named(chance.one(&["a", "shop/b", "elsewhere/a", "nobody"]))];
            }
            5 => filter.workloads = vec![chance.one(&["a", "shop/b", "c"]).parse().expect("a name")],
            6 => {
                let nets = ["203.0.113.9/32", "10.0.0.0/30", "2001:db8::/32", "10.96.0.1/32", "192.0.2.1/32"];
                filter.addresses = vec![chance.one(&nets).parse::<IpNet>().expect("a range")];
            }
            7 => filter.ports = chance.one(&[vec![80..=80], vec![400..=6_000], vec![1..=2, 8_080..=8_080]]),
            8 => filter.verdicts = words(chance, &["allowed", "denied", "unknown"]),
            9 => filter.findings = words(chance, &["any", "suspected-block", "unenforced"]),
            10 => filter.outcomes = words(chance, &["established", "timeout"]),
            11 => filter.processes = words(chance, &["test", "other"]),
            12 => filter.names = words(chance, &["api.example.com", "*.example.org", "*.com", "example.com"]),
            _ => filter.policies = words(chance, &["shop/deny", "shop/den", "deny"]),
        }
    }
    filter
}

#[test]
fn a_filter_finds_what_it_says_and_nothing_else() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let made = Made::new(1_000);
    let (log, files, both) =
        (directory.path().join("log"), directory.path().join("rolled"), directory.path().join("both"));
    made.segments(&log, 400)?;
    rolled(&files, made.segments(&files, 400)?)?.commit()?;
    let first: Vec<_> = made.segments(&both, 400)?.into_iter().take(1).collect();
    rolled(&both, first)?.commit()?;
    let lines = made.lines()?;
    let mut chance = Chance(0x2545_f491_4f6c_dd1d);
    let (mut some, mut none) = (0, 0);
    for _ in 0..100 {
        let filter = filter(&made, &mut chance);
        let expected: Vec<Value> = lines.iter().filter(|line| is_asked(&filter, line)).cloned().collect();
        for store in [&log, &files, &both] {
            let (found, scanned) = found(store, &filter)?;
            assert_same(&found, &expected, &format!("{filter:?} in {}", store.display()));
            assert!(scanned.unreadable.is_empty(), "{scanned:?}");
        }
        *if expected.is_empty() { &mut none } else { &mut some } += 1;
    }
    assert!(some > 25 && none > 5, "{some} with, {none} without");
    Ok(())
}

#[test]
fn what_is_no_store_and_what_is_of_another_version_is_said() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let error = found(&directory.path().join("none"), &Filter::default()).err().context("no store")?;
    assert!(format!("{error:#}").contains("is no flow store"), "{error:#}");
    let made = Made::new(10);
    // The first version, without the subject's address, and one that is yet to come.
    for version in [1, 99] {
        let directory = tempfile::tempdir()?;
        let mut closed = made.segments(directory.path(), 10)?.remove(0);
        closed.mark.version = version;
        rolled(directory.path(), vec![closed])?.commit()?;
        let (lines, scanned) = found(directory.path(), &Filter::default())?;
        assert!(lines.is_empty());
        let said = &scanned.unreadable[0].1;
        assert!(said.contains(&format!("version {version} of the columns")), "{said}");
        assert!(said.contains("with the netaudit that wrote it"), "{said}");
    }
    Ok(())
}

#[test]
fn what_vanishes_while_one_looks_is_told() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut made = Made::new(200);
    for flow in &mut made.flows[100..] {
        flow.observation.at = flow.observation.at.plus(Duration::from_secs(2 * 3_600));
    }
    let segments = made.segments(directory.path(), 100)?;
    rolled(directory.path(), segments)?.commit()?;
    let files = files::list(directory.path(), &FLOWS)?;
    let last = files.iter().map(|file| file.hour).max().context("files")?;
    assert!(files.iter().any(|file| file.hour < last), "of several hours");
    let stores = [Store::from(directory.path().to_owned())];
    let scanned =
        ask::scan(&stores, Among::All, &Filter::default(), ask::Columns::All, &|_, _| {}, &mut |batch| {
            if batch.is_none() {
                for file in files.iter().filter(|file| file.hour == last) {
                    let _ = std::fs::remove_file(&file.path);
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
    assert!(scanned.vanished, "{scanned:?}");
    let [(path, why), ..] = scanned.unreadable.as_slice() else { panic!("{scanned:?}") };
    assert!(files.iter().any(|file| file.hour == last && file.path == *path) && why.contains("ask again"));
    Ok(())
}
