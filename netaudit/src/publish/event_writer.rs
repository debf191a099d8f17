//! Writes events, one after the other. A slow API server makes those behind wait, and then those in [`super::Events`].

use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{EventCounts, PATIENCE, Write, describe, is_namespace_gone};

/// Writes that the API server has not taken yet.
const QUEUE: usize = 64;

/// How long a write is tried again while no API server answers. Its series would end not much later.
const AWAY: Duration = Duration::from_secs(300);

/// How long while one answers that it cannot now, or that we may not, as one does that has just started and not read its
/// roles yet. Another write may fare better.
const BUSY: Duration = Duration::from_secs(15);

/// The first pause between tries. Each after it is twice as long, up to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(8);

/// How the writer is doing.
#[derive(Clone, Default, Debug)]
struct State {
    written: u64,
    failed: u64,
    /// What the last write failed of.
    failing: Option<String>,
}

/// The agent's end of the writer.
#[derive(Debug)]
pub struct EventQueue {
    writes: mpsc::Sender<Write>,
    state: watch::Receiver<State>,
}

impl EventQueue {
    /// How many writes it takes now.
    pub fn room(&self) -> usize {
        self.writes.capacity()
    }

    /// Hands on a write. There must be room for it.
    pub fn push(&self, write: Write) {
        let flows = write.flows;
        if self.writes.try_send(write).is_err() {
            tracing::error!(flows, "an event is lost: the queue has no room, or its writer has ended");
        }
    }

    /// What became of flows that were handed on.
    pub fn counts(&self) -> EventCounts {
        let state = self.state.borrow();
        EventCounts { written: state.written, failed: state.failed, ..EventCounts::default() }
    }

    /// Why events are not written, while that is so.
    pub fn failing(&self) -> Option<String> {
        self.state.borrow().failing.clone()
    }
}

/// A queue, and what writes it out: until the queue is dropped and empty.
pub fn event_writer(client: Client) -> (EventQueue, impl Future<Output = ()>) {
    let (writes, mut queue) = mpsc::channel::<Write>(QUEUE);
    let (sender, state) = watch::channel(State::default());
    let writer = async move {
        while let Some(write) = queue.recv().await {
            let result = persistent(&client, &write, &sender).await;
            sender.send_modify(|state| told(state, &result, write.flows));
        }
    };
    (EventQueue { writes, state }, writer)
}

/// Tries until it succeeds, cannot succeed, or has failed for too long.
async fn persistent(client: &Client, write: &Write, state: &watch::Sender<State>) -> Result<(), Fault> {
    let (began, mut pause) = (Instant::now(), FIRST_PAUSE);
    loop {
        match timely(client, write).await {
            Err(fault) if began.elapsed() < fault.patience => {
                state.send_modify(|state| tell(state, &fault));
                tokio::time::sleep(pause).await;
                pause = LAST_PAUSE.min(pause * 2);
            }
            result => return result,
        }
    }
}

struct Fault {
    text: String,
    /// How long it may pass by itself; nothing if it cannot.
    patience: Duration,
    /// Whether there is nothing wrong: what was to be told of is gone.
    is_gone: bool,
}

async fn timely(client: &Client, write: &Write) -> Result<(), Fault> {
    match tokio::time::timeout(PATIENCE, put(client, write)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            let is_gone = is_namespace_gone(&error);
            let patience = match &error {
                kube::Error::Api(_) if is_gone => Duration::ZERO,
                kube::Error::Api(status) if matches!(status.code, 401 | 403 | 429 | 500..) => BUSY,
                kube::Error::Api(_) => Duration::ZERO,
                _ => AWAY,
            };
            Err(Fault { text: describe(&error), patience, is_gone })
        }
        Err(_) => Err(Fault {
            text: format!("no answer within {} s", PATIENCE.as_secs()),
            patience: AWAY,
            is_gone: false,
        }),
    }
}

async fn put(client: &Client, Write { event, again, .. }: &Write) -> Result<(), kube::Error> {
    let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    if *again {
        let name = event.metadata.name.as_deref().unwrap_or_default();
        let series = Patch::Merge(json!({"series": event.series}));
        match api.patch(name, &PatchParams::default(), &series).await {
            // It was too old, somebody removed it, or it was never taken.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            result => return result.map(drop),
        }
    }
    match api.create(&PostParams::default(), event).await {
        // An earlier try had come through, though its answer had not.
        Err(kube::Error::Api(status)) if status.code == 409 && !again => Ok(()),
        result => result.map(drop),
    }
}

fn told(state: &mut State, result: &Result<(), Fault>, flows: u64) {
    match result {
        Ok(()) => {
            state.written += flows;
            if state.failing.take().is_some() {
                tracing::info!("events are written again");
            }
        }
        Err(fault) => {
            state.failed += flows;
            tell(state, fault);
        }
    }
}

/// Says a fault once, and not again until something was written.
fn tell(state: &mut State, fault: &Fault) {
    if fault.is_gone {
        return;
    }
    if state.failing.is_none() {
        tracing::error!(
            error = fault.text,
            "events cannot be written: what is found is told elsewhere all the same"
        );
    }
    state.failing = Some(fault.text.clone());
}
