//! Words that flows share: each is put into words once for all flows of a batch that have it, and a flow keeps its number.

use std::{borrow::Cow, hash::Hash, sync::Arc};

use arrow::{
    array::{ArrayRef, DictionaryArray, ListArray, StringArray, UInt32Array},
    buffer::{BooleanBuffer, NullBuffer, OffsetBuffer, ScalarBuffer},
    datatypes::UInt32Type,
    error::ArrowError,
};
use foldhash::HashMap;
use smallvec::SmallVec;

use super::schema::words_item;

/// Stands for no word.
const NONE: u32 = u32::MAX;

/// Where something is in memory, and how long it is. Two things that are there at once have different ones, unless they are the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Place(usize, usize);

impl Place {
    /// Of this. Whoever goes by it has to keep it where it is.
    pub fn of<T: ?Sized>(it: &T) -> Self {
        Self(std::ptr::from_ref(it).addr(), size_of_val(it))
    }
}

/// The words of a column, each once.
#[derive(Default)]
struct Dictionary<'a> {
    numbers: HashMap<&'a str, u32>,
    words: Vec<&'a str>,
}

impl<'a> Dictionary<'a> {
    fn number(&mut self, word: &'a str) -> u32 {
        let words = &mut self.words;
        *self.numbers.entry(word).or_insert_with(|| {
            words.push(word);
            words.len() as u32 - 1
        })
    }

    fn column(self, keys: UInt32Array) -> Result<DictionaryArray<UInt32Type>, ArrowError> {
        DictionaryArray::try_new(keys, Arc::new(StringArray::from_iter_values(self.words)))
    }
}

/// Words that flows share.
#[derive(Debug)]
pub(super) struct Group<K, V> {
    ids: HashMap<K, u32>,
    values: Vec<V>,
    /// Of each flow its word's number, or [`NONE`].
    keys: Vec<u32>,
    lacks_some: bool,
    /// The one that came last: most often it comes again.
    last: Option<(K, u32)>,
}

impl<K: Copy + Hash + Eq, V> Group<K, V> {
    /// None yet, with room for so many flows.
    pub fn with_room(flows: usize) -> Self {
        Self {
            ids: HashMap::default(),
            values: Vec::new(),
            keys: Vec::with_capacity(flows),
            lacks_some: false,
            last: None,
        }
    }

    /// A flow that has this one.
    pub fn push(&mut self, key: K, value: impl FnOnce(K) -> V) {
        if let Some((last, id)) = self.last
            && last == key
        {
            return self.keys.push(id);
        }
        let values = &mut self.values;
        let id = *self.ids.entry(key).or_insert_with(|| {
            values.push(value(key));
            values.len() as u32 - 1
        });
        self.last = Some((key, id));
        self.keys.push(id);
    }

    /// A flow that has none.
    pub fn push_none(&mut self) {
        self.lacks_some = true;
        self.keys.push(NONE);
    }

    /// What each flow has.
    pub fn each(&self) -> impl Iterator<Item = Option<&V>> {
        self.keys.iter().map(|key| self.values.get(*key as usize))
    }

    /// A column of the words that `word` finds in each value.
    pub fn words(&self, word: impl Fn(&V) -> Option<&str>) -> Result<ArrayRef, ArrowError> {
        let mut dictionary = Dictionary::default();
        let mut lacks_some = self.lacks_some;
        let mut of_value: Vec<u32> = Vec::with_capacity(self.values.len());
        for value in &self.values {
            of_value.push(match word(value) {
                Some(word) => dictionary.number(word),
                None => {
                    lacks_some = true;
                    NONE
                }
            });
        }
        let keys = match (lacks_some, dictionary.words.is_empty()) {
            (true, true) => UInt32Array::new_null(self.keys.len()),
            (true, false) => {
                let id = |key: &u32| of_value.get(*key as usize).copied().unwrap_or(NONE);
                let mut ids: Vec<u32> = self.keys.iter().map(id).collect();
                let has_one = BooleanBuffer::collect_bool(ids.len(), |row| ids[row] != NONE);
                ids.iter_mut().filter(|id| **id == NONE).for_each(|id| *id = 0);
                UInt32Array::new(ids.into(), Some(NullBuffer::new(has_one)))
            }
            (false, _) if dictionary.words.len() == self.values.len() => self.keys.clone().into(),
            (false, _) => self.keys.iter().map(|key| of_value[*key as usize]).collect::<Vec<_>>().into(),
        };
        Ok(Arc::new(dictionary.column(keys)?))
    }

    /// A column of the lists that `list` finds in each value; empty where a flow has none.
    pub fn lists(&self, list: impl Fn(&V) -> &[Cow<'static, str>]) -> Result<ArrayRef, ArrowError> {
        let mut dictionary = Dictionary::default();
        let numbers = |value| list(value).iter().map(|word| dictionary.number(word)).collect();
        let of_value: Vec<SmallVec<[u32; 2]>> = self.values.iter().map(numbers).collect();
        let mut items: Vec<u32> = Vec::new();
        let mut ends = vec![0; self.keys.len() + 1];
        // Most columns have no word at all.
        if !dictionary.words.is_empty() {
            for (key, end) in self.keys.iter().zip(&mut ends[1..]) {
                items.extend(of_value.get(*key as usize).into_iter().flatten());
                *end = i32::try_from(items.len()).unwrap_or(i32::MAX);
            }
        }
        let items = dictionary.column(items.into())?;
        let ends = OffsetBuffer::new(ScalarBuffer::from(ends));
        Ok(Arc::new(ListArray::try_new(words_item(), ends, Arc::new(items), None)?))
    }
}
