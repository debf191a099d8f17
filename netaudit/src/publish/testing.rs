//! A finding with everything around it, for the tests of this module.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::{
    audit::{ActorKind, Finding, Flow, FlowId, Peer, PeerKind, Subject, ViolationKey, testing::observation},
    cluster::{Cluster, Object, Pod, Workload},
    model::{Decision, Denial, Direction, PolicyId, Protocol, Reach, Timestamp, Verdict},
    policy::Labels,
};

/// A denied connection of one pod to another that passed.
pub struct World {
    pub cluster: Cluster,
    pub flow: Flow,
    pub key: ViolationKey,
}

/// A pod of `shop` that belongs to a workload of this kind.
pub fn pod(name: &str, kind: &str, workload: &str) -> Pod {
    Pod {
        namespace: "shop".into(),
        name: name.into(),
        uid: format!("uid-{name}").into(),
        config_hash: None,
        labels: Labels::from_iter::<[(&str, &str); 0]>([]),
        node: Some("worker-1".into()),
        ips: SmallVec::new(),
        host_network: false,
        has_runtime_class: false,
        completed: false,
        ports: [].into(),
        workload: Workload { kind: kind.into(), name: workload.into() },
        created: None,
    }
}

/// `client` of Deployment `web` reached port 5432 of `server` of StatefulSet `db`.
pub fn world(client: &str, server: &str) -> World {
    let mut cluster = Cluster::new();
    cluster.apply(Object::Pod(pod(client, "Deployment", "web")), Timestamp(0));
    cluster.apply(Object::Pod(pod(server, "StatefulSet", "db")), Timestamp(0));
    let id = |name: &str| cluster.pod_by_name("shop", name).unwrap();
    let flow = Flow {
        id: FlowId { run: "worker-1-run".into(), sequence: 7 },
        observation: observation(),
        subject: Subject::Pod(id(client)),
        actor_kind: ActorKind::Subject,
        actor_pod: None,
        actor_container: None,
        peer: Peer { kind: PeerKind::Pod(id(server)), ip: "10.0.0.2".parse().unwrap(), service: None },
        names: vec![],
        port: 5432,
        requested: None,
        translation: None,
        reach: Reach::Reached,
        stopped_by: None,
        closed_port: false,
        verdict: Arc::new(Verdict::plain(Decision::Denied(Denial::Isolation([].into())))),
        other_end: None,
        finding: Some(Finding::Unenforced),
        cause: None,
        open: None,
    };
    World { cluster, flow, key: key("web", 5432) }
}

/// What a workload of `shop` reached at `db`, which is denied.
pub fn key(workload: &str, port: u16) -> ViolationKey {
    ViolationKey {
        direction: Direction::Egress,
        source_namespace: "shop".into(),
        source_workload: workload.into(),
        destination_namespace: "shop".into(),
        destination_workload: "db".into(),
        protocol: Protocol::Tcp,
        port: Some(port),
        finding: Finding::Unenforced,
        cause: None,
        policy: Some(
            PolicyId { kind: "NetworkPolicy", namespace: "shop".into(), name: "deny".into() }.into(),
        ),
        accepted: None,
    }
}
