//! Clusters made by chance: small, with few labels, addresses and ports, so that things meet.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::{
    case::{Case, Dns, End, Flow, Protocol},
    matching::{list, text},
    naive::name_of,
    random::Random,
};

/// Which policies a cluster has beside NetworkPolicy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kinds {
    NetworkPolicy,
    /// AdminNetworkPolicy and BaselineAdminNetworkPolicy.
    V1Alpha1,
    /// ClusterNetworkPolicy.
    V1Alpha2,
}

impl Kinds {
    pub const ALL: [Self; 3] = [Self::NetworkPolicy, Self::V1Alpha1, Self::V1Alpha2];
}

pub const NAMESPACES: [&str; 3] = ["blue", "green", "red"];
/// Labels of namespaces, pods and nodes: keys and values.
pub const NAMESPACE_LABELS: [(&str, &[&str]); 2] = [("env", &["prod", "test"]), ("team", &["a", "b", ""])];
pub const POD_LABELS: [(&str, &[&str]); 2] = [("app", &["web", "db", "job"]), ("tier", &["front", "back"])];
pub const NODE_LABELS: [(&str, &[&str]); 2] = [("zone", &["x", "y"]), ("role", &["worker", "edge"])];
/// Neighbours are among them, so that ranges have ends.
pub const PORTS: [u16; 8] = [53, 79, 80, 81, 443, 444, 8080, 9000];
pub const PORT_NAMES: [&str; 4] = ["http", "dns", "metrics", "https"];
/// Addresses of nobody in the cluster.
/// First and last ones of ranges are among them.
pub const OUTSIDE: [&str; 9] = [
    "192.0.2.0",
    "192.0.2.7",
    "192.0.2.127",
    "192.0.2.130",
    "203.0.113.9",
    "10.0.3.255",
    "2001:db8::",
    "2001:db8::7",
    "2001:db8:1::1",
];
pub const NAMES: [&str; 6] = [
    "example.com",
    "api.example.com",
    "v1.api.example.com",
    "my-example.com",
    "example.org",
    "www.example.org",
];

/// A cluster under construction.
pub struct World<'a> {
    pub random: &'a mut Random,
    pub kinds: Kinds,
    pub objects: Vec<Value>,
    /// `namespace/name` of every pod.
    pods: Vec<String>,
    /// Every address of a pod or a node.
    pub addresses: Vec<IpAddr>,
    /// Every address that a name was resolved to.
    named: Vec<IpAddr>,
}

/// A cluster and questions about it.
pub fn case(seed: u64, kinds: Kinds, flows: usize) -> Case {
    let mut random = Random::new(seed);
    let mut world = World {
        random: &mut random,
        kinds,
        objects: Vec::new(),
        pods: Vec::new(),
        addresses: Vec::new(),
        named: Vec::new(),
    };
    world.namespaces();
    world.nodes();
    let pods = world.random.between(3, 7);
    for index in 0..pods {
        world.pod(index);
    }
    world.policies();
    let dns = world.dns();
    let flows = world.flows(flows);
    world.forget();
    let World { objects, .. } = world;
    Case { name: format!("{kinds:?}-{seed}"), objects, flows, dns }
}

impl World<'_> {
    fn namespaces(&mut self) {
        for name in NAMESPACES {
            // The index of manifests takes a namespace without an object to have the label of its name only.
            if self.random.percent(10) {
                continue;
            }
            let mut labels = self.labels(&NAMESPACE_LABELS);
            if self.random.percent(50) {
                labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
            }
            let metadata = json!({ "name": name, "labels": labels });
            self.objects.push(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata }));
        }
    }

    fn labels(&mut self, from: &[(&str, &[&str])]) -> Map<String, Value> {
        let mut labels = Map::new();
        for (key, values) in from {
            if self.random.percent(75) {
                labels.insert((*key).to_owned(), (*self.random.pick(values)).into());
            }
        }
        labels
    }

    fn nodes(&mut self) {
        for index in 0..2 {
            let mut addresses = vec![json!({ "type": "Hostname", "address": format!("node-{index}") })];
            let mut add = |kind: &str, ip: String| {
                self.addresses.push(ip.parse().expect("an address"));
                addresses.push(json!({ "type": kind, "address": ip }));
            };
            add("InternalIP", format!("172.16.0.{}", index + 1));
            if self.random.percent(50) {
                add("InternalIP", format!("fd00:0:0:1::{}", index + 1));
            }
            if self.random.percent(50) {
                add("ExternalIP", format!("198.51.100.{}", index + 1));
            }
            let metadata = json!({ "name": format!("node-{index}"), "labels": self.labels(&NODE_LABELS) });
            let status = json!({ "addresses": addresses });
            self.objects
                .push(json!({ "apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": status }));
        }
    }

    fn pod(&mut self, index: usize) {
        let namespace = *self.random.pick(&NAMESPACES);
        let name = format!("pod-{index}");
        self.pods.push(format!("{namespace}/{name}"));
        let mut spec = json!({ "containers": self.containers() });
        let node = self.random.below(2);
        let ips = if self.random.percent(12) {
            spec["hostNetwork"] = true.into();
            spec["nodeName"] = format!("node-{node}").into();
            self.node_ips(node)
        } else {
            if self.random.percent(80) {
                spec["nodeName"] = format!("node-{node}").into();
            }
            let (v4, v6) =
                (format!("10.0.{}.{}", index % 3, index + 1), format!("fd00::{}:{}", index % 3, index + 1));
            let ips = match self.random.below(10) {
                0..5 => vec![v4],
                5..7 => vec![v6],
                _ => vec![v4, v6],
            };
            self.addresses.extend(ips.iter().map(|ip| ip.parse::<IpAddr>().expect("an address")));
            ips
        };
        if self.random.percent(25) {
            spec["initContainers"] = self.init_containers();
        }
        let status = if self.random.percent(50) {
            let ips: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
            json!({ "phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips })
        } else {
            // The older form has one address only.
            let ips: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
            json!({ "phase": "Running", "podIPs": ips })
        };
        let metadata = json!({ "name": name, "namespace": namespace, "labels": self.labels(&POD_LABELS) });
        self.objects.push(json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status }));
    }

    /// The addresses that a pod of the node's network has: internal ones.
    fn node_ips(&self, index: usize) -> Vec<String> {
        let nodes: Vec<&Value> = self.objects.iter().filter(|it| it["kind"] == "Node").collect();
        let addresses = nodes[index]["status"]["addresses"].as_array().expect("a list");
        let internal = addresses.iter().filter(|it| it["type"] == "InternalIP");
        internal.map(|it| it["address"].as_str().expect("text").to_owned()).collect()
    }

    /// Manifests need not hold the nodes that their pods name, nor say on which node a pod will be.
    fn forget(&mut self) {
        if self.random.percent(20) {
            let name = format!("node-{}", self.random.below(2));
            self.objects.retain(|it| it["kind"] != "Node" || it["metadata"]["name"] != *name);
        }
        for object in &mut self.objects {
            if object["spec"]["hostNetwork"] == true && self.random.percent(20) {
                object["spec"].as_object_mut().expect("an object").remove("nodeName");
            }
        }
    }

    /// Containers with named ports. A name stands for one number of a protocol only, and may for several protocols.
    fn containers(&mut self) -> Value {
        let mut containers = vec![json!({ "name": "c0" })];
        let mut ports = Vec::new();
        for name in PORT_NAMES {
            for protocol in Protocol::ALL {
                if self.random.percent(22) {
                    let number = *self.random.pick(&PORTS);
                    let mut port = json!({ "name": name, "containerPort": number });
                    if protocol != Protocol::Tcp || self.random.percent(50) {
                        port["protocol"] = protocol.as_str().into();
                    }
                    ports.push(port);
                }
            }
        }
        if self.random.percent(40) {
            let later = ports.split_off(ports.len() / 2);
            containers.push(json!({ "name": "c1", "ports": later }));
        }
        containers[0]["ports"] = ports.into();
        containers.into()
    }

    /// One that runs as long as the pod does, and one that has long ended: only the first has ports.
    fn init_containers(&mut self) -> Value {
        let (runs, ended) = (*self.random.pick(&PORTS), *self.random.pick(&PORTS));
        let ports = |port: u16| json!([{ "name": "side", "containerPort": port }]);
        json!([
            { "name": "i0", "restartPolicy": "Always", "ports": ports(runs) },
            { "name": "i1", "ports": ports(ended) },
        ])
    }

    /// Answers of name servers; `None` where nothing is known of them.
    fn dns(&mut self) -> Option<Dns> {
        if self.kinds == Kinds::NetworkPolicy || self.random.percent(25) {
            return None;
        }
        let mut dns = Dns::new();
        for name in NAMES {
            if self.random.percent(70) {
                let count = self.random.between(1, 2);
                let ips: Vec<IpAddr> = (0..count).map(|_| self.address()).collect();
                self.named.extend(&ips);
                dns.insert(name.to_owned(), ips);
            }
        }
        Some(dns)
    }

    /// An address of anybody.
    pub fn address(&mut self) -> IpAddr {
        if self.random.percent(40) || self.addresses.is_empty() {
            return self.random.pick(&OUTSIDE).parse().expect("an address");
        }
        *self.random.pick(&self.addresses)
    }

    fn end(&mut self) -> End {
        if self.random.percent(80) {
            return End::Pod(self.random.pick(&self.pods).clone());
        }
        match self.address() {
            IpAddr::V4(v4) if self.random.percent(15) => End::Ip(v4.to_ipv6_mapped().into()),
            ip => End::Ip(ip),
        }
    }

    /// Some differ from one before in one thing only, and by as little as can be: what is remembered of the one must not
    /// be told of the other.
    fn flows(&mut self, count: usize) -> Vec<Flow> {
        let mut flows: Vec<Flow> = Vec::new();
        while flows.len() < count {
            let flow = match flows.is_empty() || self.random.percent(70) {
                true => self.flow(),
                false => {
                    let flow = self.random.pick(&flows).clone();
                    self.variation(flow)
                }
            };
            flows.push(flow);
        }
        flows
    }

    fn variation(&mut self, mut flow: Flow) -> Flow {
        let next = *self.random.pick(&[-1, 1]);
        // Of two ends the one by address, which has neighbours.
        let is_from = match (&flow.from, &flow.to) {
            (End::Ip(_), End::Pod(_)) => true,
            (End::Pod(_), End::Ip(_)) => false,
            _ => self.random.percent(50),
        };
        let end = if is_from { &mut flow.from } else { &mut flow.to };
        match (self.random.below(4), end) {
            (0, _) => flow.protocol = *self.random.pick(&Protocol::ALL),
            (1, _) => flow.port = flow.port.saturating_add_signed(next).max(1),
            (_, End::Ip(IpAddr::V4(ip))) => {
                *ip = ip.to_bits().saturating_add_signed(next.into()).into();
            }
            (_, End::Ip(IpAddr::V6(ip))) => {
                *ip = ip.to_bits().saturating_add_signed(next.into()).into();
            }
            (_, end @ End::Pod(_)) => *end = End::Pod(self.random.pick(&self.pods).clone()),
        }
        flow
    }

    fn flow(&mut self) -> Flow {
        let (mut from, mut to) = (self.end(), self.end());
        if !self.named.is_empty() && self.random.percent(12) {
            to = End::Ip(*self.random.pick(&self.named));
        }
        // A pod may always talk to itself: that is soon seen.
        while from == to && self.random.percent(85) {
            to = self.end();
        }
        if let (End::Ip(_), End::Ip(_)) = (&from, &to) {
            let pod = End::Pod(self.random.pick(&self.pods).clone());
            if self.random.percent(50) {
                from = pod;
            } else {
                to = pod;
            }
        }
        let (protocol, port) = self.destination_port(&to);
        Flow::new(from, to, protocol, port)
    }

    /// Any, or one that has a name at the destination.
    fn destination_port(&mut self, to: &End) -> (Protocol, u16) {
        if let End::Pod(name) = to
            && self.random.percent(40)
        {
            let is_it = |it: &&Value| it["kind"] == "Pod" && name_of(it) == *name;
            let pod = self.objects.iter().find(is_it).expect("a pod of the world");
            let spec = &pod["spec"];
            let containers = list(spec, "containers").iter().chain(list(spec, "initContainers"));
            let ports: Vec<&Value> = containers.flat_map(|it| list(it, "ports")).collect();
            if !ports.is_empty() {
                let port = *self.random.pick(&ports);
                let protocol = text(port, "protocol").unwrap_or("TCP");
                let protocol = Protocol::ALL.into_iter().find(|it| it.as_str() == protocol);
                let number = port["containerPort"].as_u64().and_then(|it| it.try_into().ok());
                return (protocol.expect("a protocol"), number.expect("a port"));
            }
        }
        let protocol = match self.random.below(10) {
            0..6 => Protocol::Tcp,
            6..9 => Protocol::Udp,
            _ => Protocol::Sctp,
        };
        let port = match self.random.percent(95) {
            true => *self.random.pick(&PORTS),
            false => u16::try_from(self.random.between(1, 65_535)).expect("a port"),
        };
        (protocol, port)
    }
}
