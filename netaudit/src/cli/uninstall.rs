//! `netaudit uninstall`: removes what agents have pinned on this node.

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use super::Exit;
use crate::kernel::{self, DEFAULT_PIN_DIRECTORY};

/// Remove from this node's kernel what agents with a pin directory have left there: programs, maps, records
#[derive(clap::Args)]
pub(super) struct Args {
    /// The directory that the agents were told
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_DIRECTORY)]
    pin_directory: PathBuf,
    /// Stay until SIGTERM when it is done, as a DaemonSet's pods must
    #[arg(long)]
    stay: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    let removed = kernel::uninstall(&args.pin_directory)?;
    if removed.generations == 0 {
        println!("nothing is pinned in {}", args.pin_directory.display());
    } else {
        println!(
            "removed from {}: {} programs' links, {} maps",
            args.pin_directory.display(),
            removed.links,
            removed.maps
        );
    }
    if args.stay {
        println!("done; waiting for SIGTERM");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (mut terminate, mut interrupt) =
                (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            anyhow::Ok(())
        })?;
    }
    Ok(Exit::Clean)
}
