//! Flows of this node's store, as lines of JSON.

use std::{
    convert::Infallible,
    ops::ControlFlow,
    path::PathBuf,
    thread,
    time::{Duration, SystemTime},
};

use arrow::array::RecordBatch;
use axum::body::{Body, Bytes};
use futures::stream;
use serde_json::json;
use tokio::sync::{
    OwnedSemaphorePermit,
    mpsc::{self, error::TrySendError},
};

use crate::{
    model::Timestamp,
    store::flows::{
        ask::{Among, Columns, scan_within},
        filter::Filter,
        row::Rows,
    },
};

/// Parts of an answer that wait for whoever reads it.
const MOST_WAITING: usize = 4;

/// About how long a part is.
const PART: usize = 64 << 10;

/// How long whoever asked may read nothing before his answer is given up: it holds a place, and memory.
const PATIENCE: Duration = Duration::from_secs(30);

/// Namespaces that can be asked for at once: for each the API server is asked.
const MOST_NAMESPACES: usize = 64;

/// Bytes of footers in memory: the agent has little for questions.
const FOOTERS: usize = 4 << 20;

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
        question.filter.namespaces.sort();
        question.filter.namespaces.dedup();
        if question.filter.namespaces.len() > MOST_NAMESPACES {
            return Err(format!(
                "more than {MOST_NAMESPACES} namespaces: ask for some at a time, or for all"
            ));
        }
        Ok(question)
    }

    /// The namespaces that are asked for; none where all are.
    pub fn namespaces(&self) -> &[String] {
        &self.filter.namespaces
    }

    /// The flows hour by hour, those of an hour in any order, then whether any is missing. `place` is given back at the end.
    pub fn answer(self, store: PathBuf, place: OwnedSemaphorePermit) -> Body {
        let (parts, taken) = mpsc::channel(MOST_WAITING);
        tokio::task::spawn_blocking(move || {
            let mut out = Out { parts, text: Vec::new(), is_gone: false };
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

    /// Nothing is gathered: an hour of a busy node is more than the agent has room for.
    fn write(&self, store: PathBuf, out: &mut Out) -> anyhow::Result<()> {
        let mut left = self.limit;
        let stores = [store.into()];
        let (all, none) = (Columns::All, |_: usize, _: usize| {});
        let scanned = scan_within(1, FOOTERS, &stores, Among::All, &self.filter, all, &none, &mut |batch| {
            if let Some(batch) = batch {
                self.write_batch(&batch, &mut left, out)?;
            }
            let is_done = left == 0 || out.is_gone;
            Ok(if is_done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        let mut unreadable: Vec<String> = scanned.unreadable.iter().map(|(_, why)| why.clone()).collect();
        if !self.filter.addresses.is_empty() && !scanned.keys.is_empty() {
            unreadable.push(
                "addresses outside the cluster are hashed here, and were not looked through".to_owned(),
            );
        }
        out.line(&json!({"coverage": scanned.coverage, "unreadable": unreadable}));
        Ok(())
    }

    fn write_batch(&self, batch: &RecordBatch, left: &mut usize, out: &mut Out) -> anyhow::Result<()> {
        let rows = Rows::new(batch);
        for row in 0..batch.num_rows() {
            if *left == 0 || out.is_gone {
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
    /// Nobody reads it any more.
    is_gone: bool,
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
        const STEP: Duration = Duration::from_millis(20);
        let mut part: Bytes = std::mem::take(&mut self.text).into();
        let mut waited = Duration::ZERO;
        while !self.is_gone {
            part = match self.parts.try_send(part) {
                Ok(()) => return,
                Err(TrySendError::Full(part)) if waited < PATIENCE => part,
                Err(_) => {
                    self.is_gone = true;
                    return;
                }
            };
            thread::sleep(STEP);
            waited += STEP;
        }
    }
}
