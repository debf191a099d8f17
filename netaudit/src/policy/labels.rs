//! Labels and named ports: what selectors and rules look at on a pod or namespace.

use std::{fmt, sync::Arc};

use crate::model::Protocol;

/// The label that the API server puts on every namespace, with the namespace's own name as its value.
pub const METADATA_NAME: &str = "kubernetes.io/metadata.name";

/// Labels in order of key, shared and never changed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Arc<str>> {
        let index = self.0.binary_search_by(|(have, _)| have.as_ref().cmp(key)).ok()?;
        Some(&self.0[index].1)
    }

    /// Every label in order of key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_ref(), value.as_ref()))
    }

    /// Every label in order of key, to be shared.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These labels with this value of `key`, whatever it was.
    pub fn with(&self, key: &str, value: &str) -> Self {
        if self.get(key).is_some_and(|have| **have == *value) {
            return self.clone();
        }
        self.0.iter().cloned().chain([(key.into(), value.into())]).collect()
    }
}

impl Default for Labels {
    fn default() -> Self {
        Self(Arc::from([]))
    }
}

/// A later label replaces an earlier one of the same key.
impl<K: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(pairs: T) -> Self {
        let mut pairs: Vec<(Arc<str>, Arc<str>)> =
            pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        // The sort is stable: of equal keys the last one in the input stays last, and wins.
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        pairs.reverse();
        pairs.dedup_by(|a, b| a.0 == b.0);
        pairs.reverse();
        Self(pairs.into())
    }
}

/// `app=web,tier=front`.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.iter().enumerate() {
            write!(f, "{}{key}={value}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// A container port with a name, which a policy or Service may refer to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NamedPort {
    /// The name, unique for its protocol in a sane pod.
    pub name: Arc<str>,
    /// The protocol; TCP where the pod does not say.
    pub protocol: Protocol,
    /// The number that the container listens on.
    pub port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_equal_keys_wins_and_order_is_by_key() {
        let labels: Labels = [("b", "1"), ("a", "1"), ("b", "2")].into_iter().collect();
        assert_eq!(labels.to_string(), "a=1,b=2");
        assert_eq!(labels.get("b").map(AsRef::as_ref), Some("2"));
        assert!(labels.get("c").is_none());
    }

    #[test]
    fn a_default_does_not_replace() {
        let labels: Labels = [("a", "1")].into_iter().collect();
        assert_eq!(labels.with("a", "2").to_string(), "a=2");
        assert_eq!(labels.with("0", "2").to_string(), "0=2,a=1");
    }
}
