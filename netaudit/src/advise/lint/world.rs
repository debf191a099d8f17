//! All that manifests hold, in the order in which the checks ask for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Code, Finding, Options, Severity,
    reach::{Rule, Whom},
};
use crate::{
    advise::text::{
        join,
        marks::{Form, Found, Marks},
    },
    cluster::{Kind, Namespace, Object, Pod, Service, objects::EndpointSlice},
    model::{Direction, Protocol},
    policy::{
        Certainty, CompiledPolicy, METADATA_NAME, NamespaceView, Selector,
        declared::{ClusterPolicy, NetworkPolicy},
    },
};

/// Objects with their places.
#[derive(Debug, Default)]
pub struct Manifests {
    /// The places of each document.
    pub documents: Vec<Marks>,
    /// The objects, in order.
    pub items: Vec<Item>,
    /// Whether there are policies of a kind that nobody here reads.
    pub has_unread_policies: bool,
    /// Namespaces, and what may make pods in them that nobody here can tell.
    pub makers: Vec<(Arc<str>, String)>,
}

/// One object.
#[derive(Debug)]
pub struct Item {
    /// What it is.
    pub what: What,
    /// Its document in [`Manifests::documents`].
    pub document: usize,
    /// Where in the document it is: `items[3]`; empty for the whole.
    pub prefix: String,
    /// Findings of it that somebody has silenced, and why.
    pub ignored: Vec<(Code, String)>,
}

/// What an object is.
#[derive(Debug)]
pub enum What {
    /// Something that the program knows from elsewhere.
    Object(Object),
    /// A pod, or what pods are made of.
    Pods(Pods),
}

/// A pod, or the pods that a workload makes.
#[derive(Debug)]
pub struct Pods {
    /// The pod as it would be.
    pub pod: Pod,
    /// `Deployment`, `Pod` …
    pub kind: String,
    /// Labels that a controller adds, whatever their value.
    pub open: &'static [&'static str],
    /// The ports that containers declare.
    pub ports: BTreeSet<(Protocol, u16)>,
    /// Probes by network.
    pub probes: Vec<Probe>,
    /// The names of its containers.
    pub containers: Vec<String>,
    /// What its containers are started with.
    pub arguments: Vec<String>,
}

/// A probe by network.
#[derive(Debug)]
pub struct Probe {
    /// Where it stands.
    pub path: String,
    /// The TCP port.
    pub port: u16,
}

impl Pods {
    /// Whether a selector may select them.
    pub fn may_match(&self, selector: &Selector) -> bool {
        selector.matches_but_for(&self.pod.labels, self.open)
    }
}

/// `Deployment shop/web`.
impl std::fmt::Display for Pods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.pod.namespace, self.pod.name)
    }
}

/// A NetworkPolicy.
pub(super) struct Policy<'a> {
    pub item: usize,
    pub declared: &'a NetworkPolicy,
    pub compiled: CompiledPolicy,
    pub selector: Selector,
    rules: [Vec<Rule>; 2],
}

impl Policy<'_> {
    pub fn rules(&self, direction: Direction) -> &[Rule] {
        &self.rules[direction as usize]
    }

    /// Whether it isolates the pods that it selects in this direction, or may.
    pub fn may_isolate(&self, direction: Direction) -> bool {
        self.compiled.speaks_of(direction) != Certainty::No
    }

    pub fn surely_isolates(&self, direction: Direction) -> bool {
        self.compiled.speaks_of(direction) == Certainty::Yes
    }

    /// Whether both may select one pod. Two documents that are the same object are not there together.
    pub fn meets(&self, other: &Self) -> bool {
        self.declared.namespace == other.declared.namespace
            && !self.is_copy(other)
            && !self.selector.is_disjoint(&other.selector)
    }

    /// Whether it is another document for the same object.
    pub fn is_copy(&self, other: &Self) -> bool {
        let (own, other) = ((self.item, self.declared), (other.item, other.declared));
        own.0 != other.0 && (&own.1.namespace, &own.1.name) == (&other.1.namespace, &other.1.name)
    }
}

/// A cluster-wide policy.
pub(super) struct Wide<'a> {
    pub item: usize,
    pub declared: &'a ClusterPolicy,
    pub compiled: CompiledPolicy,
    rules: [Vec<Rule>; 2],
}

impl Wide<'_> {
    pub fn rules(&self, direction: Direction) -> &[Rule] {
        &self.rules[direction as usize]
    }
}

/// Why nothing is said of what is missing.
pub(super) const ELSEWHERE: &str = "a policy of another kind, or one that cannot be read, may allow it";

/// Why nothing is concluded from what is not there.
pub(super) const PARTIAL: &str = "what is not there may be elsewhere: --partial, a part that cannot be read, or a kustomization that changes others";

/// Namespaces with pods of the cluster, which are in nobody's manifests.
const SYSTEM: [&str; 3] = ["kube-node-lease", "kube-public", "kube-system"];

/// What the checks look at.
pub(super) struct World<'a> {
    pub manifests: &'a Manifests,
    pub options: &'a Options,
    pub policies: Vec<Policy<'a>>,
    /// Positions in `policies`, by namespace.
    by_namespace: BTreeMap<Arc<str>, Vec<usize>>,
    pub wide: Vec<Wide<'a>>,
    /// With the positions of their items.
    pub pods: BTreeMap<Arc<str>, Vec<(usize, &'a Pods)>>,
    /// With all copies, where one is there more than once.
    pub namespaces: BTreeMap<Arc<str>, Vec<NamespaceView>>,
    pub services: Vec<&'a Service>,
    pub slices: Vec<&'a EndpointSlice>,
    /// What may make pods that no manifest shows, by namespace.
    makers: BTreeMap<&'a str, &'a str>,
    /// Whether a policy of another project's kind may allow something, or one could not be read: then what seems missing may not be.
    pub may_allow_elsewhere: bool,
    pub has_ipv6: bool,
}

/// What the checks have found.
#[derive(Default)]
pub(super) struct Out {
    pub findings: Vec<Finding>,
    /// What was not checked: why, and of how many.
    pub skipped: BTreeMap<(Code, String), usize>,
}

impl<'a> World<'a> {
    pub fn new(manifests: &'a Manifests, options: &'a Options) -> Self {
        let mut world = Self {
            manifests,
            options,
            policies: Vec::new(),
            by_namespace: BTreeMap::new(),
            wide: Vec::new(),
            pods: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            services: Vec::new(),
            slices: Vec::new(),
            makers: manifests.makers.iter().map(|(namespace, what)| (&**namespace, what.as_str())).collect(),
            may_allow_elsewhere: manifests.has_unread_policies,
            has_ipv6: false,
        };
        for (item, it) in manifests.items.iter().enumerate() {
            match &it.what {
                What::Pods(pods) => world.add_pods(item, pods),
                What::Object(object) => world.add(item, object),
            }
        }
        world
    }

    fn add_pods(&mut self, item: usize, pods: &'a Pods) {
        self.has_ipv6 |= pods.pod.ips.iter().any(|ip| ip.is_ipv6());
        self.pods.entry(pods.pod.namespace.clone()).or_default().push((item, pods));
    }

    fn add(&mut self, item: usize, object: &'a Object) {
        match object {
            Object::Namespace(Namespace { name, labels }) => {
                let labels = labels.with(METADATA_NAME, name);
                let view = NamespaceView { name: name.clone(), labels, doubt: None };
                self.namespaces.entry(name.clone()).or_default().push(view);
            }
            Object::Node(node) => self.has_ipv6 |= node.ips.iter().any(|ip| ip.is_ipv6()),
            Object::Service(service) => {
                self.has_ipv6 |= service.ips.iter().any(|ip| ip.is_ipv6());
                self.services.push(service);
            }
            Object::EndpointSlice(slice) => self.slices.push(slice),
            Object::NetworkPolicy(declared) => {
                let rules = Direction::ALL.map(|direction| {
                    let rules = match direction {
                        Direction::Egress => &declared.egress,
                        Direction::Ingress => &declared.ingress,
                    };
                    let read = |(index, rule)| Rule::of(rule, direction, index, &declared.namespace);
                    rules.iter().enumerate().map(read).collect()
                });
                let of_namespace = self.by_namespace.entry(declared.namespace.clone()).or_default();
                of_namespace.push(self.policies.len());
                let selector = Selector::of(&declared.pod_selector);
                let compiled = CompiledPolicy::compile(declared);
                self.policies.push(Policy { item, declared, compiled, selector, rules });
            }
            Object::ClusterPolicy(declared) => {
                let rules = Direction::ALL.map(|direction| {
                    let rules = match direction {
                        Direction::Egress => &declared.egress,
                        Direction::Ingress => &declared.ingress,
                    };
                    let read = |(index, rule)| Rule::of_cluster(rule, direction, index);
                    rules.iter().enumerate().map(read).collect()
                });
                let compiled = CompiledPolicy::compile_cluster(declared);
                self.wide.push(Wide { item, declared, compiled, rules });
            }
            Object::Foreign(_, policy) => {
                self.may_allow_elsewhere |=
                    policy.parts.iter().any(|it| it.egress.allows || it.ingress.allows);
            }
            Object::Broken(broken) => {
                self.may_allow_elsewhere |= broken.kind.is_none_or(Kind::is_policy);
            }
            Object::Pod(_) | Object::CronJob(_) => {}
        }
    }

    /// The NetworkPolicies of a namespace.
    pub fn policies_of(&self, namespace: &str) -> impl Iterator<Item = &Policy<'a>> {
        self.by_namespace.get(namespace).into_iter().flatten().map(|it| &self.policies[*it])
    }

    /// The pods of a namespace whose absence says something; or why it says nothing.
    pub fn all_pods(&self, namespace: &str) -> Result<&[(usize, &'a Pods)], String> {
        if self.options.is_partial {
            return Err(PARTIAL.to_owned());
        }
        if SYSTEM.contains(&namespace) {
            return Err(format!("pods of namespace {namespace} are made by the cluster, not by manifests"));
        }
        if let Some(what) = self.makers.get(namespace) {
            return Err(format!("{what} may make pods of namespace {namespace} that no manifest shows"));
        }
        self.pods
            .get(namespace)
            .map(Vec::as_slice)
            .ok_or_else(|| format!("no pod and no workload of namespace {namespace} is among the manifests"))
    }

    /// The pods that an element is for, of those among the manifests; or why not all of the pods are known of the namespaces
    /// that it means.
    pub fn pods_of(&self, whom: &Whom) -> Result<Vec<&'a Pods>, String> {
        let Whom::Pods { namespaces, pods, .. } = whom else {
            return Err("addresses and nodes are no pods".to_owned());
        };
        let unknown = || format!("not all pods of the namespaces with {namespaces} are among the manifests");
        let names = namespaces.values_of(METADATA_NAME).ok_or_else(unknown)?;
        let mut found = Vec::new();
        for name in names {
            if self.is_selected(namespaces, name).ok_or_else(unknown)? {
                let of_namespace = self.all_pods(name)?;
                found.extend(of_namespace.iter().map(|(_, it)| *it).filter(|it| it.may_match(pods)));
            }
        }
        // The Service's pods are there, whoever makes them.
        let is_led_to = |it: &&&Service| {
            let labels = it.selector.as_ref().filter(|labels| !labels.is_empty());
            names.contains(&it.namespace)
                && labels.is_some_and(|labels| pods.matches(labels) == Certainty::Yes)
        };
        match self.services.iter().find(is_led_to).filter(|_| found.is_empty()) {
            Some(it) => Err(format!("Service {}/{} leads to such pods", it.namespace, it.name)),
            None => Ok(found),
        }
    }

    /// Whether a namespace is selected; `None` where that hangs on labels that nobody has told.
    pub fn is_selected(&self, selector: &Selector, name: &Arc<str>) -> Option<bool> {
        let certain = |it: Certainty| match it {
            Certainty::Yes => Some(true),
            Certainty::No => Some(false),
            Certainty::Maybe => None,
        };
        match self.namespaces.get(name) {
            Some(copies) => {
                let mut all = copies.iter().map(|it| certain(selector.matches_namespace(it)));
                let first = all.next()??;
                all.all(|it| it == Some(first)).then_some(first)
            }
            None if selector.keys().all(|key| key == METADATA_NAME) => {
                certain(selector.matches_namespace(&NamespaceView::implied(name.clone())))
            }
            None => None,
        }
    }

    /// Whether a policy that is no NetworkPolicy may allow this.
    pub fn may_be_accepted(&self, direction: Direction, is_for: impl Fn(&Rule) -> bool) -> bool {
        let accepts =
            |rule: &Rule| matches!(rule.action.as_deref(), Some("Accept" | "Allow")) && is_for(rule);
        self.may_allow_elsewhere || self.wide.iter().any(|it| it.rules(direction).iter().any(&accepts))
    }

    /// Whether a path of an object is written.
    pub fn is_written(&self, item: usize, path: &str) -> bool {
        self.found(item, path).is_some_and(|it| it.is_whole)
    }

    /// Whether a list is written, and empty.
    pub fn is_empty_list(&self, item: usize, path: &str) -> bool {
        self.found(item, path).is_some_and(|it| it.is_whole && it.node.items().is_some_and(<[_]>::is_empty))
    }

    /// Whether a list is written, and empty or nothing: `from:` with all of its elements commented out.
    pub fn is_empty_or_null(&self, item: usize, path: &str) -> bool {
        let is_null = |it: &Found<'_>| it.is_whole && it.node.form == Form::Scalar;
        self.is_empty_list(item, path) || self.found(item, path).as_ref().is_some_and(is_null)
    }

    fn found(&self, item: usize, path: &str) -> Option<Found<'a>> {
        let manifests = self.manifests;
        let item = &manifests.items[item];
        manifests.documents[item.document].find(&join(&item.prefix, path))
    }
}

impl Out {
    /// Tells a finding of the weight that its code has.
    pub fn find(&mut self, code: Code, item: usize, path: impl Into<String>, message: String) {
        self.tell(Finding::new(code, code.about().severity, item, path.into(), message));
    }

    /// Tells one that is less certain than others of its code.
    pub fn note(&mut self, code: Code, item: usize, path: impl Into<String>, message: String) {
        self.tell(Finding::new(code, Severity::Note, item, path.into(), message));
    }

    pub fn tell(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Tells what was not checked.
    pub fn skip(&mut self, code: Code, reason: impl Into<String>) {
        *self.skipped.entry((code, reason.into())).or_default() += 1;
    }
}

/// Some names in a sentence.
pub(super) fn listed<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    const SHOWN: usize = 3;
    let all: Vec<String> = all.into_iter().map(|it| it.to_string()).collect();
    match all.len().saturating_sub(SHOWN) {
        0 => all.join(", "),
        more => format!("{} and {more} more", all[..SHOWN].join(", ")),
    }
}
