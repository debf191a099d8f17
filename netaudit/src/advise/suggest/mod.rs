//! A first set of policies for namespaces that have none, from what their pods were seen to do.
//!
//! ```text
//! pods of then ──▶ Units: who can be told apart, by which labels ──┐
//! flows that count ──▶ Traffic: what each unit sent and received ──┼──▶ a policy a unit, with the reason for each rule ──▶ YAML
//! policies at the end ──▶ who has one already ─────────────────────┘
//! ```
//!
//! Which flows count is decided before: see `replay::Gathered`. A rule is as narrow as what was seen: peers by the labels of their
//! workload, ports as they are on the pods, addresses one by one. Where nothing narrow can be written nothing is, and it is said.
//! Whether all that counts still passes is not taken for granted from here: who calls asks the evaluator.

mod dns;
mod labels;
mod ports;
mod ranges;
mod rules;
mod traffic;
mod units;
mod write;

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use self::{
    dns::{Dns, Servers},
    rules::{Context, counted, in_words},
    traffic::{Port, Side, Traffic},
    units::{Group, Units},
};
pub use self::{
    rules::Explained,
    traffic::Seen,
    units::Unit,
    write::{comment, document, manifest},
};
use crate::{
    cluster::{Cluster, Kind, Pod, Service},
    model::Direction,
    policy::{Certainty, Labels, NamespaceView, Tier, declared},
};

/// What is asked for, and all that is known.
pub struct Question<'a> {
    /// The namespaces that are to get policies.
    pub namespaces: &'a BTreeSet<Arc<str>>,
    /// Whether workloads that a policy selects get one too.
    pub all: bool,
    /// The objects at the end of that time.
    pub end: &'a Cluster,
    /// Every state that every pod had in that time.
    pub pods: Vec<&'a Pod>,
    /// The same of Services.
    pub services: Vec<&'a Service>,
    /// Flows that count.
    pub seen: Vec<Seen<'a>>,
    /// What DNS called addresses outside.
    pub names: &'a BTreeMap<IpAddr, BTreeSet<Arc<str>>>,
    /// So many addresses of a rule are written one by one.
    pub most_addresses: usize,
    /// What is said above each policy: from which flows it comes, and what of them is missing.
    pub header: Vec<String>,
}

/// A policy, and what is to be said of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Suggested {
    /// It.
    pub policy: declared::NetworkPolicy,
    /// Whom it is for; nobody for one that denies what no other allows.
    pub members: Vec<Unit>,
    /// Whether it is the one that denies what no other allows.
    pub is_default: bool,
    /// What is said above it.
    pub header: Vec<String>,
    /// Its rules for what comes in, with the reasons.
    pub ingress: Vec<Explained>,
    /// Its rules for what goes out.
    pub egress: Vec<Explained>,
    /// What it lacks, and a person has to decide.
    pub gaps: Vec<String>,
}

/// A workload that gets no policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PassedOver {
    /// Which.
    pub unit: Unit,
    /// Why.
    pub reason: Reason,
}

/// Why a workload gets no policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// These policies select its pods, or may.
    Selected(Vec<String>),
    /// A policy for it would select these too, and policies select them already.
    NotApart(Vec<Unit>),
    /// Its pods have no label in common that stays.
    NoLabel,
    /// Nothing is known of what it does.
    NoFlow,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Selected(policies) => write!(f, "{} selects it", policies.join(", ")),
            Self::NotApart(units) => {
                let units: Vec<String> = units.iter().map(ToString::to_string).collect();
                write!(f, "no labels tell it from {}, which a policy selects", units.join(", "))
            }
            Self::NoLabel => f.write_str("its pods have no label in common that stays"),
            Self::NoFlow => f.write_str("no flow of it was seen that counts"),
        }
    }
}

impl Reason {
    /// Whether something is missing, and not only done already.
    pub fn is_gap(&self) -> bool {
        !matches!(self, Self::Selected(_))
    }
}

/// The policies, and what there are none for.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Suggestion {
    /// In order of namespace and name; of each namespace the one that denies the rest comes first.
    pub policies: Vec<Suggested>,
    /// In order.
    pub passed_over: Vec<PassedOver>,
    /// Namespaces that get no policy that denies the rest, and why.
    pub no_default: BTreeMap<Arc<str>, String>,
    /// Namespaces of which no pod is known.
    pub empty: Vec<Arc<str>>,
}

/// Suggests policies.
pub fn suggest(question: &Question<'_>) -> Suggestion {
    let units = Units::new(question.pods.iter().copied());
    let through_nodes = through_nodes(question, &units);
    let traffic = Traffic::of(&question.seen, &units, question.namespaces, &through_nodes);
    let dns = Dns::new(question.services.iter().copied(), &units);
    let of_cluster = addresses(question);
    let mut suggestion = Suggestion::default();
    for namespace in question.namespaces {
        let namespaced = Namespaced {
            question,
            units: &units,
            traffic: &traffic,
            dns: &dns,
            servers: OnceCell::new(),
            of_cluster: &of_cluster,
            namespace,
        };
        namespaced.suggest(&mut suggestion);
    }
    suggestion
}

/// Ports of units' pods that a Service leads to from a port on every node: behind a node's address may be anybody who asks there.
fn through_nodes(question: &Question<'_>, units: &Units) -> BTreeSet<(Unit, Port)> {
    let mut found = BTreeSet::new();
    let services =
        question.services.iter().filter(|service| question.namespaces.contains(&service.namespace));
    for service in services {
        for port in service.ports.iter().filter(|port| port.node_port.is_some()) {
            for unit in units.of_namespace(&service.namespace) {
                let states = units.states(unit).filter(|(labels, _)| service.selects(labels));
                let targets = states.filter_map(|(_, named)| port.target_on(named));
                found.extend(targets.map(|target| (unit.clone(), (port.protocol, target))));
            }
        }
    }
    found
}

/// Addresses of pods, nodes and Services.
fn addresses(question: &Question<'_>) -> BTreeSet<IpAddr> {
    let pods = question.pods.iter().flat_map(|pod| &pod.ips);
    let services = question.services.iter().flat_map(|service| &service.ips);
    let nodes = question.end.nodes().flat_map(|node| &node.ips);
    pods.chain(services).chain(nodes).copied().collect()
}

/// What is known, and one of the namespaces.
struct Namespaced<'a> {
    question: &'a Question<'a>,
    units: &'a Units,
    traffic: &'a Traffic,
    dns: &'a Dns,
    /// For those who were not seen to ask any.
    servers: OnceCell<(Servers, &'static str)>,
    of_cluster: &'a BTreeSet<IpAddr>,
    namespace: &'a Arc<str>,
}

/// Policies that select pods.
#[derive(Default)]
struct Selected {
    /// Those that a new one may take the place of: of the namespace, a baseline, and those of other CNIs, of which nobody knows.
    names: BTreeSet<String>,
    /// Cluster-wide ones that come before it.
    before: BTreeSet<String>,
    /// Whether all of the pods are isolated, by [`Direction`].
    isolated: [bool; 2],
}

impl Namespaced<'_> {
    fn suggest(&self, suggestion: &mut Suggestion) {
        let groups = self.units.groups(self.namespace);
        if groups.is_empty() {
            suggestion.empty.push(self.namespace.clone());
            return;
        }
        // What keeps a policy that denies the rest from being written, and whom it leaves with nothing.
        let (mut breaks, mut silent) = (Vec::new(), Vec::new());
        let mut taken: BTreeSet<Arc<str>> = match self.question.all {
            true => BTreeSet::new(),
            false => self.policies_there().collect(),
        };
        let mut policies = Vec::new();
        for group in groups {
            let sides = self.traffic.of_units(&group.members);
            let selected: Vec<Selected> = group.members.iter().map(|unit| self.selected(unit)).collect();
            let reason = |place: usize| -> Option<Reason> {
                let names = &selected[place].names;
                let is_selected = |it: &Selected| !it.names.is_empty();
                if is_selected(&selected[place]) && !self.question.all {
                    return Some(Reason::Selected(names.iter().cloned().collect()));
                }
                if selected.iter().any(is_selected) && !self.question.all {
                    let others = group.members.iter().zip(&selected).filter(|(_, it)| is_selected(it));
                    return Some(Reason::NotApart(others.map(|(unit, _)| unit.clone()).collect()));
                }
                if sides.iter().all(Side::is_unseen) {
                    return Some(Reason::NoFlow);
                }
                group.selector.is_none().then_some(Reason::NoLabel)
            };
            let mut is_passed_over = false;
            for (place, unit) in group.members.iter().enumerate() {
                let Some(reason) = reason(place) else { continue };
                is_passed_over = true;
                // With --all the policies that there are give way.
                let isolated = if self.question.all { [false; 2] } else { selected[place].isolated };
                let needs = self.traffic.of_unit(unit).is_some_and(|sides| {
                    Direction::ALL
                        .into_iter()
                        .any(|it| !isolated[it as usize] && !sides[it as usize].is_unseen())
                });
                if needs {
                    breaks.push(unit.within(self.namespace));
                } else if reason == Reason::NoFlow {
                    silent.push(unit.within(self.namespace));
                }
                suggestion.passed_over.push(PassedOver { unit: unit.clone(), reason });
            }
            if !is_passed_over && let Some(selector) = &group.selector {
                let before = selected.into_iter().flat_map(|it| it.before).collect();
                policies.push(self.policy(&group, selector, sides, (&before, &mut taken)));
            }
        }
        if !breaks.is_empty() {
            let why =
                format!("it would deny flows of what has no policy of its own here: {}", breaks.join(", "));
            suggestion.no_default.insert(self.namespace.clone(), why);
        } else if policies.is_empty() {
            let why = "no workload of it gets a policy".to_owned();
            suggestion.no_default.insert(self.namespace.clone(), why);
        } else {
            suggestion.policies.push(self.default_deny(&silent, &mut taken));
        }
        suggestion.policies.extend(policies);
    }

    /// Names of NetworkPolicies that stay, which a new one of that name would replace.
    fn policies_there(&self) -> impl Iterator<Item = Arc<str>> {
        let keys = self.question.end.keys_of(Kind::NetworkPolicy).into_iter();
        keys.filter(|key| key.namespace == *self.namespace).map(|key| key.name)
    }

    fn pods_at_end(&self, unit: &Unit) -> impl Iterator<Item = &Pod> {
        let namespaced =
            self.question.end.pods().map(|(_, pod)| pod).filter(|pod| pod.namespace == *self.namespace);
        namespaced.filter(move |pod| !pod.completed && self.units.of_pod(pod) == Some(unit))
    }

    /// The policies of any kind that select pods of a unit at the end: those that are there, or else those that were.
    fn selected(&self, unit: &Unit) -> Selected {
        let end = self.question.end;
        let mut labels: BTreeSet<&Labels> = self.pods_at_end(unit).map(|pod| &pod.labels).collect();
        if labels.is_empty() {
            labels = self.units.states(unit).map(|(labels, _)| labels).collect();
        }
        let views = end.namespace_views();
        let view = views.into_iter().find(|view| view.name == unit.namespace);
        let view = view.unwrap_or_else(|| NamespaceView::implied(unit.namespace.clone()));
        let mut selected = Selected { isolated: [!labels.is_empty(); 2], ..Selected::default() };
        for labels in labels {
            let mut isolated = [false; 2];
            for policy in end.policies().filter(|it| it.selects(&view, labels) != Certainty::No) {
                // One that comes before the namespace's own takes the place of none. A baseline speaks of pods only that no policy of
                // their namespace isolates: a new one would take its place.
                let names = match policy.tier {
                    Tier::Admin => &mut selected.before,
                    _ => &mut selected.names,
                };
                names.insert(policy.id.to_string());
                for direction in Direction::ALL {
                    let is_certain = policy.selects(&view, labels).and(policy.speaks_of(direction));
                    isolated[direction as usize] |=
                        policy.tier == Tier::NetworkPolicy && is_certain == Certainty::Yes;
                }
            }
            let foreign = end.foreign_policies().filter(|it| it.selects(&view, labels) != Certainty::No);
            selected.names.extend(foreign.map(|policy| policy.name.to_string()));
            selected.isolated.iter_mut().zip(isolated).for_each(|(all, one)| *all &= one);
        }
        selected
    }

    fn policy(
        &self,
        group: &Group,
        selector: &[labels::Label],
        [mut egress, mut ingress]: [Side; 2],
        (before, taken): (&BTreeSet<String>, &mut BTreeSet<Arc<str>>),
    ) -> Suggested {
        let mut assumed = "";
        let mut gaps = Vec::new();
        if !egress.is_empty() && self.dns.complete(&mut egress).is_empty() {
            let (servers, why) = self.servers.get_or_init(|| self.dns.instead(self.traffic, self.namespace));
            assumed = *why;
            if servers.is_empty() {
                gaps.push("no DNS server is known, so that the rule for kube-dns is a guess".to_owned());
            }
            dns::add_unseen(&mut egress, servers);
        }
        self.dns.complete_own(&group.members, &mut ingress);
        let context = |direction| Context {
            question: self.question,
            units: self.units,
            of_cluster: self.of_cluster,
            namespace: self.namespace,
            direction,
            dns: assumed,
        };
        let mut rules = [Direction::Egress, Direction::Ingress].map(|direction| {
            let side = if direction == Direction::Egress { &egress } else { &ingress };
            let (rules, unwritable) = context(direction).rules(side);
            let what = if direction == Direction::Egress { "to" } else { "from" };
            gaps.extend(
                unwritable.iter().map(|peer| format!("{direction} {what} {peer}: no rule can be written")),
            );
            gaps.extend(self.gaps(direction, side));
            rules
        });
        if !egress.is_empty() && self.dns.complete(&mut egress.clone()).is_empty() {
            rules[0].push(guessed_dns());
        }
        let [egress_rules, ingress_rules] = rules;
        let header = self.policy_header(group, [&egress, &ingress], before, &gaps);
        let name = free_name(&name_of(&group.members), taken);
        Suggested {
            policy: self.declared(name, selector, &ingress_rules, &egress_rules),
            members: group.members.clone(),
            is_default: false,
            header,
            ingress: ingress_rules,
            egress: egress_rules,
            gaps,
        }
    }

    fn declared(
        &self,
        name: Arc<str>,
        selector: &[labels::Label],
        ingress: &[Explained],
        egress: &[Explained],
    ) -> declared::NetworkPolicy {
        declared::NetworkPolicy {
            namespace: self.namespace.clone(),
            name,
            pod_selector: declared::Selector { match_labels: in_words(selector), ..Default::default() },
            policy_types: vec!["Ingress".to_owned(), "Egress".to_owned()],
            invalid_types: None,
            ingress: ingress.iter().map(|it| it.rule.clone()).collect(),
            egress: egress.iter().map(|it| it.rule.clone()).collect(),
            unknown_fields: Vec::new(),
        }
    }

    /// What was seen and no rule follows from.
    fn gaps(&self, direction: Direction, side: &Side) -> Vec<String> {
        let mut gaps = Vec::new();
        for ((protocol, port), count) in &side.hidden {
            gaps.push(format!(
                "{direction} {protocol}/{port}, {}: a translation hid who asked or for what, so there is no rule; if it is meant, write one \
                 by hand",
                counted(count)
            ));
        }
        for ((protocol, port), count) in &side.through_nodes {
            gaps.push(format!(
                "{direction} {protocol}/{port}, {}: behind a node's address may be anybody who asks a port on it",
                counted(count)
            ));
        }
        if !side.unknown_pods.is_empty() {
            let all: Vec<&str> = side.unknown_pods.iter().take(5).map(String::as_str).collect();
            gaps.push(format!(
                "{direction}: {} other ends are in no history, so there is no rule: {}",
                side.unknown_pods.len(),
                all.join(", ")
            ));
        }
        gaps
    }

    fn policy_header(
        &self,
        group: &Group,
        [egress, ingress]: [&Side; 2],
        before: &BTreeSet<String>,
        gaps: &[String],
    ) -> Vec<String> {
        let names: Vec<String> = group.members.iter().map(|unit| unit.within(self.namespace)).collect();
        let mut header =
            vec![format!("What {} of namespace {} was seen to do.", names.join(", "), self.namespace)];
        header.extend(self.question.header.iter().cloned());
        if group.members.len() > 1 {
            header
                .push("No labels tell these workloads apart, so they have this policy together.".to_owned());
        }
        if !group.also.is_empty() {
            let also: Vec<String> = group.also.iter().map(|unit| unit.within(self.namespace)).collect();
            header.push(format!("It selects {} too, by labels that they had at times.", also.join(", ")));
        }
        if group.members.iter().any(|unit| *unit.kind == *"Pod") {
            header
                .push("It is for pods without a controller: see whether they are meant to stay.".to_owned());
        }
        let is_there = |unit: &Unit| self.pods_at_end(unit).next().is_some();
        if !group.members.iter().any(is_there) {
            header.push("No pod of it was there at the end of that time.".to_owned());
        }
        if ingress.is_empty() {
            header.push("Nothing was seen to come in that needs a rule.".to_owned());
        }
        if egress.is_empty() {
            header.push("Nothing was seen to go out that needs a rule, DNS neither.".to_owned());
        }
        if !ingress.own_nodes.is_empty() || !egress.own_nodes.is_empty() {
            header.push("A pod and its own node (probes of the kubelet) need no rule.".to_owned());
        }
        if !before.is_empty() {
            let names = before.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            header.push(format!("{names} stays and comes first: what that denies stays denied."));
        }
        header.extend(gaps.iter().map(|gap| format!("MISSING: {gap}.")));
        header
    }

    fn default_deny(&self, silent: &[String], taken: &mut BTreeSet<Arc<str>>) -> Suggested {
        let mut header =
            vec![format!("Denies all that no other policy of namespace {} allows.", self.namespace)];
        header.extend(self.question.header.iter().cloned());
        let mut gaps = Vec::new();
        if !silent.is_empty() {
            let gap = format!("no flow was seen of {}: this leaves them with none", silent.join(", "));
            header.push(format!("MISSING: {gap}."));
            gaps.push(gap);
        }
        let name = free_name("default-deny-all", taken);
        Suggested {
            policy: self.declared(name, &[], &[], &[]),
            members: Vec::new(),
            is_default: true,
            header,
            ingress: Vec::new(),
            egress: Vec::new(),
            gaps,
        }
    }
}

/// Where nothing is known of DNS: the labels that nearly every cluster has.
fn guessed_dns() -> Explained {
    let labels = |key: &str, value: &str| declared::Selector {
        match_labels: vec![(key.to_owned(), value.to_owned())],
        ..Default::default()
    };
    let peer = declared::Peer {
        namespace_selector: Some(labels(crate::policy::METADATA_NAME, "kube-system")),
        pod_selector: Some(labels("k8s-app", "kube-dns")),
        ..Default::default()
    };
    let ports = dns::unseen(&[dns::PORT].into()).into_keys();
    let ports = ports::spans(ports).iter().map(ports::Span::declared).collect();
    Explained {
        rule: declared::Rule { peers: vec![peer], ports, ..Default::default() },
        why: vec!["DNS, ASSUMED: nobody was seen to ask, and no Service for it is known".to_owned()],
        peers: vec![Vec::new()],
        flows: 0,
    }
}

/// What a policy is called: as the workload, as far as that is a name for an object.
fn name_of(members: &[Unit]) -> String {
    let first = members.first().map_or("", |unit| &*unit.name);
    let name = match members.len() {
        0 | 1 => first.to_owned(),
        2 => format!("{first}-and-{}", members[1].name),
        many => format!("{first}-and-{}-more", many - 1),
    };
    let letter = |letter: char| match letter.to_ascii_lowercase() {
        plain @ ('a'..='z' | '0'..='9' | '-' | '.') => plain,
        _ => '-',
    };
    let name: String = name.chars().map(letter).take(200).collect();
    let name = name.trim_matches(['-', '.']).to_owned();
    if name.is_empty() { "workload".to_owned() } else { name }
}

/// The name, or one like it that no other policy has.
fn free_name(name: &str, taken: &mut BTreeSet<Arc<str>>) -> Arc<str> {
    let others = (1..).map(|number| match number {
        1 => format!("{name}-suggested"),
        number => format!("{name}-suggested-{number}"),
    });
    let all = std::iter::once(name.to_owned()).chain(others);
    let free: Arc<str> = all.map(Arc::from).find(|name| !taken.contains(name)).unwrap_or_else(|| name.into());
    taken.insert(free.clone());
    free
}
