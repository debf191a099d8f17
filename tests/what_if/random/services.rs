//! Services with endpoints of every kind, nodes that change, and addresses that only the kernel shows.

use netaudit::{model::NetnsCookie, store::history::Bound};

use super::*;
use crate::policy::generate::{NODE_LABELS, PORTS};

/// Services, and the last byte of their addresses and node ports.
const SERVICES: u64 = 3;
/// Addresses that no object shows.
const SPARE: [&str; 2] = ["198.18.0.1", "198.18.0.2"];

/// Addresses of an object's status.
fn addresses(object: &Value) -> Vec<IpAddr> {
    let of = |field: &str, key: &str| -> Vec<IpAddr> {
        let all = object["status"][field].as_array().into_iter().flatten();
        all.filter_map(|it| it[key].as_str()?.parse().ok()).collect()
    };
    [of("podIPs", "ip"), of("addresses", "address")].concat()
}

impl Story {
    pub(super) fn begin_services(&mut self) {
        self.agent.auditor.cluster_mut().keep_binding_news();
        for number in 0..SERVICES {
            self.put_service(number);
        }
        self.learn();
    }

    /// The node's own addresses are those of its object, as if nobody had read its interfaces. What the kernel showed is told to the
    /// history too.
    pub(super) fn learn(&mut self) {
        self.agent.auditor.set_own_addresses([]);
        for news in self.agent.auditor.cluster_mut().take_binding_news() {
            if let Some(pod) = self.agent.auditor.cluster().pod(news.pod) {
                let bound = Bound { pod, ip: news.ip };
                self.agent.store.history_mut().bound(bound, news.has_ended, news.at);
            }
        }
    }

    fn put_service(&mut self, number: u64) {
        let namespace = NAMESPACES[number as usize % NAMESPACES.len()];
        let mut spec = json!({
            "clusterIP": format!("10.96.0.{number}"),
            "clusterIPs": [format!("10.96.0.{number}"), format!("fd96::{number}")],
            "type": "NodePort",
            "ports": [{"port": 80, "targetPort": *self.random.pick(&PORTS), "nodePort": 30_000 + number}],
        });
        let selects = self.any(|it| it["kind"] == "Pod").filter(|_| self.random.percent(40));
        if let Some(pod) = selects {
            spec["selector"] = pod["metadata"]["labels"].clone();
        }
        let metadata = json!({"namespace": namespace, "name": format!("service-{number}")});
        self.put(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}));
        for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
            self.put_slice(number, (family, is_v4));
        }
    }

    fn put_slice(&mut self, number: u64, (family, is_v4): (&str, bool)) {
        let everybody = self.objects.iter().chain(&self.gone).flat_map(addresses);
        let nobody = OUTSIDE.iter().chain(&SPARE).filter_map(|it| it.parse().ok());
        let all: Vec<IpAddr> = everybody.chain(nobody).filter(|ip| ip.is_ipv4() == is_v4).collect();
        let endpoints: Vec<Value> = (0..self.random.below(4))
            .map(|_| {
                let is_ready = self.random.percent(80);
                json!({"addresses": [self.random.pick(&all)], "conditions": {"ready": is_ready, "serving": true}})
            })
            .collect();
        let (service, port) = (format!("service-{number}"), *self.random.pick(&PORTS));
        self.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"namespace": NAMESPACES[number as usize % NAMESPACES.len()],
                         "name": format!("{service}-{}", family.to_lowercase()),
                         "labels": {"kubernetes.io/service-name": service}},
            "ports": [{"port": port}],
            "endpoints": endpoints,
        }));
    }

    /// Something changes that is neither policy nor label of a pod or namespace.
    pub(super) fn change_services(&mut self) {
        match self.random.below(5) {
            0 => {
                let number = self.random.below(SERVICES as usize) as u64;
                self.put_service(number);
            }
            1 => {
                if let Some(slice) = self.any(|it| it["kind"] == "EndpointSlice") {
                    self.take(&slice);
                }
            }
            2 => {
                let Some(mut node) = self.any(|it| it["kind"] == "Node") else { return };
                let (key, values) = *self.random.pick(&NODE_LABELS);
                node["metadata"]["labels"][key] = (*self.random.pick(values)).into();
                self.put(node);
            }
            3 => {
                // A node is gone, or another one has its address.
                let Some(mut node) = self.any(|it| it["kind"] == "Node") else { return };
                self.take(&node);
                if self.random.percent(80) {
                    let name = format!("node-{}", self.random.below(4));
                    node["metadata"]["name"] = name.into();
                    self.put(node);
                }
            }
            _ => {
                let here = |it: &Value| it["kind"] == "Pod" && it["spec"]["nodeName"] == "node-1";
                let Some(pod) = self.any(here) else { return };
                let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
                let ip = self.random.pick(&SPARE).parse().expect("an address");
                let cluster = self.agent.auditor.cluster_mut();
                if let Some(id) = cluster.pod_by_uid(uid) {
                    cluster.bind(ip, id, t(self.at));
                }
            }
        }
        self.learn();
    }

    /// A pod of this node asks a Service, at its own address or at a node's; whether one did.
    pub(super) fn connect_to_service(&mut self) -> bool {
        let here = |it: &Value| {
            it["kind"] == "Pod" && it["spec"]["nodeName"] == "node-1" && it["spec"]["hostNetwork"] != true
        };
        let Some(pod) = self.any(here) else { return false };
        let Some(own) = addresses(&pod).first().copied() else { return false };
        let number = self.random.below(SERVICES as usize);
        let node = self.any(|it| it["kind"] == "Node").filter(|_| self.random.percent(40));
        let asked = match node {
            Some(node) => {
                let of_family = addresses(&node).into_iter().find(|ip| ip.is_ipv4() == own.is_ipv4());
                let Some(ip) = of_family else { return false };
                // The node's port that leads to the Service, or one of its own.
                SocketAddr::new(ip, if self.random.percent(70) { 30_000 + number as u16 } else { 80 })
            }
            None => {
                let ip = if own.is_ipv4() { format!("10.96.0.{number}") } else { format!("fd96::{number}") };
                SocketAddr::new(ip.parse().expect("an address"), 80)
            }
        };
        let id = number_of(&pod);
        let seen = egress(id, id, &SocketAddr::new(own, 40_000).to_string(), &asked.to_string());
        let name = format!("{} to {asked} at {}", name_of(&pod), self.at);
        self.tried.push((
            t(self.at),
            Case { name, objects: Vec::new(), flows: Vec::new(), dns: None },
            false,
        ));
        self.agent.see(Observation {
            at: t(self.at),
            socket: self.at as u64,
            netns: NetnsCookie(id),
            ..seen
        });
        self.learn();
        true
    }
}
