//! Time as the core sees it: a number that somebody else read from a clock.

use std::{fmt, time::Duration};

/// Nanoseconds since the Unix epoch, UTC.
///
/// The agent converts the kernel's boot-time stamps once, at the edge, so that everything behind it has one time line.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Earlier than every time that is observed.
    pub const MIN: Self = Self(i64::MIN);
    /// Later than every time that is observed.
    pub const MAX: Self = Self(i64::MAX);

    /// The time `seconds` after the epoch.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds * 1_000_000_000)
    }

    /// Seconds since the epoch with their fraction, the unit of Prometheus timestamps.
    pub fn as_seconds(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// This time and `duration` more; stays at [`Timestamp::MAX`] rather than wrapping.
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)))
    }

    /// This time less `duration`; stays at [`Timestamp::MIN`] rather than wrapping.
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; zero where it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// RFC 3339 in UTC to the second, for people, where nothing is known better.
    pub fn to_the_second(self) -> String {
        match jiff::Timestamp::from_second(self.0.div_euclid(1_000_000_000)) {
            Ok(time) => time.to_string(),
            Err(_) => self.to_string(),
        }
    }
}

/// RFC 3339 in UTC with nine digits of fraction, as the flow log writes it.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(time) => write!(f, "{time:.9}"),
            Err(_) => write!(f, "{}ns", self.0),
        }
    }
}

/// A duration as people write it: `20ms`, `36h`, `7d`. `None` where it is none, or negative.
pub fn duration(text: &str) -> Option<Duration> {
    // Days are 24 hours here: jiff's own durations rightly refuse to say how long a day is.
    if let Some(days) = text.trim().strip_suffix('d')
        && let Ok(days) = days.trim().parse::<u32>()
    {
        return Some(Duration::from_secs(u64::from(days) * 24 * 3600));
    }
    Duration::try_from(text.parse::<jiff::SignedDuration>().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_rfc_3339_with_nanoseconds() {
        assert_eq!(Timestamp(1_700_000_000_000_000_001).to_string(), "2023-11-14T22:13:20.000000001Z");
        assert_eq!(Timestamp::from_seconds(0).to_string(), "1970-01-01T00:00:00.000000000Z");
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Timestamp::MAX.plus(Duration::from_secs(1)), Timestamp::MAX);
        assert_eq!(Timestamp::MIN.minus(Duration::from_secs(1)), Timestamp::MIN);
        assert_eq!(Timestamp(5).since(Timestamp(7)), Duration::ZERO);
    }
}
