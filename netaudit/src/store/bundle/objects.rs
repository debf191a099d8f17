//! The history of a bundle: what its flows were judged by. Of each agent run of the window the objects at its begin, and what
//! changed in it; and the policies once more, as text for people.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::PathBuf,
};

use arrow::{array::BooleanArray, compute::filter_record_batch};
use parquet::arrow::ArrowWriter;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{PolicyChange, PolicyTold, RunTold, flows::Told, hex, stretches::stretches, wall, write::Bundle};
use crate::{
    cluster::{Kind, REMEMBERED},
    model::Timestamp,
    store::{
        flows::{ask::Store, files, lost, roll::properties, segment::Mark, table::OBJECTS},
        history::{
            Verb,
            doubts::{begins, gaps, missing, stopped},
            holding::Survey,
            parts::{Parts, Span},
            read::{Change, Key, Wanted, batches, changes_of, read},
            state::{HELD, Run, in_effect, runs},
        },
    },
};

/// What there is of the history.
#[derive(Clone, Default, Debug)]
pub struct History {
    /// Runs.
    pub runs: Vec<RunTold>,
    /// Policies.
    pub policies: Vec<PolicyTold>,
    /// What is missing, in sentences.
    pub missing: Vec<String>,
    /// What could not be read, and why.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// Adds the history that is needed to judge flows of a window again.
///
/// # Errors
///
/// A store cannot be listed, or the bundle not be written.
pub fn add(
    bundle: &mut Bundle,
    stores: &[Store],
    (since, until): (Timestamp, Timestamp),
    flows: &Told,
) -> anyhow::Result<History> {
    let parts = Parts::find(stores, Span::of_flows(Some(since), Some(until)))?;
    let (known, read) = runs(&parts)?;
    let mut history = History { unreadable: read.unreadable, ..History::default() };
    let before: Vec<&str> = in_effect(&known, since).into_iter().map(|run| &*run.run).collect();
    let is_wanted = |run: &&Run| {
        let mut marks = read.marks.iter().filter(|mark| mark.run == run.run);
        flows.runs.contains(&run.run)
            || before.contains(&&*run.run)
            || marks.any(|mark| mark.until >= since && mark.from <= until)
    };
    let wanted: Vec<&Run> = known.iter().filter(is_wanted).collect();
    for run in &flows.runs {
        if !wanted.iter().any(|known| known.run == *run) {
            history.missing.push(format!("there is no history of the objects of run {run}"));
        }
    }
    // Whose word counts at the end: of each node the run that knew everything then, or its last one. Those that had stopped to
    // listen by then know less, and count only where there is nobody else.
    let mut last: BTreeMap<&str, &Run> = wanted.iter().map(|run| (&*run.node, *run)).collect();
    last.extend(in_effect(&known, until).into_iter().map(|run| (&*run.node, run)));
    let listens = |run: &Run| stopped(&read.marks, run, until).is_none();
    if last.values().any(|run| listens(run)) {
        last.retain(|_, run| listens(run));
    }
    let mut policies = Policies::default();
    for run in wanted {
        let window = Window { begin: since.minus(REMEMBERED), since, until, marks: &read.marks };
        let is_last = last.get(&*run.node).is_some_and(|last| last.run == run.run);
        let told = window.add(bundle, &parts, run, is_last, &mut policies, &mut history.unreadable)?;
        history.missing.extend(window.missing(run));
        history.runs.push(told);
    }
    // Each is read more than once.
    history.unreadable.sort();
    history.unreadable.dedup_by(|a, b| a.0 == b.0);
    history.missing.sort();
    history.missing.dedup();
    history.policies = policies.add(bundle)?;
    Ok(history)
}

/// The time of which the history is taken.
struct Window<'a> {
    /// As long before the flows as a pod that is gone may still be theirs.
    begin: Timestamp,
    since: Timestamp,
    until: Timestamp,
    marks: &'a [Mark],
}

/// Files of one run that are written.
type Files = BTreeMap<i64, (ArrowWriter<Vec<u8>>, u64)>;

impl Window<'_> {
    /// What is missing of a run, in sentences.
    fn missing(&self, run: &Run) -> Vec<String> {
        if run.complete().is_none() {
            return vec![format!("run {} on {} never had a list of all objects", run.run, run.node)];
        }
        if let Some(begins) = begins(self.marks, run).filter(|begins| *begins > self.since) {
            return vec![format!("the history of {} begins at {begins}", run.node)];
        }
        // When nobody wrote anything down is told by the coverage of flows.
        missing(self.marks, run, self.until)
    }

    /// Adds the rows of a run that are needed.
    fn add(
        &self,
        bundle: &mut Bundle,
        parts: &Parts,
        run: &Run,
        is_last: bool,
        policies: &mut Policies,
        unreadable: &mut Vec<(PathBuf, String)>,
    ) -> anyhow::Result<RunTold> {
        let folded = begins(self.marks, run);
        let from = self.begin.max(folded.unwrap_or(Timestamp::MIN));
        let has_earlier = run.first <= from;
        let kept = if has_earlier { self.at_begin(parts, run, unreadable)? } else { HashSet::new() };
        // A flow before the run knew all objects is judged by those.
        let end = self.until.max(run.complete().unwrap_or(Timestamp::MIN)).plus(HELD);
        let begin_hour = files::hour_of(from);
        let (mut earlier, mut later) = (Files::new(), Files::new());
        let mut written = HashSet::new();
        let mut of_run: BTreeMap<Key, Change> = BTreeMap::new();
        let wanted = Wanted { until: Some(end), run: Some(&run.run), ..Wanted::default() };
        let read = batches(parts, wanted, &mut |batch| {
            // In which file each row belongs: of what was before, or of its hour.
            let mut places: Vec<Option<(bool, i64)>> = Vec::with_capacity(batch.num_rows());
            changes_of(batch, Wanted::default(), &mut |change| {
                let is_before = change.time <= self.begin;
                let is_kept = change.run == run.run
                    && change.node == run.node
                    && change.time <= end
                    && (!is_before || change.verb == Verb::Listed || kept.contains(&change.sequence))
                    && written.insert(change.sequence);
                let hour = files::hour_of(change.time);
                let is_earlier = has_earlier && change.time <= from;
                places.push(is_kept.then_some(if is_earlier { (true, begin_hour) } else { (false, hour) }));
                if is_kept && change.verb != Verb::Listed && change.time <= self.until {
                    policies.note(&mut of_run, change);
                }
                Ok(())
            })?;
            let different: BTreeSet<(bool, i64)> = places.iter().flatten().copied().collect();
            for place in different {
                let mask: BooleanArray = places.iter().map(|it| Some(*it == Some(place))).collect();
                let rows = filter_record_batch(batch, &mask)?;
                let (is_earlier, hour) = place;
                let files = if is_earlier { &mut earlier } else { &mut later };
                let file = match files.entry(hour) {
                    std::collections::btree_map::Entry::Occupied(file) => file.into_mut(),
                    std::collections::btree_map::Entry::Vacant(none) => none.insert((new_file()?, 0)),
                };
                file.0.write(&rows)?;
                file.1 += rows.num_rows() as u64;
                if file.0.in_progress_size() as u64 >= OBJECTS.segment_bytes {
                    file.0.flush()?;
                }
            }
            Ok(())
        })?;
        unreadable.extend(read.unreadable);
        let of_its = || self.marks.iter().filter(|mark| mark.run == run.run && mark.node == run.node);
        let told = Mark::first(&OBJECTS, &run.node, &run.run, from);
        if has_earlier {
            let before = || of_its().filter(|mark| mark.until <= from || mark.number == 0);
            // As what retention folds: it says that nothing is known of earlier times.
            let holes = before().any(|mark| mark.holes)
                || !gaps(self.marks, &run.node, &run.run, Some(from)).is_empty();
            let mark = Mark { number: 0, lost_after: lost(before()), holes, ..told.clone() };
            let (file, rows) = match earlier.remove(&begin_hour) {
                Some(file) => file,
                None => (new_file()?, 0),
            };
            bundle.add_file(&OBJECTS, begin_hour, &mark, file, rows)?;
        }
        for (hour, (file, rows)) in later {
            let at = Timestamp(hour.saturating_mul(3_600_000_000_000)).max(run.first);
            let mark = Mark { from: at, until: at, ..told.clone() };
            bundle.add_file(&OBJECTS, hour, &mark, file, rows)?;
        }
        let marks: Vec<Mark> =
            of_its().filter(|mark| mark.number > 0 && mark.until > from).cloned().collect();
        for stretch in stretches(&marks, from, end) {
            bundle.add_table(&OBJECTS, stretch.hour, &stretch.mark, &[])?;
        }
        if is_last {
            policies.at_end(of_run);
        }
        let history_from = has_earlier.then(|| wall(from));
        Ok(RunTold { node: run.node.clone(), run: run.run.clone(), history_from })
    }

    /// The numbers of the rows that say what there was at the begin.
    fn at_begin(
        &self,
        parts: &Parts,
        run: &Run,
        unreadable: &mut Vec<(PathBuf, String)>,
    ) -> anyhow::Result<HashSet<u64>> {
        let mut survey = Survey::default();
        let wanted = Wanted { until: Some(self.begin), run: Some(&run.run), is_bare: true, kinds: &[] };
        let read = read(parts, wanted, &mut |change| {
            if change.verb != Verb::Listed && change.node == run.node {
                survey.note(change);
            }
            Ok(())
        })?;
        unreadable.extend(read.unreadable);
        Ok(survey.sequences().collect())
    }
}

fn new_file() -> anyhow::Result<ArrowWriter<Vec<u8>>> {
    Ok(ArrowWriter::try_new(Vec::new(), (OBJECTS.schema)(), Some(properties(&OBJECTS)))?)
}

/// The policies of a window.
#[derive(Default)]
struct Policies {
    /// What became of each, by whoever learnt it.
    changes: BTreeMap<Key, Vec<(Timestamp, PolicyChange)>>,
    /// The last text of each.
    texts: BTreeMap<Key, Change>,
    /// Those that were there at the end.
    present: BTreeSet<Key>,
}

impl Policies {
    /// Notes a change, and in `of_run` the last one of each policy.
    fn note(&mut self, of_run: &mut BTreeMap<Key, Change>, change: Change) {
        if !Kind::from_name(&change.kind).is_some_and(Kind::is_policy) {
            return;
        }
        let key = change.key();
        let told = PolicyChange {
            time: wall(change.time),
            verb: change.verb.as_str().to_owned(),
            resource_version: change.resource_version.clone(),
            sha256: change.content.as_ref().map(|text| hex(Sha256::new_with_prefix(text))),
        };
        self.changes.entry(key.clone()).or_default().push((change.time, told));
        if change.content.is_some() && self.texts.get(&key).is_none_or(|known| known.time <= change.time) {
            self.texts.insert(key.clone(), change.clone());
        }
        if of_run.get(&key).is_none_or(|known| known.order() <= change.order()) {
            of_run.insert(key, change);
        }
    }

    /// What a run knew at the end.
    fn at_end(&mut self, of_run: BTreeMap<Key, Change>) {
        self.present.extend(
            of_run.into_iter().filter(|(_, change)| change.verb != Verb::Deleted).map(|(key, _)| key),
        );
    }

    /// Adds the text of each.
    fn add(self, bundle: &mut Bundle) -> anyhow::Result<Vec<PolicyTold>> {
        let mut told = Vec::new();
        for (key, mut changes) in self.changes {
            let Some(last) = self.texts.get(&key) else { continue };
            // Every agent tells every change: what says nothing new is left out.
            changes.sort_by(|a, b| (a.0, &a.1.sha256).cmp(&(b.0, &b.1.sha256)));
            let mut changes: Vec<PolicyChange> = changes.into_iter().map(|(_, change)| change).collect();
            changes.dedup_by(|later, earlier| later.sha256 == earlier.sha256);
            let at_end = self.present.contains(&key);
            let member = member(&key, at_end);
            bundle.add(&member, text(last, at_end).as_bytes(), None)?;
            let (kind, namespace, name) = key;
            let parts = [kind, namespace, name].into_iter().filter(|part| !part.is_empty());
            let policy = parts.collect::<Vec<_>>().join("/");
            told.push(PolicyTold { policy, member, at_end, changes });
        }
        Ok(told)
    }
}

/// The text of a policy, as YAML.
fn text(change: &Change, at_end: bool) -> String {
    let content = change.content.as_deref().unwrap_or_default();
    let value: Option<Value> = serde_json::from_str(content).ok();
    let yaml = value.and_then(|value| serde_saphyr::to_string(&value).ok());
    let plain = |letter: &char| !letter.is_control();
    let version: String = change.resource_version.chars().filter(plain).collect();
    let version = if version.is_empty() { version } else { format!(", resourceVersion {version}") };
    let there = if at_end { "" } else { "\n# It was gone by the end of the window." };
    format!("# As known since {}{version}.{there}\n{}", wall(change.time), yaml.as_deref().unwrap_or(content))
}

/// The name of a policy's member.
fn member((kind, namespace, name): &Key, at_end: bool) -> String {
    let gone = if at_end { "" } else { "gone/" };
    let namespace = if namespace.is_empty() { String::new() } else { format!("{}/", part(namespace)) };
    format!("policies/{gone}{}/{namespace}{}.yaml", part(kind), part(name))
}

/// A part of a name: manifests call objects anything, and headers have room for so much.
fn part(text: &str) -> String {
    if text.is_empty() {
        return "~".to_owned();
    }
    let mut part = String::new();
    for (place, byte) in text.bytes().enumerate() {
        match byte {
            b'.' if place == 0 => part.push_str("%2E"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => part.push(char::from(byte)),
            other => part.push_str(&format!("%{other:02X}")),
        }
    }
    if part.len() > 87 {
        part.truncate(70);
        part.push('~');
        part.push_str(&hex(Sha256::new_with_prefix(text))[..16]);
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::bundle::archive::header;

    #[test]
    fn whatever_policies_are_called_their_members_have_names_of_their_own() {
        let long = "n".repeat(253);
        let names = ["db", "a.b", "..", "../../etc/passwd", "", " ", "ä\n", &long, &format!("{long}x")];
        let mut seen = BTreeSet::new();
        for (namespace, name) in names.iter().flat_map(|namespace| names.map(|name| (*namespace, name))) {
            let key = ("CiliumClusterwideNetworkPolicy".to_owned(), namespace.to_owned(), name.to_owned());
            let member = member(&key, false);
            assert!(header(&member, 1).is_ok(), "{member}");
            assert!(seen.insert(member), "{key:?}");
        }
    }
}
