//! The store as an agent has it: with its threads, the history of a cluster beside the flows, and uploads into a bucket of a real S3
//! server. What its memory is at most.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use netaudit::{
    audit::{Privacy, line::Telling},
    model::Timestamp,
    store::{
        bucket::Bucket,
        flows::{FlowStore, Lost, files, table::SNAPSHOTS},
    },
};
use serde_json::Value;

use super::{
    BATCH,
    flows::{self, BEGIN, Chance, PACE_NS, tell, templates, vary},
    heap,
    s3::S3,
    say,
};

/// Pods of the cluster: the history tells of all of them.
const PODS: u32 = 5_000;
/// Pods whose labels change in a second: so many that files are made of which there is a snapshot.
const CHANGES: u32 = 400;
/// Flows of a second: the log has some batches to write while the next ones are made.
const FLOWS: usize = 3 * BATCH;
/// By how much flows come more seldom than elsewhere here: so there are hours of them.
const SLOWER: u64 = 8;
/// How long is waited for what was made to be in the bucket.
const PATIENCE: Duration = Duration::from_secs(120);

/// Writes so many flows while pods change, without a bucket and with one of that server's.
pub fn as_an_agent(store: &Path, flows: u64, weed: Option<&Path>) -> Vec<Value> {
    let mut said = vec![say(
        "heap of an agent's store at most, with history (goal 32)",
        most(&store.join("alone"), flows, None),
        "MiB",
    )];
    let Some(weed) = weed else {
        eprintln!("with a bucket: not measured, as $NETAUDIT_BENCH_WEED names no SeaweedFS");
        return said;
    };
    let server = S3::start(weed, &store.join("s3")).expect("an S3 server");
    let bucket = server.open("s3://flows/bench").expect("its bucket");
    let most = most(&store.join("uploaded"), flows, Some(bucket));
    said.push(say("heap of an agent's store at most, with history and bucket (goal 32)", most, "MiB"));
    said
}

/// In MiB, beside what is handed over.
fn most(directory: &Path, count: u64, bucket: Option<Bucket>) -> f64 {
    let (auditor, templates) = templates();
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let mut flows = Vec::with_capacity(FLOWS);
    let has_bucket = bucket.is_some();
    let before = heap::live();
    heap::take_peak();
    let mut store = flows::open(directory, bucket);
    let (mut at, mut made, mut version) = (BEGIN, 0, 0);
    for value in flows::values() {
        tell(store.history_mut(), &value, at);
    }
    (0..PODS).for_each(|pod| tell(store.history_mut(), &flows::pod(pod, 0), at));
    let mut most = 0;
    while made < count {
        flows.clear();
        flows.extend((0..FLOWS).map(|_| {
            made += 1;
            at += chance.below(2 * SLOWER * PACE_NS) as i64;
            vary(&templates[chance.skewed(templates.len() as u64) as usize], at, made, &mut chance)
        }));
        for flow in &flows {
            let cluster = auditor.cluster();
            store.push(&Telling {
                flow,
                cluster,
                node: "node-1",
                correction: 0,
                privacy: Privacy::TELLS_ALL,
            });
        }
        version += 1;
        for _ in 0..CHANGES {
            let pod = chance.below(u64::from(PODS)) as u32;
            tell(store.history_mut(), &flows::pod(pod, version), at);
        }
        store.tick(Timestamp(at), Lost::default());
        while store.done() < store.handed() {
            thread::sleep(Duration::from_micros(200));
        }
        most = most.max(heap::take_peak());
    }
    let begun = Instant::now();
    let is_behind = |store: &FlowStore| {
        store.counts().files == 0 || store.uploads().is_some_and(|it| it.uploaded == 0 || it.waiting > 0)
    };
    while is_behind(&store) && begun.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(10));
    }
    let (counts, uploads) = (store.counts(), store.uploads());
    assert_eq!((counts.lost, counts.history_lost), (0, 0), "nothing was lost: {counts:?}");
    assert!(counts.files > 0, "files were made: {counts:?}");
    let is_uploaded = uploads.is_some_and(|it| it.uploaded > 0 && it.waiting == 0 && it.failed == 0);
    assert_eq!(is_uploaded, has_bucket, "{uploads:?}");
    assert_eq!(store.finish(Timestamp(at), Lost::default(), PATIENCE), 0);
    let snapshots = files::list(directory, &SNAPSHOTS).expect("a directory").len();
    assert_eq!(snapshots > 0, has_bucket, "the history's snapshots");
    // Its threads end in their own time.
    let lock = std::fs::File::open(directory.join("lock")).expect("the store's lock");
    lock.lock().expect("the store's lock");
    most.max(heap::take_peak()).saturating_sub(before) as f64 / f64::from(1 << 20)
}
