//! What really happened, by the second evaluator of the policies: which rules had a part in which flows, and when.

use std::collections::BTreeMap;

use netaudit::{audit::RuleKey, cluster::Cluster, model};
use serde_json::Value;

use crate::policy::{
    case::{Direction, Effect, Flow},
    naive::Naive,
};

/// When each rule was matched, in nanoseconds of the time that really passed.
#[derive(Default)]
pub struct Ledger {
    matches: BTreeMap<RuleKey, Vec<i64>>,
    /// Those of them that a run of the CronJob needed, in order of time.
    pub of_cron_job: Vec<(RuleKey, i64)>,
}

impl Ledger {
    /// A flow that really happened. `cluster` tells the identity of the rules.
    pub fn flow(&mut self, flow: &Flow, objects: &[Value], cluster: &Cluster, at: i64, is_of_cron_job: bool) {
        let naive = Naive { objects, dns: None, seen: None };
        for (direction, answer) in Direction::BOTH.into_iter().zip(naive.ask(flow)) {
            // Where the API leaves open what decides, nobody can say that a rule did.
            let [way] = answer.ways.as_slice() else { continue };
            let direction = match direction {
                Direction::Egress => model::Direction::Egress,
                Direction::Ingress => model::Direction::Ingress,
            };
            for by in way {
                let (Some(policy), Some(index)) = (&by.policy, by.rule_index) else { continue };
                if !matches!(by.effect, Effect::Allow | Effect::Deny | Effect::Pass) {
                    continue;
                }
                let policy = cluster.policies().find(|it| it.id.to_string() == *policy);
                let policy = policy.unwrap_or_else(|| panic!("no policy {:?}", by.policy));
                let key = RuleKey::from(&*policy.rules(direction)[index].id);
                if is_of_cron_job {
                    self.of_cron_job.push((key.clone(), at));
                }
                self.matches.entry(key).or_default().push(at);
            }
        }
    }

    /// Matches after the one time and up to the other.
    pub fn between(&self, rule: &RuleKey, after: i64, until: i64) -> usize {
        let matches = self.matches.get(rule).into_iter().flatten();
        matches.filter(|at| (after + 1..=until).contains(*at)).count()
    }
}
