//! What other objects say of each rule: which CronJobs may need it, and how many workloads its selectors select. Policies
//! change seldom, so it is kept.

use std::{sync::Arc, time::Duration};

use foldhash::HashMap;

use crate::{
    audit::usage::Schedule,
    cluster::{
        Cluster,
        objects::{CronJob, Met},
    },
    model::{Direction, PolicyId, Timestamp},
    policy::{CompiledPolicy, Crowd, Element, Rule, Span},
};

/// How often workloads are counted: how many there are is only compared with how few matched.
const COUNT_EVERY: Duration = Duration::from_secs(300);

/// Nanoseconds by which the wall clock must have been set so that it counts: it is never quite right.
const CLOCK_SET: u64 = 60_000_000_000;

/// One that selects fewer is never called broad, whatever matched.
const FEW: u32 = 8;

/// What is known of each policy.
#[derive(Default, Debug)]
pub(super) struct RuleFacts {
    /// What CronJobs it is as of, and whether those are all.
    generation: Option<(u64, bool)>,
    /// Nanoseconds that make wall time of the auditor's, as they are in what is known.
    correction: i64,
    /// The workloads that are counted, and since when.
    crowd: Option<(Timestamp, Crowd)>,
    /// Of policies that are or were there.
    known: HashMap<Arc<PolicyId>, Known>,
}

/// What is known of one.
#[derive(Debug)]
struct Known {
    policy: Arc<CompiledPolicy>,
    /// For each direction its rules', in order.
    facts: [Vec<Facts>; 2],
}

/// What is known of a rule.
#[derive(Debug)]
pub(super) struct Facts {
    /// The CronJobs that may need it.
    pub schedule: Schedule,
    /// Its elements, with how many workloads they select where these are not few.
    pub elements: Arc<[(u64, Element)]>,
}

impl RuleFacts {
    /// Takes in that other objects have changed. Unless these `are_all`, any rule may be for a CronJob that is not known.
    /// `correction` nanoseconds make wall time, which objects tell, of the auditor's.
    pub fn look(&mut self, cluster: &Cluster, are_all: bool, correction: i64, now: Timestamp) {
        let generation = Some((cluster.cron_job_generation(), are_all));
        if self.generation != generation || self.correction.abs_diff(correction) > CLOCK_SET {
            self.generation = generation;
            self.correction = correction;
            self.known.clear();
        }
        let is_fresh = |at: &Timestamp| *at <= now && now.since(*at) < COUNT_EVERY;
        if !self.crowd.as_ref().is_some_and(|(at, _)| is_fresh(at)) {
            let crowd = &mut self.crowd.insert((now, cluster.crowd())).1;
            // The CronJobs are the same.
            for Known { policy, facts } in self.known.values_mut() {
                for (direction, facts) in Direction::ALL.into_iter().zip(facts) {
                    for (rule, facts) in policy.rules(direction).iter().zip(facts) {
                        facts.elements = elements(rule, crowd);
                    }
                }
            }
        }
    }

    /// What is known of a policy's rules in a direction, in order.
    pub fn of(&mut self, cluster: &Cluster, policy: &Arc<CompiledPolicy>, direction: Direction) -> &[Facts] {
        let is_known = self.known.get(&policy.id).is_some_and(|it| Arc::ptr_eq(&it.policy, policy));
        if !is_known {
            let are_known = self.generation.is_some_and(|(_, are_all)| are_all);
            let facts = Direction::ALL.map(|direction| {
                let schedules = schedules(cluster, policy, direction, are_known, self.correction);
                let rules = policy.rules(direction).iter().zip(schedules);
                let mut of_rule = |rule: &Rule| match &mut self.crowd {
                    Some((_, crowd)) => elements(rule, crowd),
                    None => rule.elements.clone(),
                };
                rules.map(|(rule, schedule)| Facts { schedule, elements: of_rule(rule) }).collect()
            });
            self.known.insert(policy.id.clone(), Known { policy: policy.clone(), facts });
        }
        self.known.get(&policy.id).map_or(&[], |known| &known.facts[direction as usize])
    }

    /// Forgets the policies that nobody else knows any more.
    pub fn expire(&mut self) {
        self.known.retain(|_, known| Arc::strong_count(&known.policy) > 1);
    }
}

/// The elements of a rule, with how many workloads they select where these are not few.
fn elements(rule: &Rule, crowd: &mut Crowd) -> Arc<[(u64, Element)]> {
    let many: Vec<(u32, u32)> = rule.peers_width(crowd).filter(|(_, width)| *width >= FEW).collect();
    if many.is_empty() {
        return rule.elements.clone();
    }
    let with_width = |(hash, element): &(u64, Element)| {
        let width = many.iter().find(|(index, _)| element.list != "ports" && *index == element.index);
        let span = width.map(|(_, width)| Span::Workloads(*width)).or(element.span);
        (*hash, Element { span, ..element.clone() })
    };
    rule.elements.iter().map(with_width).collect()
}

fn schedules(
    cluster: &Cluster,
    policy: &CompiledPolicy,
    direction: Direction,
    are_known: bool,
    correction: i64,
) -> Vec<Schedule> {
    let line = |wall: Timestamp| Timestamp(wall.0.saturating_sub(correction));
    let schedule = |cron_jobs: Vec<(&CronJob, Met)>| {
        let mut schedule = Schedule::default();
        for (cron_job, met) in cron_jobs {
            let since = match met {
                Met::SinceMade(seen) => cron_job.created.map_or(seen, |created| line(created).min(seen)),
                Met::Since(changed) => changed,
            };
            schedule.add(cron_job.period.as_ref().ok().copied(), since);
        }
        if !are_known {
            schedule.add(None::<Duration>, Timestamp::MIN);
        }
        schedule
    };
    cluster.cron_jobs_of(policy, direction).into_iter().map(schedule).collect()
}
