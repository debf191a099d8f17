//! Who is said to have accepted a connection: whoever made the listener listen, wherever that is kept.

use std::{
    net::{IpAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
};

use netaudit::model::{Observation, Outcome};
use rustix::net::{accept, listen};

use super::{
    open_sockets::{Held, Ways, disconnect, hold, look, serve},
    pods::{Pod, Stage, ready, socket},
};

/// Who accepted from each of the pod's clients, in order, after `earlier` flows of both ends.
fn accepted(stage: &mut Stage, pod: &Pod, earlier: usize, count: usize) -> Vec<Observation> {
    let mut flows = stage.expect(pod, earlier + 2 * count).split_off(earlier);
    flows.retain(|flow| flow.outcome == Outcome::Accepted);
    assert_eq!(flows.len(), count, "{flows:#?}");
    flows
}

/// Connects to each, and goes.
fn visit(pod: &Pod, addresses: &[&str]) {
    pod.run(|| addresses.iter().try_for_each(|to| TcpStream::connect(to).map(drop)));
}

/// A process that listens at the address until the guard goes, and accepts nothing.
fn listener(pod: &Pod, ways: Ways) -> Held {
    hold(pod, |_| ways.listen())
}

fn assert_accepted_by(flow: &Observation, pod: &Pod, pid: u32, case: &str) {
    assert_eq!((flow.actor.cgroup, flow.actor.pid), (Some(pod.cgroup.id()), pid), "{case}: {flow:#?}");
    assert!(!flow.actor.comm.is_empty(), "{case}");
}

/// What it is, how it listens, and whom its client connects to.
const CASES: [(&str, Ways, &str); 12] = [
    ("v4", Ways::at("127.0.0.1:1001"), "127.0.0.1:1001"),
    ("any v4", Ways::at("0.0.0.0:1002"), "127.0.0.1:1002"),
    ("v6", Ways::at("[::1]:1003"), "[::1]:1003"),
    ("any v6", Ways::at("[::]:1004"), "[::1]:1004"),
    ("any v6, a v4 client", Ways::at("[::]:1005"), "127.0.0.1:1005"),
    ("a mapped address", Ways::at("[::ffff:127.0.0.1]:1006"), "127.0.0.1:1006"),
    ("any mapped address", Ways::at("[::ffff:0.0.0.0]:1007"), "127.0.0.1:1007"),
    ("any v4, a v6 client", Ways::at("0.0.0.0:1008"), "[::ffff:127.0.0.1]:1008"),
    ("reused address", Ways { reuse_address: true, ..Ways::at("0.0.0.0:1009") }, "127.0.0.1:1009"),
    ("reused port", Ways { reuse_port: true, ..Ways::at("0.0.0.0:1010") }, "127.0.0.1:1010"),
    ("a device", Ways { device: Some("lo"), ..Ways::at("0.0.0.0:1011") }, "127.0.0.1:1011"),
    ("multipath", Ways { multipath: true, ..Ways::at("0.0.0.0:1012") }, "127.0.0.1:1012"),
];

fn assert_every_case(stage: &mut Stage, pod: &Pod, held: &[Held], earlier: usize) {
    visit(pod, &CASES.map(|(_, _, to)| to));
    let flows = accepted(stage, pod, earlier, CASES.len());
    for (((case, ..), held), flow) in CASES.iter().zip(held).zip(&flows) {
        assert_accepted_by(flow, pod, held.pid(), case);
    }
}

#[test]
fn whoever_listens_accepts_wherever_it_listens() {
    if !ready() {
        return;
    }
    let mut stage = Stage::new();
    let pod = stage.pod("a");
    let held: Vec<_> = CASES.iter().map(|(_, ways, _)| listener(&pod, *ways)).collect();
    assert_every_case(&mut stage, &pod, &held, 0);
    // A scan learns nothing that a hook does not know better: this test's own process holds none.
    stage.kernel.scan().unwrap();
    assert_every_case(&mut stage, &pod, &held, 2 * CASES.len());
    drop((held, pod));
}

#[test]
fn whoever_listened_before_accepts_too() {
    if !ready() {
        return;
    }
    let root = Stage::root();
    let pod = Pod::new(&root, "a");
    // The kernel's own listener of a multipath socket is no file.
    let files = &CASES[..CASES.len() - 1];
    let held: Vec<_> = files.iter().map(|(_, ways, _)| listener(&pod, *ways)).collect();
    let mut stage = Stage::attach(root);
    stage.kernel.scan().unwrap();
    for _ in 0..2 {
        visit(&pod, &CASES.map(|(_, _, to)| to)[..files.len()]);
        // Whoever is found first stays, however often it is looked for.
        stage.kernel.scan().unwrap();
    }
    let flows = accepted(&mut stage, &pod, 0, 2 * files.len());
    for (number, flow) in flows.iter().enumerate() {
        let at = number % files.len();
        assert_accepted_by(flow, &pod, held[at].pid(), files[at].0);
    }
    drop((held, pod));
}

#[test]
fn each_of_several_at_one_port_is_told_apart() {
    if !ready() {
        return;
    }
    const CLIENTS: usize = 40;
    let mut stage = Stage::new();
    let pod = stage.pod("a");
    // At addresses of their own.
    let first = listener(&pod, Ways::at("127.0.0.1:1001"));
    let second = listener(&pod, Ways::at("127.0.0.2:1001"));
    let only_v6 = hold(&pod, |_| {
        let made = socket(libc::AF_INET6, libc::SOCK_STREAM)?;
        rustix::net::sockopt::set_ipv6_v6only(&made, true)?;
        rustix::net::bind(&made, &"[::]:1001".parse::<std::net::SocketAddr>().unwrap())?;
        listen(&made, 16)?;
        Ok(made)
    });
    visit(&pod, &["127.0.0.1:1001", "127.0.0.2:1001", "[::1]:1001"]);
    let flows = accepted(&mut stage, &pod, 0, 3);
    for (flow, held) in flows.iter().zip([&first, &second, &only_v6]) {
        assert_accepted_by(flow, &pod, held.pid(), "an address of its own");
    }
    // At one address, where the kernel gives each its share: whoever has accepted a client knows its port.
    let shared = Ways { reuse_port: true, backlog: 64, ..Ways::at("127.0.0.1:1002") };
    let workers = [listener(&pod, shared), listener(&pod, shared)];
    visit(&pod, &["127.0.0.1:1002"; CLIENTS]);
    let flows = accepted(&mut stage, &pod, 6, CLIENTS);
    let of = |worker: &Held| flows.iter().filter(|flow| flow.actor.pid == worker.pid()).count();
    let counts = workers.each_ref().map(of);
    assert_eq!(counts[0] + counts[1], CLIENTS, "{flows:#?}");
    assert!(counts[0] > 0 && counts[1] > 0, "{counts:?}");
    drop((first, second, only_v6, workers, pod));
}

#[test]
fn whoever_comes_next_to_a_port_is_not_taken_for_the_one_before() {
    if !ready() {
        return;
    }
    let mut stage = Stage::new();
    let pod = stage.pod("a");
    let ways = |bound| Ways { reuse_address: true, ..Ways::at(bound) };
    let mut flows = 0;
    // The kernel says nothing of the end of one that stopped listening before it was closed.
    for stops in [false, true] {
        for bound in ["127.0.0.1:1001", "127.0.0.1:1001", "0.0.0.0:1001", "[::]:1001", "127.0.0.1:1001"] {
            let held = hold(&pod, |line| {
                let listener = ways(bound).listen()?;
                line.done()?;
                if stops {
                    disconnect(&listener)?;
                }
                drop(listener);
                Ok(())
            });
            let mut held = held;
            visit(&pod, &["127.0.0.1:1001"]);
            assert_accepted_by(&accepted(&mut stage, &pod, flows, 1)[0], &pod, held.pid(), bound);
            flows += 2;
            held.next();
            drop(held);
        }
    }
    drop(pod);
}

#[test]
fn a_listener_that_chose_no_port_is_known_and_so_is_one_that_was_passed_on() {
    if !ready() {
        return;
    }
    let mut stage = Stage::new();
    let pod = stage.pod("a");
    pod.run(|| {
        let listener: OwnedFd = socket(libc::AF_INET, libc::SOCK_STREAM)?;
        listen(&listener, 16)?;
        let listener = TcpListener::from(listener);
        let port = listener.local_addr()?.port();
        TcpStream::connect((IpAddr::from([127, 0, 0, 1]), port)).map(drop)
    });
    let flows = stage.expect(&pod, 2);
    let taken = flows.iter().find(|flow| flow.outcome == Outcome::Accepted).unwrap();
    assert_ne!(taken.actor.pid, 0);
    assert_eq!(taken.actor, flows.iter().find(|flow| flow.outcome == Outcome::Established).unwrap().actor);

    // As who serves requests in children does: it is still the parent's listener.
    let listens = hold(&pod, |_| {
        let listener = Ways::at("127.0.0.1:1001").listen()?;
        // SAFETY: the child makes system calls only, and leaves.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let taken = accept(&listener);
            // SAFETY: ends the child without what is the parent's to do.
            unsafe { libc::_exit(i32::from(taken.is_err())) };
        }
        Ok(listener)
    });
    visit(&pod, &["127.0.0.1:1001"]);
    assert_accepted_by(&accepted(&mut stage, &pod, 2, 1)[0], &pod, listens.pid(), "passed on");
    drop((listens, pod));
}

#[test]
fn a_look_knows_who_listened_and_that_it_was_told() {
    if !ready() {
        return;
    }
    let mut stage = Stage::new();
    let pod = stage.pod("a");
    let mut server = serve(&pod, Ways::at("0.0.0.0:1001"), 1, true);
    // It was accepted, is not any more, and is a client then.
    let client = hold(&pod, |_| {
        let listener = Ways::at("127.0.0.1:1002").listen()?;
        let other = Ways::PLAIN.connect("127.0.0.1:1002")?;
        let taken = accept(&listener)?;
        disconnect(&taken)?;
        rustix::net::connect(&taken, &"127.0.0.1:1001".parse::<std::net::SocketAddr>().unwrap())?;
        drop(other);
        Ok(taken)
    });
    server.next();
    let flows = stage.expect(&pod, 4);
    let outcomes: Vec<_> = flows.iter().map(|flow| flow.outcome).collect();
    let (made, taken) = (Outcome::Established, Outcome::Accepted);
    assert_eq!(outcomes, [made, taken, made, taken], "{flows:#?}");
    let found = look(&mut stage, &pod);
    assert_eq!(found.len(), 2, "{found:#?}");
    for it in &found {
        let process = if it.seen.outcome == Outcome::Accepted { &server } else { &client };
        assert!(it.is_told, "{it:#?}");
        assert_eq!(it.seen.actor.pid, process.pid(), "{it:#?}");
    }
    drop((server, client, pod));
}
