//! What is left out of flows that are told, and what is told as a keyed hash.
//!
//! An address outside the cluster is then `hash:<key>:<hash>`: by HMAC-SHA-256 with a secret, so that equal addresses can be joined and
//! nobody without the secret can try all addresses out. `<key>` tells which secret it was, and nothing of it.

use std::{fmt, net::IpAddr};

use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// How a hashed address begins.
pub const HASHED: &str = "hash:";

/// Bytes of a secret at least: there are few addresses, so that only the secret keeps them.
pub const LEAST_SECRET: usize = 32;

/// Digits of a hash: 128 bits, so that no two addresses share one.
const HASH_DIGITS: usize = 32;

/// Digits of a key's name.
const KEY_DIGITS: usize = 8;

/// What is not told of flows. By default all is.
#[derive(Clone, Default, Debug)]
pub struct Privacy {
    /// Processes: their ids and the names of their commands.
    pub omits_processes: bool,
    /// Names that DNS gave.
    pub omits_names: bool,
    /// By which addresses outside the cluster are hashed, if they are.
    pub key: Option<AddressKey>,
}

impl Privacy {
    /// Everything is told.
    pub const TELLS_ALL: &'static Self = &Self { omits_processes: false, omits_names: false, key: None };
}

/// A secret that addresses are hashed with.
#[derive(Clone)]
pub struct AddressKey {
    mac: Hmac<Sha256>,
    name: String,
}

impl fmt::Debug for AddressKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never what is in it.
        write!(f, "AddressKey({})", self.name)
    }
}

/// Why bytes are no secret.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WeakSecret {
    /// So few bytes.
    Short(usize),
    /// One byte again and again.
    Uniform,
}

impl fmt::Display for WeakSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short(bytes) => write!(f, "it has {bytes} bytes, and at least {LEAST_SECRET} are needed"),
            Self::Uniform => f.write_str("it is one byte again and again, which is no secret"),
        }
    }
}

impl std::error::Error for WeakSecret {}

impl AddressKey {
    /// The key of a secret; a line break at its end is not part of it.
    ///
    /// # Errors
    ///
    /// It is too short, or no secret.
    pub fn new(secret: &[u8]) -> Result<Self, WeakSecret> {
        let secret = secret.strip_suffix(b"\n").unwrap_or(secret);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        let Some((first, rest)) = secret.split_first().filter(|_| secret.len() >= LEAST_SECRET) else {
            return Err(WeakSecret::Short(secret.len()));
        };
        if rest.iter().all(|byte| byte == first) {
            return Err(WeakSecret::Uniform);
        }
        // Any length will do for it.
        let mac = Hmac::<Sha256>::new_from_slice(secret).map_err(|_| WeakSecret::Short(secret.len()))?;
        let mut key = Self { mac, name: String::new() };
        key.name = key.digits(b"name of the key", &[], KEY_DIGITS);
        Ok(key)
    }

    /// Which key it is, without telling anything of the secret.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is told instead of an address.
    pub fn hash(&self, ip: IpAddr) -> String {
        let digits = match ip.to_canonical() {
            IpAddr::V4(ip) => self.digits(b"v4", &ip.octets(), HASH_DIGITS),
            IpAddr::V6(ip) => self.digits(b"v6", &ip.octets(), HASH_DIGITS),
        };
        format!("{HASHED}{}:{digits}", self.name)
    }

    fn digits(&self, purpose: &[u8], of: &[u8], most: usize) -> String {
        let mac = self.mac.clone().chain_update(purpose).chain_update([0]).chain_update(of);
        let bytes = mac.finalize().into_bytes();
        bytes.iter().take(most / 2).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The name of the key that an address was hashed with; `None` of one that is not hashed.
pub fn key_of(address: &str) -> Option<&str> {
    let (key, hash) = address.strip_prefix(HASHED)?.split_once(':')?;
    (key.len() == KEY_DIGITS && hash.len() == HASH_DIGITS).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    #[test]
    fn equal_addresses_are_equal_and_other_secrets_differ() {
        let key = AddressKey::new(SECRET).unwrap();
        let hash = |ip: &str| key.hash(ip.parse().unwrap());
        assert_eq!(hash("203.0.113.9"), hash("::ffff:203.0.113.9"));
        assert_ne!(hash("203.0.113.9"), hash("203.0.113.8"));
        // The bytes of a v4 address at the end of a v6 one are another address.
        assert_ne!(hash("203.0.113.9"), hash("::203.0.113.9"));
        assert_eq!(key_of(&hash("2001:db8::1")), Some(key.name()));
        let other = AddressKey::new(b"x123456789abcdef0123456789abcdef").unwrap();
        assert_ne!(other.hash("203.0.113.9".parse().unwrap()), hash("203.0.113.9"));
        assert_ne!(other.name(), key.name());
        assert_eq!(key_of("203.0.113.9"), None);
    }

    #[test]
    fn hashes_are_the_same_for_ever() {
        // printf 'v4\0\xcb\x00\x71\x09' | openssl dgst -sha256 -hmac 0123456789abcdef0123456789abcdef
        let key = AddressKey::new(SECRET).unwrap();
        assert_eq!(
            key.hash("203.0.113.9".parse().unwrap()),
            "hash:475cb9e4:e867309f92b648442ae8b159c08c0746"
        );
    }

    #[test]
    fn what_is_no_secret_is_refused_and_none_is_shown() {
        assert_eq!(AddressKey::new(b"short\n").unwrap_err(), WeakSecret::Short(5));
        assert_eq!(AddressKey::new(&[0; 64]).unwrap_err(), WeakSecret::Uniform);
        let with_break = [SECRET, b"\r\n"].concat();
        let key = AddressKey::new(&with_break).unwrap();
        assert_eq!(key.name(), AddressKey::new(SECRET).unwrap().name());
        assert!(!format!("{key:?}").contains("0123"), "{key:?}");
    }
}
