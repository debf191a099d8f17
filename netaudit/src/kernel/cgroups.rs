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
    /// When no cgroup v2 is mounted whole, or `root` is not in such a mount.
    pub fn find(root: Option<&Path>) -> Result<Self, LoadError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(LoadError::Mounts)?;
        Self::among(&mounts_of(&mounts), root)
    }

    /// As [`Hierarchy::find`], among mount points that are known.
    fn among(mounts: &[PathBuf], root: Option<&Path>) -> Result<Self, LoadError> {
        let Some(root) = root else {
            return match mounts.iter().find(|mount| is_whole(mount)) {
                Some(mount) => Ok(Self { root: mount.clone(), mount: mount.clone(), prefix: "/".to_owned() }),
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
        if !is_whole(mount) {
            return Err(LoadError::PartOfCgroup2 { mounts: vec![mount.clone()] });
        }
        let prefix = relative(mount, &root);
        Ok(Self { mount: mount.clone(), root, prefix })
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

/// Whether a mount of cgroup v2 shows all of it. A part (a bind mount, or what a container is given as its own) begins
/// at a cgroup below, and the kernel's paths, which begin at the root, would lead nowhere in it.
///
/// The `root` of `mountinfo` does not tell: in a private cgroup namespace a part shows `/` there, and the whole shows
/// `/../..`. The inode does: it is the cgroup's id, and the root's is 1 in every namespace.
fn is_whole(mount: &Path) -> bool {
    fs::metadata(mount).is_ok_and(|meta| meta.ino() == ROOT_ID) && is_cgroup2(mount)
}

const ROOT_ID: u64 = 1;

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
    fn a_part_contains_itself_and_what_is_below() {
        let part = Hierarchy { mount: "/m".into(), root: "/m/a/b".into(), prefix: "/a/b".to_owned() };
        assert!(part.contains("/a/b") && part.contains("/a/b/c"));
        assert!(!part.contains("/a") && !part.contains("/a/bc"));
        let whole = Hierarchy { mount: "/m".into(), root: "/m".into(), prefix: "/".to_owned() };
        assert!(whole.contains("/") && whole.contains("/a"));
    }

    #[test]
    fn a_mount_that_is_not_the_whole_is_refused_and_named() {
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
