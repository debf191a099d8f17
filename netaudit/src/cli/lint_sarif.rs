//! What `netaudit lint` tells, as SARIF 2.1.0: a format in which code hosts and editors take findings.

use std::{collections::HashMap, fmt::Write as _, path::Path};

use serde_json::{Map, Value, json};

use super::{
    lint::{Silenced, Told},
    manifest_files::Loaded,
};
use crate::{
    advise::lint::{Finding, Severity, TABLE},
    watch::manifests::ManifestError,
};

/// Where the format's definition is.
const SCHEMA: &str =
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";

/// Where a result has its fingerprint.
const PRINT: &str = "/partialFingerprints/objectAndPath~1v1";

/// A log of one run.
pub(super) fn log(loaded: &Loaded, told: &Told) -> Value {
    let rules: Vec<Value> = (TABLE.iter())
        .map(|it| {
            json!({
                "id": it.code.to_string(),
                "name": it.name,
                "shortDescription": { "text": it.short },
                "fullDescription": { "text": it.long },
                "help": { "text": it.long },
                "defaultConfiguration": { "level": it.severity.as_str() },
            })
        })
        .collect();
    let found = told.findings.iter().map(|it| result(loaded, it));
    let silenced = told.silenced.iter().map(|Silenced { finding, reason }| {
        let mut result = result(loaded, finding);
        // By an annotation in the text, or by the command line.
        result["suppressions"] = match reason {
            Some(reason) if !reason.is_empty() => json!([{ "kind": "inSource", "justification": reason }]),
            Some(_) => json!([{ "kind": "inSource" }]),
            None => json!([{ "kind": "external" }]),
        };
        result
    });
    let mut results: Vec<Value> = found.chain(silenced).collect();
    number_alike(&mut results);
    let errors = loaded.errors.iter().map(|it| (Severity::Error, it));
    let passed_over = loaded.passed_over.iter().map(|it| (Severity::Warning, it));
    let unread = errors.chain(passed_over).map(|(level, error)| {
        let mut notification = json!({ "level": level.as_str(), "message": { "text": error.reason } });
        notification["locations"] = json!([{ "physicalLocation": place_of_error(error) }]);
        notification
    });
    let skipped = told.skipped.iter().map(|it| {
        let times = if it.count > 1 { format!(" ({} times)", it.count) } else { String::new() };
        json!({
            "level": "note",
            "message": { "text": format!("{} was not checked: {}{times}", it.code, it.reason) },
            "associatedRule": { "id": it.code.to_string(), "index": it.code as u8 - 1 },
        })
    });
    json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "netaudit lint",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            }},
            "columnKind": "unicodeCodePoints",
            "invocations": [{
                "executionSuccessful": loaded.errors.is_empty(),
                "toolExecutionNotifications": unread.chain(skipped).collect::<Vec<_>>(),
            }],
            "results": results,
        }],
    })
}

fn result(loaded: &Loaded, finding: &Finding) -> Value {
    let (source, place) = loaded.place(finding);
    let region = match place {
        Some(place) => json!({
            "startLine": place.start.line,
            "startColumn": place.start.column,
            "endLine": place.end.line,
            "endColumn": place.end.column,
        }),
        None => json!({ "startLine": source.line.max(1) }),
    };
    let object = loaded.object(finding.item);
    let name = if finding.path.is_empty() { object.clone() } else { format!("{object} {}", finding.path) };
    json!({
        "ruleId": finding.code.to_string(),
        "ruleIndex": finding.code as u8 - 1,
        "level": finding.severity.as_str(),
        "message": { "text": format!("{object}: {}", finding.message) },
        "locations": [{
            "physicalLocation": {
                "artifactLocation": { "uri": uri(&source.file) },
                "region": region,
            },
            "logicalLocations": [{ "fullyQualifiedName": name, "kind": "object" }],
        }],
        // The same where lines above have moved it.
        "partialFingerprints": { "objectAndPath/v1": format!("{} {name}", finding.code) },
    })
}

/// Those that read a log take results with one fingerprint for one: of several at one place, each but the first gets its number.
fn number_alike(results: &mut [Value]) {
    let mut seen: HashMap<String, u32> = HashMap::new();
    for result in results {
        let Some(print) = result.pointer_mut(PRINT) else { continue };
        let text = print.as_str().unwrap_or_default().to_owned();
        let count = seen.entry(text.clone()).or_default();
        *count += 1;
        if *count > 1 {
            *print = format!("{text} {count}").into();
        }
    }
}

fn place_of_error(error: &ManifestError) -> Value {
    let mut place = json!({ "artifactLocation": { "uri": uri(&error.file) } });
    if error.line > 0 {
        let mut region = Map::from_iter([("startLine".to_owned(), error.line.into())]);
        if error.column > 0 {
            region.insert("startColumn".to_owned(), error.column.into());
        }
        place["region"] = Value::Object(region);
    }
    place
}

/// A path as a URI: relative as it is named, so that it is below the repository where the command ran there.
fn uri(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let bytes = path.as_os_str().as_bytes();
    let bytes = bytes.strip_prefix(b"./").unwrap_or(bytes);
    let mut uri = if bytes.starts_with(b"/") { "file://".to_owned() } else { String::new() };
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                uri.push(*byte as char)
            }
            other => {
                let _ = write!(uri, "%{other:02X}");
            }
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_results_with_one_fingerprint_each_gets_its_own() {
        let result = |print: &str| json!({ "partialFingerprints": { "objectAndPath/v1": print } });
        let mut results = [result("a"), result("b"), result("a"), result("a")];
        number_alike(&mut results);
        let prints: Vec<_> = results.iter().filter_map(|it| it.pointer(PRINT)?.as_str()).collect();
        assert_eq!(prints, ["a", "b", "a 2", "a 3"]);
    }
}
