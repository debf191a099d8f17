//! Snapshots of a history in a bucket: whoever asks reads little, and is told the same as who reads everything.

use std::{collections::BTreeSet, net::IpAddr};

use netaudit::{
    cluster::{Content, Kind, Object, ObjectKey, REMEMBERED},
    replay::Histories,
    store::{
        bucket::Bucket,
        flows::{
            ask::Store,
            segment,
            table::{OBJECTS, SNAPSHOTS},
        },
        history::{
            Bound,
            parts::{Parts, Span},
            read::{Change, Wanted, read},
            state::{State, runs},
        },
    },
    watch,
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    bucket::{netaudit, said, uploads},
    bucket_history::ended,
    s3::{Mode, S3, SECRET, Way},
    *,
};

const URL: &str = "s3://flows/snapshots";
const MINUTE: i64 = 60;
/// Minutes of one file.
const PIECE: i64 = 90;
const PIECES: i64 = 40;

fn at(minutes: i64) -> Timestamp {
    Timestamp::from_seconds(1_767_225_600 + minutes * MINUTE)
}

fn opened(store: &Path, run: &str, minutes: i64, bucket: Option<Bucket>) -> Result<FlowStore> {
    let begin = Beginning {
        node: "node-1".into(),
        run: run.into(),
        from: at(minutes),
        lost: Lost::default(),
        goes_on: false,
    };
    FlowStore::open(store, FOREVER, bucket, &begin)
}

fn pod(number: u64, chance: &mut Chance) -> Value {
    let ip = format!("10.0.0.{}", chance.below(8));
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"namespace": "shop", "name": format!("pod-{number}"), "uid": format!("u{}", chance.below(3)),
                     "labels": {"app": format!("app-{}", chance.below(4))}},
        "spec": {"nodeName": "node-1"},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

fn seen(store: &mut FlowStore, kind: Kind, value: &Value, time: Timestamp) -> Result<()> {
    let content: Content = watch::content(kind, value).context("an object with a name")?;
    store.history_mut().seen(&content, time);
    Ok(())
}

/// Something that may happen to a cluster.
fn happens(
    store: &mut FlowStore,
    chance: &mut Chance,
    bound_now: &mut BTreeSet<IpAddr>,
    time: Timestamp,
) -> Result<()> {
    let number = chance.below(12);
    let value = pod(number, chance);
    match chance.below(5) {
        0 => store.history_mut().deleted(&ObjectKey::new(Kind::Pod, "shop", &format!("pod-{number}")), time),
        1 => {
            let value = json!({
                "kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1",
                "metadata": {"namespace": "shop", "name": format!("policy-{}", chance.below(3)), "uid": "p"},
                "spec": {"podSelector": {"matchLabels": {"app": format!("app-{}", chance.below(4))}}},
            });
            seen(store, Kind::NetworkPolicy, &value, time)?;
        }
        2 => {
            let Object::Pod(pod) = watch::convert::object(Kind::Pod, &value, &Arc::from("test")) else {
                anyhow::bail!("no pod")
            };
            let bound = Bound { pod: &pod, ip: pod.ips[0] };
            // Records of the kernel come late.
            let time = time.minus(Duration::from_secs(chance.below(90)));
            // Only what has begun ends.
            let has_ended = chance.below(3) == 0 && bound_now.remove(&bound.ip);
            if !has_ended {
                bound_now.insert(bound.ip);
            }
            store.history_mut().bound(bound, has_ended, time);
        }
        _ => seen(store, Kind::Pod, &value, time)?,
    }
    Ok(())
}

/// Lets things happen for a while, and so much that a file is made of it.
fn a_piece(
    (store, path): (&mut FlowStore, &Path),
    chance: &mut Chance,
    bound_now: &mut BTreeSet<IpAddr>,
    begin: i64,
) -> Result<()> {
    for minute in (0..PIECE - 1).step_by(3) {
        eventually("room", || Ok(store.history_mut().has_room()))?;
        happens(store, chance, bound_now, at(begin + minute))?;
        store.tick(at(begin + minute), Lost::default());
    }
    let files = || anyhow::Ok(files::list(path, &OBJECTS)?.len());
    let (before, last) = (files()?, segment_files(path)?.pop());
    for number in 0..22_u64 {
        let mut value = pod(100 + number, chance);
        value["metadata"]["labels"]["much"] = json!("x".repeat(100_000));
        value["metadata"]["labels"]["when"] = json!(begin.to_string());
        eventually("room", || Ok(store.history_mut().has_room()))?;
        seen(store, Kind::Pod, &value, at(begin + PIECE - 1))?;
    }
    eventually("the next segment", || {
        store.tick(at(begin + PIECE), Lost::default());
        Ok(segment_files(path)?.pop() > last)
    })?;
    eventually("a file", || Ok(files()? > before))
}

fn segment_files(store: &Path) -> Result<Vec<PathBuf>> {
    Ok(segment::list(&OBJECTS.open_directory(store))?)
}

/// A change in few words, with all of it that may differ.
fn told(change: &Change) -> String {
    let content = change.content.as_ref().map(|content| Sha256::digest(content)[..4].to_vec());
    let (time, what, name) = (change.time, &change.kind, &change.name);
    format!(
        "{} {time} {} {what} {name} {:?} {:?} {content:?}",
        change.sequence,
        change.verb.as_str(),
        change.uid,
        change.address
    )
}

/// What a run knew at a time: what there was, what had just gone, and what is not certain.
fn known(stores: &[Store], run: &str, time: Timestamp) -> Result<(Vec<String>, Vec<String>, Vec<String>)> {
    let parts = Parts::find(stores, Span::at(time))?;
    let (runs, found) = runs(&parts)?;
    ensure!(found.unreadable.is_empty(), "{found:?}");
    let run = runs.into_iter().find(|it| it.run == run).context("the run")?;
    let state = State::of(&parts, &run, time, &[])?;
    ensure!(state.begins(&run).is_none_or(|begins| begins <= time), "it begins later");
    let present = state.present().map(told).collect();
    let gone = state.gone(REMEMBERED).map(|(change, when)| format!("{when} {}", told(change))).collect();
    Ok((present, gone, state.doubts(&run)))
}

fn names(bucket: &Bucket, of: &str) -> Result<Vec<String>> {
    Ok(bucket.list(&[of.to_owned()])?.into_iter().map(|object| object.key).collect())
}

/// What is read of a bucket for that, in bytes.
fn bytes_of(way: &Way, ask: impl FnOnce() -> Result<()>) -> Result<u64> {
    way.answered();
    ask()?;
    Ok(way.answered())
}

#[test]
fn with_snapshots_little_is_read_and_the_answer_is_the_same() -> Result<()> {
    let Some(weed) = weed_or_skip("snapshots of a history in a bucket") else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    let server = S3::start(&weed, &directory.path().join("s3"))?;
    let bucket = server.open(URL)?;
    let way = Way::to(server.port())?;
    let by_way = |patience| server.bucket(URL, way.port, Duration::from_millis(patience), (s3::KEY, SECRET));
    let path = directory.path().join("store");
    let mut chance = Chance(0x5eed_0000_0000_0001);
    let mut store = opened(&path, "run-a", 0, Some(by_way(1_000)?))?;
    for number in 0..12 {
        seen(&mut store, Kind::Pod, &pod(number, &mut chance), at(0))?;
    }
    Kind::ALL.into_iter().for_each(|kind| store.history_mut().listed(kind, at(0)));
    let own = || anyhow::Ok(files::list(&path, &SNAPSHOTS)?);
    let mut bound_now = BTreeSet::new();
    for piece in 0..PIECES {
        a_piece((&mut store, &path), &mut chance, &mut bound_now, piece * PIECE)?;
        // For more than a day nobody takes what is made.
        match piece {
            15 => way.set(Mode::Stall),
            34 => way.set(Mode::Pass),
            _ => {}
        }
        // Changes come faster than the disk takes them, and some are lost.
        for minute in (0..PIECE - 1).cycle().take(if piece == 6 { 5_000 } else { 0 }) {
            if store.counts().history_lost > 0 {
                break;
            }
            happens(&mut store, &mut chance, &mut bound_now, at((piece + 1) * PIECE + minute / 90))?;
            store.tick(at((piece + 1) * PIECE), Lost::default());
        }
        // What the next one is made of cannot be read any more: then it is made of everything.
        if piece == 13 {
            eventually("uploads", || Ok(uploads(&store).uploaded > 10 && uploads(&store).waiting == 0))?;
            let last = own()?.pop().context("a snapshot")?;
            std::fs::write(&last.path, "damaged")?;
        }
    }
    assert!(store.counts().history_lost > 0, "{:?}", store.counts());
    eventually("uploads", || Ok(uploads(&store).uploaded > 40 && uploads(&store).waiting == 0))?;
    assert_eq!(store.finish(at(PIECES * PIECE), Lost::default(), Duration::from_secs(20)), 0);
    let snapshots = names(&bucket, "snapshots")?;
    assert!(snapshots.len() >= 2, "{snapshots:?}");

    // The next run uploads what the last one left, and needs nothing of it here.
    ended(&path)?;
    let mut store = opened(&path, "run-b", PIECES * PIECE + 1, Some(bucket.clone()))?;
    seen(&mut store, Kind::Pod, &pod(1, &mut chance), at(PIECES * PIECE + 2))?;
    Kind::ALL.into_iter().for_each(|kind| store.history_mut().listed(kind, at(PIECES * PIECE + 2)));
    a_piece((&mut store, &path), &mut chance, &mut BTreeSet::new(), PIECES * PIECE + 3)?;
    eventually("an empty directory", || Ok(own()?.is_empty()))?;
    assert_eq!(store.finish(at(PIECES * PIECE + 3 + PIECE), Lost::default(), Duration::from_secs(20)), 0);
    ended(&path)?;
    let store = opened(&path, "run-c", PIECES * PIECE + 120, Some(bucket.clone()))?;
    let files = || anyhow::Ok(files::list(&path, &OBJECTS)?.len());
    eventually("uploads", || {
        Ok(uploads(&store).waiting == 0 && names(&bucket, "objects")?.len() == files()?)
    })?;
    drop(store);

    let here: [Store; 1] = [path.clone().into()];
    let there = [Store::Bucket(bucket.clone())];
    let mut doubtful = 0;
    for minutes in (1..=PIECES * PIECE).step_by(83) {
        let (here, there) = (known(&here, "run-a", at(minutes))?, known(&there, "run-a", at(minutes))?);
        assert!(there == here, "{minutes} minutes:\n{there:#?}\n{here:#?}");
        doubtful += usize::from(!here.2.is_empty());
    }
    assert!(doubtful > 10, "that something was lost is told of all later times");
    assert_eq!(
        known(&there, "run-b", at(PIECES * PIECE + 20))?,
        known(&here, "run-b", at(PIECES * PIECE + 20))?
    );
    // Changes between two times: of a time before all that is kept is told as it held.
    let (since, until) = (at(PIECES * PIECE - 100), at(PIECES * PIECE - 10));
    let objects = |stores: &[Store], minutes: i64| -> Result<Vec<String>> {
        let histories = Histories::read(stores, Some(since), Some(until))?;
        ensure!(histories.unreadable().is_empty(), "{:?}", histories.unreadable());
        let history = histories.of("run-a").context("the run")?;
        let objects = history.objects_at(at(PIECES * PIECE - minutes));
        Ok(objects.iter().map(|object| format!("{object:?}").replace(URL, "STORE")).collect())
    };
    for minutes in [100, 66, 10] {
        assert_eq!(objects(&there, minutes)?, objects(&here, minutes)?, "{minutes} minutes before the end");
    }
    // And people are told the same.
    let time = |minutes: i64| at(minutes).to_string();
    let (hour, later) = (PIECES * PIECE - 60, PIECES * PIECE - 5);
    for command in [
        vec!["who", "10.0.0.3", "--at", &time(later)],
        vec!["who", "10.0.0.4", "--at", &time(PIECES * PIECE + 20)],
        vec!["timeline", "shop/pod-3", "--since", &time(hour), "--until", &time(later)],
        vec!["who", "10.0.0.3", "--at", "2025-06-01T00:00:00Z"],
    ] {
        let ask = |store: &str| -> Result<String> {
            let command: Vec<&str> = command.iter().copied().chain(["--flow-store", store]).collect();
            let output = netaudit(server.port(), SECRET, &command)?;
            Ok(String::from_utf8(output.stdout.clone())? + &said(&output))
        };
        let (here, there) = (ask(path.to_str().context("a name")?)?, ask(URL)?);
        if command[3].starts_with("2025") {
            assert!(there.contains("the history begins in the hour of 2026-01-01T00:00:00Z"), "{there}");
        } else {
            assert_eq!(there, here, "{command:?}");
        }
    }

    // So is the evidence.
    let evidence = |store: &str, name: &str| -> Result<(Vec<String>, Vec<String>)> {
        let [file, unpacked] =
            ["tar", "unpacked"].map(|kind| directory.path().join(format!("{name}.{kind}")));
        let path = file.to_str().context("a name")?;
        let (since, until) = (time(PIECES * PIECE - 300), time(later));
        let arguments =
            ["export", "--incident", "INC-8", store, "--since", &since, "--until", &until, "--out", path];
        let output = netaudit(server.port(), SECRET, &arguments)?;
        ensure!(output.status.success(), "{}", said(&output));
        let mut archive = tar::Archive::new(std::fs::File::open(&file)?);
        archive.unpack(&unpacked)?;
        let mut changes = Vec::new();
        let found = read(&Parts::all(&[unpacked.into()])?, Wanted::default(), &mut |change| {
            changes.push(told(&change));
            Ok(())
        })?;
        changes.sort();
        let marks = found.marks.iter().map(|mark| format!("{mark:?}")).collect();
        Ok((changes, marks))
    };
    let both = [(path.to_str().context("a name")?, "here"), (URL, "there")];
    let [here_bundle, there_bundle] = both.map(|(store, name)| evidence(store, name));
    let ((changes, marks), there) = (here_bundle?, there_bundle?);
    assert!(changes.len() > 30, "{changes:?}");
    assert_eq!(there.0, changes);
    assert_eq!(there.1, marks);

    // So little is read, and the names of so few.
    let far = [Store::Bucket(by_way(20_000)?)];
    let late = at(PIECES * PIECE - 5);
    let little = bytes_of(&way, || known(&far, "run-a", late).map(drop))?;
    let much = bytes_of(&way, || {
        let parts = Parts::all(&far)?;
        let (runs, _) = runs(&parts)?;
        State::of(&parts, &runs[0], late, &[]).map(drop)
    })?;
    assert!(little * 3 < much, "{little} of {much} bytes");

    // A rule of the bucket may remove what is older than a snapshot.
    let trimmed = server.open("s3://flows/trimmed")?;
    let copy = |key: &str, bytes: u64| -> Result<()> {
        let part =
            bucket.ranges(key, &[std::ops::Range { start: 0, end: bytes }])?.pop().context("a part")?;
        let file = directory.path().join("copy");
        std::fs::write(&file, part)?;
        trimmed.upload(&file, key).map(drop)
    };
    let first_kept =
        format!("objects/{}", files::partition(files::hour_of(at(PIECES * PIECE / 2))).display());
    for object in bucket.list(&["objects".to_owned(), "snapshots".to_owned()])? {
        if object.key > first_kept {
            copy(&object.key, object.bytes)?;
        }
    }
    let trimmed = [Store::Bucket(trimmed)];
    let (left, all) = (known(&trimmed, "run-a", late)?, known(&here, "run-a", late)?);
    assert_eq!(left, all);
    let earlier = known(&trimmed, "run-a", at(30)).map(drop);
    assert!(earlier.is_err_and(|error| format!("{error:#}") == "the run"), "nothing of that time is left");
    let (.., doubts) = known(&trimmed, "run-a", at(PIECES * PIECE / 2 + 60))?;
    assert!(
        doubts.iter().any(|doubt| doubt.contains("is not there")),
        "after the snapshot something was removed: {doubts:?}"
    );
    // Also for who wants everything.
    let everything = Parts::all(&trimmed)?;
    let (of_all, _) = runs(&everything)?;
    let run_a = of_all.iter().find(|run| run.run == "run-a").context("the run")?;
    assert!(run_a.complete().is_some(), "{run_a:?}");
    let mut rows = 0;
    read(&everything, Wanted::default(), &mut |_| {
        rows += 1;
        Ok(())
    })?;
    assert!(rows > 100, "{rows}");
    Ok(())
}
