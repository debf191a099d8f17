//! What netaudit said: lines of its flow log and its metrics, read back.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::ledger::Party;

/// A line of the flow log, as far as the comparison reads it.
#[derive(Clone, Deserialize, Debug)]
pub struct Record {
    pub time: String,
    pub flow_id: String,
    pub direction: String,
    pub subject: End,
    pub peer: End,
    pub protocol: String,
    pub port: u16,
    #[serde(default)]
    pub requested: Option<Address>,
    pub outcome: String,
    pub verdict: String,
    #[serde(default)]
    pub rule_paths: Vec<String>,
    #[serde(default)]
    pub denied_by: Vec<String>,
    #[serde(default)]
    pub reason: Option<String>,
    #[serde(default)]
    pub finding: Option<String>,
    #[serde(default)]
    pub finding_cause: Option<String>,
    pub actor: Actor,
    #[serde(default)]
    pub open_before_start: bool,
    #[serde(default)]
    pub open_since: Option<String>,
}

/// Subject or peer.
#[derive(Clone, Deserialize, Debug)]
pub struct End {
    pub kind: String,
    #[serde(default)]
    pub namespace: Option<String>,
    #[serde(default)]
    pub pod: Option<String>,
    #[serde(default)]
    pub workload: Option<String>,
    #[serde(default)]
    pub service: Option<String>,
    #[serde(default)]
    pub node: Option<String>,
    #[serde(default)]
    pub ip: Option<IpAddr>,
    #[serde(default)]
    pub names: Vec<Name>,
}

/// A name that DNS gave for an address.
#[derive(Clone, Deserialize, Debug)]
pub struct Name {
    pub name: String,
}

/// Who opened the socket.
#[derive(Clone, Deserialize, Debug)]
pub struct Actor {
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub container: Option<String>,
    pub pid: u32,
    pub comm: String,
}

/// The address that a program asked for.
#[derive(Clone, Deserialize, Debug)]
pub struct Address {
    pub ip: IpAddr,
    pub port: u16,
}

impl Address {
    /// As a socket address.
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }
}

impl End {
    /// The ledger's word for it; an error for an end that the ledger never has.
    pub fn party(&self) -> Result<Party> {
        Ok(match (self.kind.as_str(), &self.namespace, &self.pod, &self.node, self.ip) {
            ("pod", Some(namespace), Some(pod), ..) => Party::Pod(format!("{namespace}/{pod}")),
            ("node", _, _, Some(node), _) => Party::Node(node.clone()),
            ("external", _, _, _, Some(ip)) => Party::External(ip),
            _ => bail!("{self:?} is nobody that the driver knows"),
        })
    }
}

impl Record {
    /// Whether it tells of an attempt. The others are of connections that were made earlier, and are in no ledger of now.
    pub fn is_attempt(&self) -> bool {
        !self.open_before_start && self.open_since.is_none()
    }

    /// Its time, in nanoseconds since the epoch.
    pub fn nanoseconds(&self) -> Result<u128> {
        parse_time(&self.time).with_context(|| format!("time {:?} is not RFC 3339 in UTC", self.time))
    }

    /// One line that says it all, for messages.
    pub fn line(&self) -> String {
        format!(
            "{} {} {} subject {} peer {} {}/{} {} {} {} [{} {}]",
            self.flow_id,
            self.time,
            self.direction,
            name(&self.subject),
            name(&self.peer),
            self.protocol,
            self.port,
            self.outcome,
            self.verdict,
            self.why(),
            self.actor.comm,
            self.actor.pid,
        )
    }

    /// The rules, the policies or the reason.
    pub fn why(&self) -> String {
        if let Some(reason) = &self.reason {
            return reason.clone();
        }
        let short = |name: &String| name.trim_start_matches("NetworkPolicy/").to_owned();
        self.rule_paths.iter().chain(&self.denied_by).map(short).collect::<Vec<_>>().join(", ")
    }
}

fn name(end: &End) -> String {
    end.party().map_or_else(|_| format!("{end:?}"), |party| party.to_string())
}

/// Reads the attempts in a flow log.
pub fn read_flow_log(path: &Path) -> Result<Vec<Record>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {path:?}"))?;
    let read = |line: &str| -> Result<Record> {
        serde_json::from_str(line).with_context(|| format!("not a line of a flow log: {line}"))
    };
    let is_attempt = |record: &Result<Record>| record.as_ref().map_or(true, Record::is_attempt);
    text.lines().map(read).filter(is_attempt).collect()
}

/// `2026-01-31T12:00:00.123456789Z` as nanoseconds since the epoch.
fn parse_time(text: &str) -> Option<u128> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.split(':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    // Days since the epoch in the proleptic Gregorian calendar, with years that begin in March.
    let (shifted, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = shifted * 365 + shifted / 4 - shifted / 100 + shifted / 400 + (month * 153 + 2) / 5 + day
        - 1
        - 719_468;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    let nanoseconds: u128 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(u128::try_from(seconds).ok()? * 1_000_000_000 + nanoseconds)
}

/// One sample of a scrape.
#[derive(Debug)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// A scrape, in the text format.
#[derive(Debug)]
pub struct Metrics(Vec<Sample>);

impl Metrics {
    /// Parses the text format as far as an exporter of ours writes it.
    pub fn parse(text: &str) -> Result<Self> {
        let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Ok(Self(
            samples
                .map(|line| parse_sample(line).with_context(|| format!("not a sample: {line}")))
                .collect::<Result<_>>()?,
        ))
    }

    /// The samples of one name.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| sample.name == name)
    }

    /// The sum over one name.
    pub fn sum(&self, name: &str) -> f64 {
        self.named(name).map(|sample| sample.value).sum()
    }
}

fn parse_sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, labels)) = series.split_once('{') else {
        return Some(Sample { name: series.to_owned(), labels: BTreeMap::new(), value });
    };
    let mut rest = labels.strip_suffix('}')?;
    let mut labels = BTreeMap::new();
    while !rest.is_empty() {
        let (key, after) = rest.split_once("=\"")?;
        let (text, after) = after.split_once('"')?;
        labels.insert(key.to_owned(), text.to_owned());
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    Some(Sample { name: name.to_owned(), labels, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_to_the_nanosecond() {
        assert_eq!(parse_time("1970-01-01T00:00:00.000000001Z"), Some(1));
        assert_eq!(parse_time("2023-11-14T22:13:20.5Z"), Some(1_700_000_000_500_000_000));
        assert_eq!(parse_time("2024-02-29T00:00:00Z"), Some(1_709_164_800_000_000_000));
        assert_eq!(parse_time("2023-11-14 22:13:20"), None);
    }

    #[test]
    fn samples_are_read_with_their_labels() {
        let metrics = Metrics::parse("# HELP a b\na_total{x=\"1\",y=\"b c\"} 3\na_total 4\nb 1\n").unwrap();
        assert_eq!(metrics.sum("a_total"), 7.0);
        assert_eq!(metrics.named("a_total").next().unwrap().labels["y"], "b c");
        assert!(Metrics::parse("nonsense\n").is_err());
    }
}
