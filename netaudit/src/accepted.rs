//! The file of accepted flows: known exceptions, each with an owner and an end.
//!
//! ```yaml
//! accepted:
//!   - name: nightly-backup
//!     why: moves behind the gateway in March
//!     owner: team-data
//!     until: 2027-03-31            # that day is the last, UTC; or a time: 2027-03-31T18:00:00Z
//!     direction: egress            # optional from here on: what is not said is any
//!     from: {namespace: legacy, workload: backup}
//!     to: {namespace: shop, workload: db}
//!     protocol: TCP
//!     ports: [5432]
//! ```

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use crate::{
    audit::{Accepted, AcceptedEnd, AcceptedFlows, Flows},
    model::{Direction, Protocol, Timestamp},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// `None` where all entries are commented out.
    accepted: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    why: String,
    owner: String,
    until: String,
    direction: Option<String>,
    #[serde(default)]
    from: End,
    #[serde(default)]
    to: End,
    protocol: Option<String>,
    #[serde(default)]
    ports: Vec<u16>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct End {
    namespace: Option<String>,
    workload: Option<String>,
}

/// Reads accepted flows as people write them.
///
/// # Errors
///
/// Says which entry is wrong, what of it, and what would be right.
pub fn parse(text: &str) -> anyhow::Result<AcceptedFlows> {
    // As a file is while an editor writes it: that nothing is accepted any more must be said.
    let is_empty = text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
    ensure!(!is_empty, "it is empty: write `accepted: []` where nothing is accepted");
    let File { accepted } = serde_saphyr::from_str(text)?;
    let accepted = accepted.unwrap_or_default();
    let mut names = HashSet::new();
    let mut flows = Vec::with_capacity(accepted.len());
    for (at, entry) in accepted.into_iter().enumerate() {
        let whose = format!("accepted[{at}] ({})", entry.name);
        ensure!(names.insert(entry.name.clone()), "{whose}: another one has this name");
        flows.push(read(entry).context(whose)?);
    }
    Ok(AcceptedFlows(flows))
}

fn read(entry: Entry) -> anyhow::Result<Accepted> {
    for (field, value) in [("name", &entry.name), ("why", &entry.why), ("owner", &entry.owner)] {
        ensure!(!value.trim().is_empty(), "{field} is empty: say it, whoever reads the alert wants to know");
    }
    let direction = match entry.direction.as_deref() {
        None => None,
        Some("egress") => Some(Direction::Egress),
        Some("ingress") => Some(Direction::Ingress),
        Some(other) => bail!("direction is {other:?}: it must be egress or ingress"),
    };
    let protocol = match entry.protocol.as_deref().map(str::to_ascii_uppercase).as_deref() {
        None => None,
        Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some(other) => bail!("protocol is {other:?}: it must be TCP or UDP"),
    };
    ensure!(!entry.ports.contains(&0), "ports has a 0: no flow goes there");
    let end = |end: End| AcceptedEnd {
        namespace: end.namespace.map(Into::into),
        workload: end.workload.map(Into::into),
    };
    let flows = Flows { direction, from: end(entry.from), to: end(entry.to), protocol, ports: entry.ports };
    ensure!(
        flows != Flows::default(),
        "it says nothing of the flows, so that every violation would be accepted: name at least one of direction, from, to, protocol and ports"
    );
    Ok(Accepted {
        name: entry.name.into(),
        why: entry.why.into(),
        owner: entry.owner.into(),
        until: until(&entry.until)?,
        flows,
    })
}

/// The end of a day in UTC, or a time.
fn until(text: &str) -> anyhow::Result<Timestamp> {
    let time = match text.parse::<jiff::civil::Date>() {
        Ok(day) => day.tomorrow()?.to_zoned(jiff::tz::TimeZone::UTC)?.timestamp(),
        Err(_) => text.parse::<jiff::Timestamp>().with_context(|| {
            format!("until is {text:?}: it must be a day such as 2027-03-31 or a time such as 2027-03-31T18:00:00Z")
        })?,
    };
    let nanoseconds = i64::try_from(time.as_nanosecond()).ok();
    nanoseconds
        .map(Timestamp)
        .with_context(|| format!("until is {text:?}: the last year that can be told is 2261"))
}

/// The file, read again when it changes.
#[derive(Debug)]
pub struct AcceptedFile {
    path: PathBuf,
    /// What it held, or that it could not be read: neither is said twice.
    read: Option<Result<String, String>>,
    /// What is wrong with it.
    fault: Option<String>,
}

impl AcceptedFile {
    /// Not read yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), read: None, fault: None }
    }

    /// What it says now, if that is something else than at the last call.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or does not say what it must: what was read before holds.
    pub fn changed(&mut self) -> anyhow::Result<Option<AcceptedFlows>> {
        let now = std::fs::read_to_string(&self.path).map_err(|error| error.to_string());
        if self.read.as_ref() == Some(&now) {
            return Ok(None);
        }
        let text = self.read.insert(now).as_ref().map_err(|error| anyhow::anyhow!("{error}"));
        let flows = text.and_then(|text| parse(text));
        let flows = flows.with_context(|| format!("in the file of accepted flows {}", self.path.display()));
        self.fault = flows.as_ref().err().map(|error| format!("{error:#}"));
        flows.map(Some)
    }

    /// What is wrong with the file as it was at the last call of [`AcceptedFile::changed`]: what it said before holds.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "
accepted:
- name: nightly-backup
  why: moves behind the gateway in March
  owner: team-data
  until: 2027-03-31
  direction: egress
  from: {namespace: legacy, workload: backup}
  to: {workload: external}
  protocol: tcp
  ports: [5432]
- {name: scans, why: the scanner scans, owner: security, until: '2027-03-31T18:00:00Z', from: {namespace: scan}}
";

    #[test]
    fn reads_what_people_write() {
        let flows = parse(WHOLE).unwrap().0;
        let [backup, scans] = &flows[..] else { panic!("{flows:?}") };
        assert_eq!(backup.until.to_string(), "2027-04-01T00:00:00.000000000Z");
        assert_eq!(scans.until.to_string(), "2027-03-31T18:00:00.000000000Z");
        assert_eq!((&*backup.owner, &*backup.why), ("team-data", "moves behind the gateway in March"));
        let flows = &backup.flows;
        assert_eq!((flows.direction, flows.protocol), (Some(Direction::Egress), Some(Protocol::Tcp)));
        assert_eq!((flows.from.workload.as_deref(), flows.to.namespace.as_deref()), (Some("backup"), None));
        assert_eq!(flows.ports, [5432]);
    }

    #[test]
    fn says_what_is_wrong_and_where() {
        let with = |entry: &str| format!("accepted: [{{name: a, {entry}}}]");
        let plain = "why: w, owner: o, until: 2027-01-01";
        for (text, words) in [
            (with(plain), "accepted[0] (a): it says nothing of the flows"),
            (with("why: '', owner: o, until: 2027-01-01, ports: [1]"), "why is empty"),
            (with("why: w, owner: o, until: someday, ports: [1]"), "until is \"someday\": it must be a day"),
            (
                with("why: w, owner: o, until: 2999-01-01, ports: [1]"),
                "the last year that can be told is 2261",
            ),
            (with(&format!("{plain}, direction: up")), "direction is \"up\""),
            (with(&format!("{plain}, protocol: SCTP")), "protocol is \"SCTP\""),
            (with(&format!("{plain}, ports: [0]")), "no flow goes there"),
            (with(&format!("{plain}, form: {{}}")), "form"),
            (with("why: w, until: 2027-01-01, ports: [1]"), "owner"),
            (
                format!("accepted: [{{name: a, {plain}, ports: [1]}}, {{name: a, {plain}, ports: [2]}}]"),
                "accepted[1] (a): another one has this name",
            ),
            ("accepted: 1".to_owned(), "accepted"),
            (String::new(), "it is empty: write `accepted: []` where nothing is accepted"),
            ("# nothing any more\n".to_owned(), "it is empty"),
        ] {
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(words), "{text}\n{error}");
        }
    }

    #[test]
    fn a_file_is_told_when_it_changes_and_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("accepted.yaml");
        let mut file = AcceptedFile::new(&path);
        let error = format!("{:#}", file.changed().unwrap_err());
        assert!(error.contains("accepted.yaml"), "{error}");
        assert_eq!(file.changed().unwrap(), None, "said once");
        assert_eq!(file.fault(), Some(&*error), "and known for as long as it is so");
        std::fs::write(&path, WHOLE).unwrap();
        assert_eq!(file.changed().unwrap().map(|flows| flows.0.len()), Some(2));
        assert_eq!((file.changed().unwrap(), file.fault()), (None, None));
        std::fs::write(&path, "accepted: 1").unwrap();
        assert!(file.changed().is_err() && file.fault().is_some());
        // What held before is there again.
        std::fs::write(&path, WHOLE).unwrap();
        assert!(file.changed().unwrap().is_some() && file.fault().is_none());
        std::fs::remove_file(&path).unwrap();
        assert!(file.changed().is_err() && file.changed().unwrap().is_none() && file.fault().is_some());
        std::fs::write(&path, "accepted: []").unwrap();
        assert_eq!(file.changed().unwrap(), Some(AcceptedFlows::default()));
        assert_eq!(file.fault(), None);
        // All entries are commented out.
        std::fs::write(&path, "accepted:\n# - name: a\n").unwrap();
        assert_eq!(file.changed().unwrap(), Some(AcceptedFlows::default()));
    }
}
