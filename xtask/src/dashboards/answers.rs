//! A panel, and what Prometheus answers to its queries.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::demo::history::{History, STEP};

/// Why a panel may be empty: the metric that it asks for, and what the demo's node has not. Any other empty panel is an error.
const EMPTY: &[(&str, &str)] = &[
    ("netaudit_pod_start_exposure_seconds_bucket", "no pod was started while something enforced"),
    ("netaudit_policy_change_exposure_seconds_bucket", "no change of a policy was seen to bite"),
];

/// A panel with its answers.
pub struct Panel<'a> {
    /// As the dashboard has it.
    pub json: &'a Value,
    /// What it is called.
    pub title: &'a str,
    /// The unit of its values.
    pub unit: &'a str,
    /// Its queries, and what each was answered.
    pub targets: Vec<Target<'a>>,
}

/// One query.
pub struct Target<'a> {
    /// Its letter.
    pub id: &'a str,
    /// PromQL, with the dashboard's variables.
    pub query: &'a str,
    /// What came back.
    pub series: Vec<Series>,
}

/// One series of an answer.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// What the panel calls it.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Times in seconds since the epoch, and values that are numbers.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// The latest value.
    pub fn last(&self) -> f64 {
        self.points.last().map_or(f64::NAN, |point| point.1)
    }

    /// The greatest one.
    pub fn max(&self) -> f64 {
        self.points.iter().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max)
    }
}

impl<'a> Panel<'a> {
    /// Asks what the panel asks, with everything chosen in the dashboard's lists.
    pub fn ask(json: &'a Value, history: &History) -> Result<Self> {
        let title = json["title"].as_str().context("a panel without a title")?;
        let unit = json["fieldConfig"]["defaults"]["unit"].as_str().context("a panel without a unit")?;
        let mut targets = Vec::new();
        for target in json["targets"].as_array().with_context(|| format!("{title} asks nothing"))? {
            let query =
                target["expr"].as_str().with_context(|| format!("{title} has a target without a query"))?;
            let answer = history
                .ask(&filled_in(query), target["instant"] == true)
                .with_context(|| format!("{title} asks {query}"))?;
            let legend = target["legendFormat"].as_str().unwrap_or_default();
            let id =
                target["refId"].as_str().with_context(|| format!("{title} has a target without refId"))?;
            targets.push(Target { id, query, series: series(&answer, legend)? });
        }
        let panel = Self { json, title, unit, targets };
        ensure!(
            !panel.is_empty() || panel.why_empty().is_some(),
            "{title} has no value, and nothing says why: let the demo's history have one, or add the reason to EMPTY"
        );
        Ok(panel)
    }

    /// Every series of every query.
    pub fn series(&self) -> impl Iterator<Item = &Series> {
        self.targets.iter().flat_map(|target| &target.series)
    }

    /// Whether no query has a value.
    pub fn is_empty(&self) -> bool {
        self.series().next().is_none()
    }

    /// What would have given it a value.
    pub fn why_empty(&self) -> Option<&'static str> {
        let asks = |metric: &str| self.targets.iter().any(|target| target.query.contains(metric));
        EMPTY.iter().find(|(metric, _)| asks(metric)).map(|(_, why)| *why)
    }

    /// A coordinate in Grafana's grid, which is 24 wide.
    pub fn at(&self, side: &str) -> Result<f64> {
        self.json["gridPos"][side]
            .as_f64()
            .with_context(|| format!("{} has no {side} in gridPos", self.title))
    }
}

/// The query as Grafana would send it.
fn filled_in(query: &str) -> String {
    // What Grafana takes: four scrapes.
    let query = query.replace("$__rate_interval", &format!("{}s", 4 * STEP));
    ["$job", "$instance", "$namespace"]
        .into_iter()
        .fold(query, |query, variable| query.replace(variable, ".*"))
}

/// The series that have a value; a point that is no number (0 through 0) is none.
fn series(answer: &Value, legend: &str) -> Result<Vec<Series>> {
    let mut all = Vec::new();
    for result in answer["data"]["result"].as_array().context("an answer without a result")? {
        let labels: BTreeMap<String, String> = serde_json::from_value(result["metric"].clone())?;
        let single = std::slice::from_ref(&result["value"]);
        let points = result["values"].as_array().map_or(single, Vec::as_slice).iter().map(point);
        let points: Vec<(f64, f64)> = points.collect::<Result<_>>()?;
        let points: Vec<_> = points.into_iter().filter(|(_, value)| value.is_finite()).collect();
        if !points.is_empty() {
            all.push(Series { name: named(legend, &labels), labels, points });
        }
    }
    Ok(all)
}

fn point(value: &Value) -> Result<(f64, f64)> {
    let time = value[0].as_f64().context("a value without a time")?;
    Ok((time, value[1].as_str().context("a value that is no text")?.parse()?))
}

/// The legend with labels in place of `{{label}}`, and nothing in place of one that the series has not.
fn named(legend: &str, labels: &BTreeMap<String, String>) -> String {
    let mut name = String::new();
    for (index, part) in legend.split("{{").enumerate() {
        let (label, rest) = if index == 0 { ("", part) } else { part.split_once("}}").unwrap_or((part, "")) };
        name.push_str(labels.get(label).map_or("", String::as_str));
        name.push_str(rest);
    }
    name
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_becomes_named_series_without_points_that_are_no_numbers() {
        let answer = json!({"data": {"result": [
            {"metric": {"kind": "drop", "x": "1"}, "values": [[10, "NaN"], [15, "2.5"]]},
            {"metric": {"kind": "none"}, "values": [[10, "NaN"]]},
            {"metric": {}, "value": [15, "3"]},
        ]}});
        let series = series(&answer, "{{kind}}: {{x}}!").unwrap();
        assert_eq!(series.len(), 2, "one has no value at all");
        assert_eq!((&*series[0].name, &*series[0].points), ("drop: 1!", &[(15.0, 2.5)][..]));
        assert_eq!(
            (&*series[1].name, series[1].last(), series[1].max()),
            (": !", 3.0, 3.0),
            "labels that it has not"
        );
    }

    #[test]
    fn a_query_is_sent_with_everything_chosen() {
        assert_eq!(filled_in("rate(x{job=~\"$job\"}[$__rate_interval])"), "rate(x{job=~\".*\"}[20s])");
    }
}
