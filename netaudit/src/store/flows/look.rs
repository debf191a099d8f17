//! Which parts of stores can hold what is asked for.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::SystemTime,
};

use parquet::arrow::arrow_reader::ArrowReaderMetadata;

use super::{
    ask::{Among, Scanned, Store},
    files::{self, FlowFile, Told},
    filter::Filter,
    hours::Hours,
    segment::Mark,
    source::{Place, Source, TAIL},
    table::FLOWS,
};
use crate::store::bucket::{Bucket, Object};

/// Bytes of footers that are kept until their files are read; beyond that a footer is read twice.
pub(super) const FOOTERS: usize = 128 << 20;

/// A part of a store that holds flows of one hour.
#[derive(Clone, Debug)]
pub(super) enum Part {
    /// With its footer, where there was room for it.
    File(Place, Option<ArrowReaderMetadata>),
    Segment(PathBuf),
}

impl Part {
    /// For people.
    pub fn name(&self) -> PathBuf {
        match self {
            Self::File(place, _) => place.name(),
            Self::Segment(path) => path.clone(),
        }
    }
}

/// The parts that can hold what is asked for, by hour, and what all tell of their time.
pub(super) struct Found {
    pub parts: BTreeMap<i64, Vec<Part>>,
    pub marks: Vec<Mark>,
    footers: usize,
    most_footers: usize,
}

impl Found {
    /// Nothing yet, and at most so many bytes of footers.
    pub fn within(most_footers: usize) -> Self {
        Self { parts: BTreeMap::new(), marks: Vec::new(), footers: 0, most_footers }
    }

    pub fn look(
        &mut self,
        store: &Store,
        among: Among,
        filter: &Filter,
        scanned: &mut Scanned,
    ) -> anyhow::Result<()> {
        match store {
            Store::Directory(directory) => self.look_in(directory, among, Hours::of(filter), scanned),
            Store::Bucket(bucket) => self.look_far(bucket, Hours::of(filter), scanned),
        }
    }

    fn look_in(
        &mut self,
        store: &Path,
        among: Among,
        hours: Hours,
        scanned: &mut Scanned,
    ) -> anyhow::Result<()> {
        // Segments first: one that becomes a file meanwhile is found as both, and so read once.
        let segments = files::segments(store, &FLOWS)?;
        let mut files = files::list(store, &FLOWS)?;
        if let Among::NewerThan(time) = among {
            let made = |file: &FlowFile| -> Option<SystemTime> { file.path.metadata().ok()?.modified().ok() };
            files.retain(|file| made(file).is_some_and(|made| made >= time));
        }
        files.retain(|file| hours.wider().has(file.hour));
        let mut told: Vec<Told> = Vec::new();
        for file in files {
            let footer = Source::of_file(&file.path)
                .map_err(Into::into)
                .and_then(|source| files::what_it_says(&source, &FLOWS));
            told.extend(self.add(file.hour, hours, Place::File(file.path), footer, scanned));
        }
        for (path, mark) in segments {
            if mark.as_ref().is_some_and(|mark| told.iter().any(|told| told.holds(mark))) {
                continue;
            }
            let began = mark.as_ref().map_or(0, |mark| files::hour_of(mark.from));
            self.marks.extend(mark);
            // It may hold flows that began long before, and is small.
            self.parts.entry(began.max(hours.from).min(hours.until)).or_default().push(Part::Segment(path));
        }
        self.marks.extend(told.into_iter().map(|told| told.mark));
        Ok(())
    }

    fn look_far(&mut self, bucket: &Bucket, hours: Hours, scanned: &mut Scanned) -> anyhow::Result<()> {
        let listed = Hours { until: hours.until.min(Hours::latest()), ..hours };
        let objects = bucket.list(&listed.wider().prefixes(&FLOWS))?;
        let files = objects.into_iter().filter_map(|object| Some((files::hour_of_key(&object.key)?, object)));
        let files: Vec<(i64, Object)> = files.filter(|(hour, _)| hours.wider().has(*hour)).collect();
        // So many at once that their tails take little room.
        for files in files.chunks(256) {
            let objects: Vec<Object> = files.iter().map(|(_, object)| object.clone()).collect();
            for ((hour, object), tail) in files.iter().zip(bucket.tails(&objects, TAIL)) {
                let footer = tail
                    .and_then(|tail| files::what_it_says(&Source::of_object(bucket, object, tail), &FLOWS));
                let place = Place::Object(bucket.clone(), object.clone());
                let told = self.add(*hour, hours, place, footer, scanned);
                self.marks.extend(told.map(|told| told.mark));
            }
        }
        Ok(())
    }

    /// Adds a file, where its hour is asked for. Returns what it says of itself.
    fn add(
        &mut self,
        hour: i64,
        hours: Hours,
        place: Place,
        footer: anyhow::Result<(ArrowReaderMetadata, Told)>,
        scanned: &mut Scanned,
    ) -> Option<Told> {
        let (footer, told) = match footer {
            Ok(footer) => footer,
            Err(error) => {
                if !files::is_gone(&error) {
                    scanned.unreadable.push((place.name(), format!("{error:#}")));
                }
                return None;
            }
        };
        if hours.has(hour) {
            let bytes = footer.metadata().memory_size();
            let has_room = self.footers + bytes <= self.most_footers;
            self.footers += if has_room { bytes } else { 0 };
            self.parts.entry(hour).or_default().push(Part::File(place, has_room.then_some(footer)));
        }
        Some(told)
    }
}
