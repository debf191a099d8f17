//! The parts of a rule against the parts of a flow, as the API's text has them: selectors, ranges, names, ports.

use std::{cell::RefCell, collections::BTreeMap, net::IpAddr};

use serde_json::Value;

use super::case::{Dns, Protocol};

/// How often something was used to decide, so that a generator that never makes it is found out.
pub type Seen = RefCell<BTreeMap<&'static str, u64>>;

pub fn saw(seen: Option<&Seen>, what: &'static str) {
    if let Some(seen) = seen {
        *seen.borrow_mut().entry(what).or_default() += 1;
    }
}

/// A list that may be absent.
pub fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str)
}

/// A number that the API wants to be a port.
fn port_number(value: &Value, name: &str) -> Option<u16> {
    value.get(name).and_then(Value::as_u64).and_then(|it| it.try_into().ok())
}

/// Label selector: `matchLabels` and `matchExpressions` are ANDed, an empty selector matches everything.
pub fn selects<'a>(selector: &Value, label: &dyn Fn(&str) -> Option<&'a str>, seen: Option<&Seen>) -> bool {
    let pairs = selector.get("matchLabels").and_then(Value::as_object);
    let mut result = true;
    for (key, value) in pairs.into_iter().flatten() {
        result &= label(key).is_some() && label(key) == value.as_str();
    }
    for expression in list(selector, "matchExpressions") {
        let found = label(text(expression, "key").unwrap_or_default());
        let is_in = |found: &str| list(expression, "values").iter().any(|it| it.as_str() == Some(found));
        let operator = text(expression, "operator").unwrap_or_default();
        let (holds, what) = match (operator, found) {
            ("In", Some(value)) if is_in(value) => (true, "In: is"),
            ("In", Some(_)) => (false, "In: is not"),
            ("In", None) => (false, "In: no such label"),
            ("NotIn", Some(value)) if is_in(value) => (false, "NotIn: is"),
            ("NotIn", Some(_)) => (true, "NotIn: is not"),
            // A label that is not there has none of the values.
            ("NotIn", None) => (true, "NotIn: no such label"),
            ("Exists", Some(_)) => (true, "Exists: is"),
            ("Exists", None) => (false, "Exists: is not"),
            ("DoesNotExist", Some(_)) => (false, "DoesNotExist: is"),
            ("DoesNotExist", None) => (true, "DoesNotExist: is not"),
            (other, _) => panic!("no operator {other:?}"),
        };
        saw(seen, what);
        result &= holds;
    }
    result
}

/// Whether a range holds the address. An IPv4 address may be written as a mapped IPv6 one, a range too; a range of
/// the other family holds nothing, and bits below the mask mean nothing.
pub fn range_holds(range: &str, ip: IpAddr, seen: Option<&Seen>) -> bool {
    let (address, length) = range.split_once('/').unwrap_or_else(|| panic!("no range: {range:?}"));
    let address: IpAddr = address.parse().unwrap_or_else(|_| panic!("no range: {range:?}"));
    let mut length: u32 = length.parse().unwrap_or_else(|_| panic!("no range: {range:?}"));
    let mut base = address;
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
        && length >= 96
    {
        base = v4.into();
        length -= 96;
    }
    let holds = match (base, ip.to_canonical()) {
        (IpAddr::V4(base), IpAddr::V4(ip)) => {
            let bits = |it: std::net::Ipv4Addr| it.to_bits().checked_shr(32 - length).unwrap_or(0);
            bits(base) == bits(ip)
        }
        (IpAddr::V6(base), IpAddr::V6(ip)) => {
            let bits = |it: std::net::Ipv6Addr| it.to_bits().checked_shr(128 - length).unwrap_or(0);
            bits(base) == bits(ip)
        }
        _ => false,
    };
    if holds {
        saw(seen, if base != address { "range: mapped" } else { "range: plain" });
        saw(seen, if base.is_ipv4() { "range: IPv4" } else { "range: IPv6" });
    }
    holds
}

/// An exact name, or `*.` and a name for one or more labels before it. Names know no case and may end with a dot.
fn name_matches(pattern: &str, name: &str) -> bool {
    let plain = |it: &str| it.trim_end_matches('.').to_ascii_lowercase();
    let (pattern, name) = (plain(pattern), plain(name));
    match pattern.strip_prefix("*.") {
        Some(rest) => {
            name.strip_suffix(rest).and_then(|it| it.strip_suffix('.')).is_some_and(|it| !it.is_empty())
        }
        None => name == pattern,
    }
}

/// Whether one of the names was resolved to the address.
pub fn domain_names_hold(patterns: &[Value], dns: &Dns, ip: IpAddr, seen: Option<&Seen>) -> bool {
    for pattern in patterns.iter().filter_map(Value::as_str) {
        for (name, ips) in dns {
            if name_matches(pattern, name) && ips.iter().any(|it| it.to_canonical() == ip.to_canonical()) {
                let wild = pattern.starts_with('*');
                saw(seen, if wild { "domain name: wildcard" } else { "domain name: exact" });
                return true;
            }
        }
    }
    false
}

/// What a port of a rule is compared with: `destination` is the pod there, if it is one with ports of its own.
pub struct Target<'a> {
    pub protocol: Protocol,
    pub port: u16,
    pub destination: Option<&'a Value>,
}

impl Target<'_> {
    /// `ports[i]` of a NetworkPolicy's rule.
    pub fn is_port(&self, port: &Value, seen: Option<&Seen>) -> bool {
        let same_protocol = text(port, "protocol").unwrap_or("TCP") == self.protocol.as_str();
        let (holds, what) = match port.get("port").filter(|it| !it.is_null()) {
            None => (same_protocol, "port: protocol only"),
            Some(Value::String(name)) => (same_protocol && self.has_name(name), "port: named"),
            Some(_) => {
                let first = port_number(port, "port").unwrap_or_else(|| panic!("no port: {port}"));
                let last = port_number(port, "endPort");
                let holds = same_protocol && (first..=last.unwrap_or(first)).contains(&self.port);
                (holds, if last.is_some() { "port: endPort" } else { "port: number" })
            }
        };
        if holds {
            saw(seen, what);
        }
        holds
    }

    /// `ports[i]` of a rule of v1alpha1.
    pub fn is_admin_port(&self, port: &Value, seen: Option<&Seen>) -> bool {
        let same_protocol = |it: &Value| text(it, "protocol").unwrap_or("TCP") == self.protocol.as_str();
        let (holds, what) = if let Some(number) = port.get("portNumber") {
            (same_protocol(number) && port_number(number, "port") == Some(self.port), "port: portNumber")
        } else if let Some(range) = port.get("portRange") {
            (same_protocol(range) && self.in_range(range), "port: portRange")
        } else if let Some(name) = text(port, "namedPort") {
            (self.has_name(name), "port: namedPort")
        } else {
            (false, "")
        };
        if holds {
            saw(seen, what);
        }
        holds
    }

    /// `protocols[i]` of a rule of v1alpha2.
    pub fn is_protocol(&self, protocol: &Value, seen: Option<&Seen>) -> bool {
        if let Some(name) = text(protocol, "destinationNamedPort") {
            let holds = self.has_name(name);
            if holds {
                saw(seen, "port: destinationNamedPort");
            }
            return holds;
        }
        let member = self.protocol.as_str().to_ascii_lowercase();
        let Some(protocol) = protocol.get(&member).filter(|it| !it.is_null()) else { return false };
        let Some(port) = protocol.get("destinationPort").filter(|it| !it.is_null()) else {
            saw(seen, "port: any of the protocol");
            return true;
        };
        let (holds, what) = match port.get("range") {
            Some(range) => (self.in_range(range), "port: destinationPort.range"),
            None => (port_number(port, "number") == Some(self.port), "port: destinationPort.number"),
        };
        if holds {
            saw(seen, what);
        }
        holds
    }

    fn in_range(&self, range: &Value) -> bool {
        let (start, end) = (port_number(range, "start"), port_number(range, "end"));
        start.is_some_and(|it| it <= self.port) && end.is_some_and(|it| self.port <= it)
    }

    /// Whether this protocol and port of the destination has the name. Only what runs as long as the pod has ports.
    fn has_name(&self, name: &str) -> bool {
        let Some(spec) = self.destination.and_then(|pod| pod.get("spec")) else { return false };
        let sidecars =
            list(spec, "initContainers").iter().filter(|it| text(it, "restartPolicy") == Some("Always"));
        list(spec, "containers").iter().chain(sidecars).flat_map(|it| list(it, "ports")).any(|port| {
            text(port, "name") == Some(name)
                && text(port, "protocol").unwrap_or("TCP") == self.protocol.as_str()
                && port_number(port, "containerPort") == Some(self.port)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_their_family_only() {
        let holds = |range, ip: &str| range_holds(range, ip.parse().unwrap(), None);
        assert!(holds("10.0.0.0/8", "10.255.0.1") && !holds("10.0.0.0/8", "11.0.0.1"));
        assert!(holds("10.0.0.9/24", "10.0.0.1") && holds("10.0.0.1/32", "10.0.0.1"));
        assert!(holds("10.0.0.0/8", "::ffff:10.0.0.1") && holds("::ffff:10.0.0.0/104", "10.0.0.1"));
        assert!(!holds("::/0", "10.0.0.1") && !holds("0.0.0.0/0", "2001:db8::1"));
        assert!(holds("0.0.0.0/0", "10.0.0.1") && holds("::/0", "2001:db8::1"));
        assert!(holds("2001:db8::/32", "2001:db8:ffff::1") && !holds("2001:db8::/33", "2001:db8:ffff::1"));
    }

    #[test]
    fn a_wildcard_stands_for_whole_labels() {
        assert!(name_matches("kubernetes.io", "Kubernetes.IO."));
        assert!(!name_matches("kubernetes.io", "my-kubernetes.io"));
        assert!(!name_matches("kubernetes.io", "www.kubernetes.io"));
        assert!(name_matches("*.kubernetes.io", "latest.blog.kubernetes.io"));
        assert!(!name_matches("*.kubernetes.io", "kubernetes.io"));
        assert!(!name_matches("*.kubernetes.io", "my-kubernetes.io"));
    }
}
