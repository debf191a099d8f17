//! Agents that see a part of the cgroup hierarchy only, since their node is a container itself, as with kind and k3d.
//!
//! What a test mounts, it mounts in a process of its own, in a mount namespace that ends with it.

use std::{
    collections::HashSet,
    ffi::CString,
    fs,
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use netaudit::{
    kernel::{Event, Kernel, LoadError, Options},
    model::{CgroupId, NetnsCookie, Observation, Outcome},
};

use super::pods::{Pod, Stage, cgroup_mount, check, path_of, ready};

#[test]
fn two_nodes_on_one_kernel_see_their_own_part_each() {
    if !ready() {
        return;
    }
    let root = Stage::root();
    let nodes = [Pod::new(&root, "one"), Pod::new(&root, "two")];
    let directories = nodes.each_ref().map(|_| tempfile::tempdir().unwrap());
    let mut running = Vec::new();
    let mut controls = Vec::new();
    for (node, directory) in nodes.iter().zip(&directories) {
        let (control, mut end) = UnixStream::pair().unwrap();
        control.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        running.push(node.start(|| {
            run_node(directory.path(), node.netns, &mut || {
                end.write_all(b"x")?;
                end.read_exact(&mut [0])
            })
        }));
        controls.push(control);
    }
    // Each waits for the other when it watches, and again when it has done what the other must not see.
    let meet = |controls: &[UnixStream]| -> io::Result<()> {
        controls.iter().try_for_each(|mut control| control.read_exact(&mut [0]))?;
        controls.iter().try_for_each(|mut control| control.write_all(b"x"))
    };
    // Where one has failed, which it told itself, the other is killed on the way out.
    meet(&controls).and_then(|()| meet(&controls)).expect("both nodes meet");
    running.into_iter().for_each(|node| node.finish());
}

/// A node and its agent, in a process that is in the node's cgroup and network namespace.
fn run_node(
    directory: &Path,
    netns: NetnsCookie,
    meet: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<()> {
    // What the agent's container was given for itself comes first among the mounts, and is not what counts.
    let (host, own) = (directory.join("host/cgroup"), directory.join("own"));
    become_private()?;
    hide_mounts()?;
    mount_own(&host)?;
    let server = TcpListener::bind("127.0.0.1:8080")?;
    let pods = host.join("kubepods");
    let agent = pods.join("agent");
    fs::create_dir_all(&agent)?;
    enter(&agent)?;
    become_private()?;
    mount_own(&own)?;

    let mut kernel = Kernel::load(&Options::default()).map_err(io::Error::other)?;
    assert_eq!((kernel.cgroup_root(), kernel.cgroup_mount()), (&*host, &*host));
    let scanned = kernel.scan().map_err(io::Error::other)?;
    let listed: Vec<_> = scanned.iter().filter_map(born).collect();
    let expected = [(&host, "/"), (&pods, "/kubepods"), (&agent, "/kubepods/agent")];
    assert_eq!(listed.len(), expected.len(), "{listed:?}");
    for (directory, path) in expected {
        assert!(listed.contains(&(id_of(directory)?, path.to_owned())), "{path} is not in {listed:?}");
    }
    let tasks: Vec<_> = scanned.iter().filter(|event| matches!(event, Event::Task { .. })).collect();
    // This process, and the one that holds the node's namespace.
    assert_eq!(tasks.len(), 2, "{tasks:?}");
    let me = Event::Task { netns, cgroup: id_of(&agent)?, pid: std::process::id() };
    assert!(tasks.contains(&&me), "{me:?} is not in {tasks:?}");
    assert!(
        tasks.iter().all(|task| matches!(task, Event::Task { netns: of, .. } if *of == netns)),
        "{tasks:?}"
    );
    meet()?;

    // Pods that live for an instant, each with the cgroups of its containers and what those make.
    let mut made = Vec::new();
    for number in 0..20 {
        let mut chain = vec![pods.join(format!("pod{number}"))];
        for name in ["container", "child", "grandchild"] {
            chain.push(chain[chain.len() - 1].join(name));
        }
        for directory in &chain {
            fs::create_dir(directory)?;
            made.push((id_of(directory)?, path_from(&host, directory)));
        }
        chain.iter().rev().try_for_each(fs::remove_dir)?;
    }
    let container = pods.join("burstable/pod-of-its-own/container");
    fs::create_dir_all(&container)?;
    for directory in container.ancestors().take(3) {
        made.push((id_of(directory)?, path_from(&host, directory)));
    }
    enter(&container)?;
    let _client = TcpStream::connect("127.0.0.1:8080")?;
    server.accept()?;
    let resolver = UdpSocket::bind("127.0.0.1:0")?;
    resolver.connect("127.0.0.1:53")?;
    resolver.send(b"question")?;
    meet()?;

    let events = drain(&mut kernel);
    let told: Vec<_> = events.iter().filter_map(born).collect();
    let gone: HashSet<_> = events.iter().filter_map(gone).collect();
    assert_eq!(told.len(), made.len(), "{told:?}");
    for cgroup in &made {
        assert!(told.contains(cgroup), "{cgroup:?} is not in {told:?}");
    }
    let short_lived: HashSet<_> = made[..made.len() - 3].iter().map(|(id, _)| *id).collect();
    assert_eq!(gone, short_lived);

    let flows: Vec<_> = events.iter().filter_map(flow).collect();
    assert!(flows.iter().all(|flow| flow.netns == netns), "{flows:#?}");
    let actor_of = |outcome: Outcome| {
        let mut of = flows.iter().filter(|flow| flow.outcome == outcome).map(|flow| flow.actor);
        let (only, more) = (of.next(), of.next());
        assert!(only.is_some() && more.is_none(), "one flow with outcome {outcome:?}: {flows:#?}");
        only.map(|actor| (actor.cgroup, actor.pid)).unwrap_or_default()
    };
    let me = std::process::id();
    assert_eq!(flows.len(), 3, "{flows:#?}");
    assert_eq!(actor_of(Outcome::Established), (Some(id_of(&container)?), me));
    assert_eq!(actor_of(Outcome::Sent), (Some(id_of(&container)?), me));
    // It listened before the agent came, when this process was the agent's.
    assert_eq!(actor_of(Outcome::Accepted), (Some(id_of(&agent)?), me));
    assert_eq!((kernel.losses(), kernel.undecodable()), (vec![], 0));
    Ok(())
}

#[test]
fn in_a_cgroup_namespace_the_whole_is_found() {
    if !ready() {
        return;
    }
    let stage = Stage::new();
    let pod = stage.pod("private");
    let (mount, own) = (cgroup_mount(), tempfile::tempdir().unwrap());
    let (id, path) = (pod.cgroup.id(), path_of(&pod.cgroup.path));
    let root = stage.kernel.cgroup_root().to_owned();
    pod.run(|| {
        become_private()?;
        mount_own(own.path())?;
        // As a node would look like, which is no reason to take it.
        fs::create_dir(own.path().join("kubepods"))?;
        let line = |at: &Path| -> io::Result<String> {
            let mounts = fs::read_to_string("/proc/self/mountinfo")?;
            let shown = |line: &&str| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == at);
            Ok(mounts.lines().rfind(shown).unwrap_or_default().to_owned())
        };
        assert!(line(own.path())?.contains(" / "), "the part looks like all there is");
        assert_eq!(id_of(own.path())?, id, "and is the pod");

        for root in [None, Some(root)] {
            let options = Options { cgroup_root: root.clone(), ..Options::default() };
            let mut kernel = Kernel::load(&options).map_err(io::Error::other)?;
            let expected = root.as_deref().unwrap_or(&mount);
            assert_eq!((kernel.cgroup_root(), kernel.cgroup_mount()), (expected, &*mount));
            let scanned = kernel.scan().map_err(io::Error::other)?;
            assert!(scanned.contains(&Event::Cgroup { id, path: path.clone(), made: None }), "{scanned:#?}");
            // What is made is told by the same path, wherever it was made.
            let child = own.path().join("child");
            fs::create_dir(&child)?;
            let id = id_of(&child)?;
            fs::remove_dir(&child)?;
            let events = drain(&mut kernel);
            let child = (id, format!("{path}/child"));
            assert!(events.iter().filter_map(born).any(|born| born == child), "{events:#?}");
            assert!(events.iter().filter_map(gone).any(|gone| gone == id), "{events:#?}");
        }
        Ok(())
    });
}

#[test]
fn a_part_without_a_node_is_refused_unless_it_is_asked_for() {
    if !ready() {
        return;
    }
    let root = Stage::root();
    let pod = Pod::new(&root, "private");
    let own = tempfile::tempdir().unwrap();
    let id = pod.cgroup.id();
    pod.run(|| {
        become_private()?;
        hide_mounts()?;
        mount_own(own.path())?;
        match Kernel::load(&Options::default()) {
            Err(error @ LoadError::PartOfCgroup2 { .. }) => {
                let text = error.to_string();
                for said in [&*own.path().display().to_string(), "kubepods", "hostPath", "cgroup_root"] {
                    assert!(text.contains(said), "{said} is not in: {text}");
                }
            }
            Err(error) => return Err(io::Error::other(error)),
            Ok(_) => return Err(io::Error::other("it loaded")),
        }

        let below = own.path().join("below");
        fs::create_dir(&below)?;
        for (root, prefix) in [(own.path(), ""), (&below, "/below")] {
            let options = Options { cgroup_root: Some(root.to_owned()), ..Options::default() };
            let mut kernel = Kernel::load(&options).map_err(io::Error::other)?;
            assert_eq!((kernel.cgroup_root(), kernel.cgroup_mount()), (root, own.path()));
            let scanned = kernel.scan().map_err(io::Error::other)?;
            assert!(scanned.contains(&Event::Cgroup {
                id: id_of(&below)?,
                path: "/below".to_owned(),
                made: None
            }));
            let root_is_listed = scanned.contains(&Event::Cgroup { id, path: "/".to_owned(), made: None });
            assert_eq!(root_is_listed, root == own.path(), "{scanned:#?}");
            let (child, outside) = (root.join("child"), own.path().join("belo"));
            fs::create_dir(&child)?;
            fs::create_dir(&outside)?;
            let made = (id_of(&child)?, format!("{prefix}/child"));
            let other = (id_of(&outside)?, "/belo".to_owned());
            fs::remove_dir(&child)?;
            fs::remove_dir(&outside)?;
            let told: Vec<_> = drain(&mut kernel).iter().filter_map(born).collect();
            let expected = if root == own.path() { vec![made, other] } else { vec![made] };
            assert_eq!(told, expected);
        }
        Ok(())
    });
}

#[test]
fn cgroups_nested_beyond_all_reason_are_counted() {
    if !ready() {
        return;
    }
    // The programs climb as many levels.
    const TOLD: usize = 127;
    let mut stage = Stage::new();
    let root = stage.kernel.cgroup_root().to_owned();
    let mut directory = root.clone();
    let mut made = Vec::new();
    for _ in 0..TOLD + 3 {
        directory.push("x");
        fs::create_dir(&directory).unwrap();
        made.push((id_of(&directory).unwrap(), path_of(&directory)));
    }
    let told: Vec<_> = drain(&mut stage.kernel).iter().filter_map(born).collect();
    assert_eq!(told, made[..TOLD]);
    assert_eq!(stage.kernel.undecodable(), 3);
}

/// Gives this process mounts of its own, and a cgroup namespace that begins at the cgroup that it is in.
fn become_private() -> io::Result<()> {
    // SAFETY: plain system calls; the path ends with a zero.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWCGROUP | libc::CLONE_NEWNS))?;
        let null = std::ptr::null();
        check(libc::mount(null, c"/".as_ptr(), null, libc::MS_REC | libc::MS_PRIVATE, null.cast()))
    }
}

/// Mounts what this process's cgroup namespace shows, as a container runtime does.
fn mount_own(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let path = c_string(directory)?;
    let kind = c"cgroup2".as_ptr();
    // SAFETY: a plain system call; the strings end with a zero.
    check(unsafe { libc::mount(kind, path.as_ptr(), kind, 0, std::ptr::null()) })
}

/// Takes every mount of cgroup v2 away from this process, which has mounts of its own.
fn hide_mounts() -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let points = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let points: Vec<_> = points.filter(|line| line.get(2) == Some(&"cgroup2")).map(|line| line[1]).collect();
    for point in points.into_iter().rev() {
        let path = c_string(Path::new(point))?;
        // SAFETY: a plain system call; the path ends with a zero.
        check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) })?;
    }
    Ok(())
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_encoded_bytes())?)
}

/// Moves this process into a cgroup.
fn enter(cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0")
}

fn id_of(cgroup: &Path) -> io::Result<CgroupId> {
    Ok(CgroupId(fs::metadata(cgroup)?.ino()))
}

fn path_from(mount: &Path, directory: &Path) -> String {
    let below: PathBuf = directory.strip_prefix(mount).unwrap().into();
    format!("/{}", below.display())
}

fn drain(kernel: &mut Kernel) -> Vec<Event> {
    // What a soft interrupt does for a connection may end after the system call.
    std::thread::sleep(Duration::from_millis(50));
    let mut events = Vec::new();
    while kernel.drain(1024, &mut |event| events.push(event)) > 0 {}
    events
}

fn born(event: &Event) -> Option<(CgroupId, String)> {
    match event {
        Event::Cgroup { id, path, .. } => Some((*id, path.clone())),
        _ => None,
    }
}

fn gone(event: &Event) -> Option<CgroupId> {
    match event {
        Event::CgroupGone { id, .. } => Some(*id),
        _ => None,
    }
}

fn flow(event: &Event) -> Option<Observation> {
    match event {
        Event::Flow(flow) => Some(*flow),
        _ => None,
    }
}
