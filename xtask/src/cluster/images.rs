//! The images of the cluster's own pods, made here: nothing can be assumed to be pulled.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::{
    image::{Entry, Image},
    process::on_path,
};

/// What holds a pod's namespaces.
pub const PAUSE: &str = "localhost/netaudit-pause:1";
/// A busybox, into which pods mount what else they run.
pub const TOOLS: &str = "localhost/netaudit-tools:1";
/// The cluster's name server.
pub const COREDNS: &str = "localhost/coredns:1";

/// Writes the archives into `directory`, and returns their paths.
pub fn write(directory: &Path, coredns: &Path) -> Result<Vec<PathBuf>> {
    let busybox = on_path("busybox").context("no busybox on PATH: `cargo xtask setup` installs it")?;
    let busybox_at = |path: &str| Entry::file(path, 0o755, &busybox);
    let pause = Image {
        reference: PAUSE.to_owned(),
        entrypoint: vec!["/busybox".to_owned(), "sleep".to_owned(), "2147483647".to_owned()],
        files: vec![busybox_at("/busybox")],
        local: true,
        ..Image::default()
    };
    let links = ["sh", "sleep", "cat", "echo", "true", "false", "nc", "nslookup", "ls", "env", "ip", "kill"];
    let mut files = vec![busybox_at("/bin/busybox")];
    files.extend(links.map(|name| Entry::symlink(format!("/bin/{name}"), "/bin/busybox")));
    // What a pod mounts over, and what programs expect to be there.
    files.extend(
        ["/usr", "/lib", "/lib64", "/etc", "/sbin", "/var", "/run", "/root"]
            .map(|path| Entry::directory(path, 0o755)),
    );
    files.push(Entry::directory("/tmp", 0o1777));
    let tools = Image {
        reference: TOOLS.to_owned(),
        entrypoint: vec!["/bin/sh".to_owned()],
        environment: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
        files,
        local: true,
        ..Image::default()
    };
    let coredns = Image {
        reference: COREDNS.to_owned(),
        entrypoint: vec!["/coredns".to_owned()],
        files: vec![Entry::file("/coredns", 0o755, coredns)],
        local: true,
        ..Image::default()
    };
    let mut archives = Vec::new();
    for (name, image) in [("pause", pause), ("tools", tools), ("coredns", coredns)] {
        let archive = directory.join(format!("{name}.tar"));
        image.write_archive(&archive)?;
        archives.push(archive);
    }
    Ok(archives)
}
