//! Reads rings, and hands on what their records say.

use super::{Clock, Event, cgroups::Hierarchy, decode, drops::Drops, former::Span, ring::Ring};

/// Reads rings.
pub struct Reader<'a> {
    pub clock: &'a Clock,
    pub hierarchy: &'a Hierarchy,
    pub drops: &'a mut Drops,
    pub undecodable: &'a mut u64,
    pub sink: &'a mut dyn FnMut(Event),
}

impl Reader<'_> {
    /// Reads up to `max` records of a ring, and hands on those whose subject began in `span`. Returns how many it read.
    pub fn read(&mut self, ring: &mut Ring, span: Span, max: usize) -> usize {
        let mut taken = 0;
        while taken < max {
            let Some(record) = ring.next() else { break };
            taken += 1;
            let decoded = decode(record, self.clock);
            let maybe_repeated = ring.is_read_again();
            match decoded {
                Ok(event) if !span.holds(&event) => {}
                Ok(Event::Cgroup { id, path, made }) => {
                    (self.sink)(Event::Cgroup { id, path: self.hierarchy.path_from_mount(path), made });
                }
                Ok(mut event) => {
                    match &mut event {
                        Event::Flow(seen) => {
                            seen.maybe_repeated = maybe_repeated;
                            self.drops.meet(seen.netns);
                        }
                        Event::Drop(seen) => seen.maybe_repeated = maybe_repeated,
                        Event::RawSocket(seen) => self.drops.meet(seen.netns),
                        _ => {}
                    }
                    (self.sink)(event);
                }
                Err(error) => {
                    *self.undecodable += 1;
                    tracing::debug!(%error, "a kernel record cannot be read");
                }
            }
        }
        taken
    }
}
