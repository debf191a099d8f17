//! The columns of the table `objects`. They are an API: whoever asks by SQL sees them.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::store::flows::schema::{time, words};

/// The version of the columns. Files of another one are refused, by name.
pub const VERSION: u32 = 1;

/// What the kind of a binding is called: the others are those of objects.
pub const BINDING: &str = "Binding";

/// All columns, in order.
pub fn schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| Arc::new(Schema::new(fields())));
    SCHEMA.clone()
}

fn fields() -> Vec<Field> {
    let some = |name: &str, of: DataType| Field::new(name, of, true);
    let each = |name: &str, of: DataType| Field::new(name, of, false);
    vec![
        each("time", time()),
        each("node", words()),
        each("run", words()),
        each("sequence", DataType::UInt64),
        each("verb", words()),
        each("kind", words()),
        some("api_version", words()),
        some("namespace", words()),
        some("name", words()),
        some("uid", words()),
        some("resource_version", words()),
        some("address", words()),
        some("content", DataType::Utf8),
    ]
}

/// What became of an object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// It was there when the run first listed its kind.
    Present,
    /// It is new, or what is read of it has changed. Of a binding: the pod has the address.
    Applied,
    /// It is gone. Of a binding: the pod has the address no more.
    Deleted,
    /// Of a kind, and no object: all that were there then have been told by this run.
    Listed,
}

impl Verb {
    /// The word of the column.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Applied => "applied",
            Self::Deleted => "deleted",
            Self::Listed => "listed",
        }
    }

    /// The verb of a word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Present, Self::Applied, Self::Deleted, Self::Listed].into_iter().find(|it| it.as_str() == word)
    }
}
