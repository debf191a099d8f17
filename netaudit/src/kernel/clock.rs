//! The agent's time line: the kernel's time since boot, shifted so that it reads like the wall clock at load.
//!
//! It never steps. The wall clock does, when someone sets it: a time line that followed would put what began before
//! into the future, and match flows with pods that were not there. What is shown to people is corrected on its way
//! out, by [`Clock::correction`].

use crate::model::Timestamp;

/// How far the wall clock was ahead of the boot clock when the clock was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clock {
    offset: i64,
}

/// The clocks are read one after the other, and NTP slews one of them: a smaller difference is noise.
const NOISE: u64 = 1_000_000;

impl Clock {
    /// Reads both clocks, for the only time.
    pub fn now() -> Self {
        Self { offset: difference() }
    }

    /// A clock with a fixed difference in nanoseconds, for tests and recorded data.
    pub fn fixed(offset: i64) -> Self {
        Self { offset }
    }

    /// How far this line is ahead of the time since boot, in nanoseconds.
    pub fn ahead(&self) -> i64 {
        self.offset
    }

    /// The time of a kernel stamp, which is in nanoseconds since boot.
    pub fn wall(&self, boot: u64) -> Timestamp {
        Timestamp(i64::try_from(boot).unwrap_or(i64::MAX).saturating_add(self.offset))
    }

    /// The inverse of [`Clock::wall`].
    pub fn since_boot(&self, time: Timestamp) -> u64 {
        u64::try_from(time.0.saturating_sub(self.offset)).unwrap_or(0)
    }

    /// This moment.
    pub fn time(&self) -> Timestamp {
        self.wall(Self::boot())
    }

    /// Nanoseconds since boot, as the kernel stamps.
    pub fn boot() -> u64 {
        u64::try_from(boot()).unwrap_or(0)
    }

    /// What to add to a time of this clock for the wall clock as it is set now, in nanoseconds; 0 below a millisecond.
    pub fn correction(&self) -> i64 {
        self.correction_for(difference())
    }

    /// As [`Clock::correction`], where the wall clock is ahead of the boot clock by `difference`.
    fn correction_for(&self, difference: i64) -> i64 {
        let correction = difference.saturating_sub(self.offset);
        if correction.unsigned_abs() < NOISE { 0 } else { correction }
    }
}

/// How far the wall clock is ahead of the boot clock.
fn difference() -> i64 {
    // Of several tries the one in which least time passed, since what passes between the readings is an error.
    let attempt = || {
        let before = boot();
        let wall = nanoseconds(rustix::time::clock_gettime(rustix::time::ClockId::Realtime));
        let passed = boot() - before;
        (passed, wall - before - passed / 2)
    };
    let tries = [attempt(), attempt(), attempt()];
    let [(_, first), ..] = tries;
    tries.into_iter().min_by_key(|(passed, _)| *passed).map_or(first, |(_, difference)| difference)
}

fn boot() -> i64 {
    nanoseconds(rustix::time::clock_gettime(rustix::time::ClockId::Boottime))
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
    fn a_step_of_the_wall_clock_is_a_correction_and_moves_no_time() {
        const HOUR: i64 = 3_600_000_000_000;
        let clock = Clock::fixed(5_000_000_000);
        for step in [HOUR, -HOUR, 1_000_000, -1_000_000] {
            assert_eq!(clock.correction_for(5_000_000_000 + step), step);
        }
        for noise in [0, 999_999, -999_999] {
            assert_eq!(clock.correction_for(5_000_000_000 + noise), 0);
        }
        assert_eq!(clock.correction_for(i64::MIN), i64::MIN, "it saturates");
        assert_eq!(clock.wall(7), Timestamp(5_000_000_007));
    }

    #[test]
    fn the_line_goes_on_from_the_wall_clock_at_load() {
        let clock = Clock::now();
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let (one, two) = (clock.time(), clock.time());
        assert!(one <= two);
        let apart = one.0.abs_diff(wall.as_nanos() as i64);
        assert!(apart < 1_000_000_000, "{apart} ns apart");
        // As if the wall clock had been ten seconds behind at load: it was set forward since.
        let correction = Clock::fixed(clock.offset - 10_000_000_000).correction();
        assert!(correction.abs_diff(10_000_000_000) < 1_000_000_000, "{correction}");
    }
}
