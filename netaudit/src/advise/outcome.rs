//! The three answers, of one end or of both.

use serde::Serialize;

use crate::model::{Decision, Verdict};

/// What policies say of a connection, without the reasons.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It may pass.
    Allowed,
    /// It may not.
    Denied,
    /// It cannot be said.
    Unknown,
}

impl Outcome {
    /// `allowed`, `denied` or `unknown`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Unknown => "unknown",
        }
    }

    /// Of one end.
    pub const fn of(verdict: &Verdict) -> Self {
        match verdict.decision {
            Decision::Allowed(_) => Self::Allowed,
            Decision::Denied(_) => Self::Denied,
            Decision::Unknown(_) => Self::Unknown,
        }
    }

    /// Of its word; whatever is no word of these is not known.
    pub fn from_word(word: &str) -> Self {
        match word {
            "allowed" => Self::Allowed,
            "denied" => Self::Denied,
            _ => Self::Unknown,
        }
    }

    /// A connection is allowed if both ends allow it; one that denies decides even where the other is unknown.
    pub const fn both(one: Self, other: Self) -> Self {
        match (one, other) {
            (Self::Denied, _) | (_, Self::Denied) => Self::Denied,
            (Self::Allowed, Self::Allowed) => Self::Allowed,
            _ => Self::Unknown,
        }
    }
}
