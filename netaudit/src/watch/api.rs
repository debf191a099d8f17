//! Kubernetes objects from the API server, by list and watch.
//!
//! One watch a kind. Lists and reconnects are kube-runtime's; what comes out of it is converted once, here, and goes to the
//! agent as [`Update`]s: a complete list replaces what was known of the kind, so that objects deleted while the watch was
//! away do not stay.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::Value;
use tokio::sync::mpsc;

use super::{Update, content, convert};
use crate::{
    causes::with_causes,
    cluster::{Kind, Object, ObjectKey},
};

/// Where objects are from, for people.
const SOURCE: &str = "API server";

/// Connects to the API server that `kubeconfig` names, or the usual one: in-cluster, `$KUBECONFIG`, `~/.kube/config`.
pub async fn connect(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    let config = match kubeconfig {
        None => kube::Config::infer().await.context(
            "no API server to watch: run in a cluster, set $KUBECONFIG or --kubeconfig, or read files with --manifests",
        )?,
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .with_context(|| format!("cannot read the kubeconfig {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("in the kubeconfig {}", path.display()))?
        }
    };
    Ok(Client::try_from(config)?)
}

/// All objects of `kind` as they are now; none where the API server does not know the kind and need not.
pub async fn list(client: Client, kind: Kind) -> anyhow::Result<Vec<Object>> {
    let api: Api<DynamicObject> = Api::all_with(client, &resource(kind));
    let source = SOURCE.into();
    let mut objects = Vec::new();
    let mut page = ListParams::default().limit(500);
    loop {
        match api.list(&page).await {
            Ok(list) => {
                let values = list.items.iter().filter_map(|object| value_of(kind, object));
                objects.extend(values.map(|value| convert::object(kind, &value, &source)));
                match list.metadata.continue_.filter(|token| !token.is_empty()) {
                    Some(token) => page = page.continue_token(&token),
                    None => return Ok(objects),
                }
            }
            Err(kube::Error::Api(status)) if status.code == 404 && !kind.is_built_in() => return Ok(objects),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Follows all objects of `kind` for ever. Ends when nobody listens any more.
///
/// A fault is told and tried again with growing pauses; what is known stays known meanwhile. A kind that the API server
/// does not know, where that may be, has no objects; it is looked for again after every `look_again`. With `keep` it is also told
/// what is kept of each object, one by one as they come, so that a long list is not in memory twice.
pub async fn follow(
    client: Client,
    kind: Kind,
    look_again: Duration,
    keep: bool,
    updates: mpsc::Sender<Update>,
) {
    let resource = resource(kind);
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    while !updates.is_closed() {
        watch(api.clone(), kind, keep, &updates).await;
        tokio::select! {
            () = tokio::time::sleep(look_again) => {}
            () = updates.closed() => {}
        }
    }
}

/// Follows all objects of `kind` until nobody listens any more, or the API server does not know the kind.
async fn watch(api: Api<DynamicObject>, kind: Kind, keep: bool, updates: &mpsc::Sender<Update>) {
    let mut stream = watcher(api, watcher::Config::default()).default_backoff().boxed();
    let mut listed: Option<Vec<Object>> = None;
    // Told one by one by lists that broke off: what the next whole one has no more was deleted meanwhile.
    let mut told: BTreeSet<ObjectKey> = BTreeSet::new();
    let source = SOURCE.into();
    loop {
        let update = match stream.try_next().await {
            Ok(None) => return,
            Err(error) if !kind.is_built_in() && is_absent(&error) => {
                let _ = updates.send(Update::Reset { kind, objects: Vec::new() }).await;
                forget(told, updates).await;
                return;
            }
            Err(error) => Some(Update::Fault { kind, error: with_causes(&error) }),
            Ok(Some(watcher::Event::Init)) => {
                let broken_off = listed.replace(Vec::new()).into_iter().flatten().filter(|_| keep);
                told.extend(broken_off.filter_map(|object| object.key()));
                None
            }
            Ok(Some(watcher::Event::InitApply(object))) => {
                let Some(value) = value_of(kind, &object) else { continue };
                if keep && !tell(kind, &value, updates).await {
                    return;
                }
                listed.get_or_insert_default().push(convert::object(kind, &value, &source));
                None
            }
            Ok(Some(watcher::Event::InitDone)) => {
                let objects = listed.take().unwrap_or_default();
                let mut gone = std::mem::take(&mut told);
                for key in objects.iter().filter_map(Object::key) {
                    gone.remove(&key);
                }
                if updates.send(Update::Reset { kind, objects }).await.is_err()
                    || !forget(gone, updates).await
                {
                    return;
                }
                None
            }
            Ok(Some(watcher::Event::Apply(object))) => {
                let Some(value) = value_of(kind, &object) else { continue };
                if keep && !tell(kind, &value, updates).await {
                    return;
                }
                Some(Update::Apply(convert::object(kind, &value, &source)))
            }
            Ok(Some(watcher::Event::Delete(object))) => Some(Update::Delete(key(kind, &object))),
        };
        if let Some(update) = update
            && updates.send(update).await.is_err()
        {
            return;
        }
    }
}

/// Tells that objects are gone. Returns whether anybody listens still.
async fn forget(gone: BTreeSet<ObjectKey>, updates: &mpsc::Sender<Update>) -> bool {
    for key in gone {
        if updates.send(Update::Delete(key)).await.is_err() {
            return false;
        }
    }
    true
}

/// Tells what is kept of an object. Returns whether anybody listens still.
async fn tell(kind: Kind, value: &Value, updates: &mpsc::Sender<Update>) -> bool {
    match content(kind, value) {
        Some(content) => updates.send(Update::Seen(content)).await.is_ok(),
        // Without a name it is no object of the API server's.
        None => true,
    }
}

/// Whether the API server does not know the kind at all.
fn is_absent(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error)) = error else {
        return false;
    };
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

fn resource(kind: Kind) -> ApiResource {
    let api_version = kind.api_version();
    let version = api_version.rsplit_once('/').map_or(api_version, |(_, version)| version);
    ApiResource {
        group: kind.api_group().to_owned(),
        version: version.to_owned(),
        api_version: api_version.to_owned(),
        kind: kind.api_kind().to_owned(),
        plural: kind.plural().to_owned(),
    }
}

/// The object as it came. A list's items carry neither `kind` nor `apiVersion`: the watch knows them.
fn value_of(kind: Kind, object: &DynamicObject) -> Option<Value> {
    let value = serde_json::to_value(object);
    // What came as JSON goes as JSON; should that ever fail, it is said and not lost silently.
    value.inspect_err(|error| {
        tracing::error!(%error, kind = kind.as_str(), name = object.metadata.name, "an object cannot be read");
    })
    .ok()
}

fn key(kind: Kind, object: &DynamicObject) -> ObjectKey {
    ObjectKey {
        kind,
        namespace: object.metadata.namespace.as_deref().unwrap_or_default().into(),
        name: object.metadata.name.as_deref().unwrap_or_default().into(),
    }
}
