//! Kubernetes objects, as JSON values, to the index's own types: once, at the edge, without what nobody reads.
//!
//! An object that cannot be decoded becomes [`Broken`] with what is known of it, so that its delete is not lost and the
//! verdicts it could change become unknown.

use std::{net::IpAddr, sync::Arc};

use serde_json::Value;
use smallvec::SmallVec;

use super::{
    convert_cluster_policy::cluster_policy,
    convert_fields::{Field, Flaw},
    convert_foreign,
    convert_kinds::{Judged, judge, widest_policy},
    convert_lists, convert_policy,
    schedule::longest_gap,
};
use crate::{
    cluster::{
        Broken, Kind, Namespace, Node, Object, ObjectKey, Pod, Service, Workload,
        objects::{CronJob, EndpointPort, EndpointSlice, ServicePort, SliceEndpoint, TargetPort},
    },
    model::{Protocol, Timestamp},
    policy::{Labels, NamedPort, declared::ClusterKind},
};

/// The namespace of objects that do not say.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The label of an endpoint slice that names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What a document turned out to be.
#[derive(Clone, PartialEq, Debug)]
pub enum Converted {
    /// An object of a watched kind, or something that may be one.
    Object(Object),
    /// Another kind, by name: it changes no verdict.
    Ignored(String),
    /// Nothing, where an object should be: what is there.
    Nothing(String),
}

/// What is counted as ignored that does not say what it is.
pub(super) const NO_KIND: &str = "no kind";

/// Converts a document of any kind; a list (`List`, `PodList` …) gives its items. `source` says where it is from.
pub fn document(value: &Value, source: &Arc<str>) -> Vec<Converted> {
    let mut converted = Vec::new();
    match value {
        Value::Array(items) => convert_lists::bare(items, source, &mut converted),
        _ => walk(value, None, source, &mut converted),
    }
    converted
}

/// Converts an object that is known to be of this kind, as the API server's lists and watches give them.
pub fn object(kind: Kind, value: &Value, source: &Arc<str>) -> Object {
    match decode(kind, value) {
        Ok(object) => object,
        Err(flaw) => Object::Broken(broken(Some(kind), value, source, flaw.to_string())),
    }
}

pub(super) fn walk(
    value: &Value,
    item_of: Option<(&str, &str)>,
    source: &Arc<str>,
    into: &mut Vec<Converted>,
) {
    let text = |name| value.get(name).and_then(Value::as_str);
    // The items of a typed list need not repeat what they are.
    let version = text("apiVersion").or(item_of.map(|(version, _)| version));
    let kind = text("kind").or(item_of.map(|(_, kind)| kind));
    let (version, kind) = match (version, kind) {
        (Some(version), Some(kind)) => (version, kind),
        // Helm values, playbooks and the like: no Kubernetes object at all. What looks like one but for its kind is
        // none of these.
        (None, None)
            if value.get("kind").is_none()
                && (value.get("metadata").is_none() || value.get("spec").is_none()) =>
        {
            into.push(Converted::Ignored(NO_KIND.to_owned()));
            return;
        }
        (_, kind) => {
            let missing = if kind.is_none() { "kind" } else { "apiVersion" };
            let known = kind.and_then(|kind| Kind::called(kind).find(|it| it.api_kind() == kind));
            if kind.is_some() && known.is_none() {
                into.push(Converted::Ignored(kind.unwrap_or_default().to_owned()));
                return;
            }
            let reason = format!("{missing}: missing or no text");
            let widest = version.filter(|_| kind.is_none()).and_then(widest_policy);
            let mut broken = broken(known.or(widest), value, source, reason);
            // Which of the group's kinds it is stays open.
            broken.key = broken.key.filter(|_| known.is_some());
            into.push(Converted::Object(Object::Broken(broken)));
            return;
        }
    };
    if let Some(items) = value.get("items").filter(|it| !it.is_null())
        && let Some(list) = convert_lists::List::of(version, kind)
    {
        return list.read(items, source, into);
    }
    into.push(match judge(version, kind) {
        Judged::Watched(known) => Converted::Object(object(known, value, source)),
        Judged::Other(name) => Converted::Ignored(name),
        Judged::Misspelt(known, reason) => {
            Converted::Object(Object::Broken(broken(Some(known), value, source, reason)))
        }
    });
}

/// What can be read of an object that is not what it should be.
pub(super) fn broken(kind: Option<Kind>, value: &Value, source: &Arc<str>, reason: String) -> Broken {
    let metadata = |name: &str| value.pointer(&format!("/metadata/{name}")).and_then(Value::as_str);
    let metadata_is_readable = value.get("metadata").is_some_and(Value::is_object)
        && value.pointer("/metadata/namespace").is_none_or(|it| it.is_string() || it.is_null());
    let namespace = match metadata("namespace") {
        Some(namespace) if !namespace.is_empty() => Some(namespace),
        _ if metadata_is_readable => Some(DEFAULT_NAMESPACE),
        _ => None,
    };
    let key = match (kind, namespace, metadata("name")) {
        (Some(kind), Some(namespace), Some(name)) => Some(ObjectKey::new(kind, namespace, name)),
        _ => None,
    };
    let mut ips: SmallVec<[IpAddr; 2]> = SmallVec::new();
    let texts = |pointer: &str| value.pointer(pointer).into_iter();
    let in_list = |pointer: &str| texts(pointer).filter_map(Value::as_array).flatten();
    let of_node = in_list("/status/addresses").filter(|_| kind == Some(Kind::Node));
    let candidates = texts("/status/podIP")
        .chain(of_node.filter_map(|it| it.get("address")))
        .chain(in_list("/status/podIPs").filter_map(|it| it.get("ip")))
        .chain(texts("/spec/clusterIP"))
        .chain(texts("/spec/clusterIPs").filter_map(Value::as_array).flatten());
    for ip in candidates.filter_map(Value::as_str).filter_map(|text| text.parse::<IpAddr>().ok()) {
        // A hostNetwork pod has its node's address, which is not its own to spoil.
        let is_host = value.pointer("/spec/hostNetwork") == Some(&Value::Bool(true));
        if !is_host && !ips.contains(&ip.to_canonical()) {
            ips.push(ip.to_canonical());
        }
    }
    // What may be of any kind may be of one that is in no namespace.
    let namespace = namespace.filter(|_| kind.is_some_and(Kind::is_namespaced)).map(Into::into);
    let labels =
        value.pointer("/metadata/labels").and_then(|it| it.get(SERVICE_NAME)).and_then(Value::as_str);
    let service = labels.filter(|_| kind == Some(Kind::EndpointSlice)).map(Into::into);
    Broken { key, kind, namespace, service, ips, source: source.clone(), reason: reason.into() }
}

fn decode(kind: Kind, value: &Value) -> Result<Object, Flaw> {
    let root = Field::root(value);
    let metadata = root.get("metadata")?;
    let name = metadata.get("name")?;
    let name: Arc<str> = name.text()?.filter(|it| !it.is_empty()).ok_or_else(|| name.flaw("missing"))?.into();
    let namespace =
        metadata.get("namespace")?.text()?.filter(|it| !it.is_empty()).unwrap_or(DEFAULT_NAMESPACE);
    let namespace: Arc<str> = namespace.into();
    let labels: Labels = metadata.get("labels")?.labels()?.into_iter().collect();
    Ok(match kind {
        Kind::Namespace => Object::Namespace(Namespace { name, labels }),
        Kind::Pod => Object::Pod(pod(&root, &metadata, namespace, name, labels)?),
        Kind::Node => Object::Node(node(&root, name, labels)?),
        Kind::Service => Object::Service(service(&root, namespace, name)?),
        Kind::EndpointSlice => Object::EndpointSlice(endpoint_slice(&root, namespace, name, &labels)?),
        Kind::CronJob => Object::CronJob(cron_job(&root, &metadata, namespace, name)?),
        Kind::NetworkPolicy => {
            Object::NetworkPolicy(convert_policy::network_policy(&root, &namespace, &name)?)
        }
        Kind::ClusterNetworkPolicy => cluster_policy(&root, ClusterKind::ClusterNetworkPolicy, &name)?,
        Kind::AdminNetworkPolicy => cluster_policy(&root, ClusterKind::AdminNetworkPolicy, &name)?,
        Kind::BaselineAdminNetworkPolicy => {
            cluster_policy(&root, ClusterKind::BaselineAdminNetworkPolicy, &name)?
        }
        Kind::CiliumNetworkPolicy
        | Kind::CiliumClusterwideNetworkPolicy
        | Kind::CalicoNetworkPolicy
        | Kind::CalicoGlobalNetworkPolicy
        | Kind::AuthorizationPolicy => {
            let namespace = if kind.is_namespaced() { namespace } else { "".into() };
            Object::Foreign(kind, convert_foreign::policy(&root, kind, &namespace, &name))
        }
    })
}

fn pod(
    root: &Field<'_>,
    metadata: &Field<'_>,
    namespace: Arc<str>,
    name: Arc<str>,
    labels: Labels,
) -> Result<Pod, Flaw> {
    let (spec, status) = (root.get("spec")?, root.get("status")?);
    let mut ips = SmallVec::new();
    for ip in std::iter::once(status.get("podIP")?)
        .chain(status.get("podIPs")?.items()?.iter().map(|it| it.get("ip")).collect::<Result<Vec<_>, _>>()?)
    {
        if let Some(ip) = ip.address()?
            && !ips.contains(&ip)
        {
            ips.push(ip);
        }
    }
    let annotations = metadata.get("annotations")?.labels()?;
    let config_hash =
        annotations.iter().find(|(key, _)| *key == "kubernetes.io/config.hash").map(|(_, it)| *it);
    let node = spec.get("nodeName")?.text()?.filter(|it| !it.is_empty());
    Ok(Pod {
        // Manifests that people write have none; the name is then the identity, as in every other place.
        uid: match metadata.get("uid")?.text()?.filter(|uid| !uid.is_empty()) {
            Some(uid) => uid.into(),
            None => format!("{namespace}/{name}").into(),
        },
        config_hash: config_hash.map(Into::into),
        node: node.map(Into::into),
        ips,
        host_network: spec.get("hostNetwork")?.flag()?.unwrap_or(false),
        completed: matches!(status.get("phase")?.text()?, Some("Succeeded" | "Failed")),
        has_runtime_class: spec.get("runtimeClassName")?.text()?.is_some_and(|it| !it.is_empty()),
        ports: named_ports(&spec)?.into(),
        workload: workload(metadata, &name, &labels, node)?,
        created: created(metadata)?,
        namespace,
        name,
        labels,
    })
}

/// The named ports of all containers that run as long as the pod does: init containers too if they are sidecars.
fn named_ports(spec: &Field<'_>) -> Result<Vec<NamedPort>, Flaw> {
    let mut containers = spec.get("containers")?.items()?;
    for container in spec.get("initContainers")?.items()? {
        if container.get("restartPolicy")?.text()? == Some("Always") {
            containers.push(container);
        }
    }
    let mut ports = Vec::new();
    for container in containers {
        for port in container.get("ports")?.items()? {
            let number = port.get("containerPort")?.port()?;
            let name = port.get("name")?.text()?.filter(|it| !it.is_empty());
            if let (Some(name), Some(number)) = (name, number) {
                let protocol = port.get("protocol")?.parsed("a protocol")?.unwrap_or(Protocol::Tcp);
                ports.push(NamedPort { name: name.into(), protocol, port: number });
            }
        }
    }
    Ok(ports)
}

/// The controller at the top. A pod only names the one right above it; what stands above that is read from the names
/// that Deployments and CronJobs give to what they make.
fn workload(
    metadata: &Field<'_>,
    name: &Arc<str>,
    labels: &Labels,
    node: Option<&str>,
) -> Result<Workload, Flaw> {
    let mut owner = None;
    for reference in metadata.get("ownerReferences")?.items()? {
        if reference.get("controller")?.flag()? == Some(true) {
            owner = Some((reference.get("kind")?.text()?, reference.get("name")?.text()?));
        }
    }
    let (kind, owner) = match owner {
        Some((Some(kind), Some(owner))) => (kind, owner),
        _ => ("Pod", name.as_ref()),
    };
    let hash = labels.get("pod-template-hash").map(|hash| format!("-{hash}"));
    let (kind, name) = match kind {
        "ReplicaSet" => match hash.and_then(|hash| owner.strip_suffix(hash.as_str())) {
            Some(deployment) => ("Deployment", deployment),
            None => (kind, owner),
        },
        // A CronJob names its Jobs by the scheduled time: minutes since the epoch, once seconds.
        "Job" => match owner.rsplit_once('-') {
            Some((cron_job, time))
                if matches!(time.len(), 8 | 10) && time.bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                ("CronJob", cron_job)
            }
            _ => (kind, owner),
        },
        // A static pod: one of its name on each node.
        "Node" => {
            let suffix = node.map(|node| format!("-{node}")).unwrap_or_default();
            ("Pod", name.strip_suffix(suffix.as_str()).unwrap_or(name))
        }
        _ => (kind, owner),
    };
    Ok(Workload { kind: kind.into(), name: name.into() })
}

/// Labels of the pods of a Job that the Job controller adds, whatever its template says.
const LABELS_OF_JOBS: [&str; 4] =
    ["batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name", "controller-uid", "job-name"];

fn cron_job(
    root: &Field<'_>,
    metadata: &Field<'_>,
    namespace: Arc<str>,
    name: Arc<str>,
) -> Result<CronJob, Flaw> {
    let spec = root.get("spec")?;
    let of_pods = spec.at(&["jobTemplate", "spec", "template", "metadata", "labels"])?.labels()?;
    let added = LABELS_OF_JOBS.map(|key| (key, &*name));
    let schedule = spec.get("schedule")?;
    let text = schedule.text()?.ok_or_else(|| schedule.flaw("missing"))?;
    let zone = spec.get("timeZone")?;
    let period = longest_gap(text, zone.text()?)
        .map_err(|error| format!("{text:?} is not understood: {error}").into());
    let labels = added.into_iter().chain(of_pods).collect();
    Ok(CronJob { labels, period, created: created(metadata)?, namespace, name })
}

fn created(metadata: &Field<'_>) -> Result<Option<Timestamp>, Flaw> {
    let created = metadata.get("creationTimestamp")?.parsed::<jiff::Timestamp>("a time").ok().flatten();
    Ok(created.map(|it| Timestamp(i64::try_from(it.as_nanosecond()).unwrap_or(i64::MAX))))
}

fn node(root: &Field<'_>, name: Arc<str>, labels: Labels) -> Result<Node, Flaw> {
    let mut ips = SmallVec::new();
    for address in root.at(&["status", "addresses"])?.items()? {
        if matches!(address.get("type")?.text()?, Some("InternalIP" | "ExternalIP"))
            && let Some(ip) = address.get("address")?.address()?
            && !ips.contains(&ip)
        {
            ips.push(ip);
        }
    }
    let spec = root.get("spec")?;
    let mut pod_networks = SmallVec::new();
    let mut add = |field: Field<'_>| -> Result<(), Flaw> {
        // Only tells where pods are to be expected: one that is no network expects none.
        if let Some(network) = field.text()?.and_then(|text| text.parse().ok())
            && !pod_networks.contains(&network)
        {
            pod_networks.push(network);
        }
        Ok(())
    };
    add(spec.get("podCIDR")?)?;
    for network in spec.get("podCIDRs")?.items()? {
        add(network)?;
    }
    Ok(Node { name, labels, ips, pod_networks })
}

fn service(root: &Field<'_>, namespace: Arc<str>, name: Arc<str>) -> Result<Service, Flaw> {
    let spec = root.get("spec")?;
    let mut ips = SmallVec::new();
    let mut add = |field: Field<'_>| -> Result<(), Flaw> {
        // A headless service says so where its address would be.
        if field.text()? != Some("None")
            && let Some(ip) = field.address()?
            && !ips.contains(&ip)
        {
            ips.push(ip);
        }
        Ok(())
    };
    let kind = spec.get("type")?.text()?;
    // Nothing listens on the nodes for services of the other types, whatever their ports say.
    let on_nodes = matches!(kind, Some("NodePort" | "LoadBalancer"));
    // An ExternalName service is a DNS alias, whatever else its manifest says.
    if kind != Some("ExternalName") {
        add(spec.get("clusterIP")?)?;
        for list in ["clusterIPs", "externalIPs"] {
            spec.get(list)?.items()?.into_iter().try_for_each(&mut add)?;
        }
        for ingress in root.at(&["status", "loadBalancer", "ingress"])?.items()? {
            // In this mode the nodes send what is for the address to the load balancer, as to any other address.
            if ingress.get("ipMode")?.text()? != Some("Proxy") {
                add(ingress.get("ip")?)?;
            }
        }
    }
    let mut ports = Vec::new();
    for field in spec.get("ports")?.items()? {
        let number = field.get("port")?;
        let port = number.port()?.ok_or_else(|| number.flaw("missing"))?;
        let target = field.get("targetPort")?;
        let target = match target.is_text() {
            true => target.text()?.filter(|it| !it.is_empty()).map(|it| TargetPort::Name(it.into())),
            false => target.port()?.filter(|it| *it != 0).map(TargetPort::Number),
        };
        ports.push(ServicePort {
            name: field.get("name")?.text()?.unwrap_or_default().into(),
            protocol: field.get("protocol")?.parsed("a protocol")?.unwrap_or(Protocol::Tcp),
            port,
            target: target.unwrap_or(TargetPort::Number(port)),
            node_port: field.get("nodePort")?.port()?.filter(|it| on_nodes && *it != 0),
        });
    }
    let selector: Labels = spec.get("selector")?.labels()?.into_iter().collect();
    let selector = (!selector.is_empty()).then_some(selector);
    let headless = kind != Some("ExternalName") && spec.get("clusterIP")?.text()? == Some("None");
    Ok(Service { namespace, name, headless, ips, ports: ports.into(), selector })
}

fn endpoint_slice(
    root: &Field<'_>,
    namespace: Arc<str>,
    name: Arc<str>,
    labels: &Labels,
) -> Result<EndpointSlice, Flaw> {
    let mut ports = Vec::new();
    for port in root.get("ports")?.items()? {
        ports.push(EndpointPort {
            name: port.get("name")?.text()?.unwrap_or_default().into(),
            protocol: port.get("protocol")?.parsed("a protocol")?.unwrap_or(Protocol::Tcp),
            port: port.get("port")?.port()?,
        });
    }
    let is_dns = root.get("addressType")?.text()? == Some("FQDN");
    let mut endpoints = Vec::new();
    for endpoint in root.get("endpoints")?.items()? {
        let mut ips = SmallVec::new();
        for address in endpoint.get("addresses")?.items()?.iter().filter(|_| !is_dns) {
            ips.extend(address.address()?);
        }
        let conditions = endpoint.get("conditions")?;
        // What is not said counts as ready; who is ready serves.
        let ready = conditions.get("ready")?.flag()?.unwrap_or(true);
        let serving = conditions.get("serving")?.flag()?.unwrap_or(ready);
        let target = endpoint.get("targetRef")?;
        let pod = match target.get("kind")?.text()? {
            Some("Pod") => target.get("name")?.text()?.map(Into::into),
            _ => None,
        };
        endpoints.push(SliceEndpoint { ips, ready, serving, pod });
    }
    let service = labels.get(SERVICE_NAME).cloned();
    Ok(EndpointSlice { namespace, name, service, ports: ports.into(), endpoints: endpoints.into() })
}
