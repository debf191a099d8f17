//! How seldom a CronJob runs: the longest time between two runs of its schedule.
//!
//! Only how far apart they are matters, so which time zone it is does not. Where its clock is set forward, two runs are an hour
//! further apart, or one is left out: Kubernetes runs nothing for a time of day that a day does not have.

use std::{str::FromStr as _, time::Duration};

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{SignedDuration, ToSpan as _, Zoned, civil, tz::TimeZone};

/// Days of the year and of the week meet in all ways that make a difference in so many days.
const DAYS: i64 = 800;

/// What runs but in leap years is seen in so many days.
const MANY_DAYS: i64 = 9 * 366;

/// Clocks are set forward at night: the hour that a day lacks is one of the first so many.
const HOURS_OF_CHANGE: i8 = 4;

/// The longest time between two runs in a time zone of this name (CronJobSpec.timeZone); nothing where it never runs. The format is that of Kubernetes: five fields or
/// `@daily` and its like, `@every 90m`, perhaps after `TZ=…` (CronJobSpec.schedule; robfig/cron `ParseStandard`).
///
/// # Errors
///
/// What is wrong with it.
pub(super) fn longest_gap(schedule: &str, zone: Option<&str>) -> Result<Duration, String> {
    let text = schedule.trim();
    let (zone, text) = match text.strip_prefix("CRON_TZ=").or_else(|| text.strip_prefix("TZ=")) {
        Some(text) => {
            let (zone, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
            (Some(zone), rest.trim())
        }
        None => (zone, text),
    };
    if let Some(every) = text.strip_prefix("@every") {
        let every = SignedDuration::from_str(every.trim()).map_err(|error| error.to_string())?;
        return Duration::try_from(every).map_err(|error| error.to_string());
    }
    let text = if text.eq_ignore_ascii_case("@midnight") { "@daily" } else { text };
    let text = &as_croner_reads_it(text);
    let parser =
        CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).sloppy_ranges(true);
    let cron = parser.build().parse(text).map_err(|error| error.to_string())?;
    let changes = zone.is_some_and(|zone| !matches!(zone, "" | "UTC" | "GMT") && !zone.starts_with("Etc/"));
    Ok(gap_of(&cron, changes).unwrap_or_default())
}

/// The same in the words of our parser, which takes `*/1` for a choice of days and no `*`, and has a second Sunday after Saturday.
fn as_croner_reads_it(text: &str) -> String {
    let day_of_week = |part: &str| match part.split_once('/') {
        Some((first, step)) if !first.contains(['*', '?', '-']) => format!("{first}-6/{step}"),
        _ => part.to_owned(),
    };
    let field = |(place, field): (usize, &str)| match field {
        "*/1" | "?/1" => "*".to_owned(),
        days if place == 4 => days.split(',').map(day_of_week).collect::<Vec<_>>().join(","),
        other => other.to_owned(),
    };
    text.split_whitespace().enumerate().map(field).collect::<Vec<_>>().join(" ")
}

/// A day at a time: each day that has runs has the same. `changes` says that the clock of the time zone may be set forward.
fn gap_of(cron: &Cron, changes: bool) -> Option<Duration> {
    // The year has 366 days.
    let begin = civil::date(2024, 1, 1).to_zoned(TimeZone::UTC).ok()?;
    let next = |after: &Zoned, inclusive| cron.find_next_occurrence(after, inclusive).ok();
    let mut first = next(&begin, true)?;
    let mut longest = SignedDuration::ZERO;
    let mut last = first.clone();
    while let Some(run) = next(&last, false).filter(|run| run.date() == first.date()) {
        longest = longest.max(run.duration_since(&last));
        last = run;
    }
    let days = if first.duration_since(&begin) < days(DAYS / 2) { DAYS } else { MANY_DAYS };
    let end = begin.checked_add(days.days()).ok()?;
    let in_the_day = last.duration_since(&first);
    // Then all runs of a day may be left out. That no change comes in this month, or on this day of the week, is not relied on.
    let may_be_left_out = changes && first.hour() == last.hour() && first.hour() < HOURS_OF_CHANGE;
    let mut before: Option<Zoned> = None;
    while first < end {
        let midnight = first.date().tomorrow().ok()?.to_zoned(TimeZone::UTC).ok()?;
        let Some(run) = next(&midnight, true) else { break };
        let from = before.as_ref().filter(|_| may_be_left_out).unwrap_or(&first);
        longest = longest.max(run.duration_since(from) - in_the_day);
        before = Some(std::mem::replace(&mut first, run));
    }
    Duration::try_from(longest).ok()
}

const fn days(days: i64) -> SignedDuration {
    SignedDuration::from_hours(24 * days)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_time_between_two_runs() {
        let (minute, hour, day) = (60, 3_600, 86_400);
        for (schedule, expected) in [
            ("* * * * *", minute),
            ("*/5 * * * *", 5 * minute),
            ("5/25 * * * *", 25 * minute),
            ("0 * * * *", hour),
            ("@hourly", hour),
            ("30 3 * * *", day),
            ("@midnight", day),
            ("0 3,15 * * *", 12 * hour),
            ("0 9-17 * * MON-FRI", 3 * day - 8 * hour),
            ("0 0 * * 0", 7 * day),
            ("@weekly", 7 * day),
            ("0 0 1 * *", 31 * day),
            ("0 0 ? * 1", 7 * day),
            // From March to May.
            ("0 0 31 * *", 61 * day),
            ("0 0 1 */3 *", 92 * day),
            ("0 0 1 1 *", 366 * day),
            ("@yearly", 366 * day),
            ("0 0 29 2 *", 1_461 * day),
            // A day of the month that is one of the week.
            ("0 0 1 * */1", 31 * day),
            ("0 0 */1 * 1", 7 * day),
            // From Friday to Friday, from Sunday to Wednesday or from Friday to Wednesday: a week has no second Sunday.
            ("0 0 * * 5/2", 7 * day),
            ("0 0 * * WED/2", 5 * day),
            ("0 0 * * 0,3/2", 3 * day),
            // A day of the month or of the week.
            ("0 0 1 * 1", 7 * day),
            ("* 9-17 * 1 *", 366 * day - 31 * day + day - 9 * hour + minute),
            ("@every 90m", 90 * minute),
            ("@every 1h30m10s", 90 * minute + 10),
            ("CRON_TZ=UTC  0 0 * * *", day),
            ("TZ=Etc/GMT+5 30 2 * * 0", 7 * day),
            // One may be left out where the clock is set forward.
            ("TZ=Europe/Vienna 0 0 * * *", 2 * day),
            ("TZ=America/New_York */15 2 * * 0", 14 * day - 45 * minute),
            // Not all of them.
            ("TZ=America/New_York 30 2,3 * * *", day - hour),
            ("TZ=America/New_York 30 4 * * 0", 7 * day),
            // The second of a month that has no such day.
            ("0 0 31 2 *", 0),
        ] {
            let gap = longest_gap(schedule, None).unwrap_or_else(|error| panic!("{schedule}: {error}"));
            assert_eq!(gap.as_secs(), expected, "{schedule}");
        }
    }

    #[test]
    fn a_time_zone_counts_where_its_clock_may_change() {
        let days = |schedule, zone| longest_gap(schedule, zone).expect("a schedule").as_secs() / 86_400;
        assert_eq!(days("0 2 * * 0", Some("America/New_York")), 14);
        assert_eq!(days("0 2 * * 0", Some("Etc/UTC")), 7);
        assert_eq!(days("@weekly", Some("Africa/Cairo")), 14);
        assert_eq!(days("@hourly", Some("Africa/Cairo")), 0);
        assert_eq!(days("@every 168h", Some("Africa/Cairo")), 7);
    }

    #[test]
    fn what_is_no_schedule_is_told() {
        for schedule in
            ["", "daily", "* * * *", "* * * * * *", "61 * * * *", "@every", "@every -3s", "TZ=UTC", "@often"]
        {
            assert!(longest_gap(schedule, None).is_err(), "{schedule}");
        }
    }
}
