//! Which files a kustomization does not apply as they are: it edits others by them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// The names that `kustomize` looks for.
const NAMES: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];

/// A file of an overlay is seldom deeper below its kustomization.
const LEVELS: usize = 4;

/// Fields that say which files belong to it, or that change objects all alike, so that what one says of another stays.
const HARMLESS: [&str; 19] = [
    "apiVersion",
    "bases",
    "buildMetadata",
    "commonAnnotations",
    "commonLabels",
    "configMapGenerator",
    "crds",
    "generatorOptions",
    "images",
    "kind",
    "metadata",
    "namePrefix",
    "nameSuffix",
    "namespace",
    "openapi",
    "replicas",
    "resources",
    "secretGenerator",
    "sortOptions",
];

/// The kustomizations near files, each read once.
#[derive(Debug, Default)]
pub struct Kustomizations {
    /// By directory, whose real path it is: whether there is one, and the fields that change what files say.
    read: BTreeMap<PathBuf, Option<BTreeSet<String>>>,
    /// Files by which one of them edits others.
    patches: BTreeSet<PathBuf>,
    /// Directories of components, which others take in and change.
    components: BTreeSet<PathBuf>,
}

/// What a file is to the kustomizations near it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Near {
    /// Whether there is one in its directory or above.
    pub is_any: bool,
    /// Whether one edits other files by this one.
    pub is_patch: bool,
    /// Whether it is of a component.
    pub is_of_component: bool,
}

impl Kustomizations {
    /// Reads those in the directories of these files and in the few above.
    pub fn of<'a>(files: impl IntoIterator<Item = &'a Path>) -> Self {
        let mut all = Self::default();
        for real in files.into_iter().filter_map(|it| fs::canonicalize(it).ok()) {
            for directory in real.ancestors().skip(1).take(LEVELS) {
                if !all.read.contains_key(directory) {
                    let changes = all.add(directory);
                    all.read.insert(directory.to_owned(), changes);
                }
            }
        }
        all
    }

    /// What a file is to them.
    pub fn near(&self, file: &Path) -> Near {
        let Ok(real) = fs::canonicalize(file) else { return Near::default() };
        let above = || real.ancestors().skip(1);
        Near {
            is_any: above().take(LEVELS).any(|it| matches!(self.read.get(it), Some(Some(_)))),
            is_patch: self.patches.contains(&real),
            is_of_component: above().any(|it| self.components.contains(it)),
        }
    }

    /// The fields of a kustomization that change what files say.
    pub fn changes(&self, file: &Path) -> Vec<&str> {
        let real = fs::canonicalize(file).ok();
        let read = real.as_deref().and_then(Path::parent).and_then(|it| self.read.get(it));
        read.into_iter().flatten().flatten().map(String::as_str).collect()
    }

    /// Reads that of a directory, if there is one. What is no object says nothing.
    fn add(&mut self, directory: &Path) -> Option<BTreeSet<String>> {
        let text = NAMES.iter().find_map(|it| fs::read_to_string(directory.join(it)).ok())?;
        let mut changes = BTreeSet::new();
        let Ok(Value::Object(fields)) = serde_saphyr::from_str::<Value>(&text) else { return Some(changes) };
        let real = |it: &Value| fs::canonicalize(directory.join(it.as_str()?)).ok();
        for (name, value) in &fields {
            let elements = value.as_array().into_iter().flatten();
            match name.as_str() {
                "patches" | "patchesJson6902" => {
                    self.patches.extend(elements.filter_map(|it| it.get("path").and_then(real)));
                }
                // An element is a path, or the patch itself.
                "patchesStrategicMerge" | "transformers" => self.patches.extend(elements.filter_map(real)),
                "components" => self.components.extend(elements.filter_map(real)),
                "kind" if value == "Component" => {
                    self.components.insert(directory.to_owned());
                }
                _ => {}
            }
            if !HARMLESS.contains(&name.as_str()) {
                changes.insert(name.clone());
            }
        }
        Some(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_and_components_are_found_from_the_files_near() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("over/patches")).expect("folders");
        fs::create_dir_all(path("part")).expect("a folder");
        for name in ["over/p.yaml", "over/patches/q.yaml", "over/s.yaml", "part/c.yaml", "alone.yaml"] {
            fs::write(path(name), "a: b\n").expect("a file");
        }
        let text = "resources: [p.yaml]\npatches: [{path: patches/q.yaml}, {patch: x}, {path: gone.yaml}]\n\
                    patchesStrategicMerge: [s.yaml]\ncomponents: [../part]\n";
        fs::write(path("over/kustomization.yaml"), text).expect("a file");
        let files = ["over/p.yaml", "over/patches/q.yaml", "part/c.yaml"].map(path);
        let all = Kustomizations::of(files.iter().map(|it| &**it));
        let near = |name: &str| all.near(&path(name));
        assert_eq!(near("alone.yaml"), Near::default());
        assert_eq!(near("over/p.yaml"), Near { is_any: true, ..Near::default() });
        for name in ["over/patches/q.yaml", "over/s.yaml"] {
            assert_eq!(near(name), Near { is_any: true, is_patch: true, ..Near::default() });
        }
        assert_eq!(near("part/c.yaml"), Near { is_of_component: true, ..Near::default() });
        assert_eq!(
            all.changes(&path("over/kustomization.yaml")),
            ["components", "patches", "patchesStrategicMerge"]
        );
    }
}
