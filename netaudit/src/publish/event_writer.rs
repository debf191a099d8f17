//! Writes events, one after the other. A slow API server makes those behind wait, and then those in [`super::Events`].

use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::{EventCounts, PATIENCE, Write, describe, is_namespace_gone};

/// Writes that the API server has not taken yet.
const QUEUE: usize = 64;

/// Pauses before a write is tried again that may succeed then.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8)];

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

/// Tries until it succeeds, cannot succeed, or has failed too often.
async fn persistent(client: &Client, write: &Write, state: &watch::Sender<State>) -> Result<(), Fault> {
    for pause in PAUSES {
        match timely(client, write).await {
            Err(fault) if fault.may_pass => {
                state.send_modify(|state| tell(state, &fault));
                tokio::time::sleep(pause).await;
            }
            result => return result,
        }
    }
    timely(client, write).await
}

struct Fault {
    text: String,
    /// Whether the same write may succeed later.
    may_pass: bool,
    /// Whether there is nothing wrong: what was to be told of is gone.
    is_gone: bool,
}

async fn timely(client: &Client, write: &Write) -> Result<(), Fault> {
    match tokio::time::timeout(PATIENCE, put(client, write)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            let may_pass = match &error {
                kube::Error::Api(status) => status.code == 429 || status.code >= 500,
                _ => true,
            };
            Err(Fault { text: describe(&error), may_pass, is_gone: is_namespace_gone(&error) })
        }
        Err(_) => Err(Fault {
            text: format!("no answer within {} s", PATIENCE.as_secs()),
            may_pass: true,
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
