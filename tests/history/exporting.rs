//! Evidence of an incident: `netaudit export` and `netaudit verify` as a person runs them, and what of a bundle can be damaged.

use std::io::Read as _;

use netaudit::store::bundle::verify::verify;

use super::{
    asking::{Agent, ask, db, policy_value, story},
    *,
};
use crate::command::{Run as Ran, folder, netaudit, run};

/// Exports a window of a store.
pub(crate) fn export(store: &Path, since: Timestamp, until: Timestamp, out: &Path, more: &[&str]) -> Ran {
    let mut command = netaudit();
    command.args(["export", "--incident", "INC-7"]).arg(store);
    command.args(["--since", &since.to_string(), "--until", &until.to_string()]);
    run(command.arg("--out").arg(out).args(more))
}

/// Runs `netaudit verify`.
pub(crate) fn verified(bundle: &Path, more: &[&str]) -> Ran {
    run(netaudit().arg("verify").arg(bundle).args(more))
}

/// Unpacks a bundle, as any tar does.
pub(crate) fn unpack(bundle: &Path, to: &Path) -> Result<()> {
    tar::Archive::new(fs::File::open(bundle)?).unpack(to).context("a tar file")
}

pub(super) type Members = Vec<(String, Vec<u8>)>;

pub(super) fn members(bundle: &[u8]) -> Result<Members> {
    let mut archive = tar::Archive::new(bundle);
    let mut found = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_str().context("a name")?.to_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        found.push((name, content));
    }
    Ok(found)
}

fn header(name: &str, size: usize, kind: tar::EntryType) -> Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    // Whatever it is called.
    header.as_mut_bytes()[..name.len().min(100)].copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
    if name.len() > 100 || name.starts_with("policies/") || name.starts_with("flows/") {
        header.as_mut_bytes()[..100].fill(0);
        header.set_path(name)?;
    }
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header.set_cksum();
    Ok(header)
}

/// A bundle again, by another writer.
pub(super) fn packed(members: &Members) -> Result<Vec<u8>> {
    let mut out = tar::Builder::new(Vec::new());
    for (name, content) in members {
        out.append(&header(name, content.len(), tar::EntryType::Regular)?, &content[..])?;
    }
    Ok(out.into_inner()?)
}

/// All that is wrong with these bytes; an error where they are no bundle.
pub(super) fn problems(bytes: &[u8], digest: Option<&str>) -> Result<Vec<String>> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), bytes)?;
    Ok(verify(file.path(), digest)?.problems)
}

pub(super) struct Made {
    directory: tempfile::TempDir,
    ids: Vec<String>,
    digest: String,
    pub bytes: Vec<u8>,
}

impl Made {
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let store = directory.path().join("store");
        fs::create_dir(&store)?;
        let ids = story(&store)?;
        let bundle = directory.path().join("inc.tar");
        let ran = export(&store, t(0), t(310), &bundle, &["--output", "json"]);
        ensure!(ran.status == 0, "{}", ran.err);
        let told: Value = serde_json::from_str(&ran.out)?;
        let digest = told["digest"].as_str().context("a digest")?.to_owned();
        let bytes = fs::read(&bundle)?;
        Ok(Self { directory, ids, digest, bytes })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// What the commands say of a store.
fn said(command: &[&str], store: &Path) -> String {
    let ran = match command {
        ["flows", rest @ ..] => run(netaudit().arg("flows").arg(store).args(rest)),
        other => ask(other, store),
    };
    format!("{}\n{}{}", ran.status, ran.out, ran.err)
}

#[test]
fn what_is_unpacked_is_a_store_that_says_the_same() -> Result<()> {
    let made = Made::new()?;
    let (store, bundle, unpacked) = (made.path("store"), made.path("inc.tar"), made.path("unpacked"));
    let ran = verified(&bundle, &["--digest", &made.digest]);
    let gap = "  nothing was recorded on node-1 from 2026-01-01T00:02:30Z until 2026-01-01T00:03:20Z\n";
    assert_eq!(
        ran.out,
        format!(
            "{}: sound\nincident INC-7, 5 flows (all) from 2026-01-01T00:00:00Z until 2026-01-01T00:05:10Z, 1 policies, 2 agent runs\nINCOMPLETE:\n{gap}sha256 of its manifest: {}\n",
            bundle.display(),
            made.digest
        )
    );
    assert_eq!((ran.status, &*ran.err), (0, ""));

    unpack(&bundle, &unpacked)?;
    let (since, until) = (t(0).to_string(), t(310).to_string());
    let window = ["--since", &since, "--until", &until];
    let mut commands = vec![
        [&["flows", "--output", "json"], &window[..]].concat(),
        [&["flows"], &window[..]].concat(),
        [&["timeline", "shop/db-0"], &window[..]].concat(),
    ];
    let ids: Vec<[&str; 2]> = made.ids.iter().map(|id| ["why", id]).collect();
    commands.extend(ids.iter().map(|it| it.to_vec()));
    let at = [t(60).to_string(), t(110).to_string(), t(250).to_string()];
    commands.extend(at.iter().map(|at| vec!["who", "10.0.0.1", "--at", at]));
    for command in commands {
        let (before, after) = (said(&command, &store), said(&command, &unpacked));
        assert_eq!(after, before, "{command:?}");
        assert!(before.contains("shop/"), "{command:?}: {before}");
    }
    // The same again is the same, but for when.
    let again = made.path("again.tar");
    assert_eq!(export(&store, t(0), t(310), &again, &[]).status, 0);
    let is_not_of_time = |(name, _): &(String, Vec<u8>)| !name.starts_with("manifest.");
    let of = |bytes: &[u8]| -> Result<Members> {
        Ok(members(bytes)?.into_iter().filter(is_not_of_time).collect())
    };
    assert!(of(&made.bytes)? == of(&fs::read(&again)?)?, "the same store makes the same files");

    let manifest: Value = serde_json::from_slice(&fs::read(unpacked.join("manifest.json"))?)?;
    let policy = &manifest["policies"][0];
    assert_eq!(
        (&policy["policy"], &policy["at_end"], &policy["member"]),
        (&json!("NetworkPolicy/shop/db"), &json!(false), &json!("policies/gone/NetworkPolicy/shop/db.yaml")),
        "the second run has it no more"
    );
    let versions: Vec<&Value> =
        policy["changes"].as_array().context("a list")?.iter().map(|it| &it["resource_version"]).collect();
    assert_eq!(versions, ["11", "12"]);
    let text = fs::read_to_string(unpacked.join("policies/gone/NetworkPolicy/shop/db.yaml"))?;
    assert!(
        text.starts_with("# As known since 2026-01-01T00:00:30Z, resourceVersion 12.\n# It was gone"),
        "{text}"
    );
    assert!(text.contains("app: api"), "{text}");
    // Without netaudit: the digests as README.txt says.
    let seal = fs::read_to_string(unpacked.join("manifest.sha256"))?;
    assert_eq!(seal, format!("{}  manifest.json\n", made.digest));
    assert!(fs::read_to_string(unpacked.join("README.txt"))?.contains("sha256sum --check"));
    Ok(())
}

#[test]
fn of_what_was_long_before_only_what_still_held_is_packed() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path().join("store");
    fs::create_dir(&store)?;
    let mut agent = Agent::new(&store, "run-a", 0)?;
    agent.apply(Kind::Pod, &db(), 1);
    agent.apply(Kind::Pod, &pod_value("web-0", "uid-1", "10.0.0.1", "web"), 1);
    agent.apply(Kind::Pod, &pod_value("old-0", "uid-3", "10.0.0.3", "old"), 1);
    agent.apply(Kind::NetworkPolicy, &policy_value("old", "11"), 1);
    agent.ready(2);
    let (outside, _) = agent.accepts("10.0.0.1", 10);
    agent.apply(Kind::NetworkPolicy, &policy_value("web", "12"), 30);
    agent.delete(Kind::Pod, "old-0", 50);
    agent.writer.bound(&pod_value("web-0", "uid-1", "10.0.0.1", "web"), "10.0.0.1", false, 60)?;
    let (before, _) = agent.accepts("10.0.0.1", 4_000);
    agent.apply(Kind::NetworkPolicy, &policy_value("api", "13"), 4_010);
    let (after, _) = agent.accepts("10.0.0.1", 4_020);
    agent.apply(Kind::NetworkPolicy, &policy_value("later", "14"), 6_000);
    agent.writer.finish(6_001);

    let (bundle, unpacked) = (directory.path().join("inc.tar"), directory.path().join("unpacked"));
    let ran = export(&store, t(3_990), t(4_030), &bundle, &[]);
    assert!(ran.status == 0 && ran.out.contains("2 flows (all)"), "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("\ncomplete: no record was lost on node-1\n"), "{}", ran.out);
    assert_eq!(verified(&bundle, &[]).status, 0);
    unpack(&bundle, &unpacked)?;
    assert_eq!(
        told(&all(&unpacked)?),
        [
            "present Pod db-0",
            "present Pod web-0",
            "applied NetworkPolicy db",
            "applied Binding web-0",
            "applied NetworkPolicy db"
        ]
    );
    for id in [&before, &after] {
        assert_eq!(said(&["why", id], &unpacked), said(&["why", id], &store));
        assert!(said(&["why", id], &store).contains("as recorded"));
    }
    assert!(said(&["why", &outside], &unpacked).contains("no flow"));
    let (then, long_before) = (t(4_000).to_string(), t(3_000).to_string());
    let who = |at: &str| said(&["who", "10.0.0.1", "--at", at], &unpacked);
    assert_eq!(who(&then), said(&["who", "10.0.0.1", "--at", &then], &store));
    assert!(who(&then).contains("authored  Pod shop/web-0"), "{}", who(&then));
    // Of what was not packed nothing is guessed.
    assert!(who(&long_before).starts_with('2'), "{}", who(&long_before));
    let text = fs::read_to_string(unpacked.join("policies/NetworkPolicy/shop/db.yaml"))?;
    assert!(text.contains("resourceVersion 13") && text.contains("app: api"), "{text}");

    // Some of them only, and an unpacked one can be packed again.
    let some = directory.path().join("some.tar");
    let ran = export(&store, t(3_990), t(4_030), &some, &["--verdict", "denied"]);
    assert!(ran.out.contains("1 flows (those that the filter leaves)"), "{}{}", ran.out, ran.err);
    assert_eq!(verified(&some, &[]).status, 0);
    let some_unpacked = directory.path().join("some");
    unpack(&some, &some_unpacked)?;
    let flows = said(&["flows"], &some_unpacked);
    assert!(flows.contains("holds only flows of incident INC-7"), "{flows}");
    let again = directory.path().join("again.tar");
    assert_eq!(export(&unpacked, t(3_990), t(4_030), &again, &[]).status, 0);
    assert_eq!(verified(&again, &[]).status, 0);
    Ok(())
}

#[test]
fn every_bit_of_it_is_checked() -> Result<()> {
    let Made { bytes, digest, .. } = Made::new()?;
    let known = Some(&*digest);
    assert_eq!(problems(&bytes, known)?, [""; 0]);
    let members = members(&bytes)?;
    assert!(packed(&members)? == bytes, "every tar writes the same");
    // In each member: its header's name, length, checksum and end, its content's begin, middle and end, and what fills it up.
    let mut begin = 0;
    let mut places = vec![bytes.len() - 1, bytes.len() - 600];
    for (name, content) in &members {
        places.extend([0, 99, 124, 135, 148, 156, 257, 345, 511].map(|place| begin + place));
        let (first, end) = (begin + 512, begin + 512 + content.len());
        places.extend([first, first + content.len() / 3, first + content.len() / 2, end - 1]);
        begin = end.next_multiple_of(512);
        if begin > end {
            places.extend([end, begin - 1]);
        }
        assert!(!content.is_empty(), "{name}");
    }
    for place in places {
        for bit in [0, 5] {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1 << bit;
            let found = problems(&damaged, known)?;
            assert!(!found.is_empty(), "bit {bit} of byte {place}");
        }
    }
    for length in (0..bytes.len()).step_by(1_013).chain([
        511,
        512,
        bytes.len() - 1_024,
        bytes.len() - 512,
        bytes.len() - 1,
    ]) {
        match problems(&bytes[..length], known) {
            Ok(found) => assert!(found.iter().any(|it| it.contains("truncated")), "{length}: {found:?}"),
            Err(error) => {
                let said = format!("{error:#}");
                assert!(length < 512 && said.contains("no bundle of netaudit's"), "{length}: {said}");
            }
        }
    }
    let more = problems(&[&bytes[..], b"more"].concat(), known)?;
    assert!(more[0].contains("no part of it"), "{more:?}");
    Ok(())
}

/// A change of the members, and what is said of it.
type Change<'a> = (&'a str, &'a dyn Fn(&mut Members), &'a str);

#[test]
fn whoever_changes_its_members_is_noticed() -> Result<()> {
    let Made { bytes, digest, directory, .. } = Made::new()?;
    let place = |members: &Members, begins: &str| {
        members.iter().position(|(name, _)| name.starts_with(begins)).expect("such a member")
    };
    let changes: [Change<'_>; 9] = [
        (
            "added",
            &|it| it.insert(3, ("notes.txt".to_owned(), b"mine".to_vec())),
            "\"notes.txt\" does not belong to it",
        ),
        (
            "an absolute name",
            &|it| it.insert(3, ("/etc/cron.d/x".to_owned(), b"mine".to_vec())),
            "is not what netaudit writes",
        ),
        ("outside", &|it| it.insert(3, ("../x".to_owned(), b"mine".to_vec())), "is not what netaudit writes"),
        ("removed", &|it| drop(it.remove(place(it, "objects/"))), ".parquet\" is missing"),
        ("renamed", &|it| it[1].0.push('x'), "x\" does not belong to it"),
        ("doubled", &|it| it.insert(2, it[1].clone()), "more than once"),
        ("in another order", &|it| it.swap(1, 2), "in another order"),
        (
            "no manifest",
            &|it| drop(it.remove(place(it, "manifest.json"))),
            "nothing tells what should be there",
        ),
        ("no seal", &|it| drop(it.remove(place(it, "manifest.sha256"))), "manifest.sha256 is missing"),
    ];
    for (what, change, expected) in changes {
        let mut members = members(&bytes)?;
        change(&mut members);
        let found = problems(&packed(&members)?, None)?;
        assert!(found.iter().any(|it| it.contains(expected)), "{what}: {found:?}");
    }
    // A link in the place of a file.
    let mut out = tar::Builder::new(Vec::new());
    for (number, (name, content)) in members(&bytes)?.iter().enumerate() {
        let kind = if number == 1 { tar::EntryType::Symlink } else { tar::EntryType::Regular };
        out.append(&header(name, content.len(), kind)?, &content[..])?;
    }
    let found = problems(&out.into_inner()?, None)?;
    assert!(found.iter().any(|it| it.contains("no plain file")), "{found:?}");

    // Whoever makes all digests fit is noticed by who knows the first one, and where contents contradict each other.
    let forged = |change: &dyn Fn(&mut Value)| -> Result<Vec<u8>> {
        let mut members = members(&bytes)?;
        let place = place(&members, "manifest.json");
        let mut manifest: Value = serde_json::from_slice(&members[place].1)?;
        change(&mut manifest);
        let text = serde_json::to_vec_pretty(&manifest)?;
        let sum = <sha2::Sha256 as sha2::Digest>::digest(&text);
        let sum: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
        members[place].1 = text;
        members[place + 1].1 = format!("{sum}  manifest.json\n").into_bytes();
        packed(&members)
    };
    let renamed = forged(&|it| it["incident"] = json!("another"))?;
    assert_eq!(problems(&renamed, None)?, [""; 0]);
    let found = problems(&renamed, Some(&digest))?;
    assert!(found.len() == 1 && found[0].contains("this is another bundle, or it was changed"), "{found:?}");
    for (key, value, expected) in [
        ("flows", json!(4), "tells of 4 flows, and 5 are there"),
        ("until", json!("2026-01-01T00:03:00Z"), "flows that are not of the window"),
        ("filter", json!({"verdicts": ["denied"]}), "or not what the filter asks for"),
        ("coverage", json!({"nodes": ["node-1"], "gaps": [], "lost": {}}), "tells of other losses"),
        ("complete", json!(true), "contradicts itself"),
        ("columns", json!({"flows": 1, "objects": 1}), "columns are of version 1"),
    ] {
        let found = problems(&forged(&|it| it[key] = value.clone())?, None)?;
        assert!(found.iter().any(|it| it.contains(expected)), "{key}: {found:?}");
    }
    let found = problems(&forged(&|it| it["members"][1]["rows"] = json!(77))?, None)?;
    assert!(found.iter().any(|it| it.contains("should have 77")), "{found:?}");

    // The exit status tells which of the three it is.
    let file = directory.path().join("changed.tar");
    fs::write(&file, &renamed)?;
    let ran = verified(&file, &["--digest", &digest, "--output", "json"]);
    let told: Value = serde_json::from_str(&ran.out)?;
    assert_eq!((ran.status, &told["sound"], &told["incident"]), (1, &json!(false), &json!("another")));
    let other = forged(&|it| it["format"] = json!(9))?;
    fs::write(&file, other)?;
    let ran = verified(&file, &[]);
    assert!(ran.status == 2 && ran.err.contains("format 9"), "{}", ran.err);
    for (name, content) in [("empty", ""), ("text", &*"no tar at all ".repeat(100))] {
        fs::write(directory.path().join(name), content)?;
        let ran = verified(&directory.path().join(name), &[]);
        assert!(ran.status == 2 && ran.err.contains("no bundle of netaudit's"), "{name}: {}", ran.err);
    }
    assert_eq!(verified(&directory.path().join("nowhere"), &[]).status, 2);
    assert_eq!(verified(&directory.path().join("store"), &[]).status, 2);
    Ok(())
}

#[test]
fn what_is_missing_is_told_loudly() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path().join("store");
    fs::create_dir(&store)?;
    let mut writer = Writer::open(&store, "run-a", 0, FOREVER)?;
    writer.seen(&policy("web"), 1);
    writer.listed(2);
    writer.store.tick(t(100), Lost::default());
    writer.store.tick(t(200), Lost { kernel: 2, own: 1 });
    let Writer { store: kept, .. } = writer;
    assert_eq!(kept.finish(t(300), Lost { kernel: 2, own: 1 }, Duration::from_secs(10)), 0);
    let out = |name: &str| directory.path().join(name);
    // Nothing happened, and three records were lost.
    let ran = export(&store, t(10), t(290), &out("lost.tar"), &["--require-complete"]);
    assert_eq!(ran.status, 1, "{}", ran.err);
    assert!(ran.out.contains("0 flows (all)"), "{}", ran.out);
    assert!(
        ran.out
            .contains("\nINCOMPLETE: 3 records were lost in this window\n  3 records were lost on node-1\n"),
        "{}",
        ran.out
    );
    let ran = verified(&out("lost.tar"), &[]);
    assert!(ran.status == 0 && ran.out.contains("INCOMPLETE: 3 records"), "{}{}", ran.out, ran.err);
    unpack(&out("lost.tar"), &out("lost"))?;
    let flows = said(&["flows", "--since", &t(10).to_string(), "--until", &t(290).to_string()], &out("lost"));
    assert_eq!(flows, "0\nnetaudit: 3 records were lost on node-1\n");
    // Of a time that nobody knows there is no bundle.
    let ran = export(&store, t(900_000), t(900_001), &out("none.tar"), &[]);
    assert!(ran.status == 2 && ran.err.contains("nothing is known of this time"), "{}", ran.err);
    // A file that cannot be read.
    let damaged = files::partition(files::hour_of(t(0)));
    let damaged = store.join("flows").join(damaged);
    fs::create_dir_all(&damaged)?;
    fs::write(damaged.join("bad.parquet"), "no Parquet")?;
    let ran = export(&store, t(10), t(90), &out("damaged.tar"), &[]);
    assert!(ran.status == 0 && ran.out.contains("bad.parquet could not be read"), "{}{}", ran.out, ran.err);
    assert!(verified(&out("damaged.tar"), &[]).out.contains("INCOMPLETE"));
    assert!(!out("none.tar").exists());
    let parts = || -> Result<usize> {
        let names = fs::read_dir(directory.path())?.map(|entry| Ok(entry?.file_name()));
        let names = names.collect::<std::io::Result<Vec<_>>>()?;
        Ok(names.iter().filter(|name| name.to_string_lossy().contains(".part")).count())
    };
    assert_eq!(parts()?, 0, "nothing is left of what was not made");
    // What is there stays as it is.
    let before = fs::read(out("lost.tar"))?;
    let ran = export(&store, t(10), t(290), &out("lost.tar"), &[]);
    assert!(ran.status == 2 && ran.err.contains("is there already"), "{}", ran.err);
    assert!(fs::read(out("lost.tar"))? == before && parts()? == 0);
    let ran = export(&store, t(290), t(10), &out("none.tar"), &[]);
    assert!(ran.status == 2 && ran.err.contains("--since is not before --until"), "{}", ran.err);
    let ran = export(&out("nowhere"), t(10), t(290), &out("none.tar"), &[]);
    assert!(ran.status == 2 && ran.err.contains("is no flow store"), "{}", ran.err);
    // Rules' use that is none is told before anything is made.
    let usage = folder(&[("usage.jsonl", "{}\n")]);
    let usage = usage.path().join("usage.jsonl").display().to_string();
    let ran = export(&store, t(10), t(290), &out("none.tar"), &["--usage", &usage]);
    assert!(ran.status == 2 && ran.err.contains(&usage), "{}", ran.err);
    assert!(!out("none.tar").exists() && parts()? == 0);
    Ok(())
}

/// A node whose agent died does not know that a policy has gone since.
#[test]
fn policies_of_the_end_are_those_that_who_still_listened_knew() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let [dead, lives] = ["dead", "lives"].map(|name| directory.path().join(name));
    let mut other = policy_value("web", "21");
    other["metadata"]["name"] = json!("other");
    let other = content(Kind::NetworkPolicy, &other);
    for (node, store, end) in [("node-1", &dead, 100), ("node-2", &lives, 400)] {
        fs::create_dir(store)?;
        let mut writer = Writer::open_on(node, store, node, 0, FOREVER)?;
        writer.seen(&policy("web"), 1);
        writer.seen(&other, 1);
        writer.listed(2);
        if end > 100 {
            writer.deleted(Kind::NetworkPolicy, "db", 200);
        }
        writer.finish(end);
    }
    let policies = |until: i64, name: &str, stores: &[&Path]| -> Result<Vec<(String, bool, usize)>> {
        let out = directory.path().join(name);
        let more: Vec<&str> = stores[1..].iter().filter_map(|store| store.to_str()).collect();
        let ran = export(stores[0], t(0), t(until), &out, &more);
        ensure!(ran.status == 0 && verified(&out, &[]).status == 0, "{}", ran.err);
        let members = members(&fs::read(&out)?)?;
        let (_, manifest) = members.iter().find(|(name, _)| name == "manifest.json").context("a manifest")?;
        let manifest: Value = serde_json::from_slice(manifest)?;
        let told = manifest["policies"].as_array().context("a list")?.iter().map(|it| {
            let changes = it["changes"].as_array().map_or(0, Vec::len);
            (it["policy"].as_str().unwrap_or_default().to_owned(), it["at_end"] == json!(true), changes)
        });
        Ok(told.collect())
    };
    let told = |db: (bool, usize)| {
        [("NetworkPolicy/shop/db".to_owned(), db.0, db.1), ("NetworkPolicy/shop/other".to_owned(), true, 1)]
    };
    assert_eq!(policies(400, "both.tar", &[&dead, &lives])?, told((false, 2)));
    assert_eq!(policies(150, "before.tar", &[&dead, &lives])?, told((true, 1)));
    // Where nobody else is asked, it is the last that is known.
    assert_eq!(policies(400, "dead.tar", &[&dead])?, told((true, 1)));
    Ok(())
}

/// Names and times can be read, and what the objects were like cannot.
#[test]
fn a_history_whose_contents_are_damaged_is_told_as_missing() -> Result<()> {
    let made = Made::new()?;
    let store = made.path("store");
    let path = parquet_files(&store)?.remove(0);
    let (_, metadata, _) = files::open(&path, &OBJECTS)?;
    let columns = metadata.metadata().row_group(0).columns();
    let content = columns.iter().find(|it| it.column_path().string() == "content").context("a column")?;
    let (begin, length) = content.byte_range();
    let mut bytes = fs::read(&path)?;
    bytes[begin as usize..(begin + length) as usize].fill(0xff);
    fs::write(&path, bytes)?;
    let out = made.path("damaged.tar");
    let ran = export(&store, t(0), t(310), &out, &["--require-complete"]);
    assert_eq!(ran.status, 1, "{}", ran.err);
    let said = format!("{} could not be read, what it held is missing", path.display());
    assert_eq!(ran.out.matches(&said).count(), 1, "{}", ran.out);
    let sound = verified(&out, &[]);
    assert!(sound.status == 0 && sound.out.contains(&said), "{}", sound.out);
    Ok(())
}
