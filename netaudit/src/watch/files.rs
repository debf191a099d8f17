//! Kubernetes objects from files, followed as they change.
//!
//! Every change reads the whole directory again: it is small, and what was written in between cannot be missed. Editors and
//! `kubectl cp` write in several steps, and a mounted ConfigMap swaps a symbolic link, so a change is read only after
//! a moment of quiet.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use notify::{RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::{Update, manifests};
use crate::cluster::Kind;

/// How long nothing must change before files are read.
const QUIET: Duration = Duration::from_millis(100);

/// Without inotify (some network file systems) changes are still found this often.
const POLL: Duration = Duration::from_secs(10);

/// Reads the files below `dir` now and whenever they change. Ends when nobody listens any more. With `keep` also what is kept of each
/// object is told.
///
/// Fails where `dir` cannot be read at the start; later faults are told as updates.
pub async fn follow(dir: PathBuf, keep: bool, updates: mpsc::Sender<Update>) -> anyhow::Result<()> {
    fs::read_dir(&dir).with_context(|| format!("cannot read the manifests directory {}", dir.display()))?;
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
        // Before they are read: what changes meanwhile is read again.
        let (found, loaded) =
            tokio::task::spawn_blocking(move || (look(&path), manifests::load_keeping(&[path], keep)))
                .await?;
        let known = Some(found).filter(|_| loaded.is_ok());
        match loaded {
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
        loop {
            tokio::select! {
                change = changes.recv() => {
                    if change.is_none() {
                        return Ok(());
                    }
                    settle(&mut changes).await;
                    break;
                }
                () = tokio::time::sleep(POLL) => {
                    let path = dir.clone();
                    if known != Some(tokio::task::spawn_blocking(move || look(&path)).await?) {
                        break;
                    }
                }
                () = updates.closed() => return Ok(()),
            }
        }
    }
}

/// A file as it is found: its inode, size and times. `None` where it cannot be looked at.
type Found = (PathBuf, Option<[i64; 6]>);

/// What shows that something below a directory has changed.
fn look(dir: &Path) -> Vec<Found> {
    let data = |path: &Path| {
        let it = fs::metadata(path).ok()?;
        Some([it.ino() as i64, it.size() as i64, it.mtime(), it.mtime_nsec(), it.ctime(), it.ctime_nsec()])
    };
    manifests::files_below(dir).into_iter().map(|path| (path.clone(), data(&path))).collect()
}

/// Waits until nothing has changed for a moment, but not for ever.
async fn settle(changes: &mut mpsc::Receiver<()>) {
    for _ in 0..20 {
        if tokio::time::timeout(QUIET, changes.recv()).await.is_err() {
            return;
        }
    }
}
