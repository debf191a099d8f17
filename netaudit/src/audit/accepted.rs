//! Violations that somebody knows of and has agreed to, until a day: they stay visible, and weigh less.

use std::sync::Arc;

use super::ViolationKey;
use crate::model::{Direction, Protocol, Timestamp};

/// One exception: what it is for, who stands for it, and until when.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Accepted {
    /// Its name, unique.
    pub name: Arc<str>,
    /// Why it is accepted.
    pub why: Arc<str>,
    /// Who stands for it.
    pub owner: Arc<str>,
    /// From then on it counts no more.
    pub until: Timestamp,
    /// What it is for.
    pub flows: Flows,
}

/// Which violations are meant. What is not said is any.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Flows {
    /// The direction whose policies deny it.
    pub direction: Option<Direction>,
    /// The source.
    pub from: End,
    /// The destination.
    pub to: End,
    /// The transport protocol.
    pub protocol: Option<Protocol>,
    /// Destination ports after translation; none for any.
    pub ports: Vec<u16>,
}

/// One end, by the labels of the metrics.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct End {
    /// Namespace.
    pub namespace: Option<Arc<str>>,
    /// Top controller, `node` or `external`.
    pub workload: Option<Arc<str>>,
}

impl End {
    fn is(&self, namespace: &Arc<str>, workload: &Arc<str>) -> bool {
        self.namespace.as_ref().is_none_or(|it| it == namespace)
            && self.workload.as_ref().is_none_or(|it| it == workload)
    }
}

impl Flows {
    /// Whether a violation is meant. What was folded matches only what names no such thing.
    fn are(&self, key: &ViolationKey) -> bool {
        self.direction.is_none_or(|it| it == key.direction)
            && self.protocol.is_none_or(|it| it == key.protocol)
            && (self.ports.is_empty() || key.port.is_some_and(|port| self.ports.contains(&port)))
            && self.from.is(&key.source_namespace, &key.source_workload)
            && self.to.is(&key.destination_namespace, &key.destination_workload)
    }
}

/// All exceptions, in the order in which they are tried.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct AcceptedFlows(pub Vec<Accepted>);

impl AcceptedFlows {
    /// The name of the first exception that accepts a violation at a time.
    pub fn accept(&self, key: &ViolationKey, at: Timestamp) -> Option<Arc<str>> {
        self.0.iter().find(|it| at < it.until && it.flows.are(key)).map(|it| it.name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::violations::testing::key;

    fn accepted(name: &str, until: i64, flows: Flows) -> Accepted {
        Accepted {
            name: name.into(),
            why: "it moves next month".into(),
            owner: "team-data".into(),
            until: Timestamp::from_seconds(until),
            flows,
        }
    }

    fn end(namespace: Option<&str>, workload: Option<&str>) -> End {
        End { namespace: namespace.map(Into::into), workload: workload.map(Into::into) }
    }

    #[test]
    fn everything_that_is_said_must_hold() {
        let is = |flows: Flows| flows.are(&key("legacy", "backup", "db", 5432));
        let any = Flows::default();
        assert!(is(any.clone()));
        for (meant, flows) in [
            (true, Flows { direction: Some(Direction::Egress), ..any.clone() }),
            (false, Flows { direction: Some(Direction::Ingress), ..any.clone() }),
            (true, Flows { protocol: Some(Protocol::Tcp), ..any.clone() }),
            (false, Flows { protocol: Some(Protocol::Udp), ..any.clone() }),
            (true, Flows { ports: vec![80, 5432], ..any.clone() }),
            (false, Flows { ports: vec![80], ..any.clone() }),
            (true, Flows { from: end(Some("legacy"), Some("backup")), ..any.clone() }),
            (false, Flows { from: end(Some("legacy"), Some("web")), ..any.clone() }),
            (false, Flows { from: end(Some("shop"), None), ..any.clone() }),
            (true, Flows { to: end(None, Some("db")), ..any.clone() }),
            (false, Flows { to: end(Some("legacy"), Some("db")), ..any.clone() }),
        ] {
            assert_eq!(is(flows.clone()), meant, "{flows:?}");
        }
    }

    #[test]
    fn the_first_that_still_counts_names_it() {
        let flows = AcceptedFlows(vec![
            accepted("over", 10, Flows::default()),
            accepted("other", 100, Flows { ports: vec![80], ..Flows::default() }),
            accepted("backup", 100, Flows::default()),
            accepted("later", 200, Flows::default()),
        ]);
        let violation = key("legacy", "backup", "db", 5432);
        let at = |seconds| flows.accept(&violation, Timestamp::from_seconds(seconds));
        assert_eq!(
            [5, 10, 100, 200].map(at),
            [Some("over".into()), Some("backup".into()), Some("later".into()), None]
        );
    }

    #[test]
    fn what_was_folded_is_not_taken_for_a_port() {
        let folded = ViolationKey { port: None, ..key("legacy", "backup", "db", 5432) };
        assert!(!Flows { ports: vec![5432], ..Flows::default() }.are(&folded));
        assert!(Flows::default().are(&folded));
    }
}
