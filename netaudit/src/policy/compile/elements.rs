//! The elements of a rule as those know them who count their use: by content, as rules are.

use std::sync::Arc;

use ipnet::IpNet;

use super::{Matcher, Peer, PortMatch, PortTest};
use crate::{model::Direction, policy::summary};

/// An element of a rule's `from`, `to` or `ports`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Element {
    /// `from`, `to` or `ports`.
    pub list: &'static str,
    /// Its place there today, from 0.
    pub index: u32,
    /// What it means, in a few words: `app=postgres`, `10.0.0.0/8`, `TCP 5432`.
    pub what: Arc<str>,
    /// How wide it is, where that is a number.
    pub span: Option<Span>,
    /// The ranges within its network that it does not mean.
    pub except: Arc<[IpNet]>,
}

/// What an element that is a range spans.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Span {
    /// Addresses.
    Network(IpNet),
    /// Ports, both ends included.
    Ports(u16, u16),
    /// Workloads that a selector selects, counted where that is asked: a policy alone does not tell.
    Workloads(u32),
}

impl Element {
    /// `to[0]`, `ports[1]`.
    pub fn path(&self) -> String {
        format!("{}[{}]", self.list, self.index)
    }
}

/// The elements of a rule with the hashes of their content: its peers in their order, then its ports.
pub(super) fn elements(
    direction: Direction,
    peers: (&[Peer], Vec<u64>),
    ports: (&[PortMatch], Vec<u64>),
) -> Arc<[(u64, Element)]> {
    let list = direction.peers();
    let of_peers = (0..).zip(peers.1).map(|(index, hash)| {
        // A peer with contradictory fields stands for several.
        let meant: Vec<&Peer> = peers.0.iter().filter(|it| it.index == index).collect();
        let what: Vec<String> = meant.iter().map(|it| summary::peer(it)).collect();
        let span = match meant.as_slice() {
            [Peer { matcher: Matcher::Block(block), .. }] => Some(Span::Network(block.net)),
            _ => None,
        };
        let except = match meant.as_slice() {
            [Peer { matcher: Matcher::Block(block), .. }] => block.except.as_slice().into(),
            _ => [].into(),
        };
        (hash, Element { list, index, what: what.join(" or ").into(), span, except })
    });
    let of_ports = (0..).zip(ports.1).zip(ports.0).map(|((index, hash), port)| {
        let span = match port.port {
            PortTest::Range(first, last) if first < last => Some(Span::Ports(first, last)),
            _ => None,
        };
        (hash, Element { list: "ports", index, what: summary::port(port).into(), span, except: [].into() })
    });
    of_peers.chain(of_ports).collect()
}
