//! Who owned an address when.
//!
//! An address has owners one after the other, since a pod's address is given to the next pod within seconds. Each
//! ownership is a binding with a beginning and an end. What the agent saw in the kernel (authored) beats what the API
//! server says, whose edges are fuzzy: it tells of an address after the pod has it, and of the end after it has ended.

use std::{net::IpAddr, sync::Arc, time::Duration};

use foldhash::HashMap;
use smallvec::SmallVec;

use super::{ObjectKey, PodId};
use crate::model::Timestamp;

/// Who can own an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    /// A pod with a network namespace of its own.
    Pod(PodId),
    /// A hostNetwork pod: its node.
    Host(PodId),
    /// A node by name.
    Node(Arc<str>),
    /// A service by key.
    Service(ObjectKey),
    /// An object that could not be read.
    Broken { object: Arc<str>, reason: Arc<str> },
}

#[derive(Clone, Debug)]
struct Binding {
    owner: Owner,
    /// Included.
    from: Timestamp,
    /// Not included; [`Timestamp::MAX`] while it lasts.
    until: Timestamp,
    /// Seen in the kernel, not told by the API server.
    authored: bool,
}

impl Binding {
    fn is_open(&self) -> bool {
        self.until == Timestamp::MAX
    }

    fn holds_at(&self, at: Timestamp) -> bool {
        self.from <= at && at < self.until
    }
}

/// What an address was at a time.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Found<'a> {
    Pod(PodId),
    Host(PodId),
    Node(&'a Arc<str>),
    /// Services that share the address; at least one.
    Services(SmallVec<[&'a ObjectKey; 1]>),
    Broken(&'a Arc<str>),
    Ambiguous,
    Nobody,
}

/// By how much the API server's clock may be ahead of the node's.
const CLOCKS_APART: Duration = Duration::from_secs(60);

/// All bindings by address.
#[derive(Default)]
pub(super) struct Addresses {
    bindings: HashMap<IpAddr, SmallVec<[Binding; 1]>>,
}

impl Addresses {
    /// The API server says that `owner` has `ip`; it was created at `created` if that is known.
    ///
    /// The ownership may have begun any time since the owner exists, yet not before another owner's has ended; where
    /// the other's has not ended as far as we know, both are believed from now on, and flows meanwhile are ambiguous.
    pub fn claim(&mut self, ip: IpAddr, owner: Owner, created: Option<Timestamp>, now: Timestamp) {
        let bindings = self.bindings.entry(ip).or_default();
        if bindings.iter().any(|it| it.is_open() && !it.authored && it.owner == owner) {
            return;
        }
        // One that comes from a clock which disagrees with ours tells nothing.
        let created = created.filter(|created| created.since(now) <= CLOCKS_APART);
        let mut from = created.unwrap_or(Timestamp::MIN);
        if let Owner::Pod(_) | Owner::Broken { .. } = owner {
            for other in bindings.iter().filter(|it| matches!(it.owner, Owner::Pod(_)) && it.owner != owner) {
                from = from.max(other.until);
            }
        }
        bindings.push(Binding { owner, from: from.min(now), until: Timestamp::MAX, authored: false });
    }

    /// `owner` no longer has `ip`, whoever had said so. Returns whether the kernel had shown it there.
    pub fn release(&mut self, ip: IpAddr, owner: &Owner, now: Timestamp) -> bool {
        let mut was_authored = false;
        for binding in self.bindings.get_mut(&ip).into_iter().flatten() {
            if binding.is_open() && binding.owner == *owner {
                binding.until = now;
                was_authored |= binding.authored;
            }
        }
        was_authored
    }

    /// The kernel shows `ip` in the pod's network namespace at `at`. Returns whether that is news.
    ///
    /// Records may come late, and so out of order: what is known of the time after `at` stays as it is.
    pub fn author(&mut self, ip: IpAddr, pod: PodId, at: Timestamp) -> bool {
        let owner = Owner::Pod(pod);
        let bindings = self.bindings.entry(ip).or_default();
        let mut until = Timestamp::MAX;
        let mut next = None;
        for (index, binding) in bindings.iter_mut().enumerate().filter(|(_, it)| it.authored) {
            if binding.holds_at(at) {
                if binding.owner == owner {
                    return false;
                }
                // The address has moved on to another pod of this node.
                binding.until = at;
            } else if at < binding.from && binding.from < until {
                until = binding.from;
                next = Some(index);
            }
        }
        match next.and_then(|index| bindings.get_mut(index)).filter(|it| it.owner == owner) {
            Some(later) => later.from = at,
            None => bindings.push(Binding { owner, from: at, until, authored: true }),
        }
        true
    }

    /// Who had `ip` at a time. A pod goes before what may only share its address with it.
    pub fn at(&self, ip: IpAddr, at: Timestamp) -> Found<'_> {
        let Some(bindings) = self.bindings.get(&ip) else { return Found::Nobody };
        let mut pod = None;
        let mut ambiguous = false;
        let mut broken = None;
        let mut node = None;
        let mut host = None;
        let mut services = SmallVec::new();
        for binding in bindings.iter().filter(|it| it.holds_at(at)) {
            match &binding.owner {
                Owner::Pod(id) if binding.authored => return Found::Pod(*id),
                Owner::Pod(id) => {
                    ambiguous |= pod.is_some_and(|other| other != *id);
                    pod = Some(*id);
                }
                Owner::Broken { reason, .. } => broken = Some(reason),
                Owner::Node(name) => node = Some(name),
                Owner::Host(id) => host = Some(*id),
                Owner::Service(key) if !services.contains(&key) => services.push(key),
                Owner::Service(_) => {}
            }
        }
        match (pod, broken, node, host) {
            _ if ambiguous => Found::Ambiguous,
            // A pod that could be read and another that could not claim the same address.
            (Some(_), Some(_), ..) => Found::Ambiguous,
            (Some(id), ..) => Found::Pod(id),
            (None, Some(reason), ..) => Found::Broken(reason),
            (None, None, Some(name), _) => Found::Node(name),
            (None, None, None, Some(id)) => Found::Host(id),
            (None, None, None, None) if services.is_empty() => Found::Nobody,
            (None, None, None, None) => Found::Services(services),
        }
    }

    /// The node that has `ip` now, as its object says; of several the last.
    pub fn node(&self, ip: IpAddr) -> Option<&Arc<str>> {
        self.now(ip).rev().find_map(|owner| match owner {
            Owner::Node(name) => Some(name),
            _ => None,
        })
    }

    /// The hostNetwork pods that have `ip` now.
    pub fn hosts(&self, ip: IpAddr) -> impl Iterator<Item = PodId> {
        self.now(ip).filter_map(|owner| match owner {
            Owner::Host(id) => Some(*id),
            _ => None,
        })
    }

    fn now(&self, ip: IpAddr) -> impl DoubleEndedIterator<Item = &Owner> {
        self.bindings.get(&ip).into_iter().flatten().filter(|it| it.is_open()).map(|it| &it.owner)
    }

    /// The services that had `ip` at a time, whoever else had it.
    pub fn services(&self, ip: IpAddr, at: Timestamp) -> impl Iterator<Item = &ObjectKey> {
        let held = self.bindings.get(&ip).into_iter().flatten().filter(move |it| it.holds_at(at));
        held.filter_map(|it| match &it.owner {
            Owner::Service(key) => Some(key),
            _ => None,
        })
    }

    /// When the last of other pods than `pod` that had `ip` before `at` ceased to have it, as far as that was told.
    pub fn had_by_another(&self, ip: IpAddr, pod: PodId, at: Timestamp) -> Option<Timestamp> {
        let is_other = |it: &&Binding| matches!(it.owner, Owner::Pod(other) if other != pod);
        let had = self.bindings.get(&ip)?.iter().filter(is_other).filter(|it| it.from < at);
        had.filter(|it| !it.is_open()).map(|it| it.until).max()
    }

    /// Forgets bindings that ended before `limit`.
    pub fn expire(&mut self, limit: Timestamp) {
        self.bindings.retain(|_, bindings| {
            bindings.retain(|it| it.until >= limit);
            !bindings.is_empty()
        });
    }

    /// How many addresses are held.
    pub fn len(&self) -> usize {
        self.bindings.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Owner = Owner::Pod(PodId(1));
    const B: Owner = Owner::Pod(PodId(2));

    fn ip() -> IpAddr {
        "10.0.0.1".parse().unwrap()
    }

    fn t(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    #[test]
    fn an_address_moves_from_pod_to_pod() {
        let mut addresses = Addresses::default();
        addresses.claim(ip(), A, Some(t(10)), t(12));
        assert_eq!(addresses.at(ip(), t(9)), Found::Nobody);
        assert_eq!(addresses.at(ip(), t(11)), Found::Pod(PodId(1)));
        addresses.release(ip(), &A, t(20));
        // Created before the address was free, seen with it afterwards.
        addresses.claim(ip(), B, Some(t(15)), t(22));
        assert_eq!(addresses.at(ip(), t(19)), Found::Pod(PodId(1)));
        assert_eq!(addresses.at(ip(), t(20)), Found::Pod(PodId(2)));
        let before = |pod, at| addresses.had_by_another(ip(), PodId(pod), t(at));
        assert_eq!((before(2, 22), before(2, 9), before(1, 22)), (Some(t(20)), None, None));
        addresses.expire(t(25));
        assert_eq!(addresses.at(ip(), t(19)), Found::Nobody);
        assert_eq!(addresses.at(ip(), t(26)), Found::Pod(PodId(2)));
    }

    #[test]
    fn two_owners_are_ambiguous_until_one_goes_or_the_kernel_tells() {
        let mut addresses = Addresses::default();
        addresses.claim(ip(), A, None, t(1));
        addresses.claim(ip(), B, Some(t(2)), t(5));
        assert_eq!(addresses.at(ip(), t(4)), Found::Pod(PodId(1)));
        assert_eq!(addresses.at(ip(), t(6)), Found::Ambiguous);
        addresses.author(ip(), PodId(2), t(7));
        assert_eq!(addresses.at(ip(), t(6)), Found::Ambiguous);
        assert_eq!(addresses.at(ip(), t(7)), Found::Pod(PodId(2)));
        addresses.release(ip(), &A, t(8));
        assert_eq!(addresses.at(ip(), t(9)), Found::Pod(PodId(2)));
        addresses.author(ip(), PodId(3), t(10));
        assert_eq!(addresses.at(ip(), t(9)), Found::Pod(PodId(2)));
        assert_eq!(addresses.at(ip(), t(10)), Found::Pod(PodId(3)));
    }

    #[test]
    fn a_late_record_of_the_former_owner_leaves_the_new_one_alone() {
        let mut addresses = Addresses::default();
        assert!(addresses.author(ip(), PodId(2), t(20)));
        assert!(addresses.author(ip(), PodId(1), t(10)));
        let owners = |addresses: &Addresses, times: &[i64]| -> Vec<u32> {
            let owner = |at| match addresses.at(ip(), t(at)) {
                Found::Pod(id) => id.0,
                Found::Nobody => 0,
                other => panic!("{other:?}"),
            };
            times.iter().map(|at| owner(*at)).collect()
        };
        assert_eq!(owners(&addresses, &[9, 10, 19, 20, 1_000]), [0, 1, 1, 2, 2]);
        // Between the two no news; before, news of the same ownership.
        assert!(!addresses.author(ip(), PodId(1), t(15)));
        assert!(!addresses.author(ip(), PodId(2), t(25)));
        assert!(addresses.author(ip(), PodId(1), t(8)));
        assert_eq!(owners(&addresses, &[7, 8, 19, 20]), [0, 1, 1, 2]);
        // The new owner had it before it was first thought to.
        assert!(addresses.author(ip(), PodId(2), t(17)));
        assert_eq!(owners(&addresses, &[16, 17, 20, 1_000]), [1, 2, 2, 2]);
        // A third one in between, told last.
        assert!(addresses.author(ip(), PodId(3), t(12)));
        assert_eq!(owners(&addresses, &[11, 12, 16, 17]), [1, 3, 3, 2]);
        // The deletion of the former owner takes nothing from the present one.
        addresses.release(ip(), &A, t(30));
        assert_eq!(owners(&addresses, &[11, 16, 31]), [1, 3, 2]);
        assert!(addresses.author(ip(), PodId(4), t(40)));
        assert_eq!(owners(&addresses, &[39, 40]), [2, 4]);
    }

    #[test]
    fn nodes_and_services_yield_to_pods_and_the_unreadable() {
        let mut addresses = Addresses::default();
        let service = ObjectKey::new(super::super::Kind::Service, "ns", "s");
        addresses.claim(ip(), Owner::Service(service.clone()), None, t(0));
        assert_eq!(addresses.at(ip(), t(0)), Found::Services([&service].into_iter().collect()));
        addresses.claim(ip(), Owner::Node("n".into()), None, t(0));
        let (node, why) = ("n".into(), "why".into());
        assert_eq!(addresses.at(ip(), t(0)), Found::Node(&node));
        addresses.claim(ip(), Owner::Broken { object: "p".into(), reason: "why".into() }, None, t(0));
        assert_eq!(addresses.at(ip(), t(0)), Found::Broken(&why));
    }
}
