//! `cargo xtask bench store`: how fast flows go into the store, how much room each takes, and how fast one gets answers, with
//! DuckDB asked the same of the same files.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::tools::{Tools, target, venv};

/// What is asked: by `netaudit flows` with these arguments, and by DuckDB with this text.
const QUESTIONS: [(&str, &[&str], &str); 3] = [
    (
        "one pod's hour, as JSON",
        &[
            "--since",
            "FROM",
            "--until",
            "UNTIL",
            "--pod",
            "team-7/service-7-7c8d9f6b5-00007",
            "--output",
            "json",
        ],
        "copy (select * exclude (date, hour) from read_parquet('FILES', hive_partitioning = true) \
         where date >= 'DATE' and time >= 'FROM' and time < 'UNTIL' \
         and ((subject_namespace = 'team-7' and subject_pod = 'service-7-7c8d9f6b5-00007') \
         or (peer_namespace = 'team-7' and peer_pod = 'service-7-7c8d9f6b5-00007')) order by time) \
         to '/dev/null' (format json)",
    ),
    (
        "top talkers of all",
        &["--top", "subject"],
        "select subject_namespace, subject_workload, sum(count) flows from read_parquet('FILES') \
         group by all order by flows desc limit 10",
    ),
    (
        "a pod that never was, in all",
        &["--pod", "team-7/nobody"],
        "select * from read_parquet('FILES') where (subject_namespace = 'team-7' and subject_pod = 'nobody') \
         or (peer_namespace = 'team-7' and peer_pod = 'nobody')",
    ),
];

/// Times each question three times and prints the least, in milliseconds.
const DUCKDB: &str = "
import duckdb, json, sys, time
connection = duckdb.connect()
connection.execute(\"set timezone = 'UTC'\")
connection.execute(\"set enable_progress_bar = false\")
answers = []
for question in sys.argv[1:]:
    times = []
    for _ in range(3):
        begun = time.monotonic()
        connection.execute(question).fetchall()
        times.append((time.monotonic() - begun) * 1e3)
    answers.append(min(times))
print(json.dumps(answers))
";

/// Writes so many flows, asks, and compares.
pub fn store(root: &Path, flows: u64) -> Result<Value> {
    let directory = target(root).join("bench/flow-store");
    let store = directory.to_str().context("the target directory's name is no UTF-8")?;
    let weed = Tools::find(root)?.weed;
    let weed = weed.to_str().context("the target directory's name is no UTF-8")?;
    let settings = [
        ("NETAUDIT_BENCH_FLOWS", &*flows.to_string()),
        ("NETAUDIT_BENCH_STORE", store),
        ("NETAUDIT_BENCH_WEED", weed),
    ];
    let ours = super::bench_of(root, "store", &settings)?;
    let text = |name: &str| ours["hour"][name].as_str().context("the hour that was asked for");
    let (from, until) = (text("from")?, text("until")?);
    let agent = super::shipped(root)?;
    let (mut mine, mut questions) = (Vec::new(), Vec::new());
    for (_, arguments, question) in QUESTIONS {
        let filled = |text: &str| text.replace("FROM", from).replace("UNTIL", until);
        let arguments: Vec<String> = arguments.iter().map(|argument| filled(argument)).collect();
        mine.push(netaudit(&agent, &directory, &arguments)?);
        let files = directory.join("flows/*/*/*.parquet");
        questions.push(
            filled(question)
                .replace("FILES", &files.to_string_lossy())
                .replace("DATE", &from[.."2026-01-01".len()]),
        );
    }
    let theirs = duckdb(root, &questions)?;
    std::fs::remove_dir_all(&directory)?;
    println!("{:<30} {:>12} {:>12} {:>7}", "", "netaudit", "DuckDB", "ratio");
    let mut answers = Vec::new();
    for (((what, ..), mine), theirs) in QUESTIONS.into_iter().zip(mine).zip(theirs) {
        println!("{what:<30} {mine:>9.1} ms {theirs:>9.1} ms {:>7.2}", mine / theirs);
        answers.push(json!({"what": what, "netaudit_ms": mine, "duckdb_ms": theirs}));
    }
    Ok(json!({"store": ours, "answers": answers}))
}

/// The least of three times of the whole command, in milliseconds.
fn netaudit(agent: &Path, store: &Path, arguments: &[String]) -> Result<f64> {
    let mut least = f64::MAX;
    for _ in 0..3 {
        let begun = Instant::now();
        let output =
            Command::new(agent).arg("flows").arg(store).args(arguments).stdout(Stdio::null()).output()?;
        least = least.min(begun.elapsed().as_secs_f64() * 1e3);
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(least)
}

fn duckdb(root: &Path, questions: &[String]) -> Result<Vec<f64>> {
    let python = venv(root).join("bin/python");
    let output = Command::new(&python)
        .args(["-c", DUCKDB])
        .args(questions)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("running {}", python.display()))?;
    ensure!(output.status.success(), "DuckDB failed");
    serde_json::from_slice(&output.stdout).context("DuckDB's answers")
}
