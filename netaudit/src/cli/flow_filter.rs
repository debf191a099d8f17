//! The conditions on flows that several commands take.

use std::{ops::RangeInclusive, path::PathBuf};

use ipnet::IpNet;

use crate::{
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
    pub(super) address: Vec<IpNet>,
    /// The secret that agents hash addresses with (their --hash-key), to find addresses where they are hashed
    #[arg(long, value_name = "FILE", requires = "address")]
    pub(super) hash_key: Option<PathBuf>,
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
}
