//! What each question's answer must be, reckoned from the flows as they were told: nothing of the store is read for it.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use netaudit::audit::{RuleKey, usage::Row};
use serde_json::{Value, json};

use super::fleet::{Fleet, Told, WINDOW};

/// The rows of an answer, in order.
pub type Answer = Vec<Vec<Value>>;

/// A flow in the window, or one of its rules or names.
#[derive(Clone)]
struct Of<'a> {
    told: &'a Told,
    /// The rule or name.
    part: Value,
    is_sole: bool,
}

/// What is summed up of a group of flows.
#[derive(Default)]
struct Sums {
    flows: u64,
    passed: u64,
    sole: u64,
    surely: u64,
    addresses: BTreeSet<String>,
    ports: BTreeSet<String>,
    workloads: BTreeSet<String>,
    nodes: BTreeSet<&'static str>,
    paths: BTreeSet<String>,
    first: String,
    latest: String,
}

/// To the microsecond, which is what is stored.
fn micros(time: &Value) -> String {
    time.as_str().map_or_else(String::new, |time| format!("{}Z", &time[..26]))
}

fn time(line: &Value) -> String {
    micros(&line["time"])
}

fn last_time(line: &Value) -> Value {
    line["last_time"].is_string().then(|| micros(&line["last_time"])).into()
}

fn count(line: &Value) -> u64 {
    line["count"].as_u64().unwrap_or(1)
}

fn flows(fleet: &Fleet) -> Vec<&Told> {
    let [since, until] = WINDOW.map(|time| format!("{}.000000Z", time.replace(' ', "T")));
    fleet.told.iter().filter(|told| (&since..&until).contains(&&time(&told.line))).collect()
}

fn whole<'a>(told: &'a Told) -> Of<'a> {
    Of { told, part: Value::Null, is_sole: false }
}

/// The flows one by one for each rule.
fn by_rule<'a>(told: &'a Told) -> Vec<Of<'a>> {
    let list = |name: &str| told.line[name].as_array().cloned().unwrap_or_default();
    let (rules, paths) = (list("rules"), list("rule_paths"));
    let is_sole = rules.len() == 1;
    rules.into_iter().zip(paths).map(|pair| Of { told, part: json!([pair.0, pair.1]), is_sole }).collect()
}

fn by_name<'a>(told: &'a Told) -> Vec<Of<'a>> {
    let names = told.line["peer"]["names"].as_array().cloned().unwrap_or_default();
    names.into_iter().map(|part| Of { told, part, is_sole: false }).collect()
}

fn grouped<'a>(
    all: impl IntoIterator<Item = Of<'a>>,
    key: impl Fn(&Of<'a>) -> Value,
) -> Vec<(Vec<Value>, Sums)> {
    let mut groups: BTreeMap<String, (Vec<Value>, Sums)> = BTreeMap::new();
    for of in all {
        let key = key(&of);
        let (_, sums) = groups
            .entry(key.to_string())
            .or_insert_with(|| (key.as_array().cloned().unwrap_or_default(), Sums::default()));
        sums.add(&of);
    }
    groups.into_values().collect()
}

impl Sums {
    fn add(&mut self, of: &Of<'_>) {
        let line = &of.told.line;
        let (count, begun) = (count(line), time(line));
        self.flows += count;
        self.passed += if line["reach"] == "reached" { count } else { 0 };
        self.sole += if of.is_sole { count } else { 0 };
        self.surely += if line["maybe_repeated"] == true { 0 } else { count };
        self.addresses.insert(line["peer"]["ip"].to_string());
        self.ports.insert(line["port"].to_string());
        self.workloads.insert(format!("{}/{}", line["subject"]["namespace"], line["subject"]["workload"]));
        self.nodes.insert(of.told.node);
        self.paths.extend(of.part[1].as_str().map(str::to_owned));
        let latest = last_time(line).as_str().map_or_else(|| begun.clone(), str::to_owned);
        self.latest = latest.max(std::mem::take(&mut self.latest));
        if self.first.is_empty() || begun < self.first {
            self.first = begun;
        }
    }
}

fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Null, Value::Null) => Ordering::Equal,
        (Value::Null, _) => Ordering::Greater,
        (_, Value::Null) => Ordering::Less,
        (Value::Number(a), Value::Number(b)) => a.as_u64().cmp(&b.as_u64()),
        _ => a.to_string().cmp(&b.to_string()),
    }
}

/// Puts rows in order by these columns, of which those that are negative go down; no value comes last. `first` rows at most.
fn ordered(mut rows: Answer, by: &[(usize, bool)], first: usize) -> Answer {
    let order = |a: &Vec<Value>, b: &Vec<Value>| {
        by.iter().fold(Ordering::Equal, |so_far, (column, down)| {
            let this = compare(&a[*column], &b[*column]);
            so_far.then(if *down { this.reverse() } else { this })
        })
    };
    rows.sort_by(order);
    rows.truncate(first);
    rows
}

const ALL: usize = usize::MAX;

fn up(columns: &[usize]) -> Vec<(usize, bool)> {
    columns.iter().map(|column| (*column, false)).collect()
}

fn most_first(flows: usize, columns: &[usize]) -> Vec<(usize, bool)> {
    [vec![(flows, true)], up(columns)].concat()
}

/// (source, destination): the subject is the one or the other.
fn ends(line: &Value) -> [&Value; 2] {
    let (subject, peer) = (&line["subject"], &line["peer"]);
    if line["direction"] == "egress" { [subject, peer] } else { [peer, subject] }
}

fn row<const N: usize>(key: Vec<Value>, sums: [Value; N]) -> Vec<Value> {
    key.into_iter().chain(sums).collect()
}

/// The answers by question.
pub fn all(fleet: &Fleet) -> BTreeMap<&'static str, Answer> {
    BTreeMap::from([
        ("violations", violations(fleet)),
        ("top_denied", top_denied(fleet)),
        ("top_talkers", top_talkers(fleet)),
        ("rule_use", rule_use(fleet)),
        ("unused_rules", unused_rules(fleet)),
        ("address_history", address_history(fleet)),
        ("pod_timeline", pod_timeline(fleet)),
        ("policy_history", fleet.policy_history.clone()),
        ("names_of_addresses", names_of_addresses(fleet)),
    ])
}

fn denied(fleet: &Fleet) -> impl Iterator<Item = Of<'_>> {
    flows(fleet).into_iter().filter(|told| told.line["verdict"] == "denied").map(whole)
}

fn violations(fleet: &Fleet) -> Answer {
    let groups = grouped(denied(fleet), |of| {
        let line = &of.told.line;
        let [source, destination] = ends(line);
        let outside = if line["peer"]["kind"] == "external" { &line["peer"]["ip"] } else { &Value::Null };
        json!([
            line["direction"],
            source["kind"],
            source["namespace"],
            source["workload"],
            destination["kind"],
            destination["namespace"],
            destination["workload"],
            outside,
            line["protocol"],
            line["port"],
            line["denied_by"][0],
            line["finding"],
            line["finding_cause"]
        ])
    });
    let rows = groups
        .into_iter()
        .map(|(key, sums)| row(key, [sums.flows.into(), sums.first.into(), sums.latest.into()]));
    ordered(rows.collect(), &most_first(13, &[0, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12]), ALL)
}

fn top_denied(fleet: &Fleet) -> Answer {
    let groups = grouped(denied(fleet), |of| {
        let line = &of.told.line;
        json!([line["subject"]["namespace"], line["subject"]["workload"], line["direction"]])
    });
    let rows = groups.into_iter().map(|(key, sums)| {
        let sizes = [sums.addresses.len(), sums.ports.len()].map(Value::from);
        let [addresses, ports] = sizes;
        row(key, [sums.flows.into(), sums.passed.into(), addresses, ports, sums.latest.into()])
    });
    let rows: Answer = rows.collect();
    assert!(rows.len() > 20, "too few workloads to tell whether the list ends after 20");
    ordered(rows, &most_first(3, &[0, 1, 2]), 20)
}

fn top_talkers(fleet: &Fleet) -> Answer {
    let once = flows(fleet)
        .into_iter()
        .filter(|told| told.line["direction"] == "egress" || told.line["peer"]["kind"] != "pod");
    let named = |end: &Value| -> Value {
        let names = [&end["workload"], &end["ip"], &end["kind"]];
        names.into_iter().find(|name| name.is_string()).cloned().unwrap_or_default()
    };
    let groups = grouped(once.map(whole), |of| {
        let [source, destination] = ends(&of.told.line);
        json!([source["namespace"], named(source), destination["namespace"], named(destination)])
    });
    let rows = groups.into_iter().map(|(key, sums)| row(key, [sums.flows.into(), sums.ports.len().into()]));
    let rows: Answer = rows.collect();
    assert!(rows.len() > 20, "too few pairs to tell whether the list ends after 20");
    ordered(rows, &most_first(4, &[0, 1, 2, 3]), 20)
}

fn rule_use(fleet: &Fleet) -> Answer {
    let groups = grouped(flows(fleet).into_iter().flat_map(by_rule), |of| {
        json!([of.part[0], of.told.line["direction"], of.told.line["verdict"]])
    });
    let rows = groups.into_iter().map(|(key, sums)| {
        row(
            key,
            [
                sums.paths.last().cloned().into(),
                sums.flows.into(),
                sums.sole.into(),
                sums.surely.into(),
                sums.workloads.len().into(),
                sums.nodes.len().into(),
                sums.first.into(),
                sums.latest.into(),
            ],
        )
    });
    ordered(rows.collect(), &up(&[0, 1, 2]), ALL)
}

fn unused_rules(fleet: &Fleet) -> Answer {
    let mut newest: BTreeMap<&RuleKey, &Row> = BTreeMap::new();
    for (key, row) in &fleet.rows.rules {
        let known = newest.entry(&key.rule).or_insert(row);
        if row.until > known.until {
            *known = row;
        }
    }
    let used: BTreeSet<(String, String)> = flows(fleet)
        .into_iter()
        .flat_map(by_rule)
        .map(|of| (of.part[0].to_string(), of.told.line["direction"].to_string()))
        .collect();
    let rows = newest.into_iter().filter(|(_, row)| row.current).map(|(key, row)| -> Vec<Value> {
        let rule = format!("{}#{:016x}", key.policy, key.hash);
        vec![key.policy.to_string().into(), key.direction.as_str().into(), rule.into(), (*row.summary).into()]
    });
    let unused = rows.filter(|row| !used.contains(&(row[2].to_string(), row[1].to_string())));
    let unused = ordered(unused.collect(), &up(&[0, 1, 2]), ALL);
    // Neither the rule of the policy that went away, nor one that is used.
    let policies: Vec<&Value> = unused.iter().map(|row| &row[0]).collect();
    assert_eq!(policies, ["NetworkPolicy/shop/web"], "{unused:?}");
    unused
}

fn address_history(fleet: &Fleet) -> Answer {
    let both = flows(fleet).into_iter().filter(|told| told.line["peer"]["kind"] != "loopback");
    let ends = both.flat_map(|told| ["subject", "peer"].map(|end| Of { part: end.into(), ..whole(told) }));
    let known = ends.filter(|of| of.told.line[of.part.as_str().unwrap_or_default()]["ip"].is_string());
    let groups = grouped(known, |of| {
        let end = &of.told.line[of.part.as_str().unwrap_or_default()];
        json!([
            end["ip"],
            end["kind"],
            end["namespace"],
            end["pod"],
            end["uid"],
            end["workload"],
            end["node"]
        ])
    });
    let rows = groups
        .into_iter()
        .map(|(key, sums)| row(key, [sums.first.into(), sums.latest.into(), sums.flows.into()]));
    let rows = ordered(rows.collect(), &up(&[0, 7, 1, 4]), ALL);
    let owners: Vec<&Value> = rows.iter().filter(|row| row[0] == "10.0.0.2").map(|row| &row[3]).collect();
    assert_eq!(owners, ["db-0", "db-1"], "an address had two owners, one after the other");
    let of_client = rows.iter().find(|row| row[0] == "10.0.0.100");
    assert_eq!(of_client.map(|row| &row[3]), Some(&json!("client0-0")), "who only asks has an address too");
    rows
}

fn pod_timeline(fleet: &Fleet) -> Answer {
    let is = |end: &Value| end["namespace"] == "shop" && end["pod"] == "web-0";
    let mut of_pod: Vec<&Told> =
        flows(fleet).into_iter().filter(|told| is(&told.line["subject"]) || is(&told.line["peer"])).collect();
    let sequence = |line: &Value| -> (String, u64) {
        let id = line["flow_id"].as_str().unwrap_or_default();
        let (run, number) = id.rsplit_once('-').expect("a run and a number");
        (run.to_owned(), number.parse().expect("a number"))
    };
    of_pod.sort_by_key(|told| (time(&told.line), sequence(&told.line)));
    of_pod
        .into_iter()
        .map(|told| {
            let line = &told.line;
            let (subject, peer) = (&line["subject"], &line["peer"]);
            let row = json!([
                time(line),
                last_time(line),
                count(line),
                line["flow_id"],
                line["direction"],
                subject["namespace"],
                subject["pod"],
                subject["ip"],
                line["actor"]["comm"],
                peer["kind"],
                peer["namespace"],
                peer["pod"],
                peer["ip"],
                line["protocol"],
                line["port"],
                line["verdict"],
                line["denied_by"][0],
                line["outcome"],
                line["finding"]
            ]);
            row.as_array().cloned().unwrap_or_default()
        })
        .collect()
}

fn names_of_addresses(fleet: &Fleet) -> Answer {
    let groups = grouped(flows(fleet).into_iter().flat_map(by_name), |of| {
        let line = &of.told.line;
        let subject = &line["subject"];
        json!([
            of.part["name"],
            line["peer"]["ip"],
            of.part["asked"],
            subject["namespace"],
            subject["workload"],
            line["protocol"],
            line["port"]
        ])
    });
    let rows = groups
        .into_iter()
        .map(|(key, sums)| row(key, [sums.flows.into(), sums.first.into(), sums.latest.into()]));
    ordered(rows.collect(), &up(&[0, 1, 2, 3, 4, 5, 6]), ALL)
}
