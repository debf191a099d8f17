//! The node's connection tracking, asked where a flow went whose address it translated.
//!
//! It answers in the network namespace of whoever asks, which must be the node's, and takes some microseconds.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol as Number, Tuple},
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_NETFILTER};

use crate::model::Protocol;

/// How many lookups ended in which way.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Lookups {
    /// It knew the flow.
    pub found: u64,
    /// It did not, or not any more.
    pub unknown: u64,
    /// It could not be asked.
    pub failed: u64,
}

/// A socket to ask by.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
    lookups: Lookups,
}

/// More than an entry takes, with whatever modules add to it.
const ANSWER_BYTES: usize = 8_192;

impl Conntrack {
    /// Connects to the kernel's side of it.
    ///
    /// # Errors
    ///
    /// When this kernel has no netfilter netlink.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddress::new(0, 0))?;
        // The kernel answers within the call that asks. Should it ever not, nobody waits for it.
        socket.set_non_blocking(true)?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(ANSWER_BYTES),
            sequence: 0,
            lookups: Lookups::default(),
        })
    }

    /// Where a flow from `source` to `destination`, as its socket names it, really went: what answers it. The destination
    /// itself where nothing is translated; `None` where nothing is known of it.
    pub fn destination(
        &mut self,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Option<SocketAddr> {
        match self.ask(protocol, source, destination) {
            Ok(Some(to)) => {
                self.lookups.found += 1;
                Some(to)
            }
            Ok(None) => {
                self.lookups.unknown += 1;
                None
            }
            Err(error) => {
                if self.lookups.failed == 0 {
                    tracing::warn!(%error, "the node's connection tracking cannot be asked: CAP_NET_ADMIN is needed");
                }
                self.lookups.failed += 1;
                None
            }
        }
    }

    /// How lookups ended so far.
    pub fn lookups(&self) -> Lookups {
        self.lookups
    }

    fn ask(
        &mut self,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> io::Result<Option<SocketAddr>> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&question(self.sequence, protocol, source, destination), 0)?;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            let answer = NetlinkMessage::<NetfilterMessage>::deserialize(&self.buffer)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            // An answer to an earlier question, of which something else was wrong.
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            return match answer.payload {
                NetlinkPayload::InnerMessage(NetfilterMessage {
                    inner: NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)),
                    ..
                }) => Ok(who_answers(&attributes)),
                NetlinkPayload::Error(error) => match error.to_io() {
                    error if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
                    error => Err(error),
                },
                _ => Ok(None),
            };
        }
    }
}

fn question(sequence: u32, protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (family, number) = (
        if destination.is_ipv4() { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 },
        match protocol {
            Protocol::Tcp => Number::Tcp,
            Protocol::Udp => Number::Udp,
            Protocol::Sctp => Number::Sctp,
        },
    );
    let tuple = vec![
        Tuple::Ip(vec![IPTuple::SourceAddress(source.ip()), IPTuple::DestinationAddress(destination.ip())]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(number),
            ProtoTuple::SourcePort(source.port()),
            ProtoTuple::DestinationPort(destination.port()),
        ]),
    ];
    let get = ConntrackMessage::Get(vec![ConntrackAttribute::CtaTupleOrig(tuple)]);
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    header.sequence_number = sequence;
    let payload = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), get);
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(payload));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The source of what answers.
fn who_answers(attributes: &[ConntrackAttribute]) -> Option<SocketAddr> {
    let reply = attributes.iter().find_map(|attribute| match attribute {
        ConntrackAttribute::CtaTupleReply(tuple) => Some(tuple),
        _ => None,
    })?;
    let (mut ip, mut port) = (None::<IpAddr>, None);
    for part in reply {
        match part {
            Tuple::Ip(ends) => {
                ip = ends.iter().find_map(|end| match end {
                    IPTuple::SourceAddress(ip) => Some(*ip),
                    _ => None,
                });
            }
            Tuple::Proto(ends) => {
                port = ends.iter().find_map(|end| match end {
                    ProtoTuple::SourcePort(port) => Some(*port),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(SocketAddr::new(ip?, port?))
}
