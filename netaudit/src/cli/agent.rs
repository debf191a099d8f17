//! `netaudit agent`: the DaemonSet's process.

use clap::Args;

use super::Exit;
use crate::{
    agent,
    config::{Config, Flags},
};

/// Watch this node's pods: record their connections, judge them, serve metrics and write the flow log
#[derive(Args)]
#[command(args_override_self = true)]
pub(super) struct Agent {
    #[command(flatten)]
    flags: Flags,
}

impl Agent {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let config = Config::load(&self.flags, default_node)?;
        if self.flags.print_config {
            print!("{}", config.to_yaml()?);
            return Ok(Exit::Clean);
        }
        tracing::info!(version = env!("CARGO_PKG_VERSION"), node = config.node, "starting");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let result = runtime.block_on(agent::run(config));
        // A file read or a name look-up that still blocks must not hold up the end.
        runtime.shutdown_timeout(std::time::Duration::from_millis(200));
        result.map(|()| Exit::Clean)
    }
}

/// `$NODE_NAME` as the DaemonSet sets it, else the host's name in lower case, as the kubelet does.
fn default_node() -> String {
    std::env::var("NODE_NAME")
        .unwrap_or_else(|_| rustix::system::uname().nodename().to_string_lossy().to_lowercase())
}
