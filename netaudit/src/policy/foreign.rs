//! Policies of kinds that are not evaluated: what they could mean for a verdict.
//!
//! They are read for whom they select, in which direction, and whether they isolate, allow or deny. Where one could turn
//! an answer, the answer is `unknown` and says which; where it could not, the verdict carries a caveat. Pods that none of
//! them selects are judged as if there were none.

use std::sync::Arc;

use super::{
    Certainty, Labels, NamespaceView, Warning,
    compile::{Flaws, NamespaceScope, PodScope},
    declared::{self, ForeignEffect},
    evaluate::What,
    loaded::{Place, WordScope, Words},
    selector::Selector,
    words::Word,
};
use crate::model::{Direction, Gap};

/// A foreign policy whose selectors are known.
pub struct CompiledForeign {
    /// `CiliumNetworkPolicy/shop/web`.
    pub name: Arc<str>,
    /// The namespace that all pods which it may select are in; empty where they may be in any.
    pub namespace: Arc<str>,
    parts: Vec<(PodScope, [ForeignEffect; 2])>,
    /// What is wrong with it.
    pub warnings: Vec<Warning>,
}

impl CompiledForeign {
    /// Compiles a policy; what cannot be understood of a selector leaves it in doubt whom it selects.
    pub fn compile(declared: &declared::ForeignPolicy) -> Self {
        let slash = if declared.namespace.is_empty() { "" } else { "/" };
        let name = format!("{}/{}{slash}{}", declared.kind, declared.namespace, declared.name);
        let mut flaws =
            Flaws::new(&format!("{} {}{slash}{}", declared.kind, declared.namespace, declared.name));
        let part = |part: &declared::ForeignPart| {
            let namespaces = match &part.namespaces {
                None => NamespaceScope::Own(declared.namespace.clone()),
                Some(selector) => NamespaceScope::Matching(Selector::compile(selector, "spec", &mut flaws)),
            };
            let pods = Selector::compile(&part.pods, "spec", &mut flaws);
            (PodScope { namespaces, pods }, [part.egress, part.ingress])
        };
        let parts: Vec<(PodScope, _)> = declared.parts.iter().map(part).collect();
        let stays = parts.iter().all(|(scope, _)| matches!(scope.namespaces, NamespaceScope::Own(_)));
        let namespace = if stays { declared.namespace.clone() } else { "".into() };
        Self { name: name.into(), namespace, parts, warnings: flaws.warnings }
    }

    /// Whether it selects a pod with these labels in this namespace, to do something to its flows.
    pub fn selects(&self, namespace: &NamespaceView, labels: &Labels) -> Certainty {
        let selects = self.scopes().map(|scope| scope.contains(namespace, labels));
        selects.max().unwrap_or(Certainty::No)
    }

    /// Whom it selects, to do something to their flows and not only to what a proxy makes of them.
    pub(super) fn scopes(&self) -> impl Iterator<Item = &PodScope> {
        let touches = |effect: &ForeignEffect| *effect != ForeignEffect::default() && !effect.in_proxy;
        let touches_flows = move |effects: &[ForeignEffect; 2]| effects.iter().any(touches);
        self.parts.iter().filter(move |(_, effects)| touches_flows(effects)).map(|(scope, _)| scope)
    }
}

/// A foreign policy with its selectors in words.
pub(super) struct LoadedForeign {
    pub policy: Arc<CompiledForeign>,
    parts: Vec<(WordScope, [ForeignEffect; 2])>,
}

impl LoadedForeign {
    pub fn new(policy: Arc<CompiledForeign>, words: &mut Words) -> Self {
        let parts = policy.parts.iter().map(|(scope, effects)| (words.scope(scope), *effects)).collect();
        Self { policy, parts }
    }

    /// What it could do to a pod in a direction; `None` where it does not select the pod or does nothing to it.
    fn effect(&self, direction: Direction, place: &Place, pod: &[Word]) -> Option<ForeignEffect> {
        let mut all = ForeignEffect::default();
        for (scope, effects) in &self.parts {
            if scope.contains(place, pod) == Certainty::No {
                continue;
            }
            let effect = effects[direction as usize];
            all.isolates |= effect.isolates;
            all.allows |= effect.allows;
            all.denies |= effect.denies;
            all.in_proxy |= effect.in_proxy;
        }
        (all != ForeignEffect::default()).then_some(all)
    }
}

/// What the foreign policies that select a pod could do to its flows of one direction: which, if any.
#[derive(Default)]
pub(super) struct Foreign {
    pub isolates: Option<Arc<str>>,
    pub allows: Option<Arc<str>>,
    pub denies: Option<Arc<str>>,
    pub caveats: Vec<Arc<str>>,
}

impl Foreign {
    pub fn of<'a>(
        policies: impl Iterator<Item = &'a Arc<LoadedForeign>>,
        direction: Direction,
        place: &Place,
        pod: &[Word],
    ) -> Self {
        let mut found = Self::default();
        for loaded in policies {
            let Some(effect) = loaded.effect(direction, place, pod) else { continue };
            let name = &loaded.policy.name;
            found.caveats.push(caveat(name, effect).into());
            if effect.in_proxy {
                continue;
            }
            for (can, which) in [
                (effect.isolates, &mut found.isolates),
                (effect.allows, &mut found.allows),
                (effect.denies, &mut found.denies),
            ] {
                if can {
                    which.get_or_insert_with(|| name.clone());
                }
            }
        }
        found
    }

    /// Whether none of them could turn any answer.
    pub fn is_silent(&self) -> bool {
        self.isolates.is_none() && self.allows.is_none() && self.denies.is_none()
    }

    /// The answer, unless one of them could turn it.
    pub fn weigh<'a>(&self, what: What<'a>) -> What<'a> {
        let turned = match what {
            What::Allowed(_) | What::NotIsolated => self.denies.as_ref(),
            What::DeniedBy(_) | What::Isolated(_) => self.allows.as_ref(),
            What::Unknown(_) => None,
        };
        turned_by(turned, what)
    }

    /// What is said of a pod that no NetworkPolicy isolates: if one of them does, it denies before the Baseline tier is
    /// asked, as a NetworkPolicy would.
    pub fn before_baseline<'a>(&self, what: What<'a>) -> What<'a> {
        match what.is_allowed() {
            Some(true) => turned_by(self.isolates.as_ref(), what),
            _ => what,
        }
    }
}

fn turned_by<'a>(policy: Option<&Arc<str>>, what: What<'a>) -> What<'a> {
    match policy {
        Some(policy) => What::Unknown(Gap::ForeignPolicy(policy.clone())),
        None => what,
    }
}

fn caveat(name: &str, effect: ForeignEffect) -> String {
    if effect.in_proxy {
        return format!("{name} selects it too: a proxy may refuse requests that the flow carries");
    }
    let can: Vec<_> =
        [(effect.isolates, "isolates it"), (effect.allows, "may allow more"), (effect.denies, "may deny")]
            .into_iter()
            .filter_map(|(can, what)| can.then_some(what))
            .collect();
    format!("{name} selects it too and is not evaluated: it {}", can.join(", "))
}
