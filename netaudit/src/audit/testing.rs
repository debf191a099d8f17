//! Observations for the tests of this module.

use std::time::Duration;

use crate::model::{
    Actor, CgroupId, Comm, Direction, NetnsCookie, Observation, Outcome, Protocol, Timestamp,
};

/// An established TCP connection from 10.0.0.1 to 10.0.0.2:80, by cgroup 10 in namespace 7.
pub(crate) fn observation() -> Observation {
    Observation {
        at: Timestamp::from_seconds(1_000),
        direction: Direction::Egress,
        protocol: Protocol::Tcp,
        netns: NetnsCookie(7),
        actor: Actor { cgroup: Some(CgroupId(10)), pid: 100, comm: Comm::new("curl") },
        local: "10.0.0.1:40000".parse().unwrap(),
        remote: "10.0.0.2:80".parse().unwrap(),
        requested: None,
        outcome: Outcome::Established,
        errno: None,
        waited: Duration::from_millis(1),
        answered: false,
        socket: 1,
        sequence: 0,
        folded: None,
        handshake: None,
        translated: None,
        maybe_repeated: false,
    }
}
