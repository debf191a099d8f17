//! A table panel's rows: what its queries answered, after the panel's own transformations.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde_json::Value;

use super::{
    answers::{Panel, Target},
    units::shown,
};

/// A table as it is shown.
#[derive(PartialEq, Debug)]
pub struct Table {
    /// The columns' titles.
    pub header: Vec<String>,
    /// As many cells as columns each.
    pub rows: Vec<Vec<String>>,
}

#[derive(Clone, Debug)]
enum Cell {
    Text(String),
    Number(f64),
}

/// Columns in order, and rows that need not have a cell in each.
#[derive(Default)]
struct Frame {
    columns: Vec<String>,
    rows: Vec<BTreeMap<String, Cell>>,
}

/// Applies the transformations of `panel`. An error for one that is not known here.
pub fn table(panel: &Panel<'_>) -> Result<Table> {
    let several = panel.targets.len() > 1;
    let mut frames: Vec<Frame> = panel.targets.iter().map(|target| frame(target, several)).collect();
    let mut table = frames.remove(0);
    for transformation in panel.json["transformations"].as_array().into_iter().flatten() {
        let options = &transformation["options"];
        match transformation["id"].as_str().unwrap_or_default() {
            "merge" => frames.drain(..).for_each(|other| merge(&mut table, other)),
            "organize" => organize(&mut table, options),
            "sortBy" => sort(&mut table, &options["sort"][0]),
            other => bail!("{}: no way to do the transformation {other:?}", panel.title),
        }
    }
    if !frames.is_empty() {
        bail!("{} has several queries and does not merge them", panel.title);
    }
    let cell = |row: &BTreeMap<String, Cell>, column: &String| match row.get(column) {
        Some(Cell::Text(text)) => Ok(text.clone()),
        Some(Cell::Number(number)) => shown(*number, unit(panel, column)),
        None => Ok(String::new()),
    };
    let rows = table.rows.iter().map(|row| table.columns.iter().map(|column| cell(row, column)).collect());
    Ok(Table { rows: rows.collect::<Result<_>>()?, header: table.columns })
}

fn unit<'a>(panel: &Panel<'a>, column: &str) -> &'a str {
    let overrides = panel.json["fieldConfig"]["overrides"].as_array().into_iter().flatten();
    let own = overrides.filter(|it| it["matcher"]["id"] == "byName" && it["matcher"]["options"] == column);
    let mut properties = own.flat_map(|it| it["properties"].as_array().into_iter().flatten());
    properties.find(|it| it["id"] == "unit").and_then(|it| it["value"].as_str()).unwrap_or(panel.unit)
}

fn frame(target: &Target<'_>, several: bool) -> Frame {
    let value = if several { format!("Value #{}", target.id) } else { "Value".to_owned() };
    let mut frame = Frame::default();
    for series in &target.series {
        for label in series.labels.keys() {
            if !frame.columns.contains(label) {
                frame.columns.push(label.clone());
            }
        }
        let mut row: BTreeMap<String, Cell> =
            series.labels.iter().map(|(name, text)| (name.clone(), Cell::Text(text.clone()))).collect();
        row.insert(value.clone(), Cell::Number(series.last()));
        frame.rows.push(row);
    }
    frame.columns.push(value);
    frame
}

/// Puts rows together that agree in every text that both have.
fn merge(table: &mut Frame, other: Frame) {
    let agrees = |one: &BTreeMap<String, Cell>, two: &BTreeMap<String, Cell>| {
        one.iter().all(|(column, cell)| match (cell, two.get(column)) {
            (Cell::Text(one), Some(Cell::Text(two))) => one == two,
            _ => true,
        })
    };
    for row in other.rows {
        match table.rows.iter_mut().find(|known| agrees(known, &row)) {
            Some(known) => known.extend(row),
            None => table.rows.push(row),
        }
    }
    for column in other.columns {
        if !table.columns.contains(&column) {
            table.columns.push(column);
        }
    }
}

fn organize(table: &mut Frame, options: &Value) {
    table.columns.retain(|column| options["excludeByName"][column] != true);
    for column in &mut table.columns {
        let Some(new) = options["renameByName"][column.as_str()].as_str() else { continue };
        for row in &mut table.rows {
            if let Some(cell) = row.remove(column) {
                row.insert(new.to_owned(), cell);
            }
        }
        *column = new.to_owned();
    }
}

fn sort(table: &mut Frame, by: &Value) {
    let Some(column) = by["field"].as_str() else { return };
    let value = |row: &BTreeMap<String, Cell>| match row.get(column) {
        Some(Cell::Number(number)) => *number,
        _ => f64::NEG_INFINITY,
    };
    table.rows.sort_by(|one, two| value(one).total_cmp(&value(two)));
    if by["desc"] == true {
        table.rows.reverse();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::answers::Series, *};

    fn series(labels: &[(&str, &str)], value: f64) -> Series {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Series { name: String::new(), labels, points: vec![(0.0, value)] }
    }

    #[test]
    fn queries_are_merged_renamed_and_sorted() {
        let json = json!({
            "fieldConfig": {"overrides": [{
                "matcher": {"id": "byName", "options": "Share"},
                "properties": [{"id": "unit", "value": "percentunit"}],
            }]},
            "transformations": [
                {"id": "merge", "options": {}},
                {"id": "organize", "options": {
                    "excludeByName": {"hidden": true},
                    "renameByName": {"Value #A": "Count", "Value #B": "Share"},
                }},
                {"id": "sortBy", "options": {"sort": [{"field": "Count", "desc": true}]}},
            ],
        });
        let a = vec![series(&[("of", "x"), ("hidden", "1")], 1.0), series(&[("of", "y")], 2.0)];
        let b = vec![series(&[("of", "x"), ("path", "p")], 0.5)];
        let targets = [("A", a), ("B", b)].map(|(id, series)| Target { id, query: "", series });
        let panel = Panel { json: &json, title: "test", unit: "short", targets: targets.into() };
        let rows = [["y", "2", "", ""], ["x", "1", "p", "50 %"]];
        assert_eq!(
            table(&panel).unwrap(),
            Table {
                header: ["of", "Count", "path", "Share"].map(str::to_owned).into(),
                rows: rows.map(|row| row.map(str::to_owned).into()).into(),
            }
        );
    }

    #[test]
    fn what_is_not_known_here_is_an_error() {
        let json = json!({"transformations": [{"id": "pivot", "options": {}}]});
        let targets = vec![Target { id: "A", query: "", series: vec![series(&[], 1.0)] }];
        let panel = Panel { json: &json, title: "test", unit: "short", targets };
        assert!(table(&panel).unwrap_err().to_string().contains("pivot"));
    }
}
