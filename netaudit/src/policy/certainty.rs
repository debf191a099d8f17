//! How sure one can be that something matches.

/// Three-valued logic for objects that are partly invalid. In order: what is doubtful stands between no and yes, so
/// that `and` is the minimum and `or` the maximum.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Certainty {
    /// It does not match, whatever the invalid parts were meant to say.
    No,
    /// It depends on something invalid or unknown.
    Maybe,
    /// It matches, whatever the invalid parts were meant to say.
    Yes,
}

impl Certainty {
    /// Both hold.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        self.min(other)
    }

    /// Either holds.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        self.max(other)
    }
}

impl From<bool> for Certainty {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}
