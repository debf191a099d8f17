//! A Kubernetes node made of the kernel's own parts: pods as the kubelet and a CNI plugin lay them out.
//!
//! ```text
//!   outside (the internet)          node                                   pods
//!   203.0.113.0/24, 198.51.100.0/24  eth0 192.168.50.10    cni0 10.244.1.1   10.244.1.x, fd00:244:1::x
//!   2001:db8::/32, 172.31.0.0/24   ──┤     nftables DNAT: ClusterIP → pod ├── eth0, default route via cni0
//!   cgroup: outside                  cgroup: node/system.slice/<unit>        cgroup: node/kubepods/<qos>/pod<uid>/<id>
//! ```
//!
//! Everything hangs on file descriptors and one cgroup: network namespaces have no name and end with the process that
//! made them; processes carry a death signal and live below the lab's cgroup, so one write ends them; the run's
//! directory is locked while its owner lives. What a killed run leaves (a cgroup, a directory) the next start removes.
//!
//! Needs root, cgroup v2 (also beside v1), `ip` and `nft`.

mod cgroup;
mod mounts;
mod netns;
mod node;
mod objects;
mod process;
mod run;
mod signals;

pub use cgroup::{find_cgroup2_mount, kill_and_remove};
pub use mounts::{BpfFs, Mounted};
pub use netns::Netns;
pub use node::{Lab, NODE_NAME, Pod, PodSpec, Qos, Service, ServicePort, ServiceSpec};
pub use objects::Owner;
pub use process::{Launch, Place, Process};
pub use signals::exit_status_on_interrupt;
