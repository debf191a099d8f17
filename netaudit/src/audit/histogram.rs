//! How often a duration fell into which range.

/// For how long an enforcer takes: from what it takes at best to what nobody should wait for.
const DELAYS: [f64; 12] = [0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0];

/// For handshakes: from one on the same node to other continents. A SYN is sent again after 1, 3 and 7 seconds, so that what
/// lies between these took one, two and more.
const HANDSHAKES: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 7.0];

/// Durations in seconds, counted in fixed ranges.
#[derive(Clone, PartialEq, Debug)]
pub struct Histogram {
    /// Upper bounds of the ranges, in seconds.
    bounds: &'static [f64],
    /// Of each range alone; what is beyond the last bound is only in `count`.
    ranges: Box<[u64]>,
    count: u64,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, ranges: vec![0; bounds.len()].into(), count: 0, sum: 0.0 }
    }

    /// An empty one for how long an enforcer takes.
    pub fn of_delays() -> Self {
        Self::new(&DELAYS)
    }

    /// An empty one for how long handshakes take.
    pub fn of_handshakes() -> Self {
        Self::new(&HANDSHAKES)
    }

    /// One more.
    pub fn observe(&mut self, seconds: f64) {
        if let Some(range) = self.bounds.iter().position(|bound| seconds <= *bound) {
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
        self.bounds.iter().copied().zip(self.ranges.iter().copied()).chain([(f64::INFINITY, beyond)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_falls_into_the_first_range_that_holds_it() {
        let mut histogram = Histogram::of_delays();
        for seconds in [0.0, 0.1, 0.2, 120.0, 500.0] {
            histogram.observe(seconds);
        }
        let ranges: Vec<_> = histogram.ranges().filter(|(_, count)| *count > 0).collect();
        assert_eq!(ranges, [(0.1, 2), (0.25, 1), (120.0, 1), (f64::INFINITY, 1)]);
        assert_eq!((histogram.count(), histogram.sum()), (5, 620.3));
    }
}
