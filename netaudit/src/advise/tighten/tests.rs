//! What goes and what stays, of one policy.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{Advice, Change, Needs, Options, Uses, advice::OfElement, advise, narrow, uses::other_end};
use crate::{
    advise::{
        Names,
        what_if::{Judged, Tally},
    },
    audit::{
        RuleKey,
        usage::{self, Evidence, Histories, History, Schedule, Slice, Touched, judge},
    },
    model::{Cause, Decision, Denial, Direction, Protocol, Timestamp, Verdict},
    policy::{
        CompiledPolicy,
        declared::{NetworkPolicy, Peer, Port, PortRef, Rule, Selector},
    },
};

const DAY: Duration = Duration::from_secs(24 * 3_600);
const EVIDENCE: Evidence = Evidence { window: DAY, coverage: 0.999 };

fn port(protocol: &str, first: i64, last: Option<i64>) -> Port {
    Port {
        protocol: Some(protocol.to_owned()),
        port: Some(PortRef::Number(first)),
        end_port: last,
        invalid: None,
    }
}

fn peer(app: &str) -> Peer {
    let match_labels = vec![("app".to_owned(), app.to_owned())];
    Peer { pod_selector: Some(Selector { match_labels, ..Selector::default() }), ..Peer::default() }
}

fn policy(egress: Vec<Rule>) -> NetworkPolicy {
    NetworkPolicy {
        namespace: "shop".into(),
        name: "web".into(),
        pod_selector: Selector::default(),
        policy_types: vec!["Egress".to_owned()],
        invalid_types: None,
        ingress: Vec::new(),
        egress,
        unknown_fields: Vec::new(),
    }
}

/// What a day says in which all was watched: of each rule when it was used, and of each of its elements.
fn histories(policy: &NetworkPolicy, used: &[&[bool]]) -> Histories {
    let compiled = CompiledPolicy::compile(policy);
    let now = Timestamp(0).plus(DAY * 2);
    let uses = |is_used: bool| match is_used {
        true => usage::Uses { matches: 1, first: Some(now), last: Some(now) },
        false => usage::Uses::default(),
    };
    let slice = Slice {
        node: 0,
        from: Timestamp(0),
        until: now,
        watched: DAY * 2,
        selected: DAY * 2,
        observed: DAY * 2,
        lost: false,
        unjudged: false,
    };
    let of = |(rule, used): (&crate::policy::Rule, &&[bool])| {
        let elements: BTreeMap<_, _> = rule
            .elements
            .iter()
            .zip(*used)
            .map(|((hash, it), is_used)| (*hash, (it.clone(), uses(*is_used))))
            .collect();
        let is_used = used.contains(&true);
        History {
            key: RuleKey::from(&*rule.id),
            index: rule.id.index,
            summary: "".into(),
            current: true,
            observable: rule.is_observable(),
            schedule: Schedule::default(),
            possible: true,
            uses: uses(is_used),
            sole: usage::Uses::default(),
            elements,
            touched: Touched::default(),
            slices: vec![slice],
        }
    };
    let rules = compiled.rules(Direction::Egress).iter().zip(used).map(of).collect();
    Histories { told: Some(now), rules, together: BTreeMap::new() }
}

fn advice(policy: &NetworkPolicy, histories: &Histories) -> Advice {
    let options = Options {
        evidence: EVIDENCE,
        keep_ranges: false,
        narrow_named: false,
        add_ports: false,
        uses_sctp: false,
    };
    let judged = judge(histories, &EVIDENCE);
    advise(std::slice::from_ref(policy), histories, &judged, &Uses::default(), &Names::new(), &options)
}

fn paths(advice: &Advice) -> Vec<String> {
    advice[0].proposals.iter().map(|it| it.change.path()).collect()
}

/// Nothing sees SCTP: neither the rule goes that names it, nor whom it is for.
#[test]
fn what_may_be_for_sctp_stays() {
    let ports = vec![port("TCP", 80, None), port("SCTP", 3868, None), port("UDP", 53, None)];
    let rule = Rule { peers: vec![peer("a"), peer("b")], ports, ..Rule::default() };
    let policy = policy(vec![rule]);
    // Of a rule that nobody was seen to use, the ports go at which it would have been seen.
    let unused = advice(&policy, &histories(&policy, &[&[false; 5]]));
    assert_eq!(paths(&unused), ["egress[0].ports[0]", "egress[0].ports[2]"]);
    assert!(unused[0].rules[0].kept.as_ref().is_some_and(|it| it.contains("SCTP")));
    let used = advice(&policy, &histories(&policy, &[&[true, false, true, false, false]]));
    assert_eq!(paths(&used), ["egress[0].ports[2]"]);
    // One that others make redundant is so for what is seen only.
    let mut histories = histories(&policy, &[&[true, true, true, false, true]]);
    let mut other = histories.rules[0].clone();
    other.key.hash ^= 1;
    let both = [&histories.rules[0].key, &other.key].into_iter().cloned().collect();
    other.sole.last = histories.told;
    histories.rules.push(other);
    histories.together.insert(both, usage::Uses::default());
    assert_eq!(paths(&advice(&policy, &histories)), Vec::<String>::new());
    // Without SCTP it goes.
    let mut plain = policy.clone();
    plain.egress[0].ports.remove(1);
    let unused = advice(&plain, &self::histories(&plain, &[&[false; 4]]));
    assert!(matches!(unused[0].proposals[0].change, Change::RemoveRule { .. }));
}

#[test]
fn ports_that_only_recorded_flows_went_to_stay() {
    let rule = Rule { ports: vec![port("TCP", 1, Some(65_535))], ..Rule::default() };
    let policy = policy(vec![rule.clone()]);
    let (compiled, histories) = (CompiledPolicy::compile(&policy), histories(&policy, &[&[true]]));
    let compiled = &compiled.rules(Direction::Egress)[0];
    let (hash, element) = &compiled.elements[0];
    let of = OfElement {
        declared: &rule,
        rule: compiled,
        hash: *hash,
        element,
        history: &histories.rules[0],
        coverage: 1.0,
        since: Timestamp(0),
        part: None,
    };
    let mut needs = Needs::default();
    needs.ports.extend([(Protocol::Tcp, 81), (Protocol::Tcp, 9000)]);
    assert_eq!(narrow::ports(&of, &[80], &needs), Ok(vec![(80, 81), (9000, 9000)]));
    needs.ports.extend((1..=65_535).map(|it| (Protocol::Tcp, it)));
    assert!(narrow::ports(&of, &[80], &needs).is_err());
    assert!(narrow::ports_of(&[(Protocol::Udp, 53)], &needs).is_err());
}

/// What a pod tries in vain needs no rule of whom it tries it with.
#[test]
fn a_connection_that_its_own_end_denies_needs_no_rule_of_the_other() {
    let denied = Verdict::plain(Decision::Denied(Denial::Isolation([].into())));
    let allowed = Arc::new(Verdict::plain(Decision::Allowed(Cause::NotIsolated)));
    let judged = |own: &Verdict| Judged { own: Arc::new(own.clone()), other: Some(allowed.clone()) };
    let tally = Tally { flows: 3, ..Tally::default() };
    assert!(other_end(&judged(&denied), &tally).is_none());
    assert!(other_end(&judged(&allowed), &tally).is_some());
    let passed = Tally { reached: 1, ..tally };
    assert!(other_end(&judged(&denied), &passed).is_some(), "nobody enforces it");
}
