//! What agents keep in the kernel for those that come after them: an agent that is killed says nothing any more.

use aya::maps::{Array, Map, MapData, MapError};
use netaudit_ebpf::abi;

use super::{LoadError, ring::Position};

/// The map's name.
pub const MAP: &str = "KEPT";

/// What is kept.
pub struct Kept {
    map: Array<MapData, u64>,
    taken: Position,
}

impl Kept {
    /// Takes `map`.
    ///
    /// # Errors
    ///
    /// When it is another kind of map, or cannot be read.
    pub fn new(map: Map) -> Result<Self, LoadError> {
        let read = |map| {
            let map = Array::try_from(map)?;
            let taken = map.get(&abi::KEPT_TAKEN, 0)?;
            Ok(Self { map, taken: Position::new(taken as usize) })
        };
        read(map).map_err(|source| LoadError::Map { map: MAP, source })
    }

    /// Up to where records have been taken out of the ring: they may have been told.
    pub fn taken(&self) -> Position {
        self.taken
    }

    /// Records up to `position` have been taken. To be said before anybody is told of them.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn take(&mut self, position: Position) -> Result<(), MapError> {
        // What an earlier agent has taken is read again from where its room was given back.
        if position.bytes() > self.taken.bytes() {
            self.map.set(abi::KEPT_TAKEN, position.bytes() as u64, 0)?;
            self.taken = position;
        }
        Ok(())
    }

    /// Connections that looks found up to `until`, in nanoseconds since boot, have been told.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn tell(&mut self, until: u64) -> Result<(), MapError> {
        self.map.set(abi::KEPT_TOLD, until, 0)
    }
}
