//! How often the ring is drained: seldom where little happens, since to wake up for nothing is most of what an idle agent takes.
//! Whatever the pace, the kernel wakes the agent when the ring fills up.

use std::time::Duration;

/// Fewer records than this are not worth a wake-up of their own.
const FEW: usize = 16;

/// So many at once should not have waited.
const MANY: usize = 512;

/// How many times longer than asked for the pause becomes while little happens. While nothing does, it becomes as long as
/// may be.
const LONGEST: u32 = 12;

/// Never longer than this, as what happens each second happens with a drain.
const LONGEST_OF_ALL: Duration = super::TICK;

/// The pause between two drains.
#[derive(Debug)]
pub(super) struct Pace {
    shortest: Duration,
    pause: Duration,
}

impl Pace {
    /// Begins with the shortest pause.
    pub fn new(shortest: Duration) -> Self {
        Self { shortest, pause: shortest }
    }

    /// The pause after a drain that took so many records.
    pub fn after(&mut self, taken: usize) -> Duration {
        let longest_of_all = LONGEST_OF_ALL.max(self.shortest);
        if taken == 0 {
            self.pause = (self.pause * 2).min(longest_of_all);
        } else if taken < FEW {
            self.pause = (self.pause * 2).min(self.shortest * LONGEST).min(longest_of_all);
        } else if taken >= MANY {
            self.pause = self.shortest;
        }
        self.pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiet_makes_pauses_longer_up_to_a_limit_and_a_burst_ends_them() {
        let shortest = Duration::from_millis(20);
        let mut pace = Pace::new(shortest);
        assert_eq!(
            [0, FEW - 1, 1, 1].map(|taken| pace.after(taken)),
            [2, 4, 8, 12].map(|times| shortest * times)
        );
        assert_eq!(pace.after(FEW), shortest * LONGEST, "a moderate load comes in larger batches");
        assert_eq!([0, 0, 0].map(|none| pace.after(none)), [24, 48, 50].map(|times| shortest * times));
        assert_eq!(pace.after(1), shortest * LONGEST);
        assert_eq!(pace.after(MANY), shortest);
        assert_eq!(pace.after(FEW), shortest);
    }

    #[test]
    fn a_second_is_not_missed_however_seldom_is_asked_for() {
        for (shortest, longest) in [(20, 1_000), (200, 1_000), (1_000, 1_000), (3_000, 3_000)] {
            let mut pace = Pace::new(Duration::from_millis(shortest));
            let last = (0..10).map(|_| pace.after(0)).last();
            assert_eq!(last, Some(Duration::from_millis(longest)));
        }
    }
}
