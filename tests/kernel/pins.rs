//! What outlives an agent: programs, maps and records that the next one takes over.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{fs::MetadataExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use netaudit::{
    kernel::{self, Event, Feature, Kernel, LoadError, Options, PinError},
    model::{CgroupId, Observation, Outcome},
};

use crate::lab::BpfFs;

use super::pods::{Pod, Stage, check, path_of, ready, socket};

fn options(files: &BpfFs) -> Options {
    Options { ring_bytes: 1 << 20, pin_directory: Some(files.pins()), ..Options::default() }
}

/// The only generation that is pinned.
fn generation(files: &BpfFs) -> PathBuf {
    let only = |directory: &Path| {
        let found: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].clone()
    };
    only(&only(&files.pins()))
}

/// Makes `count` connections to itself, one after the other.
fn connect(count: usize) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:8080")?;
    for _ in 0..count {
        let _client = TcpStream::connect("127.0.0.1:8080")?;
        listener.accept()?;
    }
    Ok(())
}

/// Joins two pods, of which the second answers nothing from now on.
fn swallow(pod: &Pod, far: &Pod) {
    pod.join(far);
    far.command("nft", &["add", "table", "ip", "t"]);
    let hook = "{ type filter hook input priority 0; policy drop; }";
    far.command("nft", &["add", "chain", "ip", "t", "in", hook]);
}

/// Begins to connect to the second of two joined pods.
fn attempt() -> io::Result<OwnedFd> {
    let socket = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK)?;
    // A `sockaddr_in`: 10.9.0.2, port 9.
    let mut address = [0_u8; 16];
    address[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    address[2..8].copy_from_slice(&[0, 9, 10, 9, 0, 2]);
    // SAFETY: the address is as long as said.
    let result = unsafe { libc::connect(socket.as_raw_fd(), address.as_ptr().cast(), 16) };
    match check(result) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        other => Err(io::Error::other(format!("no attempt is under way: {other:?}"))),
    }
}

/// How often each attempt of `events` is told, by socket, attempt and outcome.
fn told(events: &[Event]) -> HashMap<(u64, u32, Outcome), usize> {
    let mut told = HashMap::new();
    for event in events {
        if let Event::Flow(Observation { socket, sequence, outcome, .. }) = event {
            *told.entry((*socket, *sequence, *outcome)).or_default() += 1;
        }
    }
    told
}

/// How many programs are attached to a cgroup.
fn programs(cgroup: &Path) -> u32 {
    const PROG_QUERY: i64 = 16;
    let directory = fs::File::open(cgroup).unwrap();
    let query = |kind: u32| {
        let mut attributes = [0_u32; 16];
        attributes[0] = directory.as_raw_fd() as u32;
        attributes[1] = kind;
        // SAFETY: the attributes are as long as said, and the kernel writes into them only.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, PROG_QUERY, attributes.as_mut_ptr(), size_of_val(&attributes))
        };
        if result == 0 { attributes[6] } else { 0 }
    };
    (0..64).map(query).sum()
}

/// Waits for `what`: the kernel frees what nobody holds a moment later.
fn eventually(what: impl Fn() -> bool) -> bool {
    (0..100).any(|_| {
        let is = what();
        if !is {
            std::thread::sleep(Duration::from_millis(20));
        }
        is
    })
}

#[test]
fn a_killed_run_leaves_its_records_to_the_next() {
    if !ready() {
        return;
    }
    let files = BpfFs::mount().unwrap();
    let mut stage = Stage::with(Stage::root(), options(&files));
    assert!(stage.kernel.is_pinned() && !stage.kernel.is_resumed());
    let pod = stage.pod("busy");
    pod.run(|| connect(10));
    stage.expect(&pod, 20);
    let done = stage.kernel.position();
    pod.run(|| connect(20));
    stage.expect(&pod, 60);
    // The first ten are done with; the next twenty have been read only.
    stage.kernel.release(done);
    let (root, _) = stage.kill();
    pod.run(|| connect(30));

    let mut stage = Stage::with(root, options(&files));
    assert!(stage.kernel.is_resumed());
    pod.run(|| connect(40));
    let flows = stage.expect(&pod, 2 * (20 + 30 + 40));
    assert!(told(&stage.events).values().all(|times| *times == 1), "{flows:#?}");
    assert_eq!(maybe_repeated(&flows), 2 * 20, "those that had been read");
    assert!(flows[..40].iter().all(|flow| flow.maybe_repeated));
    assert_eq!(stage.kernel.losses(), []);
    stage.kernel.release(stage.kernel.position());
    assert_eq!(stage.kernel.unreleased(), 0.0);
    let (root, _) = stage.kill();

    let mut stage = Stage::with(root, options(&files));
    stage.drain();
    assert_eq!(stage.flows(&pod), [], "all of them were released");
}

fn maybe_repeated(flows: &[Observation]) -> usize {
    flows.iter().filter(|flow| flow.maybe_repeated).count()
}

#[test]
fn what_a_run_had_read_stays_marked_for_all_that_come_after_and_for_another_version() {
    if !ready() {
        return;
    }
    let files = BpfFs::mount().unwrap();
    let mut stage = Stage::with(Stage::root(), options(&files));
    let pod = stage.pod("busy");
    pod.run(|| connect(10));
    assert_eq!(maybe_repeated(&stage.expect(&pod, 20)), 0);
    let (root, _) = stage.kill();
    pod.run(|| connect(10));
    // Killed before it has come as far as the one before it.
    let mut stage = Stage::with(root, options(&files));
    assert_eq!(stage.kernel.drain(5, &mut |_| {}), 5);
    let (root, _) = stage.kill();
    let newer = Options { ring_bytes: 2 << 20, overlap: Duration::from_secs(60), ..options(&files) };
    let mut stage = Stage::with(root, newer);
    assert!(!stage.kernel.is_resumed());
    let flows = stage.expect(&pod, 40);
    assert!(flows[..20].iter().all(|flow| flow.maybe_repeated), "{flows:#?}");
    assert_eq!(maybe_repeated(&flows), 20, "the others nobody has read");
    pod.run(|| connect(1));
    assert_eq!(maybe_repeated(&stage.expect(&pod, 42)), 20);
}

#[test]
fn the_state_of_sockets_outlives_a_run() {
    if !ready() {
        return;
    }
    let files = BpfFs::mount().unwrap();
    let stage = Stage::with(Stage::root(), options(&files));
    let pod = stage.pod("busy");
    let far = stage.pod("far");
    swallow(&pod, &far);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let client = pod.start(|| {
        let _open = attempt()?;
        let server = std::net::UdpSocket::bind("127.0.0.1:53")?;
        let client = std::net::UdpSocket::bind("127.0.0.1:0")?;
        client.send_to(b"?", "127.0.0.1:53")?;
        let (_, from) = server.recv_from(&mut [0; 16])?;
        (&theirs).write_all(b"x")?;
        (&theirs).read_exact(&mut [0])?;
        server.send_to(b"!", from)?;
        client.recv_from(&mut [0; 16]).map(drop)
    });
    ours.read_exact(&mut [0]).unwrap();
    let (root, _) = stage.kill();
    let mut stage = Stage::with(root, options(&files));
    ours.write_all(b"x").unwrap();
    client.finish();
    stage.wait(|events| told(events).keys().any(|(_, _, outcome)| *outcome == Outcome::Aborted));
    std::thread::sleep(Duration::from_millis(50));
    stage.drain();
    // On a slow machine the attempt is also told while it is open.
    let flows = stage.flows(&pod);
    let mut outcomes: Vec<_> =
        flows.iter().map(|flow| flow.outcome).filter(|outcome| *outcome != Outcome::Pending).collect();
    outcomes.sort();
    assert_eq!(outcomes, [Outcome::Aborted, Outcome::Sent, Outcome::Received], "the answer is no flow");
}

#[test]
fn cgroups_that_ended_meanwhile_are_still_named() {
    if !ready() {
        return;
    }
    let files = BpfFs::mount().unwrap();
    let mut stage = Stage::with(Stage::root(), options(&files));
    let container = stage.kernel.cgroup_root().join("pod/container");
    fs::create_dir_all(&container).unwrap();
    let id = CgroupId(fs::metadata(&container).unwrap().ino());
    stage.drain();
    stage.kernel.release(stage.kernel.position());
    let (root, _) = stage.kill();
    fs::remove_dir(&container).unwrap();

    let mut stage = Stage::with(root, options(&files));
    let scanned = stage.kernel.scan().unwrap();
    assert!(scanned.contains(&Event::Cgroup { id, path: path_of(&container), made: None }), "{scanned:#?}");
    stage.drain();
    assert!(
        stage.events.iter().any(|event| matches!(event, Event::CgroupGone { id: gone, .. } if *gone == id))
    );
}

#[test]
fn another_version_takes_over_without_a_gap_and_tells_nothing_twice() {
    if !ready() {
        return;
    }
    const CONNECTIONS: usize = 4_000;
    let files = BpfFs::mount().unwrap();
    let mut stage = Stage::with(Stage::root(), Options { ring_bytes: 4 << 20, ..options(&files) });
    let (pod, far) = (stage.pod("busy"), stage.pod("far"));
    swallow(&pod, &far);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let waiting = pod.start(|| {
        let _open = attempt()?;
        (&theirs).write_all(b"x")?;
        (&theirs).read_exact(&mut [0]).map(drop)
    });
    ours.read_exact(&mut [0]).unwrap();
    let busy = pod.start(|| connect(CONNECTIONS));
    stage.wait(|events| events.len() > 500);
    stage.kernel.release(stage.kernel.position());
    let (root, mut events) = stage.kill();

    // Other settings are as good as another object: their programs are other ones.
    let newer = Options { ring_bytes: 8 << 20, overlap: Duration::from_secs(2), ..options(&files) };
    let mut stage = Stage::with(root, newer);
    assert!(!stage.kernel.is_resumed());
    let both = programs(stage.kernel.cgroup_root());
    ours.write_all(b"x").unwrap();
    waiting.finish();
    busy.finish();
    stage.wait(|found| told(found).len() + events.len() > 2 * CONNECTIONS);
    std::thread::sleep(Duration::from_millis(2_500));
    stage.drain();
    events.append(&mut stage.events.clone());
    let told = told(&events);
    let count = |outcome| told.keys().filter(|(_, _, it)| *it == outcome).count();
    assert_eq!(count(Outcome::Established), CONNECTIONS);
    assert_eq!(count(Outcome::Accepted), CONNECTIONS);
    assert_eq!(count(Outcome::Aborted), 1, "what began before the upgrade ends after it");
    let twice: Vec<_> = told.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert_eq!(stage.kernel.losses(), []);

    // The former programs have ended by now.
    let root = stage.kernel.cgroup_root();
    assert!(eventually(|| both == 2 * programs(root)), "{both} programs became {}", programs(root));
    assert!(both > 0);
    generation(&files);
}

#[test]
fn records_of_another_version_are_counted() {
    if !ready() {
        return;
    }
    let files = BpfFs::mount().unwrap();
    let stage = Stage::with(Stage::root(), options(&files));
    let pod = stage.pod("busy");
    pod.run(|| connect(10));
    let (root, _) = stage.kill();
    let pinned = generation(&files);
    let hash = pinned.file_name().unwrap().to_str().unwrap().split_once('-').unwrap().1.to_owned();
    fs::rename(&pinned, pinned.with_file_name(format!("999-{hash}"))).unwrap();

    let mut stage = Stage::with(root, options(&files));
    assert!(!stage.kernel.is_resumed());
    // Ten connections seen from both ends, and the pod's cgroup.
    let losses = stage.kernel.losses();
    assert_eq!((losses[0].stage, losses[0].count, losses.len()), ("upgrade", 21, 1), "{losses:?}");
    pod.run(|| connect(5));
    stage.expect(&pod, 10);
    generation(&files);
}

#[test]
fn names_switched_on_or_off_are_another_generation() {
    if !ready() {
        return;
    }
    let files = BpfFs::mount().unwrap();
    let with = |dns_names| Options { dns_names, overlap: Duration::ZERO, ..options(&files) };
    let mut root = Stage::root();
    let mut attached = Vec::new();
    for (dns_names, resumed) in [(false, false), (true, false), (true, true), (false, false)] {
        let mut stage = Stage::with(root, with(dns_names));
        assert_eq!(stage.kernel.is_resumed(), resumed);
        stage.drain();
        // What was there before has ended with the drain.
        assert!(eventually(|| !generation(&files).to_string_lossy().contains("until")));
        assert_eq!(generation(&files).join("links/on_answer").exists(), dns_names);
        attached.push(programs(stage.kernel.cgroup_root()));
        (root, _) = stage.kill();
    }
    assert!(
        attached[1] == attached[0] + 1 && attached[2] == attached[1] && attached[3] == attached[0],
        "{attached:?}"
    );
    kernel::uninstall(&files.pins()).unwrap();
}

#[test]
fn one_agent_a_root_and_uninstall_waits_for_none() {
    if !ready() {
        return;
    }
    let files = BpfFs::mount().unwrap();
    let stage = Stage::with(Stage::root(), options(&files));
    let root = stage.kernel.cgroup_root().to_owned();
    let second = Kernel::load(&Options { cgroup_root: Some(root), ..options(&files) }).map(drop).unwrap_err();
    assert!(matches!(second, LoadError::Pins(PinError::InUse(_))), "{second}");
    let refused = kernel::uninstall(&files.pins()).unwrap_err();
    assert!(matches!(refused, PinError::InUse(_)), "{refused}");
    // Another root, as of another node on this kernel, is another matter.
    let other = Stage::with(Stage::root(), options(&files));
    assert!(other.kernel.is_pinned());
    let (other_root, _) = other.kill();

    let (root, _) = stage.kill();
    assert!(programs(&root.path) > 0 && programs(&other_root.path) > 0);
    let removed = kernel::uninstall(&files.pins()).unwrap();
    assert_eq!(removed.generations, 2);
    assert!(removed.links > 20 && removed.maps > 10, "{removed:?}");
    assert!(!files.pins().exists());
    assert!(eventually(|| programs(&root.path) + programs(&other_root.path) == 0), "programs stay attached");
    assert_eq!(kernel::uninstall(&files.pins()).unwrap(), kernel::Removed::default());
}

#[test]
fn what_was_left_half_done_is_removed() {
    if !ready() {
        return;
    }
    let files = BpfFs::mount().unwrap();
    let (root, _) = Stage::with(Stage::root(), options(&files)).kill();
    let pinned = generation(&files);
    let name = pinned.file_name().unwrap().to_str().unwrap().to_owned();
    fs::rename(&pinned, pinned.with_file_name(format!("{name}-partial"))).unwrap();
    let stage = Stage::with(root, options(&files));
    assert!(!stage.kernel.is_resumed());
    assert_eq!(generation(&files), pinned);
}

#[test]
fn every_map_and_program_is_pinned() {
    if !ready() {
        return;
    }
    let files = BpfFs::mount().unwrap();
    let stage = Stage::with(Stage::root(), Options { dns_names: true, ..options(&files) });
    let names = |directory: &str| -> Vec<String> {
        let entries = fs::read_dir(generation(&files).join(directory)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    // Iterators run when they are asked to, and one of two ways to see datagrams is taken.
    let idle = ["scan_tasks", "scan_files", "on_sending4", "on_sending6"];
    let programs = stage.kernel.programs();
    let missing: Vec<_> = programs
        .iter()
        .filter(|program| !idle.contains(&program.name.as_str()) && !names("links").contains(&program.name))
        .collect();
    assert!(missing.is_empty(), "not pinned: {missing:?}");
    // Loading fails where a map is not.
    assert!(names("maps").contains(&"SOCKETS".to_owned()));
}

#[test]
fn without_a_bpf_file_system_it_says_so_and_works() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let options = Options { pin_directory: Some(directory.path().join("pins")), ..Options::default() };
    let mut stage = Stage::with(Stage::root(), options);
    let feature = stage.kernel.features().iter().find(|feature| feature.name == Feature::PINS).unwrap();
    let absent = feature.absent.as_deref().unwrap();
    assert!(absent.contains("mount -t bpf"), "{absent}");
    assert!(!stage.kernel.is_pinned());
    let pod = stage.pod("busy");
    pod.run(|| connect(1));
    stage.expect(&pod, 2);
    let refused = kernel::uninstall(&directory.path().join("pins")).unwrap_err();
    assert!(matches!(refused, PinError::NotBpf(_)), "{refused}");
}
