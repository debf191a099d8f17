//! The loads: what a program in a pod does again and again, in a process of its own.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum as _;

/// A load that is measured.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Load {
    /// TCP connect, accept and close, both ends.
    Connect,
    /// TCP connect to a closed port.
    Refused,
    /// A UDP datagram there and one back, between the same two sockets.
    UdpRoundTrip,
    /// A UDP datagram there and one back from a new socket each time, as a resolver does.
    UdpNewSocket,
    /// A question to a DNS server on port 53 and its answer, between the same two sockets.
    Dns,
    /// The other end of a burst: accepts until it is killed.
    Serve,
    /// TCP connections to a server elsewhere, one after the other.
    Burst,
    /// TCP connects to every other port of its address than the server's.
    Scan,
}

/// Each load, and how often a round repeats it.
pub const LOADS: [(Load, u32); 4] = [
    (Load::Connect, 4_000),
    (Load::Refused, 8_000),
    (Load::UdpRoundTrip, 20_000),
    (Load::UdpNewSocket, 8_000),
];

/// The loads by which the cost of seeing DNS answers is measured: those themselves, and others' packets.
pub const LOADS_OF_NAMES: [(Load, u32); 3] =
    [(Load::Dns, 20_000), (Load::UdpRoundTrip, 20_000), (Load::Connect, 4_000)];

impl Load {
    /// Whether it makes TCP connections.
    pub fn is_tcp(self) -> bool {
        matches!(self, Self::Connect | Self::Refused)
    }

    /// The name that the command line knows it by.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// The load itself, in a process that [`overhead`](super::overhead) starts: prints the seconds that it took.
pub fn load(load: Load, count: u32, round: u8, to: Option<SocketAddr>) -> Result<()> {
    // Another address each round: the ports of the last one are still in TIME_WAIT.
    let ip = Ipv4Addr::new(127, 0, 1, round.wrapping_add(1).max(1));
    let seconds = match load {
        Load::Connect => connect(ip, count)?,
        Load::Refused => {
            let closed = TcpListener::bind((ip, 0))?.local_addr()?;
            timed(|| {
                (0..count).try_for_each(|_| match TcpStream::connect(closed) {
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
                    Err(error) => Err(error.into()),
                    Ok(_) => bail!("{closed} is not closed"),
                })
            })?
        }
        Load::Serve => return serve(to.context("no address")?),
        Load::Burst => burst(to.context("no address")?, count)?,
        Load::Scan => scan(to.context("no address")?)?,
        Load::UdpRoundTrip | Load::UdpNewSocket => {
            udp((ip, 0), count, matches!(load, Load::UdpNewSocket), b"ping")?
        }
        Load::Dns => udp((ip, 53), count, false, DNS_ANSWER)?,
    };
    println!("{seconds}");
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

fn connect(ip: Ipv4Addr, count: u32) -> Result<f64> {
    let listener = TcpListener::bind((ip, 0))?;
    let address = listener.local_addr()?;
    let server = thread::spawn(move || (0..count).try_for_each(|_| listener.accept().map(drop)));
    let seconds = timed(|| {
        for _ in 0..count {
            let mut stream = TcpStream::connect(address)?;
            // The server closes first; waiting for that keeps one connection at a time.
            stream.read_to_end(&mut Vec::new())?;
        }
        Ok(())
    })?;
    server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    Ok(seconds)
}

/// Resets each connection at once, so that no port is kept from the next by TIME_WAIT.
fn serve(at: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(at)?;
    let now = libc::linger { l_onoff: 1, l_linger: 0 };
    loop {
        let (connection, _) = listener.accept()?;
        // SAFETY: the option is as long as said.
        let result = unsafe {
            let length = size_of_val(&now) as libc::socklen_t;
            libc::setsockopt(
                connection.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const now).cast(),
                length,
            )
        };
        ensure!(result == 0, "SO_LINGER: {}", std::io::Error::last_os_error());
    }
}

fn burst(to: SocketAddr, count: u32) -> Result<f64> {
    timed(|| {
        for _ in 0..count {
            // The reset ends the read, or comes before `connect` has returned.
            match TcpStream::connect(to) {
                Ok(mut connection) => drop(connection.read(&mut [0])),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    })
}

fn scan(to: SocketAddr) -> Result<f64> {
    timed(|| {
        for port in (1..=u16::MAX).filter(|port| *port != to.port()) {
            match TcpStream::connect((to.ip(), port)) {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error.into()),
                Ok(_) => bail!("port {port} of {} is open", to.ip()),
            }
        }
        Ok(())
    })
}

/// What the DNS server answers, and is asked too, so that it has nothing to make: `connect.squareup.com`, two aliases and four
/// addresses, as one that stands behind a network of caches has.
const DNS_ANSWER: &[u8] = b"\x12\x34\x81\x80\0\x01\0\x06\0\0\0\0\x07connect\x08squareup\x03com\0\0\x01\0\x01\
    \xc0\x0c\0\x05\0\x01\0\0\x01\x2c\0\x0e\x07connect\x03cdn\xc0\x14\
    \xc0\x32\0\x05\0\x01\0\0\0\x3c\0\x07\x04edge\xc0\x3a\
    \xc0\x4c\0\x01\0\x01\0\0\0\x1e\0\x04\xcb\0\x71\x0a\
    \xc0\x4c\0\x01\0\x01\0\0\0\x1e\0\x04\xcb\0\x71\x0b\
    \xc0\x4c\0\x01\0\x01\0\0\0\x1e\0\x04\xcb\0\x71\x0c\
    \xc0\x4c\0\x01\0\x01\0\0\0\x1e\0\x04\xcb\0\x71\x0d";

fn udp((ip, port): (Ipv4Addr, u16), count: u32, new_socket: bool, data: &'static [u8]) -> Result<f64> {
    let server = UdpSocket::bind((ip, port))?;
    let address = server.local_addr()?;
    let echo = thread::spawn(move || -> std::io::Result<()> {
        let mut buffer = [0; 512];
        for _ in 0..count {
            let (length, from) = server.recv_from(&mut buffer)?;
            server.send_to(&buffer[..length], from)?;
        }
        Ok(())
    });
    let client = || -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind((ip, 0))?;
        socket.connect(address)?;
        Ok(socket)
    };
    let kept = client()?;
    let seconds = timed(|| {
        for _ in 0..count {
            let fresh = if new_socket { Some(client()?) } else { None };
            let socket = fresh.as_ref().unwrap_or(&kept);
            socket.send(data)?;
            socket.recv(&mut [0; 512])?;
        }
        Ok(())
    })?;
    echo.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    std::io::stdout().flush()?;
    Ok(seconds)
}
