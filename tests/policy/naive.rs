//! What the API's text says of a flow, read from the objects as they are: as plain and as slow as the text.
//!
//! Where the text leaves it open (policies of one priority that differ, names of which nothing is known), every way it
//! could go is followed: see `tiers.rs`. A verdict is unknown if those ways differ.

use std::net::IpAddr;

use serde_json::Value;

use super::{
    case::{Answer, By, Direction, Dns, Effect, End, Flow, Verdict},
    matching::{Seen, Target, domain_names_hold, list, range_holds, saw, selects, text},
};

/// The objects, and who is asked.
pub struct Naive<'a> {
    pub objects: &'a [Value],
    pub dns: Option<&'a Dns>,
    pub seen: Option<&'a Seen>,
}

/// An end of a flow.
#[derive(Clone)]
pub struct Party<'a> {
    /// The pod, unless it is its node: a hostNetwork pod is.
    pub pod: Option<&'a Value>,
    /// The node that it is.
    pub node: Option<&'a str>,
    /// Every address that it may have in this flow.
    pub addresses: Vec<IpAddr>,
}

/// A flow as one end sees it.
pub struct Question<'a> {
    pub direction: Direction,
    pub own: &'a Value,
    pub peer: Party<'a>,
    pub target: Target<'a>,
}

/// Whether something matches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Certainty {
    No,
    /// What it depends on is not known.
    Maybe,
    Yes,
}

impl From<bool> for Certainty {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

/// A way that a decision may go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Way {
    pub allowed: bool,
    pub by: Vec<By>,
}

/// `namespace/name`, `name` for what is in no namespace.
pub fn name_of(object: &Value) -> String {
    let metadata = &object["metadata"];
    let name = text(metadata, "name").unwrap_or_default();
    match text(metadata, "namespace") {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

fn namespace_of(object: &Value) -> &str {
    text(&object["metadata"], "namespace").unwrap_or("default")
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(serde_json::Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

fn is_host_network(pod: &Value) -> bool {
    pod["spec"]["hostNetwork"].as_bool() == Some(true)
}

/// The addresses of a pod's status.
fn pod_addresses(pod: &Value) -> Vec<IpAddr> {
    let status = &pod["status"];
    let texts = text(status, "podIP")
        .into_iter()
        .chain(list(status, "podIPs").iter().filter_map(|it| text(it, "ip")));
    texts.filter_map(|it| it.parse().ok()).map(|it: IpAddr| it.to_canonical()).collect()
}

/// The addresses of a node's status; names are none.
fn node_addresses(node: &Value) -> impl Iterator<Item = IpAddr> {
    list(&node["status"], "addresses").iter().filter_map(|it| text(it, "address")?.parse().ok())
}

impl<'a> Naive<'a> {
    /// What each end's policies say.
    pub fn ask(&self, flow: &Flow) -> [Answer; 2] {
        Direction::BOTH.map(|direction| match self.question(flow, direction) {
            Some(question) => self.answer(&question),
            None => Answer { verdict: Verdict::Allow, ways: vec![vec![By::nobody(Effect::Exempt)]] },
        })
    }

    /// What the policies are to be asked; `None` where they do not apply.
    pub fn question(&self, flow: &Flow, direction: Direction) -> Option<Question<'a>> {
        let (own_end, peer_end) = match direction {
            Direction::Egress => (&flow.from, &flow.to),
            Direction::Ingress => (&flow.to, &flow.from),
        };
        let (own, peer) = (self.find(own_end), self.find(peer_end));
        // An end by address has no policy of its own, and no policy selects a node.
        let (Some(pod), End::Pod(_)) = (own.pod, own_end) else { return None };
        // "A Pod cannot block access to itself", and its own node cannot be kept from it.
        if peer.pod.is_some_and(|peer| std::ptr::eq(peer, pod)) {
            saw(self.seen, "exempt: itself");
            return None;
        }
        let own_node = text(&pod["spec"], "nodeName");
        if own_node.is_some() && own_node == peer.node {
            saw(self.seen, "exempt: own node");
            return None;
        }
        let destination = if direction == Direction::Egress { peer.pod } else { Some(pod) };
        let target = Target { protocol: flow.protocol, port: flow.port, destination };
        Some(Question { direction, own: pod, peer, target })
    }

    pub fn answer(&self, question: &Question<'a>) -> Answer {
        let ways = self.decide(question);
        let allowed = ways.iter().any(|way| way.allowed);
        let denied = ways.iter().any(|way| !way.allowed);
        let verdict = match (allowed, denied) {
            (true, true) => Verdict::Unknown,
            (true, false) => Verdict::Allow,
            (false, true) => Verdict::Deny,
            (false, false) => unreachable!("it goes some way"),
        };
        Answer { verdict, ways: ways.into_iter().map(|way| way.by).collect() }
    }

    /// The objects of a kind. The group tells Kubernetes' own from others' of the same name.
    pub fn of_kind(&self, group: &str, kind: &str) -> impl Iterator<Item = &'a Value> {
        self.objects.iter().filter(move |it| {
            let version = text(it, "apiVersion").unwrap_or_default();
            text(it, "kind") == Some(kind) && version.rsplit_once('/').map_or("", |(group, _)| group) == group
        })
    }

    fn pods(&self) -> impl Iterator<Item = &'a Value> {
        self.of_kind("", "Pod")
    }

    fn find(&self, end: &End) -> Party<'a> {
        match end {
            End::Pod(name) => {
                let (namespace, name) = name.split_once('/').expect("namespace/name");
                let is_it = |it: &&Value| {
                    namespace_of(it) == namespace && text(&it["metadata"], "name") == Some(name)
                };
                let pod = self.pods().find(is_it).unwrap_or_else(|| panic!("no pod {namespace}/{name}"));
                let addresses = pod_addresses(pod);
                if !is_host_network(pod) {
                    return Party { pod: Some(pod), node: None, addresses };
                }
                let node = text(&pod["spec"], "nodeName")
                    .or_else(|| addresses.iter().find_map(|it| self.node_at(*it)));
                Party { pod: None, node, addresses }
            }
            End::Ip(ip) => {
                let ip = ip.to_canonical();
                let pod = self.pods().find(|it| !is_host_network(it) && pod_addresses(it).contains(&ip));
                let node = if pod.is_none() { self.node_at(ip) } else { None };
                Party { pod, node, addresses: vec![ip] }
            }
        }
    }

    /// The node that has an address: its own status says so, or that of a pod in its network.
    fn node_at(&self, ip: IpAddr) -> Option<&'a str> {
        let node = self.of_kind("", "Node").find(|it| node_addresses(it).any(|it| it == ip));
        if let Some(node) = node {
            return text(&node["metadata"], "name");
        }
        let mut on_it = self.pods().filter(|it| is_host_network(it) && pod_addresses(it).contains(&ip));
        on_it.find_map(|pod| text(&pod["spec"], "nodeName"))
    }

    pub fn selects_pod(&self, selector: &Value, pod: &'a Value) -> bool {
        let labels = pod["metadata"].get("labels");
        selects(selector, &|key| labels.and_then(|it| text(it, key)), self.seen)
    }

    /// Every namespace has the label with its name: the API server adds it.
    pub fn selects_namespace(&self, selector: &Value, name: &'a str) -> bool {
        let mut namespaces = self.of_kind("", "Namespace");
        let labels = namespaces.find(|it| text(&it["metadata"], "name") == Some(name));
        let labels = labels.and_then(|it| it["metadata"].get("labels"));
        let label = |key: &str| match key {
            "kubernetes.io/metadata.name" => Some(name),
            _ => labels.and_then(|it| text(it, key)),
        };
        selects(selector, &label, self.seen)
    }

    /// A selector for namespaces together with one for the pods in them.
    pub fn selects_both(&self, namespaces: &Value, pods: &Value, pod: &'a Value) -> bool {
        self.selects_namespace(namespaces, namespace_of(pod)) && self.selects_pod(pods, pod)
    }

    pub fn in_range(&self, range: &str, peer: &Party<'_>) -> bool {
        peer.addresses.iter().any(|ip| range_holds(range, *ip, self.seen))
    }

    /// "It selects the nodeIPs … by matching on the IPs present in the node.Status.Addresses field". A pod in its node's
    /// network has an address of the node; where no object tells of that node, its labels may be any.
    pub fn is_node(&self, selector: &Value, peer: &Party<'_>) -> Certainty {
        let has = |node: &&Value| node_addresses(node).any(|ip| peer.addresses.contains(&ip));
        let nodes: Vec<&Value> = self.of_kind("", "Node").filter(has).collect();
        let is_on = |pod: &Value| {
            is_host_network(pod) && pod_addresses(pod).iter().any(|ip| peer.addresses.contains(ip))
        };
        if nodes.is_empty() && self.pods().any(is_on) {
            saw(self.seen, "peer: nodes, no object");
            let selects_all =
                ["matchLabels", "matchExpressions"].iter().all(|it| selector.get(*it).is_none_or(is_empty));
            return if selects_all { Certainty::Yes } else { Certainty::Maybe };
        }
        let is_selected = |node: &Value| {
            let labels = node["metadata"].get("labels");
            selects(selector, &|key| labels.and_then(|it| text(it, key)), self.seen)
        };
        nodes.into_iter().any(is_selected).into()
    }

    /// Without any knowledge of names nothing can be said.
    pub fn has_domain_name(&self, patterns: &[Value], peer: &Party<'_>) -> Certainty {
        match self.dns {
            None => Certainty::Maybe,
            Some(dns) => {
                peer.addresses.iter().any(|ip| domain_names_hold(patterns, dns, *ip, self.seen)).into()
            }
        }
    }

    /// What the NetworkPolicies say: `None` where none selects the pod in this direction.
    pub fn network_policies(&self, question: &Question<'a>) -> Option<Way> {
        let mut way: Option<Way> = None;
        for policy in self.isolating(question) {
            let spec = &policy["spec"];
            let way = way.get_or_insert(Way { allowed: false, by: Vec::new() });
            let name = Some(format!("NetworkPolicy/{}", name_of(policy)));
            let mut miss = By { policy: name.clone(), ..By::nobody(Effect::SelectsNoRuleMatches) };
            let mut allows = false;
            for (index, rule) in list(spec, question.direction.as_str()).iter().enumerate() {
                let Some(peer) = self.first_peer(rule, policy, question) else { continue };
                let ports = list(rule, "ports");
                let port = ports.iter().position(|it| question.target.is_port(it, self.seen));
                if port.is_none() && !ports.is_empty() {
                    if miss.effect == Effect::SelectsNoRuleMatches {
                        miss.effect = Effect::SelectsPortsDoNotMatch;
                        miss.rule_index = Some(index);
                    }
                    continue;
                }
                allows = true;
                let policy = name.clone();
                let rule_index = Some(index);
                way.by.push(By { policy, effect: Effect::Allow, rule_index, rule_name: None, peer, port });
            }
            way.allowed |= allows;
            if !allows {
                way.by.push(miss);
            }
        }
        way
    }

    /// The NetworkPolicies that select the pod in this direction.
    pub fn isolating(&self, question: &Question<'a>) -> Vec<&'a Value> {
        let selects = |policy: &&Value| {
            let spec = &policy["spec"];
            namespace_of(policy) == namespace_of(question.own)
                && spec.get("podSelector").is_none_or(|it| self.selects_pod(it, question.own))
                && affects(spec, question.direction)
        };
        self.of_kind("networking.k8s.io", "NetworkPolicy").filter(selects).collect()
    }

    /// Whether a rule of a NetworkPolicy matches.
    pub fn allows(&self, rule: &Value, policy: &'a Value, question: &Question<'a>) -> bool {
        let ports = list(rule, "ports");
        self.first_peer(rule, policy, question).is_some()
            && (ports.is_empty() || ports.iter().any(|it| question.target.is_port(it, self.seen)))
    }

    /// The first peer of a NetworkPolicy's rule that matches: "if this field is empty or missing, this rule matches
    /// all", which is `Some(None)`.
    fn first_peer(&self, rule: &Value, policy: &'a Value, question: &Question<'a>) -> Option<Option<usize>> {
        let peers = list(rule, question.direction.peers());
        if peers.is_empty() {
            saw(self.seen, "peer: any");
            return Some(None);
        }
        peers.iter().position(|it| self.is_peer(it, policy, question)).map(Some)
    }

    /// Whether an element of `from` or `to` matches.
    pub fn is_peer(&self, peer: &'a Value, policy: &'a Value, question: &Question<'a>) -> bool {
        let everything = Value::Object(serde_json::Map::new());
        let (pods, namespaces) = (peer.get("podSelector"), peer.get("namespaceSelector"));
        let (holds, what) = if let Some(block) = peer.get("ipBlock") {
            let inside = |ip: &IpAddr| {
                let holds = range_holds(text(block, "cidr").expect("a range"), *ip, self.seen);
                let mut excepts = list(block, "except").iter().filter_map(Value::as_str);
                let excepted = holds && excepts.any(|it| range_holds(it, *ip, self.seen));
                if excepted {
                    saw(self.seen, "ipBlock: excepted");
                }
                holds && !excepted
            };
            (question.peer.addresses.iter().any(inside), "peer: ipBlock")
        } else if let Some(pod) = question.peer.pod {
            match (namespaces, pods) {
                (Some(namespaces), _) => (
                    self.selects_both(namespaces, pods.unwrap_or(&everything), pod),
                    if pods.is_some() { "peer: both selectors" } else { "peer: namespaceSelector" },
                ),
                (None, Some(pods)) => (
                    namespace_of(pod) == namespace_of(policy) && self.selects_pod(pods, pod),
                    "peer: podSelector",
                ),
                (None, None) => panic!("no peer: {peer}"),
            }
        } else {
            (false, "")
        };
        if holds {
            saw(self.seen, what);
        }
        holds
    }
}

/// "If this field is not specified, it will default based on the existence of ingress or egress rules".
fn affects(spec: &Value, direction: Direction) -> bool {
    let types = list(spec, "policyTypes");
    match direction {
        Direction::Ingress if types.is_empty() => true,
        Direction::Egress if types.is_empty() => !list(spec, "egress").is_empty(),
        Direction::Ingress => types.iter().any(|it| it.as_str() == Some("Ingress")),
        Direction::Egress => types.iter().any(|it| it.as_str() == Some("Egress")),
    }
}
