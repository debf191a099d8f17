//! Labels as numbers, so that a selector is a few comparisons of integers.

use std::sync::Arc;

use foldhash::HashMap;
use smallvec::SmallVec;

use super::{
    Certainty, Labels, METADATA_NAME,
    selector::{Selector, Test},
};

/// A label: its key and its value. Sorted by key where several stand together.
pub(super) type Word = (u32, u32);

/// Labels that some selector could tell apart.
pub(super) type WordSet = SmallVec<[Word; 4]>;

/// A value that no selector mentions: all such are alike.
const OTHER: u32 = 0;

/// The key of [`METADATA_NAME`], which every vocabulary has.
const NAME_KEY: u32 = 0;

/// The keys that selectors mention, and the values of each. Grows and never forgets: words that no policy uses any more
/// only tell apart what need not be.
#[derive(Clone)]
pub(super) struct Vocabulary {
    keys: HashMap<Arc<str>, Key>,
}

#[derive(Clone)]
struct Key {
    id: u32,
    values: HashMap<Arc<str>, u32>,
}

impl Default for Vocabulary {
    fn default() -> Self {
        let name = Key { id: NAME_KEY, values: HashMap::default() };
        Self { keys: [(METADATA_NAME.into(), name)].into_iter().collect() }
    }
}

impl Vocabulary {
    fn key(&mut self, key: &Arc<str>) -> &mut Key {
        let id = self.keys.len() as u32;
        self.keys.entry(key.clone()).or_insert_with(|| Key { id, values: HashMap::default() })
    }

    /// The word of a label, added if it is new.
    pub fn learn(&mut self, key: &Arc<str>, value: &Arc<str>) -> Word {
        let key = self.key(key);
        let next = key.values.len() as u32 + 1;
        (key.id, *key.values.entry(value.clone()).or_insert(next))
    }

    /// The words of these labels, without keys that no selector mentions.
    pub fn words(&self, labels: &Labels) -> WordSet {
        let mut words: WordSet = (labels.iter())
            .filter_map(|(key, value)| {
                let key = self.keys.get(key)?;
                Some((key.id, key.values.get(value).copied().unwrap_or(OTHER)))
            })
            .collect();
        words.sort_unstable();
        words
    }

    /// The number that stands for a namespace's name; `None` where no selector and no policy mentions it.
    pub fn name(&self, name: &str) -> Option<u32> {
        self.keys.get(METADATA_NAME)?.values.get(name).copied()
    }

    /// Whether the label is there already.
    pub fn has(&self, key: &str, value: &str) -> bool {
        self.keys.get(key).is_some_and(|key| key.values.contains_key(value))
    }

    /// Whether everything that a selector needs is there already.
    pub fn knows(&self, selector: &Selector) -> bool {
        selector.requirements().all(|(key, test)| {
            let known = self.keys.get(key);
            known.is_some_and(|key| test.values().iter().all(|value| key.values.contains_key(value)))
        })
    }

    /// A selector in words of this vocabulary, which learns those that are new.
    pub fn learn_selector(&mut self, selector: &Selector) -> WordSelector {
        for (key, test) in selector.requirements() {
            self.key(key);
            for value in test.values() {
                self.learn(key, value);
            }
        }
        self.selector(selector)
    }

    /// A selector in words of this vocabulary, which [knows](Self::knows) them.
    pub fn selector(&self, selector: &Selector) -> WordSelector {
        let requirement = |(key, test): (&Arc<str>, &Test)| {
            let key = self.keys.get(key)?;
            let values = test.values().iter().filter_map(|value| key.values.get(value).copied()).collect();
            let values: Box<[u32]> = values;
            let test = match test {
                Test::In(_) if values.len() == 1 => WordTest::Is(values[0]),
                Test::In(_) => WordTest::In(values),
                Test::NotIn(_) => WordTest::NotIn(values),
                Test::Exists => WordTest::Exists,
                Test::DoesNotExist => WordTest::DoesNotExist,
            };
            Some((key.id, test))
        };
        let requirements = selector.requirements().filter_map(requirement).collect();
        WordSelector { requirements, doubt: selector.doubt.is_some() }
    }
}

/// A [`Selector`] in words.
pub(super) struct WordSelector {
    /// The first stands here, so that most selectors need no other memory.
    requirements: SmallVec<[(u32, WordTest); 1]>,
    doubt: bool,
}

enum WordTest {
    /// In a set of one.
    Is(u32),
    In(Box<[u32]>),
    NotIn(Box<[u32]>),
    Exists,
    DoesNotExist,
}

impl WordTest {
    fn holds(&self, value: Option<u32>) -> bool {
        match (self, value) {
            (Self::Is(is), Some(value)) => *is == value,
            (Self::In(values), Some(value)) => values.contains(&value),
            (Self::NotIn(values), Some(value)) => !values.contains(&value),
            (Self::Exists, value) => value.is_some(),
            (Self::DoesNotExist, value) => value.is_none(),
            (Self::Is(_) | Self::In(_), None) => false,
            (Self::NotIn(_), None) => true,
        }
    }
}

fn value(words: &[Word], key: u32) -> Option<u32> {
    words.iter().find(|(have, _)| *have == key).map(|(_, value)| *value)
}

impl WordSelector {
    /// [`Selector::matches`].
    pub fn matches(&self, words: &[Word]) -> Certainty {
        if !self.requirements.iter().all(|(key, test)| test.holds(value(words, *key))) {
            Certainty::No
        } else if self.doubt {
            Certainty::Maybe
        } else {
            Certainty::Yes
        }
    }

    /// Of something whose labels, but for the name, are not known.
    pub fn matches_unread(&self, words: &[Word]) -> Certainty {
        let mut found = if self.doubt { Certainty::Maybe } else { Certainty::Yes };
        for (key, test) in &self.requirements {
            let one = match *key {
                NAME_KEY => test.holds(value(words, NAME_KEY)).into(),
                _ => Certainty::Maybe,
            };
            found = found.and(one);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_nobody_mentions_are_alike_and_keys_are_dropped() {
        let mut words = Vocabulary::default();
        let labels = |pairs: &[(&str, &str)]| pairs.iter().copied().collect::<Labels>();
        let app = words.learn(&"app".into(), &"web".into());
        assert_eq!(words.words(&labels(&[("app", "web"), ("pod", "x-1")])).as_slice(), [app]);
        assert_eq!(words.words(&labels(&[("app", "x")])), words.words(&labels(&[("app", "y")])));
        assert_eq!(words.learn(&"app".into(), &"web".into()), app, "nothing new");
        words.learn(&"app".into(), &"x".into());
        assert_ne!(words.words(&labels(&[("app", "x")])), words.words(&labels(&[("app", "y")])));
    }
}
