//! Builds the eBPF programs, and runs clippy on them.
//!
//! Two toolchains can: Debian's `rustc-web`, which ships `core` for the BPF target, and a rustup nightly that builds
//! `core` itself. The first is preferred where it is installed. Both link with `bpf-linker`.

use std::{
    env, fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};

use crate::remap;

const TARGET: &str = "bpfel-unknown-none";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CLIPPY: &str = "/usr/bin/clippy-driver";
/// The separator that cargo wants between flags.
pub const UNIT: &str = "\u{1f}";

/// Builds the programs and returns the object's path, `target/bpf/netaudit.bpf.o`.
///
/// The object is replaced only if its bytes changed, so that nothing that embeds it is built again for nothing.
///
/// # Errors
///
/// When no toolchain for the BPF target is found, or the build fails.
pub fn build_ebpf(workspace_root: &Path) -> anyhow::Result<PathBuf> {
    let mut cargo = Toolchain::find()?.cargo("build", workspace_root)?;
    run(&mut cargo)?;
    let built = target_directory(workspace_root).join(TARGET).join("release/netaudit-ebpf");
    let mut bytes = fs::read(&built).with_context(|| format!("no object at {}", built.display()))?;
    mend_union_names(&mut bytes);
    let object = workspace_root.join("target/bpf/netaudit.bpf.o");
    if fs::read(&object).ok().as_deref() != Some(&bytes) {
        fs::create_dir_all(object.parent().context("the object has a directory")?)?;
        fs::write(&object, bytes).with_context(|| format!("cannot write {}", object.display()))?;
    }
    Ok(object)
}

/// Replaces what is no letter or digit in the names of `MaybeUninit` unions by `_`.
///
/// bpf-linker 0.10 writes identifiers out of the generic names of structures, but not of unions, and the kernel refuses
/// type information with any other name. aya-ebpf's globals are such unions, and aya-log has one.
fn mend_union_names(object: &mut [u8]) {
    const NAME: &[u8] = b"\0MaybeUninit<";
    let mut at = 0;
    while let Some(found) = object[at..].windows(NAME.len()).position(|window| window == NAME) {
        at += found + 1;
        while let Some(byte) = object.get_mut(at).filter(|byte| **byte != 0) {
            if !byte.is_ascii_alphanumeric() {
                *byte = b'_';
            }
            at += 1;
        }
    }
}

/// Runs clippy on the eBPF programs; warnings are errors.
///
/// # Errors
///
/// When no clippy for the toolchain is found, or it has findings.
pub fn clippy_ebpf(workspace_root: &Path) -> anyhow::Result<()> {
    let toolchain = Toolchain::find()?;
    let mut cargo = match toolchain {
        // rustup's clippy has another compiler inside than Debian's, which cannot read its `core`.
        Toolchain::Debian => {
            ensure!(
                Path::new(DEBIAN_CLIPPY).exists(),
                "no {DEBIAN_CLIPPY}: `cargo xtask setup` installs Debian's rust-web-clippy"
            );
            let mut cargo = toolchain.cargo("check", workspace_root)?;
            cargo
                .env("RUSTC_WORKSPACE_WRAPPER", DEBIAN_CLIPPY)
                .env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__");
            cargo
        }
        Toolchain::Nightly => {
            let mut cargo = toolchain.cargo("clippy", workspace_root)?;
            cargo.args(["--", "-Dwarnings"]);
            cargo
        }
    };
    // Its own directory: clippy's metadata and the compiler's do not mix.
    cargo.env("CARGO_TARGET_DIR", workspace_root.join("target/bpf-clippy"));
    run(&mut cargo)
}

fn run(cargo: &mut Command) -> anyhow::Result<()> {
    let status = cargo.status().with_context(|| format!("cannot run {:?}", cargo.get_program()))?;
    ensure!(status.success(), "{cargo:?} failed");
    Ok(())
}

/// A build directory of its own, so that neither build waits for the other's lock.
fn target_directory(workspace_root: &Path) -> PathBuf {
    workspace_root.join("target/bpf-build")
}

#[derive(Clone, Copy)]
enum Toolchain {
    Debian,
    Nightly,
}

impl Toolchain {
    fn find() -> anyhow::Result<Self> {
        if on_path("bpf-linker").is_none() {
            bail!("no bpf-linker on PATH: `cargo xtask setup` installs it");
        }
        if Path::new(DEBIAN_RUSTC).exists() && has_core(DEBIAN_RUSTC) {
            return Ok(Self::Debian);
        }
        let nightly = Command::new("rustc").args(["+nightly", "--print", "sysroot"]).output();
        if let Ok(output) = nightly
            && output.status.success()
        {
            let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
            if sysroot.join("lib/rustlib/src/rust/library/core").exists() {
                return Ok(Self::Nightly);
            }
        }
        bail!(
            "no Rust for {TARGET}: `cargo xtask setup` installs Debian's rustc-web; elsewhere \
             `rustup toolchain install nightly --component rust-src` does"
        )
    }

    fn rustc(self) -> Command {
        match self {
            Self::Debian => Command::new(DEBIAN_RUSTC),
            Self::Nightly => {
                let mut rustc = Command::new("rustc");
                rustc.arg("+nightly").env_remove("RUSTUP_TOOLCHAIN");
                rustc
            }
        }
    }

    fn cargo(self, verb: &str, workspace_root: &Path) -> anyhow::Result<Command> {
        let mut flags = remap::flags(workspace_root, || self.rustc())?;
        // Compare and exchange came with v3, and that with Linux 5.12.
        flags.extend(
            ["-Clinker=bpf-linker", "-Clink-arg=--btf", "-Ctarget-cpu=v3", "-Cdebuginfo=2"]
                .map(str::to_owned),
        );
        // Cargo sets variables for the tasks it runs, which would choose the compiler in our place.
        let mut cargo = match self {
            Self::Debian => {
                let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
            Self::Nightly => {
                let mut cargo = Command::new("cargo");
                cargo.arg("+nightly").env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN");
                cargo
            }
        };
        cargo.arg(verb);
        if matches!(self, Self::Nightly) {
            cargo.args(["-Z", "build-std=core"]);
        }
        cargo
            .args(["--release", "--locked", "--package", "netaudit-ebpf", "--features", "programs", "--bins"])
            .args(["--target", TARGET])
            .current_dir(workspace_root)
            .env("CARGO_TARGET_DIR", target_directory(workspace_root))
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join(UNIT))
            .env_remove("RUSTFLAGS")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER");
        without_address_randomization(&mut cargo);
        Ok(cargo)
    }
}

/// Makes LLVM's work repeatable: it lists structures that are only pointed at in the order of their addresses in its own
/// memory, so that one link in eight came out with the names of two of them swapped in the type information.
///
/// A sandbox may forbid it, as Docker's does; then the programs are no worse, but not always the same bytes.
fn without_address_randomization(command: &mut Command) {
    let change = || {
        // SAFETY: reads and changes what the kernel will do at this process's next exec; no memory is involved.
        unsafe {
            let now = libc::personality(0xffff_ffff);
            libc::personality((now | libc::ADDR_NO_RANDOMIZE) as libc::c_ulong);
        }
        Ok(())
    };
    // SAFETY: between fork and exec, the closure makes two system calls and touches nothing else.
    unsafe { command.pre_exec(change) };
}

/// Whether `rustc` has a ready `core` for the target.
fn has_core(rustc: &str) -> bool {
    let output = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    output.is_ok_and(|output| {
        output.status.success() && Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir()
    })
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(program)).find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn union_names_become_identifiers_and_nothing_else_changes() {
        let mut object = *b"Global<u8>\0MaybeUninit<core::ffi::c_int>\0Vec<u8>\0MaybeUninit<u8>";
        mend_union_names(&mut object);
        assert_eq!(&object, b"Global<u8>\0MaybeUninit_core__ffi__c_int_\0Vec<u8>\0MaybeUninit_u8_");
    }
}
