//! Where the running kernel keeps its fields: a reader for the part of BTF that tells offsets.
//!
//! Programs in Rust cannot be relocated against the kernel's types as those in C are, so the agent looks the offsets
//! up and hands them over at load.

use std::collections::HashMap;

use netaudit_ebpf::abi::{NO_FIELD, Settings};

/// Why the kernel's type information does not serve.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BtfError {
    /// The bytes are not BTF, or end early.
    #[error("the kernel's type information is malformed at byte {0}")]
    Malformed(usize),
    /// A type or a field that the programs need is not there.
    #[error("the kernel's type information has no {0}")]
    Missing(String),
}

/// The kernel's structures, by name.
pub struct Types<'a> {
    bytes: &'a [u8],
    strings: usize,
    /// Where each type begins; id 0 is `void`.
    positions: Vec<usize>,
    structures: HashMap<&'a str, u32>,
    enumerations: HashMap<&'a str, u32>,
}

/// Where a field stands in its structure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// In bits from the beginning.
    pub bit: u32,
    kind: u32,
}

impl Field {
    /// In bytes from the beginning.
    pub const fn byte(self) -> u32 {
        self.bit / 8
    }
}

const MAGIC: u16 = 0xeb9f;
/// How many bytes each type takes for itself.
const TYPE: usize = 12;
const MEMBER: usize = 12;
const ENUMERATOR: usize = 8;

mod form {
    pub const INT: u32 = 1;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

impl<'a> Types<'a> {
    /// Indexes `bytes`, the content of `/sys/kernel/btf/vmlinux`.
    ///
    /// # Errors
    ///
    /// When they are not BTF in this machine's byte order.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let magic = bytes.first_chunk::<2>().ok_or(BtfError::Malformed(0))?;
        if u16::from_ne_bytes(*magic) != MAGIC {
            return Err(BtfError::Malformed(0));
        }
        let word = |at| word(bytes, at);
        let header = word(4)? as usize;
        let begin = header + word(8)? as usize;
        let end = begin + word(12)? as usize;
        let strings = header + word(16)? as usize;

        let mut types = Self {
            bytes,
            strings,
            positions: vec![0],
            structures: HashMap::new(),
            enumerations: HashMap::new(),
        };
        let mut at = begin;
        while at < end {
            let info = word(at + 4)?;
            let id = types.positions.len() as u32;
            types.positions.push(at);
            let (form, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            if form == form::STRUCT {
                let name = types.text(word(at)?)?;
                types.structures.entry(name).or_insert(id);
            }
            if form == form::ENUM {
                let name = types.text(word(at)?)?;
                types.enumerations.entry(name).or_insert(id);
            }
            at += TYPE
                + match form {
                    form::INT | form::VAR | form::DECL_TAG => 4,
                    form::ARRAY => 12,
                    form::STRUCT | form::UNION | form::DATASEC | form::ENUM64 => 12 * count,
                    form::ENUM | form::FUNC_PROTO => 8 * count,
                    _ => 0,
                };
        }
        Ok(types)
    }

    /// The field at `path` in `structure`, such as `("sock", "sk_error_queue.qlen")`. Members without a name are
    /// looked through, as C does.
    ///
    /// # Errors
    ///
    /// When the kernel has no such structure or field.
    pub fn field(&self, structure: &str, path: &str) -> Result<Field, BtfError> {
        let missing = || BtfError::Missing(format!("{structure}.{path}"));
        let mut field = Field { bit: 0, kind: *self.structures.get(structure).ok_or_else(missing)? };
        for name in path.split('.') {
            let member = self.member(self.resolve(field.kind)?, name, 0)?.ok_or_else(missing)?;
            field = Field { bit: field.bit + member.bit, kind: member.kind };
        }
        Ok(field)
    }

    /// The number that `enumeration` gives to `value`; `None` where it has no such value.
    ///
    /// # Errors
    ///
    /// When the kernel has no such enumeration.
    pub fn enumerator(&self, enumeration: &str, value: &str) -> Result<Option<u32>, BtfError> {
        let missing = || BtfError::Missing(format!("enum {enumeration}"));
        let at = self.position(*self.enumerations.get(enumeration).ok_or_else(missing)?)?;
        let count = word(self.bytes, at + 4)? & 0xffff;
        for index in 0..count as usize {
            let at = at + TYPE + index * ENUMERATOR;
            if self.text(word(self.bytes, at)?)? == value {
                return word(self.bytes, at + 4).map(Some);
            }
        }
        Ok(None)
    }

    fn member(&self, id: u32, wanted: &str, depth: u32) -> Result<Option<Field>, BtfError> {
        // Types may not contain themselves; bytes that claim so must not hang us.
        const DEEPEST: u32 = 16;
        let at = self.position(id)?;
        let info = word(self.bytes, at + 4)?;
        if !matches!(info >> 24 & 0x1f, form::STRUCT | form::UNION) || depth > DEEPEST {
            return Ok(None);
        }
        let with_sizes = info >> 31 == 1;
        for index in 0..(info & 0xffff) as usize {
            let at = at + TYPE + index * MEMBER;
            let (name, kind, offset) =
                (word(self.bytes, at)?, word(self.bytes, at + 4)?, word(self.bytes, at + 8)?);
            let bit = if with_sizes { offset & 0x00ff_ffff } else { offset };
            let name = self.text(name)?;
            if name == wanted {
                return Ok(Some(Field { bit, kind }));
            }
            if name.is_empty()
                && let Some(inner) = self.member(self.resolve(kind)?, wanted, depth + 1)?
            {
                return Ok(Some(Field { bit: bit + inner.bit, kind: inner.kind }));
            }
        }
        Ok(None)
    }

    /// The type behind names and qualifiers.
    fn resolve(&self, mut id: u32) -> Result<u32, BtfError> {
        for _ in 0..32 {
            let at = self.position(id)?;
            let form = word(self.bytes, at + 4)? >> 24 & 0x1f;
            match form {
                form::TYPEDEF | form::VOLATILE | form::CONST | form::RESTRICT | form::TYPE_TAG => {
                    id = word(self.bytes, at + 8)?;
                }
                _ => return Ok(id),
            }
        }
        Err(BtfError::Malformed(self.position(id)?))
    }

    fn position(&self, id: u32) -> Result<usize, BtfError> {
        match self.positions.get(id as usize) {
            Some(at) if id != 0 => Ok(*at),
            _ => Err(BtfError::Malformed(0)),
        }
    }

    fn text(&self, offset: u32) -> Result<&'a str, BtfError> {
        let at = self.strings + offset as usize;
        let rest = self.bytes.get(at..).ok_or(BtfError::Malformed(at))?;
        let end = rest.iter().position(|byte| *byte == 0).ok_or(BtfError::Malformed(at))?;
        std::str::from_utf8(&rest[..end]).map_err(|_| BtfError::Malformed(at))
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    let chunk = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()).ok_or(BtfError::Malformed(at))?;
    Ok(u32::from_ne_bytes(*chunk))
}

/// Looks up every offset that the programs need. They watch all cgroups.
///
/// # Errors
///
/// When the kernel lacks one: it is then too old, or too new, for this version.
pub fn settings(types: &Types<'_>, wake_at: u32, udp_retell: u32) -> Result<Settings, BtfError> {
    let byte = |structure: &str, path: &str| types.field(structure, path).map(Field::byte);
    // A bit field has no address of its own.
    let locks = types.field("sock", "sk_userlocks")?;
    // A kernel without multipath sockets has none to lose.
    let is_mptcp = types.field("tcp_sock", "is_mptcp").and_then(|is| Ok((is, byte("mptcp_sock", "first")?)));
    let (is_mptcp, is_mptcp_shift, mptcp_first) =
        is_mptcp.map_or((NO_FIELD, 0, 0), |(is, first)| (is.byte(), is.bit % 8, first));
    let reuse_port = types.field("sock", "__sk_common.skc_reuseport")?;
    let (is_transparent, is_transparent_shift) =
        transparent(types).map_or((NO_FIELD, 0), |bit| (bit / 8, bit % 8));
    Ok(Settings {
        sk_err: byte("sock", "sk_err")?,
        sk_err_soft: byte("sock", "sk_err_soft")?,
        error_queue_next: byte("sock", "sk_error_queue.next")?,
        error_queue_length: byte("sock", "sk_error_queue.qlen")?,
        extended_error: byte("sk_buff", "cb")? + byte("sock_exterr_skb", "ee")?,
        sk_incoming_cpu: byte("sock", "__sk_common.skc_incoming_cpu")?,
        sk_stamp: byte("sock", "sk_stamp")?,
        sk_cookie: byte("sock", "__sk_common.skc_cookie")?,
        is_mptcp,
        is_mptcp_shift,
        mptcp_first,
        sk_cgroup: byte("sock", "sk_cgrp_data.cgroup")?,
        sk_state: byte("sock", "__sk_common.skc_state")?,
        sk_family: byte("sock", "__sk_common.skc_family")?,
        sk_type: byte("sock", "sk_type")?,
        sk_protocol: byte("sock", "sk_protocol")?,
        sk_userlocks: locks.byte(),
        sk_userlocks_shift: locks.bit % 8,
        sk_num: byte("sock", "__sk_common.skc_num")?,
        sk_address4: byte("sock", "__sk_common.skc_rcv_saddr")?,
        sk_address6: byte("sock", "__sk_common.skc_v6_rcv_saddr")?,
        sk_peer4: byte("sock", "__sk_common.skc_daddr")?,
        sk_peer6: byte("sock", "__sk_common.skc_v6_daddr")?,
        sk_peer_port: byte("sock", "__sk_common.skc_dport")?,
        sk_reuse_port: reuse_port.byte(),
        sk_reuse_port_shift: reuse_port.bit % 8,
        sk_device: byte("sock", "__sk_common.skc_bound_dev_if")?,
        is_transparent,
        is_transparent_shift,
        sk_net: byte("sock", "__sk_common.skc_net.net")?,
        net_cookie: byte("net", "net_cookie")?,
        cgroup_node: byte("cgroup", "kn")?,
        node_id: byte("kernfs_node", "id")?,
        cgroup_root: byte("cgroup", "root")?,
        hierarchy_id: byte("cgroup_root", "hierarchy_id")?,
        cgroup_self: byte("cgroup", "self")?,
        cgroup_parent: byte("cgroup", "self.parent")?,
        task_pid: byte("task_struct", "pid")?,
        task_tgid: byte("task_struct", "tgid")?,
        task_comm: byte("task_struct", "comm")?,
        task_cgroups: byte("task_struct", "cgroups")?,
        default_cgroup: byte("css_set", "dfl_cgrp")?,
        task_nsproxy: byte("task_struct", "nsproxy")?,
        nsproxy_net: byte("nsproxy", "net_ns")?,
        message_name: byte("msghdr", "msg_name")?,
        sent_until: byte("tcp_sock", "snd_una")?,
        sent: byte("tcp_sock", "bytes_acked")?,
        received_until: byte("tcp_sock", "rcv_nxt")?,
        received: byte("tcp_sock", "bytes_received")?,
        bind_bucket: NO_FIELD,
        wake_at,
        udp_retell,
        // What follows is of optional programs: see `drops::settings`.
        ..Settings::default()
    })
}

/// The bit of an `inet_sock` that `IP_TRANSPARENT` sets; `None` where it is in neither of its two places.
fn transparent(types: &Types<'_>) -> Option<u32> {
    // `INET_FLAGS_TRANSPARENT` since 6.6, of an enumeration without a name.
    const FLAG: u32 = 15;
    let flags = types.field("inet_sock", "inet_flags").map(|flags| flags.bit + FLAG);
    flags.or_else(|_| types.field("inet_sock", "transparent").map(|field| field.bit)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small BTF: `struct inner { int a; int b; }`, and `struct outer { int x; struct { int hidden; }; inner n; }`
    /// with a bit field at the end.
    fn small() -> Vec<u8> {
        let strings = b"\0int\0inner\0a\0b\0outer\0x\0hidden\0n\0bits\0why\0";
        let name = |wanted: &str| {
            let wanted = [wanted.as_bytes(), &[0]].concat();
            let found = strings.windows(wanted.len()).position(|window| window == wanted);
            found.unwrap() as u32
        };
        let mut types: Vec<u32> = vec![name("int"), form::INT << 24, 4, 32];
        types.extend([name("inner"), form::STRUCT << 24 | 2, 8, name("a"), 1, 0, name("b"), 1, 32]);
        types.extend([0, form::STRUCT << 24 | 1, 4, name("hidden"), 1, 0]);
        types.extend([name("outer"), 1 << 31 | form::STRUCT << 24 | 4, 24]);
        types.extend([name("x"), 1, 0, 0, 3, 32, name("n"), 2, 64, name("bits"), 1, 4 << 24 | 130]);
        types.extend([name("why"), form::ENUM << 24 | 2, 4, name("a"), 5, name("b"), 7]);
        let mut bytes = Vec::new();
        bytes.extend(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        let length = types.len() as u32 * 4;
        for word in [24, 0, length, length, strings.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        for word in types {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn finds_fields_through_names_and_through_nameless_members() {
        let bytes = small();
        let types = Types::parse(&bytes).unwrap();
        let byte = |path| types.field("outer", path).map(Field::byte);
        assert_eq!(byte("x"), Ok(0));
        assert_eq!(byte("hidden"), Ok(4));
        assert_eq!(byte("n.b"), Ok(12));
        let bits = types.field("outer", "bits").unwrap();
        assert_eq!((bits.byte(), bits.bit % 8), (16, 2));
        assert_eq!(byte("n.c"), Err(BtfError::Missing("outer.n.c".to_owned())));
        assert!(types.field("nothing", "x").is_err());
    }

    #[test]
    fn finds_the_numbers_of_an_enumeration() {
        let bytes = small();
        let types = Types::parse(&bytes).unwrap();
        let number = |value| types.enumerator("why", value);
        assert_eq!((number("a"), number("b"), number("c")), (Ok(Some(5)), Ok(Some(7)), Ok(None)));
        assert_eq!(types.enumerator("inner", "a"), Err(BtfError::Missing("enum inner".to_owned())));
    }

    #[test]
    fn cut_or_foreign_bytes_are_errors() {
        let bytes = small();
        for length in 0..bytes.len() {
            // Cut strings show at the first look-up if not at once.
            let result = Types::parse(&bytes[..length]).and_then(|types| {
                types.enumerator("why", "b")?;
                types.field("outer", "bits")
            });
            assert!(result.is_err() || length >= bytes.len() - 1, "{length} bytes pass");
        }
        assert!(Types::parse(&[0; 64]).is_err());
    }

    #[test]
    fn this_kernel_has_every_field() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            eprintln!("SKIPPED: no /sys/kernel/btf/vmlinux");
            return;
        };
        let settings = settings(&Types::parse(&bytes).unwrap(), 7, 8).unwrap();
        // Stable since it became what user space sees in `struct sock_common`.
        assert_eq!(settings.sk_family, 16);
        assert_eq!((settings.wake_at, settings.udp_retell), (7, 8));
        assert_ne!(settings.task_tgid, settings.task_pid);
        assert!(settings.cgroup_parent > settings.cgroup_self);
    }
}
