//! The names that addresses outside the cluster had when flows went there.

use std::{net::IpAddr, sync::Arc};

use anyhow::Context as _;
use arrow::{
    array::{Array as _, AsArray as _, RecordBatch},
    datatypes::UInt32Type,
};

use crate::advise::Names;

/// Adds the names of a batch that has [`COLUMNS`](super::COLUMNS).
///
/// # Errors
///
/// A column is missing or of another type.
pub fn add_names(batch: &RecordBatch, names: &mut Names) -> anyhow::Result<()> {
    let column = |name: &str| batch.column_by_name(name).with_context(|| format!("no column {name}"));
    let wrong = |name: &str| format!("the column {name} is of another type");
    let lists = column("peer_names")?.as_list_opt::<i32>().with_context(|| wrong("peer_names"))?;
    let fields = lists.values().as_struct_opt().with_context(|| wrong("peer_names"))?;
    let name = fields.column_by_name("name").and_then(|it| it.as_string_opt::<i32>());
    let name = name.with_context(|| wrong("peer_names"))?;
    let addresses = column("peer_ip")?.as_dictionary_opt::<UInt32Type>();
    let addresses = addresses.with_context(|| wrong("peer_ip"))?;
    let words = addresses.values().as_string_opt::<i32>().with_context(|| wrong("peer_ip"))?;
    let offsets = lists.value_offsets();
    // Files are sorted by ends: most rows say what the one before said.
    let mut last = None;
    for row in 0..batch.num_rows() {
        let places = offsets[row] as usize..offsets[row + 1] as usize;
        if places.is_empty() || addresses.keys().is_null(row) {
            continue;
        }
        let told: Vec<&str> = places.map(|place| name.value(place)).collect();
        let said = (addresses.keys().value(row), told);
        if last.as_ref() == Some(&said) {
            continue;
        }
        // What is hashed is no address.
        if let Ok(ip) = words.value(said.0 as usize).parse::<IpAddr>() {
            names.entry(ip.to_canonical()).or_default().extend(said.1.iter().map(|it| Arc::from(*it)));
        }
        last = Some(said);
    }
    Ok(())
}
