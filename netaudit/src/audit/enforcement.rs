//! Whether something enforces policies here, learnt from what became of denied flows.

use crate::model::{Direction, Reach, Verdict};

/// Why a denied flow passed, where it is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub enum UnenforcedCause {
    /// Not one denied flow of this direction has been stopped since the agent started.
    #[serde(rename = "nothing enforces")]
    NothingEnforces,
    /// It was open before the agent started.
    #[serde(rename = "older connection")]
    OlderConnection,
    /// It was open, and allowed, before the policy that denies it.
    #[serde(rename = "older than the policy")]
    OlderThanPolicy,
}

/// In which directions a denied flow has been stopped since the start.
#[derive(Clone, Copy, Default, Debug)]
pub struct Enforcement {
    egress: bool,
    ingress: bool,
}

impl Enforcement {
    /// Learns from one flow: `verdict` is the subject's, `other_end` the peer's where it is known. What something stopped
    /// that either denies shows that somebody enforces that direction; where both deny, it may have been either.
    pub fn learn(
        &mut self,
        direction: Direction,
        reach: Reach,
        refused: bool,
        verdict: &Verdict,
        other_end: Option<&Verdict>,
    ) {
        // A reset comes from a closed port: it was not stopped on its way there.
        let stopped = match reach {
            Reach::Stopped | Reach::NoAnswer => true,
            Reach::Rejected => !refused,
            Reach::Reached | Reach::NotSent | Reach::Unproven => false,
        };
        if !stopped {
            return;
        }
        let denies = |verdict: Option<&Verdict>| verdict.is_some_and(Verdict::is_denied);
        let (egress, ingress) = match direction {
            Direction::Egress => (Some(verdict), other_end),
            Direction::Ingress => (other_end, Some(verdict)),
        };
        self.egress |= denies(egress);
        self.ingress |= denies(ingress);
    }

    /// Why a denied flow of this direction passed.
    pub fn cause(self, direction: Direction) -> Option<UnenforcedCause> {
        let enforced = match direction {
            Direction::Egress => self.egress,
            Direction::Ingress => self.ingress,
        };
        (!enforced).then_some(UnenforcedCause::NothingEnforces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Cause, Decision, Denial, Gap};

    const NOTHING: Option<UnenforcedCause> = Some(UnenforcedCause::NothingEnforces);

    fn denied() -> Verdict {
        Verdict::plain(Decision::Denied(Denial::Isolation([].into())))
    }

    /// What is known after one flow: of egress, of ingress.
    fn after(
        direction: Direction,
        reach: Reach,
        refused: bool,
        verdict: &Verdict,
        other: Option<&Verdict>,
    ) -> [Option<UnenforcedCause>; 2] {
        let mut known = Enforcement::default();
        known.learn(direction, reach, refused, verdict, other);
        [Direction::Egress, Direction::Ingress].map(|direction| known.cause(direction))
    }

    #[test]
    fn what_stops_a_denied_flow_enforces_the_direction_that_denies_it() {
        let (denied, allowed) = (denied(), Verdict::plain(Decision::Allowed(Cause::NotIsolated)));
        let egress = Direction::Egress;
        assert_eq!(after(egress, Reach::Rejected, false, &denied, Some(&allowed)), [None, NOTHING]);
        assert_eq!(after(egress, Reach::NoAnswer, false, &allowed, Some(&denied)), [NOTHING, None]);
        assert_eq!(after(Direction::Ingress, Reach::Stopped, false, &denied, None), [NOTHING, None]);
        assert_eq!(after(egress, Reach::NoAnswer, false, &denied, Some(&denied)), [None, None]);
    }

    #[test]
    fn what_passes_or_proves_nothing_teaches_nothing() {
        let denied = denied();
        let untaught = [NOTHING, NOTHING];
        for reach in [Reach::Reached, Reach::NotSent, Reach::Unproven] {
            assert_eq!(after(Direction::Egress, reach, false, &denied, None), untaught, "{reach:?}");
        }
        assert_eq!(after(Direction::Egress, Reach::Rejected, true, &denied, None), untaught, "a closed port");
        let unknown = Verdict::unknown(Gap::NotReady);
        assert_eq!(after(Direction::Egress, Reach::NoAnswer, false, &unknown, None), untaught);
    }
}
