//! Flows of stores, counted by what decides their verdict.
//!
//! Most columns of a flow are words by number. Rows that have the same numbers are alike, so that a row costs little more than to
//! compare its numbers with those of the row before: files are sorted by ends.

use std::{collections::HashMap, sync::Arc};

use arrow::array::{Array as _, RecordBatch};

use super::{
    cuts::{Cut, Part, Span},
    history::Histories,
    rows::{Numbers, Rows, Texts},
};
use crate::{
    advise::{
        Outcome,
        what_if::{Class, End, Missing, Tally},
    },
    model::Timestamp,
};

/// What tells flows apart.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    /// The agent run that told them.
    pub run: Arc<str>,
    pub class: Result<Class, Missing>,
    /// What was recorded of the subject's end.
    pub recorded: Outcome,
}

/// Flows of a class between two changes of what it hangs on.
#[derive(Debug)]
pub(super) struct Slot {
    /// The number of its span.
    span: usize,
    pub tally: Tally,
}

#[derive(Debug)]
struct Counted {
    cut: Cut,
    /// In order.
    slots: Vec<Slot>,
    /// The one that was last counted into, and its span.
    recent: Option<(usize, Span)>,
}

/// Flows by class.
#[derive(Debug)]
pub struct Classes<'a> {
    histories: &'a Histories,
    ids: HashMap<Arc<Key>, usize, foldhash::fast::RandomState>,
    keys: Vec<Arc<Key>>,
    counted: Vec<Counted>,
    /// Of all of them.
    slots: usize,
    /// By run and what verdicts hang on.
    cuts: HashMap<(Arc<str>, Vec<Part>), Cut>,
    texts: Texts,
}

impl<'a> Classes<'a> {
    /// None yet, of runs of which these are the histories.
    pub fn new(histories: &'a Histories) -> Self {
        Self {
            histories,
            ids: HashMap::default(),
            keys: Vec::new(),
            counted: Vec::new(),
            slots: 0,
            cuts: HashMap::new(),
            texts: Texts::default(),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// How many there are by the times between cuts: that many are judged.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Of each run that told of flows the time of the last one.
    pub fn runs(&self) -> Vec<(Arc<str>, Timestamp)> {
        let mut last: HashMap<&Arc<str>, Timestamp> = HashMap::new();
        for (key, slots) in self.iter() {
            let time = last.entry(&key.run).or_insert(Timestamp::MIN);
            *time = slots.iter().map(|slot| slot.tally.last).max().unwrap_or(*time).max(*time);
        }
        let mut runs: Vec<_> = last.into_iter().map(|(run, time)| (run.clone(), time)).collect();
        runs.sort();
        runs
    }

    /// Those that can be judged, with how many flows they have.
    pub fn flows(&self) -> impl Iterator<Item = (&Class, u64)> {
        self.iter().filter_map(|(key, slots)| {
            let flows = slots.iter().map(|slot| slot.tally.flows).sum();
            Some((key.class.as_ref().ok()?, flows))
        })
    }

    /// Flows of which the record does not say enough to be judged.
    pub fn nameless(&self) -> u64 {
        let nameless = self.iter().filter(|(key, _)| key.class.is_err());
        nameless.flat_map(|(_, slots)| slots).map(|slot| slot.tally.flows).sum()
    }

    /// Takes out those that are wanted.
    pub(super) fn take(&mut self, is_wanted: impl Fn(&Class) -> bool) -> Self {
        let mut taken = Self::new(self.histories);
        let mut kept = Self { cuts: std::mem::take(&mut self.cuts), ..Self::new(self.histories) };
        for (key, counted) in self.keys.drain(..).zip(self.counted.drain(..)) {
            let to = if key.class.as_ref().is_ok_and(&is_wanted) { &mut taken } else { &mut kept };
            to.ids.insert(key.clone(), to.keys.len());
            to.keys.push(key);
            to.slots += counted.slots.len();
            to.counted.push(counted);
        }
        *self = kept;
        taken
    }

    /// Adds flows of one time.
    pub(super) fn put(&mut self, key: Key, tally: &Tally) {
        let id = self.id(key);
        let slots = &mut self.counted[id].slots;
        slots.push(Slot { span: slots.len(), tally: tally.clone() });
        self.slots += 1;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &[Slot])> {
        self.keys.iter().zip(&self.counted).map(|(key, counted)| (&**key, counted.slots.as_slice()))
    }

    /// Counts the flows of a batch that has [`COLUMNS`](super::COLUMNS).
    ///
    /// # Errors
    ///
    /// A column is missing or of another type.
    pub fn add(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        let rows = Rows::of(batch)?;
        let mut known: HashMap<Numbers, usize, foldhash::fast::RandomState> = HashMap::default();
        let mut names: HashMap<Vec<&str>, u32> = HashMap::new();
        let mut last: Option<(Numbers, usize)> = None;
        for row in 0..batch.num_rows() {
            let numbers = rows.numbers(row, &mut names);
            let id = match last {
                Some((same, id)) if same == numbers => id,
                _ => match known.get(&numbers) {
                    Some(id) => *id,
                    None => {
                        let key = rows.key(row, &mut self.texts);
                        let id = self.id(key);
                        known.insert(numbers, id);
                        id
                    }
                },
            };
            last = Some((numbers, id));
            self.count(id, &rows, row);
        }
        Ok(())
    }

    /// The classes of the flows of a batch, one by one, with when they began: to be judged one by one.
    ///
    /// # Errors
    ///
    /// A column is missing or of another type.
    pub fn each(batch: &RecordBatch) -> anyhow::Result<Vec<(Class, Timestamp)>> {
        let rows = Rows::of(batch)?;
        let mut texts = Texts::default();
        let flow =
            |row| Some((rows.key(row, &mut texts).class.ok()?, Timestamp(rows.times.value(row) * 1_000)));
        Ok((0..batch.num_rows()).filter_map(flow).collect())
    }

    fn id(&mut self, key: Key) -> usize {
        if let Some(id) = self.ids.get(&key) {
            return *id;
        }
        let cut = self.cut_of(&key);
        let (id, key) = (self.keys.len(), Arc::new(key));
        self.ids.insert(key.clone(), id);
        self.keys.push(key);
        self.counted.push(Counted { cut, slots: Vec::new(), recent: None });
        id
    }

    fn cut_of(&mut self, key: &Key) -> Cut {
        let (Some(history), Ok(class)) = (self.histories.of(&key.run), &key.class) else {
            return Cut::new(std::iter::empty());
        };
        let parts = parts(class);
        let cuts = self.cuts.entry((key.run.clone(), parts));
        cuts.or_insert_with_key(|(_, parts)| history.cuts(parts)).clone()
    }

    fn count(&mut self, id: usize, rows: &Rows<'_>, row: usize) {
        let time = Timestamp(rows.times.value(row).saturating_mul(1_000));
        let counted = &mut self.counted[id];
        let slots = &mut counted.slots;
        let (found, span) = match counted.recent {
            Some(recent) if recent.1.holds(time) => recent,
            _ => {
                let span = counted.cut.span(time);
                let found = slots.binary_search_by_key(&span.number, |slot| slot.span);
                let found = found.unwrap_or_else(|place| {
                    if slots.is_empty() {
                        // Many have one only.
                        slots.reserve_exact(1);
                    }
                    slots.insert(place, Slot { span: span.number, tally: Tally::default() });
                    self.slots += 1;
                    place
                });
                *counted.recent.insert((found, span))
            }
        };
        let tally = &mut slots[found].tally;
        let flows = rows.counts.value(row);
        tally.records += 1;
        tally.flows += flows;
        if rows.folded.value(row) {
            tally.folded += flows;
            let until = match rows.last_times.is_null(row) {
                true => time,
                false => Timestamp(rows.last_times.value(row).saturating_mul(1_000)),
            };
            if until >= span.until {
                tally.spanning += flows;
            }
            tally.last = tally.last.max(until);
        }
        if rows.maybe_repeated.value(row) {
            tally.maybe_repeated += flows;
        }
        if rows.reached.is(row) {
            tally.reached += flows;
        }
        if rows.unenforced.is(row) {
            tally.unenforced += flows;
        }
        tally.first = tally.first.min(time);
        if time >= tally.last {
            tally.last = time;
            tally.example = rows.sequences.value(row);
        } else if tally.example == 0 {
            tally.example = rows.sequences.value(row);
        }
    }
}

/// What a class's verdict hangs on, in order.
fn parts(class: &Class) -> Vec<Part> {
    let mut parts = vec![Part::Cluster];
    for end in [&class.subject, &class.peer] {
        match end {
            End::Pod { namespace, name, .. } => {
                parts.push(Part::Namespace(namespace.clone()));
                parts.push(Part::Pod(namespace.clone(), name.clone()));
            }
            End::Node { name, .. } => parts.push(Part::Node(name.clone())),
            End::Service { namespace, name, .. } => {
                parts.push(Part::Namespace(namespace.clone()));
                parts.push(Part::Services(namespace.clone()));
                parts.push(Part::Pods(namespace.clone()));
                parts.push(Part::Behind(namespace.clone(), name.clone()));
            }
            // Who had an address is not asked again: that is in the record.
            End::Loopback | End::External { .. } => {}
        }
    }
    // A port on the nodes that leads to the subject hides who asks.
    if let (End::Node { .. }, End::Pod { namespace, .. }) = (&class.peer, &class.subject) {
        parts.push(Part::Services(namespace.clone()));
    }
    parts.sort();
    parts.dedup();
    parts
}
