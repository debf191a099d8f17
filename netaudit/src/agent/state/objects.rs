//! What happens to the state when objects change, or their source has a fault.

use std::collections::{BTreeMap, HashSet};

use super::{State, Watch};
use crate::{
    cluster::{Kind, Object, ObjectKey},
    model::Timestamp,
    policy::Warning,
    store::history::Bound,
    watch::{Update, manifests::Loaded},
};

impl State {
    /// An object changed, or its source told a fault.
    pub(in crate::agent) fn update(&mut self, update: Update, now: Timestamp) {
        self.remember(&update, now);
        let cluster = self.auditor.cluster_mut();
        let (listed, warnings) = match update {
            Update::Reset { kind, objects } => (vec![kind], cluster.reset(kind, objects, now)),
            // Nothing but history.
            Update::Seen(_) => return,
            Update::Apply(object) => (vec![], cluster.apply(object, now)),
            Update::Delete(key) => {
                cluster.delete(&key, now);
                (vec![], vec![])
            }
            Update::Files(loaded) => {
                // What cannot be parsed is among the objects, as broken ones, and so among the warnings.
                let passed_over: Vec<_> = loaded.passed_over.iter().map(Warning::from).collect();
                let mut warnings = cluster.reset_all(loaded.into_objects(), now);
                warnings.extend(passed_over);
                (Kind::ALL.to_vec(), warnings)
            }
            Update::Fault { kind, error } => {
                self.fault(kind, error, now);
                return;
            }
        };
        self.warn(warnings, !listed.is_empty());
        for watch in self.watches.iter_mut().filter(|watch| listed.contains(&watch.kind)) {
            watch.state.ready = true;
            watch.state.failing = None;
        }
        if self.watches.iter().all(|watch| watch.state.ready || !watch.kind.changes_verdicts()) {
            self.auditor.set_ready();
        }
        self.auditor.objects_changed(now, &mut self.told.flows);
        self.translate(now);
        self.hand_on();
    }

    /// Hands what an update says on to the history, where one is kept. Before it is applied: the index knows what was there.
    fn remember(&mut self, update: &Update, now: Timestamp) {
        let wall = self.wall(now);
        let Some(history) = self.sinks.history() else { return };
        let cluster = self.auditor.cluster();
        match update {
            Update::Seen(content) => history.seen(content, wall),
            Update::Apply(_) | Update::Fault { .. } => {}
            Update::Delete(key) => history.deleted(key, wall),
            Update::Reset { kind, objects } => {
                let listed: HashSet<ObjectKey> = objects.iter().filter_map(Object::key).collect();
                for key in cluster.keys_of(*kind).iter().filter(|key| !listed.contains(key)) {
                    history.deleted(key, wall);
                }
                history.listed(*kind, wall);
            }
            Update::Files(Loaded { contents, .. }) => {
                // Of objects with one key the last counts.
                let last: BTreeMap<_, _> =
                    contents.iter().flatten().map(|content| (&content.key, content)).collect();
                last.values().for_each(|content| history.seen(content, wall));
                for kind in Kind::ALL {
                    // What stands in a document that cannot be read any more is not what it was.
                    for key in cluster.keys_of(kind).iter().filter(|key| !last.contains_key(key)) {
                        history.deleted(key, wall);
                    }
                    history.listed(kind, wall);
                }
            }
        }
    }

    /// Whether what updates say can be remembered now.
    pub(in crate::agent) fn has_room(&mut self) -> bool {
        self.sinks.has_room()
    }

    /// Hands what is news of addresses on to the history.
    pub(super) fn remember_bindings(&mut self) {
        let correction = self.kernel.wall_correction();
        let news = self.auditor.cluster_mut().take_binding_news();
        let Some(history) = self.sinks.history() else { return };
        for news in news {
            if let Some(pod) = self.auditor.cluster().pod(news.pod) {
                let at = Timestamp(news.at.0.saturating_add(correction));
                history.bound(Bound { pod, ip: news.ip }, news.has_ended, at);
            }
        }
    }

    /// Logs what has not been logged yet. What a complete list no longer brings is forgotten.
    fn warn(&mut self, warnings: Vec<Warning>, complete: bool) {
        if complete {
            let still: HashSet<&Warning> = self.auditor.cluster().warnings().chain(&warnings).collect();
            self.warned.retain(|said| still.contains(said));
        }
        for warning in warnings {
            if !self.warned.contains(&warning) {
                tracing::warn!("{warning}");
                self.warned.insert(warning);
            }
        }
    }

    fn fault(&mut self, kind: Kind, error: String, now: Timestamp) {
        for watch in self.watches.iter_mut().filter(|watch| watch.kind == kind) {
            watch.state.errors += 1;
            watch.last_fault = Some(now);
            if watch.state.failing.is_none() {
                tracing::error!(
                    kind = kind.as_str(),
                    error,
                    "the watch has a fault: what is known stays known"
                );
            }
            watch.state.failing = Some(error.clone());
        }
    }
}

impl Watch {
    /// That its objects are not known, and why, where that is so.
    pub(super) fn unlisted(&self) -> Option<String> {
        let kind = self.state.kind;
        match (&self.state.failing, self.state.ready) {
            (_, true) => None,
            (None, _) => Some(format!("{kind} objects have not been listed yet")),
            (Some(error), _) => Some(format!("{kind} objects have not been listed: {error}")),
        }
    }
}
