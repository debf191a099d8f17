//! The cgroup v2 hierarchy as files: where it is mounted, and what is in it now.

use std::{
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{Event, LoadError};
use crate::model::CgroupId;

/// What is watched of the hierarchy.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    /// Where it is mounted: the whole of it, or a part.
    pub mount: PathBuf,
    /// The directory that is watched: `mount` or one below it.
    pub root: PathBuf,
    /// The cgroup of `root`, where that is not the root of the whole hierarchy.
    pub part: Option<CgroupId>,
    /// `root` relative to `mount`: nothing, or `/a/b`.
    prefix: String,
}

impl Hierarchy {
    /// Finds the mount, and takes `root` or else all of it. Without `root`, a mount of the whole hierarchy is preferred;
    /// else it is one that shows a node: the host's mount in a node that is a container itself, and not what this
    /// process's own container was given, in which no pod would ever be seen.
    ///
    /// # Errors
    ///
    /// When no such mount is there, or `root` is in none.
    pub fn find(root: Option<&Path>) -> Result<Self, LoadError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(LoadError::Mounts)?;
        Self::among(&mounts_of(&mounts), root)
    }

    /// As [`Hierarchy::find`], among mount points that are known.
    fn among(mounts: &[PathBuf], root: Option<&Path>) -> Result<Self, LoadError> {
        let Some(root) = root else {
            let mut seen = mounts.iter().filter(|mount| is_cgroup2(mount));
            let whole = seen.clone().find(|mount| id_of(mount).is_ok_and(|id| id == ROOT));
            return match whole.or_else(|| seen.find(|mount| shows_node(mount))) {
                Some(mount) => Self::new(mount.clone(), mount.clone()),
                None if mounts.is_empty() => Err(LoadError::NoCgroup2),
                None => Err(LoadError::PartOfCgroup2 { mounts: mounts.to_vec() }),
            };
        };
        let root =
            root.canonicalize().map_err(|source| LoadError::CgroupRoot { path: root.to_owned(), source })?;
        // The innermost mount above it; a directory of another file system is in none.
        let mount = mounts
            .iter()
            .filter(|mount| root.starts_with(mount))
            .max_by_key(|mount| mount.components().count())
            .filter(|_| is_cgroup2(&root))
            .ok_or_else(|| LoadError::NotCgroup2 { path: root.clone() })?;
        Self::new(mount.clone(), root)
    }

    fn new(mount: PathBuf, root: PathBuf) -> Result<Self, LoadError> {
        let id = id_of(&root).map_err(|source| LoadError::CgroupRoot { path: root.clone(), source })?;
        let prefix = relative(&mount, &root).trim_end_matches('/').to_owned();
        Ok(Self { mount, root, part: (id != ROOT).then_some(id), prefix })
    }

    /// A path from `root` as one from `mount`.
    pub fn path_from_mount(&self, path: String) -> String {
        if self.prefix.is_empty() { path } else { format!("{}{path}", self.prefix) }
    }

    /// Every cgroup that is watched. One that goes away meanwhile is left out.
    ///
    /// # Errors
    ///
    /// When the root itself cannot be read.
    pub fn list(&self) -> io::Result<Vec<Event>> {
        let mut found = Vec::new();
        let mut open = vec![self.root.clone()];
        let mut first = true;
        while let Some(directory) = open.pop() {
            let read =
                fs::symlink_metadata(&directory).and_then(|meta| Ok((meta, fs::read_dir(&directory)?)));
            let (meta, entries) = match read {
                Ok(read) => read,
                Err(error) if first => return Err(error),
                Err(_) => continue,
            };
            first = false;
            let path = relative(&self.mount, &directory);
            found.push(Event::Cgroup { id: CgroupId(meta.ino()), path, made: None });
            open.extend(
                entries
                    .flatten()
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
        }
        Ok(found)
    }
}

/// `path` as the kernel writes it, from `mount`.
fn relative(mount: &Path, path: &Path) -> String {
    let below = path.strip_prefix(mount).unwrap_or(Path::new(""));
    format!("/{}", below.to_string_lossy())
}

fn is_cgroup2(path: &Path) -> bool {
    // `CGROUP2_SUPER_MAGIC`
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u64 == 0x6367_7270)
}

/// The root of the whole hierarchy, in every namespace. A mount of a part (a bind mount, or what a container is given as
/// its own) begins at another cgroup.
///
/// The `root` of `mountinfo` does not tell: in a private cgroup namespace a part shows `/` there, and the whole shows
/// `/../..`.
const ROOT: CgroupId = CgroupId(1);

/// A cgroup's id is the inode of its directory.
fn id_of(directory: &Path) -> io::Result<CgroupId> {
    Ok(CgroupId(fs::metadata(directory)?.ino()))
}

/// Whether a kubelet keeps its pods below `mount`: some levels down at most, since `kubelet.slice` or `kubelet` may come
/// first.
fn shows_node(mount: &Path) -> bool {
    const LEVELS: usize = 3;
    let mut level = vec![mount.to_owned()];
    for _ in 0..LEVELS {
        let mut next = Vec::new();
        for entry in level.iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_str().is_some_and(is_kubepods) {
                return true;
            }
            next.push(entry.path());
        }
        level = next;
    }
    false
}

/// Whether a cgroup of this name is where a kubelet keeps all of its pods: `kubepods` or `kubepods.slice`, with the name
/// of `cgroupRoot` before it where one is set.
fn is_kubepods(name: &str) -> bool {
    name.strip_suffix(".slice").unwrap_or(name).ends_with("kubepods")
}

/// The mount points of cgroup v2, of all of it or a part, in the text of `mountinfo`, the shortest first.
///
/// A line is `id parent device root mount options [tags] - type source superoptions`.
fn mounts_of(mountinfo: &str) -> Vec<PathBuf> {
    let mut mounts: Vec<PathBuf> = mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mount = left.split(' ').nth(4)?;
            (right.split(' ').next()? == "cgroup2").then(|| unescape(mount))
        })
        .collect();
    mounts.sort_by_key(|mount| mount.components().count());
    mounts
}

/// `mountinfo` writes a space, a tab, a newline and a backslash as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let code = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                plain.push(code);
                at += 4;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_hierarchy_of_pure_and_hybrid_hosts() {
        let pure = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(mounts_of(pure), [PathBuf::from("/sys/fs/cgroup")]);
        let hybrid = "31 24 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                      32 31 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      33 31 0:29 / /sys/fs/cgroup/unified rw shared:1 master:2 - cgroup2 cgroup2 rw\n\
                      34 24 0:29 /kubepods /mnt/part rw - cgroup2 cgroup2 rw\n\
                      35 24 0:29 / /mnt/with\\040space/and/more rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            mounts_of(hybrid),
            ["/mnt/part", "/sys/fs/cgroup/unified", "/mnt/with space/and/more"].map(PathBuf::from)
        );
        let private = "40 24 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n\
                       41 24 0:26 /../../.. /host/sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mounts_of(private), ["/sys/fs/cgroup", "/host/sys/fs/cgroup"].map(PathBuf::from));
        assert!(mounts_of("nonsense\n31 24 - cgroup2").is_empty());
    }

    #[test]
    fn paths_begin_at_the_mount_whatever_is_watched_below_it() {
        let mount = tempfile::tempdir().unwrap();
        let root = mount.path().join("a/b");
        fs::create_dir_all(&root).unwrap();
        let part = Hierarchy::new(mount.path().to_owned(), root.clone()).unwrap();
        assert_eq!(part.part, Some(id_of(&root).unwrap()));
        assert_eq!(part.path_from_mount("/c/d".to_owned()), "/a/b/c/d");
        let all = Hierarchy::new(mount.path().to_owned(), mount.path().to_owned()).unwrap();
        assert_eq!(all.path_from_mount("/c/d".to_owned()), "/c/d");
    }

    #[test]
    fn a_node_shows_in_the_directory_that_a_kubelet_keeps_its_pods_in() {
        for (path, shows) in [
            ("kubepods/burstable", true),
            ("kubepods.slice", true),
            ("kubelet/kubepods", true),
            ("kubelet.slice/kubelet-kubepods.slice", true),
            ("a/b/kubepods", true),
            ("a/b/c/kubepods", false),
            ("kubepods-burstable.slice", false),
            ("system.slice/kubelet.service", false),
        ] {
            let mount = tempfile::tempdir().unwrap();
            fs::create_dir_all(mount.path().join(path)).unwrap();
            assert_eq!(shows_node(mount.path()), shows, "{path}");
        }
        let mount = tempfile::tempdir().unwrap();
        fs::write(mount.path().join("kubepods"), "").unwrap();
        assert!(!shows_node(mount.path()), "a file is no cgroup");
    }

    #[test]
    fn a_mount_without_a_node_is_refused_and_named() {
        // Any directory will do for one whose inode is not that of the root.
        let part = PathBuf::from("/proc/self");
        let error = Hierarchy::among(std::slice::from_ref(&part), None).unwrap_err();
        assert!(matches!(&error, LoadError::PartOfCgroup2 { mounts } if *mounts == [part]), "{error}");
        assert!(error.to_string().contains("/proc/self"), "{error}");
        assert!(matches!(Hierarchy::among(&[], None), Err(LoadError::NoCgroup2)));
    }

    #[test]
    fn a_root_outside_the_hierarchy_is_refused() {
        let error = Hierarchy::find(Some(Path::new("/proc"))).unwrap_err();
        assert!(matches!(error, LoadError::NotCgroup2 { .. } | LoadError::NoCgroup2), "{error}");
        let error = Hierarchy::find(Some(Path::new("/no/such/directory"))).unwrap_err();
        assert!(matches!(error, LoadError::CgroupRoot { .. }), "{error}");
    }
}
