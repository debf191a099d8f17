//! Reads the ring without giving up what was read: the kernel gets the room back only when it is released, so that whoever
//! comes after a killed agent reads again what that one had not finished.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
};

use aya::maps::{Map, MapData};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Bits of a record's header beside its length, from the kernel's `BPF_RINGBUF_*_BIT`.
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
/// Bytes before each record.
const HEADER: usize = 8;

/// A position in all that was ever written to a ring, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position(usize);

impl Position {
    /// After so many bytes.
    pub const fn new(bytes: usize) -> Self {
        Self(bytes)
    }

    /// How many bytes it is after.
    pub const fn bytes(self) -> usize {
        self.0
    }

    /// How many bytes lie between an earlier position and this one.
    pub fn since(self, earlier: Self) -> usize {
        self.0.wrapping_sub(earlier.0)
    }
}

/// The reader of a ring. There must be no other.
pub struct Ring {
    map: MapData,
    consumer: Pages,
    producer: Pages,
    page: usize,
    mask: usize,
    read: usize,
    /// Up to where an earlier reader has read.
    read_before: usize,
    /// The producer's position as it was last seen.
    written: usize,
    released: usize,
    corrupt: u64,
    /// A record that crosses the end of the data, in one piece.
    joined: Vec<u8>,
}

impl Ring {
    /// Begins where the ring was last released. An earlier reader has read up to `read_before`, which may be further.
    ///
    /// # Errors
    ///
    /// When `map` is no ring, or its pages cannot be mapped.
    pub fn new(map: Map, read_before: Position) -> io::Result<Self> {
        let Map::RingBuf(map) = map else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the map is no ring"));
        };
        let size = map.info().map_err(io::Error::other)?.max_entries() as usize;
        let page = rustix::param::page_size();
        let descriptor = map.fd().as_fd();
        let consumer = Pages::map(descriptor, 0, page, ProtFlags::READ | ProtFlags::WRITE)?;
        // The kernel offers the data twice in a row, for records that cross the end. Their pages would count twice as our
        // memory; such a record is copied instead.
        let producer = Pages::map(descriptor, page as u64, page + size, ProtFlags::READ)?;
        let released = consumer.position().load(Ordering::Acquire);
        let written = producer.position().load(Ordering::Acquire);
        Ok(Self {
            map,
            consumer,
            producer,
            page,
            mask: size - 1,
            read: released,
            read_before: read_before.0.min(written),
            written,
            released,
            corrupt: 0,
            joined: Vec::new(),
        })
    }

    /// The next record; `None` where there is none yet.
    pub fn next(&mut self) -> Option<&[u8]> {
        let (offset, length) = loop {
            match self.peek(self.read) {
                Peek::Nothing => return None,
                Peek::Record { offset, length, end } => {
                    self.read = end;
                    break (offset, length);
                }
                Peek::Corrupt => {
                    self.corrupt += 1;
                    self.read = self.written;
                }
            }
        };
        self.producer.record(offset, length, self.page, &mut self.joined)
    }

    /// Goes through the records that have not been read, and leaves them unread.
    pub fn for_each_unread(&mut self, mut seen: impl FnMut(&[u8])) {
        let mut position = self.read;
        while let Peek::Record { offset, length, end } = self.peek(position) {
            position = end;
            if let Some(record) = self.producer.record(offset, length, self.page, &mut self.joined) {
                seen(record);
            }
        }
    }

    /// Up to where records have been read.
    pub fn position(&self) -> Position {
        Position(self.read)
    }

    /// Whether the record that was read last had been read by an earlier reader.
    pub fn is_read_again(&self) -> bool {
        self.read <= self.read_before
    }

    /// Up to where they have been released.
    pub fn released(&self) -> Position {
        Position(self.released)
    }

    /// Gives the room of all records before `position` back to the kernel. A position that was released before, or that
    /// has not been read, changes nothing.
    pub fn release(&mut self, position: Position) {
        if position.since(self.released()) <= self.position().since(self.released()) {
            self.released = position.0;
            // The kernel reads it before it writes over the records, which we are done with.
            self.consumer.position().store(position.0, Ordering::Release);
        }
    }

    /// How many bytes it has room for.
    pub fn size(&self) -> usize {
        self.mask + 1
    }

    /// How often a header was met that no kernel writes; all that had been written by then was left out.
    pub fn corrupt(&self) -> u64 {
        self.corrupt
    }

    fn peek(&mut self, mut position: usize) -> Peek {
        loop {
            if position == self.written {
                self.written = self.producer.position().load(Ordering::Acquire);
                if position == self.written {
                    return Peek::Nothing;
                }
            }
            let offset = self.page + (position & self.mask);
            let Some(header) = self.producer.word(offset) else { return Peek::Corrupt };
            // Pairs with the exchange by which the kernel clears the busy bit: the record is whole after it.
            let header = header.load(Ordering::Acquire);
            if header & BUSY != 0 {
                return Peek::Nothing;
            }
            let length = (header & !DISCARDED) as usize;
            let taken = (HEADER + length).next_multiple_of(8);
            if taken > self.written.wrapping_sub(position) {
                return Peek::Corrupt;
            }
            let end = position.wrapping_add(taken);
            if header & DISCARDED == 0 {
                return Peek::Record { offset: offset + HEADER, length, end };
            }
            position = end;
        }
    }
}

/// What is at a position.
enum Peek {
    /// Nothing yet.
    Nothing,
    /// A record: where it lies in the producer's pages, how long it is, and the position after it.
    Record { offset: usize, length: usize, end: usize },
    /// No header that the kernel writes.
    Corrupt,
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }
}

/// Mapped pages of a ring.
struct Pages {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the value alone, and is reached through it only.
unsafe impl Send for Pages {}

impl Pages {
    fn map(descriptor: BorrowedFd<'_>, offset: u64, length: usize, how: ProtFlags) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { mmap(ptr::null_mut(), length, how, MapFlags::SHARED, descriptor, offset) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }

    /// The position that the first page begins with.
    fn position(&self) -> &AtomicUsize {
        // SAFETY: the mapping is at least a page long, and aligned to one; the kernel writes the word as a whole.
        unsafe { self.start.cast::<AtomicUsize>().as_ref() }
    }

    fn word(&self, offset: usize) -> Option<&AtomicU32> {
        if !offset.is_multiple_of(4) || offset.checked_add(4)? > self.length {
            return None;
        }
        // SAFETY: aligned and within the mapping, as just tested.
        Some(unsafe { self.start.add(offset).cast::<AtomicU32>().as_ref() })
    }

    /// A committed record that has not been released: the kernel does not write there. One that crosses the end goes on at
    /// `beginning`, and is put into `joined`.
    fn record<'a>(
        &'a self,
        offset: usize,
        length: usize,
        beginning: usize,
        joined: &'a mut Vec<u8>,
    ) -> Option<&'a [u8]> {
        let until_end = self.length.checked_sub(offset)?;
        let Some(rest) = length.checked_sub(until_end).filter(|rest| *rest > 0) else {
            return self.bytes(offset, length);
        };
        joined.clear();
        joined.extend_from_slice(self.bytes(offset, until_end)?);
        joined.extend_from_slice(self.bytes(beginning, rest)?);
        Some(joined)
    }

    fn bytes(&self, offset: usize, length: usize) -> Option<&[u8]> {
        if offset.checked_add(length)? > self.length {
            return None;
        }
        // SAFETY: within the mapping, as just tested, which lives as long as `self`.
        Some(unsafe { std::slice::from_raw_parts(self.start.add(offset).as_ptr(), length) })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of which nothing is borrowed any more. That it fails cannot be helped.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}
