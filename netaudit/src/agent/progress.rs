//! Which kernel records are done with: judged, and written where there is a flow log. Only those are given back to the kernel,
//! so that a run that is killed leaves all others to the next.

use std::collections::VecDeque;

use crate::kernel::Position;

/// What share of the ring may be held back for that. Beyond it room for new records matters more.
const MOST_HELD_BACK: f64 = 1.0 / 8.0;

/// Positions of the ring, and what must have happened before each is done with.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// (position, records that the auditor had taken by then), in order.
    taken: VecDeque<(Position, u64)>,
    /// (position, flows that had been handed to the flow log by then), in order; all records before are judged.
    judged: VecDeque<(Position, u64)>,
}

impl Progress {
    /// All records before `position` have been taken: `count` in all.
    pub(super) fn took(&mut self, position: Position, count: u64) {
        match self.taken.back_mut() {
            Some(last) if last.1 == count => last.0 = position,
            _ => self.taken.push_back((position, count)),
        }
    }

    /// The first `count` records have been judged, and `handed` flows been handed to the flow log.
    pub(super) fn judged(&mut self, count: u64, handed: u64) {
        while let Some((position, _)) = self.taken.pop_front_if(|(_, taken)| *taken <= count) {
            match self.judged.back_mut() {
                Some(last) if last.1 == handed => last.0 = position,
                _ => self.judged.push_back((position, handed)),
            }
        }
    }

    /// The position up to which everything is done, when the first `written` flows are written or given up; and beyond it
    /// as far as `unreleased` asks, which is the share of the ring that is held back and is asked anew for each position.
    pub(super) fn release(&mut self, written: u64, mut unreleased: impl FnMut(Option<Position>) -> f64) {
        let mut done = None;
        while let Some((position, _)) = self.judged.pop_front_if(|(_, handed)| *handed <= written) {
            done = Some(position);
        }
        let mut share = unreleased(done);
        while share > MOST_HELD_BACK {
            let Some((position, _)) = self.judged.pop_front().or_else(|| self.taken.pop_front()) else {
                break;
            };
            share = unreleased(Some(position));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn released(progress: &mut Progress, written: u64) -> Option<Position> {
        let mut last = None;
        progress.release(written, |position| {
            last = position;
            0.0
        });
        last
    }

    #[test]
    fn what_is_judged_and_written_is_released() {
        let mut progress = Progress::default();
        progress.took(Position::new(100), 1);
        progress.took(Position::new(200), 2);
        progress.took(Position::new(300), 3);
        assert_eq!(released(&mut progress, 0), None);
        // The third waits for its pod; the second's line waits for the disk.
        progress.judged(1, 1);
        progress.judged(2, 2);
        assert_eq!(released(&mut progress, 1), Some(Position::new(100)));
        assert_eq!(released(&mut progress, 1), None);
        assert_eq!(released(&mut progress, 2), Some(Position::new(200)));
        progress.judged(3, 2);
        assert_eq!(released(&mut progress, 2), Some(Position::new(300)));
    }

    #[test]
    fn a_ring_that_fills_up_is_released_however_far_that_is() {
        let mut progress = Progress::default();
        for number in 1..=10 {
            progress.took(Position::new(number as usize * 100), number);
        }
        progress.judged(2, 5);
        let mut last = 0;
        progress.release(0, |position| {
            last = position.map_or(0, |position| position.since(Position::new(0)));
            (1_000 - last) as f64 / 1_000.0
        });
        assert_eq!(last, 900);
    }
}
