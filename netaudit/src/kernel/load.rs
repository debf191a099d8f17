//! Checks what loading needs, loads the programs and attaches them.

use std::{
    cell::RefCell,
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    time::Duration,
};

use aya::{Btf, Ebpf, EbpfLoader, maps::Array, programs::Program};
use netaudit_ebpf::abi::{self, Settings};

use super::{
    Clock, Feature, Options,
    attach::{AttachError, Attacher, Hook},
    btf::{self, BtfError, Types},
    cgroups::Hierarchy,
    dns, drops, first,
    folds::{self, Folds},
    open,
    pins::{Generation, PinError, Pins},
};
use crate::model::{CgroupId, NetnsCookie};

include!(concat!(env!("OUT_DIR"), "/object.rs"));

/// Why the programs are not running. Each message says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The binary was built without the programs.
    #[error(
        "this binary was built without the eBPF programs: run `cargo xtask build-ebpf`, then build netaudit again"
    )]
    NoObject,
    /// The kernel refuses, and the process lacks rights.
    #[error(
        "missing {}: run as root, or give the container the capabilities BPF, NET_ADMIN and PERFMON",
        .missing.join(", ")
    )]
    Capabilities {
        /// Which.
        missing: Vec<&'static str>,
        /// What the kernel refused.
        #[source]
        refused: Box<LoadError>,
    },
    /// The kernel shows no type information.
    #[error(
        "no kernel type information at {BTF_PATH}: the kernel must be built with CONFIG_DEBUG_INFO_BTF=y (every \
         distribution of the last years does), and /sys must be mounted"
    )]
    NoBtf(#[source] io::Error),
    /// The kernel's type information lacks what the programs read.
    #[error("this kernel is not one that netaudit can read")]
    Btf(#[from] BtfError),
    /// The list of mounts cannot be read.
    #[error("cannot read /proc/self/mountinfo")]
    Mounts(#[source] io::Error),
    /// No cgroup v2.
    #[error(
        "no cgroup v2 is mounted: boot with systemd.unified_cgroup_hierarchy=1, or `mount -t cgroup2 none \
         /sys/fs/cgroup/unified`; in a container, mount the host's /sys/fs/cgroup"
    )]
    NoCgroup2,
    /// Only parts of the hierarchy are mounted, and none shows a kubelet's cgroups, as in a container that sees its own.
    #[error(
        "only a part of cgroup v2 is mounted (at {}), without a kubelet's cgroups (kubepods), as a container sees its \
         own: mount the host's /sys/fs/cgroup into the container (hostPath), or set cgroup_root to the directory that \
         is to be watched",
        .mounts.iter().map(|mount| mount.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    PartOfCgroup2 {
        /// Where.
        mounts: Vec<PathBuf>,
    },
    /// The root that was asked for cannot be read.
    #[error("cannot read the cgroup root {}", path.display())]
    CgroupRoot {
        /// The root.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The root that was asked for is in no cgroup v2 hierarchy.
    #[error("the cgroup root {} is not in a cgroup v2 hierarchy", path.display())]
    NotCgroup2 {
        /// The root.
        path: PathBuf,
    },
    /// The ring's size is none that the kernel takes.
    #[error("a ring of {0} bytes is not possible: use a power of two from 4096 to 1073741824")]
    RingBytes(u32),
    /// The namespace's cookie cannot be read.
    #[error("this kernel tells no namespace cookies: netaudit needs Linux 5.15 or newer")]
    Netns(#[source] io::Error),
    /// The object does not load.
    #[error("the kernel refuses the eBPF programs")]
    Object(#[source] aya::EbpfError),
    /// One program does not load or attach.
    #[error("the kernel refuses the eBPF program {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// Why.
        #[source]
        source: AttachError,
    },
    /// A map that is not among those that are pinned.
    #[error(
        "the eBPF object has a map {0} that is not pinned: it was built from another version; run `cargo xtask build-ebpf`"
    )]
    NotPinned(String),
    /// The ring cannot be read.
    #[error("the ring between the programs and the agent cannot be read")]
    Ring(#[source] io::Error),
    /// What outlives the agent cannot be used.
    #[error("what netaudit keeps in the kernel between two runs cannot be used")]
    Pins(#[from] PinError),
    /// A map or program that the agent needs is not in the object.
    #[error("the eBPF object has no {0}: it was built from another version; run `cargo xtask build-ebpf`")]
    Lacks(&'static str),
    /// A map cannot be used.
    #[error("the map {map} cannot be used")]
    Map {
        /// Its name.
        map: &'static str,
        /// Why.
        #[source]
        source: aya::maps::MapError,
    },
}

/// Where the kernel shows its type information.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Settings as aya wants a value for the programs' global.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Global(Settings);

// SAFETY: `Settings` holds only integers, without padding: its size is asserted.
unsafe impl aya::Pod for Global {}

/// The programs without which nothing is known, by the name of their functions. Cgroups first, then what ends attempts, then
/// what begins them: no attempt is begun that nobody would end.
const CORE: [(&str, Hook); 13] = [
    ("on_cgroup_removed", Hook::RawTracepoint("cgroup_rmdir")),
    ("on_cgroup_made", Hook::RawTracepoint("cgroup_mkdir")),
    ("on_sock_ops", Hook::Cgroup),
    ("on_release", Hook::Cgroup),
    ("on_create", Hook::Cgroup),
    ("on_bind6", Hook::Cgroup),
    ("on_bind4", Hook::Cgroup),
    ("on_recvmsg6", Hook::Cgroup),
    ("on_recvmsg4", Hook::Cgroup),
    ("on_sendmsg6", Hook::Cgroup),
    ("on_sendmsg4", Hook::Cgroup),
    ("on_connect6", Hook::CgroupFirst(first::CONNECT6)),
    ("on_connect4", Hook::CgroupFirst(first::CONNECT4)),
];

/// All maps, by name: what a run that takes over programs needs of them, and what the programs keep for themselves.
const MAPS: [&str; 25] = [
    "ATTEMPTS",
    "AYA_LOGS",
    "BY_ADDRESS",
    "DNS_COUNTS",
    "DNS_RATE",
    "DNS_RATES",
    "DROPS",
    "DROP_COUNTS",
    "DROP_RATE",
    "FOLDED",
    "FOLDS_BY_KEY_A",
    "FOLDS_BY_KEY_B",
    "FOLDS_BY_SUBJECT_A",
    "FOLDS_BY_SUBJECT_B",
    "FOLD_COUNTS",
    "KEPT",
    "LISTENERS",
    "NAMESPACES",
    "PATHS",
    "PEERS",
    "RAW_TOLD",
    "RECORDS",
    "SOCKETS",
    "SWITCHES",
    "TALLIES",
];

/// How long a UDP server may still be answering what it read before the programs were there: longer than clients wait.
const LATE_ANSWERS: Duration = Duration::from_secs(10);

/// What is loaded: dropping it detaches and unloads everything that is not pinned.
pub struct Loaded {
    pub ebpf: Ebpf,
    pub folds: Folds,
    /// Those that are not aya's to keep.
    pub links: Vec<OwnedFd>,
    pub hierarchy: Hierarchy,
    pub features: Vec<Feature>,
    pub pinned: Option<Pinned>,
}

/// What is pinned of it.
pub struct Pinned {
    pub pins: Pins,
    pub generation: Generation,
    /// Whether an earlier run had attached the programs, which have recorded ever since.
    pub resumed: bool,
}

/// See [`super::Kernel::load`].
pub fn load(options: &Options, host: NetnsCookie) -> Result<Loaded, LoadError> {
    try_load(options, host).map_err(name_missing_capabilities)
}

fn try_load(options: &Options, host: NetnsCookie) -> Result<Loaded, LoadError> {
    let object = OBJECT.ok_or(LoadError::NoObject)?;
    if !options.ring_bytes.is_power_of_two() || !(4096..=1 << 30).contains(&options.ring_bytes) {
        return Err(LoadError::RingBytes(options.ring_bytes));
    }
    let types = fs::read(BTF_PATH).map_err(LoadError::NoBtf)?;
    let types = Types::parse(&types)?;
    // A quarter: late enough to be rare, and early enough that a reader wakes up before the rest is gone.
    let retell = u32::try_from(options.udp_retell.as_nanos() >> abi::TICK_SHIFT).unwrap_or(u32::MAX);
    let settings = btf::settings(&types, options.ring_bytes / 4, retell)?;
    let hierarchy = Hierarchy::find(options.cgroup_root.as_deref())?;
    let watched = hierarchy.part.map_or(0, |id| id.0);
    let mut settings = Settings { watched, host_netns: host.0, ..settings };
    let can_tell_drops = drops::settings(&types, &mut settings);
    let can_tell_ends = open::settings(&types, &mut settings);
    let root = File::open(&hierarchy.root)
        .map_err(|source| LoadError::CgroupRoot { path: hierarchy.root.clone(), source })?;
    let btf = Btf::from_sys_fs().map_err(|error| LoadError::Object(error.into()))?;
    settings.sockets_untrusted = u64::from(trusts_no_socket(object, settings, &btf));

    let mut features = Vec::new();
    let pins = pins(options, &hierarchy, &mut features)?;
    let Options { ring_bytes, attempts, fold_keys, fold_subjects, dns_names, .. } = options;
    let told = format!(
        "{settings:?}, ring {ring_bytes}, attempts {attempts}, folds {fold_keys} and {fold_subjects}, names {dns_names}"
    );
    let whole = pins.as_ref().map(|pins| pins.generation(abi::VERSION, object, told.as_bytes()));
    // Not part of the name: each run has another.
    settings.answers_until = Clock::boot() + LATE_ANSWERS.as_nanos() as u64;
    let resumed = whole.as_ref().is_some_and(Generation::exists);
    let generation =
        whole.as_ref().map(|whole| if resumed { Ok(whole.clone()) } else { whole.begin() }).transpose()?;

    let links = generation.as_ref().map(Generation::links);
    let attacher = Attacher { root: &root, btf: &btf, links, held: RefCell::default() };
    let maps = generation.as_ref().map(Generation::maps);
    let attached = open(object, options, settings, &btf, maps).and_then(|mut ebpf| {
        // Before the first program that may fold something.
        let folds = Folds::new(|map| ebpf.take_map(map).ok_or(LoadError::Lacks(map)), resumed)?;
        // Until somebody looks: an earlier run may have, and what it was not told must not be taken for told.
        switch(&mut ebpf, abi::SWITCH_OPEN, false)?;
        if *dns_names {
            features.push(dns::attach(&mut ebpf, &attacher)?);
        }
        features.extend(attach(&mut ebpf, &attacher, &types, can_tell_drops, can_tell_ends)?);
        Ok((ebpf, folds))
    });
    let ebpf = match (attached, &generation) {
        (Err(error), Some(partial)) if !resumed => {
            // The reason why it failed says more than that this did.
            let _ = partial.remove();
            return Err(error);
        }
        (attached, _) => attached?,
    };
    let (ebpf, folds) = ebpf;
    let pinned = match (pins, whole, generation) {
        (Some(pins), Some(whole), Some(generation)) => {
            if !resumed {
                generation.finish(&whole)?;
            }
            Some(Pinned { pins, generation: whole, resumed })
        }
        _ => None,
    };
    let links = attacher.held.into_inner();
    Ok(Loaded { ebpf, folds, links, hierarchy, features, pinned })
}

/// Where to pin, if that is asked for and possible. A node without a BPF file system is no reason to see nothing.
fn pins(
    options: &Options,
    hierarchy: &Hierarchy,
    features: &mut Vec<Feature>,
) -> Result<Option<Pins>, LoadError> {
    let Some(directory) = &options.pin_directory else { return Ok(None) };
    let opened = Pins::open(directory, hierarchy.part.unwrap_or(CgroupId(1)));
    if let Err(in_use @ PinError::InUse(_)) = opened {
        return Err(in_use.into());
    }
    let absent = opened.as_ref().err().map(|error| chain(error));
    features.push(Feature { name: Feature::PINS, absent });
    Ok(opened.ok())
}

/// Whether the verifier lets no program keep anything for the socket that a file is of: kernels since some time in 2026 trust no pointer
/// that is read from another that is not trusted, which those before them took as it was.
fn trusts_no_socket(object: &[u8], settings: Settings, btf: &Btf) -> bool {
    let options =
        Options { ring_bytes: 4096, attempts: 1, fold_keys: 1, fold_subjects: 1, ..Options::default() };
    let Ok(mut ebpf) = open(object, &options, settings, btf, None) else { return false };
    match ebpf.program_mut("scan_files") {
        Some(Program::Iter(program)) => {
            program.load("task_file", btf).is_err_and(|error| format!("{error:?}").contains("untrusted_ptr_"))
        }
        _ => false,
    }
}

fn open(
    object: &[u8],
    options: &Options,
    settings: Settings,
    btf: &Btf,
    maps: Option<PathBuf>,
) -> Result<Ebpf, LoadError> {
    let settings = Global(settings);
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(btf))
        .override_global("SETTINGS", &settings, true)
        .map_max_entries("RECORDS", options.ring_bytes)
        .map_max_entries("ATTEMPTS", options.attempts.max(1));
    // It takes its memory at once.
    loader.map_max_entries("BY_ADDRESS", if settings.0.sockets_untrusted != 0 { abi::BY_ADDRESS } else { 1 });
    for (maps, room) in folds::MAPS.into_iter().zip([options.fold_keys, options.fold_subjects]) {
        for map in maps {
            loader.map_max_entries(map, room.max(1));
        }
    }
    for (directory, name) in maps.iter().flat_map(|directory| MAPS.map(|name| (directory, name))) {
        loader.map_pin_path(name, directory.join(name));
    }
    let ebpf = loader.load(object).map_err(LoadError::Object)?;
    // Those of sections hold constants. A map that does not outlive us while its programs do would be read in vain.
    let forgotten =
        ebpf.maps().map(|(name, _)| name).find(|name| !name.starts_with('.') && !MAPS.contains(name));
    match forgotten {
        Some(name) if maps.is_some() => Err(LoadError::NotPinned(name.to_owned())),
        _ => Ok(ebpf),
    }
}

fn attach(
    ebpf: &mut Ebpf,
    attacher: &Attacher<'_>,
    types: &Types<'_>,
    can_tell_drops: Result<(), BtfError>,
    can_tell_ends: Result<(), BtfError>,
) -> Result<Vec<Feature>, LoadError> {
    for (program, hook) in CORE {
        attacher.attach(ebpf, program, hook)?.map_err(|source| LoadError::Program { program, source })?;
    }
    let listeners = match types.field("socket", "sk")?.byte() {
        // The program has this offset built in, as the verifier must see it.
        24 => scan(ebpf, attacher.btf, Feature::LISTENERS, "scan_files", "task_file"),
        offset => {
            let absent = Some(format!("socket.sk is at {offset}, not at 24"));
            Feature { name: Feature::LISTENERS, absent }
        }
    };
    Ok(vec![
        udp_send(ebpf, attacher)?,
        udp_errors(ebpf, attacher)?,
        scan(ebpf, attacher.btf, Feature::TASKS, "scan_tasks", "task"),
        open::feature(&listeners, can_tell_ends),
        listeners,
        drops::attach(ebpf, attacher, can_tell_drops)?,
    ])
}

/// Attaches where the kernel sends, and tells the other programs so: at the tracepoint, or else at both functions.
fn udp_send(ebpf: &mut Ebpf, attacher: &Attacher<'_>) -> Result<Feature, LoadError> {
    const NAME: &str = Feature::UDP_FIRST_DATAGRAM;
    if attacher.attach(ebpf, "on_sent", Hook::Tracepoint("sock_send_length"))?.is_err() {
        for (name, function) in [("on_sending4", "udp_sendmsg"), ("on_sending6", "udpv6_sendmsg")] {
            if let Err(error) = attacher.attach(ebpf, name, Hook::Entry(function))? {
                return Ok(Feature { name: NAME, absent: Some(chain(&error)) });
            }
        }
    }
    switch(ebpf, abi::SWITCH_UDP_SEND, true)?;
    Ok(Feature { name: NAME, absent: None })
}

/// Turns a switch of the programs.
///
/// # Errors
///
/// When the object has none, or the kernel refuses.
pub fn switch(ebpf: &mut Ebpf, which: u32, on: bool) -> Result<(), LoadError> {
    let map = ebpf.map_mut("SWITCHES").ok_or(LoadError::Lacks("SWITCHES"))?;
    let set = Array::<_, u32>::try_from(map).and_then(|mut switches| switches.set(which, u32::from(on), 0));
    set.map_err(|source| LoadError::Map { map: "SWITCHES", source })
}

/// Attaches where the kernel reports an error to a socket.
fn udp_errors(ebpf: &mut Ebpf, attacher: &Attacher<'_>) -> Result<Feature, LoadError> {
    let attached = attacher.attach(ebpf, "on_error", Hook::Tracepoint("inet_sk_error_report"))?;
    Ok(Feature { name: Feature::UDP_ERRORS, absent: attached.err().map(|error| chain(&error)) })
}

fn scan(ebpf: &mut Ebpf, btf: &Btf, name: &'static str, program: &'static str, kind: &str) -> Feature {
    let absent = match ebpf.program_mut(program) {
        Some(Program::Iter(program)) => program.load(kind, btf).err().map(|error| chain(&error)),
        _ => Some(format!("the object has no {program}")),
    };
    Feature { name, absent }
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text.truncate(text.find('\n').unwrap_or(text.len()));
    text
}

/// Where the kernel refused something, says which capabilities it may have missed. The kernel decides, and not a list of ours:
/// so a capability that it would not ask for cannot stay among those that we ask of others.
fn name_missing_capabilities(error: LoadError) -> LoadError {
    if !matches!(error, LoadError::Object(_) | LoadError::Program { .. } | LoadError::Map { .. }) {
        return error;
    }
    // Where the list cannot be read, what the kernel said must do.
    let missing = fs::read_to_string("/proc/self/status").map(|status| missing_capabilities(&status));
    match missing {
        Ok(missing) if !missing.is_empty() => LoadError::Capabilities { missing, refused: Box::new(error) },
        _ => error,
    }
}

/// Which of the needed capabilities the text of a `status` file does not show as effective.
fn missing_capabilities(status: &str) -> Vec<&'static str> {
    const SYS_ADMIN: u32 = 21;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let has = |bit: u32| effective >> bit & 1 == 1;
    let needed = [("CAP_BPF", 39, true), ("CAP_NET_ADMIN", 12, false), ("CAP_PERFMON", 38, true)];
    needed
        .into_iter()
        // Before 5.8 there was one capability for two of them, and it still serves.
        .filter(|(_, bit, in_sys_admin)| !(has(*bit) || *in_sys_admin && has(SYS_ADMIN)))
        .map(|(name, ..)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let none = "Name:\tx\nCapEff:\t0000000000000000\n";
        assert_eq!(missing_capabilities(none), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
        let enough = format!("CapEff:\t{:016x}\n", 1_u64 << 39 | 1 << 38 | 1 << 12);
        assert!(missing_capabilities(&enough).is_empty());
        let old = format!("CapEff:\t{:016x}\n", 1_u64 << 21);
        assert_eq!(missing_capabilities(&old), ["CAP_NET_ADMIN"]);
        let refused = Box::new(LoadError::Lacks("x"));
        let error = LoadError::Capabilities { missing: missing_capabilities(none), refused }.to_string();
        assert!(error.contains("CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON"), "{error}");
    }

    #[test]
    fn a_ring_must_be_a_power_of_two() {
        let options = Options { ring_bytes: 5000, ..Options::default() };
        match load(&options, NetnsCookie(1)).map(|_| ()) {
            Err(LoadError::RingBytes(5000) | LoadError::NoObject) => {}
            other => panic!("{other:?}"),
        }
    }
}
