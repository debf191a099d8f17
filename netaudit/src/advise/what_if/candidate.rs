//! The policies that are tried, and which of those that there are they replace.

use std::{collections::BTreeSet, fmt, sync::Arc};

use crate::cluster::{Object, ObjectKey};

/// What the candidate policies replace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Every policy of every kind.
    All,
    /// Every policy of these namespaces; cluster-wide ones and those of other namespaces stay.
    Namespaces(BTreeSet<Arc<str>>),
    /// Policies of the same kind, namespace and name; all others stay.
    Named,
}

/// Policies to be tried.
#[derive(Clone, Debug)]
pub struct Candidate {
    policies: Vec<Object>,
    keys: BTreeSet<ObjectKey>,
    scope: Scope,
}

impl Candidate {
    /// Those of `objects` that are policies, or may be. The others are left out: what is no policy is as the history has it.
    /// Returns how many those are.
    ///
    /// # Errors
    ///
    /// Policies that do not belong to the namespaces whose policies are replaced.
    pub fn new(objects: Vec<Object>, scope: Scope) -> Result<(Self, usize), Outside> {
        let all = objects.len();
        let policies: Vec<Object> = objects.into_iter().filter(Object::may_be_policy).collect();
        let others = all - policies.len();
        let keys: BTreeSet<ObjectKey> = policies.iter().filter_map(Object::key).collect();
        if let Scope::Namespaces(namespaces) = &scope {
            let is_outside = |key: &&ObjectKey| !namespaces.contains(&key.namespace);
            let outside: Vec<ObjectKey> = keys.iter().filter(is_outside).cloned().collect();
            if !outside.is_empty() {
                return Err(Outside(outside));
            }
        }
        Ok((Self { policies, keys, scope }, others))
    }

    /// Policies, of which those of `old` too give way: a form of them that has lost some.
    pub fn in_place_of(old: &Self, policies: Vec<Object>) -> Self {
        let mut keys: BTreeSet<ObjectKey> = policies.iter().filter_map(Object::key).collect();
        keys.extend(old.keys.iter().cloned());
        Self { policies, keys, scope: Scope::Named }
    }

    /// The policies, and what could not be read and may be one.
    pub fn policies(&self) -> &[Object] {
        &self.policies
    }

    /// What they replace.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Whether an object that there is gives way.
    pub fn replaces(&self, object: &Object) -> bool {
        // What has no name that can be read may be one that stays.
        let replaces = |key: Option<ObjectKey>| match key {
            Some(key) => self.replaces_key(&key),
            None => self.scope == Scope::All,
        };
        object.may_be_policy() && replaces(object.key())
    }

    /// Whether an object of this key gives way.
    pub fn replaces_key(&self, key: &ObjectKey) -> bool {
        key.kind.is_policy()
            && match &self.scope {
                Scope::All => true,
                Scope::Namespaces(namespaces) => namespaces.contains(&key.namespace),
                Scope::Named => self.keys.contains(key),
            }
    }
}

/// Candidate policies outside the namespaces whose policies are replaced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outside(Vec<ObjectKey>);

impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        write!(f, "outside the namespaces whose policies are to be replaced: {}", names.join(", "))
    }
}

impl std::error::Error for Outside {}
