//! What the agent tells the programs at load.

use super::DROP_REASONS;

/// Where the running kernel keeps what the programs read: byte offsets, which the agent takes from the kernel's BTF,
/// and the settings of this run. Constant once the programs are loaded.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Settings {
    /// `sock.sk_err`
    pub sk_err: u32,
    /// `sock.sk_err_soft`
    pub sk_err_soft: u32,
    /// `sock.sk_error_queue.next`
    pub error_queue_next: u32,
    /// `sock.sk_error_queue.qlen`
    pub error_queue_length: u32,
    /// From an `sk_buff` to the `sock_extended_err` in its control block.
    pub extended_error: u32,
    /// `sock.skc_incoming_cpu`
    pub sk_incoming_cpu: u32,
    /// `sock.sk_stamp`
    pub sk_stamp: u32,
    /// `sock.skc_cookie`
    pub sk_cookie: u32,
    /// The byte of `tcp_sock` that holds `is_mptcp`; [`NO_FIELD`] where the kernel has no multipath sockets
    pub is_mptcp: u32,
    /// How far `is_mptcp` stands from the low end of that byte, in bits.
    pub is_mptcp_shift: u32,
    /// `mptcp_sock.first`
    pub mptcp_first: u32,
    /// `sock.sk_cgrp_data.cgroup`
    pub sk_cgroup: u32,
    /// `sock.skc_state`
    pub sk_state: u32,
    /// `sock.skc_family`
    pub sk_family: u32,
    /// `sock.sk_type`
    pub sk_type: u32,
    /// `sock.sk_protocol`
    pub sk_protocol: u32,
    /// The byte of `sock` that holds `sk_userlocks`.
    pub sk_userlocks: u32,
    /// How far `sk_userlocks` stands from the low end of that byte, in bits.
    pub sk_userlocks_shift: u32,
    /// `sock.skc_num`
    pub sk_num: u32,
    /// `sock.skc_rcv_saddr`
    pub sk_address4: u32,
    /// `sock.skc_v6_rcv_saddr`
    pub sk_address6: u32,
    /// `sock.skc_net`
    pub sk_net: u32,
    /// `net.net_cookie`
    pub net_cookie: u32,
    /// `cgroup.kn`
    pub cgroup_node: u32,
    /// `kernfs_node.id`
    pub node_id: u32,
    /// `cgroup.root`
    pub cgroup_root: u32,
    /// `cgroup_root.hierarchy_id`
    pub hierarchy_id: u32,
    /// `cgroup.self`
    pub cgroup_self: u32,
    /// `cgroup.self.parent`, which points to the `self` of the cgroup above
    pub cgroup_parent: u32,
    /// `task_struct.pid`
    pub task_pid: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.comm`
    pub task_comm: u32,
    /// `task_struct.cgroups`
    pub task_cgroups: u32,
    /// `css_set.dfl_cgrp`
    pub default_cgroup: u32,
    /// `task_struct.nsproxy`
    pub task_nsproxy: u32,
    /// `nsproxy.net_ns`
    pub nsproxy_net: u32,
    /// `msghdr.msg_name`
    pub message_name: u32,
    /// `sk_buff.head`
    pub skb_head: u32,
    /// `sk_buff.tail`, which counts from the head
    pub skb_tail: u32,
    /// `sk_buff.network_header`
    pub skb_network_header: u32,
    /// `sk_buff.protocol`
    pub skb_protocol: u32,
    /// `sk_buff.dev`
    pub skb_device: u32,
    /// `sk_buff.sk`
    pub skb_socket: u32,
    /// `sk_buff._nfct`; [`NO_FIELD`] where the kernel tracks no connections
    pub skb_conntrack: u32,
    /// `net_device.nd_net`
    pub device_net: u32,
    /// `net_device.ifindex`
    pub device_index: u32,
    /// `sock.skc_daddr`
    pub sk_peer4: u32,
    /// `sock.skc_v6_daddr`
    pub sk_peer6: u32,
    /// `sock.skc_dport`
    pub sk_peer_port: u32,
    /// The byte of `sock` that holds `skc_reuseport`.
    pub sk_reuse_port: u32,
    /// How far `skc_reuseport` stands from the low end of that byte, in bits.
    pub sk_reuse_port_shift: u32,
    /// `sock.skc_bound_dev_if`
    pub sk_device: u32,
    /// The byte of `inet_sock` that holds whether it takes what is meant for any address; [`NO_FIELD`] where that is not known
    pub is_transparent: u32,
    /// How far that bit stands from the low end of that byte.
    pub is_transparent_shift: u32,
    /// `sock.sk_max_ack_backlog`
    pub sk_backlog: u32,
    /// `inet_connection_sock.icsk_bind_hash`; [`NO_FIELD`] where one of those that follow is missing
    pub bind_bucket: u32,
    /// `inet_bind_bucket.fastreuse`
    pub bucket_reuse: u32,
    /// `inet_bind_bucket.fastreuseport`
    pub bucket_reuse_port: u32,
    /// `inet_sock.mc_index`
    pub arrival4: u32,
    /// `inet_sock.pinet6`
    pub inet6: u32,
    /// `ipv6_pinfo.mcast_oif`
    pub arrival6: u32,
    /// `tcp_sock.snd_una`
    pub sent_until: u32,
    /// `tcp_sock.bytes_acked`, by which `snd_una` has grown
    pub sent: u32,
    /// `tcp_sock.rcv_nxt`
    pub received_until: u32,
    /// `tcp_sock.bytes_received`, by which `rcv_nxt` has grown
    pub received: u32,
    /// The kernel's numbers of [`DROP_REASONS`]; 0 for one that it does not have.
    pub drop_reasons: [u32; DROP_REASONS.len()],
    /// Bytes in the ring at which the reader is woken; 0 for never.
    pub wake_at: u32,
    /// How long after it was told a UDP flow that still goes on is told again, in steps of [`TICK_SHIFT`].
    pub udp_retell: u32,
    /// The id of the cgroup at and below which everything is told; 0 where that is all of them.
    pub watched: u64,
    /// Cookie of the node's own network namespace.
    pub host_netns: u64,
    /// Until when, in nanoseconds since boot, a UDP server that was there before the programs may be answering what it read
    /// before them.
    pub answers_until: u64,
    /// Whether the verifier trusts no socket that a file is of, so that a look keeps what it finds in a map of its own: 0 or 1.
    pub sockets_untrusted: u64,
}

/// Stands for the offset of a field that the kernel does not have and can be done without.
pub const NO_FIELD: u32 = u32::MAX;

/// A step of [`Settings::udp_retell`] is two to the power of this many nanoseconds: about a millisecond.
pub const TICK_SHIFT: u32 = 20;

/// Index into the map of switches: 1 there means that a program that sees datagrams being sent is attached, so that a
/// connected socket's flow is told at its first datagram and not at `connect`, which sends nothing.
pub const SWITCH_UDP_SEND: u32 = 0;

/// Index into the map of switches: 1 there means that the scan of open files also tells of connections. A scan that nobody
/// reads must not take them for told.
pub const SWITCH_OPEN: u32 = 1;

/// How many switches there are.
pub const SWITCHES: u32 = 2;

/// Index into the map of what agents keep for those that come after them: up to where records have been taken out of the ring, in bytes.
pub const KEPT_TAKEN: u32 = 0;

/// Index into that map: connections that looks found up to then, in nanoseconds since boot, have been told.
pub const KEPT_TOLD: u32 = 1;

/// How many numbers are kept.
pub const KEPT: u32 = 2;

const _: () = assert!(size_of::<Settings>() == 328);
