//! How `netaudit flows` prints flows.

use std::{
    io::{self, BufWriter, Stdout, Write},
    sync::Arc,
};

use anyhow::Context as _;
use arrow::{
    array::{Array as _, ArrayRef, AsArray as _, RecordBatch, StringArray},
    csv,
    datatypes::{DataType, Field, Schema},
};
use parquet::arrow::ArrowWriter;

use super::{columns::Widths, flows::Output};
use crate::{
    audit::line::{End, Line},
    store::flows::{row::Rows, schema::schema},
};

const HEAD: [&str; 9] =
    ["TIME", "END", "FROM", "TO", "PORT", "OUTCOME", "VERDICT", "RULE, POLICY OR REASON", "FINDING"];

/// Prints batches of flows.
pub(super) enum Printer {
    Table { out: BufWriter<Stdout>, has_head: bool },
    Json(BufWriter<Stdout>),
    Csv(Box<csv::Writer<BufWriter<Stdout>>>),
    Parquet(Box<ArrowWriter<Stdout>>),
}

impl Printer {
    pub(super) fn new(output: Output) -> anyhow::Result<Self> {
        let out = BufWriter::new(io::stdout());
        Ok(match output {
            Output::Table => Self::Table { out, has_head: false },
            Output::Json => Self::Json(out),
            Output::Csv => Self::Csv(Box::new(csv::Writer::new(out))),
            Output::Parquet => Self::Parquet(Box::new(ArrowWriter::try_new(io::stdout(), schema(), None)?)),
        })
    }

    pub(super) fn print(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        match self {
            Self::Table { out, has_head } => {
                let rows = Rows::new(batch);
                let lines = (0..batch.num_rows()).map(|row| rows.line(row).map(|line| cells(&line)));
                let lines = lines.collect::<anyhow::Result<Vec<_>>>()?;
                let head = HEAD.map(str::to_owned);
                let widths = Widths::of(lines.iter().chain([&head]));
                if !std::mem::replace(has_head, true) {
                    writeln!(out, "{}", widths.line(&head))?;
                }
                for line in &lines {
                    writeln!(out, "{}", widths.line(line))?;
                }
            }
            Self::Json(out) => {
                let rows = Rows::new(batch);
                for row in 0..batch.num_rows() {
                    serde_json::to_writer(&mut *out, &rows.line(row)?)
                        .map_err(|error| error.io_error_kind().map_or(error.into(), io::Error::from))?;
                    out.write_all(b"\n")?;
                }
            }
            Self::Csv(out) => out.write(&flat(batch)?).map_err(of_arrow)?,
            Self::Parquet(out) => out.write(batch).context("cannot write Parquet")?,
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Table { out, .. } | Self::Json(out) => out.flush()?,
            Self::Csv(_) | Self::Parquet(_) => {}
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        self.flush()?;
        match self {
            Self::Csv(out) => out.into_inner().flush()?,
            Self::Parquet(out) => drop(out.close().context("cannot write Parquet")?),
            Self::Table { .. } | Self::Json(_) => {}
        }
        Ok(())
    }
}

/// A closed pipe stays one, so that it can be told from a failure.
fn of_arrow(error: arrow::error::ArrowError) -> anyhow::Error {
    match error {
        arrow::error::ArrowError::IoError(_, io) => io.into(),
        arrow::error::ArrowError::CsvError(text) if text.contains("Broken pipe") => {
            io::Error::from(io::ErrorKind::BrokenPipe).into()
        }
        error => error.into(),
    }
}

/// What a line of the table says: time, end, from, to, port, outcome, verdict, why, finding.
pub(super) fn cells(line: &Line<'_>) -> [String; 9] {
    let subject = end(&line.subject.end);
    let peer = match (line.peer.end.kind, line.peer.names.first()) {
        ("pod" | "node", _) => end(&line.peer.end),
        (_, Some(name)) => format!("{} ({})", name.name, line.peer.ip),
        ("external", None) => line.peer.ip.to_string(),
        (kind, None) => format!("{kind} {}", line.peer.ip),
    };
    let peer = match &line.peer.service {
        Some(service) => format!("{peer} (by {service})"),
        None => peer,
    };
    let (from, to) = if line.direction == "egress" { (subject, peer) } else { (peer, subject) };
    let said = &line.verdict;
    let why = [&said.rule_paths, &said.denied_by].into_iter().flatten().map(|it| it.to_string());
    let why: Vec<String> = why.chain(said.reason.iter().map(|reason| reason.to_string())).collect();
    let finding = match (line.finding, line.finding_cause) {
        (Some(finding), Some(cause)) => format!("{finding}: {cause}"),
        (finding, _) => finding.unwrap_or_default().to_owned(),
    };
    let outcome = match line.count {
        Some(count) => format!("{} ×{count}", line.outcome),
        None => line.outcome.to_owned(),
    };
    [
        line.time.to_string().replace("000Z", "Z"),
        line.direction.to_owned(),
        from,
        to,
        format!("{}/{}", line.protocol, line.port),
        outcome,
        said.verdict.to_owned(),
        why.join(", "),
        finding,
    ]
}

/// A pod by its name, a node by its own.
fn end(end: &End<'_>) -> String {
    match (end.namespace, end.pod, end.node) {
        (Some(namespace), Some(pod), _) => format!("{namespace}/{pod}"),
        (_, _, Some(node)) => format!("{} {node}", end.kind),
        _ => end.kind.to_owned(),
    }
}

/// The batch without lists: their texts stand in one, with blanks between.
fn flat(batch: &RecordBatch) -> anyhow::Result<RecordBatch> {
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        match field.data_type() {
            DataType::List(_) => {
                let lists = column.as_list::<i32>();
                let texts = match lists.values().as_struct_opt() {
                    Some(names) => names.column(0).clone(),
                    None => lists.values().clone(),
                };
                let texts = texts.as_string::<i32>();
                let join = |row: usize| {
                    let offsets = lists.value_offsets();
                    let places = offsets[row] as usize..offsets[row + 1] as usize;
                    places.map(|place| texts.value(place)).collect::<Vec<_>>().join(" ")
                };
                columns.push(Arc::new(StringArray::from_iter_values((0..lists.len()).map(join))));
                fields.push(Field::new(field.name(), DataType::Utf8, false));
            }
            _ => {
                columns.push(column.clone());
                fields.push(field.as_ref().clone());
            }
        }
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}
