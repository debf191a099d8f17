//! The tables of a flow store: what their rows are, and how they lie in files.

use std::path::{Path, PathBuf};

use arrow::{array::RecordBatch, compute::cast, datatypes::SchemaRef, error::ArrowError};

use super::schema;

/// A table: all of them are written, synced, rolled and read in the same way.
#[derive(Debug)]
pub struct Table {
    /// The directory of its Parquet files.
    pub name: &'static str,
    /// The directory of its segments.
    open: &'static str,
    /// The version of its columns. Files of another one are refused, by name.
    pub version: u32,
    /// Its columns.
    pub schema: fn() -> SchemaRef,
    /// The same columns in the log, of which some may have another type.
    pub log_schema: fn() -> SchemaRef,
    /// What rows of a file are in order of, before time.
    pub order: &'static [&'static str],
    /// Columns with ever new numbers: differences to the one before are smaller than places in a dictionary.
    pub deltas: &'static [&'static str],
    /// Columns with bloom filters.
    pub blooms: &'static [&'static str],
    /// Bytes of a segment, above which it is full: what is in memory at once when it is rolled.
    pub segment_bytes: u64,
    /// What its rows are, for people.
    pub rows: &'static str,
    /// What its threads are called: the one that appends, and the one that rolls.
    pub(super) threads: [&'static str; 2],
}

/// Every flow.
pub static FLOWS: Table = Table {
    name: "flows",
    open: "open",
    version: schema::VERSION,
    schema: schema::schema,
    log_schema: schema::log_schema,
    order: &["subject_namespace", "subject_pod", "direction", "peer_ip", "port"],
    deltas: &["time", "last_time", "open_since", "sequence", "waited_us", "peer_port"],
    blooms: &["subject_pod", "peer_pod", "subject_ip", "peer_ip"],
    segment_bytes: u64::MAX,
    rows: "flows",
    threads: ["flow-store", "flow-roll"],
};

/// What changed in the objects that flows were judged by.
pub static OBJECTS: Table = of_objects("objects");

/// Of those the rows that held at a time, see [`history`](crate::store::history): it has no segments of its own.
pub static SNAPSHOTS: Table = of_objects("snapshots");

const fn of_objects(name: &'static str) -> Table {
    Table {
        name,
        open: "open-objects",
        version: crate::store::history::VERSION,
        schema: crate::store::history::schema,
        log_schema: crate::store::history::schema,
        order: &["kind", "namespace", "name", "address"],
        deltas: &["time", "sequence"],
        blooms: &["name", "address"],
        segment_bytes: 2 << 20,
        rows: "changes of objects",
        threads: ["history", "history-roll"],
    }
}

impl Table {
    /// The directory of its segments.
    pub fn open_directory(&self, store: &Path) -> PathBuf {
        store.join(self.open)
    }

    /// A batch of the log with the columns of files.
    ///
    /// # Errors
    ///
    /// It is no batch of this table.
    pub fn for_file(&self, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let schema = (self.schema)();
        let columns = schema.fields().iter().zip(batch.columns());
        let columns = columns.map(|(field, column)| match column.data_type() == field.data_type() {
            true => Ok(column.clone()),
            false => cast(column, field.data_type()),
        });
        RecordBatch::try_new(schema.clone(), columns.collect::<Result<_, _>>()?)
    }

    /// The directory of its Parquet files.
    pub fn directory(&self, store: &Path) -> PathBuf {
        store.join(self.name)
    }
}
