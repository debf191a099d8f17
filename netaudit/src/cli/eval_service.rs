//! A flow to a service: one for each backend of its port.

use std::{fmt::Write as _, net::IpAddr};

use anyhow::bail;

use super::eval_flow::{Answer, AskedService, End, NOW, Pair, Question, end, unread};
use crate::{
    cluster::{
        Broken, Cluster, Kind, Service,
        objects::{ServicePort, TargetPort},
    },
    model::Gap,
};

/// Asks for each backend of the service of this name.
pub(super) fn by_name(
    cluster: &mut Cluster,
    from: End,
    namespace: &str,
    name: &str,
    dialled: Option<IpAddr>,
    question: Question,
) -> anyhow::Result<Answer> {
    let Some(service) = cluster.service(namespace, name).cloned() else {
        let Some(gap) = unread(cluster, Kind::Service, namespace, name) else {
            bail!("there is no Service {namespace}/{name} in the manifests");
        };
        let service = AskedService {
            name: format!("{namespace}/{name}"),
            port: question.port,
            node_port: None,
            note: "cannot be read".to_owned(),
        };
        return Ok(Answer { question, service: Some(service), pairs: Vec::new(), doubt: Some(gap) });
    };
    let port = find_port(&service, question)?;
    ask(cluster, from, service, port, dialled, question)
}

/// As [`by_name`], where the port is the one that a flow was recorded with: the endpoints', where they all have the same.
pub(super) fn by_record(
    cluster: &mut Cluster,
    from: End,
    namespace: &str,
    name: &str,
    dialled: Option<IpAddr>,
    question: Question,
) -> anyhow::Result<Answer> {
    let service = cluster.service(namespace, name).cloned();
    let port = service.as_ref().and_then(|service| {
        cluster.recorded_port(service, question.protocol, question.port, dialled, NOW).cloned()
    });
    match service.zip(port) {
        Some((service, port)) => ask(cluster, from, service, port, dialled, question),
        None => by_name(cluster, from, namespace, name, dialled, question),
    }
}

fn find_port(service: &Service, question: Question) -> anyhow::Result<ServicePort> {
    if service.headless {
        // Nothing translates: the name stands for the endpoints' own addresses, and whoever asks names their port.
        return Ok(ServicePort {
            name: "".into(),
            protocol: question.protocol,
            port: question.port,
            target: TargetPort::Number(question.port),
            node_port: None,
        });
    }
    match service.port(question.port, question.protocol) {
        Some(port) => Ok(port.clone()),
        None => {
            let ports: Vec<_> =
                service.ports.iter().map(|it| format!("{} {}", it.protocol, it.port)).collect();
            let ports = if ports.is_empty() { "none".to_owned() } else { ports.join(", ") };
            bail!(
                "service {}/{} has no port {} {}; its ports: {ports}",
                service.namespace,
                service.name,
                question.protocol,
                question.port
            );
        }
    }
}

/// Asks for each backend of a service's port. Behind the address `dialled` are only backends of its family.
pub(super) fn ask(
    cluster: &mut Cluster,
    from: End,
    service: Service,
    port: ServicePort,
    dialled: Option<IpAddr>,
    question: Question,
) -> anyhow::Result<Answer> {
    let is_family = |ip: &IpAddr| dialled.is_none_or(|dialled| dialled.is_ipv4() == ip.is_ipv4());
    let mut ends: Vec<(End, u16)> = Vec::new();
    let mut without_port = Vec::new();
    if cluster.has_endpoint_slices(&service) {
        let backends = cluster.backends(&service, &port, NOW);
        for backend in backends.into_iter().filter(|it| is_family(&it.ip)) {
            let end = match backend.pod {
                Some(id) => End::Pod(id, Some(backend.ip)),
                None => end(cluster, &backend.ip.to_string(), Question { port: backend.port, ..question })?,
            };
            ends.push((end, backend.port));
        }
    } else {
        for (id, target) in cluster.selected_backends(&service, &port) {
            let Some(pod) = cluster.pod(id) else { continue };
            match target {
                None => without_port.push(pod.name.to_string()),
                // Manifests seldom have a pod's addresses.
                Some(target) if dialled.is_none() || pod.ips.is_empty() => {
                    ends.push((End::Pod(id, None), target));
                }
                Some(target) => {
                    let ips = pod.ips.iter().filter(|ip| is_family(ip));
                    ends.extend(ips.map(|ip| (End::Pod(id, Some(*ip)), target)));
                }
            }
        }
    }
    let asked = AskedService {
        name: format!("{}/{}", service.namespace, service.name),
        port: port.port,
        node_port: port.node_port.filter(|it| *it == question.port && port.port != question.port),
        note: note(cluster, &service, ends.len(), &without_port),
    };
    let doubt = doubt(cluster, &service);
    let pairs = (ends.into_iter())
        .map(|(to, port)| Pair::ask(cluster, from.clone(), to, question.protocol, port))
        .collect();
    Ok(Answer { question, service: Some(asked), pairs, doubt })
}

/// Why the service may have another backend: something that cannot be read may be one, or name one.
fn doubt(cluster: &Cluster, service: &Service) -> Option<Gap> {
    let has_slices = cluster.has_endpoint_slices(service);
    let concerns = |broken: &&Broken| {
        let is_here = broken.namespace.as_ref().is_none_or(|it| *it == service.namespace);
        match broken.kind {
            Some(Kind::EndpointSlice) => {
                is_here && broken.service.as_ref().is_none_or(|it| *it == service.name)
            }
            // What endpoint slices say goes before what the selector selects.
            Some(Kind::Pod) => is_here && service.selector.is_some() && !has_slices,
            Some(_) => false,
            None => true,
        }
    };
    cluster.broken().find(concerns).map(|broken| Gap::Invalid(broken.to_string().into()))
}

fn note(cluster: &Cluster, service: &Service, backends: usize, without_port: &[String]) -> String {
    let source = if cluster.has_endpoint_slices(service) { "EndpointSlices" } else { "its selector" };
    let mut note = match backends {
        0 => format!("no backends by {source}"),
        1 => format!("1 backend by {source}"),
        many => format!("{many} backends by {source}"),
    };
    if service.headless {
        note.push_str("; it is headless, so the port is the backends' own");
    }
    if !without_port.is_empty() {
        let _ = write!(note, "; without its named target port: {}", without_port.join(", "));
    }
    note
}
