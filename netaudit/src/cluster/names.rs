//! Which names DNS gave for addresses.

use std::{net::IpAddr, sync::Arc};

use foldhash::HashMap;

use crate::policy::normal_name;

/// Names by address. Empty until somebody tells: then nobody knows the names of any address.
#[derive(Default)]
pub(super) struct Names {
    by_address: HashMap<IpAddr, Arc<[Arc<str>]>>,
    known: bool,
}

impl Names {
    /// All names of all addresses, in place of those known so far.
    pub fn replace(&mut self, answers: impl IntoIterator<Item = (String, IpAddr)>) {
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
        self.known = true;
    }

    /// The names of an address, in order; `None` where nobody knows.
    pub fn of(&self, ip: IpAddr) -> Option<Arc<[Arc<str>]>> {
        let names = self.by_address.get(&ip.to_canonical()).cloned();
        if self.known { Some(names.unwrap_or_else(|| [].into())) } else { None }
    }
}
