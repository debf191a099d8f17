//! The flow log: JSON lines appended to a file or stdout.
//!
//! A thread writes, so that a disk or a reader that stalls never holds up the agent: what does not fit into a bounded queue
//! is counted as lost. A file gets a batch whole or not at all: when the disk is full, what got through is cut off again,
//! the flows of the batch are counted as lost, and the next batch is tried anew. A file that was moved away (logrotate) is
//! opened again.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use rustix::{
    fs::{OFlags, fcntl_setfl},
    io::Errno,
};

use super::flow_line;
use crate::audit::line::Telling;

/// Bytes that may wait for the writer.
const QUEUE_BYTES: usize = 32 << 20;

/// Bytes that go to the writer at once: a burst must not be one batch that fits no queue.
const BATCH_BYTES: usize = 1 << 20;

/// The flow log of an agent run.
#[derive(Debug)]
pub struct FlowLog {
    buffer: Vec<u8>,
    buffered: u64,
    /// Flows that were pushed.
    handed: u64,
    queue: mpsc::Sender<Batch>,
    shared: Arc<Shared>,
    done: mpsc::Receiver<()>,
}

#[derive(Debug)]
struct Batch {
    lines: Vec<u8>,
    flows: u64,
}

/// What the writer tells.
#[derive(Debug, Default)]
struct Shared {
    lost: AtomicU64,
    queued: AtomicUsize,
    queued_flows: AtomicU64,
    failing: Mutex<Option<String>>,
}

impl FlowLog {
    /// Opens `target`, a path or `-` for stdout. Fails where it cannot be opened now: later faults are counted instead.
    pub fn open(target: &str) -> io::Result<Self> {
        let mut writer = Writer::open(target)?;
        let (queue, batches) = mpsc::channel::<Batch>();
        let (finished, done) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let told = shared.clone();
        thread::Builder::new().name("flow-log".to_owned()).spawn(move || {
            for batch in batches {
                told.wrote(&batch, writer.write(&batch.lines));
            }
            // Nobody waits any more where the agent has given up on us.
            let _ = finished.send(());
        })?;
        Ok(Self { buffer: Vec::new(), buffered: 0, handed: 0, queue, shared, done })
    }

    /// Adds a flow to the batch.
    pub fn push(&mut self, telling: &Telling<'_>) {
        flow_line(telling, &mut self.buffer);
        self.buffer.push(b'\n');
        self.buffered += 1;
        self.handed += 1;
        if self.buffer.len() >= BATCH_BYTES {
            self.flush();
        }
    }

    /// Hands the batch to the writer. A batch that does not fit into the queue is lost, counted.
    pub fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let batch =
            Batch { lines: std::mem::take(&mut self.buffer), flows: std::mem::take(&mut self.buffered) };
        let (bytes, flows) = (batch.lines.len(), batch.flows);
        self.shared.queued_flows.fetch_add(flows, Ordering::Relaxed);
        if self.shared.queued.fetch_add(bytes, Ordering::Relaxed) + bytes > QUEUE_BYTES {
            self.shared.queued.fetch_sub(bytes, Ordering::Relaxed);
            self.shared.queued_flows.fetch_sub(flows, Ordering::Relaxed);
            self.shared.failed(flows, "whoever takes the lines is too slow");
        } else if let Err(mpsc::SendError(batch)) = self.queue.send(batch) {
            self.shared.failed(batch.flows, "the writer has ended");
        }
    }

    /// Flows that were handed over.
    pub fn handed(&self) -> u64 {
        self.handed
    }

    /// How many of them, the first ones first, are written or lost.
    pub fn done(&self) -> u64 {
        // Written ones leave the count after the write.
        self.handed - self.buffered - self.shared.queued_flows.load(Ordering::Acquire)
    }

    /// Flows that were not written.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// What is wrong with the target right now.
    pub fn failing(&self) -> Option<String> {
        self.shared.failing.lock().ok()?.clone()
    }

    /// Waits until everything is written, but no longer than `limit`. Returns how many flows were not written in all.
    pub fn finish(mut self, limit: Duration) -> u64 {
        self.flush();
        let Self { queue, done, shared, .. } = self;
        drop(queue);
        // What is still queued when the time is up ends with the process.
        let _ = done.recv_timeout(limit);
        shared.lost.load(Ordering::Relaxed) + shared.queued_flows.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn wrote(&self, batch: &Batch, result: io::Result<()>) {
        self.queued.fetch_sub(batch.lines.len(), Ordering::Relaxed);
        self.queued_flows.fetch_sub(batch.flows, Ordering::Release);
        match result {
            Err(error) => self.failed(batch.flows, &error.to_string()),
            Ok(()) => {
                if let Some(fault) = self.failing.lock().ok().and_then(|mut failing| failing.take()) {
                    tracing::info!(
                        fault,
                        lost = self.lost.load(Ordering::Relaxed),
                        "the flow log is written again"
                    );
                }
            }
        }
    }

    /// Counts flows as lost. The fault is logged when it begins.
    fn failed(&self, flows: u64, fault: &str) {
        self.lost.fetch_add(flows, Ordering::Relaxed);
        let Ok(mut failing) = self.failing.lock() else { return };
        if failing.is_none() {
            tracing::error!(fault, "the flow log cannot be written: flows are counted, but not logged");
        }
        *failing = Some(fault.to_owned());
    }
}

/// Where lines go.
#[derive(Debug)]
enum Writer {
    Stdout,
    File { path: PathBuf, file: Option<File> },
}

impl Writer {
    fn open(target: &str) -> io::Result<Self> {
        if target == "-" {
            return Ok(Self::Stdout);
        }
        let path = PathBuf::from(target);
        let file = Some(open(&path)?);
        Ok(Self::File { path, file })
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.follow_rotation();
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(lines)?;
                out.flush()
            }
            Self::File { path, file } => {
                let file = match file {
                    Some(file) => file,
                    None => file.insert(open(path)?),
                };
                let before = file.metadata().map(|data| (data.is_file(), data.len()));
                let result = file.write_all(lines);
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

    /// Opens the file again if another one, or none, has its name now. Before each batch: whoever reads what was moved away lets go of it
    /// soon, and would miss what came there later.
    fn follow_rotation(&mut self) {
        let Self::File { path, file } = self else { return };
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

/// Opens without waiting: a FIFO that nobody reads would hold up the agent's start, and its end, for ever.
fn open(path: &PathBuf) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits() as i32;
    let file =
        OpenOptions::new().create(true).append(true).custom_flags(flags).open(path).map_err(|error| {
            match error.raw_os_error() {
                Some(code) if code == Errno::NXIO.raw_os_error() => {
                    io::Error::new(error.kind(), "nobody reads the FIFO: start its reader first")
                }
                _ => error,
            }
        })?;
    // The writer's thread may wait for a slow reader; only it is held up by that.
    fcntl_setfl(&file, OFlags::APPEND)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_a_rotation_is_in_the_new_file_from_its_first_line_on() -> anyhow::Result<()> {
        let directory = tempfile::tempdir()?;
        let [log, moved] = ["flows.jsonl", "flows.jsonl.1"].map(|name| directory.path().join(name));
        let mut writer = Writer::open(&log.display().to_string())?;
        writer.write(b"1\n")?;
        std::fs::rename(&log, &moved)?;
        writer.write(b"2\n")?;
        writer.write(b"3\n")?;
        assert_eq!((std::fs::read(&moved)?, std::fs::read(&log)?), (b"1\n".to_vec(), b"2\n3\n".to_vec()));
        // Somebody else has made the next one.
        std::fs::rename(&log, &moved)?;
        std::fs::write(&log, "")?;
        writer.write(b"4\n")?;
        std::fs::remove_file(&log)?;
        writer.write(b"5\n")?;
        assert_eq!((std::fs::read(&moved)?, std::fs::read(&log)?), (b"2\n3\n".to_vec(), b"5\n".to_vec()));
        Ok(())
    }
}
