//! The longest delay of an enforcer within a day.
//!
//! A day, since it has every usual time of a cluster in it (the nightly jobs, the rollouts of the working day), and since what is
//! wrong in it, as the hour in which the enforcer was down, excuses nothing on the day after. Time and not a number of delays, as
//! a quiet node would learn no other for months. Where a day shows none, little is excused, and so more is told, not less.

use std::time::Duration;

use crate::model::Timestamp;

const HOUR: i64 = 3_600 * 1_000_000_000;
const HOURS: usize = 24;

/// The longest delay of each of the last 24 hours.
#[derive(Clone, Debug, Default)]
pub(super) struct Delays {
    /// By the hour, modulo 24: which hour, and its longest.
    hours: [Option<(i64, Duration)>; HOURS],
}

impl Delays {
    /// One was seen to end at `at`.
    pub fn learn(&mut self, delay: Duration, at: Timestamp) {
        let hour = at.0.div_euclid(HOUR);
        let place = &mut self.hours[hour.rem_euclid(HOURS as i64) as usize];
        match place {
            Some((of, longest)) if *of == hour => *longest = delay.max(*longest),
            _ => *place = Some((hour, delay)),
        }
    }

    /// The longest that ended in the 24 hours before `at`, by the hour; zero where none did.
    pub fn longest(&self, at: Timestamp) -> Duration {
        let hour = at.0.div_euclid(HOUR);
        let is_recent = |of: i64| (0..HOURS as i64).contains(&(hour - of));
        let recent = self.hours.iter().flatten().filter(|(of, _)| is_recent(*of));
        recent.map(|(_, longest)| *longest).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hour(hour: i64) -> Timestamp {
        Timestamp(hour * HOUR + 1)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_longest_of_a_day_is_forgotten_after_it_and_then_the_next_one_counts() {
        let mut delays = Delays::default();
        assert_eq!(delays.longest(hour(100)), seconds(0));
        for (at, delay) in [(100, 30), (100, 20), (101, 5), (110, 9)] {
            delays.learn(seconds(delay), hour(at));
        }
        let longest = [100, 123, 124, 133, 134].map(|at| delays.longest(hour(at)));
        assert_eq!(longest, [30, 30, 9, 9, 0].map(seconds));
        // The same hour of another day.
        delays.learn(seconds(2), hour(124));
        assert_eq!(delays.longest(hour(124)), seconds(9));
        assert_eq!(delays.longest(hour(147)), seconds(2));
    }

    #[test]
    fn a_clock_that_is_set_back_brings_no_excuse_and_learns_anew() {
        let mut delays = Delays::default();
        delays.learn(seconds(9), hour(48));
        assert_eq!(delays.longest(hour(-24)), seconds(0), "yet to come");
        delays.learn(seconds(7), hour(-24));
        assert_eq!(delays.longest(hour(-23)), seconds(7));
    }
}
