//! What can go wrong with files and disks.

use std::{collections::BTreeMap, fs, io, path::Path};

use netaudit::store::flows::segment;

use super::*;
use crate::lab::Mounted;

#[test]
fn a_log_that_is_torn_anywhere_keeps_what_is_whole() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let made = Made::new(90);
    let closed = made.segments(directory.path(), 90)?.remove(0);
    let whole = fs::read(&closed.path)?;
    let copy = directory.path().join("torn.arrow");
    let mut before = 0;
    for length in (0..=whole.len()).step_by(101).chain([whole.len() - 1, whole.len()]) {
        fs::write(&copy, &whole[..length])?;
        let rows = match segment::read(&copy, &FLOWS) {
            Ok(content) => content.batches.iter().map(arrow::array::RecordBatch::num_rows).sum(),
            // The head with the columns is torn: nothing was in it.
            Err(_) if before == 0 => 0,
            Err(error) => anyhow::bail!("{length} of {}: {error:#}", whole.len()),
        };
        assert!(rows >= before && rows % 30 == 0, "{rows} rows after {before}, of {length} bytes");
        before = rows;
    }
    assert_eq!(before, 90);
    // What was never written may come back as zeros, or as anything.
    for rest in [[0_u8; 64].as_slice(), &[0xff; 64], b"something else"] {
        fs::write(&copy, [&whole, rest].concat())?;
        let rows = segment::read(&copy, &FLOWS)?
            .batches
            .iter()
            .map(arrow::array::RecordBatch::num_rows)
            .sum::<usize>();
        assert_eq!(rows, 90);
    }
    Ok(())
}

#[test]
fn what_a_crash_leaves_of_a_commit_is_ended() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (before, after) = (directory.path().join("before"), directory.path().join("after"));
    let made = Made::new(1_000);
    let segments = made.segments(&after, 500)?;
    let open = files::open_directory(&after);
    copy(&open, &files::open_directory(&before))?;
    rolled(&after, segments)?.commit()?;
    let done = parquet_files(&after)?;
    let lines = made.lines()?;
    // How many files were renamed and segments removed when it ended.
    for (renamed, removed) in [(0, 0), (1, 0), (done.len(), 0), (done.len(), 1), (done.len(), 4)] {
        let store = directory.path().join(format!("crash-{renamed}-{removed}"));
        let open = files::open_directory(&store);
        copy(&files::open_directory(&before), &open)?;
        let mut commit = BTreeMap::from([("files", Vec::new()), ("segments", Vec::new())]);
        for (number, file) in done.iter().enumerate() {
            let (part, to) = (open.join(format!("{number}.part")), store.join(file.strip_prefix(&after)?));
            fs::create_dir_all(to.parent().context("a directory")?)?;
            fs::copy(file, if number < renamed { &to } else { &part })?;
            commit.entry("files").or_default().push(serde_json::json!([part, to]));
        }
        let mut left: Vec<_> =
            fs::read_dir(&open)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        left.retain(|path| path.extension().is_some_and(|it| it == "arrow" || it == "json"));
        left.sort();
        let segments = left.iter().filter(|path| path.extension().is_some_and(|it| it == "arrow"));
        commit.entry("segments").or_default().extend(segments.map(|path| serde_json::json!(path)));
        for path in left.iter().take(removed) {
            fs::remove_file(path)?;
        }
        fs::write(open.join("commit.json"), serde_json::to_vec(&commit)?)?;
        // Whoever asks meanwhile may be told that a part is missing; never a flow twice.
        let (during, _) = found(&store, &Filter::default())?;
        let numbers: std::collections::BTreeSet<u64> = during.iter().map(number).collect();
        assert_eq!(numbers.len(), during.len(), "{renamed} renamed, {removed} removed");
        Roller::new(&store, &FLOWS)?;
        let (found, _) = found(&store, &Filter::default())?;
        assert_same(&found, &lines, &format!("{renamed} renamed, {removed} removed"));
        assert_eq!(fs::read_dir(&open)?.count(), 0);
    }
    // One that was not written to its end is none.
    let store = directory.path().join("torn");
    copy(&files::open_directory(&before), &files::open_directory(&store))?;
    fs::write(files::open_directory(&store).join("commit.json"), b"{\"files\":[[\"")?;
    fs::write(files::open_directory(&store).join("left.part"), b"PAR1")?;
    Roller::new(&store, &FLOWS)?;
    assert_same(&found(&store, &Filter::default())?.0, &lines, "a torn commit");
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        fs::copy(&path, to.join(path.file_name().context("a name")?))?;
    }
    Ok(())
}

#[test]
fn a_damaged_file_is_named_and_the_others_are_read() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let made = Made::new(1_000);
    rolled(store, made.segments(store, 500)?)?.commit()?;
    let files = parquet_files(store)?;
    let all = found(store, &Filter::default())?.0.len();
    // The end, where the columns are listed; nothing at all; another program's file.
    for (bytes, reason) in [
        (fs::read(&files[0])?[..2_000].to_vec(), "damaged"),
        (Vec::new(), "damaged"),
        (b"PAR1 and nothing of ours PAR1".to_vec(), "damaged"),
    ] {
        let whole = fs::read(&files[0])?;
        fs::write(&files[0], bytes)?;
        let (lines, scanned) = found(store, &Filter::default())?;
        let [(path, said)] = scanned.unreadable.as_slice() else { anyhow::bail!("{scanned:?}") };
        assert_eq!(path, &files[0]);
        assert!(said.contains(reason), "{said}");
        assert!(!lines.is_empty() && lines.len() < all);
        fs::write(&files[0], whole)?;
    }
    // In the middle: pages.
    let mut bytes = fs::read(&files[0])?;
    let middle = bytes.len() / 3;
    bytes[middle..middle + 400].fill(0xa5);
    fs::write(&files[0], bytes)?;
    let (lines, scanned) = found(store, &Filter::default())?;
    assert_eq!(scanned.unreadable.len(), 1, "{scanned:?}");
    assert!(lines.len() < all);
    Ok(())
}

#[test]
fn only_one_agent_writes_a_store() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let first = open(directory.path(), FOREVER)?;
    let refused = open(directory.path(), FOREVER).err().context("refused")?;
    assert!(format!("{refused:#}").contains("another agent writes the flow store"), "{refused:#}");
    assert_eq!(first.finish(t(1), Lost::default(), Duration::from_secs(5)), 0);
    eventually("release of the lock", || Ok(open(directory.path(), FOREVER).is_ok()))
}

#[test]
fn what_is_too_old_or_too_much_is_removed_the_oldest_first() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let made = Made::new(1_000);
    rolled(store, made.segments(store, 1_000)?)?.commit()?;
    let listed = files::list(store, &FLOWS)?;
    assert_eq!(listed.len(), 4);
    let room = listed[2..].iter().map(|file| file.bytes).sum();
    let kept = open(store, Retention { bytes: room, ..FOREVER })?;
    eventually("removal", || Ok(files::list(store, &FLOWS)?.len() == 2))?;
    assert_eq!(files::list(store, &FLOWS)?, listed[2..], "the newest are kept");
    assert!(!listed[0].path.parent().context("a partition")?.exists(), "empty partitions go too");
    eventually("count", || Ok(kept.counts().removed == 2 && kept.counts().files == 2))?;
    assert_eq!(kept.finish(t(1), Lost::default(), Duration::from_secs(5)), 0);
    // All of it is of 1970.
    eventually("the lock", || {
        Ok(open(store, Retention { age: Duration::from_secs(3_600), bytes: u64::MAX }).is_ok())
    })?;
    eventually("removal by age", || Ok(files::list(store, &FLOWS)?.is_empty()))
}

#[test]
fn a_full_disk_is_said_and_counted_and_nothing_that_was_written_suffers() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED a full disk: not root");
        return Ok(());
    }
    let disk = Mounted::new(c"tmpfs", Some(c"size=3145728"))?;
    let store = disk.path().join("store");
    let made = Made::new(2_000);
    let mut kept = open(&store, FOREVER)?;
    let ballast = disk.path().join("ballast");
    let mut handed = 0;
    let mut give = |kept: &mut FlowStore, lost: u64| {
        for flow in &made.flows[..500] {
            let flow = Flow {
                id: netaudit::audit::FlowId { sequence: handed + 1, ..flow.id.clone() },
                ..flow.clone()
            };
            kept.push(&made.telling(&flow));
            handed += 1;
        }
        kept.tick(t(handed as i64), Lost { kernel: 0, own: lost });
    };
    give(&mut kept, 0);
    eventually("the first flows", || Ok(kept.done() == 500))?;
    assert_eq!((kept.counts().lost, kept.failing()), (0, None));
    // Somebody fills the disk.
    let mut bytes = 3 << 20;
    while bytes > 4_096 {
        if fs::write(&ballast, vec![7_u8; bytes]).is_ok() {
            break;
        }
        bytes -= 4_096;
    }
    give(&mut kept, 0);
    eventually("a loss", || Ok(kept.counts().lost == 500))?;
    let fault = kept.failing().context("a fault")?;
    assert!(fault.contains("No space left on device"), "{fault}");
    // And makes room again.
    fs::remove_file(&ballast)?;
    let lost = kept.counts().lost;
    give(&mut kept, lost);
    eventually("an end of the fault", || Ok(kept.done() == 1_500 && kept.failing().is_none()))?;
    give(&mut kept, lost);
    assert_eq!(kept.finish(t(2_000), Lost { kernel: 0, own: lost }, Duration::from_secs(10)), 500);
    let (lines, scanned) = found(&store, &Filter::default())?;
    let numbers: Vec<u64> = lines.iter().map(number).collect();
    assert_eq!(numbers, (1..=500).chain(1_001..=2_000).collect::<Vec<_>>(), "all others are there");
    let said = scanned.coverage.sentences().join("; ");
    assert!(said.contains("500 records were lost on node-1"), "{said}");
    Ok(())
}

/// Segments that follow one another without a gap.
fn contiguous(made: &Made, store: &Path, rows: usize) -> Result<Vec<segment::Closed>> {
    let mut segments = made.segments(store, rows)?;
    for place in 1..segments.len() {
        segments[place].mark.from = segments[place - 1].mark.until;
    }
    Ok(segments)
}

#[test]
fn what_lay_between_two_segments_is_missing_and_not_taken_for_watched() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let made = Made::new(900);
    let whole = directory.path().join("whole");
    rolled(&whole, contiguous(&made, &whole, 300)?)?.commit()?;
    let (_, scanned) = found(&whole, &Filter::default())?;
    assert!(scanned.coverage.is_complete(), "{:?}", scanned.coverage);
    // The one in the middle could not be read.
    let holed = directory.path().join("holed");
    let mut segments = contiguous(&made, &holed, 300)?;
    let lost = segments.remove(1);
    segment::remove(&lost.path)?;
    let files = {
        let mut roller = rolled(&holed, segments)?;
        roller.commit()?
    };
    assert_eq!(files.len(), parquet_files(&holed)?.len(), "who keeps files is told of all of them");
    let (lines, scanned) = found(&holed, &Filter::default())?;
    assert_eq!(lines.len(), 600);
    let gaps: Vec<_> = scanned.coverage.gaps.iter().map(|gap| (gap.from, gap.until)).collect();
    assert_eq!(gaps, [(lost.mark.from, lost.mark.until)]);
    Ok(())
}

/// Whatever removed it: retention, a bucket's lifecycle, somebody.
#[test]
fn of_an_hour_whose_file_is_gone_no_other_file_speaks() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let made = Made::new(1_000);
    // One commit of several hours.
    rolled(store, contiguous(&made, store, 1_000)?)?.commit()?;
    let all = files::list(store, &FLOWS)?;
    assert!(all.len() > 3, "{all:?}");
    let (_, scanned) = found(store, &Filter::default())?;
    assert!(scanned.coverage.is_complete(), "{:?}", scanned.coverage);
    let hour = |number: i64| Timestamp::from_seconds(number * 3_600);
    fs::remove_file(&all[1].path)?;
    let (_, scanned) = found(store, &Filter::default())?;
    let gaps: Vec<_> = scanned.coverage.gaps.iter().map(|gap| (gap.from, gap.until)).collect();
    assert_eq!(gaps, [(hour(all[1].hour), hour(all[1].hour + 1))]);
    // The last minutes of the hour that was removed.
    let end = Filter {
        from: Some(Timestamp(hour(all[1].hour + 1).0 - 60_000_000_000)),
        until: Some(hour(all[1].hour + 1)),
        ..Filter::default()
    };
    let (lines, scanned) = found(store, &end)?;
    assert!(lines.is_empty() && !scanned.coverage.is_complete(), "{:?}", scanned.coverage);
    Ok(())
}
