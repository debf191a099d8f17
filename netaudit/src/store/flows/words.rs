//! What is asked for, as people write it.

use std::{net::IpAddr, ops::RangeInclusive};

use ipnet::IpNet;

use super::filter::{Filter, Named};
use crate::model::{Timestamp, duration};

impl Filter {
    /// Adds one condition, by the name that `netaudit flows` has for it: `since`, `namespace`, `port` … . `now` is what
    /// times such as `30m` are counted back from. `false` where there is no condition of that name.
    ///
    /// # Errors
    ///
    /// What is wrong with the value.
    pub fn add(&mut self, name: &str, value: &str, now: Timestamp) -> Result<bool, String> {
        if value.is_empty() {
            return Err("it is empty".to_owned());
        }
        let text = || value.to_owned();
        match name {
            "since" => self.from = Some(time(value, now)?),
            "until" => self.until = Some(time(value, now)?),
            "namespace" => self.namespaces.push(text()),
            "pod" => self.pods.push(named(value)?),
            "workload" => self.workloads.push(named(value)?),
            "address" => self.addresses.push(network(value)?),
            "port" => self.ports.push(ports(value)?),
            "protocol" => self.protocols.push(text()),
            "direction" => self.directions.push(one_of(value, &["egress", "ingress"])?),
            "verdict" => self.verdicts.push(one_of(value, &["allowed", "denied", "unknown"])?),
            "finding" => self.findings.push(text()),
            "outcome" => self.outcomes.push(text()),
            "process" => self.processes.push(text()),
            "dns" => self.names.push(text()),
            "policy" => self.policies.push(value.trim_start_matches('/').to_owned()),
            "node" => self.nodes.push(text()),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn named(text: &str) -> Result<Named, String> {
    text.parse().map_err(|error| format!("{text:?}: {error}"))
}

fn one_of(text: &str, words: &[&str]) -> Result<String, String> {
    if words.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is none of {}", words.join(", ")))
    }
}

/// A time, or how long before `now` it was.
///
/// # Errors
///
/// It is neither.
pub fn time(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let wrong = || {
        format!(
            "{text:?} is no time: give one such as 2026-01-31T12:00:00Z, or how long ago, such as 30m or 7d"
        )
    };
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return i64::try_from(time.as_nanosecond()).map(Timestamp).map_err(|_| wrong());
    }
    let ago = duration(text).ok_or_else(wrong)?;
    let ago = i64::try_from(ago.as_nanos()).map_err(|_| wrong())?;
    Ok(Timestamp(now.0.saturating_sub(ago)))
}

/// An address, or a range of them.
///
/// # Errors
///
/// It is neither.
pub fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse().map(|address: IpAddr| IpNet::from(address.to_canonical()));
    address.or_else(|_| text.parse()).map_err(|_| format!("{text:?} is no address and no range of them"))
}

/// A port, or a range of them.
///
/// # Errors
///
/// It is neither.
pub fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let wrong = || format!("{text:?} is no port and no range such as 8000-8100");
    let port = |text: &str| text.parse::<u16>().map_err(|_| wrong());
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let range = port(from)?..=port(to)?;
    if range.is_empty() { Err(wrong()) } else { Ok(range) }
}
