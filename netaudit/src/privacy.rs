//! What an agent leaves out of flows, as its configuration says; and the file of the secret that addresses are hashed with.

use std::path::Path;

use anyhow::Context as _;

use crate::{
    audit::{AddressKey, Privacy},
    config::Config,
};

/// What the configuration says, with the secret that it names.
///
/// # Errors
///
/// The secret's file cannot be read, or holds no secret.
pub fn of(config: &Config) -> anyhow::Result<Privacy> {
    let key = config.hash_key.as_deref().map(read_key).transpose()?;
    Ok(Privacy { omits_processes: config.omit_processes, omits_names: config.omit_dns_names, key })
}

/// The key that a file holds.
///
/// # Errors
///
/// It cannot be read, or holds no secret.
pub fn read_key(file: &Path) -> anyhow::Result<AddressKey> {
    let how = "make one with `openssl rand -hex 32`";
    let secret =
        std::fs::read(file).with_context(|| format!("cannot read the hash key {}: {how}", file.display()))?;
    AddressKey::new(&secret).with_context(|| format!("the hash key {} is none: {how}", file.display()))
}
