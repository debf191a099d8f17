//! What the agent's own namespace is: its cookie and its addresses.

use std::{io, net::IpAddr, os::fd::AsRawFd as _};

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

use crate::model::NetnsCookie;

/// Every address of the network namespace that the caller runs in: what "its own node" means for a pod of this node,
/// bridge, tunnel and loopback addresses included.
///
/// # Errors
///
/// When the kernel does not tell.
pub fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let mut head = std::ptr::null_mut();
    // SAFETY: the call writes one pointer.
    if unsafe { libc::getifaddrs(&raw mut head) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut addresses = Vec::new();
    let mut at = head;
    while !at.is_null() {
        // SAFETY: the list is valid until it is freed below.
        let entry = unsafe { &*at };
        if !entry.ifa_addr.is_null() {
            // SAFETY: the family says which structure it is; the list aligns entries for all of them.
            let address = unsafe {
                match i32::from((*entry.ifa_addr).sa_family) {
                    libc::AF_INET => {
                        let v4 = entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                        Some(IpAddr::from(v4.sin_addr.s_addr.to_ne_bytes()))
                    }
                    libc::AF_INET6 => {
                        let v6 = entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                        Some(IpAddr::from(v6.sin6_addr.s6_addr).to_canonical())
                    }
                    _ => None,
                }
            };
            addresses.extend(address);
        }
        at = entry.ifa_next;
    }
    // SAFETY: allocated by the call above, and freed once.
    unsafe { libc::freeifaddrs(head) };
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// News of the addresses of the network namespace that it was opened in. A bridge gets its address just before the first probe
/// of a pod comes from there.
#[derive(Debug)]
pub struct AddressNews {
    socket: Socket,
    buffer: Vec<u8>,
}

impl AddressNews {
    /// From now on.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn open() -> io::Result<Self> {
        const RTNLGRP_IPV4_IFADDR: u32 = 5;
        const RTNLGRP_IPV6_IFADDR: u32 = 9;
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.add_membership(RTNLGRP_IPV4_IFADDR)?;
        socket.add_membership(RTNLGRP_IPV6_IFADDR)?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, buffer: Vec::with_capacity(4_096) })
    }

    /// Whether any address has come or gone since it was last asked.
    pub fn any(&mut self) -> bool {
        let mut any = false;
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => any = true,
                // More than there was room for: something has.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                Err(_) => return any,
            }
        }
    }
}

/// The cookie of the calling thread's network namespace: what the programs see of its sockets.
///
/// # Errors
///
/// When the kernel does not know `SO_NETNS_COOKIE` (before 5.14).
pub fn own_netns() -> io::Result<NetnsCookie> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").or_else(|_| std::net::UdpSocket::bind("[::]:0"))?;
    let mut cookie: u64 = 0;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the target is eight bytes, as `length` says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(NetnsCookie(cookie)) } else { Err(io::Error::last_os_error()) }
}

const SO_NETNS_COOKIE: i32 = 71;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_among_the_own_addresses() {
        let addresses = own_addresses().unwrap();
        assert!(addresses.contains(&"127.0.0.1".parse().unwrap()), "{addresses:?}");
    }

    #[test]
    fn the_own_namespace_has_a_cookie_that_stays() {
        assert_eq!(own_netns().unwrap(), own_netns().unwrap());
    }

    #[test]
    fn a_new_address_is_news_once() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: not root");
            return;
        }
        // In a namespace of the thread's own, which ends with it.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: changes this thread's namespace only.
                assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
                let mut news = AddressNews::open().unwrap();
                assert!(!news.any());
                let ip = |arguments: &[&str]| {
                    assert!(std::process::Command::new("ip").args(arguments).status().unwrap().success());
                };
                ip(&["link", "set", "lo", "up"]);
                ip(&["addr", "add", "10.9.9.9/32", "dev", "lo"]);
                assert!(news.any());
                assert!(!news.any());
                assert!(own_addresses().unwrap().contains(&"10.9.9.9".parse().unwrap()));
                ip(&["addr", "del", "10.9.9.9/32", "dev", "lo"]);
                assert!(news.any());
            });
        });
    }
}
