//! Changes on their way into columns.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, DictionaryArray, RecordBatch, StringArray, StringBuilder, StringDictionaryBuilder,
        TimestampMicrosecondArray, UInt32Array, UInt64Array,
    },
    datatypes::UInt32Type,
    error::ArrowError,
};

use super::{BINDING, Bound, Verb, schema};
use crate::{
    cluster::{Content, Kind, ObjectKey},
    model::Timestamp,
    store::flows::schema::ZONE,
};

/// Columns of words that may be missing, in the order of the schema: from `verb` to `address`.
const WORDS: usize = 8;

/// Bytes of a row beside its content, about.
const ROW_BYTES: usize = 128;

/// Rows that are to become one batch.
pub(super) struct Rows {
    node: Arc<str>,
    run: Arc<str>,
    /// The number of the last row of this run.
    sequence: u64,
    times: Vec<i64>,
    sequences: Vec<u64>,
    words: [StringDictionaryBuilder<UInt32Type>; WORDS],
    contents: StringBuilder,
    bytes: usize,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").field("rows", &self.len()).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Rows {
    pub fn new(node: Arc<str>, run: Arc<str>) -> Self {
        Self {
            node,
            run,
            sequence: 0,
            times: Vec::new(),
            sequences: Vec::new(),
            words: std::array::from_fn(|_| StringDictionaryBuilder::new()),
            contents: StringBuilder::new(),
            bytes: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// What is in memory for them, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn push_object(&mut self, at: Timestamp, verb: Verb, key: &ObjectKey, content: Option<&Content>) {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let api_version = content.map_or(key.kind.api_version(), |content| &content.api_version);
        let words = [
            some(verb.as_str()),
            some(key.kind.as_str()),
            some(api_version),
            some(&key.namespace),
            some(&key.name),
            content.and_then(|content| some(&content.uid)),
            content.and_then(|content| some(&content.resource_version)),
            None,
        ];
        self.push(at, words, content.map(|content| &*content.json));
    }

    pub fn push_listed(&mut self, at: Timestamp, kind: Kind) {
        let word = |text: &str| Some(text.to_owned());
        let words = [
            word(Verb::Listed.as_str()),
            word(kind.as_str()),
            word(kind.api_version()),
            None,
            None,
            None,
            None,
            None,
        ];
        self.push(at, words, None);
    }

    pub fn push_binding(&mut self, at: Timestamp, verb: Verb, Bound { pod, ip }: Bound<'_>) {
        let word = |text: &str| Some(text.to_owned());
        let words = [
            word(verb.as_str()),
            word(BINDING),
            None,
            word(&pod.namespace),
            word(&pod.name),
            word(&pod.uid),
            None,
            Some(ip.to_string()),
        ];
        self.push(at, words, None);
    }

    fn push(&mut self, at: Timestamp, words: [Option<String>; WORDS], content: Option<&str>) {
        self.sequence += 1;
        self.times.push(at.0.div_euclid(1_000));
        self.sequences.push(self.sequence);
        for (column, word) in self.words.iter_mut().zip(words) {
            column.append_option(word);
        }
        self.contents.append_option(content);
        self.bytes += ROW_BYTES + content.map_or(0, str::len);
    }

    /// All rows that were added, and begins anew.
    ///
    /// # Errors
    ///
    /// None, as long as these columns are those of the schema.
    pub fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        let next = Self { sequence: self.sequence, ..Self::new(self.node.clone(), self.run.clone()) };
        let all = std::mem::replace(self, next);
        let rows = all.times.len();
        let one = |word: &str| -> Result<ArrayRef, ArrowError> {
            let words = Arc::new(StringArray::from_iter_values([word]));
            Ok(Arc::new(DictionaryArray::<UInt32Type>::try_new(UInt32Array::from_value(0, rows), words)?))
        };
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(TimestampMicrosecondArray::from(all.times).with_timezone(ZONE)),
            one(&all.node)?,
            one(&all.run)?,
            Arc::new(UInt64Array::from(all.sequences)),
        ];
        columns.extend(all.words.into_iter().map(|mut words| Arc::new(words.finish()) as ArrayRef));
        let mut contents = all.contents;
        columns.push(Arc::new(contents.finish()));
        RecordBatch::try_new(schema(), columns)
    }
}
