//! The index of what the API server (or a directory of manifests) says: which pods, nodes, services and policies are
//! there, who owned an address at a given time, and what the policies say of a flow.
//!
//! Three verbs change it, [`Cluster::apply`], [`Cluster::delete`] and [`Cluster::reset`]; the rest reads. It is pure:
//! time is an argument. Nothing here knows Kubernetes clients.
//!
//! ```text
//! Object ──apply──▶ pods, namespaces, nodes, services ──▶ addresses (who owned which when) ──resolve──▶ Endpoint
//!              └──▶ compiled policies, doubts ──▶ policy::Policies ──(when asked)──▶ policy::Evaluator ──▶ Arc<Verdict>
//! ```

mod addresses;
mod bindings;
mod changes;
mod counts;
mod cron_jobs;
mod ends;
mod kinds;
mod names;
mod networks;
pub mod objects;
mod pods;
mod read;
mod services;
#[cfg(test)]
mod tests;
mod translation;
mod verdict;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use foldhash::{HashMap, HashSet};
use smallvec::SmallVec;

pub use self::bindings::BindingNews;
pub use self::objects::{Broken, Content, Kind, Namespace, Node, Object, ObjectKey, Pod, Service, Workload};
use self::{
    addresses::{Addresses, Owner},
    changes::Changes,
    cron_jobs::CronJobs,
    names::Names,
    networks::PodNetworks,
    pods::Pods,
    services::Services,
};
use crate::{
    model::{Exemption, Gap, Timestamp, Verdict},
    policy::{
        CompiledForeign, CompiledPolicy, Doubt, Evaluator, METADATA_NAME, NamespaceView, Policies,
        UnreadNamespaces, Warning, declared,
    },
};

/// How long deleted pods and ended bindings are remembered, at least.
pub const REMEMBERED: Duration = Duration::from_secs(600);

/// A pod in the index. Valid for at least [`REMEMBERED`] after the pod's deletion; never given to another pod.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PodId(pub(crate) u32);

/// What an address stands for at a given time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// A pod in a network namespace of its own.
    Pod(PodId),
    /// A node, or a hostNetwork pod on it: the node's name.
    Node(Arc<str>),
    /// A service's address.
    Service {
        /// The service's namespace.
        namespace: Arc<str>,
        /// The service's name.
        name: Arc<str>,
        /// Where the asked port leads: ready endpoints with their target ports. Empty where the service has none.
        backends: SmallVec<[Backend; 4]>,
    },
    /// Nothing in the cluster.
    External,
    /// Two owners at that time.
    Ambiguous,
    /// Perhaps an object that could not be read: which, and why.
    Invalid(Arc<str>),
}

/// Where a service's port leads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Backend {
    /// The endpoint's address.
    pub ip: IpAddr,
    /// The target port.
    pub port: u16,
    /// The pod that owns the address; `None` for a node, a hostNetwork pod or an address outside the cluster.
    pub pod: Option<PodId>,
}

impl Backend {
    /// Where it is reached; a mapped v4 address in its own form.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.ip.to_canonical(), self.port)
    }
}

/// The other end of a flow, as the caller resolved it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Party {
    /// A pod, with the address that carried the flow: an `ipBlock` is compared with this address only.
    PodAt(PodId, IpAddr),
    /// A pod whose address in this flow is not known: an `ipBlock` is compared with all its addresses.
    Pod(PodId),
    /// An address that is no pod's: outside the cluster, or a node that is not the subject's own.
    Ip(IpAddr),
    /// The subject's own node.
    OwnNode,
}

/// A policy as declared, to tell a change from a repetition, and as compiled.
struct PolicyEntry {
    declared: Declared,
    compiled: Arc<CompiledPolicy>,
}

/// A policy of any kind, as declared.
#[derive(PartialEq)]
enum Declared {
    Network(declared::NetworkPolicy),
    Cluster(Box<declared::ClusterPolicy>),
}

impl Declared {
    fn compile(&self) -> CompiledPolicy {
        match self {
            Self::Network(policy) => CompiledPolicy::compile(policy),
            Self::Cluster(policy) => CompiledPolicy::compile_cluster(policy),
        }
    }
}

/// The index.
#[derive(Default)]
pub struct Cluster {
    generation: u64,
    namespaces: HashMap<Arc<str>, Namespace>,
    nodes: HashMap<Arc<str>, Node>,
    pod_networks: PodNetworks,
    pods: Pods,
    services: Services,
    addresses: Addresses,
    /// What is news of authored bindings, where anybody wants to know.
    binding_news: Option<Vec<BindingNews>>,
    names: Names,
    declared: BTreeMap<ObjectKey, PolicyEntry>,
    cron_jobs: CronJobs,
    /// Policies of kinds that are not evaluated.
    foreign: BTreeMap<ObjectKey, (declared::ForeignPolicy, Arc<CompiledForeign>)>,
    broken: BTreeMap<ObjectKey, Broken>,
    /// Broken objects whose key is not known.
    unkeyed: Vec<Broken>,
    /// Objects that came twice in one list.
    duplicates: BTreeMap<ObjectKey, Warning>,
    policies: Policies,
    evaluator: Evaluator,
    changes: Changes,
    fixed: Fixed,
}

/// Verdicts that need no policy, made once.
struct Fixed {
    self_traffic: Arc<Verdict>,
    own_node: Arc<Verdict>,
    host_network: Arc<Verdict>,
    pod_not_seen: Arc<Verdict>,
}

impl Default for Fixed {
    fn default() -> Self {
        let exempt = |why| Arc::new(Verdict::exempt(why));
        Self {
            self_traffic: exempt(Exemption::SelfTraffic),
            own_node: exempt(Exemption::OwnNode),
            host_network: exempt(Exemption::HostNetwork),
            pod_not_seen: Arc::new(Verdict::unknown(Gap::PodNotSeen)),
        }
    }
}

impl Cluster {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an object, or replaces the one with its key. Returns what is wrong with it.
    pub fn apply(&mut self, object: Object, now: Timestamp) -> Vec<Warning> {
        let key = object.key();
        if let Some(key) = &key
            && !matches!(object, Object::Broken(_))
            && let Some(broken) = self.broken.remove(key)
        {
            self.forget_broken(&broken, now);
        }
        match object {
            Object::Namespace(namespace) => self.apply_namespace(namespace, now),
            Object::Pod(pod) => self.apply_pod(pod, now),
            Object::Node(node) => self.apply_node(node, now),
            Object::Service(service) => self.apply_service(service, now),
            Object::EndpointSlice(slice) => {
                let known = self.services.slices.get(&(slice.namespace.clone(), slice.name.clone()));
                if known != Some(&slice) {
                    self.services.put_slice(slice);
                    self.generation += 1;
                }
            }
            Object::CronJob(cron_job) => return self.apply_cron_job(cron_job, now),
            Object::NetworkPolicy(policy) => {
                let key = ObjectKey::new(Kind::NetworkPolicy, &policy.namespace, &policy.name);
                return self.apply_policy(key, Declared::Network(policy), now);
            }
            Object::ClusterPolicy(policy) => {
                let key = ObjectKey::new(policy.kind.into(), "", &policy.name);
                return self.apply_policy(key, Declared::Cluster(policy), now);
            }
            Object::Foreign(kind, policy) => {
                let key = ObjectKey::new(kind, &policy.namespace, &policy.name);
                return self.apply_foreign(key, policy);
            }
            Object::Broken(broken) => return vec![self.apply_broken(broken, now)],
        }
        Vec::new()
    }

    /// Removes an object; nothing happens where it is not known.
    pub fn delete(&mut self, key: &ObjectKey, now: Timestamp) {
        self.duplicates.remove(key);
        if let Some(broken) = self.broken.remove(key) {
            self.forget_broken(&broken, now);
        }
        let name = (key.namespace.clone(), key.name.clone());
        let removed = match key.kind {
            Kind::Namespace => {
                let removed = self.namespaces.remove(&key.name).is_some();
                if removed {
                    self.cron_jobs.meet_others();
                    self.policies.remove_namespace(&key.name);
                }
                removed
            }
            Kind::Pod => match self.pods.by_name(&key.namespace, &key.name) {
                Some(id) => {
                    self.bury(id, now);
                    true
                }
                None => false,
            },
            Kind::Node => match self.nodes.remove(&key.name) {
                Some(node) => {
                    self.policies.remove_node(&node.name);
                    self.pod_networks.remove(&node);
                    self.release(&node.ips, &Owner::Node(node.name), now);
                    true
                }
                None => false,
            },
            Kind::Service => match self.services.remove(&name) {
                Some(service) => {
                    self.release(&service.ips, &Owner::Service(key.clone()), now);
                    true
                }
                None => false,
            },
            Kind::EndpointSlice => self.services.remove_slice(&key.namespace, &key.name),
            Kind::CronJob => self.cron_jobs.remove(&name),
            foreign if foreign.is_foreign() => match self.foreign.remove(key) {
                Some(entry) => {
                    self.policies.remove_foreign(&entry.1.namespace, &entry.1.name);
                    true
                }
                None => false,
            },
            _ => match self.declared.remove(key) {
                Some(entry) => {
                    self.changes.policy_removed(&entry.compiled.id, now);
                    self.policies.remove(&entry.compiled.id);
                    true
                }
                None => false,
            },
        };
        self.generation += u64::from(removed);
    }

    /// Replaces all objects of a kind by this complete list (the first list, or one after a gap in the watch). Of
    /// objects with one key the last counts. Objects of other kinds in the list are applied too.
    ///
    /// What is so broken that its kind is not known belongs to no such list: see [`Cluster::reset_all`].
    pub fn reset(&mut self, kind: Kind, objects: Vec<Object>, now: Timestamp) -> Vec<Warning> {
        let mut listed = HashSet::default();
        let mut twice = HashSet::default();
        for key in objects.iter().filter_map(Object::key) {
            if !listed.insert(key.clone()) {
                twice.insert(key);
            }
        }
        for key in self.keys_of(kind).into_iter().filter(|key| !listed.contains(key)) {
            self.delete(&key, now);
        }
        self.drop_unkeyed(|broken| broken.kind == Some(kind), now);
        self.duplicates.retain(|key, _| key.kind != kind);
        let mut warnings = Vec::new();
        // Only the last of equal keys is applied, so that a list that repeats itself changes nothing.
        let mut last = HashSet::default();
        let objects: Vec<_> =
            objects.into_iter().rev().filter(|it| it.key().is_none_or(|key| last.insert(key))).collect();
        for object in objects.into_iter().rev() {
            if let Some(key) = object.key().filter(|key| twice.contains(key)) {
                let reason = "declared more than once: the last one counts".to_owned();
                let warning = Warning { object: key.to_string().into(), path: String::new(), reason };
                self.duplicates.insert(key, warning.clone());
                warnings.push(warning);
            }
            warnings.extend(self.apply(object, now));
        }
        self.generation += u64::from(self.changes.listed(kind));
        warnings
    }

    /// Replaces everything by this complete list of all kinds, broken objects without a key included: what a directory
    /// of manifests gives.
    pub fn reset_all(&mut self, objects: Vec<Object>, now: Timestamp) -> Vec<Warning> {
        let mut lists: BTreeMap<Kind, Vec<Object>> = BTreeMap::new();
        let mut unkeyed = Vec::new();
        for object in objects {
            match (object.key(), object) {
                (None, Object::Broken(broken)) => unkeyed.push(broken),
                (Some(key), object) => lists.entry(key.kind).or_default().push(object),
                (None, _) => {}
            }
        }
        let mut warnings = Vec::new();
        for kind in Kind::ALL {
            warnings.extend(self.reset(kind, lists.remove(&kind).unwrap_or_default(), now));
        }
        if self.unkeyed != unkeyed {
            self.drop_unkeyed(|_| true, now);
        }
        for broken in unkeyed {
            warnings.push(self.apply_broken(broken, now));
        }
        warnings
    }

    /// Forgets pods and addresses that have been gone for [`REMEMBERED`]. To be called every minute or so.
    pub fn expire(&mut self, now: Timestamp) {
        let limit = now.minus(REMEMBERED);
        let before = (self.pods.len(), self.addresses.len());
        self.pods.expire(limit);
        self.addresses.expire(limit);
        self.changes.expire(limit);
        self.generation += u64::from(before != (self.pods.len(), self.addresses.len()));
    }

    fn apply_namespace(&mut self, mut namespace: Namespace, now: Timestamp) {
        // The API server gives every namespace this label, whatever its manifest says (SetDefaults_Namespace).
        namespace.labels = namespace.labels.with(METADATA_NAME, &namespace.name);
        let known = self.namespaces.get(&namespace.name);
        if known != Some(&namespace) {
            if known.is_some() {
                self.changes.namespace(&namespace.name, now);
            }
            self.policies.put_namespace(&NamespaceView {
                name: namespace.name.clone(),
                labels: namespace.labels.clone(),
                doubt: None,
            });
            self.namespaces.insert(namespace.name.clone(), namespace);
            self.cron_jobs.meet_others();
            self.generation += 1;
        }
    }

    fn apply_pod(&mut self, pod: Pod, now: Timestamp) {
        if let Some(id) = self.pods.by_name(&pod.namespace, &pod.name)
            && let Some(slot) = self.pods.get(id)
        {
            if slot.pod == pod {
                return;
            }
            if slot.pod.uid != pod.uid {
                // Another pod of the same name, as StatefulSets make them: the old one's deletion was not seen.
                self.bury(id, now);
            } else {
                let gone: SmallVec<[IpAddr; 2]> = slot
                    .owned()
                    .iter()
                    .copied()
                    .filter(|ip| pod.completed || !pod.ips.contains(ip))
                    .chain(slot.seen.iter().copied().filter(|_| pod.completed))
                    .collect();
                let owner = owner_of(&slot.pod, id);
                if slot.pod.labels != pod.labels {
                    self.changes.pod(id, now);
                }
                self.release(&gone, &owner, now);
            }
        }
        if !pod.host_network && self.pod_networks.had(&pod.ips) {
            self.cron_jobs.meet_others();
        }
        let id = self.pods.put(pod);
        if let Some(slot) = self.pods.get(id) {
            let owner = owner_of(&slot.pod, id);
            for ip in slot.owned() {
                self.addresses.claim(*ip, owner.clone(), slot.pod.created, now);
            }
        }
        self.generation += 1;
    }

    /// Makes a present pod a tombstone, and ends what it owns.
    fn bury(&mut self, id: PodId, now: Timestamp) {
        let Some(slot) = self.pods.get(id) else { return };
        let owned: SmallVec<[IpAddr; 2]> = slot.owned().iter().chain(&slot.seen).copied().collect();
        let owner = owner_of(&slot.pod, id);
        self.release(&owned, &owner, now);
        self.pods.bury(id, now);
    }

    fn apply_node(&mut self, node: Node, now: Timestamp) {
        let owner = Owner::Node(node.name.clone());
        if let Some(old) = self.nodes.get(&node.name) {
            if *old == node {
                return;
            }
            let gone: Vec<IpAddr> = old.ips.iter().copied().filter(|ip| !node.ips.contains(ip)).collect();
            self.pod_networks.remove(old);
            self.release(&gone, &owner, now);
        }
        if self.nodes.get(&node.name).is_none_or(|old| old.labels != node.labels) {
            self.policies.put_node(&node.name, &node.labels);
        }
        for ip in &node.ips {
            self.addresses.claim(*ip, owner.clone(), None, now);
        }
        self.pod_networks.add(&node);
        self.cron_jobs.meet_others();
        self.nodes.insert(node.name.clone(), node);
        self.generation += 1;
    }

    fn apply_service(&mut self, service: Service, now: Timestamp) {
        let name = (service.namespace.clone(), service.name.clone());
        let key = ObjectKey { kind: Kind::Service, namespace: name.0.clone(), name: name.1.clone() };
        let owner = Owner::Service(key);
        if let Some(old) = self.services.by_name.get(&name) {
            if *old == service {
                return;
            }
            let gone: Vec<IpAddr> = old.ips.iter().copied().filter(|ip| !service.ips.contains(ip)).collect();
            self.release(&gone, &owner, now);
        }
        for ip in &service.ips {
            self.addresses.claim(*ip, owner.clone(), None, now);
        }
        self.services.put(service);
        self.generation += 1;
    }

    fn apply_policy(&mut self, key: ObjectKey, declared: Declared, now: Timestamp) -> Vec<Warning> {
        if let Some(known) = self.declared.get(&key).filter(|known| known.declared == declared) {
            return known.compiled.warnings.clone();
        }
        let compiled = Arc::new(declared.compile());
        let warnings = compiled.warnings.clone();
        self.policies.put(compiled.clone());
        if self.declared.get(&key).is_some_and(|known| !known.declared.selects_as(&declared)) {
            // Whom it selected and does no more is denied what it allowed, as if it had gone.
            self.changes.policy_removed(&compiled.id, now);
        }
        self.changes.policy(key.kind, &compiled.id, now);
        self.declared.insert(key, PolicyEntry { declared, compiled });
        self.generation += 1;
        warnings
    }

    fn apply_foreign(&mut self, key: ObjectKey, declared: declared::ForeignPolicy) -> Vec<Warning> {
        if let Some((_, compiled)) = self.foreign.get(&key).filter(|(known, _)| *known == declared) {
            return compiled.warnings.clone();
        }
        if let Some((_, old)) = self.foreign.get(&key) {
            // It may have selected in other namespaces than it does now.
            self.policies.remove_foreign(&old.namespace, &old.name);
        }
        let compiled = Arc::new(CompiledForeign::compile(&declared));
        let warnings = compiled.warnings.clone();
        self.policies.put_foreign(compiled.clone());
        self.foreign.insert(key, (declared, compiled));
        self.generation += 1;
        warnings
    }

    /// Takes the place of the object that it once was: what that said no longer holds.
    fn apply_broken(&mut self, broken: Broken, now: Timestamp) -> Warning {
        let object = match (&broken.key, broken.kind) {
            (Some(key), _) => key.to_string(),
            (None, Some(kind)) => format!("{kind} at {}", broken.source),
            (None, None) => broken.source.to_string(),
        };
        let warning =
            Warning { object: object.into(), path: String::new(), reason: broken.reason.to_string() };
        let known = match &broken.key {
            Some(key) => self.broken.get(key) == Some(&broken),
            None => self.unkeyed.contains(&broken),
        };
        if known {
            return warning;
        }
        if let Some(key) = &broken.key {
            self.delete(key, now);
        }
        let owner = broken_owner(&broken);
        for ip in &broken.ips {
            self.addresses.claim(*ip, owner.clone(), None, now);
        }
        match &broken.key {
            Some(key) => {
                self.broken.insert(key.clone(), broken);
            }
            None => self.unkeyed.push(broken),
        }
        self.broken_changed();
        warning
    }

    fn forget_broken(&mut self, broken: &Broken, now: Timestamp) {
        self.release(&broken.ips, &broken_owner(broken), now);
        self.broken_changed();
    }

    fn drop_unkeyed(&mut self, drop: impl Fn(&Broken) -> bool, now: Timestamp) {
        let (dropped, kept) = std::mem::take(&mut self.unkeyed).into_iter().partition::<Vec<_>, _>(drop);
        self.unkeyed = kept;
        for broken in dropped {
            self.forget_broken(&broken, now);
        }
    }

    fn release(&mut self, ips: &[IpAddr], owner: &Owner, now: Timestamp) {
        for ip in ips {
            let was_authored = self.addresses.release(*ip, owner, now);
            if let (true, Owner::Pod(pod)) = (was_authored, owner) {
                self.note_binding(BindingNews { ip: *ip, pod: *pod, at: now, has_ended: true });
            }
        }
    }

    /// Tells the policies which objects could not be read.
    fn broken_changed(&mut self) {
        self.generation += 1;
        self.cron_jobs.meet_others();
        let doubt = |broken: &Broken| Doubt {
            namespace: broken.namespace.clone(),
            overrides: broken.kind.is_none_or(Kind::overrides),
            reason: broken.to_string().into(),
        };
        let is_policy = |kind: Kind| kind == Kind::NetworkPolicy || kind.overrides();
        let doubts = self.broken().filter(|it| it.kind.is_none_or(is_policy)).map(doubt).collect();
        let mut unread = UnreadNamespaces::default();
        for broken in self.broken().filter(|broken| broken.kind == Some(Kind::Namespace)) {
            let why: Arc<str> = broken.to_string().into();
            match &broken.key {
                Some(key) => drop(unread.named.insert(key.name.clone(), why)),
                None => drop(unread.any.get_or_insert(why)),
            }
        }
        self.policies.set_doubts(doubts);
        self.policies.set_unread_namespaces(unread);
    }
}

/// What a pod's addresses belong to.
fn owner_of(pod: &Pod, id: PodId) -> Owner {
    if pod.host_network { Owner::Host(id) } else { Owner::Pod(id) }
}

/// A node keeps its addresses, whatever else of it cannot be read; those of a pod may be anybody's.
fn broken_owner(broken: &Broken) -> Owner {
    match &broken.key {
        Some(key) if key.kind == Kind::Node => Owner::Node(key.name.clone()),
        _ => Owner::Broken { object: broken.source.clone(), reason: broken.to_string().into() },
    }
}
