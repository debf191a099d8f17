//! Hours of partitions, and what is listed of a bucket for them.

use std::time::SystemTime;

use super::{files, filter::Filter, table::Table};
use crate::model::Timestamp;

/// Hours and days that are listed one by one; more are listed as one.
const MOST_HOURS: i64 = 48;
const MOST_DAYS: i64 = 400;

/// Hours since 1970, both included.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Hours {
    pub from: i64,
    pub until: i64,
}

impl Hours {
    pub fn of(filter: &Filter) -> Self {
        Self {
            from: filter.from.map_or(i64::MIN, files::hour_of),
            until: filter
                .until
                .map_or(i64::MAX, |until| files::hour_of(Timestamp(until.0.saturating_sub(1_000)))),
        }
    }

    /// With those whose files tell of these.
    pub fn wider(self) -> Self {
        Self {
            from: self.from.saturating_sub(files::BEFORE_AND_AFTER),
            until: self.until.saturating_add(files::BEFORE_AND_AFTER),
        }
    }

    /// The last hour of which anything can be told: nothing begins later, however clocks differ.
    pub fn latest() -> i64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(now.as_secs() / 3_600).unwrap_or(i64::MAX).saturating_add(24)
    }

    pub fn has(self, hour: i64) -> bool {
        (self.from..=self.until).contains(&hour)
    }

    /// What is listed of a bucket for a table's files of these.
    pub fn prefixes(self, table: &Table) -> Vec<String> {
        let count = self.until.saturating_sub(self.from).saturating_add(1);
        if count > MOST_DAYS * 24 {
            return vec![table.name.to_owned()];
        }
        let mut names: Vec<String> = (self.from..=self.until)
            .map(files::partition)
            .filter_map(|partition| {
                let partition = if count > MOST_HOURS { partition.parent()?.to_owned() } else { partition };
                Some(format!("{}/{}", table.name, partition.to_str()?))
            })
            .collect();
        names.dedup();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::flows::table::FLOWS;

    #[test]
    fn only_the_partitions_that_are_asked_for_are_listed() {
        let prefixes = |from, until| Hours { from, until }.prefixes(&FLOWS);
        let hour = 491_000;
        assert_eq!(
            prefixes(hour + 7, hour + 8),
            ["flows/date=2026-01-05/hour=15", "flows/date=2026-01-05/hour=16"]
        );
        assert_eq!(prefixes(hour, hour + 72).len(), 4, "days");
        assert_eq!(prefixes(i64::MIN, i64::MAX), ["flows"]);
        assert_eq!(prefixes(hour, i64::MAX), ["flows"]);
    }
}
