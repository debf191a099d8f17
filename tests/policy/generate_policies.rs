//! Policies by chance, as valid as the API server wants them but for peers that no version knows.

use serde_json::{Map, Value, json};

use super::{
    case::Protocol,
    generate::{
        Kinds, NAMES, NAMESPACE_LABELS, NAMESPACES, NODE_LABELS, POD_LABELS, PORT_NAMES, PORTS, World,
    },
};

type Labels = [(&'static str, &'static [&'static str])];

/// Ranges that hold some of the addresses: nested, neighbours, single ones, of both families, with stray bits.
const RANGES: [&str; 18] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/22",
    "10.0.0.0/24",
    "10.0.1.5/24",
    "10.0.2.0/24",
    "10.0.0.0/30",
    "10.0.1.2/32",
    "172.16.0.0/24",
    "172.16.0.1/32",
    "192.0.2.0/25",
    "192.0.2.0/24",
    "198.51.100.0/24",
    "::/0",
    "fd00::/16",
    "fd00::1:0/112",
    "fd00:0:0:1::/64",
    "2001:db8::/47",
];
/// What may be excepted from a range: within it, as the API server demands.
const EXCEPTS: [(&str, &[&str]); 8] = [
    ("0.0.0.0/0", &["10.0.0.0/8", "192.0.2.0/25", "172.16.0.0/24", "10.0.1.0/24"]),
    ("10.0.0.0/8", &["10.0.0.0/24", "10.0.1.2/32", "10.0.0.0/30"]),
    ("10.0.0.0/22", &["10.0.1.0/24", "10.0.2.3/32"]),
    ("192.0.2.0/24", &["192.0.2.128/25"]),
    ("::/0", &["fd00::/16", "2001:db8::/47"]),
    ("fd00::/16", &["fd00::1:0/112", "fd00:0:0:1::/64"]),
    ("::ffff:0.0.0.0/96", &["10.0.0.0/8", "::ffff:192.0.2.0/121"]),
    ("::ffff:10.0.0.0/104", &["::ffff:10.0.0.0/120", "10.0.1.0/24"]),
];

impl World<'_> {
    pub fn policies(&mut self) {
        let (least, most) = if self.kinds == Kinds::NetworkPolicy { (2, 7) } else { (0, 4) };
        for index in 0..self.random.between(least, most) {
            let policy = self.network_policy(index);
            self.objects.push(policy);
        }
        match self.kinds {
            Kinds::NetworkPolicy => {}
            Kinds::V1Alpha1 => {
                for index in 0..self.random.between(1, 5) {
                    let policy = self.tier_policy("AdminNetworkPolicy", &format!("admin-{index}"), None);
                    self.objects.push(policy);
                }
                if self.random.percent(70) {
                    let policy = self.tier_policy("BaselineAdminNetworkPolicy", "default", None);
                    self.objects.push(policy);
                }
            }
            Kinds::V1Alpha2 => {
                for index in 0..self.random.between(2, 7) {
                    let tier = if self.random.percent(60) { "Admin" } else { "Baseline" };
                    let policy =
                        self.tier_policy("ClusterNetworkPolicy", &format!("cluster-{index}"), Some(tier));
                    self.objects.push(policy);
                }
            }
        }
    }

    fn selector(&mut self, from: &Labels) -> Value {
        if self.random.percent(35) {
            return json!({});
        }
        let mut selector = Map::new();
        if self.random.percent(65) {
            let mut labels = Map::new();
            for _ in 0..*self.random.pick(&[1, 1, 1, 2]) {
                let (key, values) = self.random.pick(from);
                labels.insert((*key).to_owned(), (*self.random.pick(values)).into());
            }
            selector.insert("matchLabels".to_owned(), labels.into());
        }
        if selector.is_empty() || self.random.percent(20) {
            let count = *self.random.pick(&[1, 1, 1, 2]);
            let expressions: Vec<Value> = (0..count).map(|_| self.expression(from)).collect();
            selector.insert("matchExpressions".to_owned(), expressions.into());
        }
        selector.into()
    }

    fn namespace_selector(&mut self) -> Value {
        if self.random.percent(20) {
            let name = *self.random.pick(&NAMESPACES);
            return json!({ "matchLabels": { "kubernetes.io/metadata.name": name } });
        }
        self.selector(&NAMESPACE_LABELS)
    }

    fn expression(&mut self, from: &Labels) -> Value {
        let (key, values) = self.random.pick(from);
        let operator = *self.random.pick(&["In", "NotIn", "Exists", "DoesNotExist"]);
        if !operator.ends_with("In") {
            return json!({ "key": key, "operator": operator });
        }
        let values: Vec<&str> = (0..self.random.between(1, 2)).map(|_| *self.random.pick(values)).collect();
        json!({ "key": key, "operator": operator, "values": values })
    }

    fn network_policy(&mut self, index: usize) -> Value {
        let mut spec = Map::new();
        if self.random.percent(95) {
            spec.insert("podSelector".to_owned(), self.selector(&POD_LABELS));
        }
        for (direction, peers, chance) in [("ingress", "from", 75), ("egress", "to", 60)] {
            if self.random.percent(chance) {
                let count = *self.random.pick(&[0, 1, 1, 1, 2, 2, 3]);
                let rules: Vec<Value> = (0..count).map(|_| self.network_policy_rule(peers)).collect();
                spec.insert(direction.to_owned(), rules.into());
            }
        }
        if self.random.percent(55) {
            let choices: [&[&str]; 4] = [&["Ingress"], &["Egress"], &["Ingress", "Egress"], &[]];
            let types = *self.random.pick(&choices);
            spec.insert("policyTypes".to_owned(), json!(types));
        }
        let metadata = json!({ "name": format!("np-{index}"), "namespace": self.random.pick(&NAMESPACES) });
        json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec })
    }

    fn network_policy_rule(&mut self, peers: &str) -> Value {
        let mut rule = Map::new();
        if self.random.percent(85) {
            let count = *self.random.pick(&[0, 1, 1, 1, 2, 2, 3]);
            let list: Vec<Value> = (0..count).map(|_| self.network_policy_peer()).collect();
            rule.insert(peers.to_owned(), list.into());
        }
        if self.random.percent(60) {
            let count = *self.random.pick(&[0, 1, 1, 1, 2, 2]);
            let list: Vec<Value> = (0..count).map(|_| self.network_policy_port()).collect();
            rule.insert("ports".to_owned(), list.into());
        }
        rule.into()
    }

    fn network_policy_peer(&mut self) -> Value {
        match self.random.below(10) {
            0..3 => json!({ "podSelector": self.selector(&POD_LABELS) }),
            3..5 => json!({ "namespaceSelector": self.namespace_selector() }),
            5..7 => {
                json!({ "namespaceSelector": self.namespace_selector(), "podSelector": self.selector(&POD_LABELS) })
            }
            7 => json!({ "ipBlock": { "cidr": self.random.pick(&RANGES) } }),
            _ => {
                let (cidr, excepts) = self.random.pick(&EXCEPTS);
                let except: Vec<&str> =
                    (0..self.random.between(0, 2)).map(|_| *self.random.pick(excepts)).collect();
                json!({ "ipBlock": { "cidr": cidr, "except": except } })
            }
        }
    }

    fn network_policy_port(&mut self) -> Value {
        let mut port = Map::new();
        if self.random.percent(70) {
            port.insert("protocol".to_owned(), self.random.pick(&Protocol::ALL).as_str().into());
        }
        match self.random.below(10) {
            0..5 => {
                port.insert("port".to_owned(), (*self.random.pick(&PORTS)).into());
            }
            5..7 => {
                let (first, last) = self.range();
                port.insert("port".to_owned(), first.into());
                port.insert("endPort".to_owned(), last.into());
            }
            7..9 => {
                port.insert("port".to_owned(), self.port_name().into());
            }
            _ => {}
        }
        port.into()
    }

    fn port_name(&mut self) -> &'static str {
        if self.random.percent(30) { "side" } else { self.random.pick::<&str>(&PORT_NAMES) }
    }

    /// Two ports of the list, the first below the last.
    fn range(&mut self) -> (u16, u16) {
        let first = self.random.below(PORTS.len() - 1);
        let last = self.random.between(first + 1, PORTS.len() - 1);
        (PORTS[first], PORTS[last])
    }

    fn tier_policy(&mut self, kind: &str, name: &str, tier: Option<&str>) -> Value {
        let is_baseline = kind == "BaselineAdminNetworkPolicy";
        let mut spec = Map::new();
        if let Some(tier) = tier {
            spec.insert("tier".to_owned(), tier.into());
        }
        if !is_baseline {
            // Few enough for two to be the same now and then.
            let priorities = *self.random.pick(&[1, 1, 3, 1_001]);
            spec.insert("priority".to_owned(), self.random.below(priorities).into());
        }
        let subject = match self.random.percent(50) {
            true => json!({ "namespaces": self.namespace_selector() }),
            false => json!({ "pods": self.namespaced_pods() }),
        };
        spec.insert("subject".to_owned(), subject);
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            if self.random.percent(75) {
                let count = self.random.between(1, 3);
                let rules: Vec<Value> = (0..count)
                    .map(|index| self.tier_rule(index, peers, tier.is_some(), is_baseline))
                    .collect();
                spec.insert(direction.to_owned(), rules.into());
            }
        }
        let version = if tier.is_some() { "v1alpha2" } else { "v1alpha1" };
        json!({
            "apiVersion": format!("policy.networking.k8s.io/{version}"),
            "kind": kind,
            "metadata": { "name": name },
            "spec": spec,
        })
    }

    fn namespaced_pods(&mut self) -> Value {
        json!({ "namespaceSelector": self.namespace_selector(), "podSelector": self.selector(&POD_LABELS) })
    }

    fn tier_rule(&mut self, index: usize, peers: &str, is_cluster: bool, is_baseline: bool) -> Value {
        let accept = if is_cluster { "Accept" } else { "Allow" };
        let action = if is_baseline {
            *self.random.pick(&[accept, "Deny"])
        } else {
            *self.random.pick(&[accept, "Deny", "Pass"])
        };
        let mut rule = Map::new();
        rule.insert("action".to_owned(), action.into());
        if self.random.percent(50) {
            rule.insert("name".to_owned(), format!("rule-{index}").into());
        }
        let count = *self.random.pick(&[1, 1, 2, 3]);
        let list: Vec<Value> =
            (0..count).map(|_| self.tier_peer(peers == "to", action == accept && !is_baseline)).collect();
        // Names are of pods: the API wants none where a peer has none.
        let may_name = list.iter().all(|it| it.get("namespaces").or(it.get("pods")).is_some());
        rule.insert(peers.to_owned(), list.into());
        if self.random.percent(50) {
            let count = self.random.between(1, 2);
            let list: Vec<Value> = (0..count).map(|_| self.tier_port(is_cluster, may_name)).collect();
            rule.insert(if is_cluster { "protocols" } else { "ports" }.to_owned(), list.into());
        }
        rule.into()
    }

    fn tier_peer(&mut self, is_egress: bool, may_name: bool) -> Value {
        if self.random.percent(1) {
            // A peer of a version to come, of which the API server keeps nothing.
            return json!({});
        }
        let kinds = match (is_egress, may_name) {
            (false, _) => 8,
            (true, false) => 13,
            (true, true) => 18,
        };
        match self.random.below(kinds) {
            0..4 => json!({ "namespaces": self.namespace_selector() }),
            4..8 => json!({ "pods": self.namespaced_pods() }),
            8..10 => json!({ "nodes": self.selector(&NODE_LABELS) }),
            10..13 => {
                let networks: Vec<&str> =
                    (0..self.random.between(1, 2)).map(|_| *self.random.pick(&RANGES)).collect();
                json!({ "networks": networks })
            }
            _ => {
                let names: Vec<String> = (0..self.random.between(1, 2)).map(|_| self.domain_name()).collect();
                json!({ "domainNames": names })
            }
        }
    }

    fn domain_name(&mut self) -> String {
        let name = *self.random.pick(&NAMES);
        match self.random.below(10) {
            0..4 => format!("*.{name}"),
            4 => format!("{name}."),
            5 | 6 => name.to_ascii_uppercase(),
            _ => name.to_owned(),
        }
    }

    fn tier_port(&mut self, is_cluster: bool, may_name: bool) -> Value {
        let protocol = self.random.pick(&Protocol::ALL).as_str();
        let number = *self.random.pick(&PORTS);
        let (start, end) = self.range();
        let member = protocol.to_ascii_lowercase();
        let form = self.random.below(if may_name { 4 } else { 3 });
        let with = |member: &str, value: Value| json!({ member: value });
        match (is_cluster, form) {
            (true, 0 | 1) => with(&member, json!({ "destinationPort": { "number": number } })),
            (true, 2) => {
                with(&member, json!({ "destinationPort": { "range": { "start": start, "end": end } } }))
            }
            (true, _) => json!({ "destinationNamedPort": self.port_name() }),
            (false, 0 | 1) => json!({ "portNumber": { "protocol": protocol, "port": number } }),
            (false, 2) if self.random.percent(30) => json!({ "portRange": { "start": start, "end": end } }),
            (false, 2) => json!({ "portRange": { "protocol": protocol, "start": start, "end": end } }),
            (false, _) => json!({ "namedPort": self.port_name() }),
        }
    }
}
