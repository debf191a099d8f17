//! What is kept of an object for its history: what the conversion reads, and nothing else.
//!
//! An object's status and its managers' fields change all the time; what is kept changes only where something that is read does.

use serde_json::{Map, Value};

use super::convert_kinds::{Judged, judge};
use crate::cluster::{Content, Kind, ObjectKey};

/// Fields of every object.
const OF_ALL: [&str; 4] = ["metadata name", "metadata namespace", "metadata uid", "metadata labels"];

/// Fields of a kind beside those. `[]` stands for each item of a list.
const fn fields_of(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Namespace => &[],
        Kind::Pod => &[
            "metadata creationTimestamp",
            "metadata annotations kubernetes.io/config.hash",
            "metadata ownerReferences[] kind",
            "metadata ownerReferences[] name",
            "metadata ownerReferences[] controller",
            "spec nodeName",
            "spec hostNetwork",
            "spec runtimeClassName",
            "spec containers[] ports",
            "spec initContainers[] ports",
            "spec initContainers[] restartPolicy",
            "status phase",
            "status podIP",
            "status podIPs",
        ],
        Kind::Node => &["spec podCIDR", "spec podCIDRs", "status addresses"],
        Kind::Service => &[
            "spec type",
            "spec clusterIP",
            "spec clusterIPs",
            "spec externalIPs",
            "spec ports",
            "spec selector",
            "status loadBalancer ingress",
        ],
        Kind::EndpointSlice => &[
            "addressType",
            "ports",
            "endpoints[] addresses",
            "endpoints[] conditions",
            "endpoints[] targetRef kind",
            "endpoints[] targetRef name",
        ],
        Kind::CronJob => {
            &["metadata creationTimestamp", "spec schedule", "spec jobTemplate spec template metadata labels"]
        }
        Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => &["spec", "specs"],
        _ => &["spec"],
    }
}

/// What is kept of an object that is known to be of this kind; `None` where it has no name, and so no history.
pub fn content(kind: Kind, value: &Value) -> Option<Content> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let name = Some(text("/metadata/name")).filter(|name| !name.is_empty())?;
    let namespace = match text("/metadata/namespace") {
        "" => super::convert::DEFAULT_NAMESPACE,
        namespace => namespace,
    };
    let api_version = match text("/apiVersion") {
        "" => kind.api_version(),
        version => version,
    };
    let mut kept = Map::new();
    kept.insert("apiVersion".to_owned(), api_version.into());
    kept.insert("kind".to_owned(), kind.api_kind().into());
    let mut kept = Value::Object(kept);
    for path in OF_ALL.iter().chain(fields_of(kind)) {
        let steps: Vec<&str> = path.split(' ').collect();
        copy(value, &mut kept, &steps);
    }
    Some(Content {
        key: ObjectKey::new(kind, namespace, name),
        api_version: api_version.into(),
        uid: text("/metadata/uid").into(),
        resource_version: text("/metadata/resourceVersion").into(),
        json: kept.to_string().into(),
    })
}

/// Copies what stands at the end of a path, and so much of the way as there is. What is of another type than it should be is
/// copied as it is, so that it is found wrong again.
fn copy(from: &Value, to: &mut Value, steps: &[&str]) {
    let Some((step, rest)) = steps.split_first() else {
        *to = from.clone();
        return;
    };
    let (name, is_list) = step.strip_suffix("[]").map_or((*step, false), |name| (name, true));
    let Some(found) = from.get(name).filter(|found| !found.is_null()) else { return };
    let Value::Object(fields) = to else { return };
    let place = fields.entry(name).or_insert(Value::Null);
    match (found, is_list) {
        (Value::Array(items), true) => {
            if !place.is_array() {
                *place = Value::Array(vec![Value::Object(Map::new()); items.len()]);
            }
            let Value::Array(kept) = place else { return };
            for (item, kept) in items.iter().zip(kept) {
                if item.is_object() { copy(item, kept, rest) } else { *kept = item.clone() }
            }
        }
        (Value::Object(_), false) if !rest.is_empty() => {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            copy(found, place, rest);
        }
        _ => *place = found.clone(),
    }
}

/// What is kept of the objects of a document: of a list those of its items. What is no object of a watched kind has no history.
pub(super) fn of_document(value: &Value, into: &mut Vec<Content>) {
    of(value, None, into);
}

fn of(value: &Value, item_of: Option<(&str, &str)>, into: &mut Vec<Content>) {
    let text = |name| value.get(name).and_then(Value::as_str);
    let version = text("apiVersion").or(item_of.map(|(version, _)| version));
    let kind = text("kind").or(item_of.map(|(_, kind)| kind));
    let (Some(version), Some(kind)) = (version, kind) else { return };
    if let (Some(item), Some(Value::Array(items))) = (kind.strip_suffix("List"), value.get("items")) {
        let item_of = (!item.is_empty()).then_some((version, item));
        items.iter().for_each(|it| of(it, item_of, into));
        return;
    }
    if let Judged::Watched(kind) = judge(version, kind) {
        into.extend(content(kind, value));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::watch::convert;

    fn again(kind: Kind, value: &Value) -> (String, bool) {
        let kept = content(kind, value).unwrap();
        let read: Value = serde_json::from_str(&kept.json).unwrap();
        let source = "test".into();
        (
            kept.json.to_string(),
            convert::object(kind, &read, &source) == convert::object(kind, value, &source),
        )
    }

    #[test]
    fn what_is_kept_is_read_as_the_whole_was() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "web-0", "namespace": "shop", "uid": "u", "labels": {"app": "web"}, "resourceVersion": "7",
                "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": [{"manager": "kubelet"}],
                "annotations": {"kubernetes.io/config.hash": "abc", "secret": "not ours"},
                "ownerReferences": [{"kind": "StatefulSet", "name": "web", "controller": true, "uid": "o"}]},
            "spec": {
                "nodeName": "node-1", "hostNetwork": false, "runtimeClassName": "gvisor",
                "containers": [{"name": "c", "image": "i", "env": [{"name": "TOKEN", "value": "hidden"}],
                                "ports": [{"name": "http", "containerPort": 80}]}, {"name": "d"}],
                "initContainers": [{"restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 81}]}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                       "conditions": [{"type": "Ready", "lastProbeTime": "now"}]},
        });
        let (json, same) = again(Kind::Pod, &pod);
        assert!(same, "{json}");
        for noise in ["hidden", "managedFields", "not ours", "conditions", "image", "resourceVersion"] {
            assert!(!json.contains(noise), "{noise} in {json}");
        }
        let service = json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.9", "externalIPs": ["192.0.2.1"], "selector": {"app": "web"},
                     "ports": [{"port": 80, "targetPort": "http", "nodePort": 30080}], "sessionAffinity": "None"},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2", "ipMode": "VIP"}]}}});
        assert!(again(Kind::Service, &service).1);
        let slice = json!({
            "metadata": {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 80}],
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "zone": "z",
                           "targetRef": {"kind": "Pod", "name": "web-0", "uid": "u"}}]});
        assert!(again(Kind::EndpointSlice, &slice).1);
        let node = json!({
            "metadata": {"name": "node-1", "labels": {"zone": "a"}}, "spec": {"podCIDR": "10.0.0.0/24"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}], "images": ["many"]}});
        assert!(again(Kind::Node, &node).1);
        let cron_job = json!({
            "metadata": {"name": "report", "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"schedule": "@daily", "jobTemplate": {"spec": {"template": {
                "metadata": {"labels": {"app": "report"}}, "spec": {"containers": [{"image": "i"}]}}}}},
            "status": {"lastScheduleTime": "2026-01-02T00:00:00Z"}});
        let (json, same) = again(Kind::CronJob, &cron_job);
        assert!(same && !json.contains("lastScheduleTime") && !json.contains("image"), "{json}");
        let cilium = json!({"metadata": {"name": "c", "namespace": "shop"}, "specs": [{"endpointSelector": {}, "ingress": [{}]}]});
        assert!(again(Kind::CiliumNetworkPolicy, &cilium).1);
    }

    #[test]
    fn what_cannot_be_read_cannot_be_read_again() {
        for (kind, value) in [
            (Kind::Pod, json!({"metadata": {"name": "a"}, "spec": {"containers": "none"}})),
            (Kind::Pod, json!({"metadata": {"name": "a"}, "status": {"podIP": 7}})),
            (Kind::Pod, json!({"metadata": {"name": "a"}, "spec": {"containers": [7]}})),
            (Kind::EndpointSlice, json!({"metadata": {"name": "a"}, "endpoints": {"no": "list"}})),
            (
                Kind::NetworkPolicy,
                json!({"metadata": {"name": "a", "labels": 1}, "spec": {"podSelector": []}}),
            ),
            (Kind::Node, json!({"metadata": {"name": "a"}, "status": []})),
        ] {
            let (json, same) = again(kind, &value);
            assert!(same, "{kind}: {json} of {value}");
        }
        assert_eq!(content(Kind::Pod, &json!({"metadata": {}})), None);
    }

    #[test]
    fn the_objects_of_a_list_are_kept_one_by_one() {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"a": "b"}}},
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other"}},
            {"apiVersion": "v1", "kind": "PodList", "items": [{"metadata": {"name": "web", "namespace": "shop"}}]},
        ]});
        let mut found = Vec::new();
        of_document(&list, &mut found);
        let keys: Vec<String> = found.iter().map(|it| it.key.to_string()).collect();
        assert_eq!(keys, ["Namespace shop", "Pod shop/web"]);
        assert_eq!(
            &*found[0].json,
            r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"labels":{"a":"b"},"name":"shop"}}"#
        );
    }
}
