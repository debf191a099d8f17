//! Which flows are asked for.
//!
//! A filter is several conditions that all must hold. Each names the columns that it looks at, so that a reader decodes the
//! others only for flows that it leaves.

use std::{net::IpAddr, ops::RangeInclusive};

use arrow::{
    array::{Array as _, ArrayRef, AsArray as _, BooleanArray, RecordBatch},
    compute::{and, or},
    datatypes::{TimestampMicrosecondType, UInt16Type, UInt32Type, UInt64Type},
    error::ArrowError,
};
use ipnet::IpNet;

use crate::model::Timestamp;

/// A pod or a workload, perhaps of a namespace.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, Debug)]
pub struct Named {
    /// The namespace; any where it is not said.
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
}

impl std::str::FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace.to_owned()), name),
            None => (None, text),
        };
        if name.is_empty() || name.contains('/') || namespace.as_deref() == Some("") {
            return Err("expected NAME or NAMESPACE/NAME".to_owned());
        }
        Ok(Self { namespace, name: name.to_owned() })
    }
}

/// What is asked for. Where a list is empty, anything will do; else one of it.
///
/// As JSON it has what is asked for and nothing else, and no window.
#[derive(Clone, PartialEq, Default, serde::Serialize, serde::Deserialize, Debug)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Flows that began at this time or later.
    #[serde(skip)]
    pub from: Option<Timestamp>,
    /// Flows that began before.
    #[serde(skip)]
    pub until: Option<Timestamp>,
    /// egress, ingress.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub directions: Vec<String>,
    /// Namespaces of either end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// Pods at either end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<Named>,
    /// Workloads at either end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub workloads: Vec<Named>,
    /// Addresses of either end, or that were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpNet>,
    /// The same addresses as hashes, for where they are told so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hashes: Vec<String>,
    /// Judged ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<RangeInclusive<u16>>,
    /// TCP, UDP.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub protocols: Vec<String>,
    /// allowed, denied, unknown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verdicts: Vec<String>,
    /// Findings; `any` for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
    /// What the socket saw.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outcomes: Vec<String>,
    /// Command names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<String>,
    /// DNS names of the other end; `*.example.com` for all below.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Policies that allowed or denied: `NAMESPACE/NAME`, or the name of a cluster-wide one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// Nodes that recorded it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// One flow: its run and number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow: Option<(String, u64)>,
}

/// One condition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// When.
    Time,
    /// Which flow.
    Flow,
    /// Who and where from.
    Ends,
    /// Addresses.
    Addresses,
    /// Everything of which a flow has one.
    Words,
    /// DNS names.
    Names,
    /// Policies.
    Policies,
}

/// What is asked of a column.
type Asked = fn(&Filter) -> &Vec<String>;

/// The columns of single words with what is asked of them.
const WORDS: [(&str, Asked); 7] = [
    ("direction", |filter| &filter.directions),
    ("protocol", |filter| &filter.protocols),
    ("verdict", |filter| &filter.verdicts),
    ("outcome", |filter| &filter.outcomes),
    ("actor_comm", |filter| &filter.processes),
    ("node", |filter| &filter.nodes),
    ("finding", |filter| &filter.findings),
];

/// The columns that name policies.
const POLICIES: [&str; 6] =
    ["rules", "denied_by", "passed_rules", "peer_rules", "peer_denied_by", "peer_passed_rules"];

/// The columns of addresses.
const ADDRESSES: [&str; 3] = ["subject_ip", "peer_ip", "requested_ip"];

impl Filter {
    /// What must hold, what is cheap first.
    pub fn conditions(&self) -> Vec<Condition> {
        let has_words = WORDS.iter().any(|(_, of)| !of(self).is_empty()) || !self.ports.is_empty();
        let has_ends = !(self.namespaces.is_empty() && self.pods.is_empty() && self.workloads.is_empty());
        [
            (self.from.is_some() || self.until.is_some(), Condition::Time),
            (self.flow.is_some(), Condition::Flow),
            (has_words, Condition::Words),
            (has_ends, Condition::Ends),
            (!self.addresses.is_empty(), Condition::Addresses),
            (!self.names.is_empty(), Condition::Names),
            (!self.policies.is_empty(), Condition::Policies),
        ]
        .into_iter()
        .filter_map(|(is_asked, condition)| is_asked.then_some(condition))
        .collect()
    }

    /// The columns that a condition looks at.
    pub fn columns(&self, condition: Condition) -> Vec<&'static str> {
        match condition {
            Condition::Time => vec!["time"],
            Condition::Flow => vec!["run", "sequence"],
            Condition::Words => {
                let asked = WORDS.iter().filter(|(_, of)| !of(self).is_empty()).map(|(name, _)| *name);
                asked.chain((!self.ports.is_empty()).then_some("port")).collect()
            }
            Condition::Ends => {
                let mut columns = Vec::new();
                let mut add = |names: [&'static str; 2]| columns.extend(names);
                add(["subject_namespace", "peer_namespace"]);
                if !self.pods.is_empty() {
                    add(["subject_pod", "peer_pod"]);
                }
                if !self.workloads.is_empty() {
                    add(["subject_workload", "peer_workload"]);
                }
                columns
            }
            Condition::Addresses => ADDRESSES.to_vec(),
            Condition::Names => vec!["peer_names"],
            Condition::Policies => POLICIES.to_vec(),
        }
    }

    /// Which rows of a batch a condition leaves. The batch has its columns.
    ///
    /// # Errors
    ///
    /// A column is missing or of another type.
    pub fn holds(&self, condition: Condition, batch: &RecordBatch) -> Result<BooleanArray, ArrowError> {
        match condition {
            Condition::Time => self.in_time(batch),
            Condition::Flow => self.is_flow(batch),
            Condition::Words => self.has_words(batch),
            Condition::Ends => self.has_ends(batch),
            Condition::Addresses => {
                let is_asked = |text: &str| match text.parse::<IpAddr>() {
                    Ok(ip) => self.addresses.iter().any(|net| net.contains(&ip)),
                    Err(_) => self.hashes.iter().any(|hash| hash == text),
                };
                let [subject, peer, requested] = ADDRESSES.map(|name| words(batch, name, is_asked));
                or(&or(&subject?, &peer?)?, &requested?)
            }
            Condition::Names => self.has_names(batch),
            Condition::Policies => self.has_policies(batch),
        }
    }

    /// Which rows of a batch are asked for.
    ///
    /// # Errors
    ///
    /// A column is missing or of another type.
    pub fn selects(&self, batch: &RecordBatch) -> Result<BooleanArray, ArrowError> {
        let mut left = BooleanArray::from(vec![true; batch.num_rows()]);
        for condition in self.conditions() {
            left = and(&left, &self.holds(condition, batch)?)?;
        }
        Ok(left)
    }

    fn in_time(&self, batch: &RecordBatch) -> Result<BooleanArray, ArrowError> {
        let times = column(batch, "time")?;
        let times = times.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(|| wrong("time"))?;
        let from = self.from.map_or(i64::MIN, |from| from.0.div_euclid(1_000));
        let until = self.until.map_or(i64::MAX, |until| until.0.div_euclid(1_000));
        Ok(times.values().iter().map(|time| Some((from..until).contains(time))).collect())
    }

    fn is_flow(&self, batch: &RecordBatch) -> Result<BooleanArray, ArrowError> {
        let Some((run, number)) = &self.flow else { return Ok(vec![true; batch.num_rows()].into()) };
        let sequences = column(batch, "sequence")?;
        let sequences = sequences.as_primitive_opt::<UInt64Type>().ok_or_else(|| wrong("sequence"))?;
        let is_number: BooleanArray = sequences.values().iter().map(|it| Some(it == number)).collect();
        and(&is_number, &words(batch, "run", |text| text == run)?)
    }

    fn has_words(&self, batch: &RecordBatch) -> Result<BooleanArray, ArrowError> {
        let mut left = BooleanArray::from(vec![true; batch.num_rows()]);
        for (name, of) in WORDS {
            let asked = of(self);
            if !asked.is_empty() {
                let any = name == "finding" && asked.iter().any(|word| word == "any");
                let is_asked = |text: &str| any || asked.iter().any(|word| word.eq_ignore_ascii_case(text));
                left = and(&left, &words(batch, name, is_asked)?)?;
            }
        }
        if !self.ports.is_empty() {
            let ports = column(batch, "port")?;
            let ports = ports.as_primitive_opt::<UInt16Type>().ok_or_else(|| wrong("port"))?;
            let is_asked = |port: &u16| Some(self.ports.iter().any(|range| range.contains(port)));
            left = and(&left, &ports.values().iter().map(is_asked).collect())?;
        }
        Ok(left)
    }

    /// Each kind of condition holds at one end, all of them at the same.
    fn has_ends(&self, batch: &RecordBatch) -> Result<BooleanArray, ArrowError> {
        let subject = self.has_end(batch, ["subject_namespace", "subject_pod", "subject_workload"])?;
        let peer = self.has_end(batch, ["peer_namespace", "peer_pod", "peer_workload"])?;
        or(&subject, &peer)
    }

    fn has_end(&self, batch: &RecordBatch, names: [&str; 3]) -> Result<BooleanArray, ArrowError> {
        let [namespace, pod, workload] = names;
        let mut left = BooleanArray::from(vec![true; batch.num_rows()]);
        if !self.namespaces.is_empty() {
            left = words(batch, namespace, |text| self.namespaces.iter().any(|name| name == text))?;
        }
        for (asked, name) in [(&self.pods, pod), (&self.workloads, workload)] {
            if asked.is_empty() {
                continue;
            }
            let mut any = BooleanArray::from(vec![false; batch.num_rows()]);
            for asked in asked {
                let mut holds = words(batch, name, |text| text == asked.name)?;
                if let Some(of) = &asked.namespace {
                    holds = and(&holds, &words(batch, namespace, |text| text == of)?)?;
                }
                any = or(&any, &holds)?;
            }
            left = and(&left, &any)?;
        }
        Ok(left)
    }

    fn has_names(&self, batch: &RecordBatch) -> Result<BooleanArray, ArrowError> {
        let lists = column(batch, "peer_names")?;
        let lists = lists.as_list_opt::<i32>().ok_or_else(|| wrong("peer_names"))?;
        let is_asked = |text: &str| {
            self.names.iter().any(|asked| match asked.strip_prefix("*.") {
                Some(parent) => {
                    text.strip_suffix(parent).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
                }
                None => asked.trim_end_matches('.').eq_ignore_ascii_case(text),
            })
        };
        (0..lists.len())
            .map(|row| {
                let names = lists.value(row);
                let names = names.as_struct_opt().ok_or_else(|| wrong("peer_names"))?;
                let names = names.column(0).as_string_opt::<i32>().ok_or_else(|| wrong("peer_names"))?;
                Ok(Some(names.iter().flatten().any(is_asked)))
            })
            .collect()
    }

    fn has_policies(&self, batch: &RecordBatch) -> Result<BooleanArray, ArrowError> {
        let is_asked = |text: &str| {
            // `NetworkPolicy/namespace/name#hash`, or `namespace/name path`.
            let named = text.split_once('/').map_or("", |(_, named)| named);
            let is_of = |text: &str, asked: &str| {
                text.strip_prefix(asked).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '#']))
            };
            self.policies.iter().any(|asked| is_of(named, asked) || is_of(text, asked))
        };
        let mut left = BooleanArray::from(vec![false; batch.num_rows()]);
        for name in POLICIES {
            let lists = column(batch, name)?;
            let lists = lists.as_list_opt::<i32>().ok_or_else(|| wrong(name))?;
            let texts = lists.values().as_string_opt::<i32>().ok_or_else(|| wrong(name))?;
            let offsets = lists.value_offsets();
            let holds: BooleanArray = offsets
                .windows(2)
                .map(|pair| Some((pair[0]..pair[1]).any(|place| is_asked(texts.value(place as usize)))))
                .collect();
            left = or(&left, &holds)?;
        }
        Ok(left)
    }
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, ArrowError> {
    batch.column_by_name(name).ok_or_else(|| ArrowError::SchemaError(format!("no column {name}")))
}

fn wrong(name: &str) -> ArrowError {
    ArrowError::SchemaError(format!("the column {name} is of another type"))
}

/// Which rows of a column of words have one that is asked for. Each different word is looked at once.
fn words(
    batch: &RecordBatch,
    name: &str,
    is_asked: impl Fn(&str) -> bool,
) -> Result<BooleanArray, ArrowError> {
    let dictionary = column(batch, name)?.as_dictionary_opt::<UInt32Type>().ok_or_else(|| wrong(name))?;
    let words = dictionary.values().as_string_opt::<i32>().ok_or_else(|| wrong(name))?;
    let asked: Vec<bool> = words.iter().map(|word| word.is_some_and(&is_asked)).collect();
    Ok(dictionary.keys().iter().map(|key| Some(key.is_some_and(|key| asked[key as usize]))).collect())
}
