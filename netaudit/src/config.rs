//! The agent's configuration: one YAML file, and flags over it.
//!
//! Precedence: flag, then file, then default. Unknown keys are errors, since a misspelt key that is ignored is worse than
//! one that is refused. `netaudit agent --print-config` shows the result in the file's own form.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::{
    audit::DnsServers,
    model,
    store::bucket::{self, Access},
};

/// A smaller ring would overflow between two drains of an ordinary node.
const LEAST_RING: u32 = 256 << 10;

/// Room for some files: less is no store.
const LEAST_STORE: u64 = 16 << 20;

/// Fewer keys would overflow at once, and more are more than a node's memory is worth.
const FOLD_KEYS: RangeInclusive<u32> = 64..=1 << 20;

/// Flags of `netaudit agent` that can also stand in the file.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Flags {
    /// Configuration file (YAML); flags win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the configuration that results from file and flags, and exit
    #[arg(long)]
    pub print_config: bool,
    /// Read Kubernetes objects from the files below this directory, and follow changes
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    pub manifests: Option<PathBuf>,
    /// Read Kubernetes objects from the API server that this kubeconfig names [default: in-cluster, else $KUBECONFIG]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of this node, as in Node objects [default: $NODE_NAME, else the host name]
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Where /metrics, /healthz and /readyz are served [default: 0.0.0.0:9464]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Write one JSON object a flow to this file, or to stdout for `-`
    #[arg(long, value_name = "FILE|-")]
    pub flow_log: Option<String>,
    /// Keep every flow in this directory, to be asked with `netaudit flows` and SQL [default: off]
    #[arg(long, value_name = "DIR")]
    pub flow_store: Option<PathBuf>,
    /// Answer questions on the flow store there, such as 127.0.0.1:9465, to those whom the cluster lets [default: off]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub query_listen: Option<SocketAddr>,
    /// Upload the flow store's files into this bucket, such as s3://bucket/prefix [default: none]
    #[arg(long, value_name = "URL")]
    pub flow_bucket: Option<String>,
    /// Send flows as log records to this receiver of OTLP over HTTP, such as http://collector:4318 [default: none]
    #[arg(long, value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Tell addresses outside the cluster as hashes, keyed with the secret in this file, and no DNS names for them
    #[arg(long, value_name = "FILE")]
    pub hash_key: Option<PathBuf>,
    /// Tell no DNS names in flows
    #[arg(long)]
    pub omit_dns_names: bool,
    /// Tell neither ids nor command names of processes in flows
    #[arg(long)]
    pub omit_processes: bool,
    /// cgroup v2 directory to attach to [default: the node's cgroup v2 mount, found by itself]
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,
    /// Size of the ring between kernel and agent in bytes, a power of two [default: 8388608]
    #[arg(long, value_name = "BYTES")]
    pub ring_bytes: Option<u32>,
    /// Directory in a BPF file system, such as /sys/fs/bpf/netaudit, in which the programs and what they recorded outlive the
    /// agent, until `netaudit uninstall` [default: none, everything ends with the agent]
    #[arg(long, value_name = "DIR")]
    pub pin_directory: Option<PathBuf>,
    /// Directory in which what is known of rules' use outlives the agent and the node's restarts [default: none, it ends with the
    /// agent]
    #[arg(long, value_name = "DIR")]
    pub state_directory: Option<PathBuf>,
    /// Read the DNS answers that pods get, so that addresses outside the cluster have names. Every packet that reaches a
    /// socket pays for it
    #[arg(long)]
    pub dns_names: bool,
    /// A file of accepted flows: known exceptions, each with an owner and an end; read again when it changes
    #[arg(long, value_name = "FILE")]
    pub accepted_flows: Option<PathBuf>,
    /// Write Kubernetes Events on the pods of findings; needs the right to
    #[arg(long)]
    pub events: bool,
    /// Write findings into Report objects of openreports.io, one a node and namespace; needs the right to
    #[arg(long)]
    pub reports: bool,
    /// How long a rule must be watched before it can be called unused, such as 7d or 36h [default: 7d]
    #[arg(long, value_name = "DURATION")]
    pub unused_after: Option<String>,
}

/// The file, as written by people.
#[derive(Deserialize, Default, Debug)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct File {
    node: Option<String>,
    listen: Option<SocketAddr>,
    manifests: Option<PathBuf>,
    kubeconfig: Option<PathBuf>,
    flow_log: Option<String>,
    cgroup_root: Option<PathBuf>,
    ring_bytes: Option<u32>,
    pin_directory: Option<PathBuf>,
    state_directory: Option<PathBuf>,
    fold_keys: Option<u32>,
    dns_names: Option<bool>,
    dns_servers: Option<Vec<String>>,
    drain_interval: Option<String>,
    look_every: Option<String>,
    discover_every: Option<String>,
    accepted_flows: Option<PathBuf>,
    events: Option<bool>,
    reports: Option<bool>,
    reports_every: Option<String>,
    unused_after: Option<String>,
    unused_coverage: Option<f64>,
    violation_series: Option<usize>,
    violation_series_per_namespace: Option<usize>,
    violation_series_lifetime: Option<String>,
    rule_series: Option<usize>,
    flow_store: Option<PathBuf>,
    query_listen: Option<SocketAddr>,
    flow_store_age: Option<String>,
    flow_store_bytes: Option<u64>,
    flow_bucket: Option<String>,
    flow_bucket_endpoint: Option<String>,
    flow_bucket_region: Option<String>,
    flow_bucket_virtual_hosted: Option<bool>,
    otlp_endpoint: Option<String>,
    otlp_headers: Option<PathBuf>,
    otlp_flows: Option<OtlpFlows>,
    hash_key: Option<PathBuf>,
    omit_dns_names: Option<bool>,
    omit_processes: Option<bool>,
}

/// Which flows are sent by OTLP.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OtlpFlows {
    /// All.
    #[default]
    All,
    /// Those that have a finding.
    Findings,
}

/// Where Kubernetes objects come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Files below a directory.
    Manifests(PathBuf),
    /// The API server: by this kubeconfig, or in-cluster and `$KUBECONFIG` as usual.
    Api(Option<PathBuf>),
}

/// The validated configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// The node's name.
    pub node: String,
    /// Where HTTP is served.
    pub listen: SocketAddr,
    /// Where objects come from.
    pub source: Source,
    /// `-` or a path.
    pub flow_log: Option<String>,
    /// Where flows are kept, if they are.
    pub flow_store: Option<PathBuf>,
    /// For how long.
    pub flow_store_age: Duration,
    /// In how many bytes at most.
    pub flow_store_bytes: u64,
    /// Where questions on it are answered.
    pub query_listen: Option<SocketAddr>,
    /// The bucket that files of flows are uploaded to, if they are: its URL.
    pub flow_bucket: Option<String>,
    /// How it is reached.
    pub flow_bucket_access: Access,
    /// Where flows are sent as log records, if they are.
    pub otlp_endpoint: Option<String>,
    /// The file of the headers that are sent with them.
    pub otlp_headers: Option<PathBuf>,
    /// Which of them.
    pub otlp_flows: OtlpFlows,
    /// The file of the secret that addresses outside the cluster are hashed with, if they are.
    pub hash_key: Option<PathBuf>,
    /// Whether flows are told without names that DNS gave.
    pub omit_dns_names: bool,
    /// Whether flows are told without their processes.
    pub omit_processes: bool,
    /// cgroup v2 directory to attach to, if not the mount's root.
    pub cgroup_root: Option<PathBuf>,
    /// Ring size in bytes.
    pub ring_bytes: u32,
    /// Where programs and records outlive the agent, if they do.
    pub pin_directory: Option<PathBuf>,
    /// Where what is known of rules' use outlives the agent, if it does.
    pub state_directory: Option<PathBuf>,
    /// How many keys the kernel folds flows by for which the ring has no room.
    pub fold_keys: u32,
    /// Whether DNS answers are read.
    pub dns_names: bool,
    /// Whose answers count for policies that name domains.
    pub dns_servers: DnsServers,
    /// How often the ring is drained.
    pub drain_interval: Duration,
    /// How often all open sockets are looked through.
    pub look_every: Duration,
    /// How often kinds that the API server does not know are looked for again.
    pub discover_every: Duration,
    /// Where known exceptions are declared.
    pub accepted_flows: Option<PathBuf>,
    /// Whether Events are written.
    pub events: bool,
    /// Whether Reports are written.
    pub reports: bool,
    /// How often a Report may be written again.
    pub reports_every: Duration,
    /// How long a rule must be watched before it can be unused.
    pub unused_after: Duration,
    /// The coverage that this takes, 0 to 1.
    pub unused_coverage: f64,
    /// Series of violations with full labels.
    pub violation_series: usize,
    /// The same of one source namespace.
    pub violation_series_per_namespace: usize,
    /// How long a series of violations stays after its last one.
    pub violation_series_lifetime: Duration,
    /// Rules that have series.
    pub rule_series: usize,
}

/// The validated configuration in the file's form, for `--print-config`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Printed<'a> {
    node: &'a str,
    listen: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    manifests: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kubeconfig: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_log: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup_root: Option<&'a Path>,
    ring_bytes: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pin_directory: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_directory: Option<&'a Path>,
    fold_keys: u32,
    dns_names: bool,
    dns_servers: Vec<String>,
    drain_interval: String,
    look_every: String,
    discover_every: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted_flows: Option<&'a Path>,
    events: bool,
    reports: bool,
    reports_every: String,
    unused_after: String,
    unused_coverage: f64,
    violation_series: usize,
    violation_series_per_namespace: usize,
    violation_series_lifetime: String,
    rule_series: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_store: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    query_listen: Option<SocketAddr>,
    flow_store_age: String,
    flow_store_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_bucket: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_bucket_endpoint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_bucket_region: Option<&'a str>,
    flow_bucket_virtual_hosted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    otlp_endpoint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    otlp_headers: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    otlp_flows: Option<OtlpFlows>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash_key: Option<&'a Path>,
    omit_dns_names: bool,
    omit_processes: bool,
}

impl Config {
    /// Reads the file that `flags` name, if any, puts the flags over it, and checks every value.
    ///
    /// Errors name the file, the key, the value and what would be right.
    pub fn load(flags: &Flags, default_node: impl FnOnce() -> String) -> anyhow::Result<Self> {
        let file = match &flags.config {
            None => File::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
                parse(&text).with_context(|| format!("in the configuration file {}", path.display()))?
            }
        };
        Self::merge(flags, file, default_node)
    }

    fn merge(flags: &Flags, file: File, default_node: impl FnOnce() -> String) -> anyhow::Result<Self> {
        let source = match (&flags.manifests, &flags.kubeconfig, file.manifests, file.kubeconfig) {
            (Some(dir), _, _, _) => Source::Manifests(dir.clone()),
            (_, Some(path), _, _) => Source::Api(Some(path.clone())),
            (_, _, Some(_), Some(_)) => {
                bail!("manifests and kubeconfig are both set in the configuration file: keep one of them")
            }
            (_, _, Some(dir), None) => Source::Manifests(dir),
            (_, _, None, kubeconfig) => Source::Api(kubeconfig),
        };
        let ring_bytes = flags.ring_bytes.or(file.ring_bytes).unwrap_or(8 << 20);
        if !ring_bytes.is_power_of_two() || ring_bytes < LEAST_RING {
            bail!(
                "ringBytes is {ring_bytes}: it must be a power of two of at least {LEAST_RING}, such as 8388608"
            );
        }
        let fold_keys = file.fold_keys.unwrap_or(16_384);
        if !FOLD_KEYS.contains(&fold_keys) {
            bail!("foldKeys is {fold_keys}: it must be from {} to {}", FOLD_KEYS.start(), FOLD_KEYS.end());
        }
        let drain_interval =
            duration_or("drainInterval", file.drain_interval.as_deref(), Duration::from_millis(20))?;
        if !(Duration::from_millis(1)..=Duration::from_secs(1)).contains(&drain_interval) {
            bail!("drainInterval is {drain_interval:?}: it must be from 1ms to 1s");
        }
        // A look goes through every file that is open on the node.
        let look_every = duration_or("lookEvery", file.look_every.as_deref(), Duration::from_secs(30))?;
        if look_every < Duration::from_secs(1) {
            bail!("lookEvery is {look_every:?}: it must be at least 1s");
        }
        // Every agent of a cluster asks, for each kind of policy that is not installed: often is too often.
        let discover_every =
            duration_or("discoverEvery", file.discover_every.as_deref(), Duration::from_secs(300))?;
        if discover_every < Duration::from_secs(1) {
            bail!("discoverEvery is {discover_every:?}: it must be at least 1s");
        }
        let events = flags.events || file.events.unwrap_or(false);
        let reports = flags.reports || file.reports.unwrap_or(false);
        if let (Source::Manifests(_), Some(key)) =
            (&source, events.then_some("events").or(reports.then_some("reports")))
        {
            bail!(
                "{key} are objects of an API server, and there is none where objects are read from manifests: leave out {key} or manifests"
            );
        }
        // Every agent of a cluster writes, and each write of a report is a whole one.
        let reports_every =
            duration_or("reportsEvery", file.reports_every.as_deref(), Duration::from_secs(30))?;
        if reports_every < Duration::from_secs(1) {
            bail!("reportsEvery is {reports_every:?}: it must be at least 1s");
        }
        let unused_after = flags.unused_after.as_deref().or(file.unused_after.as_deref());
        let unused_coverage = file.unused_coverage.unwrap_or(0.999);
        if !(0.0..=1.0).contains(&unused_coverage) {
            bail!("unusedCoverage is {unused_coverage}: it must be from 0 to 1");
        }
        let violation_series = file.violation_series.unwrap_or(10_000);
        let violation_series_per_namespace = file.violation_series_per_namespace.unwrap_or(1_000);
        if violation_series == 0 || violation_series_per_namespace == 0 {
            bail!("violationSeries and violationSeriesPerNamespace must be at least 1");
        }
        let flow_store_bytes = file.flow_store_bytes.unwrap_or(1 << 30);
        if flow_store_bytes < LEAST_STORE {
            bail!("flowStoreBytes is {flow_store_bytes}: it must be at least {LEAST_STORE}");
        }
        let flow_store = flags.flow_store.clone().or(file.flow_store);
        let flow_bucket = flags.flow_bucket.clone().or(file.flow_bucket);
        if let Some(url) = &flow_bucket {
            bucket::parse_url(url).context("flowBucket")?;
            if flow_store.is_none() {
                bail!(
                    "flowBucket is {url}, and there is no flowStore whose files could be uploaded: name its directory"
                );
            }
        }
        let query_listen = flags.query_listen.or(file.query_listen);
        if query_listen.is_some() && flow_store.is_none() {
            bail!(
                "queryListen answers from the flow store, and there is none: name its directory with --flow-store"
            );
        }
        if let (Some(address), Source::Manifests(_)) = (query_listen, &source) {
            bail!(
                "queryListen is {address}, and who may ask needs the API server, which nobody asks where objects are read from manifests: \
                 leave out queryListen or manifests"
            );
        }
        let otlp_endpoint = flags.otlp_endpoint.clone().or(file.otlp_endpoint);
        if otlp_endpoint.is_none() && (file.otlp_headers.is_some() || file.otlp_flows.is_some()) {
            bail!(
                "otlpHeaders and otlpFlows are about flows that are sent by OTLP: name the receiver as otlpEndpoint"
            );
        }
        Ok(Self {
            node: flags.node.clone().or(file.node).unwrap_or_else(default_node),
            listen: flags.listen.or(file.listen).unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 9464))),
            source,
            flow_log: flags.flow_log.clone().or(file.flow_log),
            cgroup_root: flags.cgroup_root.clone().or(file.cgroup_root),
            ring_bytes,
            pin_directory: flags.pin_directory.clone().or(file.pin_directory),
            state_directory: flags.state_directory.clone().or(file.state_directory),
            fold_keys,
            dns_names: flags.dns_names || file.dns_names.unwrap_or(false),
            dns_servers: dns_servers(file.dns_servers)?,
            drain_interval,
            look_every,
            discover_every,
            accepted_flows: flags.accepted_flows.clone().or(file.accepted_flows),
            events,
            reports,
            reports_every,
            unused_after: duration_or("unusedAfter", unused_after, Duration::from_secs(7 * 24 * 3600))?,
            unused_coverage,
            violation_series,
            violation_series_per_namespace,
            rule_series: file.rule_series.unwrap_or(5_000),
            flow_store,
            query_listen,
            flow_store_age: duration_or(
                "flowStoreAge",
                file.flow_store_age.as_deref(),
                Duration::from_secs(7 * 24 * 3600),
            )?,
            flow_store_bytes,
            flow_bucket,
            flow_bucket_access: Access {
                endpoint: file.flow_bucket_endpoint,
                region: file.flow_bucket_region,
                virtual_hosted: file.flow_bucket_virtual_hosted.unwrap_or(false),
            },
            otlp_endpoint,
            otlp_headers: file.otlp_headers,
            otlp_flows: file.otlp_flows.unwrap_or_default(),
            hash_key: flags.hash_key.clone().or(file.hash_key),
            omit_dns_names: flags.omit_dns_names || file.omit_dns_names.unwrap_or(false),
            omit_processes: flags.omit_processes || file.omit_processes.unwrap_or(false),
            violation_series_lifetime: duration_or(
                "violationSeriesLifetime",
                file.violation_series_lifetime.as_deref(),
                Duration::from_secs(24 * 3600),
            )?,
        })
    }

    /// The configuration as YAML, in the form that the file has.
    pub fn to_yaml(&self) -> anyhow::Result<String> {
        let (manifests, kubeconfig) = match &self.source {
            Source::Manifests(dir) => (Some(dir.as_path()), None),
            Source::Api(path) => (None, path.as_deref()),
        };
        Ok(serde_saphyr::to_string(&Printed {
            node: &self.node,
            listen: self.listen,
            manifests,
            kubeconfig,
            flow_log: self.flow_log.as_deref(),
            cgroup_root: self.cgroup_root.as_deref(),
            ring_bytes: self.ring_bytes,
            pin_directory: self.pin_directory.as_deref(),
            state_directory: self.state_directory.as_deref(),
            fold_keys: self.fold_keys,
            dns_names: self.dns_names,
            dns_servers: {
                let DnsServers { namespaces, addresses } = &self.dns_servers;
                let namespaces = namespaces.iter().map(ToString::to_string);
                namespaces.chain(addresses.iter().map(ToString::to_string)).collect()
            },
            drain_interval: format!("{:#}", jiff::SignedDuration::try_from(self.drain_interval)?),
            look_every: format!("{:#}", jiff::SignedDuration::try_from(self.look_every)?),
            discover_every: format!("{:#}", jiff::SignedDuration::try_from(self.discover_every)?),
            accepted_flows: self.accepted_flows.as_deref(),
            events: self.events,
            reports: self.reports,
            reports_every: format!("{:#}", jiff::SignedDuration::try_from(self.reports_every)?),
            unused_after: format!("{:#}", jiff::SignedDuration::try_from(self.unused_after)?),
            unused_coverage: self.unused_coverage,
            violation_series: self.violation_series,
            violation_series_per_namespace: self.violation_series_per_namespace,
            rule_series: self.rule_series,
            flow_store: self.flow_store.as_deref(),
            query_listen: self.query_listen,
            flow_store_age: format!("{:#}", jiff::SignedDuration::try_from(self.flow_store_age)?),
            flow_store_bytes: self.flow_store_bytes,
            flow_bucket: self.flow_bucket.as_deref(),
            flow_bucket_endpoint: self.flow_bucket_access.endpoint.as_deref(),
            flow_bucket_region: self.flow_bucket_access.region.as_deref(),
            flow_bucket_virtual_hosted: self.flow_bucket_access.virtual_hosted,
            otlp_endpoint: self.otlp_endpoint.as_deref(),
            otlp_headers: self.otlp_headers.as_deref(),
            otlp_flows: self.otlp_endpoint.is_some().then_some(self.otlp_flows),
            hash_key: self.hash_key.as_deref(),
            omit_dns_names: self.omit_dns_names,
            omit_processes: self.omit_processes,
            violation_series_lifetime: format!(
                "{:#}",
                jiff::SignedDuration::try_from(self.violation_series_lifetime)?
            ),
        })?)
    }
}

/// Addresses, and what is none as namespaces.
fn dns_servers(named: Option<Vec<String>>) -> anyhow::Result<DnsServers> {
    let mut servers = DnsServers::default();
    for name in named.unwrap_or_else(|| vec!["kube-system".to_owned()]) {
        if let Ok(ip) = name.parse::<IpAddr>() {
            servers.addresses.push(ip.to_canonical());
        } else if !name.is_empty() && name.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-') {
            servers.namespaces.push(name.into());
        } else {
            bail!(
                "dnsServers has {name:?}: it must be a list of namespaces and addresses, such as [kube-system, 10.0.0.2]"
            );
        }
    }
    Ok(servers)
}

fn parse(text: &str) -> anyhow::Result<File> {
    // An empty file, or one of comments only, says nothing and is no error.
    let is_comment = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    if text.lines().all(is_comment) {
        return Ok(File::default());
    }
    Ok(serde_saphyr::from_str(text)?)
}

fn duration_or(key: &str, text: Option<&str>, default: Duration) -> anyhow::Result<Duration> {
    text.map_or(Ok(default), |text| duration(key, text))
}

/// A duration as people write it; `key` is what it is the value of, for the error.
pub(crate) fn duration(key: &str, text: &str) -> anyhow::Result<Duration> {
    model::duration(text)
        .with_context(|| format!("{key} is {text:?}: it must be a duration such as 20ms, 36h or 7d"))
}

#[cfg(test)]
mod tests;
