//! The state directory and the documents in it: what is written is read, what is torn is set aside, and rows merge.

use std::{fs, sync::Arc, time::Duration};

use netaudit::{
    audit::{
        RuleKey, RunKey,
        usage::{
            Evidence, Row, RowKey, Rows, Run, Schedule, TogetherKey, Touched, Uses, histories, judge, restore,
        },
    },
    model::{Direction, PolicyId, Protocol, Timestamp},
    policy::{Element, Span},
    store::{self, Directory, document},
};
use proptest::prelude::*;

fn rule(hash: u64) -> RuleKey {
    let policy =
        PolicyId { kind: "NetworkPolicy", namespace: "shop".into(), name: "a \"b\"\n\u{fffd}".into() };
    RuleKey { policy: Arc::new(policy), direction: Direction::Egress, hash }
}

fn run_key(run: u8) -> RunKey {
    RunKey { node: format!("node-{}", run % 2).into(), run: format!("run-{run}").into() }
}

fn run(number: u8, written: i64) -> Run {
    Run {
        written: Timestamp(written),
        from: Timestamp(0),
        sequence: number.into(),
        boot: "boot".into(),
        line: 3,
        wall: 5,
        ended: written % 2 == 0,
        losses: 7,
    }
}

prop_compose! {
    fn uses()(matches in 0_u64..50, at in proptest::option::of((0_i64..100, 0_i64..100))) -> Uses {
        let time = |at: i64| Timestamp::from_seconds(at);
        Uses {
            matches,
            first: at.map(|(a, b)| time(a.min(b))),
            last: at.map(|(a, b)| time(a.max(b))),
        }
    }
}

prop_compose! {
    fn row()(
        until in 0_i64..100,
        figures in (0_u64..1_000, 0_u64..1_000, 0_u64..1_000, 0_u64..3, 0_u64..3),
        all in uses(),
        sole in uses(),
        of_elements in (uses(), uses()),
        port in 1_u16..5,
        flags in (any::<bool>(), any::<bool>(), any::<bool>()),
    ) -> Row {
        let net = "10.0.0.0/8".parse().expect("a range");
        let element = |list, index, span| Element { list, index, what: "what".into(), span, except: [net].into() };
        Row {
            from: Timestamp::from_seconds(until / 2),
            until: Timestamp::from_seconds(until),
            index: port.into(),
            current: flags.0,
            observable: flags.1,
            schedule: match figures.3 {
                0 => Schedule::default(),
                1 => Schedule::new(None, Timestamp::MIN),
                _ => Schedule::new(Some(Duration::from_secs(figures.2)), Timestamp(until)),
            },
            possible: flags.2,
            summary: format!("to {port}").into(),
            watched_ms: figures.0,
            selected_ms: figures.1,
            observed_ms: figures.2,
            lost: figures.3,
            unjudged: figures.4,
            uses: all,
            sole,
            elements: [
                (1, (element("to", port.into(), Some(Span::Network(net))), of_elements.0)),
                (2, (element("ports", 0, Some(Span::Ports(80, 90))), of_elements.1)),
                (3, (element("to", 9, Some(Span::Workloads(figures.2 as u32))), of_elements.1)),
            ]
            .into(),
            touched: Touched {
                ports: [(Protocol::Tcp, port)].into(),
                addresses: [format!("10.0.0.{port}").parse().expect("an address")].into(),
                workloads: [("shop".into(), format!("w{port}").into())].into(),
                too_many: [flags.0, false, flags.1],
            },
        }
    }
}

prop_compose! {
    /// Rows with few different keys, so that many meet.
    fn rows()(
        rules in prop::collection::vec(((1_u64..4, 0_u8..3, 0_i64..3), row()), 0..8),
        together in prop::collection::vec(((1_u64..4, 0_u8..3), uses()), 0..4),
        written in 0_i64..9,
    ) -> Rows {
        let mut rows = Rows::default();
        (0..3).for_each(|number| rows.add_run(run_key(number), run(number, written)));
        for ((hash, number, window), row) in rules {
            rows.add(RowKey { rule: rule(hash), run: run_key(number), window: Timestamp::from_seconds(window) }, row);
        }
        for ((hash, number), uses) in together {
            let key = TogetherKey { rules: [rule(hash), rule(9)].into(), run: run_key(number), window: Timestamp(0) };
            rows.add_together(key, uses);
        }
        rows
    }
}

fn merged(of: &[&Rows]) -> Rows {
    let mut all = Rows::default();
    of.iter().for_each(|rows| all.merge((*rows).clone()));
    all
}

proptest! {
    #[test]
    fn rows_merge_in_any_order_and_however_often(a in rows(), b in rows(), c in rows()) {
        prop_assert_eq!(merged(&[&a, &b]), merged(&[&b, &a]));
        prop_assert_eq!(merged(&[&merged(&[&a, &b]), &c]), merged(&[&a, &merged(&[&b, &c])]));
        prop_assert_eq!(merged(&[&a, &b, &a, &b, &b]), merged(&[&a, &b]));
    }

    #[test]
    fn what_is_written_is_read(a in rows()) {
        prop_assert_eq!(document::read(&document::write(&a)).expect("a document"), a);
    }

    #[test]
    fn no_damage_goes_unseen(a in rows(), at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let text = document::write(&a);
        let place = at.index(text.len());
        let mut changed = text.clone();
        changed[place] ^= 1_u8 << bit;
        // What is between the lines means nothing.
        if let Ok(read) = document::read(&changed) {
            prop_assert_eq!(read, a.clone());
        }
        // A file that is cut where a document ends has lost the others, and is not damaged.
        if let Ok(read) = document::read(&text[..place]) {
            prop_assert!(read.runs.len() < a.runs.len() || read == a);
        }
    }
}

#[test]
fn different_keys_add_and_equal_ones_do_not() {
    let figures = Uses { matches: 5, ..Uses::default() };
    let mut rows = Rows::default();
    let of =
        |number: u8, window: i64| RowKey { rule: rule(1), run: run_key(number), window: Timestamp(window) };
    for number in 0..3 {
        rows.add_run(run_key(number), run(number, 1));
    }
    for key in [of(0, 0), of(1, 0), of(2, 0), of(0, 9), of(0, 9)] {
        let row = Row {
            from: Timestamp(0),
            until: Timestamp(1),
            index: 0,
            current: true,
            observable: true,
            schedule: Schedule::default(),
            possible: true,
            summary: "".into(),
            watched_ms: 1,
            selected_ms: 1,
            observed_ms: 1,
            lost: 0,
            unjudged: 0,
            uses: figures,
            sole: figures,
            elements: Default::default(),
            touched: Touched::default(),
        };
        rows.add(key, row);
    }
    assert_eq!(histories(&rows).rules[0].uses.matches, 20);
}

/// Rows of one run with one row, of so many matches.
fn simple(matches: u64, window: i64) -> Rows {
    let mut rows = Rows::default();
    rows.add_run(run_key(0), run(0, window));
    let row = Row {
        from: Timestamp(window),
        until: Timestamp(window),
        index: 0,
        current: true,
        observable: true,
        schedule: Schedule::default(),
        possible: true,
        summary: "".into(),
        watched_ms: 10_000,
        selected_ms: 1,
        observed_ms: 1,
        lost: 0,
        unjudged: 0,
        uses: Uses { matches, ..Uses::default() },
        sole: Uses::default(),
        elements: Default::default(),
        touched: Touched::default(),
    };
    rows.add(RowKey { rule: rule(1), run: run_key(0), window: Timestamp(window) }, row);
    rows
}

#[test]
fn a_state_directory_gives_back_what_it_was_given() {
    let temporary = tempfile::tempdir().expect("a directory");
    let path = temporary.path().join("deep/state");
    let (mut directory, found) = Directory::open(&path).expect("made");
    assert_eq!(found.rows, Rows::default());
    directory.write(0, Timestamp(-5), &simple(1, -5)).expect("written");
    directory.write(0, Timestamp(5), &simple(2, 5)).expect("written");
    directory.write(0, Timestamp(5), &simple(3, 5)).expect("written again");
    assert_eq!(directory.files().len(), 2);
    let (_, found) = Directory::open(&path).expect("opened");
    assert_eq!(found.rows, merged(&[&simple(1, -5), &simple(3, 5)]));
    assert_eq!(store::read(&path).expect("read"), found.rows);
    assert!(found.damaged.is_empty());
}

#[test]
fn what_is_torn_is_kept_aside_and_the_rest_is_read() {
    let temporary = tempfile::tempdir().expect("a directory");
    let (mut directory, _) = Directory::open(temporary.path()).expect("opened");
    for window in 1..4 {
        directory.write(0, Timestamp(window), &simple(1, window)).expect("written");
    }
    let files = directory.files();
    let text = fs::read(&files[1]).expect("read");
    fs::write(&files[1], &text[..text.len() / 2]).expect("torn");
    fs::write(&files[2], b"").expect("emptied");
    fs::write(temporary.path().join(".usage-9.jsonl.new"), b"{").expect("half written");
    let (_, found) = Directory::open(temporary.path()).expect("opened");
    assert_eq!(found.damaged.len(), 2);
    assert!(found.damaged[1].reason.contains("empty"), "{:?}", found.damaged);
    assert!(found.damaged[0].reason.contains("ends in the middle"), "{:?}", found.damaged);
    assert_eq!(fs::read(&found.damaged[0].kept_as).expect("kept"), &text[..text.len() / 2]);
    assert_eq!(found.rows, simple(1, 1));
    assert!(!temporary.path().join(".usage-9.jsonl.new").exists());
    let (_, found) = Directory::open(temporary.path()).expect("opened again");
    assert!(found.damaged.is_empty(), "told once");
}

#[test]
fn one_file_that_cannot_be_read_at_all_does_not_keep_the_agent_from_starting() {
    let temporary = tempfile::tempdir().expect("a directory");
    let (mut directory, _) = Directory::open(temporary.path()).expect("opened");
    directory.write(0, Timestamp(1), &simple(1, 1)).expect("written");
    // As an I/O error of a dying disk: reading fails, whoever asks.
    fs::create_dir(temporary.path().join("usage-9.jsonl")).expect("made");
    let (_, found) = Directory::open(temporary.path()).expect("opened");
    assert_eq!(found.rows, simple(1, 1));
    let [damaged] = &found.damaged[..] else { panic!("{:?}", found.damaged) };
    assert!(damaged.reason.starts_with("it cannot be read: "), "{}", damaged.reason);
    assert!(damaged.kept_as.ends_with("usage-9.jsonl.damaged-1"), "{:?}", damaged.kept_as);
}

#[test]
fn an_old_file_that_cannot_be_removed_is_tried_again() {
    let temporary = tempfile::tempdir().expect("a directory");
    let (mut directory, _) = Directory::open(temporary.path()).expect("opened");
    for window in 0..5 {
        directory.write(0, Timestamp(window), &simple(1, window)).expect("written");
    }
    let oldest = directory.files().remove(0);
    fs::remove_file(&oldest).expect("removed");
    fs::create_dir(&oldest).expect("made");
    directory.prune(Duration::from_secs(5)).expect_err("a directory is no file");
    fs::remove_dir(&oldest).expect("removed");
    directory.prune(Duration::from_secs(5)).expect("pruned");
    assert_eq!(fs::read_dir(temporary.path()).expect("listed").count(), 1, "none is left behind");
}

#[test]
fn figures_that_cannot_be_are_borne() {
    let mut rows = simple(u64::MAX, 1);
    let mut row = rows.rules.values().next().expect("a row").clone();
    row.watched_ms = u64::MAX;
    row.selected_ms = u64::MAX;
    row.observed_ms = u64::MAX;
    for window in [i64::MIN, 0, i64::MAX - 1] {
        let mut row = row.clone();
        (row.from, row.until) = (Timestamp(window), Timestamp(window.saturating_add(i64::MAX)));
        rows.add(RowKey { rule: rule(1), run: run_key(0), window: Timestamp(window) }, row);
    }
    let extreme =
        Run { from: Timestamp(i64::MIN), line: i64::MIN, wall: i64::MAX, ended: true, ..run(0, i64::MAX) };
    rows.add_run(run_key(0), extreme);
    let needs = Evidence { window: Duration::from_secs(1), coverage: 0.5 };
    let read = document::read(&document::write(&rows)).expect("a document");
    let histories = histories(&read);
    assert_eq!(judge(&histories, &needs).len(), 1);
    // And by an agent that finds them in its state directory.
    let begins = Run { line: i64::MAX, wall: i64::MIN, ..run(2, 0) };
    assert_eq!(restore(read, &run_key(2), &begins, true).histories.len(), 1);
}

#[test]
fn old_files_go_by_the_time_that_they_tell_of() {
    let temporary = tempfile::tempdir().expect("a directory");
    let (mut directory, _) = Directory::open(temporary.path()).expect("opened");
    for window in 0..10 {
        directory.write(0, Timestamp(window), &simple(1, window)).expect("written");
    }
    // Each tells of ten seconds.
    directory.prune(Duration::from_secs(35)).expect("pruned");
    assert_eq!(directory.files().len(), 4);
    let (_, found) = Directory::open(temporary.path()).expect("opened");
    assert_eq!(found.rows.rules.keys().next().map(|key| key.window), Some(Timestamp(6)));
}

#[test]
fn what_a_cron_job_needs_stays_when_all_else_of_its_time_goes() {
    let temporary = tempfile::tempdir().expect("a directory");
    let (mut directory, _) = Directory::open(temporary.path()).expect("opened");
    let key = |number, window| RowKey { rule: rule(number), run: run_key(0), window: Timestamp(window) };
    let hour = Duration::from_secs(3_600);
    for window in 0..10 {
        // Each tells of an hour: of a rule that everybody uses, and of two for a CronJob, of which one is never needed alone.
        let mut rows = simple(1, window);
        let row = rows.rules.get_mut(&key(1, window)).expect("a row");
        row.watched_ms = 3_600_000;
        let of_cron_job = Schedule::new(Some(4 * hour), Timestamp::MIN);
        let row = Row { schedule: of_cron_job, ..row.clone() };
        rows.add(key(2, window), row.clone());
        rows.add(key(3, window), row);
        for others in [[2, 3], [1, 4]] {
            let rules = others.map(rule).into();
            rows.add_together(
                TogetherKey { rules, run: run_key(0), window: Timestamp(window) },
                Uses::default(),
            );
        }
        directory.write(0, Timestamp(window), &rows).expect("written");
    }
    let windows = |rows: &Rows, number| {
        let of_rule = rows.rules.keys().filter(|key| key.rule == rule(number));
        of_rule.map(|key| key.window.0).collect::<Vec<_>>()
    };
    // Four hours, a tenth of them and one.
    for _ in 0..2 {
        directory.prune(2 * hour).expect("pruned");
        let (_, found) = Directory::open(temporary.path()).expect("opened");
        assert!(found.damaged.is_empty(), "{:?}", found.damaged);
        assert_eq!(windows(&found.rows, 1), [8, 9]);
        assert_eq!(windows(&found.rows, 2), [4, 5, 6, 7, 8, 9]);
        assert_eq!(windows(&found.rows, 3), [4, 5, 6, 7, 8, 9]);
        assert_eq!(found.rows.together.len(), 2 + 6);
    }
    // Opened again, and as time goes on.
    let (mut directory, _) = Directory::open(temporary.path()).expect("opened");
    directory.write(0, Timestamp(10), &simple(1, 10)).expect("written");
    directory.prune(Duration::from_secs(10)).expect("pruned");
    let (_, found) = Directory::open(temporary.path()).expect("opened");
    assert_eq!((windows(&found.rows, 1), windows(&found.rows, 2)), (vec![10], vec![4, 5, 6, 7, 8, 9]));
}

#[test]
fn an_old_file_that_cannot_be_read_any_more_keeps_no_other_from_going() {
    let temporary = tempfile::tempdir().expect("a directory");
    let (mut directory, _) = Directory::open(temporary.path()).expect("opened");
    let hour = Duration::from_secs(3_600);
    for window in 0..10 {
        let mut rows = simple(1, window);
        for row in rows.rules.values_mut() {
            row.watched_ms = 3_600_000;
            row.schedule = Schedule::new(Some(4 * hour), Timestamp::MIN);
        }
        directory.write(0, Timestamp(window), &rows).expect("written");
    }
    let files = directory.files();
    // Somebody has removed one, and a disk has lost another.
    for file in [&files[7], &files[6]] {
        fs::remove_file(file).expect("removed");
    }
    fs::create_dir(&files[6]).expect("made");
    directory.prune(2 * hour).expect("pruned");
    // Four hours, a tenth of them and one; what is gone tells of none any more.
    assert_eq!(directory.files(), [3, 4, 5, 6, 8, 9].map(|place: usize| files[place].clone()));
    assert!(!files[2].exists() && files[3].exists());
}

#[test]
fn a_cron_job_that_never_runs_is_written_too() {
    let mut rows = simple(1, 1);
    for row in rows.rules.values_mut() {
        row.schedule = Schedule::new(Some(Duration::ZERO), Timestamp(7));
    }
    assert_eq!(document::read(&document::write(&rows)).expect("a document"), rows);
}

#[test]
fn what_cannot_be_read_is_said_with_its_place() {
    let says = |text: &str| document::read(text.as_bytes()).expect_err("wrong").to_string();
    assert!(says("not JSON\n").starts_with("line 1: the first line of a document of usage is expected here"));
    let text = String::from_utf8(document::write(&simple(1, 1))).expect("text");
    assert!(says(&text.replace("\"version\":1", "\"version\":2")).contains("not usage of version 1"));
    assert!(says(&text.replace("\"matches\":1", "\"matches\":2")).contains("line 3: the digest"));
    assert!(
        says(&text.replace("\"NetworkPolicy\"", "\"Nonsense\"")).contains("line 2: unknown kind of policy")
    );
}

/// A run of node 0 that watched from one second to another of its own line, and when it was watched, on the wall clock.
fn of_run(rows: &mut Rows, number: u8, boot: &str, (from, until): (i64, i64), (line, wall): (i64, i64)) {
    let seconds = |time: i64| time * 1_000_000_000;
    let key = RunKey { node: "node-0".into(), run: format!("run-{number}").into() };
    let told = Run {
        from: Timestamp(seconds(from)),
        boot: boot.into(),
        line: seconds(line),
        wall: seconds(wall),
        ..run(number, seconds(until))
    };
    rows.add_run(key.clone(), told);
    let mut one = simple(1, 0).rules.into_values().next().expect("a row");
    (one.from, one.until) = (Timestamp(seconds(from)), Timestamp(seconds(until)));
    rows.add(RowKey { rule: rule(1), run: key, window: Timestamp(0) }, one);
}

#[test]
fn what_was_before_a_clock_that_was_set_back_is_no_evidence_and_what_was_used_stays_used() {
    let since = |first: (&str, (i64, i64), (i64, i64)), second: (&str, (i64, i64), (i64, i64))| {
        let mut rows = Rows::default();
        of_run(&mut rows, 1, first.0, first.1, first.2);
        of_run(&mut rows, 2, second.0, second.1, second.2);
        let histories = histories(&rows);
        assert_eq!(histories.rules[0].uses.matches, 2);
        histories.rules[0].observed_since().map(|at| at.0 / 1_000_000_000)
    };
    let right = (0, 0);
    assert_eq!(since(("a", (1_000, 2_000), right), ("b", (2_500, 3_000), right)), Some(1_000));
    assert_eq!(since(("a", (1_000, 2_000), right), ("b", (1_500, 3_000), right)), Some(1_500));
    // In one boot the time since boot tells, whatever the wall clock was: the last one is taken for right.
    assert_eq!(since(("a", (1_000, 2_000), (0, 0)), ("a", (5_100, 5_200), (3_000, 3_000))), Some(4_000));
    assert_eq!(since(("a", (1_000, 2_000), (0, 0)), ("a", (2_100, 2_200), (0, -900))), Some(100));
}
