//! Files of flows go into a bucket of a real S3 server, and are read from there; and what is down, slow, missing or refused costs
//! nothing but time, as long as there is room.

use std::process::{Command, Output};

use netaudit::store::{
    bucket::Bucket,
    flows::{
        UploadCounts,
        ask::Store,
        table::{FLOWS, OBJECTS},
    },
};

use super::{
    s3::{KEY, Mode, S3, SECRET, Way},
    *,
};

const NOTHING: Duration = Duration::from_secs(2);

fn opened(store: &Path, retention: Retention, bucket: Bucket) -> Result<FlowStore> {
    let begin = Beginning {
        node: "node-1".into(),
        run: "later".into(),
        from: t(0),
        lost: Lost::default(),
        goes_on: false,
    };
    FlowStore::open(store, retention, Some(bucket), &begin)
}

pub(super) fn uploads(store: &FlowStore) -> UploadCounts {
    store.uploads().expect("there is a bucket")
}

/// Everything that a filter finds in a bucket, as lines.
fn in_bucket(bucket: &Bucket, filter: &Filter) -> Result<(Vec<Value>, Scanned)> {
    let mut lines = Vec::new();
    let stores = [Store::Bucket(bucket.clone())];
    let scanned = ask::scan(&stores, ask::Among::All, filter, ask::Columns::All, &|_, _| {}, &mut |batch| {
        if let Some(batch) = batch {
            let rows = Rows::new(&batch);
            for row in 0..batch.num_rows() {
                lines.push(serde_json::to_value(rows.line(row)?)?);
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    lines.sort_by_key(number);
    Ok((lines, scanned))
}

/// `netaudit` with the server's credentials, or others.
pub(super) fn netaudit(port: u16, secret: &str, arguments: &[&str]) -> Result<Output> {
    let endpoint = format!("http://127.0.0.1:{port}");
    Ok(Command::new(env!("CARGO_BIN_EXE_netaudit"))
        .args(arguments)
        .args(["--endpoint", &endpoint])
        .env("AWS_ACCESS_KEY_ID", KEY)
        .env("AWS_SECRET_ACCESS_KEY", secret)
        .output()?)
}

pub(super) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_is_uploaded_is_read_from_the_bucket_and_only_what_is_asked_for() -> Result<()> {
    let Some(weed) = weed_or_skip("flows in a bucket") else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    let server = S3::start(&weed, &directory.path().join("s3"))?;
    let way = Way::to(server.port())?;
    let bucket = server.bucket("s3://flows/cluster/one", way.port, NOTHING * 10, (KEY, SECRET))?;
    let store = directory.path().join("store");
    let made = Made::new(20_000);
    // Left by an earlier run: rolled at once.
    made.segments(&store, 4_000)?;
    let kept = opened(&store, FOREVER, bucket.clone())?;
    eventually("upload", || Ok(uploads(&kept).uploaded > 0 && uploads(&kept).waiting == 0))?;
    let files = parquet_files(&store)?;
    assert_eq!(uploads(&kept), UploadCounts { uploaded: files.len() as u64, ..UploadCounts::default() });
    let objects = bucket.list(&["flows".to_owned()])?;
    let keys: Vec<String> = objects.iter().map(|object| object.key.clone()).collect();
    let names: Vec<String> = files
        .iter()
        .map(|file| Ok(file.strip_prefix(&store)?.to_str().context("a name")?.to_owned()))
        .collect::<Result<_>>()?;
    assert_eq!(keys, names, "the same names, as partitions");

    way.answered();
    let (lines, scanned) = in_bucket(&bucket, &Filter::default())?;
    assert_same(&lines, &made.lines()?, "the bucket");
    assert!(scanned.unreadable.is_empty() && scanned.coverage.is_complete(), "{scanned:?}");
    let whole = way.answered();
    // An hour of them: its partition, and the footers of those beside it.
    let first = made.flows[made.flows.len() / 2].observation.first();
    let hour =
        Filter { from: Some(first), until: Some(Timestamp(first.0 + 600_000_000_000)), ..Filter::default() };
    let (some, scanned) = in_bucket(&bucket, &hour)?;
    let (of_directory, _) = found(&store, &hour)?;
    assert_same(&some, &of_directory, "an hour");
    assert!(!some.is_empty() && scanned.files < files.len() / 4, "{scanned:?}");
    let part = way.answered();
    assert!(part < whole / 4, "{part} of {whole} bytes");
    // A pod that never was: bloom filters and footers only.
    let nobody = Filter { pods: vec!["shop/nobody".parse().expect("a name")], ..Filter::default() };
    let (none, scanned) = in_bucket(&bucket, &nobody)?;
    assert!(none.is_empty() && scanned.row_groups.1 == 0, "{scanned:?}");

    // By the command.
    let url = "s3://flows/cluster/one";
    let output = netaudit(server.port(), SECRET, &["flows", url, "--output", "json"])?;
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(String::from_utf8(output.stdout.clone())?.lines().count(), made.flows.len());
    assert!(said(&output).contains("complete: no record was lost"), "{}", said(&output));
    let id = lines[17]["flow_id"].as_str().context("an id")?;
    let output = netaudit(server.port(), SECRET, &["why", id, "--flow-store", url])?;
    assert!(String::from_utf8(output.stdout.clone())?.contains(id), "{}", said(&output));
    let output = netaudit(server.port(), SECRET, &["flows", url, "--follow"])?;
    assert!(output.status.code() == Some(2) && said(&output).contains("needs an agent's directory"));
    for (secret, url, says) in [
        ("another-secret", url, "credentials are wrong"),
        (SECRET, "s3://no-such-bucket", "there is no such bucket"),
        (SECRET, "s3://x", "s3://bucket/prefix"),
    ] {
        let output = netaudit(server.port(), secret, &["flows", url])?;
        assert!(output.status.code() == Some(2) && said(&output).contains(says), "{}", said(&output));
        assert!(!said(&output).contains(secret), "{}", said(&output));
    }

    // Nothing is uploaded a second time, but for another bucket all is.
    drop(kept);
    eventually("end of the earlier one", || Ok(std::fs::File::open(store.join("lock"))?.try_lock().is_ok()))?;
    let kept = opened(&store, FOREVER, bucket)?;
    eventually("look", || Ok(kept.counts().files > 0))?;
    std::thread::sleep(Duration::from_millis(500));
    let new = parquet_files(&store)?.len() - files.len() + files::list(&store, &OBJECTS)?.len();
    assert_eq!(uploads(&kept).uploaded, new as u64);
    Ok(())
}

#[test]
fn what_is_down_or_refused_costs_time_and_what_has_no_room_to_wait_is_counted() -> Result<()> {
    let Some(weed) = weed_or_skip("flows in a bucket that is down") else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    let mut server = S3::start(&weed, &directory.path().join("s3"))?;
    let made = Made::new(6_000);

    // Refused, and missing: said, and what waits is there.
    for (url, secret, says) in [
        ("s3://flows", "another-secret", "credentials are wrong"),
        ("s3://no-such-bucket", SECRET, "there is no such bucket"),
    ] {
        let store = directory.path().join(secret);
        made.segments(&store, 2_000)?;
        let kept = opened(&store, FOREVER, server.bucket(url, server.port(), NOTHING, (KEY, secret))?)?;
        eventually("fault", || Ok(kept.upload_failing().is_some()))?;
        let fault = kept.upload_failing().unwrap_or_default();
        assert!(fault.contains(says) && !fault.contains("another-secret"), "{fault}");
        let counts = uploads(&kept);
        assert!(counts.uploaded == 0 && counts.failed > 0 && counts.waiting > 1, "{counts:?}");
        assert!(counts.waiting_bytes > 0 && counts.oldest.is_some() && counts.lost == 0, "{counts:?}");
    }

    // Down, and back.
    server.kill();
    let store = directory.path().join("store");
    made.segments(&store, 2_000)?;
    let kept = opened(&store, FOREVER, server.open("s3://flows/back")?)?;
    eventually("fault", || Ok(kept.upload_failing().is_some()))?;
    assert!(kept.failing().is_none(), "the store itself works");
    server.run()?;
    eventually("upload", || Ok(uploads(&kept).waiting == 0 && kept.upload_failing().is_none()))?;
    let (lines, _) = in_bucket(&server.open("s3://flows/back")?, &Filter::default())?;
    assert_same(&lines, &made.lines()?, "nothing is missing");

    // No room: what was never uploaded is counted, flow by flow; its age alone removes nothing that waits.
    server.kill();
    let store = directory.path().join("small");
    made.segments(&store, 2_000)?;
    let old = Retention { age: Duration::ZERO, bytes: u64::MAX };
    let kept = opened(&store, old, server.open("s3://flows/small")?)?;
    eventually("files", || Ok(kept.counts().files > 0 && kept.upload_failing().is_some()))?;
    assert_eq!((kept.counts().removed, uploads(&kept).lost), (0, 0));
    let all = kept.counts().bytes;
    drop(kept);
    eventually("end of the earlier one", || Ok(std::fs::File::open(store.join("lock"))?.try_lock().is_ok()))?;
    let before = flows_in(&store)?;
    let small = Retention { age: Duration::from_secs(1 << 40), bytes: all / 2 };
    let kept = opened(&store, small, server.open("s3://flows/small")?)?;
    eventually("removal", || Ok(kept.counts().removed > 0))?;
    // More goes when it is known how large the history is.
    eventually("all that went counted", || Ok(uploads(&kept).lost == before - flows_in(&store)?))?;
    Ok(())
}

/// Flows in the files of a store.
fn flows_in(store: &Path) -> Result<u64> {
    let rows = |path: PathBuf| {
        let (_, metadata, _) = files::open(&path, &FLOWS)?;
        Ok(u64::try_from(metadata.metadata().file_metadata().num_rows())?)
    };
    parquet_files(store)?.into_iter().map(rows).sum()
}

#[test]
fn an_upload_is_whole_or_nothing_over_ways_that_are_cut_dead_or_slow() -> Result<()> {
    let Some(weed) = weed_or_skip("uploads that are cut") else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    let server = S3::start(&weed, &directory.path().join("s3"))?;
    let way = Way::to(server.port())?;
    let bucket = server.bucket("s3://flows/large", way.port, NOTHING, (KEY, SECRET))?;
    // Three parts, of which the last is no whole one.
    let file = directory.path().join("large");
    let bytes: Vec<u8> = (0..12_000_000_u32).flat_map(|it| [(it % 251) as u8]).collect();
    std::fs::write(&file, &bytes)?;
    let all = || bucket.list(&["flows".to_owned()]);

    way.set(Mode::Cut);
    let error = bucket.upload(&file, "flows/x").expect_err("cut");
    way.set(Mode::Pass);
    assert!(all()?.is_empty(), "{error:#}: and nothing is there");
    way.set(Mode::Stall);
    let begun = std::time::Instant::now();
    let error = format!("{:#}", bucket.upload(&file, "flows/x").expect_err("dead"));
    assert!(error.contains("no answer within 2s"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    way.set(Mode::Pass);
    assert!(all()?.is_empty());
    way.set(Mode::Slow);
    let patient = server.bucket("s3://flows/large", way.port, NOTHING * 30, (KEY, SECRET))?;
    let small = directory.path().join("small");
    std::fs::write(&small, &bytes[..400_000])?;
    patient.upload(&small, "flows/small")?;
    way.set(Mode::Pass);
    assert_eq!(bucket.upload(&file, "flows/x")?, bytes.len() as u64);
    // The same name again is the same object.
    assert_eq!(bucket.upload(&file, "flows/x")?, bytes.len() as u64);
    let objects = all()?;
    assert_eq!(
        objects.iter().map(|it| (&*it.key, it.bytes)).collect::<Vec<_>>(),
        [("flows/small", 400_000), ("flows/x", 12_000_000)]
    );
    let ranges = [0..10, 5_242_870..5_242_900, 11_999_990..12_000_000];
    for (range, part) in ranges.iter().zip(bucket.ranges("flows/x", &ranges)?) {
        assert_eq!(part, bytes[range.start as usize..range.end as usize]);
    }
    Ok(())
}
