//! Flows that no policy tells apart, and how many there are.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use crate::model::{Direction, Protocol, Timestamp};

/// Who an end was, as it was recorded.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum End {
    /// A pod.
    Pod {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
        /// Empty where it was not recorded.
        uid: Arc<str>,
        /// The node that it ran on; empty where that was not recorded.
        node: Arc<str>,
        /// What it belongs to.
        workload: Workload,
        /// The address that carried the flow, where that is known.
        ip: Option<IpAddr>,
    },
    /// A node, or a pod on its network.
    Node {
        /// Empty where it was not recorded.
        name: Arc<str>,
        /// Its address in this flow.
        ip: Option<IpAddr>,
    },
    /// A Service with several endpoints, or none.
    Service {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
        /// The address that was asked for.
        ip: IpAddr,
    },
    /// The subject itself.
    Loopback,
    /// An address outside the cluster.
    External {
        /// It.
        ip: IpAddr,
        /// The names that policies went by, in order.
        names: Arc<[Arc<str>]>,
    },
}

/// The top controller of a pod.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Workload {
    /// `Deployment` …, or `Pod`.
    pub kind: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl End {
    /// Whom people know it as: `namespace/workload`, `node NAME`, `service NAMESPACE/NAME`, `external`.
    pub fn workload(&self) -> String {
        match self {
            Self::Pod { namespace, workload, .. } => format!("{namespace}/{}", workload.name),
            Self::Node { name, .. } if name.is_empty() => "a node".to_owned(),
            Self::Node { name, .. } => format!("node {name}"),
            Self::Service { namespace, name, .. } => format!("service {namespace}/{name}"),
            Self::Loopback => "itself".to_owned(),
            Self::External { .. } => "external".to_owned(),
        }
    }

    /// The very end: the pod, or the address.
    pub fn single(&self) -> String {
        match self {
            Self::Pod { namespace, name, .. } => format!("{namespace}/{name}"),
            Self::External { ip, .. } => ip.to_string(),
            other => other.workload(),
        }
    }
}

/// All that decides what policies say of a flow, but the objects of its time.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Class {
    /// Which end the subject is.
    pub direction: Direction,
    /// Whose namespace it was in: a pod or a node.
    pub subject: End,
    /// The other end.
    pub peer: End,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The destination's port after translation; of a Service whose endpoints disagree its own.
    pub port: u16,
    /// Whether it was not known who stood behind the peer's address, or which port was asked for: then only what is the same for all
    /// can be said.
    pub hidden: Option<Hidden>,
}

/// What a translation hid.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Hidden {
    /// Who asked.
    Source,
    /// At which port.
    Port,
}

impl Class {
    /// The end that opens connections.
    pub fn source(&self) -> &End {
        match self.direction {
            Direction::Egress => &self.subject,
            Direction::Ingress => &self.peer,
        }
    }

    /// The end that accepts them.
    pub fn destination(&self) -> &End {
        match self.direction {
            Direction::Egress => &self.peer,
            Direction::Ingress => &self.subject,
        }
    }
}

/// Why a flow cannot be judged again.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Missing {
    /// The record does not say whose it was.
    Subject,
    /// The record does not say who the other end was.
    Peer,
    /// The record has a hash for the address outside.
    Hashed,
    /// The record cannot be read.
    Damaged(Arc<str>),
    /// No store has the objects that the flow's agent run knew.
    History(Arc<str>),
    /// The run never knew all objects: which kinds were missing.
    Incomplete(Arc<str>),
    /// The history of its node begins later.
    Before(Arc<str>),
    /// The history has no object of a pod: which.
    Pod(Arc<str>),
}

impl Missing {
    /// The reason without names, to count by.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Subject => "the record does not say whose flow it was",
            Self::Peer => "the record does not say who the other end was",
            Self::Hashed => "the record has a hash for the address outside the cluster",
            Self::Damaged(_) => "the record cannot be read",
            Self::History(_) => "the stores hold no history of the objects of its agent run",
            Self::Incomplete(_) => "its agent run never had a list of all objects",
            Self::Before(_) => "the history of objects begins later",
            Self::Pod(_) => "the history has no object of the pod at that time",
        }
    }

    /// Which run, node or pod; empty where the reason says all.
    pub fn what(&self) -> &str {
        match self {
            Self::Subject | Self::Peer | Self::Hashed => "",
            Self::Damaged(what)
            | Self::History(what)
            | Self::Incomplete(what)
            | Self::Before(what)
            | Self::Pod(what) => what,
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what() {
            "" => f.write_str(self.reason()),
            what => write!(f, "{}: {what}", self.reason()),
        }
    }
}

/// Flows of one class and one state of the objects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tally {
    /// Records.
    pub records: u64,
    /// Flows: a folded record stands for several.
    pub flows: u64,
    /// Flows of folded records, of which single times are not known.
    pub folded: u64,
    /// Flows of folded records that lasted over a change of the objects: they are judged as their first was.
    pub spanning: u64,
    /// Flows that may have been told twice.
    pub maybe_repeated: u64,
    /// Flows that reached the other end.
    pub reached: u64,
    /// Flows that passed though they were denied.
    pub unenforced: u64,
    /// When the first began.
    pub first: Timestamp,
    /// When the last did.
    pub last: Timestamp,
    /// The number of the last record in its run.
    pub example: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            records: 0,
            flows: 0,
            folded: 0,
            spanning: 0,
            maybe_repeated: 0,
            reached: 0,
            unenforced: 0,
            first: Timestamp::MAX,
            last: Timestamp::MIN,
            example: 0,
        }
    }
}

/// Names, of which only some are kept.
#[derive(Clone, Default, Debug)]
pub(super) struct Some5(BTreeSet<String>);

impl Some5 {
    /// How many are kept.
    const MOST: usize = 5;

    pub fn add(&mut self, name: &str) {
        if self.0.len() < Self::MOST && !name.is_empty() {
            self.0.insert(name.to_owned());
        }
    }

    pub fn into_vec(self) -> Vec<String> {
        self.0.into_iter().collect()
    }
}
