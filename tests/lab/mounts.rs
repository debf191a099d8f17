//! File systems of a test's own.

use std::{
    ffi::{CStr, CString},
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    ptr,
};

/// A file system that only this thread sees, and its children: it is gone with them, and so is all that is in it.
#[derive(Debug)]
pub struct Mounted(tempfile::TempDir);

impl Mounted {
    /// Gives this thread a mount namespace, and mounts a file system of this kind in it.
    pub fn new(kind: &CStr, options: Option<&CStr>) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let target = CString::new(directory.path().as_os_str().as_bytes())?;
        let options = options.map_or(ptr::null(), |options| options.as_ptr().cast());
        let private = libc::MS_REC | libc::MS_PRIVATE;
        // SAFETY: plain system calls with strings that live across them, or null where mount(2) allows it.
        let failed = unsafe {
            libc::unshare(libc::CLONE_NEWNS) != 0
                || libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), private, ptr::null()) != 0
                || libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, options) != 0
        };
        if failed { Err(io::Error::last_os_error()) } else { Ok(Self(directory)) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let Ok(target) = CString::new(self.0.path().as_os_str().as_bytes()) else { return };
        // SAFETY: a plain system call. What holds it open keeps it for as long as it needs it.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

/// A BPF file system.
#[derive(Debug)]
pub struct BpfFs(Mounted);

impl BpfFs {
    /// Mounts one.
    pub fn mount() -> io::Result<Self> {
        Mounted::new(c"bpf", None).map(Self)
    }

    /// Where agents may pin. Nothing is there yet.
    pub fn pins(&self) -> PathBuf {
        self.0.path().join("netaudit")
    }
}
