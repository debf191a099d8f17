//! Other programs that rewrite addresses at `connect`, as socket load balancers do: attached before ours, after it, and to the
//! pod's own cgroup.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

use netaudit::model::Outcome;

use super::pods::{Pod, Stage, ready};

const SERVICE: [&str; 2] = ["10.9.0.77:80", "[fd09::77]:80"];
const BACKEND: [&str; 2] = ["10.9.0.2:8080", "[fd09::2]:8080"];

/// One instruction.
fn instruction(code: u8, registers: u8, offset: i16, immediate: u32) -> u64 {
    u64::from(code) | u64::from(registers) << 8 | u64::from(offset as u16) << 16 | u64::from(immediate) << 32
}

/// A program that turns a Service's address and port into a backend's: `family` is 0 for v4, 1 for v6.
fn program(family: usize) -> io::Result<OwnedFd> {
    const LOAD: u8 = 0x61;
    const STORE: u8 = 0x63;
    const MOVE: u8 = 0xb4;
    const JUMP_UNLESS_EQUAL: u8 = 0x56;
    const EXIT: u8 = 0x95;
    const USER_PORT: i16 = 24;
    let word = |address: &str| {
        let address: SocketAddr = address.parse().unwrap();
        let word = match address {
            // All of it.
            SocketAddr::V4(address) => u32::from_ne_bytes(address.ip().octets()),
            // The last of four, in which alone the two differ.
            SocketAddr::V6(address) => {
                u32::from_ne_bytes(*address.ip().octets().last_chunk().expect("sixteen"))
            }
        };
        (word, u32::from(address.port().to_be()))
    };
    let at: i16 = [4, 20][family];
    let (service, _) = word(SERVICE[family]);
    let (backend, port) = word(BACKEND[family]);
    // Register 1 is the context, 2 a word, 0 the answer.
    let code = [
        instruction(LOAD, 0x12, at, 0),
        instruction(JUMP_UNLESS_EQUAL, 0x02, 4, service),
        instruction(MOVE, 0x02, 0, backend),
        instruction(STORE, 0x21, at, 0),
        instruction(MOVE, 0x02, 0, port),
        instruction(STORE, 0x21, USER_PORT, 0),
        instruction(MOVE, 0x00, 0, 1),
        instruction(EXIT, 0, 0, 0),
    ];
    #[repr(C)]
    struct Load {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        attach_type: u32,
    }
    const CGROUP_SOCK_ADDR: u32 = 18;
    let attributes = Load {
        kind: CGROUP_SOCK_ADDR,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
        name: *b"rewriter\0\0\0\0\0\0\0\0",
        interface: 0,
        attach_type: attach_type(family),
    };
    bpf(5, &attributes)
}

/// `BPF_CGROUP_INET4_CONNECT` and the one for v6.
fn attach_type(family: usize) -> u32 {
    [10, 11][family]
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the callers' attributes are those of the command; the kernel reads no more than the size.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both commands return a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

/// Attaches rewriters of both families to a cgroup for as long as what is returned is open.
fn rewrite_at(cgroup: &Path) -> Vec<OwnedFd> {
    #[repr(C)]
    struct Link {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
    }
    let cgroup = File::open(cgroup).unwrap();
    let link = |family| {
        let program = program(family).unwrap();
        let target = cgroup.as_raw_fd() as u32;
        let attributes =
            Link { program: program.as_raw_fd() as u32, target, attach_type: attach_type(family), flags: 0 };
        bpf(28, &attributes).unwrap()
    };
    [0, 1].map(link).into()
}

/// Whether this kernel lets a program come first: ours then sees what was asked for whoever was attached before.
fn can_come_first() -> bool {
    let release = rustix::system::uname();
    let mut parts =
        release.release().to_str().unwrap().split(['.', '-']).map(|part| part.parse::<u32>().ok());
    let version = (parts.next().flatten().unwrap_or(0), parts.next().flatten().unwrap_or(0));
    version >= (6, 16)
}

/// What the pod does: a connection and a question by a connected socket to the Service, of both families.
fn use_service(pod: &Pod) {
    pod.run(|| {
        for service in SERVICE {
            TcpStream::connect(service)?.read_exact(&mut [0])?;
            let socket = UdpSocket::bind(if service.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" })?;
            socket.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
            socket.connect(service)?;
            socket.send(b"q")?;
            socket.recv_from(&mut [0])?;
        }
        Ok(())
    });
}

fn serve(pod: &Pod) -> super::pods::Running {
    let (mut parent, child) = std::os::unix::net::UnixStream::pair().unwrap();
    let running = pod.start(|| {
        let listener = TcpListener::bind("[::]:8080")?;
        let socket = UdpSocket::bind("[::]:8080")?;
        (&child).write_all(b"x")?;
        for _ in 0..2 {
            listener.accept()?.0.write_all(b"x")?;
            let mut bytes = [0; 9];
            let (length, from) = socket.recv_from(&mut bytes)?;
            socket.send_to(&bytes[..length], from)?;
        }
        Ok(())
    });
    parent.read_exact(&mut [0]).unwrap();
    running
}

#[test]
fn both_addresses_are_told_whoever_rewrites_them_and_when() {
    if !ready() {
        return;
    }
    for order in ["before", "after", "in the pod's own cgroup"] {
        let root = Stage::root();
        let (a, b) = (Pod::new(&root, "a"), Pod::new(&root, "b"));
        a.join(&b);
        let path = root.path.clone();
        let mut rewriters = Vec::new();
        if order == "before" {
            rewriters = rewrite_at(&path);
        }
        let mut stage = Stage::attach(root);
        match order {
            "before" => {}
            "after" => rewriters = rewrite_at(&path),
            _ => rewriters = rewrite_at(&a.cgroup.path),
        }
        let server = serve(&b);
        use_service(&a);
        server.finish();
        let flows = stage.expect(&a, 4);
        for (flow, (service, backend)) in
            flows.iter().zip(SERVICE.iter().zip(BACKEND).flat_map(|pair| [pair, pair]))
        {
            assert_eq!(flow.remote, backend.parse().unwrap(), "{order}: {flow:#?}");
            if order == "after" || can_come_first() {
                assert_eq!(flow.requested, Some(service.parse().unwrap()), "{order}: {flow:#?}");
            }
            assert!(matches!(flow.outcome, Outcome::Established | Outcome::Sent), "{order}: {flow:#?}");
        }
        let answers =
            stage.events.iter().filter(|event| matches!(event, netaudit::kernel::Event::Answer(_))).count();
        assert_eq!(answers, 2, "{order}: each question was answered");
        drop((rewriters, a, b));
    }
}
