//! UDP sockets whose program reads without asking who sent: nobody sees who uses them, so a look tells that.

use std::{io, net::UdpSocket, os::fd::AsRawFd as _};

use netaudit::model::{Comm, OpenSocket};

use super::{
    open_sockets::{Held, Line, hold},
    pods::{Pod, Stage, check, ready},
};

const DATAGRAM: &[u8] = b"hello";

/// `read`, which has no place for an address.
fn read(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0_u8; 64];
    // SAFETY: the buffer is as long as said.
    let length = unsafe { libc::read(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    check(if length < 0 { -1 } else { 0 })
}

/// Sends a datagram to each address, as a client does.
fn send(pod: &Pod, addresses: &[&str]) {
    pod.run(|| {
        for address in addresses {
            let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            UdpSocket::bind(any)?.send_to(DATAGRAM, address)?;
        }
        Ok(())
    });
}

/// The ports of such sockets of a pod, in order.
fn look(stage: &mut Stage, pod: &Pod) -> Vec<u16> {
    let mut found = Vec::new();
    let look = stage.kernel.look().unwrap().expect("this kernel can look");
    look.take_all(&mut |it| {
        if let OpenSocket::BlindReader(reader) = it {
            found.push(reader);
        }
    })
    .unwrap();
    found.retain(|it| it.netns == pod.netns);
    for reader in &found {
        assert!(reader.socket != 0 && reader.actor.pid != 0 && reader.actor.comm != Comm::default());
    }
    let mut ports: Vec<u16> = found.iter().map(|it| it.local.port()).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Sockets in a pod that were bound at these addresses and are read by `act` once the line goes on.
fn server(pod: &Pod, addresses: &[&str], act: impl Fn(&mut Line, &[UdpSocket]) -> io::Result<()>) -> Held {
    hold(pod, |line| {
        let sockets: Vec<UdpSocket> = addresses.iter().map(UdpSocket::bind).collect::<Result<_, _>>()?;
        line.done()?;
        act(line, &sockets)?;
        Ok(sockets)
    })
}

#[test]
fn who_reads_and_never_asks_who_sent_is_found() {
    if !ready() {
        return;
    }
    let mut stage = Stage::new();
    let (client, pod) = (stage.pod("client"), stage.pod("server"));
    client.join(&pod);
    let addresses =
        ["0.0.0.0:1001", "[::]:1002", "0.0.0.0:1003", "0.0.0.0:1004", "0.0.0.0:1005", "0.0.0.0:1006"];
    let mut held = server(&pod, &addresses, |line, sockets| {
        let [by_recv, by_read, asks, nobody_asks, joined, sends] = sockets else { unreachable!() };
        by_recv.recv(&mut [0; 64])?;
        read(by_read)?;
        asks.recv_from(&mut [0; 64])?;
        let _ = nobody_asks;
        // Only its peer reaches it, and that it has one is told.
        joined.connect("10.9.0.1:1005")?;
        sends.send_to(DATAGRAM, "10.9.0.1:9")?;
        line.done()?;
        sends.recv(&mut [0; 64])?;
        // Whoever asks once knows whom it serves.
        line.done()?;
        by_recv.recv_from(&mut [0; 64])?;
        Ok(())
    });
    assert_eq!(look(&mut stage, &pod), [0; 0], "nothing came");
    send(&client, &["10.9.0.2:1001", "[fd09::2]:1002", "10.9.0.2:1003"]);
    held.next();
    assert_eq!(look(&mut stage, &pod), [1001, 1002]);
    send(&client, &["10.9.0.2:1006"]);
    held.next();
    assert_eq!(look(&mut stage, &pod), [1001, 1002], "a client may read as it likes");
    send(&client, &["10.9.0.2:1001"]);
    held.next();
    assert_eq!(look(&mut stage, &pod), [1002]);
    assert_eq!(look(&mut stage, &client), [0; 0]);
    drop(held);
}

#[test]
fn one_from_before_is_taken_for_one_until_it_asks() {
    if !ready() {
        return;
    }
    let root = Stage::root();
    let (client, pod) = (Pod::new(&root, "client"), Pod::new(&root, "server"));
    client.join(&pod);
    let mut held = server(&pod, &["0.0.0.0:1001", "0.0.0.0:1002"], |line, sockets| {
        let [used, _unused] = sockets else { unreachable!() };
        for _ in 0..2 {
            used.recv_from(&mut [0; 64])?;
            line.done()?;
        }
        Ok(())
    });
    send(&client, &["10.9.0.2:1001"]);
    held.next();
    let mut stage = Stage::attach(root);
    assert_eq!(look(&mut stage, &pod), [1001]);
    send(&client, &["10.9.0.2:1001"]);
    held.next();
    assert_eq!(look(&mut stage, &pod), [0; 0]);
    drop(held);
}
