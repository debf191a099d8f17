//! Cgroups that come and go, so that a pod that lives for milliseconds still has a name afterwards.
//!
//! Hooks that are attached to a cgroup see what is at and below it. Tracepoints and iterators see all of the kernel, of
//! which the watched cgroup may be a part, and its neighbour another node's: they ask [`levels_below`] themselves.

use aya_ebpf::{helpers::generated::bpf_probe_read_kernel_str, programs::RawTracePointContext};
use netaudit_ebpf::abi::{CGROUP_PATH, CgroupRecord};

use crate::{
    maps::{emit, setting},
    socket::{cgroup_id, now, read},
};

/// `cgroup_mkdir` and `cgroup_rmdir`: the cgroup, and its path below the real root of its hierarchy.
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
    let Some(below) = levels_below(cgroup) else { return };
    let id = cgroup_id(cgroup);
    emit::<CgroupRecord>(kind, |record| {
        // SAFETY: `record` is reserved; the helper writes no more than the room for the path.
        unsafe {
            (*record).kind = kind;
            (*record).at = now();
            (*record).id = id;
            (*record).below = below;
            (*record).reserved = 0;
            let room = (&raw mut (*record).path).cast();
            let written = bpf_probe_read_kernel_str(room, CGROUP_PATH as u32, path as *const _);
            // The count includes the final zero.
            (*record).length = if written > 0 { written as u32 - 1 } else { 0 };
        }
    });
}

/// How many levels are climbed. The verifier follows each at load, and no runtime nests a tenth as deep.
const DEEPEST: u32 = 128;

/// How many levels `cgroup` lies below the watched one, which itself is at 0; `None` where it is elsewhere. Where
/// everything is watched, 0 for all. A cgroup that was removed still holds those above it.
#[inline(always)]
pub fn levels_below(cgroup: u64) -> Option<u32> {
    let watched = setting!(watched);
    if watched == 0 {
        return Some(0);
    }
    let mut at = cgroup;
    for level in 0..DEEPEST {
        if cgroup_id(at) == watched {
            return Some(level);
        }
        let above: u64 = read(at + u64::from(setting!(cgroup_parent)));
        if above == 0 {
            return None;
        }
        at = above - u64::from(setting!(cgroup_self));
    }
    // It may be either. More levels than a path has room for, so that the agent refuses such a record, and counts it.
    Some(CGROUP_PATH as u32)
}
