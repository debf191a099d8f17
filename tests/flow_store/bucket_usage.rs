//! What is known of rules' use goes into the bucket too, and is read there as it is from state directories.

use netaudit::{
    audit::{
        RuleKey, RunKey,
        usage::{Row, RowKey, Rows, Run, Schedule, Touched, Uses},
    },
    model::{Direction, PolicyId},
    store::{
        self, Directory,
        usage_upload::{self, UsageUploads},
    },
};

use super::{
    bucket::{netaudit, said},
    s3::{KEY, S3, SECRET},
    *,
};

const URL: &str = "s3://flows/cluster";
const SOON: Duration = Duration::from_millis(100);

/// What a node knows of a window.
fn rows(node: &str, window: i64, matches: u64) -> Rows {
    let run = RunKey { node: node.into(), run: format!("{node}-1").into() };
    let policy = PolicyId { kind: "NetworkPolicy", namespace: "shop".into(), name: "db".into() };
    let rule = RuleKey { policy: Arc::new(policy), direction: Direction::Ingress, hash: 7 };
    let at = Timestamp::from_seconds;
    let row = Row {
        from: at(window),
        until: at(window + 60),
        index: 0,
        current: true,
        observable: true,
        schedule: Schedule::default(),
        possible: true,
        summary: "from app=web".into(),
        watched_ms: 60_000,
        selected_ms: 60_000,
        observed_ms: 60_000,
        lost: 0,
        unjudged: 0,
        uses: Uses { matches, first: None, last: None },
        sole: Uses::default(),
        elements: Default::default(),
        touched: Touched::default(),
    };
    let told = Run {
        written: at(window + 60),
        from: at(0),
        sequence: 1,
        boot: "boot".into(),
        line: 0,
        wall: 0,
        ended: false,
        losses: 0,
    };
    let mut rows = Rows::default();
    rows.add(RowKey { rule, run: run.clone(), window: at(window) }, row);
    rows.add_run(run, told);
    rows
}

fn matches(rows: &Rows) -> u64 {
    rows.rules.values().map(|row| row.uses.matches).sum()
}

#[test]
fn the_use_of_rules_is_in_the_bucket_as_it_is_in_the_state_directories() -> Result<()> {
    let Some(weed) = weed_or_skip("usage in a bucket") else { return Ok(()) };
    let temporary = tempfile::tempdir()?;
    let server = S3::start(&weed, &temporary.path().join("s3"))?;
    let bucket = server.open(URL)?;
    let error = format!("{:#}", usage_upload::read(&bucket).expect_err("there is none"));
    assert!(error.contains("s3://flows/cluster holds no usage"), "{error}");
    let mut uploads = Vec::new();
    for node in ["node-1", "node-2"] {
        let path = temporary.path().join(node);
        let (mut directory, _) = Directory::open(&path)?;
        for window in 0..4 {
            directory.write(1, Timestamp::from_seconds(window * 60), &rows(node, window * 60, 5))?;
        }
        uploads.push((directory, UsageUploads::start_with(path, node, server.open(URL)?, SOON)?));
    }
    let in_bucket = || usage_upload::read(&bucket).map_or(0, |rows| matches(&rows));
    eventually("upload", || Ok(in_bucket() == 40))?;
    // The window that goes on comes again; one that was thinned stays as it was.
    let (directory, _) = &mut uploads[0];
    directory.write(1, Timestamp::from_seconds(180), &rows("node-1", 180, 9))?;
    directory.write(1, Timestamp::from_seconds(0), &rows("node-1", 0, 1))?;
    eventually("the window that goes on", || Ok(in_bucket() == 44))?;
    let endpoint = ["usage", URL, "--window", "1m", "--output", "rows"];
    let output = netaudit(server.port(), SECRET, &endpoint)?;
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(matches(&store::document::read(&output.stdout)?), 44);
    // What was written last is there when the agent has ended.
    let (mut directory, ended) = uploads.swap_remove(0);
    directory.write(1, Timestamp::from_seconds(240), &rows("node-1", 240, 100))?;
    ended.finish(Duration::from_secs(30));
    assert_eq!(in_bucket(), 144);
    // The next run uploads what this one had no time for, and nothing that is there.
    directory.write(1, Timestamp::from_seconds(300), &rows("node-1", 300, 1_000))?;
    let again = UsageUploads::start_with(temporary.path().join("node-1"), "node-1", server.open(URL)?, SOON)?;
    eventually("the next run", || Ok(in_bucket() == 1_144))?;
    again.finish(Duration::from_secs(30));
    Ok(())
}

#[test]
fn a_bucket_that_is_down_is_told_and_gets_everything_later() -> Result<()> {
    let Some(weed) = weed_or_skip("usage and a bucket that is down") else { return Ok(()) };
    let temporary = tempfile::tempdir()?;
    let server = S3::start(&weed, &temporary.path().join("s3"))?;
    let path = temporary.path().join("state");
    let (mut directory, _) = Directory::open(&path)?;
    directory.write(1, Timestamp::from_seconds(0), &rows("node-1", 0, 5))?;
    // Nobody has made it yet.
    let missing = server.open("s3://later/x")?;
    let uploads = UsageUploads::start_with(path, "node-1", missing.clone(), SOON)?;
    eventually("a failure", || Ok(uploads.failures() > 0))?;
    let fault = uploads.failing().context("a fault")?;
    assert!(fault.contains("no such bucket") && !fault.contains(KEY), "{fault}");
    server.make_bucket("later")?;
    eventually("upload", || Ok(uploads.failing().is_none()))?;
    assert_eq!(matches(&usage_upload::read(&missing)?), 5);
    // A damaged object is named.
    std::fs::write(temporary.path().join("x"), "half")?;
    missing.upload(&temporary.path().join("x"), "usage/node-2/usage-1-1.jsonl")?;
    let error = format!("{:#}", usage_upload::read(&missing).expect_err("it is damaged"));
    assert!(error.contains("in s3://later/x/usage/node-2/usage-1-1.jsonl"), "{error}");
    Ok(())
}
