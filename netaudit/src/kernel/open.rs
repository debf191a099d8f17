//! Looks at open connections: what the programs read for it, and how what they write is taken.
//!
//! A look goes through every file that a process of the node has open, so it is read by a thread of its own: whoever takes what it
//! finds is held up by that alone.

use std::{
    fs::File,
    io::{self, Read as _},
    sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    thread,
    time::Duration,
};

use netaudit_ebpf::abi::{FlowRecord, Settings, open};

use super::{
    Clock, Feature,
    btf::{BtfError, Field, Types},
    decode,
};
use crate::model::{BlindReader, Observation, OpenConnection, OpenSocket, Protocol, Timestamp};

/// What the kernel gives at once: the size of its own buffer.
const CHUNK: usize = 32 << 10;

/// Chunks that may wait to be taken.
const WAITING: usize = 16;

/// Adds to `settings` where the kernel keeps what tells which end a connection is that no hook saw begin.
///
/// # Errors
///
/// When the kernel lacks it: such an end is then not known.
pub fn settings(types: &Types<'_>, settings: &mut Settings) -> Result<(), BtfError> {
    let byte = |structure: &str, path: &str| types.field(structure, path).map(Field::byte);
    settings.sk_backlog = byte("sock", "sk_max_ack_backlog")?;
    settings.bucket_reuse = byte("inet_bind_bucket", "fastreuse")?;
    settings.bucket_reuse_port = byte("inet_bind_bucket", "fastreuseport")?;
    settings.arrival4 = byte("inet_sock", "mc_index")?;
    settings.inet6 = byte("inet_sock", "pinet6")?;
    settings.arrival6 = byte("ipv6_pinfo", "mcast_oif")?;
    // Last, since the programs go by it.
    settings.bind_bucket = byte("inet_connection_sock", "icsk_bind_hash")?;
    Ok(())
}

/// What is to be had of open connections, where sockets can be looked through as `sockets` says.
pub fn feature(sockets: &Feature, ends: Result<(), BtfError>) -> Feature {
    let absent = sockets.absent.clone().or_else(|| {
        let missing = ends.err()?;
        Some(format!(
            "those from before the start are not judged, as nothing says which end they are: {missing}"
        ))
    });
    Feature { name: Feature::CONNECTIONS, absent }
}

/// A look that goes on.
#[derive(Debug)]
pub struct Look {
    chunks: Receiver<io::Result<Vec<u8>>>,
    clock: Clock,
    /// When this agent run began: what was found before, another one may have told.
    run: Timestamp,
    chunk: Vec<u8>,
    /// How many bytes of it are taken.
    taken: usize,
}

/// How far a [`Look`] is.
#[derive(Debug)]
pub enum Looked {
    /// There may be more.
    InPart,
    /// This was all.
    Whole,
    /// The rest cannot be read.
    Failed(io::Error),
}

impl Look {
    /// Begins to read the iterator in `file`.
    ///
    /// # Errors
    ///
    /// When no thread can be had.
    pub(super) fn begin(file: File, clock: Clock, run: Timestamp) -> io::Result<Self> {
        let (sender, chunks) = sync_channel(WAITING);
        thread::Builder::new().name("look".to_owned()).spawn(move || read(file, &sender))?;
        Ok(Self { chunks, clock, run, chunk: Vec::new(), taken: 0 })
    }

    /// Takes up to `max` sockets of those that were found so far, without waiting for more.
    pub fn take(&mut self, max: usize, sink: &mut dyn FnMut(OpenSocket)) -> Looked {
        for _ in 0..max {
            if self.taken >= self.chunk.len() {
                match self.chunks.try_recv() {
                    Ok(chunk) => {
                        if let Err(failed) = self.turn_to(chunk) {
                            return Looked::Failed(failed);
                        }
                    }
                    Err(TryRecvError::Empty) => return Looked::InPart,
                    Err(TryRecvError::Disconnected) => return Looked::Whole,
                }
            }
            self.next(sink);
        }
        Looked::InPart
    }

    /// Takes all, and waits for it.
    ///
    /// # Errors
    ///
    /// When the rest cannot be read.
    pub fn take_all(mut self, sink: &mut dyn FnMut(OpenSocket)) -> io::Result<()> {
        while let Ok(chunk) = self.chunks.recv() {
            self.turn_to(chunk)?;
            while self.taken < self.chunk.len() {
                self.next(sink);
            }
        }
        Ok(())
    }

    fn turn_to(&mut self, chunk: io::Result<Vec<u8>>) -> io::Result<()> {
        self.chunk = chunk?;
        self.taken = 0;
        Ok(())
    }

    fn next(&mut self, sink: &mut dyn FnMut(OpenSocket)) {
        let rest = self.chunk.get(self.taken..).unwrap_or_default();
        if let Some(record) = rest.get(..size_of::<FlowRecord>()).and_then(decode::take_flow) {
            sink(self.found(&record));
        }
        self.taken += size_of::<FlowRecord>();
    }

    fn found(&self, record: &FlowRecord) -> OpenSocket {
        if record.kind == open::BLIND_READER {
            let Observation { socket, netns, local, actor, .. } = decode::observation(record, &self.clock);
            return OpenSocket::BlindReader(BlindReader { socket, netns, local, actor });
        }
        let found = open_of(record, &self.clock);
        let maybe_repeated = !found.is_told && found.seen.at < self.run;
        let seen = Observation { maybe_repeated, ..found.seen };
        OpenSocket::Connection(OpenConnection { seen, ..found })
    }
}

fn open_of(record: &FlowRecord, clock: &Clock) -> OpenConnection {
    let unknown_end =
        (record.kind == open::UNKNOWN_END).then(|| open::reason(record.detail).unwrap_or("kernel"));
    let detail = if unknown_end.is_some() { 0 } else { record.detail };
    let mut seen = decode::observation(&FlowRecord { detail, ..*record }, clock);
    seen.protocol = Protocol::Tcp;
    seen.waited = Duration::ZERO;
    OpenConnection {
        seen,
        looked: clock.wall(record.at),
        is_told: record.flags & open::TOLD != 0,
        unknown_end,
    }
}

/// Reads to the end, and hands on whole records only: the kernel never gives half of one.
fn read(mut file: File, chunks: &SyncSender<io::Result<Vec<u8>>>) {
    loop {
        let mut chunk = vec![0; CHUNK];
        let result = match file.read(&mut chunk) {
            Ok(0) => return,
            Ok(length) => {
                chunk.truncate(length);
                Ok(chunk)
            }
            // It has gone through a million files of which none had anything to tell, and goes on when asked again.
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                continue;
            }
            Err(error) => Err(error),
        };
        let is_last = result.is_err();
        // Nobody takes them any more where the look was given up.
        if chunks.send(result).is_err() || is_last {
            return;
        }
    }
}
