//! What is left on a node when netaudit is uninstalled: nothing.

use std::{fs::File, io, os::fd::AsRawFd as _, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::world::World;
use crate::cluster::Machine;

/// What is pinned on each node: the kernel itself may have put something there.
pub fn pinned(world: &World) -> Result<Vec<String>> {
    world.cluster.nodes.iter().map(|node| node.run("find", ["/sys/fs/bpf", "-mindepth", "1"])).collect()
}

/// Uninstalls as a person does, and looks for programs, and for pins that were not there before.
pub fn uninstall(world: &World, deploy: &str, pinned_before: &[String]) -> Result<()> {
    for node in &world.cluster.nodes {
        ensure!(
            programs(node)? > 0,
            "no program is attached on {} while the agent runs: this test sees nothing",
            node.name
        );
    }
    ensure!(pinned(world)? != pinned_before, "nothing is pinned while the agents run");
    world.kubectl(&["apply", "-k", &format!("{deploy}/uninstall")])?;
    world.rolled_out()?;
    for node in &world.cluster.nodes {
        world
            .wait_up_to(Duration::from_secs(20), || Ok((programs(node)? == 0).then_some(())))
            .with_context(|| format!("programs stay attached on {}", node.name))?;
    }
    world.kubectl(&["delete", "-k", deploy, "--timeout=60s"])?;
    let after = pinned(world)?;
    ensure!(after == pinned_before, "pinned objects stay: {pinned_before:?} became {after:?}");
    Ok(())
}

/// How many programs are attached to the node's cgroup itself, of all types.
fn programs(node: &Machine) -> Result<u32> {
    let cgroup = node.cgroup()?;
    let directory = File::open(&cgroup).with_context(|| format!("opening {}", cgroup.display()))?;
    let mut count = 0;
    // Types of attachment that are none of a cgroup are errors, and newer kernels know more.
    for kind in 0..64 {
        count += query(&directory, kind).unwrap_or(0);
    }
    Ok(count)
}

fn query(cgroup: &File, kind: u32) -> io::Result<u32> {
    const PROG_QUERY: i64 = 16;
    // Descriptor and type of attachment, flags twice, a pointer that may be null where only the count is asked for, the
    // count.
    let mut attributes = [0_u32; 16];
    attributes[0] = cgroup.as_raw_fd() as u32;
    attributes[1] = kind;
    // SAFETY: the attributes are as long as said, and the kernel writes into them only.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, PROG_QUERY, attributes.as_mut_ptr(), size_of_val(&attributes))
    };
    if result == 0 { Ok(attributes[6]) } else { Err(io::Error::last_os_error()) }
}
