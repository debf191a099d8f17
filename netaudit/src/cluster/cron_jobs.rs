//! CronJobs: which rules may be needed only when one of them runs, and how seldom that is.

use std::{collections::BTreeMap, sync::Arc};

use super::{Cluster, Kind, ObjectKey, objects::CronJob};
use crate::{
    model::{Direction, Timestamp},
    policy::{Certainty, CompiledPolicy, Warning},
};

/// The CronJobs.
#[derive(Default, Debug)]
pub(super) struct CronJobs {
    /// By namespace and name, each with when it was first seen.
    by_name: BTreeMap<(Arc<str>, Arc<str>), (CronJob, Timestamp)>,
    generation: u64,
}

impl CronJobs {
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn names(&self) -> impl Iterator<Item = &(Arc<str>, Arc<str>)> {
        self.by_name.keys()
    }

    pub fn remove(&mut self, name: &(Arc<str>, Arc<str>)) -> bool {
        self.generation += 1;
        self.by_name.remove(name).is_some()
    }

    /// What they meet may be other rules than it was: namespaces have changed, or what cannot be read.
    pub fn meet_others(&mut self) {
        self.generation += 1;
    }

    /// Whether anything is other than it was.
    fn put(&mut self, cron_job: CronJob, now: Timestamp) -> bool {
        let name = (cron_job.namespace.clone(), cron_job.name.clone());
        match self.by_name.get(&name) {
            Some((known, _)) if *known == cron_job => false,
            // Made anew, or changed: its next run may be as far away as that of a new one.
            _ => {
                self.generation += 1;
                self.by_name.insert(name, (cron_job, now));
                true
            }
        }
    }
}

impl Cluster {
    pub(super) fn apply_cron_job(&mut self, cron_job: CronJob, now: Timestamp) -> Vec<Warning> {
        let warning = cron_job.period.as_ref().err().map(|reason| Warning {
            object: ObjectKey::new(Kind::CronJob, &cron_job.namespace, &cron_job.name).to_string().into(),
            path: "spec.schedule".to_owned(),
            reason: format!("{reason}: no rule for its pods is ever called unused"),
        });
        self.generation += u64::from(self.cron_jobs.put(cron_job, now));
        warning.into_iter().collect()
    }

    /// The CronJobs with when each was first seen, in order of namespace and name.
    pub fn cron_jobs(&self) -> impl Iterator<Item = (&CronJob, Timestamp)> {
        self.cron_jobs.by_name.values().map(|(cron_job, seen)| (cron_job, *seen))
    }

    /// Changes whenever a policy that has not changed may meet other CronJobs than before.
    pub fn cron_job_generation(&self) -> u64 {
        self.cron_jobs.generation
    }

    /// Whether there is a CronJob that cannot be read: its pods may need any rule.
    pub fn has_unread_cron_job(&self) -> bool {
        self.broken().any(|broken| broken.kind == Some(Kind::CronJob))
    }

    /// For each rule of a policy in a direction, in order: the CronJobs whose pods may need it, with when each was first seen. They
    /// do where the policy selects them, where an element of `from` or `to` does, and where everybody may come in. That
    /// somebody asks them is not expected of rules that let everybody out, nor is an `ipBlock` meant for them.
    pub fn cron_jobs_of<'a>(
        &'a self,
        policy: &'a CompiledPolicy,
        direction: Direction,
    ) -> Vec<Vec<(&'a CronJob, Timestamp)>> {
        let rules = policy.rules(direction);
        let mut found = vec![Vec::new(); rules.len()];
        for (cron_job, seen) in self.cron_jobs() {
            let namespace = self.namespace_view(&cron_job.namespace);
            let is_subject = policy.selects(&namespace, &cron_job.labels) != Certainty::No;
            for (rule, found) in rules.iter().zip(&mut found) {
                let lets_it_in = direction == Direction::Ingress && rule.is_for_everybody();
                let names_it = || rule.peers_selecting(&namespace, &cron_job.labels).next().is_some();
                if is_subject || lets_it_in || names_it() {
                    found.push((cron_job, seen));
                }
            }
        }
        found
    }
}
