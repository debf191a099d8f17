//! The scaling of both engines as an SVG: two panels with logarithmic axes.

use std::fmt::Write as _;

use serde_json::Value;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 420.0;
/// A panel's place below its title, and its size.
const TOP: f64 = 60.0;
const PANEL: (f64, f64) = (360.0, 290.0);
/// The powers of ten at the ends of the axes.
const X: [(i32, i32); 2] = [(1, 4), (2, 5)];
const Y: (i32, i32) = (0, 7);

/// Lines: the field that holds their figures, what they are, their colour, and how far below them their name stands.
const LINES: [(&str, &str, &str, f64); 3] = [
    ("peer_ns", "kube-network-policies", "#c2410c", -16.0),
    ("flow_computed_ns", "netaudit, computed", "#1d4ed8", -9.0),
    ("flow_remembered_ns", "netaudit, remembered", "#15803d", 18.0),
];

/// Draws what the benchmark found: nanoseconds of a new connection, judged at both ends, over policies and over pods.
pub fn scaling(scale: &Value) -> String {
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#fff"/>
<text x="20" y="24" font-size="15">Time to judge a new connection, from addresses to the verdicts of both ends</text>
"##
    );
    for (column, axis) in ["policies", "pods"].into_iter().enumerate() {
        panel(&mut svg, 70.0 + 460.0 * column as f64, axis, X[column], &scale[axis]);
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(svg: &mut String, left: f64, axis: &str, x: (i32, i32), rows: &Value) {
    let rows = rows.as_array().map_or(&[][..], Vec::as_slice);
    let (width, height) = PANEL;
    let place =
        |value: f64, (low, high): (i32, i32)| (value.log10() - f64::from(low)) / f64::from(high - low);
    let across = |value: f64| left + width * place(value, x);
    let up = |value: f64| TOP + height * (1.0 - place(value, Y));
    let (right, bottom) = (left + width, TOP + height);
    let other = if axis == "pods" { "policies" } else { "pods" };
    let fixed = rows.first().map_or(0, |row| row[other].as_u64().unwrap_or(0));
    let _ = writeln!(svg, r#"<text x="{left}" y="{}">over {axis}, with {fixed} {other}</text>"#, TOP - 12.0);
    for power in Y.0..=Y.1 {
        let (y, name) = (up(10f64.powi(power)), time(power));
        let _ = writeln!(
            svg,
            r##"<path d="M{left} {y:.1}H{right}" stroke="#ddd"/><text x="{:.1}" y="{:.1}" text-anchor="end">{name}</text>"##,
            left - 6.0,
            y + 4.0
        );
    }
    for power in x.0..=x.1 {
        let (at, name) = (across(10f64.powi(power)), 10u64.pow(power.unsigned_abs()));
        let _ = writeln!(
            svg,
            r##"<path d="M{at:.1} {TOP}V{bottom}" stroke="#ddd"/><text x="{at:.1}" y="{:.1}" text-anchor="middle">{name}</text>"##,
            bottom + 18.0
        );
    }
    for (field, name, colour, below) in LINES {
        let points: Vec<(f64, f64)> = rows
            .iter()
            .filter_map(|row| Some((across(row[axis].as_f64()?), up(row[field].as_f64()?))))
            .collect();
        let Some((last_x, last_y)) = points.last().copied() else { continue };
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            svg,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
            path.join(" ")
        );
        for (x, y) in points {
            let _ = writeln!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{colour}"/>"#);
        }
        let _ = writeln!(
            svg,
            r#"<text x="{last_x:.1}" y="{:.1}" text-anchor="end" fill="{colour}">{name}</text>"#,
            last_y + below
        );
    }
}

/// A power of ten nanoseconds.
fn time(power: i32) -> String {
    let unit = ["ns", "µs", "ms", "s"][(power / 3) as usize];
    format!("{} {unit}", 10u32.pow((power % 3) as u32))
}
