//! Where the state of a socket that connects, or was accepted, is kept: in a slot that is given away with the socket, or
//! where that is taken with the socket itself. Neither shows in what is told.

use std::{io, net::TcpStream, path::PathBuf, time::Duration};

use netaudit::{
    kernel::Options,
    model::{Direction, Outcome},
};
use rustix::net::{accept, sockopt::set_socket_linger};

use super::{
    open_sockets::{Ways, disconnect, hold, look},
    pods::{Pod, Stage, ready, socket, socket_of},
    tcp::connect,
};
use crate::lab::BpfFs;

/// Every way that an attempt ends at once, and one socket that goes several: what it makes, in order of ends.
const ENDS: [Outcome; 9] = [
    Outcome::Established,
    Outcome::Refused,
    Outcome::Failed,
    Outcome::Failed,
    Outcome::Refused,
    Outcome::Refused,
    Outcome::Established,
    Outcome::Established,
    Outcome::Aborted,
];

/// Makes [`ENDS`] in a pod whose gateway answers nothing.
fn all_ends() -> io::Result<()> {
    const IPPROTO_MPTCP: i32 = 262;
    let listener = Ways::at("127.0.0.1:1001").listen()?;
    let server = "127.0.0.1:1001".parse().unwrap();
    let closed = "127.0.0.1:9".parse().unwrap();
    let no_route = "10.77.0.1:80".parse().unwrap();
    let silent = "10.9.0.2:80".parse().unwrap();
    let tcp = || socket(libc::AF_INET, libc::SOCK_STREAM);
    let fails = |of: io::Result<()>| if of.is_ok() { Err(io::Error::other("it connected")) } else { Ok(()) };

    drop((TcpStream::connect("127.0.0.1:1001")?, accept(&listener)?));
    fails(connect(&tcp()?, closed))?;
    fails(connect(&tcp()?, no_route))?;

    let several = tcp()?;
    fails(connect(&several, no_route))?;
    fails(connect(&several, closed))?;
    fails(connect(&several, closed))?;
    connect(&several, server)?;
    let accepted = accept(&listener)?;
    disconnect(&several)?;
    drop(accepted);
    connect(&several, server)?;
    drop((several, accept(&listener)?));

    let gives_up = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK)?;
    fails(connect(&gives_up, silent))?;
    drop(gives_up);
    // The kernel's own sockets are released without a word.
    let multipath = socket_of(libc::AF_INET, libc::SOCK_STREAM, IPPROTO_MPTCP)?;
    fails(connect(&multipath, no_route))
}

/// The attempts that the pod made, by their outcomes: those above, and the multipath socket's.
fn assert_ends(stage: &mut Stage, pod: &Pod, earlier: usize) {
    let multipath = 1;
    let accepted = ENDS.iter().filter(|outcome| **outcome == Outcome::Established).count();
    let mut flows = stage.expect(pod, earlier + ENDS.len() + multipath + accepted).split_off(earlier);
    flows.retain(|flow| flow.direction == Direction::Egress);
    let outcomes: Vec<_> = flows.iter().map(|flow| flow.outcome).collect();
    let expected: Vec<_> = ENDS.into_iter().chain([Outcome::Failed]).collect();
    assert_eq!(outcomes, expected, "{flows:#?}");
    assert!(flows.iter().all(|flow| flow.actor.pid != 0), "{flows:#?}");
    let mut attempts: Vec<_> = flows.iter().map(|flow| (flow.socket, flow.sequence)).collect();
    attempts.sort_unstable();
    attempts.dedup();
    assert_eq!(attempts.len(), flows.len(), "each attempt has a name of its own");
}

/// A pod with a neighbour that swallows what comes.
fn pods(stage: &Stage) -> (Pod, Pod) {
    let (pod, far) = (stage.pod("a"), stage.pod("b"));
    pod.join(&far);
    far.command("nft", &["add", "table", "ip", "t"]);
    let hook = "{ type filter hook input priority 0; policy drop; }";
    far.command("nft", &["add", "chain", "ip", "t", "in", hook]);
    (pod, far)
}

/// How many slots are taken.
fn held(files: &BpfFs) -> usize {
    let mut directory = files.pins();
    // Of a node and of a version.
    for _ in 0..2 {
        directory = std::fs::read_dir(&directory).unwrap().next().unwrap().unwrap().path();
    }
    let pin: PathBuf = directory.join("maps/ATTEMPTS");
    let map = aya::maps::MapData::from_pin(&pin).unwrap_or_else(|error| panic!("{}: {error}", pin.display()));
    let slots: aya::maps::Array<_, [u8; 128]> = aya::maps::Map::Array(map).try_into().unwrap();
    // Whose it is comes first.
    slots.iter().filter(|slot| slot.as_ref().unwrap()[..8] != [0; 8]).count()
}

#[test]
fn nothing_is_kept_of_a_socket_that_is_gone() {
    if !ready() {
        return;
    }
    let files = BpfFs::mount().unwrap();
    let options = Options { pin_directory: Some(files.pins()), ..Options::default() };
    let mut stage = Stage::with(Stage::root(), options);
    let (pod, far) = pods(&stage);
    pod.run(all_ends);
    assert_ends(&mut stage, &pod, 0);
    assert_eq!(held(&files), 0);
    let open = hold(&pod, |_| {
        let listener = Ways::at("127.0.0.1:1001").listen()?;
        Ok((TcpStream::connect("127.0.0.1:1001")?, accept(&listener)?, listener))
    });
    // Both ends'.
    assert_eq!(held(&files), 2);
    drop(open);
    stage.drain();
    assert_eq!(held(&files), 0);
    // Nobody accepts these: one that its client resets, and one that its listener leaves behind.
    let mut queue = hold(&pod, |line| {
        let listener = Ways::at("127.0.0.1:1003").listen()?;
        let (resets, stays) = (TcpStream::connect("127.0.0.1:1003")?, TcpStream::connect("127.0.0.1:1003")?);
        line.done()?;
        set_socket_linger(&resets, Some(Duration::ZERO))?;
        drop(resets);
        line.done()?;
        drop(listener);
        Ok(stays)
    });
    assert_eq!(held(&files), 4);
    queue.next();
    assert_eq!(held(&files), 2);
    queue.next();
    // The listener's end resets the client too.
    assert_eq!(held(&files), 0);
    drop(queue);
    drop((pod, far));
}

#[test]
fn what_finds_no_room_is_told_all_the_same() {
    if !ready() {
        return;
    }
    // A slot for one socket in many thousands.
    let options = Options { attempts: 1, ..Options::default() };
    let mut stage = Stage::with(Stage::root(), options);
    let (pod, far) = pods(&stage);
    let open = hold(&pod, |_| {
        let listener = Ways::at("127.0.0.1:1002").listen()?;
        let mut both = Vec::new();
        for _ in 0..2 {
            both.push((TcpStream::connect("127.0.0.1:1002")?, accept(&listener)?));
        }
        Ok((both, listener))
    });
    pod.run(all_ends);
    assert_ends(&mut stage, &pod, 4);
    let found = look(&mut stage, &pod);
    assert_eq!(found.len(), 4, "{found:#?}");
    assert!(found.iter().all(|it| it.is_told), "{found:#?}");
    drop((open, pod, far));
}
