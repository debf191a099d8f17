//! A finding as an `Event` on the subject's pod.

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use sha2::{Digest as _, Sha256};

use super::{
    CONTROLLER,
    words::{Sentence, cut, fate, reason},
};
use crate::{
    audit::{FlowSeverity, PeerKind, Subject, ViolationKey, line::Telling},
    cluster::Pod,
    model::{Direction, Timestamp},
};

/// The API's limits, in bytes.
const MOST_NOTE: usize = 1_024;
const MOST_NAME: usize = 253;
const MOST_INSTANCE: usize = 128;

/// What is left of each name in a note that would be too long otherwise.
const CUT_NAME: usize = 150;

/// The first event of the series of `key`, which is `flow`'s; `None` where the subject is no pod, or one that is forgotten.
/// The API lets nothing of it change later but how often it happened.
pub fn event(telling: &Telling<'_>, key: &ViolationKey) -> Option<Event> {
    let Telling { flow, cluster, node, .. } = *telling;
    let at = telling.wall(flow.observation.at);
    let Subject::Pod(subject) = flow.subject else { return None };
    let subject = cluster.pod(subject)?;
    let peer = match flow.peer.kind {
        PeerKind::Pod(peer) => cluster.pod(peer),
        _ => None,
    };
    let type_ = if FlowSeverity::of(key) > FlowSeverity::Info { "Warning" } else { "Normal" };
    let action = match key.direction {
        Direction::Egress => "Egress",
        Direction::Ingress => "Ingress",
    };
    Some(Event {
        metadata: ObjectMeta {
            name: Some(name(&subject.name, &flow.id.to_string())),
            // The API wants it to be the pod's.
            namespace: Some(subject.namespace.to_string()),
            ..ObjectMeta::default()
        },
        type_: Some(type_.to_owned()),
        reason: Some(reason(key.finding).to_owned()),
        action: Some(action.to_owned()),
        note: Some(note(telling, key, subject, peer)),
        regarding: Some(reference(subject)),
        related: peer.map(reference),
        event_time: Some(micro_time(at)),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(cut(node, MOST_INSTANCE)),
        ..Event::default()
    })
}

/// A time as events have it.
pub fn micro_time(at: Timestamp) -> MicroTime {
    // Nanoseconds in 64 bits are within what jiff can hold.
    MicroTime(jiff::Timestamp::from_nanosecond(i128::from(at.0)).unwrap_or_default())
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.to_string()),
        name: Some(pod.name.to_string()),
        uid: Some(pod.uid.to_string()),
        ..ObjectReference::default()
    }
}

/// The pod's name, and what no other event has: the flow's id is told once.
fn name(pod: &str, flow: &str) -> String {
    let hash: String = Sha256::digest(flow).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let most = MOST_NAME - hash.len() - 1;
    let pod = pod[..pod.floor_char_boundary(most)].trim_end_matches(['.', '-']);
    format!("{pod}.{hash}")
}

/// Who, what, what became of it, by which policy and why; with all names in full if they fit.
fn note(telling: &Telling<'_>, key: &ViolationKey, subject: &Pod, peer: Option<&Pod>) -> String {
    let full = note_within(telling, key, subject, peer, usize::MAX);
    if full.len() <= MOST_NOTE {
        return full;
    }
    cut(&note_within(telling, key, subject, peer, CUT_NAME), MOST_NOTE)
}

fn note_within(
    telling: &Telling<'_>,
    key: &ViolationKey,
    subject: &Pod,
    peer: Option<&Pod>,
    most: usize,
) -> String {
    let flow = telling.flow;
    let pod = |pod: &Pod| cut(&format!("{}/{}", pod.namespace, pod.name), most);
    let (_, comm) = telling.process();
    // A process names itself as it likes.
    let by = if comm.is_empty() { String::new() } else { format!(" ({:?})", comm.to_string()) };
    let subject = pod(subject) + &by;
    let peer = match (&flow.peer.kind, peer) {
        (PeerKind::Pod(_), Some(peer)) => pod(peer),
        (PeerKind::Node(Some(node)), _) => cut(&format!("node {node}"), most),
        (PeerKind::Node(None), _) => format!("node {}", flow.peer.ip),
        _ => outside(telling, most),
    };
    let (source, destination) = match key.direction {
        Direction::Egress => (subject, peer),
        Direction::Ingress => (peer, subject),
    };
    let policy = key.policy.as_ref().map(|policy| cut(&policy.to_string(), most)).unwrap_or_default();
    let sentence = Sentence {
        source: &source,
        destination: &destination,
        direction: key.direction,
        protocol: key.protocol,
        port: key.port,
        fate: &fate(key, &policy),
    };
    format!("{sentence}; flow {}", cut(&flow.id.to_string(), most))
}

/// A Service, a name that DNS gave, or the bare address.
fn outside(telling: &Telling<'_>, most: usize) -> String {
    let flow = telling.flow;
    let ip = telling.address(flow.peer.ip, telling.hashes_peer());
    if let Some((namespace, name)) = &flow.peer.service {
        return cut(&format!("Service {namespace}/{name}"), most);
    }
    match telling.names().iter().find(|name| name.is_asked) {
        Some(name) => format!("{} ({ip})", cut(&name.name, most)),
        None => ip.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::{AddressKey, Privacy, UnenforcedCause},
        publish::testing::{World, world},
    };

    fn told(world: &World, privacy: &Privacy) -> Option<Event> {
        let correction = 1_700_000_000_123_456_789 - world.flow.observation.at.0;
        let World { flow, cluster, .. } = world;
        event(&Telling { flow, cluster, node: "worker-1", correction, privacy }, &world.key)
    }

    fn written(world: &World) -> Event {
        told(world, &Privacy::default()).unwrap()
    }

    #[test]
    fn what_is_not_told_stands_in_no_event() {
        let mut world = world("web-0", "db-0");
        world.flow.peer.kind = PeerKind::External;
        world.flow.peer.ip = "203.0.113.9".parse().unwrap();
        world.flow.names = vec![crate::audit::SeenName {
            name: "www.example.com".into(),
            server: "10.96.0.10".parse().unwrap(),
            answered: Timestamp(0),
            is_fresh: true,
            is_asked: true,
            counts: true,
        }];
        let note = |privacy: &Privacy| told(&world, privacy).unwrap().note.unwrap();
        assert!(
            note(&Privacy::default())
                .starts_with(r#"shop/web-0 ("curl") to www.example.com (203.0.113.9) TCP/5432"#)
        );
        let key = AddressKey::new(b"0123456789abcdef0123456789abcdef").unwrap();
        let hash = key.hash(world.flow.peer.ip);
        let hashing = note(&Privacy { key: Some(key), ..Privacy::default() });
        assert!(hashing.starts_with(&format!(r#"shop/web-0 ("curl") to {hash} TCP/5432"#)), "{hashing}");
        let omitting = note(&Privacy { omits_processes: true, omits_names: true, key: None });
        assert!(omitting.starts_with("shop/web-0 to 203.0.113.9 TCP/5432"), "{omitting}");
    }

    #[test]
    fn it_stands_on_the_subjects_pod_and_says_all() {
        let mut world = world("web-0", "db-0");
        world.key.cause = Some(UnenforcedCause::NothingEnforces);
        let event = written(&world);
        let (regarding, related) = (event.regarding.unwrap(), event.related.unwrap());
        assert_eq!((regarding.name.as_deref(), regarding.uid.as_deref()), (Some("web-0"), Some("uid-web-0")));
        assert_eq!((related.name.as_deref(), related.uid.as_deref()), (Some("db-0"), Some("uid-db-0")));
        assert_eq!(event.metadata.namespace.as_deref(), Some("shop"));
        assert_eq!((event.type_.as_deref(), event.reason.as_deref()), (Some("Warning"), Some("Unenforced")));
        assert_eq!(
            event.note.as_deref(),
            Some(
                r#"shop/web-0 ("curl") to shop/db-0 TCP/5432 (egress) passed though NetworkPolicy/shop/deny denies it; cause: nothing enforces; flow worker-1-run-7"#
            )
        );
        let time = serde_json::to_value(event.event_time).unwrap();
        assert_eq!(time, "2023-11-14T22:13:20.123456Z");
    }

    #[test]
    fn who_is_no_pod_is_told_by_name_and_address() {
        let mut world = world("web-0", "db-0");
        let name = |name: &str, is_asked| crate::audit::SeenName {
            name: name.into(),
            server: "10.96.0.10".parse().unwrap(),
            answered: Timestamp(0),
            is_fresh: true,
            is_asked,
            counts: true,
        };
        let mut destination = |kind| {
            world.flow.peer.kind = kind;
            let event = written(&world);
            assert_eq!(event.related, None);
            let note = event.note.unwrap();
            note.split(" to ").nth(1).unwrap().split(" TCP").next().unwrap().to_owned()
        };
        assert_eq!(destination(PeerKind::External), "10.0.0.2");
        assert_eq!(destination(PeerKind::Node(Some("worker-2".into()))), "node worker-2");
        assert_eq!(destination(PeerKind::Node(None)), "node 10.0.0.2");
        world.flow.names = vec![name("cdn.example.net", false), name("www.example.com", true)];
        let note = written(&world).note.unwrap();
        assert!(note.contains(" to node 10.0.0.2 "), "{note}");
        world.flow.peer.kind = PeerKind::External;
        let note = written(&world).note.unwrap();
        assert!(note.contains(" to www.example.com (10.0.0.2) TCP/5432 (egress)"), "{note}");
        // Seen from the other end.
        world.key.direction = Direction::Ingress;
        world.flow.names.clear();
        let note = written(&world).note.unwrap();
        assert!(note.starts_with("10.0.0.2 to shop/web-0 (\"curl\") TCP/5432 (ingress)"), "{note}");
        world.flow.subject = Subject::Node;
        let none = told(&world, &Privacy::default());
        assert_eq!(none, None, "an event stands on a pod");
    }

    #[test]
    fn what_ends_by_itself_is_no_warning() {
        let mut world = world("web-0", "db-0");
        world.key.cause = Some(UnenforcedCause::PodJustStarted);
        assert_eq!(written(&world).type_.as_deref(), Some("Normal"));
    }

    #[test]
    fn a_process_cannot_break_the_note() {
        let mut world = world("web-0", "db-0");
        world.flow.observation.actor.comm = crate::model::Comm::new("a\"b\nc: evil");
        let note = written(&world).note.unwrap();
        assert!(note.contains(r#"("a\"b\nc: evil")"#) && note.lines().count() == 1, "{note}");
    }

    #[test]
    fn names_of_any_length_fit() {
        let long = |letter: &str| letter.repeat(253);
        let mut world = world(&long("w"), &long("d"));
        let policy = std::sync::Arc::make_mut(world.key.policy.as_mut().unwrap());
        policy.name = long("p").into();
        world.flow.id.run = long("r").into();
        let event = written(&world);
        let note = event.note.unwrap();
        assert!(note.len() <= MOST_NOTE, "{}", note.len());
        for part in ["shop/www", "…", "shop/ddd", "NetworkPolicy/shop/ppp", "TCP/5432"] {
            assert!(note.contains(part), "{part}: {note}");
        }
        assert_eq!(event.regarding.unwrap().name.map(|name| name.len()), Some(253));
        // A dot or a hyphen must not stand where the name is cut.
        let names = [long("w"), "a".repeat(235) + ".tail", "a".repeat(235) + "-tail", "web-0.x".to_owned()];
        for cut in names.map(|pod| name(&pod, "flow")) {
            let is_label = |label: &str| {
                !label.is_empty()
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-')
            };
            assert!(cut.len() <= MOST_NAME && cut.split('.').all(is_label), "{cut}");
        }
    }
}
