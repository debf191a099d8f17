//! The flow store's files, and what becomes of them in a bucket.

use prometheus_client::registry::Unit;

use super::family::Family;

/// What there is of the flow store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowStoreState {
    /// Parquet files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that were removed since the start, as they were too old or too much.
    pub removed: u64,
}

/// What became of files of flows that are to be in a bucket.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct FlowBucketState {
    /// Files that were uploaded since the start.
    pub uploaded: u64,
    /// Attempts that failed since the start.
    pub failed: u64,
    /// Files that wait.
    pub waiting: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// When the oldest of them was made, in seconds since the epoch, where one waits.
    pub oldest: Option<f64>,
}

pub(super) fn flow_store(store: FlowStoreState) -> [Family; 3] {
    [
        Family::gauge("netaudit_flow_store_files", "Parquet files of the flow store")
            .with(vec![], store.files as f64),
        Family::gauge("netaudit_flow_store", "Size of the Parquet files of the flow store")
            .unit(Unit::Bytes)
            .with(vec![], store.bytes as f64),
        Family::counter(
            "netaudit_flow_store_removed_files",
            "Files of the flow store that were removed, as they were too old or too much",
        )
        .with(vec![], store.removed as f64),
    ]
}

pub(super) fn flow_bucket(bucket: FlowBucketState) -> [Family; 5] {
    [
        Family::counter("netaudit_flow_bucket_uploaded_files", "Files of the flow store that were uploaded")
            .with(vec![], bucket.uploaded as f64),
        Family::counter("netaudit_flow_bucket_failures", "Attempts to upload a file of the flow store that failed")
            .with(vec![], bucket.failed as f64),
        Family::gauge("netaudit_flow_bucket_waiting_files", "Files of the flow store that wait for their upload")
            .with(vec![], bucket.waiting as f64),
        Family::gauge(
            "netaudit_flow_bucket_waiting",
            "Size of the files of the flow store that wait for their upload",
        )
        .unit(Unit::Bytes)
        .with(vec![], bucket.waiting_bytes as f64),
        Family::gauge(
            "netaudit_flow_bucket_oldest_waiting_timestamp",
            "When the oldest file of the flow store that waits for its upload was made; absent where none waits",
        )
        .unit(Unit::Seconds)
        .with_all(bucket.oldest.map(|oldest| (vec![], oldest))),
    ]
}
