//! Rows of usage as text: one JSON object a line, which every tool reads, and whose end shows whether it is whole.
//!
//! ```text
//! {"netaudit":"usage","version":1,"node":"n","run":"r",…}     one run of one agent, as it was when this was told
//! {"rule":{"kind":"NetworkPolicy","namespace":"shop",…},…}    a rule in a window
//! {"together":[{…},{…}],…}                                    rules that matched the same flows in a window
//! {"rows":2,"sha256":"…"}                                     how many rows, and the digest of all lines before
//! ```
//!
//! A file may hold any number of such documents after each other.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    audit::{
        RuleKey, RunKey,
        usage::{Row, RowKey, Rows, Run, Schedule, TogetherKey, Touched, Uses},
    },
    cluster::Kind,
    model::{Direction, PolicyId, Protocol, Timestamp},
    policy::{Element, Span},
};

/// The version of the format. Another one is refused.
const VERSION: u32 = 1;

/// What is wrong with a document.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// A line is no row.
    #[error("line {line}: {reason}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// Why.
        reason: String,
    },
    /// There is nothing: a file that a crash has emptied, say.
    #[error("it is empty: at least one document of usage is expected")]
    Empty,
    /// The last line is missing: the file was cut off, or is still being written.
    #[error("it ends in the middle: its last line, with the digest, is missing")]
    Cut,
    /// The digest is another one.
    #[error("line {line}: the digest of the lines before is another one: the file was changed or damaged")]
    Digest {
        /// Which, from 1.
        line: usize,
    },
}

#[derive(Serialize, Deserialize)]
struct Head {
    netaudit: String,
    version: u32,
    node: Arc<str>,
    run: Arc<str>,
    sequence: u64,
    boot: Arc<str>,
    line_nanoseconds: i64,
    wall_nanoseconds: i64,
    from: Timestamp,
    written: Timestamp,
    ended: bool,
    losses: u64,
}

#[derive(Serialize, Deserialize, Clone)]
struct RuleText {
    kind: String,
    namespace: Arc<str>,
    name: Arc<str>,
    direction: Direction,
    hash: String,
}

#[derive(Serialize, Deserialize)]
struct RuleLine {
    rule: RuleText,
    window: Timestamp,
    from: Timestamp,
    until: Timestamp,
    index: u32,
    current: bool,
    observable: bool,
    #[serde(default, skip_serializing_if = "ScheduleText::is_none")]
    cron_jobs: ScheduleText,
    possible: bool,
    summary: Arc<str>,
    watched_ms: u64,
    selected_pod_ms: u64,
    observed_pod_ms: u64,
    lost: u64,
    unjudged: u64,
    #[serde(flatten)]
    uses: UsesText,
    sole: UsesText,
    elements: Vec<ElementText>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ports: Vec<(Protocol, u16)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    workloads: Vec<(Arc<str>, Arc<str>)>,
    #[serde(default)]
    too_many: [bool; 3],
}

/// The CronJobs that a rule may be for; without a period where nobody knows it, without anything where there is none.
#[derive(Serialize, Deserialize, Clone, Copy, Default)]
struct ScheduleText {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    period_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    period_unknown: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    due: Option<Timestamp>,
}

impl ScheduleText {
    fn is_none(&self) -> bool {
        self.period_seconds.is_none() && !self.period_unknown && self.due.is_none()
    }

    fn of(schedule: &Schedule) -> Self {
        Self {
            period_seconds: schedule.period().map(|it| it.as_secs()).filter(|seconds| *seconds > 0),
            period_unknown: schedule.period().is_none(),
            due: Some(schedule.due()).filter(|due| *due > Timestamp::MIN),
        }
    }

    fn read(self) -> Schedule {
        let period = Duration::from_secs(self.period_seconds.unwrap_or(0));
        Schedule::new((!self.period_unknown).then_some(period), self.due.unwrap_or(Timestamp::MIN))
    }
}

#[derive(Serialize, Deserialize, Clone, Copy)]
struct UsesText {
    matches: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
struct ElementText {
    list: String,
    index: u32,
    hash: String,
    what: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    network: Option<IpNet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port_range: Option<(u16, u16)>,
    #[serde(default, skip_serializing_if = "<[IpNet]>::is_empty")]
    except: Arc<[IpNet]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    workloads: Option<u32>,
    #[serde(flatten)]
    uses: UsesText,
}

#[derive(Serialize, Deserialize)]
struct TogetherLine {
    together: Vec<RuleText>,
    window: Timestamp,
    #[serde(flatten)]
    uses: UsesText,
}

#[derive(Serialize, Deserialize)]
struct Tail {
    rows: usize,
    sha256: String,
}

/// The rows of every run as documents, one after another.
pub fn write(rows: &Rows) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, run) in &rows.runs {
        let mut text = Vec::new();
        let head = Head {
            netaudit: "usage".to_owned(),
            version: VERSION,
            node: key.node.clone(),
            run: key.run.clone(),
            sequence: run.sequence,
            boot: run.boot.clone(),
            line_nanoseconds: run.line,
            wall_nanoseconds: run.wall,
            from: run.from,
            written: run.written,
            ended: run.ended,
            losses: run.losses,
        };
        push(&mut text, &head);
        let rules = rows.rules.iter().filter(|(row, _)| row.run == *key);
        let together = rows.together.iter().filter(|(row, _)| row.run == *key);
        let mut count = 0;
        for (key, row) in rules {
            push(&mut text, &rule_line(key, row));
            count += 1;
        }
        for (key, uses) in together {
            let together = key.rules.iter().map(rule_text).collect();
            push(&mut text, &TogetherLine { together, window: key.window, uses: uses_text(uses) });
            count += 1;
        }
        let sha256 = digest(&text);
        push(&mut text, &Tail { rows: count, sha256 });
        out.extend(text);
    }
    out
}

fn push(text: &mut Vec<u8>, line: &impl Serialize) {
    // A map with keys that are no text could fail; there is none.
    if serde_json::to_writer(&mut *text, line).is_ok() {
        text.push(b'\n');
    }
}

fn digest(text: &[u8]) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn rule_text(key: &RuleKey) -> RuleText {
    RuleText {
        kind: key.policy.kind.to_owned(),
        namespace: key.policy.namespace.clone(),
        name: key.policy.name.clone(),
        direction: key.direction,
        hash: format!("{:016x}", key.hash),
    }
}

fn uses_text(uses: &Uses) -> UsesText {
    UsesText { matches: uses.matches, first: uses.first, last: uses.last }
}

fn rule_line(key: &RowKey, row: &Row) -> RuleLine {
    let element = |(hash, (element, uses)): (&u64, &(Element, Uses))| {
        let (network, port_range, workloads) = match element.span {
            Some(Span::Network(net)) => (Some(net), None, None),
            Some(Span::Ports(first, last)) => (None, Some((first, last)), None),
            Some(Span::Workloads(selected)) => (None, None, Some(selected)),
            None => (None, None, None),
        };
        ElementText {
            list: element.list.to_owned(),
            index: element.index,
            hash: format!("{hash:016x}"),
            what: element.what.clone(),
            network,
            port_range,
            except: element.except.clone(),
            workloads,
            uses: uses_text(uses),
        }
    };
    RuleLine {
        rule: rule_text(&key.rule),
        window: key.window,
        from: row.from,
        until: row.until,
        index: row.index,
        current: row.current,
        observable: row.observable,
        cron_jobs: ScheduleText::of(&row.schedule),
        possible: row.possible,
        summary: row.summary.clone(),
        watched_ms: row.watched_ms,
        selected_pod_ms: row.selected_ms,
        observed_pod_ms: row.observed_ms,
        lost: row.lost,
        unjudged: row.unjudged,
        uses: uses_text(&row.uses),
        sole: uses_text(&row.sole),
        elements: row.elements.iter().map(element).collect(),
        ports: row.touched.ports.iter().copied().collect(),
        addresses: row.touched.addresses.iter().copied().collect(),
        workloads: row.touched.workloads.iter().cloned().collect(),
        too_many: row.touched.too_many,
    }
}

/// Reads documents, which must be whole, each of them.
///
/// # Errors
///
/// The first line that is wrong, and why; or that the end is missing.
pub fn read(text: &[u8]) -> Result<Rows, DocumentError> {
    if !text.is_empty() && !text.ends_with(b"\n") {
        return Err(DocumentError::Cut);
    }
    let mut rows = Rows::default();
    let mut document: Option<Document> = None;
    for (line, bytes) in (1..).zip(text.split_inclusive(|byte| *byte == b'\n')) {
        let wrong = |reason: String| DocumentError::Line { line, reason };
        if bytes.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let Some(open) = &mut document else {
            document = Some(Document::begin(bytes).map_err(wrong)?);
            continue;
        };
        if open.take(bytes).map_err(wrong)? {
            continue;
        }
        let tail: Tail = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        if tail.sha256 != open.digest() || tail.rows != open.count {
            return Err(DocumentError::Digest { line });
        }
        rows.merge(document.take().map(|open| open.rows).unwrap_or_default());
    }
    match document {
        Some(_) => Err(DocumentError::Cut),
        None if rows.runs.is_empty() => Err(DocumentError::Empty),
        None => Ok(rows),
    }
}

/// A document of which the end has not been read.
struct Document {
    run: RunKey,
    rows: Rows,
    count: usize,
    sha256: Sha256,
}

impl Document {
    fn begin(bytes: &[u8]) -> Result<Self, String> {
        let head: Head = serde_json::from_slice(bytes)
            .map_err(|error| format!("the first line of a document of usage is expected here: {error}"))?;
        if head.netaudit != "usage" || head.version != VERSION {
            let Head { netaudit, version, .. } = head;
            return Err(format!("{netaudit:?} of version {version}, and not usage of version {VERSION}"));
        }
        let run = RunKey { node: head.node, run: head.run };
        let mut rows = Rows::default();
        rows.add_run(
            run.clone(),
            Run {
                written: head.written,
                from: head.from,
                sequence: head.sequence,
                boot: head.boot,
                line: head.line_nanoseconds,
                wall: head.wall_nanoseconds,
                ended: head.ended,
                losses: head.losses,
            },
        );
        Ok(Self { run, rows, count: 0, sha256: Sha256::new_with_prefix(bytes) })
    }

    fn digest(&self) -> String {
        self.sha256.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Takes a row; `false` where it is none.
    fn take(&mut self, bytes: &[u8]) -> Result<bool, String> {
        // What a line is shows in how it begins, which is cheaper than trying.
        if bytes.starts_with(b"{\"rule\":") {
            let line: RuleLine = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
            let key = RowKey { rule: rule_key(&line.rule)?, run: self.run.clone(), window: line.window };
            self.rows.add(key, row(line)?);
        } else if bytes.starts_with(b"{\"together\":") {
            let line: TogetherLine = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
            let rules = line.together.iter().map(rule_key).collect::<Result<_, _>>()?;
            let key = TogetherKey { rules, run: self.run.clone(), window: line.window };
            self.rows.add_together(key, uses(line.uses));
        } else {
            return Ok(false);
        }
        self.count += 1;
        self.sha256.update(bytes);
        Ok(true)
    }
}

fn rule_key(text: &RuleText) -> Result<RuleKey, String> {
    let kind =
        Kind::from_name(&text.kind).ok_or_else(|| format!("unknown kind of policy {:?}", text.kind))?;
    let policy = PolicyId { kind: kind.as_str(), namespace: text.namespace.clone(), name: text.name.clone() };
    Ok(RuleKey { policy: policy.into(), direction: text.direction, hash: hash(&text.hash)? })
}

fn hash(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|_| format!("{text:?} is no hash of 16 hexadecimal digits"))
}

fn uses(text: UsesText) -> Uses {
    Uses { matches: text.matches, first: text.first, last: text.last }
}

fn row(line: RuleLine) -> Result<Row, String> {
    let mut elements = BTreeMap::new();
    for text in line.elements {
        let list = ["from", "to", "ports"].into_iter().find(|list| *list == text.list);
        let list = list.ok_or_else(|| format!("{:?} is no list of a rule", text.list))?;
        let of_ports = text.port_range.map(|(first, last)| Span::Ports(first, last));
        let span = text.network.map(Span::Network).or(of_ports).or(text.workloads.map(Span::Workloads));
        let element = Element { list, index: text.index, what: text.what, span, except: text.except };
        elements.insert(hash(&text.hash)?, (element, uses(text.uses)));
    }
    Ok(Row {
        from: line.from,
        until: line.until,
        index: line.index,
        current: line.current,
        observable: line.observable,
        schedule: line.cron_jobs.read(),
        possible: line.possible,
        summary: line.summary,
        watched_ms: line.watched_ms,
        selected_ms: line.selected_pod_ms,
        observed_ms: line.observed_pod_ms,
        lost: line.lost,
        unjudged: line.unjudged,
        uses: uses(line.uses),
        sole: uses(line.sole),
        elements,
        touched: Touched {
            ports: line.ports.into_iter().collect(),
            addresses: line.addresses.into_iter().collect(),
            workloads: line.workloads.into_iter().collect(),
            too_many: line.too_many,
        },
    })
}
