//! Panels over time.

use std::fmt::Write as _;

use anyhow::Result;

use super::{
    super::{
        answers::{Panel, Series},
        units::{shown, ticks},
    },
    Area, MARGIN, TITLE, colour, cut, text, text_end, text_middle, width,
};
use crate::demo::history::STEP;

/// Pixels of a line of the legend, and of the times below the plot.
const LINE: f64 = 14.0;
const TIMES: f64 = 18.0;
/// Pixels from the end of a legend's entry to those of its two values.
const VALUES: [f64; 2] = [68.0, 6.0];

/// Pixels of a legend's entry that are not its name's.
const BESIDE_NAME: f64 = 145.0;

/// A plot's edges in pixels, and the seconds at its left and right.
struct Plot {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    span: (f64, f64),
}

impl Plot {
    fn across(&self, seconds: f64) -> f64 {
        let share = (seconds - self.span.0) / (self.span.1 - self.span.0);
        self.left + (self.right - self.left) * share
    }

    /// Times below it, at whole minutes.
    fn times(&self, svg: &mut String) -> Result<()> {
        let mut minute = (self.span.0 / 60.0).ceil() * 60.0;
        while minute <= self.span.1 {
            let x = self.across(minute);
            let _ = writeln!(svg, "<path class=\"g\" d=\"M{x:.1} {}V{}\"/>", self.top, self.bottom);
            let time = jiff::Timestamp::from_second(minute as i64)?.strftime("%H:%M").to_string();
            text_middle(svg, "m", x.clamp(self.left + 14.0, self.right - 14.0), self.bottom + 13.0, &time);
            minute += 60.0;
        }
        Ok(())
    }
}

/// Lines, and below them what each is, its last value and its greatest.
pub fn timeseries(svg: &mut String, panel: &Panel<'_>, area: Area, span: (f64, f64)) -> Result<()> {
    let series: Vec<&Series> = panel.series().collect();
    let ticks = ticks(series.iter().map(|series| series.max()).fold(0.0, f64::max));
    let labels = ticks.iter().map(|tick| shown(*tick, panel.unit)).collect::<Result<Vec<_>>>()?;
    let columns = columns(&series, area);
    let lines = series.len().div_ceil(columns);
    let legend = area.height - MARGIN - LINE * (lines + 1) as f64;
    let plot = Plot {
        left: MARGIN + labels.iter().map(|label| width(label)).fold(0.0, f64::max) + 4.0,
        right: area.width - MARGIN,
        top: TITLE,
        bottom: legend - TIMES,
        span,
    };
    let greatest = ticks.last().copied().unwrap_or(1.0);
    let up = |value: f64| plot.bottom - (plot.bottom - plot.top) * value / greatest;
    for (tick, label) in ticks.iter().zip(&labels) {
        let y = up(*tick);
        let _ = writeln!(svg, "<path class=\"g\" d=\"M{:.1} {y:.1}H{:.1}\"/>", plot.left, plot.right);
        text_end(svg, "m", plot.left - 5.0, y + 4.0, label);
    }
    plot.times(svg)?;
    // The first lies above the others.
    for (index, series) in series.iter().enumerate().rev() {
        let path = path(series, |time| plot.across(time), up);
        let stroke = colour(index);
        let dashes = if index < super::PALETTE.len() { "" } else { " stroke-dasharray=\"5 3\"" };
        let _ = writeln!(svg, "<path class=\"l\" stroke=\"{stroke}\"{dashes} d=\"{path}\"/>");
    }
    let wide = column_width(area, columns);
    for column in 0..columns {
        let end = (MARGIN + wide) * (column + 1) as f64;
        for (word, before) in ["last", "max"].into_iter().zip(VALUES) {
            text_end(svg, "m", end - before, legend + 11.0, word);
        }
    }
    for (index, series) in series.iter().enumerate() {
        let (column, line) = (index / lines, index % lines);
        let end = (MARGIN + wide) * (column + 1) as f64;
        let base = legend + LINE * (line + 1) as f64 + 11.0;
        let start = end - wide;
        let stroke = colour(index);
        let _ = writeln!(
            svg,
            "<path d=\"M{start:.0} {:.0}h10\" stroke=\"{stroke}\" stroke-width=\"3\"/>",
            base - 4.0
        );
        text(svg, "", start + 15.0, base, &cut(&series.name, wide - BESIDE_NAME));
        for (value, before) in [series.last(), series.max()].into_iter().zip(VALUES) {
            text_end(svg, "", end - before, base, &shown(value, panel.unit)?);
        }
    }
    Ok(())
}

/// How many entries of the legend stand beside each other: two, where there are many, unless names would be cut that fit
/// below each other.
fn columns(series: &[&Series], area: Area) -> usize {
    let fits = |series: &&Series| width(&series.name) <= column_width(area, 2) - BESIDE_NAME;
    match series.len() {
        0..=4 => 1,
        5..=8 if !series.iter().all(fits) => 1,
        _ => 2,
    }
}

fn column_width(area: Area, columns: usize) -> f64 {
    (area.width - MARGIN) / columns as f64 - MARGIN
}

/// A line through the points; where some are missing it is broken, and where nothing changes only the ends are drawn.
fn path(series: &Series, across: impl Fn(f64) -> f64, up: impl Fn(f64) -> f64) -> String {
    let mut path = String::new();
    for run in series.points.chunk_by(|one, two| two.0 - one.0 <= 1.5 * STEP as f64) {
        for (index, (time, value)) in run.iter().enumerate() {
            let is_flat = index > 0 && run[index - 1].1 == *value;
            if is_flat && run.get(index + 1).is_some_and(|next| next.1 == *value) {
                continue;
            }
            let (x, y) = (across(*time), up(*value));
            // A point alone is drawn as a dot.
            let _ =
                if index == 0 { write!(path, "M{x:.1} {y:.1}h0") } else { write!(path, "L{x:.1} {y:.1}") };
        }
    }
    path
}

/// A row a series, filled while it has a value.
pub fn state_timeline(svg: &mut String, panel: &Panel<'_>, area: Area, span: (f64, f64)) -> Result<()> {
    let series: Vec<&Series> = panel.series().collect();
    let plot = Plot {
        left: MARGIN + series.iter().map(|series| width(&series.name)).fold(0.0, f64::max) + 8.0,
        right: area.width - MARGIN,
        top: TITLE,
        bottom: area.height - MARGIN - TIMES,
        span,
    };
    plot.times(svg)?;
    let height = (plot.bottom - plot.top) / series.len() as f64;
    for (index, series) in series.iter().enumerate() {
        let top = plot.top + height * index as f64;
        text(svg, "", MARGIN, top + height / 2.0 + 4.0, &series.name);
        for run in series.points.chunk_by(|one, two| two.0 - one.0 <= 1.5 * STEP as f64) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            // A value holds until the next one is asked for.
            let (x, end) = (plot.across(first.0), plot.across((last.0 + STEP as f64).min(span.1)));
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\" fill-opacity=\".75\"/>",
                top + 3.0,
                end - x,
                height - 6.0,
                colour(index)
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_broken_where_points_are_missing_and_straight_where_nothing_changes() {
        let points = [(0.0, 1.0), (5.0, 1.0), (10.0, 1.0), (15.0, 2.0), (40.0, 3.0)].to_vec();
        let series = Series { points, ..Series::default() };
        assert_eq!(path(&series, |time| time, |value| value), "M0.0 1.0h0L10.0 1.0L15.0 2.0M40.0 3.0h0");
    }

    #[test]
    fn long_names_stand_below_each_other_as_long_as_there_is_room() {
        let area = Area { width: 592.0, height: 264.0 };
        let columns_of = |count: usize, name: &str| {
            let series = Series { name: name.to_owned(), ..Series::default() };
            columns(&vec![&series; count], area)
        };
        let long = "a name that is far too long to stand beside another";
        let found = [columns_of(4, "a"), columns_of(5, "a"), columns_of(8, long), columns_of(9, long)];
        assert_eq!(found, [1, 2, 1, 2]);
    }
}
