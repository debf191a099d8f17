//! Pods by id, name and UID, with tombstones for those that flows may still refer to.

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use foldhash::HashMap;
use smallvec::SmallVec;

use super::{Pod, PodId};
use crate::{model::Timestamp, policy::IdentityId};

/// A pod, present or gone.
pub(super) struct Slot {
    pub pod: Pod,
    pub deleted: Option<Timestamp>,
    /// What policies know it as, and in which epoch of the evaluator.
    pub identity: Option<(u64, IdentityId)>,
    /// Addresses that the kernel showed in its network namespace.
    pub seen: SmallVec<[IpAddr; 2]>,
}

impl Slot {
    /// The addresses that it owns now: none once it is gone or completed.
    pub fn owned(&self) -> &[IpAddr] {
        if self.deleted.is_some() || self.pod.completed { &[] } else { &self.pod.ips }
    }
}

#[derive(Default)]
pub(super) struct Pods {
    slots: HashMap<PodId, Slot>,
    by_name: HashMap<Arc<str>, HashMap<Arc<str>, PodId>>,
    by_uid: HashMap<Arc<str>, PodId>,
    next: u32,
}

impl Pods {
    pub fn get(&self, id: PodId) -> Option<&Slot> {
        self.slots.get(&id)
    }

    pub fn get_mut(&mut self, id: PodId) -> Option<&mut Slot> {
        self.slots.get_mut(&id)
    }

    pub fn by_name(&self, namespace: &str, name: &str) -> Option<PodId> {
        self.by_name.get(namespace)?.get(name).copied()
    }

    pub fn by_uid(&self, uid: &str) -> Option<PodId> {
        let uid = if uid.contains('_') { Cow::Owned(uid.replace('_', "-")) } else { Cow::Borrowed(uid) };
        self.by_uid.get(uid.as_ref()).copied()
    }

    /// The present pods of a namespace.
    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = (PodId, &Pod)> {
        self.by_name.get(namespace).into_iter().flat_map(HashMap::values).map(|id| (*id, &self.slots[id].pod))
    }

    pub fn present(&self) -> impl Iterator<Item = (PodId, &Pod)> {
        self.slots.iter().filter(|(_, slot)| slot.deleted.is_none()).map(|(id, slot)| (*id, &slot.pod))
    }

    /// Puts a pod in its place: the slot of the same pod if it is known (even if it was thought gone), else a new one.
    /// The present pod of that name must have been removed if it is another.
    pub fn put(&mut self, pod: Pod) -> PodId {
        let known = if pod.uid.is_empty() {
            self.by_name(&pod.namespace, &pod.name)
        } else {
            let is_same = |known: &Pod| {
                (&known.uid, &known.namespace, &known.name) == (&pod.uid, &pod.namespace, &pod.name)
            };
            self.by_uid.get(&pod.uid).copied().filter(|id| is_same(&self.slots[id].pod))
        };
        let id = known.unwrap_or_else(|| {
            let id = PodId(self.next);
            self.next += 1;
            id
        });
        for uid in [Some(&pod.uid), pod.config_hash.as_ref()].into_iter().flatten() {
            if !uid.is_empty() {
                self.by_uid.insert(uid.clone(), id);
            }
        }
        self.by_name.entry(pod.namespace.clone()).or_default().insert(pod.name.clone(), id);
        let seen = self.slots.remove(&id).map(|old| old.seen).unwrap_or_default();
        self.slots.insert(id, Slot { pod, deleted: None, identity: None, seen });
        id
    }

    /// Makes a present pod a tombstone.
    pub fn bury(&mut self, id: PodId, now: Timestamp) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.deleted = Some(now);
        if let Some(names) = self.by_name.get_mut(&slot.pod.namespace) {
            names.remove(&slot.pod.name);
            if names.is_empty() {
                self.by_name.remove(&slot.pod.namespace);
            }
        }
    }

    /// Forgets tombstones from before `limit`.
    pub fn expire(&mut self, limit: Timestamp) {
        let by_uid = &mut self.by_uid;
        self.slots.retain(|id, slot| {
            let keep = slot.deleted.is_none_or(|deleted| deleted >= limit);
            if !keep {
                for uid in [Some(&slot.pod.uid), slot.pod.config_hash.as_ref()].into_iter().flatten() {
                    if by_uid.get(uid) == Some(id) {
                        by_uid.remove(uid);
                    }
                }
            }
            keep
        });
    }

    /// How many pods and tombstones are held.
    pub fn len(&self) -> usize {
        self.slots.len()
    }
}
