//! netaudit's command line as a person runs it.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, ensure};
use tempfile::TempDir;

/// What a command printed, and its exit status.
pub(crate) struct Run {
    pub status: i32,
    pub out: String,
    pub err: String,
}

/// The command, without arguments.
pub(crate) fn netaudit() -> Command {
    Command::new(env!("CARGO_BIN_EXE_netaudit"))
}

/// Runs it to its end.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Run {
    let output = command.output().expect("netaudit runs");
    Run {
        status: output.status.code().expect("not killed"),
        out: String::from_utf8(output.stdout).expect("text"),
        err: String::from_utf8(output.stderr).expect("text"),
    }
}

/// A directory with files of these names and texts, gone with the guard.
pub(crate) fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary directory");
    for (name, text) in files {
        fs::write(folder.path().join(name), text).expect("written");
    }
    folder
}

/// Makes a certificate for 127.0.0.1 that is its own authority, and its key.
pub(crate) fn self_signed(certificate: &Path, key: &Path) -> Result<()> {
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(key)
        .arg("-out")
        .arg(certificate)
        .output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}
