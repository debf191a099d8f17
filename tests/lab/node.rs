//! The node, the outside world, the pods and the Services, laid out in namespaces and cgroups.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{netns::Netns, objects, process::Place, run::Run};

/// The node's name in the API.
pub const NODE_NAME: &str = "node-a";
/// The node's addresses towards the outside.
pub const NODE_V4: &str = "192.168.50.10";
/// See [`NODE_V4`].
pub const NODE_V6: &str = "fd00:50::10";
/// What the node's pods get their addresses from.
pub const POD_CIDR_V4: &str = "10.244.1.0/24";
/// See [`POD_CIDR_V4`].
pub const POD_CIDR_V6: &str = "fd00:244:1::/64";

/// A pod's quality of service, which decides the depth of its cgroup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Qos {
    /// One level higher than the others.
    Guaranteed,
    /// Below `burstable`.
    Burstable,
    /// Below `besteffort`.
    BestEffort,
}

impl Qos {
    /// The word of the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// What a pod is to be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Its namespace; made when first named.
    pub namespace: &'static str,
    /// Its name, as its owner would have named it.
    pub name: &'static str,
    /// Its labels, without those that its owner adds.
    pub labels: &'static [(&'static str, &'static str)],
    /// What controls it.
    pub owner: objects::Owner,
    /// Its quality of service.
    pub qos: Qos,
    /// Its container's name.
    pub container: &'static str,
    /// Its declared ports: name, protocol, number.
    pub ports: &'static [(&'static str, &'static str, u16)],
}

/// A pod as it is.
#[derive(Clone, Debug)]
pub struct Pod {
    /// What was asked for.
    pub spec: PodSpec,
    /// The object's UID.
    pub uid: String,
    /// The id that the container runtime would give to its container.
    pub container_id: String,
    /// Its addresses.
    pub v4: Ipv4Addr,
    /// See `v4`.
    pub v6: Ipv6Addr,
    /// Where its container's processes run.
    pub place: Place,
}

/// One port of a Service.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// The port's name.
    pub name: &'static str,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    /// The port at the Service's address.
    pub port: u16,
    /// The port at the pods.
    pub target_port: u16,
    /// A port at the node's own addresses that leads to the same pods.
    pub node_port: Option<u16>,
}

/// What a Service is to be.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// Its namespace.
    pub namespace: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Labels of the pods behind it.
    pub selector: &'static [(&'static str, &'static str)],
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// A Service as it is.
#[derive(Clone, Debug)]
pub struct Service {
    /// What was asked for.
    pub spec: ServiceSpec,
    /// Its cluster addresses.
    pub v4: Ipv4Addr,
    /// See `v4`.
    pub v6: Ipv6Addr,
}

/// A laid-out node. Dropping it ends every process in it and removes everything.
#[derive(Debug)]
pub struct Lab {
    node: Netns,
    outside: Netns,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pods: Vec<Pod>,
    services: Vec<Service>,
    /// Last, so that the namespaces' descriptors are closed before the directory goes.
    run: Run,
}

impl Lab {
    /// A node without pods beside an outside world without servers. `purpose` becomes part of the run's name.
    pub fn new(purpose: &str) -> Result<Self> {
        let run = Run::new(purpose)?;
        let (node, outside) = (Netns::new()?, Netns::new()?);
        lay_out_node(&node, &outside)?;
        for part in ["node/kubepods/burstable", "node/kubepods/besteffort", "node/system.slice", "outside"] {
            fs::create_dir_all(run.cgroup().join(part))?;
        }
        for part in ["manifests", "logs", "data"] {
            fs::create_dir(run.directory().join(part))?;
        }
        Ok(Self { node, outside, namespaces: BTreeMap::new(), pods: Vec::new(), services: Vec::new(), run })
    }

    /// The directory for files of this run; removed with the lab.
    pub fn directory(&self) -> &Path {
        self.run.directory()
    }

    /// Where the objects are written.
    pub fn manifests(&self) -> PathBuf {
        self.directory().join("manifests")
    }

    /// Where the log of the process `name` belongs.
    pub fn log(&self, name: &str) -> PathBuf {
        self.directory().join("logs").join(format!("{name}.log"))
    }

    /// A directory for a server's own files; made when first named.
    pub fn data(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory().join("data").join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// The cgroup that stands for the root of the node's tree. The outside world is not below it.
    pub fn node_cgroup(&self) -> PathBuf {
        self.run.cgroup().join("node")
    }

    /// The node's own network namespace.
    pub fn node(&self) -> &Netns {
        &self.node
    }

    /// The outside world's network namespace.
    pub fn outside(&self) -> &Netns {
        &self.outside
    }

    /// A process of the host, such as the kubelet: the node's network, a cgroup of its own.
    pub fn host_place(&self, unit: &str) -> Result<Place> {
        let cgroup = self.node_cgroup().join("system.slice").join(unit);
        fs::create_dir_all(&cgroup)?;
        Ok(Place { netns: self.node.clone(), cgroup, etc: None })
    }

    /// A process on the internet.
    pub fn outside_place(&self) -> Place {
        Place { netns: self.outside.clone(), cgroup: self.run.cgroup().join("outside"), etc: None }
    }

    /// Every pod.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Gives the namespace `name` a label; makes the namespace if it is not there.
    pub fn label_namespace(&mut self, name: &str, key: &str, value: &str) {
        self.namespaces.entry(name.to_owned()).or_default().insert(key.to_owned(), value.to_owned());
    }

    /// Adds a pod: a namespace with a veth to the node's bridge, addresses of both families, a cgroup.
    ///
    /// `dns` is the name server of its `resolv.conf`.
    pub fn add_pod(&mut self, spec: PodSpec, dns: Ipv4Addr) -> Result<Pod> {
        let number = u16::try_from(self.pods.len() + 4).context("too many pods")?;
        let v4 = Ipv4Addr::new(10, 244, 1, u8::try_from(number).context("too many pods")?);
        let v6 = Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, number);
        let uid = format!("{:08x}-0000-4000-8000-{number:012x}", std::process::id());
        let container_id = format!("{:032x}{:032x}", std::process::id(), number);
        let netns = Netns::new()?;
        let veth = format!("veth{number}");
        self.node.ip(&[
            format!("link add {veth} type veth peer name eth0 netns {}", netns.path()),
            format!("link set {veth} master cni0 up"),
        ])?;
        // Redirects would let a pod learn a shorter way past the node, where the Services are translated.
        netns.sysctl(&[
            ("net/ipv4/conf/all/accept_redirects", "0"),
            ("net/ipv4/conf/eth0/accept_redirects", "0"),
            ("net/ipv6/conf/eth0/accept_redirects", "0"),
            ("net/ipv6/conf/eth0/accept_dad", "0"),
            ("net/ipv6/conf/eth0/accept_ra", "0"),
        ])?;
        // Host addresses and one way out: pods reach each other through the node, so that its translation of a
        // Service address meets the answers too.
        netns.ip(&[
            format!("addr add {v4}/32 dev eth0"),
            format!("addr add {v6}/128 dev eth0 nodad"),
            "link set eth0 up".to_owned(),
            "route add 10.244.1.1 dev eth0 scope link".to_owned(),
            "route add default via 10.244.1.1".to_owned(),
            "route add fd00:244:1::1 dev eth0".to_owned(),
            "route add default via fd00:244:1::1".to_owned(),
        ])?;
        let class = match spec.qos {
            Qos::Guaranteed => "",
            Qos::Burstable => "burstable",
            Qos::BestEffort => "besteffort",
        };
        let cgroup =
            self.node_cgroup().join("kubepods").join(class).join(format!("pod{uid}")).join(&container_id);
        fs::create_dir_all(&cgroup).with_context(|| format!("making {cgroup:?}"))?;
        let etc = self.write_etc(&spec, dns)?;
        self.namespaces.entry(spec.namespace.to_owned()).or_default();
        let pod = Pod { spec, uid, container_id, v4, v6, place: Place { netns, cgroup, etc: Some(etc) } };
        self.pods.push(pod.clone());
        Ok(pod)
    }

    /// The files that the kubelet puts over the image's `/etc`.
    fn write_etc(&self, spec: &PodSpec, dns: Ipv4Addr) -> Result<PathBuf> {
        let etc = self.directory().join("etc").join(format!("{}-{}", spec.namespace, spec.name));
        fs::create_dir_all(&etc)?;
        fs::write(
            etc.join("resolv.conf"),
            format!(
                "search {}.svc.cluster.local svc.cluster.local cluster.local\nnameserver {dns}\noptions ndots:5\n",
                spec.namespace
            ),
        )?;
        fs::write(etc.join("hosts"), "127.0.0.1 localhost\n::1 localhost\n")?;
        fs::write(etc.join("nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n")?;
        Ok(etc)
    }

    /// Adds a Service at `v4` and the v6 address of the same number, over the pods that there are now.
    pub fn add_service(&mut self, spec: ServiceSpec, v4: Ipv4Addr) -> Result<Service> {
        let [_, _, high, low] = v4.octets();
        let v6 = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, u16::from(high), u16::from(low));
        let service = Service { spec, v4, v6 };
        self.services.push(service.clone());
        self.node.nft(&self.translation())?;
        Ok(service)
    }

    fn endpoints(&self, service: &Service) -> Vec<&Pod> {
        let selects = |pod: &&Pod| {
            pod.spec.namespace == service.spec.namespace
                && service.spec.selector.iter().all(|pair| pod.spec.labels.contains(pair))
        };
        self.pods.iter().filter(selects).collect()
    }

    /// What kube-proxy would program: destination translation, the whole ruleset anew.
    fn translation(&self) -> String {
        let mut rules = [Vec::new(), Vec::new()];
        for service in &self.services {
            let pods = self.endpoints(service);
            for port in &service.spec.ports {
                let protocol = port.protocol.to_lowercase();
                for (family, rules) in rules.iter_mut().enumerate() {
                    let (word, address, node, target): (_, String, _, Vec<String>) = if family == 0 {
                        let targets = pods.iter().map(|pod| format!("{}:{}", pod.v4, port.target_port));
                        ("ip", service.v4.to_string(), NODE_V4, targets.collect())
                    } else {
                        let targets = pods.iter().map(|pod| format!("[{}]:{}", pod.v6, port.target_port));
                        ("ip6", service.v6.to_string(), NODE_V6, targets.collect())
                    };
                    let destinations =
                        [Some((address.as_str(), port.port)), port.node_port.map(|port| (node, port))];
                    for (address, port) in destinations.into_iter().flatten() {
                        for (index, target) in target.iter().enumerate() {
                            // Each endpoint takes its share of what the ones before it left over.
                            let left = share(pods.len(), index);
                            rules.push(format!(
                                "{word} daddr {address} {protocol} dport {port} {left}dnat to {target}"
                            ));
                        }
                    }
                }
            }
        }
        let mut text = String::new();
        for (family, rules) in ["ip", "ip6"].iter().zip(&rules) {
            let rules = rules.join("\n");
            // Declared before it is deleted, so that deleting succeeds the first time too.
            text += &format!(
                "table {family} services\ndelete table {family} services\ntable {family} services {{\n"
            );
            for hook in ["prerouting", "output"] {
                text += &format!("chain {hook}_dnat {{\ntype nat hook {hook} priority -100;\n{rules}\n}}\n");
            }
            text += "}\n";
        }
        text
    }

    /// Writes the objects that describe the lab, a file each.
    pub fn write_manifests(&self) -> Result<()> {
        self.write_object(&objects::node())?;
        for (name, labels) in &self.namespaces {
            self.write_object(&objects::namespace(name, labels))?;
        }
        for pod in &self.pods {
            self.write_object(&objects::pod(pod))?;
        }
        for service in &self.services {
            for object in objects::service(service, &self.endpoints(service)) {
                self.write_object(&object)?;
            }
        }
        Ok(())
    }

    /// Writes one object into the manifests.
    pub fn write_object(&self, object: &Value) -> Result<()> {
        let metadata = &object["metadata"];
        let parts = [&object["kind"], &metadata["namespace"], &metadata["name"]];
        let name = parts.iter().filter_map(|part| part.as_str()).collect::<Vec<_>>().join("-").to_lowercase();
        self.write_manifest(&format!("{name}.json"), &format!("{object:#}\n"))
    }

    /// Puts a file into the manifests in one step, so that whoever follows them never sees half of it.
    pub fn write_manifest(&self, name: &str, text: &str) -> Result<()> {
        let partial = self.directory().join("partial");
        fs::write(&partial, text)?;
        fs::rename(&partial, self.manifests().join(name)).with_context(|| format!("writing manifest {name}"))
    }
}

/// The condition under which the endpoint at `index` of `count` is taken, once those before it were not.
fn share(count: usize, index: usize) -> String {
    match count - index {
        1 => String::new(),
        left => format!("numgen inc mod {left} 0 "),
    }
}

/// The node's uplink to the outside world, its bridge, and the outside world's addresses.
fn lay_out_node(node: &Netns, outside: &Netns) -> Result<()> {
    node.ip(&[
        format!("link add eth0 type veth peer name eth0 netns {}", outside.path()),
        "link add cni0 type bridge forward_delay 0".to_owned(),
    ])?;
    node.sysctl(&[
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/cni0/send_redirects", "0"),
        ("net/ipv6/conf/cni0/accept_dad", "0"),
        ("net/ipv6/conf/eth0/accept_dad", "0"),
    ])?;
    outside.sysctl(&[("net/ipv6/conf/eth0/accept_dad", "0"), ("net/ipv6/conf/eth0/accept_ra", "0")])?;
    node.ip(&[
        format!("addr add {NODE_V4}/24 dev eth0"),
        format!("addr add {NODE_V6}/64 dev eth0 nodad"),
        "addr add 10.244.1.1/24 dev cni0".to_owned(),
        "addr add fd00:244:1::1/64 dev cni0 nodad".to_owned(),
        "link set eth0 up".to_owned(),
        "link set cni0 up".to_owned(),
        "route add default via 192.168.50.1".to_owned(),
        "route add default via fd00:50::1".to_owned(),
    ])?;
    outside.ip(&[
        "addr add 192.168.50.1/24 dev eth0".to_owned(),
        "addr add fd00:50::1/64 dev eth0 nodad".to_owned(),
        "link set eth0 up".to_owned(),
        format!("route add {POD_CIDR_V4} via {NODE_V4}"),
        format!("route add {POD_CIDR_V6} via {NODE_V6}"),
        // Whole ranges are local here: every address of them can be served without being listed.
        "route add local 203.0.113.0/24 dev lo".to_owned(),
        "route add local 198.51.100.0/24 dev lo".to_owned(),
        "route add local 172.31.0.0/24 dev lo".to_owned(),
        "route add local 2001:db8::/32 dev lo".to_owned(),
    ])
}
