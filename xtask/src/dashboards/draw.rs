//! A dashboard as one SVG: its panels where Grafana would put them, plain and light.

mod chart;

use std::fmt::{Display, Write as _};

use anyhow::{Result, bail};
use serde_json::Value;

use self::chart::{state_timeline, timeseries};
use super::{
    answers::{Panel, Series},
    table::table,
    units::shown,
};

/// Pixels of a column and a row of Grafana's grid, and what is above it.
const COLUMN: f64 = 50.0;
const ROW: f64 = 34.0;
const HEAD: f64 = 60.0;
/// Half of the room between two panels.
const GAP: f64 = 4.0;
/// Pixels above a panel's content, for its title, and on its other sides.
const TITLE: f64 = 30.0;
const MARGIN: f64 = 10.0;
/// Taken for a letter's width in pixels, where text has to fit; browsers differ a little.
const LETTER: f64 = 6.5;

/// What every picture says of itself. The tests look for it.
const LABEL: &str = "drawn by netaudit's own renderer from real data, not Grafana";

const STYLE: &str = "text{font:11px Helvetica,Arial,sans-serif;fill:#24292e}.h{font-size:18px;font-weight:600}\
    .t{font-size:13px;font-weight:600}.m{fill:#6a737d}.b{font-size:30px;font-weight:600}.c{font-weight:600}\
    .p{fill:#fff;stroke:#d8dbe0}.g{stroke:#e6e8ec}.l{fill:none;stroke-width:1.5;stroke-linecap:round;stroke-linejoin:round}";

/// Colours that differ for most eyes, in the order in which series take them.
const PALETTE: [&str; 10] = [
    "#3274d9", "#e0752d", "#2f8f5b", "#a352cc", "#c4162a", "#0f9ba8", "#b8860b", "#d6479b", "#5b6b7b",
    "#7aa800",
];

fn colour(index: usize) -> &'static str {
    PALETTE[index % PALETTE.len()]
}

/// A box in pixels, from its upper left corner.
#[derive(Clone, Copy)]
struct Area {
    width: f64,
    height: f64,
}

/// Draws `panels` of `dashboard`, over the time from and until these seconds since the epoch.
pub fn dashboard(dashboard: &Value, panels: &[Panel<'_>], span: (f64, f64)) -> Result<String> {
    let mut lowest = 0.0f64;
    for panel in panels {
        lowest = lowest.max(panel.at("y")? + panel.at("h")?);
    }
    let (width, height) = (24.0 * COLUMN + 2.0 * GAP, HEAD + ROW * lowest + GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">\
         <style>{STYLE}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#f4f5f7\"/>\n"
    );
    let named = |key: &str| dashboard[key].as_str().unwrap_or_default();
    let time = |seconds: f64, format: &str| {
        jiff::Timestamp::from_second(seconds as i64).map(|time| time.strftime(format).to_string())
    };
    let when = format!("{} to {} UTC", time(span.0, "%F %H:%M")?, time(span.1, "%H:%M")?);
    text(&mut svg, "h", 14.0, 28.0, named("title"));
    text(&mut svg, "m", 14.0, 47.0, named("description"));
    text_end(&mut svg, "m", width - 14.0, 26.0, LABEL);
    text_end(&mut svg, "m", width - 14.0, 45.0, &format!("the demo's node, {when}"));
    for panel in panels {
        let (x, y) = (GAP + COLUMN * panel.at("x")?, HEAD + ROW * panel.at("y")?);
        let area =
            Area { width: COLUMN * panel.at("w")? - 2.0 * GAP, height: ROW * panel.at("h")? - 2.0 * GAP };
        // Browsers show it where the pointer rests.
        let queries: Vec<&str> = panel.targets.iter().map(|target| target.query).collect();
        let queries = escaped(&queries.join("\n"));
        let _ = writeln!(
            svg,
            "<g transform=\"translate({} {})\"><title>{queries}</title>\n<rect class=\"p\" width=\"{}\" height=\"{}\" rx=\"3\"/>",
            x + GAP,
            y + GAP,
            area.width,
            area.height
        );
        text(&mut svg, "t", MARGIN, 20.0, panel.title);
        content(&mut svg, panel, area, span)?;
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn content(svg: &mut String, panel: &Panel<'_>, area: Area, span: (f64, f64)) -> Result<()> {
    if panel.is_empty() {
        let middle = (area.width / 2.0, (area.height + TITLE) / 2.0);
        let why = format!("no data: {}", panel.why_empty().unwrap_or_default());
        text_middle(svg, "m", middle.0, middle.1, &why);
        return Ok(());
    }
    match panel.json["type"].as_str().unwrap_or_default() {
        "stat" => stat(svg, panel, area),
        "timeseries" => timeseries(svg, panel, area, span),
        "state-timeline" => state_timeline(svg, panel, area, span),
        "bargauge" => bar_gauge(svg, panel, area),
        "table" => rows(svg, panel, area),
        other => bail!("{}: no way to draw a panel of type {other:?}", panel.title),
    }
}

fn stat(svg: &mut String, panel: &Panel<'_>, area: Area) -> Result<()> {
    let value = panel.series().next().map_or(f64::NAN, Series::last);
    let steps = panel.json["fieldConfig"]["defaults"]["thresholds"]["steps"].as_array();
    let reached =
        steps.into_iter().flatten().rfind(|step| step["value"].as_f64().is_none_or(|from| value >= from));
    let fill = named_colour(reached.and_then(|step| step["color"].as_str()).unwrap_or_default());
    let (x, y) = (area.width / 2.0, (area.height + TITLE) / 2.0 + 8.0);
    let shown = escaped(&shown(value, panel.unit)?);
    let _ = writeln!(
        svg,
        "<text class=\"b\" x=\"{x:.0}\" y=\"{y:.0}\" text-anchor=\"middle\" style=\"fill:{fill}\">{shown}</text>"
    );
    Ok(())
}

/// Grafana's words for colours.
fn named_colour(name: &str) -> &'static str {
    match name {
        "green" => "#2f8f5b",
        "red" => "#c4162a",
        _ => "#3274d9",
    }
}

fn bar_gauge(svg: &mut String, panel: &Panel<'_>, area: Area) -> Result<()> {
    let series: Vec<&Series> = panel.series().collect();
    let greatest = series.iter().map(|series| series.last()).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let names = series.iter().map(|series| width(&series.name)).fold(0.0, f64::max) + 10.0;
    let height = ((area.height - TITLE - MARGIN) / series.len() as f64).min(26.0);
    let left = MARGIN + names;
    let room = area.width - left - MARGIN - 60.0;
    for (index, series) in series.into_iter().enumerate() {
        let value = series.last();
        let mapped = &panel.json["fieldConfig"]["defaults"]["mappings"][0]["options"][value.to_string()];
        let label =
            mapped["text"].as_str().map_or_else(|| shown(value, panel.unit), |text| Ok(text.to_owned()))?;
        let fill = named_colour(mapped["color"].as_str().unwrap_or_default());
        // What is mapped to a word has no length that says anything.
        let share = if mapped.is_object() { 1.0 } else { value / greatest };
        let (top, long) = (TITLE + height * index as f64, room * share);
        let base = top + height / 2.0 + 4.0;
        text(svg, "", MARGIN, base, &series.name);
        let (inner, start) = (height - 3.0, top + 1.5);
        let _ = writeln!(
            svg,
            "<rect x=\"{left:.0}\" y=\"{start:.1}\" width=\"{long:.1}\" height=\"{inner:.1}\" fill=\"{fill}\" fill-opacity=\".75\"/>"
        );
        text(svg, "c", left + long + 6.0, base, &label);
    }
    Ok(())
}

fn rows(svg: &mut String, panel: &Panel<'_>, area: Area) -> Result<()> {
    const LINE: f64 = 18.0;
    let table = table(panel)?;
    // Titles are bold, and so a little wider.
    let widest = |column: usize| {
        let cells = table.rows.iter().map(|row| width(&row[column]));
        cells.fold(1.1 * width(&table.header[column]), f64::max) + 10.0
    };
    let wanted: Vec<f64> = (0..table.header.len()).map(widest).collect();
    let stretch = (area.width - 2.0 * MARGIN) / wanted.iter().sum::<f64>();
    // A table that is too wide is drawn smaller, so that it can be read whole.
    let scale = stretch.min(1.0);
    let right = (area.width - 2.0 * MARGIN) / scale;
    let room = ((area.height - TITLE - MARGIN) / (LINE * scale)) as usize - 1;
    let hidden = if table.rows.len() > room { table.rows.len() + 1 - room } else { 0 };
    let rows = &table.rows[..table.rows.len() - hidden];
    let _ = writeln!(svg, "<g transform=\"translate({MARGIN} {TITLE}) scale({scale:.3})\">");
    for (line, row) in [&table.header].into_iter().chain(rows).enumerate() {
        let base = LINE * line as f64 + 13.0;
        let mut x = 0.0;
        for (cell, wanted) in row.iter().zip(&wanted) {
            if !cell.is_empty() {
                text(svg, if line == 0 { "c" } else { "" }, x, base, cell);
            }
            x += wanted * stretch.max(1.0);
        }
        let _ = writeln!(svg, "<path class=\"g\" d=\"M0 {:.0}H{right:.0}\"/>", base + 5.0);
    }
    if hidden > 0 {
        text(svg, "m", 0.0, LINE * (rows.len() + 1) as f64 + 13.0, &format!("and {hidden} more rows"));
    }
    svg.push_str("</g>\n");
    Ok(())
}

/// Taken for the width of a text, in pixels.
fn width(text: &str) -> f64 {
    text.chars().count() as f64 * LETTER
}

/// As much of a text as fits into so many pixels.
fn cut(text: &str, pixels: f64) -> String {
    if width(text) <= pixels {
        return text.to_owned();
    }
    let letters = ((pixels / LETTER) as usize).saturating_sub(1);
    text.chars().take(letters).chain(['…']).collect()
}

fn text(svg: &mut String, class: &str, x: f64, y: f64, text: &str) {
    written(svg, class, x, y, "", text);
}

fn text_end(svg: &mut String, class: &str, x: f64, y: f64, text: &str) {
    written(svg, class, x, y, " text-anchor=\"end\"", text);
}

fn text_middle(svg: &mut String, class: &str, x: f64, y: f64, text: &str) {
    written(svg, class, x, y, " text-anchor=\"middle\"", text);
}

fn written(svg: &mut String, class: &str, x: f64, y: f64, anchor: impl Display, text: &str) {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    let _ = writeln!(svg, "<text{class} x=\"{x:.0}\" y=\"{y:.0}\"{anchor}>{}</text>", escaped(text));
}

/// Text as XML has it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::answers::Target, *};

    fn drawn(json: &Value, series: Vec<Series>) -> Result<String> {
        let targets = vec![Target { id: "A", query: "x < 1", series }];
        let panel = Panel { json, title: "What <it> is", unit: "cps", targets };
        dashboard(&json!({"title": "Board"}), &[panel], (1_700_000_000.0, 1_700_000_300.0))
    }

    fn panel(kind: &str) -> Value {
        json!({"type": kind, "gridPos": {"x": 0, "y": 0, "w": 12, "h": 8}})
    }

    #[test]
    fn a_picture_says_what_it_is_and_shows_title_query_and_values() {
        let series = Series {
            name: "egress & more".to_owned(),
            points: vec![(1_700_000_100.0, 2.5)],
            ..Series::default()
        };
        let said =
            [LABEL, ">What &lt;it&gt; is</text>", "<title>x &lt; 1</title>", "2023-11-14 22:13 to 22:18 UTC"];
        for kind in ["stat", "timeseries", "state-timeline", "bargauge", "table"] {
            let svg = drawn(&panel(kind), vec![series.clone()]).unwrap();
            for part in said {
                assert!(svg.contains(part), "{kind}: no {part} in {svg}");
            }
            assert!(kind == "state-timeline" || svg.contains("2.5 c/s"), "{kind}: {svg}");
            let named = ["timeseries", "state-timeline", "bargauge"].contains(&kind);
            assert!(!named || svg.contains(">egress &amp; more</text>"), "{kind}: {svg}");
        }
        assert!(drawn(&panel("piechart"), vec![series]).unwrap_err().to_string().contains("piechart"));
    }

    #[test]
    fn a_text_is_cut_where_it_does_not_fit() {
        assert_eq!(cut("short", 100.0), "short");
        assert_eq!(cut("a text that is far too long", 65.0), "a text th…");
    }
}
