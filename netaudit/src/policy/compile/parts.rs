//! Ranges and ports: what the rules of every kind are made of.

use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

use super::{Block, Flaws, Matcher, Peer, PortMatch, PortTest};
use crate::{model::Protocol, policy::declared};

/// The API on `except`: each must be a proper part of `cidr`. `field` is where below `path` the range itself stands.
pub(super) fn compile_block(
    declared: &declared::IpBlock,
    index: u32,
    path: &str,
    field: &str,
    mut doubt: Option<Arc<str>>,
    flaws: &mut Flaws,
) -> Peer {
    let Some(net) = parse_cidr(&declared.cidr) else {
        let reason = format!("{:?} is not a CIDR such as 10.0.0.0/8", declared.cidr);
        let doubt = flaws.add(format!("{path}{field}"), reason);
        return Peer { index, matcher: Matcher::Anyone, doubt: Some(doubt) };
    };
    let mut except = Vec::new();
    for (hole_index, text) in declared.except.iter().enumerate() {
        let path = format!("{path}.except[{hole_index}]");
        let Some(hole) = parse_cidr(text) else {
            doubt.get_or_insert(flaws.add(path, format!("{text:?} is not a CIDR such as 10.0.0.0/8")));
            continue;
        };
        if !net.contains(&hole) && !hole.contains(&net) {
            // One of the two is not what was meant, so no address of the block is certain.
            doubt.get_or_insert(flaws.add(path, format!("{hole} is not inside {net}")));
            continue;
        }
        if hole.contains(&net) {
            // Refused by the API server, yet clear in what it says: nobody.
            flaws.add(path, format!("{hole} leaves nothing of {net}"));
        }
        except.push(hole);
    }
    except.sort();
    except.dedup();
    Peer { index, matcher: Matcher::Block(Arc::new(Block { net, except })), doubt }
}

/// An address range; host bits are ignored, as the API does, and a v4-mapped range is the v4 range.
pub(crate) fn parse_cidr(text: &str) -> Option<IpNet> {
    let net: IpNet = text.parse().ok()?;
    if let IpNet::V6(v6) = net
        && v6.prefix_len() >= 96
        && let Some(v4) = v6.addr().to_ipv4_mapped()
    {
        return Some(IpNet::V4(Ipv4Net::new(v4, v6.prefix_len() - 96).ok()?.trunc()));
    }
    Some(net.trunc())
}

/// The API on ports: no `protocol` means TCP; no `port` means every port of the protocol; `endPort` makes a range,
/// needs a numeric `port`, and is not less than it.
pub(super) fn compile_port(declared: &declared::Port, path: &str, flaws: &mut Flaws) -> PortMatch {
    if let Some(invalid) = &declared.invalid {
        return PortMatch::anything(flaws.add_invalid(invalid));
    }
    let mut doubt = None;
    let protocol = match declared.protocol.as_deref() {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(other) => {
            let reason = format!("unknown protocol {other:?}: TCP, UDP or SCTP");
            doubt = Some(flaws.add(format!("{path}.protocol"), reason));
            None
        }
    };
    match compile_port_test(declared) {
        Ok(port) => PortMatch { protocol, port, doubt },
        Err((field, reason)) => {
            let flaw = flaws.add(format!("{path}.{field}"), reason);
            PortMatch { protocol, port: PortTest::Any, doubt: Some(doubt.unwrap_or(flaw)) }
        }
    }
}

/// A port of a cluster-wide policy below `rule`. The API: a port by name is the pod's port of this name, and by its
/// protocol too; anything else is as in a NetworkPolicy.
pub(super) fn compile_cluster_port(
    declared: &declared::ClusterPort,
    rule: &str,
    flaws: &mut Flaws,
) -> PortMatch {
    let mut compiled = compile_port(&declared.port, &format!("{rule}.{}", declared.path), flaws);
    if matches!(compiled.port, PortTest::Named(_)) && declared.port.protocol.is_none() {
        compiled.protocol = None;
    }
    compiled
}

fn compile_port_test(declared: &declared::Port) -> Result<PortTest, (&'static str, String)> {
    let number = |field, number: i64| match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err((field, format!("{number} is not a port: 1 to 65535"))),
    };
    match (&declared.port, declared.end_port) {
        (None, None) => Ok(PortTest::Any),
        (None, Some(_)) => Err(("endPort", "needs a port to start from".to_owned())),
        (Some(declared::PortRef::Number(first)), None) => {
            let port = number("port", *first)?;
            Ok(PortTest::Range(port, port))
        }
        (Some(declared::PortRef::Number(first)), Some(last)) => {
            let (first, last) = (number("port", *first)?, number("endPort", last)?);
            if last < first {
                return Err(("endPort", format!("{last} is less than port {first}")));
            }
            Ok(PortTest::Range(first, last))
        }
        (Some(declared::PortRef::Name(name)), Some(_)) => {
            Err(("endPort", format!("cannot extend the named port {name:?}")))
        }
        (Some(declared::PortRef::Name(name)), None) if is_port_name(name) => {
            Ok(PortTest::Named(name.as_str().into()))
        }
        (Some(declared::PortRef::Name(name)), None) => {
            Err(("port", format!("{name:?} cannot be a port's name, and is text, not a number")))
        }
    }
}

/// Names as IANA has them: at most 15 lower-case letters, digits and single dashes inside, with a letter among them.
fn is_port_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && name.bytes().any(|b| b.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}
