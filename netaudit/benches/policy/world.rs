//! A generated cluster: the same seed gives the same objects and flows, for every engine that is asked.
//!
//! Ten policies in a namespace, whatever the size, so that a pod is always selected by four to six of them and a verdict's
//! work stays the same: what grows is only what should not matter. A namespace holds an application of three tiers and
//! its jobs; its policies are those that such applications have: deny by default, DNS, monitoring, one tier to the next,
//! the team's other namespaces, ranges with holes, ports by number, range and name. Eight cluster-wide policies come on top.

use std::net::{IpAddr, Ipv4Addr};

use netaudit::{
    cluster::{Kind, Object},
    model::Protocol,
    watch::convert,
};
use serde_json::{Value, json};

/// Policies of one namespace.
const PER_NAMESPACE: usize = 10;
const TIERS: [&str; 4] = ["front", "api", "db", "job"];
const ENVIRONMENTS: [&str; 3] = ["prod", "staging", "dev"];
const TEAMS: usize = 20;
/// How many pods run on one node.
pub const NODE_PODS: usize = 64;
/// How many of a namespace's pods are asked about: in the cluster with the fewest it has no more.
const NAMESPACE_PODS: usize = 8;

/// How large a cluster is.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// NetworkPolicies.
    pub policies: usize,
    /// Pods.
    pub pods: usize,
}

/// Whose connections are asked about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Among {
    /// The pods of one namespace, with each other and with the world: the same questions in a cluster of any size.
    Namespace,
    /// The pods of one node, of as many namespaces, and as many strangers.
    Node,
    /// Pods anywhere, as no agent ever sees them.
    Everybody,
}

/// A new connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Who makes it.
    pub source: IpAddr,
    /// Whom it is made to.
    pub destination: IpAddr,
    /// How.
    pub protocol: Protocol,
    /// The destination's port.
    pub port: u16,
}

/// SplitMix64: all that a generator of test data needs.
pub struct Random(u64);

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

impl World {
    /// How many namespaces it has.
    pub fn namespaces(&self) -> usize {
        self.policies.div_ceil(PER_NAMESPACE)
    }

    /// Every object, as the API server would give it: namespaces, policies, pods.
    pub fn objects(&self) -> impl Iterator<Item = Value> {
        let world = *self;
        let namespaces = (0..world.namespaces()).map(namespace);
        let policies = (0..world.policies).map(move |n| world.policy(n));
        namespaces.chain(cluster_policies()).chain(policies).chain((0..world.pods).map(move |n| world.pod(n)))
    }

    /// A pod. Neighbours in number are in different namespaces.
    pub fn pod(&self, n: usize) -> Value {
        let (namespace, tier) = self.place(n);
        let app = app(namespace, tier);
        let http = if tier == 2 { 5432 } else { 8080 };
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": namespace_name(namespace), "name": pod_name(&app, n),
                "uid": format!("{n:08x}-0000-4000-8000-000000000000"),
                "labels": {"app": app, "tier": TIERS[tier], "pod-template-hash": format!("{:x}", namespace * 7 + tier)},
                "ownerReferences": [{"kind": "ReplicaSet", "name": format!("{app}-{:x}", namespace * 7 + tier),
                                     "controller": true}],
            },
            "spec": {
                "nodeName": format!("node-{}", n / NODE_PODS),
                "containers": [{"name": "main", "ports": [
                    {"name": "main", "containerPort": http, "protocol": "TCP"},
                    {"name": "metrics", "containerPort": 9090, "protocol": "TCP"},
                ]}],
            },
            "status": {"phase": "Running", "podIP": address(n), "podIPs": [{"ip": address(n)}]},
        })
    }

    /// The same pod, turned into one of another tier by its labels.
    pub fn relabelled(&self, n: usize, tier: &str) -> Value {
        let mut pod = self.pod(n);
        pod["metadata"]["labels"]["tier"] = tier.into();
        pod
    }

    fn place(&self, pod: usize) -> (usize, usize) {
        (pod % self.namespaces(), pod / self.namespaces() % TIERS.len())
    }

    /// A pod of a namespace's tier, or any where it has none.
    fn some_pod(&self, namespace: usize, tier: usize, random: &mut Random) -> usize {
        let per_tier = self.pods / (self.namespaces() * TIERS.len());
        let turn = random.below(per_tier.max(1)) * TIERS.len() + tier;
        (turn * self.namespaces() + namespace) % self.pods
    }

    /// A NetworkPolicy.
    pub fn policy(&self, n: usize) -> Value {
        let (ns, which) = (n / PER_NAMESPACE, n % PER_NAMESPACE);
        let mut random = Random((ns * PER_NAMESPACE + which) as u64);
        let tier = |tier: &str| json!({"matchLabels": {"tier": tier}});
        let in_tier = |tier: &str| json!({"podSelector": {"matchLabels": {"tier": tier}}});
        let tcp = |port: Value| json!({"protocol": "TCP", "port": port});
        let range = |first: u16, last: u16| json!({"protocol": "TCP", "port": first, "endPort": last});
        let other = random.below(self.namespaces());
        let elsewhere = json!({
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace_name(other)}},
            "podSelector": {"matchLabels": {"app": app(other, 1)}},
        });
        let of_team = json!({
            "namespaceSelector": {"matchLabels": {"team": team(ns)}},
            "podSelector": {"matchExpressions": [{"key": "tier", "operator": "In", "values": ["api", "job"]}]},
        });
        let hole = random.below(14) * 16;
        let outside =
            json!({"ipBlock": {"cidr": "203.0.113.0/24", "except": [format!("203.0.113.{hole}/28")]}});
        let world = json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "192.168.0.0/16"]}});
        let (name, spec) = match which {
            // Whom jobs let in is the Baseline tier's to say.
            0 => (
                "default-deny",
                json!({"podSelector": {"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["job"]}]},
                       "policyTypes": ["Ingress", "Egress"]}),
            ),
            1 => (
                "dns",
                json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{
                    "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace_name(0)}}}],
                    "ports": [{"protocol": "UDP", "port": 53}, tcp(53.into())]}]}),
            ),
            2 => (
                "monitoring",
                json!({"podSelector": {"matchExpressions": [
                           {"key": "tier", "operator": "In", "values": ["front", "api", "db"]}]},
                       "policyTypes": ["Ingress"], "ingress": [{
                    "from": [{"namespaceSelector": {"matchLabels": {"team": team(0)}}}],
                    "ports": [tcp("metrics".into())]}]}),
            ),
            3 => (
                "front-ingress",
                json!({"podSelector": tier("front"), "policyTypes": ["Ingress"], "ingress": [
                    {"from": [world], "ports": [tcp(80.into()), tcp(443.into()), range(8080, 8090)]},
                    {"from": [elsewhere], "ports": [range(8080, 8090)]}]}),
            ),
            4 => (
                "front-egress",
                json!({"podSelector": tier("front"), "policyTypes": ["Egress"], "egress": [
                    {"to": [in_tier("api")], "ports": [tcp(8080.into())]}]}),
            ),
            5 => (
                "api-ingress",
                json!({"podSelector": tier("api"), "policyTypes": ["Ingress"], "ingress": [
                    {"from": [in_tier("front"), of_team], "ports": [tcp(8080.into())]},
                    {"from": [elsewhere], "ports": [tcp("main".into()), range(8443, 8453)]}]}),
            ),
            6 => (
                "api-egress",
                json!({"podSelector": tier("api"), "policyTypes": ["Egress"], "egress": [
                    {"to": [in_tier("db")], "ports": [range(5432, 5440)]},
                    {"to": [outside], "ports": [tcp(443.into())]},
                    {"to": [elsewhere], "ports": [tcp(8080.into()), tcp("main".into())]}]}),
            ),
            7 => (
                "db-ingress",
                json!({"podSelector": {"matchLabels": {"app": app(ns, 2)}}, "policyTypes": ["Ingress"], "ingress": [
                    {"from": [{"podSelector": {"matchExpressions": [
                        {"key": "tier", "operator": "In", "values": ["api", "db"]}]}}],
                     "ports": [tcp(5432.into())]}]}),
            ),
            8 => (
                "db-egress",
                json!({"podSelector": tier("db"), "policyTypes": ["Egress"], "egress": [
                    {"to": [in_tier("db")], "ports": [range(5432, 5440)]},
                    {"to": [outside], "ports": [tcp(443.into())]}]}),
            ),
            _ => (
                "team",
                json!({"podSelector": {"matchExpressions": [
                           {"key": "tier", "operator": "NotIn", "values": ["db"]}]},
                       "policyTypes": ["Egress"], "egress": [
                    {"to": [of_team], "ports": [tcp(8080.into()), tcp(8443.into())]}]}),
            ),
        };
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
               "metadata": {"namespace": namespace_name(ns), "name": name}, "spec": spec})
    }

    /// A namespace's policy for its API, with another port and one more peer, who has a label that is new.
    pub fn changed_policy(&self, namespace: usize, label: &str) -> Value {
        let mut policy = self.policy(namespace * PER_NAMESPACE + 5);
        let rule = &mut policy["spec"]["ingress"][0];
        rule["ports"][0]["port"] = 8081.into();
        rule["from"][0]["podSelector"]["matchLabels"]["new"] = label.into();
        policy
    }

    /// New connections: what the policies are made for, and a third that nobody planned.
    pub fn flows(&self, among: Among, count: usize) -> Vec<Flow> {
        let mut random = Random(5);
        let mut flows = Vec::with_capacity(count);
        let mut some = || -> Vec<usize> {
            match among {
                Among::Namespace => (0..NAMESPACE_PODS).map(|n| n * self.namespaces()).collect(),
                Among::Node => (0..NODE_PODS).map(|_| random.below(self.pods)).collect(),
                Among::Everybody => (0..count).map(|_| random.below(self.pods)).collect(),
            }
        };
        let (local, strangers) = (some(), some());
        for turn in 0.. {
            if flows.len() == count {
                break;
            }
            let pod = local[random.below(local.len())];
            let (namespace, tier) = self.place(pod);
            let anyone = strangers[random.below(strangers.len())];
            let outside = IpAddr::V4(Ipv4Addr::new(203, 0, 113, random.below(256) as u8));
            let mut here = |tier| address(self.some_pod(namespace, tier, &mut random));
            let source = address(pod);
            let (source, destination, protocol, port) = match turn % 12 {
                0 | 1 => (source, here((tier + 1) % 4), Protocol::Tcp, if tier == 1 { 5432 } else { 8080 }),
                2 | 3 => (here(0), here(1), Protocol::Tcp, 8080),
                4 => (here(1), here(2), Protocol::Tcp, 5432),
                5 => {
                    let dns = self.some_pod(0, 1, &mut random);
                    (source, address(dns), Protocol::Udp, 53)
                }
                6 => (source, outside, Protocol::Tcp, 443),
                7 => (outside, source, Protocol::Tcp, 443),
                8 => (address(anyone), source, Protocol::Tcp, 9090),
                9 => (source, address(anyone), Protocol::Tcp, 8080),
                10 => (address(anyone), source, Protocol::Tcp, [22, 80, 5432, 8443][random.below(4)]),
                _ => (source, address(anyone), Protocol::Udp, 1_024 + random.below(60_000) as u16),
            };
            // Nothing keeps a pod from itself.
            if source != destination {
                flows.push(Flow { source, destination, protocol, port });
            }
        }
        flows
    }
}

/// As the index holds it.
pub fn object(value: &Value) -> Object {
    let kind = value["kind"].as_str().and_then(Kind::from_name).expect("a watched kind");
    convert::object(kind, value, &"bench".into())
}

/// The address of a pod.
pub fn address(pod: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x0a00_0001 + pod as u32))
}

fn namespace_name(n: usize) -> String {
    format!("shop-{n}")
}

fn pod_name(app: &str, n: usize) -> String {
    format!("{app}-{n:x}")
}

fn app(namespace: usize, tier: usize) -> String {
    format!("shop-{namespace}-{}", TIERS[tier])
}

fn team(namespace: usize) -> String {
    format!("team-{}", namespace % TEAMS)
}

fn namespace(n: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace_name(n), "labels": {
        "kubernetes.io/metadata.name": namespace_name(n), "team": team(n), "env": ENVIRONMENTS[n % 3]}}})
}

/// What an administrator adds.
fn cluster_policies() -> impl Iterator<Item = Value> {
    let env = |env: &str| json!({"matchLabels": {"env": env}});
    let tcp = |port: u16| json!({"portNumber": {"protocol": "TCP", "port": port}});
    let admin = |name: &str, priority: u16, subject: &Value, ingress: Value, egress: Value| {
        json!({"apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "AdminNetworkPolicy",
               "metadata": {"name": name},
               "spec": {"priority": priority, "subject": subject, "ingress": ingress, "egress": egress}})
    };
    let everybody = json!({"namespaces": {}});
    let apis = json!({"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"tier": "api"}}}});
    let monitors = json!({"namespaces": {"matchLabels": {"team": team(0)}}});
    let baseline = json!({"apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "BaselineAdminNetworkPolicy",
        "metadata": {"name": "default"}, "spec": {"subject": everybody,
        "ingress": [{"name": "same team's", "action": "Allow", "from": [monitors]},
                    {"name": "nobody", "action": "Deny", "from": [{"namespaces": {}}]}]}});
    // Every environment has a policy of the same form, so that a pod is selected by as many wherever it is.
    let apart = (0..3).map(move |n| {
        let [own, next] = [ENVIRONMENTS[n], ENVIRONMENTS[(n + 1) % 3]];
        let rules = json!([{"name": "own", "action": "Pass", "to": [{"namespaces": env(own)}]},
                           {"name": "next", "action": "Deny", "to": [{"namespaces": env(next)}]}]);
        admin(own, 30 + n as u16, &json!({"namespaces": env(own)}), json!([]), rules)
    });
    [
        admin(
            "metadata",
            10,
            &everybody,
            json!([]),
            json!([{"name": "metadata", "action": "Deny", "to": [{"networks": ["169.254.169.254/32"]}]}]),
        ),
        admin(
            "monitoring",
            20,
            &everybody,
            json!([{"name": "metrics", "action": "Allow", "from": [monitors], "ports": [tcp(9090)]}]),
            json!([]),
        ),
        admin(
            "shells",
            40,
            &everybody,
            json!([{"name": "ssh", "action": "Deny", "from": [{"namespaces": {}}], "ports": [tcp(22)]}]),
            json!([]),
        ),
        admin(
            "experiments",
            50,
            &apis,
            json!([{"name": "tests", "action": "Pass", "from": [{"namespaces": env("staging")}],
                    "ports": [{"portRange": {"protocol": "TCP", "start": 8000, "end": 9000}}]}]),
            json!([]),
        ),
        baseline,
    ]
    .into_iter()
    .chain(apart)
}
