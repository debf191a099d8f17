//! A Parquet file, in a directory or in a bucket, of which parts are read.

use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parquet::{
    errors::ParquetError,
    file::reader::{ChunkReader, Length},
};

use crate::store::bucket::{Bucket, Object};

/// Bytes at the end of an object that are asked for at once: most footers fit.
pub(in crate::store) const TAIL: u64 = 64 << 10;

/// Bytes of an object that is read at once.
const SMALL: u64 = 16 << 20;

/// Bytes that are read at once where nobody says how many are needed.
const STEP: u64 = 8 << 10;

/// Where a file is.
#[derive(Clone, Debug)]
pub(in crate::store) enum Place {
    File(PathBuf),
    Object(Bucket, Object),
}

impl Place {
    /// For people.
    pub fn name(&self) -> PathBuf {
        match self {
            Self::File(path) => path.clone(),
            Self::Object(bucket, object) => bucket.url_of(&object.key).into(),
        }
    }

    pub fn open(&self) -> anyhow::Result<Source> {
        match self {
            Self::File(path) => Ok(Source::of_file(path)?),
            Self::Object(bucket, object) => Ok(Source::of_object(bucket, object, Bytes::new())),
        }
    }
}

/// A file that is read.
#[derive(Clone, Debug)]
pub(in crate::store) struct Source {
    from: From,
    bytes: u64,
}

#[derive(Clone, Debug)]
enum From {
    File(Arc<File>),
    /// With the last bytes, where they are known.
    Object(Bucket, Object, Bytes),
}

impl Source {
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { from: From::File(Arc::new(file)), bytes })
    }

    /// `tail` are the last bytes of it.
    pub fn of_object(bucket: &Bucket, object: &Object, tail: Bytes) -> Self {
        Self { bytes: object.bytes, from: From::Object(bucket.clone(), object.clone(), tail) }
    }

    /// The same, in memory where it is in a bucket and small: its columns are so short that each would be a request.
    pub fn whole_if_small(self) -> anyhow::Result<Self> {
        match self.from {
            From::Object(bucket, object, tail) if (tail.len() as u64) < self.bytes && self.bytes <= SMALL => {
                let whole = bucket
                    .ranges(&object.key, &[Range { start: 0, end: self.bytes }])?
                    .pop()
                    .unwrap_or_default();
                Ok(Self::of_object(&bucket, &object, whole))
            }
            from => Ok(Self { from, bytes: self.bytes }),
        }
    }

    /// Parts of it.
    pub fn ranges(&self, ranges: &[Range<u64>]) -> anyhow::Result<Vec<Bytes>> {
        match &self.from {
            From::File(file) => {
                let read = |range: &Range<u64>| {
                    let mut part = vec![0; usize::try_from(range.end - range.start).unwrap_or(usize::MAX)];
                    file.read_exact_at(&mut part, range.start)?;
                    Ok(part.into())
                };
                ranges.iter().map(read).collect()
            }
            From::Object(bucket, object, tail) => {
                let known = self.bytes - tail.len() as u64;
                if ranges.iter().all(|range| range.start >= known) {
                    let place = |at: u64| usize::try_from(at - known).unwrap_or(usize::MAX);
                    return Ok(ranges
                        .iter()
                        .map(|range| tail.slice(place(range.start)..place(range.end)))
                        .collect());
                }
                bucket.ranges(&object.key, ranges)
            }
        }
    }

    fn range(&self, range: Range<u64>) -> anyhow::Result<Bytes> {
        anyhow::ensure!(range.start <= range.end && range.end <= self.bytes, "it ends too early");
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        Ok(self.ranges(&[range])?.pop().unwrap_or_default())
    }
}

impl Length for Source {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for Source {
    type T = Reader;

    fn get_read(&self, start: u64) -> Result<Reader, ParquetError> {
        Ok(Reader { of: self.clone(), at: start, part: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.range(start..start.saturating_add(length as u64))
            .map_err(|error| ParquetError::External(error.into_boxed_dyn_error()))
    }
}

/// Reads on from a place.
#[derive(Debug)]
pub(in crate::store) struct Reader {
    of: Source,
    at: u64,
    part: Bytes,
}

impl Read for Reader {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.part.is_empty() {
            let end = self.of.bytes.min(self.at.saturating_add(STEP.max(to.len() as u64)));
            if self.at >= end {
                return Ok(0);
            }
            self.part = self.of.range(self.at..end).map_err(io::Error::other)?;
            self.at = end;
        }
        let count = to.len().min(self.part.len());
        to[..count].copy_from_slice(&self.part.split_to(count));
        Ok(count)
    }
}
