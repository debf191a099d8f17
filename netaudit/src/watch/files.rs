//! Kubernetes objects from files, followed as they change.
//!
//! Every change reads the whole directory again: it is small, and what was written in between cannot be missed. Editors and
//! `kubectl cp` write in several steps, and a mounted ConfigMap swaps a symbolic link, so a change is read only after
//! a moment of quiet.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use notify::{RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::{Update, manifests};
use crate::cluster::Kind;

/// How long nothing must change before files are read.
const QUIET: Duration = Duration::from_millis(100);

/// Without inotify (some network file systems) changes are still found this often.
const POLL: Duration = Duration::from_secs(10);

/// Reads the files below `dir` now and whenever they change. Ends when nobody listens any more.
///
/// Fails where `dir` cannot be read at the start; later faults are told as updates.
pub async fn follow(dir: PathBuf, updates: mpsc::Sender<Update>) -> anyhow::Result<()> {
    std::fs::read_dir(&dir)
        .with_context(|| format!("cannot read the manifests directory {}", dir.display()))?;
    let (changed, mut changes) = mpsc::channel::<()>(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the files is itself an access: only what alters them counts. A full channel already says it.
        if event.map_or(true, |event| !event.kind.is_access()) {
            let _ = changed.try_send(());
        }
    })
    .context("cannot watch files")?;
    watcher
        .watch(&dir, RecursiveMode::Recursive)
        .with_context(|| format!("cannot watch the manifests directory {}", dir.display()))?;
    loop {
        let path = dir.clone();
        match tokio::task::spawn_blocking(move || manifests::load(&[path])).await? {
            Ok(loaded) => {
                if updates.send(Update::Files(loaded)).await.is_err() {
                    return Ok(());
                }
            }
            // The directory itself cannot be read, for a moment or for good: what is known stays known.
            Err(error) => {
                for kind in Kind::ALL {
                    let fault = Update::Fault { kind, error: error.to_string() };
                    if updates.send(fault).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        tokio::select! {
            change = changes.recv() => {
                if change.is_none() {
                    return Ok(());
                }
                settle(&mut changes).await;
            }
            () = tokio::time::sleep(POLL) => {}
            () = updates.closed() => return Ok(()),
        }
    }
}

/// Waits until nothing has changed for a moment, but not for ever.
async fn settle(changes: &mut mpsc::Receiver<()>) {
    for _ in 0..20 {
        if tokio::time::timeout(QUIET, changes.recv()).await.is_err() {
            return;
        }
    }
}
