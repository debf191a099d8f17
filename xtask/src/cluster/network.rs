//! The network between the machines: one segment, on which the outside is the router, and a routed pod network behind
//! every node.
//!
//! ```text
//!   outside: 203.0.113.0/24, 198.51.100.0/24       172.18.0.1 ── lan0 (a bridge)
//!                                                                 ├── 172.18.0.11 node1 ── cni0 10.244.1.1/24 ── pods
//!                                                                 └── 172.18.0.12 node2 ── cni0 10.244.2.1/24 ── pods
//! ```

use std::net::Ipv4Addr;

use anyhow::Result;

use super::machine::Machine;
use crate::process::command;

/// The whole pod network.
pub const POD_NETWORK: &str = "10.244.0.0/16";
/// Where Services have their addresses.
pub const SERVICE_NETWORK: &str = "10.96.0.0/16";
/// The first of them: the API server's.
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The cluster's name server.
pub const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The outside, on the segment.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);
/// What the outside also is: documentation addresses, for servers on the internet, and a name server there.
pub const INTERNET: [Ipv4Addr; 3] =
    [Ipv4Addr::new(203, 0, 113, 10), Ipv4Addr::new(198, 51, 100, 20), Ipv4Addr::new(203, 0, 113, 53)];

/// A node's address on the segment; `index` counts from 1.
pub fn node_address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 18, 0, 10 + index)
}

/// A node's part of the pod network.
pub fn pod_network(index: u8) -> String {
    format!("10.244.{index}.0/24")
}

/// Gives the outside its addresses and its bridge.
pub fn set_up_outside(outside: &Machine) -> Result<()> {
    let mut lines = vec![
        "link set lo up".to_owned(),
        "link add lan0 type bridge".to_owned(),
        format!("address add {OUTSIDE}/24 dev lan0"),
        "link set lan0 up".to_owned(),
    ];
    lines.extend(INTERNET.map(|address| format!("address add {address}/32 dev lo")));
    lines.extend(INTERNET.map(|address| {
        // The rest of each network is where nobody answers.
        let [a, b, c, _] = address.octets();
        format!("route replace blackhole {a}.{b}.{c}.0/24")
    }));
    ip(outside, &lines)?;
    forward(outside)
}

/// Connects a node to the segment, and tells it the ways to the others' pods.
pub fn connect(outside: &Machine, node: &Machine, index: u8, nodes: u8) -> Result<()> {
    let (port, name) = (format!("lan{index}"), "eth0");
    let (outside_pid, node_pid) = (outside.pid.to_string(), node.pid.to_string());
    // Made from here: neither machine sees the other's processes.
    crate::process::quiet(&mut command(
        std::path::Path::new("/"),
        "ip",
        [
            "link",
            "add",
            &port,
            "netns",
            &outside_pid,
            "type",
            "veth",
            "peer",
            "name",
            name,
            "netns",
            &node_pid,
        ],
    ))?;
    ip(outside, &[format!("link set {port} master lan0 up")])?;
    let mut lines = vec![
        "link set lo up".to_owned(),
        format!("address add {}/24 dev {name}", node_address(index)),
        format!("link set {name} up"),
        format!("route add default via {OUTSIDE}"),
    ];
    lines.extend(
        (1..=nodes)
            .filter(|other| *other != index)
            .map(|other| format!("route add {} via {}", pod_network(other), node_address(other))),
    );
    ip(node, &lines)?;
    forward(node)?;
    // The internet knows no pods: they leave under their node's address. Between nodes they keep their own.
    node.run(
        "nft",
        [format!(
            "add table ip cluster; add chain ip cluster post {{ type nat hook postrouting priority 100; }}; \
             add rule ip cluster post oifname {name} ip saddr {POD_NETWORK} ip daddr != {POD_NETWORK} masquerade"
        )],
    )
    .map(drop)
}

fn forward(machine: &Machine) -> Result<()> {
    machine.run("sh", ["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]).map(drop)
}

fn ip(machine: &Machine, lines: &[String]) -> Result<()> {
    let script = format!("ip -batch - <<'END'\n{}\nEND\n", lines.join("\n"));
    machine.run("sh", ["-c", &script]).map(drop)
}
