//! Keeps the reports of an API server as they should be.
//!
//! ```text
//! ┌▶ ask for what is there ──▶ for each snapshot: write what is due ──┐
//! │      └─ fails, or the kind is not installed: told, later again    │
//! └───────────────── the kind is not served any more ◀───────────────┘
//! ```

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
};
use tokio::sync::watch;

use super::{
    CONTROLLER, PATIENCE, ReportCounts, Snapshot, describe, is_namespace_gone,
    reports::{Action, Reports},
};

/// What reports are to be like.
#[derive(Clone, Debug)]
pub struct ReportSettings {
    /// The node's name.
    pub node: String,
    /// How long a result stays after its last flow.
    pub lifetime: Duration,
    /// How often a report may be written.
    pub every: Duration,
    /// How often the kind is looked for where it is not installed.
    pub look_again: Duration,
}

/// How the writer is doing.
#[derive(Clone, Default, Debug)]
struct State {
    counts: ReportCounts,
    failing: Option<String>,
}

/// The agent's end of the writer.
#[derive(Debug)]
pub struct ReportFeed {
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    state: watch::Receiver<State>,
}

impl ReportFeed {
    /// Hands on what reports should say by now, in place of what was handed on before and not taken yet.
    pub fn push(&self, snapshot: Snapshot) {
        self.snapshots.send_replace(Some(Arc::new(snapshot)));
    }

    /// What became of what was handed on.
    pub fn counts(&self) -> ReportCounts {
        let no_namespace = self.snapshots.borrow().as_ref().map_or(0, |snapshot| snapshot.no_namespace);
        ReportCounts { no_namespace, ..self.state.borrow().counts }
    }

    /// Why reports are not written, while that is so.
    pub fn failing(&self) -> Option<String> {
        self.state.borrow().failing.clone()
    }
}

/// Where snapshots go, and what writes reports of them: until the first is dropped.
pub fn report_writer(client: Client, settings: ReportSettings) -> (ReportFeed, impl Future<Output = ()>) {
    let (snapshots, receiver) = watch::channel(None);
    let (sender, state) = watch::channel(State::default());
    let writer = Writer {
        reports: Reports::new(&settings.node, settings.lifetime, settings.every),
        client,
        settings,
        state: sender,
    };
    (ReportFeed { snapshots, state }, writer.run(receiver))
}

/// Why a request came to nothing.
enum Fault {
    /// The API server does not know the kind.
    Absent,
    /// Nothing that is asked now will succeed.
    Away(String),
    /// This one failed.
    Refused(String),
    /// The namespace is gone, or on its way.
    NamespaceGone,
}

struct Writer {
    client: Client,
    settings: ReportSettings,
    reports: Reports,
    state: watch::Sender<State>,
}

impl Writer {
    async fn run(mut self, mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>) {
        loop {
            let pause = match self.take_over().await {
                Ok(()) => match self.follow(&mut snapshots).await {
                    // Nobody hands on anything any more.
                    None => return,
                    Some(pause) => pause,
                },
                Err(fault) => self.failed(&fault),
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = closed(&mut snapshots) => return,
            }
        }
    }

    /// Learns which reports there are, and who owns them.
    async fn take_over(&mut self) -> Result<(), Fault> {
        let mine = ListParams::default().fields(&format!("metadata.name={}", self.reports.name()));
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource());
        let found = timely(api.list(&mine)).await?;
        let node = ListParams::default().fields(&format!("metadata.name={}", self.settings.node));
        let nodes: Api<Node> = Api::all(self.client.clone());
        let nodes = timely(nodes.list_metadata(&node)).await?;
        self.reports.set_owner(nodes.items.into_iter().next().and_then(|node| node.metadata.uid));
        let reports = found.items.into_iter().filter_map(|it| Some((it.metadata.namespace?, it.data)));
        self.reports.found(reports.collect());
        Ok(())
    }

    /// Writes what snapshots bring. Returns how long to pause once the kind is gone; `None` when there will be no more.
    async fn follow(&mut self, snapshots: &mut watch::Receiver<Option<Arc<Snapshot>>>) -> Option<Duration> {
        self.fine();
        // Also what came while nothing could be written.
        if snapshots.borrow().is_some() {
            snapshots.mark_changed();
        }
        while snapshots.changed().await.is_ok() {
            let Some(snapshot) = snapshots.borrow_and_update().clone() else { continue };
            let mut all_done = true;
            for (namespace, action) in self.reports.due(&snapshot) {
                match self.put(&namespace, &action).await {
                    Ok(()) => {
                        self.reports.done(&namespace, &action, snapshot.taken);
                        self.state.send_modify(|state| state.counts.written += 1);
                    }
                    Err(Fault::NamespaceGone) => self.reports.done(&namespace, &action, snapshot.taken),
                    Err(fault) => {
                        all_done = false;
                        let pause = self.failed(&fault);
                        match fault {
                            Fault::Absent => return Some(pause),
                            Fault::Away(_) => break,
                            Fault::Refused(_) | Fault::NamespaceGone => {}
                        }
                    }
                }
            }
            let (whole, folded) = self.reports.results();
            self.state.send_modify(|state| {
                (state.counts.whole, state.counts.folded) = (whole, folded);
            });
            if all_done {
                self.fine();
            }
        }
        None
    }

    async fn put(&self, namespace: &str, action: &Action) -> Result<(), Fault> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource());
        let name = self.reports.name();
        match action {
            Action::Apply(report) => {
                // Nobody else has a say in an object that is written whole.
                let parameters = PatchParams::apply(CONTROLLER).force();
                timely(api.patch(name, &parameters, &Patch::Apply(report))).await.map(drop)
            }
            Action::Delete => match timely(api.delete(name, &DeleteParams::default())).await {
                // Somebody was faster; or the kind went, and all reports with it.
                Err(Fault::Absent) => Ok(()),
                result => result.map(drop),
            },
        }
    }

    fn fine(&self) {
        self.state.send_if_modified(|state| {
            let was_failing = state.failing.take().is_some();
            if was_failing {
                tracing::info!("reports are written again");
            }
            was_failing
        });
    }

    /// Says a fault, if it is another than before, and returns when to try again.
    fn failed(&self, fault: &Fault) -> Duration {
        let (text, pause) = match fault {
            Fault::Absent => (
                "the API server has no kind Report of openreports.io/v1alpha1: install its CustomResourceDefinition, or leave out reports".to_owned(),
                self.settings.look_again,
            ),
            Fault::Away(text) | Fault::Refused(text) => (text.clone(), self.settings.every),
            Fault::NamespaceGone => return self.settings.every,
        };
        self.state.send_modify(|state| {
            if !matches!(fault, Fault::Absent) {
                state.counts.failed += 1;
            }
            if state.failing.is_none() {
                tracing::error!(
                    error = text,
                    "reports cannot be written: what is found is told elsewhere all the same"
                );
            }
            state.failing = Some(text);
        });
        pause
    }
}

/// When nobody hands on snapshots any more.
async fn closed(snapshots: &mut watch::Receiver<Option<Arc<Snapshot>>>) {
    while snapshots.changed().await.is_ok() {}
    // What came last was seen, and is not written: the API server could not be asked.
}

async fn timely<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Fault> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) if is_namespace_gone(&error) => Err(Fault::NamespaceGone),
        Ok(Err(error)) => Err(match &error {
            kube::Error::Api(status) if status.code == 404 => Fault::Absent,
            kube::Error::Api(status) if status.code < 500 && status.code != 429 => {
                Fault::Refused(describe(&error))
            }
            _ => Fault::Away(describe(&error)),
        }),
        Err(_) => Err(Fault::Away(format!("no answer within {} s", PATIENCE.as_secs()))),
    }
}

fn resource() -> ApiResource {
    ApiResource {
        group: "openreports.io".to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: "openreports.io/v1alpha1".to_owned(),
        kind: "Report".to_owned(),
        plural: "reports".to_owned(),
    }
}
