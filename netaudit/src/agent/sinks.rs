//! Where judged flows go: the flow log, the flow store, both, or neither.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;

use crate::{
    audit::{Auditor, Flow, Privacy, RunKey, line::Telling},
    cluster::Cluster,
    config::{Config, OtlpFlows},
    kernel::Kernel,
    metrics::{FlowBucketState, FlowStoreState},
    model::Timestamp,
    report::{
        FlowLog,
        otlp::{self, Otlp},
    },
    store::{
        bucket::Bucket,
        flows::{Beginning, FlowStore, Lost, Retention},
        history::History,
    },
};

/// What takes flows.
#[derive(Debug)]
pub(super) struct Sinks {
    pub node: Arc<str>,
    /// What none of them is told.
    pub privacy: Privacy,
    pub log: Option<FlowLog>,
    pub store: Option<FlowStore>,
    /// Nothing waits for it: what it cannot take is counted.
    pub otlp: Option<Otlp>,
}

impl Sinks {
    /// Whether anybody wants flows.
    pub fn any(&self) -> bool {
        self.log.is_some() || self.store.is_some() || self.otlp.is_some()
    }

    /// Hands on flows. `correction` nanoseconds make today's wall time of theirs.
    pub fn take(&mut self, flows: impl Iterator<Item = Flow>, cluster: &Cluster, correction: i64) {
        for flow in flows {
            let telling =
                Telling { flow: &flow, cluster, node: &self.node, correction, privacy: &self.privacy };
            if let Some(log) = &mut self.log {
                log.push(&telling);
            }
            if let Some(store) = &mut self.store {
                store.push(&telling);
            }
            if let Some(otlp) = &mut self.otlp {
                otlp.push(&telling);
            }
        }
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }

    /// A second passed.
    pub fn tick(&mut self, wall: Timestamp, lost: Lost) {
        if let Some(store) = &mut self.store {
            store.tick(wall, lost);
        }
        if let Some(otlp) = &mut self.otlp {
            otlp.tick();
        }
    }

    /// Flows that were handed over.
    pub fn handed(&self) -> u64 {
        let of_log = self.log.as_ref().map(FlowLog::handed);
        of_log.or(self.store.as_ref().map(FlowStore::handed)).unwrap_or(0)
    }

    /// How many of them, the first ones first, are where they are to be, or lost.
    pub fn done(&self) -> u64 {
        let of_log = self.log.as_ref().map(FlowLog::done);
        let of_store = self.store.as_ref().map(FlowStore::done);
        of_log.into_iter().chain(of_store).min().unwrap_or(0)
    }

    /// The history of objects, where it is kept.
    pub fn history(&mut self) -> Option<&mut History> {
        self.store.as_mut().map(FlowStore::history_mut)
    }

    /// Whether the history has room for more, where one is kept.
    pub fn has_room(&mut self) -> bool {
        self.history().is_none_or(History::has_room)
    }

    /// What was lost on its way: (stage, cause, how many).
    pub fn losses(&self) -> [(&'static str, &'static str, u64); 8] {
        let otlp = self.otlp.as_ref().map(Otlp::losses).unwrap_or_default();
        let bucket = self.store.as_ref().and_then(FlowStore::uploads).unwrap_or_default();
        [
            ("flow-log", "write failed", self.log.as_ref().map_or(0, FlowLog::lost)),
            ("flow-store", "write failed", self.store_lost()),
            ("history", "write failed", self.store.as_ref().map_or(0, |store| store.counts().history_lost)),
            ("flow-bucket", "no room to wait", bucket.lost),
            ("history-bucket", "no room to wait", bucket.history_lost),
            ("otlp", "queue full", otlp.queue_full),
            ("otlp", "refused", otlp.refused),
            ("otlp", "rejected", otlp.rejected),
        ]
    }

    /// Flows that the store could not write.
    pub fn store_lost(&self) -> u64 {
        self.store.as_ref().map_or(0, |store| store.counts().lost)
    }

    /// What became of files that are to be in a bucket.
    pub fn bucket_state(&self) -> Option<FlowBucketState> {
        let counts = self.store.as_ref()?.uploads()?;
        Some(FlowBucketState {
            uploaded: counts.uploaded,
            failed: counts.failed,
            waiting: counts.waiting,
            waiting_bytes: counts.waiting_bytes,
            oldest: counts.oldest,
        })
    }

    /// What there is of the store.
    pub fn store_state(&self) -> Option<FlowStoreState> {
        let counts = self.store.as_ref()?.counts();
        Some(FlowStoreState { files: counts.files, bytes: counts.bytes, removed: counts.removed })
    }

    /// What is wrong right now, in sentences.
    pub fn failing(&self) -> Vec<String> {
        let of_log = self.log.as_ref().and_then(FlowLog::failing);
        let of_store = self.store.as_ref().and_then(FlowStore::failing);
        let of_bucket = self.store.as_ref().and_then(FlowStore::upload_failing);
        let of_bucket = of_bucket.map(|fault| format!("files of the flow store are not uploaded: {fault}"));
        let of_otlp = self.otlp.as_ref().and_then(Otlp::failing);
        let of_otlp = of_otlp.map(|fault| format!("flows are not sent by OTLP: {fault}"));
        let of_log = of_log.map(|fault| format!("the flow log is not written: {fault}"));
        of_log
            .into_iter()
            .chain(of_store.map(|fault| format!("the flow store: {fault}")))
            .chain(of_bucket)
            .chain(of_otlp)
            .collect()
    }

    /// Waits for the last flows, no longer than `limit` for each. Returns how many were not written in all.
    pub fn finish(&mut self, wall: Timestamp, lost: Lost, limit: Duration) -> u64 {
        if let Some(unsent) = self.otlp.take().map(|otlp| otlp.finish(limit)).filter(|unsent| *unsent > 0) {
            // Log and store have them: no reason to tell them once more.
            tracing::warn!(flows = unsent, "the receiver of OTLP has not taken the last flows");
        }
        let of_log = self.log.take().map_or(0, |log| log.finish(limit));
        of_log + self.store.take().map_or(0, |store| store.finish(wall, lost, limit))
    }
}

/// Begins to send flows by OTLP, where they are to be.
///
/// # Errors
///
/// The endpoint is no URL, or the file of headers cannot be read.
pub(super) fn open_otlp(config: &Config) -> anyhow::Result<Option<Otlp>> {
    let Some(endpoint) = &config.otlp_endpoint else { return Ok(None) };
    let settings = otlp::Settings {
        endpoint: endpoint.clone(),
        headers: config.otlp_headers.clone(),
        only_findings: config.otlp_flows == OtlpFlows::Findings,
        node: config.node.clone(),
    };
    Otlp::open(settings).map(Some).context("choose another with --otlp-endpoint")
}

/// Opens the flow store, where there is to be one.
///
/// # Errors
///
/// It cannot be used.
pub(super) fn open_store(
    config: &Config,
    auditor: &Auditor,
    kernel: &Kernel,
    kernel_lost: u64,
) -> anyhow::Result<Option<FlowStore>> {
    let Some(path) = &config.flow_store else { return Ok(None) };
    let retention = Retention { age: config.flow_store_age, bytes: config.flow_store_bytes };
    let RunKey { node, run } = auditor.usage().run().clone();
    let begin = Beginning {
        node,
        run,
        from: Timestamp(kernel.now().0.saturating_add(kernel.wall_correction())),
        lost: Lost { kernel: kernel_lost, own: 0 },
        goes_on: kernel.is_resumed(),
    };
    let open = |url: &String| Bucket::open(url, &config.flow_bucket_access);
    let bucket =
        config.flow_bucket.as_ref().map(open).transpose().context("choose another with --flow-bucket")?;
    FlowStore::open(path, retention, bucket, &begin).map(Some).context("choose another with --flow-store")
}
