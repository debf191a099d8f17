//! What an outcome proves, and what deserves a person's attention: the two tables of the README as code.

use std::{fmt, time::Duration};

use crate::model::{Decision, Observation, Outcome, Protocol, Reach, Verdict};

/// Below this an abort proves nothing: the client cancelled before an answer could come.
const AT_ONCE: Duration = Duration::from_millis(200);

/// The kernel's first SYN retransmission. Who gives up before it may just be racing two addresses (happy eyeballs).
pub(super) const FIRST_RETRANSMISSION: Duration = Duration::from_secs(1);

/// What the outcome of `observation` proves about its packets. `stopped` says that a drop of this node's filter belongs to
/// it, which explains every outcome but that it passed.
pub fn reach(observation: &Observation, stopped: bool) -> Reach {
    match observation.outcome {
        Outcome::Established | Outcome::Accepted | Outcome::Answered | Outcome::Received => Reach::Reached,
        _ if stopped => Reach::Stopped,
        Outcome::Refused | Outcome::Rejected => Reach::Rejected,
        Outcome::Dropped => Reach::Stopped,
        Outcome::Timeout | Outcome::Unreachable | Outcome::Pending => Reach::NoAnswer,
        Outcome::Aborted if observation.answered || observation.waited < AT_ONCE => Reach::Unproven,
        Outcome::Aborted => Reach::NoAnswer,
        Outcome::Failed => Reach::NotSent,
        Outcome::Sent => Reach::Unproven,
    }
}

/// What deserves a person's attention in a flow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// Denied, and it passed.
    Unenforced,
    /// Denied, and something on its way stopped it.
    Blocked,
    /// Denied, but it got as far as a closed port.
    DeniedRefused,
    /// Denied, and nothing is proven of its packets.
    Attempted,
    /// Allowed, but something on its way seems to have stopped it.
    SuspectedBlock,
}

impl Finding {
    /// Every value.
    pub const ALL: [Self; 5] =
        [Self::Unenforced, Self::Blocked, Self::DeniedRefused, Self::Attempted, Self::SuspectedBlock];

    /// The word of the flow log and the metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unenforced => "unenforced",
            Self::Blocked => "blocked",
            Self::DeniedRefused => "denied-refused",
            Self::Attempted => "attempted",
            Self::SuspectedBlock => "suspected-block",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Declared × [reach]. `verdict` is the subject's, `other_end` the peer's where it is known.
///
/// A denied flow is a violation whatever its reach: someone tried. An allowed flow that found no answer is suspicious only
/// if the other end's policies do not explain it. For TCP a peer's kernel answers a closed port with a reset, so an
/// ICMP answer is a filter's; for UDP it is how a closed port answers.
pub fn finding(
    observation: &Observation,
    reach: Reach,
    verdict: &Verdict,
    other_end: Option<&Verdict>,
) -> Option<Finding> {
    match &verdict.decision {
        Decision::Unknown(_) => None,
        Decision::Denied(_) => Some(match reach {
            Reach::Reached => Finding::Unenforced,
            Reach::Rejected if observation.found_closed_port() => Finding::DeniedRefused,
            Reach::Rejected | Reach::Stopped | Reach::NoAnswer => Finding::Blocked,
            Reach::NotSent | Reach::Unproven => Finding::Attempted,
        }),
        Decision::Allowed(_) => {
            let explained = other_end.is_some_and(|verdict| !verdict.is_allowed());
            let stopped = match reach {
                Reach::Stopped => true,
                Reach::NoAnswer => {
                    observation.outcome != Outcome::Aborted || observation.waited >= FIRST_RETRANSMISSION
                }
                Reach::Rejected => {
                    observation.outcome == Outcome::Rejected && observation.protocol != Protocol::Udp
                }
                Reach::Reached | Reach::NotSent | Reach::Unproven => false,
            };
            (stopped && !explained).then_some(Finding::SuspectedBlock)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::testing::observation,
        model::{Cause, Denial, Errno, Gap},
    };

    fn denied() -> Verdict {
        Verdict::plain(Decision::Denied(Denial::Isolation([].into())))
    }

    fn allowed() -> Verdict {
        Verdict::plain(Decision::Allowed(Cause::NotIsolated))
    }

    fn with(outcome: Outcome, waited_ms: u64) -> Observation {
        Observation { outcome, waited: Duration::from_millis(waited_ms), ..observation() }
    }

    /// Without a drop.
    fn found(seen: &Observation, verdict: &Verdict, other_end: Option<&Verdict>) -> Option<Finding> {
        finding(seen, reach(seen, false), verdict, other_end)
    }

    /// With a drop of this node's filter.
    fn found_stopped(seen: &Observation, verdict: &Verdict, other_end: Option<&Verdict>) -> Option<Finding> {
        finding(seen, reach(seen, true), verdict, other_end)
    }

    #[test]
    fn reach_follows_the_table() {
        for (outcome, waited_ms, expected) in [
            (Outcome::Established, 1, Reach::Reached),
            (Outcome::Accepted, 0, Reach::Reached),
            (Outcome::Answered, 1, Reach::Reached),
            (Outcome::Received, 0, Reach::Reached),
            (Outcome::Refused, 1, Reach::Rejected),
            (Outcome::Rejected, 1, Reach::Rejected),
            (Outcome::Dropped, 0, Reach::Stopped),
            (Outcome::Timeout, 3_000, Reach::NoAnswer),
            (Outcome::Unreachable, 3_000, Reach::NoAnswer),
            (Outcome::Pending, 1_000, Reach::NoAnswer),
            (Outcome::Aborted, 199, Reach::Unproven),
            (Outcome::Aborted, 200, Reach::NoAnswer),
            (Outcome::Failed, 0, Reach::NotSent),
            (Outcome::Sent, 0, Reach::Unproven),
        ] {
            assert_eq!(reach(&with(outcome, waited_ms), false), expected, "{outcome} after {waited_ms} ms");
        }
    }

    #[test]
    fn an_abort_after_an_answer_proves_nothing() {
        let answered = Observation { answered: true, ..with(Outcome::Aborted, 5_000) };
        assert_eq!(reach(&answered, false), Reach::Unproven);
    }

    #[test]
    fn denied_flows_are_always_told() {
        for (outcome, expected) in [
            (Outcome::Established, Finding::Unenforced),
            (Outcome::Answered, Finding::Unenforced),
            (Outcome::Received, Finding::Unenforced),
            (Outcome::Refused, Finding::DeniedRefused),
            (Outcome::Rejected, Finding::Blocked),
            (Outcome::Timeout, Finding::Blocked),
            (Outcome::Dropped, Finding::Blocked),
            (Outcome::Failed, Finding::Attempted),
            (Outcome::Sent, Finding::Attempted),
        ] {
            assert_eq!(found(&with(outcome, 3_000), &denied(), None), Some(expected), "{outcome}");
        }
    }

    #[test]
    fn allowed_flows_are_suspicious_only_without_an_explanation() {
        let timeout = with(Outcome::Timeout, 3_000);
        assert_eq!(found(&timeout, &allowed(), None), Some(Finding::SuspectedBlock));
        assert_eq!(found(&timeout, &allowed(), Some(&allowed())), Some(Finding::SuspectedBlock));
        assert_eq!(found(&timeout, &allowed(), Some(&denied())), None);
        assert_eq!(found(&with(Outcome::Established, 1), &allowed(), None), None);
        assert_eq!(found(&with(Outcome::Refused, 1), &allowed(), None), None);
        assert_eq!(found(&with(Outcome::Rejected, 1), &allowed(), None), Some(Finding::SuspectedBlock));
        assert_eq!(found(&with(Outcome::Aborted, 250), &allowed(), None), None, "happy eyeballs");
        assert_eq!(found(&with(Outcome::Aborted, 1_500), &allowed(), None), Some(Finding::SuspectedBlock));
    }

    #[test]
    fn a_drop_proves_a_block_whatever_the_socket_saw_of_it() {
        for (outcome, waited_ms) in [
            (Outcome::Timeout, 3_000),
            (Outcome::Refused, 1),
            (Outcome::Rejected, 1),
            (Outcome::Unreachable, 1),
            (Outcome::Pending, 1_000),
            (Outcome::Aborted, 1),
            (Outcome::Sent, 0),
            (Outcome::Dropped, 0),
        ] {
            let seen = with(outcome, waited_ms);
            assert_eq!(reach(&seen, true), Reach::Stopped, "{outcome}");
            assert_eq!(found_stopped(&seen, &denied(), None), Some(Finding::Blocked), "{outcome}");
            let suspected = Some(Finding::SuspectedBlock);
            assert_eq!(found_stopped(&seen, &allowed(), Some(&allowed())), suspected, "{outcome}");
            assert_eq!(found_stopped(&seen, &allowed(), Some(&denied())), None, "{outcome}");
        }
        let passed = with(Outcome::Established, 1_001);
        assert_eq!(reach(&passed, true), Reach::Reached);
        assert_eq!(found_stopped(&passed, &denied(), None), Some(Finding::Unenforced));
    }

    #[test]
    fn a_closed_udp_port_is_no_filter() {
        let udp = Observation { protocol: Protocol::Udp, ..with(Outcome::Rejected, 1) };
        assert_eq!(found(&udp, &allowed(), None), None);
        // It left the node, or a drop would be told.
        let closed = Observation { errno: Some(Errno::ECONNREFUSED), ..udp };
        assert_eq!(found(&closed, &denied(), None), Some(Finding::DeniedRefused));
        assert_eq!(found_stopped(&closed, &denied(), None), Some(Finding::Blocked));
        let prohibited = Observation { errno: Some(Errno::EHOSTUNREACH), ..udp };
        assert_eq!(found(&prohibited, &denied(), None), Some(Finding::Blocked));
    }

    #[test]
    fn unknown_is_never_guessed() {
        let unknown = Verdict::unknown(Gap::Ambiguous);
        for outcome in [Outcome::Established, Outcome::Timeout, Outcome::Refused] {
            assert_eq!(found(&with(outcome, 3_000), &unknown, None), None);
        }
    }
}
