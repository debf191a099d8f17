//! How often a duration fell into which range.

/// Upper bounds of the ranges, in seconds: from what an enforcer takes at best to what nobody should wait for.
const BOUNDS: [f64; 12] = [0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0];

/// Durations in seconds, counted in fixed ranges.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Histogram {
    /// Of each range alone; what is beyond the last bound is only in `count`.
    ranges: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    /// One more.
    pub fn observe(&mut self, seconds: f64) {
        if let Some(range) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.ranges[range] += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// All of them together, in seconds.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// How many fell into each range, with its upper bound in seconds; the last has none and is infinite.
    pub fn ranges(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let beyond = self.count - self.ranges.iter().sum::<u64>();
        BOUNDS.into_iter().zip(self.ranges).chain([(f64::MAX, beyond)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_falls_into_the_first_range_that_holds_it() {
        let mut histogram = Histogram::default();
        for seconds in [0.0, 0.1, 0.2, 120.0, 500.0] {
            histogram.observe(seconds);
        }
        let ranges: Vec<_> = histogram.ranges().filter(|(_, count)| *count > 0).collect();
        assert_eq!(ranges, [(0.1, 2), (0.25, 1), (120.0, 1), (f64::MAX, 1)]);
        assert_eq!((histogram.count(), histogram.sum()), (5, 620.3));
    }
}
