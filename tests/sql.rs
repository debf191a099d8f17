//! The SQL that we ship (`deploy/sql`): one text for three engines, each of which must answer what the flows are known to be.

mod answers;
mod fleet;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use arrow::datatypes::DataType;
use netaudit::{
    model::Timestamp,
    store::{document, flows::schema, history},
};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    alerts::programs_or_skip,
    deploy::deploy,
    history::exporting::{export, unpack, verified},
};

/// What `ask.py` prints of a question.
#[derive(Deserialize)]
struct Asked {
    columns: Vec<String>,
    rows: answers::Answer,
}

fn sql() -> PathBuf {
    deploy().join("sql")
}

/// The files of a directory that end in `.sql`.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "sql"));
    files.sort();
    Ok(files)
}

/// The Python of the tools, where this package is there. Says so where not, and fails instead where it must be.
pub fn python_or_skip(test: &str, package: &str) -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let python = target.join("tools/bin/python3");
    let find = format!("import importlib.util as u, sys; sys.exit(u.find_spec('{package}') is None)");
    if Command::new(&python).args(["-c", &find]).status().is_ok_and(|status| status.success()) {
        return Some(python);
    }
    let missing = format!("no Python package {package} (cargo xtask setup installs it)");
    assert!(std::env::var_os("NETAUDIT_REQUIRE_PROGRAMS").is_none(), "{test} cannot run: {missing}");
    eprintln!("SKIPPED {test}: {missing}");
    None
}

/// Runs files on an engine, from a directory of its own for whatever it leaves.
fn ask(
    python: &Path,
    engine: &str,
    directory: &Path,
    views: &[&str],
    questions: &[PathBuf],
) -> Result<BTreeMap<String, Asked>> {
    let [store, rules] = ["bucket", "rules.jsonl"].map(|name| directory.join(name));
    let views: Vec<String> =
        views.iter().map(|name| sql().join(engine).join(name).display().to_string()).collect();
    let work = directory.join("work");
    fs::create_dir_all(&work)?;
    let output = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/sql/ask.py"))
        .arg(engine)
        .arg(store)
        .args(fleet::WINDOW)
        .arg(rules)
        .arg(views.join(","))
        .args(questions)
        .current_dir(&work)
        .env("TMPDIR", &work)
        .env("TZ", "UTC")
        .output()?;
    ensure!(output.status.success(), "{engine}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).with_context(|| format!("what {engine} says"))
}

/// Asks an engine every question, and compares.
fn agrees(test: &str, engine: &str, package: &str) -> Result<()> {
    agrees_on(test, engine, package, |_| Ok(()))
}

/// The same, after something was done with the directory `bucket` that holds the files.
fn agrees_on(test: &str, engine: &str, package: &str, done: fn(&Path) -> Result<()>) -> Result<()> {
    let Some(python) = python_or_skip(test, package) else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    let fleet = fleet::make(directory.path(), &directory.path().join("bucket"))?;
    done(&directory.path().join("bucket"))?;
    fs::write(directory.path().join("rules.jsonl"), document::write(&fleet.rows))?;
    let expected = answers::all(&fleet);
    let questions = files(&sql())?;
    let names: Vec<&str> =
        questions.iter().filter_map(|path| path.file_stem().and_then(|stem| stem.to_str())).collect();
    assert_eq!(names, expected.keys().copied().collect::<Vec<_>>(), "every question has its answer here");
    let asked = ask(&python, engine, directory.path(), &["views.sql", "rules.sql"], &questions)?;
    for (name, rows) in expected {
        let Asked { columns, rows: said } =
            asked.get(name).with_context(|| format!("no answer to {name}"))?;
        assert!(!rows.is_empty(), "{name}: nothing to compare");
        for (place, (expected, said)) in rows.iter().zip(said).enumerate() {
            assert_eq!(expected, said, "{engine}, {name}, row {place} of {columns:?}");
        }
        assert_eq!(said.len(), rows.len(), "{engine}, {name}: so many rows");
        assert_eq!(columns.len(), rows[0].len(), "{engine}, {name}: {columns:?}");
    }
    Ok(())
}

#[test]
fn duckdb_answers_as_the_flows_are() -> Result<()> {
    agrees("duckdb_answers_as_the_flows_are", "duckdb", "duckdb")
}

#[test]
fn an_unpacked_bundle_of_evidence_answers_as_the_store() -> Result<()> {
    agrees_on("an_unpacked_bundle_of_evidence_answers_as_the_store", "duckdb", "duckdb", |bucket| {
        let bundle = bucket.with_extension("tar");
        let time = |text: &str| -> Result<Timestamp> {
            let time: jiff::Timestamp = format!("{}Z", text.replace(' ', "T")).parse()?;
            Ok(Timestamp(i64::try_from(time.as_nanosecond())?))
        };
        let [since, until] = fleet::WINDOW;
        let ran = export(bucket, time(since)?, time(until)?, &bundle, &[]);
        ensure!(ran.status == 0, "{}", ran.err);
        let sound = verified(&bundle, &[]);
        ensure!(sound.status == 0, "{}", sound.out);
        fs::remove_dir_all(bucket)?;
        unpack(&bundle, bucket)
    })
}

#[test]
fn clickhouse_answers_as_the_flows_are() -> Result<()> {
    agrees("clickhouse_answers_as_the_flows_are", "clickhouse", "chdb")
}

#[test]
fn spark_answers_as_the_flows_are() -> Result<()> {
    let test = "spark_answers_as_the_flows_are";
    if !programs_or_skip(test, &["java"]) {
        return Ok(());
    }
    agrees(test, "spark", "pyspark")
}

#[test]
fn duckdb_tells_what_was_lost_in_the_window() -> Result<()> {
    let Some(python) = python_or_skip("duckdb_tells_what_was_lost_in_the_window", "duckdb") else {
        return Ok(());
    };
    let directory = tempfile::tempdir()?;
    fleet::make(directory.path(), &directory.path().join("bucket"))?;
    let question = sql().join("duckdb/losses.sql");
    let asked = ask(&python, "duckdb", directory.path(), &["views.sql"], &[question])?;
    let rows = &asked.get("losses").context("an answer")?.rows;
    let of = |node: &str| -> Vec<u64> {
        let of_node = rows.iter().filter(|row| row[0] == node);
        // The pieces of a stretch that lies in two hours tell of one loss.
        let losses: BTreeSet<_> =
            of_node.map(|row| (row[5].as_u64(), row[4].as_u64().unwrap_or_default())).collect();
        losses.into_iter().map(|(_, lost)| lost).collect()
    };
    assert_eq!((of("node-1"), of("node-2")), (vec![0], vec![fleet::LOST; 3]), "{rows:?}");
    let times: Vec<[&Value; 2]> =
        rows.iter().filter(|row| row[0] == "node-1").map(|row| [&row[2], &row[3]]).collect();
    assert_eq!(times[0][0], "2026-01-01T23:00:00.000000Z");
    assert!(
        times.windows(2).all(|pair| pair[0][1] == pair[1][0]),
        "one stretch follows on another: {times:?}"
    );
    Ok(())
}

#[test]
fn every_question_says_what_it_answers_and_the_readme_names_it() -> Result<()> {
    let readme = fs::read_to_string(sql().join("README.md"))?;
    for path in files(&sql())? {
        let name = path.file_name().and_then(|name| name.to_str()).context("a name")?;
        assert!(fs::read_to_string(&path)?.starts_with("-- "), "{name} says not what it answers");
        assert!(readme.contains(&format!("| [`{name}`]({name}) | ")), "README.md names {name} not");
    }
    Ok(())
}

/// A type in the words of the table.
fn type_word(of: &DataType) -> Result<String> {
    Ok(match of {
        DataType::Dictionary(_, value) => type_word(value)?,
        DataType::Utf8 => "string".to_owned(),
        DataType::Boolean => "boolean".to_owned(),
        DataType::UInt16 => "uint16".to_owned(),
        DataType::UInt32 => "uint32".to_owned(),
        DataType::UInt64 => "uint64".to_owned(),
        DataType::Timestamp(..) => "timestamp".to_owned(),
        DataType::List(item) => format!("list of {}", type_word(item.data_type())?),
        DataType::Struct(_) => "struct".to_owned(),
        other => anyhow::bail!("no word for {other}"),
    })
}

#[test]
fn the_tables_of_columns_are_the_schemas() -> Result<()> {
    let readme = fs::read_to_string(sql().join("README.md"))?;
    let mut tables = readme.split("| column | type | null | meaning |\n|---|---|---|---|\n").skip(1);
    for schema in [schema::schema(), history::schema()] {
        describes(tables.next().context("a table")?, &schema)?;
    }
    assert_eq!(tables.count(), 0, "a table of nothing");
    Ok(())
}

/// Whether what begins with the rows of a table describes these columns.
fn describes(table: &str, schema: &arrow::datatypes::SchemaRef) -> Result<()> {
    let rows: Vec<Vec<&str>> = table
        .lines()
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    for (field, row) in schema.fields().iter().zip(&rows) {
        let null = if field.is_nullable() { "yes" } else { "no" };
        let expected = [format!("`{}`", field.name()), type_word(field.data_type())?, null.to_owned()];
        assert_eq!(row[..3], expected, "a row of the table");
        assert!(row.get(3).is_some_and(|meaning| meaning.len() > 3), "{} has no meaning", field.name());
    }
    assert_eq!(rows.len(), schema.fields().len(), "rows of the table and columns");
    Ok(())
}
