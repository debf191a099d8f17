//! Label selectors, compiled.

use std::{fmt, sync::Arc};

use super::{Certainty, Labels, METADATA_NAME, compile::Flaws, declared};

/// A label selector whose requirements are known, as far as they are valid.
///
/// The API: a selector without requirements matches everything; with several, all must hold.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Selector {
    /// Sorted and without duplicates, so that equal selectors are equal values.
    requirements: Vec<Requirement>,
    /// Set where a further requirement could not be understood: which, and why.
    pub(super) doubt: Option<Arc<str>>,
}

/// One requirement on one label.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Requirement {
    key: Arc<str>,
    test: Test,
}

/// What must hold of the label's value. The values are sorted.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Test {
    In(Vec<Arc<str>>),
    NotIn(Vec<Arc<str>>),
    Exists,
    DoesNotExist,
}

/// A namespace as selectors see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespaceView {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels, `kubernetes.io/metadata.name` among them.
    pub labels: Labels,
    /// Set where its object could not be read, so that it may have any other labels: why.
    pub doubt: Option<Arc<str>>,
}

impl NamespaceView {
    /// A namespace that exists because something lives in it: it has the label that every namespace has, no others.
    pub fn implied(name: Arc<str>) -> Self {
        let labels = [(METADATA_NAME, name.clone())].into_iter().collect();
        Self { name, labels, doubt: None }
    }
}

impl Test {
    /// The values that it mentions.
    pub fn values(&self) -> &[Arc<str>] {
        match self {
            Self::In(values) | Self::NotIn(values) => values,
            Self::Exists | Self::DoesNotExist => &[],
        }
    }

    /// The API: `In` wants the label with one of the values, `NotIn` wants it absent or with another value, `Exists`
    /// wants the label with any value, `DoesNotExist` wants it absent.
    pub(super) fn holds(&self, value: Option<&Arc<str>>) -> bool {
        match (self, value) {
            (Self::In(values), Some(value)) => values.binary_search(value).is_ok(),
            (Self::In(_), None) => false,
            (Self::NotIn(values), Some(value)) => values.binary_search(value).is_err(),
            (Self::NotIn(_), None) => true,
            (Self::Exists, value) => value.is_some(),
            (Self::DoesNotExist, value) => value.is_none(),
        }
    }
}

impl Selector {
    /// Compiles `declared`, which stands at `path`; what is wrong with it is told to `flaws`.
    pub(super) fn compile(declared: &declared::Selector, path: &str, flaws: &mut Flaws) -> Self {
        let mut selector = Self::default();
        for invalid in &declared.invalid {
            selector.doubt(flaws.add_invalid(invalid));
        }
        for (key, value) in &declared.match_labels {
            let problem = key_problem(key).or_else(|| value_problem(value));
            match problem {
                Some(reason) => selector.doubt(flaws.add(format!("{path}.matchLabels.{key}"), reason)),
                None => selector.require(key, Test::In(vec![value.as_str().into()])),
            }
        }
        for (index, expression) in declared.match_expressions.iter().enumerate() {
            let path = format!("{path}.matchExpressions[{index}]");
            match compile_expression(expression) {
                Ok(test) => selector.require(&expression.key, test),
                Err((field, reason)) => selector.doubt(flaws.add(format!("{path}.{field}"), reason)),
            }
        }
        selector.requirements.sort();
        selector.requirements.dedup();
        selector
    }

    fn require(&mut self, key: &str, test: Test) {
        self.requirements.push(Requirement { key: key.into(), test });
    }

    fn doubt(&mut self, reason: Arc<str>) {
        self.doubt.get_or_insert(reason);
    }

    /// Whether something with these labels is selected.
    pub fn matches(&self, labels: &Labels) -> Certainty {
        if !self.requirements.iter().all(|it| it.test.holds(labels.get(&it.key))) {
            return Certainty::No;
        }
        if self.doubt.is_some() { Certainty::Maybe } else { Certainty::Yes }
    }

    /// Whether this namespace is selected. Of a namespace whose object could not be read only the name is certain.
    pub fn matches_namespace(&self, namespace: &NamespaceView) -> Certainty {
        if namespace.doubt.is_none() {
            return self.matches(&namespace.labels);
        }
        let (mut known, mut unknown) = (true, false);
        for requirement in &self.requirements {
            if *requirement.key == *METADATA_NAME {
                known &= requirement.test.holds(Some(&namespace.name));
            } else {
                unknown = true;
            }
        }
        match (known, unknown || self.doubt.is_some()) {
            (false, _) => Certainty::No,
            (true, true) => Certainty::Maybe,
            (true, false) => Certainty::Yes,
        }
    }

    /// What would have to be otherwise for these labels to be selected, a text for each requirement: `label app=web
    /// wanted, app is db`.
    pub(super) fn missing(&self, labels: &Labels) -> Vec<String> {
        let failing = self.requirements.iter().filter(|it| !it.test.holds(labels.get(&it.key)));
        let text = |requirement: &Requirement| {
            let key = &requirement.key;
            match labels.get(key) {
                Some(value) => format!("{requirement} wanted, {key} is {value:?}"),
                None => format!("{requirement} wanted, there is no label {key}"),
            }
        };
        failing.map(text).chain(self.doubt.iter().map(ToString::to_string)).collect()
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && self.doubt.is_none()
    }

    /// What must hold, a key and its test each.
    pub(super) fn requirements(&self) -> impl Iterator<Item = (&Arc<str>, &Test)> {
        self.requirements.iter().map(|it| (&it.key, &it.test))
    }

    /// The one namespace that it selects by name, if it says nothing else.
    pub(super) fn only_namespace(&self) -> Option<&str> {
        match self.requirements.as_slice() {
            [Requirement { key, test: Test::In(values) }]
                if **key == *METADATA_NAME && self.doubt.is_none() =>
            {
                match values.as_slice() {
                    [name] => Some(name),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

/// `app=web`, `tier in (a,b)`, `!old`.
impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match &self.test {
            Test::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0]),
            Test::In(values) => write!(f, "{key} in ({})", values.join(",")),
            Test::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0]),
            Test::NotIn(values) => write!(f, "{key} notin ({})", values.join(",")),
            Test::Exists => write!(f, "{key}"),
            Test::DoesNotExist => write!(f, "!{key}"),
        }
    }
}

/// `app=web,tier in (a,b),!old`, as `kubectl` prints selectors.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            write!(f, "{}{requirement}", if index == 0 { "" } else { "," })?;
        }
        if self.doubt.is_some() {
            write!(f, "{}<invalid>", if self.requirements.is_empty() { "" } else { "," })?;
        }
        Ok(())
    }
}

/// The test of a valid expression, or the field that is wrong and why.
fn compile_expression(expression: &declared::Expression) -> Result<Test, (&'static str, String)> {
    if let Some(reason) = key_problem(&expression.key) {
        return Err(("key", reason));
    }
    // The API: In and NotIn need values, Exists and DoesNotExist must have none.
    let needs_values = match expression.operator.as_str() {
        "In" | "NotIn" => true,
        "Exists" | "DoesNotExist" => false,
        other => {
            return Err((
                "operator",
                format!("unknown operator {other:?}: In, NotIn, Exists or DoesNotExist"),
            ));
        }
    };
    if needs_values == expression.values.is_empty() {
        let must = if needs_values { "at least one value" } else { "no values" };
        return Err(("values", format!("{} takes {must}", expression.operator)));
    }
    if let Some(reason) = expression.values.iter().find_map(|value| value_problem(value)) {
        return Err(("values", reason));
    }
    let mut values: Vec<Arc<str>> = expression.values.iter().map(|value| value.as_str().into()).collect();
    values.sort();
    values.dedup();
    Ok(match expression.operator.as_str() {
        "In" => Test::In(values),
        "NotIn" => Test::NotIn(values),
        "Exists" => Test::Exists,
        _ => Test::DoesNotExist,
    })
}

/// Why `key` cannot be a label's key: a name of at most 63 letters, digits, `-`, `_` and `.`, with an optional DNS
/// name and a slash before it.
fn key_problem(key: &str) -> Option<String> {
    let (prefix, name) = match key.rsplit_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let prefix_is_dns = prefix.is_none_or(|prefix| {
        !prefix.is_empty()
            && prefix.len() <= 253
            && prefix.split('.').all(|label| {
                is_framed(label)
                    && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            })
    });
    (!prefix_is_dns || !is_label_text(name)).then(|| format!("{key:?} cannot be a label's key"))
}

/// Why `value` cannot be a label's value: like a name, or empty.
fn value_problem(value: &str) -> Option<String> {
    (!value.is_empty() && !is_label_text(value)).then(|| format!("{value:?} cannot be a label's value"))
}

fn is_label_text(text: &str) -> bool {
    text.len() <= 63
        && is_framed(text)
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Begins and ends with a letter or digit.
fn is_framed(text: &str) -> bool {
    let alphanumeric = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    alphanumeric(text.bytes().next()) && alphanumeric(text.bytes().next_back())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(labels: &[(&str, &str)], expressions: &[(&str, &str, &[&str])]) -> (Selector, Vec<String>) {
        let declared = declared::Selector {
            match_labels: labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            match_expressions: expressions
                .iter()
                .map(|(key, operator, values)| declared::Expression {
                    key: key.to_string(),
                    operator: operator.to_string(),
                    values: values.iter().map(ToString::to_string).collect(),
                })
                .collect(),
            ..Default::default()
        };
        let mut flaws = Flaws::new("NetworkPolicy ns/p");
        let selector = Selector::compile(&declared, "spec.podSelector", &mut flaws);
        (selector, flaws.warnings.iter().map(ToString::to_string).collect())
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().copied().collect()
    }

    #[test]
    fn operators_against_present_other_and_absent_values() {
        for (operator, values, expected) in [
            ("In", &["a", "b"][..], [true, false, false]),
            ("NotIn", &["a", "b"], [false, true, true]),
            ("Exists", &[], [true, true, false]),
            ("DoesNotExist", &[], [false, false, true]),
        ] {
            let (selector, warnings) = compile(&[], &[("k", operator, values)]);
            assert!(warnings.is_empty(), "{warnings:?}");
            let got = [&[("k", "b")][..], &[("k", "z")], &[]]
                .map(|it| selector.matches(&labels(it)) == Certainty::Yes);
            assert_eq!(got, expected, "{operator}");
        }
    }

    #[test]
    fn empty_selects_all_and_all_requirements_must_hold() {
        assert_eq!(compile(&[], &[]).0.matches(&labels(&[])), Certainty::Yes);
        let (both, _) = compile(&[("a", "1")], &[("b", "Exists", &[])]);
        assert_eq!(both.matches(&labels(&[("a", "1")])), Certainty::No);
        assert_eq!(both.matches(&labels(&[("a", "1"), ("b", "")])), Certainty::Yes);
    }

    #[test]
    fn invalid_requirements_leave_the_others_certain() {
        let (selector, warnings) = compile(&[("app", "web")], &[("tier", "Within", &["x"])]);
        assert_eq!(selector.matches(&labels(&[("app", "db")])), Certainty::No);
        assert_eq!(selector.matches(&labels(&[("app", "web")])), Certainty::Maybe);
        assert_eq!(
            warnings,
            [
                "NetworkPolicy ns/p: spec.podSelector.matchExpressions[0].operator: unknown operator \"Within\": In, \
              NotIn, Exists or DoesNotExist"
            ]
        );
        for (key, operator, values, path) in [
            ("k", "In", &[][..], "matchExpressions[0].values"),
            ("k", "Exists", &["v"], "matchExpressions[0].values"),
            ("k k", "Exists", &[], "matchExpressions[0].key"),
            ("/k", "Exists", &[], "matchExpressions[0].key"),
            ("k", "In", &["-"], "matchExpressions[0].values"),
        ] {
            let (selector, warnings) = compile(&[], &[(key, operator, values)]);
            assert_eq!(selector.matches(&labels(&[])), Certainty::Maybe, "{key} {operator}");
            assert!(warnings[0].contains(path), "{warnings:?}");
        }
    }

    #[test]
    fn of_an_unreadable_namespace_only_the_name_is_certain() {
        let namespace = NamespaceView { doubt: Some("broken".into()), ..NamespaceView::implied("x".into()) };
        let by_name = |name| compile(&[(METADATA_NAME, name)], &[]).0;
        assert_eq!(by_name("x").matches_namespace(&namespace), Certainty::Yes);
        assert_eq!(by_name("y").matches_namespace(&namespace), Certainty::No);
        assert_eq!(compile(&[("env", "prod")], &[]).0.matches_namespace(&namespace), Certainty::Maybe);
        assert_eq!(Selector::default().matches_namespace(&namespace), Certainty::Yes);
    }

    #[test]
    fn prints_like_kubectl() {
        let (selector, _) =
            compile(&[("app", "web")], &[("b", "NotIn", &["y", "x"]), ("c", "DoesNotExist", &[])]);
        assert_eq!(selector.to_string(), "app=web,b notin (x,y),!c");
    }
}
