//! `netaudit lint`: what it finds, where, what it does not say, and what it corrects.

mod cases;
mod command;
mod fixing;
mod hostile;
mod sarif;

use std::path::Path;

use netaudit::{
    advise::lint::{self, Options, Report},
    watch::placed::{self, Placed},
};

/// Reads a text as a file of this name, and checks it.
fn lint(name: &str, text: &str, options: &Options) -> (Placed, Report) {
    let placed = placed::read(Path::new(name), text.as_bytes());
    let report = lint::check(&placed.manifests, options);
    (placed, report)
}

/// What was found, a line each: `7:3 warning NA004 spec.egress`.
fn lines(placed: &Placed, report: &Report) -> Vec<String> {
    let line = |finding: &lint::Finding| {
        let item = &placed.manifests.items[finding.item];
        let found = placed.manifests.documents[item.document].find(&finding.full_path(&placed.manifests));
        let start = found.expect("a place").node.pointer().start;
        let (severity, code, path) = (finding.severity.as_str(), finding.code, &finding.path);
        format!("{}:{} {severity} {code} {path}", start.line, start.column).trim_end().to_owned()
    };
    report.findings.iter().map(line).collect()
}
