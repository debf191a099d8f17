//! The flows of a bundle: those of an hour together, in files of a run each.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use arrow::{
    array::{AsArray as _, RecordBatch},
    compute::{SortColumn, interleave_record_batch, lexsort_to_indices, take_record_batch},
    datatypes::TimestampMicrosecondType,
};

use super::{stretches::stretches, write::Bundle};
use crate::{
    model::Timestamp,
    store::flows::{Coverage, files, row::Rows, segment::Mark, table::FLOWS},
};

/// What the flows of a file have in common: hour, node, agent run.
type Of<'a> = (i64, &'a str, &'a str);

/// Flows that are in memory at once: some 300 MiB.
const MOST: usize = 500_000;

/// Takes flows in as a scan gives them. In memory are those of one hour, or a part of it; which part depends on the order in which
/// they come.
#[derive(Debug)]
pub struct Flows {
    hour: Vec<RecordBatch>,
    waiting: usize,
    most: usize,
    /// Agent runs that told any.
    runs: BTreeSet<String>,
    rows: u64,
    /// What files tell of their time.
    marks: Vec<Mark>,
}

/// What became of the flows of a bundle.
#[derive(Clone, Debug)]
pub struct Told {
    /// How many there are.
    pub rows: u64,
    /// Agent runs that told any.
    pub runs: BTreeSet<String>,
    /// What is missing.
    pub coverage: Coverage,
}

impl Default for Flows {
    fn default() -> Self {
        Self::within(MOST)
    }
}

impl Flows {
    /// None yet, with so many in memory and those of one batch.
    pub fn within(most: usize) -> Self {
        Self { hour: Vec::new(), waiting: 0, most, runs: BTreeSet::new(), rows: 0, marks: Vec::new() }
    }

    /// A batch, or the end of an hour.
    ///
    /// # Errors
    ///
    /// They cannot be written.
    pub fn take(&mut self, bundle: &mut Bundle, batch: Option<RecordBatch>) -> anyhow::Result<()> {
        match batch {
            Some(batch) => {
                self.waiting += batch.num_rows();
                self.hour.push(batch);
                if self.waiting >= self.most { self.write(bundle) } else { Ok(()) }
            }
            None => self.write(bundle),
        }
    }

    fn write(&mut self, bundle: &mut Bundle) -> anyhow::Result<()> {
        let hour = std::mem::take(&mut self.hour);
        self.waiting = 0;
        let batches: Vec<&RecordBatch> = hour.iter().collect();
        let mut files: BTreeMap<Of<'_>, Vec<(usize, usize)>> = BTreeMap::new();
        for (number, batch) in hour.iter().enumerate() {
            let rows = Rows::new(batch);
            let times =
                batch.column_by_name("time").and_then(|it| it.as_primitive_opt::<TimestampMicrosecondType>());
            let times = times.context("the column time")?;
            for row in 0..batch.num_rows() {
                let word = |name| rows.word(name, row).unwrap_or_default();
                let key = (files::hour_of_micros(times.value(row)), word("node"), word("run"));
                files.entry(key).or_default().push((number, row));
            }
        }
        for ((hour, node, run), places) in files {
            // One run's at a time: all of them once more would be twice the hour.
            let batch = sorted(&interleave_record_batch(&batches, &places)?)?;
            // Of what time they are complete is told by files of their own, when all that is known of it is.
            let first = times_of(&batch)?.0;
            let mark = Mark::first(&FLOWS, node, run, first);
            bundle.add_table(&FLOWS, hour, &mark, std::slice::from_ref(&batch))?;
            self.rows += batch.num_rows() as u64;
            self.runs.insert(run.to_owned());
            self.marks.push(mark);
        }
        Ok(())
    }

    /// Writes of what time they are complete, by the marks that the scan went by.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn finish(
        mut self,
        bundle: &mut Bundle,
        marks: &[Mark],
        (since, until): (Timestamp, Timestamp),
    ) -> anyhow::Result<Told> {
        for stretch in stretches(marks, since, until) {
            bundle.add_table(&FLOWS, stretch.hour, &stretch.mark, &[])?;
            self.marks.push(stretch.mark);
        }
        let coverage = Coverage::of(&self.marks, Some(since), Some(until));
        Ok(Told { rows: self.rows, runs: self.runs, coverage })
    }
}

/// In the order of the table; the number of a flow decides last, so that the same flows make the same file.
fn sorted(batch: &RecordBatch) -> anyhow::Result<RecordBatch> {
    let order = FLOWS.order.iter().chain(&["time", "sequence"]);
    let columns = order.map(|name| -> anyhow::Result<SortColumn> {
        let values = batch.column_by_name(name).with_context(|| format!("the column {name}"))?.clone();
        Ok(SortColumn { values, options: None })
    });
    let order = lexsort_to_indices(&columns.collect::<anyhow::Result<Vec<_>>>()?, None)?;
    Ok(take_record_batch(batch, &order)?)
}

/// When the first and the last flow of a batch began.
pub(super) fn times_of(batch: &RecordBatch) -> anyhow::Result<(Timestamp, Timestamp)> {
    let times = batch.column_by_name("time").and_then(|it| it.as_primitive_opt::<TimestampMicrosecondType>());
    let times = times.context("the column time")?.values();
    let of = |time: Option<&i64>| Timestamp(time.copied().unwrap_or_default().saturating_mul(1_000));
    Ok((of(times.iter().min()), of(times.iter().max())))
}
