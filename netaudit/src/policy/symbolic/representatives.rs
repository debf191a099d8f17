//! Pods that nobody has declared: for manifests that hold policies only.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::model::Direction;
use crate::policy::{
    Certainty, CompiledForeign, CompiledPolicy, Labels, METADATA_NAME, NamespaceView,
    compile::{Matcher, NamespaceScope, PodScope},
    selector::{Selector, Test},
};

/// How many sets of labels are combined for one namespace, and pods for all, before combining is given up.
const MOST_COMBINED: usize = 256;
const MOST_PODS: usize = 1024;

/// How the value of a label is called of which nobody mentions the value.
const ANY_VALUE: &str = "any";

/// The namespace that stands for all that no policy tells apart.
pub const OTHER_NAMESPACE: &str = "any other namespace";

/// Namespaces and pods that stand for all that the policies can tell apart.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Representatives {
    /// Namespaces that have no object, with labels.
    pub namespaces: Vec<(Arc<str>, Labels)>,
    /// A namespace and labels each, in order.
    pub pods: Vec<(Arc<str>, Labels)>,
    /// Whether every possible pod, its named ports aside, is like one of these. Otherwise each selector is met by one of
    /// them, but not every combination of selectors.
    pub complete: bool,
}

impl Representatives {
    /// For these policies and those that are not evaluated; `known` are the namespaces that have objects, be these readable or not. `combined` wants all
    /// combinations of labels that selectors can tell apart, as far as they are not too many; otherwise there is a pod for
    /// each selector, and one without labels in each namespace.
    ///
    /// Of a namespace that a policy lives in or names, and that has no object, only the name is known: it is taken to
    /// have no other labels, as everywhere. Other namespaces stand for those that selectors of namespaces mean.
    pub fn new(
        policies: &[&CompiledPolicy],
        foreign: &[&CompiledForeign],
        known: &[NamespaceView],
        combined: bool,
    ) -> Self {
        let of_foreign = foreign.iter().flat_map(|it| it.scopes());
        let scopes: Vec<&PodScope> = policies.iter().flat_map(|it| scopes(it)).chain(of_foreign).collect();
        let selectors: Vec<&Selector> = scopes.iter().filter_map(|it| matching(it)).collect();
        let all_selectors = selectors.iter().copied().chain(scopes.iter().map(|it| &it.pods));
        let any = any_value(all_selectors);
        let mut complete = combined;
        let mut all: BTreeMap<Arc<str>, NamespaceView> =
            known.iter().map(|it| (it.name.clone(), it.clone())).collect();
        for name in namespaces(policies, foreign, &selectors) {
            all.entry(name.clone()).or_insert_with(|| NamespaceView::implied(name));
        }
        let mut added: Vec<(Arc<str>, Labels)> = vec![(OTHER_NAMESPACE.into(), Labels::default())];
        let sets = if combined { combinations(&selectors, METADATA_NAME, &any) } else { None };
        complete &= sets.is_some();
        let sets = sets.unwrap_or_else(|| selectors.iter().filter_map(|it| satisfying(it, &any)).collect());
        for labels in sets {
            let others = labels.iter().filter(|(key, _)| *key != METADATA_NAME);
            let labels: Labels = others.collect();
            if !labels.is_empty() {
                added.push((format!("namespaces with {labels}").into(), labels));
            }
        }
        added.sort();
        added.dedup();
        added.retain(|(name, _)| !all.contains_key(name));
        for (name, labels) in &added {
            let labels = labels.with(METADATA_NAME, name);
            all.insert(name.clone(), NamespaceView { name: name.clone(), labels, doubt: None });
        }
        let mut pods = BTreeSet::new();
        for namespace in all.values() {
            let here = scopes.iter().filter(|it| is_in(it, namespace));
            let selectors: Vec<&Selector> = here.map(|it| &it.pods).collect();
            let sets = if combined { combinations(&selectors, "", &any) } else { None };
            complete &= sets.is_some();
            let sets =
                sets.unwrap_or_else(|| selectors.iter().filter_map(|it| satisfying(it, &any)).collect());
            pods.extend(sets.into_iter().chain([Labels::default()]).map(|set| (namespace.name.clone(), set)));
        }
        if combined && pods.len() > MOST_PODS {
            return Self::new(policies, foreign, known, false);
        }
        Self { namespaces: added, pods: pods.into_iter().collect(), complete }
    }
}

/// The namespaces that policies live in or name.
pub(super) fn named_namespaces(policies: &[&CompiledPolicy]) -> BTreeSet<Arc<str>> {
    let scopes: Vec<&PodScope> = policies.iter().flat_map(|it| scopes(it)).collect();
    let selectors: Vec<&Selector> = scopes.iter().filter_map(|it| matching(it)).collect();
    namespaces(policies, &[], &selectors)
}

fn namespaces(
    policies: &[&CompiledPolicy],
    foreign: &[&CompiledForeign],
    selectors: &[&Selector],
) -> BTreeSet<Arc<str>> {
    let own = policies.iter().map(|it| &it.id.namespace).chain(foreign.iter().map(|it| &it.namespace));
    let own = own.filter(|it| !it.is_empty()).cloned();
    let named = selectors.iter().flat_map(|it| it.requirements()).filter(|(key, _)| ***key == *METADATA_NAME);
    own.chain(named.flat_map(|(_, test)| test.values()).cloned()).collect()
}

/// Whom a policy selects, and the pods that its rules name.
fn scopes(policy: &CompiledPolicy) -> impl Iterator<Item = &PodScope> {
    let rules = [Direction::Egress, Direction::Ingress].into_iter().flat_map(|it| policy.rules(it));
    let peers = rules.flat_map(|rule| &rule.peers).filter_map(|peer| match &peer.matcher {
        Matcher::Pods(scope) => Some(&**scope),
        _ => None,
    });
    peers.chain([&*policy.subjects])
}

fn matching(scope: &PodScope) -> Option<&Selector> {
    match &scope.namespaces {
        NamespaceScope::Own(_) => None,
        NamespaceScope::Matching(selector) => Some(selector),
    }
}

fn is_in(scope: &PodScope, namespace: &NamespaceView) -> bool {
    match &scope.namespaces {
        NamespaceScope::Own(name) => *name == namespace.name,
        NamespaceScope::Matching(selector) => selector.matches_namespace(namespace) != Certainty::No,
    }
}

/// A value that none of these mentions.
fn any_value<'a>(selectors: impl Iterator<Item = &'a Selector>) -> Arc<str> {
    let requirements: Vec<_> = selectors.flat_map(|it| it.requirements()).collect();
    let mentioned: BTreeSet<&str> =
        requirements.iter().flat_map(|(_, test)| test.values()).map(|value| &**value).collect();
    let more = (1..=mentioned.len()).map(|number| format!("{ANY_VALUE}-{number}"));
    let mut names = std::iter::once(ANY_VALUE.to_owned()).chain(more);
    names.find(|name| !mentioned.contains(name.as_str())).unwrap_or_default().into()
}

/// The fewest labels that a selector is met by; `None` where nothing meets it.
fn satisfying(selector: &Selector, any: &Arc<str>) -> Option<Labels> {
    let mut labels: BTreeMap<&Arc<str>, Arc<str>> = BTreeMap::new();
    for (key, test) in selector.requirements() {
        match test {
            Test::In(values) => drop(labels.insert(key, values[0].clone())),
            Test::Exists => drop(labels.entry(key).or_insert_with(|| any.clone())),
            Test::NotIn(_) | Test::DoesNotExist => {}
        }
    }
    let labels: Labels = labels.into_iter().map(|(key, value)| (key.clone(), value)).collect();
    (selector.matches(&labels) != Certainty::No).then_some(labels)
}

/// Every set of labels that the selectors can tell apart, one of each kind; `None` where these are too many. `but` is a
/// key that is left out, `any` the value that stands for those that no selector mentions.
///
/// A value that no selector mentions counts as any other such value, and as no label at all unless a selector asks
/// whether there is one.
fn combinations(selectors: &[&Selector], but: &str, any: &Arc<str>) -> Option<Vec<Labels>> {
    let mut keys: BTreeMap<&Arc<str>, BTreeSet<Arc<str>>> = BTreeMap::new();
    for (key, test) in selectors.iter().flat_map(|it| it.requirements()).filter(|(key, _)| ***key != *but) {
        let values = keys.entry(key).or_default();
        values.extend(test.values().iter().cloned());
        if let Test::Exists | Test::DoesNotExist = test {
            values.insert(any.clone());
        }
    }
    let mut sets: Vec<Vec<(Arc<str>, Arc<str>)>> = vec![Vec::new()];
    for (key, values) in keys {
        if sets.len() * (values.len() + 1) > MOST_COMBINED {
            return None;
        }
        let with = |value: Option<&Arc<str>>| {
            let add = move |set: &Vec<(Arc<str>, Arc<str>)>| {
                let label = value.map(|value| (key.clone(), value.clone()));
                set.iter().cloned().chain(label).collect::<Vec<_>>()
            };
            sets.iter().map(add).collect::<Vec<_>>()
        };
        sets = values.iter().map(Some).chain([None]).flat_map(with).collect();
    }
    Some(sets.into_iter().map(|set| set.into_iter().collect()).collect())
}
