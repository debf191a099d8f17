//! A BPF file system of a test's own.

use std::{ffi::CString, io, os::unix::ffi::OsStrExt as _, path::PathBuf, ptr};

/// A BPF file system that only this thread sees, and its children: it is gone with them, and so is all that is pinned there.
#[derive(Debug)]
pub struct BpfFs(tempfile::TempDir);

impl BpfFs {
    /// Gives this thread a mount namespace, and mounts one in it.
    pub fn mount() -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let target = CString::new(directory.path().as_os_str().as_bytes())?;
        let bpf = c"bpf".as_ptr();
        let private = libc::MS_REC | libc::MS_PRIVATE;
        // SAFETY: plain system calls with strings that live across them, or null where mount(2) allows it.
        let failed = unsafe {
            libc::unshare(libc::CLONE_NEWNS) != 0
                || libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), private, ptr::null()) != 0
                || libc::mount(bpf, target.as_ptr(), bpf, 0, ptr::null()) != 0
        };
        if failed { Err(io::Error::last_os_error()) } else { Ok(Self(directory)) }
    }

    /// Where agents may pin. Nothing is there yet.
    pub fn pins(&self) -> PathBuf {
        self.0.path().join("netaudit")
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let Ok(target) = CString::new(self.0.path().as_os_str().as_bytes()) else { return };
        // SAFETY: a plain system call. What holds it open keeps it for as long as it needs it.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}
