//! Attaches a program in front of all others of its kind, where the kernel can: then it sees the address that was asked for,
//! and not what another program made of it.
//!
//! aya can ask for no such order, so the two system calls are made here.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// `BPF_CGROUP_INET4_CONNECT`.
pub const CONNECT4: u32 = 10;
/// `BPF_CGROUP_INET6_CONNECT`.
pub const CONNECT6: u32 = 11;

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_LINK_CREATE: libc::c_long = 28;

/// Before the programs of the cgroups below, which else run first.
const BPF_F_PREORDER: u32 = 64;
/// Before the others of this cgroup.
const BPF_F_BEFORE: u32 = 8;

/// From what is wanted to what every kernel has.
const ORDERS: [u32; 4] = [BPF_F_PREORDER | BPF_F_BEFORE, BPF_F_PREORDER, BPF_F_BEFORE, 0];

/// The part of `union bpf_attr` for a cgroup's link.
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    reserved: u32,
    expected_revision: u64,
}

/// The part of `union bpf_attr` for a pin.
#[repr(C)]
struct ObjPin {
    path: u64,
    object: u32,
    flags: u32,
}

/// Attaches `program` to `cgroup`, as far in front as this kernel allows. It stays for as long as what is returned is open,
/// or its [`pin`] is there.
///
/// # Errors
///
/// Those of the kernel when it wants no program there at all.
pub fn attach(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let mut result = Err(io::ErrorKind::Unsupported.into());
    for flags in ORDERS {
        let attributes = LinkCreate {
            program: program.as_raw_fd() as u32,
            target: cgroup.as_raw_fd() as u32,
            attach_type,
            flags,
            relative: 0,
            reserved: 0,
            expected_revision: 0,
        };
        // SAFETY: the attributes are those of this command, without padding.
        result = unsafe { bpf(BPF_LINK_CREATE, &attributes) }
            // SAFETY: the kernel has just made the descriptor, and nobody else has it.
            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        // A kernel that does not know a flag says so by this.
        if !matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EINVAL)) {
            break;
        }
    }
    result
}

/// Pins a link.
///
/// # Errors
///
/// When the path is in no BPF file system, or taken.
pub fn pin(link: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = ObjPin { path: path.as_ptr() as u64, object: link.as_raw_fd() as u32, flags: 0 };
    // SAFETY: the attributes are those of this command, without padding; the path lives until the call is over.
    unsafe { bpf(BPF_OBJ_PIN, &attributes) }.map(drop)
}

/// # Safety
///
/// `attributes` must be what the command takes.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: by contract; the kernel reads no more than the size.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
