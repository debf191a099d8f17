//! A stored flow in words again: as the flow log has it.

use std::{borrow::Cow, net::IpAddr, time::Duration};

use anyhow::Context as _;
use arrow::{
    array::{Array as _, AsArray as _, RecordBatch},
    datatypes::{ArrowPrimitiveType, TimestampMicrosecondType, UInt16Type, UInt32Type, UInt64Type},
};

use crate::{
    audit::{
        line::{Actor, Address, End, Line, Name, PeerEnd, Said, SubjectEnd, ToldAddress},
        privacy::key_of,
    },
    model::Timestamp,
};

/// The rows of a batch that has all columns.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    batch: &'a RecordBatch,
}

impl<'a> Rows<'a> {
    /// Of this batch.
    pub fn new(batch: &'a RecordBatch) -> Self {
        Self { batch }
    }

    /// A word; `None` where there is none.
    pub fn word(&self, name: &str, row: usize) -> Option<&'a str> {
        let dictionary = self.batch.column_by_name(name)?.as_dictionary_opt::<UInt32Type>()?;
        let words = dictionary.values().as_string_opt::<i32>()?;
        Some(words.value(dictionary.key(row)?))
    }

    fn number<T: ArrowPrimitiveType>(&self, name: &str, row: usize) -> Option<T::Native> {
        let numbers = self.batch.column_by_name(name)?.as_primitive_opt::<T>()?;
        (!numbers.is_null(row)).then(|| numbers.value(row))
    }

    fn is(&self, name: &str, row: usize) -> bool {
        let column = self.batch.column_by_name(name).and_then(|column| column.as_boolean_opt());
        column.is_some_and(|column| column.value(row))
    }

    fn time(&self, name: &str, row: usize) -> Option<Timestamp> {
        Some(Timestamp(self.number::<TimestampMicrosecondType>(name, row)?.saturating_mul(1_000)))
    }

    fn list(&self, name: &str, row: usize) -> Vec<Cow<'a, str>> {
        let Some(lists) = self.batch.column_by_name(name).and_then(|column| column.as_list_opt::<i32>())
        else {
            return Vec::new();
        };
        let Some(texts) = lists.values().as_string_opt::<i32>() else { return Vec::new() };
        let offsets = lists.value_offsets();
        let places = offsets[row] as usize..offsets[row + 1] as usize;
        places.map(|place| Cow::Borrowed(texts.value(place))).collect()
    }

    /// The run and the number of a flow.
    pub fn id(&self, row: usize) -> (&'a str, u64) {
        (self.word("run", row).unwrap_or_default(), self.number::<UInt64Type>("sequence", row).unwrap_or(0))
    }

    /// When it began.
    pub fn began(&self, row: usize) -> Timestamp {
        self.time("time", row).unwrap_or(Timestamp(0))
    }

    /// The whole flow.
    ///
    /// # Errors
    ///
    /// An address is none: the file is damaged.
    pub fn line(&self, row: usize) -> anyhow::Result<Line<'a>> {
        let word = |name| self.word(name, row);
        let address = |name: &str| -> anyhow::Result<Option<ToldAddress<'a>>> {
            let Some(text) = self.word(name, row) else { return Ok(None) };
            if key_of(text).is_some() {
                return Ok(Some(ToldAddress::Hashed(text.into())));
            }
            let ip: IpAddr = text.parse().with_context(|| format!("the column {name}"))?;
            Ok(Some(ToldAddress::Plain(ip)))
        };
        let peer_ip = address("peer_ip")?.context("no address of the other end")?;
        let requested = address("requested_ip")?.zip(self.number::<UInt16Type>("requested_port", row));
        let folded = self.is("folded", row);
        Ok(Line {
            time: self.began(row),
            last_time: self.time("last_time", row),
            flow_id: self.id(row),
            maybe_repeated: self.is("maybe_repeated", row),
            folded,
            count: self.number::<UInt64Type>("count", row).filter(|_| folded),
            open_before_start: self.is("open_before_start", row),
            open_since: self.time("open_since", row),
            direction: word("direction").unwrap_or_default(),
            subject: SubjectEnd { end: self.end("subject", row), ip: self.subject_ip(row)? },
            actor: Actor {
                kind: word("actor_kind").unwrap_or_default(),
                namespace: word("actor_namespace"),
                pod: word("actor_pod"),
                workload: word("actor_workload"),
                pod_uid: word("actor_pod_uid"),
                container: word("actor_container"),
                pid: self.number::<UInt32Type>("actor_pid", row).unwrap_or(0),
                comm: word("actor_comm").unwrap_or_default().into(),
            },
            peer: PeerEnd {
                end: self.end("peer", row),
                service: word("peer_service").map(Cow::Borrowed),
                ip_hashed: peer_ip.is_hashed(),
                ip: peer_ip,
                port: self.number::<UInt16Type>("peer_port", row).unwrap_or(0),
                names: self.names(row)?,
            },
            protocol: word("protocol").unwrap_or_default(),
            port: self.number::<UInt16Type>("port", row).unwrap_or(0),
            requested: requested.map(|(ip, port)| Address { ip_hashed: ip.is_hashed(), ip, port }),
            translation: word("translation"),
            outcome: word("outcome").unwrap_or_default(),
            errno: word("errno").map(Cow::Borrowed),
            reach: word("reach").unwrap_or_default(),
            drop_reason: word("drop_reason"),
            closed_port: self.is("closed_port", row),
            // As the flow log computes it, to the last digit.
            waited_seconds: Duration::from_micros(self.number::<UInt64Type>("waited_us", row).unwrap_or(0))
                .as_secs_f64(),
            verdict: self.said("", row).unwrap_or_default(),
            peer_verdict: self.said("peer_", row),
            finding: word("finding"),
            finding_cause: word("finding_cause"),
        })
    }

    /// Never hashed: it is a pod's or the node's.
    fn subject_ip(&self, row: usize) -> anyhow::Result<Option<IpAddr>> {
        let text = self.word("subject_ip", row);
        text.map(str::parse).transpose().context("the column subject_ip")
    }

    fn end(&self, of: &str, row: usize) -> End<'a> {
        let word = |name: &str| self.word(&format!("{of}_{name}"), row);
        End {
            kind: word("kind").unwrap_or_default(),
            namespace: word("namespace"),
            pod: word("pod"),
            uid: word("uid"),
            workload: word("workload"),
            workload_kind: word("workload_kind"),
            node: word("node"),
        }
    }

    fn said(&self, of: &str, row: usize) -> Option<Said<'a>> {
        let name = |name: &str| format!("{of}{name}");
        Some(Said {
            verdict: self.word(&name("verdict"), row)?,
            rules: self.list(&name("rules"), row),
            rule_paths: self.list(&name("rule_paths"), row),
            denied_by: self.list(&name("denied_by"), row),
            passed_rules: self.list(&name("passed_rules"), row),
            passed_by: self.list(&name("passed_by"), row),
            reason: self.word(&name("reason"), row).map(Cow::Borrowed),
            caveats: self.list(&name("caveats"), row),
            generation: self.number::<UInt64Type>(&name("generation"), row),
        })
    }

    fn names(&self, row: usize) -> anyhow::Result<Vec<Name<'a>>> {
        let lists = self.batch.column_by_name("peer_names").and_then(|column| column.as_list_opt::<i32>());
        let Some((lists, names)) = lists.and_then(|lists| Some((lists, lists.values().as_struct_opt()?)))
        else {
            return Ok(Vec::new());
        };
        let offsets = lists.value_offsets();
        let text = |place: usize, of: usize| {
            names.column(of).as_string_opt::<i32>().map_or("", |texts| texts.value(place))
        };
        let is = |place: usize, of: usize| {
            names.column(of).as_boolean_opt().is_some_and(|values| values.value(place))
        };
        (offsets[row] as usize..offsets[row + 1] as usize)
            .map(|place| {
                let answered = names.column(4).as_primitive_opt::<TimestampMicrosecondType>();
                Ok(Name {
                    name: text(place, 0),
                    state: text(place, 1),
                    asked: is(place, 2),
                    counts: is(place, 3),
                    answered: Timestamp(answered.map_or(0, |times| times.value(place).saturating_mul(1_000))),
                    server: text(place, 5).parse().context("the server of a name")?,
                })
            })
            .collect()
    }
}
