//! netaudit's account against the driver's, one by one.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ledger::{Count, Entry, Party},
    record::{Metrics, Record},
};

/// How far apart the two clocks' readings of one moment may be: the agent converts boot time to wall time.
const SLACK: u128 = 50_000_000;

/// How much later a server may take a datagram from its socket than the client has ended: it has to be scheduled first.
const RECEIVED_LATER: u128 = 3_000_000_000;

/// What both sides name a flow by.
type Key = (&'static str, Party, Party, &'static str, u16);

/// Compares the flow log with the ledger. Every difference is a line; none means that they agree.
pub fn flows(ledger: &[Entry], records: &[Record]) -> Vec<String> {
    let mut entries: BTreeMap<Key, Vec<(&Entry, usize)>> = BTreeMap::new();
    for entry in ledger {
        let key = (entry.direction, entry.subject.clone(), entry.peer.clone(), entry.protocol, entry.port);
        entries.entry(key).or_default().push((entry, 0));
    }
    let mut differences = Vec::new();
    for record in records {
        match claim(&mut entries, record) {
            Ok(entry) => differences.extend(
                fields(entry, record)
                    .into_iter()
                    .map(|field| format!("{}: {field}\n    {}", entry.attempt, record.line())),
            ),
            Err(why) => differences.push(format!("in the flow log, but {why}:\n    {}", record.line())),
        }
    }
    for ((direction, subject, peer, protocol, port), entries) in &entries {
        let missing = |entry: &Entry, got: usize, wanted: &str| {
            let said = [
                entry.rule_paths.join(", "),
                entry.denied_by.join(", "),
                entry.reason.unwrap_or("").to_owned(),
            ]
            .concat();
            format!(
                "{}: not in the flow log ({got} of {wanted}):\n    {direction} subject {subject} peer {peer} \
                 {protocol}/{port} {} {} {said}",
                entry.attempt, entry.outcome, entry.verdict,
            )
        };
        let folded = entries.iter().any(|(entry, _)| matches!(entry.count, Count::Folded(_)));
        if folded && entries.iter().all(|(_, got)| *got == 0) {
            differences.push(missing(entries[0].0, 0, "at least 1 over all attempts"));
        }
        for (entry, got) in entries {
            if let Count::Exactly(wanted) = entry.count
                && *got < wanted
            {
                differences.push(missing(entry, *got, &wanted.to_string()));
            }
        }
    }
    differences
}

/// How many records the ledger wants at least.
pub fn least(ledger: &[Entry]) -> usize {
    let mut folded = BTreeSet::new();
    let mut exact = 0;
    for entry in ledger {
        match entry.count {
            Count::Exactly(times) => exact += times,
            Count::Folded(_) => drop(folded.insert((&entry.subject, &entry.peer, entry.port))),
            Count::UpTo(_) => (),
        }
    }
    exact + folded.len()
}

/// Takes one place of the entry that the record belongs to.
fn claim<'e>(
    entries: &mut BTreeMap<Key, Vec<(&'e Entry, usize)>>,
    record: &Record,
) -> Result<&'e Entry, String> {
    let time = record.nanoseconds().map_err(|error| format!("{error:#}"))?;
    let subject = record.subject.party().map_err(|error| format!("{error:#}"))?;
    let peer = record.peer.party().map_err(|error| format!("{error:#}"))?;
    let direction = if record.direction == "egress" { "egress" } else { "ingress" };
    let protocol = if record.protocol == "UDP" { "UDP" } else { "TCP" };
    let Some(candidates) = entries.get_mut(&(direction, subject, peer, protocol, record.port)) else {
        return Err("nothing like it was driven".to_owned());
    };
    let later = |entry: &Entry| if entry.outcome == "received" { RECEIVED_LATER } else { SLACK };
    let mut at_that_time = candidates
        .iter_mut()
        .filter(|(entry, _)| entry.from <= time + SLACK && time <= entry.until + later(entry));
    let found = at_that_time.find(|(entry, got)| {
        let (Count::Exactly(most) | Count::Folded(most) | Count::UpTo(most)) = entry.count;
        *got < most && entry.outcome == record.outcome
    });
    match found {
        Some((entry, got)) => {
            *got += 1;
            Ok(entry)
        }
        None => Err("not driven so often, not at that time, or with another outcome".to_owned()),
    }
}

/// Fields in which the record says something else than the entry.
fn fields(entry: &Entry, record: &Record) -> Vec<String> {
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort();
        names.join(", ")
    };
    let requested = record.requested.as_ref().map(|address| address.socket().to_string()).unwrap_or_default();
    let pairs = [
        ("verdict", entry.verdict.to_owned(), record.verdict.clone()),
        ("rule_paths", sorted(&entry.rule_paths), sorted(&record.rule_paths)),
        ("denied_by", sorted(&entry.denied_by), sorted(&record.denied_by)),
        ("reason", entry.reason.unwrap_or_default().to_owned(), record.reason.clone().unwrap_or_default()),
        ("finding", entry.finding.unwrap_or_default().to_owned(), record.finding.clone().unwrap_or_default()),
        ("family", family(entry.v6), family(record.peer.ip.is_some_and(|ip| ip.is_ipv6()))),
        (
            "names",
            sorted(&entry.names),
            sorted(&record.peer.names.iter().map(|it| it.name.clone()).collect::<Vec<_>>()),
        ),
        ("requested", entry.requested.map(|address| address.to_string()).unwrap_or_default(), requested),
    ];
    pairs
        .into_iter()
        .filter(|(_, expected, got)| expected != got)
        .map(|(field, expected, got)| format!("{field}: expected {expected:?}, got {got:?}"))
        .collect()
}

fn family(v6: bool) -> String {
    if v6 { "IPv6" } else { "IPv4" }.to_owned()
}

/// One rule's usage: `namespace/policy path`, and how often it matched.
pub type Usage = BTreeMap<String, u64>;

/// The usage that the metrics tell.
pub fn usage(metrics: &Metrics) -> Usage {
    let key = |labels: &BTreeMap<String, String>| {
        ["namespace", "networkpolicy", "rule", "direction"]
            .map(|name| labels.get(name).cloned().unwrap_or_default())
    };
    let paths: BTreeMap<_, _> = metrics
        .named("netaudit_rule_info")
        .map(|sample| (key(&sample.labels), sample.labels.get("path").cloned().unwrap_or_default()))
        .collect();
    metrics
        .named("netaudit_rule_matches_total")
        .map(|sample| {
            let key = key(&sample.labels);
            let path = paths.get(&key).map_or("(no netaudit_rule_info)", String::as_str);
            (format!("{}/{} {path}", key[0], key[1]), sample.value as u64)
        })
        .collect()
}

/// Compares counters with the ledger: matches of every rule, violations, losses.
pub fn counters(ledger: &[Entry], records: &[Record], metrics: &Metrics) -> Vec<String> {
    let mut expected = Usage::new();
    for entry in ledger {
        let Count::Exactly(times) = entry.count else { continue };
        for path in &entry.rule_paths {
            let rule = path.split('.').next().unwrap_or(path);
            *expected.entry(rule.to_owned()).or_default() += times as u64;
        }
    }
    let got = usage(metrics);
    let mut differences = Vec::new();
    for (rule, times) in &expected {
        let seen = got.get(rule).copied();
        if seen != Some(*times) {
            differences
                .push(format!("netaudit_rule_matches_total of {rule}: expected {times}, got {seen:?}"));
        }
    }
    for (rule, times) in &got {
        if !expected.contains_key(rule) && *times != 0 {
            differences.push(format!("netaudit_rule_matches_total of {rule}: expected 0, got {times}"));
        }
    }
    let denied = records.iter().filter(|record| record.verdict == "denied").count();
    // Our own last requests came after the scrape had been counted.
    let own: usize = ledger
        .iter()
        .map(|entry| match entry.count {
            Count::UpTo(most) => most,
            Count::Exactly(_) | Count::Folded(_) => 0,
        })
        .sum();
    let sums = [
        ("netaudit_violations_total", denied..=denied),
        ("netaudit_records_lost_total", 0..=0),
        ("netaudit_flows_total", records.len().saturating_sub(own)..=records.len()),
    ];
    for (name, expected) in sums {
        let got = metrics.sum(name);
        if !expected.contains(&(got as usize)) {
            differences.push(format!("sum of {name}: expected {expected:?}, got {got}"));
        }
    }
    differences
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::{
        super::batchivo::{OPEN, by, no_ingress},
        super::ledger::Expected,
        super::record::Name,
        *,
    };

    const SECOND: Duration = Duration::from_secs(1);

    /// Two connections by a pod to the backend, which its policies deny, driven in the first second.
    fn ledger() -> Vec<Entry> {
        let (client, backend) =
            (Party::Pod("shop/client".to_owned()), Party::Pod("batchivo/backend".to_owned()));
        Expected::tcp(client, backend, 8000).egress(OPEN).ingress(no_ingress("backend")).entries(
            "test",
            SystemTime::UNIX_EPOCH,
            SystemTime::UNIX_EPOCH + SECOND,
        )
    }

    fn record(direction: &str) -> Record {
        let (client, backend) = (
            r#"{"kind": "pod", "namespace": "shop", "pod": "client", "ip": "10.0.0.1"}"#,
            r#"{"kind": "pod", "namespace": "batchivo", "pod": "backend", "ip": "10.0.0.2"}"#,
        );
        let (subject, peer, rest) = match direction {
            "egress" => (
                client,
                backend,
                r#""outcome": "established", "verdict": "allowed", "reason": "not isolated""#,
            ),
            _ => (
                backend,
                client,
                r#""outcome": "accepted", "verdict": "denied", "finding": "unenforced", "denied_by":
                   ["NetworkPolicy/batchivo/backend-policy", "NetworkPolicy/batchivo/default-deny-all"]"#,
            ),
        };
        serde_json::from_str(&format!(
            r#"{{"time": "1970-01-01T00:00:00.5Z", "flow_id": "x-1", "direction": "{direction}", "subject": {subject},
                "peer": {peer}, "protocol": "TCP", "port": 8000, "actor": {{"pid": 1, "comm": "curl"}}, {rest}}}"#
        ))
        .unwrap()
    }

    fn differences(change: impl Fn(&mut Vec<Record>)) -> Vec<String> {
        let mut records = vec![record("egress"), record("ingress")];
        change(&mut records);
        flows(&ledger(), &records)
    }

    #[test]
    fn equal_accounts_have_no_difference() {
        assert_eq!(differences(|_| ()), Vec::<String>::new());
    }

    #[test]
    fn each_kind_of_difference_is_found() {
        let one = |what: &str, change: &dyn Fn(&mut Vec<Record>)| {
            let found = differences(change);
            assert_eq!(found.len(), 1, "{what}: {found:?}");
            assert!(found[0].contains(what), "{what}: {found:?}");
        };
        one("not in the flow log", &|records| drop(records.pop()));
        one("not driven so often", &|records| records.push(record("egress")));
        one("verdict", &|records| records[0].verdict = "unknown".to_owned());
        one("reason", &|records| records[0].reason = Some("own node".to_owned()));
        one("rule_paths", &|records| records[0].rule_paths.push("batchivo/x egress[0]".to_owned()));
        one("denied_by", &|records| drop(records[1].denied_by.pop()));
        one("finding", &|records| records[1].finding = None);
        one("names", &|records| {
            records[0].peer.names.push(Name { name: "api.brevo.com".to_owned() });
        });
        one("family", &|records| records[0].peer.ip = Some("fd00::1".parse().unwrap()));
        one("nothing like it was driven", &|records| {
            records.push(Record { port: 8001, ..record("egress") });
        });
        // Another time or outcome leaves one too many on each side.
        assert_eq!(differences(|records| records[0].time = "1970-01-01T00:00:09Z".to_owned()).len(), 2);
        assert_eq!(differences(|records| records[0].outcome = "refused".to_owned()).len(), 2);
    }

    #[test]
    fn folded_datagrams_want_one_and_bear_no_more_than_were_sent() {
        let (client, dns) = (Party::Pod("shop/client".to_owned()), Party::Pod("batchivo/backend".to_owned()));
        let ledger = Expected::udp(client, dns, 8000).ingress(OPEN).times(2).entries(
            "test",
            SystemTime::UNIX_EPOCH,
            SystemTime::UNIX_EPOCH + SECOND,
        );
        let received = || Record {
            protocol: "UDP".to_owned(),
            outcome: "received".to_owned(),
            verdict: "allowed".to_owned(),
            reason: Some("not isolated".to_owned()),
            denied_by: Vec::new(),
            finding: None,
            ..record("ingress")
        };
        for (times, wanted) in [(0, 1), (1, 0), (2, 0), (3, 1)] {
            let records: Vec<Record> = (0..times).map(|_| received()).collect();
            assert_eq!(flows(&ledger, &records).len(), wanted, "{times} records");
        }
    }

    #[test]
    fn counters_are_compared_with_what_was_driven() {
        let (backend, store) =
            (Party::Pod("batchivo/backend".to_owned()), Party::Pod("batchivo/redis".to_owned()));
        let ledger = Expected::tcp(backend, store, 6379)
            .egress(by(&["backend-policy egress[1].to[0].ports[0]"]))
            .times(2)
            .entries("test", SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + SECOND);
        let labels = r#"kind="NetworkPolicy",namespace="batchivo",networkpolicy="backend-policy",direction="egress",rule="00ff""#;
        let scrape = |matches: u32, lost: u32| {
            Metrics::parse(&format!(
                "netaudit_rule_info{{{labels},path=\"egress[1]\"}} 1\nnetaudit_rule_matches_total{{{labels}}} {matches}\n\
                 netaudit_records_lost_total{{stage=\"ring\"}} {lost}\n"
            ))
            .unwrap()
        };
        assert_eq!(counters(&ledger, &[], &scrape(2, 0)), Vec::<String>::new());
        assert_eq!(counters(&ledger, &[], &scrape(3, 0)).len(), 1);
        assert_eq!(counters(&ledger, &[], &scrape(2, 1)).len(), 1);
        assert_eq!(usage(&scrape(2, 0))["batchivo/backend-policy egress[1]"], 2);
    }
}
