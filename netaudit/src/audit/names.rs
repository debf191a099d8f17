//! Which names DNS gave for addresses, by the network namespace that was told.
//!
//! Names are good for the namespace whose socket asked, and for no other: a pod that asks a server of its own for whatever it
//! likes names its own flows only. There is no table for the whole node behind that, as it would be everybody's to write.
//!
//! ```text
//!  answer ─► fresh: for its time to live, [FRESH_AT_LEAST] at least ─► stale: for [STALE] more ─► forgotten
//!              ▲ the same name again                                    │
//!              └────────────────────────────────────────────────────────┘
//! ```
//!
//! Memory is bounded, per namespace and in all. Where one has too much, the quarter of its addresses that was told longest
//! ago goes; where all have, that of the one which has most.

use std::{net::IpAddr, sync::Arc, time::Duration};

use foldhash::HashMap;

use super::DnsReading;
use crate::model::{NetnsCookie, Timestamp};

/// Whoever asks connects after the answer, also where that says that it is good for this once.
pub const FRESH_AT_LEAST: Duration = Duration::from_secs(5);

/// How long a name is kept after it was fresh: programs keep addresses for longer than they may.
pub const STALE: Duration = Duration::from_secs(3600);

/// Addresses of one namespace.
const MOST_ADDRESSES: usize = 2_048;
/// Addresses of all of them.
const MOST_ADDRESSES_IN_ALL: usize = 32_768;
/// Names of one address.
const MOST_NAMES: usize = 16;
/// Bytes of one namespace.
const MOST_BYTES: usize = 2 << 20;
/// Bytes of all of them.
const MOST_BYTES_IN_ALL: usize = 16 << 20;

/// What an address and a name take beside the name's letters.
const BYTES_OF_ADDRESS: usize = 64;
const BYTES_OF_NAME: usize = size_of::<Known>() + 16;

/// A time in which something holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Span {
    since: Timestamp,
    until: Timestamp,
}

impl Span {
    fn holds(&self, at: Timestamp) -> bool {
        (self.since..self.until).contains(&at)
    }

    /// It holds from `at` on, or still.
    fn extend(&mut self, at: Timestamp, until: Timestamp) {
        if at >= self.until {
            self.since = at;
        }
        self.until = self.until.max(until);
    }
}

/// A name of an address, as one server told it.
#[derive(Clone, Debug)]
struct Known {
    name: Arc<str>,
    server: IpAddr,
    /// When it was told first.
    first: Timestamp,
    /// When it was told last.
    last: Timestamp,
    fresh: Span,
    /// The same of answers in which it is what was asked for, and not what that is an alias of.
    asked: Option<Span>,
}

impl Known {
    fn bytes(&self) -> usize {
        BYTES_OF_NAME + self.name.len()
    }
}

/// A name that an address had at some time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeenName {
    /// The name, in lower case, without the dot at the end.
    pub name: Arc<str>,
    /// Who told it.
    pub server: IpAddr,
    /// When.
    pub answered: Timestamp,
    /// Whether the answer was still good at that time.
    pub is_fresh: bool,
    /// Whether it was asked for, and not only what that is an alias of.
    pub is_asked: bool,
    /// Whether policies that name domains may go by it: it is fresh, was asked for, and told by a server that may.
    pub counts: bool,
}

/// What is known in a namespace.
#[derive(Debug, Default)]
struct Space {
    by_address: HashMap<IpAddr, Vec<Known>>,
    bytes: usize,
}

impl Space {
    fn is_full(&self) -> bool {
        self.by_address.len() > MOST_ADDRESSES || self.bytes > MOST_BYTES
    }

    /// Forgets the quarter of its addresses that was told longest ago. Returns how many names that were.
    fn shrink(&mut self) -> u64 {
        let last = |names: &[Known]| names.iter().map(|known| known.last).max().unwrap_or(Timestamp::MIN);
        let mut times: Vec<_> = self.by_address.iter().map(|(ip, names)| (last(names), *ip)).collect();
        let goes = times.len().div_ceil(4);
        if goes < times.len() {
            times.select_nth_unstable(goes);
        }
        let mut forgotten = 0;
        for (_, ip) in &times[..goes] {
            for known in self.by_address.remove(ip).into_iter().flatten() {
                self.bytes -= known.bytes();
                forgotten += 1;
            }
            self.bytes -= BYTES_OF_ADDRESS;
        }
        forgotten
    }
}

/// What became of answers and names, since the start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct NameCounts {
    /// Answers that named an address.
    pub named: u64,
    /// Answers without an address.
    pub without_address: u64,
    /// Answers that are malformed.
    pub malformed: u64,
    /// Answers to a question for a name that no host can have.
    pub not_a_host: u64,
    /// Of all these, those that said that they are not whole, or of which the kernel told the beginning only.
    pub truncated: u64,
    /// Names that were forgotten before their time, for want of room.
    pub evicted: u64,
    /// Names that were forgotten when their time was over.
    pub expired: u64,
}

/// All names.
#[derive(Debug, Default)]
pub struct Names {
    spaces: HashMap<NetnsCookie, Space>,
    /// Addresses of all spaces.
    addresses: usize,
    /// Bytes of all spaces.
    bytes: usize,
    counts: NameCounts,
}

impl Names {
    /// What became of answers and names.
    pub fn counts(&self) -> &NameCounts {
        &self.counts
    }

    /// The same, to count answers that cannot be read.
    pub(super) fn counts_mut(&mut self) -> &mut NameCounts {
        &mut self.counts
    }

    /// How many addresses have names, each once a namespace, and how many names they have.
    pub fn len(&self) -> (usize, usize) {
        let names = |space: &Space| space.by_address.values().map(Vec::len).sum::<usize>();
        (self.addresses, self.spaces.values().map(names).sum())
    }

    /// Whether no address has a name.
    pub fn is_empty(&self) -> bool {
        self.spaces.is_empty()
    }

    /// `server` has told a socket of `netns` this.
    pub fn learn(&mut self, netns: NetnsCookie, server: IpAddr, at: Timestamp, told: &DnsReading) {
        if told.addresses.is_empty() {
            self.counts.without_address += 1;
            return;
        }
        self.counts.named += 1;
        let until = at.plus(told.ttl.max(FRESH_AT_LEAST));
        let space = self.spaces.entry(netns).or_default();
        let (addresses, bytes) = (space.by_address.len(), space.bytes);
        for ip in &told.addresses {
            let names = space.by_address.entry(*ip).or_insert_with(|| {
                space.bytes += BYTES_OF_ADDRESS;
                Vec::with_capacity(told.names.len())
            });
            for (position, name) in told.names.iter().enumerate() {
                let asked = (position == 0).then_some(Span { since: at, until });
                if let Some(known) = names.iter_mut().find(|it| it.server == server && it.name == *name) {
                    known.last = known.last.max(at);
                    known.fresh.extend(at, until);
                    match (&mut known.asked, asked) {
                        (Some(span), Some(_)) => span.extend(at, until),
                        (none, asked) => *none = none.or(asked),
                    }
                    continue;
                }
                if names.len() >= MOST_NAMES
                    && let Some(oldest) =
                        names.iter().enumerate().min_by_key(|(_, it)| it.fresh.until).map(|(at, _)| at)
                {
                    space.bytes -= names.swap_remove(oldest).bytes();
                    self.counts.evicted += 1;
                }
                let fresh = Span { since: at, until };
                let known = Known { name: name.clone(), server, first: at, last: at, fresh, asked };
                space.bytes += known.bytes();
                names.push(known);
            }
        }
        if space.is_full() {
            self.counts.evicted += space.shrink();
        }
        self.addresses = self.addresses - addresses + space.by_address.len();
        self.bytes = self.bytes - bytes + space.bytes;
        self.make_room();
    }

    fn make_room(&mut self) {
        // Each round takes a quarter of what the largest has, so it ends.
        while self.addresses > MOST_ADDRESSES_IN_ALL || self.bytes > MOST_BYTES_IN_ALL {
            let Some((netns, largest)) = self.spaces.iter_mut().max_by_key(|(_, space)| space.bytes) else {
                return;
            };
            let (netns, addresses, bytes) = (*netns, largest.by_address.len(), largest.bytes);
            self.counts.evicted += largest.shrink();
            self.addresses -= addresses - largest.by_address.len();
            self.bytes -= bytes - largest.bytes;
            if largest.by_address.is_empty() {
                self.spaces.remove(&netns);
            }
        }
    }

    /// The names that `ip` had in `netns` at a time: those that were asked for first, then those that are fresh, then those
    /// that were told last. `may_tell` says whose word policies may go by.
    pub fn of(
        &self,
        netns: NetnsCookie,
        ip: IpAddr,
        at: Timestamp,
        mut may_tell: impl FnMut(IpAddr) -> bool,
    ) -> Vec<SeenName> {
        let Some(names) = self.spaces.get(&netns).and_then(|space| space.by_address.get(&ip)) else {
            return Vec::new();
        };
        let until = |known: &Known| known.fresh.until.plus(STALE);
        let known = names.iter().filter(|known| (known.first..until(known)).contains(&at));
        let mut seen: Vec<_> = known
            .map(|known| SeenName {
                name: known.name.clone(),
                server: known.server,
                answered: if known.last <= at { known.last } else { known.first },
                is_fresh: known.fresh.holds(at),
                is_asked: known.asked.is_some(),
                counts: known.asked.is_some_and(|span| span.holds(at)) && may_tell(known.server),
            })
            .collect();
        let rank = |seen: &SeenName| (!seen.is_asked, !seen.is_fresh, std::cmp::Reverse(seen.answered));
        seen.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.name.cmp(&b.name)));
        seen
    }

    /// Forgets what has been stale for too long. To be called every minute or so.
    pub fn expire(&mut self, now: Timestamp) {
        let counts = &mut self.counts;
        self.spaces.retain(|_, space| {
            let bytes = &mut space.bytes;
            space.by_address.retain(|_, names| {
                names.retain(|known| {
                    let keep = now < known.fresh.until.plus(STALE);
                    if !keep {
                        *bytes -= known.bytes();
                        counts.expired += 1;
                    }
                    keep
                });
                if names.is_empty() {
                    *bytes -= BYTES_OF_ADDRESS;
                }
                !names.is_empty()
            });
            !space.by_address.is_empty()
        });
        self.addresses = self.spaces.values().map(|space| space.by_address.len()).sum();
        self.bytes = self.spaces.values().map(|space| space.bytes).sum();
    }
}
