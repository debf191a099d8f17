//! From the kernel's time since boot to the wall clock.

use std::time::{Duration, Instant};

use crate::model::Timestamp;

/// How far the wall clock is ahead of the boot clock. Someone may set the wall clock, so the difference is read again
/// from time to time; records keep the order that the boot clock gave them within one reading.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    offset: i64,
    read: Instant,
}

/// How old a reading may get. A step of the wall clock shows in records within this time.
const VALID: Duration = Duration::from_millis(500);

impl Clock {
    /// Reads both clocks.
    pub fn now() -> Self {
        Self { offset: difference(), read: Instant::now() }
    }

    /// A clock with a fixed difference in nanoseconds, for tests and recorded data.
    pub fn fixed(offset: i64) -> Self {
        Self { offset, read: Instant::now() }
    }

    /// Reads the clocks again if the last reading is old.
    pub fn refresh(&mut self) {
        if self.read.elapsed() >= VALID {
            let offset = difference();
            // The clocks are read one after the other, and NTP slews one of them: below a millisecond that is noise,
            // and following it would put records out of order.
            if offset.abs_diff(self.offset) >= 1_000_000 {
                self.offset = offset;
            }
            self.read = Instant::now();
        }
    }

    /// The wall-clock time of a kernel stamp.
    pub fn wall(&self, boot: u64) -> Timestamp {
        Timestamp(i64::try_from(boot).unwrap_or(i64::MAX).saturating_add(self.offset))
    }
}

fn difference() -> i64 {
    let boot = nanoseconds(rustix::time::clock_gettime(rustix::time::ClockId::Boottime));
    let wall = nanoseconds(rustix::time::clock_gettime(rustix::time::ClockId::Realtime));
    wall - boot
}

fn nanoseconds(time: rustix::time::Timespec) -> i64 {
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_become_wall_clock_and_saturate() {
        let clock = Clock::fixed(1_000);
        assert_eq!(clock.wall(5), Timestamp(1_005));
        assert_eq!(clock.wall(u64::MAX), Timestamp(i64::MAX));
    }

    #[test]
    fn the_difference_is_that_of_the_two_clocks() {
        let clock = Clock::now();
        let boot = nanoseconds(rustix::time::clock_gettime(rustix::time::ClockId::Boottime));
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let apart = clock.wall(boot as u64).0.abs_diff(wall.as_nanos() as i64);
        assert!(apart < 1_000_000_000, "{apart} ns apart");
    }
}
