//! CronJobs: which rules may be needed only when one of them runs, and how seldom that is.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Cluster, Kind, ObjectKey,
    objects::{CronJob, Met},
};
use crate::{
    model::{Direction, Timestamp},
    policy::{Certainty, CompiledPolicy, Labels, NamespaceView, Rule, Warning},
};

/// Former labels that are remembered of a CronJob's pods. What rules ask of them changes seldom, a version in them with each release.
const MOST_FORMER: usize = 64;

/// The CronJobs.
#[derive(Default, Debug)]
pub(super) struct CronJobs {
    by_name: BTreeMap<(Arc<str>, Arc<str>), Known>,
    generation: u64,
}

/// What is known of one.
#[derive(Debug)]
struct Known {
    cron_job: CronJob,
    /// When it was first seen.
    seen: Timestamp,
    /// Since when its pods have the labels that they have now: when it was first seen, or they changed.
    since: Timestamp,
    /// The labels that they had before, each with since when, the latest first.
    former: Vec<(Labels, Timestamp)>,
    /// Whether these are all, as far as anybody knows.
    is_whole: bool,
}

impl Known {
    fn new(cron_job: CronJob, now: Timestamp) -> Self {
        Self { cron_job, seen: now, since: now, former: Vec::new(), is_whole: true }
    }

    /// The same CronJob is other than it was.
    fn change(&mut self, cron_job: CronJob, now: Timestamp) {
        if cron_job.labels != self.cron_job.labels {
            self.former.insert(0, (self.cron_job.labels.clone(), self.since));
            self.since = now;
            if self.former.len() > MOST_FORMER {
                self.former.truncate(MOST_FORMER);
                self.is_whole = false;
            }
        }
        self.cron_job = cron_job;
    }

    /// Since when a rule may be for it that may be now, where `may_be_for` says it of labels.
    fn met_since(&self, may_be_for: impl Fn(&Labels) -> bool) -> Met {
        let met = self.former.iter().take_while(|(labels, _)| may_be_for(labels));
        let (count, since) = met.fold((0, self.since), |(count, _), (_, since)| (count + 1, *since));
        if count == self.former.len() && self.is_whole {
            Met::SinceMade(self.seen)
        } else {
            Met::Since(since)
        }
    }
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
        match self.by_name.get_mut(&name) {
            Some(known) if known.cron_job == cron_job => return false,
            Some(known) if known.cron_job.created == cron_job.created => known.change(cron_job, now),
            // Also one that was made anew under a name that was another's.
            _ => drop(self.by_name.insert(name, Known::new(cron_job, now))),
        }
        self.generation += 1;
        true
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

    /// Changes whenever a policy that has not changed may meet other CronJobs than before.
    pub fn cron_job_generation(&self) -> u64 {
        self.cron_jobs.generation
    }

    /// Whether all CronJobs are known: the pods of one that has not been listed, or cannot be read, may need any rule.
    pub fn knows_cron_jobs(&self) -> bool {
        self.has_listed(Kind::CronJob) && !self.broken().any(|it| it.kind == Some(Kind::CronJob))
    }

    /// For each rule of a policy in a direction, in order: the CronJobs whose pods may need it, and since when. They
    /// do where the policy selects them, where an element of `from` or `to` does, where everybody may come in, and where an
    /// `ipBlock` of `from` has addresses that pods get. That somebody asks them is not expected of rules that let
    /// everybody out, or an `ipBlock`.
    pub fn cron_jobs_of<'a>(
        &'a self,
        policy: &'a CompiledPolicy,
        direction: Direction,
    ) -> Vec<Vec<(&'a CronJob, Met)>> {
        let rules = policy.rules(direction);
        let mut found = vec![Vec::new(); rules.len()];
        if rules.is_empty() {
            return found;
        }
        let lets_pods_in: Vec<bool> = match direction {
            Direction::Ingress if !self.cron_jobs.by_name.is_empty() => {
                rules.iter().map(|rule| self.lets_any_pod_in(rule)).collect()
            }
            _ => vec![false; rules.len()],
        };
        // In order of namespace.
        let mut namespace: Option<NamespaceView> = None;
        for known in self.cron_jobs.by_name.values() {
            let cron_job = &known.cron_job;
            let namespace = match &mut namespace {
                Some(same) if same.name == cron_job.namespace => same,
                other => other.insert(self.namespace_view(&cron_job.namespace)),
            };
            let selects = |labels: &Labels| policy.selects(namespace, labels) != Certainty::No;
            let is_subject = selects(&cron_job.labels);
            for ((rule, lets_all_in), found) in rules.iter().zip(&lets_pods_in).zip(&mut found) {
                let names = |labels: &Labels| rule.may_select(namespace, labels);
                if is_subject || *lets_all_in || names(&cron_job.labels) {
                    let met = if *lets_all_in {
                        Met::SinceMade(known.seen)
                    } else {
                        known.met_since(|labels| selects(labels) || names(labels))
                    };
                    found.push((cron_job, met));
                }
            }
        }
        found
    }

    /// Whether an ingress rule may let a pod in whatever its labels are.
    fn lets_any_pod_in(&self, rule: &Rule) -> bool {
        rule.is_for_everybody() || self.pod_networks.all().any(|network| rule.has_block_within(&network))
    }
}
