//! Certificates and kubeconfigs: one authority, a serving certificate for the API server, a client certificate for
//! everyone who talks to it.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// The authority and the directory that all files go to.
pub struct Pki {
    directory: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    /// A new authority, whose certificate is `ca.crt` in `directory`.
    pub fn new(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, "netaudit-cluster");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let pki = Self { directory: directory.to_owned(), authority };
        fs::write(pki.directory.join("ca.crt"), pki.authority.pem())?;
        Ok(pki)
    }

    /// A key pair that is nobody's certificate, `.key` and `.pub`: what signs service accounts' tokens.
    pub fn key(&self, name: &str) -> Result<()> {
        let key = KeyPair::generate()?;
        write_secret(&self.directory.join(format!("{name}.key")), &key.serialize_pem())?;
        fs::write(self.directory.join(format!("{name}.pub")), key.public_key_pem())?;
        Ok(())
    }

    /// A certificate for a server that is known by these names and addresses.
    pub fn server(&self, name: &str, known_as: &[String]) -> Result<()> {
        let mut params = CertificateParams::new(known_as)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(name, name, params)
    }

    /// A certificate for the user `user` in the given groups.
    pub fn client(&self, name: &str, user: &str, groups: &[&str]) -> Result<()> {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        self.issue(name, user, params)
    }

    /// A kubeconfig with a client certificate of its own; `server` is the API server's URL. It names its files without a
    /// directory, since machines see them at another path.
    pub fn kubeconfig(&self, name: &str, user: &str, groups: &[&str], server: &str) -> Result<()> {
        self.client(name, user, groups)?;
        let path = self.directory.join(format!("{name}.kubeconfig"));
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "cluster",
            "contexts": [{ "name": "cluster", "context": { "cluster": "cluster", "user": "user" } }],
            "clusters": [{
                "name": "cluster",
                "cluster": { "server": server, "certificate-authority": "ca.crt" },
            }],
            "users": [{
                "name": "user",
                "user": { "client-certificate": format!("{name}.crt"), "client-key": format!("{name}.key") },
            }],
        });
        fs::write(&path, serde_json::to_string_pretty(&config)?)?;
        Ok(())
    }

    fn issue(&self, name: &str, common_name: &str, mut params: CertificateParams) -> Result<()> {
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.authority)?;
        fs::write(self.directory.join(format!("{name}.crt")), certificate.pem())?;
        write_secret(&self.directory.join(format!("{name}.key")), &key.serialize_pem())
    }
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("making {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    Ok(())
}
