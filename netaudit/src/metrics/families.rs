//! Which families the agent exports, and where each number comes from.

use std::time::{Duration, SystemTime};

use prometheus_client::registry::Unit;

use super::{
    enforcement::enforcement,
    family::{Family, Labels, Value},
    flow_store::{FlowBucketState, FlowStoreState, flow_bucket, flow_store},
    published::{EventsState, ReportsState, published},
};
use crate::{
    audit::{
        Accepted, Auditor, Missing, NameCounts, Names, RawSocketKey, RuleUsage, UnenforcedCause,
        ViolationCount, ViolationKey,
    },
    cluster::Kind,
    kernel::{DnsCount, DropCount, Feature, Lookups, Loss, RecordCount},
    model::{Direction, Timestamp},
};

/// How the source of one kind of objects is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WatchState {
    /// The API kind.
    pub kind: &'static str,
    /// Whether it has been listed completely once.
    pub ready: bool,
    /// Faults so far.
    pub errors: u64,
    /// The fault that it is in right now.
    pub failing: Option<String>,
}

/// What a scrape reads.
pub struct AgentState<'a> {
    /// Flows, rules, violations, objects.
    pub auditor: &'a Auditor,
    /// Losses by stage and cause, the kernel's and ours.
    pub losses: &'a [Loss],
    /// Optional hooks.
    pub features: &'a [Feature],
    /// Packets that the node's filter dropped.
    pub drops: &'a [DropCount],
    /// Packets from port 53 that reached a socket.
    pub dns: &'a [DnsCount],
    /// Questions to the node's connection tracking, where it can be asked.
    pub lookups: Option<Lookups>,
    /// Sources of objects.
    pub watches: &'a [WatchState],
    /// Writes of usage that failed, and files of it that could not be read.
    pub usage_faults: [(&'static str, u64); 3],
    /// What there is of the flow store, where there is one.
    pub flow_store: Option<FlowStoreState>,
    /// What became of its files that are to be in a bucket, where there is one.
    pub flow_bucket: Option<FlowBucketState>,
    /// What became of events, where they are asked for.
    pub events: Option<EventsState>,
    /// What became of reports, where they are asked for.
    pub reports: Option<ReportsState>,
    /// Whether the file of accepted flows says what it must, where there is one.
    pub accepted_valid: Option<bool>,
    /// Kernel records taken from the ring.
    pub records: u64,
    /// What became of kernel records.
    pub record_counts: &'a [RecordCount],
    /// When the agent started.
    pub started: Timestamp,
    /// Now.
    pub now: Timestamp,
    /// Nanoseconds that make today's wall time of the times above, which are on a line that never steps.
    pub correction: i64,
}

impl AgentState<'_> {
    /// A time as Prometheus wants it: seconds of today's wall clock.
    pub(super) fn wall_seconds(&self, time: Timestamp) -> f64 {
        Timestamp(time.0.saturating_add(self.correction)).as_seconds()
    }

    /// The same as exemplars want it.
    fn wall_time(&self, time: Timestamp) -> SystemTime {
        let nanoseconds = u64::try_from(time.0.saturating_add(self.correction)).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds)
    }
}

pub(super) fn families(state: &AgentState<'_>) -> Vec<Family> {
    let mut families = vec![build_info(), start(state), clock(state)];
    families.extend(flows(state));
    families.extend(violations(state));
    families.extend(state.flow_store.into_iter().flat_map(flow_store));
    families.extend(state.flow_bucket.into_iter().flat_map(flow_bucket));
    families.extend(accepted(state));
    families.extend(enforcement(state));
    families.extend(rules(state));
    families.extend(open(state));
    families.extend(published(state));
    families.extend(health(state));
    families.extend(state.auditor.names().into_iter().flat_map(|names| dns(names, state.dns)));
    families
}

fn build_info() -> Family {
    Family::gauge("netaudit_build_info", "The version of this agent; always 1")
        .with(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1.0)
}

fn start(state: &AgentState<'_>) -> Family {
    Family::gauge("netaudit_start_timestamp", "When this agent started, in seconds since the epoch")
        .unit(Unit::Seconds)
        .with(vec![], state.wall_seconds(state.started))
}

fn clock(state: &AgentState<'_>) -> Family {
    Family::gauge(
        "netaudit_clock_timestamp",
        "The wall clock of this agent's node, by which all times in these metrics are told",
    )
    .unit(Unit::Seconds)
    .with(vec![], state.wall_seconds(state.now))
}

fn flows(state: &AgentState<'_>) -> [Family; 3] {
    let counts = state.auditor.counts();
    [
        Family::counter(
            "netaudit_flows",
            "Flows seen, by what the policies say of them and what became of them",
        )
        .with_all(counts.flows().map(|(key, count)| {
            let labels = vec![
                ("direction", key.direction.to_string()),
                ("protocol", key.protocol.to_string()),
                ("verdict", key.verdict.to_owned()),
                ("reach", key.reach.to_string()),
            ];
            (labels, count as f64)
        })),
        Family::counter("netaudit_unknown_flows", "Flows without a verdict, by what was missing").with_all(
            counts.unknown().map(|(reason, count)| (vec![("reason", reason.to_owned())], count as f64)),
        ),
        Family::histogram(
            "netaudit_connect_duration",
            "How long the TCP connections that pods made took to be made, from the call to the answer",
        )
        .unit(Unit::Seconds)
        .with_values(counts.connects().map(|(destination, times)| {
            (vec![("destination", destination.to_owned())], Value::Ranges(times.clone()))
        })),
    ]
}

fn violations(state: &AgentState<'_>) -> [Family; 6] {
    let violations = state.auditor.violations();
    let series = violations.series();
    let suspected = state.auditor.suspected_blocks().series();
    // What came while no agent ran is told by this one's start at the earliest: an alert on the last minutes must not miss it.
    let last = |count: &ViolationCount| state.wall_seconds(count.last.max(state.started));
    let total = |count: &ViolationCount| {
        let by = vec![("flow_id", count.flow.to_string())];
        Value::Named { total: count.total as f64, by, at: state.wall_time(count.last) }
    };
    [
        Family::counter("netaudit_violations", "Denied flows, whatever became of them")
            .with_values(series.iter().map(|(key, count)| (violation_labels(key), total(count)))),
        Family::gauge(
            "netaudit_violation_last_timestamp",
            "When the last denied flow of this series ended or, of an older connection, was last found open, or this agent started if that was later; alert on this one, since a counter born at 1 has no increase",
        )
        .unit(Unit::Seconds)
        .with_all(series.iter().map(|(key, count)| (violation_labels(key), last(count)))),
        Family::counter(
            "netaudit_violations_folded",
            "Denied flows that were counted with folded labels, since the budget of series is spent",
        )
        .with(vec![], violations.folded() as f64),
        Family::counter("netaudit_suspected_blocks", "Allowed flows that something on their way seems to have stopped")
            .with_values(suspected.iter().map(|(key, count)| (ends(key), total(count)))),
        Family::gauge("netaudit_suspected_block_last_timestamp", "Time of the last suspected block of this series")
            .unit(Unit::Seconds)
            .with_all(suspected.iter().map(|(key, count)| (ends(key), last(count)))),
        Family::counter(
            "netaudit_suspected_blocks_folded",
            "Suspected blocks that were counted with folded labels, since their budget of series is spent",
        )
        .with(vec![], state.auditor.suspected_blocks().folded() as f64),
    ]
}

/// Exceptions, and those that are over: whoever stands for one wants to know.
fn accepted(state: &AgentState<'_>) -> [Family; 3] {
    let accepted = &state.auditor.accepted().0;
    let labels = |it: &Accepted| vec![("name", it.name.to_string()), ("owner", it.owner.to_string())];
    let now = Timestamp(state.now.0.saturating_add(state.correction));
    [
        Family::gauge("netaudit_accepted_expires_timestamp", "Until when an exception accepts violations")
            .unit(Unit::Seconds)
            .with_all(accepted.iter().map(|it| (labels(it), it.until.as_seconds()))),
        Family::gauge(
            "netaudit_accepted_expired",
            "Whether an exception is over: what it accepted counts in full again",
        )
        .with_all(accepted.iter().map(|it| (labels(it), f64::from(u8::from(it.until <= now))))),
        Family::gauge(
            "netaudit_accepted_file_valid",
            "Whether the file of accepted flows could be read and says what it must; where it is 0, what it said before holds. Absent without such a file",
        )
        .with_all(state.accepted_valid.map(|valid| (vec![], f64::from(u8::from(valid))))),
    ]
}

fn violation_labels(key: &ViolationKey) -> Labels {
    let mut labels = ends(key);
    labels.push(("finding", key.finding.to_string()));
    labels.push(("policy", key.policy.as_ref().map(ToString::to_string).unwrap_or_default()));
    labels.push(("cause", key.cause.map_or("", UnenforcedCause::as_str).to_owned()));
    labels.push(("accepted", key.accepted.as_deref().unwrap_or_default().to_owned()));
    labels
}

fn ends(key: &ViolationKey) -> Labels {
    vec![
        ("direction", key.direction.to_string()),
        ("source_namespace", key.source_namespace.to_string()),
        ("source_workload", key.source_workload.to_string()),
        ("destination_namespace", key.destination_namespace.to_string()),
        ("destination_workload", key.destination_workload.to_string()),
        ("protocol", key.protocol.to_string()),
        ("port", key.port.map_or_else(|| crate::audit::OTHER.to_owned(), |port| port.to_string())),
    ]
}

fn rule_labels(usage: &RuleUsage) -> Labels {
    let rule = &usage.rule;
    vec![
        ("kind", rule.policy.kind.to_owned()),
        ("namespace", rule.policy.namespace.to_string()),
        ("networkpolicy", rule.policy.name.to_string()),
        ("direction", rule.direction.to_string()),
        ("rule", format!("{:016x}", rule.hash)),
    ]
}

fn rules(state: &AgentState<'_>) -> Vec<Family> {
    let mut rules = state.auditor.usage().current();
    rules.retain(|usage| usage.has_series);
    let each = |value: fn(&RuleUsage) -> Option<f64>| {
        rules.iter().filter_map(move |usage| value(usage).map(|value| (rule_labels(usage), value)))
    };
    let times = |time: fn(&RuleUsage) -> Option<Timestamp>| {
        let sample = move |usage: &&RuleUsage| Some((rule_labels(usage), state.wall_seconds(time(usage)?)));
        rules.iter().filter_map(sample)
    };
    let mut families = vec![
        Family::gauge(
            "netaudit_rule_info",
            "Where a rule stands in its policy today; always 1. Join on the other labels: `rule` is a hash of content",
        )
        .with_all(rules.iter().map(|usage| {
            let mut labels = rule_labels(usage);
            labels.push(("path", usage.rule.path()));
            (labels, 1.0)
        })),
        Family::counter("netaudit_rule_matches", "Flows that this rule allowed, alone or with others")
            .with_all(each(|usage| Some(usage.matches as f64))),
        Family::counter("netaudit_rule_sole_matches", "Flows that this rule alone allowed")
            .with_all(each(|usage| Some(usage.sole_matches as f64))),
        Family::gauge("netaudit_rule_last_match_timestamp", "Time of the last flow that this rule allowed, or when a connection that it allows was last found open")
            .unit(Unit::Seconds)
            .with_all(times(|usage| usage.last)),
        Family::gauge("netaudit_rule_observed_since_timestamp", "Since when this agent watches this rule")
            .unit(Unit::Seconds)
            .with_all(times(|usage| Some(usage.observed_since))),
        Family::gauge(
            "netaudit_rule_coverage_ratio",
            "Observed by existing pod-seconds of the pods that this rule's policy selects, since it is watched",
        )
        .with_all(rules.iter().map(|usage| (rule_labels(usage), usage.coverage(state.now)))),
    ];
    families.push(
        Family::gauge(
            "netaudit_rules_without_series",
            "Watched rules that are missing in these metrics, since the budget of series is spent; `netaudit usage` has them all",
        )
        .with(vec![], state.auditor.usage().without_series() as f64),
    );
    // Only who sees everything can say that something is unused.
    if state.auditor.is_only_agent() {
        families.extend(unused(state, &rules));
    }
    families
}

fn unused(state: &AgentState<'_>, rules: &[&RuleUsage]) -> [Family; 2] {
    let needs = state.auditor.evidence();
    let mut unused = Family::gauge(
        "netaudit_rule_unused",
        "1 where the evidence suffices to call this rule unused, 0 where it is used, absent where evidence is missing",
    );
    let mut evidence = Family::gauge(
        "netaudit_rule_evidence",
        "1 for what is missing to call this rule unused or not: window, coverage, loss, verdicts, period or sensor",
    );
    for usage in rules {
        let missing = match state.auditor.usage().unused(usage, state.now, &needs) {
            Ok(is_unused) => {
                unused = unused.with(rule_labels(usage), f64::from(u8::from(is_unused)));
                None
            }
            Err(missing) => Some(missing),
        };
        for kind in Missing::ALL {
            let mut labels = rule_labels(usage);
            labels.push(("missing", kind.as_str().to_owned()));
            evidence = evidence.with(labels, f64::from(u8::from(missing == Some(kind))));
        }
    }
    [unused, evidence]
}

fn open(state: &AgentState<'_>) -> [Family; 4] {
    let open = state.auditor.open_connections();
    let judged = |(direction, verdict, count): (Direction, &'static str, u64)| {
        let labels = vec![("direction", direction.to_string()), ("verdict", verdict.to_owned())];
        (labels, count as f64)
    };
    [
        Family::gauge(
            "netaudit_open_connections",
            "Connections that were open at the latest look, by what the policies say of them now",
        )
        .with_all(open.counts().judged().map(judged)),
        Family::gauge(
            "netaudit_open_connections_unjudged",
            "Connections that were open at the latest look and are not judged, by what is not known",
        )
        .with_all(
            open.counts()
                .unjudged()
                .map(|(reason, count)| (vec![("reason", reason.to_owned())], count as f64)),
        ),
        Family::counter(
            "netaudit_open_before_start_connections",
            "Connections that were open before the agent started, each once; they are not among the flows",
        )
        .with_all(open.found().judged().map(judged)),
        Family::gauge(
            "netaudit_udp_blind_readers",
            "UDP sockets at the latest look whose program reads without asking who sent: who uses them is not seen",
        )
        .with(vec![], open.blind_readers() as f64),
    ]
}

fn health(state: &AgentState<'_>) -> Vec<Family> {
    let (held, pending) = state.auditor.waiting();
    let cluster = state.auditor.cluster();
    vec![
        Family::counter("netaudit_records", "Kernel records taken from the ring")
            .with(vec![], state.records as f64),
        Family::counter("netaudit_records_made", "Kernel records made, whatever became of them")
            .with_all(by_kind(state.record_counts, |of| of.made)),
        Family::counter(
            "netaudit_records_folded",
            "Kernel records that found no room in the ring and were folded into flows that stand for several",
        )
        .with_all(by_kind(state.record_counts, |of| of.folded)),
        Family::counter("netaudit_records_lost", "Records and flows lost, by where and why")
            .with_all(losses(state.losses)),
        Family::gauge(
            "netaudit_waiting_records",
            "Records that wait: for somebody to become known, or for an outcome",
        )
        .with(vec![("state", "held".to_owned())], held as f64)
        .with(vec![("state", "pending".to_owned())], pending as f64),
        Family::counter(
            "netaudit_filter_drops",
            "Packets that this node's filter dropped and that attempt something, by what became of them",
        )
        .with_all(
            state.drops.iter().map(|drops| (vec![("told", drops.told.to_owned())], drops.count as f64)),
        ),
        Family::counter(
            "netaudit_conntrack_lookups",
            "Questions to the node's connection tracking where a flow to a Service went, by how they ended",
        )
        .with_all(state.lookups.iter().flat_map(|lookups| {
            [("found", lookups.found), ("unknown", lookups.unknown), ("failed", lookups.failed)]
                .map(|(result, count)| (vec![("result", result.to_owned())], count as f64))
        })),
        Family::counter(
            "netaudit_raw_sockets",
            "Sockets that make their own packets, by who made them: once a process, and again while it goes on",
        )
        .with_all(state.auditor.raw_sockets().series().map(|(key, count, _)| (raw_labels(key), count as f64))),
        Family::gauge("netaudit_raw_socket_last_timestamp", "Time of the last raw socket of this series")
            .unit(Unit::Seconds)
            .with_all(
                state
                    .auditor
                    .raw_sockets()
                    .series()
                    .map(|(key, _, last)| (raw_labels(key), state.wall_seconds(last))),
            ),
        Family::counter(
            "netaudit_usage_store_faults",
            "Faults of the state directory: writes that failed, files that could not be read and were set aside, uploads that failed",
        )
        .with_all(
            state.usage_faults.iter().map(|(fault, count)| (vec![("fault", (*fault).to_owned())], *count as f64)),
        ),
        Family::gauge("netaudit_hook_attached", "Whether an optional kernel hook is attached").with_all(
            state.features.iter().map(|feature| {
                (vec![("hook", feature.name.to_owned())], f64::from(u8::from(feature.absent.is_none())))
            }),
        ),
        Family::gauge("netaudit_objects", "Kubernetes objects in the index").with_all(
            Kind::ALL
                .into_iter()
                .map(|kind| (vec![("kind", kind.as_str().to_owned())], cluster.object_count(kind) as f64)),
        ),
        Family::gauge(
            "netaudit_invalid_objects",
            "Objects that could not be read, or of which a part is invalid",
        )
        .with(vec![], (cluster.warnings().count() + cluster.broken().count()) as f64),
        Family::gauge("netaudit_watch_ready", "Whether all objects of a kind have been listed").with_all(
            state
                .watches
                .iter()
                .map(|watch| (vec![("kind", watch.kind.to_owned())], f64::from(u8::from(watch.ready)))),
        ),
        Family::counter("netaudit_watch_errors", "Faults of a kind's source of objects").with_all(
            state.watches.iter().map(|watch| (vec![("kind", watch.kind.to_owned())], watch.errors as f64)),
        ),
    ]
}

/// Only where DNS answers are seen.
fn dns(names: &Names, packets: &[DnsCount]) -> [Family; 5] {
    let NameCounts { named, without_address, malformed, not_a_host, truncated, evicted, expired } =
        *names.counts();
    let label = |name: &'static str, value: &str| vec![(name, value.to_owned())];
    let (addresses, known) = names.len();
    let read = [
        ("named", named),
        ("no-address", without_address),
        ("malformed", malformed),
        ("not-a-host", not_a_host),
    ];
    // What was recorded comes out as one of those above.
    let passed_over = packets.iter().filter(|packet| packet.became != "recorded");
    let passed_over = passed_over.map(|packet| (packet.became, packet.count));
    [
        Family::counter(
            "netaudit_dns_answers",
            "Packets from port 53 that reached a socket, by what became of them",
        )
        .with_all(
            read.into_iter()
                .chain(passed_over)
                .map(|(became, count)| (label("became", became), count as f64)),
        ),
        Family::counter(
            "netaudit_dns_answers_truncated",
            "DNS answers that were read and said that they are not whole, or were too long to be read whole",
        )
        .with(vec![], truncated as f64),
        Family::counter(
            "netaudit_dns_names_forgotten",
            "Names that were forgotten, for want of room or after their time",
        )
        .with(label("cause", "room"), evicted as f64)
        .with(label("cause", "time"), expired as f64),
        Family::gauge("netaudit_dns_addresses", "Addresses that have names, each once a network namespace")
            .with(vec![], addresses as f64),
        Family::gauge("netaudit_dns_names", "Names of these addresses").with(vec![], known as f64),
    ]
}

fn raw_labels(key: &RawSocketKey) -> Labels {
    vec![
        ("kind", key.kind.to_string()),
        ("namespace", key.namespace.to_string()),
        ("workload", key.workload.to_string()),
    ]
}

/// A count by kind of record; CPUs are added up.
fn by_kind(counts: &[RecordCount], count: impl Fn(&RecordCount) -> u64) -> Vec<(Labels, f64)> {
    let mut sums: std::collections::BTreeMap<&str, u64> = std::collections::BTreeMap::new();
    for of in counts {
        *sums.entry(of.kind).or_default() += count(of);
    }
    sums.into_iter().map(|(kind, count)| (vec![("kind", kind.to_owned())], count as f64)).collect()
}

/// Losses by stage and cause; CPUs are added up.
fn losses(losses: &[Loss]) -> Vec<(Labels, f64)> {
    let mut sums: std::collections::BTreeMap<(&str, &str), u64> = std::collections::BTreeMap::new();
    for loss in losses {
        *sums.entry((loss.stage, loss.cause)).or_default() += loss.count;
    }
    sums.into_iter()
        .map(|((stage, cause), count)| {
            (vec![("stage", stage.to_owned()), ("cause", cause.to_owned())], count as f64)
        })
        .collect()
}
