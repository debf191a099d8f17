//! Flows as log records of OpenTelemetry, sent to a receiver of OTLP over HTTP (protobuf).
//!
//! ```text
//! Flow ─line─► batch ──a second, or full──► queue, bounded ──thread─► records ─► POST …/v1/logs
//!                                             │ full                     │ 429, 502, 503, 504, no answer: again, later and later
//!                                             ▼                          ▼ anything else, or taken in part
//!                                          counted                    counted
//! ```
//!
//! To put a flow into a record takes five times as long as to put it into a line, so the thread does it. Nothing else waits for it: a receiver that is down or slow costs what the queue has no room for, which is counted by its cause.

mod record;
mod send;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, SystemTime},
};

use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::InstrumentationScope,
    logs::v1::{ResourceLogs, ScopeLogs},
    resource::v1::Resource,
};
use prost::Message as _;

pub use record::record;

use super::flow_line;
use crate::audit::line::Telling;
use record::Head;
use send::Sender;

/// Records of one request at most.
const BATCH: usize = 512;

/// Bytes that may wait.
const QUEUE_BYTES: usize = 8 << 20;

/// Where records go, and which.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The receiver's URL, to which `/v1/logs` is added where it is not there.
    pub endpoint: String,
    /// A file of headers, `Name: value` a line, read again for each request.
    pub headers: Option<PathBuf>,
    /// Whether only flows that have a finding are sent.
    pub only_findings: bool,
    /// The agent's node.
    pub node: String,
}

/// Flows on their way to a receiver.
#[derive(Debug)]
pub struct Otlp {
    only_findings: bool,
    batch: Batch,
    queue: mpsc::Sender<Batch>,
    shared: Arc<Shared>,
    done: mpsc::Receiver<()>,
}

/// Flows of one request.
#[derive(Debug, Default)]
struct Batch {
    /// Their lines in the flow log, one after the other.
    lines: Vec<u8>,
    /// Of each its end there, and what is told beside it.
    records: Vec<(usize, Head)>,
}

impl Batch {
    /// What it takes.
    fn bytes(&self) -> usize {
        self.lines.capacity() + self.records.capacity() * size_of::<(usize, Head)>()
    }

    /// What is sent.
    fn into_body(self, resource: &Resource) -> Vec<u8> {
        let mut from = 0;
        let mut record = |(end, head): &(usize, Head)| {
            let line = &self.lines[std::mem::replace(&mut from, *end)..*end];
            // We have just written it.
            record::of_line(head, serde_json::from_slice(line).unwrap_or_default())
        };
        let scope = InstrumentationScope {
            name: "netaudit".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let logs = ScopeLogs {
            scope: Some(scope),
            log_records: self.records.iter().map(&mut record).collect(),
            ..ScopeLogs::default()
        };
        let logs = ResourceLogs {
            resource: Some(resource.clone()),
            scope_logs: vec![logs],
            ..ResourceLogs::default()
        };
        ExportLogsServiceRequest { resource_logs: vec![logs] }.encode_to_vec()
    }
}

/// Flows that were lost, by cause.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct OtlpLosses {
    /// The queue was full: the receiver is down, or too slow.
    pub queue_full: u64,
    /// The receiver refused the whole request.
    pub refused: u64,
    /// The receiver took a request, but not these records of it.
    pub rejected: u64,
}

/// What the thread tells.
#[derive(Debug, Default)]
struct Shared {
    queued: AtomicUsize,
    queued_records: AtomicU64,
    taken: AtomicU64,
    queue_full: AtomicU64,
    refused: AtomicU64,
    rejected: AtomicU64,
    is_ending: AtomicBool,
    failing: Mutex<Option<String>>,
}

impl Otlp {
    /// Begins to send. Whether somebody takes the records shows later.
    ///
    /// # Errors
    ///
    /// The endpoint is no URL, or the file of headers cannot be read.
    pub fn open(settings: Settings) -> anyhow::Result<Self> {
        let sender = Sender::new(&settings)?;
        let (queue, batches) = mpsc::channel();
        let (finished, done) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let told = shared.clone();
        thread::Builder::new().name("otlp".to_owned()).spawn(move || {
            send::run(&sender, &batches, &told);
            // Nobody waits any more where the agent has given up on us.
            let _ = finished.send(());
        })?;
        Ok(Self { only_findings: settings.only_findings, batch: Batch::default(), queue, shared, done })
    }

    /// Adds a flow, where it is asked for.
    pub fn push(&mut self, telling: &Telling<'_>) {
        if self.only_findings && telling.flow.finding.is_none() {
            return;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let observed = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        flow_line(telling, &mut self.batch.lines);
        self.batch.records.push((self.batch.lines.len(), Head::new(telling, observed)));
        if self.batch.records.len() >= BATCH {
            self.tick();
        }
    }

    /// A second passed: hands over what there is. What has no room in the queue is lost, counted.
    pub fn tick(&mut self) {
        if self.batch.records.is_empty() {
            return;
        }
        let mut batch = std::mem::take(&mut self.batch);
        batch.lines.shrink_to_fit();
        let (count, bytes) = (batch.records.len() as u64, batch.bytes());
        self.shared.queued_records.fetch_add(count, Ordering::Relaxed);
        let is_full = self.shared.queued.fetch_add(bytes, Ordering::Relaxed) + bytes > QUEUE_BYTES;
        if is_full || self.queue.send(batch).is_err() {
            self.shared.queued.fetch_sub(bytes, Ordering::Relaxed);
            self.shared.queued_records.fetch_sub(count, Ordering::Relaxed);
            self.shared.queue_full.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Flows that the receiver has taken.
    pub fn taken(&self) -> u64 {
        self.shared.taken.load(Ordering::Relaxed)
    }

    /// Flows that were lost.
    pub fn losses(&self) -> OtlpLosses {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Shared { queue_full, refused, rejected, .. } = &*self.shared;
        OtlpLosses { queue_full: load(queue_full), refused: load(refused), rejected: load(rejected) }
    }

    /// What is wrong right now.
    pub fn failing(&self) -> Option<String> {
        self.shared.failing.lock().ok()?.clone()
    }

    /// Sends what there is, but no longer than `limit`. Returns how many flows were not sent.
    pub fn finish(mut self, limit: Duration) -> u64 {
        self.tick();
        let Self { queue, done, shared, .. } = self;
        shared.is_ending.store(true, Ordering::Relaxed);
        drop(queue);
        let _ = done.recv_timeout(limit);
        shared.queued_records.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Relaxed)
    }

    /// The fault is logged when it begins.
    fn fails(&self, fault: &str) {
        let Ok(mut failing) = self.failing.lock() else { return };
        if failing.is_none() {
            tracing::error!(fault, "flows cannot be sent by OTLP");
        }
        *failing = Some(fault.to_owned());
    }

    fn works(&self) {
        if let Some(fault) = self.failing.lock().ok().and_then(|mut failing| failing.take()) {
            tracing::info!(fault, "flows are sent by OTLP again");
        }
    }
}
