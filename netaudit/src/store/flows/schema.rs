//! The columns of a stored flow. They are an API: whoever asks by SQL sees them.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit};

/// The version of the columns. Files of another one are refused, by name.
pub const VERSION: u32 = 2;

/// The columns of one end.
pub const END: [&str; 7] = ["kind", "namespace", "pod", "uid", "workload", "workload_kind", "node"];

/// The columns of a verdict.
pub const SAID: [&str; 9] = [
    "verdict",
    "rules",
    "rule_paths",
    "denied_by",
    "passed_rules",
    "passed_by",
    "reason",
    "caveats",
    "generation",
];

/// A string of which there are few different ones.
pub fn words() -> DataType {
    DataType::Dictionary(Box::new(DataType::UInt32), Box::new(DataType::Utf8))
}

/// UTC, as an offset: names of zones need a table.
pub const ZONE: &str = "+00:00";

/// Microseconds of wall time.
pub fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(ZONE.into()))
}

/// A list of strings.
pub fn list() -> DataType {
    DataType::List(Arc::new(Field::new("item", DataType::Utf8, false)))
}

/// A list of strings of which there are few different ones.
pub fn list_of_words() -> DataType {
    DataType::List(words_item())
}

/// An item of it.
pub fn words_item() -> FieldRef {
    Arc::new(Field::new("item", words(), false))
}

/// A name of an address.
pub fn name_fields() -> Fields {
    Fields::from(vec![
        Field::new("name", DataType::Utf8, false),
        Field::new("state", DataType::Utf8, false),
        Field::new("asked", DataType::Boolean, false),
        Field::new("counts", DataType::Boolean, false),
        Field::new("answered", time(), false),
        Field::new("server", DataType::Utf8, false),
    ])
}

/// All columns, in order.
pub fn schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| Arc::new(Schema::new(fields())));
    SCHEMA.clone()
}

/// The same columns as they are in memory and in the log: lists have their words by number too. Written out in each row, as files
/// have them for whoever reads them, they are a third of it.
pub fn log_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let by_number = |field: Field| match field.data_type() == &list() {
            true => field.with_data_type(list_of_words()),
            false => field,
        };
        Arc::new(Schema::new(fields().into_iter().map(by_number).collect::<Vec<_>>()))
    });
    SCHEMA.clone()
}

fn fields() -> Vec<Field> {
    let some = |name: &str, of: DataType| Field::new(name, of, true);
    let each = |name: &str, of: DataType| Field::new(name, of, false);
    let mut fields = vec![
        each("time", time()),
        some("last_time", time()),
        each("node", words()),
        each("run", words()),
        each("sequence", DataType::UInt64),
        each("maybe_repeated", DataType::Boolean),
        each("folded", DataType::Boolean),
        // 1 where it is not folded, so that flows are counted by its sum.
        each("count", DataType::UInt64),
        each("open_before_start", DataType::Boolean),
        some("open_since", time()),
        each("direction", words()),
    ];
    let end =
        |of: &str| END.map(|name| Field::new(format!("{of}_{name}"), words(), name != "kind")).into_iter();
    fields.extend(end("subject"));
    fields.extend([
        some("subject_ip", words()),
        each("actor_kind", words()),
        some("actor_namespace", words()),
        some("actor_pod", words()),
        some("actor_workload", words()),
        some("actor_pod_uid", words()),
        some("actor_container", words()),
        each("actor_pid", DataType::UInt32),
        each("actor_comm", words()),
    ]);
    fields.extend(end("peer"));
    fields.extend([
        some("peer_service", words()),
        each("peer_ip", words()),
        each("peer_port", DataType::UInt16),
        each(
            "peer_names",
            DataType::List(Arc::new(Field::new("item", DataType::Struct(name_fields()), false))),
        ),
        each("protocol", words()),
        each("port", DataType::UInt16),
        some("requested_ip", words()),
        some("requested_port", DataType::UInt16),
        some("translation", words()),
        each("outcome", words()),
        some("errno", words()),
        each("reach", words()),
        some("drop_reason", words()),
        each("closed_port", DataType::Boolean),
        each("waited_us", DataType::UInt64),
    ]);
    for of in ["", "peer_"] {
        fields.extend(SAID.map(|name| {
            let (of_type, optional) = match name {
                "verdict" => (words(), !of.is_empty()),
                "reason" => (words(), true),
                "generation" => (DataType::UInt64, true),
                _ => (list(), false),
            };
            Field::new(format!("{of}{name}"), of_type, optional)
        }));
    }
    fields.extend([some("finding", words()), some("finding_cause", words())]);
    fields
}
