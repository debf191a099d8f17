//! Raw sockets in the agent's own log.

use crate::{
    audit::{Privacy, RawSocketSeen, Subject},
    cluster::Cluster,
};

/// One line of the agent's own log: policies do not speak of such sockets, so they are no flows.
pub(super) fn log_raw_socket(
    RawSocketSeen { seen, subject, key, actor_pod, actor_container }: &RawSocketSeen,
    cluster: &Cluster,
    privacy: &Privacy,
) {
    let process = (!privacy.omits_processes).then(|| (seen.actor.pid, seen.actor.comm.to_string()));
    let pod = match subject {
        Subject::Pod(id) => cluster.pod(*id).map(|pod| &*pod.name),
        Subject::Node | Subject::Unknown { .. } => None,
    };
    tracing::warn!(
        kind = key.kind.as_str(),
        protocol = seen.protocol,
        namespace = &*key.namespace,
        workload = &*key.workload,
        pod,
        actor_pod_uid = actor_pod.as_deref(),
        container = actor_container.as_deref(),
        pid = process.as_ref().map(|(pid, _)| pid),
        comm = process.as_ref().map(|(_, comm)| comm),
        "a raw socket was made: nobody sees whom it talks to"
    );
}
