//! The cgroup v2 hierarchy as files: where it is mounted, and what is in it now.

use std::{
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{Event, LoadError};
use crate::model::CgroupId;

/// The part of the hierarchy that is watched.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    /// Where the whole of it is mounted.
    pub mount: PathBuf,
    /// The directory that is watched: `mount` or one below it.
    pub root: PathBuf,
    /// `root` relative to `mount`: `/`, or `/a/b`.
    prefix: String,
}

impl Hierarchy {
    /// Finds the mount, and takes `root` or else all of it.
    ///
    /// # Errors
    ///
    /// When no cgroup v2 is mounted, or `root` is not in one.
    pub fn find(root: Option<&Path>) -> Result<Self, LoadError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(LoadError::Mounts)?;
        let mounts = mounts_of(&mounts);
        let Some(root) = root else {
            let mount = mounts.into_iter().next().ok_or(LoadError::NoCgroup2)?;
            return Ok(Self { root: mount.clone(), mount, prefix: "/".to_owned() });
        };
        let root =
            root.canonicalize().map_err(|source| LoadError::CgroupRoot { path: root.to_owned(), source })?;
        // The innermost mount above it; a directory of another file system is in none.
        let mount = mounts
            .into_iter()
            .filter(|mount| root.starts_with(mount))
            .max_by_key(|mount| mount.components().count())
            .filter(|_| is_cgroup2(&root))
            .ok_or_else(|| LoadError::NotCgroup2 { path: root.clone() })?;
        let prefix = relative(&mount, &root);
        Ok(Self { mount, root, prefix })
    }

    /// Whether the watched part is all there is.
    pub fn is_whole(&self) -> bool {
        self.prefix == "/"
    }

    /// Whether a path relative to the mount is in the watched part.
    pub fn contains(&self, path: &str) -> bool {
        self.is_whole()
            || path.strip_prefix(&self.prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Every cgroup of the watched part. One that goes away meanwhile is left out.
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
            found.push(Event::Cgroup { id: CgroupId(meta.ino()), path: relative(&self.mount, &directory) });
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

/// The mount points of whole cgroup v2 hierarchies in the text of `mountinfo`, the shortest first.
///
/// A line is `id parent device root mount options [tags] - type source superoptions`. A mount whose root is not `/`
/// shows a part only (a bind mount in a container), where the kernel's paths would lead nowhere.
fn mounts_of(mountinfo: &str) -> Vec<PathBuf> {
    let mut mounts: Vec<PathBuf> = mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut left = left.split(' ').skip(3);
            let (root, mount) = (left.next()?, left.next()?);
            (right.split(' ').next()? == "cgroup2" && root == "/").then(|| unescape(mount))
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
            [PathBuf::from("/sys/fs/cgroup/unified"), PathBuf::from("/mnt/with space/and/more")]
        );
        assert!(mounts_of("nonsense\n31 24 - cgroup2").is_empty());
    }

    #[test]
    fn a_part_contains_itself_and_what_is_below() {
        let part = Hierarchy { mount: "/m".into(), root: "/m/a/b".into(), prefix: "/a/b".to_owned() };
        assert!(part.contains("/a/b") && part.contains("/a/b/c"));
        assert!(!part.contains("/a") && !part.contains("/a/bc"));
        let whole = Hierarchy { mount: "/m".into(), root: "/m".into(), prefix: "/".to_owned() };
        assert!(whole.contains("/") && whole.contains("/a"));
    }

    #[test]
    fn a_root_outside_the_hierarchy_is_refused() {
        let error = Hierarchy::find(Some(Path::new("/proc"))).unwrap_err();
        assert!(matches!(error, LoadError::NotCgroup2 { .. } | LoadError::NoCgroup2), "{error}");
        let error = Hierarchy::find(Some(Path::new("/no/such/directory"))).unwrap_err();
        assert!(matches!(error, LoadError::CgroupRoot { .. }), "{error}");
    }
}
