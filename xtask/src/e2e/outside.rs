//! The internet, as far as the scenario needs it: HTTPS servers and a name server, on the machine that is the outside.

use std::{fs, time::Duration};

use anyhow::Result;

use super::batchivo::EXTERNAL;
use crate::{
    certificate,
    cluster::{INTERNET, Machine, listens},
};

/// Starts both, and waits for them.
pub fn start(outside: &Machine) -> Result<()> {
    certificate::write(EXTERNAL[0].0, &outside.var("tmp"))?;
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|part| format!("{part}_temp_path /var/tmp/{part}; "))
        .concat();
    let listen: String = INTERNET[..2]
        .iter()
        .map(|address| format!("listen {address}:80; listen {address}:443 ssl; "))
        .collect();
    fs::write(
        outside.var("tmp/nginx.conf"),
        format!(
            "daemon off; master_process off; user root; pid /var/tmp/nginx.pid; error_log stderr;\nevents {{ }}\n\
             http {{ access_log off; keepalive_timeout 0; {temporary}\nserver {{ {listen} ssl_certificate \
             /var/tmp/certificate.pem; ssl_certificate_key /var/tmp/key.pem; location / {{ default_type text/plain; \
             return 200 'external\\n'; }} }}\n}}\n"
        ),
    )?;
    let mut nginx =
        outside.daemon("internet", "nginx", ["-e", "stderr", "-c", "/var/tmp/nginx.conf"], &[])?;
    let mut arguments: Vec<String> = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--user=root",
        "--group=root",
        "--pid-file=",
        "--no-hosts",
        "--no-resolv",
        "--bind-interfaces",
        "--log-facility=-",
        // Authority for everything: an unknown name is NXDOMAIN, so that resolvers go on with their search list.
        "--local=/#/",
    ]
    .map(str::to_owned)
    .into();
    arguments.push(format!("--listen-address={}", INTERNET[2]));
    arguments.extend(EXTERNAL.iter().map(|(name, ip)| format!("--host-record={name},{ip}")));
    let mut names = outside.daemon("names", "dnsmasq", &arguments, &[])?;
    nginx.wait_until(Duration::from_secs(20), "not serving", || listens(outside, 443))?;
    names.wait_until(Duration::from_secs(20), "not serving", || listens(outside, 53))
}
