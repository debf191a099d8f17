//! A reader that stalls: what finds no room in the ring is folded into counts, and the counts add up to the unit.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use netaudit::{
    kernel::{Event, Loss, Options, RecordCount},
    model::{Direction, NetnsCookie, Observation, Outcome},
};

use super::pods::{Pod, Stage, ready};

/// What is known of the flows of a pod after everything was taken.
struct Known {
    /// By direction, outcome, and the port that policies speak of.
    flows: HashMap<(Direction, Outcome, u16), u64>,
    recorded: u64,
    folded: u64,
    /// By subject only.
    by_subject: u64,
}

/// Takes everything, and holds it against what the programs counted.
fn take(stage: &mut Stage, pod: &Pod) -> Known {
    // What a soft interrupt does for a connection may end after the system call.
    thread::sleep(Duration::from_millis(100));
    stage.drain();
    let recorded = stage.flows(pod);
    let (mut folds, mut by_subject) = (Vec::new(), Vec::new());
    let sink = &mut |event| match event {
        Event::Flow(seen) => folds.push(seen),
        Event::FoldedSubject { netns, count, .. } => by_subject.push((netns, count.get())),
        other => panic!("{other:?} in a fold"),
    };
    stage.kernel.take_folded(sink).unwrap();
    assert!(folds.iter().all(|seen| seen.folded.is_some()), "{folds:?}");
    assert!(folds.iter().all(|seen| seen.netns == pod.netns && seen.first() <= seen.at), "{folds:?}");
    assert!(by_subject.iter().all(|(netns, _)| *netns == pod.netns), "{by_subject:?}");
    let mut flows = HashMap::new();
    for seen in recorded.iter().chain(&folds) {
        *flows.entry((seen.direction, seen.outcome, seen.port())).or_default() += seen.count();
    }
    let counted: u64 = folds.iter().map(Observation::count).sum();
    let known = Known {
        flows,
        recorded: recorded.len() as u64,
        folded: counted,
        by_subject: by_subject.iter().map(|(_, count)| count).sum(),
    };
    let total = totals(&stage.kernel.record_counts());
    assert_eq!((known.folded, known.by_subject), (total.folded, total.folded_by_subject), "taken as folded");
    assert_eq!(total.made, known.recorded + total.folded + total.folded_by_subject + total.lost);
    known
}

/// Losses of flows. Of cgroups that are nested beyond all reason every agent is told, and another test makes some.
fn losses(stage: &Stage) -> Vec<Loss> {
    let losses = stage.kernel.losses().into_iter();
    losses.filter(|loss| !loss.cause.starts_with("cgroup")).collect()
}

/// The sum of what became of flows.
fn totals(counts: &[RecordCount]) -> RecordCount {
    counts.iter().filter(|of| !of.kind.starts_with("cgroup")).fold(RecordCount::default(), |sum, of| {
        RecordCount {
            made: sum.made + of.made,
            folded: sum.folded + of.folded,
            folded_by_subject: sum.folded_by_subject + of.folded_by_subject,
            lost: sum.lost + of.lost,
            ..sum
        }
    })
}

fn refused(port: u16) {
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
}

/// Established and accepted, refused, and datagrams from ever new sockets: `times` each.
fn burst(times: usize) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:8080")?;
    let server = UdpSocket::bind("127.0.0.1:5353")?;
    for _ in 0..times {
        let _client = TcpStream::connect("127.0.0.1:8080")?;
        listener.accept()?;
        refused(9);
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.send_to(b"x", "127.0.0.1:5353")?;
        server.recv_from(&mut [0; 1])?;
    }
    Ok(())
}

#[test]
fn a_burst_in_a_full_ring_is_known_by_key_to_the_unit() {
    if !ready() {
        return;
    }
    const TIMES: usize = 1_000;
    let mut stage = Stage::with_ring(4096);
    let pod = stage.pod("burst");
    stage.drain();
    pod.run(|| burst(TIMES));
    assert!((4..20).contains(&stage.kernel.folded_keys()), "{} keys", stage.kernel.folded_keys());
    let known = take(&mut stage, &pod);
    assert!(known.recorded > 0 && known.recorded < 40, "{} recorded", known.recorded);
    // The server's records are of one client address, told once an interval.
    let times = TIMES as u64;
    for (end, count) in [
        ((Direction::Egress, Outcome::Established, 8080), times),
        ((Direction::Ingress, Outcome::Accepted, 8080), times),
        ((Direction::Egress, Outcome::Refused, 9), times),
        ((Direction::Egress, Outcome::Sent, 5353), times),
        ((Direction::Ingress, Outcome::Received, 5353), 1),
    ] {
        assert_eq!(known.flows.get(&end), Some(&count), "{end:?} of {:?}", known.flows);
    }
    assert_eq!(losses(&stage), []);
    assert_eq!(stage.kernel.folded_keys(), 0);
    stage.kernel.take_folded(&mut |event| panic!("{event:?} a second time")).unwrap();
}

#[test]
fn a_fold_tells_who_with_whom_when_and_how_long() {
    if !ready() {
        return;
    }
    let mut stage = Stage::with_ring(4096);
    let pod = stage.pod("one");
    stage.drain();
    let before = stage.kernel.now();
    pod.run(|| {
        (0..100).for_each(|_| refused(9));
        Ok(())
    });
    let after = stage.kernel.now();
    let mut folds = Vec::new();
    stage.kernel.take_folded(&mut |event| folds.push(event)).unwrap();
    let [Event::Flow(seen)] = &folds[..] else { panic!("{folds:?}") };
    assert!(before <= seen.first() && seen.first() < seen.at && seen.at <= after, "{seen:?}");
    assert_eq!(seen.actor.cgroup, Some(pod.cgroup.id()));
    let to: SocketAddr = "127.0.0.1:9".parse().unwrap();
    assert_eq!((seen.local, seen.remote), ("127.0.0.1:0".parse().unwrap(), to));
    assert!(seen.answered && seen.waited > Duration::ZERO && seen.waited < Duration::from_millis(200));
}

#[test]
fn a_scan_beyond_all_room_folds_by_subject_and_then_is_lost_in_numbers() {
    if !ready() {
        return;
    }
    const PORTS: u16 = 3_000;
    let options = Options { ring_bytes: 4096, fold_keys: 64, fold_subjects: 1, ..Options::default() };
    let mut stage = Stage::with(Stage::root(), options);
    let (pod, other) = (stage.pod("scanner"), stage.pod("other"));
    stage.drain();
    pod.run(|| {
        (10_000..10_000 + PORTS).for_each(refused);
        Ok(())
    });
    // The only subject that there is room for is taken, and of kinds beside it nothing can be kept.
    other.run(|| {
        (10_000..10_000 + 500).for_each(refused);
        Ok(())
    });
    let total = totals(&stage.kernel.record_counts());
    assert_eq!((total.made, total.folded, total.lost), (u64::from(PORTS) + 500, 64, 500));
    let lost: Vec<_> = losses(&stage).into_iter().filter(|loss| loss.stage == "ring").collect();
    assert!(lost.iter().all(|loss| loss.cause == "tcp-closed"), "{lost:?}");
    assert_eq!(lost.iter().map(|loss| loss.count).sum::<u64>(), 500);
    let known = take(&mut stage, &pod);
    assert_eq!(known.flows.len() as u64, known.recorded + 64, "a key a port");
    assert!(known.flows.values().all(|count| *count == 1));
    assert_eq!(known.recorded + 64 + known.by_subject, u64::from(PORTS));
    // There is room again.
    pod.run(|| {
        (0..200).for_each(|_| refused(9));
        Ok(())
    });
    let total = totals(&stage.kernel.record_counts());
    assert_eq!((total.made, total.lost), (u64::from(PORTS) + 700, 500));
}

#[test]
fn nothing_is_counted_twice_or_never_while_programs_go_on_folding() {
    if !ready() {
        return;
    }
    const TIMES: usize = 15_000;
    let mut stage = Stage::with_ring(4096);
    let pods = [stage.pod("a"), stage.pod("b")];
    stage.drain();
    let running = pods.each_ref().map(|pod| {
        pod.start(|| {
            (0..TIMES).for_each(|_| refused(9));
            Ok(())
        })
    });
    // Again and again in the middle of it, and nobody drains.
    let mut known: HashMap<NetnsCookie, u64> = HashMap::new();
    let mut rounds = 0;
    let mut take = |stage: &mut Stage| {
        let sink = &mut |event| match event {
            Event::Flow(seen) => *known.entry(seen.netns).or_default() += seen.count(),
            other => panic!("{other:?}"),
        };
        stage.kernel.take_folded(sink).unwrap();
        rounds += 1;
    };
    while totals(&stage.kernel.record_counts()).made < 2 * TIMES as u64 {
        take(&mut stage);
    }
    running.into_iter().for_each(|running| running.finish());
    take(&mut stage);
    stage.drain();
    for pod in &pods {
        let recorded = stage.flows(pod).len() as u64;
        assert_eq!(known[&pod.netns] + recorded, TIMES as u64, "in {rounds} rounds");
    }
    assert!(rounds > 3, "{rounds} rounds");
}

#[test]
fn a_pending_attempt_that_finds_no_room_is_lost_and_its_outcome_is_not() {
    if !ready() {
        return;
    }
    let mut stage = Stage::with_ring(4096);
    let (a, b) = (stage.pod("a"), stage.pod("b"));
    a.join(&b);
    a.sysctl("ipv4/tcp_syn_retries", "1");
    a.ip("route add 10.66.0.0/16 via 10.9.0.2");
    b.sysctl("ipv4/ip_forward", "1");
    b.ip("route add blackhole 10.66.0.0/16");
    stage.drain();
    a.run(|| {
        (0..100).for_each(|_| refused(9));
        assert!(TcpStream::connect("10.66.0.1:80").is_err());
        Ok(())
    });
    let known = take(&mut stage, &a);
    assert_eq!(known.flows.get(&(Direction::Egress, Outcome::Timeout, 80)), Some(&1), "{:?}", known.flows);
    let lost: Vec<_> = losses(&stage).iter().map(|loss| (loss.cause, loss.count)).collect();
    assert_eq!(lost, [("tcp-pending", 1)]);
}
