//! From a socket's namespace and cgroup to the pod that policy binds to (the subject) and the container that acted.
//!
//! The namespace names the subject, the cgroup names the actor: a socket that a mesh tunnel or a port-forward opens in
//! a pod's namespace is the pod's, whoever opened it. A (cgroup, namespace) pair, of a task or of a record, is only a
//! first guess, since whoever acts in a new namespace first need not be its owner. An address that carried traffic in the
//! namespace and that the cluster knows as a pod's proves it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use foldhash::{HashMap, HashSet};

use crate::model::{CgroupId, NetnsCookie, Timestamp};

/// How long a removed cgroup is still known, so that records that were under way when it went find their actor.
const TOMBSTONE: Duration = Duration::from_secs(60);

/// The pod and container that a cgroup path names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodCgroup {
    /// The pod's UID as the path spells it, with `-`. A static pod has its `kubernetes.io/config.hash` here.
    pub uid: Arc<str>,
    /// The container's id without the runtime's prefix; `None` for the pod's own cgroup.
    pub container: Option<Arc<str>>,
}

impl PodCgroup {
    /// Reads a cgroup path as kubelets lay it out, with the cgroupfs driver (`/kubepods/burstable/pod<uid>/<id>`) or the
    /// systemd driver (`/kubepods.slice/…/kubepods-burstable-pod<uid with _>.slice/cri-containerd-<id>.scope`).
    ///
    /// Levels are not counted: Guaranteed pods sit one higher, and nested runtimes put `kubepods` anywhere. Cgroups that
    /// a container makes below its own belong to it.
    pub fn parse(path: &str) -> Option<Self> {
        if !path.contains("kubepods") {
            return None;
        }
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        let uid = parts.find_map(pod_uid)?;
        let container = parts.next().map(container_id);
        Some(Self { uid, container })
    }
}

fn pod_uid(part: &str) -> Option<Arc<str>> {
    let raw = match part.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod").map(|(_, uid)| uid).or_else(|| slice.strip_prefix("pod"))?,
        None => part.strip_prefix("pod")?,
    };
    let looks_like_uid =
        raw.len() >= 8 && raw.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-' || b == b'_');
    looks_like_uid.then(|| raw.replace('_', "-").into())
}

fn container_id(part: &str) -> Arc<str> {
    let part = part.strip_suffix(".scope").unwrap_or(part);
    // `cri-containerd-<id>`, `crio-<id>`, `docker-<id>`: ids are hexadecimal, so the last dash ends the prefix.
    part.rsplit_once('-').map_or(part, |(_, id)| id).into()
}

/// Whose namespace a socket lives in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The node's own namespace: host processes and hostNetwork pods.
    Host,
    /// The namespace of the pod with this UID.
    Pod(Arc<str>),
    /// Nothing has named it yet.
    Unknown,
}

/// The pod that a namespace is taken for.
#[derive(Debug)]
struct Named {
    uid: Arc<str>,
    /// By an address, not by who acted there.
    proven: bool,
}

/// A cgroup that exists, or did a minute ago.
#[derive(Debug)]
struct Cgroup {
    pod: Option<PodCgroup>,
    gone: bool,
}

#[derive(Debug)]
struct Gone {
    id: CgroupId,
    until: Timestamp,
}

/// What is known of cgroups and namespaces of this node.
#[derive(Debug)]
pub struct Attribution {
    host: NetnsCookie,
    cgroups: HashMap<CgroupId, Cgroup>,
    /// How many live or remembered cgroups each pod has: its namespace is forgotten with the last.
    cgroups_of_pod: HashMap<Arc<str>, usize>,
    /// Those of them that still exist.
    live_of_pod: HashMap<Arc<str>, usize>,
    /// When the first cgroup of a pod was made, where that was seen: the pod started then.
    started: HashMap<Arc<str>, Timestamp>,
    namespaces: HashMap<NetnsCookie, Named>,
    namespaces_of_pod: HashMap<Arc<str>, Vec<NetnsCookie>>,
    gone: VecDeque<Gone>,
}

impl Attribution {
    /// Knows nothing but that `host` is the node's own namespace.
    pub fn new(host: NetnsCookie) -> Self {
        Self {
            host,
            cgroups: HashMap::default(),
            cgroups_of_pod: HashMap::default(),
            live_of_pod: HashMap::default(),
            started: HashMap::default(),
            namespaces: HashMap::default(),
            namespaces_of_pod: HashMap::default(),
            gone: VecDeque::new(),
        }
    }

    /// A cgroup exists with this path.
    pub fn cgroup(&mut self, id: CgroupId, path: &str) {
        let pod = PodCgroup::parse(path);
        if let Some(pod) = &pod {
            *self.cgroups_of_pod.entry(pod.uid.clone()).or_default() += 1;
            *self.live_of_pod.entry(pod.uid.clone()).or_default() += 1;
        }
        if let Some(Cgroup { pod: Some(old), gone }) = self.cgroups.insert(id, Cgroup { pod, gone: false }) {
            if !gone {
                self.ended(&old.uid);
            }
            self.release(&old.uid);
        }
    }

    /// A cgroup that was told was made at `at`, before all others of its pod or after.
    pub fn cgroup_made(&mut self, id: CgroupId, at: Timestamp) {
        let Some(Cgroup { pod: Some(pod), .. }) = self.cgroups.get(&id) else { return };
        // One of several: the pod was there before it.
        if self.cgroups_of_pod.get(&pod.uid) == Some(&1) {
            self.started.insert(pod.uid.clone(), at);
        }
    }

    /// When the pod with this UID (or config hash) started; `None` where it did before the agent.
    pub fn started(&self, uid: &str) -> Option<Timestamp> {
        self.started.get(uid).copied()
    }

    /// A cgroup was removed at `at`. It stays known for a minute.
    pub fn cgroup_gone(&mut self, id: CgroupId, at: Timestamp) {
        let Some(cgroup) = self.cgroups.get_mut(&id).filter(|cgroup| !cgroup.gone) else { return };
        cgroup.gone = true;
        if let Some(uid) = cgroup.pod.as_ref().map(|pod| pod.uid.clone()) {
            self.ended(&uid);
        }
        self.gone.push_back(Gone { id, until: at.plus(TOMBSTONE) });
    }

    /// Exactly the cgroups in `existing`, all of which have been told, exist at `at`: the others are gone, though nothing
    /// told of it.
    pub fn only_cgroups(&mut self, existing: &HashSet<CgroupId>, at: Timestamp) {
        let unlisted = self.cgroups.iter().filter(|(id, cgroup)| !cgroup.gone && !existing.contains(id));
        let unlisted: Vec<CgroupId> = unlisted.map(|(id, _)| *id).collect();
        unlisted.into_iter().for_each(|id| self.cgroup_gone(id, at));
    }

    fn ended(&mut self, uid: &Arc<str>) {
        if let Some(count) = self.live_of_pod.get_mut(uid) {
            *count -= 1;
            if *count == 0 {
                self.live_of_pod.remove(uid);
            }
        }
    }

    /// Whether a cgroup of the pod with this UID (or config hash) exists on this node right now.
    pub fn is_alive(&self, uid: &str) -> bool {
        self.live_of_pod.contains_key(uid)
    }

    /// A task of `cgroup` was seen in `netns`: it names the pod unless something else already has.
    pub fn pair(&mut self, netns: NetnsCookie, cgroup: CgroupId) {
        if netns == self.host || self.namespaces.contains_key(&netns) {
            return;
        }
        if let Some(Cgroup { pod: Some(pod), .. }) = self.cgroups.get(&cgroup) {
            let uid = pod.uid.clone();
            self.set(netns, uid, false);
        }
    }

    /// An address proved that `netns` is the namespace of the pod with `uid`. That corrects a guess.
    pub fn prove(&mut self, netns: NetnsCookie, uid: Arc<str>) {
        if netns != self.host && !self.is_proven(netns) {
            self.set(netns, uid, true);
        }
    }

    /// Whether an address has proved whose namespace it is, or it is the node's.
    pub fn is_proven(&self, netns: NetnsCookie) -> bool {
        netns == self.host || self.namespaces.get(&netns).is_some_and(|named| named.proven)
    }

    /// What proved the namespace's owner no longer holds: the next record decides anew.
    pub fn doubt(&mut self, netns: NetnsCookie) {
        if let Some(old) = self.namespaces.remove(&netns)
            && let Some(of_old) = self.namespaces_of_pod.get_mut(&old.uid)
        {
            of_old.retain(|other| *other != netns);
        }
    }

    fn set(&mut self, netns: NetnsCookie, uid: Arc<str>, proven: bool) {
        self.doubt(netns);
        self.namespaces.insert(netns, Named { uid: uid.clone(), proven });
        self.namespaces_of_pod.entry(uid).or_default().push(netns);
    }

    /// Whose namespace `netns` is.
    pub fn owner(&self, netns: NetnsCookie) -> Owner {
        if netns == self.host {
            return Owner::Host;
        }
        self.namespaces.get(&netns).map_or(Owner::Unknown, |named| Owner::Pod(named.uid.clone()))
    }

    /// The pod and container of an actor; `None` for host processes and for cgroups that are not known.
    pub fn actor(&self, cgroup: CgroupId) -> Option<&PodCgroup> {
        self.cgroups.get(&cgroup).and_then(|cgroup| cgroup.pod.as_ref())
    }

    /// Whether it is known where a cgroup is, so that one without a pod is the host's.
    pub fn knows(&self, cgroup: CgroupId) -> bool {
        self.cgroups.contains_key(&cgroup)
    }

    /// How many cgroups and namespaces are known.
    pub fn len(&self) -> (usize, usize) {
        (self.cgroups.len(), self.namespaces.len())
    }

    /// Forgets what went more than a minute ago, and namespaces of pods that have neither a cgroup nor, as
    /// `is_known` says, an object.
    pub fn expire(&mut self, now: Timestamp, is_known: impl Fn(&str) -> bool) {
        let cgroups = &self.cgroups_of_pod;
        self.namespaces.retain(|_, named| cgroups.contains_key(&named.uid) || is_known(&named.uid));
        let namespaces = &self.namespaces;
        self.namespaces_of_pod.retain(|_, of_pod| of_pod.iter().any(|netns| namespaces.contains_key(netns)));
        while self.gone.front().is_some_and(|gone| gone.until <= now) {
            if let Some(gone) = self.gone.pop_front()
                && let Some(Cgroup { pod: Some(pod), .. }) = self.cgroups.remove(&gone.id)
            {
                self.release(&pod.uid);
            }
        }
    }

    fn release(&mut self, uid: &Arc<str>) {
        let Some(count) = self.cgroups_of_pod.get_mut(uid) else { return };
        *count -= 1;
        if *count == 0 {
            self.cgroups_of_pod.remove(uid);
            self.started.remove(uid);
            for netns in self.namespaces_of_pod.remove(uid).unwrap_or_default() {
                self.namespaces.remove(&netns);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: NetnsCookie = NetnsCookie(1);
    const UID: &str = "0b6e1f62-8d3a-4c7e-9a51-2f4d5e6a7b8c";

    fn parsed(path: &str) -> Option<(String, Option<String>)> {
        PodCgroup::parse(path).map(|pod| (pod.uid.to_string(), pod.container.map(|id| id.to_string())))
    }

    #[test]
    fn paths_of_both_drivers_name_pod_and_container() {
        let both = Some((UID.to_owned(), Some("abc123".to_owned())));
        let systemd_uid = UID.replace('-', "_");
        for path in [
            format!("/kubepods/burstable/pod{UID}/abc123"),
            format!("/kubepods/pod{UID}/abc123"),
            format!("/lab/kubepods/besteffort/pod{UID}/abc123/init.scope"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd_uid}.slice/cri-containerd-abc123.scope"
            ),
            format!("/kubepods.slice/kubepods-pod{systemd_uid}.slice/crio-abc123.scope"),
            // As kind sets its kubelets up.
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{systemd_uid}.slice/cri-containerd-abc123.scope"
            ),
        ] {
            assert_eq!(parsed(&path), both, "{path}");
        }
        assert_eq!(parsed(&format!("/kubepods/pod{UID}")), Some((UID.to_owned(), None)));
    }

    #[test]
    fn static_pods_carry_a_hash_and_host_processes_no_pod() {
        let hash = "5d41402abc4b2a76b9719d911017c592";
        assert_eq!(parsed(&format!("/kubepods/burstable/pod{hash}/c0ffee")).unwrap().0, hash);
        assert_eq!(parsed("/system.slice/kubelet.service"), None);
        assert_eq!(parsed("/kubepods/burstable"), None);
        assert_eq!(parsed("/kubepods/podman/x"), None);
        assert_eq!(parsed("/user.slice/pod0b6e1f62"), None, "only below kubepods");
    }

    #[test]
    fn an_address_corrects_a_visitor_who_came_first() {
        let mut known = Attribution::new(HOST);
        known.cgroup(CgroupId(20), "/kubepods/podffffffff-0000-0000-0000-000000000000/mesh");
        known.pair(NetnsCookie(7), CgroupId(20));
        known.prove(NetnsCookie(7), UID.into());
        assert_eq!(known.owner(NetnsCookie(7)), Owner::Pod(UID.into()));
        known.prove(NetnsCookie(7), "someone-else".into());
        assert_eq!(known.owner(NetnsCookie(7)), Owner::Pod(UID.into()), "proven once is proven");
    }

    #[test]
    fn the_first_pair_names_the_namespace_and_a_visitor_does_not() {
        let mut known = Attribution::new(HOST);
        known.cgroup(CgroupId(10), &format!("/kubepods/pod{UID}/c"));
        known.cgroup(CgroupId(20), "/kubepods/podffffffff-0000-0000-0000-000000000000/mesh");
        known.pair(NetnsCookie(7), CgroupId(10));
        known.pair(NetnsCookie(7), CgroupId(20));
        assert_eq!(known.owner(NetnsCookie(7)), Owner::Pod(UID.into()));
        assert_eq!(known.owner(HOST), Owner::Host);
        assert_eq!(known.owner(NetnsCookie(8)), Owner::Unknown);
    }

    #[test]
    fn a_removed_pod_is_known_for_a_minute_and_then_leaves_nothing() {
        let mut known = Attribution::new(HOST);
        known.cgroup(CgroupId(10), &format!("/kubepods/pod{UID}"));
        known.cgroup(CgroupId(11), &format!("/kubepods/pod{UID}/c"));
        known.pair(NetnsCookie(7), CgroupId(11));
        known.cgroup_gone(CgroupId(11), Timestamp::from_seconds(100));
        known.cgroup_gone(CgroupId(10), Timestamp::from_seconds(100));
        known.expire(Timestamp::from_seconds(159), |_| false);
        assert!(known.actor(CgroupId(11)).is_some());
        known.expire(Timestamp::from_seconds(160), |_| false);
        assert_eq!(known.len(), (0, 0));
    }

    #[test]
    fn a_removal_that_nothing_told_shows_in_what_exists_and_counts_once() {
        let mut known = Attribution::new(HOST);
        for id in [10, 11, 12] {
            known.cgroup(CgroupId(id), &format!("/kubepods/pod{UID}/c{id}"));
        }
        known.pair(NetnsCookie(7), CgroupId(10));
        known.only_cgroups(&[CgroupId(10), CgroupId(11)].into_iter().collect(), Timestamp::from_seconds(0));
        // Its record was on its way after all.
        known.cgroup_gone(CgroupId(12), Timestamp::from_seconds(0));
        known.cgroup_gone(CgroupId(11), Timestamp::from_seconds(0));
        assert!(known.is_alive(UID), "one is left");
        known.only_cgroups(&HashSet::default(), Timestamp::from_seconds(0));
        assert!(!known.is_alive(UID));
        known.expire(Timestamp::from_seconds(60), |_| false);
        assert_eq!(known.len(), (0, 0));
    }

    #[test]
    fn hearing_of_a_cgroup_twice_counts_once() {
        let mut known = Attribution::new(HOST);
        for _ in 0..2 {
            known.cgroup(CgroupId(10), &format!("/kubepods/pod{UID}/c"));
        }
        known.pair(NetnsCookie(7), CgroupId(10));
        known.cgroup_gone(CgroupId(10), Timestamp::from_seconds(0));
        known.expire(Timestamp::from_seconds(60), |_| false);
        assert_eq!(known.len(), (0, 0));
    }
}
