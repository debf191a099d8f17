//! The programs of a Kubernetes cluster: from `$KUBEBUILDER_ASSETS`, from `PATH`, or built once from their Go modules into
//! a cache outside the target directory.
//!
//! `k8s.io/kubernetes` cannot be `go install`ed, since its go.mod replaces its own staging modules: a module of ours
//! repeats the replacements and builds the commands.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::process::on_path;

/// The minor release of Kubernetes, whose staging modules are `v0.{MINOR}`.
const MINOR: &str = "34.4";

/// The staging modules of that release.
const STAGING: &str = "api apiextensions-apiserver apimachinery apiserver cli-runtime client-go cloud-provider \
     cluster-bootstrap code-generator component-base component-helpers controller-manager cri-api cri-client \
     csi-translation-lib dynamic-resource-allocation endpointslice externaljwt kms kube-aggregator \
     kube-controller-manager kube-proxy kube-scheduler kubectl kubelet metrics mount-utils pod-security-admission \
     sample-apiserver sample-cli-plugin sample-controller";

/// The oldest Go that builds that release.
const GO: &str = "1.24";

/// How a program is had where nobody has it.
enum Source {
    /// A command of `k8s.io/kubernetes`.
    Kubernetes,
    /// `go install` of this package at this version.
    Module { package: &'static str, version: &'static str },
}

/// A program and where it comes from.
struct Program {
    name: &'static str,
    source: Source,
}

const fn kubernetes(name: &'static str) -> Program {
    Program { name, source: Source::Kubernetes }
}

const PROGRAMS: &[Program] = &[
    kubernetes("kube-apiserver"),
    kubernetes("kube-controller-manager"),
    kubernetes("kube-scheduler"),
    kubernetes("kube-proxy"),
    kubernetes("kubelet"),
    kubernetes("kubectl"),
    Program {
        name: "coredns",
        source: Source::Module { package: "github.com/coredns/coredns", version: "v1.14.7" },
    },
    Program {
        name: "kube-router",
        source: Source::Module {
            package: "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",
            version: "v2.1.0",
        },
    },
];

/// Paths of `names`, in that order; builds what is missing. Programs from elsewhere may be of another version.
///
/// # Errors
///
/// When something has to be built and there is no Go, or the build fails.
pub fn find<const N: usize>(names: [&str; N]) -> Result<[PathBuf; N]> {
    let wanted = names.map(|name| {
        PROGRAMS.iter().find(|program| program.name == name).expect("callers name programs of the table")
    });
    let cache = cache_directory()?;
    let missing: Vec<&Program> =
        wanted.iter().copied().filter(|program| program.find(&cache).is_none()).collect();
    if !missing.is_empty() {
        build(&cache, &missing)?;
    }
    let mut paths = Vec::with_capacity(N);
    for program in wanted {
        paths.push(program.find(&cache).with_context(|| format!("{} was not built", program.name))?);
    }
    Ok(paths.try_into().expect("as many as asked for"))
}

/// Whether everything is there or can be built.
pub fn can_be_had() -> Result<bool> {
    let cache = cache_directory()?;
    Ok(go_is_there() || PROGRAMS.iter().all(|program| program.find(&cache).is_some()))
}

/// A Go program of ours, built from its module in `directory`, unless the same sources have been built before; `None`
/// where there is no Go.
pub fn own(name: &str, directory: &Path) -> Result<Option<PathBuf>> {
    made_once(name, directory, |target| {
        fs::create_dir(target).with_context(|| format!("making {}", target.display()))?;
        let output = target.join(name).to_string_lossy().into_owned();
        go(directory, &["build", "-trimpath", "-o", &output, "."], None)
    })
    .map(|made| made.map(|target| target.join(name)))
}

/// The definitions of the Prometheus operator's kinds, a file each, generated from its types by the generator that its
/// makers use; `None` where there is no Go. `directory` is the Go module that names both, with their versions.
pub fn operator_definitions(directory: &Path) -> Result<Option<PathBuf>> {
    made_once("prometheus-operator", directory, |target| {
        let types = "paths=github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1";
        let output = format!("output:crd:dir={}", target.display());
        let generator = "sigs.k8s.io/controller-tools/cmd/controller-gen";
        go(directory, &["run", "-mod=readonly", generator, "crd", types, &output], None)
    })
}

/// The directory that `make` makes from the Go module in `directory`, unless it was made from the same sources before; `None`
/// where there is no Go.
fn made_once(
    name: &str,
    directory: &Path,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<Option<PathBuf>> {
    let mut sources: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        sources.push(entry?.path());
    }
    sources.sort();
    let mut hash = Sha256::new();
    for source in &sources {
        hash.update(fs::read(source).with_context(|| format!("reading {}", source.display()))?);
    }
    let version = u64::from_be_bytes(hash.finalize()[..8].try_into().expect("SHA-256 has 32 bytes"));
    let target = cache_directory()?.join(format!("{name}-{version:016x}"));
    if !target.is_dir() {
        if !go_is_there() {
            return Ok(None);
        }
        fs::create_dir_all(cache_directory()?).context("making the cache")?;
        eprintln!("making {name} in {} (once)", target.display());
        let partial = target.with_extension("partial");
        // Of an interrupted run.
        if partial.exists() {
            fs::remove_dir_all(&partial).with_context(|| format!("removing {}", partial.display()))?;
        }
        in_one_step(&target, |_| make(&partial))?;
    }
    Ok(Some(target))
}

impl Program {
    /// A person's own programs win over those that we built.
    fn find(&self, cache: &Path) -> Option<PathBuf> {
        let assets =
            std::env::var_os("KUBEBUILDER_ASSETS").map(|assets| PathBuf::from(assets).join(self.name));
        assets
            .filter(|path| path.is_file())
            .or_else(|| on_path(self.name))
            .or_else(|| Some(self.cached(cache)).filter(|path| path.is_file()))
    }

    /// Versions are part of the path, so that a newer checkout does not run an older program.
    fn cached(&self, cache: &Path) -> PathBuf {
        match self.source {
            Source::Kubernetes => cache.join(format!("kube-1.{MINOR}")).join(self.name),
            Source::Module { version, .. } => cache.join(format!("{}-{version}", self.name)).join(self.name),
        }
    }
}

pub fn cache_directory() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("neither $XDG_CACHE_HOME nor $HOME is set: no place for a cache")?;
    Ok(base.join("netaudit"))
}

fn go_is_there() -> bool {
    Command::new("go").arg("version").output().is_ok()
}

fn build(cache: &Path, missing: &[&Program]) -> Result<()> {
    let names = missing.iter().map(|program| program.name).collect::<Vec<_>>().join(", ");
    if !go_is_there() {
        bail!(
            "{names}: neither in $KUBEBUILDER_ASSETS nor on PATH, and no `go` ({GO} or newer) to build them with"
        );
    }
    eprintln!("building {names} into {} (once, some minutes)", cache.display());
    let of_kubernetes: Vec<&Program> =
        missing.iter().copied().filter(|program| matches!(program.source, Source::Kubernetes)).collect();
    if !of_kubernetes.is_empty() {
        build_kubernetes(cache, &of_kubernetes)?;
    }
    for program in missing {
        if let Source::Module { package, version } = program.source {
            install(cache, program, &format!("{package}@{version}"))?;
        }
    }
    Ok(())
}

fn build_kubernetes(cache: &Path, programs: &[&Program]) -> Result<()> {
    let module = cache.join(format!("kube-1.{MINOR}")).join("module");
    fs::create_dir_all(&module).with_context(|| format!("making {}", module.display()))?;
    let replaced =
        STAGING.split_whitespace().map(|name| format!("\tk8s.io/{name} => k8s.io/{name} v0.{MINOR}\n"));
    let go_mod = format!(
        "module netaudit.test/kube\n\ngo {GO}.0\n\nrequire k8s.io/kubernetes v1.{MINOR}\n\nreplace (\n{})\n",
        replaced.collect::<String>()
    );
    let packages: Vec<String> =
        programs.iter().map(|program| format!("k8s.io/kubernetes/cmd/{}", program.name)).collect();
    let imports: String = packages.iter().map(|package| format!("import _ \"{package}\"\n")).collect();
    fs::write(module.join("go.mod"), go_mod)?;
    fs::write(module.join("tools.go"), format!("//go:build tools\n\npackage tools\n\n{imports}"))?;
    go(&module, &["mod", "tidy"], None)?;
    let minor = MINOR.split('.').next().unwrap_or(MINOR);
    let version = "k8s.io/component-base/version";
    let flags = format!(
        "-s -w -X {version}.gitVersion=v1.{MINOR} -X {version}.gitMajor=1 -X {version}.gitMinor={minor}"
    );
    for (program, package) in programs.iter().zip(&packages) {
        in_one_step(&program.cached(cache), |output| {
            go(&module, &["build", "-trimpath", "-ldflags", &flags, "-o", output, package], None)
        })?;
    }
    Ok(())
}

fn install(cache: &Path, program: &Program, package: &str) -> Result<()> {
    let target = program.cached(cache);
    let directory = target.parent().expect("it lies in a directory of its own");
    let partial = directory.join("partial");
    fs::create_dir_all(&partial).with_context(|| format!("making {}", partial.display()))?;
    go(directory, &["install", "-trimpath", "-ldflags", "-s -w", package], Some(&partial))?;
    fs::rename(partial.join(program.name), &target)?;
    fs::remove_dir(&partial)?;
    Ok(())
}

/// An interrupted build leaves nothing that looks finished.
fn in_one_step(target: &Path, make: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let partial = target.with_extension("partial");
    make(&partial.to_string_lossy())?;
    fs::rename(&partial, target).with_context(|| format!("moving {} into place", target.display()))
}

fn go(directory: &Path, arguments: &[&str], bin: Option<&Path>) -> Result<()> {
    let mut command = Command::new("go");
    command.args(arguments).current_dir(directory).env("CGO_ENABLED", "0");
    if let Some(bin) = bin {
        command.env("GOBIN", bin);
    }
    let status = command.status().context("starting go")?;
    if !status.success() {
        bail!("go {} failed with {status}", arguments.join(" "));
    }
    Ok(())
}
