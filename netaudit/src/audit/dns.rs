//! Reads a DNS answer: bytes that a stranger made, into names and addresses.
//!
//! Only what leads from the question to addresses is taken: a record that the question does not ask for names nobody, so
//! whoever answers for one name cannot speak for another. Everything is bounded, and nothing here can fail in another way
//! than by saying so.

use std::{net::IpAddr, sync::Arc, time::Duration};

use domain::{
    base::{
        Message, ParsedName, Rtype, ToName as _,
        iana::{Class, Opcode, Rcode},
        wire::ParseError,
    },
    rdata::{A, Aaaa, Cname},
};
use smallvec::SmallVec;

/// Records of an answer that are looked at; what comes after them is left out.
const MOST_RECORDS: usize = 128;

/// Aliases that are followed.
const MOST_ALIASES: usize = 16;

/// No answer is good for longer, whatever it says.
const MOST_TTL: Duration = Duration::from_secs(24 * 3600);

/// What an answer says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DnsReading {
    /// The name that was asked for first, then those that it is an alias of, in their order. In lower case, without the dot
    /// at the end.
    pub names: SmallVec<[Arc<str>; 2]>,
    /// The addresses that they have all; none where the answer is about something else.
    pub addresses: SmallVec<[IpAddr; 4]>,
    /// For how long that is good: of all records on the way the least.
    pub ttl: Duration,
}

/// Why an answer names nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnreadableDns {
    /// It is not as an answer must be, names that loop or are too long included.
    #[error("it is malformed")]
    Malformed,
    /// The name that was asked for has other characters than the names of hosts have.
    #[error("its name is none of a host")]
    NotAHost,
}

impl From<ParseError> for UnreadableDns {
    fn from(_: ParseError) -> Self {
        Self::Malformed
    }
}

type Name<'a> = ParsedName<&'a [u8]>;

/// The records of an answer that can matter.
#[derive(Default)]
struct Records<'a> {
    /// (alias, what it stands for, seconds).
    aliases: SmallVec<[(Name<'a>, Name<'a>, u32); 4]>,
    /// (name, its address, seconds).
    addresses: SmallVec<[(Name<'a>, IpAddr, u32); 8]>,
}

/// Whether an answer says that there is more than it has room for, so that whoever asked may ask again by TCP.
pub fn is_truncated(payload: &[u8]) -> bool {
    Message::from_slice(payload).is_ok_and(|message| message.header().tc())
}

/// Reads an answer. Of one that is cut, as far as it goes.
///
/// # Errors
///
/// When it names nobody that it should.
pub fn read_dns(payload: &[u8], is_cut: bool) -> Result<DnsReading, UnreadableDns> {
    let message = Message::from_slice(payload).map_err(|_| UnreadableDns::Malformed)?;
    let header = message.header();
    if !header.qr() || header.opcode() != Opcode::QUERY || header.rcode() != Rcode::NOERROR {
        return Err(UnreadableDns::Malformed);
    }
    let question = message.sole_question()?;
    let asked = host_name(question.qname()).ok_or(UnreadableDns::NotAHost)?;
    let records = records(message, is_cut)?;

    let mut names: SmallVec<[Arc<str>; 2]> = SmallVec::new();
    names.push(asked);
    let mut ttl = u32::MAX;
    let mut at = *question.qname();
    for _ in 0..MOST_ALIASES {
        let Some((_, stands_for, seconds)) = records.aliases.iter().find(|(alias, ..)| alias.name_eq(&at))
        else {
            break;
        };
        at = *stands_for;
        ttl = ttl.min(good_for(*seconds));
        match host_name(&at) {
            // Round in a circle, which the bound on aliases ends.
            Some(name) if names.contains(&name) => break,
            Some(name) => names.push(name),
            // It is on the way and names nobody.
            None => {}
        }
    }
    let mut addresses: SmallVec<[IpAddr; 4]> = SmallVec::new();
    for (_, ip, seconds) in records.addresses.iter().filter(|(name, ..)| name.name_eq(&at)) {
        ttl = ttl.min(good_for(*seconds));
        if !addresses.contains(ip) {
            addresses.push(*ip);
        }
    }
    let ttl = if addresses.is_empty() { 0 } else { ttl };
    Ok(DnsReading { names, addresses, ttl: Duration::from_secs(ttl.into()).min(MOST_TTL) })
}

fn records(message: &Message<[u8]>, is_cut: bool) -> Result<Records<'_>, ParseError> {
    let mut found = Records::default();
    for record in message.answer()?.take(MOST_RECORDS) {
        let record = match record {
            Err(_) if is_cut => break,
            record => record?,
        };
        if record.class() != Class::IN {
            continue;
        }
        let (owner, seconds) = (record.owner(), record.ttl().as_secs());
        let owner = owner.deref_octets();
        match record.rtype() {
            Rtype::CNAME => {
                if let Some(alias) = record.to_record::<Cname<_>>()? {
                    found.aliases.push((owner, alias.into_data().into_cname(), seconds));
                }
            }
            Rtype::A => {
                if let Some(address) = record.to_record::<A>()? {
                    found.addresses.push((owner, IpAddr::V4(address.data().addr()), seconds));
                }
            }
            Rtype::AAAA => {
                if let Some(address) = record.to_record::<Aaaa>()? {
                    let ip = IpAddr::V6(address.data().addr()).to_canonical();
                    found.addresses.push((owner, ip, seconds));
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

/// A number of seconds with the highest bit set means none (RFC 2181).
fn good_for(seconds: u32) -> u32 {
    if seconds > u32::MAX >> 1 { 0 } else { seconds }
}

/// The name in letters, if it is one that a host can have: labels of letters, digits, `-` and `_`. Others are refused and not
/// escaped, as an escaped dot would still look like one to whoever compares names.
fn host_name(name: &Name<'_>) -> Option<Arc<str>> {
    let mut text = String::with_capacity(64);
    for label in name.iter().filter(|label| !label.is_root()) {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label.as_slice() {
            match byte {
                b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => text.push(char::from(*byte)),
                b'A'..=b'Z' => text.push(char::from(byte.to_ascii_lowercase())),
                _ => return None,
            }
        }
    }
    (!text.is_empty()).then(|| text.into())
}
