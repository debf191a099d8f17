//! How many workloads a selector selects.

use std::{collections::BTreeMap, fmt, sync::Arc};

use foldhash::HashMap;

use super::{
    Certainty, Labels, NamespaceView,
    compile::{Matcher, NamespaceScope, PodScope, Rule},
};

/// The workloads of a cluster at one moment, each with the labels of one of its pods.
#[derive(Default)]
pub struct Crowd {
    by_namespace: BTreeMap<Arc<str>, (NamespaceView, Vec<Labels>)>,
    /// What was counted already.
    known: HashMap<Arc<PodScope>, u32>,
}

impl Crowd {
    /// These workloads.
    pub fn new(workloads: impl IntoIterator<Item = (NamespaceView, Vec<Labels>)>) -> Self {
        let by_namespace = workloads.into_iter().map(|it| (it.0.name.clone(), it)).collect();
        Self { by_namespace, known: HashMap::default() }
    }

    fn count(&mut self, scope: &Arc<PodScope>) -> u32 {
        if let Some(known) = self.known.get(scope) {
            return *known;
        }
        // Of one whose namespace is certain to be in the scope.
        let of = |(_, workloads): &(NamespaceView, Vec<Labels>)| {
            let selected = workloads.iter().filter(|it| scope.pods.matches(it) == Certainty::Yes);
            u32::try_from(selected.count()).unwrap_or(u32::MAX)
        };
        let count = match &scope.namespaces {
            NamespaceScope::Own(name) => self.by_namespace.get(name).map_or(0, of),
            NamespaceScope::Matching(selector) => {
                let matching = self.by_namespace.values();
                let matching = matching.filter(|it| selector.matches_namespace(&it.0) == Certainty::Yes);
                matching.map(of).fold(0, u32::saturating_add)
            }
        };
        self.known.insert(scope.clone(), count);
        count
    }
}

impl fmt::Debug for Crowd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crowd").field("namespaces", &self.by_namespace.len()).finish_non_exhaustive()
    }
}

impl Rule {
    /// How many workloads each element of `from` or `to` selects by labels, by its position.
    pub fn peers_width(&self, crowd: &mut Crowd) -> impl Iterator<Item = (u32, u32)> {
        self.peers.iter().filter_map(move |peer| match &peer.matcher {
            Matcher::Pods(scope) => Some((peer.index, crowd.count(scope))),
            Matcher::Anyone
            | Matcher::Nobody
            | Matcher::Nodes(_)
            | Matcher::Block(_)
            | Matcher::Domain(_) => None,
        })
    }
}
