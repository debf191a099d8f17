//! Connections to be found open: made in pods by sockets of every kind, and held by their processes.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use netaudit::model::OpenConnection;
use rustix::net::{accept, bind, connect, listen, sockopt};

use super::pods::{Pod, Running, Stage, check, socket, socket_of};

/// What a look finds of a pod's connections.
pub fn look(stage: &mut Stage, pod: &Pod) -> Vec<OpenConnection> {
    let mut found = Vec::new();
    let look = stage.kernel.look().unwrap().expect("this kernel can look");
    look.take_all(&mut |it| found.extend(it.connection())).unwrap();
    found.retain(|it| it.seen.netns == pod.netns);
    found
}

/// How a socket is made.
#[derive(Clone, Copy)]
pub struct Ways {
    /// Where it is bound, if it is.
    pub bound: Option<&'static str>,
    /// `listen`'s argument.
    pub backlog: i32,
    pub reuse_address: bool,
    pub reuse_port: bool,
    pub device: Option<&'static str>,
    /// `IP_BIND_ADDRESS_NO_PORT`: the port is chosen by `connect`.
    pub late_port: bool,
    /// A multipath socket.
    pub multipath: bool,
}

impl Ways {
    pub const PLAIN: Self = Self {
        bound: None,
        backlog: 16,
        reuse_address: false,
        reuse_port: false,
        device: None,
        late_port: false,
        multipath: false,
    };

    pub const fn at(bound: &'static str) -> Self {
        Self { bound: Some(bound), ..Self::PLAIN }
    }

    fn socket(&self, family: i32) -> io::Result<OwnedFd> {
        const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
        let protocol = if self.multipath { 262 } else { 0 };
        let made = socket_of(family, libc::SOCK_STREAM, protocol)?;
        sockopt::set_socket_reuseaddr(&made, self.reuse_address)?;
        if self.reuse_port {
            sockopt::set_socket_reuseport(&made, true)?;
        }
        if let Some(device) = self.device {
            set(&made, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, device.as_bytes())?;
        }
        if self.late_port {
            set(&made, libc::SOL_IP, IP_BIND_ADDRESS_NO_PORT, &1_i32.to_ne_bytes())?;
        }
        if let Some(bound) = self.bound {
            bind(&made, &address(bound))?;
        }
        Ok(made)
    }

    pub fn listen(&self) -> io::Result<OwnedFd> {
        let bound = address(self.bound.expect("a listener is bound"));
        let made = self.socket(family(bound))?;
        listen(&made, self.backlog)?;
        Ok(made)
    }

    pub fn connect(&self, to: &str) -> io::Result<OwnedFd> {
        let made = self.socket(family(address(to)))?;
        connect(&made, &address(to))?;
        Ok(made)
    }
}

fn set(socket: &OwnedFd, level: i32, option: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: the value is as long as said.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), value.len() as u32)
    })
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is no address"))
}

fn family(address: SocketAddr) -> i32 {
    match address.ip() {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    }
}

/// Undoes a socket's connection, or its listening.
pub fn disconnect(socket: &OwnedFd) -> io::Result<()> {
    let unspecified = [0_u8; 16];
    // SAFETY: the address is as long as said.
    check(unsafe { libc::connect(socket.as_raw_fd(), unspecified.as_ptr().cast(), 16) })
}

/// Whether a socket that has listened may connect. Kernels since some time in 2026 refuse it; says so then, as there is nothing to see.
pub fn listeners_may_connect(what: &str) -> bool {
    let tried = || -> io::Result<()> {
        let to = std::net::TcpListener::bind("127.0.0.1:0")?;
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM)?;
        listen(&socket, 5)?;
        disconnect(&socket)?;
        Ok(connect(&socket, &to.local_addr()?)?)
    };
    let refused = tried().err();
    if let Some(error) = &refused {
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{error}");
        eprintln!("SKIPPED {what}: this kernel lets no socket connect that has listened");
    }
    refused.is_none()
}

/// A process that has done something, and does nothing more until it is told to go on.
pub struct Held {
    process: Running,
    line: UnixStream,
}

impl Held {
    pub fn pid(&self) -> u32 {
        self.process.pid as u32
    }

    /// Lets it go on, and returns when that is done.
    pub fn next(&mut self) {
        self.go_on();
        self.wait();
    }

    /// Lets it go on.
    pub fn go_on(&mut self) {
        self.line.write_all(b"x").unwrap();
    }

    /// Returns when it has done what it was to go on with.
    pub fn wait(&mut self) {
        self.line.read_exact(&mut [0]).unwrap();
    }
}

/// Where a held process says what it has done, and waits.
pub struct Line(UnixStream);

impl Line {
    /// Done; waits until the test lets it go on.
    pub fn done(&mut self) -> io::Result<()> {
        self.0.write_all(b"x")?;
        self.0.read_exact(&mut [0])
    }
}

/// Runs `act` in the pod, which keeps what it returns until the guard goes. Returns when that is there.
pub fn hold<T>(pod: &Pod, act: impl FnOnce(&mut Line) -> io::Result<T>) -> Held {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let process = pod.start(|| {
        let mut line = Line(theirs);
        let _kept = act(&mut line)?;
        line.0.write_all(b"x")?;
        std::thread::sleep(Duration::from_secs(600));
        Ok(())
    });
    ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    ours.read_exact(&mut [0]).expect("the process comes to its point");
    Held { process, line: ours }
}

/// A server that has accepted `count` connections, which keeps them and, if so asked, its listener.
pub fn serve(pod: &Pod, ways: Ways, count: usize, keep_listener: bool) -> Held {
    hold(pod, |line| {
        let listener = ways.listen()?;
        line.done()?;
        let mut accepted = Vec::new();
        for _ in 0..count {
            accepted.push(accept(&listener)?);
        }
        Ok((accepted, keep_listener.then_some(listener)))
    })
}

/// A connection between two pods, or within one: the client's process and the server's.
pub fn pair(client: &Pod, server: &Pod, listens: Ways, connects: Ways, to: &str) -> (Held, Held) {
    let mut accepts = serve(server, listens, 1, true);
    let connected = hold(client, |_| connects.connect(to));
    accepts.next();
    (connected, accepts)
}

/// A plain datagram socket.
pub fn datagrams(family: i32) -> io::Result<OwnedFd> {
    socket(family, libc::SOCK_DGRAM)
}
