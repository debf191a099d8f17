//! Token buckets: so many at once, then one each interval.

use std::{sync::Arc, time::Duration};

use foldhash::HashMap;

use crate::model::Timestamp;

/// A bucket's size, and how long a token takes to come back.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Tokens in a full bucket.
    pub burst: u32,
    /// One comes back in this time.
    pub every: Duration,
}

impl Rate {
    /// When a bucket that is full at `full_at` would be full again if a token were taken now; `None` if it is empty.
    fn taken(self, full_at: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let next = full_at.max(now).plus(self.every);
        (next.since(now) <= self.every * self.burst).then_some(next)
    }

    /// Takes a token of the bucket that is full at `full_at`, if it has one.
    pub fn take(self, full_at: &mut Timestamp, now: Timestamp) -> bool {
        let taken = self.taken(*full_at, now);
        *full_at = taken.unwrap_or(*full_at);
        taken.is_some()
    }
}

/// Whose bucket: namespace and workload of the source, and whether it is about warnings. A flood of what is stopped must not
/// hold back what passed.
pub type Source = (Arc<str>, Arc<str>, bool);

/// A bucket a source, and one for all of the agent.
#[derive(Debug)]
pub struct Limiter {
    source: Rate,
    agent: Rate,
    most_sources: usize,
    /// Buckets that are not full, by when they will be.
    full_at: HashMap<Source, Timestamp>,
    agent_full_at: [Timestamp; 2],
}

impl Limiter {
    /// All buckets full. No more than `most_sources` are remembered; who would be one more gets nothing until one is full.
    pub fn new(source: Rate, agent: Rate, most_sources: usize) -> Self {
        Self { source, agent, most_sources, full_at: HashMap::default(), agent_full_at: [Timestamp::MIN; 2] }
    }

    /// Takes a token of the source's bucket and one of the agent's, or none of either.
    pub fn take(&mut self, source: Source, now: Timestamp) -> bool {
        let known = self.full_at.get(&source).copied();
        if known.is_none() && self.full_at.len() >= self.most_sources {
            return false;
        }
        let agent_full_at = &mut self.agent_full_at[usize::from(source.2)];
        let Some(next) = self.source.taken(known.unwrap_or(now), now) else { return false };
        if !self.agent.take(agent_full_at, now) {
            return false;
        }
        self.full_at.insert(source, next);
        true
    }

    /// Forgets buckets that are full.
    pub fn expire(&mut self, now: Timestamp) {
        self.full_at.retain(|_, full_at| *full_at > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_seconds(second)
    }

    fn source(workload: &str, warns: bool) -> Source {
        ("shop".into(), workload.into(), warns)
    }

    fn limiter() -> Limiter {
        let rate = |burst, seconds| Rate { burst, every: Duration::from_secs(seconds) };
        Limiter::new(rate(3, 10), rate(5, 1), 4)
    }

    fn takes(limiter: &mut Limiter, workload: &str, warns: bool, at: i64) -> usize {
        (0..10).filter(|_| limiter.take(source(workload, warns), second(at))).count()
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_one_an_interval() {
        let mut limiter = limiter();
        let given = [0, 5, 9, 10, 11, 30, 1_000].map(|at| takes(&mut limiter, "web", true, at));
        assert_eq!(given, [3, 0, 0, 1, 0, 2, 3]);
    }

    #[test]
    fn sources_do_not_hold_back_each_other_but_all_together_have_a_limit() {
        let mut limiter = limiter();
        let given = ["a", "b", "c"].map(|workload| takes(&mut limiter, workload, true, 0));
        assert_eq!(given, [3, 2, 0]);
        // What the agent's bucket refused took nothing of the source's.
        assert_eq!(takes(&mut limiter, "c", true, 100), 3);
    }

    #[test]
    fn what_is_stopped_does_not_hold_back_what_passed() {
        let mut limiter = limiter();
        assert_eq!(takes(&mut limiter, "scan", false, 0), 3);
        assert_eq!(takes(&mut limiter, "scan", true, 0), 3);
    }

    #[test]
    fn buckets_are_bounded_and_forgotten_when_full() {
        let mut limiter = limiter();
        for number in 0..4 {
            assert!(limiter.take(source(&format!("pod-{number}"), true), second(0)));
        }
        assert!(!limiter.take(source("one-more", true), second(1)));
        limiter.expire(second(10));
        assert!(limiter.take(source("one-more", true), second(10)));
    }
}
