//! A cluster made by chance: few labels and addresses, so that things meet, and ranges far wider than what is used of them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use crate::policy::{
    case::{Direction, Protocol},
    random::Random,
};

const NAMESPACES: [&str; 3] = ["blue", "green", "red"];
const APPS: [&str; 4] = ["web", "db", "job", "cache"];
const TIERS: [&str; 2] = ["front", "back"];
const PORTS: [u16; 14] = [53, 80, 443, 1, 65_535, 5432, 8000, 8080, 8081, 8443, 9000, 9090, 30_000, 32_767];
const PORT_RANGES: [(u16, u16); 8] = [
    (8000, 9000),
    (1, 65_535),
    (30_000, 32_767),
    (8080, 8443),
    (9000, 9015),
    (65_000, 65_535),
    (80, 81),
    (1, 1023),
];
const PORT_NAMES: [&str; 3] = ["http", "dns", "metrics"];
/// Ranges that hold pods, nodes, addresses of one's own and public ones; stray bits and mapped ones among them.
const RANGES: [&str; 16] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/16",
    "10.200.0.0/16",
    "10.200.0.0/16",
    "10.200.4.0/22",
    "192.168.0.0/16",
    "192.168.7.0/24",
    "203.0.113.0/24",
    "203.0.113.77/24",
    "198.51.100.0/24",
    "::/0",
    "2001:db8::/32",
    "fd12::/16",
    "fd00::/16",
    "::ffff:10.200.0.0/112",
];
/// What looks like a policy and is a text.
const LOOKS_LIKE_ONE: &str = "spec:\n  ingress:\n  - from: []\n  # no comment\n- ports: [{port: 80}]\n";

/// A pod, which stays.
pub struct Pod {
    /// `namespace/name`.
    pub name: String,
    pub uid: String,
    pub number: u64,
    pub node: usize,
    pub addresses: Vec<IpAddr>,
}

/// An address outside the cluster.
pub struct Outside {
    pub ip: IpAddr,
    pub names: Vec<&'static str>,
}

/// What there is more of than in other worlds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lean {
    Nothing,
    /// Ranges with holes, and addresses around them that are used.
    Holes,
    Sctp,
}

/// All that there is, and was.
pub struct World {
    pub random: Random,
    pub lean: Lean,
    /// Namespaces, nodes and pods.
    pub objects: Vec<Value>,
    pub pods: Vec<Pod>,
    /// Addresses of each node.
    pub nodes: Vec<Vec<IpAddr>>,
    pub outside: Vec<Outside>,
    /// The policies as they are.
    pub policies: Vec<Value>,
    /// Those that were otherwise at first.
    pub earlier: Vec<Value>,
}

impl World {
    pub fn new(seed: u64, lean: Lean) -> Self {
        let mut world = Self {
            lean,
            random: Random::new(seed ^ 0x71_6874_656e),
            objects: Vec::new(),
            pods: Vec::new(),
            nodes: Vec::new(),
            outside: Vec::new(),
            policies: Vec::new(),
            earlier: Vec::new(),
        };
        for name in NAMESPACES {
            let env = *world.random.pick(&["prod", "test"]);
            world.objects.push(json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"env": env}},
            }));
        }
        for index in 0..world.random.between(1, 3) {
            world.node(index);
        }
        for index in 0..world.random.between(3, 8) {
            world.pod(index);
        }
        world.outside();
        for index in 0..world.random.between(1, 5) {
            let policy = world.policy(index);
            world.policies.push(policy);
        }
        world.earlier = world.before();
        world
    }

    fn node(&mut self, index: usize) {
        let mut addresses = vec![IpAddr::from([172, 16, 0, index as u8 + 1])];
        if self.random.percent(40) {
            addresses.push(format!("fd00:0:0:9::{}", index + 1).parse().expect("an address"));
        }
        let listed: Vec<Value> =
            addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
        self.objects.push(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node-{index}")},
            "status": {"addresses": listed},
        }));
        self.nodes.push(addresses);
    }

    fn pod(&mut self, index: usize) {
        let namespace = *self.random.pick(&NAMESPACES[..2]);
        let node = self.random.below(self.nodes.len());
        let v4 = IpAddr::from([10, 0, node as u8, index as u8 + 1]);
        let v6: IpAddr = format!("fd00::{node}:{}", index + 1).parse().expect("an address");
        let addresses = match self.random.below(10) {
            0..6 => vec![v4],
            6 => vec![v6],
            _ => vec![v4, v6],
        };
        let mut ports = Vec::new();
        for name in PORT_NAMES {
            if self.random.percent(50) {
                let protocol = if self.random.percent(75) { "TCP" } else { "UDP" };
                let port = *self.random.pick(&PORTS);
                ports.push(json!({"name": name, "containerPort": port, "protocol": protocol}));
            }
        }
        let (number, name) = (index as u64 + 1, format!("pod-{index}"));
        let uid = format!("{number:08x}-0000-4000-8000-000000000000");
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let labels = self.labels();
        self.objects.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "uid": uid, "labels": labels,
                         "creationTimestamp": "2023-11-01T00:00:00Z"},
            "spec": {"nodeName": format!("node-{node}"), "containers": [{"name": "c", "ports": ports}]},
            "status": {"phase": "Running", "podIP": addresses[0], "podIPs": ips},
        }));
        self.pods.push(Pod { name: format!("{namespace}/{name}"), uid, number, node, addresses });
    }

    fn labels(&mut self) -> Value {
        let mut labels = Map::new();
        labels.insert("app".to_owned(), (*self.random.pick(&APPS)).into());
        if self.random.percent(70) {
            labels.insert("tier".to_owned(), (*self.random.pick(&TIERS)).into());
        }
        labels.into()
    }

    /// Neighbours, first and last ones of ranges, single ones; some of the public ones have names.
    fn outside(&mut self) {
        let has_holes = self.lean == Lean::Holes;
        let many = self.random.percent(35) || has_holes;
        let mut ips: Vec<IpAddr> = Vec::new();
        for base in ["10.200.4.0", "10.200.9.17", "203.0.113.0", "192.168.7.250", "198.51.100.40"] {
            if self.random.percent(60) || has_holes {
                let base: Ipv4Addr = base.parse().expect("an address");
                let least = if has_holes { 7 } else { 1 };
                for _ in 0..self.random.between(least, if many { 9 } else { 3 }) {
                    let step = self.random.below(if many { 40 } else { 6 }) as u32;
                    ips.push(Ipv4Addr::from_bits(base.to_bits() + step).into());
                }
            }
        }
        for base in ["2001:db8::fffe", "fd12::1"] {
            if self.random.percent(40) {
                let base: Ipv6Addr = base.parse().expect("an address");
                for _ in 0..self.random.between(1, 3) {
                    let step = self.random.below(6) as u128;
                    ips.push(Ipv6Addr::from_bits(base.to_bits() + step).into());
                }
            }
        }
        for ip in ["203.0.113.255", "10.200.255.255", "10.200.0.0", "255.255.255.254", "192.168.7.255"] {
            if self.random.percent(20) {
                ips.push(ip.parse().expect("an address"));
            }
        }
        ips.sort();
        ips.dedup();
        let named = if has_holes { 0 } else { *self.random.pick(&[0, 0, 30, 100]) };
        for ip in ips {
            let mut names = Vec::new();
            while self.random.percent(named) && names.len() < 2 {
                names.push(*self.random.pick(&["api.example.com", "example.org", "cdn.example.net"]));
            }
            names.sort_unstable();
            names.dedup();
            self.outside.push(Outside { ip, names });
        }
    }

    fn selector(&mut self) -> Value {
        match self.random.below(10) {
            0..2 => json!({}),
            2..5 => json!({"matchLabels": {"app": self.random.pick(&APPS)}}),
            5 => json!({"matchLabels": {"app": self.random.pick(&APPS), "tier": self.random.pick(&TIERS)}}),
            6 => json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}),
            7 => {
                let value = self.random.pick(&APPS);
                json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": [value]}]})
            }
            _ => {
                let values: Vec<&str> = (0..2).map(|_| *self.random.pick(&APPS)).collect();
                json!({"matchExpressions": [{"key": "app", "operator": "In", "values": values}]})
            }
        }
    }

    fn policy(&mut self, index: usize) -> Value {
        let mut spec = Map::new();
        let selector = if self.random.percent(40) { json!({}) } else { self.selector() };
        spec.insert("podSelector".to_owned(), selector);
        let mut types = Vec::new();
        for (direction, word, chance) in
            [(Direction::Ingress, "Ingress", 70), (Direction::Egress, "Egress", 75)]
        {
            if self.random.percent(chance) {
                let count = *self.random.pick(&[0, 1, 1, 2, 2, 3, 4]);
                let mut rules: Vec<Value> = (0..count).map(|_| self.rule(direction)).collect();
                self.repeat(&mut rules, 12);
                spec.insert(direction.as_str().to_owned(), rules.into());
                types.push(word);
            } else if self.random.percent(20) {
                types.push(word);
            }
        }
        if types.is_empty() {
            types.push("Ingress");
        }
        match self.random.below(50) {
            // What it means is left to the API.
            0..17 => {}
            17 => {
                spec.insert("policyTypes".to_owned(), json!([]));
            }
            // Rules of a direction that it does not name mean nothing.
            18 => {
                spec.insert("policyTypes".to_owned(), json!(["Ingress"]));
            }
            _ => {
                spec.insert("policyTypes".to_owned(), json!(types));
            }
        }
        let namespace = *self.random.pick(&NAMESPACES[..2]);
        let mut metadata = json!({"name": format!("np-{index}"), "namespace": namespace});
        if self.random.percent(15) {
            metadata["annotations"] = json!({"description": LOOKS_LIKE_ONE, "mark": "a # b: c"});
        }
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec,
        })
    }

    /// Some things are there twice.
    fn repeat(&mut self, list: &mut Vec<Value>, chance: u64) {
        if !list.is_empty() && self.random.percent(chance) {
            let again = self.random.pick(list).clone();
            let at = self.random.below(list.len() + 1);
            list.insert(at, again);
        }
    }

    fn rule(&mut self, direction: Direction) -> Value {
        let mut rule = Map::new();
        if self.random.percent(88) {
            let count = *self.random.pick(&[0, 1, 1, 2, 2, 3, 4]);
            let mut list: Vec<Value> = (0..count).map(|_| self.peer(direction)).collect();
            self.repeat(&mut list, 8);
            rule.insert(direction.peers().to_owned(), list.into());
        }
        if self.random.percent(70) {
            let count = *self.random.pick(&[0, 1, 1, 2, 3, 4]);
            let mut list: Vec<Value> = (0..count).map(|_| self.port()).collect();
            self.repeat(&mut list, 8);
            rule.insert("ports".to_owned(), list.into());
        }
        // Null is what an absent list is.
        for name in [direction.peers(), "ports"] {
            if !rule.contains_key(name) && self.random.percent(6) {
                rule.insert(name.to_owned(), Value::Null);
            }
        }
        rule.into()
    }

    fn peer(&mut self, direction: Direction) -> Value {
        let blocks = if direction == Direction::Egress { 50 } else { 30 };
        if self.random.percent(blocks) {
            return json!({"ipBlock": self.block()});
        }
        let namespaces = match self.random.below(3) {
            0 => json!({}),
            1 => json!({"matchLabels": {"env": self.random.pick(&["prod", "test"])}}),
            _ => json!({"matchLabels": {"kubernetes.io/metadata.name": self.random.pick(&NAMESPACES)}}),
        };
        match self.random.below(10) {
            0..5 => json!({"podSelector": self.selector()}),
            5..8 => json!({"namespaceSelector": namespaces}),
            _ => json!({"namespaceSelector": namespaces, "podSelector": self.selector()}),
        }
    }

    fn block(&mut self) -> Value {
        let has_holes = self.lean == Lean::Holes;
        let text = match has_holes && self.random.percent(60) {
            true => "10.200.0.0/16",
            false => *self.random.pick(&RANGES),
        };
        let mut block = json!({"cidr": text});
        if self.random.percent(if has_holes { 90 } else { 40 }) {
            let net = plain(text);
            let holes: Vec<String> = (0..self.random.between(0, 3))
                .filter_map(|_| self.hole(net))
                .map(|hole| match hole {
                    IpNet::V4(hole) if text.starts_with("::ffff") => {
                        format!("::ffff:{}/{}", hole.addr(), hole.prefix_len() + 96)
                    }
                    hole => hole.to_string(),
                })
                .collect();
            block["except"] = json!(holes);
        }
        block
    }

    /// A part of a range, near an address that is used if there is one.
    fn hole(&mut self, net: IpNet) -> Option<IpNet> {
        let near: Vec<IpAddr> = self.outside.iter().map(|it| it.ip).filter(|ip| net.contains(ip)).collect();
        let ip = if near.is_empty() { net.addr() } else { *self.random.pick(&near) };
        let (least, most) = (net.prefix_len() + 1, net.max_prefix_len());
        // Small ones, so that not all goes into the hole.
        let small = if self.lean == Lean::Holes { most } else { most - 6 };
        let length = self.random.between(usize::from(least.max(small)), usize::from(most)) as u8;
        let bits = 1 << self.random.below(4);
        let ip = match ip {
            IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() ^ bits)),
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() ^ u128::from(bits))),
        };
        let hole = IpNet::new(ip, length).ok()?.trunc();
        net.contains(&hole).then_some(hole)
    }

    fn port(&mut self) -> Value {
        let mut port = Map::new();
        let protocol = self.random.below(20);
        match if self.lean == Lean::Sctp { protocol + 8 } else { protocol } {
            0..4 => {}
            4..14 => drop(port.insert("protocol".to_owned(), "TCP".into())),
            14..18 => drop(port.insert("protocol".to_owned(), "UDP".into())),
            _ => drop(port.insert("protocol".to_owned(), "SCTP".into())),
        }
        match self.random.below(20) {
            0..9 => drop(port.insert("port".to_owned(), (*self.random.pick(&PORTS)).into())),
            9..16 => {
                let (first, last) = *self.random.pick(&PORT_RANGES);
                port.insert("port".to_owned(), first.into());
                port.insert("endPort".to_owned(), last.into());
            }
            16..19 => drop(port.insert("port".to_owned(), (*self.random.pick(&PORT_NAMES)).into())),
            // Of the API's forms the one that says nothing but the protocol.
            _ if port.is_empty() => drop(port.insert("protocol".to_owned(), "TCP".into())),
            _ => {}
        }
        port.into()
    }

    /// The policies as they were: one had a rule more or less, was for other pods or was not there.
    fn before(&mut self) -> Vec<Value> {
        let mut policies = self.policies.clone();
        let at = self.random.below(policies.len());
        let direction = *self.random.pick(&Direction::BOTH);
        let kind = self.random.below(5);
        let (rule, selector) = (self.rule(direction), self.selector());
        let policy = &mut policies[at];
        match (kind, policy["spec"].get_mut(direction.as_str()).and_then(Value::as_array_mut)) {
            (0, _) => drop(policies.remove(at)),
            (1, Some(rules)) => rules.insert(0, rule),
            (2 | 3, Some(rules)) if rules.len() > 1 => drop(rules.remove(0)),
            _ => policy["spec"]["podSelector"] = selector,
        }
        policies
    }

    /// Names of addresses outside.
    pub fn names(&self) -> BTreeMap<IpAddr, Vec<&'static str>> {
        self.outside.iter().filter(|it| !it.names.is_empty()).map(|it| (it.ip, it.names.clone())).collect()
    }

    /// All objects with these policies.
    pub fn with(&self, policies: &[Value]) -> Vec<Value> {
        self.objects.iter().chain(policies).cloned().collect()
    }

    pub fn protocol(&mut self) -> Protocol {
        if self.random.percent(70) { Protocol::Tcp } else { Protocol::Udp }
    }

    pub fn any_port(&mut self) -> u16 {
        *self.random.pick(&PORTS)
    }
}

/// A range, of which an IPv4 one may be written as a mapped one.
pub fn plain(text: &str) -> IpNet {
    let net: IpNet = text.parse().expect("a range");
    match net {
        IpNet::V6(net) if net.prefix_len() >= 96 => match net.addr().to_ipv4_mapped() {
            Some(ip) => IpNet::new(ip.into(), net.prefix_len() - 96).expect("a range"),
            None => net.into(),
        },
        net => net,
    }
}
