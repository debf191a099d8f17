//! What is not known any more, or was never true, is said: agents that had stopped to listen, parts of a history that are not
//! there, and files that somebody made to do harm.

use netaudit::store::flows::{
    ask::{Among, Columns, Store, scan},
    filter::Filter,
};

use super::{
    asking::{ask, db, policy_value},
    exporting::{Made, export, members, packed, problems},
    *,
};
use crate::{command::netaudit, policy::random::Random};

/// Whose agent died keeps no word against those that go on to listen, though it had seen the address in the kernel.
#[test]
fn what_a_dead_agent_saw_last_is_not_what_is() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let [dead, lives] = ["dead", "lives"].map(|name| directory.path().join(name));
    let (first, second) =
        (pod_value("job-1", "u1", "10.0.0.7", "job"), pod_value("job-2", "u2", "10.0.0.7", "job"));
    let mut writer = Writer::open_on("node-1", &dead, "node-1", 0, FOREVER)?;
    writer.seen(&content(Kind::Pod, &first), 1);
    writer.listed(2);
    writer.bound(&first, "10.0.0.7", false, 3)?;
    writer.finish(100);
    let mut writer = Writer::open_on("node-2", &lives, "node-2", 0, FOREVER)?;
    writer.seen(&content(Kind::Pod, &first), 1);
    writer.listed(2);
    writer.deleted(Kind::Pod, "job-1", 150);
    writer.seen(&content(Kind::Pod, &second), 160);
    writer.deleted(Kind::Pod, "job-2", 350);
    writer.finish(400);
    let who = |at: i64, stores: &[&Path]| {
        let at = t(at).to_string();
        let mut command = netaudit();
        command.args(["who", "10.0.0.7", "--at", &at, "--output", "json", "--flow-store"]);
        let ran = crate::command::run(command.args(stores));
        let answer: Value = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{}", ran.err));
        answer
    };
    let both = [&*dead, &*lives];
    assert_eq!(who(90, &both)["owners"], json!(["Pod shop/job-1"]));
    assert_eq!(who(90, &both)["evidence"][0]["how"], "authored");
    let later = who(200, &both);
    assert_eq!((&later["answer"], &later["owners"]), (&json!("known"), &json!(["Pod shop/job-2"])));
    let stale: Vec<&Value> = later["evidence"].as_array().context("a list")?.iter().collect();
    let heard: Vec<(&Value, &Value)> = stale.iter().map(|it| (&it["name"], &it["heard_until"])).collect();
    let until = json!(t(100).to_string());
    assert_eq!(
        heard,
        [(&json!("job-2"), &Value::Null), (&json!("job-1"), &until), (&json!("job-1"), &until)],
        "it is told all the same, and last"
    );
    assert!(later["doubts"].to_string().contains("are unknown since 2026-01-01T00:01:40"), "{later:#}");
    // Nor does it have anything for want of another owner.
    assert_eq!(who(380, &both)["answer"], "nobody");
    // Where nobody else is asked, it is the last that is known.
    assert_eq!(who(200, &both[..1])["owners"], json!(["Pod shop/job-1"]));
    let text = ask(&["who", "10.0.0.7", "--at", &t(200).to_string()], &dead).out;
    assert!(text.contains("node-1, heard of until 2026-01-01T00:01:40"), "{text}");
    Ok(())
}

/// Fills a segment, so that what comes next is in another one.
fn fill(writer: &mut Writer, name: &str, at: i64) -> Result<()> {
    let open = OBJECTS.open_directory(&writer.path);
    let last = || anyhow::Ok(segment::list(&open)?.pop());
    let before = last()?;
    writer.store.tick(t(at), Lost::default());
    let labels: serde_json::Map<String, Value> =
        (0..300).map(|n| (format!("label-{n:03}"), json!("x".repeat(60)))).collect();
    for number in 0..120 {
        let mut pod = pod_value(&format!("{name}-{number}"), "u", "10.0.9.9", "many");
        pod["metadata"]["labels"] = Value::Object(labels.clone());
        pod["metadata"]["labels"]["number"] = json!(number.to_string());
        writer.seen(&content(Kind::Pod, &pod), at);
    }
    eventually("another segment", || {
        writer.store.tick(t(at), Lost::default());
        Ok(last()? > before)
    })
}

/// A run of three parts, of which the second says that a policy changed, begun at `begin`, with `pace` seconds between two of them.
fn three_parts(store: &Path, begin: i64, pace: i64) -> Result<()> {
    let mut writer = Writer::open(store, "run-a", begin, FOREVER)?;
    writer.seen(&content(Kind::Pod, &db()), begin + 1);
    writer.seen(&content(Kind::NetworkPolicy, &policy_value("web", "11")), begin + 1);
    writer.listed(begin + 2);
    fill(&mut writer, "one", begin + pace)?;
    writer.seen(&content(Kind::NetworkPolicy, &policy_value("api", "12")), begin + pace * 3 / 2);
    fill(&mut writer, "two", begin + 2 * pace)?;
    writer.seen(&pod("late", "u9", "10.0.0.8", "web"), begin + pace * 5 / 2);
    writer.finish(begin + 3 * pace);
    Ok(())
}

#[test]
fn a_hole_in_the_history_is_a_doubt_of_all_that_comes_after() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path().join("store");
    fs::create_dir(&store)?;
    three_parts(&store, 0, 60)?;
    let run = run_of(&store, "run-a")?;
    assert_eq!(state(&store, "run-a", 175)?.doubts(&run), [""; 0]);
    // A disk's fault. The next start sets it aside.
    let segments = segment::list(&OBJECTS.open_directory(&store))?;
    let [_, second, _] = &segments[..] else { anyhow::bail!("{segments:?}") };
    fs::write(second, "no segment any more")?;
    Writer::open(&store, "run-b", 400, FOREVER)?.finish(401);
    assert!(second.with_extension("arrow.damaged").exists());
    eventually("rolling", || Ok(!parquet_files(&store)?.is_empty()))?;
    let doubts = |at: i64| -> Result<Vec<String>> { Ok(state(&store, "run-a", at)?.doubts(&run)) };
    assert_eq!(doubts(55)?, [""; 0], "before it everything is known");
    let hole = "what node-1 wrote down of objects from 2026-01-01T00:01:00.000000000Z until \
                2026-01-01T00:02:00.000000000Z is not there: it was damaged, removed, or never written";
    assert_eq!(doubts(175)?, [hole], "{:#?}", state(&store, "run-a", 175)?.read);
    // All that ask the history say so.
    let at = t(175).to_string();
    let who = ask(&["who", "10.0.0.8", "--at", &at], &store);
    assert!(who.out.contains(&format!("but {hole}")), "{}{}", who.out, who.err);
    let timeline = ask(&["timeline", "shop/late"], &store);
    let told = "changes of objects from 2026-01-01T00:01:00Z until 2026-01-01T00:02:00Z are not known";
    assert!(timeline.err.contains(told), "{}", timeline.err);
    let bundle = directory.path().join("hole.tar");
    let ran = export(&store, t(150), t(175), &bundle, &["--require-complete"]);
    assert!(ran.status == 1 && ran.out.contains(hole), "{}{}", ran.out, ran.err);
    // Unpacked it is told still.
    let unpacked = directory.path().join("unpacked");
    exporting::unpack(&bundle, &unpacked)?;
    let who = ask(&["who", "10.0.0.8", "--at", &at], &unpacked);
    assert!(who.out.contains("is not there"), "{}{}", who.out, who.err);
    Ok(())
}

/// Whether a file is damaged or was removed: what is folded over it says so, until a later run has told all again.
#[test]
fn a_hole_outlives_its_hour_and_ends_with_the_run() -> Result<()> {
    for is_removed in [false, true] {
        let directory = tempfile::tempdir()?;
        let store = directory.path();
        let now = jiff::Timestamp::now().as_second() - BEGIN;
        let ago = |hours: i64| now - hours * HOUR;
        // It ends three hours ago.
        three_parts(store, ago(12), 3 * HOUR)?;
        Writer::open(store, "run-b", ago(2), FOREVER)?.finish(ago(2) + 1);
        // In which the policy changed.
        let hour = files::hour_of(t(ago(12) + 3 * HOUR * 3 / 2));
        let of_hour = || -> Result<Option<PathBuf>> {
            Ok(files::list(store, &OBJECTS)?.into_iter().find(|file| file.hour == hour).map(|file| file.path))
        };
        eventually("rolling", || Ok(of_hour()?.is_some()))?;
        let file = of_hour()?.context("a file")?;
        match is_removed {
            true => fs::remove_file(file)?,
            false => fs::write(file, "no Parquet any more")?,
        }
        let first_hour = files::hour_of(t(now)) - 5;
        let writer = Writer::open(store, "run-c", now, Duration::from_secs(5 * 3_600))?;
        eventually("folding", || {
            Ok(files::list(store, &OBJECTS)?.first().map(|file| file.hour) == Some(first_hour))
        })?;
        writer.finish(now + 1);
        let run = run_of(store, "run-a")?;
        let doubts = state(store, "run-a", ago(4))?.doubts(&run);
        let is_told = doubts.iter().any(|it| it.contains("long before that is not there"));
        assert!(is_told, "{is_removed} {doubts:?} {:#?}", state(store, "run-a", ago(4))?.read);
        // A run that listed all again knows what there is, whatever the one before it had missed.
        let mut writer = Writer::open(store, "run-d", now + 2, FOREVER)?;
        writer.seen(&content(Kind::Pod, &db()), now + 3);
        writer.listed(now + 3);
        writer.finish(now + 4);
        let run = run_of(store, "run-d")?;
        assert_eq!(state(store, "run-d", now + 4)?.doubts(&run), [""; 0]);
    }
    Ok(())
}

/// Reads everything, as those who ask do. Returns how much could not be read.
fn read_all(store: &Path) -> Result<usize> {
    let stores = [Store::Directory(store.to_owned())];
    let history = read(&Parts::all(&stores)?, Wanted::default(), &mut |_| Ok(()))?;
    // With conditions, so that statistics and bloom filters are read as well.
    let filters = [
        Filter::default(),
        Filter { pods: vec!["shop/web-0".parse().expect("a pod")], ..Filter::default() },
        Filter { addresses: vec!["10.0.0.1/32".parse()?], from: Some(t(5)), ..Filter::default() },
    ];
    let mut unreadable = history.unreadable.len();
    for filter in filters {
        let scanned = scan(&stores, Among::All, &filter, Columns::All, &|_, _| {}, &mut |_| {
            Ok(std::ops::ControlFlow::Continue(()))
        })?;
        unreadable += scanned.unreadable.len();
    }
    Ok(unreadable)
}

/// Whatever stands in a file: it is read, or said to be damaged, and nothing else of the store is missing. Most changes break off what
/// decodes it with an error; some make it panic.
#[test]
fn no_file_of_a_store_stops_who_reads_it() -> Result<()> {
    let made = Made::new()?;
    let unpacked = made.path("unpacked");
    exporting::unpack(&made.path("inc.tar"), &unpacked)?;
    assert_eq!(read_all(&unpacked)?, 0);
    let files: Vec<PathBuf> =
        [files::list(&unpacked, &OBJECTS)?, files::list(&unpacked, &netaudit::store::flows::table::FLOWS)?]
            .into_iter()
            .flatten()
            .map(|file| file.path)
            .collect();
    let mut random = Random::new(7);
    let mut damaged = 0;
    for _ in 0..150 {
        let path = random.pick(&files);
        let whole = fs::read(path)?;
        fs::write(path, spoilt(&whole, &mut random))?;
        damaged += usize::from(read_all(&unpacked)? > 0);
        fs::write(path, whole)?;
    }
    assert!(damaged > 40, "{damaged}");
    assert_eq!(read_all(&unpacked)?, 0);
    Ok(())
}

/// Some bytes of it are others, more often at its end: what a file says of itself is there.
fn spoilt(whole: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    let from = if random.percent(60) { bytes.len() * 2 / 3 } else { 4 };
    for _ in 0..random.between(1, 4) {
        let place = random.between(from, bytes.len() - 9);
        bytes[place] = if random.percent(50) { bytes[place] ^ 1 } else { random.next() as u8 };
    }
    bytes
}

/// A bundle whose digests all fit, as somebody made it who knows how.
#[test]
fn a_forged_bundle_is_judged_and_does_no_harm() -> Result<()> {
    let made = Made::new()?;
    let sound = members(&made.bytes)?;
    let tables: Vec<usize> = (0..sound.len()).filter(|place| sound[*place].0.ends_with(".parquet")).collect();
    let mut random = Random::new(11);
    let mut noticed = 0;
    for _ in 0..150 {
        let mut forged = sound.clone();
        let place = *random.pick(&tables);
        forged[place].1 = spoilt(&forged[place].1, &mut random);
        seal_again(&mut forged)?;
        noticed += usize::from(!problems(&packed(&forged)?, None)?.is_empty());
    }
    assert!(noticed > 30, "{noticed}");
    Ok(())
}

/// Makes all digests fit.
fn seal_again(members: &mut [(String, Vec<u8>)]) -> Result<()> {
    let sum = |bytes: &[u8]| -> String {
        let sum = <sha2::Sha256 as sha2::Digest>::digest(bytes);
        sum.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let place = members.iter().position(|(name, _)| name == "manifest.json").context("a manifest")?;
    let mut manifest: Value = serde_json::from_slice(&members[place].1)?;
    for told in manifest["members"].as_array_mut().context("members")? {
        let name = told["name"].as_str().unwrap_or_default().to_owned();
        let (_, content) = members.iter().find(|(known, _)| *known == name).context("a member")?;
        told["sha256"] = json!(sum(content));
    }
    let text = serde_json::to_vec_pretty(&manifest)?;
    members[place + 1].1 = format!("{}  manifest.json\n", sum(&text)).into_bytes();
    members[place].1 = text;
    Ok(())
}
