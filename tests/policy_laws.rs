//! Laws that hold for every set of policies. What the API's text says of each flow is in `policy/`.

use std::{net::IpAddr, sync::Arc};

use netaudit::{
    cluster::{Broken, Cluster, Kind, Namespace, Object, ObjectKey, Party, Pod, Workload},
    model::{Cause, Decision, Direction, Gap, Protocol, Timestamp, Verdict},
    policy::{
        NamedPort,
        declared::{Expression, IpBlock, NetworkPolicy, Peer, Port, PortRef, Rule, Selector},
    },
};
use proptest::{prelude::*, sample::select};

const NOW: Timestamp = Timestamp::from_seconds(1_000);
const NAMESPACES: [&str; 3] = ["n0", "n1", "n2"];
const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const PORTS: [u16; 4] = [80, 81, 443, 8080];
const OUTSIDE: [&str; 4] = ["10.0.1.9", "10.9.9.9", "198.51.100.1", "2001:db8::9"];

/// Everything that a verdict depends on.
#[derive(Clone, Debug)]
struct World {
    namespaces: Vec<Namespace>,
    pods: Vec<Pod>,
    policies: Vec<NetworkPolicy>,
}

fn labels() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::btree_map(select(&["app", "tier"][..]), select(&["a", "b", "c"][..]), 0..=2)
        .prop_map(|map| map.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

fn expression() -> impl Strategy<Value = Expression> {
    let values = prop::collection::vec(select(&["a", "b"][..]), 1..=2);
    (select(&["app", "tier"][..]), select(&["In", "NotIn", "Exists", "DoesNotExist"][..]), values).prop_map(
        |(key, operator, values)| {
            let takes = operator.ends_with("In");
            let values = if takes { values.into_iter().map(str::to_owned).collect() } else { Vec::new() };
            Expression { key: key.to_owned(), operator: operator.to_owned(), values }
        },
    )
}

fn selector() -> impl Strategy<Value = Selector> {
    let expressions = prop::collection::vec(expression(), 0..=2);
    (prop_oneof![2 => Just(Vec::new()), 3 => labels()], expressions, any::<bool>()).prop_map(
        |(match_labels, expressions, plain)| Selector {
            match_labels,
            match_expressions: if plain { Vec::new() } else { expressions },
            invalid: Vec::new(),
        },
    )
}

fn peer() -> impl Strategy<Value = Peer> {
    let block = prop_oneof![
        Just(("10.0.0.0/8", vec![])),
        Just(("10.0.0.0/16", vec!["10.0.1.0/24"])),
        Just(("0.0.0.0/0", vec!["10.0.0.0/8", "198.51.100.0/24"])),
        Just(("::/0", vec!["2001:db8::/64"])),
        Just(("::ffff:10.0.0.0/112", vec![])),
    ]
    .prop_map(|(cidr, except)| IpBlock {
        cidr: cidr.to_owned(),
        except: except.into_iter().map(str::to_owned).collect(),
    });
    prop_oneof![
        3 => selector().prop_map(|it| Peer { pod_selector: Some(it), ..Peer::default() }),
        2 => selector().prop_map(|it| Peer { namespace_selector: Some(it), ..Peer::default() }),
        2 => (selector(), selector()).prop_map(|(namespaces, pods)| Peer {
            namespace_selector: Some(namespaces),
            pod_selector: Some(pods),
            ..Peer::default()
        }),
        2 => block.prop_map(|it| Peer { ip_block: Some(it), ..Peer::default() }),
    ]
}

fn port() -> impl Strategy<Value = Port> {
    let protocol = select(&[None, Some("TCP"), Some("UDP")][..]);
    let test = prop_oneof![
        Just((None, None)),
        Just((Some(PortRef::Number(80)), None)),
        Just((Some(PortRef::Number(80)), Some(443))),
        Just((Some(PortRef::Number(443)), Some(443))),
        Just((Some(PortRef::Name("web".to_owned())), None)),
    ];
    (protocol, test).prop_map(|(protocol, (port, end_port))| Port {
        protocol: protocol.map(str::to_owned),
        port,
        end_port,
        invalid: None,
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    (prop::collection::vec(peer(), 0..=2), prop::collection::vec(port(), 0..=2))
        .prop_map(|(peers, ports)| Rule { peers, ports, ..Rule::default() })
}

fn policy() -> impl Strategy<Value = NetworkPolicy> {
    let types = select(vec![&["Ingress"][..], &["Egress"], &["Ingress", "Egress"], &[]]);
    let rules = || prop::collection::vec(rule(), 0..=3);
    (select(&NAMESPACES[..]), selector(), types, rules(), rules()).prop_map(
        |(namespace, pod_selector, types, ingress, egress)| NetworkPolicy {
            namespace: namespace.into(),
            name: "p".into(),
            pod_selector,
            policy_types: types.iter().map(|it| (*it).to_owned()).collect(),
            ingress,
            egress,
            invalid_types: None,
            unknown_fields: Vec::new(),
        },
    )
}

fn pod(index: usize) -> impl Strategy<Value = Pod> {
    let port = prop_oneof![
        Just(None),
        Just(Some((Protocol::Tcp, 80))),
        Just(Some((Protocol::Udp, 80))),
        Just(Some((Protocol::Tcp, 8080))),
    ];
    (select(&NAMESPACES[..]), labels(), port, select(&["10.0.0", "10.0.1", "10.1.0"][..])).prop_map(
        move |(namespace, labels, port, net)| Pod {
            namespace: namespace.into(),
            name: format!("pod-{index}").into(),
            uid: format!("uid-{namespace}-{index}").into(),
            config_hash: None,
            labels: labels.into_iter().collect(),
            node: None,
            ips: [format!("{net}.{index}").parse::<IpAddr>().unwrap()].into_iter().collect(),
            host_network: false,
            completed: false,
            has_runtime_class: false,
            ports: port
                .map(|(protocol, port)| NamedPort { name: "web".into(), protocol, port })
                .into_iter()
                .collect(),
            workload: Workload { kind: "Pod".into(), name: "pod".into() },
            created: None,
        },
    )
}

fn world() -> impl Strategy<Value = World> {
    let namespaces = NAMESPACES.map(|name| {
        labels().prop_map(move |labels| Namespace { name: name.into(), labels: labels.into_iter().collect() })
    });
    let pods = [0, 1, 2, 3].map(pod);
    (namespaces, pods, prop::collection::vec(policy(), 0..=4)).prop_map(|(namespaces, pods, mut policies)| {
        for (index, policy) in policies.iter_mut().enumerate() {
            policy.name = format!("p{index}").into();
        }
        World { namespaces: namespaces.into(), pods: pods.into(), policies }
    })
}

impl World {
    fn objects(&self) -> Vec<Object> {
        let namespaces = self.namespaces.iter().cloned().map(Object::Namespace);
        let pods = self.pods.iter().cloned().map(Object::Pod);
        namespaces.chain(pods).chain(self.policies.iter().cloned().map(Object::NetworkPolicy)).collect()
    }

    fn cluster(&self) -> Cluster {
        let mut cluster = Cluster::new();
        let warnings = cluster.reset_all(self.objects(), NOW);
        let harmless = |it: &netaudit::policy::Warning| it.reason.starts_with("these rules mean nothing");
        assert!(warnings.iter().all(harmless), "{warnings:?}");
        cluster
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut world = self.clone();
        change(&mut world);
        world
    }
}

/// A question by names, which mean the same in every cluster.
#[derive(Clone, Debug)]
struct Question {
    direction: Direction,
    subject: Arc<str>,
    peer: Result<Arc<str>, IpAddr>,
    protocol: Protocol,
    port: u16,
}

fn questions(world: &World) -> Vec<Question> {
    let pods: Vec<(Arc<str>, Arc<str>)> =
        world.pods.iter().map(|pod| (pod.namespace.clone(), pod.name.clone())).collect();
    let peers = (pods.iter().map(|(_, name)| Ok(name.clone())))
        .chain(OUTSIDE.iter().map(|ip| Err(ip.parse::<IpAddr>().unwrap())));
    let peers: Vec<_> = peers.collect();
    let mut questions = Vec::new();
    for (_, subject) in &pods {
        for peer in &peers {
            for direction in DIRECTIONS {
                for protocol in PROTOCOLS {
                    for port in PORTS {
                        let (subject, peer) = (subject.clone(), peer.clone());
                        questions.push(Question { direction, subject, peer, protocol, port });
                    }
                }
            }
        }
    }
    questions
}

fn ask(cluster: &mut Cluster, question: &Question) -> Arc<Verdict> {
    let find = |name: &Arc<str>| {
        cluster.pods().find(|(_, pod)| pod.name == *name).map(|(id, _)| id).expect("the pod is there")
    };
    let subject = find(&question.subject);
    let peer = match &question.peer {
        Ok(name) => Party::Pod(find(name)),
        Err(ip) => Party::Ip(*ip),
    };
    cluster.verdict(question.direction, subject, peer, question.protocol, question.port)
}

fn ask_all(world: &World, cluster: &mut Cluster) -> Vec<Arc<Verdict>> {
    questions(world).iter().map(|question| ask(cluster, question)).collect()
}

/// The identities of the rules that allow, without their places.
fn allowing(verdict: &Verdict) -> Vec<(String, u64)> {
    let mut rules: Vec<_> =
        verdict.rules().iter().map(|it| (it.rule.policy.to_string(), it.rule.hash)).collect();
    rules.sort();
    rules.dedup();
    rules
}

fn config() -> ProptestConfig {
    // Failing inputs are printed whole; files of them beside the tests are not wanted.
    ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_cached_verdict_is_the_computed_one(world in world()) {
        let mut cluster = world.cluster();
        let first = ask_all(&world, &mut cluster);
        // Asked again, from the cache, and in the other order of a cluster that has seen nothing yet.
        prop_assert_eq!(&ask_all(&world, &mut cluster), &first);
        let mut fresh = world.cluster();
        for (question, verdict) in questions(&world).iter().zip(&first).rev() {
            prop_assert_eq!(&ask(&mut fresh, question), verdict);
        }
    }

    #[test]
    fn an_added_rule_never_takes_away(world in world(), rule in rule(), pick in any::<prop::sample::Index>()) {
        prop_assume!(!world.policies.is_empty());
        let index = pick.index(world.policies.len());
        for direction in DIRECTIONS {
            let before = world.with(|it| {
                // Types are named, so that a first egress rule does not begin to isolate.
                it.policies[index].policy_types = vec!["Ingress".to_owned(), "Egress".to_owned()];
            });
            let after = before.with(|it| match direction {
                Direction::Egress => it.policies[index].egress.push(rule.clone()),
                Direction::Ingress => it.policies[index].ingress.push(rule.clone()),
            });
            let (old, new) = (ask_all(&before, &mut before.cluster()), ask_all(&after, &mut after.cluster()));
            for (old, new) in old.iter().zip(&new) {
                prop_assert!(!old.is_allowed() || new.is_allowed(), "{old:?} became {new:?}");
            }
        }
    }

    #[test]
    fn order_means_nothing(world in world(), seed in any::<u64>()) {
        let shuffled = world.with(|it| shuffle::world(it, seed));
        let mut clusters = [world.cluster(), shuffled.cluster()];
        let hashes = clusters.each_ref().map(|cluster| {
            let rules = |policy: &netaudit::policy::CompiledPolicy| {
                let rules = DIRECTIONS.iter().flat_map(|it| policy.rules(*it));
                rules.map(|it| (it.id.policy.to_string(), it.id.direction, it.id.hash)).collect::<Vec<_>>()
            };
            let mut hashes: Vec<_> = cluster.policies().flat_map(|it| rules(it)).collect();
            hashes.sort();
            hashes
        });
        prop_assert_eq!(&hashes[0], &hashes[1]);
        for question in questions(&world) {
            let [a, b] = clusters.each_mut().map(|cluster| ask(cluster, &question));
            prop_assert_eq!(a.as_str(), b.as_str());
            prop_assert_eq!(allowing(&a), allowing(&b));
        }
    }

    #[test]
    fn policies_that_select_nobody_change_nothing(world in world()) {
        let world = world.with(|it| {
            for policy in &mut it.policies {
                policy.pod_selector.match_labels.push(("nobody".to_owned(), "has-this".to_owned()));
            }
        });
        for verdict in ask_all(&world, &mut world.cluster()) {
            prop_assert!(matches!(&verdict.decision, Decision::Allowed(Cause::NotIsolated | Cause::Exempt(_))));
        }
    }

    #[test]
    fn policies_add_up(world in world()) {
        let alone: Vec<_> = (world.policies.iter())
            .map(|policy| {
                let world = world.with(|it| it.policies = vec![policy.clone()]);
                ask_all(&world, &mut world.cluster())
            })
            .collect();
        for (index, whole) in ask_all(&world, &mut world.cluster()).iter().enumerate() {
            let mut rules: Vec<_> = alone.iter().flat_map(|verdicts| allowing(&verdicts[index])).collect();
            rules.sort();
            prop_assert_eq!(allowing(whole), rules);
            let denied_by_some = alone.iter().any(|verdicts| verdicts[index].is_denied());
            let allowed_by_some = alone.iter().any(|verdicts| !verdicts[index].rules().is_empty());
            prop_assert_eq!(whole.is_denied(), denied_by_some && !allowed_by_some);
        }
    }

    #[test]
    fn a_policy_elsewhere_changes_nothing(world in world(), policy in policy()) {
        let other = world.with(|it| it.policies.push(NetworkPolicy { name: "extra".into(), ..policy.clone() }));
        let (mut before, mut after) = (world.cluster(), other.cluster());
        for question in questions(&world) {
            let subject = world.pods.iter().find(|pod| pod.name == question.subject).unwrap();
            if subject.namespace != policy.namespace {
                prop_assert_eq!(ask(&mut before, &question), ask(&mut after, &question));
            }
        }
    }

    #[test]
    fn a_mapped_address_is_the_v4_address(world in world()) {
        let mut cluster = world.cluster();
        for question in questions(&world) {
            if let Err(IpAddr::V4(ip)) = question.peer {
                let mapped = Question { peer: Err(IpAddr::V6(ip.to_ipv6_mapped())), ..question.clone() };
                prop_assert_eq!(ask(&mut cluster, &mapped), ask(&mut cluster, &question));
                let resolve = |ip| cluster.resolve(ip, 80, Protocol::Tcp, NOW);
                prop_assert_eq!(resolve(IpAddr::V6(ip.to_ipv6_mapped())), resolve(IpAddr::V4(ip)));
            }
        }
    }

    #[test]
    fn changes_one_by_one_end_where_a_fresh_build_does(
        from in world(),
        to in world(),
        seed in any::<u64>(),
        broken in prop::option::of(select(&NAMESPACES[..])),
    ) {
        let mut cluster = from.cluster();
        ask_all(&from, &mut cluster);
        let mut changes: Vec<Result<Object, ObjectKey>> = to.objects().into_iter().map(Ok).collect();
        let keys: Vec<_> = to.objects().iter().filter_map(Object::key).collect();
        let gone = from.objects().into_iter().filter_map(|it| it.key()).filter(|key| !keys.contains(key));
        changes.extend(gone.map(Err));
        if let Some(namespace) = broken {
            changes.push(Ok(unreadable(namespace)));
        }
        shuffle::list(&mut changes, &mut { seed });
        for (step, change) in changes.into_iter().enumerate() {
            let now = NOW.plus(std::time::Duration::from_secs(step as u64));
            match change {
                Ok(object) => { cluster.apply(object, now); }
                Err(key) => cluster.delete(&key, now),
            }
            // What is asked on the way is cached, and must not be what is answered in the end.
            let first = cluster.pods().next().map(|(id, _)| id);
            if let Some(id) = first {
                cluster.verdict(Direction::Egress, id, Party::Ip(OUTSIDE[0].parse().unwrap()), Protocol::Tcp, 80);
            }
        }
        if let Some(namespace) = broken {
            let verdicts = ask_all(&to, &mut cluster);
            for (question, verdict) in questions(&to).iter().zip(verdicts) {
                let pod = to.pods.iter().find(|pod| pod.name == question.subject).unwrap();
                let is_unknown = matches!(&verdict.decision, Decision::Unknown(Gap::Invalid(_)));
                prop_assert!(!(is_unknown && *pod.namespace != *namespace));
                prop_assert!(!(verdict.is_denied() && *pod.namespace == *namespace));
            }
            cluster.delete(&unreadable(namespace).key().unwrap(), NOW);
        }
        let (got, expected) = (ask_all(&to, &mut cluster), ask_all(&to, &mut to.cluster()));
        prop_assert_eq!(got, expected);
    }
}

fn unreadable(namespace: &str) -> Object {
    Object::Broken(Broken {
        key: Some(ObjectKey::new(Kind::NetworkPolicy, namespace, "unreadable")),
        kind: Some(Kind::NetworkPolicy),
        namespace: Some(namespace.into()),
        service: None,
        ips: Default::default(),
        source: "test".into(),
        reason: "unreadable".into(),
    })
}

/// Changes of order, and defaults spelled out.
mod shuffle {
    use super::*;

    /// A small generator of numbers: order is all that is wanted of it.
    fn next(seed: &mut u64) -> usize {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*seed >> 33) as usize
    }

    pub fn list<T>(items: &mut [T], seed: &mut u64) {
        for index in (1..items.len()).rev() {
            items.swap(index, next(seed) % (index + 1));
        }
    }

    pub fn world(world: &mut World, mut seed: u64) {
        let seed = &mut seed;
        list(&mut world.policies, seed);
        list(&mut world.pods, seed);
        for policy in &mut world.policies {
            selector(&mut policy.pod_selector, seed);
            list(&mut policy.policy_types, seed);
            for rules in [&mut policy.ingress, &mut policy.egress] {
                list(rules, seed);
                for rule in rules {
                    list(&mut rule.peers, seed);
                    list(&mut rule.ports, seed);
                    for peer in &mut rule.peers {
                        let selectors = [&mut peer.namespace_selector, &mut peer.pod_selector];
                        selectors.into_iter().flatten().for_each(|it| selector(it, seed));
                        peer.ip_block.iter_mut().for_each(|it| list(&mut it.except, seed));
                    }
                    for port in &mut rule.ports {
                        port.protocol.get_or_insert_with(|| "TCP".to_owned());
                        if let (Some(PortRef::Number(first)), None) = (&port.port, port.end_port) {
                            port.end_port = Some(*first);
                        }
                    }
                }
            }
        }
    }

    fn selector(selector: &mut Selector, seed: &mut u64) {
        list(&mut selector.match_labels, seed);
        list(&mut selector.match_expressions, seed);
        for expression in &mut selector.match_expressions {
            list(&mut expression.values, seed);
        }
    }
}
