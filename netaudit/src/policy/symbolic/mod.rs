//! What policies allow, as a value: sets of (source, destination, protocol, port) that can be united, intersected,
//! subtracted and compared, exactly.
//!
//! ```text
//! pods, nodes, rulesets ──Universe::new──▶ Universe: groups of pods and of node addresses that nobody tells apart
//! Universe, ruleset ──Connections::new──▶ surely, possibly: two ConnectionSets
//! ConnectionSet ∪ ∩ − ⊆ ConnectionSet
//! ```
//!
//! # What a point is
//!
//! A connection from one end to another by a protocol (TCP, UDP, SCTP) to a port from 1 to 65535, of which at least one
//! end is a pod. An end is
//!
//! - a **pod**, by its *group*: pods that all given rulesets see alike, as they have the same namespace, the same labels
//!   and named ports as far as these are mentioned, and addresses that no range of a rule tells apart. Two pods of a
//!   group are two pods: a pod to itself is always allowed, which no set tells again.
//! - a **node**, by its labels and one of its addresses (pods in the host's network are their node). It is a node that
//!   is not the pod's own: between a pod and its own node all is allowed, which no set tells again.
//! - an **address outside** that no pod and no node has. A range is written without holes for addresses inside of it that
//!   are pods' or nodes': these are judged as the pods or nodes that they are.
//! - an **address outside with a DNS name**, for each pattern in `domainNames` of a rule: an address with a name that this
//!   pattern matches and none that is narrower does. For an address with names of several patterns it is the union, as the
//!   API lets only rules that accept name domains. The plain ranges are of addresses without such a name, and so are pods
//!   and nodes: what name DNS gives for them is not asked here.
//!
//! Service addresses are no ends: what answers there are its backends.
//!
//! # What is unknown stays apart
//!
//! Two sets tell three answers. What is in `surely` is allowed; what is not even in `possibly` is denied; between the two
//! is what hangs on an invalid object, a tie of priorities, a policy that could not be read: it is neither.
//!
//! The sets are computed rule by rule with sets of ports, not flow by flow; that they agree with
//! [`Evaluator`](super::Evaluator) is what the tests show on random clusters, at every end of every range.

mod addresses;
mod comparison;
mod connections;
mod external;
mod intervals;
mod ports;
mod representatives;
mod side;
mod tiers;
mod universe;

pub use self::{
    addresses::AddressSet,
    comparison::Comparison,
    connections::{ConnectionSet, Connections},
    external::ExternalSet,
    intervals::{IntervalSet, Point},
    ports::{PROTOCOLS, PortSet},
    representatives::{OTHER_NAMESPACE, Representatives},
    side::Outside,
    universe::{Group, NodeEnd, NodeGroup, Other, PodEnd, Universe},
};
