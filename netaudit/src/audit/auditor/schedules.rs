//! Which CronJobs each rule may be for. Policies and CronJobs change seldom, so who meets whom is kept.

use std::{sync::Arc, time::Duration};

use foldhash::HashMap;

use crate::{
    audit::usage::Schedule,
    cluster::{Cluster, objects::CronJob},
    model::{Direction, PolicyId, Timestamp},
    policy::CompiledPolicy,
};

/// What is known of each policy.
#[derive(Default, Debug)]
pub(super) struct Schedules {
    /// What it is as of.
    generation: Option<u64>,
    known: HashMap<Arc<PolicyId>, Known>,
}

/// What is known of one.
#[derive(Debug)]
struct Known {
    policy: Arc<CompiledPolicy>,
    /// For each direction its rules', in order.
    schedules: [Vec<Schedule>; 2],
}

impl Schedules {
    /// The schedules of a policy's rules in a direction, in order. `correction` nanoseconds make wall time, which objects tell, of
    /// the auditor's.
    pub fn of(
        &mut self,
        cluster: &Cluster,
        policy: &Arc<CompiledPolicy>,
        direction: Direction,
        correction: i64,
    ) -> &[Schedule] {
        if self.generation != Some(cluster.cron_job_generation()) {
            self.generation = Some(cluster.cron_job_generation());
            self.known.clear();
        }
        let make = || {
            let of = |direction| schedules(cluster, policy, direction, correction);
            Known { policy: policy.clone(), schedules: [Direction::Egress, Direction::Ingress].map(of) }
        };
        let known = self.known.entry(policy.id.clone()).or_insert_with(make);
        if !Arc::ptr_eq(&known.policy, policy) {
            *known = make();
        }
        &known.schedules[direction as usize]
    }

    /// Forgets the policies that nobody else knows any more.
    pub fn expire(&mut self) {
        self.known.retain(|_, known| Arc::strong_count(&known.policy) > 1);
    }
}

fn schedules(
    cluster: &Cluster,
    policy: &CompiledPolicy,
    direction: Direction,
    correction: i64,
) -> Vec<Schedule> {
    let unread = cluster.has_unread_cron_job();
    let line = |wall: Timestamp| Timestamp(wall.0.saturating_sub(correction));
    let schedule = |cron_jobs: Vec<(&CronJob, Timestamp)>| {
        let mut schedule = Schedule::default();
        for (cron_job, seen) in cron_jobs {
            let since = cron_job.created.map_or(seen, |created| line(created).min(seen));
            schedule.add(cron_job.period.as_ref().ok().copied(), since);
        }
        if unread {
            schedule.add(None::<Duration>, Timestamp::MIN);
        }
        schedule
    };
    cluster.cron_jobs_of(policy, direction).into_iter().map(schedule).collect()
}
