//! Flows of this node's store, as lines of JSON.

use std::{convert::Infallible, ops::ControlFlow, path::PathBuf, time::SystemTime};

use arrow::{
    array::{RecordBatch, UInt32Array},
    compute::{concat_batches, sort_to_indices, take_record_batch},
};
use axum::body::{Body, Bytes};
use futures::stream;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::{
    model::Timestamp,
    store::flows::{
        ask::{Among, Columns, scan},
        filter::Filter,
        row::Rows,
        schema,
    },
};

/// Parts of an answer that wait for whoever reads it.
const MOST_WAITING: usize = 4;

/// About how long a part is.
const PART: usize = 64 << 10;

/// What is asked.
#[derive(Debug)]
pub(super) struct Question {
    filter: Filter,
    limit: usize,
}

impl Question {
    /// From the query of a URL.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn read(query: &str) -> Result<Self, String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = Timestamp(i64::try_from(now.as_nanos()).unwrap_or(i64::MAX));
        let mut question = Self { filter: Filter::default(), limit: usize::MAX };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if name == "limit" {
                question.limit = value.parse().map_err(|_| format!("limit: {value:?} is no number"))?;
            } else if !question.filter.add(&name, &value, now).map_err(|error| format!("{name}: {error}"))? {
                return Err(format!(
                    "{name:?} is nothing to ask for: conditions are named as the flags of netaudit flows, and limit"
                ));
            }
        }
        if let Some((from, until)) = question.filter.from.zip(question.filter.until)
            && from >= until
        {
            return Err("since is not before until".to_owned());
        }
        Ok(question)
    }

    /// The namespaces that are asked for; none where all are.
    pub fn namespaces(&self) -> &[String] {
        &self.filter.namespaces
    }

    /// The flows in order of time, then whether any is missing. `place` is given back at the end.
    pub fn answer(self, store: PathBuf, place: OwnedSemaphorePermit) -> Body {
        let (parts, taken) = mpsc::channel(MOST_WAITING);
        tokio::task::spawn_blocking(move || {
            let mut out = Out { parts, text: Vec::new() };
            if let Err(error) = self.write(store, &mut out) {
                tracing::warn!(error = format!("{error:#}"), "a question on flows could not be answered");
                out.line(&json!({"error": format!("{error:#}")}));
            }
            out.flush();
            drop(place);
        });
        Body::from_stream(stream::unfold(taken, async |mut taken| {
            taken.recv().await.map(|part: Bytes| (Ok::<_, Infallible>(part), taken))
        }))
    }

    fn write(&self, store: PathBuf, out: &mut Out) -> anyhow::Result<()> {
        let mut left = self.limit;
        let mut hour: Vec<RecordBatch> = Vec::new();
        let scanned =
            scan(&[store.into()], Among::All, &self.filter, Columns::All, &|_, _| {}, &mut |batch| {
                match batch {
                    Some(batch) => hour.push(batch),
                    None => self.write_hour(&std::mem::take(&mut hour), &mut left, out)?,
                }
                let is_done = left == 0 || out.parts.is_closed();
                Ok(if is_done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
        let unreadable: Vec<&String> = scanned.unreadable.iter().map(|(_, why)| why).collect();
        out.line(&json!({"coverage": scanned.coverage, "unreadable": unreadable}));
        Ok(())
    }

    fn write_hour(&self, hour: &[RecordBatch], left: &mut usize, out: &mut Out) -> anyhow::Result<()> {
        let all = concat_batches(&schema::schema(), hour)?;
        let Some(times) = all.column_by_name("time") else { return Ok(()) };
        let order: UInt32Array = sort_to_indices(times, None, None)?;
        let all = take_record_batch(&all, &order)?;
        let rows = Rows::new(&all);
        for row in 0..all.num_rows() {
            if *left == 0 || out.parts.is_closed() {
                return Ok(());
            }
            // The filter takes a namespace at either end: what another namespace's pod recorded is not his to see.
            let line = rows.line(row)?;
            if self.filter.namespaces.is_empty() || line.is_of(&self.filter.namespaces) {
                *left -= 1;
                out.line(&line);
            }
        }
        Ok(())
    }
}

/// Where an answer goes.
struct Out {
    parts: mpsc::Sender<Bytes>,
    text: Vec<u8>,
}

impl Out {
    fn line(&mut self, line: &impl serde::Serialize) {
        // What cannot be written as JSON is no line of ours.
        let _ = serde_json::to_writer(&mut self.text, line);
        self.text.push(b'\n');
        if self.text.len() >= PART {
            self.flush();
        }
    }

    fn flush(&mut self) {
        // Nobody reads any more, which the next look at `is_closed` says.
        let _ = self.parts.blocking_send(std::mem::take(&mut self.text).into());
    }
}
