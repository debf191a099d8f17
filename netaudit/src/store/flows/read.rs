//! What is asked for, read from a segment or a file.

use std::{collections::BTreeSet, path::Path};

use anyhow::Context as _;
use arrow::{
    array::{AsArray as _, RecordBatch},
    compute::filter_record_batch,
    datatypes::{SchemaRef, UInt32Type},
};
use parquet::{
    DecodeResult,
    arrow::{
        arrow_reader::{ArrowPredicateFn, ArrowReaderMetadata, RowFilter},
        push_decoder::ParquetPushDecoderBuilder,
    },
    bloom_filter::Sbbf,
    file::statistics::Statistics,
};

use super::{
    ask::{Columns, columns_mask, places},
    files,
    filter::{Condition, Filter},
    schema::schema,
    segment,
    source::{Place, Source},
    table::FLOWS,
};
use crate::{audit::privacy::key_of, model::Timestamp, store::guard::guarded};

/// The columns of addresses.
const ADDRESSES: [&str; 2] = ["peer_ip", "requested_ip"];

/// Rows of a batch that is handed out at most.
const BATCH_ROWS: usize = 16_384;

/// What was read of parts.
#[derive(Default)]
pub(super) struct Read {
    /// Row groups, and those of them that were read.
    pub groups: (usize, usize),
    /// The keys by which addresses are hashed, where addresses are asked for.
    pub keys: BTreeSet<String>,
}

/// Sends what is asked for of a segment.
pub(super) fn read_segment(
    path: &Path,
    filter: &Filter,
    wanted: &SchemaRef,
    send: &mut dyn FnMut(RecordBatch) -> bool,
) -> anyhow::Result<Read> {
    let names: Vec<&str> = wanted.fields().iter().map(|field| field.name().as_str()).collect();
    let places = places(&schema(), &names);
    let mut read = Read::default();
    for batch in guarded(|| segment::read(path, &FLOWS))?.batches {
        let batch = FLOWS.for_file(&batch)?;
        if !filter.addresses.is_empty() {
            read.keys.extend(keys_of(&batch));
        }
        let rows = filter_record_batch(&batch, &filter.selects(&batch)?)?;
        if !send(rows.project(&places)?) {
            break;
        }
    }
    Ok(read)
}

/// The keys by which addresses of a batch are hashed.
fn keys_of(batch: &RecordBatch) -> BTreeSet<String> {
    let words =
        ADDRESSES.iter().filter_map(|name| batch.column_by_name(name)?.as_dictionary_opt::<UInt32Type>());
    let words = words.filter_map(|column| column.values().as_string_opt::<i32>());
    words.flat_map(|words| words.iter().flatten().filter_map(key_of).map(str::to_owned)).collect()
}

/// Sends what is asked for of a file, of which only that is read. `footer` is known where it was read before.
pub(super) fn read_file(
    place: &Place,
    footer: Option<ArrowReaderMetadata>,
    filter: &Filter,
    columns: Columns<'_>,
    send: &mut dyn FnMut(RecordBatch) -> bool,
) -> anyhow::Result<Read> {
    let source = place.open()?;
    let metadata = match footer {
        Some(footer) => footer,
        None => files::what_it_says(&source, &FLOWS)?.0,
    };
    let all = metadata.metadata().num_row_groups();
    let mut groups = Vec::new();
    let mut read = Read::default();
    for group in 0..all {
        if !filter.addresses.is_empty() {
            read.keys.extend(key_of_group(&metadata, group));
        }
        if guarded(|| may_hold(&source, &metadata, group, filter))? {
            groups.push(group);
        }
    }
    read.groups = (all, groups.len());
    if groups.is_empty() {
        return Ok(read);
    }
    let predicates = filter.conditions().into_iter().map(|condition| {
        let mask = columns_mask(&metadata, &filter.columns(condition));
        let filter = filter.clone();
        let holds = move |batch: RecordBatch| filter.holds(condition, &batch);
        Box::new(ArrowPredicateFn::new(mask, holds)) as _
    });
    let mask = columns.mask(&metadata);
    let decoder = ParquetPushDecoderBuilder::new_with_metadata(metadata.clone())
        .with_row_groups(groups)
        .with_row_filter(RowFilter::new(predicates.collect()))
        .with_projection(mask)
        .with_batch_size(BATCH_ROWS);
    let mut decoder = guarded(|| Ok(decoder.build()?))?;
    loop {
        match guarded(|| decoder.try_decode().context("a damaged row group"))? {
            DecodeResult::NeedsData(ranges) => {
                let parts = source.ranges(&ranges).context("a row group")?;
                decoder.push_ranges(ranges, parts)?;
            }
            DecodeResult::Data(batch) => {
                if !send(batch) {
                    return Ok(read);
                }
            }
            DecodeResult::Finished => return Ok(read),
        }
    }
}

/// The key by which addresses of a row group are hashed: it is of one run, which has one key, and hashes come after all addresses
/// in order.
fn key_of_group(metadata: &ArrowReaderMetadata, group: usize) -> Option<String> {
    let chunks = metadata.metadata().row_group(group).columns().iter();
    let mut chunks = chunks.filter(|chunk| ADDRESSES.contains(&chunk.column_path().string().as_str()));
    chunks.find_map(|chunk| {
        let last = std::str::from_utf8(chunk.statistics()?.max_bytes_opt()?).ok()?;
        key_of(last).map(str::to_owned)
    })
}

/// Whether a row group can hold what is asked for, by its statistics and bloom filters.
fn may_hold(
    source: &Source,
    metadata: &ArrowReaderMetadata,
    group: usize,
    filter: &Filter,
) -> anyhow::Result<bool> {
    let chunks = metadata.metadata().row_group(group);
    let place = |name: &str| chunks.columns().iter().position(|chunk| chunk.column_path().string() == name);
    if let Some(Statistics::Int64(times)) = place("time").and_then(|place| chunks.column(place).statistics())
    {
        let micros = |time: Timestamp| time.0.div_euclid(1_000);
        let too_old = filter.from.zip(times.max_opt()).is_some_and(|(from, max)| *max < micros(from));
        let too_new = filter.until.zip(times.min_opt()).is_some_and(|(until, min)| *min >= micros(until));
        if too_old || too_new {
            return Ok(false);
        }
    }
    let bloom = |name: &str| -> anyhow::Result<Option<Sbbf>> {
        match place(name) {
            Some(place) => Ok(Sbbf::read_from_column_chunk(chunks.column(place), source)?),
            None => Ok(None),
        }
    };
    let conditions = filter.conditions();
    if conditions.contains(&Condition::Ends) && !filter.pods.is_empty() {
        let may = |bloom: Option<Sbbf>| {
            bloom.is_none_or(|bloom| filter.pods.iter().any(|pod| bloom.check(&pod.name.as_str())))
        };
        if !may(bloom("subject_pod")?) && !may(bloom("peer_pod")?) {
            return Ok(false);
        }
    }
    // What was asked for before a translation has no filter, as hardly any flow has it.
    let has_requested = place("requested_ip")
        .and_then(|place| chunks.column(place).statistics())
        .is_none_or(|statistics| statistics.min_bytes_opt().is_some());
    let single = filter.addresses.iter().all(|net| net.prefix_len() == net.max_prefix_len());
    if conditions.contains(&Condition::Addresses) && single && !has_requested {
        let may = |bloom: Option<Sbbf>| {
            let plain = filter.addresses.iter().map(|net| net.addr().to_string());
            let mut texts = plain.chain(filter.hashes.iter().cloned());
            bloom.is_none_or(|bloom| texts.any(|text| bloom.check(&text.as_str())))
        };
        return Ok(may(bloom("peer_ip")?) || may(bloom("subject_ip")?));
    }
    Ok(true)
}
