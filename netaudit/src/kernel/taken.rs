//! Up to where records have been taken out of a ring, kept beside it in the kernel: an agent that is killed may have told of them,
//! though it has not given their room back.

use aya::maps::{Array, Map, MapData, MapError};

use super::{LoadError, ring::Position};

/// The map's name.
pub const MAP: &str = "TAKEN";

/// Where that is kept.
pub struct Taken {
    map: Array<MapData, u64>,
    kept: Position,
}

impl Taken {
    /// Takes `map`.
    ///
    /// # Errors
    ///
    /// When it is another kind of map, or cannot be read.
    pub fn new(map: Map) -> Result<Self, LoadError> {
        let read = |map| {
            let map = Array::try_from(map)?;
            let kept = map.get(&0, 0)?;
            Ok(Self { map, kept: Position::new(kept as usize) })
        };
        read(map).map_err(|source| LoadError::Map { map: MAP, source })
    }

    /// Up to where they have been taken.
    pub fn kept(&self) -> Position {
        self.kept
    }

    /// Records up to `position` have been taken. To be said before anybody is told of them.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn keep(&mut self, position: Position) -> Result<(), MapError> {
        // What an earlier agent has taken is read again from where its room was given back.
        if position.bytes() > self.kept.bytes() {
            self.map.set(0, position.bytes() as u64, 0)?;
            self.kept = position;
        }
        Ok(())
    }
}
