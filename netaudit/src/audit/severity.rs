//! How much a finding on flows weighs.

use super::{Finding, UnenforcedCause, ViolationKey};

/// How soon somebody should look.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowSeverity {
    /// For those who ask.
    Info,
    /// To be looked at.
    Warning,
    /// At once: something that must not pass passes.
    Critical,
}

impl FlowSeverity {
    /// The word for people and for the metrics' alerts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// Of a series of violations or of suspected blocks. What is accepted is for those who ask.
    pub fn of(key: &ViolationKey) -> Self {
        if key.accepted.is_some() {
            return Self::Info;
        }
        Self::of_finding(key.finding, key.cause)
    }

    /// Of one flow, whether or not it is accepted.
    pub fn of_finding(finding: Finding, cause: Option<UnenforcedCause>) -> Self {
        match (finding, cause) {
            // It ends by itself, as soon as the enforcer has heard of it.
            (
                Finding::Unenforced,
                Some(
                    UnenforcedCause::PodJustStarted
                    | UnenforcedCause::PolicyJustChanged
                    | UnenforcedCause::LabelsJustChanged
                    | UnenforcedCause::AddressJustReused,
                ),
            ) => Self::Info,
            // Enforcers let it live on, and nothing new comes of it.
            (
                Finding::Unenforced,
                Some(UnenforcedCause::OlderConnection | UnenforcedCause::OlderThanPolicy),
            ) => Self::Warning,
            (Finding::Unenforced, _) => Self::Critical,
            (Finding::DeniedRefused | Finding::SuspectedBlock, _) => Self::Warning,
            (Finding::Blocked | Finding::Attempted, _) => Self::Info,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::violations::testing::key;

    #[test]
    fn what_passes_weighs_most_and_what_is_accepted_least() {
        let of = |finding, cause, accepted: bool| {
            let accepted = accepted.then(|| "known".into());
            FlowSeverity::of(&ViolationKey { finding, cause, accepted, ..key("a", "w", "db", 1) })
        };
        let brief = [
            UnenforcedCause::PodJustStarted,
            UnenforcedCause::PolicyJustChanged,
            UnenforcedCause::LabelsJustChanged,
            UnenforcedCause::AddressJustReused,
        ];
        assert_eq!(of(Finding::Unenforced, None, false), FlowSeverity::Critical);
        assert_eq!(
            of(Finding::Unenforced, Some(UnenforcedCause::NothingEnforces), false),
            FlowSeverity::Critical
        );
        for cause in brief {
            assert_eq!(of(Finding::Unenforced, Some(cause), false), FlowSeverity::Info, "{cause:?}");
        }
        let older = Some(UnenforcedCause::OlderConnection);
        assert_eq!(of(Finding::Unenforced, older, false), FlowSeverity::Warning);
        assert_eq!(of(Finding::DeniedRefused, None, false), FlowSeverity::Warning);
        assert_eq!(of(Finding::Blocked, None, false), FlowSeverity::Info);
        assert_eq!(of(Finding::Unenforced, None, true), FlowSeverity::Info);
        assert!(FlowSeverity::Info < FlowSeverity::Warning && FlowSeverity::Warning < FlowSeverity::Critical);
    }
}
