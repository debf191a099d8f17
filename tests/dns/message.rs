//! DNS messages, made by hand: also such as no server would send.

use std::net::IpAddr;

pub const A: u16 = 1;
pub const CNAME: u16 = 5;
pub const TXT: u16 = 16;
pub const AAAA: u16 = 28;

/// Points to the name of the question.
pub const ASKED: [u8; 2] = [0xc0, 12];

/// A message under construction.
#[derive(Clone, Debug)]
pub struct Message(pub Vec<u8>);

/// A name as it is sent. Whatever is between two dots is a label.
pub fn wire(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes
}

impl Message {
    /// An answer to a question for `name`, without records yet.
    pub fn answer(name: &str, kind: u16) -> Self {
        Self::answer_to(&wire(name), kind)
    }

    /// The same of a name in any bytes.
    pub fn answer_to(name: &[u8], kind: u16) -> Self {
        let mut bytes = vec![0x12, 0x34, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(name);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1]);
        Self(bytes)
    }

    /// With other flags.
    pub fn flags(mut self, flags: u16) -> Self {
        self.0[2..4].copy_from_slice(&flags.to_be_bytes());
        self
    }

    /// With this count of answers, whatever is there.
    pub fn count(mut self, count: u16) -> Self {
        self.0[6..8].copy_from_slice(&count.to_be_bytes());
        self
    }

    /// With one more record.
    pub fn record(mut self, owner: &[u8], kind: u16, seconds: u32, data: &[u8]) -> Self {
        self.0.extend(owner);
        self.0.extend(kind.to_be_bytes());
        self.0.extend([0, 1]);
        self.0.extend(seconds.to_be_bytes());
        self.0.extend((data.len() as u16).to_be_bytes());
        self.0.extend(data);
        let count = u16::from_be_bytes([self.0[6], self.0[7]]).saturating_add(1);
        self.count(count)
    }

    /// With an address of `owner`.
    pub fn address(self, owner: &str, ip: &str, seconds: u32) -> Self {
        self.address_of(&wire(owner), ip, seconds)
    }

    /// The same of an owner in any bytes.
    pub fn address_of(self, owner: &[u8], ip: &str, seconds: u32) -> Self {
        match ip.parse().unwrap() {
            IpAddr::V4(ip) => self.record(owner, A, seconds, &ip.octets()),
            IpAddr::V6(ip) => self.record(owner, AAAA, seconds, &ip.octets()),
        }
    }

    /// With an alias.
    pub fn alias(self, owner: &str, stands_for: &str, seconds: u32) -> Self {
        self.record(&wire(owner), CNAME, seconds, &wire(stands_for))
    }

    /// Made as long as this by a record that means nothing. At least 13 bytes more.
    pub fn padded(self, length: usize) -> Self {
        let data = vec![b'x'; length - self.0.len() - 13];
        self.record(&[ASKED.as_slice(), &[]].concat(), TXT, 1, &[&[0], data.as_slice()].concat())
    }
}
