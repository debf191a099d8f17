//! Values as people read them, by Grafana's names of units.

use anyhow::{Result, bail};

/// A value of a unit. An error for units that no dashboard of ours had so far.
pub fn shown(value: f64, unit: &str) -> Result<String> {
    Ok(match unit {
        "short" => short(value),
        "cps" => format!("{} c/s", short(value)),
        "pps" => format!("{} p/s", short(value)),
        "s" => duration(value),
        "percentunit" => format!("{} %", number(value * 100.0)),
        "dateTimeAsIso" => jiff::Timestamp::from_millisecond(value as i64)?.strftime("%F %T").to_string(),
        other => bail!("no way to show the unit {other:?}: add it to xtask/src/dashboards/units.rs"),
    })
}

/// Three digits that count, without zeros behind them.
fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let decimals = (2.0 - value.abs().log10().floor()).clamp(0.0, 9.0) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn short(value: f64) -> String {
    let steps = [(1e9, " Bil"), (1e6, " Mil"), (1e3, " K")];
    let step = steps.into_iter().find(|(least, _)| value.abs() >= *least);
    step.map_or_else(|| number(value), |(least, word)| number(value / least) + word)
}

fn duration(seconds: f64) -> String {
    let steps = [
        (31_557_600.0, "years"),
        (86_400.0, "days"),
        (3_600.0, "hours"),
        (60.0, "mins"),
        (1.0, "s"),
        (1e-3, "ms"),
    ];
    if seconds == 0.0 {
        return "0 s".to_owned();
    }
    let (step, word) = steps.into_iter().find(|(least, _)| seconds.abs() >= *least).unwrap_or((1e-6, "µs"));
    format!("{} {word}", number(seconds / step))
}

/// Round numbers from 0 to `greatest` or a little beyond, some four of them.
pub fn ticks(greatest: f64) -> Vec<f64> {
    let greatest = if greatest > 0.0 { greatest } else { 1.0 };
    let power = 10f64.powf((greatest / 4.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power);
    let step = step.into_iter().find(|step| greatest / step <= 4.0).unwrap_or(10.0 * power);
    let count = (greatest / step - 1e-9).ceil() as u32;
    (0..=count).map(|index| f64::from(index) * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_as_people_read_them() {
        for (value, unit, expected) in [
            (0.0, "short", "0"),
            (16.0, "short", "16"),
            (0.123_456, "cps", "0.123 c/s"),
            (1234.0, "short", "1.23 K"),
            (2.5e6, "pps", "2.5 Mil p/s"),
            (0.000_25, "s", "250 µs"),
            (0.002, "s", "2 ms"),
            (90.0, "s", "1.5 mins"),
            (3.0 * 31_557_600.0, "s", "3 years"),
            (0.995, "percentunit", "99.5 %"),
            (1_700_000_000_000.0, "dateTimeAsIso", "2023-11-14 22:13:20"),
        ] {
            assert_eq!(shown(value, unit).unwrap(), expected, "{value} {unit}");
        }
        assert!(shown(1.0, "parsec").unwrap_err().to_string().contains("parsec"));
    }

    #[test]
    fn ticks_are_round_and_reach_the_greatest_value() {
        assert_eq!(ticks(0.0), [0.0, 0.5, 1.0]);
        assert_eq!(ticks(8.0), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(ticks(9.0), [0.0, 5.0, 10.0]);
        assert_eq!(ticks(0.07), [0.0, 0.02, 0.04, 0.06, 0.08]);
    }
}
