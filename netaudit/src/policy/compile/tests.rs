use serde_json::{Value, json};

use super::*;
use crate::{
    cluster::Object,
    watch::convert::{self, Converted},
};

#[test]
fn only_rules_for_nothing_but_sctp_cannot_be_observed() {
    let is_observable = |ports: Value| {
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": "p", "namespace": "x" },
            "spec": { "podSelector": {}, "ingress": [{ "ports": ports }] },
        });
        match convert::document(&policy, &"test".into()).as_slice() {
            [Converted::Object(Object::NetworkPolicy(declared))] => {
                CompiledPolicy::compile(declared).rules(Direction::Ingress)[0].is_observable()
            }
            other => panic!("{other:?}"),
        }
    };
    let sctp = json!({ "protocol": "SCTP", "port": 3868 });
    assert!(!is_observable(json!([sctp])));
    assert!(!is_observable(json!([sctp, { "protocol": "SCTP" }])));
    assert!(is_observable(json!([])));
    assert!(is_observable(Value::Null));
    assert!(is_observable(json!([{ "port": 80 }])), "TCP unless it is said");
    assert!(!is_observable(json!([sctp, { "protocol": "UDP", "port": 53 }])), "the other half is not seen");
    assert!(is_observable(json!([{ "protocol": "sctp", "port": 53 }])), "invalid: perhaps any");
}
