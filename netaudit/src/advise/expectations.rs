//! Expectations: what somebody who writes policies expects of them, as a file that is checked by `netaudit test`.
//!
//! ```yaml
//! apiVersion: netaudit/v1
//! kind: Expectations
//! pods:                       # stand for pods that the objects do not have
//!   - {namespace: shop, name: web-0, labels: {app: web}}
//! cases:
//!   - name: the shop reaches its database
//!     expect: allow           # or deny
//!     from: shop/web-0        # one or several, each must hold
//!     to: {namespace: shop, labels: {app: db}}
//!     port: 5432
//!     observed: true          # only where recorded flows are looked at
//! ```

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use serde_saphyr::Spanned;

use crate::model::Protocol;

/// A file of expectations.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Expectations {
    /// `netaudit/v1`.
    #[serde(rename = "apiVersion")]
    pub api_version: Spanned<String>,
    /// `Expectations`.
    pub kind: Spanned<String>,
    /// Pods that stand for those that the objects do not have.
    #[serde(default)]
    pub pods: Vec<StandIn>,
    /// What is expected.
    pub cases: Vec<Case>,
}

/// A pod that there is to be, unless the objects have one of its name.
#[derive(Clone, PartialEq, Eq, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct StandIn {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its addresses; without any, every range of addresses may hold it.
    #[serde(default)]
    pub addresses: Vec<std::net::IpAddr>,
    /// The node that it runs on.
    pub node: Option<String>,
    /// Named ports of its containers.
    #[serde(default)]
    pub ports: BTreeMap<String, u16>,
}

/// One expectation.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What it is called. No two of a file have one name.
    pub name: Spanned<String>,
    /// What is to become of every connection from each source to each destination.
    pub expect: Expected,
    /// Who opens connections.
    pub from: Several<Words>,
    /// Who they are for.
    pub to: Several<Words>,
    /// The destination's ports; for a service the service's.
    pub port: Several<u16>,
    /// TCP where it is not said.
    #[serde(default = "tcp")]
    pub protocol: Protocol,
    /// Whether such a flow is to have been recorded.
    pub observed: Option<bool>,
}

fn tcp() -> Protocol {
    Protocol::Tcp
}

/// What is to become of connections.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Expected {
    /// They are allowed.
    Allow,
    /// They are denied.
    Deny,
}

/// Who is meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Words {
    /// As `netaudit eval` takes it: `NAMESPACE/POD`, an address, or as destination `svc/NAMESPACE/NAME`.
    End(String),
    /// All pods of a workload, or with these labels.
    Pods(Pods),
}

/// Pods by what they have in common. There is to be one at least.
#[derive(Clone, PartialEq, Eq, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Pods {
    /// Their namespace.
    pub namespace: String,
    /// The name of their top controller.
    pub workload: Option<String>,
    /// Its kind; any where it is not said.
    pub kind: Option<String>,
    /// Labels that each has.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End(words) => f.write_str(words),
            Self::Pods(Pods { namespace, workload, kind, labels }) => {
                write!(f, "pods of namespace {namespace}")?;
                if let Some(kind) = kind {
                    write!(f, ", kind {kind}")?;
                }
                if let Some(workload) = workload {
                    write!(f, ", workload {workload}")?;
                }
                labels.iter().try_for_each(|(key, value)| write!(f, ", {key}={value}"))
            }
        }
    }
}

/// One, or a list that is not empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Several<T>(pub Vec<T>);

/// What is wrong with a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flaw {
    /// The line, from 1; 0 where it is not known.
    pub line: u64,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.reason),
            line => write!(f, "line {line}: {}", self.reason),
        }
    }
}

impl std::error::Error for Flaw {}

impl Expectations {
    /// Reads a file's text.
    ///
    /// # Errors
    ///
    /// It is no YAML of this shape (fields that are not known are errors), or names no cases, or two by one name.
    pub fn read(text: &str) -> Result<Self, Flaw> {
        let options = serde_saphyr::options! { with_snippet: false };
        let read: Self = serde_saphyr::from_str_with_options(text, options).map_err(|error| Flaw {
            line: error.location().map_or(0, |at| at.line()),
            reason: first_line(&error.without_snippet().to_string()),
        })?;
        for (found, expected) in [(&read.api_version, "netaudit/v1"), (&read.kind, "Expectations")] {
            if found.value != expected {
                let reason = format!("{:?} is not {expected:?}", found.value);
                return Err(Flaw { line: found.referenced.line(), reason });
            }
        }
        if read.cases.is_empty() {
            return Err(Flaw { line: 0, reason: "there are no cases".to_owned() });
        }
        let mut names: BTreeMap<&str, u64> = BTreeMap::new();
        for case in &read.cases {
            let line = case.line();
            if let Some(first) = names.insert(&case.name.value, line) {
                let reason = format!("the case of line {first} has this name too: {:?}", case.name.value);
                return Err(Flaw { line, reason });
            }
            for (what, is_wrong) in [
                ("port 0 is no port", case.port.0.contains(&0)),
                ("a service opens no connections", case.from.0.iter().any(is_service)),
            ] {
                if is_wrong {
                    return Err(Flaw { line, reason: format!("case {:?}: {what}", case.name.value) });
                }
            }
            let lacks = |words: &&Words| match words {
                Words::End(_) => false,
                Words::Pods(pods) => pods.workload.is_none() && pods.labels.is_empty(),
            };
            if let Some(words) = case.from.0.iter().chain(&case.to.0).find(lacks) {
                let reason =
                    format!("case {:?}: {words} are any: say which by workload or labels", case.name.value);
                return Err(Flaw { line, reason });
            }
        }
        Ok(read)
    }
}

fn is_service(words: &Words) -> bool {
    matches!(words, Words::End(words) if words.starts_with("svc/"))
}

/// What the parser says, without where: that is told beside it.
fn first_line(reason: &str) -> String {
    let reason = reason.lines().next().unwrap_or_default();
    let end = reason.find(" at line ").unwrap_or(reason.len());
    reason[..end].to_owned()
}

impl Case {
    /// The line that its name stands on, from 1.
    pub fn line(&self) -> u64 {
        self.name.referenced.line()
    }
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Words;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "NAMESPACE/POD, an address, svc/NAMESPACE/NAME, or a namespace with labels or a workload",
                )
            }

            fn visit_str<E: de::Error>(self, words: &str) -> Result<Words, E> {
                Ok(Words::End(words.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Words, A::Error> {
                Pods::deserialize(MapAccessDeserializer::new(map)).map(Words::Pods)
            }
        }
        from.deserialize_any(Either)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Several<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct OneOrMore<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMore<T> {
            type Value = Several<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one, or a list of them")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Several<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(item) = items.next_element()? {
                    all.push(item);
                }
                if all.is_empty() {
                    return Err(de::Error::custom("an empty list means nobody"));
                }
                Ok(Several(all))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Several<T>, E> {
                T::deserialize(de::value::StrDeserializer::new(text)).map(|it| Several(vec![it]))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Several<T>, E> {
                T::deserialize(de::value::U64Deserializer::new(number)).map(|it| Several(vec![it]))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Several<T>, E> {
                T::deserialize(de::value::I64Deserializer::new(number)).map(|it| Several(vec![it]))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Several<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(|it| Several(vec![it]))
            }
        }
        from.deserialize_any(OneOrMore(PhantomData))
    }
}
