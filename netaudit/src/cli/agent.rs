//! `netaudit agent`: the DaemonSet's process.

use super::Exit;
use crate::{
    agent,
    config::{Config, Flags},
};

/// Watch this node's pods: record their connections, judge them, serve metrics and write the flow log
#[derive(clap::Args)]
#[command(args_override_self = true)]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags,
}

pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    let config = Config::load(&args.flags, default_node)?;
    if args.flags.print_config {
        print!("{}", config.to_yaml()?);
        return Ok(Exit::Clean);
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = config.node, "starting");
    // One thread: to pass a timer from one to another takes longer than what the timer is for.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(agent::run(config));
    // A file read or a name look-up that still blocks must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    result.map(|()| Exit::Clean)
}

/// `$NODE_NAME` as the DaemonSet sets it, else the host's name in lower case, as the kubelet does.
fn default_node() -> String {
    std::env::var("NODE_NAME")
        .unwrap_or_else(|_| rustix::system::uname().nodename().to_string_lossy().to_lowercase())
}
