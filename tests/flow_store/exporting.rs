//! Many flows in a bundle of evidence, rules' use with them, and a disk that is full.

use std::fs;

use netaudit::{
    audit::{
        RunKey,
        usage::{Rows as Usage, Run},
    },
    store::{
        bundle::{Asked, Bundle, Flows, add_history},
        document,
    },
};

use super::*;
use crate::{
    history::exporting::{export, unpack, verified},
    lab::Mounted,
};

#[test]
fn a_bundle_has_every_field_of_every_flow() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path().join("store");
    let made = Made::new(1_000);
    let mut segments = made.segments(&store, 300)?;
    // Three are files by then, and the last one is still in the log.
    let last = segments.split_off(3);
    rolled(&store, segments)?.commit()?;
    let usage = directory.path().join("usage.jsonl");
    let mut rows = Usage::default();
    let run = Run {
        written: t(1),
        from: t(0),
        sequence: 1,
        boot: "boot".into(),
        line: 1,
        wall: 1,
        ended: true,
        losses: 0,
    };
    rows.runs.insert(RunKey { node: "node-1".into(), run: "run".into() }, run);
    fs::write(&usage, document::write(&rows))?;
    let usage = usage.display().to_string();
    let bundle = directory.path().join("inc.tar");
    let until = Timestamp(last[0].mark.until.0 + 1_000);
    let ran = export(&store, made.flows[0].observation.at, until, &bundle, &["--usage", &usage]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    // They have no history here.
    assert!(
        ran.out.contains("1000 flows") && ran.out.contains("there is no history of the objects of run "),
        "{}",
        ran.out
    );
    let sound = verified(&bundle, &[]);
    assert_eq!(sound.status, 0, "{}", sound.out);
    let unpacked = directory.path().join("unpacked");
    unpack(&bundle, &unpacked)?;
    let (lines, scanned) = found(&unpacked, &Filter::default())?;
    assert_same(&lines, &made.lines()?, "unpacked");
    assert!(scanned.unreadable.is_empty() && scanned.coverage.lost.is_empty(), "{scanned:?}");
    assert_eq!(document::read(&fs::read(unpacked.join("usage.jsonl"))?)?, rows);
    let denied = Filter { verdicts: vec!["denied".to_owned()], ..Filter::default() };
    let (expected, _) = found(&store, &denied)?;
    let (lines, _) = found(&unpacked, &denied)?;
    assert_same(&lines, &expected, "filtered");
    assert!(!lines.is_empty());
    Ok(())
}

/// A bundle of a store of which some hundred flows are in memory at once.
fn in_parts(store: &Path, bundle: &Path, window: (Timestamp, Timestamp)) -> Result<String> {
    let stores = [store.to_owned().into()];
    let filter = Filter { from: Some(window.0), until: Some(window.1), ..Filter::default() };
    let (mut bundle, mut flows) = (Bundle::create(bundle)?, Flows::within(100));
    let scanned = ask::scan_in_order(&stores, &filter, ask::Columns::All, &|_, _| {}, &mut |batch| {
        flows.take(&mut bundle, batch)?;
        Ok(ControlFlow::Continue(()))
    })?;
    let flows = flows.finish(&mut bundle, &scanned.marks, window)?;
    let history = add_history(&mut bundle, &stores, window, &flows)?;
    let (since, until) = window;
    let asked = Asked { incident: "INC-8".into(), since, until, filter, stores: Vec::new(), now: t(0) };
    Ok(bundle.finish(asked, &scanned, flows, history)?.1)
}

#[test]
fn an_hour_that_does_not_fit_into_memory_is_packed_in_parts_and_always_the_same() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path().join("store");
    let made = Made::new(1_000);
    let segments = made.segments(&store, 300)?;
    let window = (made.flows[0].observation.at, Timestamp(segments[3].mark.until.0 + 1_000));
    let [one, other] = ["one.tar", "other.tar"].map(|name| directory.path().join(name));
    assert_eq!(in_parts(&store, &one, window)?, in_parts(&store, &other, window)?, "the same seal");
    let whole = directory.path().join("whole.tar");
    assert_eq!(export(&store, window.0, window.1, &whole, &[]).status, 0);
    assert_eq!(verified(&one, &[]).status, 0);
    let files = |bundle: &Path, to: &str| -> Result<usize> {
        let to = directory.path().join(to);
        unpack(bundle, &to)?;
        let (lines, scanned) = found(&to, &Filter::default())?;
        assert_same(&lines, &made.lines()?, "unpacked");
        assert!(scanned.unreadable.is_empty(), "{scanned:?}");
        Ok(parquet_files(&to)?.len())
    };
    assert!(files(&one, "parts")? > files(&whole, "at once")?, "it was written in parts");
    Ok(())
}

#[test]
fn a_full_disk_leaves_no_half_of_a_bundle() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED a full disk: not root");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let store = directory.path().join("store");
    let made = Made::new(1_000);
    let segments = made.segments(&store, 1_000)?;
    let window = (made.flows[0].observation.at, segments[0].mark.until);
    let whole = directory.path().join("whole.tar");
    assert_eq!(export(&store, window.0, window.1, &whole, &[]).status, 0);
    let bytes = fs::metadata(&whole)?.len();
    for size in [4_096, bytes / 2, bytes - 4_096] {
        let options = std::ffi::CString::new(format!("size={size}"))?;
        let small = Mounted::new(c"tmpfs", Some(&options)).context("root mounts a small file system")?;
        let ran = export(&store, window.0, window.1, &small.path().join("inc.tar"), &[]);
        assert_eq!(ran.status, 2, "{}", ran.out);
        assert!(ran.err.contains("cannot write") && ran.err.contains("No space left"), "{}", ran.err);
        assert_eq!(fs::read_dir(small.path())?.count(), 0, "of {size} bytes nothing is left");
    }
    Ok(())
}

#[test]
fn a_bundle_of_an_address_where_addresses_are_hashed_is_not_complete() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path().join("store");
    let (made, segments) = privacy::hashed(&store)?;
    let until = Timestamp(segments[segments.len() - 1].mark.until.0 + 1_000);
    rolled(&store, segments)?.commit()?;
    let bundle = directory.path().join("inc.tar");
    let more = ["--address", "203.0.113.9"];
    let ran = export(&store, made.flows[0].observation.at, until, &bundle, &more);
    assert!(ran.status == 0 && ran.out.contains("give the secret with --hash-key"), "{}{}", ran.out, ran.err);
    let strict = directory.path().join("strict.tar");
    let more = ["--address", "203.0.113.9", "--require-complete"];
    assert_eq!(export(&store, made.flows[0].observation.at, until, &strict, &more).status, 1);
    Ok(())
}
