//! The results of `netaudit test`, for people, CI servers and programs.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{
    one_line,
    test::{Checked, Failure},
};
use crate::advise::expectations::Expected;

/// For people: what does not hold with what decides, and the sum as the last line.
pub(super) fn text(results: &[Checked], out: &mut impl Write) -> io::Result<()> {
    for result in results {
        let word = if result.failures.is_empty() { "ok  " } else { "FAIL" };
        let observed = result.observed.map(|flows| format!(" ({flows} flows recorded)")).unwrap_or_default();
        writeln!(out, "{word} {}{observed}", one_line(&result.name))?;
        if !result.failures.is_empty() {
            writeln!(out, "     {}:{}", one_line(&result.file), result.line)?;
        }
        for failure in &result.failures {
            lines(failure).iter().try_for_each(|line| writeln!(out, "     {line}"))?;
        }
        result.notes.iter().try_for_each(|note| writeln!(out, "     note: {}", one_line(note)))?;
    }
    let failed = failed(results);
    writeln!(out, "{} passed, {failed} failed", results.len() - failed)
}

/// The Test Anything Protocol, version 14.
pub(super) fn tap(results: &[Checked], out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "TAP version 14\n1..{}", results.len())?;
    for (number, result) in (1..).zip(results) {
        // A # begins a directive, and a backslash escapes it.
        let name = one_line(&result.name).replace('\\', "\\\\").replace('#', "\\#");
        let word = if result.failures.is_empty() { "ok" } else { "not ok" };
        writeln!(out, "{word} {number} - {name}")?;
        let notes = |out: &mut dyn Write| {
            result.notes.iter().try_for_each(|note| writeln!(out, "# {}", one_line(note)))
        };
        if result.failures.is_empty() {
            notes(out)?;
            continue;
        }
        writeln!(out, "  ---")?;
        // A JSON text is one of YAML too, whatever is in it.
        writeln!(out, "  message: {}", json!(messages(result)))?;
        writeln!(out, "  severity: fail")?;
        writeln!(out, "  at: {}", json!(format!("{}:{}", result.file, result.line)))?;
        writeln!(out, "  details:")?;
        for line in result.failures.iter().flat_map(lines) {
            writeln!(out, "    - {}", json!(line))?;
        }
        // What is said of a case stands right behind it, and nothing else between.
        writeln!(out, "  ...")?;
        notes(out)?;
    }
    Ok(())
}

/// JUnit's XML: a suite for each file.
pub(super) fn junit(results: &[Checked], out: &mut impl Write) -> io::Result<()> {
    writeln!(out, r#"<?xml version="1.0" encoding="UTF-8"?>"#)?;
    writeln!(
        out,
        r#"<testsuites name="netaudit" tests="{}" failures="{}" errors="0">"#,
        results.len(),
        failed(results)
    )?;
    for suite in results.chunk_by(|a, b| a.file == b.file) {
        let file = xml(&suite[0].file);
        writeln!(
            out,
            r#"  <testsuite name="{file}" tests="{}" failures="{}" errors="0" skipped="0">"#,
            suite.len(),
            failed(suite)
        )?;
        for result in suite {
            let name = xml(&result.name);
            write!(
                out,
                r#"    <testcase name="{name}" classname="{file}" file="{file}" line="{}""#,
                result.line
            )?;
            if result.failures.is_empty() && result.notes.is_empty() {
                writeln!(out, "/>")?;
                continue;
            }
            writeln!(out, ">")?;
            if !result.failures.is_empty() {
                let told: Vec<String> = result.failures.iter().flat_map(lines).collect();
                writeln!(
                    out,
                    r#"      <failure message="{}">{}</failure>"#,
                    xml(&messages(result)),
                    xml(&told.join("\n"))
                )?;
            }
            if !result.notes.is_empty() {
                writeln!(out, "      <system-out>{}</system-out>", xml(&result.notes.join("\n")))?;
            }
            writeln!(out, "    </testcase>")?;
        }
        writeln!(out, "  </testsuite>")?;
    }
    writeln!(out, "</testsuites>")
}

/// For programs.
pub(super) fn json(results: &[Checked]) -> Value {
    let failed = failed(results);
    let cases: Vec<Value> = results
        .iter()
        .map(|it| {
            let failures: Vec<Value> = it
                .failures
                .iter()
                .map(|it| json!({ "message": it.message, "details": it.details, "advice": it.advice }))
                .collect();
            json!({
                "name": it.name,
                "file": it.file,
                "line": it.line,
                "expect": match it.expect { Expected::Allow => "allow", Expected::Deny => "deny" },
                "holds": it.failures.is_empty(),
                "connections": it.asked,
                "observed": it.observed,
                "failures": failures,
                "notes": it.notes,
            })
        })
        .collect();
    json!({ "passed": results.len() - failed, "failed": failed, "cases": cases })
}

fn failed(results: &[Checked]) -> usize {
    results.iter().filter(|result| !result.failures.is_empty()).count()
}

fn messages(result: &Checked) -> String {
    let messages: Vec<String> = result.failures.iter().map(|it| one_line(&it.message)).collect();
    messages.join("; ")
}

/// A failure: what, what decides, and what to do.
fn lines(failure: &Failure) -> Vec<String> {
    let details = failure.details.iter().map(|line| format!("  {}", one_line(line)));
    let advice = failure.advice.iter().map(|line| format!("  to do: {}", one_line(line)));
    [one_line(&failure.message)].into_iter().chain(details).chain(advice).collect()
}

/// A text in XML. Control characters cannot be in it at all.
fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push_str("&#10;"),
            letter if letter.is_control() => escaped.extend(letter.escape_default()),
            letter => escaped.push(letter),
        }
    }
    escaped
}
