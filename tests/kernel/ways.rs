//! The ways in which programs connect, each by system calls of its own.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
};

use super::{
    pods::{check, socket_of},
    tcp::{connect, raw},
};

/// How a program connects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// `connect` that returns when it is decided.
    Blocking,
    /// `connect` that returns at once; then `poll`, and the error is asked for.
    NonBlocking,
    /// `sendto` with `MSG_FASTOPEN`, without `connect`.
    FastOpen,
    /// `connect` after `TCP_FASTOPEN_CONNECT`, and the first `write`.
    FastOpenConnect,
    /// `connect` of a multipath socket.
    Multipath,
    /// By a ring, without any system call that names a socket.
    Ring,
}

impl Way {
    pub const ALL: [Self; 6] = [
        Self::Blocking,
        Self::NonBlocking,
        Self::FastOpen,
        Self::FastOpenConnect,
        Self::Multipath,
        Self::Ring,
    ];

    /// Those that this kernel offers. Says of each other one why it does not.
    pub fn offered() -> Vec<Self> {
        let refuses = |way: &Self| match way {
            Self::Multipath => socket_of(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).err(),
            Self::Ring => io_uring::IoUring::new(2).err(),
            _ => None,
        };
        Self::ALL
            .into_iter()
            .filter(|way| match refuses(way) {
                None => true,
                Some(error) => {
                    // The kernel's own word, so not one of those that may be demanded.
                    eprintln!("SKIPPED {way:?}: this kernel does not offer it: {error}");
                    false
                }
            })
            .collect()
    }

    /// Connects to `to` and stays until the other end closes; the error is the kernel's answer to the attempt.
    pub fn go(self, to: SocketAddr) -> io::Result<()> {
        match self.connect_and_stay(to) {
            // Only what was made is reset: the other end closed without having read.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            other => other,
        }
    }

    fn connect_and_stay(self, to: SocketAddr) -> io::Result<()> {
        let socket = self.socket(to, 0)?;
        match self {
            Self::Blocking | Self::Multipath => connect(&socket, to)?,
            Self::NonBlocking => {
                set_nonblocking(&socket)?;
                in_progress(connect(&socket, to))?;
                wait_until_writable(&socket)?;
                let stream = TcpStream::from(socket);
                return stream.take_error()?.map_or(Ok(()), Err);
            }
            Self::FastOpen => send_first(&socket, to, 0)?,
            Self::FastOpenConnect => {
                const TCP_FASTOPEN_CONNECT: i32 = 30;
                let on = 1_i32;
                // SAFETY: the option is an integer.
                check(unsafe {
                    libc::setsockopt(
                        socket.as_raw_fd(),
                        libc::IPPROTO_TCP,
                        TCP_FASTOPEN_CONNECT,
                        (&raw const on).cast(),
                        size_of::<i32>() as libc::socklen_t,
                    )
                })?;
                connect(&socket, to)?;
                let mut stream = TcpStream::from(socket);
                stream.write_all(b"x")?;
                return read_to_end(stream);
            }
            Self::Ring => connect_by_ring(&socket, to)?,
        }
        read_to_end(TcpStream::from(socket))
    }

    /// Begins to connect to `to`, and returns while nothing is decided.
    pub fn start(self, to: SocketAddr) -> io::Result<OwnedFd> {
        let socket = self.socket(to, libc::SOCK_NONBLOCK)?;
        let begun = match self {
            Self::FastOpen => send_first(&socket, to, libc::MSG_DONTWAIT),
            _ => connect(&socket, to),
        };
        in_progress(begun).map(|()| socket)
    }

    fn socket(self, to: SocketAddr, flags: i32) -> io::Result<OwnedFd> {
        let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let protocol = if self == Self::Multipath { libc::IPPROTO_MPTCP } else { 0 };
        socket_of(family, libc::SOCK_STREAM | flags, protocol)
    }
}

fn set_nonblocking(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: a plain system call.
    check(unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })
}

/// What it is that a socket that does not wait says of an attempt under way.
fn in_progress(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        other => other,
    }
}

fn wait_until_writable(socket: &OwnedFd) -> io::Result<()> {
    let mut waited = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one structure, as said.
    check(unsafe { libc::poll(&raw mut waited, 1, 60_000) })
}

pub fn send_first(socket: &OwnedFd, to: SocketAddr, flags: i32) -> io::Result<()> {
    let (storage, length) = raw(to);
    // SAFETY: the address and the byte are as long as said.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            b"x".as_ptr().cast(),
            1,
            libc::MSG_FASTOPEN | flags,
            (&raw const storage).cast(),
            length,
        )
    };
    check(sent as i32)
}

fn connect_by_ring(socket: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    use io_uring::{IoUring, opcode, types::Fd};

    let (storage, length) = raw(to);
    let mut ring = IoUring::new(2)?;
    let entry = opcode::Connect::new(Fd(socket.as_raw_fd()), (&raw const storage).cast(), length).build();
    // SAFETY: the address lives until the entry has been completed, below.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().ok_or_else(|| io::Error::other("the ring is empty"))?.result();
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

fn read_to_end(mut stream: TcpStream) -> io::Result<()> {
    stream.read_to_end(&mut Vec::new()).map(drop)
}
