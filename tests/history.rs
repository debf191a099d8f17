//! The history of objects without an agent: what was told comes back, whatever is torn or folded, and nothing is told twice.

pub(crate) mod asking;
pub(crate) mod exporting;
mod missing;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use netaudit::{
    cluster::{Cluster, Content, Kind, Object, ObjectKey},
    model::Timestamp,
    store::{
        flows::{Beginning, FlowStore, Lost, Retention, files, segment, table::OBJECTS},
        history::{
            Bound, Verb,
            parts::Parts,
            read::{Change, Wanted, read},
            state::{Run, State, in_effect, runs},
        },
    },
    watch,
};
use serde_json::{Value, json};

/// 2026-01-01T00:00:00Z.
const BEGIN: i64 = 1_767_225_600;
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);
const HOUR: i64 = 3_600;

/// A time of the story.
fn t(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(BEGIN + seconds)
}

fn content(kind: Kind, value: &Value) -> Content {
    watch::content(kind, value).expect("an object with a name")
}

fn pod_value(name: &str, uid: &str, ip: &str, app: &str) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"namespace": "shop", "name": name, "uid": uid, "resourceVersion": "7", "labels": {"app": app}},
        "spec": {"nodeName": "node-1"},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

fn pod(name: &str, uid: &str, ip: &str, app: &str) -> Content {
    content(Kind::Pod, &pod_value(name, uid, ip, app))
}

/// Lets only pods with this label in to what is called db.
fn policy(from: &str) -> Content {
    content(
        Kind::NetworkPolicy,
        &json!({
            "kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1",
            "metadata": {"namespace": "shop", "name": "db", "uid": "policy", "resourceVersion": "8", "generation": 3},
            "spec": {"podSelector": {"matchLabels": {"app": "db"}},
                     "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": from}}}]}]},
        }),
    )
}

fn key(kind: Kind, name: &str) -> ObjectKey {
    ObjectKey::new(kind, "shop", name)
}

/// A store that is written as an agent does.
struct Writer {
    path: PathBuf,
    store: FlowStore,
    /// For pods of bindings.
    cluster: Cluster,
}

impl Writer {
    fn open(path: &Path, run: &str, from: i64, age: Duration) -> Result<Self> {
        Self::open_on("node-1", path, run, from, age)
    }

    fn open_on(node: &str, path: &Path, run: &str, from: i64, age: Duration) -> Result<Self> {
        let begin = Beginning {
            node: node.into(),
            run: run.into(),
            from: t(from),
            lost: Lost::default(),
            goes_on: false,
        };
        let open = || FlowStore::open(path, Retention { age, bytes: u64::MAX }, None, &begin);
        let mut store = open();
        // Another test's child holds our files for a moment before it becomes another program, and so the lock.
        for _ in 0..100 {
            match &store {
                Err(error) if error.to_string().contains("another agent writes") => {
                    std::thread::sleep(Duration::from_millis(50));
                    store = open();
                }
                _ => break,
            }
        }
        let store = store?;
        Ok(Self { path: path.to_owned(), store, cluster: Cluster::new() })
    }

    fn seen(&mut self, content: &Content, at: i64) {
        self.store.history_mut().seen(content, t(at));
    }

    fn deleted(&mut self, kind: Kind, name: &str, at: i64) {
        self.store.history_mut().deleted(&key(kind, name), t(at));
    }

    fn listed(&mut self, at: i64) {
        Kind::ALL.into_iter().for_each(|kind| self.store.history_mut().listed(kind, t(at)));
    }

    fn bound(&mut self, pod: &Value, ip: &str, has_ended: bool, at: i64) -> Result<()> {
        let object: Object = watch::convert::object(Kind::Pod, pod, &Arc::from("test"));
        let Object::Pod(pod) = &object else { anyhow::bail!("no pod") };
        let bound = Bound { pod, ip: ip.parse()? };
        self.store.history_mut().bound(bound, has_ended, t(at));
        self.cluster.apply(object, t(at));
        Ok(())
    }

    /// Everything until then is on the disk.
    fn finish(mut self, until: i64) {
        self.store.tick(t(until), Lost::default());
        assert_eq!(self.store.finish(t(until), Lost::default(), Duration::from_secs(10)), 0);
        // Its threads have ended when the next one may write.
        let lock = fs::File::open(self.path.join("lock")).expect("a lock");
        lock.lock().expect("the lock");
    }
}

fn parts(store: &Path) -> Result<Parts> {
    Parts::all(&[store.to_owned().into()])
}

/// All changes of a store, of each run in order.
pub(crate) fn all(store: &Path) -> Result<Vec<Change>> {
    let mut found = Vec::new();
    let read = read(&parts(store)?, Wanted::default(), &mut |change| {
        found.push(change);
        Ok(())
    })?;
    ensure!(read.unreadable.is_empty(), "{read:?}");
    found.sort_by_key(|change| (change.run.clone(), change.sequence));
    Ok(found)
}

/// `applied Pod web-0` and the like, without what is listed.
fn told(changes: &[Change]) -> Vec<String> {
    let shown = changes.iter().filter(|change| change.verb != Verb::Listed);
    shown.map(|it| format!("{} {} {}", it.verb.as_str(), it.kind, it.name)).collect()
}

fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = std::time::Instant::now() + Duration::from_secs(40);
    while !holds()? {
        ensure!(std::time::Instant::now() < deadline, "no {what} within 40 s");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn parquet_files(store: &Path) -> Result<Vec<PathBuf>> {
    Ok(files::list(store, &OBJECTS)?.into_iter().map(|file| file.path).collect())
}

fn run_of(store: &Path, name: &str) -> Result<Run> {
    let (runs, _) = runs(&parts(store)?)?;
    runs.into_iter().find(|run| run.run == name).with_context(|| format!("no run {name}"))
}

fn state(store: &Path, run: &str, at: i64) -> Result<State> {
    State::of(&parts(store)?, &run_of(store, run)?, t(at), &[])
}

fn names(state: &State) -> Vec<String> {
    state.present().map(|change| format!("{} {}", change.kind, change.name)).collect()
}

#[test]
fn what_was_told_comes_back_from_the_log_and_from_files() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut writer = Writer::open(store, "run-a", 0, FOREVER)?;
    let web = pod_value("web-0", "u1", "10.0.0.1", "web");
    writer.seen(&content(Kind::Pod, &web), 1);
    writer.seen(&policy("web"), 1);
    writer.listed(2);
    // What nobody reads has changed.
    let mut noise = web.clone();
    noise["metadata"]["resourceVersion"] = json!("9");
    noise["metadata"]["managedFields"] = json!([{"manager": "somebody"}]);
    writer.seen(&content(Kind::Pod, &noise), 3);
    writer.seen(&pod("web-0", "u1", "10.0.0.1", "other"), 4);
    writer.bound(&web, "10.0.0.1", false, 4)?;
    writer.deleted(Kind::Pod, "web-0", 5);
    writer.bound(&web, "10.0.0.1", true, 5)?;
    writer.deleted(Kind::Pod, "nobody", 5);
    writer.finish(6);

    let of_log = all(store)?;
    assert_eq!(
        told(&of_log),
        [
            "present Pod web-0",
            "present NetworkPolicy db",
            "applied Pod web-0",
            "applied Binding web-0",
            "deleted Pod web-0",
            "deleted Binding web-0"
        ]
    );
    let Change { time, node, run, sequence, uid, resource_version, content: kept, .. } = &of_log[0];
    assert_eq!((*time, &**node, &**run, *sequence), (t(1), "node-1", "run-a", 1));
    assert_eq!((&**uid, &**resource_version), ("u1", "7"));
    assert_eq!(kept.as_deref(), Some(&*content(Kind::Pod, &web).json));
    let binding = of_log.iter().find(|change| change.kind == "Binding").context("a binding")?;
    assert_eq!((binding.address, &*binding.uid, binding.time), ("10.0.0.1".parse().ok(), "u1", t(4)));

    // A restart tells what is there once more, and nothing else.
    let mut writer = Writer::open(store, "run-b", 10, FOREVER)?;
    writer.seen(&policy("web"), 11);
    writer.listed(12);
    writer.seen(&policy("web"), 13);
    eventually("files", || Ok(!parquet_files(store)?.is_empty()))?;
    writer.finish(14);
    let both = all(store)?;
    assert_eq!(both[..of_log.len()], of_log, "the same from files");
    assert_eq!(told(&both[of_log.len()..]), ["present NetworkPolicy db"]);

    for (run, at, expected) in [
        ("run-a", 0, vec![]),
        ("run-a", 2, vec!["NetworkPolicy db", "Pod web-0"]),
        ("run-a", 4, vec!["Binding web-0", "NetworkPolicy db", "Pod web-0"]),
        ("run-a", 6, vec!["NetworkPolicy db"]),
        ("run-b", 14, vec!["NetworkPolicy db"]),
    ] {
        assert_eq!(names(&state(store, run, at)?), expected, "{run} at {at}");
    }
    let known = state(store, "run-a", 6)?;
    let gone: Vec<_> = known.gone(Duration::from_secs(600)).map(|(it, at)| (it.kind.as_str(), at)).collect();
    assert_eq!(gone, [("Binding", t(5)), ("Pod", t(5))]);
    let (runs, _) = runs(&parts(store)?)?;
    let chosen = |at| in_effect(&runs, t(at)).iter().map(|run| run.run.clone()).collect::<Vec<_>>();
    assert_eq!(
        [chosen(1), chosen(2), chosen(11), chosen(12)],
        [vec![], vec!["run-a".to_owned()], vec!["run-a".to_owned()], vec!["run-b".to_owned()]]
    );
    // Nobody wrote anything down between the two.
    let run = run_of(store, "run-a")?;
    assert!(state(store, "run-a", 6)?.doubts(&run).is_empty());
    let doubts = state(store, "run-a", 100)?.doubts(&run);
    assert_eq!(
        doubts,
        [
            "changes of objects are unknown since 2026-01-01T00:00:06.000000000Z: no agent wrote them down on node-1"
        ]
    );
    Ok(())
}

#[test]
fn a_torn_log_keeps_what_is_whole() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut writer = Writer::open(store, "run-a", 0, FOREVER)?;
    for second in 1..=5 {
        for number in 0..10 {
            writer.seen(&pod(&format!("web-{number}"), "u", "10.0.0.1", &format!("app-{second}")), second);
        }
        writer.store.tick(t(second), Lost::default());
    }
    writer.finish(6);
    let [segment] = &segment::list(&OBJECTS.open_directory(store))?[..] else { anyhow::bail!("a segment") };
    let whole = fs::read(segment)?;
    let copy = directory.path().join("copy");
    let open = OBJECTS.open_directory(&copy);
    fs::create_dir_all(&open)?;
    fs::create_dir_all(OBJECTS.directory(&copy))?;
    let torn = open.join(segment.file_name().context("a name")?);
    fs::copy(segment.with_extension("json"), torn.with_extension("json"))?;
    let mut before = 0;
    for length in (0..=whole.len()).step_by(97).chain([whole.len()]) {
        fs::write(&torn, &whole[..length])?;
        let mut rows = 0;
        let read = read(&parts(&copy)?, Wanted::default(), &mut |_| {
            rows += 1;
            Ok(())
        })?;
        assert!(before == 0 || read.unreadable.is_empty(), "{length}: {read:?}");
        assert!(rows >= before && rows % 10 == 0, "{rows} rows after {before}, of {length} bytes");
        before = rows;
    }
    assert_eq!(before, 50);
    // The next run goes on, and what was whole is there.
    fs::write(&torn, &whole[..whole.len() - 7])?;
    let writer = Writer::open(&copy, "run-b", 10, FOREVER)?;
    eventually("a file", || Ok(!parquet_files(&copy)?.is_empty()))?;
    writer.finish(11);
    let count = all(&copy)?.len();
    assert!(count >= 40 && count % 10 == 0, "{count} rows");
    Ok(())
}

#[test]
fn what_still_holds_outlives_its_hour() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let now = jiff::Timestamp::now().as_second() - BEGIN;
    let ago = |hours: i64| now - hours * HOUR;
    let mut writer = Writer::open(store, "run-0", ago(20), FOREVER)?;
    writer.seen(&pod("older", "u0", "10.0.0.9", "web"), ago(20));
    writer.listed(ago(20) + 1);
    writer.finish(ago(19));
    let mut writer = Writer::open(store, "run-a", ago(12), FOREVER)?;
    writer.seen(&pod("steady", "u1", "10.0.0.1", "web"), ago(12));
    writer.seen(&pod("gone", "u2", "10.0.0.2", "web"), ago(12));
    writer.seen(&policy("one"), ago(12));
    writer.listed(ago(12) + 1);
    writer.seen(&policy("two"), ago(10));
    writer.deleted(Kind::Pod, "gone", ago(9));
    writer.bound(&pod_value("steady", "u1", "10.0.0.1", "web"), "10.0.0.1", false, ago(9))?;
    writer.seen(&policy("three"), ago(2));
    writer.finish(ago(1));
    let before = state(store, "run-a", ago(3))?;
    let expected: Vec<Change> = before.present().cloned().collect();
    assert_eq!(expected.len(), 3, "{expected:?}");

    // Flows are kept for five hours from now on.
    let writer = Writer::open(store, "run-b", now, Duration::from_secs(5 * 3_600))?;
    let first_hour = files::hour_of(t(now)) - 5;
    let hours =
        || -> Result<Vec<i64>> { Ok(files::list(store, &OBJECTS)?.iter().map(|file| file.hour).collect()) };
    eventually("folding", || Ok(hours()?.first() == Some(&first_hour)))?;
    writer.finish(now + 1);
    let changes = all(store)?;
    assert_eq!(
        told(&changes),
        [
            "present Pod steady",
            "applied NetworkPolicy db",
            "applied Binding steady",
            "applied NetworkPolicy db"
        ],
        "neither what is gone, nor what another run had listed, nor what has changed since"
    );
    let after = state(store, "run-a", ago(3))?;
    assert_eq!(after.present().cloned().collect::<Vec<_>>(), expected, "as if nothing had been removed");
    assert!(run_of(store, "run-a")?.complete().is_some(), "that all was listed is still known");
    // Of times before that it is said that nobody knows.
    let begins = after.begins(&run_of(store, "run-a")?);
    assert_eq!(begins, Some(Timestamp::from_seconds(first_hour * HOUR)));
    let latest = state(store, "run-a", ago(1))?;
    let policy_now = latest.present().find(|it| it.kind == "NetworkPolicy").and_then(|it| it.content.clone());
    assert!(policy_now.context("a policy")?.contains("three"));

    // Once more, an hour later: what was folded is folded again, and nothing doubles.
    let writer = Writer::open(store, "run-c", now, Duration::from_secs(4 * 3_600))?;
    eventually("folding", || Ok(hours()?.first() == Some(&(first_hour + 1))))?;
    writer.finish(now + 2);
    assert_eq!(state(store, "run-a", ago(3))?.present().cloned().collect::<Vec<_>>(), expected);
    let sequences: Vec<(String, u64)> = all(store)?.iter().map(|it| (it.run.clone(), it.sequence)).collect();
    let different: std::collections::BTreeSet<_> = sequences.iter().collect();
    assert_eq!(different.len(), sequences.len(), "{sequences:?}");
    Ok(())
}
