//! The conditions on flows that several commands take.

use std::{collections::BTreeSet, ops::RangeInclusive, path::PathBuf};

use ipnet::IpNet;

use crate::{
    audit::privacy::key_of,
    model::Timestamp,
    privacy,
    store::flows::{
        filter::{Filter, Named},
        words,
    },
};

/// Which flows.
#[derive(clap::Args)]
pub(super) struct Filters {
    /// Namespace of either end
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    namespace: Vec<String>,
    /// Pod at either end
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pod: Vec<Named>,
    /// Workload at either end
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    workload: Vec<Named>,
    /// Address of either end, or that was asked for, or a range of them
    #[arg(long, value_name = "ADDRESS|CIDR", value_parser = words::network)]
    address: Vec<IpNet>,
    /// The secret that agents hash addresses with (their --hash-key), to find addresses where they are hashed
    #[arg(long, value_name = "FILE", requires = "address")]
    hash_key: Option<PathBuf>,
    /// Port, or a range of them such as 8000-8100
    #[arg(long, value_name = "PORT", value_parser = words::ports)]
    port: Vec<RangeInclusive<u16>>,
    /// TCP or UDP
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Vec<String>,
    /// Which end recorded it
    #[arg(long, value_parser = ["egress", "ingress"])]
    direction: Vec<String>,
    /// What the policies said
    #[arg(long, value_parser = ["allowed", "denied", "unknown"])]
    verdict: Vec<String>,
    /// What was found; any for all that have something
    #[arg(long, value_name = "FINDING|any")]
    finding: Vec<String>,
    /// What the socket saw, such as established or refused
    #[arg(long, value_name = "OUTCOME")]
    outcome: Vec<String>,
    /// Command name of the process
    #[arg(long, value_name = "NAME")]
    process: Vec<String>,
    /// DNS name of the other end; *.example.com for all below
    #[arg(long, value_name = "NAME")]
    dns: Vec<String>,
    /// Policy that allowed or denied it
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    policy: Vec<String>,
    /// Node that recorded it
    #[arg(long, value_name = "NAME")]
    node: Vec<String>,
}

impl Filters {
    /// With a window.
    ///
    /// # Errors
    ///
    /// The secret cannot be read.
    pub(super) fn filter(&self, from: Option<Timestamp>, until: Option<Timestamp>) -> anyhow::Result<Filter> {
        let key = self.hash_key.as_deref().map(privacy::read_key).transpose()?;
        let single = self.address.iter().filter(|net| net.prefix_len() == net.max_prefix_len());
        let policies = self.policy.iter().map(|name| name.trim_start_matches('/').to_owned());
        Ok(Filter {
            from,
            until,
            directions: self.direction.clone(),
            namespaces: self.namespace.clone(),
            pods: self.pod.clone(),
            workloads: self.workload.clone(),
            addresses: self.address.clone(),
            hashes: key.iter().flat_map(|key| single.clone().map(|net| key.hash(net.addr()))).collect(),
            ports: self.port.clone(),
            protocols: self.protocol.clone(),
            verdicts: self.verdict.clone(),
            findings: self.finding.clone(),
            outcomes: self.outcome.clone(),
            processes: self.process.clone(),
            names: self.dns.clone(),
            policies: policies.collect(),
            nodes: self.node.clone(),
            flow: None,
        })
    }

    /// What cannot be found by its address, as addresses are hashed.
    pub(super) fn hidden(&self, filter: &Filter, keys: &BTreeSet<String>) -> Vec<String> {
        if self.address.is_empty() || keys.is_empty() {
            return Vec::new();
        }
        let names = |keys: &[&String]| keys.iter().map(|key| key.as_str()).collect::<Vec<_>>().join(", ");
        let has = |key: &&String| {
            let hashes = filter.hashes.iter().filter_map(|hash| key_of(hash));
            self.hash_key.is_some() && hashes.into_iter().any(|of| of == key.as_str())
        };
        let (_, others): (Vec<&String>, Vec<&String>) = keys.iter().partition(has);
        let mut said = Vec::new();
        let ranges: Vec<String> = self
            .address
            .iter()
            .filter(|net| net.prefix_len() != net.max_prefix_len())
            .map(ToString::to_string)
            .collect();
        if !ranges.is_empty() {
            said.push(format!(
                "addresses outside the cluster are hashed here, and a range ({}) finds none of them: ask for single addresses",
                ranges.join(", ")
            ));
        }
        if ranges.len() < self.address.len() && !others.is_empty() {
            said.push(match self.hash_key {
                None => format!(
                    "addresses outside the cluster are hashed here (key {}), and not found without: give the secret with --hash-key FILE",
                    names(&others)
                ),
                Some(_) => format!(
                    "some addresses outside the cluster are hashed with another secret (key {}) than that of --hash-key, and are not found",
                    names(&others)
                ),
            });
        }
        said
    }
}
