//! A certificate for servers that play the internet.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rcgen::{CertifiedKey, generate_simple_self_signed};

/// Writes `certificate.pem` and `key.pem` into `directory`: a server that is called `name`, signed by itself.
pub fn write(name: &str, directory: &Path) -> Result<(PathBuf, PathBuf)> {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed([name.to_owned()])?;
    let (certificate, key) = (directory.join("certificate.pem"), directory.join("key.pem"));
    for (path, text) in [(&certificate, cert.pem()), (&key, signing_key.serialize_pem())] {
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok((certificate, key))
}
