//! Cgroups that come and go, so that a pod that lives for milliseconds still has a name afterwards.

use aya_ebpf::{helpers::generated::bpf_probe_read_kernel_str, programs::RawTracePointContext};
use netaudit_ebpf::abi::{CGROUP_PATH, CgroupRecord};

use crate::{
    maps::{emit, setting},
    socket::{cgroup_id, now, read},
};

/// `cgroup_mkdir` and `cgroup_rmdir`: the cgroup, and its path below the root of its hierarchy.
#[inline(always)]
pub fn changed(ctx: &RawTracePointContext, kind: u32) {
    let cgroup: u64 = ctx.arg(0);
    let path: u64 = ctx.arg(1);
    // The v2 hierarchy is number 0; v1 controllers beside it have others.
    let root: u64 = read(cgroup + u64::from(setting!(cgroup_root)));
    let hierarchy: i32 = read(root + u64::from(setting!(hierarchy_id)));
    if hierarchy != 0 {
        return;
    }
    let id = cgroup_id(cgroup);
    emit::<CgroupRecord>(kind, |record| {
        // SAFETY: `record` is reserved; the helper writes no more than the room for the path.
        unsafe {
            (*record).kind = kind;
            (*record).at = now();
            (*record).id = id;
            (*record).reserved = 0;
            let room = (&raw mut (*record).path).cast();
            let written = bpf_probe_read_kernel_str(room, CGROUP_PATH as u32, path as *const _);
            // The count includes the final zero.
            (*record).length = if written > 0 { written as u32 - 1 } else { 0 };
        }
    });
}
