//! Writes an image archive without a container builder: one layer, one platform, the same bytes for the same input.
//!
//! The archive is an OCI image layout with Docker's `manifest.json` beside it, as `docker save` writes since version 25,
//! so that `ctr images import`, `docker load` and `podman load` all take it:
//!
//! ```text
//! oci-layout, index.json ─► manifest ─► config
//! manifest.json (Docker) ─────┘    └─► layer (tar, gzip)
//!                             blobs/sha256/…
//! ```
//!
//! Nothing of this machine gets in: entries are sorted and belong to root, times are [`Image::created`] or 0, modes are
//! the caller's.

use std::{
    collections::{BTreeMap, btree_map},
    fs,
    io::{BufWriter, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The mode of directories that no entry names.
const DIRECTORY: u32 = 0o755;

/// An image of one layer.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// Its full name with a tag, as in `localhost/netaudit:0.1.0`. A registry or `localhost` comes first: the kubelet
    /// and containerd read a name without one as Docker Hub's.
    pub reference: String,
    /// What its programs run on.
    pub architecture: Architecture,
    /// What runs, with the arguments that always come first; empty for none.
    pub entrypoint: Vec<String>,
    /// Arguments that those of a pod replace; empty for none.
    pub command: Vec<String>,
    /// `NAME=value` each.
    pub environment: Vec<String>,
    /// Written as labels of the config and as annotations of the manifest.
    pub labels: BTreeMap<String, String>,
    /// `user` or `uid:gid`; root where absent.
    pub user: Option<String>,
    /// Seconds since 1970: when the image is said to be made, and every file in it. Absent: no date, and files of 1970.
    pub created: Option<u32>,
    /// Written fast and larger, for an image that never leaves this machine.
    pub local: bool,
    /// What the layer holds, in any order. Parent directories need not be named.
    pub files: Vec<Entry>,
}

/// An architecture, by the name that images call it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Architecture {
    /// x86-64.
    #[default]
    Amd64,
    /// AArch64.
    Arm64,
}

/// A file of the layer.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where it lies, with or without the first `/`.
    pub path: String,
    /// Permission bits; a symlink has none of its own.
    pub mode: u32,
    /// What it is.
    pub content: Content,
}

/// What an [`Entry`] is.
#[derive(Debug, Clone)]
pub enum Content {
    /// A regular file with the bytes of this one.
    File(PathBuf),
    /// A regular file with these bytes.
    #[cfg_attr(not(test), expect(dead_code, reason = "what tests put into images lies in no file"))]
    Bytes(Vec<u8>),
    /// A link to this path. An absolute one starts at the image's own root.
    Symlink(String),
    /// A directory.
    Directory,
}

impl Architecture {
    /// As images and Kubernetes' `kubernetes.io/arch` call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

impl Entry {
    /// A regular file with the bytes of `from`.
    pub fn file(path: impl Into<String>, mode: u32, from: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), mode, content: Content::File(from.into()) }
    }

    /// A regular file with these bytes.
    #[cfg(test)]
    pub fn bytes(path: impl Into<String>, mode: u32, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), mode, content: Content::Bytes(bytes.into()) }
    }

    /// A symbolic link.
    pub fn symlink(path: impl Into<String>, target: impl Into<String>) -> Self {
        Self { path: path.into(), mode: 0o777, content: Content::Symlink(target.into()) }
    }

    /// A directory, for one that is empty or has a mode of its own.
    pub fn directory(path: impl Into<String>, mode: u32) -> Self {
        Self { path: path.into(), mode, content: Content::Directory }
    }
}

impl Image {
    /// Writes the archive to `to` and returns the manifest's digest, `sha256:…`. `to` is replaced as a whole or not at all.
    ///
    /// # Errors
    ///
    /// When the reference has no tag, entries contradict each other, a file cannot be read, or `to` cannot be written.
    pub fn write_archive(&self, to: &Path) -> Result<String> {
        let archive = self.archive()?;
        replace(to, |out| archive.write(out)).with_context(|| format!("writing {}", to.display()))?;
        Ok(archive.manifest.digest)
    }

    fn archive(&self) -> Result<Archive> {
        let (_, tag) = self
            .reference
            .rsplit_once(':')
            .filter(|(name, tag)| !name.is_empty() && !tag.is_empty() && !tag.contains('/'))
            .with_context(|| format!("the image's name {:?} has no tag", self.reference))?;
        let layer = self.layer()?;
        let diff_id = digest(&layer);
        let level = if self.local { Compression::none() } else { Compression::best() };
        let mut gzip = GzEncoder::new(Vec::new(), level);
        gzip.write_all(&layer)?;
        let layer = Blob::new(gzip.finish()?);
        let config = Blob::json(&self.config(&diff_id)?)?;
        let manifest = Blob::json(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(CONFIG),
            "layers": [layer.descriptor(LAYER)],
            "annotations": self.labels,
        }))?;

        let mut listed = manifest.descriptor(MANIFEST);
        listed["platform"] = json!({ "architecture": self.architecture.name(), "os": "linux" });
        listed["annotations"] =
            json!({ "io.containerd.image.name": self.reference, "org.opencontainers.image.ref.name": tag });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [listed] });
        let docker = json!([{
            "Config": config.path(),
            "RepoTags": [self.reference],
            "Layers": [layer.path()],
        }]);
        let mut files = BTreeMap::from([
            ("oci-layout".to_owned(), serde_json::to_vec(&json!({ "imageLayoutVersion": "1.0.0" }))?),
            ("index.json".to_owned(), serde_json::to_vec(&index)?),
            ("manifest.json".to_owned(), serde_json::to_vec(&docker)?),
        ]);
        files.extend([layer, config].map(|blob| (blob.path(), blob.bytes)));
        Ok(Archive { files, manifest, time: self.time() })
    }

    fn config(&self, diff_id: &str) -> Result<Value> {
        // Parsers take an absent list for an empty one, but not all of them null.
        let mut run = json!({ "WorkingDir": "/" });
        for (key, values) in
            [("Entrypoint", &self.entrypoint), ("Cmd", &self.command), ("Env", &self.environment)]
        {
            if !values.is_empty() {
                run[key] = json!(values);
            }
        }
        if !self.labels.is_empty() {
            run["Labels"] = json!(self.labels);
        }
        if let Some(user) = &self.user {
            run["User"] = json!(user);
        }
        let mut config = json!({
            "architecture": self.architecture.name(),
            "os": "linux",
            "config": run,
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        });
        if let Some(created) = self.created {
            config["created"] = json!(rfc3339(created)?);
        }
        Ok(config)
    }

    /// The layer as a plain tar.
    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, (mode, content)) in self.tree()? {
            let mut header = header(mode, self.time());
            match content {
                Content::File(from) => {
                    let bytes =
                        fs::read(from).with_context(|| format!("reading {} for /{path}", from.display()))?;
                    header.set_size(bytes.len() as u64);
                    tar.append_data(&mut header, path, &*bytes)?;
                }
                Content::Bytes(bytes) => {
                    header.set_size(bytes.len() as u64);
                    tar.append_data(&mut header, path, &**bytes)?;
                }
                Content::Symlink(target) => {
                    header.set_mode(0o777);
                    header.set_entry_type(tar::EntryType::Symlink);
                    tar.append_link(&mut header, path, target)?;
                }
                Content::Directory => {
                    header.set_entry_type(tar::EntryType::Directory);
                    tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
                }
            }
        }
        Ok(tar.into_inner()?)
    }

    /// Every path of the layer once, parents included and before what they hold.
    fn tree(&self) -> Result<BTreeMap<String, (u32, &Content)>> {
        let mut tree = BTreeMap::new();
        for entry in &self.files {
            let path = normal(&entry.path)?;
            if let Content::Symlink(target) = &entry.content {
                stays_inside(&path, target)?;
            }
            match tree.entry(path) {
                btree_map::Entry::Occupied(known) => bail!("the image has /{} twice", known.key()),
                btree_map::Entry::Vacant(free) => free.insert((entry.mode & 0o7777, &entry.content)),
            };
        }
        let named: Vec<String> = tree.keys().cloned().collect();
        for path in &named {
            for (at, _) in path.match_indices('/') {
                let parent = &path[..at];
                let (_, content) = tree.entry(parent.to_owned()).or_insert((DIRECTORY, &Content::Directory));
                // Below a link, whoever unpacks it would write somewhere else.
                ensure!(
                    matches!(content, Content::Directory),
                    "the image has /{path}, but /{parent} is no directory"
                );
            }
        }
        Ok(tree)
    }

    fn time(&self) -> u64 {
        self.created.unwrap_or(0).into()
    }
}

/// Seconds since 1970 as images and logs write times.
pub fn rfc3339(seconds: u32) -> Result<String> {
    Ok(jiff::Timestamp::from_second(seconds.into())?.to_string())
}

/// An archive that is ready to be written: every file but the manifest's blob, and that.
struct Archive {
    files: BTreeMap<String, Vec<u8>>,
    manifest: Blob,
    time: u64,
}

impl Archive {
    fn write(&self, out: &mut dyn Write) -> Result<()> {
        let mut tar = tar::Builder::new(out);
        for directory in ["blobs/", "blobs/sha256/"] {
            let mut header = header(DIRECTORY, self.time);
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, directory, std::io::empty())?;
        }
        let mut files: BTreeMap<&str, &[u8]> =
            self.files.iter().map(|(path, bytes)| (&**path, &**bytes)).collect();
        let manifest = self.manifest.path();
        files.insert(&manifest, &self.manifest.bytes);
        for (path, bytes) in files {
            let mut header = header(0o644, self.time);
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, path, bytes)?;
        }
        tar.into_inner()?.flush()?;
        Ok(())
    }
}

struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        Self { digest: digest(&bytes), bytes }
    }

    fn json(value: &Value) -> Result<Self> {
        Ok(Self::new(serde_json::to_vec(value)?))
    }

    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replacen(':', "/", 1))
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

fn header(mode: u32, time: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(mode);
    header.set_mtime(time);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

/// A path as the layer names it: relative to the root, each step a name.
fn normal(path: &str) -> Result<String> {
    let steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty()).collect();
    ensure!(!steps.is_empty(), "{path:?} is no path for a file in an image");
    ensure!(
        !steps.iter().any(|step| matches!(*step, "." | "..") || step.contains('\0')),
        "{path:?} in an image must not have . or .. or a zero byte in it"
    );
    Ok(steps.join("/"))
}

/// Refuses a relative link that climbs above the image's root: what it means depends on where the image is unpacked.
fn stays_inside(path: &str, target: &str) -> Result<()> {
    ensure!(!target.is_empty() && !target.contains('\0'), "the link /{path} in the image leads nowhere");
    let mut depth = if target.starts_with('/') { 0 } else { path.matches('/').count() };
    for step in target.split('/') {
        match step {
            "" | "." => {}
            ".." => {
                depth = depth
                    .checked_sub(1)
                    .with_context(|| format!("the link /{path} → {target} leads out of the image"))?;
            }
            _ => depth += 1,
        }
    }
    Ok(())
}

/// Replaces `to` by what `write` writes, once all of it is on the disk; if anything fails, nothing is left of it.
fn replace(to: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    ensure!(!to.exists() || to.is_file(), "it is there, and no regular file");
    let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new()
        .prefix(".image-")
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(directory)?;
    let mut buffered = BufWriter::new(file);
    write(&mut buffered)?;
    let file = buffered.into_inner().map_err(|error| error.into_error())?;
    file.as_file().sync_all()?;
    file.persist(to)?;
    Ok(())
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
