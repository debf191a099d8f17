//! What was seen on one side, as rules with the reason for each.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    Question,
    labels::Label,
    ports,
    ranges::{self, Range},
    traffic::{Address, Count, Port, Ports, Side, join},
    units::{Unit, Units},
};
use crate::{
    model::{Direction, Protocol},
    policy::{METADATA_NAME, declared},
};

/// A rule, and what keeps it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Explained {
    /// It.
    pub rule: declared::Rule,
    /// What is said above it, a line each.
    pub why: Vec<String>,
    /// What is said above each of its peers, by their order.
    pub peers: Vec<Vec<String>>,
    /// How many flows keep it; 0 for one that is assumed.
    pub flows: u64,
}

/// From so many ranges on addresses are taken for anybody's.
const ANYBODY: usize = 64;

/// Names of one address that are told.
const NAMES: usize = 4;

/// Addresses of nobody on the internet.
const PRIVATE: [&str; 3] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
const PRIVATE_V6: [&str; 1] = ["fc00::/7"];

/// What is needed to write rules of one side.
pub struct Context<'a> {
    pub question: &'a Question<'a>,
    pub units: &'a Units,
    /// Addresses of pods, nodes and Services.
    pub of_cluster: &'a BTreeSet<IpAddr>,
    pub namespace: &'a Arc<str>,
    pub direction: Direction,
    /// What is said of rules for DNS that nobody was seen to need.
    pub dns: &'a str,
}

impl Context<'_> {
    /// The rules of a side, and peers that nothing can be written for.
    pub fn rules(&self, side: &Side) -> (Vec<Explained>, Vec<String>) {
        let (mut rules, unwritable) = self.pods(side);
        let mut addresses = side.addresses.clone();
        self.add_own_nodes(side, &mut addresses);
        let (nodes, outside): (BTreeMap<_, _>, BTreeMap<_, _>) =
            addresses.into_iter().partition(|(_, address)| address.node.is_some());
        for (is_node, addresses) in [(true, nodes), (false, outside)] {
            let mut by_ports: BTreeMap<Vec<Port>, BTreeMap<IpAddr, Address>> = BTreeMap::new();
            for (ip, address) in addresses {
                let ports: Vec<Port> = address.ports.keys().copied().collect();
                by_ports.entry(ports).or_default().insert(ip, address);
            }
            for addresses in by_ports.values() {
                rules.push(if is_node { self.nodes(addresses, side) } else { self.outside(addresses) });
            }
        }
        (rules, unwritable)
    }

    /// A rule for each selector; pods with the same one cannot be told apart.
    fn pods(&self, side: &Side) -> (Vec<Explained>, Vec<String>) {
        type Key<'a> = (bool, &'a Arc<str>, Vec<Label>);
        let mut by_selector: BTreeMap<Key<'_>, (Vec<Unit>, Ports)> = BTreeMap::new();
        let mut unwritable = Vec::new();
        for (unit, ports) in &side.pods {
            let Some(selector) = self.units.selector(unit) else {
                unwritable
                    .push(format!("{}: its pods have no label that stays", unit.within(self.namespace)));
                continue;
            };
            let key = (unit.namespace != *self.namespace, &unit.namespace, selector);
            let (units, all) = by_selector.entry(key).or_default();
            units.push(unit.clone());
            join(all, ports);
        }
        let mut rules = Vec::new();
        for ((is_other, namespace, selector), (members, ports)) in by_selector {
            let names: Vec<String> = members.iter().map(|unit| unit.within(self.namespace)).collect();
            let mut rule = self.rule(&names.join(", "), &ports);
            let also = self.units.selected(namespace, &selector, &members);
            if !also.is_empty() {
                let also: Vec<String> = also.iter().map(|unit| unit.within(self.namespace)).collect();
                rule.why.push(format!("has no labels of its own: this selects {} too", also.join(", ")));
            }
            if members.iter().any(|unit| *unit.kind == *"Pod") {
                rule.why.push("a pod without a controller: see whether it is meant to stay".to_owned());
            }
            let by_name = || declared::Selector {
                match_labels: vec![(METADATA_NAME.to_owned(), namespace.to_string())],
                ..Default::default()
            };
            rule.rule.peers.push(declared::Peer {
                namespace_selector: is_other.then(by_name),
                pod_selector: Some(declared::Selector {
                    match_labels: in_words(&selector),
                    ..Default::default()
                }),
                ..Default::default()
            });
            rule.peers.push(Vec::new());
            rules.push(rule);
        }
        (rules, unwritable)
    }

    /// Where a pod asked its own node and others for the same port, the next pod's own node is another.
    fn add_own_nodes(&self, side: &Side, addresses: &mut BTreeMap<IpAddr, Address>) {
        if self.direction == Direction::Ingress {
            return;
        }
        let on_nodes = side.addresses.values().filter(|address| address.node.is_some());
        let ports: BTreeSet<Port> = on_nodes.flat_map(|address| address.ports.keys().copied()).collect();
        for (ip, own) in &side.own_nodes {
            for (port, count) in own.ports.iter().filter(|(port, _)| ports.contains(port)) {
                let address = addresses.entry(*ip).or_default();
                address.belongs_to(own.node.as_ref());
                address.ports.entry(*port).or_insert_with(|| count.clone());
            }
        }
    }

    fn nodes(&self, addresses: &BTreeMap<IpAddr, Address>, side: &Side) -> Explained {
        let ports = all_ports(addresses);
        let names: BTreeSet<&str> = addresses.values().filter_map(|it| it.node.as_deref()).collect();
        let names: Vec<&str> = names.into_iter().collect();
        let mut rule = self.rule(&format!("nodes, or pods on their network: {}", names.join(", ")), &ports);
        rule.why.push("no label selects a node: a node that comes later needs its address here".to_owned());
        if ports.keys().any(|port| side.through_nodes.contains_key(port)) {
            rule.why.push(
                "a Service has a port on every node that leads here: behind a node's address may be anybody who asks there"
                    .to_owned(),
            );
        }
        let node = |ip: &IpAddr| addresses.get(ip).and_then(|it| it.node.as_deref()).map(str::to_owned);
        self.add_ranges(&mut rule, addresses, &|ip| node(ip).into_iter().collect());
        rule
    }

    fn outside(&self, addresses: &BTreeMap<IpAddr, Address>) -> Explained {
        let ports = all_ports(addresses);
        let names = |ip: &IpAddr| -> Vec<String> {
            let names = self.question.names.get(ip);
            names.into_iter().flatten().map(ToString::to_string).collect()
        };
        let mut addresses_of: BTreeMap<String, usize> = BTreeMap::new();
        for name in addresses.keys().flat_map(names) {
            *addresses_of.entry(name).or_default() += 1;
        }
        let what = match addresses.len() {
            1 => "an address outside the cluster".to_owned(),
            many => format!("{many} addresses outside the cluster"),
        };
        let mut rule = self.rule(&what, &ports);
        let changing: Vec<String> = addresses_of
            .iter()
            .filter(|(_, addresses)| **addresses > 1)
            .map(|(name, addresses)| format!("{name} ({addresses} addresses)"))
            .collect();
        if !changing.is_empty() {
            rule.why.push(format!(
                "the addresses behind a name change, and these have done so: {}; the next will not be here",
                shortened(&changing, 8)
            ));
        } else if !addresses_of.is_empty() {
            rule.why.push("the addresses behind a name may change".to_owned());
        }
        let in_pods = addresses.keys().filter(|ip| self.question.end.in_pod_network(**ip)).count();
        if in_pods > 0 {
            rule.why.push(format!(
                "{in_pods} of them in the network of pods, though no pod is known that had them"
            ));
        }
        self.add_ranges(&mut rule, addresses, &names);
        rule
    }

    /// Adds addresses as ranges, each with what is called so.
    fn add_ranges(
        &self,
        rule: &mut Explained,
        addresses: &BTreeMap<IpAddr, Address>,
        names: &dyn Fn(&IpAddr) -> Vec<String>,
    ) {
        for is_v4 in [true, false] {
            let own: BTreeSet<IpAddr> =
                addresses.keys().filter(|ip| ip.is_ipv4() == is_v4).copied().collect();
            let others: BTreeSet<IpAddr> = self.of_cluster.difference(&own).copied().collect();
            let most = self.question.most_addresses;
            let merged = ranges::merge(&own, most, &others);
            // Nodes are not anybody, however many there are.
            let is_outside = addresses.values().all(|address| address.node.is_none());
            if is_outside && merged.len() > ANYBODY.max(most) {
                self.add_anybody(rule, &own, merged.len());
                continue;
            }
            for range in merged {
                rule.peers.push(self.of_range(&range, names));
                rule.rule.peers.push(block(range.net.to_string(), Vec::new()));
            }
        }
    }

    fn of_range(&self, range: &Range, names: &dyn Fn(&IpAddr) -> Vec<String>) -> Vec<String> {
        let all: BTreeSet<String> = range.holds.iter().flat_map(names).collect();
        let all: Vec<String> = all.into_iter().collect();
        let names = (!all.is_empty()).then(|| shortened(&all, NAMES));
        if range.net.prefix_len() == range.net.max_prefix_len() {
            return names.into_iter().collect();
        }
        let seen = format!("{} of its {} addresses were seen", range.holds.len(), ranges::size(&range.net));
        vec![names.map_or_else(|| seen.clone(), |names| format!("{seen}: {names}"))]
    }

    /// Addresses all over the internet are those of anybody.
    fn add_anybody(&self, rule: &mut Explained, own: &BTreeSet<IpAddr>, ranges: usize) {
        let is_v4 = own.first().is_some_and(IpAddr::is_ipv4);
        let (all, private): (&str, &[&str]) =
            if is_v4 { ("0.0.0.0/0", &PRIVATE) } else { ("::/0", &PRIVATE_V6) };
        let is_free = |net: &&&str| {
            let net: Option<IpNet> = net.parse().ok();
            net.is_some_and(|net| !own.iter().any(|ip| net.contains(ip)))
        };
        let except = private.iter().filter(is_free).map(|net| (*net).to_owned()).collect();
        rule.peers.push(vec![format!(
            "{} addresses in {ranges} places: this is ANYBODY but the private ranges, see whether it is meant",
            own.len()
        )]);
        rule.rule.peers.push(block(all.to_owned(), except));
    }

    /// A rule for these ports, with how many flows keep it.
    fn rule(&self, who: &str, ports: &Ports) -> Explained {
        let mut all = Count::default();
        ports.values().for_each(|count| all.join(count));
        let has = |is_seen: bool| -> BTreeSet<Protocol> {
            let ports = ports.iter().filter(|(_, count)| (count.flows() > 0) == is_seen);
            ports.map(|((protocol, _), _)| *protocol).collect()
        };
        let unseen: BTreeSet<Protocol> = has(false).difference(&has(true)).copied().collect();
        let mut why = Vec::new();
        match all.flows() {
            0 => why.push(format!("{who}: DNS, {}", self.dns)),
            _ => {
                why.push(format!("{who}: {}", counted(&all)));
                for protocol in unseen {
                    why.push(format!(
                        "{protocol} was not seen: DNS asks again by it, or is asked by it, at times"
                    ));
                }
            }
        }
        if all.flows() > 0 && !all.arrived {
            why.push("datagrams without an answer: nothing proves that they arrived".to_owned());
        }
        why.extend(ports::warning(&ports.keys().copied().collect()));
        let ports = ports::spans(ports.keys().copied()).iter().map(ports::Span::declared).collect();
        Explained {
            rule: declared::Rule { ports, ..Default::default() },
            why,
            peers: Vec::new(),
            flows: all.flows(),
        }
    }
}

fn all_ports(addresses: &BTreeMap<IpAddr, Address>) -> Ports {
    let mut ports = Ports::default();
    addresses.values().for_each(|address| join(&mut ports, &address.ports));
    ports
}

fn block(cidr: String, except: Vec<String>) -> declared::Peer {
    declared::Peer { ip_block: Some(declared::IpBlock { cidr, except }), ..Default::default() }
}

/// Labels as they are declared.
pub fn in_words(labels: &[Label]) -> Vec<(String, String)> {
    let mut words: Vec<(String, String)> =
        labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    words.sort();
    words
}

/// `3 flows, 2026-01-01T00:00:10Z to 2026-01-01T00:00:30Z`.
pub fn counted(count: &Count) -> String {
    let (first, last) = (count.first.to_the_second(), count.last.to_the_second());
    match count.flows() {
        1 => format!("1 flow, {first}"),
        flows if first == last => format!("{flows} flows, {first}"),
        flows => format!("{flows} flows, {first} to {last}"),
    }
}

/// So many of them, and how many there are besides.
fn shortened(names: &[String], most: usize) -> String {
    let some = names.iter().take(most).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(most) {
        0 => some,
        more => format!("{some} and {more} more"),
    }
}
