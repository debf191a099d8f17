//! A real kube-apiserver for the tests: from `$KUBEBUILDER_ASSETS`, else built once from its Go module into a cache.
//!
//! `k8s.io/kubernetes` cannot be `go install`ed, since its go.mod replaces its own staging modules: a module of ours
//! repeats the replacements and builds the command.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// The minor release of Kubernetes, whose staging modules are `v0.{MINOR}`.
const MINOR: &str = "34.4";

/// The staging modules of that release.
const STAGING: &str = "api apiextensions-apiserver apimachinery apiserver cli-runtime client-go cloud-provider \
     cluster-bootstrap code-generator component-base component-helpers controller-manager cri-api cri-client \
     csi-translation-lib dynamic-resource-allocation endpointslice externaljwt kms kube-aggregator \
     kube-controller-manager kube-proxy kube-scheduler kubectl kubelet metrics mount-utils pod-security-admission \
     sample-apiserver sample-cli-plugin sample-controller";

/// The directory that holds `kube-apiserver`; builds it where it is missing. `None`, said on stderr, without Go.
pub fn api_server() -> Result<Option<PathBuf>> {
    if let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from)
        && assets.join("kube-apiserver").is_file()
    {
        return Ok(Some(assets));
    }
    let cache = cache_directory()?.join(format!("kube-1.{MINOR}"));
    if cache.join("kube-apiserver").is_file() {
        return Ok(Some(cache));
    }
    if Command::new("go").arg("version").output().is_err() {
        eprintln!(
            "SKIPPED: no kube-apiserver in $KUBEBUILDER_ASSETS and no `go` (1.21 or newer) to build it with"
        );
        return Ok(None);
    }
    eprintln!("building kube-apiserver 1.{MINOR} into {} (once, some minutes)", cache.display());
    build(&cache)?;
    Ok(Some(cache))
}

fn cache_directory() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("neither $XDG_CACHE_HOME nor $HOME is set: no place for a cache")?;
    Ok(base.join("netaudit"))
}

fn build(cache: &Path) -> Result<()> {
    let module = cache.join("module");
    fs::create_dir_all(&module)?;
    let replaced =
        STAGING.split_whitespace().map(|name| format!("\tk8s.io/{name} => k8s.io/{name} v0.{MINOR}\n"));
    let go_mod = format!(
        "module netaudit.test/kube\n\ngo 1.24.0\n\nrequire k8s.io/kubernetes v1.{MINOR}\n\nreplace (\n{})\n",
        replaced.collect::<String>()
    );
    fs::write(module.join("go.mod"), go_mod)?;
    fs::write(
        module.join("tools.go"),
        "//go:build tools\n\npackage tools\n\nimport _ \"k8s.io/kubernetes/cmd/kube-apiserver\"\n",
    )?;
    go(&module, &["mod", "tidy"])?;
    let minor = MINOR.split('.').next().unwrap_or(MINOR);
    let version = "k8s.io/component-base/version";
    let flags = format!(
        "-s -w -X {version}.gitVersion=v1.{MINOR} -X {version}.gitMajor=1 -X {version}.gitMinor={minor}"
    );
    // Into place in one step: an interrupted build leaves nothing that looks finished.
    let partial = cache.join("kube-apiserver.partial");
    let output = partial.to_string_lossy();
    go(
        &module,
        &["build", "-trimpath", "-ldflags", &flags, "-o", &output, "k8s.io/kubernetes/cmd/kube-apiserver"],
    )?;
    fs::rename(&partial, cache.join("kube-apiserver"))?;
    Ok(())
}

fn go(module: &Path, arguments: &[&str]) -> Result<()> {
    let status = Command::new("go").args(arguments).current_dir(module).env("CGO_ENABLED", "0").status()?;
    if !status.success() {
        bail!("go {} failed with {status}", arguments.join(" "));
    }
    Ok(())
}
