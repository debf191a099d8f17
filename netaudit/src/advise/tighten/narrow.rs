//! Narrower ranges in place of one.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    advice::{Known, OfElement},
    uses::Needs,
};
use crate::{
    audit::usage::ranges,
    model::Protocol,
    policy::{Span, parse_cidr},
};

/// Ranges that take the place of one at most.
const MOST_RANGES: usize = 8;

/// Names that are told of a range.
const MOST_NAMES: usize = 3;

/// The ranges that take the place of an `ipBlock`, with the names of what is in them.
///
/// Addresses of pods, nodes and Services come and go, and so may those behind a name that somebody else answers for: a range that was used for
/// them stays.
///
/// # Errors
/// Why it stays as wide as it is.
pub(super) fn blocks(
    known: &Known<'_>,
    of: &OfElement<'_>,
    networks: &[IpNet],
    needs: &Needs,
) -> Result<Vec<(IpNet, String)>, String> {
    let Some(Span::Network(net)) = of.element.span else { return Err("it is no range".to_owned()) };
    let block = of.declared.peers.get(of.element.index as usize).and_then(|it| it.ip_block.as_ref());
    let is_mapped = |text: &String| {
        let written = text.parse::<IpNet>().is_ok_and(|it| it.network().is_ipv6());
        written && parse_cidr(text).is_some_and(|it| it.network().is_ipv4())
    };
    if block.is_some_and(|it| it.except.iter().any(is_mapped)) {
        return Err(
            "wider than what was used, but its exceptions are IPv4 ranges that are written as IPv6 ones"
                .to_owned(),
        );
    }
    let words = |networks: &[IpNet]| networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let enough = words(networks);
    if known.options.keep_ranges {
        return Err(format!("wider than what was used; with ranges narrowed: {enough}"));
    }
    let is_meant = |ip: &&IpAddr| net.contains(*ip) && !of.element.except.iter().any(|it| it.contains(*ip));
    let mut addresses: BTreeSet<IpAddr> =
        of.history.touched.addresses.iter().map(|ip| ip.to_canonical()).filter(|ip| is_meant(&ip)).collect();
    if let Some(ip) = needs.inside.iter().find(|ip| is_meant(ip)) {
        return Err(format!(
            "wider than what was used ({enough}), but {ip} is a pod's, a node's or a Service's, which may get another address: select \
             it by labels"
        ));
    }
    if let Some(ip) = addresses.iter().find(|ip| !needs.outside.contains(ip)) {
        return Err(format!(
            "wider than what was used ({enough}), but the flow stores do not tell whose address {ip} was"
        ));
    }
    // Of what was before the usage only recorded flows tell.
    let before: Vec<IpAddr> =
        needs.outside.iter().filter(|ip| is_meant(ip) && !addresses.contains(*ip)).copied().collect();
    let mut networks = networks.to_vec();
    if !before.is_empty() {
        addresses.extend(before);
        networks = ranges(&addresses);
        if networks.contains(&net) {
            return Err(format!(
                "wider than what agents saw used ({enough}), but recorded flows went to all parts of it"
            ));
        }
    }
    let enough = words(&networks);
    let named = addresses.iter().filter(|ip| is_public(**ip)).filter_map(|ip| known.names.get(ip));
    let names: BTreeSet<&Arc<str>> = named.flatten().collect();
    if !names.is_empty() && !known.options.narrow_named {
        return Err(format!(
            "wider than what was used ({enough}), but names lead there that may get other addresses: {}",
            some(names)
        ));
    }
    let comment = |net: &IpNet| {
        let inside = addresses.iter().filter(|ip| net.contains(*ip)).filter_map(|ip| known.names.get(ip));
        some(inside.flatten().collect())
    };
    Ok(networks.iter().map(|net| (*net, comment(net))).collect())
}

/// The ranges of ports that take the place of one: those that were used, and those that recorded flows of before went to.
///
/// # Errors
/// Why it stays as wide as it is.
pub(super) fn ports(of: &OfElement<'_>, used: &[u16], needs: &Needs) -> Result<Vec<(u16, u16)>, String> {
    let Some(Span::Ports(first, last)) = of.element.span else { return Err("it is no range".to_owned()) };
    let before = needs.ports.iter().map(|(_, port)| *port).filter(|port| (first..=last).contains(port));
    let all: BTreeSet<u16> = used.iter().copied().chain(before).collect();
    let ranges = port_ranges(&all.into_iter().collect::<Vec<_>>());
    match ranges == [(first, last)] {
        true => Err("wider than what agents saw used, but recorded flows went to all parts of it".to_owned()),
        false => Ok(ranges),
    }
}

/// The ports that a rule for every port is enough for: those that were used, and those that recorded flows of before went to.
///
/// # Errors
/// They are too many.
pub(super) fn ports_of(used: &[(Protocol, u16)], needs: &Needs) -> Result<Vec<(Protocol, u16)>, String> {
    let all: BTreeSet<(Protocol, u16)> = used.iter().chain(&needs.ports).copied().collect();
    match all.len() > MOST_RANGES {
        true => Err(format!("for every port, and recorded flows went to {} of them", all.len())),
        false => Ok(all.into_iter().collect()),
    }
}

/// Whether somebody else may answer for an address: the ranges of RFC 1918, RFC 6598 and RFC 4193, and those that never leave a link or
/// host, are one's own.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(ip) => !(ip.is_unique_local() || ip.is_loopback() || ip.is_unicast_link_local()),
    }
}

fn some(names: BTreeSet<&Arc<str>>) -> String {
    let more = names.len().saturating_sub(MOST_NAMES);
    let mut told: Vec<String> = names.into_iter().take(MOST_NAMES).map(ToString::to_string).collect();
    if more > 0 {
        told.push(format!("{more} more"));
    }
    told.join(", ")
}

/// Few ranges that hold these ports, which are in order.
pub(super) fn port_ranges(ports: &[u16]) -> Vec<(u16, u16)> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *port => *last = *port,
            _ => ranges.push((*port, *port)),
        }
    }
    while ranges.len() > MOST_RANGES {
        let gap = |at: &usize| ranges[at + 1].0 - ranges[*at].1;
        let Some(at) = (0..ranges.len() - 1).min_by_key(gap) else { break };
        let (_, last) = ranges.remove(at + 1);
        ranges[at].1 = last;
    }
    ranges
}

/// `8000, 8080-8083`.
pub(super) fn words(ranges: &[(u16, u16)]) -> String {
    let word = |(first, last): &(u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.iter().map(word).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_ranges_hold_all_ports() {
        assert_eq!(port_ranges(&[]), []);
        assert_eq!(words(&port_ranges(&[80, 81, 82, 443])), "80-82, 443");
        let many: Vec<u16> = (0..20).map(|n| 1000 + n * n).collect();
        let ranges = port_ranges(&many);
        assert_eq!(ranges.len(), MOST_RANGES);
        assert!(many.iter().all(|port| ranges.iter().any(|(first, last)| (first..=last).contains(&port))));
        assert_eq!(words(&port_ranges(&[65_535])), "65535");
    }

    #[test]
    fn ones_own_addresses_are_not_public() {
        let public = |text: &str| is_public(text.parse().expect("an address"));
        for own in
            ["10.1.2.3", "172.31.0.1", "192.168.9.9", "100.64.0.1", "169.254.0.1", "fd00::1", "fe80::1"]
        {
            assert!(!public(own), "{own}");
        }
        for other in ["203.0.113.1", "100.63.0.1", "172.32.0.1", "2001:db8::1"] {
            assert!(public(other), "{other}");
        }
    }
}
