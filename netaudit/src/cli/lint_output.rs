//! What `netaudit lint` tells, as text and JSON.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{
    columns::Widths,
    lint::{Silenced, Told},
    lint_fix::Fixed,
    manifest_files::Loaded,
    one_line,
};
use crate::advise::lint::{Code, Finding, Severity, TABLE};

/// The table, for people.
pub(super) fn list(out: &mut impl Write) -> io::Result<()> {
    let head = ["CODE", "NAME", "SEVERITY", "FIX", "WHAT"].map(str::to_owned);
    let lines: Vec<[String; 5]> = TABLE
        .iter()
        .map(|it| {
            let fix = if it.fix { "yes" } else { "" };
            [&it.code.to_string(), it.name, it.severity.as_str(), fix, it.short].map(str::to_owned)
        })
        .collect();
    let widths = Widths::of(lines.iter().chain([&head]));
    for line in [&head].into_iter().chain(&lines) {
        writeln!(out, "{}", widths.line(line))?;
    }
    Ok(())
}

/// The table, for programs.
pub(super) fn codes() -> Value {
    let codes: Vec<Value> = (TABLE.iter())
        .map(|it| {
            json!({
                "code": it.code.to_string(),
                "name": it.name,
                "severity": it.severity,
                "fix": it.fix,
                "short": it.short,
                "long": it.long,
            })
        })
        .collect();
    json!({ "codes": codes })
}

/// What a code means.
pub(super) fn explain(out: &mut impl Write, code: Code) -> io::Result<()> {
    let about = code.about();
    let fix = if about.fix { "; --fix corrects it where that is safe" } else { "" };
    writeln!(
        out,
        "{code} {} ({}{fix}): {}\n\n{}",
        about.name,
        about.severity.as_str(),
        about.short,
        about.long
    )
}

/// A line a finding, then what was not checked, and how much there was.
pub(super) fn text(out: &mut impl Write, loaded: &Loaded, told: &Told, fixed: &Fixed) -> io::Result<()> {
    fixed.text(out)?;
    for finding in &told.findings {
        writeln!(out, "{}", line(loaded, finding))?;
    }
    for it in &told.skipped {
        let times = if it.count > 1 { format!(" ({} times)", it.count) } else { String::new() };
        writeln!(out, "not checked: {} {}: {}{times}", it.code, it.code.about().name, one_line(&it.reason))?;
    }
    let count = |severity| told.findings.iter().filter(|it| it.severity == severity).count();
    let found = match told.findings.len() {
        0 => "no findings".to_owned(),
        all => {
            let by = [Severity::Error, Severity::Warning, Severity::Note].map(|it| (count(it), it));
            let by = by.iter().filter(|(count, _)| *count > 0);
            let by: Vec<_> = by.map(|(count, it)| several(*count, it.as_str())).collect();
            format!("{}: {}", several(all, "finding"), by.join(", "))
        }
    };
    let silenced = match told.silenced.len() {
        0 => String::new(),
        count => {
            let mut codes: Vec<String> = told.silenced.iter().map(|it| it.finding.code.to_string()).collect();
            codes.sort();
            codes.dedup();
            format!("; {count} silenced ({})", codes.join(", "))
        }
    };
    let unread = match loaded.errors.len() {
        0 => String::new(),
        count => format!("; {} could not be read", several(count, "part")),
    };
    writeln!(
        out,
        "{found}{silenced}; {} in {} checked{unread}",
        several(policies(loaded), "policy"),
        several(loaded.files.len(), "file")
    )
}

/// `2 notes`, `1 policy`.
fn several(count: usize, what: &str) -> String {
    match (count, what.strip_suffix('y')) {
        (1, _) => format!("1 {what}"),
        (_, Some(stem)) => format!("{count} {stem}ies"),
        _ => format!("{count} {what}s"),
    }
}

/// How many policies there are that are checked.
pub(super) fn policies(loaded: &Loaded) -> usize {
    use crate::{advise::lint::What, cluster::Object};
    let is_policy =
        |it: &What| matches!(it, What::Object(Object::NetworkPolicy(_) | Object::ClusterPolicy(_)));
    loaded.manifests.items.iter().filter(|it| is_policy(&it.what)).count()
}

/// `policies/web.yaml:14:5: warning NA005 NetworkPolicy shop/web spec.egress[0].ports[0]: …`
pub(super) fn line(loaded: &Loaded, finding: &Finding) -> String {
    let (source, place) = loaded.place(finding);
    let (line, column) = place.map_or((source.line, 1), |it| (it.start.line, it.start.column));
    let path = if finding.path.is_empty() { String::new() } else { format!(" {}", finding.path) };
    let fix = if finding.change.is_some() { " (--fix)" } else { "" };
    one_line(&format!(
        "{}:{line}:{column}: {} {} {}{path}: {}{fix}",
        source.file.display(),
        finding.severity.as_str(),
        finding.code,
        loaded.object(finding.item),
        finding.message
    ))
}

/// Everything, for programs.
pub(super) fn json(loaded: &Loaded, told: &Told, fixed: &Fixed) -> Value {
    let findings: Vec<Value> = told.findings.iter().map(|it| finding(loaded, it)).collect();
    let silenced = |it: &Silenced| {
        let mut value = finding(loaded, &it.finding);
        value["silenced_by"] = json!(if it.reason.is_some() { "annotation" } else { "ignore" });
        value["reason"] = json!(it.reason);
        value
    };
    let silenced: Vec<Value> = told.silenced.iter().map(silenced).collect();
    let skipped: Vec<Value> = (told.skipped.iter())
        .map(|it| json!({ "code": it.code.to_string(), "reason": it.reason, "count": it.count }))
        .collect();
    let errors = |all: &[crate::watch::manifests::ManifestError]| -> Vec<Value> {
        let error = |it: &crate::watch::manifests::ManifestError| {
            json!({
                "file": it.file.display().to_string(),
                "document": it.document,
                "line": it.line,
                "column": it.column,
                "reason": it.reason,
            })
        };
        all.iter().map(error).collect()
    };
    let mut value = json!({
        "findings": findings,
        "silenced": silenced,
        "not_checked": skipped,
        "errors": errors(&loaded.errors),
        "passed_over": errors(&loaded.passed_over),
        "files": loaded.files.len(),
        "policies": policies(loaded),
    });
    fixed.json(&mut value);
    value
}

fn finding(loaded: &Loaded, finding: &Finding) -> Value {
    let (source, place) = loaded.place(finding);
    json!({
        "code": finding.code.to_string(),
        "name": finding.code.about().name,
        "severity": finding.severity,
        "file": source.file.display().to_string(),
        "document": source.document,
        "line": place.map_or(source.line, |it| it.start.line),
        "column": place.map_or(1, |it| it.start.column),
        "end_line": place.map(|it| it.end.line),
        "end_column": place.map(|it| it.end.column),
        "object": loaded.object(finding.item),
        "path": finding.path,
        "message": finding.message,
        "fix": finding.change.is_some(),
    })
}
