//! Random clusters with all that a verdict can hang on: tiers, ties, ranges, nodes, names, and objects that are invalid.

use std::net::IpAddr;

use netaudit::{
    cluster::{Broken, Cluster, Kind, Namespace, Node, Object, ObjectKey, Pod, Workload},
    model::{Protocol, Timestamp},
    policy::{
        NamedPort,
        declared::{
            ClusterKind, ClusterPeer, ClusterPolicy, ClusterPort, ClusterRule, Expression, ForeignEffect,
            ForeignPart, ForeignPolicy, IpBlock, NetworkPolicy, Peer, PodScope, Port, PortRef, Rule,
            Selector,
        },
    },
};
use proptest::{collection::vec, option, prelude::*, sample::select};

pub const NOW: Timestamp = Timestamp::from_seconds(1_000);
const NAMESPACES: [&str; 3] = ["n0", "n1", "n2"];
const NODES: [&str; 2] = ["node-0", "node-1"];

/// Everything that a verdict depends on.
#[derive(Clone, Debug)]
pub struct World {
    pub namespaces: Vec<Namespace>,
    pub nodes: Vec<Node>,
    pub pods: Vec<Pod>,
    pub policies: Vec<NetworkPolicy>,
    pub cluster_policies: Vec<ClusterPolicy>,
    pub foreign: Vec<ForeignPolicy>,
    pub broken: Vec<Broken>,
}

impl World {
    /// What names a pod without an address has is not known to the evaluator; the sets do not ask. So where a rule names
    /// domains every pod has an address.
    pub fn settled(mut self) -> Self {
        let rules = self.cluster_policies.iter().flat_map(|it| it.ingress.iter().chain(&it.egress));
        if rules.flat_map(|it| &it.peers).any(|it| it.domain_names.is_some()) {
            for (index, pod) in self.pods.iter_mut().enumerate().filter(|(_, pod)| pod.ips.is_empty()) {
                pod.ips = [format!("10.2.0.{}", index + 1).parse::<IpAddr>().unwrap()].into_iter().collect();
            }
        }
        self
    }

    pub fn cluster(&self) -> Cluster {
        let objects = (self.namespaces.iter().cloned().map(Object::Namespace))
            .chain(self.nodes.iter().cloned().map(Object::Node))
            .chain(self.pods.iter().cloned().map(Object::Pod))
            .chain(self.policies.iter().cloned().map(Object::NetworkPolicy))
            .chain(self.cluster_policies.iter().cloned().map(|it| Object::ClusterPolicy(Box::new(it))))
            .chain(self.foreign.iter().cloned().map(|it| Object::Foreign(Kind::CiliumNetworkPolicy, it)))
            .chain(self.broken.iter().cloned().map(Object::Broken));
        let mut cluster = Cluster::new();
        cluster.reset_all(objects.collect(), NOW);
        cluster
    }
}

fn labels() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::btree_map(select(&["app", "tier"][..]), select(&["a", "b", "c"][..]), 0..=2)
        .prop_map(|map| map.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

/// One in thirty is invalid.
fn selector() -> impl Strategy<Value = Selector> {
    let operator = prop_oneof![
        28 => select(&["In", "NotIn", "Exists", "DoesNotExist"][..]),
        1 => Just("Like"),
    ];
    let expression = (select(&["app", "tier"][..]), operator, vec(select(&["a", "b"][..]), 1..=2));
    let expression = expression.prop_map(|(key, operator, values)| {
        let takes = operator.ends_with("In");
        let values = if takes { values.into_iter().map(str::to_owned).collect() } else { Vec::new() };
        Expression { key: key.to_owned(), operator: operator.to_owned(), values }
    });
    let labels = prop_oneof![2 => Just(Vec::new()), 2 => labels()];
    let expressions = prop_oneof![2 => Just(Vec::new()), 1 => vec(expression, 1..=2)];
    (labels, expressions).prop_map(|(match_labels, match_expressions)| Selector {
        match_labels,
        match_expressions,
        invalid: vec![],
    })
}

fn cidr() -> impl Strategy<Value = &'static str> {
    let valid = [
        "0.0.0.0/0",
        "0.0.0.0/1",
        "10.0.0.0/8",
        "10.0.0.0/16",
        "10.0.0.2/32",
        "172.18.0.1/32",
        "198.51.100.0/24",
        "255.255.255.255/32",
        "::/0",
        "2001:db8::/64",
        "2001:db8::2/128",
        "::ffff:10.0.0.0/112",
    ];
    prop_oneof![30 => select(valid.to_vec()), 1 => Just("10.0.0/8")]
}

fn block() -> impl Strategy<Value = IpBlock> {
    let except = [("0.0.0.0/0", "10.0.0.0/8"), ("10.0.0.0/8", "10.0.0.0/24"), ("::/0", "2001:db8::/64")];
    prop_oneof![
        cidr().prop_map(|cidr| IpBlock { cidr: cidr.to_owned(), except: Vec::new() }),
        select(except.to_vec())
            .prop_map(|(cidr, hole)| IpBlock { cidr: cidr.to_owned(), except: vec![hole.to_owned()] }),
    ]
}

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        12 => selector().prop_map(|it| Peer { pod_selector: Some(it), ..Peer::default() }),
        8 => selector().prop_map(|it| Peer { namespace_selector: Some(it), ..Peer::default() }),
        8 => (selector(), selector()).prop_map(|(namespaces, pods)| Peer {
            namespace_selector: Some(namespaces),
            pod_selector: Some(pods),
            ..Peer::default()
        }),
        16 => block().prop_map(|it| Peer { ip_block: Some(it), ..Peer::default() }),
        1 => Just(Peer::default()),
        1 => (selector(), block()).prop_map(|(pods, block)| Peer {
            pod_selector: Some(pods),
            ip_block: Some(block),
            ..Peer::default()
        }),
    ]
}

fn port() -> impl Strategy<Value = Port> {
    let protocol = prop_oneof![20 => select(&[None, Some("TCP"), Some("UDP"), Some("SCTP")][..]), 1 => Just(Some("ICMP"))];
    let number = |first, last| (Some(PortRef::Number(first)), last);
    let test = prop_oneof![
        4 => Just((None, None)),
        4 => Just(number(80, None)),
        4 => Just(number(80, Some(443))),
        2 => Just(number(1, Some(79))),
        2 => Just(number(444, Some(65535))),
        2 => Just(number(443, Some(443))),
        4 => Just((Some(PortRef::Name("web".to_owned())), None)),
        1 => Just(number(443, Some(80))),
    ];
    (protocol, test).prop_map(|(protocol, (port, end_port))| Port {
        protocol: protocol.map(str::to_owned),
        port,
        end_port,
        invalid: None,
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    (vec(peer(), 0..=2), vec(port(), 0..=2)).prop_map(|(peers, ports)| Rule {
        peers,
        ports,
        ..Rule::default()
    })
}

pub fn policy() -> impl Strategy<Value = NetworkPolicy> {
    let types = prop_oneof![
        24 => select(vec![&["Ingress"][..], &["Egress"], &["Ingress", "Egress"], &[]]),
        1 => Just(&["Both"][..]),
    ];
    let rules = || vec(rule(), 0..=3);
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

fn scope() -> impl Strategy<Value = PodScope> {
    prop_oneof![
        20 => selector().prop_map(|it| PodScope { namespaces: Some(it), ..PodScope::default() }),
        20 => (selector(), selector()).prop_map(|it| PodScope { pods: Some(it), ..PodScope::default() }),
        1 => Just(PodScope::default()),
    ]
}

fn cluster_peer() -> impl Strategy<Value = ClusterPeer> {
    let names = ["example.com", "*.example.com", "www.example.com", "*.a.example.com"];
    prop_oneof![
        12 => scope().prop_map(|scope| ClusterPeer { scope, ..ClusterPeer::default() }),
        4 => selector().prop_map(|it| ClusterPeer { nodes: Some(it), ..ClusterPeer::default() }),
        10 => vec(cidr(), 0..=2).prop_map(|it| ClusterPeer {
            networks: Some(it.into_iter().map(str::to_owned).collect()),
            ..ClusterPeer::default()
        }),
        4 => vec(select(names.to_vec()), 1..=2).prop_map(|it| ClusterPeer {
            domain_names: Some(it.into_iter().map(str::to_owned).collect()),
            ..ClusterPeer::default()
        }),
    ]
}

fn cluster_rule(accept: &'static str) -> impl Strategy<Value = ClusterRule> {
    let action = prop_oneof![20 => select(vec![accept, "Deny", "Pass"]), 1 => Just("Drop")];
    let port = (port(), any::<bool>()).prop_map(|(port, by_name)| {
        let named = matches!(port.port, Some(PortRef::Name(_)));
        let protocol = if named && by_name { None } else { port.protocol.clone() };
        ClusterPort { path: "ports[0]".to_owned(), port: Port { protocol, ..port } }
    });
    (action, vec(cluster_peer(), 1..=2), vec(port, 0..=2)).prop_map(|(action, peers, ports)| ClusterRule {
        name: "r".to_owned(),
        action: Some(action.to_owned()),
        peers,
        ports,
        ..ClusterRule::default()
    })
}

pub fn cluster_policy() -> impl Strategy<Value = ClusterPolicy> {
    let kind = prop_oneof![
        4 => Just((ClusterKind::ClusterNetworkPolicy, Some("Admin"))),
        3 => Just((ClusterKind::ClusterNetworkPolicy, Some("Baseline"))),
        2 => Just((ClusterKind::AdminNetworkPolicy, None)),
        1 => Just((ClusterKind::BaselineAdminNetworkPolicy, None)),
    ];
    let order = (kind, prop_oneof![20 => 0..3i64, 1 => Just(-1)]);
    order.prop_flat_map(|((kind, tier), priority)| {
        let accept = if kind == ClusterKind::ClusterNetworkPolicy { "Accept" } else { "Allow" };
        let rules = move || vec(cluster_rule(accept), 0..=3);
        (scope(), rules(), rules()).prop_map(move |(subject, ingress, egress)| ClusterPolicy {
            kind,
            name: "c".into(),
            tier: tier.map(str::to_owned),
            priority: (kind != ClusterKind::BaselineAdminNetworkPolicy).then_some(priority),
            subject,
            ingress,
            egress,
            invalid_order: None,
            unknown_fields: Vec::new(),
        })
    })
}

fn pod(index: usize) -> impl Strategy<Value = Pod> {
    let port = option::of((select(&[Protocol::Tcp, Protocol::Udp][..]), select(&[80, 8080][..])));
    let addresses =
        select(vec![&["10.0.0"][..], &["10.0.1"], &["10.1.0", "2001:db8::"], &["2001:db8:1::"], &[]]);
    let host = (prop_oneof![6 => Just(false), 1 => Just(true)], option::of(select(&NODES[..])));
    (select(&NAMESPACES[..]), labels(), port, addresses, host).prop_map(
        move |(namespace, labels, port, addresses, (host_network, node))| {
            let join = |net: &&str| format!("{net}{}{}", if net.contains(':') { "" } else { "." }, index + 1);
            let ips: Vec<IpAddr> = addresses.iter().map(|net| join(net).parse().unwrap()).collect();
            Pod {
                namespace: namespace.into(),
                name: format!("pod-{index}").into(),
                uid: format!("uid-{namespace}-{index}").into(),
                config_hash: None,
                labels: labels.into_iter().collect(),
                node: node.map(Into::into),
                // A host's pod has the one address that the test gives it.
                ips: ips.into_iter().take(if host_network { 1 } else { 2 }).collect(),
                host_network,
                completed: false,
                has_runtime_class: false,
                ports: port
                    .map(|(protocol, port)| NamedPort { name: "web".into(), protocol, port })
                    .into_iter()
                    .collect(),
                workload: Workload { kind: "Pod".into(), name: "pod".into() },
                created: None,
            }
        },
    )
}

fn broken() -> impl Strategy<Value = Vec<Broken>> {
    let one = |kind, namespace: Option<&str>, name: Option<&str>| Broken {
        key: name.map(|name| ObjectKey::new(kind, namespace.unwrap_or_default(), name)),
        kind: Some(kind),
        namespace: namespace.map(Into::into),
        service: None,
        ips: Default::default(),
        source: "test".into(),
        reason: "broken".into(),
    };
    prop_oneof![
        20 => Just(Vec::new()),
        1 => Just(vec![one(Kind::NetworkPolicy, Some("n0"), Some("x"))]),
        1 => Just(vec![one(Kind::NetworkPolicy, None, None)]),
        1 => Just(vec![one(Kind::ClusterNetworkPolicy, None, Some("x"))]),
        1 => Just(vec![one(Kind::Namespace, None, Some("n1"))]),
    ]
}

fn foreign() -> impl Strategy<Value = Vec<ForeignPolicy>> {
    let can = || prop_oneof![2 => Just(false), 1 => Just(true)];
    let effect = move || {
        (can(), can(), can()).prop_map(|(isolates, allows, denies)| ForeignEffect {
            isolates,
            allows,
            denies,
            in_proxy: false,
        })
    };
    let one = (select(&NAMESPACES[..]), selector(), effect(), effect()).prop_map(
        |(namespace, pods, ingress, egress)| ForeignPolicy {
            kind: "CiliumNetworkPolicy",
            namespace: namespace.into(),
            name: "f".into(),
            parts: vec![ForeignPart { namespaces: None, pods, ingress, egress }],
        },
    );
    prop_oneof![2 => Just(Vec::new()), 1 => vec(one, 1..=2)]
}

pub fn world() -> impl Strategy<Value = World> {
    let namespaces = NAMESPACES.map(|name| {
        labels().prop_map(move |labels| Namespace { name: name.into(), labels: labels.into_iter().collect() })
    });
    let nodes = [0, 1].map(|index| {
        labels().prop_map(move |labels| Node {
            name: NODES[index].into(),
            labels: labels.into_iter().collect(),
            ips: [format!("172.18.0.{}", index + 1).parse::<IpAddr>().unwrap()].into_iter().collect(),
            pod_networks: Default::default(),
        })
    });
    let pods = [0, 1, 2, 3, 4].map(pod);
    let policies = (vec(policy(), 0..=4), vec(cluster_policy(), 0..=4), foreign());
    // Manifests need not hold every node that their pods name.
    let nodes = nodes.prop_flat_map(|nodes| prop::sample::subsequence(Vec::from(nodes), 0..=2));
    (namespaces, nodes, pods, policies, broken()).prop_map(
        |(namespaces, nodes, pods, (mut policies, mut cluster_policies, mut foreign), broken)| {
            for (index, policy) in foreign.iter_mut().enumerate() {
                policy.name = format!("f{index}").into();
            }
            for (index, policy) in policies.iter_mut().enumerate() {
                policy.name = format!("p{index}").into();
            }
            for (index, policy) in cluster_policies.iter_mut().enumerate() {
                policy.name = format!("c{index}").into();
            }
            World {
                namespaces: namespaces.into(),
                nodes,
                pods: pods.into(),
                policies,
                cluster_policies,
                foreign,
                broken,
            }
            .settled()
        },
    )
}
