//! Domain names of peers.

use std::{fmt, sync::Arc};

use super::Certainty;

/// A `domainNames` entry: one name, or with `*.` before it all names below it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DomainPattern {
    /// In lower case, without the dot at the end.
    name: Arc<str>,
    below: bool,
}

impl DomainPattern {
    /// Reads `kubernetes.io` or `*.kubernetes.io`, as the API has it: `*` stands for one or more whole labels, and only
    /// at the beginning. Case and a dot at the end mean nothing. `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let name = normal(name);
        let is_label = |label: &str| {
            let ends = [label.bytes().next(), label.bytes().next_back()];
            ends.iter().all(|it| it.is_some_and(|byte| byte.is_ascii_alphanumeric()))
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        // The API wants at least two labels.
        (name.contains('.') && name.split('.').all(is_label)).then(|| Self { name: name.into(), below })
    }

    /// Whether `name`, which must be [normal], is one that it means.
    pub fn matches(&self, name: &str) -> bool {
        if !self.below {
            return *self.name == *name;
        }
        let head = name.strip_suffix(&*self.name).and_then(|rest| rest.strip_suffix('.'));
        head.is_some_and(|head| !head.is_empty())
    }

    /// A name that it means: the only one, or one of those below, another for each `n`.
    pub fn example(&self, n: usize) -> String {
        if self.below { format!("any{n}.{}", self.name) } else { self.name.to_string() }
    }

    /// Whether it means this one name only.
    pub fn is_exactly(&self, name: &str) -> bool {
        !self.below && *self.name == *name
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.name)
    }
}

/// What is known of the names that DNS gave for an address, each [normal].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum KnownNames<N> {
    /// Nothing.
    #[default]
    Unknown,
    /// It has these, and perhaps more.
    Some(N),
    /// It has these and no others.
    All(N),
}

impl KnownNames<Arc<[Arc<str>]>> {
    /// The same, borrowed.
    pub fn as_slice(&self) -> KnownNames<&[Arc<str>]> {
        match self {
            Self::Unknown => KnownNames::Unknown,
            Self::Some(names) => KnownNames::Some(names),
            Self::All(names) => KnownNames::All(names),
        }
    }
}

impl KnownNames<&[Arc<str>]> {
    /// Whether one of them is among those that `pattern` means.
    pub fn matches(&self, pattern: &DomainPattern) -> Certainty {
        let meant = |names: &[Arc<str>]| names.iter().any(|name| pattern.matches(name));
        match self {
            Self::Some(names) if meant(names) => Certainty::Yes,
            Self::Some(_) | Self::Unknown => Certainty::Maybe,
            Self::All(names) => meant(names).into(),
        }
    }
}

/// A name as names are compared: in lower case, without the dot at the end.
pub fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_or_all_below_it() {
        let matches = |pattern, name| DomainPattern::parse(pattern).unwrap().matches(&normal(name));
        assert!(matches("kubernetes.io", "Kubernetes.io."));
        assert!(!matches("kubernetes.io", "www.kubernetes.io"));
        assert!(!matches("kubernetes.io", "my-kubernetes.io"));
        assert!(matches("*.Kubernetes.io.", "latest.blog.kubernetes.io"));
        assert!(!matches("*.kubernetes.io", "kubernetes.io"));
        assert!(!matches("*.kubernetes.io", ".kubernetes.io"));
        assert!(!matches("*.kubernetes.io", "my-kubernetes.io"));
    }

    #[test]
    fn a_name_that_is_not_among_those_known_may_be_there_unless_all_are_known() {
        let pattern = DomainPattern::parse("*.example.com").unwrap();
        let one: Arc<[Arc<str>]> = ["www.example.com".into()].into();
        let other: Arc<[Arc<str>]> = ["www.example.org".into()].into();
        for (known, expected) in [
            (KnownNames::Unknown, Certainty::Maybe),
            (KnownNames::Some(one.clone()), Certainty::Yes),
            (KnownNames::Some(other.clone()), Certainty::Maybe),
            (KnownNames::All(one), Certainty::Yes),
            (KnownNames::All(other), Certainty::No),
        ] {
            assert_eq!(known.as_slice().matches(&pattern), expected, "{known:?}");
        }
    }

    #[test]
    fn what_is_no_pattern() {
        for text in
            ["", "*", "*.", "io", "*.io", "a.*.io", "*a.io", "-a.io", "a-.io", "a..io", "a b.io", "a.io.."]
        {
            assert_eq!(DomainPattern::parse(text), None, "{text:?}");
        }
    }
}
