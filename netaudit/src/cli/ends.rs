//! The ends of connections by name: which pods, workloads, nodes and addresses a set of connections speaks of.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use anyhow::bail;
use serde_json::{Value, json};
use smallvec::SmallVec;

use super::{eval_flow::NOW, one_line};
use crate::{
    cluster::{Broken, Cluster, Kind, Namespace, Object, Pod, Workload},
    model::Direction,
    policy::{
        CompiledForeign, CompiledPolicy, Labels,
        symbolic::{AddressSet, ConnectionSet, NodeEnd, OTHER_NAMESPACE, PortSet, Representatives, Universe},
    },
};

/// How many names a line holds.
const NAMES: usize = 6;

/// The kind of a pod, and of the workload of one without a controller.
const POD: &str = "Pod";

/// The kind of workload that stands for a set of labels.
const REPRESENTATIVE: &str = "Representative";

/// All ends of one or two clusters with the same objects, by name.
pub(super) struct Ends {
    pub universe: Arc<Universe>,
    pods: Vec<Shown>,
    nodes: Vec<NodeEnd>,
    /// By group, whether it is one pod that never has a second beside it.
    single: Vec<bool>,
    /// By namespace: how many pods each workload has.
    sizes: BTreeMap<Arc<str>, BTreeMap<Workload, usize>>,
    /// By namespace: names that more than one workload or pod has.
    shared_names: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Pods on their nodes' network, by namespace and name, with an address.
    hosts: BTreeMap<(Arc<str>, Arc<str>), Option<IpAddr>>,
    pub are_representatives: bool,
    /// What is to be said of how the ends were found.
    pub notes: Vec<String>,
}

struct Shown {
    namespace: Arc<str>,
    workload: Workload,
    name: Arc<str>,
    labels: Labels,
    addresses: SmallVec<[IpAddr; 2]>,
}

/// Ends with the same connections to the same ends.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Side {
    /// Groups of pods.
    Pods(BTreeSet<usize>),
    /// Groups of node addresses.
    Nodes(BTreeSet<usize>),
    /// Addresses outside; with the number of a pattern, those that have a name of this pattern.
    Outside(Option<usize>, AddressSet),
}

/// A line of a matrix.
pub(super) struct Row {
    pub from: Side,
    pub to: Side,
    pub ports: PortSet,
}

impl Ends {
    /// Of clusters with the same pods and nodes. Where there are no pods, `combined` says whether representatives are to
    /// stand for all combinations of labels.
    pub fn new(clusters: &mut [&mut Cluster], combined: bool) -> Self {
        let mut notes = Vec::new();
        let are_representatives = clusters[0].pod_ends().is_empty();
        if are_representatives {
            notes.extend(represent(clusters, combined));
        }
        let cluster = &*clusters[0];
        let (ids, ends): (Vec<_>, Vec<_>) = cluster.pod_ends().into_iter().unzip();
        let nodes = cluster.node_ends();
        let rules: Vec<_> = clusters.iter().map(|it| it.rules().clone()).collect();
        let universe = Arc::new(Universe::new(&rules, ends, nodes.clone()));
        let show = |pod: &Pod| Shown {
            namespace: pod.namespace.clone(),
            workload: pod.workload.clone(),
            name: pod.name.clone(),
            labels: pod.labels.clone(),
            addresses: pod.ips.clone(),
        };
        let pods: Vec<Shown> = ids.iter().filter_map(|id| cluster.pod(*id)).map(show).collect();
        let mut sizes: BTreeMap<Arc<str>, BTreeMap<Workload, usize>> = BTreeMap::new();
        for pod in &pods {
            let workloads = sizes.entry(pod.namespace.clone()).or_default();
            *workloads.entry(pod.workload.clone()).or_default() += 1;
        }
        let single = |members: &[usize]| matches!(members, [one] if *pods[*one].workload.kind == *POD);
        let single = universe.groups().iter().map(|it| single(&it.members)).collect();
        let shared_names = shared_names(&pods, &sizes);
        let hosts = cluster.pods().map(|(_, pod)| pod).filter(|pod| pod.host_network);
        let hosts = hosts.map(|pod| ((pod.namespace.clone(), pod.name.clone()), pod.ips.first().copied()));
        let hosts = hosts.collect();
        Self { universe, pods, nodes, single, sizes, shared_names, hosts, are_representatives, notes }
    }

    /// The lines that a set consists of: ends with equal connections together, in order.
    pub fn rows(&self, set: &ConnectionSet) -> Vec<Row> {
        let groups = self.universe.groups().len();
        let mut rows: BTreeMap<(bool, Side, PortSet), BTreeSet<usize>> = BTreeMap::new();
        for source in 0..groups {
            let mut by_ports: HashMap<&PortSet, BTreeSet<usize>> = HashMap::new();
            for destination in 0..groups {
                let ports = &**set.between(source, destination);
                // A pod alone has no other of its group to talk to.
                if ports.is_empty() || source == destination && self.single[source] {
                    continue;
                }
                by_ports.entry(ports).or_default().insert(destination);
            }
            for (ports, destinations) in by_ports {
                rows.entry((true, Side::Pods(destinations), ports.clone())).or_default().insert(source);
            }
        }
        for direction in [Direction::Egress, Direction::Ingress] {
            let is_egress = direction == Direction::Egress;
            for group in 0..groups {
                let outside = set.outside(direction, group);
                let mut nodes: HashMap<&PortSet, BTreeSet<usize>> = HashMap::new();
                for (node, ports) in outside.nodes.iter().enumerate().filter(|(_, ports)| !ports.is_empty()) {
                    nodes.entry(ports).or_default().insert(node);
                }
                let nodes = nodes.into_iter().map(|(ports, nodes)| (Side::Nodes(nodes), ports.clone()));
                let mut all: Vec<(Side, PortSet)> = nodes.collect();
                let part = |pattern| {
                    move |(addresses, ports): (&AddressSet, &PortSet)| {
                        (Side::Outside(pattern, addresses.clone()), ports.clone())
                    }
                };
                all.extend(outside.unnamed.iter().map(part(None)));
                for (pattern, named) in outside.named.iter().enumerate() {
                    // Only what the name adds: the rest is told of the plain addresses.
                    all.extend(named.difference(&outside.unnamed).iter().map(part(Some(pattern))));
                }
                for (other, ports) in all {
                    rows.entry((is_egress, other, ports)).or_default().insert(group);
                }
            }
        }
        let row = |((is_egress, other, ports), groups): ((bool, Side, PortSet), BTreeSet<usize>)| {
            let (own, other) = (Side::Pods(groups), other);
            if is_egress { Row { from: own, to: other, ports } } else { Row { from: other, to: own, ports } }
        };
        let mut rows: Vec<Row> = rows.into_iter().map(row).collect();
        rows.sort_by_cached_key(|row| (self.key(&row.from), self.key(&row.to), row.ports.clone()));
        rows
    }

    fn key(&self, side: &Side) -> (u8, Vec<String>) {
        let kind = match side {
            Side::Pods(_) => 0,
            Side::Nodes(_) => 1,
            Side::Outside(..) => 2,
        };
        (kind, self.names(side))
    }

    /// Whether an end is meant by `NAMESPACE`, `NAMESPACE/WORKLOAD`, `NAMESPACE/POD`, either with its kind before the name,
    /// or an address.
    pub fn filter(&self, words: &str) -> anyhow::Result<Filter> {
        if let Ok(ip) = words.parse::<IpAddr>() {
            let ip = ip.to_canonical();
            let has = |it: &[usize]| it.iter().any(|it| self.pods[*it].addresses.contains(&ip));
            let pods: Vec<bool> = self.universe.groups().iter().map(|it| has(&it.members)).collect();
            let is = |it: &[usize]| it.iter().any(|it| self.nodes[*it].address == Some(ip));
            let nodes: Vec<bool> = self.universe.nodes().iter().map(|it| is(&it.members)).collect();
            let is_outside = !pods.contains(&true) && !nodes.contains(&true);
            return Ok(Filter { pods, nodes, address: is_outside.then_some(ip) });
        }
        let (namespace, name) = words.split_once('/').map_or((words, None), |(a, b)| (a, Some(b)));
        let means = |pod: &Shown| {
            let is_name = |name: &str| match name.split_once('/') {
                None => *pod.workload.name == *name || *pod.name == *name,
                Some((kind, name)) => {
                    pod.workload.kind.eq_ignore_ascii_case(kind) && *pod.workload.name == *name
                        || kind.eq_ignore_ascii_case(POD) && *pod.name == *name
                }
            };
            *pod.namespace == *namespace && name.is_none_or(is_name)
        };
        let members = |it: &[usize]| it.iter().any(|it| means(&self.pods[*it]));
        let pods: Vec<bool> = self.universe.groups().iter().map(|it| members(&it.members)).collect();
        if !pods.contains(&true) {
            let host = name.and_then(|name| self.hosts.get(&(namespace.into(), name.into())));
            if let Some(ip) = host {
                let ip = ip.map(|ip| format!(": ask for {ip}")).unwrap_or_default();
                bail!(
                    "{words:?} is on its node's network, where no policy selects it, and is told as its node{ip}"
                );
            }
            bail!("{words:?} is no namespace with pods, no workload or pod (NAMESPACE/NAME), and no address");
        }
        Ok(Filter { pods, nodes: vec![false; self.universe.nodes().len()], address: None })
    }

    /// The names of an end, as short as they can be said.
    pub fn names(&self, side: &Side) -> Vec<String> {
        match side {
            Side::Pods(groups) => self.pod_names(groups),
            Side::Nodes(groups) => {
                let members = groups.iter().flat_map(|it| &self.universe.nodes()[*it].members);
                let members: Vec<_> = members.map(|it| &self.nodes[*it]).collect();
                if members.len() == self.nodes.len() && members.len() > 1 {
                    return vec!["every other node".to_owned()];
                }
                let name = |end: &NodeEnd| match end.address {
                    Some(ip) => format!("node {} ({ip})", end.name),
                    None => format!("node {}", end.name),
                };
                members.into_iter().map(name).collect()
            }
            Side::Outside(None, addresses) => addresses.words(),
            Side::Outside(Some(pattern), addresses) => {
                let name = self.pattern(*pattern);
                match addresses.is_all() {
                    true => vec![format!("addresses named {name}")],
                    false => vec![format!("addresses named {name} in {addresses}")],
                }
            }
        }
    }

    fn pattern(&self, pattern: usize) -> String {
        self.universe.patterns().nth(pattern).map(ToString::to_string).unwrap_or_default()
    }

    fn pod_names(&self, groups: &BTreeSet<usize>) -> Vec<String> {
        let members: BTreeSet<usize> =
            groups.iter().flat_map(|it| &self.universe.groups()[*it].members).copied().collect();
        if members.len() == self.pods.len() && self.sizes.len() > 1 {
            return vec!["every pod".to_owned()];
        }
        let mut namespaces: BTreeMap<&Arc<str>, BTreeMap<&Workload, Vec<&Shown>>> = BTreeMap::new();
        for pod in members.iter().map(|it| &self.pods[*it]) {
            namespaces.entry(&pod.namespace).or_default().entry(&pod.workload).or_default().push(pod);
        }
        let mut names = Vec::new();
        for (namespace, workloads) in namespaces {
            let all = &self.sizes[namespace];
            let is_whole =
                |(workload, pods): (&&Workload, &Vec<&Shown>)| all.get(*workload) == Some(&pods.len());
            let is_all = workloads.len() == all.len() && workloads.iter().all(is_whole);
            if is_all && (all.len() > 1 || self.are_representatives) {
                names.push(match **namespace == *OTHER_NAMESPACE {
                    true => "every pod of any other namespace".to_owned(),
                    false => format!("every pod of {namespace}"),
                });
                continue;
            }
            let shared = self.shared_names.get(namespace);
            // With its kind where another has the name too.
            let full = |kind: &str, name: &Arc<str>| match shared.is_some_and(|it| it.contains(name)) {
                true => format!("{namespace}/{kind}/{name}"),
                false => format!("{namespace}/{name}"),
            };
            for (workload, pods) in workloads {
                if all.get(workload) == Some(&pods.len()) {
                    names.push(full(&workload.kind, &workload.name));
                } else {
                    names.extend(pods.iter().map(|pod| full(POD, &pod.name)));
                }
            }
        }
        names
    }

    /// An end for people.
    pub fn text(&self, side: &Side) -> String {
        let names: Vec<_> = self.names(side).iter().map(|it| one_line(it)).collect();
        let more = names.len().saturating_sub(NAMES);
        if more > 1 {
            return format!("{} and {more} more", names[..NAMES].join(", "));
        }
        names.join(", ")
    }

    /// An end for programs, with every name.
    pub fn json(&self, side: &Side) -> Value {
        match side {
            Side::Pods(_) => json!({ "kind": "pods", "names": self.names(side) }),
            Side::Nodes(_) => json!({ "kind": "nodes", "names": self.names(side) }),
            Side::Outside(pattern, addresses) => json!({
                "kind": "addresses",
                "names": self.names(side),
                "networks": addresses.networks(),
                "named": pattern.map(|it| self.pattern(it)),
            }),
        }
    }

    /// A line for programs.
    pub fn row_json(&self, row: &Row) -> Value {
        let ports: Vec<_> = (row.ports.iter())
            .map(|(protocol, first, last)| json!({ "protocol": protocol, "first": first, "last": last }))
            .collect();
        json!({ "from": self.json(&row.from), "to": self.json(&row.to), "ports": ports, "text": self.row_text(row) })
    }

    /// A line for people.
    pub fn row_text(&self, row: &Row) -> String {
        format!("{} → {}: {}", self.text(&row.from), self.text(&row.to), row.ports)
    }

    /// Of representatives, the group of those with one label less, for each label.
    pub fn with_a_label_less(&self, group: usize) -> Vec<usize> {
        let pod = |group: usize| &self.pods[self.universe.groups()[group].members[0]];
        let own = pod(group);
        let is_less = |other: &Shown| {
            other.namespace == own.namespace
                && other.labels.iter().count() + 1 == own.labels.iter().count()
                && other
                    .labels
                    .iter()
                    .all(|(key, value)| own.labels.get(key).is_some_and(|it| **it == *value))
        };
        (0..self.universe.groups().len()).filter(|it| is_less(pod(*it))).collect()
    }
}

/// Names that a namespace's workloads and pods have more than once: Kubernetes keeps them apart by kind only.
fn shared_names(
    pods: &[Shown],
    sizes: &BTreeMap<Arc<str>, BTreeMap<Workload, usize>>,
) -> BTreeMap<Arc<str>, BTreeSet<Arc<str>>> {
    let mut holders: BTreeMap<(&Arc<str>, &Arc<str>), BTreeSet<&str>> = BTreeMap::new();
    for (namespace, workload) in sizes.iter().flat_map(|(it, all)| all.keys().map(move |one| (it, one))) {
        holders.entry((namespace, &workload.name)).or_default().insert(&workload.kind);
    }
    for pod in pods {
        let own = *pod.workload.kind == *REPRESENTATIVE && pod.workload.name == pod.name;
        holders.entry((&pod.namespace, &pod.name)).or_default().insert(if own {
            REPRESENTATIVE
        } else {
            POD
        });
    }
    let mut shared: BTreeMap<Arc<str>, BTreeSet<Arc<str>>> = BTreeMap::new();
    for ((namespace, name), kinds) in holders {
        if kinds.len() > 1 {
            shared.entry(namespace.clone()).or_default().insert(name.clone());
        }
    }
    shared
}

/// Which ends are asked for.
pub(super) struct Filter {
    pods: Vec<bool>,
    nodes: Vec<bool>,
    address: Option<IpAddr>,
}

impl Filter {
    /// The part of an end that is asked for; `None` where that is nothing.
    pub fn part(&self, side: &Side) -> Option<Side> {
        let part = |all: &BTreeSet<usize>, wanted: &[bool]| {
            let part: BTreeSet<usize> = all.iter().copied().filter(|it| wanted[*it]).collect();
            (!part.is_empty()).then_some(part)
        };
        match side {
            Side::Pods(groups) => part(groups, &self.pods).map(Side::Pods),
            Side::Nodes(groups) => part(groups, &self.nodes).map(Side::Nodes),
            Side::Outside(_, addresses) => {
                self.address.is_some_and(|ip| addresses.contains(ip)).then(|| side.clone())
            }
        }
    }
}

/// Puts representatives into clusters without pods. Returns what is to be said of them.
fn represent(clusters: &mut [&mut Cluster], wants_all: bool) -> Vec<String> {
    let cluster = &*clusters[0];
    let known = cluster.namespace_views();
    // It may be that of any namespace, and then nothing is known of their labels.
    let is_any = |broken: &Broken| broken.kind == Some(Kind::Namespace) && broken.key.is_none();
    let combined = wants_all && !cluster.broken().any(is_any);
    let policies: Vec<&CompiledPolicy> =
        clusters.iter().flat_map(|it| it.policies()).map(|it| &**it).collect();
    let foreign: Vec<&CompiledForeign> =
        clusters.iter().flat_map(|it| it.foreign_policies()).map(|it| &**it).collect();
    let found = Representatives::new(&policies, &foreign, &known, combined);
    let mut notes = vec![format!(
        "there is no Pod, so {} sets of labels that the policies tell apart stand for pods; their named ports are not \
         known, nor whether their addresses are in a range that a rule names",
        found.pods.len()
    )];
    if wants_all && !found.complete {
        notes.push(
            "these are not all combinations of labels: pods that several selectors select may differ"
                .to_owned(),
        );
    }
    for cluster in clusters {
        for (name, labels) in &found.namespaces {
            let namespace = Namespace { name: name.clone(), labels: labels.clone() };
            cluster.apply(Object::Namespace(namespace), NOW);
        }
        for (namespace, labels) in &found.pods {
            let name: Arc<str> = match labels.is_empty() {
                true => "other pods".into(),
                false => labels.to_string().into(),
            };
            let pod = Pod {
                namespace: namespace.clone(),
                name: name.clone(),
                uid: format!("{namespace}/{name}").into(),
                config_hash: None,
                labels: labels.clone(),
                node: None,
                ips: Default::default(),
                host_network: false,
                completed: false,
                has_runtime_class: false,
                ports: [].into(),
                workload: Workload { kind: REPRESENTATIVE.into(), name },
                created: None,
            };
            cluster.apply(Object::Pod(pod), NOW);
        }
    }
    notes
}
