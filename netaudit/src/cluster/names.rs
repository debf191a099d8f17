//! Which names DNS gave for addresses.

use std::{net::IpAddr, sync::Arc};

use foldhash::HashMap;

use crate::policy::{KnownNames, normal_name};

/// Names by address. Empty until somebody tells: then nobody knows the names of any address.
#[derive(Default)]
pub(super) struct Names {
    by_address: HashMap<IpAddr, Arc<[Arc<str>]>>,
    /// What an address without names has; `None` as long as nobody told of any.
    nameless: Option<Arc<[Arc<str>]>>,
    /// Whether addresses may have more names than these.
    are_some: bool,
}

impl Names {
    /// All names of all addresses, or some of them, in place of those known so far.
    pub fn replace(&mut self, answers: impl IntoIterator<Item = (String, IpAddr)>, are_some: bool) {
        let mut by_address: HashMap<IpAddr, Vec<Arc<str>>> = HashMap::default();
        for (name, ip) in answers {
            by_address.entry(ip.to_canonical()).or_default().push(normal_name(&name).into());
        }
        let sorted = |mut names: Vec<Arc<str>>| {
            names.sort();
            names.dedup();
            names.into()
        };
        self.by_address = by_address.into_iter().map(|(ip, names)| (ip, sorted(names))).collect();
        self.nameless.get_or_insert_with(|| [].into());
        self.are_some = are_some;
    }

    /// What is known of the names of these addresses, which one peer has, in order.
    pub fn of_any(&self, ips: &[IpAddr]) -> KnownNames<Arc<[Arc<str>]>> {
        match self.names_of_any(ips) {
            None => KnownNames::Unknown,
            Some(names) if self.are_some && names.is_empty() => KnownNames::Unknown,
            Some(names) if self.are_some => KnownNames::Some(names),
            Some(names) => KnownNames::All(names),
        }
    }

    fn names_of_any(&self, ips: &[IpAddr]) -> Option<Arc<[Arc<str>]>> {
        let nameless = self.nameless.as_ref()?;
        let mut found = ips.iter().filter_map(|ip| self.by_address.get(&ip.to_canonical()));
        let Some(first) = found.next() else { return Some(nameless.clone()) };
        let mut rest = found.flat_map(|names| names.iter().cloned()).peekable();
        if rest.peek().is_none() {
            return Some(first.clone());
        }
        let mut names: Vec<_> = first.iter().cloned().chain(rest).collect();
        names.sort();
        names.dedup();
        Some(names.into())
    }
}
