//! All policies at one moment, and the one who changes them.
//!
//! A [`Ruleset`] never changes: whoever holds one sees one generation of everything, as long as he likes, and waits for
//! nobody. [`Policies`] makes the next one from it by replacing only what a change touches; where nobody holds the old
//! one, in place.

use std::{fmt, sync::Arc};

use foldhash::{HashMap, HashSet};

use super::{
    CompiledForeign, CompiledPolicy, Labels, NamespaceView,
    compile::Tier,
    foreign::LoadedForeign,
    loaded::{Loaded, Place, Words},
};
use crate::model::{Direction, PolicyId};

/// Something that may be a policy but could not be read: it may do anything to any pod that it might select.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Doubt {
    /// The namespace; `None` where it may be any.
    pub namespace: Option<Arc<str>>,
    /// Whether it may be of a kind that can deny what NetworkPolicies allow, and allow what they deny.
    pub overrides: bool,
    /// What could not be read, and why.
    pub reason: Arc<str>,
}

/// The policies of a cluster at one moment, ready to be asked. Shared, never changed.
#[derive(Clone, Default)]
pub struct Ruleset {
    generation: u64,
    pub(super) words: Words,
    /// The names of ports that a rule mentions.
    pub(super) port_names: Arc<HashSet<Arc<str>>>,
    namespaces: Arc<HashMap<Arc<str>, Arc<NamespaceRules>>>,
    nodes: Arc<HashMap<Arc<str>, Arc<Place>>>,
    /// In order of priority, kind and name.
    pub(super) admin: Arc<Vec<Arc<Loaded>>>,
    pub(super) baseline: Arc<Vec<Arc<Loaded>>>,
    /// Cluster-wide policies that are not evaluated, in order of name.
    foreign: Arc<Vec<Arc<LoadedForeign>>>,
    pub(super) doubts: Arc<[Doubt]>,
    unread_namespaces: Arc<UnreadNamespaces>,
}

/// Namespaces whose objects could not be read.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct UnreadNamespaces {
    /// By name: why.
    pub named: HashMap<Arc<str>, Arc<str>>,
    /// Set where an object does not tell its name, so that it may be that of any namespace without one: why.
    pub any: Option<Arc<str>>,
}

/// What belongs to one namespace.
#[derive(Clone, Default)]
struct NamespaceRules {
    /// Its object, where there is one.
    place: Option<Place>,
    /// In order of name.
    policies: Vec<Arc<Loaded>>,
    /// Those that are not evaluated, in order of name.
    foreign: Vec<Arc<LoadedForeign>>,
}

impl NamespaceRules {
    fn is_empty(&self) -> bool {
        self.place.is_none() && self.policies.is_empty() && self.foreign.is_empty()
    }
}

impl Ruleset {
    /// Grows by one with every change. Verdicts carry it.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The policies that may select pods of a namespace, in the order in which they are asked: the Admin tier by
    /// priority, NetworkPolicies by name, the Baseline tier by priority.
    pub fn policies(&self, namespace: &str) -> impl Iterator<Item = &Arc<CompiledPolicy>> {
        let own = self.network(namespace);
        self.admin.iter().chain(own).chain(self.baseline.iter()).map(|loaded| &loaded.policy)
    }

    /// The cluster-wide policies, in the order in which they are asked.
    pub fn cluster_policies(&self) -> impl Iterator<Item = &Arc<CompiledPolicy>> {
        self.admin.iter().chain(self.baseline.iter()).map(|loaded| &loaded.policy)
    }

    /// The NetworkPolicies of a namespace, in order of name.
    pub(super) fn network(&self, namespace: &str) -> &[Arc<Loaded>] {
        self.namespaces.get(namespace).map_or(&[], |rules| &rules.policies)
    }

    /// The policies that are not evaluated and may select pods of a namespace.
    pub(super) fn foreign(&self, namespace: &str) -> impl Iterator<Item = &Arc<LoadedForeign>> {
        let own = self.namespaces.get(namespace).map(|rules| rules.foreign.as_slice());
        own.unwrap_or_default().iter().chain(self.foreign.iter())
    }

    /// A namespace, whether it has an object or not.
    pub(super) fn namespace(&self, name: &Arc<str>) -> Place {
        if let Some(place) = self.namespaces.get(name).and_then(|rules| rules.place.clone()) {
            return place;
        }
        let unread = &self.unread_namespaces;
        let doubt = unread.named.get(name).or(unread.any.as_ref()).cloned();
        self.place(&NamespaceView { doubt, ..NamespaceView::implied(name.clone()) })
    }

    /// A node, whether it has an object or not.
    pub(super) fn node(&self, name: &str) -> Arc<Place> {
        let unread = || {
            let doubt = format!("no readable object tells the labels of the node {name}");
            Arc::new(Place { doubt: Some(doubt.into()), ..Place::default() })
        };
        self.nodes.get(name).cloned().unwrap_or_else(unread)
    }

    fn place(&self, namespace: &NamespaceView) -> Place {
        Place {
            name: self.words.places.name(&namespace.name),
            words: self.words.places.words(&namespace.labels).as_slice().into(),
            doubt: namespace.doubt.clone(),
        }
    }
}

impl Ruleset {
    fn change_foreign(&mut self, namespace: &Arc<str>, change: impl FnOnce(&mut Vec<Arc<LoadedForeign>>)) {
        if namespace.is_empty() {
            return change(Arc::make_mut(&mut self.foreign));
        }
        let namespaces = Arc::make_mut(&mut self.namespaces);
        let rules = Arc::make_mut(namespaces.entry(namespace.clone()).or_default());
        change(&mut rules.foreign);
        if rules.is_empty() {
            namespaces.remove(namespace);
        }
    }
}

impl fmt::Debug for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ruleset").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// Holds the newest [`Ruleset`] and makes the next.
#[derive(Default, Debug)]
pub struct Policies {
    current: Arc<Ruleset>,
}

impl Policies {
    /// The policies as they are now: free, and unaffected by what comes.
    pub fn current(&self) -> &Arc<Ruleset> {
        &self.current
    }

    fn change(&mut self) -> &mut Ruleset {
        let next = Arc::make_mut(&mut self.current);
        next.generation += 1;
        next
    }

    /// Adds a policy, or replaces the one with its id. Nothing else is compiled again.
    pub fn put(&mut self, policy: Arc<CompiledPolicy>) {
        self.take_out(&policy.id);
        let next = self.change();
        let names = [Direction::Egress, Direction::Ingress]
            .into_iter()
            .flat_map(|direction| policy.rules(direction))
            .flat_map(|rule| rule.ports.iter().filter_map(|port| port.name()));
        for name in names {
            if !next.port_names.contains(name) {
                Arc::make_mut(&mut next.port_names).insert(name.clone());
            }
        }
        let loaded = Arc::new(Loaded::new(policy, &mut next.words));
        let policy = &loaded.policy;
        match policy.tier {
            Tier::NetworkPolicy => {
                let rules =
                    Arc::make_mut(&mut next.namespaces).entry(policy.id.namespace.clone()).or_default();
                insert(&mut Arc::make_mut(rules).policies, loaded);
            }
            Tier::Admin => insert(Arc::make_mut(&mut next.admin), loaded),
            Tier::Baseline => insert(Arc::make_mut(&mut next.baseline), loaded),
        }
    }

    /// Removes a policy; nothing happens where it is not known.
    pub fn remove(&mut self, id: &PolicyId) {
        if self.take_out(id) {
            self.change();
        }
    }

    fn take_out(&mut self, id: &PolicyId) -> bool {
        let is_it = |loaded: &Arc<Loaded>| *loaded.policy.id == *id;
        let known = match id.namespace.is_empty() {
            true => self.current.admin.iter().chain(self.current.baseline.iter()).any(is_it),
            false => self.current.network(&id.namespace).iter().any(is_it),
        };
        if !known {
            return false;
        }
        let next = Arc::make_mut(&mut self.current);
        if id.namespace.is_empty() {
            Arc::make_mut(&mut next.admin).retain(|it| !is_it(it));
            Arc::make_mut(&mut next.baseline).retain(|it| !is_it(it));
        } else {
            let namespaces = Arc::make_mut(&mut next.namespaces);
            if let Some(rules) = namespaces.get_mut(&id.namespace) {
                let rules = Arc::make_mut(rules);
                rules.policies.retain(|it| !is_it(it));
                if rules.is_empty() {
                    namespaces.remove(&id.namespace);
                }
            }
        }
        true
    }

    /// Adds a policy that is not evaluated, or replaces the one of its name.
    pub fn put_foreign(&mut self, policy: Arc<CompiledForeign>) {
        self.remove_foreign(&policy.namespace, &policy.name);
        let next = self.change();
        let namespace = policy.namespace.clone();
        let loaded = Arc::new(LoadedForeign::new(policy, &mut next.words));
        next.change_foreign(&namespace, |policies| {
            let at = policies.partition_point(|it| it.policy.name < loaded.policy.name);
            policies.insert(at, loaded);
        });
    }

    /// Removes a policy that is not evaluated; nothing happens where it is not known.
    pub fn remove_foreign(&mut self, namespace: &Arc<str>, name: &str) {
        if self.current.foreign(namespace).any(|it| *it.policy.name == *name) {
            self.change()
                .change_foreign(namespace, |policies| policies.retain(|it| *it.policy.name != *name));
        }
    }

    /// Adds a namespace's object, or replaces it.
    pub fn put_namespace(&mut self, namespace: &NamespaceView) {
        let next = self.change();
        learn(&mut next.words, &namespace.labels);
        next.words.namespace(&namespace.name);
        let place = next.place(namespace);
        let rules = Arc::make_mut(&mut next.namespaces).entry(namespace.name.clone()).or_default();
        Arc::make_mut(rules).place = Some(place);
    }

    /// Removes a namespace's object; its policies stay.
    pub fn remove_namespace(&mut self, name: &Arc<str>) {
        let namespaces = Arc::make_mut(&mut self.change().namespaces);
        if let Some(rules) = namespaces.get_mut(name) {
            let rules = Arc::make_mut(rules);
            rules.place = None;
            if rules.is_empty() {
                namespaces.remove(name);
            }
        }
    }

    /// Adds a node, or replaces it.
    pub fn put_node(&mut self, name: &Arc<str>, labels: &Labels) {
        let next = self.change();
        learn(&mut next.words, labels);
        let place =
            Place { name: None, words: next.words.places.words(labels).as_slice().into(), doubt: None };
        Arc::make_mut(&mut next.nodes).insert(name.clone(), Arc::new(place));
    }

    /// Removes a node.
    pub fn remove_node(&mut self, name: &str) {
        if self.current.nodes.contains_key(name) {
            Arc::make_mut(&mut self.change().nodes).remove(name);
        }
    }

    /// Replaces what may be policies.
    pub fn set_doubts(&mut self, doubts: Vec<Doubt>) {
        if *self.current.doubts != *doubts {
            self.change().doubts = doubts.into();
        }
    }

    /// Replaces what is known of namespaces whose objects could not be read.
    pub fn set_unread_namespaces(&mut self, unread: UnreadNamespaces) {
        if *self.current.unread_namespaces != unread {
            self.change().unread_namespaces = Arc::new(unread);
        }
    }
}

/// All words of a namespace or node are kept, as these are few: then a new selector needs none of them again.
fn learn(words: &mut Words, labels: &Labels) {
    for (key, value) in labels.pairs() {
        if !words.places.has(key, value) {
            Arc::make_mut(&mut words.places).learn(key, value);
        }
    }
}

fn insert(into: &mut Vec<Arc<Loaded>>, loaded: Arc<Loaded>) {
    let place =
        |it: &Arc<Loaded>| (it.policy.order_doubt.is_none(), it.policy.priority, it.policy.id.clone());
    let key = place(&loaded);
    let at = into.partition_point(|it| place(it) < key);
    into.insert(at, loaded);
}
