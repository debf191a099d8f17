//! Manifests of files with the place of each object, and files that get another content.

use std::{
    collections::HashSet,
    fs,
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::{
    advise::lint::{Item, Manifests, What},
    cluster::Object,
    watch::{
        kustomize::{Kustomizations, Near},
        manifests::{self, ManifestError, Source},
        placed::{self, Placed},
    },
};

/// A file that was read.
pub(super) struct File {
    pub path: PathBuf,
    /// As it is on the disk.
    pub bytes: Vec<u8>,
    /// What it is to kustomizations.
    pub near: Near,
}

/// All that was read.
#[derive(Default)]
pub(super) struct Loaded {
    pub files: Vec<File>,
    pub manifests: Manifests,
    /// Of each object: where it was read, and the position of its file.
    pub sources: Vec<(Source, usize)>,
    pub errors: Vec<ManifestError>,
    pub passed_over: Vec<ManifestError>,
    /// Documents that could not be read, and do not look as if they mattered here.
    pub unlike: Vec<ManifestError>,
    /// Annotations that could not be read.
    pub mistyped: Vec<ManifestError>,
    /// Whether a kustomization changes what the files say.
    pub is_changed: bool,
}

/// Reads every file. One that cannot be read is told, and costs no other.
pub(super) fn load(paths: &[PathBuf]) -> Loaded {
    let mut loaded = Loaded::default();
    let mut seen = HashSet::new();
    let failed = |path: &Path, error: &io::Error| ManifestError {
        file: path.into(),
        document: 0,
        line: 0,
        column: 0,
        reason: format!("cannot be read: {error}"),
    };
    for path in paths {
        let is_directory = match fs::metadata(path) {
            Ok(metadata) => metadata.is_dir(),
            Err(error) => {
                loaded.errors.push(failed(path, &error));
                continue;
            }
        };
        let files = match is_directory {
            true => {
                let (files, errors) = manifests::all_below(path);
                loaded.errors.extend(errors);
                files
            }
            false => vec![path.clone()],
        };
        for file in files {
            // A file that is named and is below a directory that is named too is read once.
            if fs::canonicalize(&file).is_ok_and(|real| !seen.insert(real)) {
                continue;
            }
            // A pipe that somebody names is meant.
            let bytes = if is_directory { manifests::read_regular(&file) } else { fs::read(&file) };
            match bytes {
                Ok(bytes) => loaded.files.push(File { path: file, bytes, near: Near::default() }),
                Err(error) => loaded.errors.push(failed(&file, &error)),
            }
        }
    }
    loaded.look_for_kustomizations();
    loaded.read_all();
    loaded
}

impl File {
    /// The objects of what it holds, or is to hold.
    pub fn read(&self, bytes: &[u8]) -> Placed {
        let mut placed = placed::read(&self.path, bytes);
        if self.near.is_any {
            placed.pass_over_patches();
        }
        placed
    }
}

impl Loaded {
    /// Finds out which files are not applied as they are, and tells what of this is not checked.
    fn look_for_kustomizations(&mut self) {
        let all = Kustomizations::of(self.files.iter().map(|it| &*it.path));
        for file in &mut self.files {
            file.near = all.near(&file.path);
            let changes = match manifests::is_kustomization(&file.path) {
                true => all.changes(&file.path),
                false => Vec::new(),
            };
            let reason = if file.near.is_patch {
                "a kustomization changes others by this file, which is not applied as it is: not checked"
                    .to_owned()
            } else if !changes.is_empty() {
                format!(
                    "what a kustomization does ({}) is not checked, and nothing is concluded from what is not there: give what \
                     kubectl kustomize prints",
                    changes.join(", ")
                )
            } else {
                continue;
            };
            self.is_changed = true;
            let file = file.path.as_path().into();
            self.passed_over.push(ManifestError { file, document: 0, line: 0, column: 0, reason });
        }
    }

    /// Reads the objects of all files.
    fn read_all(&mut self) {
        for (number, file) in self.files.iter().enumerate().filter(|(_, it)| !it.near.is_patch) {
            let placed = file.read(&file.bytes);
            self.is_changed |= file.near.is_any && placed.has_patches;
            let first = self.manifests.documents.len();
            self.manifests.documents.extend(placed.manifests.documents);
            for mut item in placed.manifests.items {
                item.document += first;
                self.manifests.items.push(item);
            }
            self.sources.extend(placed.sources.into_iter().map(|it| (it, number)));
            self.errors.extend(placed.errors);
            self.passed_over.extend(placed.passed_over);
            self.unlike.extend(placed.unlike);
            self.mistyped.extend(placed.mistyped);
            self.manifests.has_unread_policies |= placed.manifests.has_unread_policies;
            self.manifests.makers.extend(placed.manifests.makers);
        }
    }

    /// Reads the objects again, after files have changed. What could not be read is still known.
    pub fn read_again(&mut self) {
        self.manifests = Manifests::default();
        self.sources.clear();
        let (errors, passed_over) = (std::mem::take(&mut self.errors), std::mem::take(&mut self.passed_over));
        self.read_all();
        (self.errors, self.passed_over) = (errors, passed_over);
        self.unlike.clear();
        self.mistyped.clear();
    }
}

/// Writes a file beside the old one and puts it in its place, so that it is never there by half. Links stay, and who may read it.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let real = fs::canonicalize(path)?;
    let metadata = fs::metadata(&real)?;
    if metadata.permissions().readonly() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is read-only"));
    }
    let name = real.file_name().unwrap_or_default().to_string_lossy();
    // A name that no walk takes for a manifest.
    let new = real.with_file_name(format!(".{name}.netaudit-{}", std::process::id()));
    let put = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&new)?;
        file.write_all(bytes)?;
        file.set_permissions(metadata.permissions())?;
        let now = file.metadata()?;
        if (now.uid(), now.gid()) != (metadata.uid(), metadata.gid()) {
            std::os::unix::fs::fchown(&file, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        file.sync_all()?;
        fs::rename(&new, &real)
    };
    put().inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

/// Where an object stands may have changed, not what it is.
pub(super) fn is_same(was: &Item, now: &Item) -> bool {
    let what = match (&was.what, &now.what) {
        (What::Object(Object::Broken(was)), What::Object(Object::Broken(now))) => {
            (&was.key, was.kind, &was.reason) == (&now.key, now.kind, &now.reason)
        }
        (What::Object(was), What::Object(now)) => was == now,
        (What::Pods(was), What::Pods(now)) => {
            was.pod == now.pod && was.ports == now.ports && was.arguments == now.arguments
        }
        _ => false,
    };
    what && was.prefix == now.prefix && was.ignored == now.ignored
}

pub(super) fn difference(name: &str, before: &[u8], after: &[u8]) -> String {
    let [before, after] = [before, after].map(String::from_utf8_lossy);
    let difference = similar::TextDiff::from_lines(&*before, &*after);
    // So is it seen where a name with blanks ends.
    let end = if name.contains(' ') { "\t" } else { "" };
    difference.unified_diff().header(&format!("a/{name}{end}"), &format!("b/{name}{end}")).to_string()
}
