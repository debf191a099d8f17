//! An index that goes through a history.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use super::history::What;
use crate::{
    cluster::{Cluster, Object, PodId},
    model::Timestamp,
};

/// How often what is long gone is forgotten.
const EXPIRE_EVERY: Duration = Duration::from_secs(3_600);

/// An index that follows a history.
pub(super) struct Follower {
    pub cluster: Cluster,
    /// Addresses that the kernel showed, by pod: it may show them before the pod's object comes.
    bound: HashMap<Arc<str>, Vec<(IpAddr, Timestamp)>>,
    /// Who was shown with an address last.
    holders: HashMap<IpAddr, Arc<str>>,
    expired: Timestamp,
}

impl Follower {
    /// One with nothing but these policies yet.
    pub fn new(policies: &[Object]) -> Self {
        let mut cluster = Cluster::new();
        cluster.reset_all(policies.to_vec(), Timestamp::MIN);
        Self { cluster, bound: HashMap::new(), holders: HashMap::new(), expired: Timestamp::MIN }
    }

    /// Takes a change.
    pub fn step(&mut self, what: &What, at: Timestamp) {
        match what {
            What::Apply(object) => self.apply(object, at),
            What::Delete(key) => self.cluster.delete(key, at),
            What::Bind(ip, uid) => {
                if let Some(before) = self.holders.insert(*ip, uid.clone()).filter(|before| before != uid) {
                    self.unbind(*ip, &before);
                }
                self.bound.entry(uid.clone()).or_default().push((*ip, at));
                if let Some(id) = self.cluster.pod_by_uid(uid) {
                    self.cluster.bind(*ip, id, at);
                }
            }
            What::Unbind(ip, uid) => self.unbind(*ip, uid),
        }
        if at.since(self.expired) > EXPIRE_EVERY {
            self.cluster.expire(at);
            self.expired = at;
        }
    }

    fn unbind(&mut self, ip: IpAddr, uid: &str) {
        if let Some(bound) = self.bound.get_mut(uid) {
            bound.retain(|(known, _)| *known != ip);
        }
    }

    fn apply(&mut self, object: &Object, at: Timestamp) {
        self.cluster.apply(object.clone(), at);
        if let Object::Pod(pod) = object
            && let Some(bound) = self.bound.get(&pod.uid)
            && let Some(id) = self.cluster.pod_by_uid(&pod.uid)
        {
            for (ip, since) in bound {
                self.cluster.bind(*ip, id, *since);
            }
        }
    }

    /// The pod of this index, which is told of it where it is to come in some seconds.
    pub fn pod(&mut self, object: &Object, at: Timestamp) -> Option<PodId> {
        let Object::Pod(pod) = object else { return None };
        self.cluster.pod_by_uid(&pod.uid).or_else(|| {
            self.apply(object, at);
            self.cluster.pod_by_uid(&pod.uid)
        })
    }
}
