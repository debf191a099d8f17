//! Questions to the history of a fleet that is in a bucket of a real S3 server: with snapshots, and as if there were none.

use std::{
    fs::{self, File},
    path::Path,
    sync::Arc,
    thread,
    time::Instant,
};

use arrow::{
    array::{ArrayRef, DictionaryArray, RecordBatch, StringArray, TimestampMicrosecondArray, UInt64Array},
    datatypes::{DataType, UInt32Type},
};
use netaudit::{
    cluster::Kind,
    model::Timestamp,
    store::{
        bucket::Bucket,
        flows::{
            ask::Store,
            files::{self, Told},
            segment::Mark,
            table::{OBJECTS, SNAPSHOTS},
        },
        history::{
            self, BINDING,
            parts::{Parts, Span},
            state::{State, in_effect, runs},
        },
    },
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};
use serde_json::Value;

use super::{flows, s3::S3, say};

const NODES: u32 = 20;
const DAYS: u64 = 14;
const FILES_A_DAY: u64 = 96;
const PODS: u32 = 500;
/// Pods that change in the time of one file.
const CHANGES: u32 = 20;
/// 2026-01-01T00:00:00Z.
const BEGIN: i64 = 1_767_225_600;
const THREADS: u32 = 4;

/// Writes the history of two weeks, and asks who an address was and what decided at its end.
pub fn asked(directory: &Path, weed: Option<&Path>) -> Vec<Value> {
    let Some(weed) = weed else {
        eprintln!("a fleet's history in a bucket: not measured, as $NETAUDIT_BENCH_WEED names no SeaweedFS");
        return Vec::new();
    };
    fs::create_dir_all(directory).expect("a directory");
    let server = S3::start(weed, &directory.join("s3")).expect("an S3 server");
    let bucket = server.open("s3://flows/fleet").expect("its bucket");
    thread::scope(|scope| {
        for first in 0..THREADS {
            let bucket = &bucket;
            scope.spawn(move || {
                (first..NODES).step_by(THREADS as usize).for_each(|node| write(node, directory, bucket));
            });
        }
    });
    let stores = [Store::Bucket(bucket)];
    let at = Timestamp::from_seconds(BEGIN + (DAYS * 86_400) as i64 - 60);
    let span = Span::at(at);
    let mut said = Vec::new();
    // Without a time all is read that is known of a run, as it was before there were snapshots.
    let everything = Span { from: None, ..span };
    for (what, span, run) in [
        ("all nodes' objects at a time", span, None),
        ("the same without snapshots", everything, None),
        ("one run's objects at a time", span, Some("run-07")),
        ("the same without snapshots", everything, Some("run-07")),
    ] {
        let begun = Instant::now();
        let parts = Parts::find(&stores, Span { run, ..span }).expect("files");
        let named = begun.elapsed();
        let (known, _) = runs(&parts).expect("runs");
        let asked: Vec<_> = in_effect(&known, at);
        let kinds = [Kind::Pod.as_str(), BINDING];
        let pods: usize = asked
            .iter()
            .map(|run| State::of(&parts, run, at, &kinds).expect("a state").present().count())
            .sum();
        let seconds = begun.elapsed().as_secs_f64();
        let nodes = run.map_or(NODES, |_| 1);
        assert_eq!(pods, (nodes * PODS) as usize, "{what}");
        let (files, bytes) = parts.size();
        let of = format!("{what}: {files} files, names in {:.1} s", named.as_secs_f64());
        said.push(say(&of, seconds, "s"));
        said.push(say("  bytes of these", bytes as f64 / f64::from(1 << 20), "MiB"));
    }
    said
}

/// A row: sequence, time in microseconds, verb, pod and version, or a listed kind.
type Row = (u64, i64, &'static str, &'static str, Option<(u32, u32)>);

fn write(node: u32, directory: &Path, bucket: &Bucket) {
    let run = format!("run-{node:02}");
    let mut sequence = 0;
    let mut next = || {
        sequence += 1;
        sequence
    };
    let step = (86_400 / FILES_A_DAY) as i64;
    let mut last: Vec<Row> = Vec::new();
    let file = directory.join(format!("{run}.parquet"));
    for number in 0..DAYS * FILES_A_DAY {
        let from = BEGIN + number as i64 * step;
        let mut rows: Vec<Row> = Vec::new();
        let at = from * 1_000_000;
        if number == 0 {
            rows.extend((0..PODS).map(|pod| (next(), at, "present", "Pod", Some((pod, 0)))));
            rows.extend(Kind::ALL.map(|kind| (next(), at + 1, "listed", kind.as_str(), None)));
            last.clone_from(&rows);
        } else {
            for change in 0..CHANGES {
                let pod = (number as u32 * 7 + change * 31) % PODS;
                let row = (next(), at + i64::from(change), "applied", "Pod", Some((pod, number as u32)));
                last[pod as usize] = row;
                rows.push(row);
            }
        }
        let mark = Mark {
            number: number + 1,
            until: Timestamp::from_seconds(from + step),
            ..Mark::first(&OBJECTS, &format!("node-{node:02}"), &run, Timestamp::from_seconds(from))
        };
        let told = Told { mark, last: number + 1 };
        put(&file, bucket, OBJECTS.name, &rows, &told);
        if number % FILES_A_DAY == FILES_A_DAY - 1 {
            let until = told.mark.until;
            let told = Told { mark: Mark { number: 0, from: until, ..told.mark }, last: number + 1 };
            put(&file, bucket, SNAPSHOTS.name, &last, &told);
        }
    }
}

fn put(file: &Path, bucket: &Bucket, table: &str, rows: &[Row], told: &Told) {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).expect("a level")))
        .build();
    let to = File::create(file).expect("a file");
    let mut writer = ArrowWriter::try_new(to, history::schema(), Some(properties)).expect("a writer");
    writer.write(&batch(rows, told)).expect("rows");
    writer.append_key_value_metadata(told.key_value().expect("a mark"));
    writer.close().expect("a file");
    let hour = files::hour_of(told.mark.from);
    let key = format!("{table}/{}/{}", files::partition(hour).display(), told.file_name());
    bucket.upload(file, &key).expect("an upload");
}

fn batch(rows: &[Row], told: &Told) -> RecordBatch {
    let name = |pod: u32| format!("service-{pod:05}");
    let schema = history::schema();
    let columns = schema.fields().iter().map(|field| -> ArrayRef {
        let words = |word: &dyn Fn(&Row) -> Option<String>| -> ArrayRef {
            let words: Vec<Option<String>> = rows.iter().map(word).collect();
            match field.data_type() {
                DataType::Utf8 => Arc::new(StringArray::from(words)),
                _ => Arc::new(words.iter().map(Option::as_deref).collect::<DictionaryArray<UInt32Type>>()),
            }
        };
        match field.name().as_str() {
            "time" => {
                let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.1));
                let DataType::Timestamp(_, zone) = field.data_type() else { unreachable!("a time") };
                Arc::new(times.with_timezone_opt(zone.clone()))
            }
            "sequence" => Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.0))),
            "node" => words(&|_| Some(told.mark.node.clone())),
            "run" => words(&|_| Some(told.mark.run.clone())),
            "verb" => words(&|row| Some(row.2.to_owned())),
            "kind" => words(&|row| Some(row.3.to_owned())),
            "namespace" => words(&|row| row.4.map(|_| "team".to_owned())),
            "name" => words(&|row| row.4.map(|(pod, _)| name(pod))),
            "content" => words(&|row| row.4.map(|(pod, version)| flows::pod(pod, version).to_string())),
            _ => words(&|_| None),
        }
    });
    RecordBatch::try_new(schema.clone(), columns.collect()).expect("the table's columns")
}
