//! How two selectors relate, whatever labels there are. Every answer is one-sided: `false` may mean that it is not known.

use std::sync::Arc;

use super::{
    Labels, METADATA_NAME,
    compile::Flaws,
    declared,
    selector::{Selector, Test},
};

impl Selector {
    /// Compiles a selector on its own. What is wrong with it leaves it in doubt, and is told where its policy is compiled.
    pub fn of(declared: &declared::Selector) -> Self {
        Self::compile(declared, "", &mut Flaws::new(""))
    }

    /// The selector of the one namespace with this name, by the label that the API server puts on every namespace.
    pub fn of_namespace(name: &str) -> Self {
        let match_labels = vec![(METADATA_NAME.to_owned(), name.to_owned())];
        Self::of(&declared::Selector { match_labels, ..Default::default() })
    }

    /// Whether all that this selects the other selects too, for certain.
    pub fn is_within(&self, other: &Self) -> bool {
        let implied = |(key, wanted): (&Arc<str>, &Test)| {
            self.requirements().any(|(own, test)| own == key && implies(test, wanted))
        };
        // A further requirement of this one, though nobody knows which, only selects less.
        other.doubt.is_none() && other.requirements().all(implied)
    }

    /// Whether nothing can be selected by both, for certain.
    pub fn is_disjoint(&self, other: &Self) -> bool {
        self.requirements()
            .any(|(key, test)| other.requirements().any(|(own, it)| own == key && excludes(test, it)))
    }

    /// Whether it contradicts itself, so that it selects nothing whatever there is.
    pub fn is_contradictory(&self) -> bool {
        self.is_disjoint(self)
    }

    /// Whether a requirement of it could not be understood.
    pub fn is_doubtful(&self) -> bool {
        self.doubt.is_some()
    }

    /// The keys that it asks for.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.requirements().map(|(key, _)| &**key)
    }

    /// The values that this key must have one of; `None` where it does not say.
    pub fn values_of(&self, key: &str) -> Option<&[Arc<str>]> {
        self.requirements().find_map(|(own, test)| match test {
            Test::In(values) if **own == *key => Some(values.as_slice()),
            _ => None,
        })
    }

    /// Whether these labels would do if this key had the right value, whatever that is.
    pub fn matches_but_for(&self, labels: &Labels, open: &[&str]) -> bool {
        let holds = |(key, test): (&Arc<str>, &Test)| open.contains(&&**key) || test.holds(labels.get(key));
        self.requirements().all(holds)
    }
}

/// Whether what passes the first test passes the second.
fn implies(test: &Test, wanted: &Test) -> bool {
    match (test, wanted) {
        (Test::In(some), Test::In(all)) => some.iter().all(|it| all.contains(it)),
        (Test::In(some), Test::NotIn(none)) => !some.iter().any(|it| none.contains(it)),
        (Test::NotIn(more), Test::NotIn(none)) => none.iter().all(|it| more.contains(it)),
        (Test::In(_) | Test::Exists, Test::Exists) => true,
        (Test::DoesNotExist, Test::DoesNotExist | Test::NotIn(_)) => true,
        _ => false,
    }
}

/// Whether no value, nor the lack of one, passes both.
fn excludes(a: &Test, b: &Test) -> bool {
    match (a, b) {
        (Test::In(some), Test::In(others)) => !some.iter().any(|it| others.contains(it)),
        (Test::In(some), Test::NotIn(none)) | (Test::NotIn(none), Test::In(some)) => {
            some.iter().all(|it| none.contains(it))
        }
        (Test::In(_) | Test::Exists, Test::DoesNotExist)
        | (Test::DoesNotExist, Test::In(_) | Test::Exists) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(labels: &[(&str, &str)], expressions: &[(&str, &str, &[&str])]) -> Selector {
        let expression = |(key, operator, values): &(&str, &str, &[&str])| declared::Expression {
            key: (*key).to_owned(),
            operator: (*operator).to_owned(),
            values: values.iter().map(|it| (*it).to_owned()).collect(),
        };
        Selector::of(&declared::Selector {
            match_labels: labels.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect(),
            match_expressions: expressions.iter().map(expression).collect(),
            invalid: Vec::new(),
        })
    }

    #[test]
    fn within_and_disjoint_say_only_what_is_certain() {
        let everything = selector(&[], &[]);
        let web = selector(&[("app", "web")], &[]);
        let web_front = selector(&[("app", "web"), ("tier", "front")], &[]);
        let some = selector(&[], &[("app", "In", &["db", "web"])]);
        let not_db = selector(&[], &[("app", "NotIn", &["db"])]);
        let not_web = selector(&[], &[("app", "NotIn", &["web", "db"])]);
        let any = selector(&[], &[("app", "Exists", &[])]);
        let none = selector(&[], &[("app", "DoesNotExist", &[])]);
        let invalid = selector(&[("app", "web")], &[("app", "Like", &["w"])]);
        for (name, is, expected) in [
            ("all in all", everything.is_within(&everything), true),
            ("web in all", web.is_within(&everything), true),
            ("all in web", everything.is_within(&web), false),
            ("more labels", web_front.is_within(&web), true),
            ("fewer labels", web.is_within(&web_front), false),
            ("one of several", web.is_within(&some), true),
            ("several in one", some.is_within(&web), false),
            ("web is not db", web.is_within(&not_db), true),
            ("more excluded", not_web.is_within(&not_db), true),
            ("fewer excluded", not_db.is_within(&not_web), false),
            ("web exists", web.is_within(&any), true),
            ("absent is not db", none.is_within(&not_db), true),
            ("a doubtful part of web", invalid.is_within(&web), true),
            ("web in what is doubtful", web.is_within(&invalid), false),
            ("web or not", web.is_disjoint(&not_web), true),
            ("web or absent", web.is_disjoint(&none), true),
            ("web and not db", web.is_disjoint(&not_db), false),
            ("other keys", web.is_disjoint(&selector(&[("tier", "front")], &[])), false),
            ("all", everything.is_disjoint(&web), false),
        ] {
            assert_eq!(is, expected, "{name}");
        }
        assert!(selector(&[("app", "web")], &[("app", "NotIn", &["web"])]).is_contradictory());
        assert!(!web_front.is_contradictory());
    }
}
