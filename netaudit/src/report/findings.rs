//! What an agent has found on flows, as one document: `/findings`, and what `netaudit findings` reads.

use serde::{Deserialize, Serialize};

use crate::{
    audit::{Auditor, Enforced, FlowSeverity, ViolationCount, ViolationKey},
    model::{Direction, Timestamp},
};

/// The version of the form.
pub const FORM: u32 = 1;

/// All that one agent has found.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Findings {
    /// [`FORM`].
    pub form: u32,
    /// The agent's node.
    pub node: String,
    /// Its run: of two documents of one run the later one holds.
    pub run: String,
    /// When it was written, RFC 3339.
    pub told: String,
    /// What is known of enforcement there, a direction each.
    pub enforcement: Vec<EnforcementState>,
    /// Series of denied flows and of suspected blocks.
    pub findings: Vec<FindingLine>,
    /// Denied flows that were counted in a folded series.
    pub folded: u64,
    /// Exceptions, those that are over too.
    pub accepted: Vec<AcceptedLine>,
}

/// What denied flows have shown of the enforcement of one direction on a node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct EnforcementState {
    /// `egress` or `ingress`.
    pub direction: String,
    /// `untested`, `enforced`, `partly` or `not-enforced`.
    pub state: String,
    /// Since when, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Denied flows that were stopped.
    pub stopped: u64,
    /// Denied flows that passed without an excuse.
    pub passed: u64,
    /// Denied flows that passed while their pod or policy was new.
    pub excused: u64,
}

/// One series.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FindingLine {
    /// How much it weighs.
    pub severity: FlowSeverity,
    /// Such as `unenforced`.
    pub finding: String,
    /// Why it passed, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The exception that accepts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<String>,
    /// The direction whose policies were asked.
    pub direction: String,
    /// The source.
    pub from: EndLine,
    /// The destination.
    pub to: EndLine,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The destination port; `None` where ports are folded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The policy that denies it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// How many flows.
    pub count: u64,
    /// The time of the last one, RFC 3339.
    pub last: String,
    /// The last one, in the flow log.
    pub flow_id: String,
}

/// One end, by the labels of the metrics.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct EndLine {
    /// Empty for nodes and externals.
    pub namespace: String,
    /// Top controller, `node`, `external` or `other`.
    pub workload: String,
}

/// One exception.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct AcceptedLine {
    /// Its name.
    pub name: String,
    /// Why it is accepted.
    pub why: String,
    /// Who stands for it.
    pub owner: String,
    /// When it ends, RFC 3339.
    pub until: String,
    /// Whether that is over.
    pub expired: bool,
}

/// What `auditor` has found until `now`. `correction` makes today's wall time of its times, in nanoseconds.
pub fn findings(auditor: &Auditor, now: Timestamp, correction: i64) -> Findings {
    let wall = |time: Timestamp| Timestamp(time.0.saturating_add(correction));
    let line = |(key, count): (&ViolationKey, &ViolationCount)| FindingLine {
        severity: FlowSeverity::of(key),
        finding: key.finding.to_string(),
        cause: key.cause.map(|cause| cause.as_str().to_owned()),
        accepted: key.accepted.as_deref().map(str::to_owned),
        direction: key.direction.to_string(),
        from: end(&key.source_namespace, &key.source_workload),
        to: end(&key.destination_namespace, &key.destination_workload),
        protocol: key.protocol.to_string(),
        port: key.port,
        policy: key.policy.as_ref().map(ToString::to_string),
        count: count.total,
        last: wall(count.last).to_string(),
        flow_id: count.flow.to_string(),
    };
    let enforcement = [Direction::Egress, Direction::Ingress].map(|direction| {
        let known = auditor.enforcement();
        let ((state, since), (stopped, passed, excused)) = (known.state(direction), known.counts(direction));
        let state: Enforced = state;
        EnforcementState {
            direction: direction.to_string(),
            state: state.as_str().to_owned(),
            since: since.map(|since| wall(since).to_string()),
            stopped,
            passed,
            excused,
        }
    });
    let (denied, suspected) = (auditor.violations(), auditor.suspected_blocks());
    Findings {
        form: FORM,
        node: auditor.node().to_owned(),
        run: auditor.run().to_owned(),
        told: wall(now).to_string(),
        enforcement: enforcement.into(),
        findings: denied.series().into_iter().chain(suspected.series()).map(line).collect(),
        folded: denied.folded() + suspected.folded(),
        accepted: auditor
            .accepted()
            .0
            .iter()
            .map(|it| AcceptedLine {
                name: it.name.to_string(),
                why: it.why.to_string(),
                owner: it.owner.to_string(),
                until: it.until.to_string(),
                expired: it.until <= wall(now),
            })
            .collect(),
    }
}

fn end(namespace: &str, workload: &str) -> EndLine {
    EndLine { namespace: namespace.to_owned(), workload: workload.to_owned() }
}
