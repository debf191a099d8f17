//! The flow log: JSON lines appended to a file or stdout.
//!
//! A batch is written whole or not at all: when the disk is full, what got through is cut off again, the flows of the
//! batch are counted as lost, and the next batch is tried anew. A file that was moved away (logrotate) is opened again.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
};

use super::flow_line;
use crate::{audit::Flow, cluster::Cluster};

/// Where lines go.
#[derive(Debug)]
enum Target {
    Stdout,
    File { path: PathBuf, file: Option<File> },
}

/// The flow log of an agent run.
#[derive(Debug)]
pub struct FlowLog {
    target: Target,
    node: String,
    buffer: Vec<u8>,
    buffered: u64,
    lost: u64,
    failing: Option<String>,
}

impl FlowLog {
    /// Opens `target`, a path or `-` for stdout. Fails where it cannot be opened now: later faults are counted instead.
    pub fn open(target: &str, node: &str) -> io::Result<Self> {
        let target = if target == "-" {
            Target::Stdout
        } else {
            let path = PathBuf::from(target);
            let file = open(&path)?;
            Target::File { path, file: Some(file) }
        };
        Ok(Self { target, node: node.to_owned(), buffer: Vec::new(), buffered: 0, lost: 0, failing: None })
    }

    /// Adds a flow to the batch.
    pub fn push(&mut self, flow: &Flow, cluster: &Cluster) {
        flow_line(flow, cluster, &self.node, &mut self.buffer);
        self.buffer.push(b'\n');
        self.buffered += 1;
    }

    /// Writes the batch. A fault loses the batch's flows, counted; it is logged when it begins and when it ends.
    pub fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        match self.target.write(&self.buffer) {
            Ok(()) => {
                if let Some(fault) = self.failing.take() {
                    tracing::info!(fault, lost = self.lost, "the flow log is written again");
                }
            }
            Err(error) => {
                self.lost += self.buffered;
                if self.failing.is_none() {
                    tracing::error!(%error, "the flow log cannot be written: flows are counted, but not logged");
                }
                self.failing = Some(error.to_string());
            }
        }
        self.buffer.clear();
        self.buffered = 0;
    }

    /// Flows that were not written.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// What is wrong with the target right now.
    pub fn failing(&self) -> Option<&str> {
        self.failing.as_deref()
    }

    /// Opens the file again if another one, or none, has its name now. Call it every second or so.
    pub fn follow_rotation(&mut self) {
        if let Target::File { path, file } = &mut self.target {
            let same = |file: &File| -> io::Result<bool> {
                let (open, named) = (file.metadata()?, std::fs::metadata(&*path)?);
                Ok(open.ino() == named.ino() && open.dev() == named.dev())
            };
            if !file.as_ref().is_some_and(|file| same(file).unwrap_or(false)) {
                // A fault here shows at the next write, where it is counted.
                *file = open(path).ok();
            }
        }
    }
}

impl Target {
    fn write(&mut self, batch: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(batch)?;
                out.flush()
            }
            Self::File { path, file } => {
                let file = match file {
                    Some(file) => file,
                    None => file.insert(open(path)?),
                };
                let before = file.metadata().map(|data| (data.is_file(), data.len()));
                let result = file.write_all(batch);
                if result.is_err()
                    && let Ok((true, length)) = before
                {
                    // No torn line stays behind for a reader to trip over.
                    let _ = file.set_len(length);
                }
                result
            }
        }
    }
}

fn open(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}
