//! What the kernel shows of who has which address, for whoever keeps it.

use std::net::IpAddr;

use super::{Cluster, PodId};
use crate::model::Timestamp;

/// An address was seen in a pod's network namespace for the first time, or is the pod's no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BindingNews {
    /// The address.
    pub ip: IpAddr,
    /// The pod.
    pub pod: PodId,
    /// Since when, or until when.
    pub at: Timestamp,
    /// Whether this is its end.
    pub has_ended: bool,
}

impl Cluster {
    /// Records that this pod's network namespace owns this address from `at` on, as seen in the kernel. That beats
    /// what the API server says, until the pod goes or another pod is seen with the address. To say it again is free.
    /// For a hostNetwork pod nothing is recorded: its addresses are the node's.
    pub fn bind(&mut self, ip: IpAddr, pod: PodId, at: Timestamp) {
        let ip = ip.to_canonical();
        let Some(slot) = self.pods.get_mut(pod) else { return };
        if slot.deleted.is_some() || slot.pod.host_network {
            return;
        }
        if !slot.seen.contains(&ip) {
            slot.seen.push(ip);
        }
        if self.addresses.author(ip, pod, at) {
            self.generation += 1;
            self.note_binding(BindingNews { ip, pod, at, has_ended: false });
        }
    }

    /// Keeps news of bindings from now on, to be [taken](Cluster::take_binding_news).
    pub fn keep_binding_news(&mut self) {
        self.binding_news.get_or_insert_default();
    }

    /// What is news since this was last asked; nothing where it is not kept.
    pub fn take_binding_news(&mut self) -> Vec<BindingNews> {
        self.binding_news.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn note_binding(&mut self, news: BindingNews) {
        if let Some(known) = &mut self.binding_news {
            known.push(news);
        }
    }
}
